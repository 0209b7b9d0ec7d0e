"""The documents: the page around its sections, and the form where one logs in."""

from __future__ import annotations

from collections.abc import Mapping

from mtunnel_tx.page.html import Content, Html, element, join
from mtunnel_tx.page.sections import FORM
from mtunnel_tx.page.visitor import Visitor

_NO_SCRIPT = "Without JavaScript this is how things were when the page was loaded; load it again to see more."


def page(visitor: Visitor, csrf: str, titles: Mapping[str, str], sections: Mapping[str, Html], said: str = "") -> bytes:
    """The whole page as it is now. Args: csrf: the session's own word. said: what was done, or why it was not."""
    log_out = element("button", "Log out", form=FORM, formaction="logout", name="logout", value="yes")
    return _document(
        f"{visitor.node} · mtunnel",
        element(
            "header",
            element("h1", visitor.node, " ", element("small", "mtunnel")),
            element("p", "as of ", _live("span", "now", sections), " ", element("span", "", id="connection")),
            element("p", _live("span", "waits", sections)),
            element("p", visitor.name, " ", log_out, class_="who"),
        ),
        element("form", element("input", type="hidden", name="csrf", value=csrf), id=FORM, method="post"),
        element("noscript", element("p", _NO_SCRIPT, " ", element("a", "Load again", href="./"))),
        element("p", said, class_="said", role="status") if said else None,
        element("main", *(_section(name, title, sections) for name, title in titles.items())),
        script=True,
    )


def _section(name: str, title: str, sections: Mapping[str, Html]) -> Html:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, _live("div", name, sections), id=name, aria_labelledby=f"{name}-title")


def _live(kind: str, name: str, sections: Mapping[str, Html]) -> Html:
    return element(kind, sections.get(name), data_live=name)


def login_form(node: str, said: str = "") -> bytes:
    """Where one shows an API token."""
    field = element(
        "input", type="password", name="token", id="token", required=True, autocomplete="off", spellcheck="false"
    )
    return _document(
        f"Log in · {node}",
        element("header", element("h1", node, " ", element("small", "mtunnel"))),
        element(
            "main",
            element("p", said, class_="said refused", role="alert") if said else None,
            element(
                "form",
                element("label", "API token: USER@REALM!TOKENID=SECRET", for_="token"),
                field,
                element("button", "Log in"),
                method="post",
                action="login",
                class_="login",
            ),
            element("p", "Or run ", element("code", "mtunnel page"), " on this host: it prints a link to log in."),
        ),
    )


def problem(node: str, said: str) -> bytes:
    """Why a request came to nothing."""
    back = element("p", element("a", "Back to the page", href="./"))
    header = element("header", element("h1", node, " ", element("small", "mtunnel")))
    return _document(f"{node} · mtunnel", header, element("p", said, class_="said refused", role="alert"), back)


def _document(title: str, *content: Content, script: bool = False) -> bytes:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="icon.svg", type="image/svg+xml"),
        element("link", rel="stylesheet", href="page.css"),
        element("script", src="page.js", defer=True) if script else None,
    )
    document = element("html", head, element("body", *content), lang="en")
    return join([Html("<!DOCTYPE html>\n"), document, Html("\n")]).encode("utf-8", "replace")
