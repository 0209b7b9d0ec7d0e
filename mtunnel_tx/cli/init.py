"""`mtunnel init`: everything that has to be there before the daemon starts. What is there already stays."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.access import changed_access, user_file
from mtunnel_tx.backends.files import create_file, make_folder, refusal
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
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT
from mtunnel_tx.tls.certificate import make_certificate

_DESCRIPTION = """\
Make the directories (mode 0700), a certificate with its key, a first storage, the users' file and a commented
configuration file, each only where there is none. In the `proxmox` profile nothing below pve_dir is touched."""

STORAGES = """\
dir: local
\tpath {path}
\tcontent images,iso
"""


def configure(subparsers: Any) -> None:
    """Add `init` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "init", help="make directories, certificate, storage and a first configuration", description=_DESCRIPTION
    )
    parser.set_defaults(run=run, load=load)


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Write the configuration file where there is none, then read it."""
    file = path or default_file(this_host(environ))
    if path is None and environ.get("MTUNNEL_CONFIG"):
        file = Path(environ["MTUNNEL_CONFIG"])
    for made in _make_file(file.absolute(), example_file(), 0o644):
        print(f"made {made}")
    return load_settings(file, environ)


def run(_args: argparse.Namespace, settings: Settings) -> int:
    """Make what is missing and say so. Returns: the exit code."""
    for path in prepare(settings):
        print(f"made {path}")
    print(f"ready: twistd -n mtunnel --config {settings.file}")
    return 0


def prepare(settings: Settings) -> Iterator[Path]:
    """Make what is missing but the configuration file.

    Yields: each path that was made. Raises: ConfigError, BackendFailed.
    """
    yield from _make_directories(settings)
    if settings.profile == "standalone":
        yield from _make_storage(settings)
        yield from _make_users(settings)
        yield from _make_certificate(settings)


def _make_directories(settings: Settings) -> Iterator[Path]:
    folders = [settings.state_dir, settings.runtime_dir]
    if settings.profile == "standalone":
        node = settings.pve_dir / "nodes" / settings.node
        folders += [
            settings.pve_dir,
            settings.pve_dir / "priv",
            settings.pve_dir / "firewall",
            node / QEMU_LAYOUT.config_folder,
        ]
        folders += [settings.lock_dir, settings.state_dir / "storage"]
    for folder in folders:
        if make_private_directory(folder):
            yield folder


def _make_storage(settings: Settings) -> Iterator[Path]:
    storage = settings.state_dir / "storage"
    yield from _make_file(settings.pve_dir / "storage.cfg", STORAGES.format(path=storage), 0o640)


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
