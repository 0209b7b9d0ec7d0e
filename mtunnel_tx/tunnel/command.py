"""What a command is: what it takes and needs, how it uses the config lock, what it does.

READ: take the lock, read the config, compare the mark, let go, then work; the `lock:` in the config protects the rest.
HOLD: the lock is kept during the work, which takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mtunnel_tx.pve.needs import Need
from mtunnel_tx.wire.schema import Object, ParameterSet


class Lock(Enum):
    """How a command uses the config lock."""

    READ = "read"
    HOLD = "hold"


READ, HOLD = Lock.READ, Lock.HOLD


class Until(Enum):
    """How long a source may send a command.

    UNLOCK: until it has given the VM up: from then on the VM is this host's, and its source has no power over it.
    QUIT: to the end.
    """

    UNLOCK = "unlock"
    QUIT = "quit"


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `takes` has its schema and makes what `handler` works with beside the Guest.

    `needs` lists what the handler checks; whoever sends the command is the tunnel's own token, which had what opening a
    tunnel needs. `is_quiet`: it changes nothing and comes often, so that the task log does not name it.
    """

    name: str
    summary: str
    takes: ParameterSet[Any]
    lock: Lock
    handler: Callable[[Any, Any], Awaitable[Mapping[str, Any]]]
    needs: tuple[Need, ...] = ()
    until: Until = Until.UNLOCK
    is_quiet: bool = False

    @property
    def schema(self) -> Object:
        """What its line may hold beside `cmd`."""
        return self.takes.schema

    def read(self, request: Mapping[str, Any]) -> Any:
        """What the handler takes. Raises: InvalidParameters."""
        return self.takes.read({key: value for key, value in request.items() if key != "cmd"})


def index(*commands: Command) -> Mapping[str, Command]:
    """Commands by their names."""
    return {command.name: command for command in commands}
