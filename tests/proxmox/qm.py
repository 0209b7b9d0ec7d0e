"""A `qm` of the tests' own, as the daemon calls it: `qm start VMID --skiplock 1 --stateuri unix …`.

Where it finds things stands in front of that, in `commands.qm`: RUNTIME_DIR LOCK_DIR.

Like Proxmox's, it takes the VM's lock (so whoever holds it meanwhile waits for ever), reads its input to the end (a
SPICE ticket), and leaves a QEMU behind that waits for its state on the VM's sockets. It writes down what it was given.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path


def main(runtime: Path, locks: Path, argv: list[str]) -> int:
    """Returns: the exit status."""
    if argv[:1] != ["start"] or len(argv) < 2:
        print(f"unknown command '{' '.join(argv)}'", file=sys.stderr)
        return 255
    vmid, options = argv[1], dict(zip(argv[2::2], argv[3::2], strict=True))
    given = sys.stdin.read()
    with (locks / f"lock-{vmid}.conf").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start(runtime, vmid, options, given)
    return 0


def start(runtime: Path, vmid: str, options: dict[str, str], given: str) -> None:
    """Real QEMU, paused, with a monitor; it outlives us."""
    (runtime / f"{vmid}.qm.json").write_text(json.dumps({"options": options, "input": given}))
    argv = [
        "qemu-system-x86_64",
        *("-machine", options.get("--machine", "pc"), "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults"),
        *("-S", "-incoming", f"unix:{runtime / vmid}.migrate", "-daemonize"),
        *("-qmp", f"unix:{runtime / vmid}.qmp,server=on,wait=off", "-pidfile", f"{runtime / vmid}.pid"),
    ]
    subprocess.run(argv, check=True, timeout=30, start_new_session=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
