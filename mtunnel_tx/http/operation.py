"""What an operation of the HTTP API is, what it is given, and what all of them talk to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.web.http import Request

from mtunnel_tx.http.forward import Elsewhere
from mtunnel_tx.http.replies import TEXT, Reply
from mtunnel_tx.http.results import JsonSchema
from mtunnel_tx.http.resumptions import Resumptions
from mtunnel_tx.http.websocket import Upgrader
from mtunnel_tx.ports.access import Access
from mtunnel_tx.ports.children import ChildTurn
from mtunnel_tx.ports.guests import Guests
from mtunnel_tx.ports.machines import Hypervisor
from mtunnel_tx.ports.storage import Storage
from mtunnel_tx.ports.tunnels import Tunnels
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.wire.schema import Object, ParameterSet, Property


class TaskReader(Protocol):
    """Task logs, for reading."""

    def status(self, upid: str) -> Mapping[str, Any]:
        """What `GET …/tasks/UPID/status` shows. Raises: TunnelError: no such task."""

    def log(self, upid: str, start: int, limit: int) -> Sequence[Mapping[str, Any]]:
        """Lines as `{"n":1,"t":"line"}`. Raises: TunnelError: no such task."""

    def total(self, upid: str) -> int:
        """How many lines there are. Raises: TunnelError: no such task."""


def _no_description() -> Mapping[str, Any]:
    return {}


def _no_cpu_model(_name: str) -> Mapping[str, Any] | None:
    return None


async def _no_moves() -> Sequence[Mapping[str, Any]]:
    return ()


class Counting(Protocol):
    """Who counts for Prometheus (watch/metrics.py)."""

    @property
    def content_type(self) -> str: ...

    def page(self) -> bytes:
        """The answer to a scrape."""

    def refused(self, reason: str) -> None:
        """A request was refused. Args: reason: one of a few words."""

    def login_failed(self) -> None:
        """A request had no valid token."""


class NoCounting:
    """Counts nothing."""

    content_type = TEXT

    def page(self) -> bytes:
        """Nothing was counted."""
        return b""

    def refused(self, reason: str) -> None:
        """See Counting."""

    def login_failed(self) -> None:
        """See Counting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the API talks to.

    nodes: the names of all nodes below `pve_dir`. bridges: where network cards can be put. fingerprint: of the
    certificate in use, `AA:BB:…`. cpu_model: a custom CPU model's settings by its name without `custom-`, or None.
    description: the API as an OpenAPI document. upgrader: takes a checked request over.
    elsewhere: answers what is not for us. resumptions: the flows that outlive their connections.
    moves: those that come and go, as JSON (docs/watching.md). counting: for Prometheus.
    """

    access: Access
    child_turn: ChildTurn
    tunnels: Tunnels
    guests: Guests
    storage: Storage
    hypervisor: Hypervisor
    tasks: TaskReader
    nodes: Callable[[], Sequence[str]]
    bridges: Callable[[], Sequence[str]]
    fingerprint: Callable[[], str]
    upgrader: Upgrader
    resumptions: Resumptions
    cpu_model: Callable[[str], Mapping[str, Any] | None] = _no_cpu_model
    description: Callable[[], Mapping[str, Any]] = _no_description
    elsewhere: Elsewhere | None = None
    moves: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]] = _no_moves
    counting: Counting = field(default_factory=NoCounting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request whose sender is known; `values` is what the operation's parameters made of it."""

    request: Request
    parts: Parts
    rights: Rights
    values: Any


Handler = Callable[[Call], Coroutine[Any, Any, Reply | None]]
"""Returns: the answer; None: the connection belongs to somebody else now."""


def takes(properties: Mapping[str, Property]) -> ParameterSet[dict[str, Any]]:
    """Parameters that the handler gets as a dict, by their names."""
    make: Callable[..., dict[str, Any]] = dict
    return ParameterSet(Object(properties), make)


NOTHING = takes({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of the API; `{NAME}` in the path is a parameter.

    Args: needs: the privileges of the token that calls; those with a `when` are checked by the handler, the others
    before the schema. owner_of: the parameter with a task's id whose own token needs nothing. gives: what `data` of the
    answer looks like. upgrades: it may become a websocket.
    is_text: the answer is no JSON, but a text. ends_with_client: its work, which changes nothing, ends when
    the client has gone, and when the daemon stops. fails: statuses of failures that are its own: what all
    operations have, and what follows from its path and its needs, is added (openapi.py).
    """

    method: str
    path: str
    summary: str
    handler: Handler
    gives: JsonSchema
    takes: ParameterSet[Any] = NOTHING
    needs: tuple[Need, ...] = ()
    owner_of: str | None = None
    upgrades: bool = False
    is_text: bool = False
    ends_with_client: bool = False
    fails: tuple[int, ...] = ()

    @property
    def schema(self) -> Object:
        """Its parameters, those in the path included."""
        return self.takes.schema
