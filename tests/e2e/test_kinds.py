"""
All kinds of workloads side by side on a real API server, without and with the right to read them.

Everything is done in one namespace at once, as in a cluster, and the checker judges the whole.
"""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.installation import (
    Installation,
    Scene,
    installed,
    rights_of_base,
    rights_with_workloads,
)
from tests.support.program import Program, tracker_run
from tracker.catalog import KINDS
from tracker.sandbox.table import Row

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

Json = dict[str, Any]

SCALED = {"web": "deployments", "set": "replicasets", "db": "statefulsets"}
"""What is scaled to zero, and where it is found."""
DELETED = {"gone": "deployments", "agent": "daemonsets", "import": "jobs"}
"""What is deleted."""
OWN = {"controlled": ("pods", "controlled-0"), "rollout": ("replicasets", "rollout-7c9")}
"""Of controllers that no list of workloads tells of: what is deleted, and where it is found."""
PREFIX = "metadata.github.com/"


def cronjob(scene: Scene, name: str) -> Json:
    """Return a CronJob that never runs by itself."""
    template = {"spec": {"template": scene.template(name, restartPolicy="Never")}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "namespace": scene.namespace},
        "spec": {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": template},
    }


async def run_of(scene: Scene, owner: Json, name: str) -> None:
    """Create a run of a CronJob."""
    job = scene.job(name, owner=owner)
    job["spec"]["template"] = scene.template(owner["metadata"]["name"], restartPolicy="Never")
    await scene.create(job)


async def everything(scene: Scene) -> None:
    """Create a workload of each kind."""
    await scene.installation.create_node("node-1")
    await scene.create(scene.deployment("web", replicas=2))
    await scene.create(scene.deployment("gone", replicas=2))
    await scene.create(scene.replicaset("set"))
    await scene.create(scene.workload("StatefulSet", "db", replicas=2, serviceName="db"))
    await scene.create(scene.workload("DaemonSet", "agent"))
    await scene.create(scene.job("import"))
    report = await scene.create(cronjob(scene, "report"))
    await run_of(scene, report, f"report-{int(time.time() // 60)}")
    # Nobody here knows a Rollout; what owns its ReplicaSet is told by a label alone.
    rollout = scene.replicaset("rollout-7c9")
    labels = {"app": "rollout", "rollouts-pod-template-hash": "7c9"}
    rollout["spec"]["selector"]["matchLabels"] = labels
    rollout["spec"]["template"]["metadata"]["labels"] = labels
    await scene.create(rollout)
    # Nobody here runs ReplicationControllers, so its pod is made by hand.
    controller = scene.workload("ReplicationController", "controlled", replicas=1)
    controller["spec"]["selector"] = {"app": "controlled"}
    owner = await scene.create(controller)
    pod = scene.template("controlled")
    pod["metadata"] |= {
        "name": "controlled-0",
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "ReplicationController",
                "name": "controlled",
                "uid": owner["metadata"]["uid"],
                "controller": True,
            }
        ],
    }
    await scene.create({"apiVersion": "v1", "kind": "Pod", **pod})
    for name in (*SCALED, *DELETED, *OWN, "report"):
        await scene.recorded(name)


@pytest.mark.parametrize("reads_workloads", [False, True], ids=["pods", "workloads"])
async def test_all_kinds_side_by_side_end_as_they_are(
    control_plane: ControlPlane,
    tmp_path: Path,
    reads_workloads: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    rights = rights_with_workloads() if reads_workloads else rights_of_base()
    async with installed(control_plane, rights=rights) as installation:
        more = {"WORKLOADS": "true"} if reads_workloads else {}
        command = tracker_run("-kubeconfig", str(installation.kubeconfig))
        environ = installation.environ(LEDGER_PATH=str(tmp_path / "ledger.db"), **more)
        async with (
            installation.scene(f"kinds-{'workloads' if reads_workloads else 'pods'}") as scene,
            Program(command, environ=environ, folder=tmp_path) as program,
        ):
            await program.until_said("in step with the cluster")
            await everything(scene)
            for name, plural in SCALED.items():
                await scene.patch(plural, name, {"spec": {"replicas": 0}})
                await scene.without_pods(name)
            for name, plural in DELETED.items():
                await scene.delete(plural, name)
            for plural, name in OWN.values():
                await scene.delete(plural, name)
            for name in (*DELETED, *OWN):
                await scene.gone(name)
            kept = await kept_by_workloads(scene) if reads_workloads else set()
            if not reads_workloads:
                for name in SCALED:
                    await scene.gone(name)
            await judge(installation, scene, kept)
            assert {scene.told(name)[-1][0] for name in SCALED} == {
                "deployed" if reads_workloads else "decommissioned"
            }
            assert await program.stopped() == 0
            assert "Traceback" not in program.said
        if reads_workloads:
            await deleted_while_down(installation, scene, tmp_path, kept)
        installation.assert_only_read(*(kind.plural for kind in KINDS.values() if reads_workloads))


async def kept_by_workloads(scene: Scene) -> set[str]:
    """End a CronJob's run; return the names that stand for workloads without pods."""
    (job,) = {pod["metadata"]["ownerReferences"][0]["name"] for pod in scene.pods("report")}
    await scene.delete("jobs", job)
    await scene.without_pods("report")
    return {scene.name(name) for name in (*SCALED, "report")}


async def judge(installation: Installation, scene: Scene, kept: set[str]) -> None:
    """Wait for calm and judge all names but those that only their workloads keep."""
    await installation.kubelet.settle()
    await installation.calm(scene.namespace)
    await installation.truth.catch_up(scene.namespace)
    broken = installation.violations(
        lambda name: name.startswith(f"{scene.namespace}/") and name not in kept
    )
    assert not broken, broken
    for name in kept:
        assert [state for state, _ in scene.told(name.split("/")[1])] == ["deployed"]


async def deleted_while_down(
    installation: Installation, scene: Scene, folder: Path, kept: set[str]
) -> None:
    """Delete what was kept while no tracker runs: the next start finds that it is gone."""
    for name, plural in {**SCALED, "report": "cronjobs"}.items():
        await scene.delete(plural, name)
    command = tracker_run("-kubeconfig", str(installation.kubeconfig))
    environ = installation.environ(LEDGER_PATH=str(folder / "ledger.db"), WORKLOADS="true")
    async with Program(command, environ=environ, folder=folder) as program:
        for name in kept:
            await scene.gone(name.split("/")[1])
        await judge(installation, scene, set())
        assert await program.stopped() == 0


async def test_an_annotation_of_a_deployment_comes_and_goes(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """Its controller copies it to the ReplicaSet and leaves it there: nobody may go by that."""
    async with installed(control_plane, rights=rights_with_workloads()) as installation:
        environ = installation.environ(WORKLOADS="true", RECONCILE_INTERVAL="10s")
        command = tracker_run("-kubeconfig", str(installation.kubeconfig))

        def row(scene: Scene) -> Row:
            (found,) = installation.github.table.named(scene.name("web"))
            return found

        async with (
            installation.scene("annotated") as scene,
            Program(command, environ=environ, folder=tmp_path) as program,
        ):
            await program.until_said("in step with the cluster")
            body = scene.deployment("web")
            body["metadata"]["annotations"] = {PREFIX + "team": "x"}
            await scene.create(body)
            await scene.recorded("web")
            assert row(scene).tags == (("team", "x"),)
            assert len(scene.told("web")) == 1
            for team in ("y", None):
                patch = {"metadata": {"annotations": {PREFIX + "team": team}}}
                await scene.patch("deployments", "web", patch)
                expected = () if team is None else (("team", team),)

                def follows(expected: tuple[tuple[str, str], ...] = expected) -> bool:
                    return row(scene).tags == expected

                await installation.github.until(follows, within=40, why=f"team {team}")
            assert {state for state, _ in scene.told("web")} == {"deployed"}
            assert await program.stopped() == 0
