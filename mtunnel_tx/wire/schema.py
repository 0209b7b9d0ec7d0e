"""What parameters may look like, and the reasons given where they do not (protocol.md section 4).

A kind reads one value: it returns the value as we use it, or raises Mismatch. Values come from JSON or, as texts, from
a form or a query string; like Proxmox, a kind sees a number and its text as the same. Each kind also says what it takes
as a JSON Schema, for descriptions of the API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from mtunnel_tx.checks import Check, FormatError, enum, formatted
from mtunnel_tx.errors import InvalidParameters
from mtunnel_tx.wire.formats import Format
from mtunnel_tx.wire.lines import as_text

MISSING = "property is missing and it is not optional"
UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
# A line of 4 MiB holds half a million unknown keys; naming them all would take twenty times the memory.
MAX_UNDEFINED = 256
MOST = (1 << 53) - 1
"""The largest number that every reader of JSON takes as it is."""
LONGEST = 4096
"""Characters of a name, a list of names or a path; nobody sends longer ones."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
Made = TypeVar("Made")


class Mismatch(Exception):
    """A value does not fit.

    Args: reason: what is wrong with the value itself, or dotted names below it to reasons.
    """

    def __init__(self, reason: str | Mapping[str, str]) -> None:
        super().__init__(reason)
        self.errors = {"": reason} if isinstance(reason, str) else dict(reason)

    def below(self, name: str) -> Mismatch:
        """The same reasons, as those of a property."""
        return Mismatch({f"{name}.{inner}" if inner else name: reason for inner, reason in self.errors.items()})


class Kind(Protocol):
    """A kind of value."""

    def read(self, value: object) -> object:
        """Args: value: not None. Raises: Mismatch."""

    def json_schema(self) -> dict[str, Any]:
        """What it takes, type and bounds, as a JSON Schema (2020-12)."""


def _read_scalar(value: object, type_name: str) -> str:
    if isinstance(value, bool):
        raise Mismatch(f"type check ('{type_name}') failed - got JSON::PP::Boolean")
    if isinstance(value, list | dict):
        raise Mismatch(f"type check ('{type_name}') failed - got {as_text(value)}")
    return as_text(value)


def _check(check: Check, text: str) -> str:
    try:
        return check(text)
    except FormatError as error:
        raise Mismatch(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class String:
    """A text; `pattern` has to match all of it. A number passes, true and false do not. `max_length`: in characters."""

    format: Format | None = None
    pattern: re.Pattern[str] | None = None
    max_length: int = LONGEST

    def read(self, value: object) -> str:
        text = _read_scalar(value, "string")
        if self.format:
            _check(formatted(self.format.check), text)
        if self.pattern and not self.pattern.fullmatch(text):
            raise Mismatch("value does not match the regex pattern")
        if len(text) > self.max_length:
            raise Mismatch(f"value may only be {self.max_length} characters long")
        return text

    def json_schema(self) -> dict[str, Any]:
        pattern = self.pattern.pattern if self.pattern else self.format.pattern if self.format else None
        return {
            "type": "string",
            **({"format": self.format.name} if self.format else {}),
            **({"pattern": f"^({pattern})$"} if pattern else {}),
            "maxLength": self.max_length,
        }


@dataclass(frozen=True, slots=True)
class Enum:
    """One of some texts."""

    choices: tuple[str, ...]

    def read(self, value: object) -> str:
        return _check(enum(*self.choices), _read_scalar(value, "string"))

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.choices)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """A whole number, or its digits as a text."""

    format: Format | None = None
    minimum: int = 0
    maximum: int = MOST

    def read(self, value: object) -> int:
        text = _read_scalar(value, "integer")
        if not _INTEGER.fullmatch(text):
            raise Mismatch(f"type check ('integer') failed - got '{text}'")
        if self.format:
            _check(formatted(self.format.check), text)
        if int(text) < self.minimum:
            raise Mismatch(f"value must have a minimum value of {self.minimum}")
        if int(text) > self.maximum:
            raise Mismatch(f"value must have a maximum value of {self.maximum}")
        return int(text)

    def json_schema(self) -> dict[str, Any]:
        named = {"format": self.format.name} if self.format else {}
        return {"type": "integer", **named, "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class AsSent:
    """A value of some kind that is handed on as it came, a number as a number and a text as a text."""

    kind: Kind

    def read(self, value: object) -> object:
        self.kind.read(value)
        return value

    def json_schema(self) -> dict[str, Any]:
        return self.kind.json_schema()


@dataclass(frozen=True, slots=True, kw_only=True)
class Boolean:
    """0, 1, "0", "1", true, false; `empty_is_false` takes "" too."""

    empty_is_false: bool = False

    def read(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        text = _read_scalar(value, "boolean")
        if text == "" and self.empty_is_false:
            return False
        if text not in ("0", "1"):
            raise Mismatch(f"type check ('boolean') failed - got '{text}'")
        return text == "1"

    def json_schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Array:
    """A list of anything, as long as the line that it stands in may be."""

    def read(self, value: object) -> list[Any]:
        if not isinstance(value, list):
            raise Mismatch("type check ('array') failed")
        return value

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A list of at most so many objects of one kind."""

    row: Kind
    most: int

    def read(self, value: object) -> list[Any]:
        if not isinstance(value, list):
            raise Mismatch("type check ('array') failed")
        if len(value) > self.most:
            raise Mismatch(f"list may only have {self.most} items")
        return [self._read(index, row) for index, row in enumerate(value)]

    def _read(self, index: int, row: object) -> object:
        try:
            return self.row.read(row)
        except Mismatch as error:
            raise error.below(str(index)) from None

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.row.json_schema(), "maxItems": self.most}


@dataclass(frozen=True, slots=True)
class SingleItem:
    """A text where a list of one is meant."""

    def read(self, value: object) -> list[str]:
        return [String().read(value)]

    def json_schema(self) -> dict[str, Any]:
        return String().json_schema()


@dataclass(frozen=True, slots=True)
class OpenObject:
    """An object with any keys, as long as the line that it stands in may be."""

    def read(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Mismatch("type check ('object') failed")
        return value

    def json_schema(self) -> dict[str, Any]:
        return {"type": "object"}


@dataclass(frozen=True, slots=True)
class Property:
    """One key of an object; one that is null is absent.

    `description` is for people. `default` is what an absent key reads as. `older` is how the key was spelled before,
    and its kind then; a request may use either name, not both.
    """

    kind: Kind
    description: str
    required: bool = False
    default: Any = None
    older: tuple[str, Kind] | None = None

    def read(self, name: str, values: Mapping[str, Any]) -> object:
        """The property's value out of an object. Raises: Mismatch: with the name as it was sent."""
        spellings = ((name, self.kind), *((self.older,) if self.older else ()))
        sent = [(spelling, kind) for spelling, kind in spellings if values.get(spelling) is not None]
        if len(sent) > 1:
            raise Mismatch({sent[1][0]: f"cannot be given together with '{name}'"})
        for spelling, kind in sent:
            try:
                return kind.read(values[spelling])
            except Mismatch as error:
                raise error.below(spelling) from None
        if self.required:
            raise Mismatch({name: MISSING})
        return self.default

    def json_schema(self) -> dict[str, Any]:
        default = {} if self.default is None else {"default": self.default}
        return {**self.kind.json_schema(), "description": self.description, **default}


@dataclass(frozen=True, slots=True)
class Object:
    """An object that takes these keys only; reads as a dict that has every one of them.

    `ignores_others`: other keys do no harm, and are not handed on.
    """

    properties: Mapping[str, Property]
    ignores_others: bool = False

    @property
    def names(self) -> set[str]:
        """Every key it takes, older spellings included."""
        return {prop.older[0] for prop in self.properties.values() if prop.older} | self.properties.keys()

    def read(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Mismatch("type check ('object') failed")
        found: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for name, prop in self.properties.items():
            try:
                found[name] = prop.read(name, value)
            except Mismatch as error:
                errors.update(error.errors)
        errors.update((name, UNDEFINED) for name in islice(self._undefined(value), MAX_UNDEFINED))
        if errors:
            raise Mismatch(errors)
        return found

    def _undefined(self, value: Mapping[str, Any]) -> Iterator[str]:
        names = self.names
        return (name for name in value if not self.ignores_others and name not in names)

    def json_schema(self) -> dict[str, Any]:
        shown = {name: prop.json_schema() for name, prop in self.properties.items()}
        required = [name for name, prop in self.properties.items() if prop.required and not prop.older]
        either: list[dict[str, Any]] = []
        for name, prop in self.properties.items():
            if prop.older:
                older, kind = prop.older
                shown[older] = {**kind.json_schema(), "description": f"older spelling of `{name}`"}
                either += [{"anyOf": [{"required": [name]}, {"required": [older]}]}] if prop.required else []
        return {
            "type": "object",
            "properties": shown,
            **({"required": required} if required else {}),
            **({"allOf": either} if either else {}),
            "additionalProperties": self.ignores_others,
        }


@dataclass(frozen=True, slots=True)
class ParameterSet(Generic[Made]):
    """What a request takes: its schema, and what is made of the values that fit it.

    Args: make: takes every property of the schema by its name.
    """

    schema: Object
    make: Callable[..., Made]

    def read(self, sent: Mapping[str, Any]) -> Made:
        """Args: sent: as it came. Raises: InvalidParameters: with every reason, nested names dotted."""
        return self.make(**read_parameters(self.schema, sent))


def read_parameters(schema: Object, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Check parameters against a schema.

    Returns: every property of the schema, absent ones as their default.
    Raises: InvalidParameters: with every reason, nested names dotted.
    """
    try:
        return schema.read(parameters)
    except Mismatch as error:
        raise InvalidParameters(error.errors) from None
