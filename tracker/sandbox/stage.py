"""
What controllers, the scheduler and the kubelet do in a real cluster, played on a simulated one.

A `Stage` starts, rolls out, scales and deletes workloads: it writes the objects that a real
controller would (a Deployment or an Argo Rollout has a ReplicaSet, its pods carry the template's
hash, a Job is named after its CronJob and the minute), and takes each pod from Pending to Running
and, when it is deleted, through its end. Pods change one by one, so that whoever watches sees a
cluster at work. A workload of the kind `Pod` is a pod that nobody controls.
"""

import asyncio
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tracker.sandbox.cluster import SimulatedCluster

__all__ = ["Played", "Stage", "digest_of"]

NODES = 3
BREATH_SECONDS = 0.005
"""Between two changes: the stage gives way, and a watcher sees them one after the other."""
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # what Kubernetes makes up names from
_HASH_LABELS = {"Deployment": "pod-template-hash", "Rollout": "rollouts-pod-template-hash"}
"""The kinds that have a ReplicaSet between them and their pods, and the label of its hash."""
_API_VERSIONS = {
    "Deployment": "apps/v1",
    "ReplicaSet": "apps/v1",
    "ReplicationController": "v1",
    "Rollout": "argoproj.io/v1alpha1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
}


def digest_of(image: str) -> str:
    """Return the manifest digest that an image has on the stage."""
    return "sha256:" + hashlib.sha256(image.encode()).hexdigest()


@dataclass(slots=True, kw_only=True)
class Played:
    """A workload on the stage: `images` by container name, and the names of its pods."""

    kind: str
    namespace: str
    name: str
    images: dict[str, str]
    pods: list[str] = field(default_factory=list)
    owner: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class Stage:
    """Workloads on a simulated cluster; `seed` decides about made-up names."""

    def __init__(self, cluster: SimulatedCluster, *, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)  # noqa: S311 - names on a stage, nothing secret
        self._nodes = 0

    async def start(
        self, kind: str, namespace: str, name: str, images: dict[str, str], *, replicas: int
    ) -> Played:
        """Create a workload and run its pods. A CronJob's are of one Job that runs now."""
        workload = Played(kind=kind, namespace=namespace, name=name, images=images)
        if kind != "Pod":
            self._create(kind, namespace, name, owner=None, replicas=replicas)
            self._give_owner(workload, replicas)
        await self._add(workload, replicas)
        return workload

    async def roll_out(self, workload: Played, images: dict[str, str]) -> None:
        """Replace all pods by ones of other images, new ones first, as a Deployment does."""
        old, workload.pods, workload.images = workload.pods, [], images
        self._give_owner(workload, len(old))
        for name in old:
            await self._add(workload, 1)
            await self._end(workload.namespace, name)

    async def scale(self, workload: Played, replicas: int) -> None:
        """Add or end pods until there are that many."""
        if (missing := replicas - len(workload.pods)) > 0:
            await self._add(workload, missing)
        while len(workload.pods) > replicas:
            await self._end(workload.namespace, workload.pods.pop())

    async def finish(self, workload: Played) -> None:
        """End what the pods of a Job do, in success; they stay until they are deleted."""
        for name in workload.pods:
            done = _running(workload.images, state={"terminated": {"exitCode": 0}})
            self._cluster.patch(
                "pods", workload.namespace, name, {"status": done | {"phase": "Succeeded"}}
            )
            await asyncio.sleep(BREATH_SECONDS)

    async def delete(self, workload: Played) -> None:
        """Delete a workload with all that belongs to it."""
        owner = workload.owner
        if owner["kind"] != workload.kind:
            self._cluster.delete(_plural(owner["kind"]), workload.namespace, owner["name"])
        self._cluster.delete(_plural(workload.kind), workload.namespace, workload.name)
        while workload.pods:
            await self._end(workload.namespace, workload.pods.pop())

    def _create(
        self, kind: str, namespace: str, name: str, *, owner: dict[str, Any] | None, replicas: int
    ) -> dict[str, Any]:
        """Create the object of a workload and return how its dependents refer to it."""
        metadata: dict[str, Any] = {"name": name, "namespace": namespace}
        if owner is not None:
            metadata["ownerReferences"] = [owner]
        created = self._cluster.create(
            {
                "apiVersion": _API_VERSIONS[kind],
                "kind": kind,
                "metadata": metadata,
                "spec": {"replicas": replicas},
            }
        )
        return {
            "apiVersion": _API_VERSIONS[kind],
            "kind": kind,
            "name": name,
            "uid": created["metadata"]["uid"],
            "controller": True,
        }

    def _give_owner(self, workload: Played, replicas: int) -> None:
        """Create what stands between a workload and its pods, if anything does."""
        namespace, name = workload.namespace, workload.name
        own = self._cluster.get(_plural(workload.kind), namespace, name)
        uid = None if own is None else own["metadata"]["uid"]
        top = {
            "apiVersion": _API_VERSIONS[workload.kind],
            "kind": workload.kind,
            "name": name,
            "uid": uid,
            "controller": True,
        }
        if workload.kind in _HASH_LABELS:
            template_hash = self._letters(10)
            workload.labels = {"app": name, _HASH_LABELS[workload.kind]: template_hash}
            workload.owner = self._create(
                "ReplicaSet", namespace, f"{name}-{template_hash}", owner=top, replicas=replicas
            )
        elif workload.kind == "CronJob":
            minute = int(datetime.now(tz=UTC).timestamp() // 60)
            workload.owner = self._create(
                "Job", namespace, f"{name}-{minute}", owner=top, replicas=replicas
            )
        else:
            workload.owner = top

    async def _add(self, workload: Played, number: int) -> None:
        for name in list(self._pod_names(workload, number)):
            self._nodes += 1
            pod = _pod(workload, name, node=f"node-{self._nodes % NODES + 1}")
            self._cluster.create(pod)
            await asyncio.sleep(BREATH_SECONDS)
            running = {"status": _running(workload.images)}
            self._cluster.patch("pods", workload.namespace, name, running)
            workload.pods.append(name)
            await asyncio.sleep(BREATH_SECONDS)

    async def _end(self, namespace: str, name: str) -> None:
        self._cluster.delete("pods", namespace, name)
        await asyncio.sleep(BREATH_SECONDS)
        self._cluster.delete("pods", namespace, name, grace_seconds=0)
        await asyncio.sleep(BREATH_SECONDS)

    def _pod_names(self, workload: Played, number: int) -> Iterator[str]:
        for index in range(len(workload.pods), len(workload.pods) + number):
            if workload.kind == "Pod":
                yield workload.name
                continue
            suffix = str(index) if workload.kind == "StatefulSet" else self._letters(5)
            yield f"{workload.owner['name']}-{suffix}"

    def _letters(self, number: int) -> str:
        return "".join(self._chance.choices(_LETTERS, k=number))


def _plural(kind: str) -> str:
    return kind.lower() + "s"


def _pod(workload: Played, name: str, *, node: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": workload.namespace,
            "labels": dict(workload.labels),
            "ownerReferences": [workload.owner] if workload.owner else [],
        },
        "spec": {
            "nodeName": node,
            "containers": [
                {"name": container, "image": image} for container, image in workload.images.items()
            ],
        },
        "status": {"phase": "Pending"},
    }


def _running(images: dict[str, str], *, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a status as containerd's kubelet writes it once all containers run."""
    return {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": container,
                "image": image,
                "imageID": f"{image.rpartition(':')[0]}@{digest_of(image)}",
                "ready": True,
                "state": {"running": {}} if state is None else state,
            }
            for container, image in images.items()
        ],
    }
