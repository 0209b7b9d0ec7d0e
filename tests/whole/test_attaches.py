"""Who may attach a connection to a flow, and what a flood of those who may, or may not, does to others."""

from __future__ import annotations

import signal
import ssl
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from tests.leaks import memory_bytes
from tests.patience import patience_s, wait_for
from tests.whole.limited import Case
from tests.whole.moving import RAW, SIZE_BYTES, import_line
from tests.whole.node import SECRET, TOKEN
from tests.whole.peer import call
from tests.whole.resuming import Attached, ResumableTunnel

OTHER = "mig@pve!t2"
USER = f"user:mig@pve:1:0:::::\ntoken:{TOKEN}:0:0::\ntoken:{OTHER}:0:0::\n\nacl:1:/:mig@pve:Administrator:\n"
FLOOD_S = 4.0
MIB = 1 << 20


def authorization(token: str) -> str:
    return f"PVEAPIToken={token}={SECRET}"


class AttachCase(Case):
    def setUp(self) -> None:
        super().setUp()
        (self.node.pve / "user.cfg").write_text(USER)
        self.allow(TOKEN, OTHER)

    def allow(self, *tokens: str) -> None:
        (self.node.pve / "priv" / "token.cfg").write_text("".join(f"{token} {SECRET}\n" for token in tokens))

    def tunnels(self) -> list[int]:
        return [tunnel["vmid"] for tunnel in self.node.ask(cmd="status")["tunnels"]]


class WhoTests(AttachCase):
    limits = {"park_s": 20}

    def test_none_but_the_one_with_token_key_and_number(self) -> None:
        """Whatever is refused leaves the flow parked; it goes on with the right one, and a revoked token ends it."""
        mine, another = ResumableTunnel(self.node, 100), ResumableTunnel(self.node, 101)
        self.assertEqual(mine.ask(cmd="version")["api"], 2)
        mine.resume()
        mine.lose()
        wait_for("a parked flow", lambda: mine.parked() == ["commands"])
        with ThreadPoolExecutor(4) as pool:  # each is answered late
            refused = [
                pool.submit(mine.attach, generation=9, key=another.offer["key"]),
                pool.submit(mine.attach, generation=9, authorization=authorization(OTHER)),
                pool.submit(mine.attach, generation=9, flow_id=another.offer["id"]),
                pool.submit(another.attach, generation=9, flow_id=mine.offer["id"], key=mine.offer["key"]),
            ]
            self.assertEqual([work.result().answer for work in refused], [401] * 4)
        self.assertEqual(mine.attach(generation=mine.generation).answer, 409)
        self.assertEqual(mine.parked(), ["commands"])
        mine.resume()
        self.assertEqual(mine.ask(cmd="version")["api"], 2)
        mine.lose()
        self.allow(OTHER)
        self.assertEqual(mine.attach().answer, 401)
        self.assertEqual((mine.parked(), self.tunnels()), (["commands"], [100, 101]))
        wait_for("the end of its time", lambda: self.tunnels() == [101], 30)
        self.assertIsNone(self.node.guest(100))
        self.allow(TOKEN)
        self.assertEqual(mine.attach().answer, 410)
        another.leave()


class ForgottenTests(AttachCase):
    limits = {"park_s": 20}

    def test_a_daemon_that_was_started_again_says_what_became_of_the_vm_where_it_is_asked_that(self) -> None:
        """It knows no flow of the one before, but by its key; the verdict is in the history."""
        mine = ResumableTunnel(self.node.keep_port(), 100)
        mine.lose()
        for _ in range(2):
            self.node.stop(signal.SIGKILL)
            self.node.start()
            self.assertEqual(mine.attach().answer, 410)
            self.assertEqual(mine.attach(key="x" * 43).answer, 401)
            late = call(self.node, "POST", "/nodes/localhost/qemu/100/mtunnellate", {"upid": mine.opened["upid"]})
            self.assertEqual(late.json["data"]["verdict"], "rolled back")


class UnheardTests(AttachCase):
    """Who never heard the answer asks for the socket again; what accepts one connection has that one still."""

    limits = {"park_s": 60}

    def open(self, mine: ResumableTunnel, path: str) -> Attached:
        ticket = mine.ask(cmd="ticket", path=path)["ticket"]
        query = f"ticket={quote(ticket, safe='')}&socket={quote(path, safe='')}"
        return Attached(self.node, f"/api2/json/nodes/{self.node.name}/qemu/100/mtunnelwebsocket?{query}", "1")

    def move(self, meanwhile: Callable[[ResumableTunnel], None]) -> None:
        mine = ResumableTunnel(self.node.keep_port(), 100)
        mine.ask(cmd="version")
        path = mine.ask(**import_line(100, 0, "raw"))["socket"]
        unheard = self.open(mine, path)
        self.assertEqual(unheard.answer, 101)
        unheard.sock.close()
        wait_for("a parked flow", lambda: mine.parked() == ["disk-import"])
        meanwhile(mine)
        stream = self.open(mine, path)
        self.assertEqual(stream.answer, 101)
        self.assertEqual(mine.attach(generation=1, flow_id=unheard.offer["id"], key=unheard.offer["key"]).answer, 410)
        payload = struct.pack("<Q", SIZE_BYTES) + RAW
        stream.send(payload)
        stream.say(f"e {len(payload)}")
        replies = iter(lambda: mine.ask(cmd="query-disk-import"), None)
        done = next(reply for reply in replies if reply["status"] != "pending")
        self.assertEqual(done["status"], "complete", done)
        self.assertEqual((self.node.storage / "images" / "100" / "vm-100-disk-0.raw").read_bytes(), RAW)
        mine.leave()

    def test_it_is_given_the_same_connection_of_the_socket(self) -> None:
        self.move(lambda _: None)


class UnheardBeforeRestartTests(UnheardTests):
    extra = 'workers = 1\nuser = "nobody"'
    limits = {"park_s": 60, "restart_s": 120}

    def test_so_it_is_after_a_restart(self) -> None:
        def restart(mine: ResumableTunnel) -> None:
            self.node.stop(signal.SIGKILL)
            self.node.start()
            self.assertEqual(mine.parked(), ["disk-import"])

        self.move(restart)


class FloodTests(AttachCase):
    def test_others_go_on(self) -> None:
        """By one who may attach, and by one who may not, each over as many connections as they can make."""
        victim, other = ResumableTunnel(self.node, 100), ResumableTunnel(self.node, 101)
        assert self.node.process is not None
        before_bytes = memory_bytes(self.node.process.pid)
        over, answers, lock = time.monotonic() + FLOOD_S, [], threading.Lock()

        def flood(key: str) -> None:
            while time.monotonic() < over:
                try:
                    with lock:
                        generation = victim.generation = victim.generation + 1
                    wire = victim.attach(generation=generation, key=key)
                except (OSError, ssl.SSLError, AssertionError):
                    continue
                answers.append(wire.answer)
                wire.sock.close()

        longest_s = 0.0
        with ThreadPoolExecutor(12) as pool:
            for number in range(12):
                pool.submit(flood, "" if number < 8 else other.offer["key"])
            while time.monotonic() < over:
                began_s = time.monotonic()
                self.assertEqual(other.ask(cmd="version")["api"], 2)
                longest_s = max(longest_s, time.monotonic() - began_s)
        self.assertLess(longest_s, patience_s(2))
        self.assertLessEqual(answers.count(101), 40 + 2 * patience_s(FLOOD_S))
        self.assertIn(503, answers)
        self.assertLess(memory_bytes(self.node.process.pid) - before_bytes, 64 * MIB)
        wait_for("room for one more", victim.comes_back)
        self.assertEqual(victim.ask(cmd="version")["api"], 2)
        for tunnel in (victim, other):
            tunnel.leave()


class KeptTests(AttachCase):
    limits = {"window_bytes": MIB, "windows_bytes": 4 * MIB, "parked_bytes": MIB}

    def fill(self, tunnel: ResumableTunnel, replies: int) -> None:
        """Have replies waiting that are never acknowledged."""
        for _ in range(replies):
            tunnel.send(cmd="x" * 1000)
        wait_for("the replies", lambda: self.out_bytes(tunnel) > replies * 1000)

    def out_bytes(self, tunnel: ResumableTunnel) -> int:
        found = [one["bytes_out"] for one in self.node.ask(cmd="status")["tunnels"] if one["vmid"] == tunnel.vmid]
        return int(found[0])

    def test_what_parked_flows_keep(self) -> None:
        """Of two that keep more than they may together, the larger one is given up."""
        larger, smaller = ResumableTunnel(self.node, 100), ResumableTunnel(self.node, 101)
        self.fill(larger, 700)
        self.fill(smaller, 500)
        for tunnel in (larger, smaller):
            tunnel.lose()
        wait_for("the end of the larger one", lambda: self.tunnels() == [101])
        smaller.resume()
        smaller.lose()
        self.assertIn("parked flows keep more than limits.parked_bytes", self.node.log.read_text())

    def test_windows(self) -> None:
        """A token that has its half gets flows that end with their connections; another one has its own half."""
        first, second = ResumableTunnel(self.node, 100), ResumableTunnel(self.node, 101)
        third = ResumableTunnel(self.node, 102)
        self.assertEqual([tunnel.offer.get("window") for tunnel in (first, second, third)], [str(MIB), str(MIB), None])
        for _ in range(1400):
            first.send(cmd="x" * 1000)
        wait_for("a full window", lambda: self.out_bytes(first) > 0.9 * MIB)
        self.assertEqual(second.ask(cmd="version")["api"], 2)
        self.assertLess(self.out_bytes(first), 1.2 * MIB)
        third.wire.sock.close()
        wait_for("the end of a plain one", lambda: self.tunnels() == [100, 101])
        for tunnel in (first, second):
            tunnel.lose()
