"""`python -m tests.matrix [--cells TEXT] [--jobs N] [--page FILE]`: every failure in every phase, with real processes.

Exit status 1: a cell was not as the rule says.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mtunnel_tx.backends.host import PROGRAM
from tests.matrix.faults import FAULTS, Fault
from tests.matrix.page import write_page
from tests.matrix.phases import PHASES, Phase
from tests.matrix.run import Outcome, run_cell

Case = tuple[Fault, Phase]


def chosen(text: str) -> list[Case]:
    """The cells whose name, `FAULT / PHASE`, has the text in it."""
    every = [(fault, phase) for fault in FAULTS for phase in PHASES]
    return [(fault, phase) for fault, phase in every if text in f"{fault.name} / {phase.name}"]


def run_one(case: Case) -> Outcome:
    outcome = run_cell(*case)
    mark = "impossible" if outcome.impossible else "WRONG" if outcome.wrong else "as it should be"
    print(f"{case[0].name} / {case[1].name}: {mark}; {outcome.line()}", flush=True)
    for wrong in outcome.wrong:
        print(f"    {wrong}", flush=True)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.matrix", description=__doc__)
    parser.add_argument("--cells", default="", metavar="TEXT", help="only those whose name has it")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cells at a time")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    if shutil.which(PROGRAM) is None:
        print(f"{PROGRAM} is not installed: NOTHING WAS TRIED", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(run_one, chosen(options.cells)))
    if options.page is not None:
        options.page.write_text(write_page(outcomes), "utf-8")
    tried = [outcome for outcome in outcomes if not outcome.impossible]
    bad = [outcome for outcome in tried if outcome.wrong]
    print(f"{len(tried)} cells tried, {len(outcomes) - len(tried)} impossible, {len(bad)} not as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
