from itertools import product

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.source.departure import Power, Stage, claim, fold
from mtunnel_tx.source.owner import LocalMachine, Owner, describe, explain, judge

PROGRAM = Program(boot="b", pid=5, started=7)


def first(power="running", *, delete=False):
    where = {"host": "pve2", "target_vmid": 200, "token": "mig@pve!t1"}
    return claim(program=PROGRAM, power=Power(power), at_s=1_790_856_000, delete=delete, **where)


def records(*words, power="running"):
    more = {
        "opened": {"upid": "UPID:x:"},
        "removing": {"volumes": ["a:1", "a:2"], "config": "x"},
        "freed": {"volid": "a:1"},
    }
    more["taken"] = {"boot": "c", "pid": 6, "started": 8}
    return [first(power), *({"do": word, **more.get(word, {})} for word in words)]


def departure(*words, power="running"):
    return fold(100, records(*words, power=power))


LIVE = ("opened", "starting", "completing", "resuming", "resumed", "handed_over")
PAUSED = ("opened", "starting", "completing", "handing_over", "handed_over")
STOPPED = ("opened", "handing_over", "handed_over", "removing", "freed")


class FoldTest(SynchronousTestCase):
    def test_a_claim_says_everything_that_a_later_program_needs(self):
        found = departure()
        self.assertEqual((found.stage, found.power, found.program), (Stage.CLAIMED, Power.RUNNING, PROGRAM))
        self.assertEqual((found.host, found.target_vmid, found.token), ("pve2", 200, "mig@pve!t1"))
        self.assertNotIn("secret", str(first()))

    def test_each_way_leads_where_its_last_record_says(self):
        for power, words in (("running", LIVE), ("paused", PAUSED), ("off", STOPPED[:4])):
            for length in range(1, len(words) + 1):
                self.assertEqual(departure(*words[:length], power=power).stage.value, words[length - 1])

    def test_volumes_that_are_left_to_be_freed(self):
        self.assertEqual(departure(*STOPPED[:4], power="off").volumes, ("a:1", "a:2"))
        self.assertEqual(departure(*STOPPED, power="off").volumes, ("a:2",))

    def test_a_refusal_leads_back(self):
        self.assertEqual(departure(*LIVE[:4], "refused").stage, Stage.COMPLETING)
        self.assertEqual(departure(*STOPPED[:2], "refused", power="off").stage, Stage.OPENED)
        self.assertEqual(departure(*PAUSED[:4], "refused", power="paused").stage, Stage.COMPLETING)

    def test_another_program_goes_on(self):
        found = departure("opened", "taken")
        self.assertEqual((found.program, found.stage), (Program(boot="c", pid=6, started=8), Stage.OPENED))

    def test_what_cannot_be_is_never_followed(self):
        for words in (("resumed",), ("opened", "opened"), ("opened", "removing"), (*LIVE, "kept"), ("claim",), ("x",)):
            with self.assertRaises(WrongState) as caught:
                departure(*words)
            self.assertIn("the journal of VM 100's way out (journal/source-100.jsonl): record", caught.exception.text)

    def test_torn_empty_strange(self):
        for lines in ([], [{}], [{"do": "opened"}], [{"do": "claim"}],
                      [{**first(), "power": "x"}], [{**first(), "pid": None}],
                      [{**first(), "host": 5}], [first(), {"do": "opened", "upid": 5}]):  # fmt: skip
            with self.assertRaises(WrongState) as caught:
                fold(100, lines)
            self.assertIn("journal/source-100.jsonl", caught.exception.text)


RUNNING, GONE = LocalMachine(status="running"), LocalMachine()
SENT = LocalMachine(status="postmigrate", migration="completed")


class JudgeTest(SynchronousTestCase):
    """Every row of the rule."""

    def whose(self, *words, power="running", machine=RUNNING):
        return judge(departure(*words, power=power), machine)

    def test_ours_until_the_rest_is_sent(self):
        machines = (RUNNING, GONE, LocalMachine(status="finish-migrate", migration="pre-switchover"))
        for length, machine in product(range(3), machines):
            self.assertIs(self.whose(*LIVE[:length], machine=machine), Owner.HERE)
        self.assertIs(self.whose("opened", power="off", machine=GONE), Owner.HERE)

    def test_while_the_rest_is_sent_qemu_knows(self):
        words = dict.fromkeys(("pre-switchover", "failed", "cancelled"), Owner.HERE)
        words |= dict.fromkeys(("completed", "device", "none"), Owner.UNKNOWN)
        for migration, owner in words.items():
            machine = LocalMachine(status="paused", migration=migration)
            self.assertIs(self.whose(*LIVE[:3], machine=machine), owner, migration)
        self.assertIs(self.whose(*LIVE[:3], machine=GONE), Owner.UNKNOWN)

    def test_ours_once_it_runs_on_here(self):
        """Also where QEMU here has ended since."""
        for machine in (GONE, RUNNING, SENT):
            self.assertIs(self.whose(*LIVE[:3], "runs_on", machine=machine), Owner.HERE)
        self.assertEqual(
            describe(departure(*LIVE[:3], "runs_on")), "was on its way to pve2 as VM 200, and was let run on here"
        )
        for word in ("resuming", "handed_over"):
            with self.assertRaises(WrongState):
                self.whose(*LIVE[:3], "runs_on", word)

    def test_nobodys_where_a_stopped_one_was_refused(self):
        """The target may have written that it is its own, and then failed."""
        self.assertIs(self.whose("opened", "handing_over", "refused", power="off", machine=GONE), Owner.UNKNOWN)
        self.assertIs(self.whose("opened", "handing_over", "refused", "kept", power="off", machine=GONE), Owner.HERE)
        self.assertIn("and said no", explain(departure("opened", "handing_over", "refused", power="off"), GONE))

    def test_nobody_knows_what_was_not_answered(self):
        for words, power in ((LIVE[:4], "running"), (PAUSED[:4], "paused"), (STOPPED[:2], "off")):
            for machine in (GONE, SENT):
                self.assertIs(self.whose(*words, power=power, machine=machine), Owner.UNKNOWN)

    def test_theirs_once_they_said_so(self):
        for words, power in ((LIVE[:5], "running"), (LIVE, "running"), (PAUSED, "paused"), (STOPPED[:3], "off"),
                             (STOPPED, "off")):  # fmt: skip
            for machine in (GONE, SENT):
                self.assertIs(self.whose(*words, power=power, machine=machine), Owner.THERE)

    def test_by_post_copy_nobodys_until_all_of_it_is_there(self):
        split = ("opened", "starting", "postcopy", "completing", "resuming", "resumed")
        for state in ("postcopy-active", "postcopy-paused", "none"):
            machine = LocalMachine(status="finish-migrate", migration=state)
            for length in (4, 5, 6):
                self.assertIs(self.whose(*split[:length], machine=machine), Owner.UNKNOWN, (state, length))
        self.assertIs(self.whose(*split, machine=GONE), Owner.UNKNOWN)
        self.assertIs(self.whose(*split, machine=SENT), Owner.THERE)
        self.assertIs(self.whose(*split, "whole", machine=GONE), Owner.THERE)
        self.assertIs(self.whose(*split, "handed_over", machine=GONE), Owner.THERE)
        self.assertIs(self.whose(*split, "kept", machine=GONE), Owner.HERE)
        with self.assertRaises(WrongState):
            self.whose(*split, "whole", "kept")

    def test_by_post_copy_ours_until_the_target_was_asked(self):
        machine = LocalMachine(status="postmigrate", migration="cancelled")
        self.assertIs(self.whose("opened", "starting", "postcopy", "completing", machine=machine), Owner.HERE)
        asked = ("opened", "starting", "postcopy", "completing", "resuming", "refused")
        self.assertIs(self.whose(*asked, machine=machine), Owner.UNKNOWN)
        self.assertIs(self.whose(*asked, "kept", machine=machine), Owner.HERE)

    def test_two_parts_in_words(self):
        split = departure("opened", "starting", "postcopy", "completing", "resuming", "resumed")
        text = explain(split, LocalMachine(status="finish-migrate", migration="postcopy-paused"))
        for part in ("in two parts", "runs it; QEMU here has the rest, and waits", "--here", "--there", "--discard"):
            self.assertIn(part, text)
        self.assertIn("QEMU here, which had the rest, is gone. One part has to go", explain(split, GONE))

    def test_ours_where_they_removed_everything(self):
        for machine in (RUNNING, GONE, SENT):
            self.assertIs(self.whose(*LIVE[:3], "kept", machine=machine), Owner.HERE)

    def test_why_nobody_knows_and_who_decides(self):
        text = explain(departure(*LIVE[:3]), SENT)
        commands = ("'mtunnel settle 100 --there'", "'mtunnel settle 100 --here'", "'mtunnel settle 200 --discard'")
        for part in ("may have its whole state, and was never told to run it", "it is paused here", *commands):
            self.assertIn(part, text)
        self.assertIn("was told to run it, and did not answer; it is off here", explain(departure(*LIVE[:4]), GONE))
        self.assertNotIn("--discard", explain(departure(*STOPPED[:2], power="off"), GONE))

    def test_how_far_it_came(self):
        where = "pve2 as VM 200"
        for words, text in (
            ((), f"was on its way to {where}"),
            (LIVE[:5], f"runs at {where}"),
            (LIVE, f"was handed over to {where}"),
            (("kept",), f"was on its way to {where}, and stays here"),
        ):
            self.assertEqual(describe(departure(*words)), text)
