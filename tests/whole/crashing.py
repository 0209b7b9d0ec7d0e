"""A daemon that dies at a chosen step of its journal: `python -m tests.whole.crashing CONFIG MOMENT NUMBER [found]`.

It is the real one, but for a journal that kills the process with SIGKILL right `before` the step (the effect of the
step before has happened) or right `after` it (its own effect has not). Steps are counted from the claim on, 1 is the
claim itself, the last one is the removal of the journal; 0: never. What a recovery writes does not count; with `found`
only that counts. Each step's name goes to `steps` beside the configuration file.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import twisted.internet.reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import FileJournal
from mtunnel_tx.config import load_settings
from mtunnel_tx.daemon.service import Daemon

reactor: Any = twisted.internet.reactor


class DyingJournal(FileJournal):
    """Kills its process at one step of one tunnel."""

    def __init__(
        self, threads: ReactorThreads, state_dir: Path, *, moment: str, number: int, found: bool, steps: Path
    ) -> None:
        super().__init__(threads, state_dir)
        self._dies_at = (moment, number)
        self._number = 0
        self._steps = steps
        self._found = found
        self._opened: set[int] = set()

    async def open(self, vmid: int, record: Mapping[str, Any]) -> None:
        self._opened.add(vmid)
        self._begin(vmid, "claim")
        await super().open(vmid, record)
        self._end(vmid)

    async def append(self, vmid: int, record: Mapping[str, Any]) -> None:
        self._begin(vmid, record["do"])
        await super().append(vmid, record)
        self._end(vmid)

    async def remove(self, vmid: int) -> None:
        self._begin(vmid, "remove")
        await super().remove(vmid)
        self._end(vmid)

    def _begin(self, vmid: int, name: str) -> None:
        if self._counts(vmid):
            self._number += 1
            self._die_at("before")
            with self._steps.open("a") as file:
                file.write(f"{name}\n")

    def _end(self, vmid: int) -> None:
        if self._counts(vmid):
            self._die_at("after")

    def _counts(self, vmid: int) -> bool:
        return (vmid in self._opened) != self._found

    def _die_at(self, moment: str) -> None:
        if (moment, self._number) == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def main(config: str, moment: str, number: str, which: str = "claimed") -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    file = Path(config)
    make_journal = partial(
        DyingJournal, moment=moment, number=int(number), found=which == "found", steps=file.parent / "steps"
    )
    daemon = Daemon(load_settings(file, os.environ), reactor, sys.exit, make_journal=make_journal)
    reactor.callWhenRunning(daemon.startService)
    reactor.addSystemEventTrigger("before", "shutdown", daemon.stopService)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
