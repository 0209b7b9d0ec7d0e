from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.tokens import format_token_config, parse_token_config

tokens = st.from_regex(r"[a-z!]{1,9}@[a-z]{2,4}![a-z][a-z0-9]{1,5}", fullmatch=True)
secrets = st.from_regex(r"[!-~]{1,40}", fullmatch=True)


class TokensTest(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.dictionaries(tokens, secrets))
    def test_round_trip(self, table):
        warnings = []
        self.assertEqual(parse_token_config(format_token_config(table), warnings.append), table)
        self.assertEqual(warnings, [])

    def test_canonical(self):
        self.assertEqual(format_token_config({"b@pve!t1": "y", "a@pve!t1": "x"}), "a@pve!t1 x\nb@pve!t1 y\n")

    def test_lines_that_are_skipped_stay_secret(self):
        warnings = []
        table = parse_token_config("a@pve!t1 s3cret more\na@pve!t1\nnobody s3cret\n\na@pve!t1  x\n", warnings.append)
        self.assertEqual(table, {"a@pve!t1": "x"})
        self.assertEqual([warning.partition(":")[0] for warning in warnings], ["line 1", "line 2", "line 3"])
        self.assertNotIn("s3cret", "".join(warnings))
        self.assertNotIn("nobody", "".join(warnings))

    def test_the_same_token_again(self):
        warnings = []
        parse_token_config("a@pve!t1 x\na@pve!t1 y\n", warnings.append)
        self.assertEqual(len(warnings), 1)
