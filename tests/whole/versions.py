"""Other versions of the program beside the one under test: copies with another number, and trees of earlier commits."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest

from tests.processes import run_program
from tests.whole.node import Node

TREE = Path(__file__).parents[2]
PARTS = ("mtunnel_tx", "twisted")


def _make_folder(add_cleanup: Any) -> Path:
    """One that workers without rights can read."""
    folder = Path(tempfile.mkdtemp(prefix="mtunnel-version-"))
    add_cleanup(shutil.rmtree, folder)
    folder.chmod(0o755)
    return folder


def copy_tree(add_cleanup: Any, version: str) -> Path:
    """The tree as it is, but for its number."""
    folder = _make_folder(add_cleanup)
    for part in PARTS:
        shutil.copytree(TREE / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "mtunnel_tx" / "__init__.py"
    module.write_text(re.sub('__version__ = ".*"', f'__version__ = "{version}"', module.read_text()))
    return folder


def earlier_tree(add_cleanup: Any, commit: str) -> Path:
    """The tree of a commit, without a compiled module. Raises: SkipTest: this is no repository that has it."""
    if shutil.which("git") is None or not (TREE / ".git").exists():
        raise SkipTest("no repository: NO EARLIER VERSION IS TRIED")
    archive = _make_folder(add_cleanup) / "tree.tar"
    argv = ["git", "-C", str(TREE), "archive", f"--output={archive}", commit, *PARTS]
    if run_program(argv, check=False, stderr=subprocess.DEVNULL).returncode:
        raise SkipTest(f"the repository does not have {commit}: NO EARLIER VERSION IS TRIED")
    run_program(["tar", "-x", "-f", str(archive), "-C", str(archive.parent)])
    return archive.parent


class VersionedNode(Node):
    """A node whose daemon is of the version in `tree`; its other programs are of the one under test."""

    tree: Path = TREE

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "PYTHONPATH": str(self.tree)}

    def upgrade(self, tree: Path, signal_number: int) -> None:
        """End the daemon, and start another one on the same state."""
        self.stop(signal_number)
        self.tree = tree
        self.start()
