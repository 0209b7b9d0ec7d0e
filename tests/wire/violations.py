"""Requests that break one line of a schema each, made from the schema as data, and Proxmox's words for them."""

from collections.abc import Iterator
from dataclasses import dataclass

MISSING = "property is missing and it is not optional"
UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
BAD = "!"
# An access path with the usual one in it is refused before the schema is looked at.
BAD_FOR = {"pve-configid": "-x"}
OF_FORMATS = {
    "pve-storage-id": "storage ID '!' contains illegal characters",
    "pve-storage-id-list": "storage ID '!' contains illegal characters",
    "pve-bridge-id-list": "invalid bridge ID '!'",
    "pve-vmid": "value does not look like a valid VM ID",
    "pve-node": "value does not look like a valid node name",
    "pve-configid": "value does not look like a valid configuration ID",
    "CIDR": "value does not look like a valid CIDR network",
}
OWN_WORDS = {"pve-task-upid": "unable to parse worker upid"}
# A letter repeated so often fits every pattern here that has no bound of its own.
FITS_WHEN_LONG = "a"
BOUNDED_BY_PATTERN = {"snapshot", "forcemachine", "nets-host-mtu", "network"}


@dataclass(frozen=True)
class Violation:
    """`name`: dotted. `value`: what is sent for it; None: nothing. `words`: the reason."""

    name: str
    value: object
    words: str

    def applied(self, good: dict) -> dict:
        """A good request, broken in this way."""
        *outer, last = self.name.split(".")
        broken = dict(good)
        inside = broken
        for key in outer:
            inside[key] = dict(inside[key])
            inside = inside[key]
        inside.pop(last, None)
        return broken if self.value is None else (inside.update({last: self.value}) or broken)


def violations(schema: dict, prefix: str = "") -> Iterator[Violation]:
    """Args: schema: a JSON Schema of an object. Yields: one or more for each line of it."""
    older = {name for each in schema.get("allOf", []) for name in each["anyOf"][1]["required"]}
    for name in schema.get("required", []):
        yield Violation(prefix + name, None, MISSING)
    if not schema["additionalProperties"]:
        yield Violation(prefix + "zzz", "1", UNDEFINED)
    for name, prop in schema["properties"].items():
        if name not in older and not prop["description"].startswith("older spelling"):
            yield from _of_property(prefix + name, prop)


def _of_property(name: str, prop: dict) -> Iterator[Violation]:
    yield from {"string": _of_string, "integer": _of_integer, "boolean": _of_boolean}.get(prop["type"], _of_other)(
        name, prop
    )
    if "properties" in prop:
        yield from violations(prop, f"{name}.")


def _of_string(name: str, prop: dict) -> Iterator[Violation]:
    for value, shown in (([], "ARRAY"), ({}, "HASH"), (True, "JSON::PP::Boolean")):
        yield Violation(name, value, f"type check ('string') failed - got {shown}")
    if "enum" in prop:
        listed = ", ".join(prop["enum"])
        yield Violation(name, BAD, f"value '{BAD}' does not have a value in the enumeration '{listed}'")
    elif prop.get("format") in OWN_WORDS:
        yield Violation(name, BAD, OWN_WORDS[prop["format"]])
    elif "format" in prop:
        bad = BAD_FOR.get(prop["format"], BAD)
        yield Violation(name, bad, f"invalid format - {OF_FORMATS[prop['format']]}\n")
    elif "pattern" in prop:
        yield Violation(name, BAD, "value does not match the regex pattern")
    if name.rpartition(".")[2] not in BOUNDED_BY_PATTERN and "enum" not in prop and prop.get("format") not in OWN_WORDS:
        longest = prop["maxLength"]
        if longest <= 1 << 16:  # else the line's own limit comes first
            long = FITS_WHEN_LONG * (longest + 1)
            yield Violation(name, long, f"value may only be {longest} characters long")


def _of_integer(name: str, prop: dict) -> Iterator[Violation]:
    yield Violation(name, [], "type check ('integer') failed - got ARRAY")
    yield Violation(name, "abc", "type check ('integer') failed - got 'abc'")
    below, above = prop["minimum"] - 1, prop["maximum"] + 1
    if "format" in prop:
        words = f"invalid format - {OF_FORMATS[prop['format']]}\n"
        yield from (Violation(name, str(below), words), Violation(name, str(above), words))
    else:
        yield Violation(name, str(below), f"value must have a minimum value of {prop['minimum']}")
        yield Violation(name, str(above), f"value must have a maximum value of {prop['maximum']}")


def _of_boolean(name: str, _prop: dict) -> Iterator[Violation]:
    yield Violation(name, [], "type check ('boolean') failed - got ARRAY")
    yield Violation(name, "maybe", "type check ('boolean') failed - got 'maybe'")


def _of_other(name: str, prop: dict) -> Iterator[Violation]:
    yield Violation(name, "x", f"type check ('{prop['type']}') failed")


def incomplete(schema: dict, prefix: str = "") -> Iterator[str]:
    """Yields: the parameters without a description, a type, or bounds of a single value."""
    for name, prop in schema["properties"].items():
        bounds = {
            "string": prop.get("enum") or prop.get("maxLength"),
            "integer": "minimum" in prop and "maximum" in prop,
        }
        if not prop.get("description") or "type" not in prop or not bounds.get(prop["type"], True):
            yield prefix + name
        if "properties" in prop:
            yield from incomplete(prop, f"{prefix}{name}.")
