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
TIMES = Path(__file__).parent / "alerts.yaml"
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

    def test_when_they_fire(self) -> None:
        promtool = shutil.which("promtool")
        if promtool is None:
            raise SkipTest("promtool is not installed (Debian: prometheus): WHEN ALERTS FIRE IS NOT CHECKED")
        done = run_program([promtool, "test", "rules", str(TIMES)], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, "SUCCESS" in done.stdout), (0, True), done)
        tested = set(re.findall(r"alertname: (\w+)", TIMES.read_text()))
        self.assertEqual(tested, set(re.findall(r"alert: (\w+)", ALERTS.read_text())))

    def test_the_dashboard_has_the_shape_that_grafana_reads(self) -> None:
        """By structure: no Grafana is asked."""
        dashboard = json.loads((FOLDER / "dashboard.json").read_text())
        self.assertEqual((dashboard.get("id"), dashboard["schemaVersion"] >= 36), (None, True))
        variables = {one["name"]: one for one in dashboard["templating"]["list"]}
        self.assertEqual(
            (variables["datasource"]["type"], variables["datasource"]["query"]), ("datasource", "prometheus")
        )
        source = {"type": "prometheus", "uid": "${datasource}"}
        self.assertEqual(variables["instance"]["datasource"], source)
        cells: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            covered = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            self.assertFalse(covered & cells, panel["title"])
            cells |= covered
            self.assertEqual(panel["datasource"], source, panel["title"])
            self.assertIn(panel["type"], ("stat", "timeseries"))
            references = [target["refId"] for target in panel["targets"]]
            self.assertEqual(len(set(references)), len(references), panel["title"])
            asked = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
            self.assertLessEqual(asked, {"instance", "__rate_interval"}, panel["title"])
