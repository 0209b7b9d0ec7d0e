"""How commands say something: to programs, to people, and to somebody who may have left."""

from __future__ import annotations

import argparse
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


def fail(args: argparse.Namespace, error: TunnelError, name: str) -> int:
    """Say why a command failed: as JSON where that was asked for, else on standard error. Returns: the exit status."""
    if getattr(args, "json", False):
        print(json.dumps({"success": False, "msg": clean(error.text)}))
    else:
        print(f"{name}: {clean(error.text)}", file=sys.stderr)
    return FAILED
