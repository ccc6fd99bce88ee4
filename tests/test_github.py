"""The client over real sockets: the simulated GitHub, and servers that speak no HTTP at all."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.builders import SCOPE, digest, record
from tracker.answers import (
    Acknowledged,
    Answer,
    Failed,
    Forbidden,
    Known,
    Limited,
    NotFound,
    ReadBack,
    Rejected,
    Told,
    Unauthorized,
    Unconfirmed,
)
from tracker.auth import FixedToken
from tracker.github import MAX_BODY, DryRun, GitHub
from tracker.records import Scope
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import (
    Apply,
    Behaviour,
    answers,
    drips,
    drops,
    garbles,
    hangs,
    pretends,
    speaks,
    truncates,
)
from tracker.transport import API_VERSION, Transport

pytestmark = pytest.mark.fault("G11")

RECORD: Final = record()
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def client(
    url: str,
    *,
    token: str = "sandbox-token",  # noqa: S107 - the sandbox's
    scope: Scope = SCOPE,
) -> AsyncIterator[GitHub]:
    async with Transport(base_url=url, user_agent="deployment-tracker/test") as transport:
        yield GitHub(transport=transport, scope=scope, tokens=FixedToken(SecretStr(token)))


@asynccontextmanager
async def simulated() -> AsyncIterator[tuple[SimulatedGitHub, GitHub]]:
    async with SimulatedGitHub() as github, client(github.url) as ours:
        yield github, ours


@asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[str]:
    """Serve TCP: read a request, then do as told; yield the URL."""
    done: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        done.append(task)
        try:
            await read_request(reader)
            await talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in done:
            task.cancel()
        await asyncio.gather(*done, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(
        int(line.split(":")[1])
        for line in head.splitlines()
        if line.lower().startswith("content-l")
    )
    return head, await reader.readexactly(length)


async def sent_to(talk: Talk) -> Answer:
    async with raw_server(talk) as url, client(url) as ours:
        return await ours.send(RECORD)


def saying(*chunks: bytes) -> Talk:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()

    return talk


async def test_a_record_is_posted_as_the_contract_says() -> None:
    async with simulated() as (github, ours):
        assert await ours.send(RECORD) == Acknowledged()
        (post,) = github.posts()
        assert post.path == "/orgs/acme/artifacts/metadata/deployment-record"
        assert json.loads(post.body) == RECORD.payload(SCOPE)
        assert post.errors == ()
        headers = {name.lower(): value for name, value in post.headers.items()}
        assert headers["accept"] == "application/vnd.github+json"
        assert headers["x-github-api-version"] == API_VERSION == "2022-11-28"
        assert headers["user-agent"] == "deployment-tracker/test"
        assert headers["content-type"] == "application/json"
        assert headers["accept-encoding"] == "identity"
        assert github.deployed() == {"shop/web/app": digest()}
        assert await ours.send(RECORD.decommissioned()) == Acknowledged()
        assert github.state("shop/web/app") == ("decommissioned", digest())


async def test_the_token_is_sent_as_a_bearer_and_none_is_sent_without_one() -> None:
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0].lower())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for token in ("canary", ""):
        async with client(url, token=token) as ours:
            await ours.send(RECORD)
    server.close()
    assert "\r\nauthorization: bearer canary\r\n" in heads[0]
    assert "authorization" not in heads[1]


async def test_an_organisation_is_one_segment_of_the_path() -> None:
    scope = type(SCOPE)(
        org="a/../b?c#d", logical_environment="", physical_environment="", cluster=""
    )
    async with (
        SimulatedGitHub() as github,
        client(github.url, scope=scope) as ours,
    ):
        await ours.send(RECORD)
        assert github.posts()[0].path == (
            "/orgs/a%2F..%2Fb%3Fc%23d/artifacts/metadata/deployment-record"
        )


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        pytest.param(answers(201, apply=Apply.BEFORE, body=b"created"), Acknowledged, id="201"),
        pytest.param(garbles(), Acknowledged, id="html"),
        pytest.param(garbles(b""), Acknowledged, id="empty"),
        pytest.param(garbles(b"[" * 60_000), Acknowledged, id="deep"),
        pytest.param(truncates(), Acknowledged, id="truncated"),
        pytest.param(pretends(), Acknowledged, id="pretends"),
        pytest.param(garbles(b"{}"), Unconfirmed, id="another-object"),
        pytest.param(answers(202), Unconfirmed, id="202"),
        pytest.param(answers(204), Unconfirmed, id="204"),
        pytest.param(answers(401), Unauthorized, id="401"),
        pytest.param(answers(403), Forbidden, id="403"),
        pytest.param(answers(404), NotFound, id="404"),
        pytest.param(answers(422), Rejected, id="422"),
        pytest.param(answers(429, headers={"Retry-After": "7"}), Limited, id="429"),
        pytest.param(answers(503), Failed, id="503"),
        pytest.param(answers(304), Failed, id="304"),
        pytest.param(drops(applied=True), Failed, id="cut-after-landing"),
        pytest.param(drops(applied=False), Failed, id="cut-before-landing"),
        pytest.param(speaks(b"SSH-2.0-OpenSSH_9.9\r\n"), Failed, id="not-http"),
        pytest.param(speaks(b"HTTP/1.1 200\x00 OK\r\n\r\n"), Failed, id="malformed"),
    ],
)
async def test_an_answer_is_judged_by_what_came_back(
    behaviour: Behaviour, kind: type[Answer]
) -> None:
    async with simulated() as (github, ours):
        github.script(behaviour, times=1)
        found = await ours.send(RECORD)
        assert type(found) is kind
        assert not isinstance(found, Failed) or found.landed == (behaviour.status != 304)
        assert await ours.send(RECORD) == Acknowledged(), "the client works on"


async def test_who_acknowledges_without_json_is_told_of_once() -> None:
    """GitHub's answers are JSON: this may be a login page that says 200 to everything."""
    line = {
        "event": "acknowledged by the status alone",
        "log_level": "warning",
        "reason": "HTTP 200 without JSON",
    }
    async with simulated() as (github, ours):
        for _ in range(2):
            github.script(garbles(), times=2)
            with capture_logs() as logs:
                for _ in range(3):
                    assert await ours.send(RECORD) == Acknowledged()
            assert logs == [line], "and again after an answer that could be read"


async def test_limits_and_unknown_digests_come_as_github_tells_them() -> None:
    async with simulated() as (github, ours):
        github.unknown.add(digest())
        assert isinstance(await ours.send(RECORD), NotFound)
        github.learn(digest())
        github.tokens = {"another"}
        assert isinstance(await ours.send(RECORD), Unauthorized)
        github.tokens = {github.token}
        github.posts_per_minute = 2
        found = await ours.send(RECORD)
        assert isinstance(found, Limited)
        assert found.pause_seconds is not None
        assert 1 <= found.pause_seconds <= 62


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    async with SimulatedGitHub() as other, simulated() as (github, ours):
        github.script(answers(status, headers={"Location": f"{other.url}/orgs/x"}))
        found = await ours.send(RECORD)
        assert isinstance(found, Failed)
        assert not found.landed
        assert other.history == []
        assert len(github.history) == 1


async def test_a_refused_connection_landed_nowhere() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with client(f"http://127.0.0.1:{taken.getsockname()[1]}") as ours:
            assert await ours.send(RECORD) == Failed(reason="connection refused", landed=False)


async def test_a_host_that_is_not_found_landed_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_found(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", not_found)
    async with client("http://api.nowhere.invalid") as ours:
        found = await ours.send(RECORD)
        assert isinstance(found, Failed)
        assert not found.landed
        assert found.reason == "host name not found: api.nowhere.invalid"


async def test_tls_is_spoken_or_nothing_is_sent() -> None:
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(4096))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client(f"https://127.0.0.1:{port}", token="canary") as ours:  # noqa: S106 - a canary
        found = await ours.send(RECORD)
    server.close()
    assert isinstance(found, Failed)
    assert not found.landed
    assert found.reason.startswith("TLS failed")
    assert b"POST" not in received
    assert b"canary" not in received


async def test_a_connection_that_died_while_idle_leaves_the_outcome_open() -> None:
    async with simulated() as (github, ours):
        assert await ours.send(RECORD) == Acknowledged()
        await github.down()
        await github.up()
        found = await ours.send(RECORD)
        if not isinstance(found, Acknowledged):  # the client may have noticed the end in time
            assert isinstance(found, Failed)
            assert found.landed
            assert await ours.send(RECORD) == Acknowledged()


@pytest.mark.parametrize("behaviour", [hangs(), hangs(applied=True)], ids=["lost", "landed"])
async def test_a_server_that_hangs_is_left_after_the_total_time(
    behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.transport.TOTAL_SECONDS", 0.3)
    async with simulated() as (github, ours):
        github.script(behaviour, times=1)
        assert await ours.send(RECORD) == Failed(reason="timeout", landed=True)
        github.release()


async def test_a_body_that_drips_is_left_after_the_total_time_and_judged_by_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tracker.transport.TOTAL_SECONDS", 0.3)
    async with simulated() as (github, ours):
        script = github.script(drips(10.0), times=1)
        assert await ours.send(RECORD) == Acknowledged()
        script.release()


HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


async def test_a_huge_body_is_cut_off_and_the_connection_given_up() -> None:
    written = 0

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(HEAD + b"content-length: 10000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b" " * 10_000)
            await writer.drain()
            written += 10_000

    assert await sent_to(talk) == Acknowledged()
    assert MAX_BODY <= written < 10_000_000 - MAX_BODY


async def test_a_small_answer_does_not_unfold() -> None:
    bomb = gzip.compress(b"\0" * 30_000_000)
    assert len(bomb) < MAX_BODY
    head = b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    assert await sent_to(saying(HEAD + head + bomb)) == Acknowledged()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([b""], Failed(reason="", landed=True), id="nothing"),
        pytest.param([HEAD], Failed(reason="", landed=True), id="half-a-head"),
        pytest.param(
            [HEAD + b"x-pad: " + b"a" * 20_000 + b"\r\n\r\n"],
            Failed(reason="malformed answer", landed=True),
            id="long-header",
        ),
        pytest.param(
            [HEAD + b"content-length: 1e9\r\n\r\n"],
            Failed(reason="malformed answer", landed=True),
            id="bad-length",
        ),
        pytest.param(
            [b"HTTP/1.1 2000 OK\r\n\r\n"],
            Failed(reason="malformed answer", landed=True),
            id="bad-status",
        ),
        pytest.param(
            [HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"],
            Failed(reason="malformed answer", landed=True),
            id="bad-chunk",
        ),
        pytest.param([HEAD + b"content-length: 9\r\n\r\n{}"], Acknowledged(), id="short-body"),
        pytest.param(
            [b"HTTP/1.0 404 Not Found\r\n\r\n", b'{"message":', b'"Nope"}'],
            NotFound(reason="HTTP 404 Nope"),
            id="until-close",
        ),
        pytest.param(
            [b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 422 X\r\ncontent-length: 0\r\n\r\n"],
            Rejected(reason="HTTP 422"),
            id="interim-answers",
        ),
        pytest.param(
            [b"HTTP/1.1 404 \xff\xfe\x1b\r\ncontent-length: 0\r\nX-A: \xff\r\n\r\n"],
            NotFound(reason="HTTP 404 Not Found"),
            id="bytes-that-are-no-text",
        ),
    ],
)
async def test_whatever_comes_back_is_an_answer(chunks: list[bytes], expected: Answer) -> None:
    found = await sent_to(saying(*chunks))
    assert type(found) is type(expected)
    if isinstance(found, Failed) and isinstance(expected, Failed):
        assert found.landed == expected.landed
        assert found.reason
        assert expected.reason in found.reason
    elif isinstance(found, NotFound) and isinstance(expected, NotFound):
        assert found.reason.startswith(f"{expected.reason}: ")


async def test_hostile_text_in_a_record_is_sent_as_json() -> None:
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await read_request(reader))[1])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as ours:
        hostile = record(name='a"\n\x00\u202e\ud800')
        assert await ours.send(hostile) == Acknowledged()
    server.close()
    assert json.loads(bodies[0])["deployment_name"] == 'a"\n\x00\u202e\ud800'


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    async with simulated() as (_, ours):
        assert await ours.send(RECORD) == Acknowledged()


async def test_many_sends_at_once_do_not_wait_for_one_that_hangs() -> None:
    async with simulated() as (github, ours):
        script = github.script(hangs(applied=True), match=lambda each: "slow" in each.names)
        slow = asyncio.create_task(ours.send(record(name="slow")))
        await github.until(lambda: bool(script.used))
        sends = [ours.send(record(name=f"fast-{number}")) for number in range(50)]
        assert set(await asyncio.gather(*sends)) == {Acknowledged()}
        github.release()
        assert await slow == Acknowledged()


async def test_the_token_stands_in_no_text_of_the_client() -> None:
    async with client("http://127.0.0.1:9", token="canary") as ours:  # noqa: S106 - a canary
        found = await ours.send(RECORD)
        assert "canary" not in f"{ours!r} {ours} {found!r}"


async def test_a_client_that_was_not_opened_says_so() -> None:
    transport = Transport(base_url="http://127.0.0.1:9", user_agent="test")
    ours = GitHub(transport=transport, scope=SCOPE, tokens=FixedToken(SecretStr("")))
    with pytest.raises(RuntimeError, match="outside its context"):
        await ours.send(RECORD)


# Reading back.


async def test_what_github_holds_of_a_digest_is_read_back() -> None:
    async with simulated() as (github, ours):
        await ours.send(RECORD)
        assert await ours.records_of(digest()) == Known(
            records=(
                ReadBack(
                    deployment_name="shop/web/app",
                    digest=digest(),
                    logical_environment=SCOPE.logical_environment,
                    physical_environment=SCOPE.physical_environment,
                    cluster=SCOPE.cluster,
                ),
            ),
            complete=True,
        )
        assert await ours.records_of(digest("b")) == Known(records=(), complete=True)
        get = github.history[-1]
        assert get.method == "GET"
        assert get.path == f"/orgs/acme/artifacts/{digest('b')}/metadata/deployment-records"
        headers = {name.lower(): value for name, value in get.headers.items()}
        assert headers["accept"] == "application/vnd.github+json"
        assert headers["x-github-api-version"] == API_VERSION
        assert "content-type" not in headers
        assert get.body == b""


async def test_a_refused_token_is_renewed_once_for_a_question_too() -> None:
    class Rotated:
        async def token(self) -> SecretStr:
            return SecretStr("old")

        async def renew(self, refused: SecretStr) -> SecretStr:
            assert refused.get_secret_value() == "old"
            return SecretStr("sandbox-token")

    async with (
        SimulatedGitHub() as github,
        Transport(base_url=github.url, user_agent="test") as transport,
    ):
        ours = GitHub(transport=transport, scope=SCOPE, tokens=Rotated())
        assert await ours.records_of(digest()) == Known(records=(), complete=True)
        assert [exchange.status for exchange in github.history] == [401, 200]


# A dry run.


async def test_a_dry_run_takes_everything_for_acknowledged() -> None:
    dry = DryRun()
    assert await dry.send(RECORD) == Acknowledged()
    assert await dry.send_batch([RECORD, record("b", name="shop/api/app")]) == Told(
        answers=(Acknowledged(), Acknowledged())
    )
