"""The port: whether the daemon listens there, and whether a firewall lets sources in, as far as that can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtunnel_tx.checkup.finding import Finding, fine, problem, warning

_LISTENING = "0A"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_START = "systemctl start mtunnel, or: mtunnel-twistd -n mtunnel"


def is_listening(port: int, tables: Sequence[Path] = _TABLES) -> bool:
    """Whether any program has this TCP port. Source: proc_net_tcp(5)."""
    for table in tables:
        for line in table.read_text("ascii").splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def check_listening(port: int, *, daemon_answers: bool, listens: bool) -> Finding:
    """Whether the daemon has its port."""
    subject = f"port {port}"
    if daemon_answers and listens:
        return fine(subject, "the daemon listens")
    if listens:
        return problem(subject, "another program has it, and no daemon answers", f"ss -ltnp sport = :{port}")
    if daemon_answers:
        return problem(subject, "the daemon runs, but nobody listens there", "mtunnel status")
    return warning(subject, "no daemon runs", _START)


def check_nft(ruleset: str, port: int) -> Iterator[Finding]:
    """Each chain that drops what comes in. Args: ruleset: of `nft --json list ruleset`."""
    items = [item for item in json.loads(ruleset).get("nftables", []) if isinstance(item, dict)]
    rules = [item["rule"] for item in items if "rule" in item]
    for chain in (item["chain"] for item in items if "chain" in item):
        if chain.get("hook") != "input" or chain.get("type") != "filter":
            continue
        own = [rule for rule in rules if (rule["family"], rule["table"]) == (chain["family"], chain["table"])]
        drops = chain.get("policy") == "drop" or any(_drops_all(rule) for rule in own if rule["chain"] == chain["name"])
        if drops and not any(_lets_in(rule, port) for rule in own):
            where = f"{chain['family']} {chain['table']} {chain['name']}"
            remedy = f"nft insert rule {where} tcp dport {port} accept"
            yield warning(
                "firewall", f"nftables: chain {where} drops what no rule allows, and none names port {port}", remedy
            )


def _drops_all(rule: Mapping[str, Any]) -> bool:
    kinds = [next(iter(part)) for part in rule.get("expr", []) if part]
    return bool(kinds) and "match" not in kinds and kinds[-1] in ("drop", "reject")


def _lets_in(rule: Mapping[str, Any], port: int) -> bool:
    """Whether a rule accepts this port, or everything."""
    parts = rule.get("expr", [])
    if not any("accept" in part for part in parts):
        return False
    matches = [part["match"] for part in parts if "match" in part]
    return not matches or any(_is_port(match) and _holds(match["right"], port) for match in matches)


def _is_port(match: Mapping[str, Any]) -> bool:
    left = match.get("left", {})
    payload = left.get("payload", {}) if isinstance(left, dict) else {}
    return payload.get("field") == "dport" and payload.get("protocol") in ("tcp", "th")


def _holds(right: Any, port: int) -> bool:
    if isinstance(right, int):
        return right == port
    if isinstance(right, dict) and "range" in right:
        return bool(right["range"][0] <= port <= right["range"][1])
    return isinstance(right, dict) and any(_holds(one, port) for one in right.get("set", []))


def check_iptables(rules: str, port: int, program: str = "iptables") -> Iterator[Finding]:
    """The INPUT chain. Args: rules: of `iptables -S`."""
    lines = rules.splitlines()
    drops = "-P INPUT DROP" in lines or any(re.fullmatch(r"-A INPUT -j (?:DROP|REJECT.*)", line) for line in lines)
    named = any("-j ACCEPT" in line and _names_port(line, port) for line in lines)
    if drops and not named and "-A INPUT -j ACCEPT" not in lines:
        remedy = f"{program} -I INPUT -p tcp --dport {port} -j ACCEPT"
        yield warning("firewall", f"{program}: INPUT drops what no rule allows, and none names port {port}", remedy)


def _names_port(line: str, port: int) -> bool:
    found = re.search(r"--dports? (\S+)", line)
    for part in found[1].split(",") if found else ():
        first, _, last = part.partition(":")
        if first.isdecimal() and int(first) <= port <= int(last or first):
            return True
    return False


def check_ufw(status: str, port: int) -> Iterator[Finding]:
    """ufw's own view. Args: status: of `ufw status`."""
    if "Status: active" not in status:
        return
    allowed = re.search(rf"^{port}(?:/tcp)?\s+(?:ALLOW|LIMIT)", status, re.MULTILINE)
    if allowed is None:
        yield warning("firewall", f"ufw is active and does not allow port {port}", f"ufw allow {port}/tcp")
