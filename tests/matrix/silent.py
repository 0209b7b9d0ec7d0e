"""`mtunnel`, as a source that commands only what it must: it does not tell the target how far it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from mtunnel_tx.cli.main import program
from mtunnel_tx.source.channel import CommandRefused
from mtunnel_tx.source.tunnel import TargetTunnel


async def refuse(_tunnel: TargetTunnel, _fields: Mapping[str, object]) -> None:
    """As where the target does not know the word; it is asked no more."""
    raise CommandRefused("target: unknown command 'progress' given")


if __name__ == "__main__":
    TargetTunnel.report = refuse  # type: ignore[assignment, method-assign]
    sys.exit(program())
