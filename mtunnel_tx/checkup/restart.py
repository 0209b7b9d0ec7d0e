"""Whether moves that come survive a restart of the daemon."""

from __future__ import annotations

from collections.abc import Iterator

from mtunnel_tx.checkup.finding import Finding, fine, problem, warning
from mtunnel_tx.config import Settings, this_host

_ENDS = "moves that come end with the daemon"


def check_restart(settings: Settings, closed: str | None) -> Iterator[Finding]:
    """Args: closed: what the workers' user cannot read of the program, for people; None: nothing."""
    limits, subject = settings.limits, "workers"
    if settings.workers and closed is not None:
        yield problem(subject, closed, "install where that user can read, or name another one: user in mtunnel.toml")
    elif settings.workers and limits.restart_s:
        wait = f"moves that come wait {limits.restart_s:g} s for a daemon that is started again"
        yield fine(subject, f"{settings.workers}: {wait}")
    elif settings.workers or this_host({}).can_run_as(settings.user):
        yield fine(subject, f"{settings.workers}: {_ENDS}, as limits.restart_s or workers is 0")
    else:
        yield warning(subject, f"none, as there is no user '{settings.user}': {_ENDS}", f"useradd -r {settings.user}")
