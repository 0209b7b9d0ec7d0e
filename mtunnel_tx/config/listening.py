"""Twisted's server endpoint strings as `listen` takes them: `KIND:VALUE:NAME=VALUE…`, a literal `:` as `\\:`.

They are parsed here without Twisted, so that a bad one is a configuration error and not a failed start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAMES: Mapping[str, tuple[str, ...]] = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
_DOMAINS = ("INET", "INET6", "UNIX")
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Listener:
    """One endpoint: its kind (`tcp`, `unix`, …) and its values by name."""

    kind: str
    values: Mapping[str, str]

    @property
    def port(self) -> int | None:
        """The port; 0: any; None: another program chose it (`systemd`), or there is none (`unix`)."""
        return int(self.values["port"]) if "port" in self.values else None


def read_listener(text: str) -> Listener:
    """Raises: ValueError: `'ENDPOINT': REASON`."""
    try:
        return _read(text)
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from error


def _read(text: str) -> Listener:
    kind, *fields = re.split(r"(?<!\\):", text)
    if kind not in _NAMES:
        raise ValueError(f"must be one of {', '.join(f'{name}:…' for name in _NAMES)}")
    listener = Listener(kind, dict(_named(kind, index, field) for index, field in enumerate(fields)))
    (_check_socket if kind == "systemd" else _check_address if kind == "unix" else _check_port)(listener.values)
    return listener


def _named(kind: str, index: int, field: str) -> tuple[str, str]:
    names = _NAMES[kind]
    words = re.split(r"(?<!\\)=", field, maxsplit=1)
    name = words[0] if len(words) > 1 else names[index] if index < len(names) else field
    if name not in names:
        raise ValueError(f"'{name}' must be one of {', '.join(names)}")
    return name, re.sub(r"\\(.)", r"\1", words[-1])


def _check_port(values: Mapping[str, str]) -> None:
    port = values.get("port", "")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > _HIGHEST_PORT:
        raise ValueError(f"its port must be a whole number from 0 to {_HIGHEST_PORT}")


def _check_address(values: Mapping[str, str]) -> None:
    if not values.get("address"):
        raise ValueError("its path must be given")


def _check_socket(values: Mapping[str, str]) -> None:
    if values.get("domain") not in _DOMAINS:
        raise ValueError(f"its domain must be one of {', '.join(_DOMAINS)}")
    if ("index" in values) == ("name" in values) or not values.get("index", "0").isdecimal():
        raise ValueError("its index, a number, or its name must be given")
