"""How much a command says: `--quiet` and `--verbose`, which every one of them takes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

LOUDNESS = {
    "quiet": "print only what was asked for, and on standard error what went wrong",
    "verbose": "say on standard error what is done: requests, children, seconds",
}
ASKED = frozenset(
    (
        *("init", "check", "token add", "token list", "acl list", "endpoint", "status", "watch", "history", "page"),
        *("api", "vm list", "vm status", "vm show", "vm snapshots", "vm console", "vm vnc", "websocket-tunnel"),
    )
)
"""Commands whose output was asked for. What the others print says what they have done: --quiet leaves it out."""
Tell = Callable[[str], None]
"""Says something that --verbose asks for; else it does nothing."""


def add_loudness(parser: argparse.ArgumentParser) -> None:
    """Let a command be told how much to say. `words` of its arguments: what leads to it, `token add`."""
    for name, text in LOUDNESS.items():
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)
    parser.set_defaults(words=parser.prog.partition(" ")[2])


def is_quiet(args: argparse.Namespace) -> bool:
    """Whether only what was asked for is to be printed."""
    return getattr(args, "quiet", False) and not getattr(args, "json", False)


@contextmanager
def loudness(args: argparse.Namespace) -> Iterator[Tell]:
    """Do what --quiet and --verbose ask for, while a command works. Yields: what says more."""
    if getattr(args, "verbose", False):
        began_s = time.monotonic()
        tell = _begin_telling(sys.stderr, began_s)
        try:
            with _muffled(args):
                yield tell
        finally:
            tell(f"over after {time.monotonic() - began_s:.3f} s")
    else:
        with _muffled(args):
            yield lambda _text: None


@contextmanager
def _muffled(args: argparse.Namespace) -> Iterator[None]:
    """Nothing on standard output but what was asked for."""
    if not is_quiet(args) or args.words in ASKED or getattr(args, "dry_run", False):
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _begin_telling(out: TextIO, began_s: float) -> Tell:
    """Show all of our own log, of others what went wrong; each line begins with the seconds since the start."""
    from twisted.logger import LogLevel, eventAsText, globalLogBeginner

    def show(event: Any) -> None:
        is_ours = str(event.get("log_namespace", "")).startswith("mtunnel_tx")
        if is_ours or event.get("log_level", LogLevel.info) >= LogLevel.warn:
            text = eventAsText(event, includeTimestamp=False, includeSystem=False)
            _write(out, f"{time.monotonic() - began_s:8.3f} s  {text}\n")

    observers: list[Any] = [show]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)
    return lambda text: _write(out, f"{time.monotonic() - began_s:8.3f} s  {text}\n")


def _write(out: TextIO, text: str) -> None:
    """Nobody has to read it: what is said goes on without a reader."""
    try:
        out.write(text)
        out.flush()
    except OSError:
        return
