"""Which privileges the keys of a config need (formats.md section 3): each key has a rule, as data where it can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import Refusal, TunnelError, at_once, refusing
from mtunnel_tx.pve.drive import DRIVE_KEYS, parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import CPU, DROPPED_KEYS, HOSTPCI, INDEXED_KEYS, RNG, USB, VIRTIOFS
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.nic import parse_nic
from mtunnel_tx.pve.rights import Rights

Asked = tuple[Need, Mapping[str, str]]
"""A need, and what the names in its path stand for, `vmid` apart."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key needs.

    Args: needs: everything that may be asked for. ask: takes key and value; yields what they ask for, in order; None:
    all of `needs`. Raises TunnelError, FormatError.
    """

    needs: tuple[Need, ...]
    ask: Callable[[str, str], Iterator[Asked]] | None = None

    def asked(self, key: str, value: str) -> Iterator[Asked]:
        """What this key asks for with this value."""
        return self.ask(key, value) if self.ask else ((need, {}) for need in self.needs)


def _on_vm(*privileges: str) -> Need:
    return Need("/vms/{vmid}", privileges)


_CPU, _MEMORY, _HARDWARE = _on_vm("VM.Config.CPU"), _on_vm("VM.Config.Memory"), _on_vm("VM.Config.HWType")
_OPTIONS, _DISK, _NETWORK = _on_vm("VM.Config.Options"), _on_vm("VM.Config.Disk"), _on_vm("VM.Config.Network")
_POWER, _CDROM, _CLOUDINIT = _on_vm("VM.PowerMgmt"), _on_vm("VM.Config.CDROM"), _on_vm("VM.Config.Cloudinit")
_CLOUDINIT_KEY = _on_vm("VM.Config.Cloudinit", "VM.Config.Network")
_CONSOLE, _MODIFY = Need("/", ("Sys.Console",)), Need("/", ("Sys.Modify",))
_ALLOCATE = Need("/storage/{storage}", ("Datastore.AllocateSpace",))
_MAPPED = {kind: Need(f"/mapping/{kind}/{{id}}", ("Mapping.Use",)) for kind in ("cpu", "usb", "pci", "dir")}
_HWRNG = Need("/mapping/hwrng", ("Mapping.Use",))
_BRIDGE = Need("/sdn/zones/localnetwork/{bridge}", ("SDN.Use",))

_GROUPS = {
    _CPU: "cores cpulimit cpuunits numa runningcpu smp sockets vcpus",
    _MEMORY: "memory balloon shares allow-ksm",
    _HARDWARE: "acpi hotplug kvm machine runningmachine scsihw smbios1 tablet vga watchdog audio0",
    _OPTIONS: "agent autostart bios description keyboard localtime migrate_downtime migrate_speed name onboot ostype"
    " protection reboot startdate tdf template tags",
    _POWER: "freeze",
    _DISK: "boot bootdisk",
    _NETWORK: "running-nets-host-mtu",
    _CLOUDINIT_KEY: "cicustom cipassword citype ciuser ciupgrade nameserver searchdomain sshkeys",
}
_FREE_KEYS = DROPPED_KEYS | {"vmgenid", "meta"}
_VLAN_MAX = 4095


def check_config_privileges(conf: GuestConfig, vmid: int, rights: Rights, refused: Refusal = at_once) -> None:
    """Check every key of a config; root@pam may set all.

    That volumes may be used is another question, which needs the storages.
    Args: refused: takes the first privilege that is missing for each key.
    Raises: PermissionDenied: a privilege is missing. TunnelError: `only root can set 'X' config`, ….
    """
    if rights.is_root:
        return
    if conf.description:
        with refusing(refused, "description"):
            _OPTIONS.check(rights, {"vmid": vmid})
    for key in sorted(conf.options.keys() - _FREE_KEYS):
        with refusing(refused, key):
            _check_key(key, conf.options[key], vmid, rights)


def _check_key(key: str, value: str, vmid: int, rights: Rights) -> None:
    try:
        for need, values in _rule(key).asked(key, value):
            need.check(rights, {"vmid": vmid, **values})
    except FormatError as error:
        raise TunnelError(f"unable to parse value of '{key}'") from error


def _rule(key: str) -> Rule:
    """Raises: TunnelError: only root may set the key."""
    if key not in RULES:
        raise TunnelError(f"only root can set '{key}' config")
    return RULES[key]


def _ask_drive(key: str, value: str) -> Iterator[Asked]:
    drive = parse_drive(key, value)
    if drive.is_cloudinit:
        yield _CLOUDINIT, {}
    yield _CDROM if drive.is_cloudinit or drive.is_cdrom else _DISK, {}
    if drive.volume == "cdrom":
        yield _CONSOLE, {}


def _ask_state_storage(_key: str, value: str) -> Iterator[Asked]:
    yield _DISK, {}
    yield _ALLOCATE, {"storage": value}


def _ask_cpu(_key: str, value: str) -> Iterator[Asked]:
    yield _CPU, {}
    model = CPU.parse(value).get("cputype", "")
    if model.startswith("custom-"):
        yield _MAPPED["cpu"], {"id": model.removeprefix("custom-")}


def _ask_rng(_key: str, value: str) -> Iterator[Asked]:
    yield _HARDWARE, {}
    if RNG.parse(value)["source"] == "/dev/hwrng":
        yield _HWRNG, {}


def _ask_serial(key: str, value: str) -> Iterator[Asked]:
    if value != "socket":
        raise TunnelError(f"only root can modify '{key}' config for real devices")
    yield _HARDWARE, {}


def _ask_usb(key: str, value: str) -> Iterator[Asked]:
    yield _HARDWARE, {}
    device = USB.parse(value)
    host = device.get("host", "spice" if "mapping" in device else "")
    if host.lower() != "spice":
        raise TunnelError(f"only root can set '{key}' config for real devices")
    if "mapping" in device:
        yield _MAPPED["usb"], {"id": device["mapping"]}


def _ask_hostpci(key: str, value: str) -> Iterator[Asked]:
    device = HOSTPCI.parse(value)
    if "host" in device or "mapping" not in device:
        raise TunnelError(f"only root can set '{key}' config for non-mapped devices")
    yield _HARDWARE, {}
    yield _MAPPED["pci"], {"id": device["mapping"]}


def _ask_virtiofs(_key: str, value: str) -> Iterator[Asked]:
    yield _DISK, {}
    yield _MAPPED["dir"], {"id": VIRTIOFS.parse(value)["dirid"]}


def _ask_nic(_key: str, value: str) -> Iterator[Asked]:
    yield _NETWORK, {}
    for bridge in vlan_bridges(parse_nic(value)):
        yield _BRIDGE, {"bridge": bridge}


def vlan_bridges(nic: Mapping[str, str]) -> list[str]:
    """`BRIDGE`, or `BRIDGE/VLAN` for each VLAN; none where no bridge is named."""
    if "bridge" not in nic:
        return []
    vlans = _vlans(";".join(filter(None, (nic.get("tag"), nic.get("trunks")))))
    return [f"{nic['bridge']}/{vlan}" for vlan in vlans] or [nic["bridge"]]


def _vlans(ranges: str) -> list[int]:
    """Every VLAN of `2;7-9`, once; a set of bits, so that a long list of wide ranges costs no time."""
    bits = 0
    for part in filter(None, ranges.split(";")):
        ends = [min(int(end), _VLAN_MAX) for end in part.split("-")]
        bits |= (2 << max(ends)) - (1 << min(ends))
    return [vlan for vlan in range(_VLAN_MAX + 1) if bits >> vlan & 1]


def _indexed(name: str) -> list[str]:
    return [f"{name}{index}" for index in range(INDEXED_KEYS[name])]


RULES: Mapping[str, Rule] = {
    **{key: Rule((need,)) for need, keys in _GROUPS.items() for key in keys.split()},
    **dict.fromkeys(_indexed("numa"), Rule((_CPU,))),
    **dict.fromkeys(_indexed("ipconfig"), Rule((_CLOUDINIT_KEY,))),
    **dict.fromkeys(DRIVE_KEYS, Rule((_CLOUDINIT, _CDROM, _DISK, _CONSOLE), _ask_drive)),
    **dict.fromkeys(_indexed("net"), Rule((_NETWORK, _BRIDGE), _ask_nic)),
    **dict.fromkeys(_indexed("serial"), Rule((_HARDWARE,), _ask_serial)),
    **dict.fromkeys(_indexed("usb"), Rule((_HARDWARE, _MAPPED["usb"]), _ask_usb)),
    **dict.fromkeys(_indexed("hostpci"), Rule((_HARDWARE, _MAPPED["pci"]), _ask_hostpci)),
    **dict.fromkeys(_indexed("virtiofs"), Rule((_DISK, _MAPPED["dir"]), _ask_virtiofs)),
    "vmstate": Rule((_DISK, _POWER)),
    "vmstatestorage": Rule((_DISK, _ALLOCATE), _ask_state_storage),
    "startup": Rule((_OPTIONS, _MODIFY)),
    "cpu": Rule((_CPU, _MAPPED["cpu"]), _ask_cpu),
    "rng0": Rule((_HARDWARE, _HWRNG), _ask_rng),
}
"""Every key that others than root may set."""


def _config_needs() -> Iterator[Need]:
    """Every need of RULES once, with the keys that may ask for it; `net0`, `net1`, … are shown as `net[n]`."""
    keys: dict[Need, dict[str, None]] = {}
    for key, rule in RULES.items():
        stem = re.sub(r"\d+$", "", key)
        for need in rule.needs:
            keys.setdefault(need, {})[f"{stem}[n]" if stem in INDEXED_KEYS else key] = None
    for need, names in keys.items():
        yield replace(need, when=f"for these keys of the config: {', '.join(names)}")


CONFIG_NEEDS = tuple(_config_needs())
"""What a config may need, for people."""
