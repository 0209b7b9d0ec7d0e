"""What the benchmark says of whole moves, from figures that are given to it."""

import contextlib

from twisted.trial.unittest import SynchronousTestCase

from bench import moves
from bench.live import Voyage
from bench.processes import Trouble
from bench.targets import spread_percent

TIMES_S = {moves.ALONE: 4.0, moves.PROXMOX: 10.0, moves.OURS: 5.0}


def voyage(name):
    return Voyage(took_s=TIMES_S[name], downtime_ms=50, version_ms=(1.0, 2.0))


def attempt(_what, _name, measurement):
    with contextlib.suppress(Trouble):
        measurement()


class Live(SynchronousTestCase):
    def measured(self, **others):
        ways = {name: lambda name=name: voyage(name) for name in TIMES_S} | others
        self.patch(moves, "VOYAGES", ways)
        whole = moves.WholeMoves(3, attempt, lambda _: None)
        whole.run_live()
        return whole, {verdict.text: verdict for verdict in whole.verdicts()}

    def test_each_way_has_a_row_with_its_downtime(self):
        whole, _ = self.measured()
        rows = {name: value for what, name, value in whole.others if what == moves.LIVE}
        self.assertEqual(rows["Proxmox's path"], "10.0 s, downtime 50 ms")
        self.assertEqual(set(rows), set(TIMES_S))

    def test_ours_is_judged_against_both(self):
        _, verdicts = self.measured()
        self.assertEqual(verdicts["live migration, against two QEMUs alone"].value, 1.25)
        against = verdicts["live migration, time against Proxmox's path"]
        self.assertEqual((against.value, against.bound, against.reached), (0.5, 1.0, True))
        self.assertEqual(against.spread, spread_percent([0.5] * 3))

    def test_a_way_that_fails_is_left_out_alone(self):
        def fail():
            raise Trouble("no Perl here")

        whole, verdicts = self.measured(**{moves.PROXMOX: fail})
        self.assertNotIn(moves.PROXMOX, [name for _, name, _ in whole.others])
        self.assertIsNone(verdicts["live migration, time against Proxmox's path"].value)
        self.assertEqual(verdicts["live migration, against two QEMUs alone"].value, 1.25)
