"""Where Proxmox keeps what belongs to a guest, and what it calls it, by the guest's kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLayout:
    """One kind of guest.

    word: in URLs, and as `type` in lists. label: what texts call such a guest. config_folder: of its configs, below
    `nodes/NODE`. socket_prefix: what the wire name of each of a tunnel's sockets begins with, before the VMID.
    task_type: of the task that a tunnel is, in its UPID.
    """

    word: str
    label: str
    config_folder: str
    socket_prefix: str
    task_type: str

    def socket_name(self, vmid: int, suffix: str) -> str:
        """A socket's name on the wire, e.g. `/run/qemu-server/100.storage` for `.storage`."""
        return f"{self.socket_prefix}{vmid}{suffix}"


QEMU_LAYOUT = GuestLayout(
    word="qemu",
    label="VM",
    config_folder="qemu-server",
    socket_prefix="/run/qemu-server/",
    task_type="qmtunnel",
)
LXC_LAYOUT = GuestLayout(
    word="lxc",
    label="CT",
    config_folder="lxc",
    socket_prefix="/run/pve/ct-",
    task_type="vzmtunnel",
)
"""No tunnel receives containers yet; their VMIDs are taken all the same."""

LAYOUTS = {layout.word: layout for layout in (QEMU_LAYOUT, LXC_LAYOUT)}
"""Every kind that a cluster has, by its word."""
