"""What another daemon needs to go on with a flow: it lies in a store, if there is one."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from mtunnel_tx.ports.holding import HasDescriptor, Store
from mtunnel_tx.stream.flow import FlowOwner
from mtunnel_tx.workers.channel import VERSION
from mtunnel_tx.workers.parking import StoredFlow, write_stored

PREFIX = "flow/"


class KeptFlow:
    """The entry of one flow, by what runs it: a channel to a worker, its UNIX socket as long as that is open, and what
    it goes on with where no worker has said that it runs.

    Args: owner: as in FlowTerms. name: of the entry that an earlier daemon has made. told: the ends that a worker has
    told, each with its reason. worker: the process id of the worker that has it; 0: none has, or nobody knows.
    """

    def __init__(
        self, store: Store | None, owner: FlowOwner | None, *, name: str | None = None, told: Sequence[Any] = (),
        worker: int = 0,
    ) -> None:  # fmt: skip
        self._store = store if owner is not None else None
        self.owner = owner
        self._name = name or f"{PREFIX}{secrets.token_hex(8)}"
        self._has: Sequence[str] = ()
        self._parked: Mapping[str, Any] | None = None
        self._is_running = False
        self.told: list[Any] = list(told)
        self.worker = worker

    def expect(self, local: socket.socket) -> None:
        """Its peer is about to hear of it."""
        self._put(None, local=local)

    def carry(self, channel: HasDescriptor, local: socket.socket, before: StoredFlow | None, *, runs: bool) -> None:
        """A worker has it. Args: before: what the flow goes on with if it does not run there."""
        self._is_running = runs
        self._put(before, channel=channel, local=local)

    def park(self, stored: StoredFlow, local: socket.socket) -> Deferred[bool]:
        """No worker has it. Returns: see ports.Store.put."""
        self._is_running = False
        return self._put(stored, local=local)

    def _put(self, stored: StoredFlow | None, **files: HasDescriptor) -> Deferred[bool]:
        if self._store is None:
            return succeed(True)
        given = {name: file for name, file in files.items() if file.fileno() >= 0}
        if stored is not None:
            given["file"] = stored.file
        self._has, self._parked = tuple(given), None if stored is None else write_stored(stored)
        return self._store.put(self._name, self._value(), tuple(given.values()))

    def _value(self) -> Mapping[str, Any]:
        assert self.owner is not None, "what is put there has an owner"
        parts = {"told": self.told, "has": self._has, "parked": self._parked, "runs": self._is_running}
        return {"version": VERSION, **self.owner(), **parts, "worker": self.worker}

    def tell(self, event: str, reason: str | None) -> None:
        """The worker has told this, and nothing was done about it yet."""
        self.told.append([event, reason])
        if self._store is not None:
            self._store.put(self._name, self._value())

    def drop(self) -> None:
        """The flow is over."""
        if self._store is not None:
            self._store.drop(self._name)
            self._store = None
