"""What each operation's `data` looks like, as JSON Schemas (2020-12), for descriptions of the API and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtunnel_tx.pve.findings import SUBJECTS, Severity

JsonSchema = Mapping[str, Any]

TEXT: JsonSchema = {"type": "string"}
NUMBER: JsonSchema = {"type": "integer", "minimum": 0}
FLAG: JsonSchema = {"type": "integer", "enum": [0, 1]}
HEX: JsonSchema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
FINGERPRINT: JsonSchema = {"type": "string", "pattern": "^([0-9A-F]{2}:){31}[0-9A-F]{2}$"}


def record(required: Mapping[str, JsonSchema], optional: Mapping[str, JsonSchema] | None = None) -> JsonSchema:
    """An object; clients have to expect more keys than these."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def rows(row: JsonSchema) -> JsonSchema:
    """A list of such objects."""
    return {"type": "array", "items": row}


OPENED = record({"upid": TEXT, "ticket": TEXT, "socket": TEXT})
CHECKED = record(
    {
        "findings": rows(
            record(
                {
                    "about": {"enum": list(SUBJECTS)},
                    "name": {**TEXT, "description": "which key, storage or bridge; empty: the VM itself"},
                    "text": TEXT,
                    "severity": {"enum": [severity.value for severity in Severity]},
                }
            )
        ),
        "disks": rows(
            record(
                {
                    "key": TEXT,
                    "storage": TEXT,
                    "format": {**TEXT, "description": "of the image that would be made"},
                    "stream": {"type": ["string", "null"], "description": "null: mirrored while the VM runs"},
                    "free": {"type": ["integer", "null"], "description": "bytes that are free on the storage"},
                }
            )
        ),
    }
)
ABANDONED = record({"upid": TEXT})
LATE = record(
    {
        "verdict": {**TEXT, "description": "`kept`, `rolled back`, `left as it is`, or `held`: nobody has decided"},
        "machine": {**TEXT, "description": "of one that is held: what QEMU says, `off`, or `another QEMU's`"},
        "whole": {**FLAG, "description": "whether that QEMU has its whole state"},
        "given-up": {**FLAG, "description": "whether it may have run here, or its source has given it up"},
    }
)
SOCKET = record({"socket": TEXT})
DIGEST = record({"sha256": HEX})
GUESTS = rows(
    record({"id": TEXT, "vmid": NUMBER, "type": {"enum": ["qemu", "lxc"]}, "node": TEXT, "name": TEXT, "status": TEXT})
)
STORAGES = rows(
    record(
        {"storage": TEXT, "type": TEXT, "content": TEXT, "enabled": FLAG, "active": FLAG, "shared": FLAG},
        {
            "avail": {**NUMBER, "description": "bytes that are free"},
            "converts": {**FLAG, "description": "whether a raw stream can become an image of another format"},
        },
    )
)
VOLUMES = rows(
    record(
        {"volid": TEXT, "content": TEXT, "format": TEXT, "size": {**NUMBER, "description": "its size in bytes"}},
        {"vmid": {**NUMBER, "description": "the guest that it belongs to"}},
    )
)
CERTIFICATES = rows(record({"filename": TEXT, "fingerprint": FINGERPRINT}))
MODEL = record({"cputype": TEXT})
NODES = rows(record({"type": {"const": "node"}, "id": TEXT, "name": TEXT, "nodeid": NUMBER, "local": FLAG}))
VERSION = record({"version": TEXT, "release": TEXT, "repoid": TEXT})
PERMISSIONS: JsonSchema = {
    "type": "object",
    "description": "paths to privileges, each with 1",
    "additionalProperties": {"type": "object", "additionalProperties": {"const": 1}},
}
BRIDGES = rows(record({"iface": TEXT, "type": {"const": "bridge"}, "active": FLAG}))
TASK_STATUS = record({"upid": TEXT, "status": {"enum": ["running", "stopped"]}}, {"exitstatus": TEXT})
TASK_LOG = rows(record({"n": {**NUMBER, "description": "the line's number, from 1"}, "t": TEXT}))
DESCRIPTION: JsonSchema = {"type": "object", "description": "an OpenAPI 3.1 document"}
_SECONDS: JsonSchema = {"type": "number"}
_MAYBE_SECONDS: JsonSchema = {"type": ["number", "null"]}
_MAYBE_NUMBER: JsonSchema = {"type": ["integer", "null"], "minimum": 0}
_CARRIED: Mapping[str, JsonSchema] = {
    "done_bytes": NUMBER,
    "total_bytes": _MAYBE_NUMBER,
    "rate_bytes_s": NUMBER,
    "remaining_s": _MAYBE_SECONDS,
}
_TRANSFER = record(
    {
        "label": TEXT,
        "kind": {"enum": ["disk", "mirror", "memory"]},
        "began_s": _MAYBE_SECONDS,
        "ended_s": _MAYBE_SECONDS,
        **_CARRIED,
    }
)
MOVES = rows(
    record(
        {
            "direction": {"enum": ["in", "out"]},
            **dict.fromkeys(("vmid", "target_vmid", "wire_in_bytes", "wire_out_bytes"), NUMBER),
            **dict.fromkeys(("source", "target", "address", "token", "upid", "reason"), TEXT),
            "since_s": _SECONDS,
            "ended_s": _MAYBE_SECONDS,
            "phase": {
                "enum": [
                    "checking",
                    "disks",
                    "mirror",
                    "memory",
                    "hand-over",
                    "post-copy",
                    "done",
                    "rolled back",
                    "held",
                ]
            },
            "transfers": rows(_TRANSFER),
            "percent": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
            "downtime_s": _MAYBE_SECONDS,
            "parked_s": _SECONDS,
            **_CARRIED,
        }
    )
)
