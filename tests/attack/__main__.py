"""`python -m tests.attack [--cells TEXT]`: each attack in each phase of a running VM's move, with real processes.

Exit status 1: a VM ran twice, or was nobody's.
"""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.attack.attacks import ATTACKS, Attack
from tests.matrix.cell import Cell
from tests.matrix.phases import PHASES, Phase
from tests.patience import wait_for


def attack(one: Attack, phase: Phase) -> list[str]:
    """Do it. Returns: what should not be so."""
    cell = Cell()
    try:
        cell.boot()
        phase.reach(cell)
        one.do(cell)
        cell.proxy.release()
        status = cell.finish()
        one.undo(cell)
        return look(cell, f"{one.name} / {phase.name}", status)
    except Exception:
        return [f"{traceback.format_exc()}\nthe migration said: {cell.said}"]
    finally:
        cell.close()


def look(cell: Cell, name: str, status: int) -> list[str]:
    """Say what came of it. Returns: what should not be so."""
    if not (cell.there.runtime / "control.sock").exists():
        cell.there.stop()
        cell.restart_daemon()
    wait_for("the end of the tunnel", lambda: not cell.tunnels(), 60)
    here, there = cell.here.status(), cell.there.status()
    waits = [side for side, does in (("target", cell.held()), ("source", cell.here.leaving())) if does]
    lost, doubled = cell.lost()
    overlap_ms = cell.overlap_ms()
    settle = f"; `mtunnel settle` at the {' and the '.join(waits)}" if waits else ""
    print(f"{name}: exit status {status}; source {here}, target {there}{settle}; beats {lost} lost, {doubled} twice")
    if status:
        print(f"  it said: {cell.said.strip().rpartition(chr(10))[2]}", flush=True)
    wrong = [f"on both sides for {overlap_ms:.0f} ms"] if overlap_ms > 0 else []
    if doubled:
        wrong.append("beats were seen twice")
    if "running" not in (here, there) and not waits:
        wrong.append("it runs nowhere, and nobody is told")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.attack", description=__doc__)
    parser.add_argument("--cells", default="", metavar="TEXT", help="only those whose name, ATTACK / PHASE, has it")
    options = parser.parse_args()
    cells = [(one, phase) for one in ATTACKS for phase in PHASES if options.cells in f"{one.name} / {phase.name}"]
    bad = 0
    for one, phase in cells:
        wrong = attack(one, phase)
        bad += bool(wrong)
        for text in wrong:
            print(f"{one.name} / {phase.name}: WRONG: {text}", flush=True)
    print(f"{len(cells)} tried, {bad} not as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
