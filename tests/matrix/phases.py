"""When something fails: the phases of a migration, each recognised by what the journal or a QEMU says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.matrix.cell import MIB, Cell
from tests.matrix.proxy import COMMANDS, DISK, MEMORY
from tests.patience import wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """`seen`: it is on; `held`: the source's next command is kept in the proxy as soon as it is.

    `signal`: what `seen` looks at. `stream`: the connection that matters in it.
    """

    name: str
    signal: str
    seen: Callable[[Cell], bool]
    held: bool
    stream: str

    def reach(self, cell: Cell, *options: str) -> None:
        """Wait until the phase is on. Args: options: of `mtunnel migrate`. Raises: AssertionError: over before."""
        if self.held:
            cell.holds = lambda: self.seen(cell)  # type: ignore[method-assign]
        cell.migrate(*options)

        def on() -> bool:
            assert cell.migration is not None
            if cell.migration.poll() is not None:
                cell.finish()
                raise AssertionError(f"over before '{self.name}': {cell.said}")
            return cell.proxy.holding.is_set() if self.held else self.seen(cell)

        wait_for(f"'{self.name}'", on, 90)
        cell.there.spy()
        if self.name == "completed":
            wait_for("the journal's word for it", lambda: cell.there.reached("whole"))


def _mirroring(cell: Cell) -> bool:
    spy = cell.here.spy()
    return spy is not None and spy.copied_bytes() > 2 * MIB and cell.proxy.has(DISK)


def _sending(cell: Cell) -> bool:
    spy = cell.here.spy()
    state = spy.migration() if spy is not None else {}
    return state.get("status") == "active" and state.get("ram", {}).get("transferred", 0) > MIB


def _sent(cell: Cell) -> bool:
    spy = cell.here.spy()
    if spy is None or not spy.migrated.is_set():
        return False  # it cannot be asked while it waits for a connection
    return spy.migration().get("status") == "completed"


PHASES = (
    Phase(
        name="before start",
        signal="journal `configured`; `start` is kept back",
        seen=lambda cell: cell.there.reached("configured"),
        held=True,
        stream=COMMANDS,
    ),
    Phase(
        name="mirror",
        signal="2 MiB copied (`query-block-jobs`)",
        seen=_mirroring,
        held=False,
        stream=DISK,
    ),
    Phase(
        name="memory",
        signal="`query-migrate` active, 1 MiB sent",
        seen=_sending,
        held=False,
        stream=MEMORY,
    ),
    Phase(
        name="completed",
        signal="`query-migrate` completed and journal `whole`; `nbdstop` is kept back",
        seen=_sent,
        held=True,
        stream=COMMANDS,
    ),
    Phase(
        name="resumed",
        signal="journal `resumed`; `unlock` is kept back",
        seen=lambda cell: cell.there.reached("resumed"),
        held=True,
        stream=COMMANDS,
    ),
    Phase(
        name="unlocked",
        signal="journal `unlocked`; `quit` is kept back",
        seen=lambda cell: cell.there.reached("unlocked"),
        held=True,
        stream=COMMANDS,
    ),
)
