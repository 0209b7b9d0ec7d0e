"""Live pages: one look for all, what has changed for each; what becomes of those that are slow, gone or too many."""

import json
from dataclasses import replace
from itertools import pairwise

from twisted.internet.defer import Deferred, succeed

from mtunnel_tx.page.facts import HISTORY_S
from tests.http.apicase import USERS
from tests.page.pagecase import HERE, STRONG, WEAK, PageCase, PageWire, a_move, a_row


class FeedCase(PageCase):
    def follow(self, cookie):
        wire = PageWire(self.site, HERE)
        wire.write(self.raw("GET", "/mtunnel/events", cookie=cookie))
        return wire

    def events(self, wire):
        """What came since: names and data."""
        text = wire.transport.value().decode()
        wire.transport.clear()
        found = []
        lines = text.split("\n")
        for name, data in pairwise(lines):
            if name.startswith("event: ") and data.startswith("data: "):
                found.append((name[7:], json.loads(data[6:])))
        return found

    def second(self):
        self.clock.advance(1)


class UpdateTests(FeedCase):
    def test_all_at_first_and_then_what_has_changed(self):
        wire = self.follow(self.operator())
        ((name, first),) = self.events(wire)
        self.assertEqual(
            (name, set(first)), ("sections", {"now", "waits", "node", "moves", "held", "history", "workers", "limits"})
        )
        self.status = replace(self.status, moves=(a_move(),))
        self.second()
        ((_, then),) = self.events(wire)
        self.assertEqual(set(then), {"now", "moves"})
        self.assertIn("VM 200", then["moves"])

    def test_one_look_for_all(self):
        cookie = self.operator()
        wires = [self.follow(one) for one in (cookie, self.log_in(), self.log_in(WEAK))]
        looks = self.looks
        for _ in range(5):
            self.second()
            self.ask("GET", "/mtunnel/", cookie=cookie)
        self.assertLessEqual(self.looks - looks, 5)
        self.assertEqual([len(self.events(wire)) for wire in wires], [6, 5, 5])

    def test_each_sees_what_is_its_own(self):
        self.status = replace(self.status, moves=(a_move(200, STRONG), a_move(201, WEAK)))
        strong, weak = self.follow(self.log_in()), self.follow(self.log_in(WEAK))
        self.second()
        self.assertIn("VM 200", str(self.events(strong)))
        seen = str(self.events(weak))
        self.assertIn("VM 201", seen)
        self.assertNotIn("VM 200", seen)
        self.assertNotIn(STRONG, seen)

    def test_nobody_watches_nothing_is_looked_at(self):
        wire = self.follow(self.operator())
        wire.hang_up()
        self.second()
        looks = self.looks
        self.clock.pump([1] * 5)
        self.assertEqual((self.looks, len(self.feed)), (looks, 0))

    def test_without_a_session(self):
        self.assertEqual(self.ask("GET", "/mtunnel/events").line, "HTTP/1.1 401 Unauthorized")

    def test_a_session_that_ends(self):
        wire = self.follow(self.log_in())
        self.events(wire)
        (self.root / "user.cfg").write_text(USERS.replace("token:mig@pve!t1:0:0::\n", ""))
        self.second()
        self.assertEqual(self.events(wire), [("over", {})])
        self.assertEqual(len(self.feed), 0)

    def test_too_many(self):
        cookie = self.operator()
        wires = [self.follow(cookie) for _ in range(4)]
        self.assertEqual(wires[3].response().line, "HTTP/1.1 503 Service Unavailable")
        self.assertEqual(len(self.feed), 3)
        wires[0].hang_up()
        self.follow(cookie)
        self.assertEqual(len(self.feed), 3)

    def test_a_look_that_fails(self):
        wire = self.follow(self.operator())
        self.events(wire)
        good, self.page._parts.looker._sources = self.page._parts.looker._sources, None
        self.second()
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        self.page._parts.looker._sources = good
        self.second()
        self.assertEqual(len(self.events(wire)), 1)

    def test_the_end_of_the_daemon(self):
        wire = self.follow(self.operator())
        self.page.stop()
        self.assertTrue(wire.transport.disconnected or wire.transport.aborting)
        self.assertEqual(len(self.feed), 0)


class SlowTests(FeedCase):
    def setUp(self):
        super().setUp()
        self.wire = self.follow(self.operator())
        self.events(self.wire)

    def test_nothing_is_kept_for_one_that_takes_nothing(self):
        self.wire.transport.producer.pauseProducing()
        for vmid in range(200, 205):
            self.status = replace(self.status, moves=(a_move(vmid),))
            self.second()
        self.assertEqual(self.events(self.wire), [])
        self.wire.transport.producer.resumeProducing()
        ((_, then),) = self.events(self.wire)
        self.assertIn("VM 204", then["moves"])
        self.assertNotIn("VM 203", str(then))

    def test_it_is_dropped(self):
        self.wire.transport.producer.pauseProducing()
        self.clock.pump([1] * 9)
        self.assertEqual(len(self.feed), 1)
        self.clock.pump([1] * 3)
        self.assertEqual(len(self.feed), 0)
        self.assertTrue(self.wire.transport.disconnected or self.wire.transport.aborting)

    def test_the_others_go_on(self):
        other = self.follow(self.operator())
        self.wire.transport.producer.pauseProducing()
        self.clock.pump([1] * 12)
        self.assertGreaterEqual(len(self.events(other)), 11)
        self.assertEqual(len(self.feed), 1)


class LookTests(PageCase):
    def test_those_who_ask_meanwhile_wait_for_the_same(self):
        slow = Deferred()

        async def look():
            self.looks += 1
            return await slow

        self.looker._sources = replace(self.looker._sources, look=look)
        waiting = [Deferred.fromCoroutine(self.looker.look()) for _ in range(3)]
        slow.callback(self.status)
        first = self.successResultOf(waiting[0])
        self.assertTrue(all(self.successResultOf(one) is first for one in waiting[1:]))
        self.assertEqual(self.looks, 1)

    def test_history_is_read_again_soon_after_a_move_has_ended(self):
        reads = []
        self.looker._sources = replace(self.looker._sources, find_history=lambda _: reads.append(1) or [a_row()])
        self.status = replace(self.status, moves=(a_move(),))

        def seconds(count):
            for _ in range(count):
                self.clock.advance(1)
                self.successResultOf(Deferred.fromCoroutine(self.looker.look()))
            return len(reads)

        before = seconds(3 * int(HISTORY_S))
        self.assertLessEqual(before, 5)
        self.status = replace(self.status, moves=())
        self.assertEqual(seconds(4), before + 2)

    def test_a_history_that_cannot_be_read(self):
        def fail(_):
            raise OSError("it is broken")

        self.looker._sources = replace(self.looker._sources, find_history=fail)
        self.assertIn("the history cannot be read: it is broken", self.shown(self.operator()))

    def test_journals_are_asked_each_time(self):
        asked = []
        self.looker._sources = replace(self.looker._sources, find_owner=lambda vmid: asked.append(vmid) or STRONG)
        self.status = replace(self.status, held={300: "why"})
        for _ in range(3):
            self.clock.advance(1)
            self.successResultOf(Deferred.fromCoroutine(self.looker.look()))
        self.assertEqual(asked, [300] * len(asked))
        self.assertGreater(len(asked), 1)
        self.assertEqual(self.successResultOf(succeed(self.looker._newest))[1].owners, {300: STRONG})
