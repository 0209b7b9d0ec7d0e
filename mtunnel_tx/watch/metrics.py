"""Metrics in Prometheus' text format: counted from events, and looked up when they are asked for.

Names and units follow Prometheus' conventions. There is no label with a VMID, a token or an address: the number of time
series does not grow with what moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mtunnel_tx import __version__
from mtunnel_tx.ports.events import (
    ByteCount,
    CommandAnswered,
    FlowBegan,
    FlowEnded,
    FlowParked,
    FlowResumed,
    MoveTold,
    PhaseReached,
    TunnelEnded,
    TunnelEvent,
    TunnelOpened,
    TunnelPhase,
)
from mtunnel_tx.ports.moves import StoodStill
from mtunnel_tx.wire.socketkinds import SOCKET_KINDS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LONG_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
DOWNTIME_S = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
PARKED_S = (0.1, 0.5, 1, 2, 5, 15, 30, 60, 300)
COMMAND_S = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600)
DELAY_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
SOCKETS = tuple(kind.name for kind in SOCKET_KINDS)
OUTCOMES = ("kept", "rolled_back", "held", "left_as_it_is")
REFUSALS = (
    "bad_request",
    "unauthenticated",
    "forbidden",
    "wrong_state",
    "not_implemented",
    "busy",
    "failed",
    "connection",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFacts:
    """What is looked up at each scrape.

    tunnels: live ones. held: VMs that wait for `mtunnel settle`. workers: worker processes. is_draining: no new tunnels
    are taken.
    """

    tunnels: Callable[[], int]
    held: Callable[[], int]
    workers: Callable[[], int]
    is_draining: Callable[[], bool]


class Metrics:
    """All metrics of one daemon, in a registry of their own; an instance is an observer (ports.events.Observer).

    Args: seconds: a monotonic clock.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._seconds = seconds
        self._flows: dict[tuple[str, int], tuple[str, Callable[[], ByteCount]]] = {}
        self._phases: dict[str, tuple[TunnelPhase, float]] = {}
        self._totals = {(name, direction): 0 for name in SOCKETS for direction in ("in", "out")}
        self._stood_still: set[str] = set()
        self._count_tunnels()
        self._count_work()
        self._begin_at_zero()
        info = Gauge("mtunnel_build_info", "The version, as a label.", ["version"], registry=self.registry)
        info.labels(__version__).set(1)

    def look_at(self, facts: LiveFacts) -> None:
        """Look these up at each scrape, too; once."""
        self.registry.register(_Looked(facts, self._bytes, self._open_flows))

    def _count_tunnels(self) -> None:
        self._opened = self._counter("mtunnel_tunnels_opened", "Tunnels that were opened.")
        self._ended = self._counter(
            "mtunnel_tunnels_ended", "Tunnels that are over, by what became of the VM.", "outcome"
        )
        self._duration = self._histogram("mtunnel_tunnel_duration_seconds", "How long tunnels lived.", LONG_S)
        self._phase = self._histogram(
            "mtunnel_phase_duration_seconds", "How long tunnels stayed in a phase.", LONG_S, "phase"
        )
        self._commands = self._histogram(
            "mtunnel_command_duration_seconds", "How long commands took.", COMMAND_S, "command", "result"
        )
        self._downtime = self._histogram(
            "mtunnel_downtime_seconds", "How long VMs ran at neither end, as our own sources measured it.", DOWNTIME_S
        )
        self._parkings = self._counter("mtunnel_flows_parked", "How often flows lost their connection.", "socket")
        self._parked = self._histogram(
            "mtunnel_flow_parked_seconds", "How long flows had no connection before they got another one.", PARKED_S
        )
        self._flow_ends = self._counter("mtunnel_flows_ended", "Flows that are over.", "socket", "end")

    def _count_work(self) -> None:
        self._refusals = self._counter("mtunnel_refusals", "Requests that were refused.", "reason")
        self._logins = self._counter("mtunnel_logins_failed", "Requests without a valid token.")
        self._delay = self._histogram("mtunnel_event_loop_delay_seconds", "How late the reactor was.", DELAY_S)
        self._fsync = self._histogram(
            "mtunnel_journal_append_seconds", "How long a journal record took to the disk.", DELAY_S
        )

    def _begin_at_zero(self) -> None:
        """Prometheus sees no increase in a time series that begins at 1, as that of the first failure would."""
        for outcome in OUTCOMES:
            self._ended.labels(outcome)
        for reason in REFUSALS:
            self._refusals.labels(reason)
        for phase in TunnelPhase:
            self._phase.labels(phase.name.lower())
        for name in SOCKETS:
            self._parkings.labels(name)
            for end in ("orderly", "aborted"):
                self._flow_ends.labels(name, end)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    content_type = CONTENT_TYPE

    def page(self) -> bytes:
        """The answer to a scrape."""
        return generate_latest(self.registry)

    # What others tell

    def __call__(self, event: TunnelEvent) -> None:
        match event:
            case TunnelOpened():
                self._opened.inc()
                self._phases[event.tunnel.upid] = TunnelPhase.WAITING, self._seconds()
            case PhaseReached():
                self._leave_phase(event.tunnel.upid)
                self._phases[event.tunnel.upid] = event.phase, self._seconds()
            case FlowBegan():
                self._flows[event.tunnel.upid, event.number] = event.socket.name, event.traffic
            case FlowEnded():
                self._end_flow(event)
            case FlowParked():
                self._parkings.labels(event.socket.name).inc()
            case FlowResumed():
                self._parked.observe(event.waited_s)
            case MoveTold():
                self._hear(event)
            case CommandAnswered():
                result = "failed" if event.failure else "done"
                self._commands.labels(event.name, result).observe(event.duration_s)
            case TunnelEnded():
                self._stood_still.discard(event.tunnel.upid)
                self._leave_phase(event.tunnel.upid)
                self._ended.labels(event.outcome.replace(" ", "_")).inc()
                self._duration.observe(event.duration_s)

    def refused(self, reason: str) -> None:
        """A request was refused. Args: reason: one of a few words, as it becomes a label."""
        self._refusals.labels(reason).inc()

    def login_failed(self) -> None:
        """A request had no valid token."""
        self._logins.inc()

    def was_late(self, delay_s: float) -> None:
        """The reactor did something so much later than it was asked to."""
        self._delay.observe(max(0.0, delay_s))

    def appended(self, duration_s: float) -> None:
        """A journal record is on the disk."""
        self._fsync.observe(duration_s)

    def _leave_phase(self, upid: str) -> None:
        if upid in self._phases:
            phase, since_s = self._phases.pop(upid)
            self._phase.labels(phase.name.lower()).observe(self._seconds() - since_s)

    def _hear(self, event: MoveTold) -> None:
        """A downtime is told again and again, and counts once."""
        upid = event.tunnel.upid
        for said in event.said:
            if isinstance(said, StoodStill) and upid not in self._stood_still:
                self._stood_still.add(upid)
                self._downtime.observe(said.downtime_s)

    def _end_flow(self, event: FlowEnded) -> None:
        self._flows.pop((event.tunnel.upid, event.number), None)
        self._flow_ends.labels(event.socket.name, "orderly" if event.orderly else "aborted").inc()
        for direction, size_bytes in zip(("in", "out"), event.traffic, strict=True):
            key = (event.socket.name, direction)
            self._totals[key] = self._totals.get(key, 0) + size_bytes

    def _bytes(self) -> Mapping[tuple[str, str], int]:
        """Payload bytes by socket kind and direction, of all flows that ever were."""
        totals = dict(self._totals)
        for name, traffic in self._flows.values():
            for direction, size_bytes in zip(("in", "out"), traffic(), strict=True):
                totals[name, direction] = totals.get((name, direction), 0) + size_bytes
        return totals

    def _open_flows(self) -> Mapping[str, int]:
        counts = dict.fromkeys(SOCKETS, 0)
        for name, _ in self._flows.values():
            counts[name] = counts.get(name, 0) + 1
        return counts


class _Looked(Collector):
    """What nobody counts: it is looked up."""

    def __init__(
        self,
        facts: LiveFacts,
        sizes: Callable[[], Mapping[tuple[str, str], int]],
        flows: Callable[[], Mapping[str, int]],
    ) -> None:
        self._facts = facts
        self._sizes = sizes
        self._flows = flows

    def collect(self) -> Iterable[Metric]:
        facts = self._facts
        yield GaugeMetricFamily("mtunnel_tunnels", "Live tunnels.", facts.tunnels())
        yield GaugeMetricFamily("mtunnel_held", "VMs that wait for a decision (mtunnel settle).", facts.held())
        yield GaugeMetricFamily("mtunnel_workers", "Worker processes.", facts.workers())
        yield GaugeMetricFamily("mtunnel_draining", "1: no new tunnels are taken.", int(facts.is_draining()))
        flows = GaugeMetricFamily("mtunnel_flows", "Open flows.", labels=["socket"])
        for name, count in self._flows().items():
            flows.add_metric([name], count)
        yield flows
        yield self._payload()

    def _payload(self) -> Metric:
        family = Metric("mtunnel_payload_bytes", "Payload from (in) and to (out) peers.", "counter")
        for (name, direction), size_bytes in self._sizes().items():
            family.add_sample("mtunnel_payload_bytes_total", {"socket": name, "direction": direction}, size_bytes)
        return family
