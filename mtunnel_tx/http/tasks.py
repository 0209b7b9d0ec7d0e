"""Task logs, as Proxmox's own API shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.http.operation import Call, takes
from mtunnel_tx.http.replies import Reply, data_reply
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.upid import parse_upid
from mtunnel_tx.wire.requests import NODE
from mtunnel_tx.wire.schema import Integer, Mismatch, Property, String


@dataclass(frozen=True, slots=True)
class TaskId:
    """The id of a task, `UPID:…`."""

    def read(self, value: object) -> str:
        text = String().read(value)
        try:
            parse_upid(text)
        except BadRequest as error:
            raise Mismatch(error.text) from error
        return text

    def json_schema(self) -> dict[str, Any]:
        return {**String().json_schema(), "format": "pve-task-upid", "pattern": "^UPID:"}


_TASK = {**NODE, "upid": Property(TaskId(), "the task's id", True)}
STATUS = takes(_TASK)
LOG = takes(
    {
        **_TASK,
        "start": Property(Integer(), "how many lines to leave out", default=0),
        "limit": Property(Integer(), "how many lines to show", default=50),
    }
)
SEE_TASKS = Need("/nodes/{node}", ("Sys.Audit",))


async def task_status(call: Call) -> Reply:
    """Whether it runs, and how it ended."""
    return data_reply(call.parts.tasks.status(call.values["upid"]))


async def task_log(call: Call) -> Reply:
    """Some of its lines, and how many there are."""
    tasks, values = call.parts.tasks, call.values
    lines = list(tasks.log(values["upid"], values["start"], values["limit"]))
    return data_reply(lines, total=tasks.total(values["upid"]))


def is_owner(upid: str, token: str) -> bool:
    """Whether a token started the task."""
    try:
        return parse_upid(upid).user == token
    except BadRequest:
        return False
