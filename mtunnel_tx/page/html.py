"""HTML in small pieces. Every text is escaped, unless it is markup that was made here."""

from __future__ import annotations

import html
from collections.abc import Iterable

from mtunnel_tx.checks import clean

_VOID = frozenset({"input", "link", "meta"})


class Html(str):
    """Markup: it is put in as it is."""

    __slots__ = ()


Content = str | int | Html | None
"""What may stand in an element; a text is escaped, None is nothing."""


def element(name: str, /, *content: Content, **attributes: str | int | float | bool | None) -> Html:
    """One element. In the names of attributes a last `_` is dropped, and others become `-`.

    Args: attributes: True: without a value; None or False: left out.
    """
    opening = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    return Html(opening if name in _VOID else f"{opening}{join(content)}</{name}>")


def join(content: Iterable[Content]) -> Html:
    """Pieces behind each other."""
    return Html("".join(piece if isinstance(piece, Html) else _escape(piece) for piece in content))


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    key = name.removesuffix("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{_escape(value)}"'


def _escape(value: str | int | float | None) -> str:
    return "" if value is None else html.escape(clean(str(value)))
