"""user.cfg: users, tokens, groups, pools, own roles and the access list (formats.md sections 1, 2, 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from mtunnel_tx.checks import STORAGE_ID, TOKEN_ID, USER_ID, Warn, ignore, split_list
from mtunnel_tx.pve.roles import ALL_PRIVILEGES, BUILTIN_ROLES

ROOT = "root@pam"

_USER_ID = re.compile(USER_ID)
_TOKEN_ID = re.compile(TOKEN_ID)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_POOL_NAME = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,2}")
_STORAGE_ID = re.compile(STORAGE_ID)
_PATH = re.compile(r"[A-Za-z0-9._/-]+")
_NUMBER = re.compile(r"[0-9]{1,18}")
# Everything printable in ASCII but `:` and `%` stays as it is.
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ":%")


@dataclass(slots=True, kw_only=True)
class Token:
    """An API token; `expires_s` is seconds since the epoch, 0 for never."""

    expires_s: int = 0
    privsep: bool = True
    comment: str = ""


@dataclass(slots=True, kw_only=True)
class User:
    """A user with its tokens (by the part behind `!`); `keys` is kept as it is."""

    enabled: bool = True
    expires_s: int = 0
    first: str = ""
    last: str = ""
    email: str = ""
    comment: str = ""
    keys: str = ""
    tokens: dict[str, Token] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Group:
    """A group of users, by id."""

    users: set[str] = field(default_factory=set)
    comment: str = ""


@dataclass(slots=True, kw_only=True)
class Pool:
    """A pool of guests and storages."""

    comment: str = ""
    vmids: set[int] = field(default_factory=set)
    storages: set[str] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class UserConfig:
    """All of user.cfg.

    `roles` holds the own roles only. `acl` is path -> member -> role -> propagates; a member is a user id, a full
    token id or `@group`.
    """

    users: dict[str, User] = field(default_factory=lambda: {ROOT: User()})
    groups: dict[str, Group] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    roles: dict[str, frozenset[str]] = field(default_factory=dict)
    acl: dict[str, dict[str, dict[str, bool]]] = field(default_factory=dict)

    def role(self, name: str) -> frozenset[str] | None:
        """The privileges of a role, built in or own; None for an unknown one."""
        return BUILTIN_ROLES.get(name, self.roles.get(name))

    def find_token(self, token_id: str) -> tuple[str, User, Token] | None:
        """The owner's id, the owner and the token."""
        user_id, _, name = token_id.rpartition("!")
        user = self.users.get(user_id)
        token = user.tokens.get(name) if user else None
        return (user_id, user, token) if user and token else None


def is_user_id(text: str) -> bool:
    """Whether this is `USER@REALM`."""
    return _USER_ID.fullmatch(text) is not None


def split_token_id(text: str) -> tuple[str, str] | None:
    """`USER@REALM!TOKENID` as user id and token name; None for anything else."""
    match = _TOKEN_ID.fullmatch(text)
    return (match[1], match[2]) if match else None


def normalise_path(text: str) -> str | None:
    """An access path in its one spelling: `/`, or `/a/b`; None where it has illegal characters."""
    path = "/" + "/".join(part for part in text.split("/") if part)
    return path if _PATH.fullmatch(path) else None


def encode_text(text: str) -> str:
    """Percent-encode control and non-ASCII characters, `:` and `%`."""
    return quote(text, safe=_SAFE, errors="surrogateescape")


def decode_text(text: str) -> str:
    """The inverse of encode_text; bytes that are no UTF-8 survive as surrogates."""
    return unquote(text, errors="surrogateescape")


class _SkipLineError(Exception):
    """A line that is skipped, and why."""


class _Parser:
    """One pass over the lines, as a name must be known before the lines that use it."""

    def __init__(self, warn: Warn) -> None:
        self.config = UserConfig()
        self._warn = warn
        self._lineno = 0
        self._seen: set[tuple[str, str]] = set()
        self._kinds: dict[str, tuple[int, Callable[..., None]]] = {
            "user": (8, self._user),
            "token": (4, self._token),
            "group": (3, self._group),
            "pool": (4, self._pool),
            "role": (2, self._role),
            "acl": (4, self._acl),
        }

    def parse(self, text: str) -> UserConfig:
        for self._lineno, line in enumerate(text.split("\n"), 1):
            if line.strip():
                self._line(line)
        return self.config

    def _line(self, line: str) -> None:
        kind, *fields = [part.strip() for part in line.split(":")]
        count, read = self._kinds.get(kind, (0, None))
        try:
            if read is None:
                raise _SkipLineError("unknown kind of line")
            padded = fields + [""] * (count - len(fields))
            if any(padded[count:]):
                self._skip("fields behind the last one")
            read(*padded[:count])
        except _SkipLineError as rejected:
            self._skip(str(rejected))

    def _skip(self, reason: str) -> None:
        self._warn(f"line {self._lineno}: {reason}")

    def _once(self, kind: str, name: str) -> None:
        if (kind, name) in self._seen:
            self._skip(f"{kind} '{name}' again")
        self._seen.add((kind, name))

    def _user(self, name: str, enable: str, expire: str, *details: str) -> None:
        if not is_user_id(name):
            raise _SkipLineError("not a user id")
        self._once("user", name)
        first, last, email, comment, keys = details
        self.config.users[name] = User(
            enabled=_truth(enable),
            expires_s=_expiry(expire),
            first=decode_text(first),
            last=decode_text(last),
            email=email,
            comment=decode_text(comment),
            keys=keys,
        )

    def _token(self, token_id: str, expire: str, privsep: str, comment: str) -> None:
        parts = split_token_id(token_id)
        if parts is None:
            raise _SkipLineError("not a token id")
        user = self.config.users.get(parts[0])
        if user is None:
            raise _SkipLineError(f"token of unknown user '{parts[0]}'")
        self._once("token", token_id)
        user.tokens[parts[1]] = Token(expires_s=_expiry(expire), privsep=_truth(privsep), comment=decode_text(comment))

    def _group(self, name: str, users: str, comment: str) -> None:
        _require_name(name, "group")
        self._once("group", name)
        members = self._known(split_list(users), self.config.users.__contains__, "group member")
        self.config.groups[name] = Group(users=set(members), comment=decode_text(comment))

    def _pool(self, name: str, comment: str, vmids: str, storages: str) -> None:
        if not _POOL_NAME.fullmatch(name):
            raise _SkipLineError("not a pool name")
        self._once("pool", name)
        numbers = self._known(split_list(vmids), self._free_vmid, "pool member")
        stores = self._known(split_list(storages), lambda store: bool(_STORAGE_ID.fullmatch(store)), "pool storage")
        self.config.pools[name] = Pool(
            comment=decode_text(comment), vmids={int(number) for number in numbers}, storages=set(stores)
        )

    def _free_vmid(self, text: str) -> bool:
        """A guest is in one pool only: the first one that names it."""
        return bool(_NUMBER.fullmatch(text)) and all(int(text) not in pool.vmids for pool in self.config.pools.values())

    def _role(self, name: str, privileges: str) -> None:
        _require_name(name, "role")
        if name in BUILTIN_ROLES:
            raise _SkipLineError(f"role '{name}' is built in")
        self._once("role", name)
        self.config.roles[name] = frozenset(
            self._known(split_list(privileges), ALL_PRIVILEGES.__contains__, "privilege")
        )

    def _acl(self, propagate: str, path_text: str, members: str, roles: str) -> None:
        path = normalise_path(path_text)
        if path is None:
            raise _SkipLineError("illegal characters in the path")
        known_roles = self._known(split_list(roles), lambda role: self.config.role(role) is not None, "role")
        for member in self._known(split_list(members if known_roles else ""), self._is_member, "member"):
            entry = self.config.acl.setdefault(path, {}).setdefault(member, {})
            entry.update(dict.fromkeys(known_roles, _truth(propagate)))

    def _is_member(self, member: str) -> bool:
        if member.startswith("@"):
            return bool(_NAME.fullmatch(member[1:]))
        if split_token_id(member):
            return self.config.find_token(member) is not None
        return is_user_id(member)

    def _known(self, items: Iterable[str], accept: Callable[[str], bool], what: str) -> list[str]:
        kept = []
        for item in items:
            if accept(item):
                kept.append(item)
            else:
                self._skip(f"{what} '{item}' skipped")
        return kept


def _truth(text: str) -> bool:
    return text not in ("", "0")


def _expiry(text: str) -> int:
    if text and not _NUMBER.fullmatch(text):
        raise _SkipLineError("expiry is not a number")
    return int(text or "0")


def _require_name(text: str, what: str) -> None:
    if not _NAME.fullmatch(text):
        raise _SkipLineError(f"not a {what} name")


def parse_user_config(text: str, warn: Warn = ignore) -> UserConfig:
    """Read user.cfg.

    Args: warn: told of everything that is skipped, as `line N: REASON`; where it stays silent, writing the
        result again loses nothing.
    """
    return _Parser(warn).parse(text)


def format_user_config(config: UserConfig) -> str:
    """user.cfg in its canonical form: users with their tokens, groups, pools, own roles, access list."""
    blocks = [_user_lines(config), _group_lines(config), _pool_lines(config), _role_lines(config), _acl_lines(config)]
    return "\n".join("".join(f"{line}:\n" for line in block) for block in blocks)


def _user_lines(config: UserConfig) -> Iterable[str]:
    for name, user in sorted(config.users.items()):
        names = f"{encode_text(user.first)}:{encode_text(user.last)}"
        rest = f"{user.email}:{encode_text(user.comment)}:{user.keys}"
        yield f"user:{name}:{int(user.enabled)}:{user.expires_s}:{names}:{rest}"
        for token_name, token in sorted(user.tokens.items()):
            comment = encode_text(token.comment)
            yield f"token:{name}!{token_name}:{token.expires_s}:{int(token.privsep)}:{comment}"


def _group_lines(config: UserConfig) -> Iterable[str]:
    for name, group in sorted(config.groups.items()):
        yield f"group:{name}:{','.join(sorted(group.users))}:{encode_text(group.comment)}"


def _pool_lines(config: UserConfig) -> Iterable[str]:
    for name, pool in sorted(config.pools.items()):
        vmids = ",".join(str(vmid) for vmid in sorted(pool.vmids))
        yield f"pool:{name}:{encode_text(pool.comment)}:{vmids}:{','.join(sorted(pool.storages))}"


def _role_lines(config: UserConfig) -> Iterable[str]:
    for name, privileges in sorted(config.roles.items()):
        yield f"role:{name}:{','.join(sorted(privileges))}"


def _acl_lines(config: UserConfig) -> Iterable[str]:
    """Depth first; members with the same roles share a line; root@pam needs none and gets none."""
    for path in sorted(config.acl, key=lambda text: text.strip("/").split("/")):
        for propagate in (False, True):
            shared: dict[str, list[str]] = {}
            for member, roles in sorted(config.acl[path].items()):
                names = ",".join(sorted(role for role, spreads in roles.items() if spreads is propagate))
                if names and member != ROOT:
                    shared.setdefault(names, []).append(member)
            for names, members in sorted(shared.items()):
                yield f"acl:{int(propagate)}:{path}:{','.join(members)}:{names}"
