"""What `mtunnel init` is told: by options, by answers at a terminal, else by defaults."""

from __future__ import annotations

import argparse
import hashlib
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtunnel_tx.config import DEFAULT_PORT, LONGEST_RUNTIME_DIR, ConfigError, Host, default_file
from mtunnel_tx.config.checks import node_name, port
from mtunnel_tx.pve.users import split_token_id

_STORAGE = re.compile(r"(?:([A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9])=)?(/[^\n]*)")
NOBODY = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitAnswers:
    """What a new host is like.

    `runtime_dir`, `state_dir`: None: the defaults hold. `storage`: name and folder of the first one; None: in the state
    directory. `token`: who may send VMs here; None: nobody yet. `host`: by which name a source reaches this host.
    """

    node: str | None = None
    port: int | None = None
    state_dir: Path | None = None
    runtime_dir: Path | None = None
    storage: tuple[str, Path] | None = None
    token: str | None = None
    host: str | None = None

    def settings(self) -> dict[str, Any]:
        """The keys of the configuration that are not its defaults."""
        listen = None if self.port is None else (f"tcp6:{self.port}",)
        given = {"node": self.node, "listen": listen, "state_dir": self.state_dir, "runtime_dir": self.runtime_dir}
        return {key: value for key, value in given.items() if value is not None}


def read_storage(text: str) -> tuple[str, Path]:
    """`[NAME=]FOLDER` from the command line."""
    match = _STORAGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not [NAME=]FOLDER with an absolute folder")
    return match[1] or "local", Path(match[2])


def read_folder(text: str) -> Path:
    """An absolute folder from the command line."""
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"'{text}' is not an absolute folder")
    return Path(text)


def read_token(text: str) -> str:
    """A token's full name from the command line."""
    if split_token_id(text) is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not USER@REALM!TOKENID")
    return text


def read_node(text: str) -> str:
    """A node's name from the command line."""
    try:
        return str(node_name(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' {error}") from error


def read_port(text: str) -> int:
    """A port from the command line."""
    try:
        return int(port(int(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no port: {error}") from error


def place_beside(file: Path, host: Host, answers: InitAnswers) -> InitAnswers:
    """State and sockets of a configuration that is not the default one are beside it, unless somebody said where."""
    if file == default_file(host):
        return answers
    run = answers.runtime_dir or file.parent / "run"
    if len(str(run)) > LONGEST_RUNTIME_DIR:
        # Sockets need short names.
        word = hashlib.sha256(str(file).encode()).hexdigest()[:8]
        run = host.runtime_dir().with_name(f"mtunnel-{word}")
    return replace(answers, state_dir=answers.state_dir or file.parent / "state", runtime_dir=run)


def can_ask() -> bool:
    """Whether there is somebody at a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(answers: InitAnswers, host: Host, state_dir: Path) -> InitAnswers:
    """Ask for what no option says; an empty line takes the default. Raises: ConfigError: the input ended."""
    if answers.node is None:
        answers = replace(answers, node=_question("node name", host.node, read_node))
    if answers.port is None:
        answers = replace(answers, port=_question("port for migrations", str(DEFAULT_PORT), read_port))
    if answers.state_dir is None:
        answers = replace(answers, state_dir=_question("state directory", str(state_dir), read_folder))
    if answers.storage is None:
        default = f"local={answers.state_dir}/storage"
        answers = replace(answers, storage=_question("first storage, NAME=FOLDER", default, read_storage))
    if answers.token is None:
        answers = replace(answers, token=_question(f"token for who sends, {NOBODY} for none", "mig@pve!t1", _or_none))
    if answers.token not in (None, NOBODY) and answers.host is None:
        answers = replace(
            answers, host=_question("name or address that it reaches this host by", socket.getfqdn(), str)
        )
    return answers


def _or_none(text: str) -> str:
    return text if text == NOBODY else read_token(text)


def _question(what: str, default: str, read: Callable[[str], Any]) -> Any:
    while True:
        print(f"{what} [{default}]: ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            raise ConfigError("no answer: give options, or --yes for the defaults")
        try:
            return read(line.strip() or default)
        except argparse.ArgumentTypeError as error:
            print(f"  {error}")


def contradictions(answers: InitAnswers, settings: Any) -> Mapping[str, object]:
    """What options say and an existing configuration says otherwise: key to what that has."""
    found = {name: getattr(settings, name) for name in answers.settings()}
    return {name: value for name, value in found.items() if value != answers.settings()[name]}
