"""Metrics: what is counted, what is looked up, and that names and labels are as Prometheus wants them."""

import re
import shutil

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.http.replies import refusal_word
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
    TunnelFacts,
    TunnelOpened,
    TunnelPhase,
)
from mtunnel_tx.ports.moves import StoodStill
from mtunnel_tx.tunnel.verdict import Verdict
from mtunnel_tx.watch.metrics import OUTCOMES, REFUSALS, LiveFacts, Metrics
from mtunnel_tx.wire.socketkinds import MEMORY, NBD
from tests.processes import run_program

FACTS = TunnelFacts(
    vmid=100, kind="qemu", token="mig@pve!t1", address="192.0.2.1", upid="UPID:x", since_s=0.0,
    traffic=lambda: ByteCount(0, 0),
)  # fmt: skip


class Case(SynchronousTestCase):
    def setUp(self):
        self.now_s = 0.0
        facts = LiveFacts(tunnels=lambda: 2, held=lambda: 1, workers=lambda: 3, is_draining=lambda: False)
        self.metrics = Metrics(lambda: self.now_s)
        self.metrics.look_at(facts)

    def samples(self):
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.metrics.page().decode())
            for sample in family.samples
        }

    def value(self, name, **labels):
        return self.samples()[name, tuple(sorted(labels.items()))]


class Zeroes(Case):
    """A series that begins at 1 has no increase for Prometheus."""

    def test_every_word_is_known_before_it_happens(self):
        self.assertEqual(sorted(OUTCOMES), sorted(verdict.value.replace(" ", "_") for verdict in Verdict))
        words = {refusal_word(status) for status in range(400, 600)} | {"connection"}
        self.assertEqual(set(REFUSALS), words)

    def test_they_begin_at_zero(self):
        for outcome in OUTCOMES:
            self.assertEqual(self.value("mtunnel_tunnels_ended_total", outcome=outcome), 0)
        for reason in REFUSALS:
            self.assertEqual(self.value("mtunnel_refusals_total", reason=reason), 0)
        self.assertEqual(self.value("mtunnel_payload_bytes_total", socket="nbd", direction="in"), 0)
        self.assertEqual(self.value("mtunnel_flows_parked_total", socket="memory"), 0)
        self.assertEqual(self.value("mtunnel_flows", socket="memory"), 0)
        self.assertEqual(self.value("mtunnel_phase_duration_seconds_count", phase="serving"), 0)


class EventTests(Case):
    def test_a_whole_tunnel(self):
        tell = self.metrics
        tell(TunnelOpened(tunnel=FACTS))
        self.now_s = 4.0
        tell(PhaseReached(tunnel=FACTS, phase=TunnelPhase.SERVING))
        tell(CommandAnswered(tunnel=FACTS, name="disk", failure="no space", duration_s=0.3))
        tell(FlowBegan(tunnel=FACTS, number=1, socket=MEMORY, traffic=lambda: ByteCount(1000, 10)))
        tell(FlowBegan(tunnel=FACTS, number=2, socket=NBD, traffic=lambda: ByteCount(5, 6)))
        self.assertEqual(self.value("mtunnel_flows", socket="memory"), 1)
        self.assertEqual(self.value("mtunnel_payload_bytes_total", socket="memory", direction="in"), 1000)
        tell(FlowEnded(tunnel=FACTS, number=1, socket=MEMORY, traffic=ByteCount(3000, 10), orderly=True))
        tell(FlowEnded(tunnel=FACTS, number=2, socket=NBD, traffic=ByteCount(5, 7), orderly=False))
        self.now_s = 10.0
        ended = {"reason": "", "outcome": "rolled back", "problem": None, "traffic": ByteCount(3005, 17)}
        tell(TunnelEnded(tunnel=FACTS, duration_s=10.0, **ended))
        for (name, labels), value in {
            ("mtunnel_tunnels_opened_total", ()): 1,
            ("mtunnel_tunnels_ended_total", (("outcome", "rolled_back"),)): 1,
            ("mtunnel_tunnel_duration_seconds_sum", ()): 10,
            ("mtunnel_phase_duration_seconds_sum", (("phase", "waiting"),)): 4,
            ("mtunnel_phase_duration_seconds_sum", (("phase", "serving"),)): 6,
            ("mtunnel_command_duration_seconds_count", (("command", "disk"), ("result", "failed"))): 1,
            ("mtunnel_flows_ended_total", (("end", "orderly"), ("socket", "memory"))): 1,
            ("mtunnel_flows_ended_total", (("end", "aborted"), ("socket", "nbd"))): 1,
            ("mtunnel_payload_bytes_total", (("direction", "in"), ("socket", "memory"))): 3000,
            ("mtunnel_payload_bytes_total", (("direction", "out"), ("socket", "nbd"))): 7,
        }.items():
            self.assertEqual(self.value(name, **dict(labels)), value, name)
        self.assertEqual(self.value("mtunnel_flows", socket="memory"), 0)

    def test_parked_flows(self):
        self.metrics(FlowParked(tunnel=FACTS, number=1, socket=NBD, reason="lost"))
        self.metrics(FlowResumed(tunnel=FACTS, number=1, socket=NBD, waited_s=3.0, parked_s=3.0))
        self.assertEqual(self.value("mtunnel_flows_parked_total", socket="nbd"), 1)
        self.assertEqual(self.value("mtunnel_flow_parked_seconds_sum"), 3)

    def test_a_downtime_counts_once(self):
        """It is told again with each `progress`."""
        for _ in range(3):
            self.metrics(MoveTold(tunnel=FACTS, said=(StoodStill(downtime_s=0.2),), by_source=True))
        self.assertEqual(self.value("mtunnel_downtime_seconds_count"), 1)
        self.assertEqual(self.value("mtunnel_downtime_seconds_bucket", le="0.2"), 1)

    def test_what_others_tell(self):
        self.metrics.refused("busy")
        self.metrics.login_failed()
        self.metrics.was_late(0.03)
        self.metrics.was_late(-1)
        self.metrics.appended(0.002)
        self.assertEqual(self.value("mtunnel_refusals_total", reason="busy"), 1)
        self.assertEqual(self.value("mtunnel_logins_failed_total"), 1)
        self.assertEqual(self.value("mtunnel_event_loop_delay_seconds_bucket", le="0.001"), 1)
        self.assertEqual(self.value("mtunnel_event_loop_delay_seconds_count"), 2)
        self.assertEqual(self.value("mtunnel_journal_append_seconds_count"), 1)

    def test_what_is_looked_up(self):
        for name, value in (("tunnels", 2), ("held", 1), ("workers", 3), ("draining", 0)):
            self.assertEqual(self.value(f"mtunnel_{name}"), value)


class FormTests(Case):
    def setUp(self):
        super().setUp()
        EventTests.test_a_whole_tunnel(self)

    def test_no_label_grows_with_what_moves(self):
        page = self.metrics.page().decode()
        labels = set(re.findall(r'[{,](\w+)="', page))
        known = {"outcome", "phase", "command", "result", "socket", "end", "direction", "version", "le", "reason"}
        self.assertLessEqual(labels, known)
        for secret in ("100", "mig@pve", "192.0.2.1", "UPID"):
            self.assertNotIn(f'"{secret}', page)

    def test_promtool_finds_nothing_to_complain_about(self):
        promtool = shutil.which("promtool")
        if promtool is None:
            raise SkipTest("promtool is not installed (Debian: prometheus)")
        words = [promtool, "check", "metrics"]
        done = run_program(words, input=self.metrics.page(), capture_output=True, check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))
