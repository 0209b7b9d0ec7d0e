"""All rows, and their table in docs/machines.md."""

from tests.machines import rows_disks, rows_display, rows_firmware, rows_memory, rows_plain, rows_refused
from tests.machines.row import Row

_ROOMS = (rows_plain, rows_disks, rows_firmware, rows_display, rows_memory, rows_refused)
ROWS = tuple(sorted((row for room in _ROOMS for row in room.ROWS), key=lambda row: row.name))
_OF_HARDWARE = ("cannot move", "is not for this host")
BEGIN, END = "<!-- made by tests.machines -->", "<!-- end -->"


def outcome(row: Row) -> str:
    if row.refused or row.start_refused:
        return "both refuse" if row.there.startswith("refuses") else "refused"
    return "same" if row.there == "builds it" else "built"


def is_of_hardware(row: Row) -> bool:
    """Whether it is refused because it needs something of one host."""
    return outcome(row) == "refused" and any(words in row.refused for words in _OF_HARDWARE)


def rendered() -> str:
    """The table, with the marks around it."""
    named = [row for row in ROWS if not row.name.startswith("(none")]
    counts = {kind: sum(outcome(row) == kind for row in named) for kind in ("same", "both refuse", "refused", "built")}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    hardware = sum(map(is_of_hardware, named))
    summary = f"{len(named)} configs: {said}; {hardware} of the refused ones are for hardware of one host."
    lines = [BEGIN, summary, "", "| config | here | remark |", "|---|---|---|"]
    for row in named:
        there = "" if row.there == "builds it" else f"Proxmox {row.there}"
        remark = "; ".join(filter(None, (row.refused, row.start_refused, row.note, there)))
        lines.append(f"| {row.name} | {outcome(row)} | {remark} |")
    return "\n".join([*lines, END])
