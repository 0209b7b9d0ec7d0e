"""Checks of single values: each returns the value to use, or raises ValueError(reason).

A thin layer above `mtunnel_tx.checks`: TOML brings values with a type, not texts, and the reasons are for the one who
writes the file, not for Proxmox.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mtunnel_tx import checks
from mtunnel_tx.config.listening import read_listener

Check = Callable[[object], Any]
_WEB_URL = re.compile(r"https?://[^\s/?#@]+(?:[/?#]\S*)?", re.ASCII)
"""Without a user and a password, which would be in every log."""
MOST_URLS = 16


def one_of(*words: str) -> Check:
    """Returns: a check that takes these words only."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return check


def matching(pattern: str, what: str) -> Check:
    """Returns: a check for a string that matches `pattern` as a whole."""
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return check


def whole(least: int, most: int) -> Check:
    """Returns: a check for an integer in these bounds."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return check


def number(least: float, most: float) -> Check:
    """Returns: a check for a number in these bounds."""

    def check(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a number from {least:g} to {most:g}")
        return value

    return check


def absolute_path(value: object) -> Path:
    """Returns: the path of a string that starts at the root."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("must be an absolute path")
    return Path(value)


def endpoints(value: object) -> tuple[str, ...]:
    """Returns: Twisted's server endpoint strings; TLS is always spoken on top of them."""
    if not isinstance(value, list) or not 1 <= len(value) <= 16:
        raise ValueError('must be a list of 1 to 16 endpoints, e.g. ["tcp6:8016"]')
    for item in value:
        read_listener(endpoint(item))
    return tuple(value)


def arguments(value: object) -> tuple[str, ...]:
    """Returns: an argument vector; a single string is a program without arguments."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError("must be a program, or a list of a program and its first arguments")
    if any("\0" in item for item in items):
        raise ValueError("must be without NUL")
    return tuple(items)


def web_urls(value: object) -> tuple[str, ...]:
    """Returns: URLs of HTTP, each once; a single string is one."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and _WEB_URL.fullmatch(item) for item in items):
        raise ValueError("must be an URL that begins with https:// or http://, or a list of such")
    if len(items) > MOST_URLS:
        raise ValueError(f"must be {MOST_URLS} URLs at most")
    return tuple(dict.fromkeys(items))


def fingerprint(value: object) -> str:
    """Returns: 32 hex pairs with colons, upper case."""
    try:
        return checks.fingerprint(value if isinstance(value, str) else "")
    except checks.FormatError as error:
        raise ValueError("must be a SHA-256 fingerprint, AA:BB:…") from error


def api_url(value: object) -> str:
    """Returns: `https://HOST` or `https://HOST:PORT`, an IPv6 address in brackets, as it can be dialled."""
    text = str(_api_shape(value))
    try:
        parts = urlsplit(text)
        given, host = parts.port, str(parts.hostname)
        if "[" in text:
            IPv6Address(host)
    except ValueError as error:
        raise ValueError(f"must be https://HOST:PORT: {error}") from error
    _part("HOST", host_name, host)
    _part("PORT", port, 443 if given is None else given)
    return text


def host_name(value: object) -> str:
    """Returns: a host name or an address; one of IPv6 may come in brackets, and loses them."""
    return str(_host_name(value)).strip("[]")


def _part(name: str, check: Check, value: object) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"must be https://HOST:PORT: {name} {error}") from error


_api_shape = matching(r"https://(\[[^\s/?#@\[\]]+\]|[^\s/?#@\[\]:]+)(:[^\s/?#@]+)?", "https://HOST:PORT")
node_name = matching(rf"(?=.{{1,63}}\Z){checks.NODE_NAME}", "a host name without dots")
endpoint = matching(
    r"(?!ssl:|tls:)[a-z0-9]+:[\x21-\x7e]+", 'a server endpoint without TLS of its own, e.g. "tcp6:8016"'
)
_host_name = matching(r"[0-9A-Za-z_.:-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]", "a host name or an address")
port = whole(1, 65535)
