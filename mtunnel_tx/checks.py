"""Checks of values, used everywhere: the expressions of ids and names, and functions that check a text.

A check takes a text and returns it in the form that it is kept in, or raises FormatError with the reason. The reasons
are Proxmox's own words (protocol.md sections 1, 4 and 7). `wire/schema.py` (JSON values, reasons by name) and
`config/checks.py` (TOML values, reasons of our own) are thin layers above it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address

Check = Callable[[str], str]
"""Takes a value; returns it in the form it is kept in. Raises: FormatError."""
Warn = Callable[[str], None]
"""Takes one sentence about something that was skipped."""

CONTROL_CLASS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
"""For a character class: control characters, line separators, and surrogates, which are no text."""
STORAGE_ID = r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"
VMID = r"[1-9][0-9]{2,8}"
"""100 to 999999999."""
NODE_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
"""One label of a DNS name."""
CONFIG_ID = r"[A-Za-z][A-Za-z0-9_-]+"
"""The name of a snapshot, or of a mapping."""
CONFIG_KEY = r"[a-z][a-z_-]*[0-9]*"
"""A key of a guest's config."""
REALM = r"[A-Za-z][A-Za-z0-9._-]+"
"""The name of a realm; that of a token has the same form."""
USER_ID = rf"[^\s:/]+@{REALM}"
TOKEN_ID = rf"({USER_ID})!({REALM})"
"""Groups: the user's id, the token's name."""
VOLUME_ID = rf"({STORAGE_ID}):([^{CONTROL_CLASS}]+)"
"""Groups: the storage's id, the volume's name."""
BRIDGE_ID = r"(?!\.{1,2}(?![A-Za-z0-9_.-]))[A-Za-z0-9_.-]+"
"""The name of a network bridge, but not `.` and `..`, which lead to other folders."""
FINGERPRINT = r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}"
"""The SHA-256 of a certificate."""

CONTROL = re.compile(f"[{CONTROL_CLASS}]")
MOST_WARNINGS = 20
MOST_ITEMS = 1000
_TRUE = re.compile(r"1|on|yes|true", re.IGNORECASE)
_FALSE = re.compile(r"0|off|no|false", re.IGNORECASE)
_WHOLE = re.compile(r"[0-9]{1,18}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})")
_DNS_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_DNS_LABEL}\.)*{_DNS_LABEL}")
_LIST = re.compile(r"[,;\s\0]+", re.ASCII)
_PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")


class FormatError(ValueError):
    """A text that does not fit its format; the message is the reason, with Proxmox's line feeds in it."""


def clean(text: str) -> str:
    """Replace every control character, line separator and lone surrogate with `?`."""
    return CONTROL.sub("?", text)


def clean_lines(text: str) -> str:
    """Like `clean`, but line feeds stay."""
    return "\n".join(map(clean, text.split("\n")))


def split_list(value: str) -> tuple[str, ...]:
    """The items of a list, split as Proxmox does at blanks, `,`, `;` and NUL; none of them is empty."""
    return tuple(item for item in _LIST.split(value) if item)


def boolean(value: str) -> str:
    """A boolean: `1`, `on`, `yes`, `true` are kept as `1`, their opposites as `0`."""
    if _TRUE.fullmatch(value):
        return "1"
    if _FALSE.fullmatch(value):
        return "0"
    raise FormatError(f"type check ('boolean') failed - got '{clean(value)}'")


def whole(minimum: int = 0, maximum: int | None = None) -> Check:
    """A whole number without sign, limits included; kept without leading zeros."""

    def check(value: str) -> str:
        if not _WHOLE.fullmatch(value):
            raise FormatError(f"type check ('integer') failed - got '{clean(value)}'")
        _check_range(int(value), minimum, maximum)
        return str(int(value))

    return check


def integer(minimum: int | None = None, maximum: int | None = None) -> Check:
    """A whole number inside a property string, limits included; kept as it was written."""
    return _in_range("integer", _INTEGER, minimum, maximum)


def number(minimum: float | None = None, maximum: float | None = None) -> Check:
    """A decimal fraction, limits included; kept as it was written."""
    return _in_range("number", _NUMBER, minimum, maximum)


def _in_range(name: str, form: re.Pattern[str], minimum: float | None, maximum: float | None) -> Check:
    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise FormatError(f"type check ('{name}') failed - got '{clean(value)}'")
        _check_range(float(value), minimum, maximum)
        return value

    return check


def _check_range(value: float, minimum: float | None, maximum: float | None) -> None:
    if maximum is not None and value > maximum:
        raise FormatError(f"value must have a maximum value of {maximum}")
    if minimum is not None and value < minimum:
        raise FormatError(f"value must have a minimum value of {minimum}")


def enum(*choices: str) -> Check:
    """One of some words."""

    def check(value: str) -> str:
        if value not in choices:
            listed = ", ".join(choices)
            raise FormatError(f"value '{clean(value)}' does not have a value in the enumeration '{listed}'")
        return value

    return check


def pattern(regex: str, reason: str = "value does not match the regex pattern") -> Check:
    """A text that matches as a whole (ASCII classes; control characters never match)."""
    compiled = re.compile(regex, re.ASCII)

    def check(value: str) -> str:
        if CONTROL.search(value) or not compiled.fullmatch(value):
            raise FormatError(reason.replace("{}", clean(value)))
        return value

    return check


def text(max_length: int | None = None) -> Check:
    """Any text without control characters; one pair of quotes around it is dropped."""

    def check(value: str) -> str:
        if CONTROL.search(value):
            raise FormatError("value does not match the regex pattern")
        if max_length is not None and len(value) > max_length:
            raise FormatError(f"value may only be {max_length} characters long")
        return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value

    return check


def raw_text(value: str) -> str:
    """Any text without control characters, as it is."""
    if CONTROL.search(value):
        raise FormatError("value does not match the regex pattern")
    return value


def list_of(check_item: Check) -> Check:
    """A list whose items all pass, with any separators; kept as it was written."""

    def check(value: str) -> str:
        for item in split_list(value):
            check_item(item)
        return value

    return check


def each(check_item: Check) -> Check:
    """Like `list_of`, but without control characters and with at most MOST_ITEMS items."""

    def check(value: str) -> str:
        if len(split_list(raw_text(value))) > MOST_ITEMS:
            raise FormatError(f"there are {MOST_ITEMS} items at most")
        return list_of(check_item)(value)

    return check


def formatted(check_value: Check) -> Check:
    """A format with a name inside a property string: its reasons get Proxmox's prefix and a line feed."""

    def check(value: str) -> str:
        try:
            return check_value(value)
        except FormatError as error:
            raise FormatError(f"invalid format - {error}\n") from error

    return check


def ipv4_address(value: str) -> str:
    """A dotted IPv4 address."""
    try:
        return str(IPv4Address(value))
    except AddressValueError as error:
        raise FormatError("value does not look like a valid IPv4 address") from error


def ipv6_address(value: str) -> str:
    """An IPv6 address; kept as it was written."""
    try:
        scope = IPv6Address(value).scope_id
    except AddressValueError as error:
        raise FormatError("value does not look like a valid IPv6 address") from error
    if scope is not None:
        raise FormatError("value does not look like a valid IPv6 address")
    return value


def dns_name(value: str) -> str:
    """A host name, with or without a domain."""
    if not _DNS_NAME.fullmatch(value):
        raise FormatError("value does not look like a valid DNS name")
    return value


def address(value: str) -> str:
    """An IP address or a DNS name."""
    for check in (ipv4_address, ipv6_address, dns_name):
        try:
            return check(value)
        except FormatError:
            continue
    raise FormatError(f"value does not look like a valid address: {clean(value)}")


def bracketed_address(value: str) -> str:
    """An address; one of IPv6 may stand in brackets, as in a URL, and is kept without them."""
    inside = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else None
    return address(value) if inside is None else ipv6_address(inside)


def network(check_address: Check, bits: int, words: tuple[str, ...], name: str) -> Check:
    """An address with a prefix length of 8 to `bits`, or one of some words."""

    def check(value: str) -> str:
        host, _, prefix = value.partition("/")
        try:
            if value in words or (_WHOLE.fullmatch(prefix) and 8 <= int(prefix) <= bits and check_address(host)):
                return value
        except FormatError:
            pass
        raise FormatError(f"value does not look like a valid {name} network configuration")

    return check


def cidr(value: str) -> str:
    """An address with the length of its network's prefix, IPv4 or IPv6; nothing shorter than /8."""
    host, _, length = value.partition("/")
    try:
        longest = int(ip_address(host).max_prefixlen)
    except ValueError:
        longest = 0
    if "%" in host or not _PREFIX_LENGTH.fullmatch(length) or not 8 <= int(length) <= longest:
        raise FormatError("value does not look like a valid CIDR network")
    return value


def fingerprint(value: str) -> str:
    """The SHA-256 of a certificate, with or without colons; kept in upper case, with them."""
    if not re.fullmatch(rf"{FINGERPRINT}|[0-9A-Fa-f]{{64}}", value):
        raise FormatError("value does not look like a SHA-256 fingerprint, 32 pairs of hex digits")
    return ":".join(re.findall("..", value.replace(":", ""))).upper()


def volume_id(value: str) -> str:
    """`STORAGE:NAME`."""
    if not re.fullmatch(VOLUME_ID, value):
        raise FormatError(f"unable to parse volume ID '{clean(value)}'")
    return value


storage_id = pattern(STORAGE_ID, "storage ID '{}' contains illegal characters")
bridge_id = pattern(BRIDGE_ID, "invalid bridge ID '{}'")
config_id = pattern(CONFIG_ID, "invalid configuration ID '{}'")
vmid = pattern(VMID, "value does not look like a valid VM ID")
node_name = pattern(NODE_NAME, "value does not look like a valid node name")


def ignore(_warning: str) -> None:
    """Drop a warning: the default of parsers that take a function for warnings."""


def shorten(warnings: Sequence[str]) -> list[str]:
    """Returns: the first MOST_WARNINGS warnings, and how many more there are."""
    more = len(warnings) - MOST_WARNINGS
    return [*warnings[:MOST_WARNINGS], *([f"{more} more warnings"] if more > 0 else [])]
