"""Every key of `mtunnel.toml`: name, check, default, reason. The manual's table is printed from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mtunnel_tx.config.checks import (
    Check,
    absolute_path,
    api_url,
    arguments,
    endpoints,
    fingerprint,
    host_name,
    matching,
    node_name,
    number,
    one_of,
    port,
    web_urls,
    whole,
)
from mtunnel_tx.config.host import Host, is_there
from mtunnel_tx.config.settings import (
    DEFAULT_PORT,
    LONGEST_RUNTIME_DIR,
    LONGEST_SOCKET_PATH,
    PROFILES,
    REACHES,
    Limits,
    Notify,
    Page,
)

Default = Callable[[Mapping[str, Any], Host], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the file.

    Args: name: dotted. check: returns the value to use, or raises ValueError(reason). default: computed from the
    values above it in KEYS. shown: the default as the manual prints it. reason: what it is good for. example: a value
    for the example file, where the default is none that a person would write.
    """

    name: str
    check: Check
    default: Default
    shown: str
    reason: str
    example: str | int | None = None


def _own_pvesm(values: Mapping[str, Any], _host: Host) -> tuple[str, ...]:
    if values["profile"] == "proxmox":
        return ("pvesm",)
    return (sys.executable, "-P", "-m", "mtunnel_tx.pvesm")


def tls_file(suffix: str) -> Callable[..., Path]:
    """Returns: the default of the certificate (`pem`) or the key (`key`), looked up whenever it is called."""

    def default(values: Mapping[str, Any], *_: object) -> Path:
        if values["profile"] == "standalone":
            return Path(values["state_dir"] / "tls" / ("certificate.pem" if suffix == "pem" else "key.pem"))
        folder = values["pve_dir"] / "nodes" / values["node"]
        own = all(is_there(folder / f"pveproxy-ssl.{ending}") for ending in ("pem", "key"))
        return Path(folder / f"{'pveproxy' if own else 'pve'}-ssl.{suffix}")

    return default


def _limit(name: str, check: Check, reason: str) -> Key:
    return _field("limits", Limits, name, check, reason)


def _page(name: str, check: Check, reason: str) -> Key:
    return _field("page", Page, name, check, reason)


def _field(table: str, kind: type[Limits | Notify | Page], name: str, check: Check, reason: str) -> Key:
    """A key whose default is that of the field."""
    value = next(field.default for field in fields(kind) if field.name == name)
    return Key(name=f"{table}.{name}", check=check, default=lambda *_: value, shown=str(value), reason=reason)


def _key(name: str, check: Check, default: Default, shown: str, reason: str, example: str | int | None = None) -> Key:
    return Key(name=name, check=check, default=default, shown=shown, reason=reason, example=example)


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
        "Twisted endpoint strings (`tcp:`, `tcp6:`, `unix:`, `systemd:`); `tcp6` takes IPv4 as well; TLS is always on",
    ),
    _key(
        "user",
        matching(r"[a-z_][a-z0-9_-]{0,31}", "a user name"),
        lambda *_: "mtunnel",
        "mtunnel",
        "whom the workers run as when root starts the daemon",
    ),
    _key(
        "workers",
        whole(0, 256),
        lambda values, host: int(host.can_run_as(values.get("user", ""))),
        "1; root without a `user` of that name: 0",
        "processes that do TLS and carry the streams; 0: the daemon does it in its own threads, and moves end with it",
        1,
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
        "machine_dir",
        absolute_path,
        lambda v, _: Path("/run/qemu-server") if v["profile"] == "proxmox" else v["runtime_dir"],
        "RUNTIME_DIR; proxmox: /run/qemu-server",
        "the virtual machines' own sockets and pid files; as short as `runtime_dir`",
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
        tls_file("pem"),
        "STATE_DIR/tls/certificate.pem; proxmox: PVE_DIR/nodes/NODE/pveproxy-ssl.pem where it exists, else pve-ssl.pem",
        "PEM, the chain included; its fingerprint goes into the endpoint string",
    ),
    _key(
        "tls.key",
        absolute_path,
        tls_file("key"),
        "STATE_DIR/tls/key.pem; proxmox: the .key beside the certificate",
        "PEM, without a pass phrase",
    ),
    _key(
        "commands.pvesm",
        arguments,
        _own_pvesm,
        "our own mtunnel-pvesm; proxmox: pvesm",
        "the storage program, with its first arguments if it is a list",
        "mtunnel-pvesm",
    ),
    _key(
        "commands.qm",
        arguments,
        lambda *_: ("qm",),
        "qm",
        "starts virtual machines in the `proxmox` profile, with its first arguments if it is a list",
    ),
    _key(
        "forward.api",
        api_url,
        lambda *_: None,
        "none",
        "where every request goes that is not for us, e.g. Proxmox's own https://127.0.0.1:8006",
        "https://127.0.0.1:8006",
    ),
    _key(
        "forward.fingerprint",
        fingerprint,
        lambda *_: None,
        "that of `tls.certificate`",
        "the SHA-256 of the certificate at `forward.api`; on a Proxmox node both serve the same one",
        ":".join(["AA"] * 32),
    ),
    _page(
        "reach",
        one_of(*REACHES),
        "who gets the status page, `https://HOST:PORT/mtunnel/`: clients on this host (`loopback`), all, or nobody",
    ),
    _page("session_s", number(60, 604800), "a log-in to the page is over by then"),
    _page(
        "sessions",
        whole(1, 1024),
        "log-ins to the page at a time, a quarter of them of one token; the oldest ends",
    ),
    _page("streams", whole(1, 1024), "pages that are kept up to date at a time; others show how things were"),
    _page("slow_s", number(1, 3600), "a page that has taken nothing for so long is dropped"),
    _key(
        "notify.command",
        arguments,
        lambda *_: (),
        "none",
        "a program that is run for each move that is over, with the notice as JSON on its standard input",
        "/usr/local/bin/tell-me",
    ),
    _key(
        "notify.urls",
        web_urls,
        lambda *_: (),
        "none",
        "webhooks, `https://…` or `http://…`, to which each notice is sent by POST, as JSON; again where that fails",
        "https://example.org/hook",
    ),
    _field(
        "notify", Notify, "parked_s", number(1, 86400), "after this time without a connection a flow is worth a notice"
    ),
    _field(
        "notify",
        Notify,
        "end_s",
        number(0, 3600),
        "so long `mtunnel migrate` waits at its end for those that are not told yet; the daemon waits 5 s at most",
    ),
    _limit("body_bytes", whole(_KIB, 64 * _MIB), "a request body beyond it is answered 413"),
    _limit("header_bytes", whole(_KIB, _MIB), "all header lines of one request"),
    _limit("request_s", number(0.1, 3600), "a request must have come as a whole by then, counted from its first byte"),
    _limit("handshake_s", number(0.1, 3600), "a TLS handshake that is not done by then is over"),
    _limit(
        "connections",
        whole(1, 65535),
        "open connections in all; the daemon does not start where they need more open files than it may have",
    ),
    _limit(
        "connections_unauthenticated_per_address",
        whole(1, 65535),
        "connections of one address that have not shown a valid token; a real source opens a few at a time",
    ),
    _limit(
        "connections_per_token",
        whole(1, 65535),
        "connections of one token that are no streams of tunnels; for another one the longest idle one ends",
    ),
    _limit("tunnels", whole(1, 4096), "live tunnels in all"),
    _limit("tunnels_per_token", whole(1, 4096), "live tunnels of one token"),
    _limit(
        "streams_per_tunnel", whole(1, 1024), "websockets of one tunnel; a source needs one for each disk, and two more"
    ),
    _limit(
        "children",
        whole(1, 4096),
        "child programs that work for requests (digests, the room of storages) at a time; other requests wait",
    ),
    _limit("children_per_token", whole(1, 4096), "the same for one token"),
    _limit("children_per_tunnel", whole(1, 4096), "the same for one tunnel: its digests"),
    _limit("line_bytes", whole(_KIB, 64 * _MIB), "one command line; a guest config with its firewall rules has to fit"),
    _limit(
        "config_bytes", whole(_KIB, 64 * _MIB), "a guest config, and its firewall rules; Proxmox keeps no longer file"
    ),
    _limit("queued_lines", whole(1, 65535), "command lines that wait for their turn before the peer is paused"),
    _limit("queued_bytes", whole(_KIB, _GIB), "the same in bytes"),
    _limit(
        "frame_bytes", whole(128 * _KIB, _GIB), "declared length of a websocket frame; Proxmox sends at most 131072"
    ),
    _limit("child_output_bytes", whole(4 * _KIB, _GIB), "unread output kept of one child program"),
    _limit("stall_s", number(0.1, 86400), "bytes wait and the other side took none for so long: the stream is dead"),
    _limit(
        "dead_peer_s",
        number(2, 86400),
        "bytes are on their way and the peer acknowledged nothing for so long: it is gone; keepalives come every 30 s",
    ),
    _limit(
        "ping_s",
        number(1, 3600),
        "a websocket to which nothing was sent for so long gets a ping: proxies end silent connections (nginx: 60 s)",
    ),
    _limit("half_close_s", number(0.1, 86400), "how long one direction may outlive the other"),
    _limit(
        "park_s",
        number(1, 86400),
        "how long a flow of our own source waits for another connection when its one is lost; then it is over",
    ),
    _limit(
        "window_bytes",
        whole(_MIB, 256 * _MIB),
        "what such a flow keeps of the bytes that its peer has not acknowledged; 1 Gbit/s over 200 ms needs 29 MiB",
    ),
    _limit(
        "parked_bytes",
        whole(_MIB, 64 * _GIB),
        "the same of all flows together that have no connection; beyond it the largest one is over",
    ),
    _limit(
        "windows_bytes",
        whole(2 * _MIB, 1024 * _GIB),
        "the windows of all flows together, half of it for one token; beyond it a flow ends with its connection",
    ),
    _limit(
        "restart_s",
        number(0, 3600),
        "with `workers`: how long moves that come wait for the next daemon when this one ends; 0: they end with it",
    ),
    _limit("connect_s", number(0.1, 86400), "a tunnel whose command connection has not come by then is over"),
    _limit(
        "unlocked_s",
        number(1, 604800),
        "how long a tunnel may live on after `unlock`; a source may compare checksums of its disks by then",
    ),
    _limit("history_rows", whole(1, 10_000_000), "moves that `mtunnel history` remembers; the oldest go first"),
    _limit("history_days", number(0.1, 36500), "how long it remembers them"),
)


NODE_CHECKS: Mapping[str, Check] = {"host": host_name, "port": port, "fingerprint": fingerprint}
