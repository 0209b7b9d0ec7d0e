"""What the tests of `mtunnel vm` share: a host below a folder, a guest that boots, and the actions.

`ActCase` calls an action in this process, which is quick; `VmCase` runs the command as a process of its own, as people
do.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from functools import cache
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.process import read_record
from mtunnel_tx.cli.main import make_parser
from mtunnel_tx.cli.vm.program import make_host
from mtunnel_tx.config import load_settings
from mtunnel_tx.config.host import make_private_directory
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import parse_guest_config
from tests.guest.ticker import ticker
from tests.processes import run_program

CONF = """\
name: ticker
memory: 32
scsihw: virtio-scsi-pci
scsi0: disks:100/vm-100-disk-0.raw
serial0: socket
vga: serial0
"""


PAGE = Path(__file__).parents[2] / "docs" / "vm.md"

NOBODY = "; where nothing works on it any more, 'mtunnel vm unlock 100' removes that"
"""Behind `VM 100 is locked (…)`, where nobody is known to hold it."""


class PlainHostFolder:
    """A mixin: a host without Proxmox below a folder of its own."""

    def setUp(self):
        super().setUp()
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed: 'mtunnel vm' IS NOT TESTED")
        folder = tempfile.TemporaryDirectory(prefix="mtv-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.config = self.folder / "mtunnel.toml"
        self.write()
        self.run_dir = self.folder / "run"
        self.pve = self.folder / "state" / "pve"
        self.changes = self.folder / "state" / "changes"
        self.guests = self.pve / "nodes" / "here" / "qemu-server"
        self.guests.mkdir(parents=True)
        self.images = self.folder / "images" / "images"
        self.images.mkdir(parents=True)
        storages = f"dir: disks\n\tpath {self.folder}/images\n\tcontent images,iso\n"
        (self.pve / "storage.cfg").write_text(storages)
        self.addCleanup(self.kill)

    def write(self, more=""):
        self.config.write_text(
            f'node = "here"\nstate_dir = "{self.folder}/state"\nruntime_dir = "{self.folder}/run"\n{more}'
        )

    def add_ticker(self, vmid=100, conf=CONF):
        """A guest that boots in 0.2 s, and prints lines on its serial port."""
        folder = self.images / str(vmid)
        folder.mkdir()
        (folder / f"vm-{vmid}-disk-0.raw").write_bytes(ticker().ljust(4 << 20, b"\0"))
        (self.guests / f"{vmid}.conf").write_text(conf.replace("100", str(vmid)))

    def kill(self):
        """Whatever a test did, no QEMU stays."""
        for file in self.run_dir.glob("*.pid"):
            record = read_record(file)
            if record is not None and record.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGKILL)

    def conf(self, vmid=100):
        """A VM's config."""
        return parse_guest_config((self.guests / f"{vmid}.conf").read_text())

    def pid(self, vmid=100):
        return read_record(self.run_dir / f"{vmid}.pid").pid

    def left(self, vmid=100):
        """What there is of a VM in the runtime directory."""
        return sorted(file.name for file in self.run_dir.glob(f"{vmid}.*"))

    def files(self):
        """Every file on the storage."""
        root = self.folder / "images"
        return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())

    def assert_nothing_stands(self):
        self.assertEqual(list(self.changes.glob("*")), [])

    def assert_nothing_is_left(self):
        self.assert_nothing_stands()
        self.assertEqual((list(self.guests.iterdir()), self.files()), ([], []))


class VmCase(PlainHostFolder, SynchronousTestCase):
    def vm(self, *words, **more):
        """Run `mtunnel vm WORDS`. Returns: status, output, errors."""
        done = run_program(self.command(*words), capture_output=True, text=True, check=False, **more)
        return done.returncode, done.stdout, done.stderr

    def command(self, *words):
        return [sys.executable, "-m", "mtunnel_tx.cli", "--config", str(self.config), "vm", *map(str, words)]

    def status(self, vmid):
        """What `mtunnel vm status` prints, without what depends on this host."""
        status, out, err = self.vm("status", vmid)
        self.assertEqual((status, err), (0, ""), out)
        return re.sub("(?m)^accelerator: .*\n", "", out)

    def said(self, *words):
        """What an action answers with --json; it must succeed."""
        status, out, err = self.vm(*words, "--json")
        self.assertEqual((status, err), (0, ""), out)
        answer = json.loads(out)
        self.assertIs(answer.pop("success"), True)
        return answer

    def refused(self, *words):
        """Why an action fails, in one line."""
        status, out, err = self.vm(*words)
        self.assertEqual((status, out), (1, ""))
        self.assertTrue(err.startswith("mtunnel vm: ") and err.endswith("\n") and err.count("\n") == 1, err)
        return err.removeprefix("mtunnel vm: ").removesuffix("\n")


class ActCase(PlainHostFolder, TestCase):
    def setUp(self):
        super().setUp()
        self.notes = []
        self.renew()

    def renew(self):
        """Read the configuration again, as another command would."""
        settings = load_settings(self.config, {})
        make_private_directory(settings.machine_dir)
        threads = ReactorThreads(reactor, reactor.getThreadPool())
        self.host = make_host(threads, settings, self.notes.append)
        self.addCleanup(self.host.machines.close)

    async def act(self, *words):
        """Let an action work. Returns: what it answers with --json, which is what docs/vm.md says."""
        self.notes.clear()
        args = make_parser("vm").parse_args(["vm", *map(str, words)])
        data = (await args.act(args, self.host)).data
        self.assertEqual(list(data), documented_answers()[documented_name(words)], words)
        json.dumps(data)
        return data

    async def refusal(self, *words):
        """Why an action fails, in one line."""
        try:
            answer = await self.act(*words)
        except TunnelError as error:
            self.assertNotIn("\n", error.text)
            return error.text
        return self.fail(f"not refused: {answer}")


@cache
def documented_answers():
    """The keys of each action's answer, in order, from the table in docs/vm.md."""
    table = PAGE.read_text().partition("<!-- answers")[2].partition("<!-- end of answers")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("| `")]
    return {action: _keys(keys) for actions, keys in rows for action in re.findall(r"`([^`]+)`", actions)}


def _keys(text):
    """What stands behind a colon are the keys of what is inside, and what stands in parentheses are values."""
    names = []
    for part in re.sub(r"\([^)]*\)", "", text).split(", "):
        names += re.findall(r"^\s*`([a-z_]+)`", part)
        if "list of objects" in part:
            break
    return names


def documented_name(words):
    """`disk add` of `disk add 100 --size 1G`."""
    words = [str(word) for word in words]
    several = {"--onboot", "--all"} & set(words)
    if several:
        return f"{words[0]} {several.pop()}"
    return " ".join(words[:2]) if words[0] == "disk" else words[0]
