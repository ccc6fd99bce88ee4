"""
The way back from the simulated API server to a client: whole answers, and watches that go on.

A `Connection` sends one answer, cut or slowed down where a fault says so; a `Stream` is an open
watch, which sends what its subscription gathers until its time is up or an outage ends it.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tracker.sandbox.objects import encode, watch_line
from tracker.sandbox.statuses import status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracker.sandbox.api import Api, Watch
    from tracker.sandbox.outages import Drip

__all__ = ["Connection", "Stream", "error_line"]

WATCH_SECONDS: Final = 1800
"""How long a watch lasts that names no timeout; a real server takes 30 to 60 minutes."""

LINES_PER_WRITE: Final = 200
JSON_TYPE: Final = "application/json"


class Connection:
    """One request's way back to the client, with the faults that concern bytes."""

    def __init__(self, http: web.BaseRequest) -> None:
        self.http = http
        self.status: int | None = None
        self.truncated = False
        self.drip: Drip | None = None
        self._response: web.StreamResponse | None = None

    async def send(
        self,
        code: int,
        body: bytes,
        content_type: str = JSON_TYPE,
        headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """Send a whole answer."""
        self.status = code
        if not self.truncated and self.drip is None:
            response = web.Response(
                status=code, body=body, content_type=content_type, headers=headers
            )
            await response.prepare(self.http)
            await response.write_eof()
            return response
        slow = web.StreamResponse(status=code, headers=headers)
        slow.content_type = content_type
        slow.content_length = len(body)
        await slow.prepare(self.http)
        self._response = slow
        await self.write(body)
        await slow.write_eof()
        return slow

    async def begin(self) -> None:
        """Send the headers of a stream."""
        self.status = HTTPStatus.OK
        response = web.StreamResponse()
        response.content_type = JSON_TYPE
        self._response = response
        await response.prepare(self.http)

    async def write(self, content: bytes) -> None:
        """Send a part of the body, cut or dripped if a fault says so."""
        response = self._begun()
        if self.truncated:
            await response.write(content[: max(1, len(content) // 2)])
            await asyncio.sleep(0)  # what is written leaves before the reset
            self.abort()
            await asyncio.Event().wait()  # until the loop has noticed and cancels this handler
        if self.drip is None:
            await response.write(content)
            return
        for start in range(0, len(content), self.drip.size):
            await response.write(content[start : start + self.drip.size])
            await asyncio.sleep(self.drip.every_seconds)

    async def finish(self) -> web.StreamResponse:
        """End a stream in order."""
        response = self._begun()
        await response.write_eof()
        return response

    def abort(self) -> None:
        """Reset the connection."""
        if self.http.transport is not None:
            self.http.transport.abort()

    def write_now(self, content: bytes) -> None:
        """Put bytes of a stream on the wire without waiting, for the half line before a cut."""
        if self.http.transport is not None:
            head = f"{len(content):x}\r\n".encode()
            self.http.transport.write(head + content + b"\r\n")

    def _begun(self) -> web.StreamResponse:
        if self._response is None:
            message = "a body was sent before its headers"
            raise RuntimeError(message)
        return self._response


class Stream:
    """One open watch: sends what its subscription gathers until something ends it."""

    def __init__(self, connection: Connection, watch: Watch, api: Api) -> None:
        self.frozen = False
        self.wake = watch.subscription.wake
        self._connection = connection
        self._watch = watch
        self._api = api
        self._ended = False

    async def serve(self, bookmark_seconds: float) -> web.StreamResponse:
        """Send the watch to its end."""
        await self._connection.begin()
        if self._watch.error is not None:
            await self._connection.write(self._watch.error)
            return await self._connection.finish()
        loop = asyncio.get_running_loop()
        timeout = self._watch.timeout_seconds
        timers = [loop.call_later(WATCH_SECONDS if timeout is None else timeout, self.end)]

        def tick() -> None:
            self.bookmark()
            timers[1:] = [loop.call_later(bookmark_seconds, tick)]

        if self._watch.bookmarks:
            timers.append(loop.call_later(bookmark_seconds, tick))
        try:
            return await self._send()
        finally:
            for timer in timers:
                timer.cancel()

    async def _send(self) -> web.StreamResponse:
        pending = self._watch.subscription.pending
        while True:
            self.wake.clear()
            while pending and not self.frozen:
                lines = [pending.popleft() for _ in range(min(len(pending), LINES_PER_WRITE))]
                await self._connection.write(b"".join(lines))
            if self._watch.subscription.fell_behind:
                self._connection.abort()
            if self._ended and not self.frozen:
                return await self._connection.finish()
            await self.wake.wait()

    def bookmark(self) -> None:
        """Send a bookmark if this watch wants them."""
        if self._watch.bookmarks:
            subscription = self._watch.subscription
            subscription.push(self._api.bookmark(subscription.resource, subscription.form))

    def end(self) -> None:
        """End in order once what is pending is sent."""
        self._ended = True
        self.wake.set()

    def fail(self, line: bytes) -> None:
        """Send an error and end."""
        self._watch.subscription.push(line)
        self.end()

    def cut(self, *, in_mid_line: bool) -> None:
        """Reset the connection, after half a line if so told."""
        if in_mid_line:
            self._connection.write_now(b'{"type":"MODIFIED","object":{"kind":"Po')
        self._connection.abort()


def error_line(code: int | None, message: str) -> bytes:
    """Return the ERROR event of a watch, without a code if it is None."""
    body = status(code or HTTPStatus.INTERNAL_SERVER_ERROR, message)
    if code is None:
        del body["code"], body["reason"]
    return watch_line("ERROR", encode(body))
