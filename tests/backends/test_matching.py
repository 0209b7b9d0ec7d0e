"""A machine built here takes the state of one that Proxmox builds, whose devices are given to the source by hand."""

from mtunnel_tx.ports.machines import Incoming
from mtunnel_tx.pve.guestconf import parse_guest_config
from tests.backends.qemucase import QemuCase

BASE = "memory: 32\nmachine: pc-i440fx-7.2\nvirtio0: local:100/a.raw\n"
TABLET = """-device '{"driver":"usb-tablet","id":"tablet","bus":"uhci.0","port":"1"}'"""
AGENT = (
    "-device virtio-serial,id=spice,bus=pci.0,addr=0x9 -chardev null,id=vdagent "
    "-device virtserialport,chardev=vdagent,name=com.redhat.spice.0"
)
SERIAL = "serial0: socket\n"


class MatchingTests(QemuCase):
    async def move(self, theirs, args, ours):
        """Args: theirs, ours: lines of the config at the source and here; args: Proxmox's devices."""
        there, here = self.host("there"), self.host("here")
        for host in (there, here):
            host.volumes.make("a.raw")
        extra = f"args: {args}\n" if args else ""
        await there.machines.local_start(100, parse_guest_config(BASE + theirs + extra), self.report)
        socket = here.runtime_dir / "200.migrate"
        incoming = Incoming(migrate_socket=socket, nbd_socket=None, exports={}, from_node="there")
        await here.machines.start(200, parse_guest_config(BASE + ours), incoming, self.report)
        async with there.machines.attached(100) as running:
            await running.start_migration(socket)
            await running.until_switchover()
            await running.switch_over()
        await here.machines.wait_whole(200)

    async def test_a_controller_for_single_disks_without_any(self):
        bridge = "-device pci-bridge,id=pci.3,chassis_nr=3,bus=pci.0,addr=0x5"
        await self.move("", bridge, "scsihw: virtio-scsi-single\n")

    async def test_clipboard(self):
        await self.move("", AGENT, "vga: std,clipboard=vnc\n")

    async def test_clipboard_beside_the_guest_agent(self):
        await self.move("agent: 1\n", AGENT, "agent: 1\nvga: std,clipboard=vnc\n")

    async def test_a_screen_of_virtio(self):
        vga = "-device virtio-vga,id=vga,bus=pci.0,addr=0x2"
        await self.move("vga: none\n", f"{vga} {AGENT}", "vga: virtio\n")

    async def test_a_folder_that_a_viewer_may_share(self):
        vga = "-device virtio-vga,id=vga,bus=pci.0,addr=0x2"
        port = "-chardev null,id=f -device virtserialport,chardev=f,name=org.spice-space.webdav.0"
        shared = "spice_enhancements: foldersharing=1,videostreaming=all\n"
        await self.move("vga: none\n", f"{vga} {AGENT} {port}", f"vga: virtio\n{shared}")

    async def test_a_tablet_without_a_screen(self):
        await self.move("vga: none\ntablet: 0\n", TABLET, "vga: none\n")

    async def test_a_tablet_beside_a_serial_console(self):
        await self.move(f"vga: serial0\n{SERIAL}", TABLET, f"vga: serial0\n{SERIAL}tablet: 1\n")

    async def test_a_serial_console_alone_has_no_tablet(self):
        await self.move(f"vga: serial0\n{SERIAL}tablet: 0\n", "", f"vga: serial0\n{SERIAL}")

    async def test_the_screen_of_old_windows(self):
        await self.move("ostype: wxp\nvga: cirrus\n", "", "ostype: wxp\n")
