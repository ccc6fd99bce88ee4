"""
A simulated cluster, a simulated GitHub and the program between them.

The tests of the whole program start here: `made` brings the two servers up, `World.program` is the
program that is pointed at them, `pod` is what the cluster holds.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.program import Program, tracker_run
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.github import SimulatedGitHub

__all__ = [
    "DIGEST",
    "IN_STEP",
    "LATER",
    "OTHER_DIGEST",
    "TOKEN",
    "World",
    "assert_secret",
    "made",
    "name_of",
    "of",
    "pod",
]

Json = dict[str, Any]

IN_STEP: Final = "in step with the cluster"
TOKEN: Final = "ghp_canary0123456789abcdefghijklmnopqrstuv"  # noqa: S105 - opens the simulated GitHub only
CLUSTER_TOKEN: Final = "cluster-canary-0123456789"  # noqa: S105 - the simulated cluster's
DIGEST: Final = "sha256:" + "a" * 64
OTHER_DIGEST: Final = "sha256:" + "b" * 64
LATER: Final = "2100-01-01T00:00:00Z"


def pod(
    workload: str,
    *,
    digest: str = DIGEST,
    number: int = 0,
    container: str = "app",
    image: str = "ghcr.io/acme/app:1",
    **metadata: Any,  # noqa: ANN401 - raw JSON
) -> Json:
    """Return a running pod of a Deployment in the namespace `shop`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{workload}-abc-{number}",
            "namespace": "shop",
            "labels": {"pod-template-hash": "abc"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": f"{workload}-abc",
                    "uid": f"uid-of-{workload}",
                    "controller": True,
                }
            ],
            **metadata,
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": container, "image": image}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": container, "image": image, "imageID": f"ghcr.io/acme/app@{digest}"}
            ],
        },
    }


def name_of(workload: str) -> str:
    """Return the deployment name of a workload of `pod`."""
    return f"shop/{workload}/app"


@dataclass(kw_only=True)
class World:
    """Both simulators, and where the program runs."""

    cluster: SimulatedCluster
    github: SimulatedGitHub
    folder: Path

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of the program."""
        return {
            "ORG": "acme",
            "BASE_URL": self.github.url,
            "LOGICAL_ENVIRONMENT": "test",
            "CLUSTER": "simulated",
            "API_TOKEN": TOKEN,
            "DECOMMISSION_DELAY": "200ms",
            **more,
        }

    def program(self, *arguments: str, **environ: str) -> Program:
        """Return the program, to be started."""
        kubeconfig = self.cluster.write_kubeconfig(self.folder / "kubeconfig")
        command = tracker_run("-kubeconfig", str(kubeconfig), *arguments)
        return Program(command, environ=self.environ(**environ), folder=self.folder)

    async def told(self, workload: str, digest: str = DIGEST, status: str = "deployed") -> None:
        """Wait until GitHub holds a state of a workload."""
        await self.github.until(
            lambda: self.github.state(name_of(workload)) == (status, digest),
            within=40,
            why=f"{workload} being {status}",
        )


@asynccontextmanager
async def made(folder: Path) -> AsyncIterator[World]:
    """Yield a world of its own."""
    async with (
        SimulatedCluster(token=CLUSTER_TOKEN) as cluster,
        SimulatedGitHub(token=TOKEN) as github,
    ):
        yield World(cluster=cluster, github=github, folder=folder)


def of(name: str) -> Callable[[Exchange], bool]:
    """Return what tells whether a request is about a name."""
    return lambda exchange: name in exchange.names


def assert_secret(program: Program) -> None:
    """Fail when a token stands in anything that was said."""
    said = "\n".join([*program.stdout, *program.stderr])
    for token in (TOKEN, CLUSTER_TOKEN):
        assert token not in said
