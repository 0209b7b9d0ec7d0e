"""The HTTP API: who asks, what for, may they, is it well-formed; then the endpoint answers.

Order of checks: credentials, route, URI against body, privileges, schema, node; the rest is the endpoint's. What
somebody else has to answer is passed on before all that.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mtunnel_tx.config import Limits
from mtunnel_tx.errors import BadRequest, InvalidParameters, TunnelError, Unauthenticated
from mtunnel_tx.http.channel import LimitedSite
from mtunnel_tx.http.forward import LOCALHOST, Destination
from mtunnel_tx.http.gate import Gate
from mtunnel_tx.http.operation import Call, Operation, Parts
from mtunnel_tx.http.parameters import join_parameters, read_body, read_header, read_query
from mtunnel_tx.http.replies import (
    Reply,
    error_reply,
    not_implemented_reply,
    refusal_word,
    send,
    unauthenticated_reply,
)
from mtunnel_tx.http.table import find_operation, shown_path, split_path
from mtunnel_tx.http.tasks import is_owner
from mtunnel_tx.http.visit import Visit
from mtunnel_tx.net.admission import address_of
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.waiting import OwnedWork, first_of

log = Logger()


def make_site(parts: Parts, reactor: Any, limits: Limits | None = None) -> Site:
    """The API as a factory of HTTP connections, whose `resource` is an ApiResource; `reactor` needs only its clock."""
    return LimitedSite(ApiResource(parts, reactor), reactor, limits or Limits())


class ApiResource(Resource):
    """Every path is ours: the routes are a table, not a tree, so no path can lead out of it."""

    isLeaf = True

    def __init__(self, parts: Parts, clock: Clock, gate: Gate | None = None) -> None:
        Resource.__init__(self)
        self._parts = parts
        self._clock = clock
        self._gate = gate or Gate(clock, parts.counting.login_failed)
        self._work = OwnedWork("this daemon is being stopped")

    def render(self, request: Request) -> int:
        visit = Visit(request, self._clock.seconds())
        Deferred.fromCoroutine(self._serve(visit)).addErrback(_report)
        return NOT_DONE_YET

    async def stop(self) -> None:
        """End the work of requests that change nothing, and wait until it has ended."""
        await self._work.end()

    async def _serve(self, visit: Visit) -> None:
        try:
            reply = await self._answer(visit)
        except (CancelledError, ConnectionLost):
            return
        except TunnelError as error:
            reply = error_reply(error)
        except Exception:
            log.failure("unexpected failure in an HTTP request")
            reply = error_reply(TunnelError("internal error"))
        if reply is not None and not visit.is_over:
            self._count_refusal(reply)
            send(visit.request, reply)

    def _count_refusal(self, reply: Reply) -> None:
        if reply.status >= BadRequest.status:
            self._parts.counting.refused(refusal_word(reply.status))

    async def _answer(self, visit: Visit) -> Reply | None:
        destination = self._find_elsewhere(visit.request)
        if destination is not None:
            return await self._pass_on(visit, destination)
        try:
            rights = self._authenticate(visit.request)
        except Unauthenticated as error:
            return await self._refuse(visit, unauthenticated_reply(error))
        visit.trust(rights.token)
        try:
            return await self._dispatch(visit, rights)
        except Unauthenticated:
            await self._gate.hold(visit.since, visit.gone)
            raise

    def _find_elsewhere(self, request: Request) -> Destination | None:
        path = split_path(request.path)
        known = find_operation(request.method.decode("latin-1"), path) is not None
        return self._parts.elsewhere.find(path, known=known) if self._parts.elsewhere else None

    async def _pass_on(self, visit: Visit, destination: Destination) -> Reply | None:
        """Whoever answers judges the credentials, and we heed that: here, too, a failed login is one."""
        assert self._parts.elsewhere is not None
        with suppress(Unauthenticated):
            visit.trust(self._authenticate(visit.request).token)
        try:
            reply = await self._parts.elsewhere.answer(visit.request, destination, visit.gone)
        except Unauthenticated as error:
            return await self._refuse(visit, unauthenticated_reply(error))
        if reply is not None and _is_failed_login(reply):
            return await self._refuse(visit, reply)
        if destination.is_node and (reply is None or reply.status < BadRequest.status):
            visit.trust()
        return reply

    async def _refuse(self, visit: Visit, reply: Reply) -> Reply:
        """A failed login: counted, and answered late."""
        self._count(visit.request)
        await self._gate.hold(visit.since, visit.gone)
        return reply

    def _authenticate(self, request: Request) -> Rights:
        access = self._parts.access
        return access.rights(access.authenticate(read_header(request, b"authorization")))

    def _count(self, request: Request) -> None:
        """Who shows nothing has tried nothing; a neighbour that passed it on counts who that came from."""
        elsewhere, address = self._parts.elsewhere, address_of(request.getClientAddress())
        passed_on = elsewhere is not None and elsewhere.has_passed_on(request, address)
        if request.getHeader(b"authorization") is not None and not passed_on:
            self._gate.fail(address)

    async def _dispatch(self, visit: Visit, rights: Rights) -> Reply | None:
        request = visit.request
        method, path = request.method.decode("latin-1"), split_path(request.path)
        found = find_operation(method, path)
        if found is None:
            return not_implemented_reply(method, shown_path(path))
        operation, in_path = found
        given = join_parameters(in_path, _sent(request))
        self._check_needs(operation, rights, given)
        values = operation.takes.read(given)
        self._check_node(given.get("node", LOCALHOST))
        work = operation.handler(Call(request=request, parts=self._parts, rights=rights, values=values))
        return await (first_of(self._work.run(work), visit.gone) if operation.ends_with_client else work)

    def _check_needs(self, operation: Operation, rights: Rights, given: Mapping[str, Any]) -> None:
        """What is needed in any case, of parameters as they came. Raises: PermissionDenied."""
        if operation.owner_of is not None and is_owner(given[operation.owner_of], rights.token):
            return
        local = self._parts.guests.node
        values = {**given, "node": local} if given.get("node") == LOCALHOST else given
        for need in operation.needs:
            if not need.when:
                need.check(rights, values)

    def _check_node(self, node: str) -> None:
        local = self._parts.guests.node
        if node not in (LOCALHOST, local):
            raise InvalidParameters({"node": f"node needs to be 'localhost' or local hostname '{local}'"})


def _is_failed_login(reply: Reply) -> bool:
    """A bad ticket is none: whoever has one has logged in."""
    return reply.status == Unauthenticated.status and "PVETUNNEL" not in reply.reason


def _report(failure: Failure) -> None:
    log.failure("unexpected failure while answering an HTTP request", failure=failure)


def _sent(request: Request) -> dict[str, Any]:
    """What the peer sent beside the path: the query of a GET, the body of a POST."""
    if request.method == b"GET":
        return dict(read_query(request.uri.partition(b"?")[2]))
    assert request.content is not None
    return read_body(read_header(request, b"content-type"), request.content.read())
