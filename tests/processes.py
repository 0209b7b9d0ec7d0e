"""Programs that tests start. Each one has an owner, whose cleanup ends it and every other process of its group."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.patience import WAIT_S, patience_s


def started_process(
    add_cleanup: Callable[..., object], argv: Sequence[str | os.PathLike[str]], **options: Any
) -> subprocess.Popen[Any]:
    """Start a program in a session of its own.

    Args: add_cleanup: its owner's: `self.addCleanup` of a test, `callback` of an ExitStack. options: of Popen.
    """
    process = subprocess.Popen(argv, **{"stdin": subprocess.DEVNULL, "start_new_session": True, **options})
    add_cleanup(end_group, process)
    return process


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill a program of `started_process` and all of its group, and wait for it."""
    # A number is given away anew only when nobody of its group is left: who has it after `process` is somebody else.
    if process.returncode is None or not Path(f"/proc/{process.pid}").exists():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):  # what was not written yet
                stream.close()
    process.wait(patience_s())


def run_program(
    argv: Sequence[str | os.PathLike[str]],
    *,
    check: bool = True,
    capture_output: bool = False,
    input: Any = None,
    quiet_s: float = WAIT_S,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` does; nothing of its group is left when this returns.

    Args: quiet_s: how long it may take on a quiet machine. Raises: CalledProcessError; TimeoutExpired.
    """
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with ExitStack() as owner:
        process = started_process(owner.callback, argv, **options)
        out, err = process.communicate(input, timeout=patience_s(quiet_s))
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv, out, err)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def end_processes_of(folder: Path) -> None:
    """Kill every process that has this folder in its command line or environment, wherever it hangs."""
    from tests.leaks import processes_of

    for pid, _ in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
