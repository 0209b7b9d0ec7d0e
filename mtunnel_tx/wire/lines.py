"""Command lines and their replies: one JSON object a line (protocol.md section 4)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from mtunnel_tx.errors import TunnelError

MAX_NESTING = 512
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class RequestUnreadable(TunnelError):
    """A line that names no command; the text is the whole reply."""

    status = 400


def parse_request(line: bytes) -> dict[str, Any]:
    """Take a command line apart.

    Args: line: any bytes, without the LF; white space around the object is fine, so is a CR at the end.
    Returns: the object, with a `cmd` that is not null. Of duplicate keys the last counts.
    Raises: RequestUnreadable: `failed to parse command - REASON` or `'cmd' missing`; nothing of the line is in it.
    """
    try:
        request = _load(line)
    except ValueError as error:
        raise RequestUnreadable(f"failed to parse command - {error}") from error
    if request is None or request.get("cmd") is None:
        raise RequestUnreadable("'cmd' missing")
    return request


def _load(line: bytes) -> dict[str, Any] | None:
    """The object of a line, or None for a bare null. Raises: ValueError: the reason, in words of our own or json's."""
    try:
        value = json.loads(line.decode("utf-8"), parse_float=_read_float, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8, at byte offset {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg.removesuffix(' at')}, at character offset {error.pos}") from error
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except ValueError as error:
        raise ValueError("number is not finite or has too many digits") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if _is_deeper(value, MAX_NESTING):
        raise ValueError(_TOO_DEEP)
    # A lone surrogate is no character: nothing behind this could write it to a file.
    if _SURROGATE_ESCAPE.search(line) and not _is_encodable(value):
        raise ValueError("missing half of a surrogate pair")
    return value


_TOO_DEEP = f"nesting is deeper than {MAX_NESTING} levels"


def _read_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(number: str) -> NoReturn:
    raise ValueError(number)


def _is_deeper(value: object, levels: int) -> bool:
    """Whether arrays and objects nest deeper; level by level, as a recursion would run into Python's own limit."""
    containers: list[Any] = [[value]]
    for _ in range(levels + 1):
        containers = [
            inner
            for outer in containers
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not containers:
            return False
    return True


def _is_encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: object) -> str:
    """A JSON value as Perl shows it inside a text: 5 is `5`, 1.0 is `1`, true is `1`, an array is `ARRAY`."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, list):
        return "ARRAY"
    if isinstance(value, dict):
        return "HASH"
    return "" if value is None else str(value)


def command_name(request: Mapping[str, Any]) -> str:
    """The command that a request asks for, known or not."""
    return as_text(request["cmd"])


def encode_ok(fields: Mapping[str, Any] | None = None) -> bytes:
    """The reply of a command that is done: one line of UTF-8 JSON with sorted keys, without its LF."""
    return _encode({**(fields or {}), "success": True})


def encode_failure(msg: str) -> bytes:
    """The reply of a command that failed; `msg` is sent as it is, line feeds included."""
    return _encode({"success": False, "msg": msg})


def handler_failure(name: str, error: TunnelError) -> str:
    """The `msg` for a known command that failed: its schema, the config lock or its handler."""
    return f"failed to handle '{name}' command - {error.line}\n"


def _encode(reply: Mapping[str, Any]) -> bytes:
    text = json.dumps(reply, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    # For a lone surrogate (output of a child, say) Python's escape is JSON's too.
    return text.encode("utf-8", errors="backslashreplace")
