"""What a user or token may do, resolved from user.cfg (formats.md section 2)."""

from __future__ import annotations

from collections.abc import Iterable

from mtunnel_tx.errors import PermissionDenied
from mtunnel_tx.pve.roles import ADMINISTRATOR, NO_ACCESS
from mtunnel_tx.pve.users import ROOT, UserConfig, normalise_path


class Rights:
    """The rights of one user or token, as of one version of user.cfg.

    Args: config: all of user.cfg. token: the full token id, `USER@REALM!TOKENID`, or a user id. One that does not
        exist may do nothing.
    """

    __slots__ = ("_cache", "_config", "token")

    def __init__(self, config: UserConfig, token: str) -> None:
        self.token = token
        self._config = config
        self._cache: dict[str, frozenset[str]] = {}

    @property
    def is_root(self) -> bool:
        """Whether this is root@pam itself; a token never is."""
        return self.token == ROOT

    def privileges(self, path: str) -> frozenset[str]:
        """Every privilege held on an access path, e.g. `/vms/100`."""
        if path not in self._cache:
            clean = normalise_path(path)
            self._cache[path] = _privileges(self._config, self.token, clean) if clean else frozenset()
        return self._cache[path]

    def has(self, path: str, *privileges: str) -> bool:
        """Whether all of these are held."""
        return self.privileges(path).issuperset(privileges)

    def check(self, path: str, *privileges: str) -> None:
        """Raises: PermissionDenied: names the first privilege that is missing."""
        held = self.privileges(path)
        for privilege in privileges:
            if privilege not in held:
                raise PermissionDenied(path, privilege)

    def check_any(self, path: str, *privileges: str) -> None:
        """Raises: PermissionDenied: none of these is held; names all, joined with `|`."""
        if self.privileges(path).isdisjoint(privileges):
            raise PermissionDenied(path, "|".join(privileges))


def _privileges(config: UserConfig, member: str, path: str) -> frozenset[str]:
    found = config.find_token(member)
    if found is None:
        return _union(config, _roles(config, member, path)) if member in config.users else frozenset()
    owner, _, token = found
    if not token.privsep:
        return _privileges(config, owner, path)
    own = _union(config, _roles(config, member, path))
    return own if owner == ROOT else own & _privileges(config, owner, path)


def _union(config: UserConfig, roles: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*(config.role(role) or frozenset() for role in roles))


def _roles(config: UserConfig, member: str, path: str) -> frozenset[str]:
    """The roles on a path, those of pools included."""
    if member == ROOT:
        return frozenset({ADMINISTRATOR})
    regular = _path_roles(config, member, path)
    pooled = frozenset().union(*(_path_roles(config, member, f"/pool/{name}") for name in _pools(config, path)))
    if NO_ACCESS in regular or NO_ACCESS in pooled:
        return frozenset()
    return regular | pooled


def _pools(config: UserConfig, path: str) -> list[str]:
    """The pools that the guest or storage of this path is in."""
    kind, _, name = path[1:].partition("/")
    if kind == "vms":
        return [pool for pool, members in config.pools.items() if name in map(str, members.vmids)]
    if kind == "storage":
        return [pool for pool, members in config.pools.items() if name in members.storages]
    return []


def _path_roles(config: UserConfig, member: str, path: str) -> frozenset[str]:
    """Walk down to the path; the last node with an entry that counts decides."""
    roles: frozenset[str] = frozenset()
    for node in (node for node in _nodes(path) if node in config.acl):
        roles = _node_roles(config, member, node, last=node == path) or roles
    return frozenset({NO_ACCESS}) if NO_ACCESS in roles else roles


def _nodes(path: str) -> Iterable[str]:
    yield "/"
    for end, character in enumerate(path + "/"):
        if character == "/" and end:
            yield path[:end]


def _node_roles(config: UserConfig, member: str, node: str, *, last: bool) -> frozenset[str]:
    """The roles that count at one node: the member's own, else the union of its groups'."""
    entries = config.acl.get(node, {})

    def counting(name: str) -> frozenset[str]:
        return frozenset(role for role, propagates in entries.get(name, {}).items() if last or propagates)

    groups = [f"@{name}" for name, group in config.groups.items() if member in group.users]
    return counting(member) or frozenset().union(*map(counting, groups))
