"""Tells people: runs a command, and calls webhooks, again where that fails. Nothing waits for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import treq
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, DeferredList
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
"""Notices that are being told; beyond it they are only logged."""
KEPT_FOR_HELD = 16
"""So many of these places are only for VMs that wait for a decision."""
COMMAND_S = 60.0
CALL_S = 15.0
AGAIN_S = (1.0, 10.0, 60.0)
"""How long to wait before each further try of a webhook."""
STOP_S = 5.0


class _Refused(BackendFailed):
    """Asking again would change nothing."""


class NoticeTeller:
    """Args: environ: of the command, which also gets MTUNNEL_EVENT and MTUNNEL_VMID."""

    def __init__(self, reactor: Any, notify: Notify, environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._notify = notify
        self._environ = environ
        agent: Any = Agent(reactor, connectTimeout=CALL_S)
        self._client = HTTPClient(agent)
        self._untold: set[Deferred[Any]] = set()
        self._work = OwnedWork("this daemon is being stopped")

    def __call__(self, notice: Notice) -> None:
        """Tell it soon."""
        if not self._notify.command and not self._notify.urls:
            return
        if len(self._untold) >= MOST_UNTOLD - (0 if notice.kind is NoticeKind.HELD else KEPT_FOR_HELD):
            log.error("nobody is told that the move of VM {vmid} is {event}", **_facts(notice))
            return
        telling = Deferred.fromCoroutine(self._work.run(self._tell_all(notice)))
        self._untold.add(telling)
        telling.addBoth(self._forget, telling)

    def _forget(self, result: object, telling: Deferred[Any]) -> None:
        self._untold.discard(telling)
        if isinstance(result, Failure) and not result.check(TunnelError, CancelledError):
            log.failure("unexpected failure while somebody was told", failure=result)

    async def stop(self) -> None:
        """Wait for those that are being told, for a few seconds."""
        timer = self._reactor.callLater(STOP_S, self._give_up)
        await DeferredList(list(self._untold), consumeErrors=True)
        if timer.active():
            timer.cancel()
        await self._work.end()

    def _give_up(self) -> None:
        log.error("not everybody was told what became of the last moves")
        for telling in list(self._untold):
            telling.cancel()

    async def _tell_all(self, notice: Notice) -> None:
        body = json.dumps(notice.as_json(), ensure_ascii=False).encode("utf-8", "replace")
        if self._notify.command:
            await self._try("the command", self._run(self._notify.command, notice, body), notice)
        for url in self._notify.urls:
            # Behind the host many services have a secret.
            await self._try(urlsplit(url).netloc, self._call_again(url, body), notice)

    async def _try(self, what: str, work: Any, notice: Notice) -> None:
        try:
            await work
        except TunnelError as error:
            facts = _facts(notice)
            log.error(
                "{what} was not told that the move of VM {vmid} is {event}: {reason}",
                what=what,
                reason=error.text,
                **facts,
            )
        except CancelledError:
            raise
        except Exception:  # one way of telling must not take the next one with it
            log.failure("unexpected failure while {what} was told", what=what)

    async def _run(self, argv: Sequence[str], notice: Notice, body: bytes) -> None:
        facts = _facts(notice)
        more = {"MTUNNEL_EVENT": facts["event"], "MTUNNEL_VMID": str(facts["vmid"])}
        await run(self._reactor, argv, {**self._environ, **more}, COMMAND_S, given=body)

    async def _call_again(self, url: str, body: bytes) -> None:
        """Raises: TunnelError: of the last try."""
        for wait_s in (*AGAIN_S, None):
            try:
                await self._call(url, body)
                return
            except _Refused:
                raise
            except TunnelError:
                if wait_s is None:
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
