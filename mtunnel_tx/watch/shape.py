"""The JSON of a move (docs/watching.md): bytes and seconds as they are, and what is derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mtunnel_tx.ports.moves import MovePhase, TransferKind
from mtunnel_tx.watch.move import MoveState, Transfer

_MOVE = tuple(one.name for one in fields(MoveState))
_TRANSFER = ("label", "total_bytes", "done_bytes", "began_s", "ended_s")


def move_json(move: MoveState) -> dict[str, Any]:
    """A move with all that can be derived from it."""
    plain = {name: getattr(move, name) for name in _MOVE}
    return {
        **plain,
        "phase": move.phase.value,
        "transfers": [_transfer_json(transfer) for transfer in move.transfers],
        "done_bytes": move.done_bytes,
        "total_bytes": move.total_bytes,
        "percent": move.percent,
        "rate_bytes_s": round(move.rate_bytes_s),
        "remaining_s": _rounded(move.remaining_s),
    }


def _transfer_json(transfer: Transfer) -> dict[str, Any]:
    plain = {name: getattr(transfer, name) for name in _TRANSFER}
    return {
        **plain,
        "kind": transfer.kind.value,
        "rate_bytes_s": round(transfer.rate_bytes_s) if transfer.is_running else 0,
        "remaining_s": _rounded(transfer.remaining_s),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def read_move(values: Mapping[str, Any]) -> MoveState:
    """The move of such a JSON object; what it derives is derived again. Raises: ValueError, LookupError, TypeError."""
    # A program of another version may lack what has a default.
    known = {name: values[name] for name in _MOVE if name in values}
    transfers = tuple(_read_transfer(one) for one in values["transfers"])
    return MoveState(**{**known, "phase": MovePhase(values["phase"]), "transfers": transfers})


def _read_transfer(values: Mapping[str, Any]) -> Transfer:
    known = {name: values[name] for name in _TRANSFER}
    return Transfer(**known, kind=TransferKind(values["kind"]), rate_bytes_s=float(values["rate_bytes_s"]))
