"""`mtunnel acl`: who may do what where, in user.cfg."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from typing import Any

from mtunnel_tx.backends.access import changed_access, read_users
from mtunnel_tx.cli.output import add_json, answer, fail, print_failure, warn
from mtunnel_tx.cli.table import format_table
from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BadRequest, NotFound, TunnelError
from mtunnel_tx.pve.roles import BUILTIN_ROLES
from mtunnel_tx.pve.users import ROOT, UserConfig, is_user_id, normalise_path, split_token_id

ROLE_HELP = "a built-in role or one of user.cfg; Administrator is the only built-in one with Sys.Incoming"


def configure(subparsers: Any) -> None:
    """Add `acl` to the commands of `mtunnel`."""
    parser = subparsers.add_parser("acl", help="grant roles to users, tokens and groups")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="grant a role on a path")
    _add_entry_arguments(add)
    add.add_argument("--no-propagate", dest="propagate", action="store_false", help="on this path only, none below")
    add.set_defaults(run=run, act=_add, pveum=_pveum_add)
    listing = actions.add_parser("list", help="show all entries")
    listing.set_defaults(run=run, act=_list, pveum=_pveum_list)
    remove = actions.add_parser("remove", help="take a role away")
    _add_entry_arguments(remove)
    remove.set_defaults(run=run, act=_remove, pveum=_pveum_remove)
    for parser in (add, listing, remove):
        add_json(parser)


def _add_entry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("member", type=read_member, help="USER@REALM, USER@REALM!TOKENID or @GROUP")
    parser.add_argument("--role", required=True, help=ROLE_HELP)
    parser.add_argument("--path", required=True, type=read_path, help="/, /vms/100, /storage/local, …")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Do what was asked, or say what to do instead. Returns: the exit code."""
    try:
        if settings.profile == "proxmox":
            return _point_to_pveum(args, args.pveum(args))
        args.act(args, settings)
    except TunnelError as error:
        return fail(args, error)
    return 0


def _point_to_pveum(args: argparse.Namespace, commands: Sequence[Sequence[str]]) -> int:
    """On a Proxmox node its own program has to change the cluster's files."""
    if args.json:
        lines = [shlex.join(["pveum", *command]) for command in commands]
        return print_failure(args, "\n".join(["users belong to Proxmox here; run instead:", *lines]))
    warn(args, "users belong to Proxmox here; run instead:")
    for command in commands:
        print(shlex.join(["pveum", *command]))
    return 1


def read_path(text: str) -> str:
    """An access path from the command line."""
    path = normalise_path(text)
    if path is None or not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"'{text}' is not an access path")
    return path


def read_member(text: str) -> str:
    """A user, token or group from the command line; lists in the file split at `,` and `;`."""
    known = is_user_id(text) or split_token_id(text) is not None or text.startswith("@")
    if not known or any(mark in text for mark in ",;") or not text.isprintable():
        raise argparse.ArgumentTypeError(f"'{text}' is neither USER@REALM nor USER@REALM!TOKENID nor @GROUP")
    return text


def grant(users: UserConfig, path: str, member: str, role: str, *, propagate: bool = True) -> None:
    """Add an entry. Raises: NotFound: no such role or member. BadRequest: root@pam needs none."""
    if users.role(role) is None:
        known = ", ".join(sorted([*BUILTIN_ROLES, *users.roles]))
        raise NotFound(f"role '{role}' does not exist; there are {known}")
    if not _exists(users, member):
        raise NotFound(f"'{member}' does not exist")
    if member == ROOT:
        raise BadRequest(f"{ROOT} may do everything as it is")
    users.acl.setdefault(path, {}).setdefault(member, {})[role] = propagate


def revoke(users: UserConfig, path: str, member: str, role: str) -> None:
    """Remove an entry. Raises: NotFound."""
    if users.acl.get(path, {}).get(member, {}).pop(role, None) is None:
        raise NotFound(f"'{member}' does not have role '{role}' on {path}")


def _exists(users: UserConfig, member: str) -> bool:
    if member.startswith("@"):
        return member[1:] in users.groups
    return member in users.users or users.find_token(member) is not None


def _add(args: argparse.Namespace, settings: Settings) -> None:
    with changed_access(settings.pve_dir) as access:
        grant(access.users, args.path, args.member, args.role, propagate=args.propagate)
    answer(args, {})


def _remove(args: argparse.Namespace, settings: Settings) -> None:
    with changed_access(settings.pve_dir) as access:
        revoke(access.users, args.path, args.member, args.role)
    answer(args, {})


def _list(args: argparse.Namespace, settings: Settings) -> None:
    users = read_users(settings.pve_dir, partial(warn_of_line, args))
    entries = [
        (path, member, role, propagates)
        for path, members in sorted(users.acl.items())
        for member, roles in sorted(members.items())
        for role, propagates in sorted(roles.items())
    ]
    names = ("path", "member", "role", "propagates")
    rows = [(*entry[:3], "yes" if entry[3] else "no") for entry in entries]
    table = format_table([("PATH", "MEMBER", "ROLE", "PROPAGATES"), *rows])
    answer(args, {"entries": [dict(zip(names, entry, strict=True)) for entry in entries]}, *table)


def warn_of_line(args: argparse.Namespace, reason: str) -> None:
    """Show what was skipped in a file."""
    warn(args, f"user.cfg: {reason}")


def pveum_entry(action: str, path: str, member: str, role: str) -> list[str]:
    """The arguments of `pveum acl` for one entry."""
    kind = "--groups" if member.startswith("@") else "--tokens" if split_token_id(member) else "--users"
    return ["acl", action, path, kind, member.removeprefix("@"), "--roles", role]


def _pveum_add(args: argparse.Namespace) -> list[list[str]]:
    spread = [] if args.propagate else ["--propagate", "0"]
    return [[*pveum_entry("modify", args.path, args.member, args.role), *spread]]


def _pveum_remove(args: argparse.Namespace) -> list[list[str]]:
    return [pveum_entry("delete", args.path, args.member, args.role)]


def _pveum_list(_args: argparse.Namespace) -> list[list[str]]:
    return [["acl", "list"]]
