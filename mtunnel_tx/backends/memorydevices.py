"""QEMU's options for a guest's memory: NUMA nodes, huge pages, DIMMs."""

from __future__ import annotations

from mtunnel_tx.backends.devices import as_json, device
from mtunnel_tx.pve.cpumodels import CpuModel
from mtunnel_tx.pve.guestrules import MOST_MEMORY_MIB
from mtunnel_tx.pve.memory import SLOTS, GuestMemory
from mtunnel_tx.pve.numa import NumaNode, span_numbers

_DEFAULT_PHYS_BITS = 40
_MIB = 1 << 20


def memory_arguments(memory: GuestMemory, cpu: CpuModel, host_phys_bits: int) -> list[str]:
    """Everything but the DIMMs themselves."""
    size = str(memory.static_mib)
    if memory.hotplug:
        size = f"size={size},slots={SLOTS},maxmem={most_memory_mib(cpu, host_phys_bits)}M"
    arguments = ["-m", size]
    for node in memory.nodes:
        backend = _backend(f"ram-node{node.number}", node.memory_mib, memory) | _policy(node)
        arguments += ["-object", as_json(backend)]
        cpus = "".join(f",cpus={span}" for span in node.cpus)
        arguments += ["-numa", f"node,nodeid={node.number}{cpus},memdev=ram-node{node.number}"]
    return arguments


def dimm_devices(memory: GuestMemory) -> list[str]:
    """The DIMMs, in their order."""
    arguments: list[str] = []
    for dimm in memory.dimms:
        name = f"dimm{dimm.index}"
        arguments += ["-object", as_json(_backend(f"mem-{name}", dimm.memory_mib, memory))]
        arguments += device("pc-dimm", id=name, memdev=f"mem-{name}", node=dimm.node)
    return arguments


def most_memory_mib(cpu: CpuModel, host_phys_bits: int) -> int:
    """The memory that the guest may grow to: half of what its processor can address."""
    bits = host_phys_bits
    if cpu.phys_bits is not None and cpu.phys_bits != "host":
        bits = int(cpu.phys_bits)
    elif cpu.phys_bits is None and cpu.name not in ("host", "max"):
        bits = min(bits, _DEFAULT_PHYS_BITS)
    return min(MOST_MEMORY_MIB, 1 << (bits - 21))


def _backend(name: str, size_mib: int, memory: GuestMemory) -> dict[str, object]:
    backend = {"id": name, "size": size_mib * _MIB}
    if memory.pages is None:
        return {"qom-type": "memory-backend-ram", **backend}
    pages = {"hugetlb": True, "hugetlbsize": memory.page_mib(size_mib) * _MIB}
    return {"qom-type": "memory-backend-memfd", **backend, **pages, "share": True, "prealloc": True}


def _policy(node: NumaNode) -> dict[str, object]:
    if not node.host_nodes:
        return {}
    numbers = [number for span in node.host_nodes for number in span_numbers(span)]
    return {"host-nodes": numbers, "policy": node.policy}
