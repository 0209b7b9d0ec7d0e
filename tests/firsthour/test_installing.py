"""The commands of docs/first-hour.md that make and install the package, with stand-ins for the build and `apt-get`."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.firsthour.page import PAGE
from tests.processes import run_program

TREE = PAGE.parents[1]
NAMES = {"bookworm": "mtunnel-tx_0.1~deb12_amd64.deb", "trixie": "mtunnel-tx_0.1_amd64.deb"}
BUILD = f"""#!/bin/sh
mkdir dist
for suite in "$@"; do
    case $suite in
        bookworm) touch dist/'{NAMES["bookworm"]}';;
        trixie) touch dist/'{NAMES["trixie"]}';;
        *) exit 1;;
    esac
done
"""


class Installing(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp()).absolute()
        (self.folder / "tools").mkdir(parents=True)
        (self.folder / "Makefile").write_text((TREE / "Makefile").read_text())
        self.write("tools/make-deb", BUILD)
        self.write("bin/apt-get", f'#!/bin/sh\nprintf "%s\\n" "$*" >>{self.folder}/asked\n')
        self.write("bin/dpkg", "#!/bin/sh\necho amd64\n")

    def write(self, name, text):
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def install(self, suite):
        """Type what the page says on such a Debian. Returns: what `apt-get` was asked for."""
        (self.folder / "os-release").write_text(f'ID=debian\nVERSION_CODENAME="{suite}"\n')
        section = PAGE.read_text().partition("## Install, on both")[2].partition("\n## ")[0]
        commands = [line[4:] for line in section.splitlines() if line.startswith("    ")]
        environ = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"):
            environ.pop(name, None)
        for command in commands:
            here = command.replace("/etc/os-release", f"{self.folder}/os-release")
            run_program(["bash", "-ec", here], cwd=self.folder, env=environ, capture_output=True)
        return (self.folder / "asked").read_text().splitlines()

    def test_debian_12(self):
        self.assertEqual(
            self.install("bookworm"), ["update", "install -y git make", f"install -y ./dist/{NAMES['bookworm']}"]
        )

    def test_debian_13(self):
        self.assertEqual(self.install("trixie")[2:], [f"install -y ./dist/{NAMES['trixie']}"])
