"""The whole program against a GitHub that limits, with thousands of names at once."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.simulated import World, made, name_of, of, pod
from tracker.sandbox.script import answers

pytestmark = [pytest.mark.timeout(150), pytest.mark.faults]

MANY = 5000


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
