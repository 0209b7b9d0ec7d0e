"""Guest configs of this node, their locks and firewall files."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from mtunnel_tx.pve.guestconf import GuestConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestEntry:
    """One guest of the cluster: `kind` is `qemu` or `lxc`, `name` may be empty."""

    vmid: int
    node: str
    kind: str
    name: str


class Guests(Protocol):
    """Guest configs of this node under `pve_dir`, their locks and firewall files."""

    node: str

    def locked(self, vmid: int, wait_s: float) -> AbstractAsyncContextManager[None]:
        """Hold the flock that every other program uses too. Raises: TimedOut: `can't lock file 'F' - got timeout`."""

    def read(self, vmid: int) -> GuestConfig:
        """Raises: NotFound: `Configuration file 'nodes/NODE/qemu-server/V.conf' does not exist`."""

    def entries(self) -> list[GuestEntry]:
        """Every guest of every node, containers included."""

    def naming(self, volid: str) -> list[GuestEntry]:
        """The guests, of any node, whose config names this volume anywhere."""

    async def write(self, vmid: int, conf: GuestConfig) -> None:
        """Replace the config atomically, file and folder fsynced."""

    async def create(self, vmid: int, conf: GuestConfig) -> None:
        """Write a config that must not exist yet (O_EXCL). Raises: WrongState."""

    async def remove(self, vmid: int) -> None:
        """Delete the config; success where there is none."""

    async def write_firewall(self, vmid: int, text: str) -> None: ...

    async def remove_firewall(self, vmid: int) -> None: ...

    def read_firewall(self, vmid: int) -> str | None: ...

    def why_unwritable(self) -> str | None:
        """Why no config or no firewall file can be written; None: they can."""

    async def tidy(self, vmid: int) -> None:
        """Remove what a crash left in the middle of writing one of this guest's files."""
