"""`mtunnel api`: what can be asked for over HTTP, as a table or as an OpenAPI document."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from mtunnel_tx.cli.output import add_json, answer
from mtunnel_tx.http.openapi import describe_api
from mtunnel_tx.http.operation import Operation
from mtunnel_tx.http.table import BASE, OPERATIONS
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS

_DESCRIPTION = """\
List the operations of the HTTP API and the commands of a tunnel, with the privileges that they need. No daemon is
asked: it works by the same tables. A running daemon serves the OpenAPI document at /api2/json/mtunnel/openapi."""


def configure(subparsers: Any) -> None:
    """Add `api` to the commands of `mtunnel`."""
    parser = subparsers.add_parser("api", help="describe the HTTP API", description=_DESCRIPTION)
    parser.add_argument("--openapi", action="store_true", help="print an OpenAPI 3.1 document (JSON)")
    add_json(parser)
    parser.set_defaults(run=run, load=lambda _path, _environ: None)


def run(args: argparse.Namespace, _settings: None) -> int:
    """Returns: the exit code."""
    if args.openapi:
        print(json.dumps(describe_api(OPERATIONS, QEMU_COMMANDS.values(), BASE), indent=2))
        return 0
    if args.json:
        answer(args, {"operations": [_operation_json(one) for one in OPERATIONS], "commands": _commands_json()})
        return 0
    for operation in OPERATIONS:
        _tell(f"{operation.method} {operation.path}", operation.summary, operation.needs)
    for command in QEMU_COMMANDS.values():
        _tell(command.name, command.summary, command.needs)
    return 0


def _operation_json(operation: Operation) -> dict[str, Any]:
    facts = {"method": operation.method, "path": operation.path, "summary": operation.summary}
    return {**facts, "needs": _needs_json(operation.needs)}


def _commands_json() -> list[dict[str, Any]]:
    return [
        {"name": command.name, "summary": command.summary, "needs": _needs_json(command.needs)}
        for command in QEMU_COMMANDS.values()
    ]


def _needs_json(needs: Iterable[Need]) -> list[dict[str, Any]]:
    return [{"path": need.path, "privileges": list(need.privileges), "when": need.when} for need in needs]


def _tell(name: str, summary: str, needs: Iterable[Need]) -> None:
    print(f"{name}\n    {summary}")
    for need in needs:
        when = f" ({need.when})" if need.when else ""
        print(f"    needs {' or '.join(need.privileges)} on {need.path}{when}")
