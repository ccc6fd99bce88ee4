"""Servers that are no GitHub, over raw TCP and TLS: what they do costs an answer and no more."""

import asyncio
import gc
import gzip
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from pydantic import SecretStr

from tests.support.builders import SCOPE, record
from tests.support.certificates import certificate
from tracker.answers import BatchAnswer, BatchUnclear, Failed, Told
from tracker.auth import FixedToken
from tracker.github import GitHub
from tracker.sandbox.github import SimulatedGitHub
from tracker.transport import DNS_SECONDS, Transport

pytestmark = pytest.mark.fault("G11", "G19")

RECORDS: Final = tuple(record(name=f"shop/{number}/app") for number in range(50))
CANARY: Final = "canary-token"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK: Final = b"HTTP/1.1 200 OK\r\n"
MIB: Final = 2**20


@asynccontextmanager
async def serving(talk: Talk, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve TCP and yield the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def client(url: str, *, ca_file: Path | None = None) -> AsyncIterator[GitHub]:
    async with Transport(base_url=url, user_agent="test", ca_file=ca_file) as transport:
        yield GitHub(transport=transport, scope=SCOPE, tokens=FixedToken(SecretStr(CANARY)))


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (
        int(line.partition(b":")[2])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    )
    await reader.readexactly(length)


def saying(*chunks: bytes, stays: bool = False) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        if stays:
            await asyncio.Event().wait()

    return talk


def resetting(*, after: bytes | None, reads: bool = True) -> Talk:
    """Reset the connection instead of closing it, after so much of an answer."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reads:
            await read_request(reader)
        if after:
            writer.write(after)
            await writer.drain()
        plain: socket.socket = writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return talk


async def sent_to(talk: Talk) -> BatchAnswer:
    async with serving(talk) as port, client(f"http://127.0.0.1:{port}") as ours:
        return await ours.send_batch(RECORDS)


HELD: Final = json.dumps(
    {
        "deployment_records": [
            {"deployment_name": each.deployment_name, "digest": each.digest} for each in RECORDS
        ]
    }
).encode()


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        pytest.param(resetting(after=None, reads=False), Failed, id="reset-unread"),
        pytest.param(resetting(after=None), Failed, id="reset-read"),
        pytest.param(resetting(after=b"HTTP/1.1 20"), Failed, id="reset-in-the-status"),
        pytest.param(saying(b""), Failed, id="closed"),
        pytest.param(
            saying(OK + b"content-length: 9999\r\n\r\n" + HELD), BatchUnclear, id="truncated"
        ),
        pytest.param(
            resetting(after=OK + b"content-length: 9999\r\n\r\n" + HELD[:100]),
            BatchUnclear,
            id="reset-in-the-body",
        ),
        pytest.param(
            saying(OK + b"content-length: 2\r\n\r\n[]"), BatchUnclear, id="another-document"
        ),
        pytest.param(
            saying(OK + b"content-length: 200000\r\n\r\n" + b"[" * 200_000),
            BatchUnclear,
            id="deep",
        ),
        pytest.param(saying(OK + b"x: " + b"a" * 20_000 + b"\r\n\r\n"), Failed, id="long-header"),
        pytest.param(
            saying(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n"), Failed, id="bad-chunk"
        ),
        pytest.param(saying(b"SSH-2.0-OpenSSH_9.6\r\n"), Failed, id="no-http"),
        pytest.param(saying(b"HTTP/1.1 100 Continue\r\n\r\n" * 50), Failed, id="interim-only"),
        pytest.param(saying(b"HTTP/1.0 200 OK\r\n\r\n" + HELD), Told, id="until-close"),
        pytest.param(saying(b"HTTP/1.1 202 Accepted\r\n\r\n"), BatchUnclear, id="accepted"),
        pytest.param(saying(b"HTTP/1.1 204 No Content\r\n\r\n"), BatchUnclear, id="no-content"),
    ],
)
async def test_whatever_comes_back_for_a_batch_is_an_answer(talk: Talk, expected: type) -> None:
    found = await sent_to(talk)
    assert type(found) is expected
    if isinstance(found, Failed):
        assert found.landed
        assert found.reason.isprintable()
    assert CANARY not in repr(found)


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        pytest.param(saying(stays=True), Failed, id="before-the-head"),
        pytest.param(
            saying(OK + b"content-length: 9\r\n\r\n", stays=True), BatchUnclear, id="after"
        ),
        pytest.param(saying(OK, b"x-a: b\r\n", stays=True), Failed, id="in-the-head"),
    ],
)
async def test_a_hang_ends_with_the_total_time(
    talk: Talk, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.transport.TOTAL_SECONDS", 0.3)
    assert type(await sent_to(talk)) is expected


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    reached: list[bool] = []

    async def elsewhere(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        reached.append(True)

    async with serving(elsewhere) as other:
        head = f"HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:{other}/\r\n"
        found = await sent_to(saying(head.encode() + b"content-length: 0\r\n\r\n"))
    assert isinstance(found, Failed)
    assert not found.landed
    assert reached == []


async def test_a_connection_that_died_while_it_was_kept_costs_at_most_an_answer() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"content-length: %d\r\n\r\n" % len(HELD) + HELD)
        await writer.drain()
        await asyncio.sleep(0)

    async with serving(once) as port, client(f"http://127.0.0.1:{port}") as ours:
        for _ in range(10):
            assert isinstance(await ours.send_batch(RECORDS), Told | Failed)


def resident() -> int:
    """Return this process's resident bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def test_large_answers_cost_little_memory_and_no_time_of_the_loop() -> None:
    """Ten megabytes, a bomb of 300 MB, and endless lines; other requests go on meanwhile."""
    bomb = gzip.compress(b"0" * (300 * MIB), compresslevel=1)
    large = [
        saying(OK + b"content-length: %d\r\n\r\n" % (10 * MIB), *[b"x" * MIB] * 10),
        saying(OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb), bomb),
        saying(OK + b"content-length: %d\r\n\r\n" % (3 * MIB), *[b'{"a":' * 2**17] * 5),
    ]

    async def lag() -> float:
        """
        Return the longest time for which the loop did nothing else, until cancelled.

        It is the processor's, not the clock's: a busy machine is no fault of an answer.
        """
        longest = 0.0
        try:
            while True:
                began = time.thread_time()
                await asyncio.sleep(0.005)
                longest = max(longest, time.thread_time() - began)
        except asyncio.CancelledError:
            return longest

    async def round_of_all() -> float:
        probe = asyncio.create_task(lag())
        await asyncio.sleep(0.01)
        async with SimulatedGitHub(token=CANARY) as github, client(github.url) as good:
            answers = asyncio.gather(*(sent_to(talk) for talk in large))
            for _ in range(20):
                assert isinstance(await good.send_batch(RECORDS), Told)
            assert {type(each) for each in await answers} == {BatchUnclear}
        probe.cancel()
        return await probe

    lags, held = list[float](), list[int]()
    for _ in range(4):
        lags.append(await round_of_all())
        gc.collect()
        held.append(resident())
    # The best of them: what the allocator keeps for a while is given back, what leaks is not; and
    # on a busy machine any round may be unlucky.
    assert min(held[1:]) - held[0] < 8 * MIB
    assert min(lags) < 0.25


# TLS.


@pytest.mark.parametrize(
    ("host", "days", "trusted", "reason"),
    [
        pytest.param("127.0.0.1", 1, True, "", id="good"),
        pytest.param("127.0.0.1", 1, False, "TLS certificate refused", id="self-signed"),
        pytest.param("127.0.0.1", -1, True, "TLS certificate refused", id="expired"),
        pytest.param("example.com", 1, True, "TLS certificate refused", id="wrong-host"),
    ],
)
async def test_only_a_server_that_proves_itself_hears_a_word(
    tmp_path: Path, host: str, days: int, reason: str, *, trusted: bool
) -> None:
    pem, key = certificate(tmp_path, host=host, days=days)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pem, key)
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(HELD) + HELD)
        await writer.drain()

    async with (
        serving(talk, tls=tls) as port,
        client(f"https://127.0.0.1:{port}", ca_file=pem if trusted else None) as ours,
    ):
        found = await ours.send_batch(RECORDS)
    if not reason:
        assert isinstance(found, Told)
        return
    assert isinstance(found, Failed)
    assert found.reason.startswith(reason)
    assert not found.landed
    assert heard == []


async def test_an_old_version_of_tls_and_a_server_without_it_are_refused(tmp_path: Path) -> None:
    pem, key = certificate(tmp_path)
    old = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    old.load_cert_chain(pem, key)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1

    async def answer_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 0\r\n\r\n")
        await writer.drain()

    for tls in (old, None):
        async with (
            serving(answer_at_once, tls=tls) as port,
            client(f"https://127.0.0.1:{port}", ca_file=pem) as ours,
        ):
            found = await ours.send_batch(RECORDS)
        assert isinstance(found, Failed)
        assert not found.landed


async def test_a_server_that_never_greets_is_left_after_the_time_to_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.transport.CONNECT_SECONDS", 0.3)
    pem, _ = certificate(tmp_path)

    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with (
        serving(silent) as port,
        client(f"https://127.0.0.1:{port}", ca_file=pem) as ours,
    ):
        assert await ours.send_batch(RECORDS) == Failed(reason="timeout", landed=False)


async def test_a_proxy_carries_what_it_can_not_read(tmp_path: Path) -> None:
    """Beside GitHub's own, only the certificate that was named is believed, by way of it too."""
    pem, key = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pem, key)
    carried = bytearray()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            carried.extend(chunk)
            writer.write(chunk)
            await writer.drain()
        writer.close()

    held = saying(OK + b"content-length: %d\r\n\r\n" % len(HELD) + HELD)
    async with serving(held, tls=tls) as to:

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"CONNECT 127.0.0.1:%d " % to)
            assert b"proxy-authorization: basic" in head.lower()
            carried.extend(head)
            there, onwards = await asyncio.open_connection("127.0.0.1", to)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                await asyncio.gather(carry(reader, onwards), carry(there, writer))
            finally:
                onwards.close()

        async with serving(tunnel) as port:
            proxy = SecretStr(f"http://user:password@127.0.0.1:{port}")
            for trusted, expected in ((pem, Told), (None, Failed)):
                async with Transport(
                    base_url=f"https://127.0.0.1:{to}",
                    user_agent="test",
                    proxy=proxy,
                    ca_file=trusted,
                ) as transport:
                    tokens = FixedToken(SecretStr(CANARY))
                    ours = GitHub(transport=transport, scope=SCOPE, tokens=tokens)
                    found = await ours.send_batch(RECORDS)
                assert type(found) is expected
                assert not isinstance(found, Failed) or not found.landed
    assert CANARY.encode() not in carried


class Names:
    """A resolver of one host's addresses, which a test may change."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self.asked = 0
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.resolve)

    async def resolve(self, _host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*stream, (address, port)) for address in self.addresses]


async def test_a_host_that_moved_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DNS_SECONDS <= 30
    monkeypatch.setattr("tracker.transport.DNS_SECONDS", 0)
    names = Names(monkeypatch)
    async with (
        serving(saying(OK + b"content-length: %d\r\n\r\n" % len(HELD) + HELD)) as port,
        client(f"http://github.test.svc:{port}") as ours,
    ):
        names.addresses = ["127.0.0.2"]
        found = await ours.send_batch(RECORDS)
        assert found == Failed(reason="connection refused", landed=False)
        names.addresses = ["127.0.0.1"]
        assert isinstance(await ours.send_batch(RECORDS), Told)
    assert names.asked == 2


async def test_an_address_that_swallows_everything_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As IPv6 does where only the name service knows of it: the next address is tried meanwhile."""
    names = Names(monkeypatch)
    names.addresses = ["127.0.0.2", "127.0.0.1"]
    async with serving(saying(OK + b"content-length: %d\r\n\r\n" % len(HELD) + HELD)) as port:
        with socket.socket() as hole, socket.socket() as one, socket.socket() as two:
            hole.bind(("127.0.0.2", port))
            hole.listen(0)
            for filling in (one, two):  # a queue that is full answers nobody
                filling.setblocking(False)  # noqa: FBT003 - its only form
                filling.connect_ex(("127.0.0.2", port))
            async with client(f"http://github.test.svc:{port}") as ours:
                assert isinstance(await ours.send_batch(RECORDS), Told)


async def test_a_name_that_does_not_resolve_is_told() -> None:
    async with client("http://nowhere.invalid") as ours:
        found = await ours.send_batch(RECORDS)
    assert found == Failed(reason="host name not found: nowhere.invalid", landed=False)
