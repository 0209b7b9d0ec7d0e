"""Asks a QEMU whether a VM could run on this host before all of its memory has come (post-copy)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mtunnel_tx.backends.child import run
from mtunnel_tx.errors import BackendFailed

TRIAL_S = 10.0
_ARGUMENTS = ("-nodefaults", "-no-user-config", "-machine", "none", "-display", "none", "-incoming", "defer", "-S")
_CAPABILITY = {"capability": "postcopy-ram", "state": True}
_CALLS = (
    {"execute": "qmp_capabilities"},
    {"execute": "migrate-set-capabilities", "id": "asked", "arguments": {"capabilities": [_CAPABILITY]}},
    {"execute": "quit"},
)


async def try_postcopy(reactor: Any, environ: Mapping[str, str], program: str) -> None:
    """Raises: BackendFailed: not here, with QEMU's reason; or QEMU does not answer."""
    given = "".join(f"{json.dumps(call)}\n" for call in _CALLS)
    argv = [program, *_ARGUMENTS, "-qmp", "stdio"]
    check_answer(await run(reactor, argv, environ, TRIAL_S, name="qemu", given=given.encode("ascii")))


def check_answer(output: str) -> None:
    """Args: output: what QEMU's monitor said. Raises: BackendFailed."""
    answers: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    answer: dict[str, Any] = next((one for one in answers if one.get("id") == "asked"), {})
    if "return" not in answer:
        reason = " ".join(str(answer.get("error", {}).get("desc", "QEMU does not say why")).split())
        raise BackendFailed(
            f"no post-copy here: {reason}; QEMU needs userfaultfd: sysctl vm.unprivileged_userfaultfd=1, or access to "
            "/dev/userfaultfd"
        )
