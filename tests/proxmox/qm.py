"""A `qm` of the tests' own, as the daemon calls it: `qm start VMID --skiplock 1 --stateuri unix …`.

Where it finds things stands in front of that, in `commands.qm`: MACHINE_DIR LOCK_DIR PVE_DIR.

Like Proxmox's, it takes the VM's lock (so whoever holds it meanwhile waits for ever), reads its input to the end (a
SPICE ticket), starts what the VM's own config says, and leaves a QEMU behind that waits for its state on the VM's
socket. It writes down what it was given.
"""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

from mtunnel_tx.backends.cmdline import StartPlan, command_line
from mtunnel_tx.backends.drives import VolumeFile, look_at_file, volumes
from mtunnel_tx.backends.host import QemuHost
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.hardware import read_hardware
from tests.processes import run_program

SPICE_PORT = 61000
OPTIONS = {"--skiplock", "--stateuri", "--migratedfrom", "--machine", "--force-cpu", "--nets-host-mtu"}


def main(folder: Path, locks: Path, pve: Path, argv: list[str]) -> int:
    """Returns: the exit status."""
    if argv[:1] != ["start"] or len(argv) < 2:
        print(f"unknown command '{' '.join(argv)}'", file=sys.stderr)
        return 255
    vmid, options = argv[1], dict(zip(argv[2::2], argv[3::2], strict=True))
    if not options.keys() <= OPTIONS or options["--stateuri"] != "unix":
        print("400 unable to parse option", file=sys.stderr)
        return 255
    given = sys.stdin.read()
    (folder / f"{vmid}.qm.json").write_text(json.dumps({"options": options, "input": given}))
    with (locks / f"lock-{vmid}.conf").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        conf = pve / "nodes" / options["--migratedfrom"] / "qemu-server" / f"{vmid}.conf"
        status = start(folder, int(vmid), options, conf.read_text())
    if status == 0:
        print(f"migration listens on unix:/run/qemu-server/{vmid}.migrate")
        if given.startswith("spice_ticket: "):
            print(f"spice listens on port {SPICE_PORT}")
    return status


PLAIN = QemuHost(
    machines=frozenset(),
    cpus=frozenset(),
    cpu_flags=frozenset(),
    has_kvm=False,
    has_vhost_net=False,
    roms=frozenset(),
    nesting="svm",
)


def start(folder: Path, vmid: int, options: dict[str, str], text: str) -> int:
    """Real QEMU, paused, with a monitor; it outlives us."""
    conf = parse_guest_config(text)
    conf.options["machine"] = options.get("--machine", "pc-i440fx-7.2")
    hardware = read_hardware(conf, local=True)
    setup = StartPlan(
        vmid=vmid,
        hardware=hardware,
        host=PLAIN,
        runtime_dir=folder,
        files={key: file_of(drive.volume) for key, drive in volumes(hardware)},
        listen_on=folder / f"{vmid}.migrate",
        cpu=options.get("--force-cpu"),
    )
    argv = [*as_proxmox(command_line(setup), folder / str(vmid)), "-pidfile", f"{folder / str(vmid)}.pid", "-daemonize"]
    done = run_program(argv, check=False)
    if done.returncode != 0:
        print(f"start failed: QEMU exited with code {done.returncode}", file=sys.stderr)
        return 255
    return 0


def file_of(volume: str) -> VolumeFile:
    argv = [sys.executable, "-P", "-m", "mtunnel_tx.pvesm", "path", volume]
    return look_at_file(run_program(argv, capture_output=True, text=True).stdout.strip())


def as_proxmox(argv: list[str], stem: Path) -> list[str]:
    """A monitor by its path, and no sandbox: with one, QEMU does not go into the background."""
    at = argv.index("-sandbox")
    argv = [*argv[:at], *argv[at + 2 :]]
    return [f"socket,id=qmp,path={stem}.qmp,server=on,wait=off" if "id=qmp,fd=" in word else word for word in argv]


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4]), sys.argv[4:]))
