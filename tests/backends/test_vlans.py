"""VLANs of a port: what a card gets, and that the kernel has it, in a network of its own."""

import json
import os
import shutil
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.backends.vlans import Vlans, choose_vlans, requests
from mtunnel_tx.pve.nic import vlan_ranges
from tests.processes import run_program

SHOW = """
import subprocess, sys
from mtunnel_tx.backends.taps import open_tap
from mtunnel_tx.errors import BackendFailed
try:
    fds = open_tap("tap100i0", "br0", tag=sys.argv[1] or None, trunks=sys.argv[2])
except BackendFailed as error:
    sys.exit(error.text)
print(subprocess.run(["bridge", "-json", "vlan", "show", "dev", "tap100i0"], capture_output=True, text=True).stdout)
"""


class ChoiceTests(SynchronousTestCase):
    def test_ranges(self):
        self.assertEqual(vlan_ranges("2;7-9;5000;4000-9999;9-7;0-3"), [(1, 3), (7, 9), (4000, 4094)])
        self.assertEqual(vlan_ranges(""), [])
        self.assertEqual(vlan_ranges("2-4;" * 5000), [(2, 4)])

    def test_what_a_card_gets(self):
        self.assertEqual(choose_vlans(None, []), Vlans(1, ((2, 4094),)))
        self.assertEqual(choose_vlans("7", []), Vlans(7))
        self.assertEqual(choose_vlans("7", [(20, 22)]), Vlans(7, ((20, 22),)))
        self.assertEqual(choose_vlans(None, [(20, 22)]), Vlans(1, ((20, 22),)))


class RequestTests(SynchronousTestCase):
    """The very bytes that `bridge vlan del` and `bridge vlan add` of iproute2 6.1 send, but for their numbering."""

    LINK = "0700 0000 05000000 00000000 00000000"
    CLEARED = f"34000000 1100 0500 01000000 00000000 {LINK} 1400 1a00 0800 0200 0800 0100 0800 0200 1000 fe0f"

    def test_a_tag(self):
        added = f"2c000000 1300 0500 01000000 00000000 {self.LINK} 0c00 1a00 0800 0200 0600 0700"
        self.assertEqual(requests(5, Vlans(7)), (bytes.fromhex(self.CLEARED), bytes.fromhex(added)))

    def test_trunks(self):
        trunks = "0800 0200 0800 1400 0800 0200 1000 1600"
        added = f"3c000000 1300 0500 01000000 00000000 {self.LINK} 1c00 1a00 {trunks} 0800 0200 0600 0700"
        self.assertEqual(requests(5, Vlans(7, ((20, 22),)))[1], bytes.fromhex(added))


class KernelTests(SynchronousTestCase):
    def setUp(self):
        if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("bridge") and shutil.which("unshare")):
            raise SkipTest("NEEDS ROOT and iproute2: NO VLAN OF A REAL BRIDGE IS TESTED")

    def port(self, tag, trunks, filtering=1):
        """Returns: the port's VLANs, each with its flags; or the refusal."""
        kind = "bridge vlan_filtering 1" if filtering else "bridge"
        # The file system of the kernel's devices belongs to the network in which it was mounted.
        add = f'mount -t sysfs none /sys && ip link add br0 type {kind} && exec "$@"'
        argv = ["unshare", "--net", "--mount", "sh", "-c", add, "sh", sys.executable, "-c", SHOW, tag, trunks]
        done = run_program(argv, capture_output=True, text=True, check=False)
        if "not supported" in done.stderr:
            raise SkipTest("NEEDS A KERNEL whose bridges keep VLANs apart: NO VLAN OF A REAL BRIDGE IS TESTED")
        if done.returncode:
            return done.stderr.strip()
        shown = json.loads(done.stdout)
        return [self.row(row) for port in shown for row in port["vlans"]]

    def row(self, row):
        return row["vlan"], row.get("vlanEnd"), *row.get("flags", [])

    def test_a_tag(self):
        self.assertEqual(self.port("7", ""), [(7, None, "PVID", "Egress Untagged")])

    def test_a_tag_and_trunks(self):
        self.assertEqual(self.port("7", "20-22;30"), [(7, None, "PVID", "Egress Untagged"), (20, 22), (30, None)])

    def test_neither(self):
        """All that the bridge has, as Proxmox gives them."""
        self.assertEqual(self.port("", ""), [(1, None, "PVID", "Egress Untagged"), (2, 4094)])

    def test_a_bridge_that_mixes_them(self):
        remedy = "ip link set br0 type bridge vlan_filtering 1"
        self.assertEqual(self.port("7", "", 0), f"bridge 'br0' does not keep VLANs apart; what does it: {remedy}")
        self.assertEqual(self.port("", "", 0), [])
