"""Documentation made from KEYS: the table of docs/operations.md and the example file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtunnel_tx.config.host import Host
from mtunnel_tx.config.keys import KEYS, Key

_TABLE_START = "<!-- keys: written by tools/write-manual -->\n"
_TABLE_END = "<!-- end of keys -->\n"
_HEAD = """\
# mtunnel-tx. Every key has a default; a line that is commented out shows it (for root, in the standalone profile).
# What is misspelled or out of bounds is an error that names the key. See docs/operations.md.
"""

_NODES = """
# Daemons of other nodes, to which requests for them are passed on.
#[forward.nodes.NAME]
#host = "192.0.2.1"
#port = 8016
#fingerprint = "AA:BB:…"
"""


def manual_table() -> str:
    """Returns: KEYS as the Markdown table of docs/operations.md."""
    rows = [f"| `{key.name}` | {key.shown} | {key.reason} |" for key in KEYS]
    return "\n".join(["| key | default | what it is for |", "|---|---|---|", *rows])


def with_key_table(page: str) -> str:
    """Returns: the text of docs/operations.md with its table brought up to date."""
    head, start, rest = page.partition(_TABLE_START)
    _, end, tail = rest.partition(_TABLE_END)
    return f"{head}{start}{manual_table()}\n{end}{tail}"


def example_file(given: Mapping[str, Any] | None = None) -> str:
    """Returns: etc/mtunnel.toml, which is also what `mtunnel init` writes. Args: given: values of keys that count."""
    return "".join([_HEAD, *_entries(given or {}), _NODES])


def _entries(given: Mapping[str, Any]) -> Iterator[str]:
    host = Host(uid=0, node="NODE", environ={}, temp_dir=Path("/tmp"))  # noqa: S108 - root's defaults have none in it
    values: dict[str, Any] = {}
    table = ""
    for key in KEYS:
        values[key.name] = key.default(values, host)
        inside, _, name = key.name.rpartition(".")
        if inside != table:
            table = inside
            yield f"\n[{table}]\n"
        if key.name in given:
            yield f"{_comment(key)}{name} = {_literal(given[key.name])}\n"
        else:
            yield f"{_comment(key)}#{name} = {_literal(key.example or values[key.name])}\n"


def _comment(key: Key) -> str:
    comment = textwrap.fill(key.reason, 110, initial_indent="# ", subsequent_indent="# ")
    return f"\n{comment}\n"


def _literal(value: object) -> str:
    return json.dumps(value if isinstance(value, int | float | tuple) else str(value))
