"""
The main panels of the dashboard, drawn from a real run: docs/pictures/dashboard.png.

    python -m bench.panels

The program runs against the simulated cluster and GitHub, a real Prometheus (which must be on
PATH) scrapes it each second, and the dashboard's own queries are asked of it: what the picture
shows is what Grafana would. Within two minutes a cluster of 200 names starts, rolls out, meets a
limit and an API server that is away, and is deleted by half.
"""

import asyncio
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from matplotlib import style
from matplotlib.figure import Figure

from tests.support.generated import ALERTS, ROOT
from tests.support.probe import free_port
from tests.support.program import Program, tracker_run
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import answers
from tracker.sandbox.stage import Played, Stage

DASHBOARD: Final = ALERTS.with_name("dashboard.json")
PICTURE: Final = ROOT / "docs" / "pictures" / "dashboard.png"
PANELS: Final = (
    "Names by state",
    "Records by answer",
    "Running → acknowledged",
    "Queue",
    "Rate limit",
    "Events by type",
    "Watch",
    "Ledger write time, 99 %",
    "Memory",
)
COLUMNS: Final = 3
DEPLOYMENTS: Final = 200
MIB: Final = 2**20

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prometheus:
    url: str

    async def ask(self, query: str, since: float, until: float) -> list[Json]:
        """Return the series of a query, second by second."""
        asked = {"query": query, "start": str(since), "end": str(until), "step": "1"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/api/v1/query_range", params=asked) as response,
        ):
            answer = await response.json()
        if answer["status"] != "success":
            message = f"{query}: {answer}"
            raise RuntimeError(message)
        found: list[Json] = answer["data"]["result"]
        return found


@asynccontextmanager
async def _prometheus(folder: Path, target: int) -> AsyncIterator[_Prometheus]:
    """Run Prometheus, which scrapes that port; the alert rules are loaded, too."""
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("bench.panels: prometheus is not on PATH (Debian's package will do)")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {
                "job_name": "deployment-tracker",
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
        ],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={folder / 'prometheus.json'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as session:
            while True:
                with suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"{url}/-/ready") as response:
                        if response.status == 200:  # noqa: PLR2004 - ready
                            break
                await asyncio.sleep(0.1)
        yield _Prometheus(url=url)
    finally:
        process.terminate()
        await process.wait()


async def _play(cluster: SimulatedCluster, github: SimulatedGitHub) -> None:
    """Two minutes of a cluster's life."""
    stage = Stage(cluster, seed=1)
    workloads: list[Played] = []
    for index in range(DEPLOYMENTS):
        images = {"app": f"ghcr.io/acme/app-{index}:1"}
        workloads.append(
            await stage.start("Deployment", "shop", f"app-{index}", images, replicas=2)
        )
    await asyncio.sleep(15)
    for index, workload in enumerate(workloads[:60]):
        await stage.roll_out(workload, {"app": f"ghcr.io/acme/app-{index}:2"})
        await asyncio.sleep(0.2)
    await asyncio.sleep(5)
    limit = answers(429, headers={"Retry-After": "12"})
    github.script(limit, times=1)
    for index, workload in enumerate(workloads[60:120]):
        await stage.roll_out(workload, {"app": f"ghcr.io/acme/app-{index + 60}:2"})
        await asyncio.sleep(0.2)
    await asyncio.sleep(10)
    await cluster.pause()
    await asyncio.sleep(15)
    await cluster.resume()
    await asyncio.sleep(10)
    for workload in workloads[100:]:
        await stage.delete(workload)
    await asyncio.sleep(20)


async def _run() -> None:
    with tempfile.TemporaryDirectory(prefix="tracker-panels-") as name:
        folder = Path(name)
        port = free_port()
        async with (
            SimulatedCluster() as cluster,
            SimulatedGitHub() as github,
            _prometheus(folder, port) as prometheus,
        ):
            environ = {
                "ORG": "acme",
                "BASE_URL": github.url,
                "LOGICAL_ENVIRONMENT": "bench",
                "CLUSTER": "bench",
                "API_TOKEN": github.token,
                "LEDGER_PATH": str(folder / "ledger.db"),
                "RECONCILE_INTERVAL": "30s",
                "METRICS_PORT": str(port),
            }
            kubeconfig = cluster.write_kubeconfig(folder / "kubeconfig")
            command = tracker_run("-kubeconfig", str(kubeconfig))
            async with Program(command, environ=environ, folder=folder) as program:
                since = time.time()
                await _play(cluster, github)
                until = time.time()
                found = [
                    (panel, await _series(prometheus, panel, since, until)) for panel in _panels()
                ]
                await program.stopped()
    _draw(found)
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}\n")


def _panels() -> list[Json]:
    """Return the panels that are drawn, in their order."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    by_title = {panel["title"]: panel for panel in panels}
    return [by_title[title] for title in PANELS]


async def _series(
    prometheus: _Prometheus, panel: Json, since: float, until: float
) -> list[tuple[str, list[list[Any]]]]:
    """Return the lines of a panel by the names that its legend gives them."""
    lines = []
    for target in panel["targets"]:
        query = (
            target["expr"].replace("$__rate_interval", "5s").replace('instance=~"$instance"', "")
        )
        for series in await prometheus.ask(query.replace("{,", "{"), since, until):
            legend = target["legendFormat"]
            for label, value in series["metric"].items():
                legend = legend.replace("{{" + label + "}}", value)
            lines.append((legend, series["values"]))
    return lines


def _draw(found: list[tuple[Json, list[tuple[str, list[list[Any]]]]]]) -> None:
    began = min(values[0][0] for _, lines in found for _, values in lines)
    rows = math.ceil(len(found) / COLUMNS)
    style.use("dark_background")
    figure = Figure(figsize=(15, 3.1 * rows), layout="constrained")
    places = figure.subplots(rows, COLUMNS)
    for place, (panel, lines) in zip(places.flat, found, strict=False):
        unit = panel["fieldConfig"]["defaults"].get("unit", "")
        scale = MIB if unit == "bytes" else 1
        for legend, values in lines:
            numbers = [float(value) / scale for _, value in values]
            if any(numbers) or len(lines) == 1:  # what stays at nothing would hide the rest
                times = [at - began for at, _ in values]
                place.plot(times, numbers, linewidth=1.3, label=legend)
        words = {"s": " (s)", "bytes": " (MiB)"}.get(unit, "")
        place.set_title(panel["title"] + words, fontsize=10, loc="left")
        place.tick_params(labelsize=7)
        place.grid(alpha=0.2)
        place.set_ylim(bottom=0)
        if place.get_legend_handles_labels()[0]:
            place.legend(fontsize=7, loc="best", frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    asyncio.run(_run())
