"""What a cloud-init drive tells its guest: the files of the data sources NoCloud and ConfigDrive, made of a config.

YAML is written as JSON, which is YAML too, so that no value can become a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote
from uuid import NAMESPACE_OID, uuid5

from mtunnel_tx.checks import FormatError, clean, split_list
from mtunnel_tx.errors import TunnelError, refuse
from mtunnel_tx.pve.cloudnetwork import CloudCard, interfaces_text, network_version_1
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import CICUSTOM, IPCONFIG, check_value
from mtunnel_tx.pve.guestrules import iter_drives, iter_nics
from mtunnel_tx.pve.volume import parse_dir_volume, parse_volume_id

_KEYS = ("cipassword", "citype", "ciupgrade", "ciuser", "cicustom", "nameserver", "searchdomain", "sshkeys", "ostype")
_WITHOUT = "opennebula"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSeed:
    """`kind`: `nocloud` or `configdrive2`; `name_servers`, `domains` empty: those of the host.

    `custom`: `user`, `network`, `meta`, `vendor` to the snippet that takes the place of what is made here.
    """

    kind: str
    host_name: str
    user: str | None
    password: str | None
    ssh_keys: tuple[str, ...]
    upgrade: bool
    cards: tuple[CloudCard, ...]
    name_servers: tuple[str, ...]
    domains: tuple[str, ...]
    custom: Mapping[str, str]

    @property
    def label(self) -> str:
        """The volume's label, by which a guest finds it."""
        return "cidata" if self.kind == "nocloud" else "config-2"


def cloud_drives(conf: GuestConfig) -> list[str]:
    """The keys of drives that hold a cloud-init image."""
    return [key for key, drive in iter_drives(conf) if drive.is_cloudinit and not key.startswith("unused")]


def iter_snippets(conf: GuestConfig) -> Iterator[tuple[str, str]]:
    """`cicustom`'s parts and volumes. Raises: TunnelError: `cicustom: …`: a part or a volume that is none."""
    if "cicustom" not in conf.options:
        return
    try:
        volumes = CICUSTOM.parse(conf.options["cicustom"])
    except FormatError as error:
        raise refuse("cicustom", clean(str(error).strip().replace("\n", ": "))) from error
    for part, volid in volumes.items():
        if not _is_snippet(volid):
            raise refuse("cicustom", f"{part}: '{clean(volid)}' is no snippet")
        yield part, volid


def _is_snippet(volid: str) -> bool:
    """Whether it is a file in a folder of snippets; a name cannot leave that."""
    try:
        return parse_dir_volume(parse_volume_id(volid).name).content == "snippets"
    except TunnelError:
        return False


def read_seed(conf: GuestConfig, vmid: int) -> CloudSeed:
    """Raises: TunnelError: `KEY: REASON`: a value that does not fit its key, or a kind that is not made here."""
    options = {key: _checked(key, conf.options[key]) for key in _KEYS if key in conf.options}
    windows = options.get("ostype", "").startswith("w")
    kind = options.get("citype", "configdrive2" if windows else "nocloud")
    if kind == _WITHOUT:
        raise refuse("citype", f"'{kind}' cannot be made here")
    return CloudSeed(
        kind=kind,
        host_name=conf.options.get("name", f"VM{vmid}"),
        user=options.get("ciuser"),
        password=options.get("cipassword"),
        ssh_keys=tuple(filter(None, map(str.strip, unquote(options.get("sshkeys", "")).splitlines()))),
        upgrade=options.get("ciupgrade", "1") == "1",
        cards=tuple(_cards(conf)),
        name_servers=split_list(options.get("nameserver", "")),
        domains=split_list(options.get("searchdomain", "")),
        custom=dict(iter_snippets(conf)),
    )


def _checked(key: str, value: str) -> str:
    try:
        return check_value(key, value)
    except FormatError as error:
        raise refuse(key, clean(str(error).strip())) from error


def _cards(conf: GuestConfig) -> Iterator[CloudCard]:
    for key, nic in iter_nics(conf):
        number = key.removeprefix("net")
        text = conf.options.get(f"ipconfig{number}", "")
        try:
            addresses = IPCONFIG.parse(text) if text else {}
        except FormatError as error:
            raise refuse(f"ipconfig{number}", clean(str(error).strip())) from error
        yield CloudCard(name=f"eth{number}", mac=nic.get("macaddr", "").lower(), addresses=addresses or {"ip": "dhcp"})


def seed_files(seed: CloudSeed, snippets: Mapping[str, str]) -> dict[str, str]:
    """The files on the drive, by their path. Args: snippets: text by part, for those of `seed.custom`."""
    user = snippets.get("user", _user_data(seed))
    if seed.kind == "nocloud":
        network = snippets.get("network", _json(network_version_1(seed.cards, seed.name_servers, seed.domains)))
        meta = snippets.get("meta", _json({"instance-id": _digest(user, network), "local-hostname": seed.host_name}))
        files = {"user-data": user, "network-config": network, "meta-data": meta}
        return files | ({"vendor-data": snippets["vendor"]} if "vendor" in snippets else {})
    network = snippets.get("network", interfaces_text(seed.cards, seed.name_servers, seed.domains))
    meta = snippets.get("meta", _json(_drive_metadata(seed, _digest(user, network))))
    files = {
        "openstack/latest/user_data": user,
        "openstack/content/0000": network,
        "openstack/latest/meta_data.json": meta,
    }
    return files | ({"openstack/latest/vendor_data.json": snippets["vendor"]} if "vendor" in snippets else {})


def _user_data(seed: CloudSeed) -> str:
    values: dict[str, Any] = {"hostname": seed.host_name, "manage_etc_hosts": True, "package_upgrade": seed.upgrade}
    values["fqdn"] = f"{seed.host_name}.{seed.domains[0]}" if seed.domains else seed.host_name
    if seed.user is not None:
        values["user"] = seed.user
        values |= {"disable_root": False} if seed.user == "root" else {}
    if seed.password is not None:
        values["password"] = seed.password
    if seed.ssh_keys:
        values["ssh_authorized_keys"] = list(seed.ssh_keys)
    values["chpasswd"] = {"expire": False}
    values["users"] = ["default"]
    return f"#cloud-config\n{_json(values)}"


def _drive_metadata(seed: CloudSeed, digest: str) -> dict[str, Any]:
    values: dict[str, Any] = {"uuid": str(uuid5(NAMESPACE_OID, digest)), "hostname": seed.host_name}
    values["network_config"] = {"content_path": "/content/0000"}
    if seed.password is not None:
        values["admin_pass"] = seed.password
    if seed.ssh_keys:
        values["public_keys"] = {f"key-{number}": key for number, key in enumerate(seed.ssh_keys)}
    return values


def _digest(*texts: str) -> str:
    """Changes with what the guest is told, so that it applies it again."""
    return hashlib.sha1("".join(texts).encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
