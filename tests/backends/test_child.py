"""Real programs, from their first line to their end."""

import errno
import os
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mtunnel_tx.backends import child as children
from mtunnel_tx.backends.child import PipedChild, run, spawn_child
from mtunnel_tx.backends.outputpipe import OutputPipe
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.sessions import session_members
from tests.patience import patience_s

ENV = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
CHILDREN = 5


def shell(script: str, **options) -> PipedChild:
    return spawn_child(reactor, ["sh", "-c", script], ENV, **options)


async def all_lines(child: PipedChild) -> list[str]:
    lines = []
    while (line := await child.next_line(patience_s())) is not None:
        lines.append(line)
    return lines


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


class EndlessTests(TestCase):
    async def test_short_lines_count_with_the_memory_that_they_take(self):
        self.patch(children, "LONGEST_OUTPUT_BYTES", 1 << 20)
        script = f"yes | head -n {1 << 14}"
        with self.assertRaises(BackendFailed) as caught:
            await run(reactor, ["sh", "-c", script], ENV, patience_s())
        self.assertEqual(str(caught.exception), f"a child wrote more than {1 << 20} bytes")


class RefusalTests(TestCase):
    def test_no_descriptor_is_left(self):
        def refuse(*_):
            raise OSError(errno.EMFILE, "Too many open files")

        for name in ("pipe", "open"):
            before = open_descriptors()
            patch = self.patch(os, name, refuse)
            error = self.assertRaises(BackendFailed, shell, "exit")
            patch.restore()
            self.assertEqual(error.text, "unable to start 'sh': Too many open files")
            self.assertEqual(open_descriptors(), before)


class LineTests(TestCase):
    async def test_both_outputs_keep_their_order(self):
        child = shell("for i in 1 2 3 4; do echo out$i; echo err$i >&2; done")
        wanted = [f"{name}{number}\n" for number in range(1, 5) for name in ("out", "err")]
        self.assertEqual(await all_lines(child), wanted)
        self.assertTrue(child.exhausted())
        self.assertEqual(await child.ended(), 0)

    async def test_last_line_may_lack_its_end(self):
        self.assertEqual(await all_lines(shell("printf 'one\ntwo'")), ["one\n", "two"])

    async def test_bytes_that_are_no_text(self):
        self.assertEqual(await all_lines(shell(r"printf '\377\n'")), ["\ufffd\n"])

    async def test_nothing_in_time(self):
        child = shell("echo first; read x; echo never")
        try:
            self.assertEqual(await child.next_line(patience_s()), "first\n")
        finally:
            await child.kill()

    async def test_waiting_is_bounded(self):
        child = shell("exec sleep 1000")
        self.assertIsNone(await child.next_line(0.05))
        self.assertFalse(child.exhausted())
        await child.kill()

    async def test_lines_after_the_end_are_kept(self):
        child = shell("seq 1 1000")
        await child.ended()
        self.assertFalse(child.exhausted())
        self.assertEqual(len(await all_lines(child)), 1000)
        self.assertIsNone(await child.next_line(patience_s()))

    async def test_input_and_end_of_it(self):
        child = shell("cat; echo end", given=b"ticket\n")
        self.assertEqual(await all_lines(child), ["ticket\n", "end\n"])

    async def test_no_input_is_the_end_of_input(self):
        self.assertEqual(await all_lines(shell("cat; echo end")), ["end\n"])

    async def test_standard_output_elsewhere(self):
        with tempfile.TemporaryFile() as file:
            child = shell("echo data; echo said >&2", stdout=file.fileno())
            self.assertEqual(await all_lines(child), ["said\n"])
            file.seek(0)
            self.assertEqual(file.read(), b"data\n")

    async def test_environment_is_all_of_it(self):
        child = spawn_child(reactor, ["env"], {"PATH": ENV["PATH"], "ONLY": "this"})
        self.assertEqual(sorted(await all_lines(child)), ["ONLY=this\n", f"PATH={ENV['PATH']}\n"])


class BoundTests(TestCase):
    async def test_a_child_that_is_not_read_has_to_wait(self):
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder) / "mark"
            child = shell(f"seq 1 100000; echo > {mark}", limit_bytes=4096)
            self.assertEqual(await child.next_line(patience_s()), "1\n")
            self.assertIsNone(await shell("sleep 0.3").next_line(patience_s()))
            self.assertFalse(mark.exists())
            self.assertEqual(len(await all_lines(child)), 99999)
            self.assertTrue(mark.exists())

    async def test_a_line_without_end_comes_in_pieces(self):
        child = shell("head -c 100000 /dev/zero | tr '\\0' x", limit_bytes=4096)
        pieces = await all_lines(child)
        self.assertEqual("".join(pieces), "x" * 100000)
        self.assertGreater(len(pieces), 1)


class PipeTests(TestCase):
    async def test_the_end_of_another_descriptor_is_not_its_own(self):
        """Within one turn of the reactor a number may be closed and taken again, before its old event comes."""
        read_end, write_end = os.pipe()
        called: list[Deferred[None]] = []
        pipe = OutputPipe(reactor, read_end, 1000, lambda: called and called.pop().callback(None))
        reactor.removeReader(pipe)
        pipe.connectionLost(Failure(ConnectionLost()))
        called.append(there := Deferred())
        os.write(write_end, b"there\n")
        await there
        self.assertEqual(pipe.take(), b"there\n")
        called.append(gone := Deferred())
        os.close(write_end)
        await gone
        self.assertTrue(pipe.empty())


class EndTests(TestCase):
    async def test_exit_code(self):
        self.assertEqual(await shell("exit 7").ended(), 7)

    async def test_signal(self):
        self.assertEqual(await shell("kill -15 $$").ended(), -15)

    async def test_session_of_its_own(self):
        child = shell("exec sleep 1000")
        await self._settled(child)
        self.assertEqual(os.getsid(child.pid), child.pid)
        await child.kill()

    async def _settled(self, child):
        while os.getsid(child.pid) != child.pid:
            await child.next_line(0.01)

    async def test_kill_takes_the_whole_session(self):
        script = "import os; os.setpgid(0, 0); print(os.getpid(), flush=True); import time; time.sleep(1000)"
        child = shell(f"'{sys.executable}' -c '{script}' & sleep 1000 & echo $!; wait")
        pids = [int(await child.next_line(patience_s())) for _ in range(2)]
        await child.kill()
        for pid in pids:
            while not is_gone(pid):
                await shell("true").ended()
        self.assertEqual(await child.ended(), -9)

    async def test_kill_when_gone(self):
        child = shell("exit 3")
        self.assertEqual(await child.ended(), 3)
        await child.kill()
        self.assertEqual(await child.ended(), 3)

    async def test_kill_at_once(self):
        """Whether its session is there yet or not, nothing of it goes on."""
        for _ in range(5):
            child = shell("sleep 1000 & sleep 1000")
            await child.kill()
            self.assertEqual(await child.ended(), -9)
            for pid in session_members(child.pid):
                while not is_gone(pid):
                    await shell("true").ended()

    async def test_a_grandchild_that_holds_the_pipe_holds_nobody_up(self):
        child = shell("sleep 1000 & echo $!")
        pid = int(await child.next_line(patience_s()))
        self.assertIsNone(await child.next_line(patience_s()))
        self.assertTrue(child.exhausted())
        os.kill(pid, 9)

    async def test_a_program_that_is_not_there(self):
        child = spawn_child(reactor, ["/nonexistent/program"], ENV)
        self.assertIn("/nonexistent/program", "".join(await all_lines(child)))
        self.assertEqual(await child.ended(), 127)

    async def test_nothing_to_start_with(self):
        before = open_descriptors()
        with self.assertRaises(BackendFailed):
            spawn_child(reactor, ["true"], {"a": "\0"} | ENV)
        self.assertEqual(open_descriptors(), before)

    async def test_no_descriptor_is_left(self):
        await self.to_its_end()
        before = open_descriptors()
        for _ in range(CHILDREN):
            await self.to_its_end()
        # What other tests left may go meanwhile; the last one's own may take a turn or two. The reactor's own pipe for
        # SIGCHLD may come meanwhile, too: two, where a leak would be one for each child.
        for _ in range(100):
            if len(open_descriptors() - before) < CHILDREN:
                return
            await deferLater(reactor, 0.05)
        self.fail(f"more than {sorted(before)}: {sorted(open_descriptors())}")

    async def to_its_end(self):
        """The end of its output too, which may be seen later than its own."""
        child = shell("echo x")
        await all_lines(child)
        await child.ended()

    async def test_a_waiter_may_be_cancelled(self):
        child = shell("exec sleep 1000")
        waiting = Deferred.fromCoroutine(child.next_line(patience_s()))
        waiting.addErrback(lambda failure: None)
        waiting.cancel()
        await waiting
        await child.kill()


class NameTests(TestCase):
    def test_what_logs_show(self):
        for words, shown in (
            (("prlimit", "--as=1", "--", "qemu-img", "info", "--secret"), "qemu-img info"),
            (("/usr/bin/notify", "--key=secret"), "notify"),
            (("qm", "start", "100"), "qm start"),
        ):
            self.assertEqual(children._shown(words), shown)


class RunTests(TestCase):
    async def test_output(self):
        self.assertEqual(await run(reactor, ["sh", "-c", "echo a; echo b >&2"], ENV, patience_s()), "a\nb\n")

    async def test_failure_tells_code_and_last_words(self):
        script = "yes first | head -n 5000; echo last; exit 5"
        try:
            await run(reactor, ["sh", "-c", script], ENV, patience_s(), name="pvesm free")
        except BackendFailed as error:
            self.assertTrue(error.text.startswith("'pvesm free' failed with exit code 5: "), error.text[:80])
            self.assertTrue(error.text.endswith("first\nlast"))
            self.assertLess(len(error.text), 4200)
        else:
            self.fail("no failure")

    async def test_control_characters_are_cleaned(self):
        try:
            await run(reactor, ["sh", "-c", r"printf '\033[31mred\n'; exit 1"], ENV, patience_s())
        except BackendFailed as error:
            self.assertIn("?[31mred", error.text)
        else:
            self.fail("no failure")

    async def test_too_long_is_killed(self):
        with tempfile.TemporaryDirectory() as folder:
            pid_file = Path(folder) / "pid"
            try:
                await run(reactor, ["sh", "-c", f"echo $$ > {pid_file}; exec sleep 1000"], ENV, 0.5)
            except TimedOut as error:
                self.assertEqual(error.text, "'sh' did not end within 0.5 s")
            else:
                self.fail("no timeout")
            self.assertTrue(is_gone(int(pid_file.read_text())))
