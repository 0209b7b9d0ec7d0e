"""Where only the target knows whose the VM is: what it is asked, what is written before, what comes of each answer."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from mtunnel_tx.errors import BackendFailed, NotFound, Unauthenticated, Unreachable, WrongState
from mtunnel_tx.source import asking
from mtunnel_tx.source.asking import Inquiry
from mtunnel_tx.source.earlier import finish_earlier, settle
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.owner import Owner
from mtunnel_tx.source.settling import OwnerUnknown, Settling
from mtunnel_tx.source.target import NotImplementedThere, TargetBusy
from tests.source.machines import FakeMachine
from tests.source.test_settling import LeftCase

LOST = Unreachable("connection refused")
KEPT, REMOVED = {"verdict": "kept"}, {"verdict": "rolled back"}


def held(machine="paused", *, whole=1, given_up=0):
    return {"verdict": "held", "machine": machine, "whole": whole, "given-up": given_up}


class FakeTarget:
    """Answers one question after the other; `heard`: decisions, each with the last record that the source had."""

    host, token = "pve2", "mig@pve!t1"

    def __init__(self, case, *answers):
        self.case = case
        self.answers = list(answers)
        self.heard = []

    async def post(self, *path, upid, wait_s, decision=None):
        self.case.assertEqual((path, upid), (("nodes", "localhost", "qemu", "200", "mtunnellate"), "UPID:x:"))
        records = self.case.journal.read(100) or [{"do": "(closed)"}]
        self.heard.append((decision, records[-1]["do"]))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class AskingCase(LeftCase):
    async def ask(self, *answers, stage=("completing",), power="running", machine=None):
        """Returns: what the target heard."""
        machine = machine or FakeMachine("postmigrate", "completed")
        await self.leave("opened", "starting", *stage, power=power, machine=machine)
        return await self.ask_again(*answers)

    async def ask_again(self, *answers):
        target = FakeTarget(self, *answers)
        self.error = None
        try:
            await settle(self.host(), 100, None, target)
        except OwnerUnknown as error:
            self.error = error
        self.assertEqual(target.answers, [])
        return target.heard

    def assert_open(self, *said):
        self.assertIsNotNone(self.error)
        self.assertEqual((self.guests.read(100).lock, self.machines.deeds), ("migrate", []))
        for text in said:
            self.assertIn(text, "\n".join(self.watcher.said))


class AnswerTests(AskingCase):
    async def test_the_target_has_it(self):
        for stage in (("completing",), ("completing", "resuming")):
            self.assertEqual(await self.ask(KEPT, stage=stage), [(None, "taken")])
            self.assert_gone_there("end")
        self.assertIn("VM 200 at pve2 has everything, and is its own", self.watcher.said)

    async def test_it_runs_there_and_may_be_locked_there(self):
        """Its tunnel there waits for an `unlock` that nobody sends any more: the question ends it."""
        self.assertEqual(await self.ask(KEPT, stage=("completing", "resuming", "resumed")), [(None, "taken")])
        self.assert_gone_there("end")
        for answer in (LOST, REMOVED, held()):
            await self.ask(answer, stage=("completing", "resuming", "resumed"))
            self.assert_gone_there("end")

    async def test_the_target_has_removed_it(self):
        for stage in (("completing",), ("completing", "resuming")):
            self.assertEqual(await self.ask(REMOVED, stage=stage), [(None, "taken")])
            self.assert_kept("run", said="runs on here")

    async def test_a_stopped_one(self):
        await self.leave("opened", "handing_over", power="off")
        self.assertEqual(await self.ask_again(REMOVED), [(None, "taken")])
        self.assert_kept(said="stays here as it was")
        await self.leave("opened", "handing_over", power="off")
        await self.ask_again(KEPT)
        self.assert_gone_there()

    async def test_what_says_nothing(self):
        for answer in ({"verdict": "left as it is"}, {}, [], None, {"verdict": "live"}):
            await self.ask(answer)
            self.assert_open("does not say what became of the VM: VM 200 at pve2 is ")
            await self.journal.remove(100)

    async def test_refusals(self):
        for error in (
            NotFound("no such tunnel"),
            Unauthenticated("401"),
            NotImplementedThere("501"),
            BackendFailed("!"),
        ):
            await self.ask(error)
            self.assert_open(f"pve2 does not say what became of the VM: {error.text}")
            await self.journal.remove(100)

    async def test_nobody_answers(self):
        await self.ask(LOST)
        self.assert_open("pve2 cannot be asked what became of the VM: connection refused")


class HeldTests(AskingCase):
    async def test_the_hand_over_is_finished(self):
        heard = await self.ask(held(), KEPT)
        self.assertEqual(heard, [(None, "taken"), ("run", "resuming")])
        self.assert_gone_there("end")

    async def test_also_where_its_qemu_here_is_gone(self):
        heard = await self.ask(held(), KEPT, machine=FakeMachine("off"))
        self.assertEqual(heard, [(None, "taken"), ("run", "resuming")])
        self.assert_gone_there()

    async def test_one_that_was_paused_stays_paused(self):
        machine = FakeMachine("postmigrate", "completed")
        heard = await self.ask(held(), KEPT, power="paused", machine=machine)
        self.assertEqual(heard, [(None, "taken"), ("keep", "handing_over")])
        self.assert_gone_there("end")

    async def test_the_answer_is_lost_and_asked_for_again(self):
        heard = await self.ask(held(), LOST)
        self.assertEqual(heard, [(None, "taken"), ("run", "resuming")])
        self.assert_open("cannot be asked")
        heard = await self.ask_again(held(given_up=1), KEPT)
        self.assertEqual(heard, [(None, "taken"), ("run", "taken")])
        self.assert_gone_there("end")

    async def test_a_refusal_is_as_before_the_question(self):
        await self.ask(held(), WrongState("VM 200 is not whole here"))
        self.assert_open("does not say what became of the VM: VM 200 is not whole here")
        self.assertEqual(self.journal.read(100)[-1]["do"], "refused")

    async def test_but_not_of_a_second_question(self):
        await self.ask(held(), WrongState("not now"), stage=("completing", "resuming"))
        self.assert_open()
        self.assertEqual(self.journal.read(100)[-1]["do"], "taken")

    async def test_what_is_gone_there_is_taken_back(self):
        heard = await self.ask(held("off", whole=0), REMOVED)
        self.assertEqual(heard, [(None, "taken"), ("discard", "taken")])
        self.assert_kept("run", said="runs on here")

    async def test_what_is_in_two_parts_is_not_taken_back(self):
        """By post-copy: QEMU here has not all of it any more."""
        machine = FakeMachine("paused", "postcopy-paused")
        self.assertEqual(await self.ask(held("off", whole=0), stage=("postcopy", "completing"), machine=machine),
                         [(None, "taken")])  # fmt: skip
        self.assert_open("VM 200 is held there, and is off")

    async def test_it_is_looked_at_again_after_the_answer(self):
        """Somebody at this host has cancelled the migration, while the target was asked."""
        machine = FakeMachine("postmigrate", "completed")
        await self.leave("opened", "starting", "completing", machine=machine)
        target = FakeTarget(self, held())
        post = target.post

        async def meanwhile(*path, **told):
            machine.memory = "failed"
            return await post(*path, **told)

        target.post = meanwhile
        target.answers.append(REMOVED)
        await settle(self.host(), 100, None, target)
        self.assertEqual(target.heard, [(None, "taken"), ("discard", "(closed)")])
        self.assertIn("does not say what became of the VM: VM 200 is held there, and VM 100 has its memory here again",
                      "\n".join(self.watcher.said))  # fmt: skip
        self.assert_kept("run", said="runs on here")

    async def test_what_was_discarded_there_although_it_may_have_run_is_nobodys(self):
        await self.ask({"verdict": "left as it is"}, stage=("completing", "resuming"))
        self.assert_open("VM 200 at pve2 is left as it is")

    async def test_somebody_has_to_decide(self):
        gone = FakeMachine("off")
        for answer, machine in (
            (held("off", whole=0, given_up=1), None),
            (held("off", whole=0), gone),
            (held("io-error"), None),
            (held("inmigrate", whole=0), None),
            ({"verdict": "held"}, None),
            (held(), FakeMachine("running", "completed")),
        ):
            self.assertEqual(await self.ask(answer, machine=machine), [(None, "taken")])
            self.assert_open("VM 200 is held there, and ")
            await self.journal.remove(100)


class WhomTests(AskingCase):
    async def test_another_target_is_not_asked(self):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("postmigrate", "completed"))
        for name in ("host", "token"):
            target = FakeTarget(self, KEPT)
            setattr(target, name, "another")
            with self.assertRaises(OwnerUnknown):
                await settle(self.host(), 100, None, target)
            self.assertEqual(target.heard, [])
        self.assertIn(
            "is not asked by token another: the VM was sent to pve2 by token mig@pve!t1", self.watcher.said[-1]
        )

    async def test_nor_is_one_where_it_is_known(self):
        """But it is told, once nothing is to be settled here: it may hold a whole copy."""
        await self.leave("opened", "starting", machine=FakeMachine())
        self.assertEqual(await self.ask_again(REMOVED), [("discard", "(closed)")])
        self.assert_kept(said="runs on here")

    async def test_one_that_holds_nothing_any_more(self):
        for error in (NotFound("no such tunnel"), NotImplementedThere("501")):
            await self.leave("opened", "starting", machine=FakeMachine())
            await self.ask_again(error)
            self.assert_kept(said="runs on here")

    async def test_one_that_refuses_to_remove_it(self):
        await self.leave("opened", "starting", machine=FakeMachine())
        await self.ask_again(BackendFailed("no space left"))
        self.assert_unlocked()
        self.assertEqual(self.watcher.said[-1],
                         "pve2 was not told to remove what it may hold as VM 200: no space left")  # fmt: skip

    async def test_nor_where_it_has_run_on_here(self):
        """Its guest has powered itself off since, and an old state of it waits there."""
        await self.leave("opened", "starting", "completing", "runs_on")
        self.assertEqual(await self.ask_again(REMOVED), [("discard", "(closed)")])
        self.assert_kept(said="stays here, but is off now: it was running when it was to leave")

    async def test_a_decision_needs_no_question(self):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("postmigrate", "completed"))
        target = FakeTarget(self)
        await settle(self.host(), 100, Owner.HERE, target)
        self.assert_kept("run", said="runs on here")

    async def test_the_next_migration_asks(self):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("postmigrate", "completed"))
        with self.assertRaises(WrongState) as caught:
            await finish_earlier(self.host(), 100, FakeTarget(self, held(), KEPT))
        self.assertEqual(caught.exception.text, "VM 100 is VM 200 at pve2 since then")
        self.assert_gone_there("end")


class PatienceTests(AskingCase):
    """A program that still waits for its network."""

    async def begin(self, *answers, wait_s=60.0):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("postmigrate", "completed"))
        self.clock = Clock()
        host = self.host()
        object.__setattr__(host, "reactor", self.clock)
        journal = await DepartureJournal.take(host, 100)
        self.asked = FakeTarget(self, *answers)
        self.settling = Settling(host, journal)
        return Deferred.fromCoroutine(Inquiry(host, journal, self.asked).run(wait_s))

    async def until_asked(self, times):
        """The journal is written by threads."""
        while len(self.asked.heard) < times:
            await asking.pause(self.reactor, 0.01)

    def setUp(self):
        super().setUp()
        from twisted.internet import reactor

        self.reactor = reactor

    async def test_it_asks_again_until_there_is_an_answer(self):
        busy, unnoticed = TargetBusy("being ended"), WrongState("the source of VM 200 is connected")
        work = await self.begin(LOST, busy, unnoticed, held(), KEPT)
        for _ in range(3):
            self.clock.advance(asking.AGAIN_S)
        self.assertTrue(await work)
        said = [text for text in self.watcher.said if text.startswith("asking")]
        self.assertEqual(said, ["asking pve2 what became of VM 200 (0:00 of 1:00)"])
        self.assertIs(await self.settling.end(), Owner.THERE)

    async def test_but_not_for_ever(self):
        work = await self.begin(*[LOST] * 31)
        for _ in range(30):
            self.assertFalse(work.called)
            self.clock.advance(asking.AGAIN_S)
        self.assertFalse(await work)
        self.assertEqual(len([text for text in self.watcher.said if text.startswith("asking")]), 6)

    async def test_it_can_be_interrupted(self):
        work = await self.begin(LOST)
        work.cancel()
        with self.assertRaises(CancelledError):
            await work
        self.assertEqual(self.clock.getDelayedCalls(), [])
