"""
The kill loop: the real process under churn, killed again and again, and the checker at the end.

    python -m tests.torture --rounds 500 --seed 7

An *episode* is a cluster in churn, a GitHub of some tens of milliseconds, one ledger, and a number
of rounds. Records go in batches or one by one, and workloads may be read or not (`WAYS`). In each
round the tracker is started and killed: at a point inside of it (see `tests.support.crashing`),
while GitHub holds its request, or at a random time. The next round begins at once, on the same
ledger; the churn goes on all the time, so that pods come and go while no tracker looks. At the end
everything is healed: GitHub must come to hold what the cluster runs, a stop and a start must post
nothing, the ledger must claim only what GitHub said, and the whole history is put before the
checker.

What is done follows from the seed; how far the tracker is when a kill hits it follows from the
machine, too. A failed episode prints its seed: `--rounds` and `--seed` with that number play it
again, with the same kills.
"""

import argparse
import asyncio
import itertools
import logging
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.support.checker import (
    Circumstances,
    Crash,
    Environment,
    Promise,
    Violation,
    check,
    report,
)
from tests.support.churn import Churn, RecordedCluster
from tests.support.claims import claims, under_way
from tests.support.crashing import Point, crashing_run
from tests.support.program import Program
from tracker.sandbox.contract import Deployment
from tracker.sandbox.exchanges import Exchange, Outcome
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import Behaviour, Script, delays, hangs, lands_late
from tracker.sandbox.truth import compare

__all__ = ["Tally", "torture"]

ROUNDS_OF_AN_EPISODE: Final = 8
SIDE_BY_SIDE: Final = 2
LATENCIES: Final = (0.01, 0.03, 0.06)
START_SECONDS: Final = 60.0
ROUND_SECONDS: Final = 1.5
"""So long after its start a round ends by a kill all the same: its point was not come by."""
HALF: Final = 0.5
CONVERGED_SECONDS: Final = 90.0
"""Until a wait counts as failed; a start on a busy machine takes many of them."""
ENVIRONMENT: Final = Environment("acme", "torture", "", "simulated")
CONSTANTS: Final = {
    "tracker.entries.SETTLE_SECONDS": 1.5,
    "tracker.delivery.GATHER_SECONDS": 0.05,
    "tracker.reconcile.CALM_SECONDS": 0.2,
    "tracker.reconcile.PATIENCE_SECONDS": 0.2,
    "tracker.reconcile.LAG_SECONDS": 0.5,
}


WAYS: Final = ((True, False), (False, False), (True, True), (False, True))
"""Whether records go in batches, and whether workloads may be read."""


class Held(StrEnum):
    """The simulated GitHub holds the request, whatever names it has; then the process is killed."""

    LOST = "bytes-lost"
    """It was never applied."""
    TAKEN = "bytes-taken"
    """It was applied; no answer came."""
    LATE = "bytes-late"
    """It is applied when the next start has had the next post of that name acknowledged."""


class Chance(StrEnum):
    """A kill without an aim."""

    RANDOM = "at-random"


Kill = Point | Held | Chance
KILLS: Final[tuple[Kill, ...]] = (*Point, *Held, *Chance)
HOLDING: Final[dict[Held, Callable[[], Behaviour]]] = {
    Held.LOST: hangs,
    Held.TAKEN: lambda: hangs(applied=True),
    Held.LATE: lands_late,
}
MOST_PASSES: Final[dict[Kill, int]] = {
    Point.EVENT: 30,
    Point.UNWRITTEN: 3,
    Point.INTENT: 3,
    Point.ANSWER: 3,
    Point.LIST: 1,
    Point.ABSENCE: 2,
    Point.BEGIN: 6,
    Point.BEFORE_COMMIT: 6,
    Point.AFTER_COMMIT: 6,
    Point.MIGRATING: 1,
    Held.LOST: 3,
    Held.TAKEN: 3,
    Held.LATE: 3,
}
"""How often a round may come by its point before it dies there, at most."""


@dataclass(kw_only=True)
class Tally:
    """What was done and found; adds up over episodes."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """By point; a round that never came by its point counts as `missed`."""
    steps: int = 0
    posts: int = 0
    repeated: int = 0
    """Posts that said what the post of the name before had said."""
    unanswered: int = 0
    """Posts whose answer never came, or could not be read."""
    late: int = 0
    """Requests that were applied after the next post of their name was acknowledged."""
    names: int = 0
    violations: list[Violation] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add what another one counted."""
        self.rounds += other.rounds
        self.kills += other.kills
        self.steps += other.steps
        self.posts += other.posts
        self.repeated += other.repeated
        self.unanswered += other.unanswered
        self.late += other.late
        self.names += other.names
        self.violations += other.violations
        self.reports += other.reports

    def __str__(self) -> str:
        kills = ", ".join(f"{point} {count}" for point, count in sorted(self.kills.items()))
        return (
            f"{self.rounds} rounds, {self.steps} changes of {self.names} names, {self.posts} posts"
            f" ({self.unanswered} without an answer, {self.repeated} repeated,"
            f" {self.late} landed late), {len(self.violations)} violations\nkills: {kills}"
        )


async def torture(
    *,
    rounds: int,
    seed: int,
    folder: Path,
    side_by_side: int = SIDE_BY_SIDE,
    tell: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Play so many rounds, in episodes of which some run side by side; return what was found."""
    total = Tally()
    turns = asyncio.Semaphore(side_by_side)
    sizes = [ROUNDS_OF_AN_EPISODE] * (rounds // ROUNDS_OF_AN_EPISODE)
    sizes += [rounds % ROUNDS_OF_AN_EPISODE] if rounds % ROUNDS_OF_AN_EPISODE else []

    async def play(number: int, size: int) -> None:
        async with turns:
            own = folder / f"episode-{seed + number}"
            own.mkdir()
            try:
                tally = await Episode(seed=seed + number, folder=own).play(size)
            except Exception as error:
                error.add_note(f"in the episode of seed {seed + number}")
                raise
            total.add(tally)
            verdict = "clean" if not tally.violations else "NOT CLEAN"
            tell(f"seed {seed + number}: {size} rounds, {tally.posts} posts: {verdict}")
            for text in tally.reports:
                tell(text)  # at once: a long run may be cut off

    async with asyncio.TaskGroup() as group:
        for number, size in enumerate(sizes):
            group.create_task(play(number, size), name=f"episode-{seed + number}")
    return total


class Episode:
    """One cluster, one GitHub, one ledger, and the trackers that die on them."""

    def __init__(self, *, seed: int, folder: Path) -> None:
        self._seed = seed
        self._folder = folder
        self._ledger = folder / "ledger.db"
        # A play of chance, nothing secret; a part of its own for each subject.
        self._chance = random.Random(f"kills {seed}")  # noqa: S311
        # What the tracker is told differs by episode: each way meets each kill in a long run.
        self._batches, self._workloads = WAYS[seed % len(WAYS)]
        self._next_schema = False
        self._crashes: list[Crash] = []
        self._tally = Tally()

    async def play(self, rounds: int) -> Tally:
        """Play the rounds, heal, and judge."""
        cluster = RecordedCluster(token="simulated", workloads=self._workloads)  # noqa: S106 - opens only this one
        # Each point once before one comes again; few rounds must do for most of them, too.
        kills = itertools.cycle(self._chance.sample(KILLS, len(KILLS)))
        async with (
            cluster as self._cluster,
            SimulatedGitHub() as self._github,
            asyncio.TaskGroup() as self._group,
        ):
            async with Churn(self._cluster, seed=self._seed) as churn:
                for kill in itertools.islice(kills, rounds):
                    await self._round(kill)
            self._tally.steps = churn.steps
            await self._heal()
        return self._tally

    async def _round(self, kill: Kill) -> None:
        """Start the tracker and kill it."""
        github, chance = self._github, self._chance
        count = chance.randint(1, MOST_PASSES.get(kill, 1))
        held = None
        if isinstance(kill, Held):
            held = github.script(HOLDING[kill](), match=the(count), times=1)
        latency = github.script(delays(chance.choice(LATENCIES)))
        if kill is Point.MIGRATING:
            self._next_schema = True  # and so it stays: there is no way back
        point = (kill, count) if isinstance(kill, Point) else None
        async with self._program(point) as program:
            ended = asyncio.create_task(program.ended(within=2 * START_SECONDS), name="ended")
            if not isinstance(kill, Chance) or chance.random() < HALF:
                with suppress(TimeoutError):  # it may end before
                    await program.until_said("in step with the cluster", within=START_SECONDS)
            limit = ROUND_SECONDS if not isinstance(kill, Chance) else chance.random()
            if held is None:
                await asyncio.wait({ended}, timeout=limit)
            else:
                with suppress(TimeoutError):
                    await github.until(lambda: bool(held.used), within=limit)
            reached = isinstance(kill, Chance) or ended.done() or (held is not None and held.used)
            program.kill()
            code = await ended
            assert code == -signal.SIGKILL, f"it ended by itself: {code}"
        crash = Crash(
            at=asyncio.get_running_loop().time(),
            in_doubt=await asyncio.to_thread(under_way, self._ledger),
        )
        self._crashes.append(crash)
        latency.stop()
        if held is not None and held.used:
            if kill is Held.LATE:
                self._group.create_task(self._land(held))
            else:
                held.release()
        self._tally.rounds += 1
        self._tally.kills[str(kill) if reached else "missed"] += 1

    async def _land(self, held: Script) -> None:
        """
        Let a request land as soon as the next one of a name of it is acknowledged, or all heals.

        That next one is a newer state, or the same one again. A copy that lands only after a
        newer state has followed its twin is what docs/guarantees.md says is not promised.
        """
        (exchange,) = held.used

        def follows(name: str, post: Exchange) -> bool:
            return post.seq > exchange.seq and post.outcomes().get(name) is Outcome.ACKNOWLEDGED

        def may_land() -> bool:
            return exchange.applied is not None or any(
                any(follows(name, post) for post in self._github.posts(name))
                for name in exchange.names
            )

        why = f"the next post of {exchange.names[:3]}"
        await self._github.until(may_land, within=600, why=why)
        if exchange.applied is None:
            self._tally.late += 1
            held.release()

    async def _heal(self) -> None:
        """Let everything come right, stop and start in order, and look at what there is."""
        github = self._github
        github.heal()
        async with self._program() as program:
            why = f"what the cluster runs (seed {self._seed})"
            try:
                await github.until(self._agrees, within=CONVERGED_SECONDS, why=why)
            except TimeoutError as error:
                self._judge(f"{error}\n{program.story()}")
                return
            code = await program.stopped()
            assert code == 0, f"it did not stop in order: {code}"
        # GitHub may agree before the tracker knows it: what is in doubt the next start settles.
        _, doubtful = claims(self._ledger)
        posts = len(github.history)
        async with self._program() as program:
            await program.until_said("reconciled")
            why = f"posts of {doubtful} (seed {self._seed})"
            await github.until(
                lambda: doubtful <= self._told_since(posts), within=CONVERGED_SECONDS, why=why
            )
            code = await program.stopped()
            assert code == 0, f"it did not stop in order: {code}"
        needless = self._told_since(posts) - doubtful
        assert not needless, f"a restart without a change posted {needless}"
        claimed, doubtful = claims(self._ledger)
        assert not doubtful, f"in doubt after an orderly run: {doubtful}"
        self._judge("", claimed)

    def _judge(self, story: str, claimed: dict[str, tuple[str, str]] | None = None) -> None:
        github, log = self._github, self._cluster.log
        circumstances = Circumstances(
            environment=ENVIRONMENT,
            crashes=tuple(self._crashes),
            claimed=claimed or {},
            ended=asyncio.get_running_loop().time(),
        )
        found = [
            each
            for each in check(github.history, github.table, log, circumstances)
            if not (each.promise is Promise.LAST_DIGEST and self._may_be_last(each.deployment_name))
        ]
        tally = self._tally
        tally.violations += found
        if found:
            title = f"seed {self._seed}, kills at {[round(each.at, 3) for each in self._crashes]}"
            tally.reports.append(f"{title}\n{report(found, github.history)}\n{story}")
        last: dict[str, Deployment] = {}
        for post in github.posts():
            tally.posts += 1
            for name, outcome in post.outcomes().items():
                tally.unanswered += outcome is Outcome.OPEN
                told = told_of(post, name)
                tally.repeated += last.get(name) == told
                last[name] = told
        tally.names += len(last)

    def _told_since(self, posts: int) -> set[str]:
        return {name for post in self._github.history[posts:] for name in post.names}

    def _may_be_last(self, name: str) -> bool:
        """
        Tell whether each decommission named a digest that was the last one for all that was known.

        An answer that a kill swallowed leaves what it was about in doubt: the digest that was
        acknowledged before it is the last one of which GitHub surely knows. And a kill may have
        come between an intent and its bytes: to the next start that digest was sent, too.
        """
        acknowledged: set[str] = set()
        sent = ""
        since = float("-inf")
        for post in self._github.posts(name):
            told = told_of(post, name)
            intended = self._ran(name, since, post.arrived)
            if told.status == "decommissioned" and told.digest not in {
                *acknowledged,
                *intended,
                sent,
            }:
                return False
            sent = told.digest
            since = post.arrived
            if post.outcomes()[name] is Outcome.ACKNOWLEDGED:
                answered = post.answered or 0.0
                kill = next((kill for kill in self._crashes if kill.at >= answered), None)
                if kill is None or name not in kill.in_doubt:
                    acknowledged.clear()
                acknowledged.add(sent)
        return True

    def _ran(self, name: str, since: float, until: float) -> set[str]:
        """Return the digests that stood under a name in that time, before its last kill."""
        kills = [kill.at for kill in self._crashes if since < kill.at < until]
        if not kills:
            return set()
        spans = self._cluster.log.line(name)
        ends = [span.start for span in spans[1:]] + [until]
        return {
            span.verdict.image.digest
            for span, end in zip(spans, ends, strict=True)
            if span.start < max(kills)
            and end > since
            and span.verdict is not None
            and span.verdict.image is not None
        }

    def _agrees(self) -> bool:
        log = self._cluster.log
        return all(line.agrees for line in compare(log.truth(), self._github.table))

    def _program(self, kill: tuple[Point, int] | None = None) -> Program:
        kubeconfig = self._cluster.write_kubeconfig(self._folder / "kubeconfig")
        command = crashing_run(
            "-kubeconfig",
            str(kubeconfig),
            kill=kill,
            constants=CONSTANTS,
            next_schema=self._next_schema,
        )
        environ = {
            "ORG": ENVIRONMENT.org,
            "BASE_URL": self._github.url,
            "LOGICAL_ENVIRONMENT": ENVIRONMENT.logical,
            "CLUSTER": ENVIRONMENT.cluster,
            "API_TOKEN": self._github.token,
            "LEDGER_PATH": str(self._ledger),
            "DECOMMISSION_DELAY": "150ms",
            "GITHUB_RATE": "100",
            "GITHUB_BURST": "100",
            "DRAIN_TIMEOUT": "15s",
            "BULK_CLUSTER_SYNC": str(self._batches).lower(),
            "WORKLOADS": str(self._workloads).lower(),
            "LOG_LEVEL": "debug",
        }
        return Program(command, environ=environ, folder=self._folder)


def told_of(post: Exchange, name: str) -> Deployment:
    """Return what a valid request says of a name."""
    return next(told for told in post.deployments if told.deployment_name == name)


def the(count: int) -> Callable[[Exchange], bool]:
    """Return what holds for the how manieth request it is asked about, and for none before."""
    left = count

    def is_due(_exchange: Exchange) -> bool:
        nonlocal left
        left -= 1
        return left <= 0

    return is_due


def main(argv: Sequence[str]) -> int:
    """Run what the arguments say, print what was found; return the exit code."""
    parser = argparse.ArgumentParser(description="Kill the tracker again and again, and look.")
    parser.add_argument("--rounds", type=int, default=500, help="how many kills (500)")
    parser.add_argument("--seed", type=int, default=1, help="what chance starts from (1)")
    parser.add_argument("--side-by-side", type=int, default=SIDE_BY_SIDE, help="episodes at once")
    told = parser.parse_args(argv)
    # The simulated servers' own: most of their clients die in the middle of something.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    began = time.monotonic()
    with TemporaryDirectory(prefix="torture-") as folder:
        tally = asyncio.run(
            torture(
                rounds=told.rounds,
                seed=told.seed,
                folder=Path(folder),
                side_by_side=told.side_by_side,
                tell=say,
            )
        )
    say(f"{tally}\n{time.monotonic() - began:.0f} s")
    return 1 if tally.violations else 0


def say(text: str) -> None:
    """Print a line at once: a long run is watched."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
