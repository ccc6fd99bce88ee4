"""
Clusters to measure on: a real API server with controllers, or the simulated one.

Both do the same: Deployments of two pods each run, roll out, and have their pods touched. On the
real one controllers make the pods and a kubelet is played, so it is as fast as these are. Pods of
the simulated one carry what pods of a real one carry besides what matters here (`managedFields`,
environment, volumes, conditions), since a watcher pays for that, too.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from tests.support.apiclient import MERGE, ApiFailureError
from tests.support.controlplane import ControlPlane, find_assets
from tests.support.installation import Installation, Scene, installed, rights_of_base
from tests.support.kubelet import image_id_of
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.stage import Played, Stage
from tracker.sandbox.truth import compare, should_stand

__all__ = ["LIFE_EVENTS", "REPLICAS", "Ground", "Real", "Simulated", "ground", "image"]

REPLICAS: Final = 2
LIFE_EVENTS: Final = 4
"""Of a pod that comes and goes: created, running, being deleted, gone."""
NAMESPACE: Final = "bench"
SIDE_BY_SIDE: Final = 100
"""Deployments that are worked on at once."""
WRITERS: Final = 16
"""Requests that a load generator has under way at the real API server."""
CONTROLLER_REQUESTS: Final = 500
"""A second, for the controllers; their default of 20 would be what is measured."""
POLL_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 900.0
REST_SECONDS: Final = 3.0
REST_SHARE: Final = 0.3
"""Of the machine's CPU: a cluster that uses less for that long has done with what was created."""
REST_PATIENCE_SECONDS: Final = 120.0
"""On a machine that is busy with something else there is no such moment."""

Json = dict[str, Any]


class Ground(Protocol):
    """A cluster to measure on, and the GitHub beside it."""

    title: str
    github: SimulatedGitHub
    kubeconfig: Path

    def environ(self) -> dict[str, str]:
        """Return the program's environment."""
        ...

    async def fill(self, deployments: int, replicas: int = REPLICAS) -> None:
        """Run that many Deployments."""
        ...

    async def run_one(self, number: int) -> float:
        """Make one more pod Running; return the moment of the change (`time.monotonic`)."""
        ...

    async def roll_out(self, index: int, version: int) -> None:
        """Give a Deployment another image; return when it is asked for, or done."""
        ...

    async def rolled_out(self, deployments: int, version: int, replicas: int = REPLICAS) -> float:
        """Wait until that many Deployments run a version only; return when that was so."""
        ...

    async def beat(self, times: int) -> None:
        """Change that many pods in a way that matters to nobody."""
        ...

    def requests(self) -> int:
        """Return how many requests the program made to the API server."""
        ...

    def exact(self) -> bool:
        """Tell whether GitHub holds exactly what runs."""
        ...


def image(index: int, version: int = 1) -> str:
    """Return the image of a Deployment."""
    return f"registry.example/acme/app-{index}:{version}"


class Simulated:
    """The simulated API server."""

    title = "simulated API server"

    def __init__(self, cluster: SimulatedCluster, github: SimulatedGitHub, folder: Path) -> None:
        self.github = github
        self.kubeconfig = cluster.write_kubeconfig(folder / "kubeconfig")
        self._cluster = cluster
        self._stage = Stage(cluster, seed=1)
        self._played: list[Played] = []
        self._chance = random.Random(2)  # noqa: S311 - which pod changes, nothing secret

    def environ(self) -> dict[str, str]:
        return {
            "ORG": "acme",
            "BASE_URL": self.github.url,
            "LOGICAL_ENVIRONMENT": "bench",
            "CLUSTER": "bench",
            "API_TOKEN": self.github.token,
        }

    async def fill(self, deployments: int, replicas: int = REPLICAS) -> None:
        for first in range(0, deployments, SIDE_BY_SIDE):
            indices = range(first, min(first + SIDE_BY_SIDE, deployments))
            self._played += await asyncio.gather(
                *(
                    self._stage.start(
                        "Deployment",
                        NAMESPACE,
                        f"app-{index}",
                        {"app": image(index)},
                        replicas=replicas,
                    )
                    for index in indices
                )
            )

    async def run_one(self, number: int) -> float:
        name = f"one-{number}"
        own = f"registry.example/acme/{name}:1"
        owner = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": name,
            "uid": f"uid-of-{name}",
            "controller": True,
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-0", "namespace": NAMESPACE, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "app", "image": own}]},
            "status": {"phase": "Pending"},
        }
        self._cluster.create(body)
        await asyncio.sleep(POLL_SECONDS)  # it is Pending for a while, as pods are
        began = time.monotonic()
        self._cluster.patch("pods", NAMESPACE, f"{name}-0", {"status": running(own)})
        return began

    async def roll_out(self, index: int, version: int) -> None:
        await self._stage.roll_out(self._played[index], {"app": image(index, version)})

    async def rolled_out(
        self,
        deployments: int,  # noqa: ARG002 - all of it is done by `roll_out`
        version: int,  # noqa: ARG002 - the same
        replicas: int = REPLICAS,  # noqa: ARG002 - the same
    ) -> float:
        return time.monotonic()

    async def beat(self, times: int) -> None:
        for _ in range(times):
            played = self._chance.choice(self._played)
            if not played.pods:
                continue  # its rollout has just begun
            annotations = {"beat": str(self._chance.random())}
            self._cluster.patch(
                "pods",
                NAMESPACE,
                self._chance.choice(played.pods),
                {"metadata": {"annotations": annotations}},
            )
        await asyncio.sleep(0)

    def requests(self) -> int:
        return len(self._cluster.requests)

    def exact(self) -> bool:
        truth = should_stand(self._cluster.objects("pods"))
        return all(line.agrees for line in compare(truth, self.github.table))


class Real:
    """A real API server with controllers, and a kubelet that is played."""

    title = "real kube-apiserver"

    def __init__(self, installation: Installation, scene: Scene) -> None:
        self.github = installation.github
        self.kubeconfig = installation.kubeconfig
        self.installation = installation
        self.scene = scene
        self._chance = random.Random(2)  # noqa: S311 - which pod changes, nothing secret

    def environ(self) -> dict[str, str]:
        return {**self.installation.environ(), "DECOMMISSION_DELAY": "5s"}

    async def fill(self, deployments: int, replicas: int = REPLICAS) -> None:
        async def create(index: int) -> None:
            container = {"name": "app", "image": image(index)}
            await self.scene.create(
                self.scene.deployment(f"app-{index}", container, replicas=replicas)
            )

        for first in range(0, deployments, WRITERS):
            indices = range(first, min(first + WRITERS, deployments))
            await asyncio.gather(*(create(index) for index in indices))
        await self._until(lambda: self._running() == deployments * replicas)
        await _rest()

    async def run_one(self, number: int) -> float:
        # The kubelet leaves this image alone, so that the change to Running is made, and timed,
        # here: from the moment at which the API server is asked for it.
        name = f"one-{number}"
        own = f"registry.example/acme/{name}:1"
        self.installation.kubelet.broken.add(own)
        await self.scene.create(self.scene.replicaset(name, {"name": "app", "image": own}))
        await self.scene.until(
            lambda: any(pod["status"].get("containerStatuses") for pod in self.scene.pods(name))
        )
        pod = self.scene.pods(name)[0]["metadata"]["name"]
        began = time.monotonic()
        await self.scene.patch("pods", f"{pod}/status", {"status": running(own)})
        return began

    async def roll_out(self, index: int, version: int) -> None:
        container = {"name": "app", "image": image(index, version)}
        await self.scene.roll_out("deployments", f"app-{index}", container)

    async def rolled_out(self, deployments: int, version: int, replicas: int = REPLICAS) -> float:
        last = 0.0
        moved = -1

        def done() -> bool:
            nonlocal last, moved
            new = self._running(f":{version}")
            if new != moved:
                last, moved = time.monotonic(), new
            there = len(self.installation.truth.pods(self.scene.namespace))
            return new == deployments * replicas == there

        await self._until(done)
        return last

    async def beat(self, times: int) -> None:
        pods = self.installation.truth.pods(self.scene.namespace)
        share, more = divmod(times, WRITERS)

        async def write(count: int) -> None:
            for _ in range(count):
                name = self._chance.choice(pods)["metadata"]["name"]
                path = f"/api/v1/namespaces/{self.scene.namespace}/pods/{name}"
                annotations = {"beat": str(self._chance.random())}
                patch = {"metadata": {"annotations": annotations}}
                try:
                    await self.installation.client.call("PATCH", path, patch, content_type=MERGE)
                except ApiFailureError:
                    continue  # its rollout was faster

        await asyncio.gather(*(write(share + (number < more)) for number in range(WRITERS)))

    def requests(self) -> int:
        return len(self.installation.requests())

    def exact(self) -> bool:
        truth = should_stand(self.installation.truth.pods(self.scene.namespace))
        return all(line.agrees for line in compare(truth, self.github.table))

    def _running(self, ending: str = "") -> int:
        pods = self.installation.truth.pods(self.scene.namespace)
        return sum(
            1
            for pod in pods
            if pod["status"].get("phase") == "Running"
            and pod["spec"]["containers"][0]["image"].endswith(ending)
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        # A poll: asked at each event of ten thousand pods, the condition would be the load.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110 - the same
                await asyncio.sleep(POLL_SECONDS)


@asynccontextmanager
async def ground(folder: Path, *, simulated: bool = False) -> AsyncIterator[Simulated | Real]:
    """Yield a real API server where KUBEBUILDER_ASSETS names one, else a simulated one."""
    assets = None if simulated else find_assets()
    if assets is None:
        async with _Weighty() as cluster, SimulatedGitHub() as github:
            yield Simulated(cluster, github, folder)
        return
    with ControlPlane(assets, controller_requests=CONTROLLER_REQUESTS) as plane:
        async with (
            installed(plane, rights=rights_of_base()) as installation,
            installation.scene("bench") as scene,
        ):
            yield Real(installation, scene)


async def _rest() -> None:
    """Wait until the machine is at rest: after ten thousand pods that takes half a minute."""
    ends = time.monotonic() + REST_PATIENCE_SECONDS
    busy, spent = _cpu_ticks()
    while time.monotonic() < ends:
        was_busy, was_spent = busy, spent
        await asyncio.sleep(REST_SECONDS)
        busy, spent = _cpu_ticks()
        if busy - was_busy < REST_SHARE * (spent - was_spent):
            return


def _cpu_ticks() -> tuple[int, int]:
    """Return how long all cores were busy so far, and how long they were there (proc(5))."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, idle, waiting, *others = (int(field) for field in first.split()[1:9])
    busy = user + nice + system + sum(others)
    return busy, busy + idle + waiting


def running(image: str) -> Json:
    """Return the status of a pod of one container that runs."""
    container = {
        "name": "app",
        "image": image,
        "imageID": image_id_of(image),
        "ready": True,
        "restartCount": 0,
        "state": {"running": {}},
    }
    return {"phase": "Running", "containerStatuses": [container]}


class _Weighty(SimulatedCluster):
    """A simulated cluster whose pods are as heavy as real ones: some four kilobytes of JSON."""

    def create(self, body: Mapping[str, Any]) -> Json:
        if body["kind"] != "Pod":
            return super().create(body)
        heavy = json.loads(json.dumps(body))
        heavy["metadata"] |= {
            "managedFields": [
                {
                    "manager": manager,
                    "operation": "Update",
                    "apiVersion": "v1",
                    "time": "2024-01-15T10:30:00Z",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {f"f:field-{each}": {} for each in range(20)}},
                }
                for manager in ("kube-controller-manager", "kubelet")
            ],
        }
        for container in heavy["spec"]["containers"]:
            container |= {
                "env": [
                    {"name": f"VARIABLE_{each}", "value": f"value of variable {each}"}
                    for each in range(12)
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                "volumeMounts": [
                    {
                        "name": "kube-api-access",
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                        "readOnly": True,
                    }
                ],
                "terminationMessagePath": "/dev/termination-log",
                "imagePullPolicy": "IfNotPresent",
            }
        heavy["spec"] |= {
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "tolerations": [
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
                for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
            ],
        }
        heavy.setdefault("status", {})["conditions"] = [
            {"type": kind, "status": "True", "lastTransitionTime": "2024-01-15T10:30:00Z"}
            for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
        ]
        return super().create(heavy)
