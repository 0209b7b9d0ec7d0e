"""Make a VM of what comes from elsewhere: an image, an OVA, a libvirt definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest, NotFound, TunnelError
from mtunnel_tx.guests.archive import Appliance, open_appliance
from mtunnel_tx.guests.blueprint import (
    EFI_DISK,
    EFI_OPTIONS,
    Blueprint,
    BlueprintDisk,
    boot_order,
    checked,
    name_from,
)
from mtunnel_tx.guests.creation import CreatedGuest, Placement, create_guest
from mtunnel_tx.guests.extras import with_cloud_init, with_tpm
from mtunnel_tx.guests.libvirt import read_domain
from mtunnel_tx.guests.ovf import read_ovf
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.ports.images import ImagePlace, SourceImage
from mtunnel_tx.pve.drive import drive_interface

Locate = Callable[[BlueprintDisk], ImagePlace]
"""Says where the image of a disk is. Raises: TunnelError: nowhere."""
_APPLIANCES = (".ova", ".ovf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says instead of what is imported.

    `options`: config keys. `cloud_init`: a drive for it, with these words. `tpm`: with one. `secure_boot`: with the
    keys for it. `nets`: network cards in place of all; None: those that it has. `bus`: for all disks. `bridges`: for
    the networks that an OVF or libvirt names, `""` for all others. `format`: of a plain image.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    cloud_init: str | None = None
    tpm: bool = False
    secure_boot: bool = False
    nets: Mapping[str, str] | None = None
    bus: str | None = None
    bridges: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None


async def create_new(host: PlainHost, blueprint: Blueprint, overrides: Overrides, placement: Placement) -> CreatedGuest:
    """Make a VM with empty disks. Raises: TunnelError: nothing is left then."""
    return await _make(host, "create", _with_extras(blueprint, overrides), _beside, placement)


async def import_file(host: PlainHost, path: Path, overrides: Overrides, placement: Placement) -> CreatedGuest:
    """Make a VM of an image or an appliance. Raises: TunnelError: nothing is left then."""
    if not path.exists():
        raise NotFound(f"{path}: there is no such file")
    if path.suffix.lower() in _APPLIANCES:
        appliance = open_appliance(path)
        blueprint = await _read_appliance(host, appliance, overrides.bridges)
        blueprint = _overridden(blueprint, overrides)
        return await _make(host, "import", blueprint, lambda disk: appliance.place(disk.image), placement)
    if path.suffix.lower() == ".iso" and overrides.format is None:
        hint = f"mtunnel vm create NAME --disk 20G --iso {path}; as a disk: --image-format raw"
        raise BadRequest(f"{path}: is a CD image, to install from: {hint}")
    disk = BlueprintDisk(key=f"{overrides.bus or 'scsi'}0", image=str(path), format=overrides.format)
    options = {
        "name": name_from(path.stem),
        "serial0": "socket",
        "net0": "virtio",
        "boot": boot_order(disk.key, "net0"),
    }
    blueprint = _overridden(Blueprint(options=options, disks=(disk,)), overrides)
    return await _make(host, "import", blueprint, _beside, placement)


async def import_domain(host: PlainHost, name: str, overrides: Overrides, placement: Placement) -> CreatedGuest:
    """Make a VM of one of libvirt's. Args: name: its name there, or a file with its definition. Raises: TunnelError."""
    file = Path(name)
    data = file.read_bytes() if file.suffix == ".xml" else await host.libvirt.definition(name)
    blueprint = _overridden(read_domain(data, overrides.bridges), overrides)
    return await _make(host, "import", blueprint, _beside, placement)


def _beside(disk: BlueprintDisk) -> ImagePlace:
    return ImagePlace(path=Path(disk.image).absolute())


async def _read_appliance(host: PlainHost, appliance: Appliance, bridges: Mapping[str, str]) -> Blueprint:
    description = appliance.read(".ovf")
    if description is None:
        raise BadRequest(f"{appliance.path}: there is no OVF in it")
    await _verify(host, appliance)
    blueprint = read_ovf(description, bridges)
    left_out = tuple(f"CD image '{name}' is left out: its drive is empty" for name in blueprint.isos.values())
    empty = dict.fromkeys(blueprint.isos, "none,media=cdrom")
    options = {**blueprint.options, **empty}
    return replace(blueprint, options=options, isos={}, notes=(*blueprint.notes, *left_out))


async def _verify(host: PlainHost, appliance: Appliance) -> None:
    """Raises: BadRequest: a file is another one than its manifest says."""
    for name, (algorithm, expected) in appliance.digests().items():
        if await host.images.digest(appliance.place(name), algorithm) != expected:
            raise BadRequest(f"{appliance.path}: '{clean(name)}' is not what the manifest says ({algorithm})")


async def _make(
    host: PlainHost, action: str, blueprint: Blueprint, locate: Locate, placement: Placement
) -> CreatedGuest:
    for note in blueprint.notes:
        host.note(note)
    blueprint = _with_efi_disk(host, blueprint)
    images = {disk.key: await _look(host, disk, locate) for disk in blueprint.disks if disk.image}
    return await create_guest(host, action, blueprint, images, placement)


async def _look(host: PlainHost, disk: BlueprintDisk, locate: Locate) -> SourceImage:
    place = ImagePlace(path=Path(disk.image)) if disk.key == EFI_DISK else locate(disk)
    # What lies in an archive has a name there, and not the archive's.
    format = disk.format or (_format_of(disk.image) if place.length_bytes is not None else None)
    seen = await host.images.look(place, format)
    if seen.format == "qcow2" and place.length_bytes is None and (names := await host.images.snapshots(place.path)):
        host.note(f"{place.path}: its snapshots are left out: {', '.join(map(clean, names))}")
    return seen


def _format_of(name: str) -> str | None:
    return {"vmdk": "vmdk", "qcow2": "qcow2", "raw": "raw", "vhdx": "vhdx", "vhd": "vpc", "vdi": "vdi"}.get(
        name.rpartition(".")[2].lower()
    )


def _overridden(blueprint: Blueprint, overrides: Overrides) -> Blueprint:
    renamed = _renamed_keys(blueprint, overrides.bus)
    options = dict(blueprint.options)
    boot = [renamed.get(key, key) for key in options.get("boot", "").removeprefix("order=").split(";") if key]
    if overrides.nets is not None:
        cards = [key for key in options if key.startswith("net") and key[3:].isdecimal()]
        options = {key: value for key, value in options.items() if key not in cards} | dict(overrides.nets)
        boot = [key for key in boot if key not in cards] + list(overrides.nets)
    if overrides.bus is not None:
        options.pop("scsihw", None)
    options = {**options, "boot": boot_order(*boot), **overrides.options}
    options = {key: checked(key, value) for key, value in options.items() if value}
    disks = tuple(replace(disk, key=renamed.get(disk.key, disk.key)) for disk in blueprint.disks)
    secure_boot = blueprint.secure_boot or overrides.secure_boot
    return _with_extras(replace(blueprint, options=options, disks=disks, secure_boot=secure_boot), overrides)


def _with_extras(blueprint: Blueprint, overrides: Overrides) -> Blueprint:
    blueprint = with_tpm(blueprint) if overrides.tpm else blueprint
    return with_cloud_init(blueprint, overrides.cloud_init) if overrides.cloud_init is not None else blueprint


def _renamed_keys(blueprint: Blueprint, bus: str | None) -> dict[str, str]:
    """Each disk's drive on another bus, past what is on that already."""
    if bus is None:
        return {}
    taken = blueprint.options.keys() | blueprint.isos.keys()
    free = (key for index in range(256) if (key := f"{bus}{index}") not in taken)
    return {disk.key: next(free) for disk in blueprint.disks if drive_interface(disk.key) != "efidisk"}


def _with_efi_disk(host: PlainHost, blueprint: Blueprint) -> Blueprint:
    """A VM with UEFI has a disk for its variables: its own where that can be found, else a new one."""
    if blueprint.options.get("bios") != "ovmf":
        return blueprint
    own = next((disk for disk in blueprint.disks if disk.key == EFI_DISK), None)
    if own is not None and Path(own.image).is_file():
        return blueprint
    if own is not None:
        host.note(f"there is no '{clean(own.image)}': the UEFI variables begin anew")
    try:
        template = host.machines.efi_template(enrolled=blueprint.secure_boot)
    except TunnelError as error:
        raise BadRequest(f"{error.text}; on Debian: apt-get install ovmf") from error
    options = {**EFI_OPTIONS, **({"pre-enrolled-keys": "1"} if blueprint.secure_boot else {})}
    fresh = BlueprintDisk(key=EFI_DISK, image=str(template), format="raw", options=options)
    return replace(blueprint, disks=(*(disk for disk in blueprint.disks if disk.key != EFI_DISK), fresh))
