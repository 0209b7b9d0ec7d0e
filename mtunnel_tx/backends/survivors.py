"""QEMUs that run without a record, because the runtime directory was emptied.

Each QEMU has the path of its record in its environment, so it can be found and its record written again; then it is
seen and stopped as any other one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mtunnel_tx.backends.process import MARK_VARIABLE, PLACE_VARIABLE, ProcessRecord, restored_record, write_record

_PROC = Path("/proc")
_PROGRAM = "qemu-system-"


def restore_records(machine_dir: Path) -> list[int]:
    """Write the records that are missing for QEMUs which run. Blocks: looks at every process once.

    Args: machine_dir: where the records are; a QEMU of another directory, or of another user, is not looked at.
    Returns: the VMIDs whose record was written.
    """
    restored = []
    for pid, variables in _our_qemus():
        file = Path(os.fsdecode(variables.get(PLACE_VARIABLE, b"")))
        if file.parent == machine_dir and file.stem.isdecimal() and not file.exists():
            write_record(file, _record(pid, variables, machine_dir, int(file.stem)))
            restored.append(int(file.stem))
    return sorted(restored)


def _our_qemus() -> Iterator[tuple[int, dict[str, bytes]]]:
    """Pid and environment of each; what ends meanwhile, and what is not ours to look into, is left out."""
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if folder.stat().st_uid == os.geteuid() and _is_qemu(folder):
                    yield int(folder.name), _environment(folder)


def _is_qemu(process: Path) -> bool:
    return Path((process / "exe").readlink()).name.startswith(_PROGRAM)


def _environment(process: Path) -> dict[str, bytes]:
    pairs = (entry.partition(b"=") for entry in (process / "environ").read_bytes().split(b"\0"))
    return {os.fsdecode(name): value for name, _, value in pairs}


def _record(pid: int, variables: dict[str, bytes], machine_dir: Path, vmid: int) -> ProcessRecord:
    """What can be known again; of its sockets, those that are left."""
    arguments = Path(_PROC, str(pid), "cmdline").read_bytes().split(b"\0")
    sockets = [path for path in machine_dir.glob(f"{vmid}.*") if path.is_socket()]
    token = variables.get(MARK_VARIABLE, b"").decode("ascii", "replace")
    return restored_record(pid, token=token, incoming=b"-incoming" in arguments, sockets=sockets)
