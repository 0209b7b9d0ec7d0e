"""Property strings: `[DEFAULTVALUE][,key=value]…` (formats.md section 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from mtunnel_tx.checks import Check, FormatError, clean

_MISSING = "property is missing and it is not optional"


def parse_property(text: str, default_key: str | None = None) -> dict[str, str]:
    """Take a property string apart.

    Args: text: e.g. `virtio=BC:24:11:00:00:01,bridge=vmbr0`. default_key: the key of a part without `=`.
    Returns: keys to values, in the order they came.
    Raises: FormatError: a key twice, or a part without a key where there is no default key.
    """
    found: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        key, value = _split_part(part, default_key)
        if key in found:
            raise FormatError(f"duplicate key in comma-separated list property: {clean(key)}")
        found[key] = value
    return found


def _split_part(part: str, default_key: str | None) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if key and value:
        return key, value
    if equals:
        raise FormatError("missing key in comma-separated list property")
    if default_key is None:
        raise FormatError("value without key, but schema does not define a default key")
    return default_key, part


def format_property(values: Mapping[str, str], default_key: str | None = None, skip: Collection[str] = ()) -> str:
    """Write a property string: the default key first and bare, then the other keys sorted by name.

    Raises: FormatError: `illegal value with commas for K`.
    """
    named = sorted(key for key in values if key != default_key and key not in skip)
    first = [default_key] if default_key is not None and default_key in values else []
    for key in [*first, *named]:
        if "," in values[key]:
            raise FormatError(f"illegal value with commas for {clean(key)}")
    return ",".join([values[key] for key in first] + [f"{key}={values[key]}" for key in named])


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertyFormat:
    """What a property string may hold.

    `checks` maps keys to their checks, `aliases` other names to the names they stand for; `required` are keys that
    must be there; `needs` maps a key to another one that must be there with it.
    """

    checks: Mapping[str, Check]
    default_key: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    needs: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        """The check of a whole value: it is kept as it was written."""
        self.parse(text)
        return text

    def parse(self, text: str) -> dict[str, str]:
        """Parse and check.

        Returns: the values as Proxmox keeps them.
        Raises: FormatError: a string that cannot be taken apart, a key it does not know, or `format error` and a line
            `K: REASON` for each value that does not fit.
        """
        return self.check(self._renamed(parse_property(text, self.default_key)))

    def _renamed(self, values: Mapping[str, str]) -> dict[str, str]:
        renamed: dict[str, str] = {}
        for sent_key, value in values.items():
            key = self.aliases.get(sent_key, sent_key)
            if key in renamed:
                raise FormatError(f"duplicate key in comma-separated list property: {clean(key)}")
            if key not in self.checks:
                raise FormatError(f"invalid key in comma-separated list property: {clean(key)}")
            renamed[key] = value
        return renamed

    def check(self, values: Mapping[str, str]) -> dict[str, str]:
        """Check values that were taken apart. Raises: FormatError."""
        kept: dict[str, str] = {}
        errors = dict(self._absent(values))
        for key, value in values.items():
            try:
                kept[key] = self.checks[key](value)
            except FormatError as error:
                errors[key] = str(error)
        if errors:
            raise FormatError(format_error(errors))
        return kept

    def _absent(self, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        for key in sorted(self.required - values.keys()):
            yield key, _MISSING
        for key, needed in self.needs.items():
            if key in values and needed not in values:
                yield needed, f"missing property - '{key}' requires this property"


def format_error(errors: Mapping[str, str]) -> str:
    """Proxmox's text for keys of a property string that do not fit, with its final line feed."""
    return "format error\n" + "".join(f"{clean(key)}: {reason}\n" for key, reason in errors.items())
