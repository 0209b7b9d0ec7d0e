"""What fails, done to a cell."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.matrix.cell import LIMIT_KIB_S, Cell
from tests.matrix.phases import Phase
from tests.matrix.proxy import COMMANDS, DISK, MEMORY
from tests.patience import wait_for

STALL_S = 20.0
SHORT_PARK_S, LONG_PARK_S = 3.0, 120.0
OUTAGE_S = 3.0
CUT_EVERY_S, MOST_CUTS = 2.0, 30
SLOW_BYTES_S = 65536
NEVER_BYTES_S = 4096
_NO_STREAM = "there is no such stream yet"
_STREAM_OVER = "the stream is over"
_SOURCE_OVER = "the source has ended its QEMU already, before it unlocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`impossible`: in which phases it cannot happen, and why; `small_disk`: the target's storage is a file system.

    `options`: of `mtunnel migrate`. `park_s`: how long both ends wait for another connection.
    """

    name: str
    do: Callable[[Cell, Phase], None]
    impossible: Mapping[str, str] = field(default_factory=dict)
    small_disk: bool = False
    options: tuple[str, ...] = ()
    park_s: float = SHORT_PARK_S


def _kill_source(cell: Cell, _phase: Phase) -> None:
    cell.here.kill_machine()


def _kill_target(cell: Cell, _phase: Phase) -> None:
    cell.there.kill_machine()


def _terminate(cell: Cell, _phase: Phase) -> None:
    cell.there.stop(signal.SIGTERM)
    cell.restart_daemon()


def _kill_daemon(cell: Cell, _phase: Phase) -> None:
    cell.there.stop(signal.SIGKILL)
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


def _cut_for_a_while(cell: Cell, _phase: Phase) -> None:
    cell.proxy.cut_all()
    time.sleep(OUTAGE_S)  # it is the fault itself that lasts
    cell.proxy.down = False


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


def _cut(kind: str) -> Callable[[Cell, Phase], None]:
    return lambda cell, _phase: cell.proxy.cut(kind)


FAULTS = (
    Fault(name="source QEMU killed", do=_kill_source, impossible=dict.fromkeys(("resumed", "unlocked"), _SOURCE_OVER)),
    Fault(name="target QEMU killed", do=_kill_target, impossible={"before start": "there is none yet"}),
    Fault(name="daemon SIGTERM", do=_terminate),
    Fault(name="daemon SIGKILL", do=_kill_daemon),
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
    Fault(name="all cut, back after 3 s", do=_cut_for_a_while, park_s=LONG_PARK_S),
    Fault(name="one stream cut every 2 s", do=_cut_again_and_again, park_s=LONG_PARK_S),
    Fault(name="target disk full", do=_fill, small_disk=True),
    Fault(name="20 s stall", do=_stall),
    Fault(
        name="never gets there (--timeout 20)",
        do=_slow_down,
        impossible={"before start": _NO_STREAM, **dict.fromkeys(("completed", "resumed", "unlocked"), _STREAM_OVER)},
        options=("--timeout", "20"),
    ),
    Fault(name="target machine rebooted", do=_reboot),
    Fault(name="source program killed", do=_kill_program),
)
