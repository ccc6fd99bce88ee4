"""
Everything around one tracker that is stopped and started again: cluster, GitHub, ledger, truth.

A `World` is a simulated cluster whose truth is recorded, a simulated GitHub, and a folder with the
ledger's file, which outlives every process. Pods are played by hand here, one at a time: what a
test is about must be exactly what it did. The tracker is the real program, as a process, run by
`tests.support.crashing` so that waits which no setting shortens are short.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.checker import Circumstances, Crash, Environment, check, report
from tests.support.churn import RecordedCluster
from tests.support.claims import under_way
from tests.support.crashing import Point, crashing_run
from tests.support.defects import Defect
from tests.support.program import Program
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import Script
from tracker.sandbox.stage import digest_of
from tracker.sandbox.truth import Scope, compare

__all__ = ["CONSTANTS", "World", "image_of", "made", "name_of", "pod", "states"]

TOKEN: Final = "simulated-token"  # noqa: S105 - opens the simulated GitHub only
CLUSTER_TOKEN: Final = "simulated-cluster-token"  # noqa: S105 - the simulated cluster's
SETTLE_SECONDS: Final = 1.0
CONSTANTS: Final[Mapping[str, float]] = {
    "tracker.entries.SETTLE_SECONDS": SETTLE_SECONDS,
    "tracker.reconcile.CALM_SECONDS": 0.2,
    "tracker.delivery.LEDGER_RETRY_SECONDS": 0.2,
}
"""What the tests shorten: they wait for what happens then, not for the time to pass."""
CONVERGED_SECONDS: Final = 60.0
"""Until a wait counts as failed; a start on a busy machine takes half of them."""

Json = dict[str, Any]
State = tuple[str, str]
"""(status, digest)."""


def image_of(workload: str, version: str = "1") -> str:
    """Return the image of a workload's pods."""
    return f"ghcr.io/acme/{workload}:{version}"


def name_of(workload: str, namespace: str = "shop") -> str:
    """Return the deployment name by the default template."""
    return f"{namespace}/{workload}/app"


def pod(
    workload: str,
    version: str = "1",
    *,
    number: int = 0,
    namespace: str = "shop",
    **metadata: Any,  # noqa: ANN401 - raw JSON
) -> Json:
    """Return a running pod of a Deployment."""
    image = image_of(workload, version)
    image_id = f"{image.rpartition(':')[0]}@{digest_of(image)}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{workload}-{version}-{number}",
            "namespace": namespace,
            "labels": {"pod-template-hash": version},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": f"{workload}-{version}",
                    "uid": f"uid-of-{workload}-{version}",
                    "controller": True,
                }
            ],
            **metadata,
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": image}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "app", "image": image, "imageID": image_id}],
        },
    }


@dataclass(kw_only=True)
class World:
    """
    Cluster, GitHub and ledger; `crashes` are the kills of its processes.

    `reposts` is how often everything may be posted again, as after the loss of the ledger.
    """

    cluster: RecordedCluster
    github: SimulatedGitHub
    folder: Path
    crashes: list[Crash] = field(default_factory=list)
    reposts: int = 0

    @property
    def ledger(self) -> Path:
        """Return where the ledger's file is, or will be."""
        return self.folder / "ledger.db"

    @property
    def posted(self) -> int:
        """Return how many records were posted so far, alone or in batches."""
        return len(states(self.github.posts()))

    def log_size(self) -> int:
        """Return the size of the ledger's write-ahead log in bytes."""
        return Path(f"{self.ledger}-wal").stat().st_size

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of the program."""
        return {
            "ORG": "acme",
            "BASE_URL": self.github.url,
            "LOGICAL_ENVIRONMENT": "test",
            "CLUSTER": "simulated",
            "API_TOKEN": TOKEN,
            "DECOMMISSION_DELAY": "200ms",
            "LEDGER_PATH": str(self.ledger),
            "LOG_LEVEL": "debug",
            **more,
        }

    def program(
        self,
        *arguments: str,
        kill: tuple[Point, int] | None = None,
        defect: Defect | None = None,
        next_schema: bool = False,
        cluster: RecordedCluster | None = None,
        constants: Mapping[str, float] | None = None,
        **environ: str,
    ) -> Program:
        """Return the program, to be started; `cluster` is one that is not this world's own."""
        where = cluster or self.cluster
        kubeconfig = where.write_kubeconfig(self.folder / f"kubeconfig-{where.url[-5:]}")
        command = crashing_run(
            "-kubeconfig",
            str(kubeconfig),
            *arguments,
            kill=kill,
            constants={**CONSTANTS, **(constants or {})},
            defect=defect,
            next_schema=next_schema,
        )
        return Program(command, environ=self.environ(**environ), folder=self.folder)

    # What is done to the cluster

    def run(self, *workloads: str, version: str = "1", namespace: str = "shop") -> None:
        """Let one pod of each workload run."""
        for workload in workloads:
            self.cluster.create(pod(workload, version, namespace=namespace))

    def end(
        self, workload: str, version: str = "1", *, number: int = 0, namespace: str = "shop"
    ) -> None:
        """Let a pod go at once."""
        name = f"{workload}-{version}-{number}"
        self.cluster.delete("pods", namespace, name, grace_seconds=0)

    def roll_out(self, workload: str, old: str, new: str) -> None:
        """Replace the pod of one version by one of another, the new one first."""
        self.cluster.create(pod(workload, new, creationTimestamp="2100-01-01T00:00:00Z"))
        self.end(workload, old)

    # What is waited for

    async def agreed(self) -> None:
        """Wait until GitHub holds what the cluster runs, and every request has its answer."""
        await self.github.until(self._agrees, within=CONVERGED_SECONDS, why="what the cluster runs")

    async def met(self, script: Script, times: int = 1) -> None:
        """Wait until so many requests met a script."""
        await self.github.until(
            lambda: len(script.used) >= times, within=CONVERGED_SECONDS, why="requests"
        )

    async def told(self, workload: str, version: str = "1", status: str = "deployed") -> None:
        """Wait until GitHub holds a state of a workload."""
        state = (status, digest_of(image_of(workload, version)))
        await self.github.until(
            lambda: self.github.state(name_of(workload)) == state,
            within=CONVERGED_SECONDS,
            why=f"{workload} being {status}",
        )

    async def visit(self, *, least: int = 0, **environ: str) -> list[Exchange]:
        """
        Start the program, let it bring all into step, stop it; return what it posted meanwhile.

        It is stopped when GitHub agrees with the cluster and a reconcile has found nothing more;
        that is asked for only after so many records, since it takes its time with many names.
        """
        posts, posted = len(self.github.history), self.posted
        more: dict[str, Any] = dict(environ)
        async with self.program(**more) as program:
            await self.github.until(
                lambda: self.posted >= posted + least, within=60, why="enough posts"
            )
            await self.agreed()
            passes = program.said.count("reconciled")
            await program.until_said("reconciled", times=max(passes, 1))
            assert await program.stopped() == 0
            assert "Traceback" not in program.said
        return self.github.history[posts:]

    async def killed(self, program: Program) -> None:
        """Kill a program and take note of when that was."""
        program.kill()
        await self.died(program)

    async def died(self, program: Program) -> None:
        """Wait until a program was killed and take note of what that left in doubt."""
        assert await program.ended() == -signal.SIGKILL
        now = asyncio.get_running_loop().time()
        self.crashes.append(Crash(at=now, in_doubt=under_way(self.ledger)))

    # What is judged

    def judge(self, *, converged: bool = True) -> None:
        """Fail when a promise was broken."""
        found = self.violations(converged=converged)
        assert not found, found

    def violations(
        self,
        *,
        converged: bool = True,
        claimed: Mapping[str, State] | None = None,
        network_seconds: float = 1.0,
    ) -> str:
        """Return what promises were broken, "" when none was."""
        circumstances = Circumstances(
            environment=Environment("acme", "test", "", "simulated"),
            crashes=tuple(self.crashes),
            reposts=self.reposts,
            claimed=claimed or {},
            network_seconds=network_seconds,
            converged=converged,
            ended=asyncio.get_running_loop().time(),
        )
        found = check(self.github.history, self.github.table, self.cluster.log, circumstances)
        return report(found, self.github.history) if found else ""

    def _agrees(self) -> bool:
        lines = compare(self.cluster.log.truth(), self.github.table)
        return all(line.agrees for line in lines) and all(
            post.ended is not None for post in self.github.posts()
        )


@asynccontextmanager
async def made(folder: Path, *, scope: Scope | None = None) -> AsyncIterator[World]:
    """Yield a world of its own; `scope` is what the tracker watches of it."""
    async with (
        RecordedCluster(token=CLUSTER_TOKEN, scope=scope) as cluster,
        SimulatedGitHub(token=TOKEN) as github,
    ):
        yield World(cluster=cluster, github=github, folder=folder)


def states(posts: Iterable[Exchange]) -> list[tuple[str, str, str]]:
    """Return (deployment_name, status, digest) of each post, sorted."""
    return sorted(
        (told.deployment_name, told.status, told.digest)
        for post in posts
        for told in post.deployments
    )
