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
Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A PC: `kind` is `i440fx` or `q35`; `version` None is the newest there is.

    `pve` is Proxmox's own revision, which no QEMU but Proxmox's knows; it decides about devices. `pxe`: the network
    cards have the boot ROMs of old.
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
        """What QEMU calls it: `pc-i440fx-7.2`."""
        assert self.version is not None, "an unversioned machine type has no name that stays"
        return f"pc-{self.kind}-{'.'.join(map(str, self.version))}"

    def at_least(self, major: int, minor: int, pve: int = 0) -> bool:
        """Whether its version, and Proxmox's revision of it, is that or newer."""
        assert self.version is not None, "an unversioned machine type cannot be compared"
        return (*self.version[:2], self.pve) >= (major, minor, pve)

    def resolved(self, known: Collection[str]) -> MachineType:
        """The type with a version, of those that this QEMU knows.

        Raises: FormatError: it knows none.
        """
        if self.version is None:
            versions = sorted(version for kind, version in map(_split_name, known) if kind == self.kind and version)
            if not versions:
                raise FormatError(f"this host's QEMU has no '{self.kind}' machine")
            return replace(self, version=versions[-1])
        if self.name not in known:
            raise FormatError(f"this host's QEMU does not know machine type '{self.name}'")
        return self


def parse_machine_type(text: str) -> MachineType:
    """Raises: FormatError: no PC."""
    found = _FORM.fullmatch(text)
    if not found or found["old"]:
        raise FormatError(f"machine type '{clean(text)}' is not for this host")
    kind = found["kind"] or ("q35" if found["q35"] else "i440fx")
    version = tuple(map(int, found["version"].split("."))) if found["version"] else None
    return MachineType(kind=kind, version=version, pve=int(found["pve"] or 0), pxe=bool(found["pxe"]))


def _split_name(name: str) -> tuple[str, Version | None]:
    try:
        parsed = parse_machine_type(name)
    except FormatError:
        return "", None
    return parsed.kind, parsed.version
