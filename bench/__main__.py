"""
`make bench`: how fast the main job is, timed from outside of the program.

Two figures. *start*: from the start of the process until GitHub holds every record of a cluster
that already runs. *latency*: on an idle cluster, from a pod's change to Running until its post
arrives at GitHub. With KUBEBUILDER_ASSETS a real API server (and controllers) serves, else the
simulated one; the table says which. GitHub is the simulated one in both. These are measurements,
not tests: machines are noisy, so look at several runs.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from tests.support.controlplane import ControlPlane, find_assets
from tests.support.installation import Installation, Scene, installed, rights_of_base
from tests.support.kubelet import image_id_of
from tests.support.program import Program, tracker_run
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.stage import Stage

PATIENCE_SECONDS = 120.0
REPLICAS = 2


class Ground(Protocol):
    """A cluster to measure on."""

    title: str
    github: SimulatedGitHub

    def environ(self) -> dict[str, str]:
        """Return the program's environment."""
        ...

    def kubeconfig(self) -> Path:
        """Return the program's kubeconfig."""
        ...

    async def fill(self, deployments: int) -> None:
        """Run that many Deployments of two pods each."""
        ...

    async def run_one(self, number: int) -> float:
        """Make one more pod Running; return the moment of the change (`time.monotonic`)."""
        ...


class Simulated:
    """The simulated API server."""

    title = "simulated API server"

    def __init__(self, cluster: SimulatedCluster, github: SimulatedGitHub, folder: Path) -> None:
        self.github = github
        self._cluster = cluster
        self._stage = Stage(cluster, seed=1)
        self._kubeconfig = cluster.write_kubeconfig(folder / "kubeconfig")

    def environ(self) -> dict[str, str]:
        return _environ(self.github)

    def kubeconfig(self) -> Path:
        return self._kubeconfig

    async def fill(self, deployments: int) -> None:
        for number in range(deployments):
            images = {"app": f"registry.example/app-{number}:1"}
            await self._stage.start(
                "Deployment", "bench", f"app-{number}", images, replicas=REPLICAS
            )

    async def run_one(self, number: int) -> float:
        name = f"one-{number}"
        images = {"app": f"registry.example/{name}:1"}
        await self._stage.start("Deployment", "bench", name, images, replicas=0)
        began = time.monotonic()
        await self._stage.start("ReplicaSet", "bench", f"{name}-rs", images, replicas=1)
        return began


class Real:
    """A real API server with controllers, and a kubelet that is played."""

    title = "real kube-apiserver"

    def __init__(self, installation: Installation, scene: Scene) -> None:
        self.github = installation.github
        self._installation = installation
        self._scene = scene

    def environ(self) -> dict[str, str]:
        return {**self._installation.environ(), "DECOMMISSION_DELAY": "5s"}

    def kubeconfig(self) -> Path:
        return self._installation.kubeconfig

    async def fill(self, deployments: int) -> None:
        names = [f"app-{number}" for number in range(deployments)]
        for name in names:
            image = f"registry.example/{name}:1"
            body = self._scene.deployment(name, {"name": "app", "image": image}, replicas=REPLICAS)
            await self._scene.create(body)
        await self._installation.truth.until(
            lambda: self._running() >= deployments * REPLICAS, within=PATIENCE_SECONDS
        )

    async def run_one(self, number: int) -> float:
        # The kubelet leaves this image alone, so that the change to Running is made, and timed,
        # here: from the moment at which the API server is asked for it.
        name = f"one-{number}"
        image = f"registry.example/{name}:1"
        self._installation.kubelet.broken.add(image)
        await self._scene.create(self._scene.replicaset(name, {"name": "app", "image": image}))
        await self._scene.until(
            lambda: any(pod["status"].get("containerStatuses") for pod in self._scene.pods(name))
        )
        pod = self._scene.pods(name)[0]["metadata"]["name"]
        container = {
            "name": "app",
            "image": image,
            "imageID": image_id_of(image),
            "ready": True,
            "restartCount": 0,
            "state": {"running": {}},
        }
        status = {"phase": "Running", "containerStatuses": [container]}
        began = time.monotonic()
        await self._scene.patch("pods", f"{pod}/status", {"status": status})
        return began

    def _running(self) -> int:
        pods = self._installation.truth.pods(self._scene.namespace)
        return sum(1 for pod in pods if pod["status"].get("phase") == "Running")


def _environ(github: SimulatedGitHub) -> dict[str, str]:
    return {
        "ORG": "acme",
        "BASE_URL": github.url,
        "LOGICAL_ENVIRONMENT": "bench",
        "CLUSTER": "bench",
        "API_TOKEN": github.token,
    }


@asynccontextmanager
async def _ground(folder: Path) -> AsyncIterator[Ground]:
    assets = find_assets()
    if assets is None:
        async with SimulatedCluster() as cluster, SimulatedGitHub() as github:
            yield Simulated(cluster, github, folder)
        return
    with ControlPlane(assets) as plane:
        async with (
            installed(plane, rights=rights_of_base()) as installation,
            installation.scene("bench") as scene,
        ):
            yield Real(installation, scene)


async def _measure(deployments: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tracker-bench-") as name:
        folder = Path(name)
        async with _ground(folder) as ground:
            await ground.fill(deployments)
            command = tracker_run("-kubeconfig", str(ground.kubeconfig()))
            began = time.monotonic()
            async with Program(command, environ=ground.environ(), folder=folder) as program:
                await ground.github.until(
                    lambda: len(ground.github.table) >= deployments,
                    within=PATIENCE_SECONDS,
                    why="all records",
                )
                started = time.monotonic() - began
                latencies = [await _latency(ground, number) for number in range(rounds)]
                memory = _peak_memory(program.pid)
                program.terminate()
                code = await program.ended()
            return {
                "ground": ground.title,
                "pods": deployments * REPLICAS,
                "names": deployments,
                "start_seconds": round(started, 2),
                "latency_ms_median": round(statistics.median(latencies) * 1000, 1),
                "latency_ms_max": round(max(latencies) * 1000, 1),
                "rss_peak_mib": memory,
                "posts": len(ground.github.posts()),
                "exit_code": code,
            }


async def _latency(ground: Ground, number: int) -> float:
    """Return the seconds from a pod's change to Running to the arrival of its post."""
    before = len(ground.github.history)
    changed = await ground.run_one(number)
    await ground.github.until(
        lambda: len(ground.github.history) > before, within=PATIENCE_SECONDS, why="the post"
    )
    return max(ground.github.history[before].arrived - changed, 0.0)


def _peak_memory(pid: int) -> float:
    """Return the most memory a process ever had resident, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def main() -> None:
    """Measure and show a table, or JSON with `--json`."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--deployments", type=int, default=100, help="of two pods each (100)")
    parser.add_argument("--rounds", type=int, default=30, help="pods for the latency (30)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    figures = asyncio.run(_measure(arguments.deployments, arguments.rounds))
    if arguments.json:
        print(json.dumps(figures))
        return
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, kopf {version('kopf')}"
    table = Table(title=f"{figures['ground']}; {machine}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        if name != "ground":
            table.add_row(name, str(value))
    Console(width=max(Console().width, 80)).print(table)


if __name__ == "__main__":
    main()
