"""Machine types as Proxmox writes them: `pc`, `q35`, `pc-i440fx-9.2+pve1`, `pc-q35-8.1.pxe`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from mtunnel_tx.checks import FormatError, clean

_FORM = re.compile(
    r"(?:pc|(?P<old>pc-[0-9]{1,3}(?:\.[0-9]{1,3})+)|(?P<q35>q35)|pc-(?P<kind>i440fx|q35)-(?P<version>[0-9]{1,3}(?:\.[0-9]{1,3})+))"
    r"(?:\+pve(?P<pve>[0-9]{1,5}))?(?P<pxe>\.pxe)?",
    re.ASCII,
)
_CREATED = re.compile(r"(?:.*,)?creation-qemu=([0-9]{1,3})\.([0-9]{1,3})(?![0-9]).*")
Version = tuple[int, ...]
REVISIONS: dict[Version, int] = {(4, 1): 2, (9, 2): 1, (10, 0): 1}
"""The highest revision (`+pveN`) of each machine version that Proxmox has revised."""
_WINDOWS_VERSION = (5, 1)
_WINDOWS_KEEPS_CREATION = (9, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A PC: `kind` is `i440fx` or `q35`; `version` None is the newest that QEMU has.

    `pve` is Proxmox's own revision, which no QEMU but Proxmox's knows; devices depend on it. `pxe`: the network cards
    have the boot ROMs of old versions.
    """

    kind: str
    version: Version | None = None
    pve: int = 0
    pxe: bool = False

    @property
    def is_q35(self) -> bool:
        """Whether it has PCI Express."""
        return self.kind == "q35"

    @property
    def name(self) -> str:
        """The name that QEMU gives it, e.g. `pc-i440fx-7.2`."""
        assert self.version is not None, "an unversioned machine type has no name that stays"
        return f"pc-{self.kind}-{'.'.join(map(str, self.version))}"

    def at_least(self, major: int, minor: int, pve: int = 0) -> bool:
        """Whether its version, with Proxmox's revision, is that one or newer."""
        assert self.version is not None, "an unversioned machine type cannot be compared"
        return (*self.version[:2], self.pve) >= (major, minor, pve)

    def resolved(self, known: Collection[str], pinned: Version | None = None) -> MachineType:
        """The type with a version that this QEMU knows.

        Args: known: names of machine types. pinned: the version of an unversioned type, if QEMU knows it.
        Raises: FormatError: QEMU knows none.
        """
        if self.version is not None:
            if self.name not in known:
                raise FormatError(f"this host's QEMU does not know machine type '{self.name}'")
            return self
        if pinned is not None and replace(self, version=pinned).name in known:
            return replace(self, version=pinned, pve=0)
        versions = sorted(version for kind, version in map(_split_name, known) if kind == self.kind and version)
        if not versions:
            raise FormatError(f"this host's QEMU has no '{self.kind}' machine")
        return replace(self, version=versions[-1], pve=REVISIONS.get(versions[-1][:2], 0))


def parse_machine_type(text: str) -> MachineType:
    """Raises: FormatError: no PC, or a revision of Proxmox's that is not known here."""
    found = _FORM.fullmatch(text)
    if not found or found["old"]:
        raise FormatError(f"machine type '{clean(text)}' is not for this host")
    kind = found["kind"] or ("q35" if found["q35"] else "i440fx")
    version = tuple(map(int, found["version"].split("."))) if found["version"] else None
    pve = int(found["pve"] or 0)
    if version is not None and pve > REVISIONS.get(version[:2], 0):
        raise FormatError(f"revision +pve{pve} of machine version {found['version']} is not known here")
    return MachineType(kind=kind, version=version, pve=pve, pxe=bool(found["pxe"]))


def _split_name(name: str) -> tuple[str, Version | None]:
    try:
        parsed = parse_machine_type(name)
    except FormatError:
        return "", None
    return parsed.kind, parsed.version


def creation_version(meta: str) -> Version | None:
    """The QEMU version that made the VM, major and minor, of a config's `meta`; None: it is not there."""
    found = _CREATED.fullmatch(meta)
    return (int(found[1]), int(found[2])) if found else None


def windows_version(created: Version | None) -> Version:
    """The machine version of a Windows guest whose config names none, since Windows must not see new hardware.

    Args: created: the QEMU version that made the VM.
    """
    return created if created is not None and created >= _WINDOWS_KEEPS_CREATION else _WINDOWS_VERSION
