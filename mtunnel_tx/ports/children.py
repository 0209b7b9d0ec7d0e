"""Turns for child programs that work for requests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

ChildTurn = Callable[[str, int | None], AbstractAsyncContextManager[None]]
"""Takes the token that asks, and the VMID of its tunnel where it asks about one.

Returns: what waits until another child may run, and is left when it has ended. A wait that is cancelled is given up.
"""
