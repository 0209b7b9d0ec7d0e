"""`mtunnel init`: everything that has to be there before the daemon starts. What is there already stays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from mtunnel_tx.backends.access import changed_access, user_file
from mtunnel_tx.backends.files import create_file, make_folder, refusal
from mtunnel_tx.cli.answers import (
    NOBODY,
    InitAnswers,
    ask,
    can_ask,
    contradictions,
    place_beside,
    read_folder,
    read_node,
    read_port,
    read_storage,
    read_token,
)
from mtunnel_tx.cli.endpoint import make_endpoint
from mtunnel_tx.cli.loudness import is_quiet
from mtunnel_tx.cli.output import add_json, answer
from mtunnel_tx.cli.token import add_token
from mtunnel_tx.config import (
    ConfigError,
    Settings,
    default_file,
    is_there,
    load_settings,
    make_private_directory,
    this_host,
)
from mtunnel_tx.config.manual import example_file
from mtunnel_tx.pve.maps import format_endpoint
from mtunnel_tx.pve.users import Token
from mtunnel_tx.tls.certificate import make_certificate

_DESCRIPTION = """\
Make the directories (mode 0700), a certificate with its key, a first storage, the users' file and a commented
configuration file, each only where there is none. At a terminal it asks for what no option says; elsewhere, and with
--yes, the defaults hold. State is beside a configuration that --config names. With a token, the last line is what a
source needs. In the `proxmox` profile nothing below pve_dir is touched."""

SERVICE = "mtunnel.service"
UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
BOOTED = Path("/run/systemd/system")
"""It is there where systemd runs."""

STORAGES = """\
dir: {name}
\tpath {path}
\tcontent images,iso
"""


@dataclass(frozen=True, slots=True)
class InitPlace:
    """Where the configuration is, or is to be."""

    file: Path
    environ: Mapping[str, str]


def configure(subparsers: Any) -> None:
    """Add `init` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "init", help="make directories, certificate, storage and a first configuration", description=_DESCRIPTION
    )
    parser.add_argument("--node", type=read_node, metavar="NAME", help="this host's name (default: its short one)")
    parser.add_argument("--port", type=read_port, metavar="N", help="where sources connect (default: 8016)")
    parser.add_argument("--state-dir", type=read_folder, metavar="DIR", help="for everything that must not get lost")
    parser.add_argument("--storage", type=read_storage, metavar="[NAME=]DIR", help="the first storage")
    parser.add_argument("--token", type=read_token, metavar="USER@REALM!TOKENID", help="make a token that may send VMs")
    parser.add_argument("--host", metavar="HOST", help="name or address by which a source reaches this host")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_json(parser)
    parser.set_defaults(run=run, load=find_place)


def find_place(path: Path | None, environ: Mapping[str, str]) -> InitPlace:
    """The configuration file that is meant: --config, $MTUNNEL_CONFIG, the default one."""
    file = path or Path(environ.get("MTUNNEL_CONFIG") or default_file(this_host(environ)))
    return InitPlace(file.absolute(), environ)


def run(args: argparse.Namespace, place: InitPlace) -> int:
    """Make what is missing and say so. Returns: the exit code."""
    answers = InitAnswers(
        node=args.node,
        port=args.port,
        state_dir=args.state_dir,
        storage=args.storage,
        token=args.token,
        host=args.host,
    )
    out = sys.stderr if args.json else None
    asks = not (args.yes or args.json or is_quiet(args)) and can_ask()
    settings, answers = configured(place, answers, asks=asks, say=partial(_say_made, args, out=out))
    for path in prepare(settings, answers.storage):
        _say_made(args, path, out)
    endpoint = None if answers.token in (None, NOBODY) else _endpoint(settings, str(answers.token), answers.host)
    ready = (f"state: {settings.state_dir}", f"ready: {how_to_start(place)}")
    places = {"state_dir": str(settings.state_dir), "config": str(settings.file), "endpoint": endpoint}
    answer(args, places, *(() if is_quiet(args) else ready), *([endpoint] if endpoint else []))
    return 0


def _say_made(args: argparse.Namespace, path: Path, out: TextIO | None) -> None:
    if not is_quiet(args):
        print(f"made {path}", file=out)


def how_to_start(place: InitPlace, folders: Iterable[Path] = UNIT_FOLDERS, booted: Path = BOOTED) -> str:
    """The command that starts the daemon with this configuration: a service of this host, if it is the default one."""
    usual = place.file == default_file(this_host(place.environ))
    if usual and booted.is_dir() and any((folder / SERVICE).exists() for folder in folders):
        return f"systemctl enable --now {SERVICE}"
    return f"mtunnel-twistd -n mtunnel --config {place.file}"


def configured(
    place: InitPlace, answers: InitAnswers, *, asks: bool, say: Callable[[Path], object] = lambda _: None
) -> tuple[Settings, InitAnswers]:
    """Write the configuration where there is none, then read it. Raises: ConfigError: it says otherwise already."""
    host = this_host(place.environ)
    if is_there(place.file):
        settings = load_settings(place.file, place.environ)
        for key, value in contradictions(answers, settings).items():
            raise ConfigError(f"{place.file}: {key}: is {value} already; change it there")
        return settings, answers
    placed = place_beside(place.file, host, answers)
    if asks:
        default = placed.state_dir or host.directory("/var/lib/mtunnel", "XDG_STATE_HOME", ".local/state")
        answers = ask(replace(answers, runtime_dir=placed.runtime_dir), host, default)
        placed = place_beside(place.file, host, answers)
    for made in _make_file(place.file, example_file(placed.settings()), 0o644):
        say(made)
    return load_settings(place.file, place.environ), placed


def prepare(settings: Settings, storage: tuple[str, Path] | None = None) -> Iterator[Path]:
    """Make what is missing but the configuration file.

    Yields: each path that was made. Raises: ConfigError, BackendFailed.
    """
    yield from _make_directories(settings)
    if settings.profile == "standalone":
        yield from _make_storage(settings, *(storage or ("local", settings.state_dir / "storage")))
        yield from _make_users(settings)
        yield from _make_certificate(settings)


def _make_directories(settings: Settings) -> Iterator[Path]:
    folders = [settings.state_dir, settings.runtime_dir]
    if settings.profile == "standalone":
        node = settings.pve_dir / "nodes" / settings.node
        folders += [settings.pve_dir, settings.pve_dir / "priv", settings.pve_dir / "firewall", node / "qemu-server"]
        folders += [settings.lock_dir]
    for folder in folders:
        if make_private_directory(folder):
            yield folder


def _make_storage(settings: Settings, name: str, folder: Path) -> Iterator[Path]:
    """The first storage, with its folder; where there is a storage.cfg, that counts."""
    file = settings.pve_dir / "storage.cfg"
    if is_there(file):
        return
    if not is_there(folder):
        make_private_directory(folder)
        yield folder
    yield from _make_file(file, STORAGES.format(name=name, path=folder), 0o640)


def _endpoint(settings: Settings, token: str, host: str | None) -> str:
    """What a source needs; the token is made where there is none."""
    if settings.profile == "proxmox":
        raise ConfigError("users belong to Proxmox here: see 'mtunnel token add'")
    with changed_access(settings.pve_dir) as access:
        if access.users.find_token(token) is None:
            add_token(
                access, token, Token(privsep=False, comment="made by mtunnel init"), role="Administrator", path="/"
            )
    return format_endpoint(make_endpoint(settings, token, host))


def _make_users(settings: Settings) -> Iterator[Path]:
    file = user_file(settings.pve_dir)
    if not is_there(file):
        with changed_access(settings.pve_dir):
            pass
        yield file


def _make_certificate(settings: Settings) -> Iterator[Path]:
    certificate, key = settings.tls.certificate, settings.tls.key
    if is_there(certificate) and is_there(key):
        return
    if is_there(certificate) or is_there(key):
        there, missing = (certificate, key) if is_there(certificate) else (key, certificate)
        raise ConfigError(f"{there} is there, but {missing} is not: add it, or remove both")
    make_private_directory(certificate.parent)
    make_private_directory(key.parent)
    pair = make_certificate(settings.node)
    # The key comes first: a certificate without one is never left behind.
    yield from _make_file(key, pair.key.decode(), 0o600)
    yield from _make_file(certificate, pair.certificate.decode(), 0o644)


def _make_file(path: Path, text: str, mode: int) -> Iterator[Path]:
    if is_there(path):
        return
    try:
        make_folder(path.parent)
        create_file(path, text, mode)
    except OSError as error:
        raise refusal(error) from error
    yield path
