"""A failure with an exit code of its own."""

from __future__ import annotations

import os

from mtunnel_tx.errors import BackendFailed

TIMED_OUT = 4


class ExitError(BackendFailed):
    """Ends the program with `code` instead of 255."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def system_failure(what: str, error: OSError) -> ExitError:
    """`WHAT: REASON`, with the system's error number as exit code, as Proxmox's own tool ends."""
    number = error.errno or 255
    return ExitError(f"{what}: {os.strerror(number) if error.errno else error}", number)
