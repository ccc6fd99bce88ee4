"""The whole program against a GitHub that limits, with thousands of names at once."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.support.simulated import World, made, name_of, of, pod
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


async def test_a_canary_token_stands_nowhere(world: World) -> None:
    """In no line at DEBUG, whatever GitHub answers, and in no byte of the ledger."""
    run(world, 30)
    token = world.folder / "token"
    token.write_text(f"{CANARY}-stale\n")
    ledger = world.folder / "ledger.db"
    for behaviour in (answers(500), drops(applied=True), garbles(), speaks(b"SSH-2.0\r\n")):
        world.github.script(behaviour, times=1, match=lambda each: bool(each.names))
    world.github.tokens = {f"{CANARY}-fresh"}
    async with world.program(
        API_TOKEN="", API_TOKEN_FILE=str(token), LEDGER_PATH=str(ledger), LOG_LEVEL="debug"
    ) as program:
        await program.until(lambda: bool(program.lines))
        token.write_text(f"{CANARY}-fresh\n")
        await world.github.until(
            lambda: len(world.github.deployed()) == 30, within=90, why="all of them"
        )
        assert await program.stopped() == 0
        assert CANARY not in "\n".join([*program.stdout, *program.stderr])
    assert "credentials=file" in program.said
    for file in world.folder.glob("ledger.db*"):
        assert CANARY.encode() not in file.read_bytes()
    assert CANARY not in "".join(map(repr, world.github.history))


async def test_a_github_app_is_enough(world: World) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    world.github.tokens = set()
    world.github.apps.register("12", 34, public.decode())
    run(world, 3)
    async with world.program(
        API_TOKEN="",
        GH_APP_ID="12",
        GH_INSTALL_ID="34",
        GH_APP_PRIVATE_KEY=base64.b64encode(private).decode(),
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
