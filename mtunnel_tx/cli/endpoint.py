"""`mtunnel endpoint`: the one string that a source needs to reach this host."""

from __future__ import annotations

import argparse
import socket
from dataclasses import asdict
from typing import Any

from mtunnel_tx.backends.access import token_file
from mtunnel_tx.backends.files import read_text, refusal
from mtunnel_tx.cli.answers import read_port
from mtunnel_tx.cli.output import add_json, answer
from mtunnel_tx.config import ConfigError, Settings
from mtunnel_tx.config.listening import read_listener
from mtunnel_tx.errors import NotFound
from mtunnel_tx.pve.maps import Endpoint, format_endpoint
from mtunnel_tx.pve.tokens import parse_token_config
from mtunnel_tx.tls.certificate import fingerprint

_DESCRIPTION = """\
Print the target endpoint for `qm remote-migrate` and `mtunnel migrate`, ready to be pasted. The token's secret is in
it: keep it out of logs and histories."""


def configure(subparsers: Any) -> None:
    """Add `endpoint` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "endpoint", help="print what a source needs to reach this host", description=_DESCRIPTION
    )
    parser.add_argument("--host", help="name or address under which the source sees this host (default: our own name)")
    parser.add_argument("--port", type=read_port, help="port (default: the first one in `listen`)")
    parser.add_argument("--token", metavar="USER@REALM!TOKENID", help="default: the only one there is")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the endpoint. Returns: the exit code."""
    endpoint = make_endpoint(settings, args.token, args.host, args.port)
    text = format_endpoint(endpoint)
    answer(args, {"endpoint": text, **asdict(endpoint)}, text)
    return 0


def make_endpoint(settings: Settings, token: str | None, host: str | None, port: int | None = None) -> Endpoint:
    """What a source needs. Args: None: the only token, our own name, the first port in `listen`. Raises: NotFound."""
    name, secret = _find_token(settings, token)
    return Endpoint(
        apitoken=f"PVEAPIToken={name}={secret}",
        host=host or socket.getfqdn(),
        port=port or listening_port(settings),
        fingerprint=own_fingerprint(settings),
    )


def _find_token(settings: Settings, wanted: str | None) -> tuple[str, str]:
    file = token_file(settings.pve_dir)
    try:
        secrets = parse_token_config(read_text(file) or "")
    except OSError as error:
        raise refusal(error) from error
    names = [wanted] if wanted else sorted(secrets)
    if not names:
        raise NotFound("there is no token yet: see 'mtunnel token add --help'")
    if len(names) > 1:
        raise NotFound(f"there are several tokens: choose one with --token: {', '.join(names)}")
    if names[0] not in secrets:
        raise NotFound(f"token '{names[0]}' does not exist in {file}")
    return names[0], secrets[names[0]]


def listening_port(settings: Settings) -> int:
    """Returns: the port of the first TCP endpoint in `listen`. Raises: NotFound: it does not stand there."""
    ports = [port for port in (read_listener(text).port for text in settings.listen) if port is not None]
    if not ports:
        raise NotFound("'listen' does not tell the port: name it with --port")
    if ports[0] == 0:
        raise NotFound("the daemon chooses its port when it starts: name it with --port")
    return ports[0]


def own_fingerprint(settings: Settings) -> str:
    """Returns: the SHA-256 of the daemon's certificate. Raises: BackendFailed, ConfigError."""
    file = settings.tls.certificate
    try:
        return fingerprint(file.read_bytes())
    except OSError as error:
        raise refusal(error) from error
    except ValueError as error:
        raise ConfigError(f"{file}: is no certificate in PEM: {error}") from error
