"""What the source of a QEMU guest can ask for: every command, in the order in which a source sends them."""

from __future__ import annotations

from mtunnel_tx.tunnel import common, disks
from mtunnel_tx.tunnel.command import HOLD, READ, Command, index
from mtunnel_tx.tunnel.qemu import definition, machine
from mtunnel_tx.wire import args

QEMU_COMMANDS = index(
    Command("version", args.read_nothing, READ, common.version),
    Command("bwlimit", args.read_bandwidth, READ, common.bwlimit),
    Command("disk-import", args.read_disk_import, READ, disks.start_import),
    Command("query-disk-import", args.read_query, READ, disks.query_import),
    Command("disk", args.read_disk, READ, disks.allocate),
    Command("config", args.read_config, HOLD, definition.set_config),
    Command("start", args.read_start, READ, machine.start),
    Command("ticket", args.read_ticket, READ, common.ticket),
    Command("nbdstop", args.read_nothing, READ, machine.stop_nbd),
    Command("resume", args.read_nothing, READ, machine.resume),
    Command("fstrim", args.read_nothing, READ, machine.trim),
    Command("unlock", args.read_nothing, HOLD, common.unlock),
    Command("stop", args.read_nothing, READ, machine.stop),
    Command("quit", args.read_quit, READ, common.leave),
)
