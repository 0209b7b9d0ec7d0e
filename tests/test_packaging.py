"""What is installed, what the commands say, and that the Makefile's goals are as promised."""

import ast
import os
import re
import sys
import tomllib
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import mtunnel_tx
from mtunnel_tx.cli.main import COMMANDS, make_parser
from tests.processes import run_program

TREE = Path(__file__).parents[1]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())


MODULES = {
    "OpenSSL": "pyOpenSSL",
    "prometheus_client": "prometheus-client",
    "openapi_spec_validator": "openapi-spec-validator",
    "service_identity": "service-identity",
    "zope": "zope.interface",
    "twisted": "Twisted",
}


def names(requirements):
    """Returns: the distributions' names."""
    return {re.split("[<>=]", requirement)[0] for requirement in requirements}


def said(*command, **environment):
    """Run a command from the root of the file system. Returns: status, output."""
    env = {**os.environ, "PYTHONPATH": str(TREE), "COLUMNS": "100", **environment}
    done = run_program(command, cwd="/", env=env, capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


class Plugin(SynchronousTestCase):
    def test_twisted_finds_it(self):
        makers = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "mtunnel"]
        self.assertEqual([maker.module for maker in makers], ["mtunnel_tx.tap"])

    def test_no_package_file_beside_it(self):
        """pip would overwrite Twisted's own, and removing us would remove it."""
        self.assertEqual(sorted((TREE / "twisted").rglob("__init__.py")), [])
        self.assertEqual([file.name for file in (TREE / "twisted").rglob("*.py")], ["mtunnel_plugin.py"])


class Commands(SynchronousTestCase):
    def test_each_one_has_a_module_that_knows_its_help(self):
        for name, text in COMMANDS.items():
            self.assertIn(text, re.sub(r"\s+", " ", make_parser(name).format_help()))

    def test_help_of_each(self):
        for name in COMMANDS:
            status, text = said(sys.executable, "-m", "mtunnel_tx.cli", name, "--help")
            self.assertEqual(status, 0, text)
            self.assertIn(f"usage: mtunnel {name}", text)
            self.assertIn("--config FILE", text)

    def test_help(self):
        status, text = said(sys.executable, "-m", "mtunnel_tx.cli", "--help")
        self.assertEqual(status, 0, text)
        for name in COMMANDS:
            self.assertRegex(text, rf"(?m)^    {name}(?: |$)")

    def test_help_of_pvesm(self):
        status, text = said(sys.executable, "-m", "mtunnel_tx.pvesm", "--help")
        self.assertEqual(status, 0, text)
        self.assertIn("mtunnel-pvesm", text)

    def test_help_of_the_daemon(self):
        status, text = said(sys.executable, "-m", "twisted.trial", "--version")
        self.assertEqual(status, 0, text)
        status, text = said(sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "mtunnel", "--help")
        self.assertEqual(status, 0, text)
        self.assertIn("--config=", text)

    def test_the_module_names_are_importable(self):
        for script in PROJECT["project"]["scripts"].values():
            module, _, function = script.partition(":")
            self.assertTrue(callable(getattr(__import__(module, fromlist=[function]), function)))

    def test_nothing_else_is_imported_for_help(self):
        """A missing library breaks its own command only, and nobody waits for the others."""
        code = "import sys; from mtunnel_tx.cli.main import make_parser; make_parser('endpoint'); print(*sys.modules)"
        _, text = said(sys.executable, "-c", code)
        loaded = text.split()
        self.assertIn("mtunnel_tx.cli.endpoint", loaded)
        for name in ("mtunnel_tx.cli.migrate", "mtunnel_tx.demo.show", "twisted.internet.reactor"):
            self.assertNotIn(name, loaded)

    def test_a_move_imports_no_more_than_it_needs(self):
        """Before its first request a running VM waits for nothing but imports; these libraries were half of them."""
        code = "import sys; from mtunnel_tx.cli.main import make_parser; make_parser('migrate'); print(*sys.modules)"
        _, text = said(sys.executable, "-c", code)
        loaded = set(text.split())
        self.assertIn("mtunnel_tx.source.migration", loaded)
        slow = {"autobahn", "cffi", "rich", "importlib.metadata"}
        others = {"mtunnel_tx.daemon.compose", "mtunnel_tx.tunnel", "mtunnel_tx.page", "mtunnel_tx.wire.schema"}
        self.assertEqual(loaded & (slow | others), set())

    def test_a_vms_actions_import_nothing_for_moves(self):
        """They talk to programs of this host only: TLS and HTTP were half of the time that each took to start."""
        code = "import sys; from mtunnel_tx.cli.main import make_parser; make_parser('vm'); print(*sys.modules)"
        _, text = said(sys.executable, "-c", code)
        loaded = set(text.split())
        self.assertIn("mtunnel_tx.cli.vm.changing", loaded)
        self.assertEqual(loaded & {"treq", "OpenSSL", "cryptography", "twisted.web", "mtunnel_tx.source.target"}, set())

    def test_help_imports_nothing_of_any_command(self):
        code = "import sys; from mtunnel_tx.cli.main import make_parser; make_parser(None); print(*sys.modules)"
        _, text = said(sys.executable, "-c", code)
        self.assertEqual(set(text.split()) & {"twisted", "OpenSSL", "treq", "rich", "importlib.metadata"}, set())


class Project(SynchronousTestCase):
    def test_version(self):
        self.assertEqual(PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"], "mtunnel_tx.__version__")
        self.assertRegex(mtunnel_tx.__version__, r"^\d+\.\d+\.\d+")

    def test_every_dependency_is_explained(self):
        text = (TREE / "docs" / "dependencies.md").read_text()
        for name in names(PROJECT["project"]["dependencies"]):
            self.assertIn(f"| {name} |", text)

    def test_every_import_is_a_dependency(self):
        # The masker comes with autobahn, where it was built.
        self.assert_known("mtunnel_tx", names(PROJECT["project"]["dependencies"]) | {"mtunnel_tx", "_nvx_xormasker"})

    def test_every_import_of_the_tests_is_a_dependency(self):
        groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
        self.assert_known("tests", set().union(*map(names, groups)) | {"mtunnel_tx", "tests", "bench"})

    def assert_known(self, folder, known):
        for file in (TREE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) else []
                for module in {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names):
                    self.assertIn(MODULES.get(module, module), known, f"{file} imports {module}")

    def test_news_fragments_are_of_known_types(self):
        types = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}
        for file in (TREE / "newsfragments").glob("*.md"):
            self.assertIn(file.name.split(".")[1], types, file.name)
            self.assertTrue(file.read_text().strip().endswith("."), file.name)


class Shared(SynchronousTestCase):
    def test_pages_and_completions_are_installed(self):
        """What setup.py names is there; a pattern that finds nothing would be silence."""
        text = (TREE / "setup.py").read_text()
        for section in (1, 5, 8):
            self.assertTrue(list((TREE / "man").glob(f"*.{section}")))
        for path in re.findall(r'"(etc/completion/[^"]+)"', text):
            self.assertTrue((TREE / path).is_file(), path)


class Make(SynchronousTestCase):
    def test_help_names_every_goal(self):
        goals = re.search(r"^\.PHONY: (.*)$", (TREE / "Makefile").read_text(), re.MULTILINE)[1].split()
        text = run_program(["make", "-s", "help"], cwd=TREE, capture_output=True, check=False).stdout.decode()
        self.assertEqual({"help", "ready", *re.findall(r"^make (\w+)", text, re.MULTILINE)}, set(goals))

    def test_scripts_are_sound(self):
        for script in [*(file for file in (TREE / "tools").iterdir() if not file.suffix), TREE / ".ci" / "run"]:
            shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
            checked = run_program([shell, "-n", script], capture_output=True, check=False)
            self.assertEqual((checked.returncode, checked.stderr), (0, b""), script)
            self.assertTrue(os.access(script, os.X_OK), script)
