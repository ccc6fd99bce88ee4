"""The whole program's port for machines: what it says while all is well, and while it is not."""

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.support.probe import Probe
from tests.support.program import Program
from tests.support.simulated import IN_STEP, assert_secret
from tests.support.world import World, made
from tracker.sandbox.script import answers

pytestmark = pytest.mark.timeout(120)

QUICK: Final = {"tracker.condition.UNGRANTED_SECONDS": 0.5}
"""So that a test need not wait half a minute for what is wanting."""


def program(world: World, probe: Probe) -> Program:
    return world.program(constants=QUICK, METRICS_PORT=str(probe.port))


async def test_what_it_does_is_told_in_metrics(tmp_path: Path) -> None:
    probe = Probe()
    async with made(tmp_path) as world:
        world.run("web", "cart")
        async with program(world, probe) as running:
            await running.until(lambda: len(running.lines) == 2)
            await probe.until("/readyz", lambda wrong: not wrong)
            assert await probe.wrong("/healthz") == {}
            told = await probe.metrics()
            assert told["pods"] == 2
            assert told["events_total listed"] == 2
            assert told["names acknowledged"] == 2
            assert told["posts_total acknowledged"] == 2
            assert sum(told[f"requests_total {call} 2xx"] for call in ("single", "batch")) == len(
                world.github.posts()
            )
            assert told["delivery_seconds_count"] == 2
            assert told["queue_depth"] == told["oldest_pending_seconds"] == 0
            assert told["ledger_writes_total ok"] >= 2
            assert told["watch_in_step"] == 1
            assert told["reconcile_passes_total ok"] == 1
            world.run("late")
            await running.until(lambda: len(running.lines) == 3)
            told = await probe.metrics()
            assert told["events_total added"] == 1
            assert told["process_resident_memory_bytes"] > 0
            _, text = await probe.ask("/metrics")
            assert "shop" not in text
            assert "sha256" not in text
            assert await running.stopped() == 0
        assert_secret(running)


async def test_an_api_server_that_is_away_makes_it_unready_and_not_unwell(tmp_path: Path) -> None:
    probe = Probe()
    async with made(tmp_path) as world:
        await world.cluster.pause()
        async with program(world, probe) as running:
            await probe.until("/readyz", lambda wrong: {"start", "watch"} <= wrong.keys())
            assert await probe.wrong("/healthz") == {}
            await world.cluster.resume()
            await running.until_said(IN_STEP)
            await probe.until("/readyz", lambda wrong: not wrong)
            await world.cluster.pause()
            await probe.until("/readyz", lambda wrong: wrong.keys() == {"watch"})
            assert (await probe.metrics())["watch_in_step"] == 0
            assert await probe.wrong("/healthz") == {}
            await world.cluster.resume()
            await probe.until("/readyz", lambda wrong: not wrong)
            assert await running.stopped() == 0


async def test_settings_that_github_will_refuse_make_it_unready(tmp_path: Path) -> None:
    probe = Probe()
    async with (
        made(tmp_path) as world,
        world.program(
            METRICS_PORT=str(probe.port), API_TOKEN="", LOGICAL_ENVIRONMENT=""
        ) as running,
    ):
        await running.until_said(IN_STEP)
        await probe.until("/readyz", lambda wrong: wrong.keys() == {"settings"})
        wrong = await probe.wrong("/readyz")
        assert "API_TOKEN is empty" in wrong["settings"]
        assert "LOGICAL_ENVIRONMENT is empty" in wrong["settings"]
        assert await probe.wrong("/healthz") == {}


async def test_a_token_that_github_refuses_makes_it_unready_until_it_takes_one(
    tmp_path: Path,
) -> None:
    probe = Probe()
    async with made(tmp_path) as world:
        world.run("web")
        ours, world.github.tokens = world.github.tokens, {"another"}
        often = {"tracker.pacing.FIRST_PAUSE_SECONDS": 0.5}
        port = str(probe.port)
        async with world.program(constants=often, METRICS_PORT=port) as running:
            await probe.until("/readyz", lambda wrong: wrong.keys() == {"token"})
            assert "HTTP 401 Bad credentials" in (await probe.wrong("/readyz"))["token"]
            assert await probe.wrong("/healthz") == {}
            world.github.tokens = ours
            await probe.until("/readyz", lambda wrong: not wrong)
            await running.until(lambda: any(line.outcome == "OK" for line in running.lines))
        assert_secret(running)


async def test_github_that_is_away_makes_it_neither(tmp_path: Path) -> None:
    probe = Probe()
    async with made(tmp_path) as world:
        world.run("web")
        world.github.script(answers(503))
        async with program(world, probe) as running:
            await running.until(lambda: bool(running.lines))
            await probe.until("/readyz", lambda wrong: not wrong)
            assert await probe.wrong("/healthz") == {}
            told = await probe.metrics()
            assert told["posts_total failed"] >= 1
            assert told["names pending"] == 1
            assert told["oldest_pending_seconds"] > 0


async def test_a_ledger_that_can_not_be_written_makes_it_unready(tmp_path: Path) -> None:
    probe = Probe()
    async with made(tmp_path) as world, program(world, probe) as running:
        await running.until_said(IN_STEP)
        with closing(sqlite3.connect(world.ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            world.run("web")
            await probe.until("/readyz", lambda wrong: wrong.keys() == {"ledger"})
            assert await probe.wrong("/healthz") == {}
            assert (await probe.metrics())["ledger_writes_total failed"] >= 1
        await world.agreed()
        await probe.until("/readyz", lambda wrong: not wrong)


async def test_a_ledger_whose_place_another_took_makes_it_unwell_until_it_is_back(
    tmp_path: Path,
) -> None:
    """A start takes what stands there; a process that goes on could only overwrite it."""
    probe = Probe()
    async with made(tmp_path) as world, program(world, probe) as running:
        await running.until_said(IN_STEP)
        world.ledger.rename(world.folder / "elsewhere.db")
        world.ledger.write_bytes(b"a backup")
        world.run("web")
        await probe.until("/readyz", lambda wrong: wrong.keys() == {"ledger"})
        wrong = await probe.wrong("/healthz")
        assert wrong.keys() == {"ledger"}
        assert "another file was put in its place" in wrong["ledger"]
        assert world.ledger.read_bytes() == b"a backup"
        (world.folder / "elsewhere.db").replace(world.ledger)
        await world.agreed()
        await probe.until("/readyz", lambda wrong: not wrong)
        assert await probe.wrong("/healthz") == {}


async def test_a_port_that_is_taken_ends_it_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with made(tmp_path) as world, world.program(METRICS_PORT=port) as running:
            assert await running.ended() == 2
            (line,) = [line for line in running.stderr if "METRICS_PORT" in line]
            assert "in use" in line
            assert "Traceback" not in running.said
            assert world.github.history == []
