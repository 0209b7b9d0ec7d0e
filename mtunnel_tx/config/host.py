"""The facts about this host that defaults depend on, and its private directories."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.config.settings import ConfigError


def _is_user(name: str) -> bool:
    try:
        return pwd.getpwnam(name).pw_uid != 0
    except KeyError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The facts about this host that default values depend on. is_user: there is one of this name, other than root."""

    uid: int
    node: str
    environ: Mapping[str, str]
    temp_dir: Path
    is_user: Callable[[str], bool] = _is_user

    def directory(self, system: str, variable: str, below_home: str) -> Path:
        """`system` for root, else `mtunnel` in the XDG directory (a relative one counts as unset)."""
        if self.uid == 0:
            return Path(system)
        base = Path(self.environ.get(variable, ""))
        return (base if base.is_absolute() else self._home() / below_home) / "mtunnel"

    def runtime_dir(self) -> Path:
        """The runtime directory; without $XDG_RUNTIME_DIR a user's own directory below the temporary one."""
        if self.uid == 0 or Path(self.environ.get("XDG_RUNTIME_DIR", "")).is_absolute():
            return self.directory("/run/mtunnel", "XDG_RUNTIME_DIR", "")
        return self.temp_dir / f"mtunnel-{self.uid}"

    def can_run_as(self, user: str) -> bool:
        """Whether workers can; only root's do not run as whoever starts them."""
        return self.uid != 0 or self.is_user(user)

    def _home(self) -> Path:
        return Path(self.environ.get("HOME") or Path.home())


def default_file(host: Host) -> Path:
    """Returns: the file that is read where none is named."""
    return host.directory("/etc/mtunnel", "XDG_CONFIG_HOME", ".config") / "mtunnel.toml"


def this_host(environ: Mapping[str, str]) -> Host:
    """Returns: the facts about the running process."""
    node = socket.gethostname().partition(".")[0]
    return Host(uid=os.geteuid(), node=node, environ=environ, temp_dir=Path(tempfile.gettempdir()))


def is_there(path: Path) -> bool:
    """Whether the path exists. Raises: ConfigError: a directory above it may not be searched."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return True


def make_private_directory(path: Path) -> bool:
    """Make a directory (mode 0700) and its parents, or check the existing one.

    Returns: whether it was made. Raises: ConfigError: it is not ours alone.
    """
    made = not is_there(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from error
    check_private_directory(path)
    return made


def check_private_directory(path: Path) -> None:
    """Raises: ConfigError: it is no directory, or others own it or may write to it."""
    try:
        status = path.lstat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path}: is not a directory")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(f"{path}: belongs to somebody else, or others may write to it")
