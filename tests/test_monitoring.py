"""The dashboard and the alerts: they are sound, and ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.watch.metrics import LiveFacts, Metrics
from tests.processes import run_program

FOLDER = Path(__file__).parents[1] / "etc" / "prometheus"
ALERTS = FOLDER / "alerts.yaml"
_SUFFIXES = r"_(total|bucket|sum|count|created)$"


def known_metrics() -> set[str]:
    """The names of all families, without what Prometheus puts behind them."""
    metrics = Metrics(lambda: 0.0)
    metrics.look_at(LiveFacts(tunnels=lambda: 0, held=lambda: 0, workers=lambda: 0, is_draining=lambda: False))
    return {re.sub(_SUFFIXES, "", name) for name in re.findall(r"^# TYPE (\w+) ", metrics.page().decode(), re.M)}


class Monitoring(SynchronousTestCase):
    def test_only_metrics_that_there_are(self) -> None:
        for file in FOLDER.iterdir():
            asked = {re.sub(_SUFFIXES, "", name) for name in re.findall(r"\bmtunnel_\w+", file.read_text())}
            self.assertTrue(asked, file)
            self.assertLessEqual(asked, known_metrics(), file)

    def test_every_panel_asks_for_something(self) -> None:
        dashboard = json.loads((FOLDER / "dashboard.json").read_text())
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        self.assertGreater(len(panels), 7)
        for panel in panels:
            self.assertTrue(all(target["expr"] for target in panel["targets"]), panel["title"])
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))

    def test_promtool_takes_the_alerts(self) -> None:
        promtool = shutil.which("promtool")
        if promtool is None:
            raise SkipTest("promtool is not installed (Debian: prometheus): THE ALERTS ARE NOT CHECKED")
        done = run_program([promtool, "check", "rules", str(ALERTS)], capture_output=True, check=False)
        self.assertEqual((done.returncode, b"4 rules found" in done.stdout), (0, True), done)
