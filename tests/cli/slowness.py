"""A program that takes its time at one step, and a command that is caught in it."""

import os
import subprocess
from pathlib import Path

from tests.patience import patience_s, wait_for
from tests.processes import started_process

_SLOW = """\
#!/bin/bash
# Stands in front of a program: does what is asked, and where that is the step {step}, waits then for ever.
{program} "$@" || exit
[[ "$*" != {step} ]] || {{ touch {folder}/waiting; exec sleep 600; }}
"""


class Slowness:
    """A mixin of VmCase: begin a command that comes as far as a step, and no further."""

    def slow(self, program, step, name=None):
        """Have a program wait after the step, a pattern of bash's for its arguments. Returns: its path."""
        folder = self.folder / "slow"
        folder.mkdir(exist_ok=True)
        file = folder / (name or Path(program).name)
        file.write_text(_SLOW.format(program=program, step=step, folder=self.folder))
        file.chmod(0o755)
        return file

    def begin(self, *words):
        """Run `mtunnel vm WORDS` until it waits. Returns: the process."""
        environ = {**os.environ, "PATH": f"{self.folder}/slow:{os.environ['PATH']}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = started_process(self.addCleanup, self.command(*words), env=environ, **pipes)
        wait_for("the slow step", lambda: (self.folder / "waiting").exists() or process.poll() is not None)
        self.assertIsNone(process.returncode)
        return process

    def kill_in(self, *words):
        """The same, killed there; its children live on until somebody ends them."""
        process = self.begin(*words)
        process.kill()
        process.communicate(timeout=patience_s())
