"""Answers of the page, each with the headers that keep a browser from doing anything else with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files

from mtunnel_tx.http.replies import PRODUCT
from mtunnel_tx.net.kinds import Request

HTML = "text/html; charset=utf-8"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
SAFE_HEADERS = {
    "Server": PRODUCT,
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
FILES = {name: (files(__package__).joinpath("static", name).read_bytes(), kind) for name, kind in _TYPES.items()}
"""What needs no log-in, by name: bytes and type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAnswer:
    """One answer of the page. headers: besides those that every answer has."""

    status: int = 200
    body: bytes = b""
    content_type: str = HTML
    headers: dict[str, str] = field(default_factory=dict)


def redirect(where: str, **headers: str) -> PageAnswer:
    """Go there with GET. Args: where: seen from the page. headers: `Set_Cookie="…"`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return PageAnswer(status=303, headers={"Location": where, **named})


def begin(request: Request, status: int, content_type: str) -> None:
    """Say how it went, and what comes."""
    request.setResponseCode(status)
    for name, value in {**SAFE_HEADERS, "Content-Type": content_type}.items():
        request.setHeader(name, value)


def send_answer(request: Request, answer: PageAnswer) -> None:
    """Write an answer and finish the request."""
    begin(request, answer.status, answer.content_type)
    for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
        request.setHeader(name, value)
    request.write(answer.body)
    request.finish()
