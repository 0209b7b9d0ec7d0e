"""Start to measure coverage in this process; .ci/run lets every Python of .venv run this at its start.

Measured are the tests and what they start themselves: daemons and commands, of those that do the same the first ones
and then a few, as each takes 0.7 s of a processor more. What they start in turn is not: there are thousands of them,
such as `mtunnel-pvesm`, which has tests of its own.

twistd ends by sending itself the signal that ended it, and some others by os._exit: no exit handler of coverage ever
runs there, so both save first.
"""

import os
import sys

TRIAL = "twisted/trial"
FIRST, THEN_EACH = 8, 16


def start(rcfile: str) -> None:
    """Measure until the process ends."""
    if not is_of_a_test() or not is_one_of_a_few(rcfile + ".seen"):
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


def is_one_of_a_few(folder: str) -> bool:
    """Whether this is one of the FIRST that call the same program with the same commands, or a later THEN_EACH-th."""
    if any(TRIAL in word for word in sys.orig_argv):
        return True
    words = [word for word in sys.orig_argv[1:] if word.isalpha()]
    alike = "-".join([*sys.orig_argv[1:3], *words[:3]])[-60:].replace("/", "_")
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - as above
    number = 0
    while True:
        try:
            os.mkdir(f"{folder}/{alike}.{number}")  # noqa: PTH102 - as above
        except FileExistsError:
            number += 1
        else:
            return number < FIRST or number % THEN_EACH == 0
