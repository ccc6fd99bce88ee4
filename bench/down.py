"""
What happens while the tracker is down, and how soon it is true again.

    KUBEBUILDER_ASSETS=… python -m bench.down

On a real API server with controllers. *deleted*: twenty Deployments are deleted while no tracker
runs; seconds from the next start until all are decommissioned. *rolled out*: SIGTERM three seconds
into a rollout of all Deployments, which then ends by itself; seconds from the next start until
GitHub holds what runs.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.controlplane import ControlPlane, find_assets
from tests.support.installation import Installation, Scene, installed, rights_of_base
from tests.support.kubelet import digest_of
from tests.support.program import Program, tracker_run

DEPLOYMENTS = 100
DELETED = 20
INTO_THE_ROLLOUT_SECONDS = 3.0
PATIENCE_SECONDS = 180.0


class Run:
    """One installation with a ledger on disk, and the tracker that comes and goes."""

    def __init__(self, installation: Installation, scene: Scene, folder: Path) -> None:
        self._installation = installation
        self._scene = scene
        self._folder = folder
        self._names = [f"app-{number}" for number in range(DEPLOYMENTS)]

    def program(self) -> Program:
        """Return the tracker on its ledger, to be started."""
        command = tracker_run("-kubeconfig", str(self._installation.kubeconfig))
        more = {"DECOMMISSION_DELAY": "5s", "LEDGER_PATH": str(self._folder / "ledger.db")}
        return Program(command, environ=self._installation.environ(**more), folder=self._folder)

    async def begin(self) -> None:
        """Let the Deployments run."""
        for name in self._names:
            await self._scene.create(self._scene.deployment(name, self._container(name, 1)))
        await self._pods(lambda: self._running(1) >= DEPLOYMENTS)

    async def roll_out(self, version: int) -> None:
        """Begin a rollout of all Deployments."""
        for name in self._names:
            await self._scene.roll_out("deployments", name, self._container(name, version))

    async def measure(self) -> dict[str, str]:
        """Return the figures of this benchmark."""
        await self.begin()
        async with self.program() as program:
            await self.true(1)
            await program.stopped()
        posts = len(self._installation.github.posts())
        for name in self._names[:DELETED]:
            await self._scene.delete("deployments", name)
        gone, self._names = self._names[:DELETED], self._names[DELETED:]
        await self._pods(lambda: self._running(1) <= DEPLOYMENTS - DELETED)
        began = time.monotonic()
        async with self.program() as program:
            await self._github(lambda: all(self._state(name)[0] != "deployed" for name in gone))
            deleted = time.monotonic() - began
            needless = len(self._installation.github.posts()) - posts - DELETED
            await self.roll_out(2)
            began = time.monotonic()
            await asyncio.sleep(INTO_THE_ROLLOUT_SECONDS)
            code = await program.stopped()
            stopping = time.monotonic() - began - INTO_THE_ROLLOUT_SECONDS
        await self._pods(lambda: self._running(2) >= len(self._names) == self._pods_there())
        began = time.monotonic()
        async with self.program() as program:
            await self.true(2)
            rolled_out = time.monotonic() - began
            await program.stopped()
        return {
            "20 deleted while down: all decommissioned after": f"{deleted:.1f} s",
            "posts beside these": str(needless),
            "SIGTERM in mid-rollout: stopped after": f"{stopping:.1f} s, exit code {code}",
            "rolled out while down: all true after": f"{rolled_out:.1f} s",
        }

    def _container(self, name: str, version: int) -> dict[str, object]:
        return {"name": "app", "image": f"registry.example/{name}:{version}"}

    def _state(self, name: str) -> tuple[str, str]:
        state = self._installation.github.state(f"{self._scene.namespace}/{name}/app")
        return state or ("", "")

    def _running(self, version: int) -> int:
        pods = self._installation.truth.pods(self._scene.namespace)
        return sum(
            1
            for pod in pods
            if pod["status"].get("phase") == "Running"
            and "deletionTimestamp" not in pod["metadata"]
            and pod["spec"]["containers"][0]["image"].endswith(f":{version}")
        )

    def _pods_there(self) -> int:
        return len(self._installation.truth.pods(self._scene.namespace))

    async def true(self, version: int) -> None:
        """Wait until GitHub holds a version of all of them."""
        wanted = {
            name: ("deployed", digest_of(f"registry.example/{name}:{version}"))
            for name in self._names
        }
        await self._github(lambda: all(self._state(name) == wanted[name] for name in wanted))

    async def _github(self, condition: Callable[[], bool]) -> None:
        await self._installation.github.until(
            condition, within=PATIENCE_SECONDS, why="GitHub to be true"
        )

    async def _pods(self, condition: Callable[[], bool]) -> None:
        await self._installation.truth.until(condition, within=PATIENCE_SECONDS)


async def _measure() -> dict[str, str]:
    assets = find_assets()
    if assets is None:
        sys.exit("bench.down: KUBEBUILDER_ASSETS is not set; a real API server is needed")
    with tempfile.TemporaryDirectory(prefix="tracker-down-") as name, ControlPlane(assets) as plane:
        async with (
            installed(plane, rights=rights_of_base()) as installation,
            installation.scene("down") as scene,
        ):
            return await Run(installation, scene, Path(name)).measure()


def main() -> None:
    """Measure and show a table."""
    table = Table(title="a real kube-apiserver, 100 Deployments", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in asyncio.run(_measure()).items():
        table.add_row(name, value)
    Console(width=max(Console().width, 80)).print(table)


if __name__ == "__main__":
    main()
