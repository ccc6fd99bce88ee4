"""
The door of a simulated server: a loopback port that can be shut and opened again.

An outage closes the port and ends with the same one. In between, the port must stay taken: it comes
from the range out of which the system gives outgoing connections theirs, and a client that keeps
trying would be given it sooner or later (and then talk to itself). So a socket that is bound, but
does not listen, holds it; whoever connects is refused.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.web_runner import BaseRunner

__all__ = ["Door"]

_HOST = "127.0.0.1"


class Door:
    """Where a server listens: ``port`` is 0 until it is opened first, unless one was asked for."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._site: web.SockSite | None = None
        self._held: socket.socket | None = None

    async def open(self, runner: BaseRunner) -> None:
        """Listen for a runner that is set up; on the same port as before. No-op if it is open."""
        if self._site is not None:
            return
        self._let_go()
        listener = socket.create_server((_HOST, self.port))
        self.port = listener.getsockname()[1]
        self._site = web.SockSite(runner, listener)
        await self._site.start()

    async def shut(self, runner: BaseRunner) -> None:
        """Refuse new connections and reset those that are open. No-op if it is shut."""
        if self._site is None:
            return
        await self._site.stop()
        self._site = None
        self._held = _bound(self.port)
        if runner.server is not None:
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()

    async def close(self, runner: BaseRunner) -> None:
        """Shut it for good, with the runner; the port is free."""
        self._site = None
        self._let_go()
        await runner.cleanup()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


def _bound(port: int) -> socket.socket:
    """Return a socket that holds a port and does not listen."""
    holder = socket.socket()
    # The connections that were open a moment ago still stand on the port.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((_HOST, port))
    return holder
