"""A host without Proxmox, as the commands for its guests see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from mtunnel_tx.errors import BadRequest, NotFound, WrongState
from mtunnel_tx.ports.changes import Changes
from mtunnel_tx.ports.guests import Guests
from mtunnel_tx.ports.images import Images, LibvirtDomains
from mtunnel_tx.ports.journal import Journal
from mtunnel_tx.ports.machines import LocalHypervisor
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.pve.guestconf import GuestConfig

LOCK_S = 10.0
"""How long a command waits for the lock of a config that another program changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainHost:
    """Everything that a command works with.

    `journal`: of VMs that came to this host. `departures`: of those on their way out. `owner`: what the programs that
    this command starts are known by. `note`: takes a line for whoever runs the command, while the work goes on.
    `settle_kept`: ends the way out of a VM that is off and surely this host's, or raises why not. `departing`: what is
    known and to be done about a VM's way out, as `is on its way to …`; empty where no journal of one stands.
    """

    guests: Guests
    machines: LocalHypervisor
    storage: Storage
    images: Images
    libvirt: LibvirtDomains
    journal: Journal
    departures: Journal
    changes: Changes
    owner: str
    note: Report
    settle_kept: Callable[[int], Awaitable[None]]
    departing: Callable[[int], str]

    def vmids(self) -> dict[int, str]:
        """The VMs of this node with their names, sorted."""
        node = self.guests.node
        return {entry.vmid: entry.name for entry in self.guests.entries() if (entry.node, entry.kind) == (node, "qemu")}

    def find(self, guest: int | str) -> int:
        """The VMID of a guest that is given by it or by its name; the former need not exist.

        Raises: NotFound: no VM has this name; BadRequest: several have it.
        """
        if isinstance(guest, int):
            return guest
        found = [vmid for vmid, name in self.vmids().items() if name == guest]
        if not found:
            raise NotFound(f"there is no VM '{guest}'; mtunnel vm list shows those that are there")
        if len(found) > 1:
            raise BadRequest(f"several VMs have the name '{guest}', so give the number: {', '.join(map(str, found))}")
        return found[0]

    def has_config(self, vmid: int) -> bool:
        """Whether there is a config for this VMID."""
        with suppress(NotFound):
            self.guests.read(vmid)
            return True
        return False

    def stopped(self, vmid: int) -> GuestConfig:
        """The VM's config. Raises: NotFound; WrongState: somebody works on the VM, or it runs."""
        conf = self.unlocked(vmid)
        if self.machines.running(vmid):
            raise WrongState(f"VM {vmid} runs; shut it down first: mtunnel vm shutdown {vmid}")
        return conf

    def unlocked(self, vmid: int) -> GuestConfig:
        """The VM's config. Raises: NotFound; WrongState: somebody works on the VM, a migration for example."""
        conf = self.guests.read(vmid)
        if conf.lock is not None:
            raise WrongState(f"VM {vmid} is locked ({conf.lock}){self._explain_lock(vmid)}")
        return conf

    def _explain_lock(self, vmid: int) -> str:
        """Who holds a VM, and which command decides."""
        if note := self.change_note(vmid) or self.departing(vmid):
            return f": {note}"
        if vmid in self.journal.standing():
            return (
                f": it comes from another host, or came from one and waits: 'mtunnel status' says which, "
                f"'mtunnel settle {vmid}' decides about one that waits"
            )
        return f"; where nothing works on it any more, 'mtunnel vm unlock {vmid}' removes that"

    def change_note(self, vmid: int) -> str:
        """What command for this VM is at work, or was interrupted; empty: none."""
        try:
            change = self.changes.read(vmid)
        except WrongState as error:
            return error.text
        if change is None:
            return ""
        if self.changes.is_live(vmid):
            return f"'vm {change.action}' works on it, pid {change.pid}"
        return f"'vm {change.action}' was interrupted; clean up after it: mtunnel vm unlock {vmid}"
