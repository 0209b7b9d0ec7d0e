"""What reads text and bytes that others send, each as a function of any bytes.

A target ends well, or with an error that its readers declare. Everything else is a find: another exception, an
AssertionError about what must hold for any input, or that it does not come back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.drive import format_drive, parse_drive
from mtunnel_tx.pve.firewall import format_firewall
from mtunnel_tx.pve.guestconf import format_guest_config, parse_guest_config, read_sent_config
from mtunnel_tx.pve.guestkeys import check_config_privileges
from mtunnel_tx.pve.guestrules import check_consistency, fill_macs, iter_drives, iter_volumes
from mtunnel_tx.pve.hardware import read_hardware
from mtunnel_tx.pve.imagefile import inspect_image
from mtunnel_tx.pve.maps import format_endpoint, parse_endpoint, parse_map
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.sections import parse_sections
from mtunnel_tx.pve.storagecfg import parse_datacenter_config, parse_storage_config
from mtunnel_tx.pve.tokens import format_token_config, parse_token_config
from mtunnel_tx.pve.upid import parse_upid
from mtunnel_tx.pve.users import format_user_config, parse_user_config
from mtunnel_tx.pve.volume import parse_dir_volume, parse_volume_id
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS
from mtunnel_tx.wire.frames import Decoder, Event, FrameError, Role, unmask_bytes
from mtunnel_tx.wire.lines import command_name, encode_failure, encode_ok, handler_failure, parse_request
from mtunnel_tx.wire.requests import MTUNNEL, WEBSOCKET
from mtunnel_tx.wire.ticket import check_ticket, make_ticket, normalise
from tests.pve.sections import format_sections
from tests.stream.decoding import by_native, by_pure

DECLARED = (TunnelError, FormatError)
KEY = bytes(range(32))
USER, PATH, NOW = "mig@pve!t1", "/run/qemu-server/100.mtunnel", 0x6B035030
TICKET = make_ticket(KEY, USER, PATH, NOW)
USERS = """\
user:mig@pve:1:0:::::
token:mig@pve!t1:0:0::

acl:1:/:mig@pve:Administrator:
"""
RIGHTS = Rights(parse_user_config(USERS), USER)


def text_of(data: bytes) -> str:
    """As files are read."""
    return data.decode("utf-8", "surrogateescape")


def read_line(data: bytes) -> None:
    """A command line, up to its handler's arguments; every refusal can be sent."""
    try:
        request = parse_request(data)
        name = command_name(request)
        reply = encode_ok({"name": name})
        if name in QEMU_COMMANDS:
            QEMU_COMMANDS[name].read(request)
    except TunnelError as error:
        reply = encode_failure(handler_failure("x", error))
    assert b"\n" not in reply
    assert isinstance(json.loads(reply), dict)


def decode(pieces: list[bytes], role: Role) -> tuple[bytes, list[tuple[Event, bytes]], int]:
    """Payload, control frames, and the code of the error that ended it (0: none)."""
    decoder, payload, controls = Decoder(role, 1 << 20), bytearray(), list[tuple[Event, bytes]]()
    try:
        for piece in pieces:
            position = 0
            while position < len(piece):
                position = decoder.step(piece, position, len(piece))
                if decoder.event is Event.PAYLOAD:
                    payload += unmask_bytes(piece[decoder.begin : position], decoder.mask)
                elif decoder.event is not Event.NOTHING:
                    controls.append((decoder.event, decoder.control))
    except FrameError as error:
        return bytes(payload), controls, error.code
    return bytes(payload), controls, 0


def read_frames(data: bytes) -> None:
    """Frames, in one piece and byte by byte: alike."""
    for role in Role:
        whole = decode([data], role)
        assert decode([data[at : at + 1] for at in range(len(data))], role) == whole
        assert whole[2] in (0, 1002, 1007, 1009)


def read_batches(data: bytes) -> None:
    """Frames by the native module and without it, in one piece and in small ones: alike, up to the UNIX socket."""
    for role, records in itertools.product(Role, (False, True)):
        payload, events, code = by_pure([data], role, records=records)
        assert code in (0, 1002, 1007, 1009)
        for size in (len(data), 5, 64):
            pieces = [data[at : at + size] for at in range(0, len(data), size or 1)]
            assert by_native(pieces, role, records=records) == (payload, events, code), (role, records, size)


def read_guest_file(data: bytes) -> None:
    """A config that is there already: what is read and written reads the same."""
    conf = parse_guest_config(text_of(data))
    written = format_guest_config(conf)
    if data == text_of(data).encode("utf-8", "replace"):
        # Bytes that are no character alone may be one together.
        assert parse_guest_config(written) == conf
    assert format_guest_config(parse_guest_config(written)) == written


def read_guest_sent(data: bytes) -> None:
    """A config that a source sends: all checks; what passes is read again as it was written."""
    conf, _ = read_sent_config(text_of(data), 100)
    check_config_privileges(conf, 100, RIGHTS)
    check_consistency(conf)
    list(iter_volumes(conf))
    for key, drive in iter_drives(conf):
        assert parse_drive(key, format_drive(drive)) == drive
    complete = fill_macs(conf, bytes)
    written = format_guest_config(complete)
    assert parse_guest_config(written) == complete, (written, complete)
    read_hardware(complete)


def read_drive(data: bytes) -> None:
    """A drive string under a disk's and a CD-ROM's keys."""
    for key in ("scsi0", "ide2", "efidisk0", "tpmstate0", "unused0"):
        try:
            drive = parse_drive(key, text_of(data))
        except FormatError:
            continue
        assert parse_drive(key, format_drive(drive)) == drive


def read_sections(data: bytes) -> None:
    """storage.cfg, datacenter.cfg, a firewall file."""
    text = text_of(data)
    sections = parse_sections(text)
    assert [replace(again, line=0) for again in parse_sections(format_sections(sections))] == [
        replace(section, line=0) for section in sections
    ]
    for entry in parse_storage_config(text).values():
        assert entry.default_format in entry.valid_formats
        entry.on_node("pvetest")
    parse_datacenter_config(text)
    canonical, _ = format_firewall(text)
    assert format_firewall(canonical)[0] == canonical


def read_users(data: bytes) -> None:
    """user.cfg and priv/token.cfg, and what a token of them may do."""
    text = text_of(data)
    users = parse_user_config(text)
    # Once only: access of root@pam is not written, who needs none.
    written = format_user_config(users)
    assert format_user_config(parse_user_config(written)) == written
    secrets = parse_token_config(text)
    assert parse_token_config(format_token_config(secrets)) == secrets
    rights = Rights(users, USER)
    assert rights.is_root is False
    rights.privileges("/vms/100")


def read_ticket(data: bytes) -> None:
    """A ticket: none but the one that was signed is taken."""
    text = text_of(data)
    assert normalise(normalise(text)) == normalise(text)
    for key, user, path in ((KEY, USER, PATH), (KEY[::-1], USER, PATH), (KEY, text, PATH), (KEY, USER, text)):
        try:
            check_ticket(text, key, user, path, NOW)
        except TunnelError:
            continue
        assert text == TICKET
        assert (key, user, normalise(path)) == (KEY, USER, normalise(PATH))


def read_image(data: bytes) -> None:
    """The headers of image files."""
    for format in ("qcow2", "vmdk"):
        try:
            facts = inspect_image(format, lambda offset, count: data[offset : offset + count], len(data))
        except TunnelError:
            continue
        assert facts.size_bytes >= 0


def read_names(data: bytes) -> None:
    """Volume ids, UPIDs, endpoints, maps, parameters of the HTTP calls."""
    text = text_of(data)
    for read in (parse_volume_id, parse_dir_volume, parse_map):
        attempt(read, text)
    attempt(_read_upid, text)
    attempt(lambda text: parse_endpoint(format_endpoint(parse_endpoint(text))), text)
    fields = dict(part.partition("=")[::2] for part in text.split("&"))
    attempt(MTUNNEL.read, fields)
    attempt(WEBSOCKET.read, fields)


def _read_upid(text: str) -> None:
    assert parse_upid(text).format() == text


def attempt(read: Callable[[Any], object], value: object) -> None:
    """Read; a declared error is an answer, too."""
    with contextlib.suppress(*DECLARED):
        read(value)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "lines": read_line,
    "frames": read_frames,
    "batches": read_batches,
    "guest-file": read_guest_file,
    "guest-sent": read_guest_sent,
    "drive": read_drive,
    "sections": read_sections,
    "users": read_users,
    "ticket": read_ticket,
    "image": read_image,
    "names": read_names,
}


NEED_NATIVE = frozenset({"batches"})
"""Targets for which the native module has to be there."""


def run(name: str, data: bytes) -> None:
    """One input for one target. Raises: what is a find."""
    attempt(TARGETS[name], data)
