"""What a request needs: privileges on an access path, as values that are checked and can be listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtunnel_tx.pve.rights import Rights


@dataclass(frozen=True, slots=True)
class Need:
    """One of these privileges on a path.

    Args: path: `/vms/{vmid}`; a name in braces stands for a parameter. privileges: any one of them will do. when: in
    words, when it is needed; empty: always. What is not always needed is for the request's handler to check.
    hides: nothing is refused for want of it, but what it is needed for is not shown.
    """

    path: str
    privileges: tuple[str, ...]
    when: str = ""
    hides: bool = False

    def check(self, rights: Rights, values: Mapping[str, Any]) -> None:
        """Args: values: what the names in the path stand for. Raises: PermissionDenied: names all of them, with `|`."""
        rights.check_any(self.path.format_map(values), *self.privileges)

    def is_met(self, rights: Rights, values: Mapping[str, Any]) -> bool:
        """Whether `check` would pass."""
        return not rights.privileges(self.path.format_map(values)).isdisjoint(self.privileges)
