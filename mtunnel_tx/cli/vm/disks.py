"""`mtunnel vm disk add, resize, remove`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from mtunnel_tx.cli.vm.agreeing import add_yes, agree
from mtunnel_tx.cli.vm.making import BUSES, IMAGE_FORMATS, placement
from mtunnel_tx.cli.vm.program import Actions, Answer, add_guest_action
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.disks import DiskChange, NewDisk, add_disk, find_disk, remove_disk, resize_disk
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.volumes import read_size
from mtunnel_tx.pve.sizes import format_size


def configure(actions: Actions) -> None:
    """Add these actions."""
    text = "add a disk to a VM, make one larger, or remove it"
    below = actions.add_parser("disk", help=text, description=f"{text[0].upper()}{text[1:]}.")
    kinds = below.add_subparsers(required=True, metavar="ACTION")
    add = add_guest_action(kinds, "add", _add, "make a disk for a VM that is off", qm="disk import")
    add.add_argument("--size", metavar="SIZE", help="e.g. 20G; with --image, where it is to be larger than that")
    add.add_argument("--image", type=Path, metavar="FILE", help="an image whose content it gets")
    add.add_argument("--image-format", choices=IMAGE_FORMATS, help="of the image, where its name does not say")
    add.add_argument("--bus", choices=BUSES, default=BUSES[0], help="what it hangs on (default: scsi)")
    add.add_argument("--storage", metavar="ID", help="where it goes (default: the first that takes images)")
    add.add_argument("--format", choices=("qcow2", "raw", "vmdk"), help="default: qcow2 where the storage can")
    add.set_defaults(vmid=None)
    resize = add_guest_action(kinds, "resize", _resize, "make a disk larger, also while the VM runs", qm="disk resize")
    resize.add_argument("disk", metavar="DISK", help="scsi0, virtio1, …")
    resize.add_argument("size", metavar="SIZE", help="the new size, e.g. 30G, or +10G")
    remove = add_guest_action(
        kinds, "remove", _remove, "take a disk out of a VM that is off, and free it", qm="disk unlink"
    )
    remove.add_argument("disk", metavar="DISK", help="scsi0, virtio1, unused0, …")
    remove.add_argument("--keep", action="store_true", help="do not free it: the config names it as unusedN")
    add_yes(remove)


async def _add(args: argparse.Namespace, host: PlainHost) -> Answer:
    if args.size is None and args.image is None:
        raise BadRequest("give --size, or an --image")
    size_bytes = read_size(args.size) if args.size is not None else None
    new = NewDisk(bus=args.bus, size_bytes=size_bytes, image=args.image, format=args.image_format)
    return _answer(await add_disk(host, host.find(args.guest), new, placement(args)))


async def _resize(args: argparse.Namespace, host: PlainHost) -> Answer:
    return _answer(await resize_disk(host, host.find(args.guest), args.disk, args.size))


async def _remove(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    if not args.keep:
        agree(args, f"{args.disk} of VM {vmid}, {find_disk(host, vmid, args.disk)}, is removed for good.")
    done = await remove_disk(host, vmid, args.disk, keep=args.keep)
    return Answer(asdict(done), [f"{done.key}: {done.volume} is {'unused' if args.keep else 'removed'}"])


def _answer(done: DiskChange) -> Answer:
    return Answer(asdict(done), [f"{done.key}: {done.volume}, {format_size(done.size_bytes or 0)}"])
