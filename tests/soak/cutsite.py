"""One daemon of the soak with cuts, the proxy before it, and the client behind that: each a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtunnel_tx.pve.maps import parse_endpoint
from tests.leaks import differences, memory_bytes
from tests.leaks import take_account as take_whole_account
from tests.patience import patience_s, wait_for
from tests.processes import started_process
from tests.whole.node import Node

THREADS = 5
PARK_S = 60.0
QUIET_S = 120.0
"""For both, an outage comes on top."""
EXTRA = """\
workers = {workers}
user = "nobody"
[limits]
dead_peer_s = 5
handshake_s = 10
half_close_s = 300
park_s = {park_s}
ping_s = 3
request_s = 10
"""
FAILURES = ("unexpected failure", "Unhandled", "Traceback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """seed: of everything random. cuts_s: about so often. rate_bytes_s: 0: no limit. outage_s: the longest one."""

    seed: int
    cuts_s: float
    rate_bytes_s: float
    outage_s: float


@dataclass(slots=True, kw_only=True)
class Account:
    """What one process has."""

    memory_bytes: int
    descriptors: int
    threads: int


def take_account(pid: int) -> Account:
    folder = Path(f"/proc/{pid}")
    return Account(
        memory_bytes=memory_bytes(pid),
        descriptors=len([*(folder / "fd").iterdir()]),
        threads=len([*(folder / "task").iterdir()]),
    )


class Asked:
    """A program that answers each line of JSON with one."""

    def __init__(self, owner: ExitStack, log: Path, module: str, *argv: str) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.process = started_process(
                owner.callback, [sys.executable, "-m", module, *argv],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended:\n{self.log.read_text()[-4000:]}"
        return json.loads(line)

    def ask(self, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(patience_s())


class Site:
    """One daemon, its clients, and what is between them."""

    def __init__(self, owner: ExitStack, workers: int, load: Load) -> None:
        self.name = f"{workers} workers"
        self.node = Node(extra=EXTRA.format(workers=workers, park_s=PARK_S + load.outage_s))
        owner.callback(self.node.close)
        root = self.node.root
        (root / "sockets").mkdir()
        self.node.start(sys.executable, "-m", "tests.soak.anysocket", str(self.node.config))
        port = parse_endpoint(self.node.endpoint).port
        argv = [str(port), f"{load.seed}-{workers}", str(load.cuts_s)]
        self.proxy = Asked(owner, root / "proxy.log", "tests.soak.cutproxy", *argv)
        argv = [self.node.name, self.node.endpoint, str(root / "sockets"), str(self.proxy.read())]
        argv += [str(THREADS), str(load.rate_bytes_s), str(QUIET_S + load.outage_s)]
        self.driver = Asked(owner, root / "driver.log", "tests.soak.cutdriver", *argv)
        self.told_at = 0

    def processes(self) -> dict[str, int]:
        """Names and numbers of all that are counted."""
        assert self.node.process is not None
        workers = self.node.ask(cmd="status")["workers"]
        found = {"daemon": self.node.process.pid, "client": self.driver.process.pid, "proxy": self.proxy.process.pid}
        found |= {f"worker {number}": worker["pid"] for number, worker in enumerate(workers)}
        return {f"{name} ({self.name})": pid for name, pid in found.items()}

    def round(self, outage_s: float, **arguments: Any) -> dict[str, Any]:
        """Args: outage_s: of the network, in the middle of this one. arguments: of `Driver.round`."""
        self.proxy.ask(cuts=True, outage_s=outage_s)
        said = self.driver.ask(**arguments)
        return {"told": self.told(), "cuts": self.proxy.ask(cuts=False), **said}

    def told(self) -> list[dict[str, Any]]:
        """What the daemon's routes have heard since the last time."""
        file = self.node.root / "told"
        lines = file.read_text().splitlines() if file.exists() else []
        new, self.told_at = lines[self.told_at :], len(lines)
        return [json.loads(line) for line in new]

    def settle(self) -> None:
        """End the clients, and wait until nothing is left: what was cut while it was opened waits for its limits.

        Raises: AssertionError.
        """
        assert self.node.process is not None
        self.driver.end()
        self.proxy.end()
        pid = self.node.process.pid
        wait_for(
            "nothing left", lambda: not differences(self.node.before, take_whole_account(pid, self.node.root)), 120
        )

    def failures(self) -> list[str]:
        """What a program itself calls a bug."""
        texts = [path.read_text("utf-8", "replace") for path in self.logs()]
        return [line for text in texts for line in text.splitlines() if any(word in line for word in FAILURES)]

    def logs(self) -> list[Path]:
        return [self.node.log, self.driver.log, self.proxy.log]
