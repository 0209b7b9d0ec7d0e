"""Asks the target what became of a VM, where nobody here knows whose it is, and finishes the hand-over.

For a program whose network was lost for longer than a flow is parked, and for the next one where a program was killed.
This host's journal is written before the target is told anything, and the target writes its own before it does it: so
whatever is lost on the way, there is no moment in which both sides run the VM, and the question can be asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import NotFound, TimedOut, TunnelError, Unreachable, WrongState
from mtunnel_tx.ports.tunnels import Decision, LateAnswer
from mtunnel_tx.source.amounts import format_time
from mtunnel_tx.source.departure import STANDING, Departure, Power, Stage
from mtunnel_tx.source.host import SourceHost
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.links import Json
from mtunnel_tx.source.owner import LocalMachine, Owner, is_in_parts, judge
from mtunnel_tx.source.settling import Settling
from mtunnel_tx.source.target import NotImplementedThere, TargetApi, TargetBusy
from mtunnel_tx.waiting import finish, pause

PATIENCE_S = 60.0
"""For one answer: the tunnel may have to be ended first."""
AGAIN_S = 2.0
NOTICED_S = 60.0
"""Until then a target has noticed that a connection is lost; what it refuses later is no matter of time."""
SAY_EVERY_S = 10.0
TELL_S = 20.0
"""How long it is tried to tell a target that the VM stays here; nobody waits for that longer."""
_LATER = (Unreachable, TimedOut, TargetBusy, WrongState)
"""What may be otherwise a moment later: the last one is said where the target has not noticed yet what was lost."""


class Undecided(TunnelError):
    """The target has answered, and somebody has to decide."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """One VM, and the target that may have it. What is learned is in the journal afterwards."""

    host: SourceHost
    journal: DepartureJournal
    target: TargetApi

    @property
    def can_be_made(self) -> bool:
        """Whether this target is the one, and can know what is meant."""
        departure = self._departure
        return bool(departure.upid) and (departure.host, departure.token) == (self.target.host, self.target.token)

    async def run(self, wait_s: float = 0.0) -> bool:
        """Ask where it is not known whose the VM is, or whether it is unlocked there.

        Once, and for `wait_s` again until there is an answer.

        Returns: the target has it, as it has said now; why it has not is said. Raises: CancelledError, between two
        questions.
        """
        clock = self.host.reactor
        began_s, said_s = clock.seconds(), -SAY_EVERY_S
        while self.can_be_made:
            try:
                return await finish(self._settle_once())
            except _LATER as error:
                waited_s = clock.seconds() - began_s
                if waited_s >= (min(wait_s, NOTICED_S) if isinstance(error, WrongState) else wait_s):
                    self._say(f"{self.target.host} cannot be asked what became of the VM: {error.text}")
                    return False
            except TunnelError as error:
                self._say(f"{self.target.host} does not say what became of the VM: {error.text}")
                return False
            if waited_s - said_s >= SAY_EVERY_S:
                said_s = waited_s
                limits = f"{format_time(waited_s)} of {format_time(wait_s)}"
                self._say(f"asking {self.target.host} what became of VM {self._departure.target_vmid} ({limits})")
            await pause(clock, AGAIN_S)
        return False

    async def tell_kept(self) -> None:
        """The VM is this host's, and its journal is closed: have the target remove what it may hold of it.

        It refuses that for a VM that may have run there. Never raises a TunnelError: a failure is only said.
        """
        if not self.can_be_made or self._departure.stage is Stage.KEPT:  # it was told already, or somebody decides
            return
        clock = self.host.reactor
        end_s = clock.seconds() + TELL_S
        while True:
            try:
                await self._ask(Decision.DISCARD, wait_s=TELL_S)
                return
            except (NotFound, NotImplementedThere):  # nothing is there
                return
            except TunnelError as error:
                if not isinstance(error, _LATER) or clock.seconds() >= end_s:
                    there = f"VM {self._departure.target_vmid}"
                    self.host.progress.warn(
                        f"{self.target.host} was not told to remove what it may hold as {there}: {error.text}"
                    )
                    return
            await pause(clock, AGAIN_S)

    @property
    def _departure(self) -> Departure:
        return self.journal.departure

    def _say(self, text: str) -> None:
        self.host.progress.say(text)

    async def _look(self) -> LocalMachine:
        return await Settling(self.host, self.journal).look()

    async def _settle_once(self) -> bool:
        """Returns: the target has it. Raises: TunnelError: no answer; Undecided: one that decides nothing."""
        machine = await self._look()
        # One that runs there is the target's; but where `unlock` was not answered, its tunnel may wait for that.
        owner = judge(self._departure, machine)
        is_theirs = owner is Owner.THERE and self._departure.stage is Stage.RESUMED
        if owner is not Owner.UNKNOWN and not is_theirs:
            return False
        answer = await self._ask()
        if answer.verdict == "held" and not is_theirs:
            answer = await self._decide(answer, await self._look())  # which may have changed while it was asked
        there = f"VM {self._departure.target_vmid} at {self.target.host}"
        if answer.verdict != "kept" and (is_theirs or answer.verdict != "rolled back"):
            raise Undecided(f"{there} is {answer.verdict}")
        is_there = answer.verdict == "kept"
        self._say(f"{there} {'has everything, and is its own' if is_there else 'was removed there'}")
        await self.journal.note("handed_over" if is_there else "kept")
        return is_there

    async def _decide(self, answer: LateAnswer, machine: LocalMachine) -> LateAnswer:
        """Where the whole VM waits there, it is the target's; where it is not there any more, and is here, it is ours.

        Returns: what was done. Raises: Undecided.
        """
        there = f"VM {self._departure.target_vmid} is held there"
        if machine.status == "running":
            raise Undecided(f"{there}, and VM {self._departure.vmid} runs here")
        if answer.is_whole and answer.machine in ("paused", "running"):
            if machine.status != "off" and machine.migration != "completed":
                raise Undecided(f"{there}, and VM {self._departure.vmid} has its memory here again")
            return await self._hand_over()
        is_all_here = machine.status in STANDING and not is_in_parts(self._departure, machine)
        if answer.machine == "off" and not answer.is_given_up and is_all_here:
            return await self._tell(Decision.DISCARD)
        raise Undecided(f"{there}, and is {answer.machine}")

    async def _hand_over(self) -> LateAnswer:
        """The journal is written first, as by the program that was to do it."""
        is_running, is_first = self._departure.power is Power.RUNNING, self._departure.stage is Stage.COMPLETING
        if is_first:
            await self.journal.announce("resuming" if is_running else "handing_over")
        try:
            return await self._tell(Decision.RUN if is_running else Decision.KEEP)
        except Undecided:
            if is_first:
                await self.journal.note("refused")
            raise

    async def _tell(self, decision: Decision) -> LateAnswer:
        """Raises: Undecided: it was refused, and nothing was done. TunnelError: nobody knows."""
        try:
            return await self._ask(decision)
        except WrongState as error:
            raise Undecided(error.text) from error

    async def _ask(self, decision: Decision | None = None, *, wait_s: float = PATIENCE_S) -> LateAnswer:
        departure = self._departure
        path = ("nodes", "localhost", "qemu", str(departure.target_vmid), "mtunnellate")
        told = {} if decision is None else {"decision": decision.value}
        return _read(await self.target.post(*path, upid=departure.upid, wait_s=wait_s, **told))


def _read(said: Json) -> LateAnswer:
    """What the target says; what is missing counts as unknown."""
    fields: Mapping[str, Json] = said if isinstance(said, dict) else {}
    return LateAnswer(
        verdict=clean(str(fields.get("verdict", "not known"))),
        machine=clean(str(fields.get("machine", "not known"))),
        is_whole=fields.get("whole") == 1,
        is_given_up=fields.get("given-up") != 0,
    )
