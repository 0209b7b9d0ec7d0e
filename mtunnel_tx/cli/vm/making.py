"""`mtunnel vm create` and `import`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtunnel_tx.cli.program import read_vmid
from mtunnel_tx.cli.vm.program import Actions, Answer, add_action
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests import running
from mtunnel_tx.guests.blueprint import Blueprint, BlueprintDisk, boot_order, checked, read_memory
from mtunnel_tx.guests.creation import CreatedGuest, Placement
from mtunnel_tx.guests.importing import Overrides, create_new, import_domain, import_file
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.settings import read_assignments
from mtunnel_tx.guests.volumes import read_size
from mtunnel_tx.pve.nic import NIC_MODELS

_IMPORT_HELP = "make a VM of a disk image, an appliance or one of libvirt's; what is not understood is named"
IMAGE_FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc")
BUSES = ("scsi", "virtio", "sata", "ide")
_ISO_DRIVE = "ide2"
_NO_NET = "none"
_USER_NET = "user"


def configure(actions: Actions) -> None:
    """Add these actions."""
    create = add_action(actions, "create", _create, "make a VM with empty disks", qm="create")
    create.add_argument("name", metavar="NAME", type=read_guest_name)
    create.add_argument(
        "--disk", action="append", default=[], metavar="SIZE", help="an empty disk, e.g. 20G; once for each"
    )
    create.add_argument("--iso", metavar="FILE", help="a CD image: a file, copied to a storage, or STORAGE:iso/NAME")
    add_guest_options(create)
    _configure_import(add_action(actions, "import", _import, _IMPORT_HELP, qm="import"))


def _configure_import(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "file", nargs="?", metavar="FILE", type=Path, help=".qcow2, .vmdk, .vdi, .vhdx, .raw, .ova, .ovf"
    )
    source.add_argument(
        "--libvirt", metavar="NAME|FILE.xml", help="a VM of this host's libvirt, by `virsh`, or its XML"
    )
    parser.add_argument(
        "--name", type=read_guest_name, metavar="NAME", help="default: what it is called there, or the file's name"
    )
    parser.add_argument("--image-format", choices=IMAGE_FORMATS, help="of FILE, where its name does not say")
    parser.add_argument(
        "--bridge",
        action="append",
        default=[],
        metavar="[NETWORK=]BRIDGE",
        help="for cards in that network, or for all; once for each",
    )
    add_guest_options(parser)


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """Add what a new VM may be told, wherever its disks come from."""
    parser.add_argument("--vmid", type=read_vmid, metavar="N", help="default: the first free one from 100")
    parser.add_argument("--memory", metavar="SIZE", help="2G, 512M, or MiB (default: 2G)")
    parser.add_argument("--cores", metavar="N", help="processors (default: 1)")
    parser.add_argument(
        "--net",
        action="append",
        metavar="NET",
        help="bridge=br0[,model=virtio], `user` for the host's own network without a bridge (default), or `none`",
    )
    parser.add_argument("--storage", metavar="ID", help="where its disks go (default: the first that takes images)")
    parser.add_argument("--format", choices=("qcow2", "raw", "vmdk"), help="of its disks (default: qcow2 where it can)")
    parser.add_argument("--bus", choices=BUSES, help="what its disks hang on (default: scsi)")
    parser.add_argument("--ostype", metavar="TYPE", help="l26, win11, other, … (default: l26, Linux)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of Proxmox's config")
    parser.add_argument("--uefi", action="store_true", help="UEFI instead of a BIOS, with a disk for its variables")
    parser.add_argument("--secure-boot", action="store_true", help="UEFI with the keys for it, on a q35 machine")
    parser.add_argument("--tpm", action="store_true", help="with a TPM 2.0 (swtpm)")
    parser.add_argument(
        "--cloud-init",
        metavar="WORDS",
        help="a drive for it: user=NAME,sshkeys=FILE,password=FILE,ip=dhcp or ip=10.0.0.2/24,gw=10.0.0.1",
    )
    parser.add_argument("--start", action="store_true", help="start it at once")


def read_guest_name(text: str) -> str:
    """A new VM's name from the command line."""
    try:
        return checked("name", text)
    except BadRequest as error:
        raise argparse.ArgumentTypeError(error.text) from error


async def _create(args: argparse.Namespace, host: PlainHost) -> Answer:
    bus = args.bus or BUSES[0]
    disks = tuple(
        BlueprintDisk(key=f"{bus}{index}", size_bytes=read_size(size)) for index, size in enumerate(args.disk)
    )
    nets = read_nets(args.net if args.net is not None else [_USER_NET])
    isos = {_ISO_DRIVE: args.iso} if args.iso else {}
    boot = boot_order(*(disk.key for disk in disks[:1]), *isos, *nets)
    options = {"name": args.name, "serial0": "socket", "boot": boot, **nets, **read_options(args)}
    blueprint = Blueprint(options=options, disks=disks, isos=isos, secure_boot=args.secure_boot)
    extras = Overrides(cloud_init=args.cloud_init, tpm=args.tpm)
    return await finish(args, host, await create_new(host, blueprint, extras, placement(args)))


async def _import(args: argparse.Namespace, host: PlainHost) -> Answer:
    name = {"name": args.name} if args.name else {}
    overrides = Overrides(
        options={**name, **read_options(args)},
        nets=read_nets(args.net) if args.net is not None else None,
        bus=args.bus,
        bridges=dict(_split_bridge(text) for text in args.bridge),
        format=args.image_format,
        cloud_init=args.cloud_init,
        tpm=args.tpm,
        secure_boot=args.secure_boot,
    )
    if args.libvirt is not None:
        return await finish(args, host, await import_domain(host, args.libvirt, overrides, placement(args)))
    return await finish(args, host, await import_file(host, args.file, overrides, placement(args)))


def _split_bridge(text: str) -> tuple[str, str]:
    """Network and bridge; the empty network stands for all others."""
    network, _, bridge = text.rpartition("=")
    return network, bridge


def placement(args: argparse.Namespace) -> Placement:
    """Where the new VM goes."""
    return Placement(vmid=args.vmid, storage=args.storage, format=args.format)


def read_options(args: argparse.Namespace) -> dict[str, str]:
    """What the command line says of a VM, as config keys. Raises: BadRequest."""
    firmware = {"bios": "ovmf"} if args.uefi or args.secure_boot else {}
    firmware |= {"machine": "q35"} if args.secure_boot else {}
    given = {"memory": read_memory(args.memory) if args.memory else None, "cores": args.cores, "ostype": args.ostype}
    options = {key: checked(key, value) for key, value in given.items() if value is not None}
    return {**firmware, **options, **read_assignments(args.set)}


def read_nets(texts: list[str]) -> dict[str, str]:
    """Network cards by their keys; those without an address get one. Raises: BadRequest."""
    if texts == [_NO_NET]:
        return {}
    return {f"net{index}": _read_net(f"net{index}", text) for index, text in enumerate(texts)}


def _read_net(key: str, text: str) -> str:
    if text == _USER_NET:
        return checked(key, "virtio")
    parts = text.split(",")
    names = {part.partition("=")[0] for part in parts}
    has_model = "model" in names or names & set(NIC_MODELS)
    return checked(key, text if has_model else f"virtio,{text}")


async def finish(
    args: argparse.Namespace, host: PlainHost, made: CreatedGuest, more: Mapping[str, Any] | None = None
) -> Answer:
    """Say what was made, and start it where that was asked for."""
    if args.start:
        await running.start(host, made.vmid)
    hint = "it runs" if args.start else f"start it: mtunnel vm start {made.vmid}"
    return Answer({**asdict(made), **(more or {})}, [f"VM {made.vmid} '{made.name}' is there; {hint}"])
