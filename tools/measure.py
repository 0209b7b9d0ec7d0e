"""Start to measure coverage in this process; .ci/run lets every Python of .venv run this at its start.

twistd ends by sending itself the signal that ended it, and some others by os._exit: no exit handler of coverage ever
runs there, so both save first.
"""

import os

import coverage


def start(rcfile: str) -> None:
    """Measure until the process ends."""
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
