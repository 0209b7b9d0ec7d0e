"""Start to measure coverage in this process; .ci/run lets every Python of .venv run this at its start.

Measured are the tests and what they start themselves: daemons and commands. What those start in turn is not: there are
thousands of them, such as `mtunnel-pvesm`, which has tests of its own, and each would take 0.16 s of a processor more.

twistd ends by sending itself the signal that ended it, and some others by os._exit: no exit handler of coverage ever
runs there, so both save first.
"""

import os
import sys

TRIAL = "twisted/trial"


def start(rcfile: str) -> None:
    """Measure until the process ends."""
    if not is_of_a_test():
        return
    import coverage

    os.environ["COVERAGE_PROCESS_START"] = rcfile
    measured = coverage.process_startup()
    # Inherited, it would make coverage start itself in children, without what follows here.
    del os.environ["COVERAGE_PROCESS_START"]
    if measured is None:
        return
    kill, leave, us = os.kill, os._exit, os.getpid()

    def save() -> None:
        if os.getpid() == us:
            measured.stop()
            measured.save()

    def kill_after_saving(pid: int, number: int) -> None:
        if pid == us and number:
            save()
        kill(pid, number)

    def leave_after_saving(status: int) -> None:
        save()
        leave(status)

    os.kill, os._exit = kill_after_saving, leave_after_saving


def is_of_a_test() -> bool:
    """Whether this is trial or what it has started."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline") as file:  # noqa: PTH123 - pathlib takes longer than all of this
            return TRIAL in file.read() or any(TRIAL in word for word in sys.orig_argv)
    except OSError:
        return True
