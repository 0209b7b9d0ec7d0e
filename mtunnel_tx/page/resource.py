"""The page's requests: who asks, from where, for what, and may they.

Without a session there is the form to log in, its style, and nothing else. What changes something is a POST with the
session's own word in its form. Failed log-ins are counted and held up as those of the API are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from mtunnel_tx.errors import BadRequest, Forbidden, NotFound, TunnelError, Unauthenticated
from mtunnel_tx.http.gate import Gate
from mtunnel_tx.http.parameters import read_body, read_header, read_query
from mtunnel_tx.http.replies import refusal_word
from mtunnel_tx.http.visit import Visit
from mtunnel_tx.net.admission import address_of
from mtunnel_tx.net.kinds import Request
from mtunnel_tx.net.ownaddress import is_this_host
from mtunnel_tx.page.answers import FILES, PageAnswer, begin, redirect, send_answer
from mtunnel_tx.page.facts import Looker
from mtunnel_tx.page.feed import EventStream, Feed
from mtunnel_tx.page.sections import show_sections, titles_for
from mtunnel_tx.page.sessions import Sessions
from mtunnel_tx.page.shell import login_form, page, problem
from mtunnel_tx.page.visitor import Visitor
from mtunnel_tx.ports.clock import Clock, Threads

log = Logger()

PATH = "/mtunnel/"
COOKIE = "__Secure-mtunnel"
LOOPBACK, EVERYWHERE = "loopback", "everywhere"
DRAIN_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PageActions:
    """What can be done here. settle: VMID and whether it is discarded; returns the volumes that stay."""

    settle: Callable[[int, bool], Awaitable[list[str]]]
    drain: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageParts:
    """What the page talks to. reach: from where it is served. age_s: of a session, at most. refused: counts them."""

    node: str
    reach: str
    age_s: float
    clock: Clock
    threads: Threads
    gate: Gate
    sessions: Sessions
    looker: Looker
    feed: Feed
    actions: PageActions
    refused: Callable[[str], object]


class PageResource(Resource):
    """Everything below PATH."""

    isLeaf = True

    def __init__(self, parts: PageParts) -> None:
        Resource.__init__(self)
        self._parts = parts
        self._known: Mapping[bytes, Mapping[str, Callable[[Visit], Awaitable[PageAnswer | None]]]] = {
            b"GET": {"": self._show, "events": self._follow, "enter": self._enter},
            b"POST": {"login": self._log_in, "logout": self._log_out, "settle": self._settle, "drain": self._drain},
        }

    def serves(self, request: Request) -> bool:
        """Whether a request is for the page, and comes from where the page is served."""
        path = request.path.decode("latin-1")
        if path != PATH.rstrip("/") and not path.startswith(PATH):
            return False
        reach = self._parts.reach
        return reach == EVERYWHERE or (reach == LOOPBACK and is_this_host(address_of(request.getClientAddress())))

    def stop(self) -> None:
        """End all live pages."""
        self._parts.feed.stop()

    def render(self, request: Request) -> int:
        visit = Visit(request, self._parts.clock.seconds())
        Deferred.fromCoroutine(self._serve(visit)).addErrback(
            lambda failure: log.failure("unexpected failure while the page was served", failure)
        )
        return NOT_DONE_YET

    async def _serve(self, visit: Visit) -> None:
        try:
            answer = await self._answer(visit)
        except CancelledError:
            return
        except TunnelError as error:
            answer = self._refusal(error)
        except Exception:
            log.failure("unexpected failure in a request for the page")
            answer = self._refusal(TunnelError("internal error"))
        if answer is not None and not visit.is_over:
            if answer.status >= BadRequest.status:
                self._parts.refused(refusal_word(answer.status))
            send_answer(visit.request, answer)

    def _refusal(self, error: TunnelError) -> PageAnswer:
        document = login_form if error.status == Unauthenticated.status else problem
        return PageAnswer(status=error.status, body=document(self._parts.node, error.text))

    async def _answer(self, visit: Visit) -> PageAnswer | None:
        request = visit.request
        path = request.path.decode("latin-1")
        name = path.removeprefix(PATH)
        if path == PATH.rstrip("/"):
            return redirect(PATH)
        if request.method == b"GET" and name in FILES:
            body, kind = FILES[name]
            return PageAnswer(body=body, content_type=kind)
        known = self._known.get(request.method, {})
        if name not in known:
            raise NotFound("there is no such page")
        if request.method == b"POST":
            _check_origin(request)
        return await known[name](visit)

    # Logging in and out

    async def _enter(self, visit: Visit) -> PageAnswer:
        """By a one-time link."""
        key = read_query(visit.request.uri.partition(b"?")[2]).get("key", "")
        return await self._begin(visit, self._parts.sessions.enter, key)

    async def _log_in(self, visit: Visit) -> PageAnswer:
        return await self._begin(visit, self._parts.sessions.log_in, _form(visit.request).get("token", ""))

    async def _begin(self, visit: Visit, begin_session: Callable[[str], str], shown: str) -> PageAnswer:
        try:
            cookie = begin_session(shown)
        except Unauthenticated as error:
            if shown:
                self._parts.gate.fail(address_of(visit.request.getClientAddress()))
            await self._parts.gate.hold(visit.since, visit.gone)
            return self._refusal(Unauthenticated(error.text))
        return redirect("./", Set_Cookie=_cookie(cookie, self._parts.age_s))

    async def _log_out(self, visit: Visit) -> PageAnswer:
        self._check_form(visit)
        self._parts.sessions.log_out(_cookie_of(visit.request))
        return redirect("./", Set_Cookie=_cookie("", 0))

    # Looking

    async def _show(self, visit: Visit) -> PageAnswer:
        try:
            visitor = self._visitor(visit)
        except Unauthenticated:
            return PageAnswer(body=login_form(self._parts.node))
        parts, cookie = self._parts, _cookie_of(visit.request)
        csrf, said = parts.sessions.find(cookie).csrf, parts.sessions.told(cookie)
        sections = await parts.threads.run(show_sections, await parts.looker.look(), visitor)
        return PageAnswer(body=page(visitor, csrf, titles_for(visitor), sections, said))

    async def _follow(self, visit: Visit) -> None:
        """Updates, until one side goes."""
        visitor = self._visitor(visit)
        feed, request = self._parts.feed, visit.request
        feed.check_room(visitor.name)
        begin(request, 200, "text/event-stream")
        request.write(b"retry: 3000\n\n")
        stream = EventStream(request, _cookie_of(request), self._parts.clock, visitor.name)
        visit.gone.addCallback(lambda _: feed.leave(stream))
        feed.join(stream)

    def _visitor(self, visit: Visit) -> Visitor:
        """Who asks; a connection that has shown a session takes no place of those that have shown nothing."""
        visitor = self._parts.sessions.visitor(_cookie_of(visit.request))
        visit.trust(visitor.rights.token if visitor.rights else "")
        return visitor

    # Doing

    async def _settle(self, visit: Visit) -> PageAnswer:
        visitor, form = self._check_form(visit)
        vmid, choice = _read_choice(form.get("settle", ""))
        self._parts.looker.forget()
        facts = await self._parts.looker.look()
        owner = facts.owners.get(vmid, "")
        if vmid not in facts.status.held or not visitor.may_see(owner):
            raise NotFound(f"VM {vmid} does not wait for a decision")
        if not visitor.may_settle(vmid, owner):
            raise Forbidden(f"to decide about VM {vmid}, a token needs VM.Allocate on /vms/{vmid}, and Sys.Incoming")
        log.info("VM {vmid} is settled on the page by {name}: {choice}", vmid=vmid, name=visitor.name, choice=choice)
        said = await self._decide(vmid, discard=choice == "discard")
        self._parts.looker.forget()
        return self._tell(visit, said)

    async def _decide(self, vmid: int, *, discard: bool) -> str:
        """Returns: what came of it; it is finished even if the client goes."""
        try:
            left = await self._parts.actions.settle(vmid, discard)
        except TunnelError as error:
            return f"VM {vmid} is not settled: {error.text}"
        return f"VM {vmid} is settled" + (f"; what stays: {', '.join(left)}" if left else "")

    async def _drain(self, visit: Visit) -> PageAnswer:
        visitor, _ = self._check_form(visit)
        if not visitor.may_drain:
            raise Forbidden(f"to drain the daemon, a token needs Sys.Audit and Sys.Modify on /nodes/{visitor.node}")
        log.info("the daemon is drained on the page by {name}", name=visitor.name)
        # Where there are no tunnels it ends at once: the answer and the page behind it go out before.
        self._parts.clock.callLater(DRAIN_AFTER_S, self._parts.actions.drain)
        return self._tell(visit, "The daemon takes no new tunnels, and ends after the last one.")

    def _tell(self, visit: Visit, said: str) -> PageAnswer:
        """Go back to the page, which says it."""
        with suppress(Unauthenticated):  # logged out meanwhile
            self._parts.sessions.tell(_cookie_of(visit.request), said)
        return redirect("./")

    def _check_form(self, visit: Visit) -> tuple[Visitor, dict[str, str]]:
        """Raises: Unauthenticated: not logged in. Forbidden: the form is not of this session."""
        visitor = self._visitor(visit)
        form = _form(visit.request)
        self._parts.sessions.find(_cookie_of(visit.request)).check_csrf(form.get("csrf", ""))
        return visitor, form


def _form(request: Request) -> dict[str, str]:
    """Raises: TunnelError: it is none."""
    sent = read_body(read_header(request, b"content-type"), request.content.read())
    return {name: value for name, value in sent.items() if isinstance(value, str)}


def _read_choice(text: str) -> tuple[int, str]:
    vmid, _, choice = text.partition(" ")
    if not (vmid.isascii() and vmid.isdecimal() and len(vmid) < 10) or choice not in ("resume", "discard"):
        raise BadRequest("settle takes a VMID, and `resume` or `discard`")
    return int(vmid), choice


def _cookie(value: str, age_s: float) -> str:
    return f"{COOKIE}={value}; Path={PATH}; Max-Age={int(age_s)}; HttpOnly; Secure; SameSite=Strict"


def _cookie_of(request: Request) -> str:
    return str((request.getCookie(COOKIE.encode("ascii")) or b"").decode("latin-1"))


def _check_origin(request: Request) -> None:
    """A form of another site is none of ours. Raises: Forbidden."""
    site, origin = read_header(request, b"sec-fetch-site"), read_header(request, b"origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or origin == f"https://{read_header(request, b'host')}"
    if not is_ours:
        raise Forbidden("this form is of another site")
