"""A real Prometheus scrapes a daemon while a VM comes: what the dashboard and the alerts ask is there."""

from __future__ import annotations

import json
import re
import shutil
import socket
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest

from tests.patience import patience_s, wait_for
from tests.processes import started_process
from tests.whole.node import Node
from tests.whole.peer import Tunnel, hold
from tests.whole.test_online import OnlineCase

ROOT = Path(__file__).parents[2]
PROGRAM = "prometheus"
SCRAPE = re.compile(r"```yaml\n(scrape_configs:.*?)```", re.S)


class Prometheus:
    """A server of its own, which scrapes as docs/watching.md says, only more often."""

    def __init__(self, folder: Path, node: Node, secret: str) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = sock.getsockname()[1]
        job = SCRAPE.findall((ROOT / "docs" / "watching.md").read_text())[0]
        for old, new in (
            ("host:8016", f"127.0.0.1:{node.port}"),
            ("watch@pve!prometheus=SECRET", f"watch@pve!prometheus={secret}"),
            ("certificate.pem", str(node.state / "tls" / "certificate.pem")),
            ("server_name: host", f"server_name: {node.name}"),
        ):
            assert old in job, f"docs/watching.md lacks {old}"
            job = job.replace(old, new)
        rules = (ROOT / "etc" / "prometheus" / "alerts.yaml").read_text()
        (folder / "alerts.yaml").write_text(re.sub(r"for: \d+m", "for: 0s", rules))
        often = "global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}\n"
        (folder / "prometheus.yml").write_text(f"{often}rule_files: [alerts.yaml]\n{job}")

    @property
    def argv(self) -> list[str]:
        storage, address = f"--storage.tsdb.path={self.folder}/data", f"--web.listen-address=127.0.0.1:{self.port}"
        return [PROGRAM, f"--config.file={self.folder}/prometheus.yml", storage, address, "--log.level=warn"]

    def ask(self, path: str, **query: str) -> Any:
        """Returns: the data of its API's answer. Raises: OSError: it does not answer. AssertionError: it refuses."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=patience_s()) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise
            raise AssertionError(f"{query}: {error.read().decode()}") from error

    def value(self, query: str) -> float | None:
        """Of the only series that comes of it; None: none does."""
        found = self.ask("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def is_up(self) -> bool:
        try:
            return self.value("up{job='mtunnel'}") == 1
        except OSError:
            return False

    def firing(self) -> set[str]:
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}


def questions() -> dict[str, str]:
    """What the dashboard asks, with its variables filled in."""
    dashboard = json.loads((ROOT / "etc" / "prometheus" / "dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return {expr: expr.replace("$instance", ".*").replace("$__rate_interval", "30s") for expr in asked}


class ScrapedTests(OnlineCase):
    def setUp(self) -> None:
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed (make metrics): NO METRIC IS SCRAPED BY THE REAL ONE")
        super().setUp()
        folder = tempfile.TemporaryDirectory(prefix="mtunnel-prometheus-", ignore_cleanup_errors=True)
        self.addCleanup(folder.cleanup)
        added = self.there.run(
            "mtunnel_tx.cli", "token", "add", "watch@pve!prometheus", "--role", "PVEAuditor", "--privsep", "--json"
        )
        self.prometheus = Prometheus(Path(folder.name), self.there, json.loads(added.stdout)["secret"])
        with (Path(folder.name) / "log").open("wb") as log:
            started_process(self.addCleanup, self.prometheus.argv, stdout=log, stderr=log)
        wait_for("its first scrape", self.prometheus.is_up)

    def test_a_move_and_what_goes_wrong(self) -> None:
        ask = self.prometheus
        self.boot()
        self.assertEqual(ask.firing(), set())
        self.migrate("--bwlimit", "8192")
        wait_for("the end of the move", lambda: ask.value("mtunnel_tunnels_ended_total{outcome='kept'}") == 1)
        for name in ("memory", "nbd"):
            query = f"mtunnel_payload_bytes_total{{direction='in',socket='{name}'}}"
            wait_for(f"the bytes of {name}", lambda query=query: (ask.value(query) or 0) > 1 << 16)
        self.assertGreater(ask.value("max_over_time(mtunnel_flows{socket='memory'}[10m])") or 0, 0)
        for expr, query in questions().items():
            self.assertTrue(ask.ask("query", query=query)["result"], f"nothing comes of {expr}")
        median = ask.value("histogram_quantile(0.5, sum by (le) (rate(mtunnel_downtime_seconds_bucket[10m])))")
        self.assertGreater(median or 0, 0)
        self.fail_moves()
        wait_for("two alerts", lambda: ask.firing() == {"MtunnelVmHeld", "MtunnelMovesFail"})
        self.there.run("mtunnel_tx.cli", "settle", "300", "--discard")
        wait_for("that it is settled", lambda: ask.firing() == {"MtunnelMovesFail"})
        self.there.stop()
        wait_for("that the daemon is missed", lambda: "MtunnelDown" in ask.firing())

    def fail_moves(self) -> None:
        """Three, one of which has to be decided about."""
        for vmid in (301, 302):
            Tunnel(self.there, vmid, storages="local", bridges="").leave()
        hold(self.there, 300)
