"""Tells people: runs a command, and calls webhooks, again where that fails. Nothing waits for it.

None of them waits for another one either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import treq
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent
from twisted.web.http_headers import Headers

from mtunnel_tx.backends.child import run
from mtunnel_tx.config import Notify
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.waiting import OwnedWork, pause, within
from mtunnel_tx.watch.notices import Notice, NoticeKind

log = Logger()
MOST_UNTOLD = 64
"""Notices that one receiver has not got yet; beyond it they are only logged."""
MOST_AT_ONCE = 4
"""Of them so many are being told; the others wait for their turn."""
KEPT_FOR_HELD = 16
"""So many of the first are only for VMs that wait for a decision."""
COMMAND_S = 60.0
CALL_S = 15.0
AGAIN_S = (1.0, 10.0, 60.0)
"""How long to wait before each further try of a webhook."""
STOP_S = 5.0


class _Refused(BackendFailed):
    """Asking again would change nothing."""


Send = Callable[[Notice, bytes], Coroutine[Any, Any, None]]
Complain = Callable[[str, Mapping[str, Any]], object]
"""Told a text and what stands in its braces, as a logger is."""


class _Receiver:
    """The command, or one webhook: with notices of its own that wait, so that a dead one delays no other.

    Args: name: for logs. send: sends one notice; raises TunnelError.
    """

    def __init__(self, name: str, send: Send) -> None:
        self.name = name
        self._send = send
        self._untold = 0
        self._turns = DeferredSemaphore(MOST_AT_ONCE)

    def is_full(self, kind: NoticeKind) -> bool:
        """Whether a notice of that kind would be one too many."""
        return self._untold >= MOST_UNTOLD - (0 if kind is NoticeKind.HELD else KEPT_FOR_HELD)

    async def tell(self, notice: Notice, body: bytes) -> None:
        """In the order of the calls, a few at a time. Raises: TunnelError: it was not told."""
        self._untold += 1
        try:
            async with self._turns:
                await self._send(notice, body)
        finally:
            self._untold -= 1


class NoticeTeller:
    """Args: environ: of the command, which also gets MTUNNEL_EVENT and MTUNNEL_VMID. complain: hears who is untold."""

    def __init__(
        self, reactor: Any, notify: Notify, environ: Mapping[str, str], complain: Complain | None = None
    ) -> None:
        self._reactor = reactor
        self._environ = environ
        self._complain = complain or (lambda text, facts: log.error(text, **facts))
        agent: Any = Agent(reactor, connectTimeout=CALL_S)
        self._client = HTTPClient(agent)
        self._receivers = [
            *([_Receiver("the command", partial(self._run, notify.command))] if notify.command else []),
            # Behind the host many services have a secret.
            *(_Receiver(urlsplit(url).netloc, partial(self._call_again, url)) for url in notify.urls),
        ]
        self._untold: set[Deferred[Any]] = set()
        self._is_over = False
        self._work = OwnedWork("this program ends")

    def __call__(self, notice: Notice) -> None:
        """Tell it soon."""
        body = json.dumps(notice.as_json(), ensure_ascii=False).encode("utf-8", "replace")
        for receiver in self._receivers:
            if receiver.is_full(notice.kind):
                self._fail(receiver, notice, f"{MOST_UNTOLD} notices wait for it")
                continue
            telling = Deferred.fromCoroutine(self._work.run(self._tell(receiver, notice, body)))
            self._untold.add(telling)
            telling.addBoth(self._forget, telling)

    def _forget(self, result: object, telling: Deferred[Any]) -> None:
        self._untold.discard(telling)
        if isinstance(result, Failure) and not result.check(TunnelError, CancelledError):
            log.failure("unexpected failure while somebody was told", failure=result)

    async def stop(self, wait_s: float = STOP_S) -> None:
        """Wait for those that are being told, so long at most, or until this is cancelled; then tell nobody more."""
        timer = self._reactor.callLater(wait_s, self._cut)
        # When cancelled, it cancels what it waits for, and ends well.
        await DeferredList(list(self._untold), consumeErrors=True)
        if timer.active():
            timer.cancel()
        self._is_over = True
        await self._work.end()

    def _cut(self) -> None:
        self._is_over = True
        for telling in list(self._untold):
            telling.cancel()

    async def _tell(self, receiver: _Receiver, notice: Notice, body: bytes) -> None:
        try:
            await receiver.tell(notice, body)
        except TunnelError as error:
            self._fail(receiver, notice, error.text)
        except CancelledError:
            self._fail(receiver, notice, "this program ends")
            raise

    def _fail(self, receiver: _Receiver, notice: Notice, reason: str) -> None:
        facts = {"what": receiver.name, "reason": reason, **_facts(notice)}
        self._complain("{what} was not told that the move of VM {vmid} is {event}: {reason}", facts)

    async def _run(self, argv: Sequence[str], notice: Notice, body: bytes) -> None:
        facts = _facts(notice)
        more = {"MTUNNEL_EVENT": facts["event"], "MTUNNEL_VMID": str(facts["vmid"])}
        await run(self._reactor, argv, {**self._environ, **more}, COMMAND_S, given=body)

    async def _call_again(self, url: str, _notice: Notice, body: bytes) -> None:
        """Raises: TunnelError: of the last try."""
        for wait_s in (*AGAIN_S, None):
            try:
                await self._call(url, body)
                return
            except _Refused:
                raise
            except TunnelError:
                # An attempt that is cancelled may end with its own error.
                if wait_s is None or self._is_over:
                    raise
                await pause(self._reactor, wait_s)

    async def _call(self, url: str, body: bytes) -> None:
        answer = Deferred.fromCoroutine(self._post(url, body))
        await within(self._reactor, CALL_S, answer, f"no answer within {CALL_S:g} s")

    async def _post(self, url: str, body: bytes) -> None:
        headers = Headers({"Content-Type": ["application/json"], "User-Agent": ["mtunnel-tx"]})
        try:
            response = await self._client.post(url, data=body, headers=headers, allow_redirects=False, unbuffered=True)
        except Exception as error:
            raise BackendFailed(str(error) or type(error).__name__) from error
        code = int(response.code)
        # What it says is of no interest.
        await treq.collect(response, lambda _: None)
        if code >= 500 or code == 429:
            raise BackendFailed(f"it answers {code}")
        if code >= 300:
            raise _Refused(f"it answers {code}")


def _facts(notice: Notice) -> dict[str, Any]:
    return {"vmid": notice.move.vmid, "event": notice.kind.value}
