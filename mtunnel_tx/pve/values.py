"""The types that config values have: each a check that returns the value as Proxmox keeps it.

Reasons are Proxmox's own words; protocol.md sections 4 and 7.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

Check = Callable[[str], str]
"""Takes a value; returns it in the form it is kept in. Raises: BadValue."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TRUE = re.compile(r"1|on|yes|true", re.IGNORECASE)
_FALSE = re.compile(r"0|off|no|false", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)")


class BadValue(ValueError):
    """A value that its key does not take; the text is the reason, without a final line feed unless Proxmox has one."""


def clean(text: str) -> str:
    """Text of a peer with every control character (and lone surrogate) as `?`."""
    return CONTROL.sub("?", text)


def boolean(value: str) -> str:
    """`1`/`on`/`yes`/`true` to `1`, their opposites to `0`."""
    if _TRUE.fullmatch(value):
        return "1"
    if _FALSE.fullmatch(value):
        return "0"
    raise BadValue(f"type check ('boolean') failed - got '{clean(value)}'")


def _check_range(number: float, minimum: float | None, maximum: float | None) -> None:
    if minimum is not None and number < minimum:
        raise BadValue(f"value must have a minimum value of {minimum:g}")
    if maximum is not None and number > maximum:
        raise BadValue(f"value must have a maximum value of {maximum:.12g}")


def integer(minimum: int | None = None, maximum: int | None = None) -> Check:
    """A whole number in decimal digits, both limits included."""

    def check(value: str) -> str:
        if not _INTEGER.fullmatch(value):
            raise BadValue(f"type check ('integer') failed - got '{clean(value)}'")
        _check_range(int(value), minimum, maximum)
        return str(int(value))

    return check


def number(minimum: float | None = None, maximum: float | None = None) -> Check:
    """A decimal fraction, both limits included; kept as it was written."""

    def check(value: str) -> str:
        if not _NUMBER.fullmatch(value):
            raise BadValue(f"type check ('number') failed - got '{clean(value)}'")
        _check_range(float(value), minimum, maximum)
        return value

    return check


def enum(*choices: str) -> Check:
    """One of some words."""

    def check(value: str) -> str:
        if value not in choices:
            listed = ", ".join(choices)
            raise BadValue(f"value '{clean(value)}' does not have a value in the enumeration '{listed}'")
        return value

    return check


def pattern(regex: str, *, ignore_case: bool = False) -> Check:
    """A text that matches as a whole."""
    compiled = re.compile(regex, re.IGNORECASE | re.ASCII if ignore_case else re.ASCII)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise BadValue("value does not match the regex pattern")
        return value

    return check


def text(max_length: int | None = None) -> Check:
    """Any text without control characters, at most so many characters long."""

    def check(value: str) -> str:
        if CONTROL.search(value):
            raise BadValue("value does not match the regex pattern")
        if max_length is not None and len(value) > max_length:
            raise BadValue(f"value may only be {max_length} characters long")
        return value

    return check


def either(*checks: Check) -> Check:
    """What any of the checks takes; the last one gives the reason."""

    def check(value: str) -> str:
        for attempt in checks[:-1]:
            try:
                return attempt(value)
            except BadValue:
                continue
        return checks[-1](value)

    return check


def named_format(regex: str, reason: str, *, ignore_case: bool = False) -> Check:
    """A text of a format with a name: what does not match is refused in that format's own words."""
    matches = pattern(regex, ignore_case=ignore_case)

    def check(value: str) -> str:
        try:
            return matches(value)
        except BadValue:
            raise BadValue(reason) from None

    return check


_SIZE = re.compile(r"([0-9]{1,18})(\.[0-9]{1,18})?([KMGT])?")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_VOLUME = re.compile(r"[a-z][a-z0-9_.-]*[a-z0-9]:.+|/.+|none|cdrom", re.IGNORECASE)


def parse_size(text: str) -> int:
    """A size like `32G` or `512` in bytes. Raises: BadValue."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise BadValue("invalid format - value does not look like a valid disk size\n")
    return int(Decimal(found[1] + (found[2] or "")) * _UNITS[found[3] or ""])


def format_size(size_bytes: int) -> str:
    """The largest unit of T, G, M, K that is exact, else bytes; nothing is `0T`, as Proxmox has it."""
    for unit in ("T", "G", "M", "K"):
        if size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return str(size_bytes)


def disk_size(value: str) -> str:
    """A size, in its largest exact unit."""
    return format_size(parse_size(value))


def volume(value: str) -> str:
    """A volume id, an absolute path, `none` or `cdrom`; never with a comma or a control character."""
    if not _VOLUME.fullmatch(value) or "," in value or CONTROL.search(value):
        raise BadValue("invalid format - unable to parse volume ID")
    return value
