"""The life of one tunnel: it waits for its command connection, answers commands, and is ended once."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.ports.events import TunnelEnded
from mtunnel_tx.ports.lines import Listening
from mtunnel_tx.tunnel import dispatch
from mtunnel_tx.tunnel.begun import answer_again
from mtunnel_tx.tunnel.ending import Ending, end
from mtunnel_tx.tunnel.notebook import Notebook
from mtunnel_tx.tunnel.transcript import Transcript
from mtunnel_tx.tunnel.tunnel import State, Tunnel
from mtunnel_tx.tunnel.verdict import Verdict
from mtunnel_tx.waiting import Task, in_time
from mtunnel_tx.wire.socketkinds import COMMANDS

log = Logger()
LEAVE_S = 5.0
LAST_REPLIES_S = 5.0
"""How long the relay may need to send the last replies on; then it is aborted."""
UNEXPECTED = "mtunnel exited unexpectedly"
TOO_LONG = "no 'quit' came in time after 'unlock'"
Gone = Callable[["CommandSession", Ending], None]


class CommandSession:
    """Answers the command connection of one tunnel (ports.CommandAnswerer), and ends the tunnel, once.

    Args: transcript: of what an earlier daemon has answered.
    """

    def __init__(self, tunnel: Tunnel, gone: Gone, transcript: Transcript | None = None) -> None:
        self.tunnel = tunnel
        self._opened_s = tunnel.services.clock.seconds()
        self._gone = gone
        self._listening: Listening | None = None
        self._timer: Timer | None = None
        self._end: Task | None = None
        self._busy = DeferredLock()
        self._book = Notebook(tunnel.services.notes, tunnel.vmid, transcript or Transcript(facts=tunnel.lasting()))
        if tunnel.services.store is None:
            self._book.spoil()
        tunnel.parking.over = lambda: self._book.interrupted(tunnel.parking.before_s)
        self._is_leaving = self._is_left = False

    async def listen(self) -> None:
        """Listen for the command connection; the tunnel ends if it does not come within `limits.connect_s`."""
        tunnel, services = self.tunnel, self.tunnel.services
        self._listening = await services.listen(tunnel.sockets.file(COMMANDS), self)
        tunnel.sockets.add(COMMANDS)
        self._timer = services.clock.callLater(services.limits.connect_s, self._finish, "Exiting mtunnel")

    def connected(self) -> bool:
        """Returns: it is the first connection; each later one is refused."""
        if self.tunnel.state is not State.WAITING:
            return False
        self.tunnel.state = State.SERVING
        self._stop_timer()
        return True

    async def answer(self, line: bytes) -> bytes:
        """Do one command. Returns: the reply."""
        async with self._busy:
            if self._book.transcript.asked is None:
                self._book.asked(self.tunnel.ledger.count)
                reply = await dispatch.answer(self.tunnel, line)
            else:
                reply = await answer_again(self.tunnel, line, self._book.transcript.asked)
            self._book.answered(reply, self.tunnel.snapshot)
        self._limit_time()
        return reply

    def accepted(self, sock: socket.socket) -> None:
        """See ports.Scribe."""
        store = self.tunnel.services.store
        if store is not None:
            store.put(self._stored, None, [sock])

    def heard(self, data: bytes) -> None:
        """See ports.Scribe."""
        self._book.heard(data)

    def spoil(self) -> None:
        """See ports.Scribe."""
        self._book.spoil()

    @property
    def _stored(self) -> str:
        return f"commands/{self.tunnel.vmid}"

    async def go_on(self, sock: socket.socket, unsaid: bytes) -> None:
        """Serve the command connection of an earlier daemon's tunnel."""
        tunnel, resume = self.tunnel, self.tunnel.services.resume
        assert resume is not None, "only with a store can there be one"
        tunnel.state = State.SERVING
        path = tunnel.sockets.file(COMMANDS)
        self._listening = resume(path, self, sock, self._book.transcript.pending, unsaid)
        self._limit_time()

    def _limit_time(self) -> None:
        """After `unlock` the source must send `quit` within `limits.unlocked_s`, and then leave within `exit_s`."""
        clock, limits = self.tunnel.services.clock, self.tunnel.services.limits
        if self._end is not None:
            return
        if self.tunnel.leaving and not self._is_leaving:
            self._is_leaving = True
            self._forget()
            self._stop_timer()
            self._timer = clock.callLater(limits.exit_s, self.disconnected)
        elif self.tunnel.ledger.owed.handed_over and self._timer is None:
            self._timer = clock.callLater(limits.unlocked_s, self._finish, TOO_LONG)

    def disconnected(self) -> None:
        """The connection is over: an end without `quit` is an error of the task."""
        self._finish("" if self.tunnel.leaving else UNEXPECTED)

    @property
    def is_ending(self) -> bool:
        """Whether its end has begun."""
        return self._end is not None

    async def stop(self) -> None:
        """End the tunnel now, and wait until nothing of it is left."""
        self.disconnected()
        assert self._end is not None
        while not await self._end.wait(self.tunnel.services.clock, 1.0):
            pass

    async def leave(self) -> None:
        """Do nothing more: the tunnel is the next daemon's. A command in work has some time to be answered."""
        self._is_left = True
        self._stop_timer()
        await in_time(self.tunnel.services.clock, LEAVE_S, self._busy.acquire())

    def _finish(self, reason: str) -> None:
        """Args: reason: why the task is a failure; empty after `quit`."""
        if self._end is None and not self._is_left:
            self._stop_timer()
            self._forget()
            self._end = Task(self._run_end(reason))

    def _forget(self) -> None:
        """From now on the journal alone says what is to be done."""
        self._book.spoil()
        if self.tunnel.services.store is not None:
            self.tunnel.services.store.drop(self._stored)

    async def _run_end(self, reason: str) -> None:
        """Wait for the command that is being done; in the new state no other one is accepted."""
        tunnel = self.tunnel
        async with self._busy:
            tunnel.state = State.LEAVING if tunnel.leaving else State.ENDING
            ending = await self._end_tunnel()
            self._end_task(reason, ending)
        tunnel.sockets.abort_streams()
        if tunnel.parking.has_commands:
            tunnel.sockets.abort_streams((COMMANDS,))  # nobody is there who could take the last replies
        if self._listening is not None:
            await self._listening.close()
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
