"""What a request is for: the status page, where it is served to this client, or the API."""

from __future__ import annotations

from typing import Protocol

from twisted.web.http import Request
from twisted.web.resource import Resource

from mtunnel_tx.http.api import ApiResource


class Servable(Protocol):
    """A part of what is served, beside the API."""

    def serves(self, request: Request) -> bool:
        """Whether this request is for it."""

    def render(self, request: Request) -> int: ...


class Entrance(Resource):
    """Passes each request on; what no section serves is the API's."""

    isLeaf = True

    def __init__(self, api: ApiResource, *sections: Servable) -> None:
        Resource.__init__(self)
        self._api = api
        self._sections = sections

    def render(self, request: Request) -> int:
        section = next((one for one in self._sections if one.serves(request)), self._api)
        return section.render(request)

    async def stop(self) -> None:
        """End the API's work that changes nothing."""
        await self._api.stop()
