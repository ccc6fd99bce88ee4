"""
What an absence costs: the tracker's own (`down`), and GitHub's good will (`spells`).

Both need controllers, so a real API server. *down*: twenty Deployments are deleted while no tracker
runs; SIGTERM three seconds into a rollout of all of them, which then ends by itself. *spells*: one
tracker, never restarted, and a rollout of 100 Deployments that meets each: the token is refused
(401), a limit without a time (429), nothing may be written (403), errors (500), resets, and the
first one for longer, so that it shows the probes.
"""

import asyncio
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from bench.grounds import Ground, Real, image
from bench.scenarios import Bench, Figures, sent
from tests.support.kubelet import digest_of
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.script import Behaviour, answers, drops

__all__ = ["down", "spells"]

DEPLOYMENTS: Final = 100
DELETED: Final = 20
INTO_THE_ROLLOUT_SECONDS: Final = 3.0
PATIENCE_SECONDS: Final = 180.0
PAUSE_SECONDS: Final = 60.0
"""What the first pause lasts when nobody says how long."""
UNDER_WAY_SECONDS: Final = 0.5
"""What was on its way already when the answer came is not counted, nor is the pause's end."""
NEEDS_CONTROLLERS: Final[Figures] = {"skipped": "needs KUBEBUILDER_ASSETS"}

SPELLS: Final[tuple[tuple[str, float, Behaviour], ...]] = (
    ("401", 40.0, answers(401)),
    ("429", 40.0, answers(429)),
    ("403", 40.0, answers(403)),
    ("500", 40.0, answers(500)),
    ("reset", 40.0, drops(applied=False)),
    ("401", 150.0, answers(401)),
)


async def down(bench: Bench) -> Figures:
    """Tell how soon that is true again which changed while no tracker ran."""
    async with bench.ground() as (on, folder):
        if not isinstance(on, Real):
            return NEEDS_CONTROLLERS
        await on.fill(DEPLOYMENTS, replicas=1)
        environ = {"LEDGER_PATH": str(folder / "ledger.db")}
        everyone = range(DEPLOYMENTS)
        async with bench.watch(on, folder, **environ) as observed:
            await _true(on, everyone, 1)
            await observed.program.stopped()
        posts = sent(on, 0)
        for index in range(DELETED):
            await on.scene.delete("deployments", f"app-{index}")
        left = range(DELETED, DEPLOYMENTS)
        await on.rolled_out(len(left), 1, replicas=1)
        began = time.monotonic()
        async with bench.watch(on, folder, **environ) as observed:
            await on.github.until(
                lambda: all(_state(on, each)[0] != "deployed" for each in range(DELETED)),
                within=PATIENCE_SECONDS,
                why="the decommissions",
            )
            figures: Figures = {
                "20_deleted_all_decommissioned_after_seconds": time.monotonic() - began,
                "records_posted_beside_these": float(sent(on, 0) - posts - DELETED),
            }
            await _roll_out(on, left, 2)
            await asyncio.sleep(INTO_THE_ROLLOUT_SECONDS)
            told = time.monotonic()
            figures["exit_code"] = float(await observed.program.stopped())
            figures["stopped_after_seconds"] = time.monotonic() - told
        await on.rolled_out(len(left), 2, replicas=1)
        async with bench.watch(on, folder, **environ) as observed:
            await _true(on, left, 2)
            figures["rolled_out_all_true_after_seconds"] = time.monotonic() - observed.began
            await observed.program.stopped()
        return figures


async def spells(bench: Bench) -> Figures:
    """Tell what bad spells of GitHub cost in requests and in time."""
    figures: Figures = {}
    async with bench.ground() as (on, folder):
        if not isinstance(on, Real):
            return NEEDS_CONTROLLERS
        await on.fill(DEPLOYMENTS, replicas=1)
        everyone, github = range(DEPLOYMENTS), on.github
        async with bench.watch(on, folder, LEDGER_PATH=str(folder / "ledger.db")) as observed:
            await _true(on, everyone, 1)
            for version, (spell, lasts, behaviour) in enumerate(SPELLS, start=2):
                before = len(github.posts())
                script = github.script(behaviour)
                ends = time.monotonic() + lasts
                await _roll_out(on, everyone, version)
                await asyncio.sleep(ends - time.monotonic())
                script.stop()
                during = len(github.posts()) - before
                ended = time.monotonic()
                await _true(on, everyone, version)
                title = f"{spell}_for_{lasts:.0f}_s"
                figures[f"{title}_true_after_seconds"] = time.monotonic() - ended
                figures[f"{title}_requests_in_it"] = float(during)
                figures[f"{title}_requests_while_paused"] = _while_paused(github.posts()[before:])
                figures[f"{title}_requests_after"] = float(len(github.posts()) - before - during)
            await observed.program.stopped()
    return figures


async def _roll_out(on: Ground, indices: Sequence[int], version: int) -> None:
    for index in indices:
        await on.roll_out(index, version)


async def _true(on: Real, indices: Sequence[int], version: int) -> None:
    """Wait until GitHub holds a version of these."""
    wanted = {index: ("deployed", digest_of(image(index, version))) for index in indices}
    await on.github.until(
        lambda: all(_state(on, index) == state for index, state in wanted.items()),
        within=PATIENCE_SECONDS,
        why="GitHub to be true",
    )


def _state(on: Real, index: int) -> tuple[str, str]:
    return on.github.state(on.scene.name(f"app-{index}")) or ("", "")


def _stops(exchange: Exchange) -> bool:
    """Tell whether an answer stopped all sending; of a batch's 403 one record alone decides."""
    if exchange.status == HTTPStatus.FORBIDDEN:
        return not exchange.is_batch
    return exchange.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}


def _while_paused(posts: Sequence[Exchange]) -> float | None:
    """Return how many posts went in the minute after one was told to stop."""
    told = [each.answered for each in posts if _stops(each) and each.answered is not None]
    if not told:
        return None
    early, late = UNDER_WAY_SECONDS, PAUSE_SECONDS - UNDER_WAY_SECONDS
    return float(
        sum(1 for each in posts if any(at + early < each.arrived < at + late for at in told))
    )
