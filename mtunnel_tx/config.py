"""`mtunnel.toml` to frozen Settings: every key has a default, every value is checked.

`KEYS` is the one table of the file: name, check, default, reason. The manual's table is printed from it.
Nothing here creates a file; `make_private_directory` is for those who do.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mtunnel_tx.errors import TunnelError

LONGEST_SOCKET_PATH = 107
LONGEST_RUNTIME_DIR = LONGEST_SOCKET_PATH - len("/999999999_nbd.migrate")
DEFAULT_PORT = 8016
PROFILES = ("standalone", "proxmox")


class ConfigError(TunnelError):
    """The configuration cannot be used; the text names file, key and reason."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the certificate with its chain, and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Commands:
    """Programs with their leading arguments, as argument vectors."""

    pvesm: tuple[str, ...]
    qm: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Another node of the cluster; `fingerprint` is the SHA-256 of its certificate, `AA:BB:…`."""

    host: str
    port: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Where requests go that are not for us: `api` a base URL, `nodes` the daemons of other nodes."""

    api: str | None
    nodes: Mapping[str, Node]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer may use; the reasons stand in `KEYS`."""

    body_bytes: int = 1 << 20
    header_bytes: int = 32 << 10
    request_s: float = 30
    connections: int = 1024
    connections_unauthenticated_per_address: int = 32
    tunnels: int = 64
    tunnels_per_token: int = 16
    streams_per_tunnel: int = 64
    line_bytes: int = 4 << 20
    queued_lines: int = 64
    queued_bytes: int = 4 << 20
    frame_bytes: int = 64 << 20
    child_output_bytes: int = 1 << 20
    stall_s: float = 600
    half_close_s: float = 60
    connect_s: float = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the daemon and the commands know about their host; `file` is None where defaults rule alone."""

    file: Path | None
    node: str
    profile: str
    listen: tuple[str, ...]
    workers: int
    user: str
    pve_dir: Path
    state_dir: Path
    runtime_dir: Path
    lock_dir: Path
    tls: Tls
    commands: Commands
    forward: Forward
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the defaults depend on."""

    uid: int
    node: str
    environ: Mapping[str, str]
    temp_dir: Path

    def directory(self, system: str, variable: str, below_home: str) -> Path:
        """`system` for root, else `mtunnel` in the XDG directory (a relative one counts as unset)."""
        if self.uid == 0:
            return Path(system)
        base = Path(self.environ.get(variable, ""))
        return (base if base.is_absolute() else self._home() / below_home) / "mtunnel"

    def runtime_dir(self) -> Path:
        """Where no $XDG_RUNTIME_DIR is set: a directory of the user's own below the temporary one."""
        if self.uid == 0 or Path(self.environ.get("XDG_RUNTIME_DIR", "")).is_absolute():
            return self.directory("/run/mtunnel", "XDG_RUNTIME_DIR", "")
        return self.temp_dir / f"mtunnel-{self.uid}"

    def _home(self) -> Path:
        return Path(self.environ.get("HOME") or Path.home())


Check = Callable[[object], Any]
Default = Callable[[Mapping[str, Any], Host], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the file.

    Args: name: dotted. check: returns the value to use, or raises ValueError(reason). default: computed from the
    values above it in KEYS. shown: the default as the manual prints it. reason: what it is good for.
    """

    name: str
    check: Check
    default: Default
    shown: str
    reason: str


def load_settings(path: Path | None, environ: Mapping[str, str], host: Host | None = None) -> Settings:
    """Read the file that `path`, else $MTUNNEL_CONFIG names, else the default one where it exists.

    Raises: ConfigError: `FILE: KEY: reason`.
    """
    host = host or this_host(environ)
    file = _find_file(path, host)
    given = _read_file(file) if file else {}
    return _Reader(str(file or "configuration"), host).settings(file, given)


def default_file(host: Host) -> Path:
    """Returns: the file that is read where none is named."""
    return host.directory("/etc/mtunnel", "XDG_CONFIG_HOME", ".config") / "mtunnel.toml"


def this_host(environ: Mapping[str, str]) -> Host:
    """Returns: the facts about the running process."""
    node = socket.gethostname().partition(".")[0]
    return Host(uid=os.geteuid(), node=node, environ=environ, temp_dir=Path(tempfile.gettempdir()))


def make_private_directory(path: Path) -> bool:
    """Make a directory (mode 0700) with its parents, or check the one that is there.

    Returns: whether it was made. Raises: ConfigError: it is not ours alone.
    """
    made = not path.exists()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from error
    check_private_directory(path)
    return made


def check_private_directory(path: Path) -> None:
    """Raises: ConfigError: `path` is no directory of our own that nobody else may write to."""
    try:
        status = path.lstat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path}: is not a directory")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(f"{path}: belongs to somebody else, or others may write to it")


class _Reader:
    """Turns the decoded file into Settings; knows the file's name for its errors."""

    def __init__(self, label: str, host: Host) -> None:
        self._label = label
        self._host = host

    def settings(self, file: Path | None, given: dict[str, Any]) -> Settings:
        nodes = self._nodes(given)
        flat = dict(self._flatten(given))
        values = self._values(flat)
        self._refuse(flat)
        self._check_runtime_dir(values["runtime_dir"])
        tables = {name: _below(values, name) for name in TABLES}
        return Settings(
            file=file,
            **{name: value for name, value in values.items() if "." not in name},
            tls=Tls(**tables["tls"]),
            commands=Commands(**tables["commands"]),
            forward=Forward(nodes=nodes, **tables["forward"]),
            limits=Limits(**tables["limits"]),
        )

    def _flatten(self, given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in given.items():
            if name in TABLES:
                yield from ((f"{name}.{key}", item) for key, item in self._table(name, value).items())
            else:
                yield name, value

    def _table(self, name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(name, "must be a table")
        return value

    def _values(self, flat: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in KEYS:
            if key.name in flat:
                values[key.name] = self._checked(key.name, key.check, flat.pop(key.name))
            else:
                values[key.name] = key.default(values, self._host)
        return values

    def _nodes(self, given: dict[str, Any]) -> dict[str, Node]:
        forward = self._table("forward", given.get("forward", {}))
        nodes = self._table("forward.nodes", forward.get("nodes", {}))
        if "nodes" in forward:
            given["forward"] = {key: value for key, value in forward.items() if key != "nodes"}
        return {name: self._node(f"forward.nodes.{name}", value) for name, value in nodes.items()}

    def _node(self, name: str, value: object) -> Node:
        self._checked(name, node_name, name.rpartition(".")[2])
        rest = {"port": DEFAULT_PORT, **self._table(name, value)}
        found = {}
        for key, check in NODE_CHECKS.items():
            if key not in rest:
                raise self._error(f"{name}.{key}", "must be given")
            found[key] = self._checked(f"{name}.{key}", check, rest.pop(key))
        self._refuse({f"{name}.{key}": value for key, value in rest.items()})
        return Node(**found)

    def _refuse(self, unknown: Mapping[str, Any]) -> None:
        for name in unknown:
            raise self._error(name, "no such key")

    def _check_runtime_dir(self, path: Path) -> None:
        length = len(os.fsencode(path))
        if length > LONGEST_RUNTIME_DIR:
            reason = f"must have at most {LONGEST_RUNTIME_DIR} bytes for the sockets in it, has {length}: {path}"
            raise self._error("runtime_dir", reason)
        if path.parent == self._host.temp_dir and os.path.lexists(path):
            check_private_directory(path)

    def _checked(self, name: str, check: Check, value: object) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise self._error(name, str(error)) from error

    def _error(self, name: str, reason: str) -> ConfigError:
        return ConfigError(f"{self._label}: {name}: {reason}")


def _find_file(path: Path | None, host: Host) -> Path | None:
    if path is None and host.environ.get("MTUNNEL_CONFIG"):
        path = Path(host.environ["MTUNNEL_CONFIG"])
    if path is not None:
        return path.absolute()
    file = default_file(host)
    return file if file.exists() else None


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from error


def _below(values: Mapping[str, Any], table: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{table}.")}


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
        endpoint(item)
    return tuple(value)


def arguments(value: object) -> tuple[str, ...]:
    """Returns: an argument vector; a single string is a program without arguments."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError("must be a program, or a list of a program and its first arguments")
    return tuple(items)


def fingerprint(value: object) -> str:
    """Returns: 32 hex pairs with colons, upper case."""
    return str(matching(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}", "a SHA-256 fingerprint, AA:BB:…")(value)).upper()


TABLES = ("tls", "commands", "forward", "limits")
node_name = matching(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", "a host name without dots")
endpoint = matching(
    r"(?!ssl:|tls:)[a-z0-9]+:[\x21-\x7e]+", 'a server endpoint without TLS of its own, e.g. "tcp6:8016"'
)
NODE_CHECKS: Mapping[str, Check] = {
    "host": matching(r"[0-9A-Za-z_.:-]{1,253}", "a host name or an address"),
    "port": whole(1, 65535),
    "fingerprint": fingerprint,
}


def _own_pvesm(values: Mapping[str, Any], _host: Host) -> tuple[str, ...]:
    if values["profile"] == "proxmox":
        return ("pvesm",)
    return (sys.executable, "-P", "-m", "mtunnel_tx.pvesm")


def _tls_file(suffix: str) -> Default:
    def default(values: Mapping[str, Any], _host: Host) -> Path:
        if values["profile"] == "standalone":
            return Path(values["state_dir"] / "tls" / ("certificate.pem" if suffix == "pem" else "key.pem"))
        folder = values["pve_dir"] / "nodes" / values["node"]
        own = all((folder / f"pveproxy-ssl.{ending}").exists() for ending in ("pem", "key"))
        return Path(folder / f"{'pveproxy' if own else 'pve'}-ssl.{suffix}")

    return default


def _limit(name: str, check: Check, reason: str) -> Key:
    value = next(field.default for field in fields(Limits) if field.name == name)
    return Key(name=f"limits.{name}", check=check, default=lambda *_: value, shown=str(value), reason=reason)


def _key(name: str, check: Check, default: Default, shown: str, reason: str) -> Key:
    return Key(name=name, check=check, default=default, shown=shown, reason=reason)


_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

KEYS: tuple[Key, ...] = (
    _key(
        "profile",
        one_of(*PROFILES),
        lambda *_: "standalone",
        "standalone",
        "`standalone`: everything below our own state directory; `proxmox`: the files and programs of a Proxmox node",
    ),
    _key(
        "node",
        node_name,
        lambda _, host: node_name(host.node),
        "the short host name",
        "our name in URLs, task ids and below `pve_dir/nodes`",
    ),
    _key(
        "listen",
        endpoints,
        lambda *_: (f"tcp6:{DEFAULT_PORT}",),
        f'["tcp6:{DEFAULT_PORT}"]',
        "Twisted endpoint strings; `tcp6` takes IPv4 as well; TLS is always on",
    ),
    _key(
        "workers",
        whole(0, 256),
        lambda *_: 0,
        "0",
        "processes that do TLS and carry the streams; 0: the daemon does it in its own threads",
    ),
    _key(
        "user",
        matching(r"[a-z_][a-z0-9_-]{0,31}", "a user name"),
        lambda *_: "mtunnel",
        "mtunnel",
        "whom the workers run as when root starts the daemon",
    ),
    _key(
        "state_dir",
        absolute_path,
        lambda _, host: host.directory("/var/lib/mtunnel", "XDG_STATE_HOME", ".local/state"),
        "/var/lib/mtunnel; not root: $XDG_STATE_HOME/mtunnel",
        "journals, task logs, certificate; in `standalone` also `pve_dir`",
    ),
    _key(
        "runtime_dir",
        absolute_path,
        lambda _, host: host.runtime_dir(),
        "/run/mtunnel; not root: $XDG_RUNTIME_DIR/mtunnel, without it a private directory below the temporary one",
        f"sockets; at most {LONGEST_RUNTIME_DIR} bytes long, as a UNIX socket's path ends at {LONGEST_SOCKET_PATH}",
    ),
    _key(
        "pve_dir",
        absolute_path,
        lambda v, _: Path("/etc/pve") if v["profile"] == "proxmox" else v["state_dir"] / "pve",
        "STATE_DIR/pve; proxmox: /etc/pve",
        "guest configs, users, tokens, storages, in Proxmox's own formats",
    ),
    _key(
        "lock_dir",
        absolute_path,
        lambda v, _: Path("/var/lock/qemu-server") if v["profile"] == "proxmox" else v["runtime_dir"] / "lock",
        "RUNTIME_DIR/lock; proxmox: /var/lock/qemu-server",
        "the locks of guest configs, shared with every other program that changes them",
    ),
    _key(
        "tls.certificate",
        absolute_path,
        _tls_file("pem"),
        "STATE_DIR/tls/certificate.pem; proxmox: PVE_DIR/nodes/NODE/pveproxy-ssl.pem where it exists, else pve-ssl.pem",
        "PEM, the chain included; its fingerprint goes into the endpoint string",
    ),
    _key(
        "tls.key",
        absolute_path,
        _tls_file("key"),
        "STATE_DIR/tls/key.pem; proxmox: the .key beside the certificate",
        "PEM, without a pass phrase",
    ),
    _key(
        "commands.pvesm",
        arguments,
        _own_pvesm,
        "our own mtunnel-pvesm; proxmox: pvesm",
        "the storage program, with its first arguments if it is a list",
    ),
    _key(
        "commands.qm",
        arguments,
        lambda *_: ("qm",),
        "qm",
        "starts virtual machines in the `proxmox` profile; unused in `standalone`",
    ),
    _key(
        "forward.api",
        matching(r"https://[^\s/?#@]+", "https://HOST:PORT"),
        lambda *_: None,
        "none",
        "where every request goes that is not for us, e.g. Proxmox's own https://127.0.0.1:8006",
    ),
    _limit("body_bytes", whole(_KIB, 64 * _MIB), "a request body beyond it is answered 413"),
    _limit("header_bytes", whole(_KIB, _MIB), "all header lines of one request"),
    _limit(
        "request_s", number(0.1, 3600), "a request must have come as a whole, and every TLS handshake be done, by then"
    ),
    _limit("connections", whole(1, 65535), "open connections in all; keep below the process's limit of open files"),
    _limit(
        "connections_unauthenticated_per_address",
        whole(1, 65535),
        "connections of one address that have not shown a valid token; a real source opens a few at a time",
    ),
    _limit("tunnels", whole(1, 4096), "live tunnels in all"),
    _limit("tunnels_per_token", whole(1, 4096), "live tunnels of one token"),
    _limit(
        "streams_per_tunnel", whole(1, 1024), "websockets of one tunnel; a source needs one for each disk, and two more"
    ),
    _limit("line_bytes", whole(_KIB, 64 * _MIB), "one command line; a guest config with its firewall rules has to fit"),
    _limit("queued_lines", whole(1, 65535), "command lines that wait for their turn before the peer is paused"),
    _limit("queued_bytes", whole(_KIB, _GIB), "the same in bytes"),
    _limit(
        "frame_bytes", whole(128 * _KIB, _GIB), "declared length of a websocket frame; Proxmox sends at most 131072"
    ),
    _limit("child_output_bytes", whole(4 * _KIB, _GIB), "unread output kept of one child program"),
    _limit("stall_s", number(0.1, 86400), "bytes wait and the other side took none for so long: the stream is dead"),
    _limit("half_close_s", number(0.1, 86400), "how long one direction may outlive the other"),
    _limit("connect_s", number(0.1, 86400), "a tunnel whose command connection has not come by then is over"),
)


def manual_table() -> str:
    """Returns: KEYS as the Markdown table of docs/operations.md."""
    rows = [f"| `{key.name}` | {key.shown} | {key.reason} |" for key in KEYS]
    return "\n".join(["| key | default | what it is for |", "|---|---|---|", *rows])
