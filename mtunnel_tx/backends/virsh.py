"""ports.LibvirtDomains by `virsh`; $LIBVIRT_DEFAULT_URI says which libvirt, else it is the system's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtunnel_tx.backends.child import run
from mtunnel_tx.errors import BackendFailed, WrongState

VIRSH_S = 60.0
_OFF = frozenset({"shut off", "crashed"})


class Virsh:
    """ports.LibvirtDomains. Args: environ: the children's whole environment."""

    def __init__(self, reactor: Any, environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._environ = {**environ, "LC_ALL": "C"}

    async def definition(self, name: str) -> bytes:
        """See ports.LibvirtDomains."""
        state = (await self._run("domstate", name)).strip()
        if state not in _OFF:
            raise WrongState(f"libvirt's VM '{name}' is not off, but: {state}")
        return (await self._run("dumpxml", "--inactive", name)).encode()

    async def _run(self, command: str, *arguments: str) -> str:
        try:
            return await run(self._reactor, ["virsh", command, *arguments], self._environ, VIRSH_S)
        except BackendFailed as error:
            reason = " ".join(error.text.split())
            raise BackendFailed(f"virsh {command}: {reason}") from error
