"""What a source can ask for: every command, how its line is read, how it uses the config lock, what it does.

READ: take the lock, read the config, compare the mark, let go, then work; the `lock:` in the config protects the rest.
HOLD: the lock is kept during the work, which takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mtunnel_tx.tunnel import definition, disks, machine, session
from mtunnel_tx.tunnel.live import Guest
from mtunnel_tx.wire import args


class Lock(Enum):
    """How a command uses the config lock."""

    READ = "read"
    HOLD = "hold"


READ, HOLD = Lock.READ, Lock.HOLD


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `read` checks a request against the schema and makes what `handler` takes."""

    name: str
    read: Callable[[Mapping[str, Any]], Any]
    lock: Lock
    handler: Callable[[Guest, Any], Awaitable[Mapping[str, Any]]]


COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command("version", args.read_nothing, READ, session.version),
        Command("bwlimit", args.read_bandwidth, READ, session.bwlimit),
        Command("config", args.read_config, HOLD, definition.set_config),
        Command("disk", args.read_disk, READ, disks.allocate),
        Command("disk-import", args.read_disk_import, READ, disks.start_import),
        Command("query-disk-import", args.read_query, READ, disks.query_import),
        Command("start", args.read_start, READ, machine.start),
        Command("resume", args.read_nothing, READ, machine.resume),
        Command("nbdstop", args.read_nothing, READ, machine.stop_nbd),
        Command("fstrim", args.read_nothing, READ, machine.trim),
        Command("stop", args.read_nothing, READ, machine.stop),
        Command("ticket", args.read_ticket, READ, session.ticket),
        Command("unlock", args.read_nothing, HOLD, session.unlock),
        Command("quit", args.read_quit, READ, session.leave),
    )
}
