"""Which privileges the keys of a config need (formats.md section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.drive import DRIVE_KEYS, parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import CPU, DROPPED_KEYS, HOSTPCI, INDEXED_KEYS, RNG, USB, VIRTIOFS
from mtunnel_tx.pve.nic import parse_nic
from mtunnel_tx.pve.rights import Rights

Rule = Callable[[Rights, str, str, str], None]
"""Takes rights, the path of the guest, key and value. Raises: PermissionDenied, TunnelError, FormatError."""

_GROUPS = {
    "VM.Config.CPU": "cores cpu cpulimit cpuunits numa runningcpu smp sockets vcpus",
    "VM.Config.Memory": "memory balloon shares allow-ksm",
    "VM.Config.HWType": "acpi hotplug kvm machine runningmachine scsihw smbios1 tablet vga watchdog audio0 rng0",
    "VM.Config.Options": "agent autostart bios description keyboard localtime migrate_downtime migrate_speed name"
    " onboot ostype protection reboot startdate startup tdf template tags",
    "VM.PowerMgmt": "freeze",
    "VM.Config.Disk": "boot bootdisk vmstatestorage",
    "VM.Config.Network": "running-nets-host-mtu",
}
_CLOUDINIT_KEYS = "cicustom cipassword citype ciuser ciupgrade nameserver searchdomain sshkeys"
_FREE_KEYS = DROPPED_KEYS | {"vmgenid", "meta"}
_VLAN_MAX = 4095


def check_config_privileges(conf: GuestConfig, vmid: int, rights: Rights) -> None:
    """Check every key of a config; root@pam may set all.

    That volumes may be used is another question, which needs the storages.
    Raises: PermissionDenied: the first privilege that is missing. TunnelError: `only root can set 'X' config`, ….
    """
    if rights.is_root:
        return
    path = f"/vms/{vmid}"
    if conf.description:
        rights.check(path, "VM.Config.Options")
    for key in sorted(conf.options.keys() - _FREE_KEYS):
        try:
            _RULES.get(key, _root_only)(rights, path, key, conf.options[key])
        except FormatError as error:
            raise TunnelError(f"unable to parse value of '{key}'") from error


def _root_only(_rights: Rights, _path: str, key: str, _value: str) -> None:
    raise TunnelError(f"only root can set '{key}' config")


def _needs(privileges: tuple[str, ...], rights: Rights, path: str, _key: str, _value: str) -> None:
    rights.check(path, *privileges)


def _needs_cloudinit(rights: Rights, path: str, _key: str, _value: str) -> None:
    rights.check_any(path, "VM.Config.Cloudinit", "VM.Config.Network")


def _check_drive(rights: Rights, path: str, key: str, value: str) -> None:
    drive = parse_drive(key, value)
    if drive.is_cloudinit:
        rights.check(path, "VM.Config.Cloudinit", "VM.Config.CDROM")
    else:
        rights.check(path, "VM.Config.CDROM" if drive.is_cdrom else "VM.Config.Disk")
    if drive.volume == "cdrom":
        rights.check("/", "Sys.Console")


def _check_startup(rights: Rights, path: str, _key: str, _value: str) -> None:
    rights.check(path, "VM.Config.Options")
    rights.check("/", "Sys.Modify")


def _check_state_storage(rights: Rights, path: str, _key: str, value: str) -> None:
    rights.check(path, "VM.Config.Disk")
    rights.check(f"/storage/{value}", "Datastore.AllocateSpace")


def _check_cpu(rights: Rights, path: str, _key: str, value: str) -> None:
    rights.check(path, "VM.Config.CPU")
    model = CPU.parse(value).get("cputype", "")
    if model.startswith("custom-"):
        rights.check(f"/mapping/cpu/{model.removeprefix('custom-')}", "Mapping.Use")


def _check_rng(rights: Rights, path: str, _key: str, value: str) -> None:
    rights.check(path, "VM.Config.HWType")
    if RNG.parse(value)["source"] == "/dev/hwrng":
        rights.check("/mapping/hwrng", "Mapping.Use")


def _check_serial(rights: Rights, path: str, key: str, value: str) -> None:
    if value != "socket":
        raise TunnelError(f"only root can modify '{key}' config for real devices")
    rights.check(path, "VM.Config.HWType")


def _check_usb(rights: Rights, path: str, key: str, value: str) -> None:
    rights.check(path, "VM.Config.HWType")
    device = USB.parse(value)
    host = device.get("host", "spice" if "mapping" in device else "")
    if host.lower() != "spice":
        raise TunnelError(f"only root can set '{key}' config for real devices")
    if "mapping" in device:
        rights.check(f"/mapping/usb/{device['mapping']}", "Mapping.Use")


def _check_hostpci(rights: Rights, path: str, key: str, value: str) -> None:
    device = HOSTPCI.parse(value)
    if "host" in device or "mapping" not in device:
        raise TunnelError(f"only root can set '{key}' config for non-mapped devices")
    rights.check(path, "VM.Config.HWType")
    rights.check(f"/mapping/pci/{device['mapping']}", "Mapping.Use")


def _check_virtiofs(rights: Rights, path: str, _key: str, value: str) -> None:
    rights.check(path, "VM.Config.Disk")
    rights.check(f"/mapping/dir/{VIRTIOFS.parse(value)['dirid']}", "Mapping.Use")


def _check_nic(rights: Rights, path: str, _key: str, value: str) -> None:
    rights.check(path, "VM.Config.Network")
    for bridge in bridge_paths(parse_nic(value)):
        rights.check(bridge, "SDN.Use")


def bridge_paths(nic: Mapping[str, str]) -> list[str]:
    """The access paths that need SDN.Use: the bridge, or instead each of its VLANs that tag or trunks name."""
    if "bridge" not in nic:
        return []
    bridge = f"/sdn/zones/localnetwork/{nic['bridge']}"
    vlans = _vlans(";".join(filter(None, (nic.get("tag"), nic.get("trunks")))))
    return [f"{bridge}/{vlan}" for vlan in vlans] or [bridge]


def _vlans(ranges: str) -> list[int]:
    """Every VLAN of `2;7-9`, once; a set of bits, so that a long list of wide ranges costs no time."""
    bits = 0
    for part in filter(None, ranges.split(";")):
        ends = [min(int(end), _VLAN_MAX) for end in part.split("-")]
        bits |= (2 << max(ends)) - (1 << min(ends))
    return [vlan for vlan in range(_VLAN_MAX + 1) if bits >> vlan & 1]


def _indexed(name: str) -> list[str]:
    return [f"{name}{index}" for index in range(INDEXED_KEYS[name])]


_RULES: dict[str, Rule] = {
    **{key: partial(_needs, (privilege,)) for privilege, keys in _GROUPS.items() for key in keys.split()},
    **dict.fromkeys(_indexed("numa"), partial(_needs, ("VM.Config.CPU",))),
    **dict.fromkeys([*_CLOUDINIT_KEYS.split(), *_indexed("ipconfig")], _needs_cloudinit),
    **dict.fromkeys(DRIVE_KEYS, _check_drive),
    **dict.fromkeys(_indexed("net"), _check_nic),
    **dict.fromkeys(_indexed("serial"), _check_serial),
    **dict.fromkeys(_indexed("usb"), _check_usb),
    **dict.fromkeys(_indexed("hostpci"), _check_hostpci),
    **dict.fromkeys(_indexed("virtiofs"), _check_virtiofs),
    "vmstate": partial(_needs, ("VM.Config.Disk", "VM.PowerMgmt")),
    "vmstatestorage": _check_state_storage,
    "startup": _check_startup,
    "cpu": _check_cpu,
    "rng0": _check_rng,
}
