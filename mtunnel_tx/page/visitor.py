"""Who looks at the page, and what that one may see and do.

Whoever has a one-time link could open the control socket, and may do everything. A token sees everything with
`Sys.Audit` on the node, else what was done with itself: its moves, its held VMs, its history.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.watch.move import INCOMING

SEE_ALL = Need("/nodes/{node}", ("Sys.Audit",))
SETTLE_NEEDS = (Need("/vms/{vmid}", ("VM.Allocate",)), Need("/", ("Sys.Incoming",)))
"""What opening a tunnel for the VM needs."""
DRAIN_NEEDS = (Need("/nodes/{node}", ("Sys.Modify",)),)
OPERATOR = "the operator of this host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """One who is logged in. rights: those of the token now; None: the operator's, who may do everything."""

    name: str
    node: str
    rights: Rights | None

    @property
    def sees_all(self) -> bool:
        """Also what other tokens do, and the daemon itself."""
        return self._meets(SEE_ALL)

    def may_see(self, token: str) -> bool:
        """Whether what was done with this token is shown."""
        return self.name == token or self.sees_all

    def may_see_move(self, direction: str, token: str) -> bool:
        """The token of a move that went out is another host's, though it may have the name of one of ours."""
        return self.sees_all or (direction == INCOMING and self.name == token)

    def may_settle(self, vmid: int, token: str) -> bool:
        """Whether this held VM, which came with this token, may be decided about."""
        return self.may_see(token) and self._meets(*SETTLE_NEEDS, vmid=vmid)

    @property
    def may_drain(self) -> bool:
        """Whether the daemon may be told to end."""
        return self.sees_all and self._meets(*DRAIN_NEEDS)

    def _meets(self, *needs: Need, **values: object) -> bool:
        rights = self.rights
        return rights is None or all(need.is_met(rights, {"node": self.node, **values}) for need in needs)
