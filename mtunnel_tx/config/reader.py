"""Read `mtunnel.toml` and turn it into Settings."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtunnel_tx.config.checks import node_name
from mtunnel_tx.config.host import Host, check_private_directory, default_file, is_there, this_host
from mtunnel_tx.config.keys import KEYS, NODE_CHECKS, Key, tls_file
from mtunnel_tx.config.settings import (
    DEFAULT_PORT,
    LONGEST_RUNTIME_DIR,
    ClusterNode,
    Commands,
    ConfigError,
    Forward,
    Limits,
    Notify,
    Page,
    Settings,
    Tls,
)

TABLES = ("tls", "commands", "forward", "page", "notify", "limits")


def load_settings(path: Path | None, environ: Mapping[str, str], host: Host | None = None) -> Settings:
    """Read the file that `path`, else $MTUNNEL_CONFIG names, else the default one where it exists.

    Raises: ConfigError: a line `FILE: KEY: reason` for each key that is wrong.
    """
    host = host or this_host(environ)
    file = _find_file(path, host)
    given = _read_file(file) if file else {}
    return _Reader(str(file or "configuration"), host).settings(file, given)


def find_tls(settings: Settings) -> Tls:
    """Look up certificate and key again, unless the configuration names them."""
    values = {name: getattr(settings, name) for name in ("profile", "node", "state_dir", "pve_dir")}
    tls = settings.tls
    certificate = tls.certificate if "certificate" in tls.named else tls_file("pem")(values)
    return replace(tls, certificate=certificate, key=tls.key if "key" in tls.named else tls_file("key")(values))


class _Reader:
    """Turns the decoded file into Settings; collects all errors and raises them together, with the file's name."""

    def __init__(self, label: str, host: Host) -> None:
        self._label = label
        self._host = host
        self._errors: list[str] = []

    def settings(self, file: Path | None, given: dict[str, Any]) -> Settings:
        nodes = self._nodes(given)
        flat = dict(self._flatten(given))
        named = frozenset(key for key in ("certificate", "key") if f"tls.{key}" in flat)
        values = self._values(flat)
        self._refuse(flat)
        for name in ("runtime_dir", "machine_dir"):
            self._check_length(name, values[name])
        self._tell_errors()
        self._check_runtime_dir(values["runtime_dir"])
        tables = {name: _below(values, name) for name in TABLES}
        return Settings(
            file=file,
            **{name: value for name, value in values.items() if "." not in name},
            tls=Tls(**tables["tls"], named=named),
            commands=Commands(**tables["commands"]),
            forward=Forward(nodes=nodes, **tables["forward"]),
            page=Page(**tables["page"]),
            notify=Notify(**tables["notify"]),
            limits=Limits(**tables["limits"]),
        )

    def _flatten(self, given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in given.items():
            if name in TABLES:
                yield from ((f"{name}.{key}", item) for key, item in self._table(name, value).items())
            else:
                yield name, value

    def _table(self, name: str, value: object) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self._add(name, "must be a table")
        return {}

    def _values(self, flat: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in KEYS:
            values[key.name] = self._value(key, flat, values)
        return values

    def _value(self, key: Key, flat: dict[str, Any], above: Mapping[str, Any]) -> Any:
        """The key's value. A wrong value is noted and replaced by the default, so that later keys can be checked."""
        if key.name in flat:
            with self._noted(key.name):
                return key.check(flat.pop(key.name))
        with self._noted(key.name):
            return key.default(above, self._host)
        self._tell_errors()
        return None

    def _nodes(self, given: dict[str, Any]) -> dict[str, ClusterNode]:
        forward = given.get("forward", {})
        if not isinstance(forward, dict) or "nodes" not in forward:
            return {}
        given["forward"] = {key: value for key, value in forward.items() if key != "nodes"}
        nodes = self._table("forward.nodes", forward["nodes"])
        found = {name: self._node(f"forward.nodes.{name}", value) for name, value in nodes.items()}
        return {name: node for name, node in found.items() if node is not None}

    def _node(self, name: str, value: object) -> ClusterNode | None:
        """Returns: the node; None: it has an error, which was noted."""
        with self._noted(name):
            node_name(name.removeprefix("forward.nodes."))
        if not isinstance(value, dict):
            self._add(name, "must be a table")
            return None
        rest = {"port": DEFAULT_PORT, **value}
        found = {}
        for key, check in NODE_CHECKS.items():
            if key not in rest:
                self._add(f"{name}.{key}", "must be given")
                continue
            with self._noted(f"{name}.{key}"):
                found[key] = check(rest.pop(key))
        self._refuse({f"{name}.{key}": value for key, value in rest.items()})
        return ClusterNode(**found) if found.keys() == NODE_CHECKS.keys() else None

    def _refuse(self, unknown: Mapping[str, Any]) -> None:
        for name in unknown:
            self._add(name, "no such key")

    def _check_length(self, name: str, path: Path) -> None:
        length = len(os.fsencode(path))
        if length > LONGEST_RUNTIME_DIR:
            reason = f"must have at most {LONGEST_RUNTIME_DIR} bytes for the sockets in it, has {length}: {path}"
            self._add(name, reason)

    def _check_runtime_dir(self, path: Path) -> None:
        if path.parent == self._host.temp_dir and os.path.lexists(path):
            check_private_directory(path)

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """Turn a check's ValueError into a noted error with file and key, and continue."""
        try:
            yield
        except ValueError as error:
            self._add(name, str(error))

    def _add(self, name: str, reason: str) -> None:
        self._errors.append(f"{self._label}: {name}: {reason}")

    def _tell_errors(self) -> None:
        if self._errors:
            raise ConfigError("\n".join(self._errors))


def _find_file(path: Path | None, host: Host) -> Path | None:
    if path is None and host.environ.get("MTUNNEL_CONFIG"):
        path = Path(host.environ["MTUNNEL_CONFIG"])
    if path is not None:
        return path.absolute()
    file = default_file(host)
    return file if is_there(file) else None


LONGEST_BYTES = 1 << 20
"""Of a configuration file; the one with every key explained has 1 % of it."""


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(LONGEST_BYTES + 1)
        if len(data) > LONGEST_BYTES:
            raise ConfigError(f"{file}: is longer than {LONGEST_BYTES} bytes, so it is no configuration")
        return tomllib.loads(data.decode("utf-8").replace("\r\n", "\n"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: is not valid TOML: nested too deeply") from error


def _below(values: Mapping[str, Any], table: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{table}.")}
