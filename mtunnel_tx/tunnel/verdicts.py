"""What became of the VMs of tunnels that are over, for a source that comes late."""

from __future__ import annotations

from mtunnel_tx.ports.events import TunnelEnded, TunnelEvent

MOST = 1000
_Key = tuple[int, str, str]


class Verdicts:
    """The latest ones by VMID, token and task; the history has older ones."""

    def __init__(self) -> None:
        self._known: dict[_Key, str] = {}

    def observe(self, event: TunnelEvent) -> None:
        """See ports.events.Observer."""
        if isinstance(event, TunnelEnded):
            tunnel = event.tunnel
            key = (tunnel.vmid, tunnel.token, tunnel.upid)
            self._known.pop(key, None)
            self._known[key] = event.outcome
            if len(self._known) > MOST:
                del self._known[next(iter(self._known))]

    def find(self, vmid: int, token: str, upid: str) -> str | None:
        """What became of the VM, in a word or two; None: it is not known."""
        return self._known.get((vmid, token, upid))
