"""How many descriptors a daemon needs, and its own limit of them."""

from __future__ import annotations

import resource

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import WrongState

OWN = 64
"""Standard streams, ports, locks, the log, the reactor's own, files that are read or written for a moment."""
OF_TUNNEL = 12
"""Its listening socket, the end of its command connection, task log, journal, config lock; the pipe of an import; the
process, monitor and agent of QEMU."""
OF_CHILD = 3
ENOUGH = 1 << 16
"""The soft limit is not raised beyond this where nothing needs more: children inherit it, and some programs close every
descriptor that there may be."""


def count_needed(settings: Settings) -> int:
    """Descriptors at the most that the limits allow.

    A connection needs one, and one more for the UNIX socket that it leads to; with workers one for the channel to its
    stream; where it may lead on to another node, two more for the connection there.
    """
    limits = settings.limits
    of_connection = 2 + (settings.workers > 0) + 2 * bool(settings.forward.nodes)
    return OWN + limits.connections * of_connection + limits.tunnels * OF_TUNNEL + limits.children * OF_CHILD


def raise_limit(settings: Settings) -> None:
    """Raise the soft limit, to the hard one at most. Raises: WrongState: that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count_needed(settings)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise WrongState(
            f"limits: connections = {settings.limits.connections} and tunnels = {settings.limits.tunnels} need {needed}"
            f" open files, and the hard limit is {hard} (ulimit -Hn, LimitNOFILE= of systemd): raise it, or lower them"
        )
    wanted = max(needed, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
