"""Keys that cannot be left out of a config."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.source.leftout import find_undroppable


class LeftOut(SynchronousTestCase):
    def test_what_says_what_may_be_done_with_the_vm(self):
        """Without `moved` the copy of a VM that lives elsewhere would run, without `lock` a backup would be deleted."""
        conf = parse_guest_config("lock: backup\nmoved: to=b\ntemplate: 1\nargs: -v\n")
        kept = dict(find_undroppable(conf, ("lock", "moved", "template", "args"), running=False))
        self.assertEqual(set(kept), {"lock", "moved", "template"} & set(conf.options))
        self.assertIn("lock", kept)
