"""
What people do with workloads, on a real API server with its real controllers.

One tracker, started as anybody would and with the rights of the manifests, runs through all of
it. Each test has a namespace of its own, waits for what must come, then for calm, and is judged
by the checker: GitHub holds what the cluster runs, and nothing was posted needlessly or falsely.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.apiclient import STRATEGIC
from tests.support.controlplane import ControlPlane
from tests.support.installation import Installation, Scene, installed, rights_of_base
from tests.support.kubelet import JobEnd, image_id_of
from tests.support.program import Program, tracker_run

pytestmark = [
    pytest.mark.fault("W3", "W4"),
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
]

CALM = "workloads-calm"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    """Run one tracker for all scenarios."""
    folder: Path = tmp_path_factory.mktemp("tracker")
    async with installed(control_plane, rights=rights_of_base()) as installation:
        await installation.create_namespace(CALM)
        command = tracker_run("-kubeconfig", str(installation.kubeconfig))
        async with Program(command, environ=installation.environ(), folder=folder) as program:
            await program.until_said("in step with the cluster")
            yield installation
            assert await program.stopped() == 0
            assert "Traceback" not in program.said
            assert program.lines


@pytest_asyncio.fixture(loop_scope="module")
async def scene(installation: Installation, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """Give each test a namespace that is named after it."""
    title = request.node.name.removeprefix("test_").partition("[")[0].replace("_", "-")[:40]
    async with installation.scene(title.strip("-")) as scene:
        yield scene


async def test_a_new_deployment_is_recorded_once(scene: Scene) -> None:
    await scene.create(scene.deployment("web", replicas=3))
    first = await scene.recorded("web")
    await scene.running("web", 3)
    await scene.judge(CALM)
    assert scene.told("web") == [first]


async def test_a_rollout_tells_the_new_image_once(scene: Scene) -> None:
    await scene.create(scene.deployment("web", replicas=3))
    first = await scene.recorded("web")
    await scene.roll_out("deployments", "web", scene.container("2"))
    second = await scene.recorded("web", "2")
    await scene.running("web", 3, "2")
    await scene.judge(CALM)
    assert scene.told("web") == [first, second]


async def test_a_workload_that_is_deleted_and_created_at_once_ends_deployed(scene: Scene) -> None:
    await scene.create(scene.deployment("web", replicas=2))
    await scene.recorded("web")
    await scene.delete("deployments", "web")
    await scene.create(scene.deployment("web", scene.container("2"), replicas=2))
    second = await scene.recorded("web", "2")
    await scene.running("web", 2, "2")
    await scene.judge(CALM)
    assert scene.told("web")[-1] == second


async def test_a_rollout_that_is_rolled_back_at_once_ends_where_it_began(scene: Scene) -> None:
    await scene.create(scene.deployment("web", replicas=2))
    first = await scene.recorded("web")
    await scene.roll_out("deployments", "web", scene.container("2"))
    await scene.roll_out("deployments", "web", scene.container("1"))
    await scene.rolled_out("web")
    await scene.running("web", 2)
    await scene.judge(CALM)
    told = scene.told("web")
    assert told[-1] == first
    assert len(told) <= 3
    assert {status for status, _ in told} == {"deployed"}


async def test_a_rollout_to_a_broken_image_and_back_tells_nothing(scene: Scene) -> None:
    scene.installation.kubelet.broken.add(scene.image("broken"))
    await scene.create(scene.deployment("web", replicas=2))
    first = await scene.recorded("web")
    await scene.running("web", 2)
    await scene.roll_out("deployments", "web", scene.container("broken"))
    await scene.until(lambda: any(pod["status"]["phase"] == "Pending" for pod in scene.pods("web")))
    await scene.judge(CALM)
    await scene.roll_out("deployments", "web", scene.container("1"))
    await scene.running("web", 2)
    await scene.judge(CALM)
    assert scene.told("web") == [first]


async def test_a_workload_that_never_starts_is_never_told(scene: Scene) -> None:
    scene.installation.kubelet.broken.add(scene.image())
    await scene.create(scene.deployment("web"))
    await scene.until(lambda: len(scene.pods("web")) == 1)
    await scene.delete("deployments", "web")
    await scene.without_pods("web")
    await scene.judge(CALM)
    assert scene.names_told() == set()


async def test_scaling_between_one_and_five_tells_nothing(scene: Scene) -> None:
    await scene.create(scene.deployment("web"))
    first = await scene.recorded("web")
    for replicas in (5, 1):
        await scene.scale("deployments", "web", replicas)
    await scene.judge(CALM)
    assert scene.told("web") == [first]


async def test_scaling_to_zero_and_back_is_an_end_and_a_start(scene: Scene) -> None:
    await scene.create(scene.deployment("web"))
    first = await scene.recorded("web")
    await scene.scale("deployments", "web", 0)
    end = await scene.gone("web")
    await scene.scale("deployments", "web", 1)
    await scene.recorded("web")
    await scene.judge(CALM)
    assert scene.told("web") == [first, end, first]


async def test_a_container_that_is_taken_out_is_decommissioned_alone(scene: Scene) -> None:
    sidecar = scene.container(name="proxy")
    await scene.create(scene.deployment("web", scene.container(), sidecar, replicas=2))
    first = await scene.recorded("web")
    proxy = await scene.recorded("web", container="proxy")
    await scene.roll_out("deployments", "web", scene.container())
    end = await scene.gone("web", container="proxy")
    await scene.judge(CALM)
    assert scene.told("web") == [first]
    assert scene.told("web", "proxy") == [proxy, end]


@pytest.mark.fault("W6")
@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
async def test_a_deleted_deployment_is_decommissioned_once(scene: Scene, propagation: str) -> None:
    await scene.create(scene.deployment("web", replicas=3))
    first = await scene.recorded("web")
    await scene.running("web", 3)
    await scene.delete("deployments", "web", propagation)
    end = await scene.gone("web")
    await scene.judge(CALM)
    assert scene.told("web") == [first, end]


async def test_pods_that_a_deleted_deployment_leaves_behind_stay_deployed(scene: Scene) -> None:
    await scene.create(scene.deployment("web", replicas=2))
    first = await scene.recorded("web")
    await scene.running("web", 2)
    await scene.delete("deployments", "web", "Orphan")
    await scene.judge(CALM)
    assert scene.told("web") == [first]
    await scene.running("web", 2)
    # Without its ReplicaSet, too, nobody answers for a pod any more: bare pods are not recorded.
    (owner,) = {pod["metadata"]["ownerReferences"][0]["name"] for pod in scene.pods("web")}
    await scene.delete("replicasets", owner, "Orphan")
    end = await scene.gone("web")
    await scene.judge(CALM)
    assert scene.told("web") == [first, end]
    assert len(scene.images("web")) == 2


async def test_a_replicaset_of_its_own_is_known_by_its_name(scene: Scene) -> None:
    await scene.create(scene.replicaset("web", replicas=2))
    first = await scene.recorded("web")
    await scene.delete("replicasets", "web")
    end = await scene.gone("web")
    await scene.judge(CALM)
    assert scene.told("web") == [first, end]


async def test_a_daemonset_is_recorded_and_rolled_out(
    installation: Installation, scene: Scene
) -> None:
    await installation.create_node("node-1")
    await scene.create(scene.workload("DaemonSet", "agent"))
    first = await scene.recorded("agent")
    await scene.roll_out("daemonsets", "agent", scene.container("2"))
    second = await scene.recorded("agent", "2")
    await scene.delete("daemonsets", "agent")
    end = await scene.gone("agent", "2")
    await scene.judge(CALM)
    # Its pod is replaced in place: the old one goes before the new one comes.
    assert [state for state in scene.told("agent") if state[0] == "deployed"] == [first, second]
    assert scene.told("agent")[-1] == end


async def test_a_replaced_pod_of_a_statefulset_tells_nothing(scene: Scene) -> None:
    await scene.create(scene.workload("StatefulSet", "db", replicas=2, serviceName="db"))
    first = await scene.recorded("db")
    await scene.running("db", 2)
    before = {pod["metadata"]["uid"] for pod in scene.pods("db")}
    await scene.delete("pods", "db-1")
    await scene.until(
        lambda: (
            len(scene.images("db")) == 2
            and len({pod["metadata"]["uid"] for pod in scene.pods("db")} - before) == 1
        )
    )
    await scene.judge(CALM)
    assert scene.told("db") == [first]
    await scene.roll_out("statefulsets", "db", scene.container("2"))
    await scene.running("db", 2, "2")
    second = await scene.recorded("db", "2")
    await scene.judge(CALM)
    assert scene.told("db")[-1] == second
    assert {status for status, _ in scene.told("db")} == {"deployed"}


@pytest.mark.parametrize("instant", [False, True], ids=["seen-running", "never-seen-running"])
@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
async def test_a_job_is_recorded_until_it_is_deleted(
    scene: Scene,
    instant: bool,  # noqa: FBT001 - a parameter of the table
    end: JobEnd,
) -> None:
    kubelet = scene.installation.kubelet
    kubelet.instant_jobs, kubelet.job_end = instant, end
    try:
        job = scene.job("import")
        job["spec"]["backoffLimit"] = 0
        await scene.create(job)
        first = await scene.recorded("import")
        await scene.until(lambda: [pod["status"]["phase"] for pod in scene.pods("import")] == [end])
        await scene.judge(CALM)
        await scene.delete("jobs", "import")
        last = await scene.gone("import")
        await scene.judge(CALM)
        assert scene.told("import") == [first, last]
    finally:
        kubelet.instant_jobs, kubelet.job_end = False, "Succeeded"


@pytest.mark.fault("W5")
async def test_the_runs_of_a_cronjob_are_one_deployment_that_outlasts_them(scene: Scene) -> None:
    template = {"spec": {"template": scene.template("report", restartPolicy="Never")}}
    spec = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": template}
    metadata = {"name": "report", "namespace": scene.namespace}
    cronjob = await scene.create(
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": spec}
    )
    # What the controller would create at its hours: named after the time it was scheduled for.
    minute = int(time.time() // 60)
    runs = [f"report-{minute - 60}", f"report-{minute}"]
    for run in runs:
        job = scene.job(run, owner=cronjob)
        job["spec"]["template"] = scene.template("report", restartPolicy="Never")
        await scene.create(job)
    await scene.until(
        lambda: [pod["status"]["phase"] for pod in scene.pods("report")] == ["Succeeded"] * 2
    )
    first = await scene.recorded("report")
    await scene.delete("jobs", runs[0])
    await scene.until(lambda: len(scene.pods("report")) == 1)
    await scene.judge(CALM)
    assert scene.told("report") == [first]
    await scene.delete("cronjobs", "report")
    await scene.without_pods("report")
    last = await scene.gone("report")
    await scene.judge(CALM)
    assert scene.told("report") == [first, last]
    assert scene.names_told() == {scene.name("report")}


async def test_a_deleted_namespace_ends_all_that_ran_in_it(scene: Scene) -> None:
    for name in ("web", "api"):
        await scene.create(scene.deployment(name, replicas=2))
        await scene.recorded(name)
        await scene.running(name, 2)
    await scene.installation.client.call("DELETE", f"/api/v1/namespaces/{scene.namespace}")
    ends = {name: await scene.gone(name) for name in ("web", "api")}
    await scene.judge(CALM)
    for name, end in ends.items():
        assert [state for state in scene.told(name) if state[0] == "decommissioned"] == [end]


async def test_an_evicted_pod_that_lingers_neither_holds_nor_ends_anything(scene: Scene) -> None:
    await scene.create(scene.deployment("web", replicas=2))
    first = await scene.recorded("web")
    await scene.running("web", 2)
    evicted = scene.pods("web")[0]["metadata"]["name"]
    status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
    await scene.patch("pods", f"{evicted}/status", {"status": status})
    await scene.until(lambda: len(scene.pods("web")) == 3 and len(scene.images("web")) == 2)
    await scene.judge(CALM)
    assert scene.told("web") == [first]
    await scene.roll_out("deployments", "web", scene.container("2"))
    second = await scene.recorded("web", "2")
    await scene.until(lambda: scene.images("web") == [scene.image("2")] * 2)
    await scene.patch("deployments", "web", {"spec": {"replicas": 0}})
    # The evicted pod is there still, and it runs nothing.
    end = await scene.gone("web", "2")
    await scene.judge(CALM)
    assert scene.told("web") == [first, second, end]
    assert [pod["metadata"]["name"] for pod in scene.pods("web")] == [evicted]


async def test_an_image_that_is_changed_in_place_is_told(scene: Scene) -> None:
    await scene.create(scene.replicaset("web"))
    first = await scene.recorded("web")
    (pod,) = scene.pods("web")
    name = pod["metadata"]["name"]
    patch = {"spec": {"containers": [scene.container("2")]}}
    await scene.patch("pods", name, patch, content=STRATEGIC)
    await scene.judge(CALM)
    # The new tag is not told with the old digest, though that is all that runs so far.
    assert set(scene.told("web")) == {first}
    await scene.installation.kubelet.restart_in_place(scene.namespace, name)
    second = await scene.recorded("web", "2")
    await scene.judge(CALM)
    assert set(scene.told("web")) == {first, second}
    assert [pod["metadata"]["name"] for pod in scene.pods("web")] == [name]


async def test_init_containers_and_sidecars_are_recorded_once_each(scene: Scene) -> None:
    init = [
        scene.container(name="migrate"),
        scene.container(name="proxy", restartPolicy="Always"),
    ]
    await scene.create(scene.workload("Deployment", "web", pod={"initContainers": init}))
    names = ["app", "migrate", "proxy"]
    first = {name: await scene.recorded("web", container=name) for name in names}
    await scene.delete("deployments", "web")
    last = {name: await scene.gone("web", container=name) for name in names}
    await scene.judge(CALM)
    for name in names:
        assert scene.told("web", name) == [first[name], last[name]]
    assert scene.names_told() == {scene.name("web", name) for name in names}


async def test_ephemeral_containers_are_not_recorded(scene: Scene) -> None:
    await scene.create(scene.replicaset("web"))
    first = await scene.recorded("web")
    (pod,) = scene.pods("web")
    name = pod["metadata"]["name"]
    debug = {"name": "debug", "image": "registry.example/debug:1", "targetContainerName": "app"}
    patch = {"spec": {"ephemeralContainers": [debug]}}
    await scene.patch("pods", f"{name}/ephemeralcontainers", patch, content=STRATEGIC)
    status = {
        "name": "debug",
        "image": debug["image"],
        "imageID": image_id_of(debug["image"]),
        "ready": False,
        "restartCount": 0,
        "state": {"running": {}},
    }
    told = {"status": {"ephemeralContainerStatuses": [status]}}
    await scene.patch("pods", f"{name}/status", told, content=STRATEGIC)
    await scene.until(lambda: "ephemeralContainerStatuses" in scene.pods("web")[0]["status"])
    await scene.judge(CALM)
    assert scene.told("web") == [first]
    assert scene.names_told() == {scene.name("web")}


@pytest.mark.fault("W7")
async def test_pods_that_no_controller_owns_are_not_recorded(scene: Scene) -> None:
    node = await scene.installation.create_node("node-1")
    static = {
        "annotations": {"kubernetes.io/config.mirror": "0123456789abcdef"},
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "name": "node-1",
                "uid": node["metadata"]["uid"],
                "controller": True,
            }
        ],
    }
    for name, metadata, spec in (
        ("bare", {}, {}),
        ("static-node-1", static, {"nodeName": "node-1"}),
    ):
        body = scene.template(name, **spec)
        body["metadata"] |= {"name": name, **metadata}
        await scene.create({"apiVersion": "v1", "kind": "Pod", **body})
        await scene.running(name)
    await scene.judge(CALM)
    assert scene.names_told() == set()


async def test_the_tracker_only_ever_read_pods_and_was_never_refused(
    installation: Installation,
) -> None:
    await installation.calm(CALM)
    installation.assert_only_read()


async def test_nothing_was_told_needlessly_or_falsely_in_all_the_time(
    installation: Installation,
) -> None:
    await installation.calm(CALM)
    broken = installation.violations(lambda _name: True)
    assert not broken, broken
