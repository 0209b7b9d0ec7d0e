"""Lines of Proxmox's configs, mixed and damaged: each mixture is refused by name, or becomes a command line."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.cmdline import StartPlan, command_line
from mtunnel_tx.backends.drives import VolumeFile, volumes
from mtunnel_tx.checks import clean
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import GuestConfig, parse_guest_config
from mtunnel_tx.pve.guestformats import CHECKS
from mtunnel_tx.pve.hardware import read_hardware, resolve_machine
from tests.machines.build import host
from tests.machines.table import ROWS

HOST = host("11.1")
LINES = sorted({line for row in ROWS for line in parse_guest_config(f"{row.config}\n").options.items()})
VALUES = (
    *("", "0", "1", "-1", "x", "9" * 18, "a=b", "a,b", "=", ",", "none", "cdrom", "local:1", "spice", "0-1", "order="),
    *("legacy=x", "current=99", "type=pc", "host", "custom-x", "cputype=", "ip=dhcp", "kvm64,", "order=scsi0;scsi0"),
    *("memory=1.5,cpus=0", "cpus=0,memory=.5", "qxl4", "model=virtio", " "),
)


@st.composite
def lines(draw):
    """A key with a value that is right, another key's, wrong, or has one character more or less."""
    key, value = draw(st.sampled_from(LINES))
    if draw(st.integers(0, 4)) == 0:
        key = draw(st.sampled_from(sorted(CHECKS)))
    way = draw(st.sampled_from(("right", "wrong", "damaged")))
    if way == "wrong":
        value = draw(st.sampled_from(VALUES))
    if way == "damaged":
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(st.sampled_from(("", ",", "=", ";", "0", ":"))) + value[at + 1 :]
    return key, value


class Mixed(SynchronousTestCase):
    @settings(max_examples=400, deadline=None)
    @given(st.lists(lines(), min_size=1, max_size=6))
    def test_refused_or_built(self, given_lines):
        options = dict(given_lines)
        try:
            hardware = resolve_machine(read_hardware(GuestConfig(options=options), local=True), HOST.machines)
            names = [key for key, _ in volumes(hardware)] + (["efidisk0"] if hardware.ovmf else [])
            files = {key: VolumeFile(path=f"/v/{key}", is_device=False, direct=True) for key in names}
            plan = StartPlan(vmid=100, hardware=hardware, host=HOST, runtime_dir=Path("/r"), files=files)
            argv = command_line(plan)
        except TunnelError as error:
            self.assertEqual(error.text, clean(error.text))
            self.assertIn(error.text.partition(":")[0], options)
        else:
            self.assertTrue(all("\n" not in word and "\0" not in word for word in argv))
