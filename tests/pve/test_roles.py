from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.roles import ALL_PRIVILEGES, BUILTIN_ROLES


class RolesTest(SynchronousTestCase):
    def test_sizes(self):
        sizes = {name: len(privileges) for name, privileges in BUILTIN_ROLES.items()}
        self.assertEqual(sizes["Administrator"], 47)
        self.assertEqual(sizes["PVEAdmin"], 40)
        self.assertEqual(sizes["PVEVMAdmin"], 23)
        self.assertEqual(sizes["PVEVMUser"], 10)
        self.assertEqual(sizes["PVEAuditor"], 7)
        self.assertEqual(sizes["NoAccess"], 0)
        self.assertEqual(len(sizes), 17)

    def test_administrator_has_all(self):
        for privileges in BUILTIN_ROLES.values():
            self.assertLessEqual(privileges, ALL_PRIVILEGES)

    def test_only_administrator_lets_tunnels_in(self):
        self.assertEqual(
            [name for name, privileges in BUILTIN_ROLES.items() if "Sys.Incoming" in privileges], ["Administrator"]
        )
