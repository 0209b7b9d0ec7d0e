"""Moves and metrics over the API, for tokens with Sys.Audit; and what is counted of requests."""

from dataclasses import replace

from jsonschema import validate
from prometheus_client.parser import text_string_to_metric_families

from mtunnel_tx.http.results import MOVES
from mtunnel_tx.watch.metrics import CONTENT_TYPE, Metrics
from mtunnel_tx.watch.shape import move_json
from tests.cli.test_watch import DONE, MOVE
from tests.http.apicase import ApiCase


class WatchingCase(ApiCase):
    def parts(self):
        self.metrics = Metrics(lambda: 0.0)

        async def moves():
            return [move_json(MOVE), move_json(DONE)]

        return replace(super().parts(), moves=moves, counting=self.metrics)

    def counted(self):
        families = text_string_to_metric_families(self.metrics.page().decode())
        samples = [sample for family in families for sample in family.samples]
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


class Tests(WatchingCase):
    def test_moves(self):
        moves = self.ask("GET", "/mtunnel/moves").data
        validate(moves, MOVES)
        self.assertEqual([(move["phase"], move["percent"]) for move in moves], [("mirror", 20), ("done", 100)])

    def test_metrics(self):
        for path in ("/api2/json/mtunnel/metrics", "/metrics"):
            wire = self.wire()
            wire.write(self.raw("GET", path))
            answer = wire.response()
            self.assertEqual((answer.line, answer.headers["content-type"]), ("HTTP/1.1 200 OK", CONTENT_TYPE), path)
            self.assertIn(b"# TYPE mtunnel_tunnels_opened_total counter\n", answer.body)

    def test_who_may_see_it(self):
        for path in ("/mtunnel/moves", "/mtunnel/metrics"):
            self.assertIn(" 403 ", self.ask("GET", path, token="poor").line)

    def test_refusals_are_counted(self):
        self.ask("GET", "/mtunnel/moves", token="poor")
        self.ask("GET", "/nowhere")
        self.ask("GET", "/nodes/x/network")
        counted = self.counted()
        for reason in ("forbidden", "not_implemented", "bad_request"):
            self.assertEqual(counted["mtunnel_refusals_total", reason], 1, reason)

    def test_failed_logins_are_counted(self):
        wire = self.wire()
        wire.write(self.raw("GET", "/metrics", token="gone"))
        self.clock.advance(3)
        self.assertIn(" 401 ", wire.response().line)
        self.assertEqual(self.counted()["mtunnel_logins_failed_total",], 1)
