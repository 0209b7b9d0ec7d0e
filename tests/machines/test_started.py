"""Real QEMU starts each machine of the table that it can, and has its devices at their addresses."""

import re
from pathlib import Path

from mtunnel_tx.backends.drives import volumes
from mtunnel_tx.backends.firmware import firmware_of
from mtunnel_tx.backends.host import check_devices
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.hardware import read_hardware, resolve_machine
from tests.backends.qemucase import FACTS, QemuCase
from tests.machines.build import Built
from tests.machines.table import ROWS

MOST_MIB = 1024
LEFT_OUT = ("custom-", "Icelake", "level=", "hugepages", "tpmstate0")
"""Processors and pages that a host may lack; TPMs have tests of their own."""


class Started(QemuCase):
    def config(self, host, row):
        """The row's config with volumes of this host, and less memory. Returns: None: nothing to start."""
        text = re.sub(r",bridge=\w+|,mtu=\w+", "", row.config)
        large = any(int(size) > MOST_MIB for size in re.findall(r"^memory: (\d+)", text, re.M))
        if row.refused or any(word in text for word in LEFT_OUT) or (large and "hotplug" not in text):
            return None
        text = re.sub(r"^memory: .*", "memory: 2048", text, flags=re.M) if large else text
        conf = parse_guest_config(f"{text}\nfreeze: 1\nkvm: 0\n")
        for key, drive in volumes(read_hardware(conf, local=True)):
            volid = host.volumes.make(f"{key}.raw", size_bytes=540672)
            conf.options[key] = conf.options[key].replace(drive.volume, volid)
        return conf

    async def start_all(self, rows):
        """By id; QEMU itself has checked addresses, properties and buses."""
        host, known, count = self.host(), await FACTS.ask(), 0
        for row in rows:
            conf = self.config(host, row)
            try:
                if conf is not None:
                    hardware = resolve_machine(read_hardware(conf, local=True), known.machines)
                    check_devices(hardware, known)
                    firmware_of(hardware)
            except TunnelError:
                continue  # a version, a module or a firmware that this host has not
            if conf is None:
                continue
            with self.context(row):
                await self.check(host, conf)
            count += 1
        self.assertGreater(count, len(rows) // 4)

    def context(self, row):
        return _Named(row.name)

    async def check(self, host, conf):
        await host.machines.local_start(100, conf, self.report)
        there = {entry["name"]: entry["type"] for entry in await host.ask(100, "qom-list", path="/machine/peripheral")}
        built = Built(self.argv(host))
        await host.machines.stop(100)
        expected = {line.split()[1]: line.split()[0] for line in built.devices if "=" not in line.split()[1]}
        found = {name: kind.removeprefix("child<").removesuffix(">") for name, kind in there.items()}
        self.assertEqual(expected.keys(), found.keys() - {"type"})

    def argv(self, host):
        return Path(f"/proc/{host.pid(100)}/cmdline").read_text().split("\0")[:-1]


class _Named:
    """Says which row a failure was about."""

    def __init__(self, name):
        self._name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            error.args = (f"{self._name}: {error.args[0] if error.args else error}", *error.args[1:])
        return False


PARTS = 8
"""Each is one test, which has a limit of its own."""


def _add(part):
    async def test(self):
        await self.start_all(ROWS[part::PARTS])

    setattr(Started, f"test_devices_{part}", test)


for _part in range(PARTS):
    _add(_part)
