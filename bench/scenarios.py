"""
What is measured: each scenario is one function from a bench to its figures.

A figure is a number with its unit in the name, or a text. `TARGETS` holds what some of them should
be at most; they are for two cores and a real API server.
"""

import asyncio
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from bench.grounds import LIFE_EVENTS, REPLICAS, Ground, ground, image
from bench.observed import Observed, Series
from tests.support.kubelet import digest_of
from tests.support.program import ROOT
from tracker.sandbox.script import delays

__all__ = ["DEFAULT", "SCENARIOS", "TARGETS", "Bench", "Figures", "sent"]

PATIENCE_SECONDS: Final = 900.0
LOOK_SECONDS: Final = 5.0
"""How often it is looked whether a program that has not recorded all has ended."""
SETTLE_SECONDS: Final = 5.0
"""After all is done, until memory counts as settled."""
QUIET_SECONDS: Final = 1.2
"""More than the second in which a tracker may gather: a cluster that is idle."""
ROUNDS: Final = 60
STEPS_A_SECOND: Final = 10
QUIET_SHARE: Final = 0.95
"""Of the events of a real cluster: probes, conditions. The rest is pods that come and go."""
CHURNING: Final = 200
QUEUED: Final = 5000
SLOW_SECONDS: Final = 12.0
"""A batch takes: more than half of what a drain may, so that it can't send all."""
VERSION_RUNS: Final = 7

Figures = dict[str, float | str | None]


@dataclass(kw_only=True)
class Bench:
    """Who is measured and on what; `series` fills with what goes into plots."""

    command: Callable[[Path], list[str]]
    """The command line, given a kubeconfig."""
    ours: bool
    simulated: bool = False
    series: dict[str, Series] = field(default_factory=dict)

    @asynccontextmanager
    async def ground(self, *, simulated: bool = False) -> AsyncIterator[tuple[Ground, Path]]:
        """Yield a cluster and a folder."""
        with tempfile.TemporaryDirectory(prefix="tracker-bench-") as name:
            folder = Path(name)
            async with ground(folder, simulated=self.simulated or simulated) as made:
                yield made, folder

    def watch(self, on: Ground, folder: Path, **environ: str) -> Observed:
        """Return the program on a cluster, to be started."""
        command = self.command(on.kubeconfig)
        return Observed(command, environ={**on.environ(), **environ}, folder=folder)


Scenario = Callable[[Bench], Awaitable[Figures]]


async def start(bench: Bench, *, pods: int) -> Figures:
    """From the start of the process until GitHub holds every record of a cluster that runs."""
    names = pods // REPLICAS
    async with bench.ground() as (on, folder):
        await on.fill(names)
        async with bench.watch(on, folder) as observed:
            await _recorded(on, names, observed)
            seconds = time.monotonic() - observed.began
            figures: Figures = {"complete_seconds": seconds, "cpu_seconds": observed.cpu_seconds()}
            await asyncio.sleep(SETTLE_SECONDS)
            figures |= _cost(on, observed) | _posts(on, names)
            figures["exact"] = _exact(on)
            await observed.program.stopped()
        bench.series["rss_mib"] = observed.samples.rss_mib
        return figures


async def idle(bench: Bench, *, pods: int = 200, seconds: float = 60.0) -> Figures:
    """Nothing happens: what the tracker uses all the same, as Kubernetes counts CPU."""
    names = pods // REPLICAS
    async with bench.ground() as (on, folder):
        await on.fill(names)
        async with bench.watch(on, folder) as observed:
            await _recorded(on, names, observed)
            await asyncio.sleep(SETTLE_SECONDS)
            used, asked, began = observed.cpu_seconds(), on.requests(), time.monotonic()
            await asyncio.sleep(seconds)
            took = time.monotonic() - began
            figures: Figures = {
                "idle_millicores": (observed.cpu_seconds() - used) / took * 1000,
                "idle_api_requests": float(on.requests() - asked),
                **_cost(on, observed),
            }
            await observed.program.stopped()
        return figures


async def latency(bench: Bench) -> Figures:
    """On an idle cluster: from a pod's change to Running until its post arrives at GitHub."""
    names = 100
    async with bench.ground() as (on, folder):
        await on.fill(names)
        async with bench.watch(on, folder) as observed:
            await _recorded(on, names, observed)
            found: list[float] = []
            for number in range(ROUNDS):
                await asyncio.sleep(QUIET_SECONDS)
                before = len(on.github.history)
                changed = await on.run_one(number)
                await on.github.until(
                    lambda before=before: len(on.github.history) > before,  # type: ignore[misc] # mypy: the default
                    within=PATIENCE_SECONDS,
                    why="the post",
                )
                arrived = on.github.history[before].arrived
                bench.series.setdefault("latency_ms", []).append(
                    (changed - observed.began, max(arrived - changed, 0.0) * 1000)
                )
                found.append(max(arrived - changed, 0.0) * 1000)
            figures = _latencies(found) | _cost(on, observed)
            await observed.program.stopped()
        return figures


async def rollout(bench: Bench, *, deployments: int) -> Figures:
    """All Deployments get another image at once: until all is recorded, and what that cost."""
    async with bench.ground() as (on, folder):
        await on.fill(deployments)
        async with bench.watch(on, folder) as observed:
            await _recorded(on, deployments, observed)
            await asyncio.sleep(SETTLE_SECONDS)
            posts, asked, used = len(on.github.posts()), on.requests(), observed.cpu_seconds()
            began = time.monotonic()
            await _all(on, deployments, version=2)
            ended = await on.rolled_out(deployments, 2)
            wanted = {
                f"/app-{index}/app": digest_of(image(index, 2)) for index in range(deployments)
            }
            await on.github.until(
                lambda: _held(on) == wanted, within=PATIENCE_SECONDS, why="the new images"
            )
            last = max(post.arrived for post in on.github.posts())
            figures: Figures = {
                "rollout_seconds": ended - began,
                "true_after_the_last_pod_seconds": max(last - ended, 0.0),
                "github_requests": float(len(on.github.posts()) - posts),
                "api_requests": float(on.requests() - asked),
                "rollout_cpu_seconds": observed.cpu_seconds() - used,
                "posts_per_record": sent(on, posts) / deployments,
                **_cost(on, observed),
            }
            await asyncio.sleep(SETTLE_SECONDS)
            figures["exact"] = _exact(on)
            await observed.program.stopped()
        bench.series |= _over_time(observed)
        return figures


async def churn(bench: Bench, *, rate: int, seconds: int) -> Figures:
    """So many events a second for so long; the load that was reached is one of the figures."""
    async with bench.ground() as (on, folder):
        await on.fill(CHURNING)
        ledger = str(folder / "ledger.db")
        environ = {"LEDGER_PATH": ledger, "RECONCILE_INTERVAL": "30s"}
        async with bench.watch(on, folder, **environ) as observed:
            await _recorded(on, CHURNING, observed)
            used, posts = observed.cpu_seconds(), sent(on, 0)
            load = _Load(on, rate=rate)
            took = await load.run(seconds)
            backlog = observed.backlog()
            used = observed.cpu_seconds() - used
            ended = time.monotonic()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not on.exact():  # noqa: ASYNC110 - a poll: the judgement is heavy
                    await asyncio.sleep(0.5)
            half = len(observed.samples.rss_mib) // 2
            rss = [value for _, value in observed.samples.rss_mib]
            figures: Figures = {
                "events_a_second": load.events / took,
                "load_seconds": took,
                "exact_after_seconds": time.monotonic() - ended,
                "backlog_names_max": backlog,
                "loop_lag_ms_max": observed.lag_ms(),
                "rss_first_half_mib": statistics.median(rss[:half]),
                "rss_second_half_mib": statistics.median(rss[half:]),
                "cpu_share_of_a_core": used / took,
                "posts_per_record": (sent(on, 0) - posts) / max(load.rollouts, 1),
                **_latencies(_delays(on, load.changed)),
                **_cost(on, observed),
            }
            await observed.program.stopped()
        bench.series |= _over_time(observed)
        bench.series["latency_ms"] = [
            (arrived - observed.began, delay) for arrived, delay in _arrivals(on, load.changed)
        ]
        return figures


async def stop(bench: Bench) -> Figures:
    """SIGTERM with 5,000 names queued and a slow GitHub; then the next start."""
    async with bench.ground() as (on, folder):
        await on.fill(QUEUED, replicas=1)
        environ = {"LEDGER_PATH": str(folder / "ledger.db")}
        script = on.github.script(delays(SLOW_SECONDS))
        async with bench.watch(on, folder, **environ) as observed:
            await on.github.until(
                lambda: bool(on.github.history), within=PATIENCE_SECONDS, why="the first post"
            )
            told = time.monotonic()
            code = await observed.program.stopped(within=PATIENCE_SECONDS)
            stopped = time.monotonic() - told
        left = QUEUED - len(on.github.table)
        script.stop()
        async with bench.watch(on, folder, **environ) as observed:
            await _recorded(on, QUEUED, observed)
            seconds = time.monotonic() - observed.began
            figures: Figures = {
                "stopped_after_seconds": stopped,
                "exit_code": float(code),
                "left_for_the_next_start": float(left),
                "complete_seconds": seconds,
                **_cost(on, observed),
                **_posts(on, QUEUED),
                "exact": _exact(on),
            }
            await observed.program.stopped()
        return figures


async def version(bench: Bench) -> Figures:
    """How long it takes to say the version."""
    if not bench.ours:
        return {"version_seconds": None}
    command = [*bench.command(Path("-"))[:3], "version"]
    took = []
    for _ in range(VERSION_RUNS):
        began = time.monotonic()
        run = partial(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)
        await asyncio.to_thread(run)
        took.append(time.monotonic() - began)
    return {"version_seconds": statistics.median(took)}


async def growth(bench: Bench) -> Figures:
    """Tell what a pod and a name cost, on the simulated API server: 1,000 to 50,000 pods."""
    figures: Figures = {}
    for pods, replicas in ((1000, 2), (10000, 2), (10000, 10), (50000, 2), (50000, 10)):
        names = pods // replicas
        async with bench.ground(simulated=True) as (on, folder):
            await on.fill(names, replicas)
            async with bench.watch(on, folder) as observed:
                await _recorded(on, names, observed)
                title = f"{pods}_pods_{names}_names"
                figures[f"{title}_complete_seconds"] = time.monotonic() - observed.began
                figures[f"{title}_cpu_seconds"] = observed.cpu_seconds()
                await asyncio.sleep(SETTLE_SECONDS)
                figures[f"{title}_rss_mib"] = observed.rss_mib()
                figures[f"{title}_rss_peak_mib"] = observed.peak_mib()
                await observed.program.stopped()
    return figures


class _Load:
    """Events as they come: most change nothing that is recorded, some are pods that come and go."""

    def __init__(self, on: Ground, *, rate: int) -> None:
        self.events = 0
        self.rollouts = 0
        self.changed: dict[str, float] = {}
        """When a digest was asked for."""
        self._on = on
        self._rate = rate
        self._chance = random.Random(3)  # noqa: S311 - which one rolls out, nothing secret
        self._versions = dict.fromkeys(range(CHURNING), 1)
        self._busy: set[int] = set()

    async def run(self, seconds: float) -> float:
        """Make them; return how many seconds that took."""
        began = time.monotonic()
        quiet = round(self._rate * QUIET_SHARE / STEPS_A_SECOND)
        lives = self._rate * (1 - QUIET_SHARE) / LIFE_EVENTS
        step = 0
        async with asyncio.TaskGroup() as group:
            while (now := time.monotonic()) < began + seconds:
                await self._on.beat(quiet)
                self.events += quiet
                while self.rollouts * REPLICAS < lives * (now - began):
                    idle = self._versions.keys() - self._busy
                    if not idle:
                        break
                    index = self._chance.choice(sorted(idle))
                    self._busy.add(index)
                    self.rollouts += 1
                    group.create_task(self._roll_out(index))
                step += 1
                # Behind its time it goes on at once: the rate is what can be reached.
                await asyncio.sleep(max(0.0, began + step / STEPS_A_SECOND - time.monotonic()))
        return time.monotonic() - began

    async def _roll_out(self, index: int) -> None:
        self._versions[index] += 1
        number = self._versions[index]
        self.changed[digest_of(image(index, number))] = time.monotonic()
        await self._on.roll_out(index, number)
        self.events += LIFE_EVENTS * REPLICAS
        self._busy.discard(index)


async def _all(on: Ground, deployments: int, *, version: int) -> None:
    gate = asyncio.Semaphore(100)

    async def one(index: int) -> None:
        async with gate:
            await on.roll_out(index, version)

    await asyncio.gather(*(one(index) for index in range(deployments)))


async def _recorded(on: Ground, names: int, observed: Observed) -> None:
    """Wait until GitHub holds so many records; no longer than the program lives."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        with suppress(TimeoutError):
            await on.github.until(
                lambda: len(on.github.table) >= names, within=LOOK_SECONDS, why="all records"
            )
            return
        if not observed.program.running:
            code = await observed.program.ended()
            message = f"it ended with {code}: {observed.program.stderr[-1:]}"
            raise TimeoutError(message)
        if time.monotonic() > ends:
            message = f"{len(on.github.table)} of {names} records"
            raise TimeoutError(message)


def _held(on: Ground) -> dict[str, str]:
    """Return the digest that GitHub holds as deployed, by name without its namespace."""
    return {name[name.index("/") :]: digest for name, digest in on.github.deployed().items()}


def sent(on: Ground, since: int) -> int:
    """Return how many records were posted since so many posts."""
    return sum(len(post.names) for post in on.github.posts()[since:])


def _arrivals(on: Ground, changed: Mapping[str, float]) -> list[tuple[float, float]]:
    """Return when the first post of each digest arrived, and how many ms after its change."""
    waiting = dict(changed)
    return [
        (post.arrived, (post.arrived - since) * 1000)
        for post in on.github.posts()
        for deployment in post.deployments
        if (since := waiting.pop(deployment.digest, None)) is not None
    ]


def _delays(on: Ground, changed: Mapping[str, float]) -> list[float]:
    return [delay for _, delay in _arrivals(on, changed)]


def _latencies(found: list[float]) -> Figures:
    if len(found) < 2:  # noqa: PLR2004 - of fewer there are no quantiles
        return {"latency_ms_median": None, "latency_ms_p99": None}
    return {
        "latency_ms_median": statistics.median(found),
        "latency_ms_p99": statistics.quantiles(found, n=100, method="inclusive")[98],
    }


def _cost(on: Ground, observed: Observed) -> Figures:
    return {
        "rss_settled_mib": observed.rss_mib(),
        "rss_peak_mib": observed.peak_mib(),
        "cpu_seconds_all": observed.cpu_seconds(),
        "api_requests_all": float(on.requests()),
    }


def _posts(on: Ground, names: int) -> Figures:
    return {
        "github_requests": float(len(on.github.posts())),
        "posts_per_record": sent(on, 0) / names,
    }


def _exact(on: Ground) -> str:
    return "yes" if on.exact() else "NO"


def _over_time(observed: Observed) -> dict[str, Series]:
    return {"rss_mib": observed.samples.rss_mib, "backlog": observed.samples.backlog}


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "version": version,
    "start-200": partial(start, pods=200),
    "start-2000": partial(start, pods=2000),
    "start-10000": partial(start, pods=10000),
    "idle": idle,
    "latency": latency,
    "rollout-100": partial(rollout, deployments=100),
    "rollout-1000": partial(rollout, deployments=1000),
    "churn": partial(churn, rate=1000, seconds=120),
    "churn-burst": partial(churn, rate=2500, seconds=10),
    "churn-long": partial(churn, rate=200, seconds=600),
    "stop": stop,
    "growth": growth,
}
DEFAULT: Final = ("version", "start-200", "start-2000", "latency", "rollout-100", "churn-burst")
"""What takes a few minutes; the rest is asked for by name."""

MIB_OF_MB: Final = 1e6 / 2**20
TARGETS: Final[Mapping[tuple[str, str], float]] = {
    ("version", "version_seconds"): 0.3,
    ("start-200", "complete_seconds"): 2.0,
    ("start-200", "rss_settled_mib"): 100 * MIB_OF_MB,
    ("start-10000", "complete_seconds"): 20.0,
    ("start-10000", "rss_settled_mib"): 140 * MIB_OF_MB,
    ("start-10000", "rss_peak_mib"): 180 * MIB_OF_MB,
    ("latency", "latency_ms_median"): 15.0,
    ("latency", "latency_ms_p99"): 100.0,
    ("rollout-100", "true_after_the_last_pod_seconds"): 3.0,
    ("rollout-100", "github_requests"): 15.0,
    ("rollout-100", "api_requests"): 0.0,
    ("churn", "loop_lag_ms_max"): 250.0,
    ("churn-burst", "loop_lag_ms_max"): 250.0,
    ("churn-long", "loop_lag_ms_max"): 250.0,
}
