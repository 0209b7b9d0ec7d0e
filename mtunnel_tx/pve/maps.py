"""What a migration names on its command line: storage and bridge maps, the target's endpoint (formats.md section 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mtunnel_tx.checks import FormatError, bracketed_address, clean, fingerprint, integer, split_list
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pve.property import PropertyFormat

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_TOKEN = re.compile(r"[!-+\x2d-~]([ -+\x2d-~]*[!-+\x2d-~])?")
DEFAULT_PORT = 8006


@dataclass(frozen=True, slots=True)
class Map:
    """Names at the source to names at the target; `default` is for all, then there are no others.

    `is_identity`: everything is called the same there.
    """

    entries: Mapping[str, str]
    default: str | None = None
    is_identity: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """Every name at the target, once, sorted."""
        return tuple(sorted({*self.entries.values(), *([self.default] if self.default else [])}))

    def target(self, name: str) -> str:
        """The name at the target. Raises: BadRequest: there is none."""
        found = name if self.is_identity else self.entries.get(name, self.default)
        if found is None:
            raise BadRequest(f"no target for '{clean(name)}' in the map '{self}'")
        return found

    def __str__(self) -> str:
        return self.default or ",".join(f"{source}:{target}" for source, target in self.entries.items())


SAME_NAMES = Map({}, is_identity=True)


def parse_map(text: str) -> Map:
    """Read `a:b,c:d`, or `b` alone for all.

    Raises: BadRequest: names what is wrong: nothing there, a bad name, a source twice, both forms, or `1`: Proxmox's
        word for "everything to its own name", which a migration to another cluster does not take.
    """
    items = split_list(text)
    if not items:
        raise BadRequest("empty map")
    if "1" in items:
        raise BadRequest("identity map '1' is not possible for another cluster: name a target")
    bare = [_check_name(item, item) for item in items if ":" not in item]
    if bare and len(items) > len(bare):
        raise BadRequest(f"target for all '{bare[0]}' cannot be combined with pairs")
    if len(bare) > 1:
        raise BadRequest(f"target for all can be given only once: '{bare[0]}' and '{bare[1]}'")
    return Map({}, bare[0]) if bare else Map(_read_pairs(items))


def _read_pairs(items: Sequence[str]) -> dict[str, str]:
    entries: dict[str, str] = {}
    for item in items:
        source, _, target = item.partition(":")
        _check_name(source, item)
        if source in entries:
            raise BadRequest(f"duplicate mapping for source '{source}'")
        entries[source] = _check_name(target, item)
    return entries


def _check_name(name: str, item: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadRequest(f"entry '{clean(item)}' contains invalid ID '{clean(name)}'")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A cluster to migrate to; `apitoken` is sent verbatim as `Authorization` and never shown."""

    apitoken: str = field(repr=False)
    host: str
    port: int = DEFAULT_PORT
    fingerprint: str | None = None


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise FormatError("value is not printable ASCII without commas")
    return value


_ENDPOINT = PropertyFormat(
    checks={"apitoken": _token, "host": bracketed_address, "port": integer(1, 65535), "fingerprint": fingerprint},
    required=frozenset({"apitoken", "host"}),
)


def parse_endpoint(text: str) -> Endpoint:
    """Read `apitoken=…,host=…[,port=8006][,fingerprint=AA:…]`.

    Raises: BadRequest: names the key that is wrong, and never shows the token.
    """
    try:
        values = _ENDPOINT.parse(text)
    except FormatError as error:
        raise BadRequest(f"endpoint: {str(error).strip()}") from None
    return Endpoint(
        apitoken=values["apitoken"],
        host=values["host"],
        port=int(values.get("port", DEFAULT_PORT)),
        fingerprint=values.get("fingerprint"),
    )


def format_endpoint(endpoint: Endpoint) -> str:
    """The text that `parse_endpoint` reads; the secret is in it. Raises: BadRequest: a value that cannot be written."""
    parts = [f"apitoken={endpoint.apitoken}", f"host={endpoint.host}", f"port={endpoint.port}"]
    text = ",".join([*parts, *([f"fingerprint={endpoint.fingerprint}"] if endpoint.fingerprint else [])])
    if parse_endpoint(text) != endpoint:
        raise BadRequest("endpoint: a value cannot be written")
    return text
