"""Property strings: `[DEFAULTVALUE][,key=value]…` (formats.md section 6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mtunnel_tx.pve.values import BadValue, Check, clean

_UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
_MISSING = "property is missing and it is not optional"


def parse_property(text: str, default_key: str | None = None) -> dict[str, str]:
    """Take a property string apart.

    Args: text: e.g. `virtio=BC:24:11:00:00:01,bridge=vmbr0`. default_key: the key of a part without `=`.
    Returns: keys to values, in the order they came.
    Raises: BadValue: a key twice, or a part without a key where there is no default key.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        key, value = _split_part(part, default_key)
        if key in found:
            raise BadValue(f"duplicate key in comma-separated list property: {clean(key)}")
        found[key] = value
    return found


def _split_part(part: str, default_key: str | None) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if key and value:
        return key, value
    if equals:
        raise BadValue("missing key in comma-separated list property")
    if default_key is None:
        raise BadValue("value without key, but schema does not define a default key")
    return default_key, part


def format_property(values: Mapping[str, str], default_key: str | None = None, skip: Collection[str] = ()) -> str:
    """Write a property string: the default key first and bare, then the other keys sorted by name.

    Raises: BadValue: `illegal value with commas for K`.
    """
    parts = [values[default_key]] if default_key is not None and default_key in values else []
    named = sorted(key for key in values if key != default_key and key not in skip)
    for key in [*([default_key] if parts and default_key else []), *named]:
        if "," in values[key]:
            raise BadValue(f"illegal value with commas for {clean(key)}")
    return ",".join(parts + [f"{key}={values[key]}" for key in named])


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertyFormat:
    """What a property string may hold.

    `checks` maps keys to their checks, `aliases` old names to new ones, `required` are keys that must be there.
    """

    checks: Mapping[str, Check]
    default_key: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    required: frozenset[str] = frozenset()

    def parse(self, text: str) -> dict[str, str]:
        """Parse and check. Raises: BadValue: `format error\\nK: REASON\\n` for a value that does not fit."""
        return self.check(parse_property(text, self.default_key))

    def check(self, values: Mapping[str, str]) -> dict[str, str]:
        """Returns: the values as Proxmox keeps them. Raises: BadValue: one line per key that does not fit."""
        kept: dict[str, str] = {}
        errors = {key: _MISSING for key in sorted(self.required) if key not in values}
        for sent_key, value in values.items():
            key = self.aliases.get(sent_key, sent_key)
            try:
                kept[key] = self._checked(key, value)
            except BadValue as error:
                errors[key] = str(error)
        if errors:
            raise BadValue(format_error(errors))
        return kept

    def _checked(self, key: str, value: str) -> str:
        check = self.checks.get(key)
        if check is None:
            raise BadValue(_UNDEFINED)
        return check(value)

    def __call__(self, text: str) -> str:
        """Check a whole value as a config key's value; it is kept as it was written."""
        self.parse(text)
        return text


def format_error(errors: Mapping[str, str]) -> str:
    """Proxmox's text for keys of a property string that do not fit, with its final line feed."""
    return "format error\n" + "".join(f"{clean(key)}: {reason}\n" for key, reason in errors.items())
