"""What the daemon's log is for: lines that an operator needs, unless more was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.logger import FilteringLogObserver, LogEvent, LogLevel, PredicateResult

_CHATTER = ("log_legacy", "twisted.internet.protocol")
"""Twisted's own lines on ports, connections and factories."""


def is_for_operators(event: LogEvent) -> Any:
    """A predicate for twisted.logger: lets through what is no debug line, and no chatter of Twisted's."""
    level = event.get("log_level")
    if level is LogLevel.debug:
        return PredicateResult.no
    if level is LogLevel.info and str(event.get("log_namespace")).startswith(_CHATTER):
        return PredicateResult.no
    return PredicateResult.maybe


def quieten(beginner: Any) -> None:
    """Filter what twistd will log, wherever its options send that: to the terminal, a file or syslog.

    Args: beginner: `twisted.logger.globalLogBeginner`; twistd calls it after the service was made.
    """
    begin = beginner.beginLoggingTo
    predicate: Any = is_for_operators

    def begin_filtered(observers: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        begin([FilteringLogObserver(observer, [predicate]) for observer in observers], *args, **kwargs)

    beginner.beginLoggingTo = begin_filtered
