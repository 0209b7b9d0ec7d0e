"""Where commands say something: to somebody who may have left."""

from __future__ import annotations

import os
from typing import Any, TextIO


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
