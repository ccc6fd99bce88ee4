"""
The soak: one tracker, never restarted, under churn and faults for half an hour.

    make soak                              thirty minutes
    make soak ARGS='--minutes 3 --seed 7'

The cluster is never at rest (`tests.support.churn`), and most of the time either GitHub or the API
server has a bad spell of some seconds. What is asked is not whether the tracker survives that, the
other suites ask it, but whether anything grows: in the last third of the time its memory may be
2 MiB above that of the second third at most, and it may hold no more open files and no more tasks.
Then all heals, GitHub must come to hold what the cluster runs, and the whole history is put before
the checker.

What goes on follows from the seed, when it does from the machine.
"""

import argparse
import asyncio
import logging
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

from tests.support.checker import Circumstances, Environment, Promise, Violation, check, report
from tests.support.churn import Churn, RecordedCluster
from tests.support.claims import claims
from tests.support.program import Program
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.outages import (
    Drip,
    EndStream,
    Fault,
    Hang,
    Match,
    RawAnswer,
    Refuse,
    StreamError,
    Truncate,
)
from tracker.sandbox.script import (
    Behaviour,
    answers,
    delays,
    drips,
    drops,
    garbles,
    hangs,
    truncates,
)
from tracker.sandbox.truth import Comparison, compare

__all__ = ["Soaked", "soak"]

T = TypeVar("T")

ENVIRONMENT: Final = Environment("acme", "soak", "", "simulated")
WORKLOADS: Final = 60
START_SECONDS: Final = 60.0
CONVERGED_SECONDS: Final = 400.0
"""Two minutes for what may have landed late, a minute for a pause, and some patience."""
SPELL_SECONDS: Final = (1.0, 8.0)
REST_SECONDS: Final = (0.5, 6.0)
BLIND_SECONDS: Final = 25.0
"""
After a spell of the API server, until the watch is tried again at the latest.

Until then a new pod is not seen, and a decommission that a list confirmed, up to a minute before,
may leave all the same. It is made good when the watch is back; how often it happens is told.
"""
MORE_MIB: Final = 2.0
MORE_FILES: Final = 2
"""Connections come and go; a leak over hundreds of spells is more than these."""
MORE_TASKS: Final = 2
THIRDS: Final = 3

OF_GITHUB: Final[tuple[Callable[[], Behaviour], ...]] = (
    lambda: answers(500),
    lambda: answers(503),
    lambda: answers(429, headers={"Retry-After": "2"}),
    lambda: answers(403, headers={"Retry-After": "2"}),
    lambda: answers(302, headers={"Location": "https://example.com/"}),
    lambda: drops(applied=False),
    lambda: drops(applied=True),
    lambda: delays(1.0),
    lambda: drips(0.01),
    hangs,
    lambda: hangs(applied=True),
    garbles,
    truncates,
)
OF_THE_CLUSTER: Final[tuple[tuple[Fault, Match], ...]] = (
    (Refuse(code=503), Match()),
    (Refuse(code=403), Match(resource="pods")),
    (Refuse(code=410), Match(verb="watch")),
    (Refuse(code=429, retry_after=1), Match(resource="pods")),
    (RawAnswer(), Match(resource="pods")),
    (StreamError(code=410, message="too old resource version"), Match(verb="watch")),
    (StreamError(code=500), Match(verb="watch")),
    (StreamError(code=None), Match(verb="watch")),
    (Truncate(), Match(resource="pods")),
    (EndStream(), Match(verb="watch")),
    (Hang(), Match(verb="list")),
    (Drip(size=512, every_seconds=0.01), Match(verb="list")),
)


@dataclass(kw_only=True)
class Soaked:
    """What was seen: a sample a second of each, and what broke a promise."""

    rss_mib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    spells: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    posts: int = 0
    unseen: int = 0
    """Decommissions that left while the watch was away and a new pod was not seen."""
    away: list[tuple[float, float]] = field(default_factory=list)
    violations: str = ""

    def complaints(self) -> list[str]:
        """Return what grew, and what else is wrong."""
        found = [self.violations] if self.violations else []
        second, last = (statistics.median(part) for part in _thirds(self.rss_mib)[1:])
        if last > second + MORE_MIB:
            found.append(f"memory grew from {second:.1f} to {last:.1f} MiB")
        for title, samples, more in (
            ("open files", self.files, MORE_FILES),
            ("tasks", self.tasks, MORE_TASKS),
        ):
            # The least of a third: what is under way comes and goes, and what leaks never does.
            floors = [min(part) for part in _thirds(samples)[1:]]
            if floors[1] > floors[0] + more:
                found.append(f"{title} grew from {floors[0]} to {floors[1]}")
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.steps} changes, {self.posts} posts, {self.spells.total()} bad spells:",
            *(f"  {count:4} {title}" for title, count in sorted(self.spells.items())),
            f"{self.unseen} decommissions left while the watch was away from a new pod",
            "of each third:",
            f"  memory, median      {_told(map(statistics.median, _thirds(self.rss_mib)))} MiB",
            f"  open files, least   {_told(map(min, _thirds(self.files)))}",
            f"  open files, most    {_told(map(max, _thirds(self.files)))}",
            f"  tasks, least        {_told(map(min, _thirds(self.tasks)))}",
            f"  tasks, median       {_told(map(statistics.median, _thirds(self.tasks)))}",
        ]
        return "\n".join(lines)


async def soak(*, seconds: float, seed: int, folder: Path) -> Soaked:
    """Play for so long, heal, and judge."""
    seen = Soaked()
    chance = random.Random(f"spells {seed}")  # noqa: S311 - a play, nothing secret
    ledger, tasks = folder / "ledger.db", folder / "tasks"
    async with RecordedCluster() as cluster, SimulatedGitHub() as github:
        kubeconfig = cluster.write_kubeconfig(folder / "kubeconfig")
        command = [sys.executable, "-m", "tests.support.counted", str(tasks)]
        environ = {
            "ORG": ENVIRONMENT.org,
            "BASE_URL": github.url,
            "LOGICAL_ENVIRONMENT": ENVIRONMENT.logical,
            "CLUSTER": ENVIRONMENT.cluster,
            "API_TOKEN": github.token,
            "LEDGER_PATH": str(ledger),
            "RECONCILE_INTERVAL": "30s",
            "DECOMMISSION_DELAY": "1s",
        }
        command += ["-kubeconfig", str(kubeconfig)]
        async with Program(command, environ=environ, folder=folder) as program:
            churn = Churn(cluster, seed=seed, workloads=WORKLOADS, rest_seconds=1.0)
            async with churn:
                await program.until_said("in step with the cluster", within=START_SECONDS)
                ends = time.monotonic() + seconds
                sampling = asyncio.create_task(_sample(program, tasks, seen), name="samples")
                while time.monotonic() < ends:
                    await _spell(cluster, github, chance, seen)
                    await asyncio.sleep(chance.uniform(*REST_SECONDS))
                sampling.cancel()
                with suppress(asyncio.CancelledError):
                    await sampling
            github.heal()
            cluster.heal()
            try:
                await github.until(
                    lambda: not _differing(cluster, github),
                    within=CONVERGED_SECONDS,
                    why=f"what the cluster runs (seed {seed})",
                )
            except TimeoutError as error:
                error.add_note(f"differing: {_differing(cluster, github)}")
                raise
            code = await program.stopped()
            assert code == 0, f"it did not stop in order: {code}"
        circumstances = Circumstances(
            environment=ENVIRONMENT,
            claimed=claims(ledger)[0],
            ended=asyncio.get_running_loop().time(),
        )
        found = []
        for each in check(github.history, github.table, cluster.log, circumstances):
            if each.promise is Promise.NO_PHANTOM and _was_blind(each, github, seen.away):
                seen.unseen += 1
            else:
                found.append(each)
        seen.violations = report(found, github.history) if found else ""
        seen.steps, seen.posts = churn.steps, len(github.posts())
    return seen


def _differing(cluster: RecordedCluster, github: SimulatedGitHub) -> list[Comparison]:
    return [line for line in compare(cluster.log.truth(), github.table) if not line.agrees]


async def _spell(
    cluster: RecordedCluster, github: SimulatedGitHub, chance: random.Random, seen: Soaked
) -> None:
    """Let one side have a bad spell."""
    lasts = chance.uniform(*SPELL_SECONDS)
    if chance.randrange(len(OF_GITHUB) + len(OF_THE_CLUSTER)) < len(OF_GITHUB):
        behaviour = chance.choice(OF_GITHUB)()
        seen.spells[f"GitHub {behaviour.title}"] += 1
        script = github.script(behaviour)
        await asyncio.sleep(lasts)
        script.stop()
        script.release()
        return
    fault, match = chance.choice(OF_THE_CLUSTER)
    seen.spells[f"API server {type(fault).__name__} {match.verb or match.resource or 'all'}"] += 1
    began = time.monotonic()
    injection = cluster.inject(fault, match=match)
    cluster.cut_watches(in_mid_line=chance.random() < 0.5)
    await asyncio.sleep(lasts)
    cluster.remove(injection)
    seen.away.append((began, time.monotonic() + BLIND_SECONDS))


def _was_blind(
    violation: Violation, github: SimulatedGitHub, away: Sequence[tuple[float, float]]
) -> bool:
    """Tell whether the request that a violation begins with arrived while the watch was away."""
    number = re.match(r"#(\d+) ", violation.text)
    arrived = next(
        (each.arrived for each in github.history if number and each.seq == int(number[1])), 0.0
    )
    return any(began <= arrived <= ended for began, ended in away)


async def _sample(program: Program, tasks: Path, seen: Soaked) -> None:
    """Note once a second what the process holds."""
    process = Path(f"/proc/{program.pid}")
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    while True:
        await asyncio.sleep(1)
        seen.rss_mib.append(int((process / "statm").read_text().split()[1]) * page)
        seen.files.append(len(list((process / "fd").iterdir())))
        # Small files of memory: there is nothing to wait for. It may be writing just now.
        if count := tasks.read_text():  # noqa: ASYNC240 - the same
            seen.tasks.append(int(count))


def _thirds(samples: Sequence[T]) -> list[Sequence[T]]:
    size = len(samples) // THIRDS
    return [samples[number * size : (number + 1) * size] for number in range(THIRDS)]


def _told(values: "map[float]") -> str:
    return ", ".join(f"{value:.5g}" for value in values)


def main(argv: Sequence[str]) -> int:
    """Run what the arguments say, print what was seen; return the exit code."""
    parser = argparse.ArgumentParser(description="Churn and faults for long, and nothing grows.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--seed", type=int, default=1, help="what chance starts from (1)")
    told = parser.parse_args(argv)
    # The simulated servers' own: their clients are cut off in the middle of something.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    with TemporaryDirectory(prefix="soak-") as folder:
        seen = asyncio.run(soak(seconds=told.minutes * 60, seed=told.seed, folder=Path(folder)))
    complaints = seen.complaints()
    sys.stdout.write("\n".join([str(seen), *(complaints or ["nothing grew"])]) + "\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
