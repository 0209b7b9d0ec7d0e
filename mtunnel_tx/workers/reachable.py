"""Which folder keeps a user from the program's files; root's daemon can read them wherever they lie."""

from __future__ import annotations

import os
import pwd
import stat
import sys
from pathlib import Path

import mtunnel_tx
import twisted

_ENTER, _READ = 0o1, 0o4


def find_closed(user: str) -> str | None:
    """What a worker of this user needs and cannot read, for people: the first there is; None: nothing."""
    packages = [Path(module.__path__[0]) / "__init__.py" for module in (mtunnel_tx, twisted)]
    for file in (*packages, Path(os.__file__), Path(sys.executable).resolve()):
        closed = _find_closed(file, pwd.getpwnam(user))
        if closed is not None:
            return f"user '{user}' cannot {'enter' if closed.is_dir() else 'read'} '{closed}'"
    return None


def _find_closed(file: Path, user: pwd.struct_passwd) -> Path | None:
    """The first of a file's folders that the user cannot enter, or the file that cannot be read."""
    closed = [folder for folder in reversed(file.parents) if not _may(folder, user, _ENTER)]
    return closed[0] if closed else None if _may(file, user, _READ) else file


def _may(path: Path, user: pwd.struct_passwd, need: int) -> bool:
    """By the bits of owner, group and others; where there is an access list, it may."""
    status = path.stat()
    if "system.posix_acl_access" in os.listxattr(path):
        return True
    shift = 6 if status.st_uid == user.pw_uid else 3 if status.st_gid == user.pw_gid else 0
    return bool(stat.S_IMODE(status.st_mode) >> shift & need)
