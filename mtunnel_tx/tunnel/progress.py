"""`progress`: what a source of our own says about its move, for those who watch here. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.ports.events import MoveTold
from mtunnel_tx.ports.moves import (
    LONGEST_LABEL,
    MOST_TRANSFERS,
    Carried,
    Expected,
    Finished,
    MoveEvent,
    MovePhase,
    NamedSource,
    Reached,
    StoodStill,
    TransferKind,
)
from mtunnel_tx.tunnel.common import DONE, Result
from mtunnel_tx.tunnel.tunnel import Guest
from mtunnel_tx.wire.args import ProgressArgs

_MOST_BYTES = 1 << 62


async def take(guest: Guest, args: ProgressArgs) -> Result:
    """Pass it on to the observers. Raises: BadRequest: it cannot be understood."""
    said = tuple(read_progress(args))
    guest.tunnel.tell(MoveTold(tunnel=guest.tunnel.facts, said=said, by_source=True))
    return DONE


def read_progress(args: ProgressArgs) -> Iterator[MoveEvent]:
    """What was sent, as events. Raises: BadRequest."""
    phases = {phase.value: phase for phase in MovePhase if not phase.is_end}
    if args.phase not in phases:
        raise BadRequest(f"progress: no phase '{clean(args.phase)}'")
    if args.source:
        yield NamedSource(name=args.source)
    yield Reached(phase=phases[args.phase])
    if len(args.transfers) > MOST_TRANSFERS:
        raise BadRequest(f"progress: more than {MOST_TRANSFERS} transfers")
    for one in args.transfers:
        yield from _read_transfer(one)
    if args.downtime_ms is not None:
        yield StoodStill(downtime_s=args.downtime_ms / 1000)


def _read_transfer(sent: object) -> Iterator[MoveEvent]:
    if not isinstance(sent, dict):
        raise BadRequest("progress: a transfer is an object")
    label = sent.get("label")
    if not isinstance(label, str) or not 0 < len(label) <= LONGEST_LABEL or clean(label) != label:
        raise BadRequest("progress: a transfer has no label")
    kind = next((kind for kind in TransferKind if kind.value == sent.get("kind")), None)
    if kind is None:
        raise BadRequest(f"progress: {label}: unknown kind")
    yield Expected(label=label, kind=kind, total_bytes=_read_size(label, sent.get("total")))
    done_bytes = _read_size(label, sent.get("done"))
    if done_bytes is not None:
        yield Carried(label=label, done_bytes=done_bytes)
    if sent.get("ended") is True:
        yield Finished(label=label)


def _read_size(label: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_BYTES:
        raise BadRequest(f"progress: {label}: not a number of bytes")
    return value
