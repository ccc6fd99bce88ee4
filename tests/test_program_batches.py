"""The whole program against a GitHub that limits, with thousands of names at once."""

import asyncio
import base64
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.support.probe import Probe
from tests.support.program import Program
from tests.support.simulated import (
    DIGEST,
    LATER,
    OTHER_DIGEST,
    TOKEN,
    World,
    made,
    name_of,
    of,
    pod,
)
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import answers, drops, garbles, speaks

pytestmark = [pytest.mark.timeout(150), pytest.mark.faults]

MANY = 5000
CANARY = "sparrow-0123456789"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


def run(world: World, count: int) -> None:
    for number in range(count):
        world.cluster.create(pod(f"many-{number:04}"))


async def test_five_thousand_names_are_drained_in_ten_requests(world: World) -> None:
    world.github.posts_per_minute = 180
    run(world, MANY)
    async with world.program(LOG_LEVEL="info") as program:
        await world.github.until(
            lambda: len(world.github.deployed()) == MANY, within=90, why="all of them"
        )
        assert await program.stopped() == 0
    posts = world.github.posts()
    assert len(posts) <= 10
    assert {post.status for post in posts} == {200}
    began, ended = posts[0].arrived, posts[-1].answered
    assert ended is not None
    print(f"{MANY} names in {len(posts)} requests and {ended - began:.1f} s")  # noqa: T201 - a figure


async def test_one_bad_record_among_a_thousand_is_parked_and_no_other(world: World) -> None:
    run(world, 1000)
    bad = name_of("many-0500")
    world.github.script(answers(422), match=of(bad))
    async with world.program(LOG_LEVEL="info") as program:
        await world.github.until(
            lambda: len(world.github.deployed()) == 999, within=90, why="all but one"
        )
        await program.until(lambda: bool(program.about(bad)))
        assert await program.stopped() == 0
    assert len(world.github.posts()) <= 25
    (line,) = program.about(bad)
    assert (line.outcome, line.error) == ("FAILED", "HTTP 422 Scripted by the sandbox")


async def test_a_limit_without_a_time_stops_everything_for_a_minute(world: World) -> None:
    run(world, 50)
    limited = world.github.script(answers(429), times=1)
    async with world.program(LOG_LEVEL="debug") as program:
        await program.until_said("sending paused")
        world.cluster.create(pod("later"))
        await program.until_said("reconciled")
        assert len(world.github.history) == len(limited.used) == 1
        assert await program.stopped() == 0


@pytest.mark.fault("G1")
async def test_a_limit_outlives_a_kill(world: World) -> None:
    run(world, 5)
    world.github.script(answers(429, headers={"Retry-After": "600"}))
    ledger = str(world.folder / "ledger.db")
    async with world.program(LEDGER_PATH=ledger, LOG_LEVEL="info") as program:
        await program.until(lambda: len(program.lines) == 5)
    async with world.program(LEDGER_PATH=ledger, LOG_LEVEL="debug") as program:
        world.cluster.create(pod("later"))
        await program.until_said("reconciled")
        assert len(world.github.history) == 1
        assert await program.stopped() == 0
    assert "stopped with names not sent" in program.said


def tells_of(program: Program, workload: str) -> Callable[[], bool]:
    return lambda: bool(program.about(name_of(workload)))


def refused_token(github: SimulatedGitHub) -> Callable[[], None]:
    github.tokens = {"another"}

    def end() -> None:
        github.tokens = {github.token}

    return end


def limited_at_once(github: SimulatedGitHub) -> Callable[[], None]:
    github.posts_without_abuse = 0

    def end() -> None:
        github.posts_without_abuse = None

    return end


def answering(status: int) -> Callable[[SimulatedGitHub], Callable[[], None]]:
    return lambda github: github.script(answers(status)).stop


SPELLS: Final = {
    "401": refused_token,
    "403": answering(403),
    "429": answering(429),
    "secondary": limited_at_once,
}


@pytest.mark.fault("G14")
async def test_all_is_true_after_a_spell_in_a_rollout_and_nothing_is_sent_into_a_pause(
    tmp_path: Path,
) -> None:
    """Side by side, since each waits for the minute that GitHub is to be left alone."""

    async def go_through(spell: str) -> None:
        folder = tmp_path / spell
        folder.mkdir()
        async with made(folder) as world, world.program(LOG_LEVEL="info") as program:
            run(world, 100)
            names = [name_of(f"many-{number:04}") for number in range(100)]
            before = dict.fromkeys(names, DIGEST)
            after = dict.fromkeys(names, OTHER_DIGEST)
            github = world.github
            await github.until(lambda: github.deployed() == before, within=60, why=spell)
            quiet = len(github.history)
            end = SPELLS[spell](github)
            for number in range(100):
                new = pod(
                    f"many-{number:04}", number=1, digest=OTHER_DIGEST, creationTimestamp=LATER
                )
                world.cluster.create(new)
                world.cluster.delete("pods", "shop", f"many-{number:04}-abc-0", grace_seconds=0)
            await program.until_said("sending paused")
            await github.until(lambda: len(github.history) > quiet)
            paused = asyncio.get_running_loop().time()
            end()
            await github.until(lambda: github.deployed() == after, within=90, why=spell)
            sent = [each.arrived - paused for each in github.history[quiet:]]
            # What two workers had under way is told of the pause as well.
            assert [seconds for seconds in sent if 1 < seconds < 58] == []
            assert len([seconds for seconds in sent if seconds <= 1]) <= 4
            assert len(sent) <= 10
            told = {posted.status for each in github.history for posted in each.deployments}
            assert told == {"deployed"}
            assert await program.stopped() == 0
            assert "Traceback" not in program.said

    async with asyncio.TaskGroup() as group:
        for spell in SPELLS:
            group.create_task(go_through(spell), name=spell)


def app_key() -> tuple[str, str]:
    """Return the private and the public key of a GitHub App, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private.decode(), public.decode()


def a_token(_github: SimulatedGitHub, _folder: Path) -> tuple[dict[str, str], list[str]]:
    return {"API_TOKEN": TOKEN}, [TOKEN]


def a_stale_token_file(github: SimulatedGitHub, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Give it a file with a token that is refused; another one is taken."""
    (folder / "token").write_text(f"{CANARY}-stale\n")
    github.tokens = {f"{CANARY}-fresh"}
    return {"API_TOKEN": "", "API_TOKEN_FILE": str(folder / "token")}, [CANARY]


def an_app(github: SimulatedGitHub, _folder: Path) -> tuple[dict[str, str], list[str]]:
    private, public = app_key()
    github.tokens = set()
    github.apps.register("12", 34, public)
    kept = base64.b64encode(private.encode()).decode()
    # Any line of the key; what it was given as, any part; what is signed with it; what is minted.
    secrets = [*private.splitlines()[1:-1], *textwrap.wrap(kept, 40), "eyJ", "ghs_", "PRIVATE KEY"]
    environ = {"API_TOKEN": "", "GH_APP_ID": "12", "GH_INSTALL_ID": "34"}
    return environ | {"GH_APP_PRIVATE_KEY": kept}, secrets


@pytest.mark.fault("G1")
async def test_a_limit_that_an_app_meets_at_an_early_renewal_outlives_a_kill(world: World) -> None:
    """Once, its old token was sent with for as long as it lasted, into the pause."""
    environ, _ = an_app(world.github, world.folder)
    environ["LEDGER_PATH"] = str(world.folder / "ledger.db")
    world.github.apps.lifetime_seconds = 8  # renewed after four
    run(world, 1)
    async with world.program(**environ) as program:
        await world.told("many-0000")
        limit = {"Retry-After": "600"}
        script = world.github.script(answers(429, headers=limit), match=lambda each: not each.names)
        while not script.used:
            later = f"later-{len(program.lines)}"
            world.cluster.create(pod(later))
            await program.until(tells_of(program, later))
        await program.until_said("sending paused")
        assert "no token for the App: HTTP 429, a limit" in (program.lines[-1].error or "")
    asked = len(world.github.history)
    async with world.program(LOG_LEVEL="debug", **environ) as program:
        await program.until_said("reconciled")
        assert len(world.github.history) == asked
        assert await program.stopped() == 0
    assert "stopped with names not sent" in program.said


@pytest.mark.fault("G22")
@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("credentials", [a_token, a_stale_token_file, an_app])
async def test_a_secret_stands_nowhere(
    world: World,
    credentials: Callable[[SimulatedGitHub, Path], tuple[dict[str, str], list[str]]],
    log_format: str,
) -> None:
    """In no line at DEBUG, whatever GitHub answers, in no metric and in no byte of the ledger."""
    probe = Probe()
    run(world, 30)
    environ, secrets = credentials(world.github, world.folder)
    # The simulated GitHub is its own proxy: the name of the host is found nowhere.
    password = "proxy-canary-0123456789"  # noqa: S105 - opens nothing
    proxy = world.github.url.replace("://", f"://user:{password}@")
    secrets += [password, base64.b64encode(f"user:{password}".encode()).decode()]
    ledger = world.folder / "ledger.db"
    for behaviour in (
        answers(500),
        drops(applied=True),
        garbles(),
        speaks(b"SSH-2.0\r\n"),
        answers(422),
    ):
        world.github.script(behaviour, times=1, match=lambda each: bool(each.names))
    async with world.program(
        PROXY_FROM_ENV="true",
        HTTP_PROXY=proxy,
        BASE_URL="http://github.nowhere.svc",
        LEDGER_PATH=str(ledger),
        LOG_LEVEL="debug",
        LOG_FORMAT=log_format,
        METRICS_PORT=str(probe.port),
        **environ,
    ) as program:
        await program.until(lambda: bool(program.stdout))
        (world.folder / "token").write_text(f"{CANARY}-fresh\n")
        await world.github.until(
            lambda: len(world.github.deployed()) == 30, within=90, why="all of them"
        )
        told = [await probe.ask(path) for path in ("/metrics", "/healthz", "/readyz")]
        assert await program.stopped() == 0
    said = [*program.stdout, *program.stderr, *(text for _, text in told)]
    written = "\n".join([*said, *map(repr, world.github.history)])
    for file in world.folder.glob("ledger.db*"):
        written += file.read_bytes().decode("latin-1")
    assert ledger.stat().st_size > 0
    assert [secret for secret in secrets if secret in written] == []
    assert {each.headers["Host"] for each in world.github.history} == {"github.nowhere.svc"}


async def test_a_github_app_is_enough(world: World) -> None:
    private, public = app_key()
    world.github.tokens = set()
    world.github.apps.register("12", 34, public)
    run(world, 3)
    async with world.program(
        API_TOKEN="",
        GH_APP_ID="12",
        GH_INSTALL_ID="34",
        GH_APP_PRIVATE_KEY=base64.b64encode(private.encode()).decode(),
        LOG_LEVEL="debug",
    ) as program:
        await world.github.until(
            lambda: len(world.github.deployed()) == 3, within=40, why="all of them"
        )
        assert await program.stopped() == 0
        assert "ghs_" not in program.said
        assert "PRIVATE KEY" not in program.said
    assert world.github.apps.minted == 1


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"API_TOKEN_FILE": "/nowhere/token"}, "API_TOKEN_FILE=/nowhere/token: No such file"),
        (
            {"GH_APP_ID": "1", "GH_INSTALL_ID": "2", "GH_APP_PRIVATE_KEY": CANARY},
            "GH_APP_PRIVATE_KEY: not the private key of a GitHub App",
        ),
        ({"CA_FILE": "/nowhere/ca.pem"}, "CA_FILE=/nowhere/ca.pem: No such file"),
    ],
)
async def test_what_can_not_be_used_ends_the_start_with_one_line(
    world: World, environ: dict[str, str], told: str
) -> None:
    async with world.program(**{"API_TOKEN": "", "LOG_LEVEL": "error", **environ}) as program:
        assert await program.ended() == 2
    (line,) = program.stderr
    assert told in line
    assert CANARY not in line
    assert world.github.history == []
    assert world.cluster.requests == []
