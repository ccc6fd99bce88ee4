"""The port for machines: what it answers, and that nobody can hold it up."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tracker.errors import PortError
from tracker.health import MAX_CONNECTIONS, HealthServer

HOST = "127.0.0.1"


class Patient:
    """Whose health it is."""

    def __init__(self) -> None:
        self.alive: dict[str, str | None] = {"loop": None}
        self.ready: dict[str, str | None] = {"watch": None}

    def liveness(self) -> Mapping[str, str | None]:
        return self.alive

    def readiness(self) -> Mapping[str, str | None]:
        return self.ready


def serve(patient: Patient, port: int = 0) -> HealthServer:
    return HealthServer(
        host=HOST,
        port=port,
        subject=patient,
        render=lambda accept: (f"for {accept}".encode(), "text/plain; version=1"),
    )


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
async def server(patient: Patient) -> AsyncIterator[HealthServer]:
    async with serve(patient) as opened:
        yield opened


async def get(server: HealthServer, path: str, **headers: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{HOST}:{server.port}{path}", headers=headers) as response,
    ):
        return response.status, response.headers["Content-Type"], await response.text()


async def test_who_is_well_is_said_to_be(server: HealthServer) -> None:
    for path, check in (("/healthz", "loop"), ("/readyz", "watch")):
        status, content_type, text = await get(server, path)
        assert (status, content_type) == (200, "application/json; charset=utf-8")
        assert json.loads(text) == {"status": "ok", "checks": {check: None}}


async def test_what_is_wrong_is_said_by_what_was_looked_at(
    server: HealthServer, patient: Patient
) -> None:
    patient.ready["ledger"] = "disk full"
    status, _, text = await get(server, "/readyz")
    assert status == 503
    assert json.loads(text) == {
        "status": "failing",
        "checks": {"watch": None, "ledger": "disk full"},
    }
    assert (await get(server, "/healthz"))[0] == 200
    patient.alive["loop"] = "late"
    assert (await get(server, "/healthz"))[0] == 503


async def test_metrics_are_those_that_are_asked_for(server: HealthServer) -> None:
    status, content_type, text = await get(server, "/metrics", Accept="text/openmetrics")
    assert (status, content_type, text) == (200, "text/plain; version=1", "for text/openmetrics")


@pytest.mark.parametrize("path", ["/", "/debug", "/healthz/../metrics/x", "/readyz/"])
async def test_nothing_else_is_served(server: HealthServer, path: str) -> None:
    assert (await get(server, path))[0] == 404


async def test_nothing_is_taken_but_questions(server: HealthServer) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{HOST}:{server.port}/healthz", data=b"x" * 4096) as response,
    ):
        assert response.status == 405


async def test_a_connection_has_one_answer(server: HealthServer) -> None:
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    answer = await asyncio.wait_for(reader.read(), timeout=10)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in answer
    writer.close()
    await writer.wait_closed()


async def test_who_says_nothing_is_hung_up_on(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.health.LIFETIME_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(b"GET /healthz HT")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(_read_to_the_end(reader), timeout=10)
    writer.close()


async def test_many_that_say_nothing_hold_up_nobody(server: HealthServer) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(3 * MAX_CONNECTIONS):
            _, writer = await asyncio.open_connection(HOST, server.port)
            stack.callback(writer.close)
            writer.write(b"G")
        for _ in range(10):
            status, _, _ = await asyncio.wait_for(get(server, "/healthz"), timeout=10)
            assert status == 200


async def test_a_header_without_end_is_refused(server: HealthServer) -> None:
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n")
    answer = await asyncio.wait_for(reader.readline(), timeout=10)
    assert answer.startswith(b"HTTP/1.")
    assert b" 400 " in answer
    writer.close()


async def test_a_port_that_is_taken_is_told_in_one_line(
    server: HealthServer, patient: Patient
) -> None:
    with pytest.raises(
        PortError, match=rf"METRICS_PORT={server.port}: .*in use.* use another port"
    ):
        async with serve(patient, server.port):
            pass


async def _read_to_the_end(reader: asyncio.StreamReader) -> None:
    """Read until the connection ends; raise when it was cut."""
    if not await reader.read():
        raise ConnectionResetError
