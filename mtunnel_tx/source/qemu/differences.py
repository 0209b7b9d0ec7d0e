"""The disks and the memory that a QEMU has, against its VM's config, which somebody may have edited meanwhile.

A mirror copies what QEMU has, under the name that the config has; with `--delete` the config's volumes are freed. The
target makes its VM by the config: memory of another size does not fit, which is found when all disks are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.memory import configured_bytes
from mtunnel_tx.source.inventory import SourceDisk


def find_differences(
    conf: GuestConfig, disks: Sequence[SourceDisk], opened: Mapping[str, tuple[str, int]]
) -> Iterator[str]:
    """Yields: a sentence for each disk that is another one in QEMU.

    Args: opened: QEMU's word for each disk's file, and its size in bytes, by key.
    """
    for disk in disks:
        if disk.mirrored and not disk.label.startswith("efidisk"):
            reason = _why_other(disk, opened.get(disk.label))
            if reason is not None:
                yield f"{disk.label}: {reason}"
    for key in sorted(opened.keys() - conf.options.keys()):
        yield f"{key}: the VM runs with this disk, which its config does not name"


def _why_other(disk: SourceDisk, opened: tuple[str, int] | None) -> str | None:
    if opened is None:
        return "the VM runs without this disk: it comes with its next start"
    file, size_bytes = opened
    if disk.name not in file:
        return f"the VM runs with another file, '{clean(file)}'"
    if size_bytes != disk.size_bytes:
        return f"the VM runs with {size_bytes} bytes of it, but '{disk.volid}' has {disk.size_bytes}"
    return None


def why_other_memory(conf: GuestConfig, memory_bytes: int) -> str | None:
    """Args: memory_bytes: what the guest has. Returns: why its memory does not fit into what the config says."""
    try:
        configured = configured_bytes(conf.options)
    except FormatError as error:
        return f"memory: cannot be read: {' '.join(str(error).split())}"
    if memory_bytes == configured:
        return None
    return (
        f"the VM runs with {memory_bytes >> 20} MiB of memory, but its config says {configured >> 20} MiB,"
        " which come with its next start"
    )
