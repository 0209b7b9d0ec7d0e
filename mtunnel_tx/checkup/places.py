"""Directories, storages and the certificate."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from mtunnel_tx.checkup.finding import Finding, fine, problem, warning
from mtunnel_tx.config import Settings, check_private_directory, find_tls, is_there
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.storagecfg import StorageEntry, parse_storage_config
from mtunnel_tx.pvesm.storages import make_driver
from mtunnel_tx.tls.context import TlsContext

_INIT = "mtunnel init"
_LITTLE_BYTES = 1 << 30
_SOON = datetime.timedelta(days=30)


def check_directories(settings: Settings) -> Iterator[Finding]:
    """State and sockets: there, and private."""
    for name in ("state_dir", "runtime_dir"):
        path: Path = getattr(settings, name)
        if not is_there(path):
            yield problem(name, f"{path} is not there", _INIT)
            continue
        try:
            check_private_directory(path)
        except TunnelError as error:
            yield problem(name, error.text, f"chmod 700 {path}; chown $(id -un) {path}")
        else:
            yield fine(name, str(path))


def check_storages(settings: Settings) -> Iterator[Finding]:
    """storage.cfg line by line, then each storage of this node."""
    file = settings.pve_dir / "storage.cfg"
    skipped: list[str] = []
    try:
        entries = parse_storage_config(file.read_text("utf-8", "replace"), skipped.append)
    except OSError as error:
        yield problem("storage.cfg", f"{file}: {error.strerror}", _INIT)
        return
    for reason in skipped:
        yield problem("storage.cfg", reason, f"edit {file}")
    here = [entry for entry in entries.values() if entry.on_node(settings.node) and entry.enabled]
    for entry in here:
        yield _storage(settings, entry)
    if not any("images" in entry.content for entry in here):
        yield problem("storage.cfg", "no storage of this node takes disks (content images)", f"edit {file}")


def _storage(settings: Settings, entry: StorageEntry) -> Finding:
    subject = f"storage {entry.id}"
    if settings.profile == "proxmox":
        return fine(subject, f"type {entry.type}")
    driver = make_driver(settings, entry)
    if driver is None:
        return problem(subject, f"type {entry.type} needs Proxmox's own pvesm", "use another type, or disable it")
    if reason := driver.find_problem():
        return problem(subject, reason, "mount it, or correct storage.cfg")
    if entry.path is None:
        return fine(subject, f"type {entry.type}")
    if not os.access(entry.path, os.W_OK):
        return problem(subject, f"{entry.path} cannot be written to", f"chown $(id -un) {entry.path}")
    space = os.statvfs(entry.path)
    free_bytes = space.f_bavail * space.f_frsize
    text = f"{entry.path}, {free_bytes / (1 << 30):.1f} GiB free"
    return warning(subject, text, "make room") if free_bytes < _LITTLE_BYTES else fine(subject, text)


def check_certificate(settings: Settings, now: datetime.datetime) -> Iterator[Finding]:
    """Certificate and key belong together, are private, and hold for a while."""
    tls = find_tls(settings)
    remedy = _INIT if settings.profile == "standalone" else "pvecm updatecerts"
    try:
        context = TlsContext(tls.certificate, tls.key, group_reads=settings.profile == "proxmox")
        certificate = x509.load_pem_x509_certificate(context.files.certificate)
    except (TunnelError, ValueError, OSError) as error:
        missing = not tls.certificate.exists() and not tls.key.exists()
        yield problem("certificate", str(error), remedy if missing else f"see {tls.certificate} and {tls.key}")
        return
    end = certificate.not_valid_after_utc
    renew = f"rm {tls.certificate} {tls.key}; {remedy}; then a new string for each source: mtunnel endpoint"
    if end <= now:
        yield problem("certificate", f"{tls.certificate} ended on {end:%Y-%m-%d}", renew)
    elif end - now < _SOON:
        yield warning("certificate", f"{tls.certificate} ends on {end:%Y-%m-%d}", renew)
    else:
        yield fine("certificate", f"{tls.certificate}, valid until {end:%Y-%m-%d}")
