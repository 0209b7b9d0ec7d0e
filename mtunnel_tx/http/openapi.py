"""The API described by OpenAPI 3.1, made from the tables that the daemon itself works by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from mtunnel_tx import __version__
from mtunnel_tx.http.operation import Operation
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.wire.schema import Object

_IN_PATH = re.compile(r"\{(\w+)\}")
_TITLE = "mtunnel-tx"
_ABOUT = """\
The receiving end of a Proxmox VE remote migration. Paths and answers are those of Proxmox VE's own API, as far as a
source uses it. A wrong request is answered with its reason in the status line, and in `message` and `errors` of the
body."""
_TOKEN = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "`PVEAPIToken=USER@REALM!TOKENID=SECRET`",
}
_PROBLEM = {
    "type": "object",
    "properties": {
        "data": {"type": "null"},
        "message": {"type": "string", "description": "the reason; ends in a line feed"},
        "errors": {
            "type": "object",
            "description": "wrong parameters and their reasons",
            "additionalProperties": {"type": "string"},
        },
    },
    "required": ["data"],
}
_REFUSALS = {
    "400": "a parameter is wrong or missing",
    "401": "the token or the ticket is not valid; answered after three seconds, without a body for a token",
    "403": "the token lacks a privilege",
    "409": "it cannot be done now: something else is under way, or the daemon is draining or stopping",
    "410": "the flow has ended: `data` has its `verdict` and `reason`, and whether it ended `orderly`",
    "413": "the request is too large; without a body",
    "431": "the request's header is too large; without a body",
    "500": "it cannot be done, or there is no such thing; the reason is in the status line",
    "502": "the node that is asked for cannot be reached",
    "503": "too many requests",
    "504": "something did not end in time",
    "508": "nodes pass the request around",
}
_ENDED = {
    "type": "object",
    "properties": {
        "data": {
            "type": "object",
            "properties": {
                "verdict": {"type": "string"},
                "reason": {"type": "string"},
                "orderly": {"type": "boolean"},
            },
            "required": ["verdict", "reason", "orderly"],
        },
        "message": {"type": "string", "description": "the same as a sentence; ends in a line feed"},
    },
    "required": ["data"],
}
_WITHOUT_BODY = ("413", "431")
_ALWAYS = (400, 401, 413, 431, 500, 503)
"""What any operation can be refused with."""
_PASSED_ON = (502, 504, 508)
"""What an operation of another node can be refused with."""


class TunnelCommand(Protocol):
    """A command of a tunnel, as `mtunnel_tx/tunnel` has it."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def schema(self) -> Object: ...

    @property
    def needs(self) -> tuple[Need, ...]: ...


def describe_api(
    operations: Sequence[Operation], commands: Iterable[TunnelCommand] = (), base: Sequence[str] = ()
) -> dict[str, Any]:
    """Make the document.

    Args: commands: of a tunnel's command connection; OpenAPI has no word for them, so they stand in
    `x-tunnel-commands`. base: components of the path in front of all others.
    """
    paths: dict[str, dict[str, Any]] = {}
    prefix = "".join(f"/{part}" for part in base)
    for operation in operations:
        paths.setdefault(f"{prefix}{operation.path}", {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": __version__, "description": _ABOUT, "license": _LICENSE},
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": "https://{host}:8016", "variables": {"host": {"default": "localhost"}}}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": _TOKEN},
            "schemas": {"problem": _PROBLEM, "ended": _ENDED},
            "responses": {code: _refusal(code, text) for code, text in _REFUSALS.items()},
        },
        "x-tunnel-commands": [_command(command) for command in commands],
    }


_LICENSE = {"name": "MIT", "identifier": "MIT"}


def _refusal(code: str, text: str) -> dict[str, Any]:
    if code in _WITHOUT_BODY:
        return {"description": text}
    schema = {"$ref": f"#/components/schemas/{'ended' if code == '410' else 'problem'}"}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _operation(operation: Operation) -> dict[str, Any]:
    schema = operation.schema.json_schema()
    in_path = set(_IN_PATH.findall(operation.path))
    others = {name: value for name, value in schema["properties"].items() if name not in in_path}
    required = set(schema.get("required", ()))
    shown: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "parameters": [_parameter(name, "path", operation, required) for name in sorted(in_path)],
        "responses": _responses(operation),
        "x-needs": [_need(need) for need in operation.needs],
    }
    if operation.method == "POST":
        shown["requestBody"] = _body(schema, others, required)
    else:
        shown["parameters"] += [_parameter(name, "query", operation, required) for name in others]
    return shown


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"\w+", _IN_PATH.sub("", operation.path))
    return "_".join((operation.method.lower(), *words)).replace("-", "_")


def _parameter(name: str, place: str, operation: Operation, required: set[str]) -> dict[str, Any]:
    schema = dict(operation.schema.json_schema()["properties"].get(name, {"type": "string"}))
    return {
        "name": name,
        "in": place,
        "required": place == "path" or name in required,
        "description": schema.pop("description", name),
        "schema": schema,
    }


def _body(schema: Mapping[str, Any], others: Mapping[str, Any], required: set[str]) -> dict[str, Any]:
    needed = sorted(required & others.keys())
    body = {"type": "object", "properties": dict(others), "additionalProperties": schema["additionalProperties"]}
    body |= {"required": needed} if needed else {}
    kinds = ("application/x-www-form-urlencoded", "application/json")
    return {"required": bool(needed), "content": {kind: {"schema": body} for kind in kinds}}


def _responses(operation: Operation) -> dict[str, Any]:
    content = {"text/plain": {"schema": dict(operation.gives)}} if operation.is_text else _json_content(operation)
    good = {"description": "done", "content": content}
    shown: dict[str, Any] = {"200": good}
    if operation.upgrades:
        shown["101"] = {"description": "a websocket, where the request asks for one"}
    return shown | {str(code): {"$ref": f"#/components/responses/{code}"} for code in failures(operation)}


def failures(operation: Operation) -> list[int]:
    """The statuses of all failures that an operation can give, ascending."""
    refused = {403} if any(not need.hides for need in operation.needs) else set()
    elsewhere = _PASSED_ON if "node" in _IN_PATH.findall(operation.path) else ()
    return sorted({*_ALWAYS, *operation.fails, *refused, *elsewhere})


def _json_content(operation: Operation) -> dict[str, Any]:
    result = {"type": "object", "properties": {"data": dict(operation.gives)}, "required": ["data"]}
    return {"application/json": {"schema": result}}


def _need(need: Need) -> dict[str, Any]:
    shown: dict[str, Any] = {"path": need.path, "anyOf": list(need.privileges)}
    return {**shown, "when": need.when} if need.when else shown


def _command(command: TunnelCommand) -> dict[str, Any]:
    return {
        "cmd": command.name,
        "summary": command.summary,
        "parameters": command.schema.json_schema(),
        "needs": [_need(need) for need in command.needs],
    }
