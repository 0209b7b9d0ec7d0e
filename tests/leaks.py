"""What a process owes the system: counted before and after, so that nothing can be left behind unseen."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from tests.patience import wait_for

MORE_THREADS = 24
"""Pools grow while they are used, up to their bounds, and do not shrink."""
MORE_DESCRIPTORS = Counter({"anon_inode:[eventpoll]": 3, "anon_inode:[eventfd]": 3})
"""The relay's threads start with the first streams, and stay."""
MORE_MEMORY_BYTES = 96 << 20
"""What modules imported late, pools and a grown heap may take; a real leak is for the soak test to find."""


KEPT_PROGRAM = "mtunnel_tx.pvesm serve"
MOST_KEPT = 4
"""A daemon that runs keeps so many of them for a minute after their last command, and two pipes to each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Everything that is countable about a daemon and its folder.

    descriptors: what they lead to, without numbers. processes: other ones that have the folder in their command line or
    environment, wherever they hang. locks: flocks of all of them. files: UNIX sockets, journals, and files that were to
    be temporary.
    """

    descriptors: Counter[str]
    processes: Counter[str]
    locks: Counter[str]
    files: Counter[str]
    threads: int
    memory_bytes: int


def take_account(pid: int | None, folder: Path) -> Account:
    """Args: pid: the daemon's, None: it has ended. folder: everything of it is below."""
    others = dict(processes_of(folder))
    own = others.pop(pid, None) if pid is not None else None
    alive = pid is not None and own is not None
    return Account(
        descriptors=Counter(_descriptors(pid)) if alive and pid is not None else Counter(),
        processes=Counter(others.values()),
        locks=Counter(_locks({*others, *([pid] if alive else [])})),
        files=Counter(_files(folder)),
        threads=len([*Path(f"/proc/{pid}/task").iterdir()]) if alive else 0,
        memory_bytes=memory_bytes(pid) if alive and pid is not None else 0,
    )


def differences(before: Account, after: Account) -> list[str]:
    """Returns: what is there now and was not before, in words."""
    found = []
    kept = Counter({name: min(MOST_KEPT, many) for name, many in after.processes.items() if is_kept(name)})
    alive = after.threads > 0
    may_be_more = {
        "descriptors": MORE_DESCRIPTORS + Counter({"pipe": 2 * kept.total()}),
        "processes": kept if alive else Counter(),
    }
    for field in fields(Account):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(old, Counter):
            allowed = may_be_more.get(field.name, Counter())
            found += [f"{field.name}: {count} more of {name}" for name, count in sorted((new - old - allowed).items())]
    if after.threads > before.threads + MORE_THREADS:
        found.append(f"threads: {before.threads} before, {after.threads} now")
    if after.memory_bytes > before.memory_bytes + MORE_MEMORY_BYTES:
        found.append(f"memory: {before.memory_bytes} bytes before, {after.memory_bytes} now")
    return found


def is_kept(command: str) -> bool:
    """Whether a process is a storage program that its daemon keeps for the next command."""
    return command.rstrip().endswith(KEPT_PROGRAM)


def assert_nothing_left(before: Account, pid: int | None, folder: Path) -> None:
    """Wait until nothing is left over. Raises: AssertionError: names what stays."""
    left: list[str] = []

    def is_nothing_left() -> bool:
        left[:] = differences(before, take_account(pid, folder))
        return not left

    try:
        wait_for("the end of what is left", is_nothing_left, 15)
    except AssertionError as error:
        raise AssertionError("left behind:\n" + "\n".join(left)) from error


def processes_of(folder: Path) -> Iterator[tuple[int, str]]:
    """Every other process that has this folder in its command line or environment: its number, its command line."""
    mark = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if command and (mark in command or mark in (entry / "environ").read_bytes()):
                yield int(entry.name), command.replace(b"\0", b" ").decode("utf-8", "replace")[:200]
        except OSError:
            continue  # it has just ended


def _descriptors(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:
            continue
        yield target if target.startswith(("/", "anon_inode:")) else target.partition(":")[0]


def _locks(pids: set[int]) -> Iterator[str]:
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        # `->` stands before a lock that is waited for.
        if "FLOCK" in words and "->" not in words and int(words[4]) in pids:
            yield f"{words[3]} {words[5]}"


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        temporary = ".tmp." in path.name or path.name.startswith(".")
        if temporary or path.is_socket() or path.parent.name == "journal":
            yield str(path.relative_to(folder))


def memory_bytes(pid: int) -> int:
    """What a process has in memory (RSS)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
