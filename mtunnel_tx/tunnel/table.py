"""What a source can ask for: every command, what it takes, what it needs, how it uses the config lock, what it does.

READ: take the lock, read the config, compare the mark, let go, then work; the `lock:` in the config protects the rest.
HOLD: the lock is kept during the work, which takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mtunnel_tx.pve.bandwidth import OVERRIDE_ALL, OVERRIDE_DATACENTER, OVERRIDE_STORAGE
from mtunnel_tx.pve.guestkeys import CONFIG_NEEDS
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.tunnel import definition, disks, machine, session
from mtunnel_tx.tunnel.checks import ALLOCATE, ANY_VOLUME, READ_ONLY_VOLUME
from mtunnel_tx.tunnel.live import Guest
from mtunnel_tx.wire import args
from mtunnel_tx.wire.schema import Object, Parameters


class Lock(Enum):
    """How a command uses the config lock."""

    READ = "read"
    HOLD = "hold"


READ, HOLD = Lock.READ, Lock.HOLD


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `takes` has its schema and makes what `handler` works with; `needs` lists what the handler checks.

    Whoever sends it is the tunnel's own token, which had what opening a tunnel needs.
    """

    name: str
    summary: str
    takes: Parameters[Any]
    lock: Lock
    handler: Callable[[Guest, Any], Awaitable[Mapping[str, Any]]]
    needs: tuple[Need, ...] = ()

    @property
    def schema(self) -> Object:
        """What its line may hold beside `cmd`."""
        return self.takes.schema

    def read(self, request: Mapping[str, Any]) -> Any:
        """What the handler takes. Raises: InvalidParameters."""
        return self.takes.read({key: value for key, value in request.items() if key != "cmd"})


_CONFIG_NEEDS = (*CONFIG_NEEDS, ANY_VOLUME, READ_ONLY_VOLUME)
_BANDWIDTH_NEEDS = (OVERRIDE_ALL, OVERRIDE_STORAGE, OVERRIDE_DATACENTER)
COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command("version", "which protocol this is", args.ANYTHING, READ, session.version),
        Command(
            "bwlimit", "the bandwidth limit for some storages", args.BANDWIDTH, READ, session.bwlimit, _BANDWIDTH_NEEDS
        ),
        Command("config", "write the VM's config", args.CONFIG, HOLD, definition.set_config, _CONFIG_NEEDS),
        Command("disk", "allocate a volume to be mirrored into", args.DISK, READ, disks.allocate, (ALLOCATE,)),
        Command("disk-import", "wait for a disk image", args.DISK_IMPORT, READ, disks.start_import, (ALLOCATE,)),
        Command("query-disk-import", "how the import goes", args.NOTHING, READ, disks.query_import),
        Command("start", "start the VM, paused, waiting for its memory", args.START, READ, machine.start),
        Command("resume", "let the VM run", args.ANYTHING, READ, machine.resume),
        Command("nbdstop", "stop the disk exports", args.ANYTHING, READ, machine.stop_nbd),
        Command("fstrim", "let the guest trim its file systems", args.ANYTHING, READ, machine.trim),
        Command("stop", "end the VM", args.ANYTHING, READ, machine.stop),
        Command("ticket", "a ticket for a socket of this tunnel", args.TICKET, READ, session.ticket),
        Command("unlock", "give the VM to this node", args.ANYTHING, HOLD, session.unlock),
        Command("quit", "end the tunnel", args.QUIT, READ, session.leave),
    )
}
