"""`python -m tests.soak SECONDS [SEED]`: rounds of traffic; after each, everything that can be counted is as before.

Exit status 1: something was left behind, memory grew, or an act found the daemon wrong.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from random import Random

from tests.leaks import Account, assert_nothing_left, take_account
from tests.patience import wait_for
from tests.soak.acts import ACTS, images_left
from tests.whole.node import Node

PEERS = 4
ROUND_S = 20.0
WARM_ROUNDS = 2
MORE_MEMORY_BYTES = 16 << 20
"""From the end of the warm rounds to the end of the last one."""
LIMITS = "[limits]\nconnect_s = 3\nhalf_close_s = 3\nhandshake_s = 10\nrequest_s = 10\n"


class Soak:
    """One node and its peers."""

    def __init__(self, node: Node, seed: int) -> None:
        self.node = node
        self.seed = seed
        self.vmids = count(1000)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def round(self, number: int, seconds: float) -> None:
        """All peers at once, until the time is over; then until nothing is left."""
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(PEERS) as pool:
            list(pool.map(lambda peer: self.peer(Random(f"{self.seed} {number} {peer}"), end), range(PEERS)))
        wait_for("the end of all tunnels", lambda: not self.node.ask(cmd="status")["tunnels"])

    def peer(self, chance: Random, end: float) -> None:
        while time.monotonic() < end:
            act = chance.choices(list(ACTS), list(ACTS.values()))[0]
            vmid = next(self.vmids)
            try:
                act(self.node, vmid, chance)
            except Exception:
                self.wrong.append(f"{act.__name__}, VM {vmid}:\n{traceback.format_exc()}")
            self.done[act.__name__] += 1

    def account(self) -> Account:
        assert self.node.process is not None
        return take_account(self.node.process.pid, self.node.root)


def report(seconds: float, done: int, account: Account) -> None:
    print(
        f"{seconds:6.0f} s  {done:6} acts  {account.descriptors.total():4} descriptors  {account.threads:3} threads"
        f"  {account.processes.total():2} children  {account.files.total():3} files"
        f"  {account.memory_bytes / (1 << 20):6.1f} MiB",
        flush=True,
    )


def soak(node: Node, seconds: float, seed: int) -> list[str]:
    """Returns: what is wrong."""
    peers = Soak(node, seed)
    begun = time.monotonic()
    first = warm = account = peers.account()
    report(0, 0, first)
    for number in count(1):
        peers.round(number, ROUND_S)
        assert node.process is not None
        try:
            assert_nothing_left(first, node.process.pid, node.root)
        except AssertionError as error:
            peers.wrong.append(str(error))
        account = peers.account()
        report(time.monotonic() - begun, peers.done.total(), account)
        if number <= WARM_ROUNDS:
            warm = account
        if time.monotonic() - begun > seconds or peers.wrong:
            break
    print(", ".join(f"{name} {times}" for name, times in sorted(peers.done.items())))
    if account.memory_bytes > warm.memory_bytes + MORE_MEMORY_BYTES:
        peers.wrong.append(f"memory: {warm.memory_bytes} bytes when warm, {account.memory_bytes} at the end")
    return [*peers.wrong, *[f"left in the storage: {path}" for path in images_left(node)], *unexpected(node)]


def unexpected(node: Node) -> list[str]:
    """Failures that the daemon itself calls bugs."""
    lines = node.log.read_text("utf-8", "replace").splitlines()
    return [line for line in lines if "unexpected failure" in line or "Unhandled" in line]


def main(seconds: str = "600", seed: str = "") -> int:
    number = int(seed) if seed else int(time.time())
    print(f"seed {number}")
    node = Node(extra=LIMITS)
    try:
        node.start()
        wrong = soak(node, float(seconds), number)
        if wrong:
            print("\n".join(["WRONG:", *wrong[:20]]))
            print(node.log.read_text("utf-8", "replace"), file=sys.stderr)
    finally:
        node.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
