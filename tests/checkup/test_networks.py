"""Bridges that configs need, and what they have to be able to do."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checkup import qemu
from mtunnel_tx.checkup.finding import FindingState


class VlanTests(SynchronousTestCase):
    def test_a_bridge_that_mixes_them(self):
        self.patch(qemu, "list_bridges", lambda: ["br0", "br1"])
        self.patch(qemu, "filters_vlans", lambda bridge: bridge == "br1")
        (found,) = qemu.check_vlans({"br0": [100, 101], "br1": [102], "absent": [103]})
        self.assertEqual((found.subject, found.state), ("bridge br0", FindingState.PROBLEM))
        self.assertEqual(found.text, "does not keep VLANs apart; needed by VM 100, 101")
        self.assertEqual(found.remedy, "ip link set br0 type bridge vlan_filtering 1")
