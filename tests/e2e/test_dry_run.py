"""
Dry runs and `once` on a real API server: what a dry run says is what is posted afterwards.

The same kinds of workload come, roll out, scale and go under `run --dry-run` as under `run` in the
other files, with the rights of the manifests; GitHub is never asked for anything.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.installation import Installation, Scene, installed, rights_of_base
from tests.support.kubelet import digest_of
from tests.support.program import Program, tracker_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

WITHIN = 60.0

State = tuple[str, str]
"""(status, digest)."""


@asynccontextmanager
async def program(
    installation: Installation, folder: Path, command: str, *arguments: str
) -> AsyncIterator[Program]:
    """Run a command with the installation's account."""
    environ = installation.environ(LEDGER_PATH=str(folder / "ledger.db"), LOG_FORMAT="json")
    words = tracker_run(command, "-kubeconfig", str(installation.kubeconfig), *arguments)
    async with Program(words, environ=environ, folder=folder) as started:
        yield started


def told(started: Program) -> Mapping[str, State]:
    """Return what was told of each name last."""
    lines = map(json.loads, started.stdout)
    return {line["deployment_name"]: (line["status"], line["digest"]) for line in lines}


async def until_told(started: Program, scene: Scene, states: Mapping[str, State | None]) -> None:
    """Wait until these workloads were told of, each in its state, or (None) in any."""

    def reached() -> bool:
        last = told(started)
        return all(
            scene.name(name) in last and state in {None, last[scene.name(name)]}
            for name, state in states.items()
        )

    await started.until(reached, within=WITHIN)


async def test_a_dry_run_tells_all_that_happens_and_asks_github_for_nothing(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with (
        installed(control_plane, rights=rights_of_base()) as installation,
        installation.scene("dry") as scene,
    ):
        await installation.create_node("node-1")
        async with program(installation, tmp_path, "run", "--dry-run") as started:
            await started.until_said("in step with the cluster")
            await scene.create(scene.deployment("web", replicas=2))
            await scene.create(scene.replicaset("set"))
            await scene.create(scene.workload("StatefulSet", "db", replicas=2, serviceName="db"))
            await scene.create(scene.workload("DaemonSet", "agent"))
            await scene.create(scene.job("import"))
            kinds = ("web", "set", "db", "agent", "import")
            await until_told(started, scene, dict.fromkeys(kinds))
            await scene.roll_out("deployments", "web", scene.container("2"))
            await scene.running("web", 2, "2")
            await scene.patch("deployments", "web", {"spec": {"replicas": 3}})
            await scene.running("web", 3, "2")
            await scene.delete("replicasets", "set")
            await scene.delete("daemonsets", "agent")
            first, second = digest_of(scene.image("1")), digest_of(scene.image("2"))
            await until_told(
                started,
                scene,
                {
                    "web": ("deployed", second),
                    "set": ("decommissioned", first),
                    "agent": ("decommissioned", first),
                },
            )
            assert await started.stopped() == 0
        assert installation.github.history == []
        assert not (tmp_path / "ledger.db").exists()
        installation.assert_only_read()
        stands = {name: state for name, state in told(started).items() if state[0] == "deployed"}
        assert {scene.name(name) for name in ("web", "db", "import")} == stands.keys()
        # What it would do at once is what is done, and then nothing is left to do.
        async with program(installation, tmp_path, "once", "--dry-run") as rehearsal:
            assert await rehearsal.ended() == 0
        assert installation.github.history == []
        async with program(installation, tmp_path, "once") as performance:
            assert await performance.ended() == 0
        of_scene = {name: state for name, state in told(performance).items() if name in stands}
        assert of_scene == stands
        assert told(rehearsal) == told(performance)
        async with program(installation, tmp_path, "once", "--dry-run") as again:
            assert await again.ended() == 0
        assert again.stdout == []
        installation.assert_only_read()
