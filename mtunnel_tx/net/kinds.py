"""Names for what Twisted hands us and its annotations cannot say: objects that provide several interfaces at once."""

from __future__ import annotations

from typing import Any

Reactor = Any
"""IReactorTime, IReactorFDSet, IReactorTCP, IReactorFromThreads."""

Transport = Any
"""TlsProtocol, or a TCP or UNIX transport of the reactor."""

Request = Any
"""A twisted.web.server.Request."""

Inner = Any
"""A protocol or a factory that is put on top of another one."""

Result = Any
"""What passes through a callback unchanged."""
