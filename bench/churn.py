"""
Churn: so many pod events a second, for so long, and what becomes of memory and of the loop.

    python -m bench.churn --rate 200 --seconds 600

Most events of a real cluster change nothing that is recorded (probes, conditions); one in twenty
here is a pod that comes or goes. Resident memory is sampled once a second; its median in the second
half is set beside that of the first. In the end GitHub must hold exactly what runs.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.support.program import Program
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.stage import Played, Stage
from tracker.sandbox.truth import compare, should_stand

DEPLOYMENTS = 200
REPLICAS = 2
STEPS_A_SECOND = 10
LIFE_EVENTS = 4
"""Of a pod that comes and goes: created, running, being deleted, gone."""
QUIET_SHARE = 0.95


async def _measure(rate: int, seconds: int) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="tracker-churn-") as name:
        folder = Path(name)
        async with SimulatedCluster() as cluster, SimulatedGitHub() as github:
            stage = Stage(cluster, seed=1)
            workloads = [
                await stage.start(
                    "Deployment", "churn", f"app-{index}", _images(index, 0), replicas=REPLICAS
                )
                for index in range(DEPLOYMENTS)
            ]
            environ = {
                "ORG": "acme",
                "BASE_URL": github.url,
                "LOGICAL_ENVIRONMENT": "bench",
                "CLUSTER": "bench",
                "API_TOKEN": github.token,
                "LEDGER_PATH": str(folder / "ledger.db"),
                "RECONCILE_INTERVAL": "30s",
            }
            report = folder / "lag"
            kubeconfig = cluster.write_kubeconfig(folder / "kubeconfig")
            command = [sys.executable, "-m", "bench.watched", str(report)]
            command += ["-kubeconfig", str(kubeconfig)]
            async with Program(command, environ=environ, folder=folder) as program:
                await github.until(lambda: len(github.table) >= DEPLOYMENTS, within=60)
                before = cluster.version
                memory = await _churn(
                    stage=stage,
                    cluster=cluster,
                    workloads=workloads,
                    pid=program.pid,
                    rate=rate,
                    seconds=seconds,
                )
                events = cluster.version - before

                def agree() -> bool:
                    truth = should_stand(cluster.objects("pods"))
                    return all(line.agrees for line in compare(truth, github.table))

                await github.until(agree, within=60, why="the end to be exact")
                program.terminate()
                code = await program.ended()
            half = len(memory) // 2
            first, second = statistics.median(memory[:half]), statistics.median(memory[half:])
            return {
                "events a second": f"{events / seconds:.0f}",
                "seconds": str(seconds),
                "posts": str(len(github.posts())),
                "RSS, median of the first half": f"{first:.1f} MiB",
                "RSS, median of the second half": f"{second:.1f} MiB",
                "RSS, peak": f"{max(memory):.1f} MiB",
                "longest block of the loop": f"{report.read_text().strip()} ms",
                "the end": "exact",
                "exit code": str(code),
            }


async def _churn(  # noqa: PLR0913 - a run's parameters
    *,
    stage: Stage,
    cluster: SimulatedCluster,
    workloads: list[Played],
    pid: int,
    rate: int,
    seconds: int,
) -> list[float]:
    """Make the events; return resident memory in MiB, second by second."""
    chance = random.Random(2)  # noqa: S311 - which pod changes, nothing secret
    memory = []
    quiet = round(rate * QUIET_SHARE / STEPS_A_SECOND)
    lives = rate * (1 - QUIET_SHARE) / LIFE_EVENTS / STEPS_A_SECOND
    owed = 0.0
    began = time.monotonic()
    console = Console(stderr=True)
    for step in track(range(seconds * STEPS_A_SECOND), description="churn", console=console):
        for _ in range(quiet):
            workload = chance.choice(workloads)
            beat = {"metadata": {"annotations": {"beat": str(chance.random())}}}
            cluster.patch("pods", workload.namespace, chance.choice(workload.pods), beat)
        owed += lives
        while owed >= 1:
            owed -= REPLICAS
            index = chance.randrange(len(workloads))
            await stage.roll_out(workloads[index], _images(index, step))
        if step % STEPS_A_SECOND == 0:
            memory.append(_resident(pid))
        await asyncio.sleep(max(0.0, began + (step + 1) / STEPS_A_SECOND - time.monotonic()))
    return memory


def _images(index: int, version: int) -> dict[str, str]:
    return {"app": f"registry.example/app-{index}:{version}"}


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Measure and show a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.churn", description=__doc__)
    parser.add_argument("--rate", type=int, default=200, help="pod events a second (200)")
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    arguments = parser.parse_args()
    figures = asyncio.run(_measure(arguments.rate, arguments.seconds))
    table = Table(title="churn on the simulated API server", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    main()
