"""What a command is: how its line is read, how it uses the config lock, what it does.

READ: take the lock, read the config, compare the mark, let go, then work; the `lock:` in the config protects the rest.
HOLD: the lock is kept during the work, which takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Lock(Enum):
    """How a command uses the config lock."""

    READ = "read"
    HOLD = "hold"


READ, HOLD = Lock.READ, Lock.HOLD


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `read` checks a request against the schema and makes what `handler` takes beside the Guest."""

    name: str
    read: Callable[[Mapping[str, Any]], Any]
    lock: Lock
    handler: Callable[[Any, Any], Awaitable[Mapping[str, Any]]]


def index(*commands: Command) -> Mapping[str, Command]:
    """Commands by their names."""
    return {command.name: command for command in commands}
