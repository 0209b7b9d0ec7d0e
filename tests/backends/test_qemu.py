"""Real QEMUs: started, found again, killed, sent from one host to another."""

from __future__ import annotations

import os
import signal

from twisted.internet.defer import Deferred, ensureDeferred

from mtunnel_tx.errors import BackendFailed, TunnelError, WrongState
from mtunnel_tx.ports import Incoming
from mtunnel_tx.pve.guestconf import parse_guest_config
from tests.backends.qemucase import QemuCase, alive, guest, ticker
from tests.guest.ticker import read_ring


class Starting(QemuCase):
    async def test_a_vm_starts_ticks_and_stops(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker()), "name: web-1")
        self.assertFalse(host.machines.running(100))
        await host.machines.local_start(100, conf, self.reports.append)
        serial = await host.serial(100)
        self.assertTrue(host.machines.running(100))
        state = await host.machines.state(100)
        self.assertEqual((state.status, state.whole), ("running", False))
        await self.until(lambda: len(serial.beats) >= 3, "three ticks")
        self.assertEqual({flag for _, flag in serial.beats}, {"."})
        pid = host.pid(100)
        await host.machines.stop(100)
        self.assertFalse(host.machines.running(100))
        self.assertFalse(alive(pid))
        self.assertEqual(host.files(100), [])
        await serial.ended
        self.assertEqual((await host.machines.state(100)).status, "off")
        await host.machines.stop(100)
