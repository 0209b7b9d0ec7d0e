"""One cell, from the guest's first beat to the table's row."""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

from tests.matrix.cell import HERE, THERE, Cell, Side
from tests.matrix.faults import Fault
from tests.matrix.joining import BROKEN_OFF, find_state, join
from tests.matrix.phases import PHASES, Phase
from tests.matrix.rules import RULES, End
from tests.matrix.serial import Listener
from tests.patience import wait_for

MORE_BEATS = 3
_RUNS_HERE, _RUNS_THERE = (End.SOURCE,), (End.TARGET, End.TARGET_FULL)
_QEMU_LEFT = {"off": "", "running": ", QEMU with a part of the memory"}
PROGRAM_KILLED = "source program killed"


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was seen of one cell; `wrong`: what should not be so."""

    fault: str
    phase: str
    impossible: str = ""
    end: str = ""
    ran_twice: str = ""
    still_ms: int = 0
    lost: str = ""
    ring: str = ""
    left: str = ""
    then: str = ""
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """In one line."""
        if self.impossible:
            return self.impossible
        return (
            f"{self.end}; {self.ran_twice}; stood still {self.still_ms} ms; beats {self.lost}; disk {self.ring}; "
            f"left: {self.left}; then: {self.then}"
        )


def run_cell(fault: Fault, phase: Phase) -> Outcome:
    """Do it. Whatever goes wrong is in the outcome."""
    outcome = Outcome(fault=fault.name, phase=phase.name, impossible=fault.impossible.get(phase.name, ""))
    if outcome.impossible:
        return outcome
    cell = None
    try:
        cell = Cell(
            small_disk=fault.small_disk,
            park_s=fault.park_s,
            restart_s=fault.restart_s,
            program=fault.program,
            behind_nginx=fault.behind_nginx,
        )
        Trial(cell, fault, phase, outcome).run()
    except Exception:
        said = f"\nthe migration said: {cell.said}" if cell is not None else ""
        outcome.wrong.append(traceback.format_exc() + said)
    finally:
        if cell is not None:
            _close(cell, outcome)
    return outcome


def _close(cell: Cell, outcome: Outcome) -> None:
    try:
        cell.close()
    except Exception:
        outcome.wrong.append(f"at the end: {traceback.format_exc()}")


class Trial:
    """A cell, what fails in it, and what comes of it."""

    def __init__(self, cell: Cell, fault: Fault, phase: Phase, outcome: Outcome) -> None:
        self.cell, self.fault, self.phase, self.outcome = cell, fault, phase, outcome
        end = RULES[fault.name][PHASES.index(phase)]
        assert end is not None, "the rules have no such cell"
        self.expected = end

    def run(self) -> None:
        """Reach the phase, fail, look, decide where somebody has to, look again."""
        cell = self.cell
        cell.boot()
        self.phase.reach(cell, *self.fault.options)
        self.fault.do(cell, self.phase)
        cell.proxy.release()
        cell.finish()
        wait_for("the end of the tunnel", lambda: not cell.tunnels(), 60)
        self.look()
        self.go_on()
        self.check_content()
        self.try_again()
        self.check_once()

    def look(self) -> None:
        """Who owns the VM, and who runs it."""
        end = self.find_end()
        self.outcome.end = end.value
        self.expect("the end", end, self.expected)
        left = self.find_left(end)
        self.outcome.left = ", ".join(left) or "nothing"
        if end not in (End.HELD, End.PARTS) and self.fault.name != PROGRAM_KILLED:
            self.expect("what is left", left, [])

    def find_end(self) -> End:
        cell = self.cell
        if self.expected is End.TARGET_FULL:
            wait_for("the guest's write", lambda: cell.there.status() == "io-error")
        here, there = cell.here.status(), cell.there.status()
        config = cell.there.guest(THERE)
        if cell.held():
            return self.find_held(here)
        if config is None:
            self.expect("volumes at the target", cell.there.images(THERE), [])
            self.expect("QEMU at the target", there, "off")
            return End.SOURCE if here == "running" else End.SOURCE_OFF
        self.expect("the target's config", "lock" in config, False)
        self.expect("QEMU at the source", here == "running", False)
        return {"running": End.TARGET, "io-error": End.TARGET_FULL}.get(there, End.TARGET_OFF)

    def find_held(self, here: str) -> End:
        if BROKEN_OFF not in (states := find_state(self.cell)):
            self.expect("the source", here in ("paused", "postmigrate"), True)
            return End.HELD
        self.expect("both parts", (here, *states), ("finish-migrate", BROKEN_OFF, BROKEN_OFF))
        return End.PARTS

    def find_left(self, end: End) -> list[str]:
        """Everything that is neither the owner's nor gone."""
        cell, left = self.cell, []
        if cell.there.journal():
            left.append(f"target: journal, config, volumes{_QEMU_LEFT.get(cell.there.status(), ', paused QEMU')}")
        if cell.here.leaving():
            left.append("source: journal, locked config")
        if end not in (End.SOURCE, End.SOURCE_OFF) and cell.here.status() != "off":
            left.append("source: paused QEMU")
        left += [f"source: {path.name}" for path in cell.here.runtime.glob(f"{HERE}.out*")]
        for name in cell.there.left_over()["sockets"]:
            if end in (End.SOURCE, End.SOURCE_OFF) and name != "hold.sock":
                left.append(f"target: {name}")
        return left

    def go_on(self) -> None:
        """Whoever is to decide decides; then the VM goes on where it belongs."""
        cell = self.cell
        self.outcome.still_ms = round(self.longest_rest_ms())
        steps = []
        if self.fault.name == PROGRAM_KILLED and self.expected in (End.HELD, End.TARGET):
            steps = self.tidy_up()
        elif self.expected is End.HELD:
            steps = self.come_late()
        elif self.expected is End.PARTS:
            steps = self.join_again()
        if self.expected in _RUNS_THERE:
            self.check_copy()
        if self.fault.small_disk:
            cell.make_room()
        if self.expected is End.TARGET_FULL:
            cell.there.run("mtunnel_tx.cli", "vm", "resume", str(THERE))
            steps.append("room made, target: `mtunnel vm resume`")
        self.outcome.then = ", ".join(steps)
        if self.owner() is not None:
            self.await_beats()

    def come_late(self) -> list[str]:
        """The network is back, and the source asks, and finishes what it had begun."""
        done = self.cell.here.run("mtunnel_tx.cli", "settle", str(HERE), self.cell.there.endpoint, check=False)
        self.expect("the source, late", (done.returncode, done.stderr), (0, ""))
        self.arrive()
        return ["target, runs there: the source is back, and `mtunnel settle` asks"]

    def join_again(self) -> list[str]:
        """Nothing is lost where somebody joins both parts, and tells both sides."""
        self.expect("what joins them", join(self.cell), [])
        self.arrive()
        return ["target, runs there: joined again by `migrate-recover`, and `mtunnel settle` at both"]

    def arrive(self) -> None:
        self.expect("the journals", (self.cell.there.journal(), self.cell.here.leaving()), ("", False))
        self.expected = End.TARGET

    def tidy_up(self) -> list[str]:
        """The next attempt finds out that the VM is the target's, and ends what is left of it here."""
        done = self.attempt()
        told = "since then" in done.stderr and "has ended before it was done" in done.stdout
        self.expect("the next attempt", (done.returncode, told), (1, True))
        is_held = self.expected is End.HELD
        self.arrive()
        return ["target, runs there: the next attempt asks"] if is_held else ["the next attempt says so, and tidies up"]

    def check_copy(self) -> None:
        """What is left at the source of a VM that is the target's: a copy that does not start."""
        config = self.cell.here.guest(HERE) or ""
        self.expect("the source's mark", ("moved: to " in config, "lock:" in config), (True, False))
        self.expect("the source", (self.cell.here.leaving(), self.cell.here.status()), (False, "off"))

    def owner(self) -> tuple[Side, int, Listener] | None:
        """Where it should run now; None: nowhere."""
        if self.expected is End.SOURCE:
            return self.cell.here, HERE, self.cell.before
        if self.expected in _RUNS_THERE:
            return self.cell.there, THERE, self.cell.after
        return None

    def await_beats(self) -> None:
        owner = self.owner()
        assert owner is not None
        side, _, listener = owner
        count = len(listener.beats)
        wait_for("more beats", lambda: len(listener.beats) >= count + MORE_BEATS)
        self.expect("the owner's QEMU", side.status(), "running")
        other = self.cell.there if side is self.cell.here else self.cell.here
        self.expect("the other side's QEMU", other.status(), "off")

    def check_content(self) -> None:
        """The beats and the disk, with the guest stopped for a moment."""
        at_source = self.expected in (End.SOURCE, End.SOURCE_OFF)
        side, vmid = (self.cell.here, HERE) if at_source else (self.cell.there, THERE)
        owner = self.owner()
        with self.stopped(side, owner is not None):
            lost, doubled = self.cell.lost()
            self.outcome.ring = self.cell.ring(side, vmid)
            self.expect("the disk's data", self.cell.data(side, vmid), True)
        self.outcome.lost = f"{lost} lost, {doubled} twice"
        self.expect("beats", (lost, doubled), (0, 0))
        # A QEMU that was killed had told of its last beat before its write was done.
        good = ("whole",) if owner is not None else ("whole", "1 behind", "2 behind")
        self.expect("the disk's ring", self.outcome.ring in good, True)

    def stopped(self, side: Side, runs: bool):  # type: ignore[no-untyped-def]
        spy = side.spy()
        assert spy is not None
        return _Stopped(spy.ask if runs else lambda _command: None)

    def try_again(self) -> None:
        """Nothing is left that would hinder the next attempt."""
        if self.expected is not End.SOURCE:
            return
        done = self.attempt()
        if done.returncode:
            said = f"{done.stdout}{done.stderr}\nafter:\n{self.cell.said}"
            self.outcome.wrong.append(f"the next attempt failed: {said}")
            return
        self.expected = End.TARGET
        self.await_beats()
        self.outcome.then += f"{', ' if self.outcome.then else ''}the next attempt succeeds"

    def attempt(self) -> subprocess.CompletedProcess[str]:
        """`mtunnel migrate` once more, past the proxy."""
        order = ("migrate", str(HERE), self.cell.there.endpoint, "--online", "--target-vmid", str(THERE))
        return self.cell.here.run("mtunnel_tx.cli", *order, "--target-storage", "local", check=False)

    def check_once(self) -> None:
        """Above all: it never ran on both sides."""
        both_ms = self.cell.overlap_ms()
        self.outcome.ran_twice = "never on both sides" if both_ms <= 0 else f"ON BOTH SIDES for {both_ms:.0f} ms"
        self.expect("time on both sides", both_ms, 0.0)
        lost, doubled = self.cell.lost()
        self.expect("beats in the end", (lost, doubled), (0, 0))

    def longest_rest_ms(self) -> float:
        """The longest time that the guest ran nowhere, until now or until it ran again."""
        spans = sorted(
            span for side in (self.cell.here, self.cell.there) for spy in side.spies for span in spy.all_spans()
        )
        rests = [later[0] - earlier[1] for earlier, later in pairwise(spans)]
        return 1000 * max([0.0, *rests])

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.outcome.wrong.append(f"{what}: {found!r} instead of {wanted!r}; it said: {self.cell.said}")


class _Stopped:
    """A guest that stands still for a moment."""

    def __init__(self, ask: Callable[[str], object]) -> None:
        self._ask = ask

    def __enter__(self) -> None:
        self._ask("stop")

    def __exit__(self, *_error: object) -> None:
        with suppress(Exception):
            self._ask("cont")
