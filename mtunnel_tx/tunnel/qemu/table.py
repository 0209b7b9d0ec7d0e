"""What the source of a QEMU guest can ask for: every command, in the order in which a source sends them."""

from __future__ import annotations

from mtunnel_tx.pve.bandwidth import OVERRIDE_ALL, OVERRIDE_DATACENTER, OVERRIDE_STORAGE
from mtunnel_tx.pve.guestkeys import CONFIG_NEEDS
from mtunnel_tx.tunnel import common, disks, handover, progress
from mtunnel_tx.tunnel.checks import ALLOCATE, ANY_VOLUME, READ_ONLY_VOLUME
from mtunnel_tx.tunnel.command import HOLD, READ, Command, Until, index
from mtunnel_tx.tunnel.qemu import definition, machine
from mtunnel_tx.tunnel.qemu.conditions import FIREWALL
from mtunnel_tx.wire import args

_OVERRIDES = (OVERRIDE_ALL, OVERRIDE_STORAGE, OVERRIDE_DATACENTER)
_CONFIG = (*CONFIG_NEEDS, ANY_VOLUME, READ_ONLY_VOLUME, FIREWALL)

QEMU_COMMANDS = index(
    Command("version", "which protocol this is", args.ANYTHING, READ, common.version, until=Until.QUIT),
    Command("bwlimit", "the bandwidth limit for some storages", args.BANDWIDTH, READ, common.bwlimit, _OVERRIDES),
    Command("disk-import", "wait for a disk image", args.DISK_IMPORT, READ, disks.start_import, (ALLOCATE,)),
    Command("query-disk-import", "how the import goes", args.NOTHING, READ, disks.query_import),
    Command("disk", "allocate a volume to be mirrored into", args.DISK, READ, disks.allocate, (ALLOCATE,)),
    Command("config", "write the VM's config", args.CONFIG, HOLD, definition.set_config, _CONFIG),
    Command("start", "start the VM, paused, waiting for its memory", args.START, READ, machine.start),
    Command("ticket", "a ticket for a socket of this tunnel", args.TICKET, READ, common.ticket, until=Until.QUIT),
    Command("nbdstop", "stop the disk exports", args.ANYTHING, READ, machine.stop_nbd),
    Command("resume", "let the VM run", args.ANYTHING, READ, machine.resume),
    Command("fstrim", "let the guest trim its file systems", args.ANYTHING, READ, machine.trim, until=Until.QUIT),
    Command("unlock", "give the VM to this node", args.ANYTHING, HOLD, handover.unlock, until=Until.QUIT),
    Command("progress", "how far the source is", args.PROGRESS, READ, progress.take, until=Until.QUIT, is_quiet=True),
    Command("stop", "end the VM", args.ANYTHING, READ, machine.stop),
    Command("quit", "end the tunnel", args.QUIT, READ, handover.leave, until=Until.QUIT),
)
