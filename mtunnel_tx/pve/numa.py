"""The NUMA nodes of a virtual machine: which processors and how much memory each has."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.guestformats import NUMA

MOST_NODES = 8
_SPAN_MOST = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """A node's share: spans of processors (`0-3`, `5`); `host_nodes` and `policy` None: anywhere."""

    number: int
    cpus: tuple[str, ...]
    memory_mib: int
    host_nodes: tuple[str, ...] = ()
    policy: str | None = None


def read_numa(options: Mapping[str, str], *, sockets: int, cores: int, memory_mib: int) -> tuple[NumaNode, ...]:
    """The nodes as `numaN` has them, else one for each socket; none without `numa`.

    Args: memory_mib: without the memory that is in DIMMs.

    Raises: TunnelError: `KEY: REASON`: QEMU would not take it.
    """
    if options.get("numa") != "1":
        return ()
    named = {f"numa{index}": index for index in range(MOST_NODES) if f"numa{index}" in options}
    if not named:
        return _even_nodes(sockets, cores, memory_mib)
    nodes = {key: _read_node(key, index, NUMA.parse(options[key])) for key, index in named.items()}
    _check_processors(nodes, sockets * cores)
    if sum(node.memory_mib for node in nodes.values()) != memory_mib:
        raise refuse(next(iter(named)), "the memory of all nodes must add up to the memory there is")
    return tuple(nodes.values())


def span_numbers(span: str) -> range:
    """The numbers of `3` or `0-7`, a thousand at most; none where it runs backwards."""
    first, _, last = span.partition("-")
    return range(int(first), min(int(last or first), int(first) + _SPAN_MOST - 1) + 1)


def _even_nodes(sockets: int, cores: int, memory_mib: int) -> tuple[NumaNode, ...]:
    share, rest = divmod(memory_mib, sockets)
    if rest:
        raise refuse("numa", f"{memory_mib} MiB cannot be shared evenly between {sockets} sockets")
    return tuple(
        NumaNode(number=index, cpus=(_span(index * cores, cores),), memory_mib=share) for index in range(sockets)
    )


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _read_node(key: str, number: int, values: Mapping[str, str]) -> NumaNode:
    if "memory" not in values:
        raise refuse(key, "a node needs memory")
    if "hostnodes" in values and "policy" not in values:
        raise refuse(key, "hostnodes need a policy")
    return NumaNode(
        number=number,
        cpus=tuple(values["cpus"].split(";")),
        memory_mib=int(float(values["memory"])),
        host_nodes=tuple(filter(None, values.get("hostnodes", "").split(";"))),
        policy=values.get("policy"),
    )


def _check_processors(nodes: Mapping[str, NumaNode], most: int) -> None:
    """Each processor is there, and has one node."""
    taken: set[int] = set()
    for key, node in nodes.items():
        for span in node.cpus:
            taken.update(_new_processors(key, span, taken, most))


def _new_processors(key: str, span: str, taken: Set[int], most: int) -> range:
    numbers = span_numbers(span)
    if not numbers or numbers[-1] >= most:
        raise refuse(key, f"cpus={span}: the processors are 0 to {most - 1}")
    if not taken.isdisjoint(numbers):
        raise refuse(key, f"cpus={span}: a processor has one node")
    return numbers
