"""The parts of the page that change, each as HTML by its name; pure, and all texts escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtunnel_tx.page.facts import PageFacts
from mtunnel_tx.page.figures import amount, count, duration, moment, pairs, paragraphs, table
from mtunnel_tx.page.html import Content, Html, element, join
from mtunnel_tx.page.moves import show_moves
from mtunnel_tx.page.visitor import Visitor
from mtunnel_tx.watch.history import FinishedMove

FORM = "act"
"""The id of the form that all buttons belong to; it has the session's own field, so the buttons are alike for all."""
MOST_HELD = 64
MOST_ROWS = 20
TITLES: Mapping[str, str] = {
    "moves": "Moves",
    "held": "Waiting for a decision",
    "history": "History",
    "node": "This daemon",
    "workers": "Workers",
    "limits": "Limits",
}
"""The sections in their order, with their headings."""
_FOR_ALL = ("moves", "held", "history")
_RESUME = (
    "Keep: the VM is this host's. It runs on if its whole state is here, everything stays, and the tunnel's lock is"
    " taken from its config. Choose it if the VM is gone at the source."
)
_DISCARD = (
    "Discard: the source has the VM. What the tunnel made is freed, but nothing that ran here or that is used. Choose"
    " it if the VM runs or is whole at the source."
)
_HISTORY = ("when", "VM", "peer", "outcome", "time", "in", "out", "token")


def show_sections(facts: PageFacts, visitor: Visitor) -> dict[str, Html]:
    """What this visitor may see, by the names of TITLES; `now`: when this was; `waits`: how much waits."""
    shown = {
        "now": moment("now", facts.at_s),
        "waits": _show_waits(facts, visitor),
        "moves": show_moves(facts, visitor),
        "held": _show_held(facts, visitor),
        "history": _show_history(facts, visitor),
    }
    if visitor.sees_all:
        shown |= {"node": _show_node(facts, visitor), "workers": _show_workers(facts), "limits": _show_limits(facts)}
    return shown


def titles_for(visitor: Visitor) -> dict[str, str]:
    """The sections that this visitor has."""
    return {name: title for name, title in TITLES.items() if visitor.sees_all or name in _FOR_ALL}


def _show_node(facts: PageFacts, visitor: Visitor) -> Html:
    status = facts.status
    drain = _button("drain", "yes", "Drain: take no new tunnels, end after the last one", "drain")
    return join(
        [
            pairs(
                [
                    ("node", status.node),
                    ("version", status.version),
                    ("process", count("pid", status.pid)),
                    ("listens on", ", ".join(status.listening)),
                    ("streams run by", status.relay),
                    ("tunnels", count("tunnels", len(status.tunnels))),
                    ("held VMs", count("held", len(status.held))),
                ]
            ),
            element("p", "It takes no new tunnels, and ends after the last one.", class_="draining")
            if status.is_draining
            else None,
            _choice("Drain…", drain) if visitor.may_drain and not status.is_draining else None,
        ]
    )


def _held_for(facts: PageFacts, visitor: Visitor) -> list[int]:
    return [vmid for vmid in sorted(facts.status.held) if visitor.may_see(facts.owners.get(vmid, ""))]


def _show_waits(facts: PageFacts, visitor: Visitor) -> Html:
    """A way down to them: many moves may stand before."""
    waiting = len(_held_for(facts, visitor))
    text = "1 VM waits for a decision" if waiting == 1 else f"{waiting} VMs wait for a decision"
    return join([element("a", text, href="#held", class_="waits") if waiting else None])


def _show_held(facts: PageFacts, visitor: Visitor) -> Html:
    shown = [
        _show_one_held(vmid, facts.status.held[vmid], visitor.may_settle(vmid, facts.owners.get(vmid, "")))
        for vmid in _held_for(facts, visitor)
    ]
    if not shown:
        return element("p", "Nothing waits.", class_="nothing")
    rest = len(shown) - MOST_HELD
    return join([*shown[:MOST_HELD], element("p", f"{rest} more: mtunnel status shows them.") if rest > 0 else None])


def _show_one_held(vmid: int, reason: str, may_settle: bool) -> Html:
    decide = _choice(
        "Settle…",
        paragraphs("First look at the source.", _RESUME),
        _button("settle", f"{vmid} resume", f"Keep VM {vmid}", "settle"),
        paragraphs(_DISCARD),
        _button("settle", f"{vmid} discard", f"Discard VM {vmid}", "settle"),
    )
    return element(
        "article",
        element("h3", f"VM {vmid}"),
        element("p", reason, class_="reason"),
        decide if may_settle else element("p", f"mtunnel settle {vmid} decides; this token may not."),
        class_="held",
        data_vmid=vmid,
    )


def _choice(title: str, *content: Content) -> Html:
    """What is not to be done by one click."""
    return element("details", element("summary", title), *content)


def _button(name: str, value: str, text: str, action: str) -> Html:
    return element(
        "button", text, form=FORM, formaction=action, name=name, value=value, class_=value.rpartition(" ")[2]
    )


def _show_history(facts: PageFacts, visitor: Visitor) -> Html:
    rows = [row for row in facts.history if visitor.may_see_move(row.direction, row.token)][:MOST_ROWS]
    problem = element("p", facts.history_problem, class_="reason") if facts.history_problem else None
    if not rows:
        return join([problem, element("p", "Nothing has moved yet.", class_="nothing")])
    return join([problem, table(_HISTORY, map(_history_row, rows))])


def _history_row(row: FinishedMove) -> tuple[Content, ...]:
    why = row.problem or row.reason
    outcome = element("div", row.outcome, element("small", f" {why}") if why else None)
    way = "from" if row.direction == "in" else "to"
    return (
        moment("since_s", row.since_s),
        row.vmid,
        f"{way} {row.peer}",
        outcome,
        duration("duration_s", row.duration_s),
        amount("bytes_in", row.bytes_in),
        amount("bytes_out", row.bytes_out),
        row.token,
    )


def _show_workers(facts: PageFacts) -> Html:
    workers = facts.status.workers
    if not workers:
        return element("p", "The daemon carries all streams in threads of its own.", class_="nothing")
    return table(("process", "connections", "busy"), map(_worker_row, workers))


def _worker_row(worker: Mapping[str, int]) -> Sequence[Content]:
    return [count(f"worker_{name}", worker[name]) for name in ("pid", "connections", "busy")]


def _show_limits(facts: PageFacts) -> Html:
    rows = (
        (f"limits.{name}" if "." not in name else name, count("used", usage.used), count("most", usage.most))
        for name, usage in facts.status.limits.items()
    )
    return table(("key", "now", "at most"), rows)
