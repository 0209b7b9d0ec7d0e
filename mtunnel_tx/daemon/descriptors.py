"""How many descriptors a daemon needs, and its own limit of them."""

from __future__ import annotations

import resource

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import WrongState
from mtunnel_tx.hold.shelf import MOST_ENTRIES
from mtunnel_tx.wire.flow import LEAST_WINDOW_BYTES

OWN = 64
"""Standard streams, ports, locks, the log, the reactor's own, files that are read or written for a moment."""
OF_TUNNEL = 12
"""Its listening socket, the end of its command connection, task log, journal, config lock; the pipe of an import; the
process, monitor and agent of QEMU."""
OF_CHILD = 3
OF_KEPT_FLOW = 3
"""In the holder: channel, UNIX socket, and the bytes of a parked flow."""
ENOUGH = 1 << 16
"""The soft limit is not raised beyond this where nothing needs more: children inherit it, and some programs close every
descriptor that there may be."""


def count_needed(settings: Settings) -> int:
    """Descriptors at the most that the limits allow, in the daemon or in its holder, which has the same limit."""
    return max(_count_own(settings), _count_kept(settings))


def _count_kept(settings: Settings) -> int:
    """What the holder keeps: each flow, parked ones too, each tunnel's command connection, each worker's channel."""
    limits = settings.limits
    if not settings.workers or not limits.restart_s:
        return 0
    flows = min(_most_flows(settings), MOST_ENTRIES)
    programs = limits.children + settings.workers
    return OWN + flows * OF_KEPT_FLOW + limits.tunnels + settings.workers + programs * OF_CHILD


def _most_flows(settings: Settings) -> int:
    return settings.limits.tunnels * settings.limits.streams_per_tunnel


def _count_own(settings: Settings) -> int:
    """What the daemon has open.

    A connection needs one, and one more for the UNIX socket that it leads to; with workers one for the channel to its
    stream; where it may lead on to another node, two more for the connection there. A flow that is parked has no
    connection: its UNIX socket, and with workers the file of its bytes, come on top; only one with a window is parked.
    """
    limits = settings.limits
    of_connection = 2 + (settings.workers > 0) + 2 * bool(settings.forward.nodes)
    most_parked = min(_most_flows(settings), limits.windows_bytes // LEAST_WINDOW_BYTES)
    parked = most_parked * (1 + (settings.workers > 0))
    others = limits.tunnels * OF_TUNNEL + limits.children * OF_CHILD
    return OWN + limits.connections * of_connection + parked + others


def raise_limit(settings: Settings) -> None:
    """Raise the soft limit, to the hard one at most. Raises: WrongState: that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count_needed(settings)
    if hard != resource.RLIM_INFINITY and hard < needed:
        limits = settings.limits
        raise WrongState(
            f"limits: connections = {limits.connections}, tunnels = {limits.tunnels} and"
            f" streams_per_tunnel = {limits.streams_per_tunnel} need {needed} open files, and the hard limit is {hard}"
            " (ulimit -Hn, LimitNOFILE= of systemd): raise it, or lower them"
        )
    wanted = max(needed, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
