"""`mtunnel-pvesm`: does what Proxmox's `pvesm` does, with the same arguments, output lines and exit codes.

Exit codes: 0: success; 255: failure; 2: wrong command line; the system's error number: a stream cannot be opened; 4:
nobody connected to the socket; 128 plus a signal's number: interrupted. The program imports no Twisted, because it has
to start fast.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mtunnel_tx.checks import Check, enum, formatted, integer, list_of, pattern, split_list, storage_id, vmid, volume_id
from mtunnel_tx.config import Settings, load_settings
from mtunnel_tx.errors import BadRequest, InvalidParameters, TunnelError
from mtunnel_tx.pve.storagecfg import CONTENT_TYPES
from mtunnel_tx.pve.storagetypes import PROXMOX_STREAMS, STREAM_FORMATS
from mtunnel_tx.pvesm import commands
from mtunnel_tx.pvesm.driver import ExportOrder, ImportOrder, NewImage
from mtunnel_tx.pvesm.failure import ExitError
from mtunnel_tx.pvesm.options import Parameters, Syntax, UsageError, parse_parameters
from mtunnel_tx.pvesm.output import say, warn
from mtunnel_tx.pvesm.serving import serve
from mtunnel_tx.pvesm.signals import Interrupted, catch_signals
from mtunnel_tx.pvesm.streams import fill_gaps, open_source, open_target
from mtunnel_tx.pvesm.tables import format_list, format_status

FAILED = 255
BAD_USAGE = 2
_HELP = ("-h", "--help")
_NOT_HERE = ("add", "apiinfo", "extractconfig", "help", "prune-backups", "remove", "scan", "set")
"""More commands of Proxmox's pvesm: a name cut short must not mean another one here."""
_HEAD = "USAGE: mtunnel-pvesm <COMMAND> [ARGS] [OPTIONS]"
_UNIT_BYTES = {"": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LONGEST_DELAY_S = 30
_SIZE = re.compile(r"(\d{1,15})([MG]?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class PvesmCommand:
    """A command: its syntax and the function that runs it."""

    syntax: Syntax
    run: Callable[[Settings, Parameters], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit code."""
    fill_gaps()
    catch_signals()
    words = sys.argv[1:] if argv is None else argv
    try:
        return _reported(lambda: serve(_answer) if list(words) == ["serve"] else _run(words))
    except Interrupted as error:
        warn(f"interrupted by signal {signal.Signals(error.number).name}")
        return 128 + error.number


def _answer(words: Sequence[str]) -> int:
    """Run one of many commands. Raises: Interrupted: there are no more."""
    return _reported(lambda: _run(words))


def _reported(work: Callable[[], int]) -> int:
    """Say why something failed. Returns: the exit code. Raises: Interrupted."""
    try:
        return work()
    except UsageError as error:
        warn(error.text)
        return BAD_USAGE
    except ExitError as error:
        warn(error.text)
        return error.code
    except (TunnelError, OSError) as error:
        warn(error.text if isinstance(error, TunnelError) else str(error))
        return FAILED


def _run(words: Sequence[str]) -> int:
    name = _whole_name(words[0]) if words else ""
    if name in ("help", *_HELP):
        asked = _whole_name(words[1]) if words[1:2] else None
        say(_help(asked if asked in COMMANDS else None))
        return 0
    if name not in COMMANDS:
        problem = f"unknown command 'pvesm {name}'" if words else "no command specified"
        warn(f"ERROR: {problem}\n{_usage()}")
        return FAILED
    if words[1:2] and words[1] in _HELP:
        say(_help(name))
        return 0
    command = COMMANDS[name]
    parameters = parse_parameters(command.syntax, words[1:])
    try:
        command.run(load_settings(None, os.environ), parameters)
    except InvalidParameters as error:
        raise BadRequest(f"{error.line}\n{command.syntax.usage}") from error
    return 0


def _whole_name(given: str) -> str:
    """Complete a command's name that was cut short; an ambiguous or unknown word is returned as it is."""
    found = [name for name in (*COMMANDS, *_NOT_HERE) if name.startswith(given)]
    return found[0] if len(found) == 1 and given else given


def _usage() -> str:
    return "\n".join([_HEAD, *(command.syntax.usage for command in COMMANDS.values())])


def _help(name: str | None) -> str:
    """The help text of one command, or (None) of all."""
    if name is not None:
        return f"USAGE: {COMMANDS[name].syntax.help()}"
    return "\n".join([_HEAD, *(command.syntax.help() for command in COMMANDS.values())])


def _alloc(settings: Settings, given: Parameters) -> None:
    match = _SIZE.fullmatch(given["size"])
    assert match is not None
    wanted = NewImage(
        vmid=int(given["vmid"]),
        name=given["filename"],
        size_bytes=int(match[1]) * _UNIT_BYTES[match[2]],
        format=given.get("format"),
    )
    commands.allocate(settings, given["storage"], wanted)


def _free(settings: Settings, given: Parameters) -> None:
    volid, storage = given["volume"], given.get("storage")
    if ":" not in volid:
        if not storage:
            raise InvalidParameters({"volume": "no storage specified - incomplete volume ID"})
        volid = f"{storage}:{volid}"
    if storage and (found := volid.partition(":")[0]) != storage:
        raise InvalidParameters({"volume": f"storage ID mismatch ({found} != {storage})\n"})
    commands.free(settings, volid)
    say(f"Removed volume '{volid}'")


def _path(settings: Settings, given: Parameters) -> None:
    say(commands.path(settings, given["volume"]))


def _list(settings: Settings, given: Parameters) -> None:
    vmid = int(given["vmid"]) if given.get("vmid") else None
    say(format_list(commands.list_volumes(settings, given["storage"], vmid, given.get("content"))))


def _status(settings: Settings, given: Parameters) -> None:
    kinds, enabled = split_list(given.get("content") or ""), given.switch("enabled")
    say(format_status(commands.storage_status(settings, given.get("storage"), kinds, enabled=enabled)))


def _import(settings: Settings, given: Parameters) -> None:
    order = ImportOrder(
        volid=given["volume"],
        stream_format=given["format"],
        with_snapshots=given.switch("with-snapshots"),
        allow_rename=given.switch("allow-rename"),
        convert=given.switch("convert"),
        delete_snapshot=given.get("delete-snapshot"),
        requester=os.getppid() if os.environ.get("MTUNNEL_ATTACHED") else None,
    )
    with open_source(given["filename"]) as stream:
        commands.import_volume(settings, order, stream)


def _export(settings: Settings, given: Parameters) -> None:
    order = ExportOrder(
        volid=given["volume"],
        stream_format=given["format"],
        with_snapshots=given.switch("with-snapshots"),
        partial=any(given.get(name) is not None for name in ("snapshot", "base", "snapshot-list")),
    )
    with open_target(given["filename"]) as target:
        commands.export_volume(settings, order, target)


def _verify(settings: Settings, given: Parameters) -> None:
    commands.verify_volume(settings, given["volume"])


def _stream_format(value: str) -> str:
    """Check a stream format. The error lists the formats of Proxmox only, as its pvesm does."""
    return value if value in STREAM_FORMATS else enum(*PROXMOX_STREAMS)(value)


def _vmid(value: str) -> str:
    return formatted(vmid)(integer()(value))


_SNAPSHOT = pattern(r"(?i:[a-z0-9_-]{1,40})")
_CONTENT = pattern("|".join(CONTENT_TYPES), "invalid content type '{}'")
_CHECKS: Mapping[str, Check] = {
    "base": _SNAPSHOT,
    "content": formatted(_CONTENT),
    "delay": integer(1, _LONGEST_DELAY_S),
    "delete-snapshot": pattern(r"(?i:[a-z0-9_-]{1,80})"),
    "format": _stream_format,
    "size": pattern(_SIZE.pattern),
    "snapshot": _SNAPSHOT,
    "storage": formatted(storage_id),
    "vmid": _vmid,
}
_ALLOC_CHECKS = {**_CHECKS, "format": enum("raw", "qcow2", "subvol", "vmdk")}

COMMANDS: Mapping[str, PvesmCommand] = {
    "alloc": PvesmCommand(
        Syntax(
            usage="pvesm alloc <storage> <vmid> <filename> <size> [OPTIONS]",
            arguments=("storage", "vmid", "filename", "size"),
            values=("format",),
            checks=_ALLOC_CHECKS,
        ),
        _alloc,
    ),
    "free": PvesmCommand(
        Syntax(
            usage="pvesm free <volume> [OPTIONS]",
            arguments=("volume",),
            values=("storage", "delay"),
            checks=_CHECKS,
        ),
        _free,
    ),
    "path": PvesmCommand(
        Syntax(usage="pvesm path <volume>", arguments=("volume",), checks={"volume": formatted(volume_id)}), _path
    ),
    "list": PvesmCommand(
        Syntax(
            usage="pvesm list <storage> [OPTIONS]",
            arguments=("storage",),
            values=("vmid", "content"),
            checks=_CHECKS,
        ),
        _list,
    ),
    "status": PvesmCommand(
        Syntax(
            usage="pvesm status [OPTIONS]",
            arguments=(),
            values=("storage", "content"),
            switches=("enabled",),
            checks={**_CHECKS, "content": formatted(list_of(_CONTENT))},
        ),
        _status,
    ),
    "import": PvesmCommand(
        Syntax(
            usage="pvesm import <volume> <format> <filename> [OPTIONS]",
            arguments=("volume", "format", "filename"),
            values=("snapshot", "base", "delete-snapshot"),
            switches=("with-snapshots", "allow-rename", "convert"),
            checks=_CHECKS,
        ),
        _import,
    ),
    "export": PvesmCommand(
        Syntax(
            usage="pvesm export <volume> <format> <filename> [OPTIONS]",
            arguments=("volume", "format", "filename"),
            values=("snapshot", "base", "snapshot-list"),
            switches=("with-snapshots",),
            checks=_CHECKS,
        ),
        _export,
    ),
    "verify": PvesmCommand(Syntax(usage="pvesm verify <volume>", arguments=("volume",), checks=_CHECKS), _verify),
}
