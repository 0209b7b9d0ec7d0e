"""Parameters of HTTP requests: taken from the query string or the body, joined with those of the path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from twisted.web.http import Request

from mtunnel_tx.errors import BadRequest, InvalidParameters, TunnelError
from mtunnel_tx.wire.lines import as_text

MOST_FIELDS = 1000
CONFLICT = "duplicate parameter (already defined in URI) with conflicting values!"

_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"


class UnknownMediaType(TunnelError):
    """The peer must send a form or JSON."""

    status = 506


def read_header(request: Request, name: bytes) -> str | None:
    """A header's text, whatever bytes it has; of several the last."""
    value = request.getHeader(name)
    return None if value is None else value.decode("utf-8", "replace")


def read_query(query: bytes) -> dict[str, str]:
    """Form fields; a name that comes twice has its values joined with NUL, which lists take for a separator.

    Raises: BadRequest: more than MOST_FIELDS.
    """
    text = query.decode("utf-8", "replace")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise BadRequest("too many parameters") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        fields[name] = f"{fields[name]}\0{value}" if name in fields else value
    return fields


def read_body(content_type: str | None, body: bytes) -> dict[str, Any]:
    """A form (also where no type is given), or a JSON object. Raises: UnknownMediaType. TunnelError: bad JSON."""
    media_type = (content_type or _FORM).partition(";")[0].strip().lower()
    if not body:
        return {}
    if media_type == _FORM:
        return dict(read_query(body.strip()))
    if media_type == _JSON:
        return _read_json(body)
    raise UnknownMediaType(f"upload 'Content-Type '{content_type}' not implemented")


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise TunnelError("unable to decode JSON parameters") from error
    if not isinstance(value, dict):
        raise TunnelError("unable to decode JSON parameters - not an object")
    return {name: item for name, item in value.items() if item is not None}


def _refuse(text: str) -> None:
    """NaN and the infinities are no JSON."""
    raise ValueError(text)


def join_parameters(in_path: Mapping[str, str], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Both together. Raises: InvalidParameters: a name is in both, and the values differ."""
    conflicts = {name: CONFLICT for name, value in in_path.items() if name in sent and as_text(sent[name]) != value}
    if conflicts:
        raise InvalidParameters(conflicts)
    return {**sent, **in_path}
