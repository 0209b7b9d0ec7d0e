from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.roles import ALL_PRIVILEGES, BUILTIN_ROLES
from mtunnel_tx.pve.users import (
    ROOT,
    Group,
    Pool,
    Token,
    User,
    UserConfig,
    decode_text,
    encode_text,
    format_user_config,
    is_user_id,
    normalise_path,
    parse_user_config,
    split_token_id,
)

CANONICAL = """\
user:mig@pve:1:0:Max:M%C3%BCller:max@example.org:a%3Ab 100%25:x:
token:mig@pve!a1:0:1::
token:mig@pve!t1:1700000000:0:the one:
user:root@pam:1:0::::::

group:admins:mig@pve:All of them:

pool:prod::100,2000:local,nfs-1:
pool:prod/inner:deep:::

role:Receiver:Sys.Incoming,VM.Allocate:

acl:1:/:@admins:PVEAuditor:
acl:0:/storage/local:mig@pve:PVEDatastoreUser:
acl:1:/storage/local:mig@pve!t1:PVEDatastoreAdmin:
acl:1:/vms:mig@pve,mig@pve!t1:PVEVMUser,Receiver:
acl:0:/vms/100:mig@pve:NoAccess:
acl:1:/vms-x:mig@pve:NoAccess:
"""

names = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True)
realms = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{1,6}", fullmatch=True)
user_ids = st.builds(
    "{}@{}".format, st.text(st.characters(categories=("L", "N"), include_characters="@!._-"), min_size=1), realms
)
comments = st.text().map(str.strip)
times = st.integers(0, 10**15)
tokens = st.builds(Token, expires_s=times, privsep=st.booleans(), comment=comments)
users = st.builds(
    User,
    enabled=st.booleans(),
    expires_s=times,
    first=comments,
    last=comments,
    email=st.from_regex(r"[!-9;-~]{0,9}", fullmatch=True),
    comment=comments,
    keys=names,
    tokens=st.dictionaries(realms, tokens, max_size=3),
)


@st.composite
def configs(draw):
    config = UserConfig(users={ROOT: draw(users), **draw(st.dictionaries(user_ids, users, max_size=3))})
    some_users = st.sets(st.sampled_from(sorted(config.users)))
    config.groups = draw(st.dictionaries(names, st.builds(Group, users=some_users, comment=comments), max_size=2))
    config.roles = draw(
        st.dictionaries(names.filter(lambda name: name not in BUILTIN_ROLES), st.frozensets(privileges), max_size=2)
    )
    vmids = draw(st.lists(st.integers(100, 10**9 - 1), unique=True, max_size=6))
    for turn, name in enumerate(draw(st.sets(names, max_size=3))):
        config.pools[name] = Pool(comment=draw(comments), vmids=set(vmids[turn::3]), storages=draw(storage_ids))
    # In an ACL a user whose name begins with @ could not be told from a group.
    members = [member for member in members_of(config) if member != ROOT and member.count("@") == 1]
    roles = st.sampled_from(sorted([*BUILTIN_ROLES, *config.roles]))
    entries = st.dictionaries(roles, st.booleans(), min_size=1, max_size=3)
    if members:
        at_path = st.dictionaries(st.sampled_from(members), entries, min_size=1, max_size=3)
        config.acl = draw(st.dictionaries(paths, at_path, max_size=4))
    return config


privileges = st.sampled_from(sorted(ALL_PRIVILEGES))
storage_ids = st.sets(st.from_regex(r"[a-z][a-z0-9]{1,5}", fullmatch=True), max_size=3)
paths = st.lists(st.sampled_from(["vms", "100", "storage", "a.b-c_d"]), max_size=3).map(lambda p: "/" + "/".join(p))


def members_of(config):
    yield from config.users
    for name, user in config.users.items():
        yield from (f"{name}!{token}" for token in user.tokens)
    yield from (f"@{name}" for name in config.groups)


def parse(text):
    warnings = []
    return parse_user_config(text, warnings.append), warnings


class RoundTripTest(SynchronousTestCase):
    def test_canonical_text_stays(self):
        config, warnings = parse(CANONICAL)
        self.assertEqual(warnings, [])
        self.assertEqual(format_user_config(config), CANONICAL)

    def test_what_was_read(self):
        config, _ = parse(CANONICAL)
        user = config.users["mig@pve"]
        self.assertEqual((user.first, user.last, user.comment), ("Max", "Müller", "a:b 100%"))
        self.assertEqual(user.tokens["t1"], Token(expires_s=1700000000, privsep=False, comment="the one"))
        self.assertEqual(config.pools["prod"], Pool(vmids={100, 2000}, storages={"local", "nfs-1"}))
        self.assertEqual(config.acl["/vms/100"], {"mig@pve": {"NoAccess": False}})

    @settings(deadline=None, max_examples=60)
    @given(configs())
    def test_any_config(self, config):
        text = format_user_config(config)
        again, warnings = parse(text)
        self.assertEqual((again, warnings), (config, []))
        self.assertEqual(format_user_config(again), text)

    @settings(deadline=None, max_examples=60)
    @given(st.text(st.sampled_from("usertokengroupoolacl:@!/,%1\n #\x00é"), max_size=200))
    def test_any_text(self, text):
        config, _ = parse(text)
        once = format_user_config(config)
        self.assertEqual(format_user_config(parse(once)[0]), once)

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=("Cs",))))
    def test_text_fields(self, text):
        encoded = encode_text(text)
        self.assertEqual(decode_text(encoded), text)
        self.assertRegex(encoded, r"^[ -9;-~]*$")

    def test_bytes_that_are_no_text_survive(self):
        self.assertEqual(encode_text(decode_text("%FF%c3")), "%FF%C3")


class SkippedTest(SynchronousTestCase):
    def assert_skips(self, text, *words):
        config, warnings = parse(text)
        self.assertEqual(len(warnings), len(words), warnings)
        for warning, word in zip(warnings, words, strict=True):
            self.assertIn(word, warning)
        return config

    def test_root_is_always_there(self):
        self.assertEqual(parse("")[0], UserConfig(users={ROOT: User()}))

    def test_unknown_line_is_named(self):
        self.assert_skips("user:a@pve:1:0:::::\n\n# note\nfoo:bar:\n", "line 3", "line 4")

    def test_fields_are_trimmed_and_may_be_missing(self):
        config = self.assert_skips(" user : a@pve : 1 :")
        self.assertEqual(config.users["a@pve"], User())

    def test_bad_users(self):
        self.assert_skips("user:nobody:1:0:\nuser:a b@pve:1:0:\nuser:a@pve:1:soon:\n", "line 1", "line 2", "expiry")

    def test_user_again(self):
        self.assert_skips("user:a@pve:1:0:\nuser:a@pve:0:0:\n", "again")

    def test_fields_behind_the_last(self):
        self.assert_skips("role:R:VM.Audit:more:", "behind")

    def test_token_needs_its_user_above(self):
        config = self.assert_skips("token:a@pve!t1:0:0::\nuser:a@pve:1:0:::::\n", "unknown user")
        self.assertEqual(config.users["a@pve"].tokens, {})

    def test_acl_for_unknown_token(self):
        config = self.assert_skips("user:a@pve:1:0:\nacl:1:/:a@pve!t1,a@pve:PVEAuditor:\n", "a@pve!t1")
        self.assertEqual(config.acl, {"/": {"a@pve": {"PVEAuditor": True}}})

    def test_acl_with_unknown_role(self):
        config = self.assert_skips("user:a@pve:1:0:\nacl:1:/:a@pve:Nope:\n", "Nope")
        self.assertEqual(config.acl, {})

    def test_acl_path(self):
        self.assert_skips("user:a@pve:1:0:\nacl:1:/a b:a@pve:PVEAuditor:\n", "path")

    def test_builtin_role_is_ignored(self):
        config = self.assert_skips("role:PVEAuditor:Sys.Incoming:\n", "built in")
        self.assertNotIn("Sys.Incoming", config.role("PVEAuditor"))

    def test_unknown_privilege(self):
        config = self.assert_skips("role:R:VM.Audit,VM.Fly:\n", "VM.Fly")
        self.assertEqual(config.role("R"), {"VM.Audit"})

    def test_guest_is_in_the_first_pool_only(self):
        config = self.assert_skips("pool:a::100,x:\npool:b::100,101:\n", "'x'", "'100'")
        self.assertEqual(config.pools["b"].vmids, {101})

    def test_group_members(self):
        config = self.assert_skips("group:g:b@pve,root@pam::\ngroup:g!:::\n", "b@pve", "group name")
        self.assertEqual(config.groups["g"].users, {ROOT})


class NamesTest(SynchronousTestCase):
    def test_user_ids(self):
        for good in ("a@pve", "joe@example.com@ldap-1", "a!b@pve", "ä@pve"):
            self.assertTrue(is_user_id(good), good)
        for bad in ("a", "@pve", "a@p", "a@1pve", "a/b@pve", "a:b@pve", "a b@pve", "a@pve!t1", "a@pve\n"):
            self.assertFalse(is_user_id(bad), bad)

    def test_token_ids(self):
        self.assertEqual(split_token_id("a!b@pve!t1"), ("a!b@pve", "t1"))
        for bad in ("a@pve", "a@pve!", "a@pve!t", "a@pve!1t", "a@pve!t1!t2@", "a!t1"):
            self.assertIsNone(split_token_id(bad), bad)

    def test_paths(self):
        for given_path, expected in (("", "/"), ("/", "/"), ("//vms//100/", "/vms/100"), ("vms", "/vms")):
            self.assertEqual(normalise_path(given_path), expected)
        self.assertIsNone(normalise_path("/a:b"))
