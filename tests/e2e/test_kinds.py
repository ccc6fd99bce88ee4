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
    READING,
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


def rollout(scene: Scene) -> Json:
    """Return the ReplicaSet of a Rollout. Nobody here knows those: a label alone tells of it."""
    body = scene.replicaset("rollout-7c9")
    labels = {"app": "rollout", "rollouts-pod-template-hash": "7c9"}
    body["spec"]["selector"]["matchLabels"] = labels
    body["spec"]["template"]["metadata"]["labels"] = labels
    return body


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
    await scene.create(rollout(scene))
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


@pytest.mark.fault("W9")
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


def states(scene: Scene, workload: str, container: str = "app") -> list[str]:
    """Return what GitHub was told of a workload, in order."""
    return [state for state, _ in scene.told(workload, container)]


@pytest.mark.fault("W9")
async def test_every_end_is_told_once_where_workloads_are_read(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    cascades = {"background": "Background", "foreground": "Foreground", "orphan": "Orphan"}
    async with installed(control_plane, rights=rights_with_workloads()) as installation:
        environ = installation.environ(WORKLOADS="true")
        command = tracker_run("-kubeconfig", str(installation.kubeconfig))
        async with (
            installation.scene("ends") as scene,
            Program(command, environ=environ, folder=tmp_path) as program,
        ):
            await program.until_said("in step with the cluster")
            both = (scene.container(), scene.container(name="proxy"))
            await scene.create(scene.deployment("two", *both))
            for name in cascades:
                await scene.create(scene.deployment(name, replicas=2))
            for name in cascades:
                await scene.running(name, 2)
                await scene.recorded(name)
            await scene.recorded("two")
            await scene.recorded("two", container="proxy")
            await scene.roll_out("deployments", "two", scene.container())
            await scene.gone("two", container="proxy")
            for name, propagation in cascades.items():
                await scene.delete("deployments", name, propagation)
            await scene.gone("background")
            await scene.gone("foreground")
            await scene.judge(scene.namespace)
            assert states(scene, "orphan") == ["deployed"]
            (left,) = {
                pod["metadata"]["ownerReferences"][0]["name"] for pod in scene.pods("orphan")
            }
            await scene.delete("replicasets", left)
            await scene.gone("orphan")
            await scene.judge(scene.namespace)
            for name in cascades:
                assert states(scene, name) == ["deployed", "decommissioned"]
            assert states(scene, "two") == ["deployed"]
            assert states(scene, "two", "proxy") == ["deployed", "decommissioned"]
            assert await program.stopped() == 0
        installation.assert_only_read(*(kind.plural for kind in KINDS.values()))


def can_read_deployments(installation: Installation) -> bool:
    """Tell whether the API server lets the tracker's account list Deployments."""
    path = "/apis/apps/v1/deployments?limit=1"
    return installation.plane.request("GET", path, token=installation.token)[0] == 200


@pytest.mark.fault("W10")
async def test_rights_that_are_taken_away_hold_names_until_they_are_back(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with installed(control_plane, rights=rights_with_workloads()) as installation:
        environ = installation.environ(WORKLOADS="true", RECONCILE_INTERVAL="10s")
        command = tracker_run("-kubeconfig", str(installation.kubeconfig))
        async with (
            installation.scene("rights") as scene,
            Program(command, environ=environ, folder=tmp_path) as program,
        ):
            await program.until_said("in step with the cluster")
            for name in ("scaled", "deleted"):
                await scene.create(scene.deployment(name))
                await scene.recorded(name)
            await scene.create(rollout(scene))
            await scene.recorded("rollout")

            control_plane.apply(rights_of_base()[0])
            deadline = time.monotonic() + 10
            while can_read_deployments(installation):
                assert time.monotonic() < deadline, "the role was never seen by the authorizer"
            await scene.scale("deployments", "scaled", 0)
            await scene.delete("deployments", "deleted")
            await scene.without_pods("deleted")
            await program.until_said("workloads can't be read")
            await scene.delete("replicasets", "rollout-7c9")
            # It goes by its pods alone, and it was absent last: the others were looked at before.
            await scene.gone("rollout")
            assert states(scene, "scaled") == states(scene, "deleted") == ["deployed"]

            control_plane.apply(rights_with_workloads()[0])
            await scene.gone("deleted")
            await program.until_said("workloads can be read again")
            await judge(installation, scene, {scene.name("scaled")})
            assert await program.stopped() == 0
            assert "Traceback" not in program.said
        assert {each.verb for each in installation.requests()} <= READING


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
