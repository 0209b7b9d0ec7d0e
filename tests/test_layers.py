"""The shape of the house: who imports whom, how long things are, what must not be mentioned."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

TREE = Path(__file__).parents[1]
PACKAGE = TREE / "mtunnel_tx"
ROOTS = {"tap", "cli", "demo", "daemon", "workers.process.__main__"}
LEAVES = {"errors"}
SEND = LEAVES | {"waiting", "wire", "pve", "ports"}
SOCKETS = SEND | {"config", "net", "tls", "stream"}
EVERYTHING = SOCKETS | {"http", "workers", "tunnel", "backends", "source", "pvesm"}
ALLOWED = {
    "tap": EVERYTHING | {"daemon"},
    "daemon": EVERYTHING | {"local"},
    "local": {"backends", "config"},
    "cli": EVERYTHING | {"local", "demo"},
    "demo": EVERYTHING | {"cli"},
    "http": SOCKETS,
    "workers": SOCKETS | {"http", "backends"},
    "stream": LEAVES | {"waiting", "wire", "ports", "net", "tls"},
    "tls": LEAVES | {"waiting", "wire", "pve", "ports", "net"},
    "net": SEND | {"config"},
    "source": SEND | {"http", "net", "stream", "tls"},
    "tunnel": SEND,
    "backends": SEND,
    "pvesm": LEAVES | {"pve", "config"},
    "ports": {"wire", "pve"},
    "wire": LEAVES,
    "pve": LEAVES,
    "config": LEAVES,
    "waiting": {"errors", "ports"},
    "errors": set(),
}
PURE_LIBRARIES = {
    "__future__", "base64", "binascii", "bisect", "calendar", "collections", "copy", "dataclasses", "datetime", "enum",
    "fractions", "functools", "hashlib", "hmac", "ipaddress", "itertools", "json", "math", "numbers", "operator", "re",
    "string", "struct", "types", "typing", "unicodedata", "urllib.parse", "uuid",
}  # fmt: skip
LONGEST_MODULE = 400
LONGEST_FUNCTION = 40
MEDIAN_FUNCTION = 6


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Yields: room, file, tree."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield parts[0], file, ast.parse(file.read_text("utf-8"), str(file))


def dotted(file: Path) -> str:
    """A module's name below the package."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yields: the full name of everything imported, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions() -> Iterator[tuple[str, int]]:
    """Yields: where, and how many lines its body has; the docstring does not count."""
    for _, file, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(TREE)}:{node.lineno} {node.name}", body_lines(node)


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


class Layers(SynchronousTestCase):
    def test_every_room_imports_only_what_it_may(self):
        found = {
            f"{file.relative_to(TREE)} imports {name}"
            for room, file, tree in modules()
            if room != "__init__"
            for name in imports(tree)
            if name.startswith("mtunnel_tx.") and not self._may(room, name.split(".")[1])
        }
        self.assertEqual(found, set())

    def _may(self, room, other):
        return other == room or other in ALLOWED[room] or other == "__version__"

    def test_only_the_roots_import_the_reactor(self):
        found = [
            str(file)
            for room, file, tree in modules()
            if dotted(file) not in ROOTS and (room == "daemon" or room not in ROOTS)
            for name in imports(tree)
            if name.startswith("twisted.internet.reactor")
        ]
        self.assertEqual(found, [])

    def test_the_control_path_knows_little_of_twisted(self):
        found = {
            f"{file.relative_to(TREE)} imports {name}"
            for room, file, tree in modules()
            if room == "tunnel"
            for name in imports(tree)
            if name.startswith("twisted") and not name.startswith(("twisted.internet.defer.", "twisted.logger."))
        }
        self.assertEqual(found, set())

    def test_pure_rooms_use_pure_libraries(self):
        found = {
            f"{file.relative_to(TREE)} imports {name}"
            for room, file, tree in modules()
            if room in ("wire", "pve")
            for name in imports(tree)
            if not name.startswith(tuple(f"{library}." for library in PURE_LIBRARIES | {"mtunnel_tx"}))
            and name not in PURE_LIBRARIES
        }
        self.assertEqual(found, set())

    def test_pvesm_does_without_twisted(self):
        found = [
            f"{file.relative_to(TREE)} imports {name}"
            for room, file, tree in modules()
            if room in ("pvesm", "config", "errors", "pve")
            for name in imports(tree)
            if name.startswith("twisted")
        ]
        self.assertEqual(found, [])


class Sizes(SynchronousTestCase):
    def test_modules_are_short(self):
        files = [file for room in (PACKAGE, TREE / "tests", TREE / "bench") for file in room.rglob("*.py")]
        long = [str(file) for file in files if file.read_text("utf-8").count("\n") > LONGEST_MODULE]
        self.assertEqual(long, [])

    def test_functions_are_short(self):
        self.assertEqual([f"{name}: {lines}" for name, lines in functions() if lines > LONGEST_FUNCTION], [])

    def test_most_functions_are_very_short(self):
        sizes = sorted(lines for _, lines in functions())
        self.assertLessEqual(statistics.median(sizes), MEDIAN_FUNCTION)
        self.assertLessEqual(sizes[len(sizes) * 9 // 10], 25)


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
            f"{file.relative_to(TREE)}:{number}"
            for folder in ("mtunnel_tx", "tests", "docs", "tools", ".ci", "etc", "man", "twisted", "newsfragments")
            for file in sorted((TREE / folder).rglob("*"))
            if file.is_file() and file.suffix != ".pyc"
            for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1)
            if forbidden.search(line)
        ]
        self.assertEqual(found, [])
