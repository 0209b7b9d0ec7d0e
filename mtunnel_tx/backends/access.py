"""Users and tokens from user.cfg and priv/token.cfg: authentication, and the rights of a token."""

from __future__ import annotations

import fcntl
import hmac
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote
from uuid import UUID

from twisted.logger import Logger

from mtunnel_tx.backends.files import CachedFile, make_folder, read_text, refusal, replace_file
from mtunnel_tx.errors import BackendFailed, Unauthenticated, WrongState
from mtunnel_tx.ports.clock import WallClock
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.tokens import format_token_config, parse_token_config
from mtunnel_tx.pve.users import UserConfig, format_user_config, parse_user_config

log = Logger()
T = TypeVar("T")

_AUTHORIZATION = re.compile(r"(?:^|\s)PVEAPIToken[= ]([^;]*)")
# Compared if the token is unknown, so that a wrong name takes as long as a wrong secret.
_NOTHING = str(UUID(int=0))


def user_file(pve_dir: Path) -> Path:
    """Where users, roles and the access list are."""
    return pve_dir / "user.cfg"


def token_file(pve_dir: Path) -> Path:
    """Where the secrets are."""
    return pve_dir / "priv" / "token.cfg"


class FileAccess:
    """ports.Access on the files below `pve_dir`; a missing file is an empty one: root@pam alone, without tokens."""

    def __init__(self, pve_dir: Path, wall: WallClock) -> None:
        self._wall = wall
        self._told: dict[CachedFile[Any], str] = {}
        self._users = CachedFile(user_file(pve_dir), _logged(parse_user_config, user_file(pve_dir)))
        self._secrets = CachedFile(token_file(pve_dir), _logged(parse_token_config, token_file(pve_dir)))

    def authenticate(self, authorization: str | None) -> str:
        """Check the value of an `Authorization` header.

        Returns: the full token id. Raises: Unauthenticated: `No ticket` where it names no token of this API,
        `Authentication failed!` where the token is malformed, unknown, wrong, expired, or its user may not log in.
        Source: protocol.md section 1.
        """
        match = _AUTHORIZATION.search(authorization or "")
        value = unquote(match[1]) if match else ""
        if not value:
            raise Unauthenticated("No ticket")
        token, _, secret = value.rpartition("=")
        expected = self._value(self._secrets).get(token)
        right = hmac.compare_digest(_digestible(expected or _NOTHING), _digestible(secret))
        if not right or expected is None or not self._valid(token):
            raise Unauthenticated("Authentication failed!")
        return token

    def rights(self, token: str) -> Rights:
        """What the token may do now. Raises: Unauthenticated: it is gone, expired or disabled."""
        if not self._valid(token):
            raise Unauthenticated("Authentication failed!")
        return Rights(self._value(self._users), token)

    def _value(self, file: CachedFile[T]) -> T:
        """If a file cannot be read, nobody can log in; the reason is logged once and not shown to clients."""
        try:
            value = file.value()
        except BackendFailed as error:
            if self._told.get(file) != error.text:
                log.error("nobody can log in: {reason}", reason=error.text)
            self._told[file] = error.text
            raise Unauthenticated("Authentication failed!") from error
        self._told.pop(file, None)
        return value

    def _valid(self, token_id: str) -> bool:
        found = self._value(self._users).find_token(token_id)
        if found is None:
            return False
        _, user, token = found
        now = self._wall()
        return user.enabled and not any(0 < expires_s < now for expires_s in (user.expires_s, token.expires_s))


def _digestible(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _logged(parse: Callable[[str, Callable[[str], None]], T], file: Path) -> Callable[[str], T]:
    def warn(reason: str) -> None:
        log.warn("{file}: {reason}", file=str(file), reason=reason)

    return lambda text: parse(text, warn)


@dataclass(slots=True)
class AccessFiles:
    """Both files, to be changed by the operator's commands."""

    users: UserConfig
    secrets: dict[str, str]


def read_users(pve_dir: Path, warn: Callable[[str], None]) -> UserConfig:
    """Read user.cfg to show it. Args: warn: told of skipped lines. Raises: BackendFailed."""
    return _parsed(parse_user_config, user_file(pve_dir), warn)


@contextmanager
def changed_access(pve_dir: Path) -> Iterator[AccessFiles]:
    """Change both files under their lock; they are written when the block ends well. Blocks, for commands only.

    Raises: WrongState: a line would be lost by writing the file again; names it. BackendFailed.
    """
    try:
        make_folder(token_file(pve_dir).parent)
        with (pve_dir / "priv" / "access.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            access = AccessFiles(
                _strictly_parsed(parse_user_config, user_file(pve_dir)),
                _strictly_parsed(parse_token_config, token_file(pve_dir)),
            )
            yield access
            replace_file(token_file(pve_dir), format_token_config(access.secrets), _mode(token_file(pve_dir), 0o600))
            replace_file(user_file(pve_dir), format_user_config(access.users), _mode(user_file(pve_dir), 0o640))
    except OSError as error:
        raise refusal(error) from error


def _mode(file: Path, mode: int) -> int:
    """The mode that a file has; `mode` for a new file."""
    try:
        return stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        return mode


def _strictly_parsed(parse: Callable[[str, Callable[[str], None]], T], file: Path) -> T:
    def refuse(reason: str) -> None:
        raise WrongState(f"{file}: {reason}; correct it by hand first")

    return _parsed(parse, file, refuse)


def _parsed(parse: Callable[[str, Callable[[str], None]], T], file: Path, warn: Callable[[str], None]) -> T:
    try:
        return parse(read_text(file) or "", warn)
    except OSError as error:
        raise refusal(error) from error
