"""Moves as HTML: their bars, figures, flows, and how fast they were of late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtunnel_tx.page.facts import PageFacts
from mtunnel_tx.page.figures import amount, count, duration, moment, pairs, rate, table
from mtunnel_tx.page.html import Content, Html, element, join
from mtunnel_tx.page.rates import SAMPLES
from mtunnel_tx.page.visitor import Visitor
from mtunnel_tx.ports.tunnels import ParkedFlow, TunnelStatus
from mtunnel_tx.source.amounts import MIB, format_rate, format_time
from mtunnel_tx.watch.move import INCOMING, MoveState, Transfer

MOST_SHOWN = 64
"""Moves; `mtunnel status` shows all."""
_WIDTH, _HEIGHT = 240, 48
_HEADINGS = ("what", "how far", "done", "total", "rate", "left")


def show_moves(facts: PageFacts, visitor: Visitor) -> Html:
    """All that this one may see."""
    shown = [
        _show_move(move, facts.rates[place], _tunnel_of(facts, move), facts.at_s)
        for place, move in enumerate(facts.status.moves)
        if visitor.may_see_move(move.direction, move.token)
    ]
    if not shown:
        return element("p", "Nothing moves.", class_="nothing")
    rest = len(shown) - MOST_SHOWN
    more = element("p", f"{rest} more: mtunnel status shows them.") if rest > 0 else None
    return join([*shown[:MOST_SHOWN], more])


def _tunnel_of(facts: PageFacts, move: MoveState) -> TunnelStatus | None:
    """An outgoing move may have the same task at the target, but no tunnel here."""
    if move.direction != INCOMING:
        return None
    return next((tunnel for tunnel in facts.status.tunnels if tunnel.upid == move.upid), None)


def _show_move(move: MoveState, rates: Sequence[float], tunnel: TunnelStatus | None, at_s: float) -> Html:
    phase = element("span", move.phase.value, class_=f"phase {move.phase.name.lower()}")
    return element(
        "article",
        element("h3", f"VM {move.vmid} ", element("span", _way(move), class_="way"), " ", phase),
        element("p", move.reason, class_="reason") if move.reason else None,
        _bar(move.percent, f"VM {move.vmid}"),
        pairs(_facts(move)),
        _transfers(move),
        None if move.phase.is_end else plot(rates),
        _flows(tunnel, at_s) if tunnel is not None else None,
        class_="move",
        data_vmid=move.vmid,
        data_direction=move.direction,
        data_upid=move.upid,
    )


def _way(move: MoveState) -> str:
    if move.direction != INCOMING:
        return f"to {move.target}"
    # What a source calls itself nobody has verified.
    return f"from {move.source} ({move.address})" if move.source else f"from {move.address}"


def _facts(move: MoveState) -> Iterator[tuple[str, Content]]:
    yield "done", join([amount("done_bytes", move.done_bytes), " of ", amount("total_bytes", move.total_bytes)])
    if not move.phase.is_end:
        yield "rate", rate("rate_bytes_s", move.rate_bytes_s)
        yield "left", duration("remaining_s", move.remaining_s)
    yield "network in", amount("wire_in_bytes", move.wire_in_bytes)
    yield "network out", amount("wire_out_bytes", move.wire_out_bytes)
    if move.downtime_s is not None:
        yield "downtime", element("data", f"{1000 * move.downtime_s:.0f} ms", value=move.downtime_s, class_="figure")
    if move.parked_s:
        yield "was parked", duration("parked_s", move.parked_s)
    if move.target_vmid != move.vmid:
        yield "there", f"VM {move.target_vmid}"
    yield "token", move.token
    yield "since", moment("since_s", move.since_s)


def _bar(percent: int | None, label: str) -> Html:
    """Without a number it says that something goes on."""
    text = "? %" if percent is None else f"{percent} %"
    bar = element("progress", text, max=100, value=percent, aria_label=label)
    return element("div", bar, element("data", text, value=percent, class_="figure percent"), class_="bar")


def _transfers(move: MoveState) -> Html | None:
    if not move.transfers:
        return None
    return table(_HEADINGS, map(_transfer, move.transfers))


def _transfer(transfer: Transfer) -> tuple[Content, ...]:
    total_bytes = transfer.total_bytes
    percent = min(100, 100 * transfer.done_bytes // total_bytes) if total_bytes else None
    if percent is None and transfer.ended_s is not None:
        percent = 100
    running = transfer.is_running
    return (
        f"{transfer.label} ({transfer.kind.value})" if transfer.label != transfer.kind.value else transfer.label,
        element("progress", max=100, value=percent if running or percent else 0, aria_label=transfer.label),
        amount("transfer_done_bytes", transfer.done_bytes),
        amount("transfer_total_bytes", total_bytes),
        rate("transfer_rate_bytes_s", transfer.rate_bytes_s) if running else None,
        duration("transfer_remaining_s", transfer.remaining_s) if running else None,
    )


def plot(rates: Sequence[float]) -> Html | None:
    """The rates of the last SAMPLES seconds as a line; the newest stands at the right."""
    if len(rates) < 2:
        return None
    top = max(*rates, MIB)
    step = _WIDTH / (SAMPLES - 1)
    left = _WIDTH - step * (len(rates) - 1)
    points = [(left + step * place, _HEIGHT - _HEIGHT * value / top) for place, value in enumerate(rates)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    area = f"{left:.1f},{_HEIGHT} {line} {_WIDTH},{_HEIGHT}"
    said = f"rate of the last {len(rates)} s, up to {format_rate(top, 1)}"
    drawing = element(
        "svg",
        element("polygon", points=area),
        element("polyline", points=line),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=said,
    )
    return element("figure", drawing, element("figcaption", said), class_="plot")


def _flows(tunnel: TunnelStatus, at_s: float) -> Html:
    """What carries it: connections, and flows that wait for another one."""
    parked = [element("li", _describe_parked(flow, at_s), class_="parked") for flow in tunnel.parked]
    return element(
        "div",
        pairs(
            [
                ("tunnel", tunnel.state),
                ("flows", count("streams", tunnel.streams)),
                ("parked", count("parked", len(tunnel.parked))),
            ]
        ),
        element("ul", *parked) if parked else None,
        class_="flows",
    )


def _describe_parked(flow: ParkedFlow, at_s: float) -> str:
    waited_s = max(0.0, at_s - flow.since)
    return f"{flow.socket}: without a connection for {format_time(waited_s)}, given up after {format_time(flow.park_s)}"
