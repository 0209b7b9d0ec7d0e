"""`mtunnel token`: API tokens in user.cfg and priv/token.cfg."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any
from uuid import uuid4

from mtunnel_tx.backends.access import AccessFiles, changed_access, read_users
from mtunnel_tx.checks import clean
from mtunnel_tx.cli.acl import ROLE_HELP, grant, pveum_entry, read_path, run, warn_of_line
from mtunnel_tx.cli.loudness import is_quiet
from mtunnel_tx.cli.output import add_json, answer, warn
from mtunnel_tx.cli.parser import Paragraphs
from mtunnel_tx.cli.table import format_table
from mtunnel_tx.config import Settings
from mtunnel_tx.errors import NotFound, WrongState
from mtunnel_tx.pve.users import ROOT, Token, User, split_token_id

_ADD_HELP = """\
Make an API token, and its user where there is none. The line on standard output is what a source needs; it holds the
secret and is not shown again.

Without --privsep the token may do what its user may do, and --role is granted to the user. With --privsep it may do
what is granted to both itself and its user, and --role is granted to both. To receive a VM a token needs VM.Allocate
on /vms/VMID, Sys.Incoming on / and Datastore.AllocateSpace on the storages.

Quote the token's name: an interactive shell takes what follows a ! for its history."""


def configure(subparsers: Any) -> None:
    """Add `token` to the commands of `mtunnel`."""
    parser = subparsers.add_parser("token", help="make, list and remove API tokens")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser(
        "add",
        help="make a token and print its secret, once",
        description=_ADD_HELP,
        formatter_class=Paragraphs,
    )
    _configure_add(add)
    listing = actions.add_parser("list", help="show all tokens")
    listing.set_defaults(run=run, act=_list, pveum=_pveum_list)
    remove = actions.add_parser("remove", help="remove a token with its rights; its user stays")
    remove.add_argument("token", type=read_token_id, help="USER@REALM!TOKENID")
    remove.set_defaults(run=run, act=_remove, pveum=_pveum_remove)
    for parser in (add, listing, remove):
        add_json(parser)


def _configure_add(add: argparse.ArgumentParser) -> None:
    add.add_argument("token", type=read_token_id, help="USER@REALM!TOKENID")
    add.add_argument("--role", help=ROLE_HELP)
    add.add_argument("--path", type=read_path, default="/", help="where the role holds, and below (default: /)")
    add.add_argument(
        "--privsep", action=argparse.BooleanOptionalAction, default=False, help="rights of its own (default: no)"
    )
    add.add_argument(
        "--expire", type=read_expiry, default=0, metavar="EPOCH", help="seconds since 1970 (default: 0, never)"
    )
    add.add_argument("--comment", type=str.strip, default="", help="what it is for")
    add.set_defaults(run=run, act=_add, pveum=_pveum_add)


def read_token_id(text: str) -> str:
    """A full token id from the command line."""
    if split_token_id(text) is None or any(mark in text for mark in ",;") or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"'{text}' is not USER@REALM!TOKENID; TOKENID is a letter, then some of letters, digits, '._-'"
        )
    return text


def read_expiry(text: str) -> int:
    """A point in time from the command line, 0 for never."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds since 1970")
    return int(text)


def add_token(access: AccessFiles, token_id: str, token: Token, *, role: str | None, path: str) -> str:
    """Put a token into both files, with the role where one is given.

    Returns: the new secret. Raises: WrongState: it exists. NotFound: no such role.
    """
    user_id, _, name = token_id.rpartition("!")
    user = access.users.users.setdefault(user_id, User())
    if name in user.tokens:
        raise WrongState(f"token '{token_id}' exists already")
    user.tokens[name] = token
    if role is not None:
        for member in _receivers(token_id, privsep=token.privsep):
            grant(access.users, path, member, role)
    access.secrets[token_id] = secret = str(uuid4())
    return secret


def _receivers(token_id: str, *, privsep: bool) -> list[str]:
    """Who must have a role so that the token has its privileges; root@pam has them all."""
    user_id = token_id.rpartition("!")[0]
    return [member for member, needed in ((user_id, user_id != ROOT), (token_id, privsep)) if needed]


def remove_token(access: AccessFiles, token_id: str) -> None:
    """Take a token out of both files and its entries off the access list. Raises: NotFound."""
    found = access.users.find_token(token_id)
    if found is None:
        raise NotFound(f"token '{token_id}' does not exist")
    del found[1].tokens[token_id.rpartition("!")[2]]
    access.secrets.pop(token_id, None)
    for members in access.users.acl.values():
        members.pop(token_id, None)


def _add(args: argparse.Namespace, settings: Settings) -> None:
    token = Token(expires_s=args.expire, privsep=args.privsep, comment=args.comment)
    with changed_access(settings.pve_dir) as access:
        secret = add_token(access, args.token, token, role=args.role, path=args.path)
    answer(args, {"token": args.token, "secret": secret}, f"PVEAPIToken={args.token}={secret}")
    if not args.json and not is_quiet(args):
        warn(args, "keep this line, it is not shown again")


def _remove(args: argparse.Namespace, settings: Settings) -> None:
    with changed_access(settings.pve_dir) as access:
        remove_token(access, args.token)
    answer(args, {})


def _list(args: argparse.Namespace, settings: Settings) -> None:
    users = read_users(settings.pve_dir, partial(warn_of_line, args))
    tokens = [
        {"token": f"{user_id}!{name}", **asdict(token)}
        for user_id, user in sorted(users.users.items())
        for name, token in sorted(user.tokens.items())
    ]
    table = format_table([("TOKEN", "EXPIRES", "PRIVSEP", "COMMENT"), *map(_row, tokens)])
    answer(args, {"tokens": tokens}, *table)


def _row(token: Mapping[str, Any]) -> tuple[str, str, str, str]:
    expires = str(token["expires_s"] or "never")
    return str(token["token"]), expires, "yes" if token["privsep"] else "no", clean(token["comment"])


def _pveum_add(args: argparse.Namespace) -> list[list[str]]:
    user_id, _, name = args.token.rpartition("!")
    options = ["--privsep", str(int(args.privsep))]
    options += ["--expire", str(args.expire)] if args.expire else []
    options += ["--comment", args.comment] if args.comment else []
    receivers = _receivers(args.token, privsep=args.privsep) if args.role else []
    grants = [pveum_entry("modify", args.path, member, args.role) for member in receivers]
    user = [] if user_id == ROOT else [["user", "add", user_id]]
    return [*user, ["user", "token", "add", user_id, name, *options], *grants]


def _pveum_remove(args: argparse.Namespace) -> list[list[str]]:
    user_id, _, name = args.token.rpartition("!")
    return [["user", "token", "remove", user_id, name]]


def _pveum_list(_args: argparse.Namespace) -> list[list[str]]:
    return [["user", "token", "list", "USER@REALM"]]
