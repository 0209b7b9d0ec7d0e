"""`mtunnel vm autostart`, and what the unit for it runs: `start --onboot`, `shutdown --all`."""

import json
from pathlib import Path

from twisted.internet import reactor

from mtunnel_tx.guests.autostart import Startup, read_startup
from mtunnel_tx.ports.journal import VERSION
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.pve.guestconf import GuestConfig, parse_guest_config
from mtunnel_tx.source.departure import Power, claim
from tests.cli.vmcase import CONF, NOBODY, ActCase


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
        self.assertEqual(
            problems, {103: "", 105: f"VM 105 is locked (backup){NOBODY.replace('100', '105')}", 102: "", 101: ""}
        )
        self.assertEqual(self.started(), [103, 102, 101])
        self.assertGreaterEqual(reactor.seconds() - began_s, 1)
        # Once more: they run already.
        self.assertEqual([row["vmid"] for row in (await self.act("start", "--onboot"))["guests"]], [105])
        for vmid in (101, 102):
            await self.act("set", str(vmid), f"startup=order={vmid},down=1")
        answer = await self.act("shutdown", "--all")
        self.assertEqual([row["vmid"] for row in answer["guests"]], [102, 101, 103])
        self.assertEqual(list(self.run_dir.glob("*.pid")), [])

    async def test_a_vm_that_was_moved_away(self):
        """It is not started at a boot, and the boot has not failed for that."""
        self.add(100, "onboot: 1\nmoved: to pve2 as VM 200 on 2026-10-01 12:00 UTC\n")
        self.add(101, "onboot: 1\n")
        answer = await self.act("start", "--onboot")
        self.assertEqual([(row["vmid"], row["problem"]) for row in answer["guests"]], [(101, "")])
        self.assertEqual(self.started(), [101])
        self.assertEqual(
            self.notes[:1], ["VM 100 was moved to pve2 as VM 200 on 2026-10-01 12:00 UTC: it is not started"]
        )

    async def test_a_move_that_the_restart_broke_off(self):
        """It is settled where the VM is surely this host's; else the line says who decides."""
        self.add(100, "onboot: 1\nlock: migrate\n")
        self.add(101, "onboot: 1\nlock: migrate\nstartup: down=1\n")
        self.leave(100, "opened", "starting")
        self.leave(101, "opened", "starting", "completing")
        answer = await self.act("start", "--onboot")
        problems = {row["vmid"]: row["problem"] for row in answer["guests"]}
        self.assertEqual((problems[100], self.conf(100).lock, self.started()), ("", None, [100]))
        self.assertIn("run 'mtunnel settle 101'", problems[101])
        self.assertEqual((self.conf(101).lock, self.host.departures.standing()), ("migrate", [101]))

    async def test_a_move_that_ends_with_the_host(self):
        """Its power button is pressed; it is not ended, and one that stands still is left alone."""
        self.add(100, "startup: down=1\n")
        await self.act("start", "100")
        await self.host.guests.write(100, GuestConfig(options={**self.conf().options, "lock": "migrate"}))
        self.leave(100, "opened", "starting")
        (row,) = (await self.act("shutdown", "--all"))["guests"]
        self.assertEqual(row["problem"], "VM 100, on its way to another host, did not shut down within 1 s")
        async with self.host.machines.attached(100) as machine:
            await machine.pause()
        (row,) = (await self.act("shutdown", "--all"))["guests"]
        self.assertIn("stands still: run 'mtunnel settle 100'", row["problem"])
        self.assertEqual(self.started(), [100])

    def leave(self, vmid, *words):
        """A journal of a move from here, whose program has ended."""
        program = Program(boot="an earlier one", pid=1, started=1)
        where = {"host": "pve2", "target_vmid": 200, "token": "mig@pve!t1"}
        first = claim(program=program, power=Power.RUNNING, at_s=1, delete=False, **where)
        lines = [{**first, "version": VERSION}, *({"do": word, "upid": "UPID:x:"} for word in words)]
        file = self.folder / "state" / "journal" / f"source-{vmid}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

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
