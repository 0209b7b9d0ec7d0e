"""The header by which two ends agree on a flow that outlives its connections, `Mtunnel-Resume`.

A client that can resume sends `1` (versions, with commas) when it asks for a websocket. A server that can, too, answers
`1; id=ID; key=KEY; window=BYTES; park=SECONDS`; one that says nothing has a plain flow. To attach another connection,
the client sends `1; key=KEY; gen=G`, where G grows with each try.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field

from mtunnel_tx.wire.flow import LEAST_WINDOW_BYTES, MOST_WINDOW_BYTES

HEADER = "Mtunnel-Resume"
VERSION = "1"
ID_BYTES = 16
MOST_GENERATION = (1 << 31) - 1
LONGEST_PARK_S = 86400.0

_FIELD = re.compile(r"([a-z]+)=([A-Za-z0-9_.-]{1,128})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeOffer:
    """What a server says of a new flow. park_s: how long it waits for another connection."""

    id: str
    key: str = field(repr=False)
    window_bytes: int
    park_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachClaim:
    """What a client shows to attach a connection."""

    key: str = field(repr=False)
    generation: int


def is_asked_for(text: str | None) -> bool:
    """Whether a client's header has our version."""
    return text is not None and VERSION in [word.strip() for word in text.split(",")]


def write_offer(offer: ResumeOffer) -> str:
    """The header of a server's 101."""
    return f"{VERSION}; id={offer.id}; key={offer.key}; window={offer.window_bytes}; park={offer.park_s:g}"


def read_offer(text: str | None) -> ResumeOffer | None:
    """Returns: None: the flow is a plain one."""
    fields = _read_fields(text)
    try:
        offer = ResumeOffer(
            id=fields["id"], key=fields["key"], window_bytes=int(fields["window"]), park_s=float(fields["park"])
        )
    except (KeyError, ValueError):
        return None
    is_sound = LEAST_WINDOW_BYTES <= offer.window_bytes <= MOST_WINDOW_BYTES and 0 < offer.park_s <= LONGEST_PARK_S
    return offer if is_sound else None


def write_claim(claim: AttachClaim) -> str:
    """The header of a client that attaches."""
    return f"{VERSION}; key={claim.key}; gen={claim.generation}"


def read_claim(text: str | None) -> AttachClaim | None:
    """Returns: None: it cannot be read."""
    fields = _read_fields(text)
    generation = fields.get("gen", "")
    if "key" not in fields or not generation.isdecimal() or not 0 < int(generation) <= MOST_GENERATION:
        return None
    return AttachClaim(key=fields["key"], generation=int(generation))


def _read_fields(text: str | None) -> Mapping[str, str]:
    """Returns: nothing where it is another version, or more than we know how to read."""
    version, *words = [word.strip() for word in (text or "").split(";")]
    matches = [_FIELD.fullmatch(word) for word in words]
    if version != VERSION or not all(matches):
        return {}
    return {match[1]: match[2] for match in matches if match is not None}


def make_flow_id(random_bytes: bytes) -> str:
    """The name of a flow. Args: random_bytes: ID_BYTES of them."""
    return _encode(random_bytes)


def make_key(secret: bytes, *, vmid: int, flow_id: str, token: str) -> str:
    """What attaches connections to a flow: bound to it, and to the token that it belongs to."""
    text = f"{VERSION}|{vmid}|{flow_id}|{token}"
    return _encode(hmac.digest(secret, text.encode(), hashlib.sha256))


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")
