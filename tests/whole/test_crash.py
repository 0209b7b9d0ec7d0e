"""The daemon dies, at every step of a migration; another one starts: everything is as the handover rule says."""

from __future__ import annotations

import signal
import socket
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import wait_for
from tests.whole.moving import Move, make_qcow2, moved, nothing, processes_of, reboot, state_of
from tests.whole.node import Node, children
from tests.whole.peer import Websocket

DIED = "TASK ERROR: the daemon ended before the tunnel did"


def start_dying(node: Node, moment: str, number: int) -> None:
    """Start the daemon that dies at a step."""
    node.start(sys.executable, "-m", "tests.whole.crashing", str(node.config), moment, str(number))


def wait_for_death(node: Node) -> None:
    assert node.process is not None
    wait_for("the daemon's death", lambda: node.process is not None and node.process.poll() is not None)
    assert node.process.returncode == -signal.SIGKILL, node.process.returncode
    node.process = None


def move_until_death(node: Node, vmid: int, image: bytes) -> None:
    """A source whose target dies on the way."""
    try:
        move = Move(node, vmid, image)
        move.run(*Move.STEPS)
        move.tunnel.leave()
    except (AssertionError, OSError):
        # The connection is lost: what the peer makes of that depends on where it was.
        pass
    wait_for_death(node)


Point = tuple[str, int]
"""`before` or `after` a step of the journal; its number."""


class Lane:
    """One node that dies again and again, each time with another VM on its way.

    `kept_from`: the first step after which the VM is kept.
    """

    def __init__(self, node: Node, image: bytes, kept_from: int) -> None:
        self.node = node
        self.image = image
        self.kept_from = kept_from

    def run(self, crashes: list[tuple[Point, Callable[[Node], None]]]) -> list[Any]:
        """Args: crashes: where to die, and what happens before the next start. Returns: what was not as expected."""
        wrong = []
        for vmid, (point, between) in enumerate(crashes, 200):
            # The daemon that is to die next is the one that finds what the last one left.
            start_dying(self.node, *point)
            wrong += self.compare(vmid - 1, crashes[vmid - 201][0]) if vmid > 200 else []
            move_until_death(self.node, vmid, self.image)
            between(self.node)
        self.node.start()
        return wrong + self.compare(vmid, point)

    def compare(self, vmid: int, point: Point) -> list[Any]:
        found, expected = state_of(self.node, vmid), self.expect(vmid, point)
        return [(point, name, found[name], expected[name]) for name in expected if found[name] != expected[name]]

    def expect(self, vmid: int, point: Point) -> dict[str, Any]:
        moment, number = point
        if number >= self.kept_from + (moment == "before"):
            return moved(vmid, self.image, DIED)
        return nothing(DIED)


def restart(_node: Node) -> None:
    """Nothing else happens before the next start."""


class JournalTests(SynchronousTestCase):
    """SIGKILL before and after every step of the journal."""

    def setUp(self) -> None:
        self.image = make_qcow2()
        self.nodes = [Node(), Node()]
        for node in self.nodes:
            self.addCleanup(node.close)

    def steps(self) -> list[str]:
        """The steps of a migration that nothing disturbs."""
        node = self.nodes[0]
        start_dying(node, "before", 0)
        move = Move(node, 100, self.image)
        move.run(*Move.STEPS)
        move.leave()
        self.assertEqual(state_of(node, 100), moved(100, self.image, "TASK OK"))
        node.stop()
        return (node.root / "steps").read_text().split()

    def test_every_step(self) -> None:
        steps = self.steps()
        self.assertEqual((steps[0], steps[-1]), ("claim", "remove"))
        self.assertEqual(steps.count("making"), 3)
        numbers = range(1, len(steps) + 1)
        before, after = ([(moment, number) for number in numbers] for moment in ("before", "after"))
        crashes = [[(point, restart) for point in points] for points in (before, after)]
        for number, point in enumerate(before):
            crashes[number % 2].append((point, reboot))
        lanes = [Lane(node, self.image, steps.index("handed_over") + 1) for node in self.nodes]
        with ThreadPoolExecutor(2) as pool:
            self.assertEqual(list(pool.map(Lane.run, lanes, crashes)), [[], []])


class Phase:
    """A point of a migration, between journal records too: these steps were done, this import was begun so far."""

    def __init__(self, *steps: str, importing: str = "") -> None:
        self.steps = steps
        self.importing = importing

    def __str__(self) -> str:
        return " ".join((*self.steps, self.importing))

    def reach(self, node: Node, vmid: int, image: bytes) -> Move:
        move = Move(node, vmid, image)
        move.run(*self.steps)
        if self.importing:
            stream = move.begin("raw")
            payload = move.payload("raw")
            stream.send({"open": b"", "half": payload[:100_000], "all": payload, "closed": payload}[self.importing])
            if self.importing == "closed":
                stream.send_close()
                wait_for("the volume", lambda: node.images(vmid)[-1:] == [f"vm-{vmid}-disk-{len(move.volumes)}.raw"])
        return move

    def expected(self, vmid: int, image: bytes, task: str) -> dict[str, Any]:
        if "quit" in self.steps:
            return moved(vmid, image, "TASK OK")
        return moved(vmid, image, task) if "unlock" in self.steps else nothing(task)


PHASES = (
    Phase(),
    *(Phase("version", importing=importing) for importing in ("open", "half", "all", "closed")),
    Phase("version", "raw", "qcow2", importing="half"),
    *(Phase(*Move.STEPS[:count]) for count in range(4, len(Move.STEPS) + 1)),
)
UNEXPECTED = "TASK ERROR: mtunnel exited unexpectedly"


class PhaseCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.image = make_qcow2()
        self.node = Node()
        self.moves: list[Move] = []
        self.addCleanup(self.node.close)

    def reach(self, phase: Phase, vmid: int) -> Move:
        """The source stays until the end of the test, or until it is cut off."""
        self.moves.append(phase.reach(self.node, vmid, self.image))
        return self.moves[-1]

    def check(self, phase: Phase, vmid: int, task: str) -> None:
        self.assertEqual(state_of(self.node, vmid), phase.expected(vmid, self.image, task), phase)


class KillTests(PhaseCase):
    def test_in_the_middle_of_an_import(self) -> None:
        """The child works on while the next daemon starts."""
        phases = [phase for phase in PHASES if phase.importing]
        for vmid, phase in enumerate(phases, 300):
            self.node.start()
            if vmid > 300:
                self.check(phases[vmid - 301], vmid - 1, DIED)
            self.reach(phase, vmid)
            self.node.stop(signal.SIGKILL)
        self.node.start()
        self.check(phases[-1], vmid, DIED)


class RecoveryTests(PhaseCase):
    def test_dies_at_every_step(self) -> None:
        """One recovery, killed by each of its steps, once before and once after: each daemon comes one step further."""
        self.node.start()
        self.reach(Phase(*Move.STEPS[:5]), 300)
        self.node.stop(signal.SIGKILL)
        deaths = 0
        while self.dies("before") and self.dies("after"):
            deaths += 2
        self.check(Phase(), 300, DIED)
        # undo, three volumes, the journal's own end
        self.assertEqual(deaths, 10)

    def dies(self, moment: str) -> bool:
        self.node.launch(sys.executable, "-m", "tests.whole.crashing", str(self.node.config), moment, "1", "found")
        process = self.node.process
        assert process is not None
        wait_for("death or life", lambda: process.poll() is not None or self.listens())
        return process.returncode == -signal.SIGKILL

    def listens(self) -> bool:
        try:
            return bool(self.node.ask(cmd="status")["listening"])
        except (OSError, ValueError):
            return False


class TermTests(PhaseCase):
    def test_in_every_phase(self) -> None:
        for vmid, phase in enumerate(PHASES, 300):
            self.node.start()
            self.reach(phase, vmid)
            self.node.stop(signal.SIGTERM)
            found = state_of(self.node, vmid)
            expected = {**phase.expected(vmid, self.image, UNEXPECTED), "sockets": [], "held": None}
            self.assertEqual(found, expected, phase)


class CutTests(PhaseCase):
    """The command connection ends without a word."""

    def setUp(self) -> None:
        super().setUp()
        self.node.start()

    def cut(self, phases: tuple[Phase, ...], cut: Callable[[Websocket], None]) -> None:
        for vmid, phase in enumerate(phases, 300):
            cut(self.reach(phase, vmid).tunnel.commands)
            wait_for("the end of the tunnel", lambda: not self.node.ask(cmd="status")["tunnels"])
            self.check(phase, vmid, UNEXPECTED)

    def test_reset(self) -> None:
        def reset(connection: Websocket) -> None:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sock.close()

        self.cut(PHASES, reset)

    def test_end_without_close(self) -> None:
        self.cut(PHASES[::2], Websocket.drop)


STALLING = """\
#!/bin/sh
# A pvesm that does some of its commands only once it may.
case " {stalled} " in *" $1 "*) while [ ! -e {go} ]; do sleep 0.02; done;; esac
exec {python} -m mtunnel_tx.pvesm "$@"
"""


class SlowTests(PhaseCase):
    """Children that take their time."""

    def stall(self, *commands: str) -> None:
        """Let `pvesm` wait in these commands."""
        self.go = self.node.root / "go"
        program = self.node.root / "pvesm"
        program.write_text(STALLING.format(stalled=" ".join(commands), go=self.go, python=sys.executable))
        program.chmod(0o755)
        settings = self.node.config.read_text()
        self.node.config.write_text(f'{settings}[commands]\npvesm = "{program}"\n')

    def test_a_child_that_makes_a_volume_is_ended_first(self) -> None:
        """It would make it after the recovery had looked."""
        self.stall("alloc")
        self.node.start()
        move = Move(self.node, 300, self.image)
        move.tunnel.send('{"cmd":"disk","storage":"local","format":"raw","drive":{"size":1024}}')
        wait_for("the child", lambda: any(" alloc " in line for line in self.children()))
        self.node.stop(signal.SIGKILL)
        self.assertNotEqual(processes_of(self.node), [])
        self.node.start()
        self.go.touch()
        self.check(Phase(), 300, DIED)

    def children(self) -> list[str]:
        assert self.node.process is not None
        return children(self.node.process.pid)

    def test_the_port_opens_after_the_recovery(self) -> None:
        self.stall("free")
        self.node.start()
        self.reach(Phase("raw"), 300)
        self.node.stop(signal.SIGKILL)
        self.node.launch()
        wait_for("the rollback", lambda: self.door_is_open() and any(" free " in line for line in self.children()))
        self.assertEqual(self.node.ask(cmd="status")["listening"], [])
        self.go.touch()
        wait_for("the port", lambda: self.node.ask(cmd="status")["listening"])
        self.check(Phase(), 300, DIED)

    def door_is_open(self) -> bool:
        return (self.node.runtime / "control.sock").is_socket()
