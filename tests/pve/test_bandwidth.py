"""Which bandwidth limit holds: storages, the datacenter, what a source wants, and who may overrule whom."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.bandwidth import effective_limit
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.pve.users import parse_user_config

STORAGES = parse_storage_config(
    """\
dir: slow
\tpath /a
\tbwlimit migration=100,restore=7

dir: fast
\tpath /b
\tbwlimit default=9000

dir: free
\tpath /c

dir: other
\tpath /d
\tbwlimit restore=5

dir: zero
\tpath /e
\tbwlimit migration=0

dir: odd
\tpath /f
\tbwlimit migration=lots

dir: bare
\tpath /g
\tbwlimit 100
"""
)


def rights(*grants):
    """What a token may do: (path, privilege)s."""
    lines = ["user:mig@pve:1:0::::::", "token:mig@pve!t1:0:0::"]
    for number, (path, privilege) in enumerate(grants):
        lines += [f"role:r{number}:{privilege}:", f"acl:0:{path}:mig@pve:r{number}:"]
    return Rights(parse_user_config("\n".join(lines) + "\n"), "mig@pve!t1")


def limit(storages, override=None, *, datacenter=None, operation="migration", grants=()):
    return effective_limit(STORAGES, datacenter, rights(*grants), storages, operation, override)


EVERYWHERE = ("/storage", "Datastore.Allocate")
ON_SLOW = ("/storage/slow", "Datastore.Allocate")
DATACENTER = ("/", "Sys.Modify")


class WithoutOverrideTests(SynchronousTestCase):
    def test_smallest_of_the_storages_as_text(self):
        self.assertEqual(limit(["slow"]), "100")
        self.assertEqual(limit(["fast", "slow"]), "100")
        self.assertEqual(limit(["slow", "fast", "slow"]), "100")

    def test_operations(self):
        self.assertEqual(limit(["slow"], operation="restore"), "7")
        self.assertIsNone(limit(["slow"], operation="clone"))
        self.assertEqual(limit(["fast"], operation="nonsense"), "9000")

    def test_none(self):
        self.assertIsNone(limit(["free"]))
        self.assertIsNone(limit([]))

    def test_what_cannot_be_read_is_none(self):
        for name in ("odd", "bare"):
            self.assertIsNone(limit([name]))
            self.assertEqual(limit([name], datacenter="default=50"), "50")
        self.assertIsNone(limit([], datacenter="junk"))

    def test_datacenter_counts_where_a_storage_has_none(self):
        self.assertEqual(limit(["free"], datacenter="default=50"), "50")
        self.assertEqual(limit(["other"], datacenter="default=50"), "50")
        self.assertEqual(limit(["slow", "free"], datacenter="migration=50"), "50")
        self.assertEqual(limit(["slow", "free"], datacenter="migration=500"), "100")
        self.assertEqual(limit(["slow"], datacenter="migration=50"), "100")
        self.assertIsNone(limit(["free"], datacenter="restore=50"))

    def test_datacenter_counts_where_no_storage_is_named(self):
        self.assertEqual(limit([], datacenter="default=50"), "50")
        self.assertEqual(limit([None], datacenter="default=50"), "50")

    def test_privileges_alone_overrule_nothing(self):
        self.assertEqual(limit(["slow"], grants=(EVERYWHERE, DATACENTER)), "100")
        self.assertEqual(limit([], datacenter="default=50", grants=(EVERYWHERE, DATACENTER)), "50")

    def test_zero_is_a_limit_like_any_other(self):
        self.assertEqual(limit(["zero"], datacenter="default=50"), "0")

    def test_unknown_storage(self):
        for sent, shown in (("nosuch", "nosuch"), (5, "5"), ("", "")):
            error = self.assertRaises(TunnelError, limit, ["slow", None, sent])
            self.assertEqual(error.line, f"storage '{shown}' does not exist")


class WithOverrideTests(SynchronousTestCase):
    def assert_same(self, got, expected):
        self.assertEqual((got, type(got)), (expected, type(expected)))

    def test_on_all_storages_it_is_echoed(self):
        for override in (500, "500", 0, "0"):
            self.assert_same(limit(["slow", "nosuch"], override, grants=(EVERYWHERE,)), override)

    def test_smaller_wins(self):
        self.assert_same(limit(["slow"], 50), 50)
        self.assert_same(limit(["slow"], "50"), "50")
        self.assert_same(limit(["slow"], 500), "100")
        self.assert_same(limit(["slow"], "1000"), "100")
        self.assert_same(limit(["free"], 500, datacenter="default=50"), "50")
        self.assert_same(limit(["free"], 500), 500)

    def test_zero_is_unlimited(self):
        self.assert_same(limit(["slow"], 0), "100")
        self.assert_same(limit(["slow"], "0"), "100")
        self.assert_same(limit(["free"], 0), 0)
        self.assert_same(limit(["free"], 0, datacenter="default=50"), "50")

    def test_a_storage_of_ones_own_is_skipped(self):
        self.assert_same(limit(["slow"], 500, grants=(ON_SLOW,)), 500)
        self.assert_same(limit(["slow"], 500, datacenter="default=50", grants=(ON_SLOW,)), 500)
        self.assert_same(limit(["slow", "fast"], 10000, grants=(ON_SLOW,)), "9000")
        self.assert_same(limit(["slow", "free"], 10000, datacenter="default=50", grants=(ON_SLOW,)), "50")

    def test_the_datacenter_of_ones_own_is_skipped(self):
        self.assert_same(limit(["free"], 500, datacenter="default=50", grants=(DATACENTER,)), 500)
        self.assert_same(limit([], 500, datacenter="default=50", grants=(DATACENTER,)), 500)
        self.assert_same(limit([], 500, datacenter="default=50"), "50")
        self.assert_same(limit(["slow"], 500, datacenter="default=50", grants=(DATACENTER,)), "100")

    def test_rights_on_storages_are_none_on_the_datacenter(self):
        self.assert_same(limit([], 500, datacenter="default=50", grants=(EVERYWHERE,)), "50")

    def test_unknown_storage(self):
        self.assertRaises(TunnelError, limit, ["nosuch"], 5)
        self.assertRaises(TunnelError, limit, ["../slow"], 5, grants=(ON_SLOW,))
