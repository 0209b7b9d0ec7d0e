"""The commands of docs/first-hour.md, each with the host that it is for.

Run as a program in a bare Debian tree, where the page's first section was done already, it does the rest with the
page's own paths: `tests/firsthour/run`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.processes import run_program

PAGE = Path(__file__).parents[2] / "docs" / "first-hour.md"
HOSTS = {"The target": "target", "The source": "source"}
"""What a section's title begins with."""


@dataclass(frozen=True)
class Step:
    """One line of the page. `host`: `target`, `source`, or `both` where it installs."""

    host: str
    command: str


def steps() -> list[Step]:
    """All lines that are to be typed, in order."""
    found = []
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        host = next((host for title, host in HOSTS.items() if section.startswith(title)), "both")
        found += [Step(host, line[4:]) for line in section.splitlines() if line.startswith("    ")]
    return found


def type_in(step: Step, environ: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Type a command. Args: names: what stands for the page's names here. Returns: what it prints."""
    command = step.command
    for name, here in names.items():
        command = command.replace(name, here)
    print(f"{step.host}# {command}", flush=True)
    done = run_program(["bash", "-ec", command], check=False, capture_output=True, text=True, env=environ, quiet_s=120)
    if done.returncode != 0:
        raise AssertionError(f"{command}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return str(done.stdout)


def main() -> int:
    """The target is this host, the source another configuration on it."""
    source = {**os.environ, "MTUNNEL_CONFIG": "/srv/source/mtunnel.toml"}
    for step in steps():
        if step.host != "both":
            print(
                type_in(step, source if step.host == "source" else os.environ, {"target.example": "127.0.0.1"}), end=""
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
