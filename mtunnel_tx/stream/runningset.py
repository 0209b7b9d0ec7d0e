"""The flows that a relay runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, DeferredList

from mtunnel_tx.net.kinds import Result
from mtunnel_tx.stream.flow import Flow

Job = TypeVar("Job")


class RunningSet(Generic[Job]):
    """Each flow with the job that a relay has for it, from its start until both its sides are closed.

    Args: forgotten: called with the job of a flow that is over.
    """

    def __init__(self, forgotten: Callable[[Job], None] = lambda _job: None) -> None:
        self._forgotten = forgotten
        self._jobs: dict[Flow, Job] = {}

    def add(self, flow: Flow, job: Job) -> None:
        self._jobs[flow] = job
        for end in (flow.done, flow.released):
            end.addBoth(self._forget, flow)

    def replace(self, flow: Flow, job: Job) -> None:
        """Another job goes on with a flow."""
        self._jobs[flow] = job

    def remove(self, flow: Flow) -> None:
        """A flow goes on elsewhere."""
        if flow in self._jobs:
            self._forgotten(self._jobs.pop(flow))

    def find(self, flow: Flow) -> Job | None:
        """Returns: None: it does not run here (any more)."""
        return self._jobs.get(flow)

    def jobs(self) -> list[Job]:
        """Of all flows."""
        return list(self._jobs.values())

    async def stop(self) -> None:
        """End all flows, and wait until nothing of them is left."""
        flows = list(self._jobs)
        for flow in flows:
            flow.abort()
        # A plain await would take the outcome away from those who wait for it after us.
        ends: list[Deferred[Result]] = [end for flow in flows for end in (flow.done, flow.released)]
        await DeferredList(ends)

    def _forget(self, result: Result, flow: Flow) -> Result:
        """Both ends are needed: each side may have to wait for its last bytes longer than the other."""
        if flow.done.called and flow.released.called and flow in self._jobs:
            self._forgotten(self._jobs.pop(flow))
        return result
