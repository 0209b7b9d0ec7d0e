"""What fails, done to a cell."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.matrix.cell import LIMIT_KIB_S, THERE, Cell
from tests.matrix.insisting import GRANTED, NO_SOCKET, ORDERS
from tests.matrix.phases import Phase
from tests.matrix.proxy import COMMANDS, DISK, MEMORY
from tests.matrix.rules import HOLE, HOLE_IN_POSTCOPY, HOLE_S
from tests.patience import wait_for
from tests.whole.node import TOKEN, USERS

STALL_S = 20.0
IDLE_S = 68.0
"""Longer than the 60 s that nginx waits for a connection."""
SHORT_PARK_S, LONG_PARK_S = 3.0, 120.0
RESTART_S, LATE_S = 120.0, 1.0
CUT_EVERY_S, MOST_CUTS = 2.0, 30
SLOW_BYTES_S = 65536
NEVER_BYTES_S = 4096
_PATIENT = ("--switch-timeout", "300")
"""The VM may just have been stopped: by default it would stand still for 10 s at most, and run on at its source."""
_NO_STREAM = "there is no such stream yet"
_STREAM_OVER = "the stream is over"
_ONLY_MEMORY = "post-copy is for the memory"
_POSTCOPY = ("--timeout", "10", "--on-timeout", "postcopy")
_NOT_YET = "`unlock` is not answered yet"
_NOT_IDLE = "the next command follows at once"
_SOURCE_OVER = "the source has ended its QEMU already, before it unlocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`impossible`: in which phases it cannot happen, and why; `small_disk`: the target's storage is a file system.

    `options`: of `mtunnel migrate`. `park_s`: how long both ends wait for another connection. `restart_s`: how long a
    worker and its streams wait for another daemon; None: there is no worker. `program`: the source's.
    `behind_nginx`: one with its defaults is in front of the target.
    """

    name: str
    do: Callable[[Cell, Phase], None]
    impossible: Mapping[str, str] = field(default_factory=dict)
    small_disk: bool = False
    options: tuple[str, ...] = ()
    park_s: float = SHORT_PARK_S
    restart_s: float | None = None
    program: str = "mtunnel_tx.cli"
    behind_nginx: bool = False


def _kill_source(cell: Cell, _phase: Phase) -> None:
    cell.here.kill_machine()


def _kill_target(cell: Cell, _phase: Phase) -> None:
    cell.there.kill_machine()


def _restart(number: signal.Signals, away_s: float) -> Callable[[Cell, Phase], None]:
    """The daemon ends, and another one comes so long after."""

    def do(cell: Cell, _phase: Phase) -> None:
        cell.there.stop(number)
        time.sleep(away_s)  # it is the fault itself that lasts
        cell.restart_daemon()

    return do


def _tear(cell: Cell, _phase: Phase) -> None:
    """The daemon is killed in the middle of a record, and another one comes."""
    cell.there.stop(signal.SIGKILL)
    with (cell.there.state / "journal" / f"{THERE}.jsonl").open("ab") as journal:
        journal.write(b'{"do":"unlo')
    cell.restart_daemon()


def _slow_memory(cell: Cell, _phase: Phase) -> None:
    """So slow that only post-copy ends it, which has a limit of its own."""
    spy = cell.here.spy()
    assert spy is not None
    spy.limit_migration(NEVER_BYTES_S)


def _restart_late(cell: Cell, _phase: Phase) -> None:
    """When another daemon comes, everything that has waited for it is over."""
    cell.there.stop(signal.SIGKILL)
    wait_for("the holder's end", lambda: not (cell.there.runtime / "hold.sock").exists())
    cell.restart_daemon()


def _reboot(cell: Cell, _phase: Phase) -> None:
    """Everything of the target ends at once, and what a reboot clears is cleared."""
    cell.there.stop(signal.SIGKILL)
    if cell.there.status() != "off":
        cell.there.kill_machine()
    for path in cell.there.runtime.glob("*"):
        if not path.is_dir():
            path.unlink()
    cell.restart_daemon()


def _cut_all(cell: Cell, _phase: Phase) -> None:
    cell.proxy.cut_all()


def _cut_for(outage_s: float) -> Callable[[Cell, Phase], None]:
    """The network is gone, and comes back."""

    def do(cell: Cell, _phase: Phase) -> None:
        cell.proxy.cut_all()
        time.sleep(outage_s)  # it is the fault itself that lasts
        cell.proxy.down = False

    return do


def _swallow(cell: Cell, _phase: Phase) -> None:
    """Nothing arrives for a while, and nobody is told."""
    cell.proxy.swallow()
    time.sleep(HOLE_S)  # it is the fault itself that lasts
    cell.proxy.pass_again()


def _in_postcopy(do: Callable[[Cell, Phase], None]) -> Callable[[Cell, Phase], None]:
    """The same, once the VM runs at the target and a part of its memory is not there."""

    def wait_and_do(cell: Cell, phase: Phase) -> None:
        _slow_memory(cell, phase)
        wait_for("post-copy", lambda: cell.there.reached("resuming_partly") and cell.there.reached("resumed"), 60)
        assert not cell.there.reached("whole"), "all of its memory was there before"
        do(cell, phase)

    return wait_and_do


def _change_address(cell: Cell, _phase: Phase) -> None:
    cell.proxy.change_address()


def _cut_again_and_again(cell: Cell, _phase: Phase) -> None:
    """One connection at a time, from now on."""
    chance = random.Random(2)

    def cut() -> None:
        for _ in range(MOST_CUTS):
            live = [connection for connection in cell.proxy.connections if connection.open]
            if live:
                chance.choice(live).cut()
            time.sleep(CUT_EVERY_S)  # it is the fault itself that lasts

    threading.Thread(target=cut, daemon=True).start()


def _fill(cell: Cell, phase: Phase) -> None:
    """Memory is slow until the mirror has met it: the guest needs new blocks only now and then."""
    spy = cell.here.spy()
    meets = phase.stream == MEMORY and spy is not None
    if meets:
        spy.limit_migration(SLOW_BYTES_S)
    cell.fill()
    if meets:
        wait_for("the mirror's failure", spy.mirror_stands)
        spy.limit_migration(LIMIT_KIB_S * 1024)


def _stall(cell: Cell, phase: Phase) -> None:
    """A held command waits for longer; any other stream stands still."""
    if not phase.held:
        cell.proxy.stall(phase.stream, flows=False)
    time.sleep(STALL_S)  # it is the fault itself that lasts
    if not phase.held:
        cell.proxy.stall(phase.stream, flows=True)


def _slow_down(cell: Cell, _phase: Phase) -> None:
    """So slow from now on that the guest, which goes on writing, is always ahead."""
    spy = cell.here.spy()
    assert spy is not None
    spy.limit_mirrors(NEVER_BYTES_S)
    spy.limit_migration(NEVER_BYTES_S)


def _kill_program(cell: Cell, _phase: Phase) -> None:
    assert cell.migration is not None
    cell.migration.kill()
    wait_for("its end", lambda: cell.migration is not None and cell.migration.poll() is not None)


def _insist(cell: Cell, _phase: Phase) -> None:
    """The source's next order is held; then it gives all of them."""
    _await_answers(cell, [[name, "" if name in GRANTED else _refusal(name)] for name, _ in ORDERS])


def _refusal(name: str) -> str:
    unknown = f"Not allowed to generate ticket for unknown socket '{NO_SOCKET}'"
    reason = unknown if name == "ticket" else f"VM {THERE} is already unlocked"
    return f"target: failed to handle '{name}' command - {reason}"


def _insist_disabled(cell: Cell, _phase: Phase) -> None:
    """The same, and the user has been disabled."""
    (cell.there.pve / "user.cfg").write_text(USERS.replace(":1:0:", ":0:0:", 1))
    text = f"token '{TOKEN}' is no longer valid"
    _await_answers(cell, [[name, f"target: failed to handle '{name}' command - {text}"] for name, _ in ORDERS])


def _await_answers(cell: Cell, wanted: list[list[str]]) -> None:
    """What was refused must have changed nothing either."""
    before = cell.there.guest(THERE), cell.there.images(THERE)
    cell.proxy.release()
    wait_for("the answers", cell.answers.exists)
    found = json.loads(cell.answers.read_text())
    wrong = [pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1]]
    assert not wrong, f"answered, instead of what should be: {wrong}"
    after = cell.there.guest(THERE), cell.there.images(THERE)
    assert after == before, f"{after} instead of {before}"


def _idle(cell: Cell, phase: Phase) -> None:
    """The move takes longer than nginx waits, and nobody has anything to command."""
    spy = cell.here.spy()
    assert spy is not None
    limit = spy.limit_mirrors if phase.stream == DISK else spy.limit_migration
    limit(SLOW_BYTES_S)
    time.sleep(IDLE_S)  # it is the fault itself that lasts
    assert cell.migration is not None and cell.migration.poll() is None, "the move was over before"
    (commands,) = [one for one in cell.proxy.connections if one.kind == COMMANDS]
    assert commands.open and not commands.ended, "the command connection was lost"
    limit(LIMIT_KIB_S * 1024)


def _cut(kind: str) -> Callable[[Cell, Phase], None]:
    return lambda cell, _phase: cell.proxy.cut(kind)


FAULTS = (
    Fault(name="source QEMU killed", do=_kill_source, impossible=dict.fromkeys(("resumed", "unlocked"), _SOURCE_OVER)),
    Fault(name="target QEMU killed", do=_kill_target, impossible={"before start": "there is none yet"}),
    *(
        Fault(name=f"daemon {number.name}, back after {away_s} s", do=_restart(number, away_s), restart_s=RESTART_S)
        for number in (signal.SIGTERM, signal.SIGKILL)
        for away_s in (0, 5)
    ),
    Fault(name="daemon SIGKILL, its journal torn", do=_tear, restart_s=RESTART_S, park_s=LONG_PARK_S),
    Fault(name="daemon SIGKILL, back too late", do=_restart_late, restart_s=LATE_S, park_s=LONG_PARK_S),
    Fault(name="daemon SIGTERM, `workers = 0`", do=_restart(signal.SIGTERM, 0), park_s=LONG_PARK_S),
    Fault(
        name="memory stream cut",
        do=_cut(MEMORY),
        park_s=LONG_PARK_S,
        impossible={
            **dict.fromkeys(("before start", "mirror"), _NO_STREAM),
            **dict.fromkeys(("completed", "resumed", "unlocked"), _STREAM_OVER),
        },
    ),
    Fault(
        name="NBD stream cut",
        do=_cut(DISK),
        park_s=LONG_PARK_S,
        impossible={"before start": _NO_STREAM, **dict.fromkeys(("completed", "resumed", "unlocked"), _STREAM_OVER)},
    ),
    Fault(name="command connection cut", do=_cut(COMMANDS), park_s=LONG_PARK_S),
    Fault(name="all cut, for good", do=_cut_all),
    Fault(name="all cut, back after 3 s", do=_cut_for(3), park_s=LONG_PARK_S),
    Fault(name="all cut, back after 30 s", do=_cut_for(30), options=_PATIENT, park_s=LONG_PARK_S),
    Fault(name=HOLE, do=_swallow, options=_PATIENT, park_s=HOLE_S + LONG_PARK_S),
    Fault(name="source address changes", do=_change_address, park_s=LONG_PARK_S),
    Fault(name="one stream cut every 2 s", do=_cut_again_and_again, park_s=LONG_PARK_S),
    Fault(name="target disk full", do=_fill, small_disk=True),
    Fault(name="20 s stall", do=_stall, options=_PATIENT),
    Fault(
        name="never gets there (--timeout 20)",
        do=_slow_down,
        impossible={"before start": _NO_STREAM, **dict.fromkeys(("completed", "resumed", "unlocked"), _STREAM_OVER)},
        options=("--timeout", "20"),
    ),
    Fault(
        name="never gets there, then post-copy",
        do=_slow_memory,
        impossible=dict.fromkeys(("before start", "mirror", "completed", "resumed", "unlocked"), _ONLY_MEMORY),
        options=_POSTCOPY,
    ),
    *(
        Fault(
            name=name,
            do=_in_postcopy(do),
            impossible=dict.fromkeys(("before start", "mirror", "completed", "resumed", "unlocked"), _ONLY_MEMORY),
            options=_POSTCOPY,
            park_s=HOLE_S + LONG_PARK_S,
            restart_s=restart_s,
        )
        for name, do, restart_s in (
            ("all cut in post-copy, back after 3 s", _cut_for(3), None),
            (HOLE_IN_POSTCOPY, _swallow, None),
            ("daemon SIGTERM in post-copy, back after 3 s", _restart(signal.SIGTERM, 3), RESTART_S),
            ("daemon SIGKILL in post-copy, back after 3 s", _restart(signal.SIGKILL, 3), RESTART_S),
            ("daemon SIGTERM in post-copy, `workers = 0`", _restart(signal.SIGTERM, 0), None),
            ("daemon SIGKILL in post-copy, `workers = 0`", _restart(signal.SIGKILL, 0), None),
        )
    ),
    Fault(name="target machine rebooted", do=_reboot, park_s=LONG_PARK_S),
    Fault(name="source program killed", do=_kill_program),
    *(
        Fault(
            name=name,
            do=do,
            program="tests.matrix.insisting",
            impossible=dict.fromkeys(("before start", "mirror", "memory", "completed", "resumed"), _NOT_YET),
        )
        for name, do in (
            ("commands after the hand-over", _insist),
            ("commands after the hand-over, user disabled", _insist_disabled),
        )
    ),
    Fault(
        name="68 s without a command, behind nginx",
        do=_idle,
        program="tests.matrix.silent",
        behind_nginx=True,
        impossible=dict.fromkeys(("before start", "completed", "resumed", "unlocked"), _NOT_IDLE),
    ),
)
