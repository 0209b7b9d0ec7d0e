"""A real holder, and the daemon's end of its socket."""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.workers.holder import HeldChild, HolderClient, connect_holder, last_words
from tests.patience import patience_s, tries
from tests.processes import started_process

ENV = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
LONG_S = 3600.0


async def until(what, condition):
    for _ in tries(what):
        if condition():
            return
        await deferLater(reactor, 0.02)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sleeps(pid: int, name: str) -> bool:
    """Whether this process runs that program by now, and waits."""
    head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    return head.endswith(f"({name}") and rest.split()[0] == "S"


async def all_lines(child: HeldChild) -> list[str]:
    lines = []
    while (line := await child.next_line(patience_s())) is not None:
        lines.append(line)
    return lines


class HolderCase(TestCase):
    restart_s = LONG_S

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="hold-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "hold.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(self.path))
            listener.listen(4)
            argv = [sys.executable, "-m", "mtunnel_tx.hold", str(self.restart_s)]
            self.holder = started_process(self.addCleanup, argv, stdin=listener)
        self.lost = 0

    def connect(self) -> HolderClient:
        sock = connect_holder(self.path)
        assert sock is not None
        client = HolderClient(reactor, sock, self.start_again)
        self.addCleanup(client.close)
        return client

    def start_again(self):
        self.lost += 1
        raise BackendFailed("no other one today")

    def shell(self, client: HolderClient, script: str, name: str = "p") -> HeldChild:
        return client.spawn(name, ["sh", "-c", script], ENV)


class KeepingTests(HolderCase):
    async def test_the_next_daemon_gets_what_the_first_one_has_put_there(self):
        first, (ours, theirs) = self.connect(), socket.socketpair()
        self.addCleanup(theirs.close)
        first.put("flow/1", {"vmid": 100}, [ours])
        ours.close()
        await first.hello(LONG_S)
        first.close()
        second = self.connect()
        self.assertEqual((await second.hello(LONG_S)).names, ("flow/1",))
        value, (kept,) = await second.get("flow/1")
        self.addCleanup(kept.close)
        theirs.sendall(b"still open")
        self.assertEqual((value, kept.recv(64)), ({"vmid": 100}, b"still open"))

    async def check_kept(self, count):
        """All that `say_much` has put there, and no descriptor too many."""
        client = self.connect()
        self.assertEqual((await client.hello(LONG_S)).names, tuple(f"flow/{number}" for number in range(count)))
        return client

    def say_much(self, sock, count):
        """Take no answer."""
        with Path(os.devnull).open("rb") as file:
            for number in range(count):
                message = {"do": "put", "id": number, "name": f"flow/{number}", "value": number}
                socket.send_fds(sock, [json.dumps(message).encode()], [file.fileno()])

    async def test_what_a_daemon_has_said_before_it_was_killed(self):
        """It hears no answer; all that it has said counts."""
        sock = connect_holder(self.path)
        os.kill(self.holder.pid, signal.SIGSTOP)
        self.say_much(sock, 100)
        sock.close()
        os.kill(self.holder.pid, signal.SIGCONT)
        # The next daemon comes later: its coming, too, would have all of it read.
        await until("all of it", lambda: len([*Path(f"/proc/{self.holder.pid}/fd").iterdir()]) > 100)
        await self.check_kept(100)

    async def test_what_a_daemon_has_said_that_the_next_one_did_not_wait_for(self):
        """The first one lives on; what it has said before the next one came counts, and it hears that it is over."""
        with connect_holder(self.path) as sock:
            os.kill(self.holder.pid, signal.SIGSTOP)
            self.say_much(sock, 100)
            second = connect_holder(self.path)
            os.kill(self.holder.pid, signal.SIGCONT)
            client = HolderClient(reactor, second, self.start_again)
            self.addCleanup(client.close)
            self.assertEqual(len((await client.hello(LONG_S)).names), 100)
            sock.settimeout(patience_s())
            while sock.recv(4096):
                pass

    async def test_a_daemon_that_is_killed_with_answers_unread(self):
        """Its end then shows as a reset first."""
        sock = connect_holder(self.path)
        self.say_much(sock, 1)
        await until("an answer", lambda: select.select([sock], [], [], 0)[0])
        os.kill(self.holder.pid, signal.SIGSTOP)
        self.say_much(sock, 100)
        sock.close()
        os.kill(self.holder.pid, signal.SIGCONT)
        await self.check_kept(100)

    async def test_what_is_dropped_is_closed(self):
        client, (ours, theirs) = self.connect(), socket.socketpair()
        self.addCleanup(theirs.close)
        client.put("a", None, [ours])
        ours.close()
        client.drop("a")
        await client.hello(LONG_S)
        theirs.settimeout(patience_s())
        self.assertEqual(theirs.recv(1), b"")
        with self.assertRaises(BackendFailed):
            await client.get("a")

    async def test_nonsense_is_answered_and_the_connection_goes_on(self):
        sock = connect_holder(self.path)
        self.addCleanup(sock.close)
        sock.settimeout(patience_s())
        for line in (
            b"{",
            b"[]",
            b'"x"',
            b'{"do": "fly"}',
            b'{"do": []}',
            b'{"do": "spawn", "name": "p", "argv": 5}',
        ):
            sock.send(line)
            self.assertIn("error", json.loads(sock.recv(4096)), line)
        sock.send(b"x" * 140_000)
        self.assertIn("longer", json.loads(sock.recv(4096))["error"])
        sock.send(b'{"do": "hello", "id": 7}')
        self.assertEqual(json.loads(sock.recv(4096))["id"], 7)

    async def test_what_is_too_large(self):
        client = self.connect()
        await client.hello(LONG_S)
        self.assertIs(await client.put("a", "x" * (1 << 17)), True)
        child = client.spawn("p", ["true"], {"A": "x" * (1 << 17)})
        self.assertIn("is longer than 131072", await child.next_line(patience_s()))
        self.assertEqual((await client.hello(LONG_S)).names, ())

    async def test_no_descriptor_is_left(self):
        """What cannot be kept is not said to be."""
        client = self.connect()
        await client.hello(LONG_S)
        count = len(list(Path(f"/proc/{self.holder.pid}/fd").iterdir()))
        resource.prlimit(self.holder.pid, resource.RLIMIT_NOFILE, (count + 1, count + 1))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await client.put("a", 1, [ours, theirs])
            self.assertEqual((await client.hello(LONG_S)).names, ())
            await client.put("b", 1, [ours])
        self.assertEqual((await client.hello(LONG_S)).names, ("b",))


class LastWordsTests(HolderCase):
    def test_why_there_is_none(self):
        """A daemon that cannot have a holder says what that has said."""
        self.assertEqual(last_words(self.path), "")
        self.path.with_suffix(".stderr").write_text("setsid: failed\nPermission \x1b denied\n")
        self.assertEqual(last_words(self.path), "Permission ? denied")


class ProgramTests(HolderCase):
    async def test_lines_and_the_code(self):
        client = self.connect()
        client.watch()
        child = self.shell(client, "echo one; echo two >&2; printf rest; exit 5")
        self.assertEqual(await all_lines(child), ["one\n", "two\n", "rest"])
        self.assertEqual(await child.ended(), 5)
        self.assertTrue(child.exhausted())

    async def test_what_it_has_started_writes_on_and_on(self):
        """It has ended all the same, and the holder serves others."""
        client = self.connect()
        client.watch()
        child = self.shell(client, "yes & exit 3")
        self.assertEqual(await child.ended(), 3)
        await client.hello(LONG_S)

    async def test_a_long_line_of_anything(self):
        """Pieces of it, each short enough for one message: others do not suffer."""
        client = self.connect()
        client.watch()
        zeros = "head -c {} /dev/zero | tr '\\0' '{}'"
        child = self.shell(client, "; ".join((zeros.format(100_000, "\\1"), zeros.format(40_000, "\\377"))))
        lines = "".join(await all_lines(child))
        self.assertEqual((len(lines), self.lost), (140_000, 0))
        self.assertEqual((lines.count("\1"), lines.count("\ufffd")), (100_000, 40_000))

    async def test_a_program_that_is_not_there(self):
        client = self.connect()
        client.watch()
        child = client.spawn("p", ["/no/such/program"], ENV)
        (line,) = await all_lines(child)
        self.assertIn("/no/such/program", line)
        self.assertEqual(await child.ended(), 127)

    async def test_input_and_kill(self):
        client, (ours, theirs) = self.connect(), socket.socketpair()
        self.addCleanup(ours.close)
        client.watch()
        child = client.spawn("p", ["cat"], ENV, theirs)
        theirs.close()
        ours.sendall(b"hello\n")
        self.assertEqual(await child.next_line(patience_s()), "hello\n")
        self.assertTrue(runs(child.pid))
        await child.kill()
        self.assertFalse(runs(child.pid))
        self.assertEqual(await child.ended(), -9)

    async def test_the_next_daemon_hears_what_the_first_one_has_not_dealt_with(self):
        first = self.connect()
        first.watch()
        child = self.shell(first, "echo one; echo two; read _; echo three; exit 3")
        self.assertEqual(await child.next_line(patience_s()), "one\n")
        self.assertEqual(await child.next_line(patience_s()), "two\n")
        first.close()
        second = self.connect()
        self.assertEqual((await second.hello(LONG_S)).programs, ("p",))
        again = second.adopt("p", 1)
        second.watch()
        self.assertEqual(again.pid, child.pid)
        self.assertEqual(await all_lines(again), ["two\n", "three\n"])
        self.assertEqual(await again.ended(), 3)

    async def test_an_end_that_the_next_daemon_is_to_know_is_kept_until_it_is_let_go(self):
        first = self.connect()
        first.watch()
        child = first.spawn("p", ["sh", "-c", "exit 3"], ENV, keeps_end=True)
        self.assertEqual(await child.ended(), 3)
        first.close()
        second = self.connect()
        self.assertEqual((await second.hello(LONG_S)).programs, ("p",))
        again = second.adopt("p", keeps_end=True)
        second.watch()
        self.assertEqual(await again.ended(), 3)
        self.assertEqual((await second.hello(LONG_S)).programs, ("p",))
        await again.kill()
        self.assertEqual((await second.hello(LONG_S)).programs, ())

    async def test_the_end_of_one_that_is_killed_is_not_kept(self):
        client = self.connect()
        client.watch()
        child = client.spawn("p", ["sleep", "3600"], ENV, keeps_end=True)
        await child.kill()
        self.assertEqual((await client.hello(LONG_S)).programs, ())

    async def test_a_program_that_nobody_adopts_is_ended(self):
        first = self.connect()
        child = self.shell(first, "sleep 3600")
        await first.hello(LONG_S)
        self.assertTrue(runs(child.pid))
        first.close()
        second = self.connect()
        await second.hello(LONG_S)
        second.watch()
        await until("the end of the program", lambda: not runs(child.pid))

    async def test_output_that_nobody_takes_is_bounded(self):
        client = self.connect()
        child = self.shell(client, "exec yes $(seq 1000)")
        await client.hello(LONG_S)
        await until("a program that waits for room", lambda: sleeps(child.pid, "yes"))
        client.watch()
        for _ in range(2000):
            self.assertTrue((await child.next_line(patience_s())).startswith("1 2 3"))
        resident_bytes = int(Path(f"/proc/{self.holder.pid}/statm").read_text().split()[1]) * 4096
        self.assertLess(resident_bytes, 64 << 20)
        await child.kill()

    async def test_programs_count_as_ended_when_the_holder_is_killed(self):
        client = self.connect()
        client.watch()
        child = self.shell(client, "sleep 3600")
        await client.hello(LONG_S)
        os.kill(self.holder.pid, signal.SIGKILL)
        self.assertEqual(await child.ended(), -9)
        await until("the news", lambda: self.lost == 1)
        with contextlib.suppress(ProcessLookupError):  # it may have ended with the holder
            os.killpg(child.pid, signal.SIGKILL)


class EndTests(HolderCase):
    restart_s = 0.2

    async def test_without_a_daemon_it_ends_its_programs_first(self):
        client, (ours, theirs) = self.connect(), socket.socketpair()
        self.addCleanup(theirs.close)
        child = self.shell(client, "sleep 3600")
        client.put("a", None, [ours])
        ours.close()
        await client.hello(self.restart_s)
        client.close()
        theirs.settimeout(patience_s())
        self.assertEqual(theirs.recv(1), b"")
        self.assertFalse(runs(child.pid))
        self.assertEqual(self.holder.wait(patience_s()), 0)

    async def test_it_is_told_to_end(self):
        client = self.connect()
        await client.hello(LONG_S)
        child = self.shell(client, "sleep 3600")
        await client.finish()
        self.assertEqual(self.holder.wait(patience_s()), 0)
        self.assertFalse(runs(child.pid))


class EmptyTests(HolderCase):
    async def test_one_that_holds_nothing_ends_with_its_daemon(self):
        client = self.connect()
        await client.hello(LONG_S)
        client.close()
        self.assertEqual(self.holder.wait(patience_s()), 0)
