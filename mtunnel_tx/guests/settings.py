"""The keys of a VM's config: set, removed, kept for the next start where the VM runs now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.errors import BadRequest, NotFound, TunnelError, WrongState
from mtunnel_tx.guests.blueprint import checked
from mtunnel_tx.guests.changing import settle_earlier
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.volumes import is_own, keep_unused
from mtunnel_tx.pve.drive import DRIVE_KEYS, Drive, format_drive, parse_drive
from mtunnel_tx.pve.guestconf import PENDING, GuestConfig, GuestSection
from mtunnel_tx.pve.guestrules import check_consistency, iter_volumes

INTERNAL = frozenset(
    {"lock", "parent", "digest", "snapstate", "snaptime", "vmstate", "runningmachine", "runningcpu", "meta", "moved"}
)
"""Keys that say what was done to a VM; nobody sets them by hand."""
_AT_ONCE = frozenset(
    {
        "name",
        "description",
        "onboot",
        "startup",
        "tags",
        "protection",
        "hookscript",
        "migrate_speed",
        "migrate_downtime",
    }
)
"""Keys that no QEMU knows: they count at once, also where the VM runs."""
_DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChange:
    """What came of it: keys that count now, and keys that wait for the next start."""

    vmid: int
    now: tuple[str, ...]
    pending: tuple[str, ...]


def read_assignments(texts: Sequence[str], *, drives: bool = False) -> dict[str, str]:
    """`KEY=VALUE` words, checked. Args: drives: whether a drive may be among them. Raises: BadRequest."""
    assigned = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise BadRequest(f"'{clean(text)}' is not KEY=VALUE")
        if key in INTERNAL or (key in DRIVE_KEYS and not drives):
            raise BadRequest(f"{clean(key)}: cannot be set here")
        assigned[key] = checked(key, value)
    return assigned


async def set_options(
    host: PlainHost, vmid: int, assigned: Mapping[str, str], deleted: Sequence[str]
) -> SettingsChange:
    """Set and remove keys. Raises: BadRequest: the config would not be one that this host can run."""
    await settle_earlier(host, vmid)
    async with host.guests.locked(vmid, LOCK_S):
        conf = host.unlocked(vmid)
        _check_deletable(conf, deleted)
        runs = host.machines.running(vmid)
        now = [key for key in (*assigned, *deleted) if not runs or key in _AT_ONCE]
        later = [key for key in (*assigned, *deleted) if key not in now]
        changed = conf.copy()
        for key in now:
            await _change(host, vmid, changed, key, assigned.get(key))
        pending = _pending_of(changed)
        for key in later:
            await _postpone(host, vmid, changed, pending, key, assigned.get(key))
        _keep_pending(changed, pending)
        _check_runnable(host, conf, with_pending(changed))
        await host.guests.write(vmid, changed)
    return SettingsChange(vmid=vmid, now=tuple(now), pending=tuple(later))


def _check_deletable(conf: GuestConfig, deleted: Sequence[str]) -> None:
    for key in deleted:
        if key in INTERNAL:
            raise BadRequest(f"{clean(key)}: cannot be removed here")
        if key in DRIVE_KEYS and not _is_empty_drive(conf, key):
            raise BadRequest(f"{key}: disks are removed by 'mtunnel vm disk remove'")
        if key not in conf.options and not (key == "description" and conf.description) and key not in _waiting(conf):
            raise NotFound(f"{clean(key)}: is not set")


def _is_empty_drive(conf: GuestConfig, key: str) -> bool:
    try:
        drive = parse_drive(key, conf.options.get(key, "none,media=cdrom"))
    except FormatError:
        return False
    return drive.is_cdrom and not drive.is_cloudinit


def _waiting(conf: GuestConfig) -> Mapping[str, str]:
    return conf.pending.options if conf.pending else {}


async def _change(host: PlainHost, vmid: int, conf: GuestConfig, key: str, value: str | None) -> None:
    """Set a key, or remove it (None)."""
    pending = _pending_of(conf)
    pending.options.pop(key, None)
    _keep_pending(conf, pending)
    if key == "description":
        conf.description = "".join(f"{line}\n" for line in (value or "").splitlines())
    elif value is None:
        conf.options.pop(key, None)
    elif key in DRIVE_KEYS:
        await _change_drive(host, vmid, conf, key, value)
    else:
        conf.options[key] = value


async def _postpone(
    host: PlainHost, vmid: int, conf: GuestConfig, pending: GuestSection, key: str, value: str | None
) -> None:
    """Note a change for the next start."""
    pending.options.pop(key, None)
    gone = [name for name in _deleted(pending) if name != key]
    if value is None and key in conf.options:
        gone.append(key)
    elif value is not None and conf.options.get(key) != value:
        if key in DRIVE_KEYS and not parse_drive(key, value).is_cdrom:
            raise WrongState(f"{key}: VM {vmid} runs; shut it down first")
        pending.options[key] = await _placed(host, vmid, key, value) if key in DRIVE_KEYS else value
    pending.options.pop(_DELETE, None)
    if gone:
        pending.options[_DELETE] = ",".join(sorted(gone))


def _pending_of(conf: GuestConfig) -> GuestSection:
    return conf.pending or GuestSection()


def _keep_pending(conf: GuestConfig, pending: GuestSection) -> None:
    if pending.options:
        conf.sections[PENDING] = pending
    else:
        conf.sections.pop(PENDING, None)


def _deleted(pending: GuestSection) -> list[str]:
    return [key.lstrip("!") for key in pending.options.get(_DELETE, "").split(",") if key]


def with_pending(conf: GuestConfig) -> GuestConfig:
    """The config as it is after the next start."""
    applied = conf.copy()
    pending = applied.sections.pop(PENDING, None)
    if pending is not None:
        for key in _deleted(pending):
            applied.options.pop(key, None)
        applied.options |= {key: value for key, value in pending.options.items() if key != _DELETE}
    return applied


def _check_runnable(host: PlainHost, before: GuestConfig, after: GuestConfig) -> None:
    """What was wrong before need not be right now. Raises: TunnelError."""
    check_consistency(after)
    try:
        host.machines.check(after)
    except TunnelError:
        try:
            host.machines.check(before)
        except TunnelError:
            return
        raise


async def _change_drive(host: PlainHost, vmid: int, conf: GuestConfig, key: str, value: str) -> None:
    """Fill a drive with another volume; the one that was in it, if it is the VM's own, stays as `unusedN`."""
    placed = await _placed(host, vmid, key, value)
    volume = parse_drive(key, placed).volume
    named = {other: volid for other, volid in iter_volumes(conf) if volid == volume and other != key}
    if any(not other.startswith("unused") for other in named):
        raise BadRequest(f"{key}: {', '.join(named)} has volume '{clean(volume)}' already")
    for other in named:
        del conf.options[other]
    old = parse_drive(key, conf.options[key]).volume if key in conf.options else ""
    conf.options[key] = placed
    if old != volume and is_own(host, old, vmid):
        keep_unused(conf, old)


async def _placed(host: PlainHost, vmid: int, key: str, value: str) -> str:
    """The drive with its volume's size.

    Raises: NotFound: there is no such volume; BadRequest: it is not for this VM.
    """
    drive = parse_drive(key, value)
    if drive.is_cdrom and not drive.has_volume:
        return format_drive(Drive("none", {**drive.options}))
    if drive.allocates:
        raise BadRequest(f"{key}: new disks are made by 'mtunnel vm disk add'")
    size_bytes = await host.storage.size_bytes(drive.volume)
    if size_bytes is None:
        raise NotFound(f"{key}: there is no volume '{clean(drive.volume)}'")
    if not drive.is_cdrom and not is_own(host, drive.volume, vmid):
        raise BadRequest(f"{key}: volume '{clean(drive.volume)}' does not belong to VM {vmid}")
    return format_drive(drive.with_size(None if drive.is_cdrom else size_bytes))
