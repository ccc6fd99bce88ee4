"""Where the token comes from: a file that changes, and an App of the simulated GitHub."""

import asyncio
import base64
import contextlib
import functools
import io
import os
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import structlog
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.builders import SCOPE, record
from tracker import logs
from tracker.answers import Acknowledged, Failed, Limited, Unauthorized
from tracker.auth import AppToken, FixedToken, TokenFile, read_key, read_key_file
from tracker.errors import ConnectionSettingError
from tracker.github import GitHub, Tokens
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import answers, drops, hangs
from tracker.transport import Transport, proxy_of

pytestmark = pytest.mark.fault("G18")

RECORD: Final = record()
INSTALLATION: Final = 34
AMISS: Final = FixedToken(SecretStr("canary"))
URL: Final = "https://api.github.com"


@functools.cache
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | None = None) -> str:
    made = private or key()
    return made.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    ).decode()


class Clock:
    """A wall clock that is set by hand, ahead of the machine's by `ahead` seconds."""

    def __init__(self, github: SimulatedGitHub) -> None:
        self.github = github
        self.ahead = 0.0

    def __call__(self) -> float:
        return self.github._wall() + self.ahead  # noqa: SLF001 - the server's own time

    def pass_by(self, seconds: float) -> None:
        """Let so much time pass for both."""
        self.github.clock_offset += seconds


@asynccontextmanager
async def app(
    *, lifetime: float = 3600.0
) -> AsyncIterator[tuple[SimulatedGitHub, AppToken, GitHub, Clock]]:
    async with (
        SimulatedGitHub() as github,
        Transport(base_url=github.url, user_agent="test") as transport,
    ):
        github.tokens = set()
        github.apps.lifetime_seconds = lifetime
        public = key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        github.apps.register("12", INSTALLATION, public.decode())
        clock = Clock(github)
        tokens = AppToken(
            app_id="12", installation_id=INSTALLATION, read_key=key, transport=transport, wall=clock
        )
        yield github, tokens, GitHub(transport=transport, scope=SCOPE, tokens=tokens), clock


async def given(tokens: Tokens) -> str:
    found = await tokens.token()
    assert isinstance(found, SecretStr)
    return found.get_secret_value()


# A file.


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" one\n")
    tokens = TokenFile(path)
    assert await given(tokens) == "one"
    path.write_text("another")
    assert await given(tokens) == "another"


async def test_a_file_behind_links_that_are_swapped_is_read_again(tmp_path: Path) -> None:
    """It is how Kubernetes changes what a volume holds."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "token").write_text(f"token-{version}")
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "token").symlink_to("data/token")
    tokens = TokenFile(tmp_path / "token")
    assert await given(tokens) == "token-1"
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").rename(tmp_path / "data")
    assert await given(tokens) == "token-2"


async def test_a_file_that_goes_or_is_spoiled_leaves_the_last_token_and_is_told_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "token"
    path.write_text("canary-one")
    tokens = TokenFile(path)
    with capture_logs() as logs:
        path.unlink()
        for _ in range(3):
            assert await given(tokens) == "canary-one"
        path.write_text("canary two\nlines")
        assert await given(tokens) == "canary-one"
    assert [line["event"] for line in logs] == ["the token file can't be read"]
    assert "canary" not in str(logs)
    path.write_text("canary-three")
    assert await given(tokens) == "canary-three"


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff\xfe", b"a\x00b"])
def test_a_file_without_a_token_ends_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    with pytest.raises(ConnectionSettingError, match="No such file"):
        TokenFile(path)
    path.write_bytes(content)
    with pytest.raises(ConnectionSettingError, match="it holds no token"):
        TokenFile(path)


async def test_a_token_that_was_rotated_a_moment_ago_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    async with (
        SimulatedGitHub(token="new") as github,  # noqa: S106 - opens only this one
        Transport(base_url=github.url, user_agent="test") as transport,
    ):
        tokens = TokenFile(path)
        ours = GitHub(transport=transport, scope=SCOPE, tokens=tokens)
        assert isinstance(await ours.send(RECORD), Unauthorized)
        assert len(github.history) == 1, "the same token is not tried twice"
        script = github.script(hangs(applied=True), times=1)
        sending = asyncio.create_task(ours.send(RECORD))
        await github.until(lambda: bool(script.used))
        path.write_text("new")
        github.release()
        assert await sending == Acknowledged()


# A GitHub App.


async def test_an_app_sends_with_a_token_that_it_mints_once() -> None:
    async with app() as (github, _, ours, _clock):
        assert set(await asyncio.gather(*(ours.send(RECORD) for _ in range(20)))) == {
            Acknowledged()
        }
        assert github.apps.minted == 1
        assert "ghs_" not in "".join(map(repr, github.history))


async def test_a_token_is_renewed_before_it_ends_by_one_caller() -> None:
    async with app() as (github, tokens, _, clock):
        first = await given(tokens)
        clock.pass_by(3290)
        assert await given(tokens) == first
        clock.pass_by(20)
        renewed = {await each for each in [given(tokens) for _ in range(5)]}
        assert len(renewed) == 1
        assert renewed != {first}
        assert github.apps.minted == 2


async def test_a_token_that_ended_all_the_same_is_minted_anew() -> None:
    async with app() as (github, _, ours, _clock):
        assert await ours.send(RECORD) == Acknowledged()
        github.apps.revoke()
        results = await asyncio.gather(*(ours.send(RECORD) for _ in range(10)))
        assert set(results) == {Acknowledged()}
        assert github.apps.minted == 2


async def test_an_early_renewal_that_fails_leaves_the_old_token_while_it_lasts() -> None:
    async with app() as (github, tokens, _, clock):
        first = await given(tokens)
        clock.pass_by(3310)
        script = github.script(answers(500))
        for _ in range(5):
            assert await given(tokens) == first
        assert len(script.used) == 1, "it is tried once a minute"
        clock.pass_by(61)
        assert await given(tokens) == first
        assert len(script.used) == 2
        clock.pass_by(300)
        assert await tokens.token() == Failed(reason="no token for the App: HTTP 500", landed=False)


async def test_a_limit_met_by_an_early_renewal_is_about_everyone_who_sends() -> None:
    """Once, the old token hid it: posts went on into it, and it was met anew each minute."""
    async with app() as (github, _, ours, clock):
        assert await ours.send(RECORD) == Acknowledged()
        clock.pass_by(3310)
        script = github.script(
            answers(429, headers={"Retry-After": "3600"}), match=lambda each: not each.names
        )
        for times in (1, 2):  # the second as one that was under way when the pause began
            assert await ours.send(RECORD) == Limited(
                reason="no token for the App: HTTP 429, a limit", pause_seconds=3600.0
            )
            assert len(script.used) == times
        assert len([each for each in github.history if each.names]) == 1
        script.stop()
        clock.pass_by(61)
        assert await ours.send(RECORD) == Acknowledged()


async def test_a_renewal_that_fails_is_the_answer_to_all_who_wait_for_it() -> None:
    """Once, each of them asked for itself, into the very limit that the first had met."""
    async with app() as (github, _, ours, _clock):
        script = github.script(hangs())
        sending = [asyncio.create_task(ours.send(RECORD)) for _ in range(10)]
        await github.until(lambda: bool(script.used))
        script.stop()
        limit = github.script(answers(429, headers={"Retry-After": "7"}))
        await github.down()
        await github.up()
        assert {type(await each) for each in sending} == {Failed}
        assert limit.used == []
        found = await asyncio.gather(*(ours.send(RECORD) for _ in range(10)))
        assert {type(each) for each in found} == {Limited}
        assert len(limit.used) == 1
        limit.stop()
        assert await ours.send(RECORD) == Acknowledged()


async def test_a_clock_that_is_off_by_less_than_github_minds_renews_in_time() -> None:
    async with app() as (github, tokens, _, clock):
        clock.ahead = -300.0
        first = await given(tokens)
        assert github.apps.minted == len(github.history) == 1
        clock.pass_by(3290)
        assert await given(tokens) == first
        clock.pass_by(20)
        assert await given(tokens) != first
        assert github.apps.minted == 2


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
async def test_where_the_clock_is_off_githubs_is_believed(ahead: float) -> None:
    async with app() as (github, _, ours, clock):
        clock.ahead = ahead
        assert await ours.send(RECORD) == Acknowledged()
        assert len(github.history) == 3
        github.apps.revoke()
        assert await ours.send(RECORD) == Acknowledged()
        assert len(github.history) == 6, "its difference is known by now"


async def test_a_key_that_was_changed_is_read_again_when_it_is_refused(tmp_path: Path) -> None:
    """GitHub takes several keys of an App, so that one can be changed without a gap."""
    path = tmp_path / "key.pem"
    path.write_text(pem())
    path.chmod(0o600)
    async with app() as (github, _, before, clock):
        transport = before._transport  # noqa: SLF001 - its way to this server
        tokens = AppToken(
            app_id="12",
            installation_id=INSTALLATION,
            read_key=functools.partial(read_key_file, path),
            transport=transport,
            wall=clock,
        )
        ours = GitHub(transport=transport, scope=SCOPE, tokens=tokens)
        assert await ours.send(RECORD) == Acknowledged()
        new = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = new.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        github.apps.register("12", INSTALLATION, public.decode())
        github.apps.revoke()
        for content in (pem(), "rubbish", None):
            if content is None:
                path.unlink()
            else:
                path.write_text(content)
            asked = len(github.history)
            assert isinstance(await ours.send(RECORD), Unauthorized)
            assert len(github.history) - asked <= 2, "the same key is not tried twice"
        path.write_text(pem(new))
        assert await ours.send(RECORD) == Acknowledged()
        assert github.apps.minted == 2


async def test_why_there_is_no_token_is_the_answer() -> None:
    async with app() as (github, _, ours, _clock):
        with contextlib.ExitStack() as stack:
            for behaviour, expected in (
                (drops(applied=False), Failed),
                (answers(502), Failed),
                (answers(201, body=b"{}"), Failed),
                (answers(201, body={"token": "two words"}), Failed),
                (answers(404), Unauthorized),
                (answers(403), Unauthorized),
                (answers(429, headers={"Retry-After": "7"}), Limited),
            ):
                script = github.script(behaviour)
                stack.callback(script.stop)
                found = await ours.send(RECORD)
                assert isinstance(found, expected), found
                assert not isinstance(found, Failed) or not found.landed
                script.stop()
        assert len(github.table) == 0


async def test_an_app_that_github_does_not_know_is_told_what_to_check() -> None:
    async with app() as (_github, tokens, _, _clock):
        tokens._app_id = "13"  # noqa: SLF001 - a wrong one
        found = await tokens.token()
        assert isinstance(found, Unauthorized)
        assert "GH_APP_ID, GH_INSTALL_ID" in found.reason


# Keys.


def test_a_key_is_found_in_every_form_it_is_kept_in(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(pem())
    path.chmod(0o600)
    forms = [
        pem(),
        pem().replace("\n", "\\n"),
        base64.b64encode(pem().encode()).decode(),
        f"  {pem()}  ",
        pem().replace("\n", "\r\n"),
        pem().replace("\n", "\\r\\n"),
        base64.encodebytes(pem().encode()).decode(),
        key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    ]
    keys = [read_key_file(path)]
    for form in forms:
        path.write_bytes(form.encode())
        keys += [read_key(form), read_key_file(path)]
    assert len({each.private_numbers().d for each in keys}) == 1


def test_what_is_no_key_is_told_without_a_word_of_it(tmp_path: Path) -> None:
    curve = pem(ec.generate_private_key(ec.SECP256R1()))
    for text in ("canary", "-----BEGIN canary", curve, base64.b64encode(b"canary").decode(), ""):
        with pytest.raises(ConnectionSettingError) as caught:
            read_key(text)
        assert str(caught.value).startswith("GH_APP_PRIVATE_KEY: not the private key")
        assert caught.value.__cause__ is None
        assert "canary" not in str(caught.value)
    with pytest.raises(ConnectionSettingError, match=r"GH_APP_PRIV_KEY_PATH=.*No such file"):
        read_key_file(tmp_path / "none")


@pytest.mark.parametrize(("mode", "told"), [(0o600, 0), (0o440, 0), (0o644, 1), (0o404, 1)])
def test_a_key_that_others_may_read_is_told(tmp_path: Path, mode: int, told: int) -> None:
    """The group's is no other's: it is by its group that a pod may read what is mounted for it."""
    assert warned_of(tmp_path, mode) == ["others may read the App's key"] * told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file away")
def test_a_key_that_a_group_of_others_may_read_is_told(tmp_path: Path) -> None:
    strangers = max([os.getegid(), *os.getgroups()]) + 1
    for mode, told in ((0o440, 1), (0o400, 0)):
        assert len(warned_of(tmp_path, mode, group=strangers)) == told


def warned_of(folder: Path, mode: int, *, group: int = -1) -> list[str]:
    """Return the warnings that come of reading a key from a file of this mode and group."""
    path = folder / "key.pem"
    path.write_text(pem())
    os.chown(path, -1, os.getegid() if group < 0 else group)
    path.chmod(mode)
    with capture_logs() as logs:
        read_key_file(path)
    return [line["event"] for line in logs]


async def test_no_secret_stands_in_a_repr() -> None:
    async with app() as (_, tokens, ours, _clock):
        secret = await given(tokens)
        fixed = FixedToken(SecretStr("canary"))
        assert secret not in f"{tokens!r} {tokens.__dict__!r} {ours.__dict__!r}"
        assert "canary" not in f"{fixed!r} {fixed.__dict__!r}"


@pytest.mark.fault("G22")
@pytest.mark.parametrize("as_json", [False, True])
async def test_no_secret_stands_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, *, as_json: bool
) -> None:
    """Not even in one that is ours: what was at hand where it happened is not told."""
    stream = io.StringIO()
    logs.configure(level="debug", as_json=as_json, libraries=False, stream=stream)
    request.addfinalizer(structlog.reset_defaults)
    async with app() as (_, tokens, ours, _clock):
        secret = await given(tokens)

        def fails(*_: object, **__: object) -> None:
            raise LookupError

        monkeypatch.setattr(aiohttp.ClientSession, "request", fails)
        for sending in (ours, GitHub(transport=ours._transport, scope=SCOPE, tokens=AMISS)):  # noqa: SLF001 - what it is made of
            try:
                await sending.send(RECORD)
            except LookupError:
                structlog.get_logger("test").exception("name failed", credentials=tokens)
    told = stream.getvalue()
    assert told.count("LookupError") >= 2
    assert secret not in told
    assert "canary" not in told


# Proxies and authorities.


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "a, .github.com"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "hub.com,,"}, "http://proxy:3128"),
    ],
)
def test_the_proxy_is_the_one_that_the_environment_names(
    environ: dict[str, str], proxy: str | None
) -> None:
    found = proxy_of(URL, environ)
    assert (None if found is None else found.get_secret_value()) == proxy


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://user:canary@proxy",
        "http://user:canary℀@proxy:3128",
        "http://p[canary]x:3128",
        "http://user:canary@[proxy",
        "http://user:canary@proxy:port",
        "http://proxy:canary",
        "http://user:canary@proxy:99999",
        "http://user:canary@pro xy",
        "http://user:canary@",
    ],
)
def test_a_proxy_that_is_none_is_told_without_its_password(proxy: str) -> None:
    """The standard library's error quotes it, and once ended the start with a traceback."""
    with pytest.raises(ConnectionSettingError, match="HTTPS_PROXY: not the URL") as caught:
        proxy_of(URL, {"HTTPS_PROXY": proxy})
    assert "canary" not in "".join(traceback.format_exception(caught.value))


async def test_requests_go_through_the_proxy_that_is_named() -> None:
    seen: list[str] = []

    async def forward(request: web.Request) -> web.Response:
        seen.append(str(request.url))
        return web.json_response({"deployment_records": []}, status=503)

    runner = web.AppRunner(web.Application(middlewares=[]))
    runner.app.router.add_route("*", "/{path:.*}", forward)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        proxy = SecretStr(f"http://user:canary@127.0.0.1:{port}")
        async with (
            SimulatedGitHub() as github,
            Transport(base_url=github.url, user_agent="test", proxy=proxy) as transport,
        ):
            ours = GitHub(transport=transport, scope=SCOPE, tokens=FixedToken(SecretStr("")))
            found = await ours.send(RECORD)
            assert found == Failed(reason="HTTP 503 Service Unavailable", landed=True)
            assert github.history == []
            assert "canary" not in f"{transport!r} {transport.__dict__!r}"
    finally:
        await runner.cleanup()
    assert len(seen) == 1


@pytest.mark.fault("G19")
@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_proxy_that_refuses_a_tunnel_sent_nothing_on(status: int) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    proxy = SecretStr(f"http://user:canary@127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server, Transport(base_url=URL, user_agent="test", proxy=proxy) as transport:
        ours = GitHub(transport=transport, scope=SCOPE, tokens=FixedToken(SecretStr("sparrow")))
        found = await ours.send(RECORD)
    assert found == Failed(reason=f"the proxy refused: HTTP {status}", landed=False)
    (head,) = heads
    assert head.startswith(b"CONNECT api.github.com:443 ")
    assert b"sparrow" not in head


async def test_a_file_of_authorities_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    for content in (None, "no certificates"):
        if content is not None:
            path.write_text(content)
        transport = Transport(base_url="https://localhost", user_agent="test", ca_file=path)
        with pytest.raises(ConnectionSettingError, match="CA_FILE="):
            async with transport:
                pass
