"""The door of a simulated server: shut and opened again, on a port that stays its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from tracker.sandbox.door import Door

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def served(door: Door) -> AsyncIterator[web.ServerRunner]:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text="here")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        yield runner
    finally:
        await door.close(runner)


async def fetched(port: int) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/") as response,
    ):
        return await response.text()


async def test_it_opens_again_on_the_same_port() -> None:
    door = Door()
    async with served(door) as runner:
        await door.open(runner)
        port = door.port
        assert await fetched(port) == "here"
        await door.shut(runner)
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await fetched(port)
        assert refused.value.errno == errno.ECONNREFUSED
        await door.open(runner)
        assert door.port == port
        assert await fetched(port) == "here"


async def test_nobody_else_gets_the_port_while_it_is_shut() -> None:
    door = Door()
    async with served(door) as runner:
        await door.open(runner)
        await door.shut(runner)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", door.port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", door.port))


async def test_shutting_it_resets_what_is_open() -> None:
    door = Door()
    async with served(door) as runner:
        await door.open(runner)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"here")
        await door.shut(runner)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_opening_or_shutting_twice_is_no_more_than_once() -> None:
    door = Door()
    async with served(door) as runner:
        await door.open(runner)
        await door.open(runner)
        assert await fetched(door.port) == "here"
        await door.shut(runner)
        await door.shut(runner)
