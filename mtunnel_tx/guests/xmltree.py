"""XML from elsewhere, as a tree without namespaces. Bounded, and without entities: a document type is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers.expat import ExpatError, ParserCreate

from mtunnel_tx.errors import BadRequest

LONGEST_BYTES = 16 << 20
MOST_ELEMENTS = 100_000
DEEPEST = 64


@dataclass(slots=True)
class XmlElement:
    """An element: its name and its attributes' names without namespace, its text stripped, its children in order."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def all(self, *path: str) -> Iterator[XmlElement]:
        """Every element below with this path of names."""
        if not path:
            yield self
            return
        for child in self.children:
            if child.name == path[0]:
                yield from child.all(*path[1:])

    def first(self, *path: str) -> XmlElement | None:
        """The first element with this path of names."""
        return next(self.all(*path), None)

    def value(self, *path: str) -> str:
        """The text of the first element with this path; empty where there is none."""
        found = self.first(*path)
        return found.text if found else ""

    def attribute(self, name: str, *path: str) -> str:
        """An attribute of the first element with this path that has it; empty where none has."""
        return next((found.attributes[name] for found in self.all(*path) if name in found.attributes), "")


def parse_xml(data: bytes, what: str) -> XmlElement:
    """Args: what: what errors call it. Raises: BadRequest: it is no XML, has a document type, or is too large."""
    if len(data) > LONGEST_BYTES:
        raise BadRequest(f"{what}: is longer than {LONGEST_BYTES} bytes")
    builder = _Builder(what)
    parser = ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.add_text
    # Entities are declared in a document type only.
    parser.StartDoctypeDeclHandler = builder.refuse
    try:
        parser.Parse(data, True)
    except ExpatError as error:
        raise BadRequest(f"{what}: is no XML: {error}") from error
    return builder.root.children[0]


class _Builder:
    def __init__(self, what: str) -> None:
        self.root = XmlElement("")
        self._what = what
        self._open = [self.root]
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MOST_ELEMENTS or len(self._open) > DEEPEST:
            raise BadRequest(f"{self._what}: has more than {MOST_ELEMENTS} elements, or more than {DEEPEST} levels")
        element = XmlElement(_local(name), {_local(key): value for key, value in reversed(attributes.items())})
        self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, _name: str) -> None:
        element = self._open.pop()
        element.text = element.text.strip()

    def add_text(self, text: str) -> None:
        self._open[-1].text += text

    def refuse(self, *_: object) -> None:
        raise BadRequest(f"{self._what}: XML with a document type is not taken")


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
