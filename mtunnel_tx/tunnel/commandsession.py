"""What keeps a tunnel going: its command connection, the time it may take to come, and its end."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.ports.events import TunnelEnded
from mtunnel_tx.ports.lines import Listening
from mtunnel_tx.tunnel import dispatch
from mtunnel_tx.tunnel.ending import Ending, end
from mtunnel_tx.tunnel.tunnel import State, Tunnel
from mtunnel_tx.tunnel.verdict import Verdict
from mtunnel_tx.waiting import Task
from mtunnel_tx.wire.socketkinds import COMMANDS

log = Logger()
LAST_REPLIES_S = 5.0
"""How long the last replies may take on their way from our own socket into the websocket."""
UNEXPECTED = "mtunnel exited unexpectedly"
Gone = Callable[["CommandSession", Ending], None]


class CommandSession:
    """Answers one tunnel's command connection (ports.Answerer) and ends the tunnel, once, whatever ends first."""

    def __init__(self, tunnel: Tunnel, gone: Gone) -> None:
        self.tunnel = tunnel
        self._opened_s = tunnel.services.clock.seconds()
        self._gone = gone
        self._door: Listening | None = None
        self._timer: Timer | None = None
        self._end: Task | None = None
        self._busy = DeferredLock()

    async def listen(self) -> None:
        """Wait for the command connection, for as long as the limit says."""
        tunnel, services = self.tunnel, self.tunnel.services
        self._door = await services.listen(tunnel.sockets.file(COMMANDS), self)
        tunnel.sockets.add(COMMANDS)
        self._timer = services.clock.callLater(services.limits.connect_s, self._finish, "Exiting mtunnel")

    def connected(self) -> bool:
        """Take the first connection only."""
        if self.tunnel.state is not State.WAITING:
            return False
        self.tunnel.state = State.SERVING
        self._stop_timer()
        return True

    async def answer(self, line: bytes) -> bytes:
        """One command; after `quit` the source has a while to leave."""
        async with self._busy:
            reply = await dispatch.answer(self.tunnel, line)
        if self.tunnel.leaving and self._timer is None and self._end is None:
            clock, limits = self.tunnel.services.clock, self.tunnel.services.limits
            self._timer = clock.callLater(limits.exit_s, self.disconnected)
        return reply

    def disconnected(self) -> None:
        """The connection is over: an end without `quit` is an error of the task."""
        self._finish("" if self.tunnel.leaving else UNEXPECTED)

    async def stop(self) -> None:
        """End the tunnel now, and wait until nothing of it is left."""
        self.disconnected()
        assert self._end is not None
        while not await self._end.wait(self.tunnel.services.clock, 1.0):
            pass

    def _finish(self, reason: str) -> None:
        """Args: reason: why the task is a failure; empty after `quit`."""
        if self._end is None:
            self._stop_timer()
            self._end = Task(self._run_end(reason))

    async def _run_end(self, reason: str) -> None:
        """The command in work finishes first; then no other can come."""
        tunnel = self.tunnel
        async with self._busy:
            tunnel.state = State.LEAVING if tunnel.leaving else State.ENDING
            ending = await self._end_tunnel()
            self._end_task(reason, ending)
        tunnel.sockets.abort_streams(but=COMMANDS)
        if self._door is not None:
            await self._door.close()
        await tunnel.sockets.wait_for_end(COMMANDS, tunnel.services.clock, LAST_REPLIES_S)
        self._tell_end(reason, ending)
        self._gone(self, ending)

    async def _end_tunnel(self) -> Ending:
        try:
            await self.tunnel.end_children()
        except Exception:
            log.failure("unexpected failure at the end of the tunnel of VM {vmid}", vmid=self.tunnel.vmid)
            return Ending(Verdict.HOLD, "internal error, see the daemon's log")
        return await end(self.tunnel.claim)

    def _end_task(self, reason: str, ending: Ending) -> None:
        tunnel = self.tunnel
        if ending.problem is not None:
            tunnel.task.warn(ending.problem)
            log.error("VM {vmid} is held: {reason}", vmid=tunnel.vmid, reason=ending.problem)
        if tunnel.leaving:
            tunnel.task.line("mtunnel exited")
        warnings = tunnel.task.warnings
        tunnel.task.finish(reason or (f"WARNINGS: {warnings}" if warnings else "OK"))

    def _tell_end(self, reason: str, ending: Ending) -> None:
        facts = self.tunnel.facts
        duration_s = self.tunnel.services.clock.seconds() - self._opened_s
        self.tunnel.tell(
            TunnelEnded(
                tunnel=facts,
                reason=reason,
                outcome=ending.outcome,
                problem=ending.problem,
                traffic=facts.traffic(),
                duration_s=duration_s,
            )
        )

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
