from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import PermissionDenied
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.roles import ALL_PRIVILEGES, BUILTIN_ROLES
from mtunnel_tx.pve.users import parse_user_config

HEAD = """\
user:a@pve:1:0::::::
token:a@pve!full:0:0::
token:a@pve!own:0:1::
user:b@pve:1:0::::::
user:root@pam:1:0::::::
token:root@pam!full:0:0::
token:root@pam!own:0:1::
group:g1:a@pve,b@pve::
group:g2:a@pve::
pool:p1::100:local:
pool:p2::101:local:
role:R1:VM.Audit:
role:R2:VM.Console:
role:R3:VM.Backup:
"""


def privileges(member, path, *acl):
    warnings = []
    config = parse_user_config(HEAD + "\n".join(f"acl:{line}:" for line in acl), warnings.append)
    assert not warnings, warnings
    return set(Rights(config, member).privileges(path))


class WalkTest(SynchronousTestCase):
    def check(self, path, acl, *expected, member="a@pve"):
        self.assertEqual(privileges(member, path, *acl), set(expected))

    def test_nothing(self):
        self.check("/", [])

    def test_propagates(self):
        for path in ("/", "/vms", "/vms/100", "/x/y/z"):
            self.check(path, ["1:/:a@pve:R1"], "VM.Audit")

    def test_without_propagation_counts_at_the_last_node_only(self):
        self.check("/vms", ["0:/vms:a@pve:R1"], "VM.Audit")
        self.check("/vms/100", ["0:/vms:a@pve:R1"])
        self.check("/vms/100", ["1:/:a@pve:R2", "0:/vms:a@pve:R1"], "VM.Console")

    def test_deeper_replaces(self):
        self.check("/vms/999", ["1:/:a@pve:R1", "1:/vms:a@pve:R2"], "VM.Console")

    def test_a_name_is_no_prefix(self):
        self.check("/vms/1001", ["1:/vms/100:a@pve:R1"])

    def test_roles_at_one_node_add_up(self):
        self.check("/vms", ["1:/vms:a@pve:R1,R2"], "VM.Audit", "VM.Console")
        self.check("/vms/9", ["1:/vms:a@pve:R1", "0:/vms:a@pve:R2"], "VM.Audit")

    def test_user_goes_before_groups(self):
        self.check("/", ["1:/:@g1:R1", "1:/:a@pve:R2"], "VM.Console")

    def test_groups_unite(self):
        self.check("/", ["1:/:@g1:R1", "1:/:@g2:R2"], "VM.Audit", "VM.Console")
        self.check("/", ["1:/:@g1:R1", "1:/:@g2:R2"], "VM.Audit", member="b@pve")

    def test_deeper_group_replaces_users_entry(self):
        self.check("/vms", ["1:/:a@pve:R1", "1:/vms:@g1:R2"], "VM.Console")

    def test_users_entry_that_does_not_count_leaves_the_groups(self):
        self.check("/vms/100", ["0:/vms:a@pve:R1", "1:/vms:@g1:R2"], "VM.Console")

    def test_no_access(self):
        self.check("/vms", ["1:/:a@pve:R1", "1:/vms:a@pve:NoAccess,R2"])
        self.check("/vms/100", ["1:/vms:a@pve:NoAccess", "1:/vms/100:a@pve:R1"], "VM.Audit")

    def test_unknown_members(self):
        for member in ("c@pve", "a@pve!none", "nobody", "@g1", ""):
            self.check("/", ["1:/:@g1:R1"], member=member)


class PoolTest(SynchronousTestCase):
    check = WalkTest.check

    def test_guests_and_storages_inherit(self):
        self.check("/vms/100", ["1:/pool/p1:a@pve:R1"], "VM.Audit")
        self.check("/storage/local", ["1:/pool/p1:a@pve:R1", "1:/pool/p2:a@pve:R2"], "VM.Audit", "VM.Console")
        self.check("/vms/101", ["1:/pool/p1:a@pve:R1"])

    def test_adds_to_the_regular_ones(self):
        self.check("/vms/100", ["1:/pool/p1:a@pve:R1", "1:/vms:@g1:R2"], "VM.Audit", "VM.Console")

    def test_no_access_wins_from_both_sides(self):
        self.check("/vms/100", ["1:/pool/p1:a@pve:R1", "1:/vms:a@pve:NoAccess"])
        self.check("/vms/100", ["1:/pool/p1:a@pve:NoAccess", "1:/vms:a@pve:R1"])

    def test_what_holds_on_the_pool_by_propagation_counts(self):
        self.check("/vms/100", ["1:/:a@pve:R1", "1:/vms:a@pve:R2"], "VM.Audit", "VM.Console")

    def test_a_root_entry_reaches_the_pool_too(self):
        self.check("/vms/100", ["1:/:a@pve:NoAccess", "1:/vms/100:a@pve:R1"])

    def test_tokens_of_their_own(self):
        acl = ["1:/pool/p1:a@pve!own:R1,R2", "1:/pool/p1:a@pve:R1,R3"]
        self.check("/vms/100", acl, "VM.Audit", member="a@pve!own")


class TokenTest(SynchronousTestCase):
    check = WalkTest.check

    def test_without_separation_has_its_users_rights(self):
        self.check("/", ["1:/:@g1:R1", "1:/:a@pve!full:R2"], "VM.Audit", member="a@pve!full")

    def test_separated_has_what_both_have(self):
        self.check("/", ["1:/:a@pve:R1,R2", "1:/:a@pve!own:R2,R3"], "VM.Console", member="a@pve!own")

    def test_groups_never_apply_to_it(self):
        self.check("/", ["1:/:@g1:R1"], member="a@pve!own")

    def test_on_the_same_path(self):
        self.check("/vms", ["1:/vms:a@pve:R1", "1:/:a@pve!own:R1"], "VM.Audit", member="a@pve!own")
        self.check("/", ["1:/vms:a@pve:R1", "1:/:a@pve!own:R1"], member="a@pve!own")

    def test_roots(self):
        self.check("/", ["1:/:root@pam!own:R1"], "VM.Audit", member="root@pam!own")
        self.check("/", [], member="root@pam!own")
        self.check("/vms/1", [], *ALL_PRIVILEGES, member="root@pam!full")
        self.check("/vms/1", [], *ALL_PRIVILEGES, member="root@pam")

    def test_is_never_root(self):
        config = parse_user_config(HEAD)
        self.assertTrue(Rights(config, "root@pam").is_root)
        self.assertFalse(Rights(config, "root@pam!full").is_root)
        self.assertFalse(Rights(config, "a@pve").is_root)

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_never_more_than_its_user(self, data):
        roles = st.sampled_from(sorted(BUILTIN_ROLES))
        paths = st.sampled_from(["/", "/vms", "/vms/100", "/pool/p1", "/storage/local"])
        members = st.sampled_from(["a@pve", "a@pve!own", "@g1", "@g2"])
        lines = data.draw(st.lists(st.builds("{}:{}:{}:{}".format, st.integers(0, 1), paths, members, roles)))
        path = data.draw(paths)
        self.assertLessEqual(privileges("a@pve!own", path, *lines), privileges("a@pve", path, *lines))
        self.assertEqual(privileges("a@pve!full", path, *lines), privileges("a@pve", path, *lines))


class CheckTest(SynchronousTestCase):
    def setUp(self):
        self.rights = Rights(parse_user_config(HEAD + "acl:1:/vms:a@pve:R1,R2:\n"), "a@pve")

    def test_names_the_first_missing(self):
        error = self.assertRaises(
            PermissionDenied, self.rights.check, "/vms/100", "VM.Audit", "VM.Allocate", "VM.Clone"
        )
        self.assertEqual(error.text, "Permission check failed (/vms/100, VM.Allocate)")

    def test_any_names_all(self):
        error = self.assertRaises(PermissionDenied, self.rights.check_any, "/vms/1", "VM.Clone", "VM.Backup")
        self.assertEqual(error.text, "Permission check failed (/vms/1, VM.Clone|VM.Backup)")

    def test_passes(self):
        self.rights.check("/vms/100", "VM.Audit", "VM.Console")
        self.rights.check_any("/vms/100", "VM.Clone", "VM.Console")
        self.assertTrue(self.rights.has("/vms/1", "VM.Audit"))
        self.assertFalse(self.rights.has("/vms/1", "VM.Audit", "VM.Clone"))

    def test_illegal_path(self):
        self.assertEqual(self.rights.privileges("/vms/\n"), frozenset())
