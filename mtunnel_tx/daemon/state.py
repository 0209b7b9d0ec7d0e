"""What a daemon has of its own on disk: its directories, the lock on them, its keys."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path

from twisted.logger import Logger

from mtunnel_tx.backends.files import create_file
from mtunnel_tx.config import Settings, make_private_directory
from mtunnel_tx.errors import WrongState, os_reason
from mtunnel_tx.filelocks import try_lock

log = Logger()
KEY_BYTES = 32


def make_directories(settings: Settings) -> None:
    """Make what is missing; on a Proxmox node the directory of the machines is Proxmox's. Raises: ConfigError."""
    own = () if settings.profile == "proxmox" else (settings.machine_dir,)
    for folder in (settings.state_dir, settings.runtime_dir, *own):
        make_private_directory(folder)
    settings.lock_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


def lock_state(state_dir: Path) -> ExitStack:
    """Two daemons on one state would undo each other's tunnels.

    The folder is locked too: somebody may remove the file. Some file systems lock no folders; there the file remains.
    Returns: the locks, held until it is closed. Raises: WrongState.
    """
    with ExitStack() as locks:
        file = locks.enter_context((state_dir / "daemon.lock").open("ab"))
        folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
        locks.callback(os.close, folder)
        if not (try_lock(file) and _lock_folder(folder)):
            raise WrongState(f"another daemon works on '{state_dir}'")
        return locks.pop_all()


def _lock_folder(folder: int) -> bool:
    try:
        return try_lock(folder)
    except OSError as error:
        log.debug("this file system locks no folders: {reason}", reason=os_reason(error))
        return True


def read_key(path: Path) -> bytes:
    """A secret key of this daemon, made on first use, mode 0600. Raises: WrongState: what is there is none."""
    with suppress(FileExistsError):
        create_file(path, os.urandom(KEY_BYTES).hex(), 0o600)
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise WrongState(f"'{path}' holds no key; remove it, and the next start makes one")
    return key
