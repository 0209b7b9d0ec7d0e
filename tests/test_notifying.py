"""Notices: what is worth one, and how people get it: by a program, and by webhooks."""

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from mtunnel_tx.config import ConfigError, Notify
from mtunnel_tx.daemon import notifying
from mtunnel_tx.daemon.notifying import KEPT_FOR_HELD, MOST_AT_ONCE, MOST_UNTOLD, NoticeTeller
from mtunnel_tx.ports.events import FlowEnded, FlowParked, FlowResumed
from mtunnel_tx.ports.moves import MovePhase, OutageBegan
from mtunnel_tx.watch.move import apply
from mtunnel_tx.watch.notices import LONGEST_REASON, Notice, NoticeKind, NoticeObserver, SentNotices
from mtunnel_tx.wire.socketkinds import MEMORY
from tests.cli.test_watch import DONE, MOVE
from tests.patience import patience_s
from tests.test_config import Case
from tests.watch.test_board import BoardCase
from tests.watch.test_metrics import FACTS

NOTICE = Notice(kind=NoticeKind.DONE, host="b", move=DONE)


class Keys(Case):
    def test_who_is_told(self):
        text = '[notify]\ncommand = ["tell", "me"]\nurls = "https://h/x?y=z"\nparked_s = 5\n'
        self.assertEqual(self.load(text).notify, Notify(command=("tell", "me"), urls=("https://h/x?y=z",), parked_s=5))

    def test_what_is_no_url(self):
        for url in ("ftp://h/", "https://user:secret@h/", "https://", "h", "https://h/ x", 7):
            error = self.assertRaises(ConfigError, self.load, f"[notify]\nurls = [{json.dumps(url)}]\n")
            self.assertIn("notify.urls: must be an URL", error.text)
            self.assertNotIn("secret", error.text)
        many = json.dumps([f"https://h/{number}" for number in range(17)])
        self.assertIn("16 URLs at most", self.assertRaises(ConfigError, self.load, f"[notify]\nurls = {many}\n").text)


class WhatIsWorthOne(BoardCase):
    def setUp(self):
        super().setUp()
        self.notices = []
        find, clock = self.board.find, self.fake.clock
        observer = NoticeObserver("b", find, self.notices.append, parked_s=60, seconds=clock.seconds)
        self.fake.services.observers.add(observer)

    def kinds(self):
        return [(notice.kind, notice.move.vmid) for notice in self.notices]

    def test_a_move_that_came_to_nothing(self):
        self.connect()
        self.assertEqual(self.kinds(), [])
        self.line.disconnected()
        self.assertEqual(self.kinds(), [(NoticeKind.FAILED, 100)])
        said = self.notices[0].as_json()
        self.assertEqual((said["event"], said["host"], said["move"]["phase"]), ("failed", "b", "rolled back"))
        self.assertEqual(said["end"], "target")

    def test_done(self):
        self.connect()
        self.start({"cmd": "disk", "storage": "local", "drive": {"interface": "scsi", "index": 0, "size": 1 << 30}})
        self.fake.machines.arrive()
        for cmd in ("resume", "unlock", "quit"):
            self.ask(cmd=cmd)
        self.line.disconnected()
        self.assertEqual(self.kinds(), [(NoticeKind.DONE, 100)])


class Parked(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.notices = []
        find = {"UPID:x": MOVE}.get
        self.observer = NoticeObserver("b", find, self.notices.append, parked_s=60, seconds=self.clock.seconds)

    def park(self, number):
        self.observer(FlowParked(tunnel=FACTS, number=number, socket=MEMORY, reason="lost"))

    def pass_by(self, seconds):
        for _ in range(seconds):
            self.clock.advance(1)
            self.observer.look()

    def test_too_long_and_once(self):
        self.park(1)
        self.park(2)
        self.pass_by(59)
        self.assertEqual(self.notices, [])
        self.pass_by(100)
        self.assertEqual([notice.kind for notice in self.notices], [NoticeKind.PARKED])

    def test_not_long(self):
        self.park(1)
        self.pass_by(30)
        self.observer(FlowResumed(tunnel=FACTS, number=1, socket=MEMORY, waited_s=30, parked_s=30))
        self.park(2)
        self.pass_by(40)
        self.observer(FlowEnded(tunnel=FACTS, number=2, socket=MEMORY, traffic=FACTS.traffic(), orderly=False))
        self.pass_by(100)
        self.assertEqual(self.notices, [])

    def test_once_for_each_outage_of_one_that_is_sent(self):
        told = SentNotices("a", self.notices.append, parked_s=60, seconds=self.clock.seconds)
        cut = apply(MOVE, OutageBegan(), 1000.0)
        for state, seconds in ((cut, 59), (MOVE, 1), (cut, 100), (MOVE, 1), (cut, 100), (DONE, 1), (DONE, 1)):
            for _ in range(seconds):
                told(state)
                self.clock.advance(1)
        kinds = [notice.kind for notice in self.notices]
        self.assertEqual(kinds, [NoticeKind.PARKED, NoticeKind.PARKED, NoticeKind.DONE])
        self.assertEqual({notice.as_json()["end"] for notice in self.notices}, {"source"})

    def test_it_fits_into_a_pipe(self):
        long = replace(MOVE, phase=MovePhase.HELD, reason="x" * 9999, transfers=MOVE.transfers * 100)
        said = Notice(kind=NoticeKind.HELD, host="b", move=long).as_json()
        self.assertEqual(len(said["move"]["reason"]), LONGEST_REASON)
        self.assertLess(len(json.dumps(said)), 4096)


class Hook(Resource):
    """Answers with these codes, one after the other, the last one again and again."""

    isLeaf = True  # noqa: N815

    def __init__(self, *codes):
        super().__init__()
        self.codes = list(codes)
        self.bodies = []
        self.heard = DeferredQueue()

    def render_POST(self, request):
        request.setResponseCode(self.codes.pop(0) if len(self.codes) > 1 else self.codes[0])
        self.bodies.append(json.loads(request.content.read()))
        self.heard.put(None)
        return b""


class Telling(TestCase):
    def setUp(self):
        self.patch(notifying, "AGAIN_S", (0.0, 0.0, 0.0))
        self.errors = []

        def heed(event):
            if event["log_namespace"] == notifying.__name__:
                self.errors.append(event)

        globalLogPublisher.addObserver(heed)
        self.addCleanup(globalLogPublisher.removeObserver, heed)

    def listen(self, *codes):
        hook = Hook(*codes)
        port = reactor.listenTCP(0, Site(hook), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return hook, f"http://127.0.0.1:{port.getHost().port}/hook?key=secret"

    async def tell(self, *, command=(), urls=(), notice=NOTICE, wait_s=None):
        notifier = NoticeTeller(reactor, Notify(command=command, urls=urls), dict(os.environ))
        notifier(notice)
        await notifier.stop(wait_s or patience_s())

    async def test_a_program(self):
        file = Path(self.mktemp()).absolute()
        code = "import os, sys; print(os.environ['MTUNNEL_EVENT'], os.environ['MTUNNEL_VMID'], sys.stdin.read(),"
        code += f" file=open({str(file)!r}, 'w'))"
        await self.tell(command=(sys.executable, "-c", code))
        event, vmid, text = file.read_text().split(" ", 2)
        self.assertEqual((event, vmid, json.loads(text)["move"]["vmid"]), ("done", "100", 100))

    async def test_a_webhook(self):
        hook, url = self.listen(204)
        await self.tell(urls=(url,))
        self.assertEqual([(body["event"], body["move"]["percent"]) for body in hook.bodies], [("done", 100)])

    async def test_again_where_it_fails(self):
        hook, url = self.listen(503, 429, 200)
        await self.tell(urls=(url,))
        self.assertEqual((len(hook.bodies), self.errors), (3, []))

    async def test_not_for_ever(self):
        hook, url = self.listen(500)
        await self.tell(urls=(url,))
        self.assertEqual((len(hook.bodies), self.errors[0]["reason"]), (4, "it answers 500"))
        self.assertNotIn("secret", self.errors[0]["what"])

    async def test_not_again_where_it_is_refused(self):
        hook, url = self.listen(404)
        await self.tell(urls=(url,))
        self.assertEqual((len(hook.bodies), self.errors[0]["reason"]), (1, "it answers 404"))

    async def test_one_that_fails_does_not_hold_up_the_others(self):
        hook, url = self.listen(200)
        await self.tell(command=("/nowhere/at-all",), urls=("http://127.0.0.1:9/", url))
        self.assertEqual((len(hook.bodies), len(self.errors)), (1, 2))

    async def test_too_many_are_only_logged(self):
        hook, url = self.listen(200)
        notifier = NoticeTeller(reactor, Notify(urls=(url,)), {})
        for _ in range(MOST_UNTOLD):
            notifier(NOTICE)
        notifier(replace(NOTICE, kind=NoticeKind.HELD))
        self.assertLessEqual(len(hook.bodies), MOST_AT_ONCE)
        await notifier.stop()
        self.assertEqual((len(hook.bodies), len(self.errors)), (MOST_UNTOLD - KEPT_FOR_HELD + 1, KEPT_FOR_HELD))
        self.assertEqual([body["event"] for body in hook.bodies].count("held"), 1)

    async def test_a_dead_receiver_delays_no_other(self):
        """However many notices wait for it."""
        with socket.create_server(("127.0.0.1", 0)) as dead:
            hook, url = self.listen(200)
            notifier = NoticeTeller(reactor, Notify(urls=(f"http://127.0.0.1:{dead.getsockname()[1]}/", url)), {})
            for _ in range(MOST_UNTOLD + 1):
                notifier(replace(NOTICE, kind=NoticeKind.HELD))
                await hook.heard.get()
            self.assertEqual([event["reason"] for event in self.errors], [f"{MOST_UNTOLD} notices wait for it"])
            await notifier.stop(0.1)

    async def test_a_secret_in_a_path_is_not_logged(self):
        notifier = NoticeTeller(reactor, Notify(urls=("http://127.0.0.1:9/services/SECRET?x=SECRET",)), {})
        notifier(NOTICE)
        await notifier.stop()
        self.assertEqual([event["what"] for event in self.errors], ["127.0.0.1:9"])

    async def test_a_long_reason_in_another_script(self):
        hook, url = self.listen(200)
        await self.tell(
            command=("cat",), urls=(url,), notice=replace(NOTICE, move=replace(DONE, reason="\u20ac" * 2000))
        )
        self.assertEqual((len(hook.bodies), self.errors), (1, []))

    async def test_the_end_does_not_wait_for_ever(self):
        await self.tell(command=("sleep", "600"), wait_s=0.1)
        (event,) = self.errors
        self.assertEqual((event["what"], event["reason"]), ("the command", "this program ends"))

    async def test_the_end_of_an_attempt_that_is_cancelled(self):
        """Twisted ends one whose connection was refused just now with that, and takes the cancellation."""
        self.patch(notifying, "AGAIN_S", (600.0,))
        await self.tell(urls=("http://127.0.0.1:9/",), wait_s=0.01)
        self.assertEqual(len(self.errors), 1)

    def test_nobody_wants_to_know(self):
        notifier = NoticeTeller(Clock(), Notify(), {})
        notifier(NOTICE)
        self.successResultOf(Deferred.fromCoroutine(notifier.stop()))
