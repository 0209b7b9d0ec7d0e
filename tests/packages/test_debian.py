"""What debian/ says is true of this tree; whole packages are built and tried by `make deb`."""

import re
import sys
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mtunnel_tx
from tests.processes import run_program

TREE = Path(__file__).parents[2]
DEBIAN = TREE / "debian"
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())


def lines(name):
    return [line for line in (DEBIAN / name).read_text().splitlines() if line and not line.startswith("#")]


def requirements(wanted):
    """Yields: name in small letters, version."""
    for one in wanted:
        name, version = one.split(">=")
        yield name.lower(), version


class Files(SynchronousTestCase):
    def test_what_is_named_exists(self):
        for name in ("install", "docs", "examples", "manpages"):
            for line in lines(f"mtunnel-tx.{name}"):
                self.assertTrue(list(TREE.glob(line.split()[0])), line)

    def test_units_and_such(self):
        """Whatever debian/rules takes from etc/ is there, and is removed by `clean`."""
        rules = (DEBIAN / "rules").read_text()
        taken = re.findall(r"\b(etc/\S+) >?(debian/\S+)", rules)
        self.assertGreaterEqual(len(taken), 5)
        for source, made in taken:
            self.assertTrue((TREE / source).is_file(), source)
            self.assertIn(made, lines("clean"))

    def test_every_unit_is_for_one_place(self):
        """debian/rules knows this one only."""
        for unit in (TREE / "etc").glob("*.service"):
            for program in re.findall(r"^Exec(?:Start|Stop)=-?(\S+)", unit.read_text(), re.M):
                self.assertIn(Path(program).name, PROJECT["project"]["scripts"])
                self.assertEqual(str(Path(program).parent), "/opt/mtunnel/bin")

    def test_every_command_has_a_page(self):
        linked = [line.rpartition("/")[2] for line in lines("mtunnel-tx.links")]
        for command in PROJECT["project"]["scripts"]:
            pages = [*(TREE / "man").glob(f"{command}.[18]"), *(name for name in linked if name == f"{command}.8")]
            self.assertTrue(pages, command)

    def test_scripts_are_sound(self):
        scripts = [DEBIAN / "bundle", *(DEBIAN / f"mtunnel-tx.{name}" for name in ("postinst", "postrm", "prerm"))]
        for script in scripts:
            checked = run_program(["sh", "-n", script], capture_output=True, check=False)
            self.assertEqual((checked.returncode, checked.stderr), (0, b""), script)
        checked = run_program(["bash", "-n", TREE / "tests" / "packages" / "life"], capture_output=True, check=False)
        self.assertEqual((checked.returncode, checked.stderr), (0, b""))

    def test_scripts_have_a_place_for_what_debhelper_adds(self):
        for name in ("postinst", "postrm", "prerm"):
            self.assertIn("\n#DEBHELPER#\n", (DEBIAN / f"mtunnel-tx.{name}").read_text())


class Versions(SynchronousTestCase):
    def test_the_version(self):
        self.assertTrue(lines("changelog")[0].startswith(f"mtunnel-tx ({mtunnel_tx.__version__}) "))

    def test_dependencies(self):
        """Debian's names, with our lower bounds."""
        line = run_program([sys.executable, DEBIAN / "depends"], capture_output=True, text=True).stdout
        self.assertTrue(line.startswith("mtunnel:Depends="), line)
        found = dict(re.findall(r"([\w.-]+) \(>= ([\w.]+)\)", line))
        names = {"pyopenssl": "openssl"}
        wanted = requirements(PROJECT["project"]["dependencies"])
        expected = {f"python3-{names.get(name, name)}": version for name, version in wanted}
        self.assertEqual(found, {"python3": PROJECT["project"]["requires-python"].removeprefix(">="), **expected})

    def test_what_builds_it(self):
        control = (DEBIAN / "control").read_text()
        for name, version in requirements(PROJECT["build-system"]["requires"]):
            self.assertIn(f"python3-{name} (>= {version})", control)
        for variable in ("mtunnel", "python3", "shlibs", "misc"):
            self.assertIn(f"${{{variable}:Depends}}", control)
