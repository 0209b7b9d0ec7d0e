"""Users, tokens, and what they may do."""

from __future__ import annotations

from typing import Protocol

from mtunnel_tx.pve.rights import Rights


class Access(Protocol):
    """Users, tokens and what they may do; files are read again when they changed."""

    def authenticate(self, authorization: str | None) -> str:
        """Returns: the full token id, e.g. `mig@pve!t1`. Raises: Unauthenticated."""

    def rights(self, token: str) -> Rights:
        """What the token may do now. Raises: Unauthenticated: it is gone, expired or disabled."""
