"""docs/matrix.md, made of what was seen."""

from __future__ import annotations

from collections.abc import Sequence

from tests.matrix.phases import PHASES
from tests.matrix.run import Outcome

_HEAD = """\
# What fails, and when

Written by `make matrix`. Each cell is a migration of its own of a running VM between two nodes of its own: real QEMUs,
a real daemon, `mtunnel migrate --online`, and a TCP proxy between them that holds, stalls and cuts connections. The
guest counts 18.2 times a second on its serial port and writes each number to its disk. The rule behind it: states.md.

A failure is done as soon as its phase is seen, never after a time:

| phase | is on when |
|---|---|
"""
_COLUMNS = """\
Seen in every cell: the guest never ran on both sides (both QEMUs' STOP and RESUME events, by the clock of the host);
where the VM stayed at the source or was settled back to it, the next migration succeeded.

*Stood still*: the longest time in which the guest ran nowhere, before somebody decided; where a guest in two parts
waits for a part of its memory, that does not count. *Beats*: numbers that no serial port showed, and numbers that two
showed. *Disk*: whether each number that was counted is on the owner's.
"""


def write_page(outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    tried = [outcome for outcome in outcomes if not outcome.impossible]
    good = sum(not outcome.wrong for outcome in tried)
    parts = [_HEAD + "\n".join(f"| {phase.name} | {phase.signal} |" for phase in PHASES) + "\n"]
    parts.append(f"{len(tried)} cells, {good} as the rule says; {len(outcomes) - len(tried)} that cannot be.\n")
    parts += ["## Who owns the VM\n", _overview(outcomes), "## What was seen\n", _COLUMNS, _details(outcomes)]
    return "\n".join(parts)


def _overview(outcomes: Sequence[Outcome]) -> str:
    names = [phase.name for phase in PHASES]
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for fault in dict.fromkeys(outcome.fault for outcome in outcomes):
        cells = {outcome.phase: outcome for outcome in outcomes if outcome.fault == fault}
        rows.append(f"| {fault} | {' | '.join(_owner(cells.get(name)) for name in names)} |")
    return "\n".join(rows) + "\n"


def _owner(outcome: Outcome | None) -> str:
    if outcome is None or outcome.impossible:
        return ""
    owner = outcome.end.partition(":")[0].partition(",")[0]
    late = ", then target" if outcome.then.startswith("target") else ""
    return f"{owner}{late}{' **WRONG**' if outcome.wrong else ''}"


def _details(outcomes: Sequence[Outcome]) -> str:
    rows = ["| failure | phase | owner | stood still | beats | disk | left | then |", "|---" * 8 + "|"]
    for outcome in outcomes:
        if outcome.impossible:
            rows.append(f"| {outcome.fault} | {outcome.phase} | cannot be: {outcome.impossible} | | | | | |")
        else:
            rows.append(_row(outcome))
    return "\n".join(rows) + "\n"


def _row(outcome: Outcome) -> str:
    owner = outcome.end + (" **WRONG**" if outcome.wrong else "")
    still = f"{outcome.still_ms} ms"
    cells = (outcome.fault, outcome.phase, owner, still, outcome.lost, outcome.ring, outcome.left, outcome.then)
    return f"| {' | '.join(cells)} |"
