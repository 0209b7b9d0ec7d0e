"""priv/token.cfg: the secrets of API tokens (formats.md section 5)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mtunnel_tx.checks import Warn, ignore
from mtunnel_tx.pve.users import split_token_id

_LINE = re.compile(r"\s*(\S+)\s+(\S+)\s*")


def parse_token_config(text: str, warn: Warn = ignore) -> dict[str, str]:
    """Full token ids to secrets.

    Args: warn: told of skipped lines as `line N: REASON`, which never holds any of their text.
    """
    secrets: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match and split_token_id(match[1]):
            if match[1] in secrets:
                warn(f"line {number}: the same token again")
            secrets[match[1]] = match[2]
        elif line.strip():
            warn(f"line {number}: not a token and its secret")
    return secrets


def format_token_config(secrets: Mapping[str, str]) -> str:
    """One line a token, sorted."""
    return "".join(f"{token} {secret}\n" for token, secret in sorted(secrets.items()))
