"""Tunnel tickets: short-lived proof that a token may open one socket (protocol.md section 2)."""

from __future__ import annotations

import base64
import hmac
import re

from mtunnel_tx.errors import Unauthenticated

MAX_AGE_S = 40
MAX_AHEAD_S = 20
# Exactly 32 bytes of signature: a shorter or longer one is not even compared.
_TICKET = re.compile(r"PVETUNNEL:([0-9A-F]{8})::([A-Za-z0-9+/]{43}=)")
_SLASHES = re.compile(r"/+")


def normalise(path: str) -> str:
    """A socket's wire name in the one form that is signed and compared: `run/qemu-server/100.mtunnel`."""
    return _SLASHES.sub("/", path).strip("/")


def make_ticket(key: bytes, user: str, path: str, now: float) -> str:
    """Sign a ticket.

    Args: key: 32 bytes. user: the full token id. path: wire name of the socket. now: seconds since the epoch.
    Returns: `PVETUNNEL:HHHHHHHH::BASE64`, valid any number of times until it is 40 s old.
    """
    stamp = f"{int(now):08X}"
    return f"PVETUNNEL:{stamp}::{_sign(key, stamp, user, path)}"


def check_ticket(text: str, key: bytes, user: str, path: str, now: float) -> None:
    """Check a ticket.

    Args: text: the ticket as sent, any text. The others as for `make_ticket`.
    Raises: Unauthenticated: wrong form or signature, another user or path, or its age is outside -20 s .. +40 s.
    """
    found = _TICKET.fullmatch(text)
    if found is None or not hmac.compare_digest(found[2], _sign(key, found[1], user, path)):
        raise _invalid()
    if not -MAX_AHEAD_S < now - int(found[1], 16) < MAX_AGE_S:
        raise _invalid()


def _invalid() -> Unauthenticated:
    return Unauthenticated("permission denied - invalid PVETUNNEL ticket")


def _sign(key: bytes, stamp: str, user: str, path: str) -> str:
    # The path comes from a URL: it may hold what is no character.
    plain = f"PVETUNNEL:{stamp}:{user}:/socket/{normalise(path)}".encode("utf-8", errors="surrogatepass")
    return base64.b64encode(hmac.digest(key, plain, "sha256")).decode("ascii")
