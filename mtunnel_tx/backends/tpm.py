"""Emulated TPMs: `swtpm`, one process for each VM that has `tpmstate0`.

QEMU and swtpm are joined by a pair of sockets, so swtpm ends when QEMU does, whatever the reason, and there is neither
a socket file nor a pid to remember. A migration carries the TPM's state in QEMU's own stream.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.protocol import ProcessProtocol

from mtunnel_tx.backends.child import run
from mtunnel_tx.backends.process import plain_environ
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.drive import Drive

SETUP_S = 120.0
PROGRAM, SETUP_PROGRAM = "swtpm", "swtpm_setup"
KEY = "tpmstate0"
_CONTROL_FD = 3
_LOOKED_AT_BYTES = 1 << 16


def tpm_arguments(fd: int | None) -> list[str]:
    """QEMU's options. Args: fd: the number of its end of the sockets; None: the VM has no TPM."""
    if fd is None:
        return []
    chardev = ["-chardev", f"socket,id=tpmchar,fd={fd}"]
    return [*chardev, "-tpmdev", "emulator,id=tpmdev,chardev=tpmchar"]


async def prepare_state(reactor: Any, path: str, drive: Drive, environ: Mapping[str, str]) -> None:
    """Make a new TPM of a state volume: its keys and certificates. Raises: BackendFailed, TimedOut: with the reason."""
    argv = [SETUP_PROGRAM, "--tpmstate", f"file://{path}", "--createek", "--create-ek-cert", "--create-platform-cert"]
    argv += ["--lock-nvram", "--not-overwrite", *(["--tpm2", "--ecc"] if _is_tpm2(drive) else [])]
    await run(reactor, argv, environ, SETUP_S)


def is_blank(path: str) -> bool:
    """Whether a state volume was never used. Blocks."""
    try:
        with Path(path).open("rb") as file:
            return not any(file.read(_LOOKED_AT_BYTES))
    except OSError as error:
        raise BackendFailed(f"'{path}': {error.strerror}") from error


@contextmanager
def control_sockets() -> Iterator[tuple[int, int]]:
    """Both ends: QEMU's, and that of swtpm. Ours are closed in the end; the two processes keep theirs."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours.fileno(), theirs.fileno()


def spawn_swtpm(reactor: Any, path: str, drive: Drive, control: int, stderr: Path) -> None:
    """Start swtpm in a session of its own, so that it outlives us as QEMU does.

    Args: path: the state volume. control: its end of the sockets. stderr: what it says is added there.
    Raises: BackendFailed: the system refuses.
    """
    argv = [PROGRAM, "socket", "--tpmstate", f"backend-uri=file://{path},mode=0600", "--terminate"]
    argv += ["--ctrl", f"type=unixio,clientfd={_CONTROL_FD}", *(["--tpm2"] if _is_tpm2(drive) else [])]
    null = os.open(os.devnull, os.O_RDWR)
    output = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        given = {0: null, 1: output, 2: output, _CONTROL_FD: control}
        reactor.spawnProcess(ProcessProtocol(), "setsid", ["setsid", "--", *argv], env=plain_environ(), childFDs=given)
    except (OSError, ValueError) as error:
        raise BackendFailed(f"unable to start swtpm: {error}") from error
    finally:
        os.close(null)
        os.close(output)


def _is_tpm2(drive: Drive) -> bool:
    return drive.options.get("version") == "v2.0"
