"""A guest's memory: what is there from the start, the DIMMs that were added to it, huge pages, NUMA nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mtunnel_tx.checks import split_list
from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.guestformats import MEMORY
from mtunnel_tx.pve.guestrules import MOST_MEMORY_MIB
from mtunnel_tx.pve.numa import NumaNode, read_numa

DEFAULT_MIB = "512"
"""Where the config does not say."""
SLOTS = 255
_STATIC_MIB = 1024
"""Memory that is no DIMM, where memory can be added to a running guest."""
_DIMM_MIB = 512
_GIGANTIC = "1024"
_GIGANTIC_MIB, _HUGE_MIB = 1024, 2
_DIMMS_PER_SIZE, _SIZES = 32, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimm:
    """A memory module, `dimmN`. `node`: its NUMA node."""

    index: int
    memory_mib: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """`size_mib`: with all DIMMs. `pages`: as in `hugepages`: `2`, `1024` (MiB), `any`; None: ordinary pages.

    `hotplug`: memory can be added while the guest runs, so that QEMU reserves slots and addresses for it.
    """

    size_mib: int
    static_mib: int
    nodes: tuple[NumaNode, ...]
    dimms: tuple[Dimm, ...] = ()
    pages: str | None = None
    hotplug: bool = False

    def page_mib(self, size_mib: int) -> int:
        """The size of the huge pages for this much memory."""
        if self.pages == "any":
            return _GIGANTIC_MIB if size_mib % _GIGANTIC_MIB == 0 else _HUGE_MIB
        return int(self.pages or "0")

    def page_counts(self) -> dict[int, int]:
        """How many huge pages of each size (in MiB) it needs."""
        counts: dict[int, int] = {}
        if self.pages is not None:
            sizes_mib = [node.memory_mib for node in self.nodes] + [dimm.memory_mib for dimm in self.dimms]
            for size_mib in sizes_mib:
                page_mib = self.page_mib(size_mib)
                counts[page_mib] = counts.get(page_mib, 0) + size_mib // page_mib
        return counts


def configured_bytes(options: Mapping[str, str]) -> int:
    """How much memory a config gives its VM, in bytes. Raises: TunnelError."""
    return int(MEMORY.parse(options.get("memory", DEFAULT_MIB))["current"]) << 20


def read_memory(options: Mapping[str, str], *, sockets: int, cores: int) -> GuestMemory:
    """Raises: TunnelError: `KEY: REASON`: QEMU or Proxmox would not take it."""
    size_mib = int(MEMORY.parse(options.get("memory", DEFAULT_MIB))["current"])
    if size_mib > MOST_MEMORY_MIB:
        raise refuse("memory", f"there are {MOST_MEMORY_MIB} MiB at most")
    pages = options.get("hugepages")
    hotplug = "memory" in split_list(options.get("hotplug", ""))
    for key, is_wanted in (("hugepages", pages is not None), ("hotplug", hotplug)):
        if is_wanted and options.get("numa") != "1":
            raise refuse(key, "needs numa: 1")
    static_mib = _static_mib(size_mib, sockets, pages) if hotplug else size_mib
    nodes = read_numa(options, sockets=sockets, cores=cores, memory_mib=static_mib)
    for node in nodes if pages else ():
        if node.memory_mib % (_HUGE_MIB if pages == "any" else int(pages or "1")):
            raise refuse("hugepages", f"{node.memory_mib} MiB of node {node.number} are no whole number of pages")
    numbers = [node.number for node in nodes]
    dimms = tuple(_iter_dimms(size_mib, static_mib, numbers, gigantic=pages == _GIGANTIC)) if hotplug else ()
    return GuestMemory(size_mib=size_mib, static_mib=static_mib, nodes=nodes, dimms=dimms, pages=pages, hotplug=hotplug)


def _static_mib(size_mib: int, sockets: int, pages: str | None) -> int:
    static_mib = _STATIC_MIB * (sockets if pages == _GIGANTIC else 1)
    if size_mib < static_mib:
        raise refuse("memory", f"with hotplug there are {static_mib} MiB at least")
    return static_mib


def _iter_dimms(size_mib: int, static_mib: int, nodes: list[int], *, gigantic: bool) -> Iterator[Dimm]:
    """DIMMs in turns for all nodes; after 32 of a size the next ones have twice the size."""
    there_mib = static_mib
    first_mib = 1024 if gigantic else _DIMM_MIB
    for index in range(_DIMMS_PER_SIZE * _SIZES):
        if there_mib >= size_mib:
            break
        dimm_mib = first_mib << index // _DIMMS_PER_SIZE
        there_mib += dimm_mib
        yield Dimm(index=index, memory_mib=dimm_mib, node=nodes[index % _DIMMS_PER_SIZE % len(nodes)])
    if there_mib != size_mib:
        raise refuse("memory", f"{size_mib} MiB cannot be made of {static_mib} MiB and whole DIMMs")
