"""How commands say something: to programs, to people, and to somebody who may have left."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import TunnelError

FAILED = 1


class Forgiving:
    """A text stream that may break, as a pipe or a terminal does: then what is said goes nowhere, and all goes on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """As of a text stream."""
        try:
            return self._out.write(text)
        except OSError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        """As of a text stream."""
        try:
            self._out.flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        """Also for those who have the same descriptor, and for Python's own flush at the end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._out.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def forget_output() -> int:
    """Whoever read our output has gone: nothing may complain about it while we end. Returns: the exit status."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return FAILED


def end_output(status: int) -> int:
    """What could not be written is not tried again while we end. Returns: the exit status."""
    try:
        sys.stdout.flush()
    except OSError:
        forget_output()
    return status


def speak_any_text() -> None:
    """Where the locale lacks a character, say it in other ones; bytes that are no text stay as they are."""
    codecs.register_error("mtunnel", _say_otherwise)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="mtunnel")


def _say_otherwise(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start]
    if "\udc80" <= found <= "\udcff":
        return found.encode("ascii", "surrogateescape"), error.start + 1
    return {"…": "..."}.get(found, "?"), error.start + 1


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command answer as JSON (`answer`)."""
    parser.add_argument("--json", action="store_true", help="answer as one JSON object (docs/operations.md)")


def answer(args: argparse.Namespace, data: Mapping[str, Any], *lines: str) -> None:
    """What a command has done: `data` with --json, else lines for people."""
    if args.json:
        print(json.dumps({"success": True, **data}, indent=2))
        return
    for line in lines:
        print(line)


def name_command(args: argparse.Namespace) -> str:
    """What a command's lines on standard error begin with: `mtunnel COMMAND`."""
    return " ".join(filter(None, ("mtunnel", getattr(args, "command", None))))


def warn(args: argparse.Namespace, text: str) -> None:
    """One line that somebody has to act on, or that is no part of the answer: on standard error, also with --quiet."""
    print(f"{name_command(args)}: {clean(text)}", file=sys.stderr, flush=True)


def fail(args: argparse.Namespace, error: TunnelError) -> int:
    """Say why a command failed: as JSON where that was asked for, else on standard error. Returns: the exit status."""
    return print_failure(args, clean(error.text))


def print_failure(args: argparse.Namespace, reason: str) -> int:
    """The same of a reason that may have lines. Where it cannot be written as JSON either, standard error has it."""
    try:
        if getattr(args, "json", False):
            print(json.dumps({"success": False, "msg": reason}), flush=True)
            return FAILED
    except BrokenPipeError:
        return forget_output()
    except OSError:
        forget_output()
    print(f"{name_command(args)}: {reason}", file=sys.stderr)
    return FAILED
