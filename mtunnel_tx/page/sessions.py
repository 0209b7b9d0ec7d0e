"""Who is logged in: sessions behind cookies, and the one-time links that begin some of them.

Only digests of keys are kept. A session of a token keeps what was shown, in memory alone, and shows it again for every
request: what is revoked or has expired is over at once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from mtunnel_tx.errors import Forbidden, Unauthenticated
from mtunnel_tx.page.visitor import OPERATOR, Visitor
from mtunnel_tx.ports.access import Access
from mtunnel_tx.ports.clock import Clock

LINK_S = 120.0
MOST_LINKS = 16
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Session:
    """One log-in. authorization: as the API takes it; empty: the operator's. csrf: what its forms must bring along."""

    owner: str
    authorization: str
    csrf: str
    until_s: float

    def check_csrf(self, sent: str) -> None:
        """Raises: Forbidden."""
        if not hmac.compare_digest(sent.encode("utf-8", "replace"), self.csrf.encode()):
            raise Forbidden("the form is not of this session; load the page again")


class Sessions:
    """Bounded in age and number: beyond `most` the oldest ends, and of one owner's beyond a quarter of it as well.

    Tokens leave a quarter to the operator.
    """

    def __init__(self, access: Access, clock: Clock, *, node: str, most: int, age_s: float) -> None:
        self._access = access
        self._clock = clock
        self._node = node
        self._most = most
        self._age_s = age_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._links: OrderedDict[str, float] = OrderedDict()
        self._said: dict[str, str] = {}

    def make_link(self) -> str:
        """The key of a one-time link."""
        key = secrets.token_urlsafe(_KEY_BYTES)
        self._links[_digest(key)] = self._clock.seconds() + LINK_S
        while len(self._links) > MOST_LINKS:
            self._links.popitem(last=False)
        return key

    def enter(self, link: str) -> str:
        """Use a link up. Returns: the cookie's value. Raises: Unauthenticated: it was used, is old, or never was."""
        until_s = self._links.pop(_digest(link), None)
        if until_s is None or until_s < self._clock.seconds():
            raise Unauthenticated("this link was used, or is too old: `mtunnel page` prints another one")
        return self._begin(OPERATOR, "")

    def log_in(self, token: str) -> str:
        """Args: token: `USER@REALM!TOKENID=SECRET`. Returns: the cookie's value. Raises: Unauthenticated."""
        words = token.strip().removeprefix("Authorization:").strip()
        authorization = words if words.startswith("PVEAPIToken") else f"PVEAPIToken={words}"
        return self._begin(self._access.authenticate(authorization), authorization)

    def log_out(self, cookie: str) -> None:
        """End a session, where there is one."""
        digest = _digest(cookie)
        self._sessions.pop(digest, None)
        self._said.pop(digest, None)

    def tell(self, cookie: str, text: str) -> None:
        """Keep what came of something, for the next page that the session loads."""
        self.find(cookie)
        self._said[_digest(cookie)] = text

    def told(self, cookie: str) -> str:
        """That text, once."""
        return self._said.pop(_digest(cookie), "")

    def find(self, cookie: str) -> Session:
        """Raises: Unauthenticated: there is none, or no longer."""
        session = self._sessions.get(_digest(cookie))
        if session is None or session.until_s < self._clock.seconds():
            self.log_out(cookie)
            raise Unauthenticated("not logged in")
        return session

    def visitor(self, cookie: str) -> Visitor:
        """Whose session it is, with the rights of now. Raises: Unauthenticated: it is over, or its token not valid."""
        session = self.find(cookie)
        if not session.authorization:
            return Visitor(name=OPERATOR, node=self._node, rights=None)
        try:
            rights = self._access.rights(self._access.authenticate(session.authorization))
        except Unauthenticated:
            self.log_out(cookie)
            raise
        return Visitor(name=rights.token, node=self._node, rights=rights)

    def _begin(self, owner: str, authorization: str) -> str:
        cookie, csrf = secrets.token_urlsafe(_KEY_BYTES), secrets.token_urlsafe(_KEY_BYTES)
        quarter = max(1, self._most // 4)
        self._drop([digest for digest, one in self._sessions.items() if one.owner == owner], quarter)
        if authorization:
            tokens = [digest for digest, one in self._sessions.items() if one.authorization]
            self._drop(tokens, max(1, self._most - quarter))
        self._drop(list(self._sessions), self._most)
        self._sessions[_digest(cookie)] = Session(owner, authorization, csrf, self._clock.seconds() + self._age_s)
        return cookie

    def _drop(self, digests: list[str], most: int) -> None:
        """End the oldest, so that one more makes `most`."""
        for digest in digests[: max(0, len(digests) + 1 - most)]:
            del self._sessions[digest]
            self._said.pop(digest, None)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
