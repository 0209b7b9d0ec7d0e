"""The network of a guest as cloud-init is told it: version 1 of its own format, or Debian's `interfaces`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudCard:
    """A network card. `addresses`: of `ipconfigN`: `ip`, `gw`, `ip6`, `gw6`."""

    name: str
    mac: str
    addresses: Mapping[str, str]


def network_version_1(cards: Sequence[CloudCard], servers: Sequence[str], domains: Sequence[str]) -> dict[str, Any]:
    """cloud-init's own format."""
    config: list[dict[str, Any]] = [
        {"type": "physical", "name": card.name, "mac_address": card.mac, "subnets": list(_subnets(card.addresses))}
        for card in cards
    ]
    if servers or domains:
        config.append({"type": "nameserver", "address": list(servers), "search": list(domains)})
    return {"version": 1, "config": config}


def _subnets(addresses: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for key, gateway, dynamic, static in (("ip", "gw", "dhcp4", "static"), ("ip6", "gw6", "dhcp6", "static6")):
        value = addresses.get(key, "manual")
        if value == "dhcp":
            yield {"type": dynamic}
        elif value == "auto":
            yield {"type": "ipv6_slaac"}
        elif value != "manual":
            yield {"type": static, "address": value} | ({"gateway": addresses[gateway]} if gateway in addresses else {})


def interfaces_text(cards: Sequence[CloudCard], servers: Sequence[str], domains: Sequence[str]) -> str:
    """The text of `/etc/network/interfaces`."""
    lines = ["auto lo", "iface lo inet loopback", ""]
    for card in cards:
        lines += [f"auto {card.name}", *_interface(card, "inet", "ip", "gw"), *_interface(card, "inet6", "ip6", "gw6")]
        lines.append("")
    if servers:
        lines.append(f"dns-nameservers {' '.join(servers)}")
    if domains:
        lines.append(f"dns-search {' '.join(domains)}")
    return "\n".join(lines) + "\n"


def _interface(card: CloudCard, family: str, key: str, gateway: str) -> Iterator[str]:
    value = card.addresses.get(key)
    if value is None:
        return
    if value in ("dhcp", "auto", "manual"):
        yield f"iface {card.name} {family} {value}"
        return
    address = ip_interface(value)
    yield f"iface {card.name} {family} static"
    yield f"        address {address.ip}"
    yield f"        netmask {address.netmask if family == 'inet' else address.network.prefixlen}"
    if gateway in card.addresses:
        yield f"        gateway {card.addresses[gateway]}"
