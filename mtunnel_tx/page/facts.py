"""Everything that the page shows, as one value, and the one look at it that all its clients share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mtunnel_tx.page.rates import Rates
from mtunnel_tx.ports.clock import Clock, Threads, WallClock
from mtunnel_tx.waiting import Occasion
from mtunnel_tx.watch.history import FinishedMove
from mtunnel_tx.watch.hoststatus import HostStatus

FRESH_S = 1.0
HISTORY_S = 10.0
HISTORY_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFacts:
    """One look.

    at_s: seconds since the epoch. history: the newest first. owners: the tokens that held VMs came with. rates: of each
    move in `status`, bytes a second, the oldest first. history_problem: why there is no history.
    """

    at_s: float
    status: HostStatus
    history: Sequence[FinishedMove] = ()
    history_problem: str = ""
    owners: Mapping[int, str] = field(default_factory=dict)
    rates: Sequence[Sequence[float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where facts come from.

    look: the daemon's status. find_history: the latest so many moves that are over. find_owner: the token that a held
    VM came with, empty where its journal does not tell. The last two block.
    """

    look: Callable[[], Awaitable[HostStatus]]
    find_history: Callable[[int], Sequence[FinishedMove]]
    find_owner: Callable[[int], str]


class Looker:
    """Looks when it is asked, and once within FRESH_S however many ask. Args: rates: filled by every look too."""

    def __init__(self, sources: Sources, rates: Rates, clock: Clock, wall_s: WallClock, threads: Threads) -> None:
        self._sources = sources
        self._rates = rates
        self._clock = clock
        self._wall_s = wall_s
        self._threads = threads
        self._newest: tuple[float, PageFacts] | None = None
        self._looked = Occasion()
        self._looks = False
        self._history: tuple[float, int, Sequence[FinishedMove], str] = (float("-inf"), 0, (), "")

    async def look(self) -> PageFacts:
        """What is known now, or a moment ago. Raises: TunnelError."""
        while self._looks:
            await self._looked.wait()
        if self._newest is not None and self._clock.seconds() - self._newest[0] < FRESH_S:
            return self._newest[1]
        self._looks = True
        try:
            self._newest = self._clock.seconds(), await self._look()
        finally:
            self._looks = False
            self._looked.happen()
        return self._newest[1]

    def forget(self) -> None:
        """Something was done: what is known is old."""
        self._newest = None

    async def _look(self) -> PageFacts:
        status = await self._sources.look()
        self._rates.see(status.moves, self._clock.seconds())
        rows, problem = await self._find_history(sum(not move.phase.is_end for move in status.moves))
        return PageFacts(
            at_s=self._wall_s(),
            status=status,
            history=rows,
            history_problem=problem,
            owners=await self._find_owners(status.held),
            rates=[self._rates.of(move) for move in status.moves],
        )

    async def _find_history(self, live: int) -> tuple[Sequence[FinishedMove], str]:
        """Read it again where it is old, or where the number of live moves has changed."""
        read_s, before, rows, problem = self._history
        now_s = self._clock.seconds()
        if now_s - read_s >= HISTORY_S or live != before:
            rows, problem = await self._read_history(rows)
            # A row is written a moment after its move has ended: then once more, soon.
            self._history = (now_s if live == before else now_s - HISTORY_S + 2 * FRESH_S), live, rows, problem
        return rows, problem

    async def _read_history(self, known: Sequence[FinishedMove]) -> tuple[Sequence[FinishedMove], str]:
        try:
            return await self._threads.run(self._sources.find_history, HISTORY_ROWS), ""
        except Exception as error:  # whatever SQLite says: the rest of the page is not lost for it
            return known, f"the history cannot be read: {error}"

    async def _find_owners(self, held: Mapping[int, str]) -> Mapping[int, str]:
        """By the journals, each time: a VM may be settled, and another one of this number held, between two looks."""
        return {vmid: await self._threads.run(self._sources.find_owner, vmid) for vmid in held}
