"""
A bare Kubernetes API client for tests: requests as they are, answers as they come.

It knows no models and retries nothing, so a test sees what the server said. It is used by the
conformance suite and by the kubelet player, against the simulated and the real API server alike.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = ["MERGE", "STRATEGIC", "ApiClient", "ApiFailureError", "Watcher"]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

Json = dict[str, Any]

WAIT_SECONDS = 20.0
"""How long a test waits for an event that must come; the wait ends with the event."""


class ApiFailureError(Exception):
    """An answer other than 2xx; ``code`` and ``body`` (the Status object) tell which."""

    def __init__(self, method: str, path: str, code: int, body: Json) -> None:
        super().__init__(f"{method} {path}: {code} {body.get('message', body)}")
        self.code = code
        self.body = body


class ApiClient:
    """
    One client of one API server; an async context manager.

    ``token`` None sends no token; ``ca_file`` is needed for https.
    """

    def __init__(self, url: str, *, token: str | None, ca_file: Path | None = None) -> None:
        self.url = url
        self._token = token
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None
        self._sockets: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        # Every stream has its connection; a limit would make a kubelet wait for its own watch.
        connector = aiohttp.TCPConnector(ssl=context, limit=0, socket_factory=self._socket)
        self._session = aiohttp.ClientSession(headers=headers, connector=connector)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._opened().close()
        # A transport closes its socket some turns of the loop later, a TLS one when the server
        # has said farewell too. Nothing tells of it, and a loop that ends before leaks the socket.
        async with asyncio.timeout(WAIT_SECONDS):
            while any(each.fileno() >= 0 for each in self._sockets):  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0.001)

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> tuple[int, Any]:
        """Send one request; return the status and the JSON body (or the text)."""
        headers = {"Accept": accept}
        content = None
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers["Content-Type"] = content_type
        async with self._opened().request(
            method, self.url + path, params=query, data=content, headers=headers
        ) as response:
            text = await response.text()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send one request that must succeed; raises ApiFailureError if it does not."""
        code, answer = await self.request(
            method, path, body, query=query, content_type=content_type
        )
        if code not in {200, 201, 202}:
            raise ApiFailureError(method, path, code, answer if isinstance(answer, dict) else {})
        result: Json = answer
        return result

    @asynccontextmanager
    async def watch(
        self, path: str, *, accept: str = "application/json", **query: str
    ) -> AsyncIterator[Watcher]:
        """Open a watch; raises ApiFailureError if the server answers otherwise than 200."""
        async with self._opened().get(
            self.url + path,
            params={"watch": "true", **query},
            headers={"Accept": accept},
            timeout=aiohttp.ClientTimeout(total=None, sock_read=None),
        ) as response:
            if response.status != 200:
                text = await response.text()
                raise ApiFailureError("WATCH", path, response.status, json.loads(text))
            try:
                yield Watcher(response)
            finally:
                # Not closed in order: the server would go on sending for as long as TLS takes.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Make a socket for the connector and remember it until it is closed."""
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        self._sockets = [each for each in self._sockets if each.fileno() >= 0]
        self._sockets.append(made)
        return made

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            message = "the client is not open"
            raise RuntimeError(message)
        return self._session


class Watcher:
    """The events of one watch, one by one."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self._rest = b""

    async def next(self, *, within: float | None = WAIT_SECONDS) -> Json | None:
        """
        Return the next event, None if the stream has ended in order.

        Raises TimeoutError if none comes in time, aiohttp's errors if the connection broke, and
        ValueError for a line that is not whole.
        """
        async with asyncio.timeout(within):
            while b"\n" not in self._rest:
                # Not readline: an event may be longer than the stream's limit on lines.
                more = await self.response.content.readany()
                if not more:
                    return None if not self._rest else json.loads(self._rest)
                self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        event: Json = json.loads(line)
        return event

    async def take(self, count: int) -> list[Json]:
        """Return so many events; fails if the stream ends before."""
        events: list[Json] = []
        for _ in range(count):
            event = await self.next()
            assert event is not None, f"the watch ended after {events}"
            events.append(event)
        return events

    async def rest(self) -> list[Json]:
        """Return all events until the stream ends in order."""
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events
