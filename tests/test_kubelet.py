"""The kubelet player must be faithful, on the simulated API server and on a real one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.apiclient import STRATEGIC, ApiClient
from tests.support.kubelet import Kubelet, digest_of, image_id_of
from tracker.sandbox.cluster import SimulatedCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.controlplane import ControlPlane

Json = dict[str, Any]

namespace_numbers = itertools.count(1)


class Place:
    """A client, a namespace of this test's own, and what tests do there."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.pods = f"/api/v1/namespaces/{namespace}/pods"

    async def create(self, name: str, spec: Json, **metadata: object) -> Json:
        """Create a pod."""
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name} | metadata}
        return await self.client.call("POST", self.pods, body | {"spec": spec})

    async def get(self, name: str) -> Json:
        """Return a pod."""
        return await self.client.call("GET", f"{self.pods}/{name}")

    async def version(self) -> str:
        """Return the resource version of now."""
        listed = await self.client.call("GET", self.pods, query={"limit": "1"})
        return str(listed["metadata"]["resourceVersion"])


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.e2e)])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    namespace = f"kubelet-{next(namespace_numbers)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    if request.param == "real":
        plane: ControlPlane = request.getfixturevalue("control_plane")
        async with ApiClient(plane.url, token=plane.token, ca_file=plane.ca_file) as client:
            await client.call("POST", "/api/v1/namespaces", body)
            yield Place(client, namespace)
        return
    async with SimulatedCluster() as cluster, ApiClient(cluster.url, token=cluster.token) as client:
        await client.call("POST", "/api/v1/namespaces", body)
        yield Place(client, namespace)


ONE = {"containers": [{"name": "app", "image": "ghcr.io/acme/app:1"}]}


@pytest.mark.parametrize(
    ("image", "image_id"),
    [
        ("nginx", f"nginx@{digest_of('nginx')}"),
        ("ghcr.io/acme/app:1", f"ghcr.io/acme/app@{digest_of('ghcr.io/acme/app:1')}"),
        ("localhost:5000/app", f"localhost:5000/app@{digest_of('localhost:5000/app')}"),
        ("app:1@sha256:abc", "app@sha256:abc"),
    ],
)
def test_an_image_id_is_the_repository_at_a_digest_made_from_the_image(
    image: str, image_id: str
) -> None:
    assert image_id_of(image) == image_id


async def test_a_pod_is_bound_and_runs_with_the_ids_of_its_images(place: Place) -> None:
    spec = ONE | {
        "initContainers": [
            {"name": "setup", "image": "setup:1"},
            {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
        ]
    }
    async with Kubelet(
        place.client, namespace=place.namespace, image_ids={"setup:1": "junk"}
    ) as kubelet:
        async with place.client.watch(place.pods, resourceVersion=await place.version()) as watch:
            await place.create("a", spec)
            events = await watch.take(3)
        await kubelet.settle()
    assert [
        (e["type"], e["object"]["spec"].get("nodeName"), e["object"]["status"]["phase"])
        for e in events
    ] == [
        ("ADDED", None, "Pending"),
        ("MODIFIED", "node-1", "Pending"),
        ("MODIFIED", "node-1", "Running"),
    ]
    status = events[-1]["object"]["status"]
    [container] = status["containerStatuses"]
    assert container["imageID"] == image_id_of("ghcr.io/acme/app:1")
    assert "running" in container["state"]
    ended, sidecar = status["initContainerStatuses"]
    assert (ended["imageID"], list(ended["state"])) == ("junk", ["terminated"])
    assert (sidecar["imageID"], list(sidecar["state"])) == (image_id_of("proxy:1"), ["running"])


async def test_a_deleted_pod_terminates_succeeds_and_goes(place: Place) -> None:
    async with Kubelet(place.client, namespace=place.namespace) as kubelet:
        await place.create("a", ONE)
        async with place.client.watch(place.pods) as watch:
            while (await watch.take(1))[0]["object"]["status"]["phase"] != "Running":
                pass
            await place.client.call("DELETE", f"{place.pods}/a")
            events = await watch.take(4)
        await kubelet.settle()
    assert [
        (
            e["type"],
            e["object"]["status"]["phase"],
            e["object"]["metadata"]["deletionGracePeriodSeconds"],
        )
        for e in events
    ] == [
        ("MODIFIED", "Running", 30),
        ("MODIFIED", "Succeeded", 30),
        ("MODIFIED", "Succeeded", 0),
        ("DELETED", "Succeeded", 0),
    ]
    [container] = events[-1]["object"]["status"]["containerStatuses"]
    assert list(container["state"]) == ["terminated"]


async def test_a_kubelet_told_not_to_terminate_leaves_pods_terminating(place: Place) -> None:
    async with Kubelet(place.client, namespace=place.namespace, terminate=False) as kubelet:
        await place.create("a", ONE)
        async with place.client.watch(place.pods) as watch:
            while (await watch.take(1))[0]["object"]["status"]["phase"] != "Running":
                pass
            await place.client.call("DELETE", f"{place.pods}/a")
            await watch.take(1)
            await kubelet.settle()
            assert (await place.get("a"))["status"]["phase"] == "Running"
            await kubelet.finish_deletions()
            while (await watch.take(1))[0]["type"] != "DELETED":
                pass


async def test_a_pod_of_a_broken_image_stays_pending(place: Place) -> None:
    async with Kubelet(
        place.client, namespace=place.namespace, broken={"ghcr.io/acme/app:1"}
    ) as kubelet:
        async with place.client.watch(place.pods, resourceVersion=await place.version()) as watch:
            await place.create("a", ONE)
            events = await watch.take(3)
        await kubelet.settle()
    status = events[-1]["object"]["status"]
    assert status["phase"] == "Pending"
    [container] = status["containerStatuses"]
    assert container["state"]["waiting"]["reason"] == "ImagePullBackOff"
    assert container["imageID"] == ""


@pytest.mark.parametrize(
    ("instant", "phases"),
    [
        pytest.param(False, ["Pending", "Pending", "Running", "Succeeded"], id="runs-first"),
        pytest.param(True, ["Pending", "Pending", "Succeeded"], id="never-seen-running"),
    ],
)
async def test_a_pod_of_a_job_ends_by_itself(
    place: Place,
    *,
    instant: bool,
    phases: list[str],
) -> None:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": True}
    async with Kubelet(place.client, namespace=place.namespace, instant_jobs=instant) as kubelet:
        async with place.client.watch(place.pods, resourceVersion=await place.version()) as watch:
            made = await place.create("a", ONE, **await job_reference(place, owner))
            events = await watch.take(len(phases))
        await kubelet.settle()
    assert made["metadata"]["ownerReferences"][0]["kind"] == "Job"
    assert [event["object"]["status"]["phase"] for event in events] == phases


async def job_reference(place: Place, owner: Json) -> Json:
    """Create a Job that no controller here works on and return the reference to it."""
    template = {"spec": ONE | {"restartPolicy": "Never"}}
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j"},
        "spec": {"managedBy": "example.com/nobody", "template": template},
    }
    path = f"/apis/batch/v1/namespaces/{place.namespace}/jobs"
    job = await place.client.call("POST", path, body)
    reference = owner | {"uid": job["metadata"]["uid"], "controller": True}
    return {"ownerReferences": [reference]}


async def test_an_image_changed_in_place_is_run_after_a_restart(place: Place) -> None:
    async with Kubelet(place.client, namespace=place.namespace) as kubelet:
        await place.create("a", ONE)
        async with place.client.watch(place.pods) as watch:
            while (await watch.take(1))[0]["object"]["status"]["phase"] != "Running":
                pass
        patch = {"spec": {"containers": [{"name": "app", "image": "ghcr.io/acme/app:2"}]}}
        await place.client.call("PATCH", f"{place.pods}/a", patch, content_type=STRATEGIC)
        before = await place.get("a")
        await kubelet.restart_in_place(place.namespace, "a")
        after = await place.get("a")
    assert before["status"]["containerStatuses"][0]["imageID"] == image_id_of("ghcr.io/acme/app:1")
    assert after["status"]["containerStatuses"][0]["imageID"] == image_id_of("ghcr.io/acme/app:2")
