"""The long part of a live move: its disks, then its memory, as fast as they may go and as long as they may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtunnel_tx.errors import TimedOut
from mtunnel_tx.ports.moves import MovePhase, Reached
from mtunnel_tx.source.amounts import format_amount, format_rate
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.links import MemoryState, MirrorState, Running
from mtunnel_tx.source.order import SourceWorld
from mtunnel_tx.source.pace import Pace
from mtunnel_tx.source.patience import OnTimeout, Patience
from mtunnel_tx.source.qemu.convergence import SAY_EVERY_S, Advice, MemoryWatch, MirrorWatch, compare
from mtunnel_tx.source.qemu.forwards import Forwards
from mtunnel_tx.source.qemu.meters import Meters
from mtunnel_tx.source.qemu.mirroring import start_mirror

_UNDER_WAY = "active"


def find_max_downtime_ms(pace: Pace, patience: Patience) -> int:
    """How long the VM may stand still for the rest of its memory, at most."""
    return max(pace.downtime_ms, round(patience.max_downtime_s * 1000))


class LiveCopy:
    """Copies a VM that goes on writing. Its time runs from when this is made."""

    def __init__(
        self, running: Running, forwards: Forwards, host: SourceWorld, pace: Pace, patience: Patience,
        journal: DepartureJournal,
    ) -> None:  # fmt: skip
        self._running = running
        self._forwards = forwards
        self._journal = journal
        self._clock = host.reactor
        self._progress = host.progress
        self._pace = pace
        self._patience = patience
        self._until_s = None if patience.timeout_s is None else self._clock.seconds() + patience.timeout_s
        self._watch = MirrorWatch()

    async def disks(self, mirrors: Mapping[str, tuple[Path, str]]) -> None:
        """Mirror disks until the copies are level. Args: mirrors: sockets and exports by the drives' keys.

        Raises: TunnelError.
        """
        if not mirrors:
            return
        for key, (path, export) in mirrors.items():
            limit_bytes_s = self._pace.disks[key]
            await start_mirror(
                self._running, self._forwards, self._clock, key, path, export, limit_bytes_s=limit_bytes_s
            )
        self._progress.tell(Reached(phase=MovePhase.MIRROR))
        with Meters(self._progress) as meters:

            async def told(states: Sequence[MirrorState]) -> None:
                meters.mirrors(states)
                await self._follow(self._watch.see(self._clock.seconds(), states))
                if not self._patience.may_split:  # which is for its memory: that begins late then
                    await self._look_at_the_clock("its disks are not level")

            await self._running.until_ready(told)

    async def memory(self, socket: Path) -> None:
        """Send the memory until the VM stands still and only the rest is left. Raises: TunnelError."""
        pace, patience = self._pace, self._patience
        max_downtime_ms = find_max_downtime_ms(pace, patience)
        limits = {"limit_bytes_s": pace.memory_bytes_s, "downtime_ms": pace.downtime_ms}
        self._progress.say(self._describe_limits(max_downtime_ms))
        await self._running.start_migration(
            socket, **limits, auto_converge=patience.auto_converge, postcopy=patience.may_split
        )
        self._progress.tell(Reached(phase=MovePhase.MEMORY))
        watch = MemoryWatch(pace.downtime_ms, max_downtime_ms)
        with Meters(self._progress) as meters:

            async def told(state: MemoryState) -> None:
                meters.memory(state)
                if state.status == _UNDER_WAY:  # the guest runs: there is time
                    await self._follow(watch.see(self._clock.seconds(), state))
                    await self._look_at_the_disks()
                    await self._look_at_the_clock(compare(state))

            await self._running.until_switchover(told, limit_s=patience.switch_s)

    def _describe_limits(self, max_downtime_ms: int) -> str:
        pace, patience = self._pace, self._patience
        speed = format_rate(pace.memory_bytes_s, 1) if pace.memory_bytes_s else "no limit"
        limits = [f"speed: {speed}", f"downtime: {pace.downtime_ms} ms, {max_downtime_ms} ms at most"]
        if patience.timeout_s is not None:
            limits.append(f"time: {patience.timeout_s:g} s, then {patience.on_timeout.value}")
        return f"memory: {'; '.join(limits)}"

    async def _follow(self, advice: Sequence[Advice]) -> None:
        for each in advice:
            if each.say:
                self._progress.say(each.say)
            if each.downtime_ms is not None:
                await self._running.limit(limit_bytes_s=self._pace.memory_bytes_s, downtime_ms=each.downtime_ms)
            if each.writes_bytes_s is not None:
                await self._running.slow_down(each.drive, each.writes_bytes_s)

    async def _look_at_the_disks(self) -> None:
        """What is left of them is copied while the guest stands still. Raises: BackendFailed: a copy failed."""
        await self._follow(self._watch.see(self._clock.seconds(), await self._running.mirrors()))

    async def _look_at_the_clock(self, state: str) -> None:
        """Raises: TimedOut: the time is up, and the move is to be given up then."""
        if self._until_s is None or self._clock.seconds() < self._until_s:
            return
        self._until_s = None
        took = f"it was not there within {self._patience.timeout_s:g} s: {state}"
        if self._patience.on_timeout is OnTimeout.ABORT:
            raise TimedOut(took)
        if self._patience.on_timeout is OnTimeout.POSTCOPY and await self._running.status() == "running":
            await self._journal.announce("postcopy")
            await self._running.start_postcopy()
            self._progress.say(f"{took}; it goes on there before all of its memory is there (post-copy)")
            return
        await self._running.pause()
        self._progress.say(f"{took}; it stands still until it is there")

    async def rest_of_memory(self) -> None:
        """Wait until the memory of a VM that runs there by post-copy is all there. Raises: BackendFailed."""
        self._progress.tell(Reached(phase=MovePhase.POSTCOPY))
        said_s = -SAY_EVERY_S
        with Meters(self._progress) as meters:

            async def told(state: MemoryState) -> None:
                nonlocal said_s
                meters.memory(state)
                if self._clock.seconds() - said_s >= SAY_EVERY_S and state.remaining_bytes:
                    said_s = self._clock.seconds()
                    self._progress.say(f"post-copy: {format_amount(state.remaining_bytes)} remain")

            await self._running.until_sent(told)
