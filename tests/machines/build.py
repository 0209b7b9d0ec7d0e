"""Builds the command line of a row, and says in the rows' own words what is in it."""

import json
import tempfile
from pathlib import Path
from unittest.mock import patch

from mtunnel_tx.backends import firmware, launch
from mtunnel_tx.backends.cmdline import StartPlan, command_line
from mtunnel_tx.backends.drives import VolumeFile, volumes
from mtunnel_tx.backends.host import QemuHost, read_machines
from mtunnel_tx.pve.cpumodels import parse_cpu_models
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.hardware import read_hardware, resolve_machine
from tests.machines.rows_memory import CPU_MODELS

VERSIONS = ("3.1", "4.0", "4.1", "5.0", "5.1", "6.0", "6.1", "6.2", "7.0", "7.1", "9.2", "10.1", "11.0", "11.1")
MTUS = {"br0": 1500, "narrow": 1450}
SCREEN = {"x-speed", "x-width"}


def host(newest):
    """A host with KVM and a QEMU that has everything, up to a version. Raises: TunnelError: that is too old."""
    versions = VERSIONS[: VERSIONS.index(newest) + 1]
    return QemuHost(
        machines=read_machines("\n".join(f"pc-{kind}-{name}  PC" for kind in ("i440fx", "q35") for name in versions)),
        cpus=frozenset(),
        cpu_flags=frozenset({"cet-ibt", "cet-ss"}),
        has_kvm=True,
        has_vhost_net=True,
        roms=frozenset({"efi-virtio.rom"}),
        nesting="vmx",
        devices=frozenset({"qxl-vga"}),
        phys_bits=46,
    )


def plan(row):
    """A start of the row's config. Raises: TunnelError: it is refused."""
    conf = parse_guest_config(f"{row.config}\n")
    hardware = read_hardware(conf, local=True, cpu_models=parse_cpu_models(CPU_MODELS, print))
    known = host(row.newest)
    hardware = resolve_machine(hardware, known.machines)
    files = {key: VolumeFile(path=f"/v/{key}", is_device=False, direct=True) for key, _ in volumes(hardware)}
    if hardware.ovmf:
        files.setdefault("efidisk0", VolumeFile(path="/v/efidisk0", is_device=False, direct=False))
    mtus = launch.announced_mtus(hardware, MTUS.__getitem__)
    return StartPlan(vmid=100, hardware=hardware, host=known, runtime_dir=Path("/r"), files=files, host_mtus=mtus)


def build(row):
    """On a host with all firmware that there is; Debian 13 has none of 2 MiB."""
    with tempfile.TemporaryDirectory() as folder, patch.object(firmware, "_FOLDERS", (Path(folder),)):
        for names in (*firmware._CODE.values(), firmware._CODE_SECURE, *firmware._VARIABLES.values()):
            (Path(folder) / names[0]).touch()
        return Built(command_line(plan(row)))


class Built:
    """A command line, taken apart."""

    def __init__(self, argv):
        self.argv = argv

    def values(self, option):
        return [after for word, after in zip(self.argv, self.argv[1:], strict=False) if word == option]

    @property
    def devices(self):
        return {_line(json.loads(text)) for text in self.values("-device")}

    @property
    def globals(self):
        return set(self.values("-global"))

    @property
    def cpu(self):
        return set(self.values("-cpu")[0].split(","))

    @property
    def machine(self):
        """The type, and the other options."""
        words = dict(word.partition("=")[::2] for word in self.values("-machine")[0].split(","))
        kind = words.pop("type")
        words.pop("accel")
        return kind, {f"{key}={value}" for key, value in words.items()}

    @property
    def clock(self):
        return ",".join(self.values("-rtc"))

    @property
    def memory(self):
        """`SIZE [slots=N maxmem=MIB] nodeN=MIB:CPUS[/PAGE][@POLICY] dimmN=MIB[/PAGE]`."""
        size, *more = self.values("-m")[0].removeprefix("size=").split(",")
        words = [size, *(word.removesuffix("M") for word in more)]
        objects = {values["id"]: values for values in map(json.loads, filter(_is_json, self.values("-object")))}
        for text in self.values("-numa"):
            node = dict(word.partition("=")[::2] for word in text.split(","))
            backend = objects[node["memdev"]]
            policy = f"@{backend['policy']}" if "policy" in backend else ""
            words.append(f"node{node['nodeid']}={backend['size'] >> 20}:{node['cpus']}{_page(backend)}{policy}")
        dimms = [(name, values) for name, values in objects.items() if name.startswith("mem-dimm")]
        words += [f"{name.removeprefix('mem-')}={values['size'] >> 20}{_page(values)}" for name, values in dimms]
        return " ".join(words)


def _is_json(text):
    return text.startswith("{")


def _page(backend):
    return f"/{backend['hugetlbsize'] >> 20}" if "hugetlbsize" in backend else ""


def _line(values):
    driver = values.pop("driver")
    name = [values.pop("id")] if "id" in values else []
    return " ".join([driver, *name, *sorted(f"{key}={_text(value)}" for key, value in values.items())])


def _text(value):
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
