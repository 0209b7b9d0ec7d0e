"""What an import prints, and which of it is why it failed."""

from __future__ import annotations

import re
from collections.abc import Iterable

FAILED = "import process failed"
_NO_REASON = re.compile(
    r"ready|Formatting '.*|successfully imported .*|[0-9]+\+[0-9]+ records (?:in|out)|.* copied, .*|"
)


def is_reason(line: str) -> bool:
    """Whether a line can say why an import failed; some only say what it makes."""
    return _NO_REASON.fullmatch(line.strip()) is None and line.strip() != FAILED


def explain_failure(lines: Iterable[str]) -> str:
    """`import process failed - REASON`, from all that was said; without a reason where nothing is one."""
    reasons = [line.strip().removeprefix(f"{FAILED} - ") for line in lines if is_reason(line)]
    return " - ".join([FAILED, "; ".join(dict.fromkeys(reasons))]) if reasons else FAILED
