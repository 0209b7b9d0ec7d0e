"""What a check found: is it well, and what is to be typed where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FindingState(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`subject`: what was looked at. `text`: what was seen. `remedy`: what to do; empty where all is well."""

    subject: str
    state: FindingState
    text: str
    remedy: str = ""


def fine(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding(subject=subject, state=FindingState.OK, text=text)


def warning(subject: str, text: str, remedy: str = "") -> Finding:
    """It works, or may, but somebody should know."""
    return Finding(subject=subject, state=FindingState.WARNING, text=text, remedy=remedy)


def problem(subject: str, text: str, remedy: str = "") -> Finding:
    """Something does not work."""
    return Finding(subject=subject, state=FindingState.PROBLEM, text=text, remedy=remedy)
