"""`mtunnel vm autostart`, and what the unit for it runs: `start --onboot`, `shutdown --all`."""

from pathlib import Path

from twisted.internet import reactor

from mtunnel_tx.guests.autostart import Startup, read_startup
from mtunnel_tx.pve.guestconf import parse_guest_config
from tests.cli.vmcase import CONF, ActCase


class Order(ActCase):
    def add(self, vmid, more):
        self.add_ticker(vmid, CONF.replace("ticker", f"vm{vmid}") + more)

    def started(self):
        """The VMs that run, in the order of their starts."""
        pids = {int(file.stem): self.pid(int(file.stem)) for file in self.run_dir.glob("*.pid")}
        age = {vmid: Path(f"/proc/{pid}").stat().st_ctime_ns for vmid, pid in pids.items()}
        return sorted(age, key=lambda vmid: age[vmid])

    async def test_in_order_and_back(self):
        self.add(101, "onboot: 1\n")
        self.add(102, "onboot: 1\nstartup: order=2,up=1\n")
        self.add(103, "onboot: 1\nstartup: order=1,down=1\n")
        self.add(104, "")
        self.add(105, "onboot: 1\nlock: backup\nstartup: order=1\n")
        began_s = reactor.seconds()
        answer = await self.act("start", "--onboot")
        problems = {row["vmid"]: row["problem"] for row in answer["guests"]}
        self.assertEqual(problems, {103: "", 105: "VM 105 is locked (backup)", 102: "", 101: ""})
        self.assertEqual(self.started(), [103, 102, 101])
        self.assertGreaterEqual(reactor.seconds() - began_s, 1)
        # Once more: they run already.
        self.assertEqual([row["vmid"] for row in (await self.act("start", "--onboot"))["guests"]], [105])
        for vmid in (101, 102):
            await self.act("set", str(vmid), f"startup=order={vmid},down=1")
        answer = await self.act("shutdown", "--all")
        self.assertEqual([row["vmid"] for row in answer["guests"]], [102, 101, 103])
        self.assertEqual(list(self.run_dir.glob("*.pid")), [])

    async def test_switched(self):
        self.add(100, "startup: order=3,up=5\n")
        await self.act("autostart", "vm100", "on", "--down", "60")
        options = self.conf().options
        self.assertEqual((options["onboot"], options["startup"]), ("1", "down=60,order=3,up=5"))
        self.assertTrue((await self.act("list"))["guests"][0]["onboot"])
        await self.act("autostart", "100", "off")
        await self.act("autostart", "100", "off")
        self.assertNotIn("onboot", self.conf().options)

    def test_startup(self):
        for text, expected in (
            ("3", Startup(order=3)),
            ("order=3,up=5,down=7", Startup(order=3, up_s=5, down_s=7)),
            ("down=0", Startup()),
            ("garbage,,", Startup()),
            ("order=-1", Startup()),
        ):
            self.assertEqual(read_startup(parse_guest_config(f"startup: {text}\n")), expected)
