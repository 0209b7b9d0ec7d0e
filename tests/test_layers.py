"""The shape of the house: who imports whom, how long things are, which names there are, what must not be mentioned."""

import ast
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

TREE = Path(__file__).parents[1]
PACKAGE = TREE / "mtunnel_tx"
ROOTS = {"tap", "cli", "demo", "daemon", "workers.process.__main__"}
LEAVES = {"checks", "errors"}
SEND = LEAVES | {"waiting", "wire", "pve", "ports"}
SOCKETS = SEND | {"config", "net", "tls", "stream"}
EVERYTHING = SOCKETS | {"http", "page", "workers", "tunnel", "backends", "source", "guests", "pvesm", "watch"}
ALLOWED = {
    "tap": EVERYTHING | {"daemon"},
    "daemon": EVERYTHING | {"filelocks", "local", "hold"},
    "local": {"backends", "config", "ports", "watch"},
    "cli": EVERYTHING | {"local", "demo", "checkup", "daemon"},
    "checkup": {"config", "checks", "errors", "pve", "ports", "tls", "backends", "pvesm", "guests"},
    "demo": EVERYTHING | {"cli"},
    "http": SOCKETS,
    "page": SOCKETS | {"http", "source", "watch"},
    "workers": SOCKETS | {"hold", "http", "backends", "sessions", "unread"},
    "workers.process": SOCKETS | {"workers", "unread"},
    "stream": LEAVES | {"waiting", "wire", "ports", "net", "tls"},
    "tls": LEAVES | {"waiting", "wire", "pve", "ports", "net"},
    "net": SEND | {"config"},
    "source": SEND | {"extents", "http", "net", "stream", "tls"},
    "tunnel": SEND | {"unread"},
    "guests": SEND,
    "backends": SEND | {"extents", "filelocks", "sessions"},
    "watch": LEAVES | {"wire", "ports"},
    "pvesm": LEAVES | {"extents", "filelocks", "pve", "config"},
    "ports": LEAVES | {"extents", "wire", "pve"},
    "wire": LEAVES,
    "pve": LEAVES,
    "config": LEAVES | {"wire"},
    "hold": {"sessions"},
    "sessions": set(),
    "waiting": {"errors", "ports"},
    "checks": set(),
    "extents": set(),
    "filelocks": set(),
    "unread": set(),
    "errors": set(),
}
"""What a room may import; where a room below another one has an entry of its own, that one counts."""
PURE_LIBRARIES = {
    "__future__", "base64", "binascii", "bisect", "calendar", "collections", "copy", "dataclasses", "datetime", "enum",
    "fractions", "functools", "hashlib", "hmac", "ipaddress", "itertools", "json", "math", "numbers", "operator", "re",
    "string", "struct", "types", "typing", "unicodedata", "urllib.parse", "uuid",
}  # fmt: skip
LONGEST_MODULE = 400
LONGEST_FUNCTION = 40
MEDIAN_FUNCTION = 6
PROCESS_OWNERS = {"processes.py", "bounded.py"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One module of the package, parsed.

    room: the entry of ALLOWED that it belongs to. name: dotted, below the package. imports: everything that it imports,
    by its full name, wherever the import stands. functions: `FILE:LINE NAME` and how many lines its body has, without
    the docstring. classes: the public ones.
    """

    file: Path
    room: str
    name: str
    imports: tuple[str, ...]
    functions: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]

    @property
    def where(self):
        return self.file.relative_to(TREE)


@cache
def sources() -> tuple[Source, ...]:
    """Every module of the package; each is parsed once."""
    return tuple(read(file) for file in sorted(PACKAGE.rglob("*.py")))


def read(file: Path) -> Source:
    nodes = list(ast.walk(tree := ast.parse(file.read_text("utf-8"), str(file))))
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    return Source(
        file=file,
        room=room_of(name),
        name=name,
        imports=tuple(name for node in nodes for name in imported(node)),
        functions=tuple(
            (f"{file.relative_to(TREE)}:{node.lineno} {node.name}", body_lines(node))
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ),
        classes=tuple(node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"),
    )


def room_of(name: str) -> str:
    """The longest entry of ALLOWED that a dotted name is in; what is in none gets its first part."""
    parts = name.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((room for room in above if room in ALLOWED), parts[0])


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


class Layers(SynchronousTestCase):
    def test_every_room_imports_only_what_it_may(self):
        found = {
            f"{source.where} imports {name}"
            for source in sources()
            if source.room != "__init__"
            for name in source.imports
            if name.startswith("mtunnel_tx.") and not self._may(source, name.removeprefix("mtunnel_tx."))
        }
        self.assertEqual(found, set())

    def _may(self, source, name):
        if source.name in ROOTS:
            return True
        room = room_of(name)
        return room == source.room or room in ALLOWED[source.room] or name == "__version__"

    def test_only_the_roots_import_the_reactor(self):
        found = [
            str(source.where)
            for source in sources()
            if source.name not in ROOTS and (source.room == "daemon" or source.room not in ROOTS)
            for name in source.imports
            if name.startswith("twisted.internet.reactor")
        ]
        self.assertEqual(found, [])

    def test_the_control_path_knows_little_of_twisted(self):
        found = {
            f"{source.where} imports {name}"
            for source in sources()
            if source.room == "tunnel"
            for name in source.imports
            if name.startswith("twisted") and not name.startswith(("twisted.internet.defer.", "twisted.logger."))
        }
        self.assertEqual(found, set())

    def test_pure_rooms_use_pure_libraries(self):
        found = {
            f"{source.where} imports {name}"
            for source in sources()
            if source.room in ("wire", "pve", "checks")
            for name in source.imports
            if not name.startswith(tuple(f"{library}." for library in PURE_LIBRARIES | {"mtunnel_tx"}))
            and name not in PURE_LIBRARIES
        }
        self.assertEqual(found, set())

    def test_pvesm_does_without_twisted(self):
        found = [
            f"{source.where} imports {name}"
            for source in sources()
            if source.room in ("pvesm", "config", "checks", "errors", "pve", "wire")
            for name in source.imports
            if name.startswith("twisted")
        ]
        self.assertEqual(found, [])


class Names(SynchronousTestCase):
    def test_a_public_class_name_stands_once(self):
        places = defaultdict(list)
        for source in sources():
            for name in source.classes:
                places[name].append(source.name)
        self.assertEqual({name: where for name, where in places.items() if len(where) > 1}, {})


class Sizes(SynchronousTestCase):
    def test_modules_are_short(self):
        files = [file for room in (PACKAGE, TREE / "tests", TREE / "bench") for file in room.rglob("*.py")]
        long = [str(file) for file in files if file.read_text("utf-8").count("\n") > LONGEST_MODULE]
        self.assertEqual(long, [])

    def test_functions_are_short(self):
        found = [f"{name}: {lines}" for source in sources() for name, lines in source.functions]
        self.assertEqual([entry for entry in found if int(entry.rpartition(" ")[2]) > LONGEST_FUNCTION], [])

    def test_most_functions_are_very_short(self):
        sizes = sorted(lines for source in sources() for _, lines in source.functions)
        self.assertLessEqual(statistics.median(sizes), MEDIAN_FUNCTION)
        self.assertLessEqual(sizes[len(sizes) * 9 // 10], 25)


COMPILED = {".pyc", ".so"}  # contain the paths of the tree that they were made in


class Mentions(SynchronousTestCase):
    def test_nothing_names_where_it_was_made(self):
        """Folders of a workplace, helpers, and settings of one machine have no place in the project."""
        # Written so that this file does not contain them itself.
        forbidden = re.compile(
            "|".join(
                ("/wor" + "k/", "/tmp/bri" + "ef", r"\bclau" + "de", "anthro" + "pic", "chat" + "gpt", "copi" + "lot")
            ),
            re.I,
        )
        found = [
            f"{file.relative_to(TREE)}:{text.count(chr(10), 0, match.start()) + 1}"
            for folder in ("mtunnel_tx", "tests", "docs", "tools", ".ci", "etc", "man", "twisted", "newsfragments")
            for file in sorted((TREE / folder).rglob("*"))
            if file.is_file() and file.suffix not in COMPILED
            for text in [file.read_text("utf-8", "replace")]
            for match in forbidden.finditer(text)
        ]
        self.assertEqual(found, [])


class TestHabits(SynchronousTestCase):
    """What tests must not do, as they run on busy machines too (tests/patience.py, tests/processes.py)."""

    def test_programs_have_an_owner(self):
        self.assertEqual(list(found_in_tests(starts_a_program)), [], "use started_process or run_program")

    def test_waits_are_stretched(self):
        self.assertEqual(list(found_in_tests(waits_fixed)), [], "use patience_s or wait_for")


def found_in_tests(is_wrong):
    for file in sorted((TREE / "tests").rglob("*.py")):
        if file.name not in PROCESS_OWNERS:
            lines = [node.lineno for node in ast.walk(ast.parse(file.read_text())) if is_wrong(node)]
            yield from (f"{file.relative_to(TREE)}:{line}" for line in lines)


def starts_a_program(node):
    """A call of subprocess's, or of os.system's kind."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    where = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
    return where == "subprocess" or (where == "os" and node.func.attr in ("system", "popen", "fork", "posix_spawn"))


def waits_fixed(node):
    """A limit of a class, or a wait for an end or an event, in fixed seconds, or a wait for an end without any."""
    if isinstance(node, ast.ClassDef):
        return any(isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "timeout" for line in node.body)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    limits = [word.value for word in node.keywords if word.arg == "timeout"]
    if node.func.attr == "communicate":
        return not limits or isinstance(limits[0], ast.Constant)
    if node.func.attr in ("settimeout", "join", "wait"):
        limits += [limit for limit in node.args if isinstance(limit, ast.Constant)]
        numbers = [limit.value for limit in limits if isinstance(limit, ast.Constant)]
        return any(isinstance(number, int | float) and number > 1 for number in numbers)
    return False
