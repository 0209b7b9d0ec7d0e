"""The port and its firewall, from what the kernel and the firewalls' programs print."""

import json
import socket

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checkup.finding import FindingState
from mtunnel_tx.checkup.port import check_iptables, check_listening, check_nft, check_ufw, is_listening

CHAIN = {"family": "inet", "table": "filter", "name": "input", "type": "filter", "hook": "input", "prio": 0}
RULE = {"family": "inet", "table": "filter", "chain": "input"}
ACCEPT = {"accept": None}


def match(field, right, protocol="tcp"):
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


class Nft(SynchronousTestCase):
    def look(self, policy, *rules, port=8016):
        chain = {"chain": {**CHAIN, "policy": policy}}
        text = json.dumps(
            {"nftables": [{"metainfo": {}}, chain, *({"rule": {**RULE, "expr": expr}} for expr in rules)]}
        )
        return [finding.remedy for finding in check_nft(text, port)]

    def test_what_lets_it_in(self):
        self.assertEqual(self.look("accept"), [])
        for right in (8016, {"set": [22, 8016]}, {"range": [8000, 9000]}, {"set": [{"range": [8000, 9000]}]}):
            self.assertEqual(self.look("drop", [match("dport", right), ACCEPT]), [], right)
        self.assertEqual(self.look("drop", [ACCEPT]), [])

    def test_what_keeps_it_out(self):
        remedy = "nft insert rule inet filter input tcp dport 8016 accept"
        established = [{"match": {"left": {"ct": {"key": "state"}}, "right": ["established"]}}, ACCEPT]
        for rules in ([], [established], [[match("dport", 22), ACCEPT]], [[match("sport", 8016), ACCEPT]]):
            self.assertEqual(self.look("drop", *rules), [remedy])
        self.assertEqual(self.look("accept", [{"reject": None}]), [remedy])
        self.assertEqual(self.look("drop", [match("dport", 8016, "udp"), ACCEPT]), [remedy])

    def test_other_chains(self):
        text = json.dumps({"nftables": [{"chain": {**CHAIN, "hook": "forward", "policy": "drop"}}]})
        self.assertEqual(list(check_nft(text, 8016)), [])


class Others(SynchronousTestCase):
    def test_iptables(self):
        remedy = "iptables -I INPUT -p tcp --dport 8016 -j ACCEPT"
        cases = {
            "-P INPUT ACCEPT\n": [],
            "-P INPUT DROP\n": [remedy],
            "-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 8016 -j ACCEPT\n": [],
            "-P INPUT DROP\n-A INPUT -p tcp -m multiport --dports 22,8000:9000 -j ACCEPT\n": [],
            "-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 80161 -j ACCEPT\n": [remedy],
            "-P INPUT ACCEPT\n-A INPUT -j REJECT --reject-with icmp-port-unreachable\n": [remedy],
        }
        for rules, expected in cases.items():
            self.assertEqual([finding.remedy for finding in check_iptables(rules, 8016)], expected, rules)

    def test_ufw(self):
        active = "Status: active\n\nTo    Action  From\n--    ------  ----\n22/tcp  ALLOW  Anywhere\n"
        self.assertEqual([finding.remedy for finding in check_ufw(active, 8016)], ["ufw allow 8016/tcp"])
        self.assertEqual(list(check_ufw(f"{active}8016/tcp   ALLOW   Anywhere\n", 8016)), [])
        self.assertEqual(list(check_ufw("Status: inactive\n", 8016)), [])


class Listening(SynchronousTestCase):
    def test_a_real_port(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.assertTrue(is_listening(port))
        self.assertFalse(is_listening(port))

    def test_who_has_it(self):
        def state(daemon, listens):
            return check_listening(8016, daemon_answers=daemon, listens=listens).state

        self.assertEqual(state(True, True), FindingState.OK)
        self.assertEqual(state(False, False), FindingState.WARNING)
        self.assertEqual((state(True, False), state(False, True)), (FindingState.PROBLEM, FindingState.PROBLEM))
