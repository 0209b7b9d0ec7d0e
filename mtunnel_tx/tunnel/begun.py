"""A command that an earlier daemon has begun and not answered: its effect happens once all the same.

The journal tells how far it came. Where the effect is complete, the command is answered. Where it can be done twice, it
is done again. What it has made and not named is undone first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Any

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.tunnel import dispatch
from mtunnel_tx.tunnel.ledger import Owed, fold
from mtunnel_tx.tunnel.tunnel import Tunnel
from mtunnel_tx.wire.lines import command_name, encode_failure, encode_ok, handler_failure, parse_request


class Course(Enum):
    """What is to be done about such a command."""

    ANSWER = auto()
    DO_AGAIN = auto()
    UNDO_FIRST = auto()


def choose(name: str, since: Collection[str], *, runs: bool, locked: bool) -> Course:
    """Args: since: the words of the records that it has written. runs: QEMU says so. locked: our lock is in the config.

    `locked` also where the config is gone: nothing is known then.
    """
    if name in ("disk", "disk-import") or (name == "start" and "starting" in since):
        return Course.UNDO_FIRST
    is_complete = (
        (name == "config" and "configured" in since)
        or (name == "resume" and not {"resuming", "resuming_partly"}.isdisjoint(since) and runs)
        or (name == "unlock" and "handed_over" in since and not locked)
    )
    return Course.ANSWER if is_complete else Course.DO_AGAIN


async def answer_again(tunnel: Tunnel, line: bytes, records: int) -> bytes:
    """Args: line: was begun. records: how many its journal had then. Returns: the reply. Never raises."""
    try:
        name = str(command_name(parse_request(line)))
    except TunnelError:
        return await dispatch.answer(tunnel, line)  # which refuses it as before
    tunnel.task.line(f"the daemon was started again during command '{name}'")
    try:
        course = await _prepare(tunnel, name, records)
    except TunnelError as error:
        return encode_failure(handler_failure(name, error))
    return encode_ok({}) if course is Course.ANSWER else await dispatch.answer(tunnel, line)


async def _prepare(tunnel: Tunnel, name: str, records: int) -> Course:
    services, ledger = tunnel.services, tunnel.ledger
    written = services.journal.read(tunnel.vmid) or []
    since = [str(record.get("do")) for record in written[records:]]
    state = await tunnel.claim.machine_state() if name == "resume" else None
    runs = state is not None and state.status == "running"
    locked = tunnel.claim.config_state() in {*ledger.owed.marks, "absent", "somebody else's"}
    course = choose(name, since, runs=runs, locked=locked)
    if course is Course.UNDO_FIRST:
        of_import = [record for record in written[records:] if _is_of_import(tunnel, record)]
        await _undo(tunnel, name, fold(tunnel.vmid, [*written[:records], *of_import]))
    elif course is Course.ANSWER and name == "resume" and not ledger.owed.resumed:
        await ledger.note("resumed")
    elif course is Course.ANSWER and name == "unlock" and ledger.owed.marks:
        await ledger.note("unlocked")
    return course


def _is_of_import(tunnel: Tunnel, record: Mapping[str, Any]) -> bool:
    """Whether the disk import that runs beside the command has written it: that it made its volume."""
    job = tunnel.disk_import
    return job is not None and record.get("do") == "made" and record.get("volid") == job.made


async def _undo(tunnel: Tunnel, name: str, before: Owed) -> None:
    """Args: before: what was owed without the command. Raises: TunnelError."""
    owed = tunnel.ledger.owed
    if name == "start":
        # A QEMU with the whole state, or one that was told to run, may be the only copy of the VM.
        if not (owed.whole or owed.is_given_up):
            await tunnel.claim.stop_machine()
        return
    if tunnel.disk_import is not None and not tunnel.disk_import.over and len(owed.making) > 1:
        # What the import that runs is making has no name yet, and could be taken for what this one has left.
        raise WrongState("the daemon was started again while two volumes were made at once")
    for storage in Counter(owed.making) - Counter(before.making):
        await tunnel.own.made_nothing(storage)
    for volid in owed.volumes:
        if volid not in before.volumes:
            await tunnel.own.give_back(volid)
