"""Every key that a guest's config may have, and what its value must look like: qm.conf(5) of Proxmox VE 7 to 9."""

from __future__ import annotations

import re
from functools import partial

from mtunnel_tx.checks import (
    Check,
    FormatError,
    address,
    boolean,
    clean,
    config_id,
    dns_name,
    each,
    enum,
    formatted,
    integer,
    ipv4_address,
    ipv6_address,
    network,
    number,
    pattern,
    raw_text,
    split_list,
    storage_id,
    text,
    whole,
)
from mtunnel_tx.pve.drive import DRIVE_KEYS, parse_drive
from mtunnel_tx.pve.nic import RANGES, check_nic
from mtunnel_tx.pve.property import PropertyFormat
from mtunnel_tx.pve.sizes import drive_volume_id

INDEXED_KEYS = {
    "net": 32,
    "ipconfig": 32,
    "numa": 8,
    "serial": 4,
    "parallel": 3,
    "usb": 14,
    "hostpci": 16,
    "virtiofs": 10,
}
"""Keys with a number behind, drives aside, and how many there are of each."""

DROPPED_KEYS = frozenset({"lock", "parent", "digest", "snapstate"})
"""Keys of a config that never come along with it."""

_UUID = r"[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}"
_PCI = r"(?:[a-fA-F0-9]{4,8}:)?[a-fA-F0-9]{2}:[a-fA-F0-9]{2}(?:\.[a-fA-F0-9])?"
_USB = r"(?:0x)?[0-9A-Fa-f]{4}:(?:0x)?[0-9A-Fa-f]{4}|[0-9]+-[0-9]+(?:\.[0-9]+)*|[Ss][Pp][Ii][Cc][Ee]"
_VERSION = r"[0-9]+(?:\.[0-9]+)+"
_MACHINE = rf"pc|(?:pc|pc-i440fx|pc-q35)-{_VERSION}(?:\+pve[0-9]+)?(?:\.pxe)?|q35|virt(?:-{_VERSION})?(?:\+pve[0-9]+)?"
_FLAG = r"[+-][A-Za-z0-9_.-]+"
_BOOT_DEVICE = re.compile(r"(?:net|usb|hostpci|ide|sata|scsi|virtio)[0-9]+")
_HOTPLUG = frozenset({"network", "disk", "cpu", "memory", "usb", "cloudinit"})
_STARTUP = re.compile(r"(?:order=)?[0-9]+|(?:up|down)=[0-9]+")

_mapping = formatted(config_id)
_tag = pattern(r"[A-Za-z0-9_][A-Za-z0-9_+.-]*", "invalid characters in tag")
_base64 = pattern(r"[!-+\--~]+")
_hex_id = pattern(r"0x[0-9a-fA-F]{4}")


def boot_device(value: str) -> str:
    """Check the name of something that a guest can boot from."""
    if not _BOOT_DEVICE.fullmatch(value) or value not in CHECKS:
        raise FormatError(f"invalid boot device '{clean(value)}'")
    return value


def _boot_disk(value: str) -> str:
    if value not in DRIVE_KEYS or value.startswith("unused"):
        raise FormatError(f"invalid boot disk '{clean(value)}'")
    return value


def _hotplug(value: str) -> str:
    for feature in split_list(value) if value not in ("0", "1") else []:
        if feature not in _HOTPLUG:
            raise FormatError(f"invalid hotplug feature '{clean(feature)}'")
    return value


def _startup(value: str) -> str:
    if not all(_STARTUP.fullmatch(part) for part in value.split(",") if part.strip()):
        raise FormatError("unable to parse startup options")
    return value


def _phys_bits(value: str) -> str:
    if value != "host" and not (re.fullmatch(r"[0-9]{1,2}", value) and 8 <= int(value) <= 64):
        raise FormatError("value must be an integer between 8 and 64 or 'host'")
    return value


def _drive(key: str, value: str) -> str:
    parse_drive(key, value)
    return value


AGENT = PropertyFormat(
    checks={
        "enabled": boolean,
        "fstrim_cloned_disks": boolean,
        "freeze-fs": boolean,
        "type": enum("virtio", "isa"),
    },
    default_key="enabled",
    aliases={"freeze-fs-on-backup": "freeze-fs"},
    required=frozenset({"enabled"}),
)
AMD_SEV = PropertyFormat(
    checks={
        "type": enum("std", "es", "snp"),
        **dict.fromkeys(("no-debug", "no-key-sharing", "allow-smt", "kernel-hashes"), boolean),
    },
    default_key="type",
    required=frozenset({"type"}),
)
AUDIO = PropertyFormat(
    checks={"device": enum("ich9-intel-hda", "intel-hda", "AC97"), "driver": enum("spice", "none")},
    required=frozenset({"device"}),
)
BOOT = PropertyFormat(
    checks={"legacy": pattern(r"[acdn]{1,4}"), "order": formatted(each(boot_device))}, default_key="legacy"
)
CICUSTOM = PropertyFormat(checks=dict.fromkeys(("meta", "network", "user", "vendor"), formatted(drive_volume_id)))
CPU = PropertyFormat(
    checks={
        "cputype": pattern(r"[A-Za-z0-9_.-]+"),
        "reported-model": pattern(r"[A-Za-z0-9_.-]+"),
        "hidden": boolean,
        "hv-vendor-id": pattern(r"[a-zA-Z0-9]{1,12}"),
        "flags": pattern(rf"{_FLAG}(?:;{_FLAG})*"),
        "guest-phys-bits": integer(32, 64),
        "phys-bits": formatted(_phys_bits),
        "level": integer(0, 4294967295),
    },
    default_key="cputype",
)
HOSTPCI = PropertyFormat(
    checks={
        "host": pattern(rf"{_PCI}(?:;{_PCI})*"),
        "mapping": _mapping,
        "driver": enum("vfio", "keep"),
        "romfile": pattern(r"[^,;]+"),
        "mdev": pattern(r"[^/.:,]+"),
        **dict.fromkeys(("rombar", "pcie", "x-vga", "legacy-igd"), boolean),
        **dict.fromkeys(("vendor-id", "device-id", "sub-vendor-id", "sub-device-id"), _hex_id),
    },
    default_key="host",
)
INTEL_TDX = PropertyFormat(
    checks={"type": enum("tdx"), "attestation": boolean, "vsock-cid": integer(2), "vsock-port": integer(0)},
    default_key="type",
    required=frozenset({"type"}),
)
IPCONFIG = PropertyFormat(
    checks={
        "ip": formatted(network(ipv4_address, 32, ("dhcp", "manual"), "ipv4")),
        "gw": formatted(ipv4_address),
        "ip6": formatted(network(ipv6_address, 128, ("auto", "dhcp", "manual"), "ipv6")),
        "gw6": formatted(ipv6_address),
    },
    needs={"gw": "ip", "gw6": "ip6"},
)
IVSHMEM = PropertyFormat(checks={"size": integer(1), "name": pattern(r"[a-zA-Z0-9-]+")}, required=frozenset({"size"}))
MACHINE = PropertyFormat(
    checks={
        "type": pattern(rf"(?=.{{1,40}}\Z)(?:{_MACHINE})"),
        "viommu": enum("intel", "virtio"),
        "aw-bits": number(32, 64),
        "enable-s3": boolean,
        "enable-s4": boolean,
    },
    default_key="type",
)
MEMORY = PropertyFormat(checks={"current": integer(16)}, default_key="current", required=frozenset({"current"}))
NUMA = PropertyFormat(
    checks={
        "cpus": pattern(RANGES),
        "hostnodes": pattern(RANGES),
        "memory": number(),
        "policy": enum("preferred", "bind", "interleave"),
    },
    required=frozenset({"cpus"}),
)
RNG = PropertyFormat(
    checks={
        "source": enum("/dev/urandom", "/dev/random", "/dev/hwrng"),
        "max_bytes": integer(),
        "period": integer(),
    },
    default_key="source",
    required=frozenset({"source"}),
)
SMBIOS = PropertyFormat(
    checks={
        "uuid": pattern(_UUID),
        "base64": boolean,
        **dict.fromkeys(("family", "manufacturer", "product", "serial", "sku", "version"), _base64),
    }
)
SPICE = PropertyFormat(checks={"foldersharing": boolean, "videostreaming": enum("off", "all", "filter")})
USB = PropertyFormat(checks={"host": pattern(_USB), "mapping": _mapping, "usb3": boolean}, default_key="host")
VGA = PropertyFormat(
    checks={
        "type": enum(
            *("cirrus", "none", "qxl", "qxl2", "qxl3", "qxl4", "serial0", "serial1", "serial2", "serial3"),
            *("std", "virtio", "virtio-gl", "vmware"),
        ),
        "memory": integer(4, 512),
        "clipboard": enum("vnc"),
    },
    default_key="type",
)
VIRTIOFS = PropertyFormat(
    checks={
        "dirid": _mapping,
        "cache": enum("auto", "always", "metadata", "never"),
        **dict.fromkeys(("direct-io", "expose-acl", "expose-xattr"), boolean),
    },
    default_key="dirid",
    required=frozenset({"dirid"}),
)
WATCHDOG = PropertyFormat(
    checks={
        "model": enum("i6300esb", "ib700"),
        "action": enum("reset", "shutdown", "poweroff", "pause", "debug", "none"),
    },
    default_key="model",
)

_FLAGS = (
    *("acpi", "allow-ksm", "autostart", "ciupgrade", "freeze", "keephugepages", "kvm", "localtime", "numa"),
    *("onboot", "protection", "reboot", "tablet", "tdf", "template"),
)
_KEYBOARDS = (
    *("da", "de", "de-ch", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja"),
    *("lt", "mk", "nl", "no", "pl", "pt", "pt-br", "sl", "sv", "tr"),
)
_OSTYPES = (
    *("other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11"),
    *("l24", "l26", "solaris"),
)

_PLAIN: dict[str, Check] = {
    **dict.fromkeys(_FLAGS, boolean),
    **dict.fromkeys(("ciuser", "cipassword", "searchdomain", "lock", "parent", "digest", "snapstate"), text()),
    "affinity": pattern(r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*", "unable to parse cpuset option"),
    "agent": AGENT,
    "amd-sev": AMD_SEV,
    "arch": enum("x86_64", "aarch64"),
    "args": raw_text,
    "audio0": AUDIO,
    "balloon": whole(),
    "bios": enum("seabios", "ovmf"),
    "boot": BOOT,
    "bootdisk": _boot_disk,
    "cicustom": CICUSTOM,
    "citype": enum("configdrive2", "nocloud", "opennebula"),
    "cores": whole(1),
    "cpu": CPU,
    "cpulimit": number(0, 128),
    "cpuunits": whole(0, 500000),
    "description": raw_text,
    "hookscript": drive_volume_id,
    "hotplug": _hotplug,
    "hugepages": enum("any", "2", "1024"),
    "intel-tdx": INTEL_TDX,
    "ivshmem": IVSHMEM,
    "keyboard": enum(*_KEYBOARDS),
    "machine": MACHINE,
    "memory": MEMORY,
    "meta": pattern(r"[A-Za-z0-9=,.:+_~-]+"),
    "migrate_downtime": number(0),
    "migrate_speed": whole(),
    "name": dns_name,
    "nameserver": each(address),
    "ostype": enum(*_OSTYPES),
    "rng0": RNG,
    "runningcpu": pattern(r"[A-Za-z0-9_.+=,:-]+"),
    "runningmachine": MACHINE,
    "running-nets-host-mtu": pattern(r"net[0-9]{1,2}=[0-9]{1,5}(?:,net[0-9]{1,2}=[0-9]{1,5})*"),
    "scsihw": enum("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"),
    "shares": whole(0, 50000),
    "smbios1": SMBIOS,
    "snaptime": whole(),
    "sockets": whole(1),
    "spice_enhancements": SPICE,
    "sshkeys": pattern(r"[-%a-zA-Z0-9_.!~*'()]*", "invalid urlencoded string: {}"),
    "startdate": pattern(r"now|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:T[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2})?"),
    "startup": _startup,
    "tags": each(_tag),
    "vcpus": whole(1),
    "vga": VGA,
    "vmgenid": pattern(rf"{_UUID}|[01]"),
    "vmstate": drive_volume_id,
    "vmstatestorage": storage_id,
    "watchdog": WATCHDOG,
}
_INDEXED: dict[str, Check] = {
    "net": check_nic,
    "ipconfig": IPCONFIG,
    "numa": NUMA,
    "serial": pattern(r"/dev/[^,]+|socket"),
    "parallel": pattern(r"/dev/parport[0-9]+|/dev/usb/lp[0-9]+"),
    "usb": USB,
    "hostpci": HOSTPCI,
    "virtiofs": VIRTIOFS,
}

CHECKS: dict[str, Check] = {
    **_PLAIN,
    **{f"{name}{index}": _INDEXED[name] for name, count in INDEXED_KEYS.items() for index in range(count)},
    **{key: partial(_drive, key) for key in DRIVE_KEYS},
}
"""Every known key to the check of its value."""


def check_value(key: str, value: str) -> str:
    """Check the value of a key.

    Returns: the value as Proxmox keeps it.
    Raises: FormatError: `unknown setting 'X'`, or the reason.
    """
    if key not in CHECKS:
        raise FormatError(f"unknown setting '{clean(key)}'")
    return CHECKS[key](value)
