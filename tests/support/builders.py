"""
Builders of what the tests feed in: pods as the API server sends them, and the core's values.

Everything has a default, so that a test names only what it is about. Times are whole seconds after
`EPOCH`, digests come from one hex digit.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tracker.annotations import NO_MARKS, Marks
from tracker.images import Digest, Image, SkipReason
from tracker.pods import Container, Pod
from tracker.records import Record, Scope, Status
from tracker.workloads import Workload

__all__ = [
    "EPOCH",
    "SCOPE",
    "TEMPLATE",
    "container",
    "digest",
    "image",
    "pod",
    "raw_container",
    "raw_owner",
    "raw_pod",
    "record",
    "workload",
]

EPOCH: Final = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
TEMPLATE: Final = "{{namespace}}/{{deploymentName}}/{{containerName}}"
SCOPE: Final = Scope(
    org="acme", logical_environment="prod", physical_environment="eu", cluster="c1"
)
HASH: Final = "5d8f7c9b4"


def digest(letter: str = "a") -> Digest:
    """Return the digest that repeats one hex digit."""
    return Digest(f"sha256:{letter * 64}")


def image(
    letter: str = "a", *, version: str | None = "v1", name: str = "ghcr.io/acme/app"
) -> Image:
    """Return an image."""
    return Image(name=name, version=version, digest=digest(letter))


def record(
    letter: str = "a",
    *,
    name: str = "shop/web/app",
    version: str | None = "v1",
    status: Status = Status.DEPLOYED,
) -> Record:
    """Return the record of an image under a deployment name."""
    made = Record.deployed(name, image(letter, version=version))
    return made if status is Status.DEPLOYED else made.decommissioned()


def workload(name: str = "web", *, kind: str = "Deployment", namespace: str = "shop") -> Workload:
    """Return a workload."""
    group = "batch/v1" if kind in {"Job", "CronJob"} else "apps/v1"
    return Workload(api_version=group, kind=kind, namespace=namespace, name=name)


def container(
    name: str = "app", image: Image | SkipReason | None = None, *, letter: str = "a"
) -> Container:
    """Return a container that runs an image, by default that of a letter."""
    made = Image(name="ghcr.io/acme/app", version="v1", digest=digest(letter))
    return Container(name=name, image=made if image is None else image)


def pod(
    uid: str = "uid-1",
    *,
    owner: Workload | None = None,
    name: str = "",
    age: int = 0,
    phase: str = "Running",
    terminating: bool = False,
    containers: Iterable[Container] | None = None,
    marks: Marks = NO_MARKS,
) -> Pod:
    """Return a pod, created `age` seconds after the epoch, of the Deployment shop/web."""
    owner = owner or workload()
    return Pod(
        uid=uid,
        namespace=owner.namespace,
        name=name or f"{owner.name}-{uid}",
        created=EPOCH + timedelta(seconds=age),
        phase=phase,
        terminating=terminating,
        workload=owner,
        containers=(container(),) if containers is None else tuple(containers),
        marks=marks,
    )


def raw_owner(
    kind: str = "ReplicaSet", name: str = f"web-{HASH}", *, controller: bool = True
) -> dict[str, Any]:
    """Return an owner reference."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": name,
        "uid": f"uid-of-{name}",
        "controller": controller,
    }


def raw_container(
    name: str = "app", spec_image: str = "ghcr.io/acme/app:v1", **more: object
) -> dict[str, Any]:
    """Return a container of a pod's spec."""
    return {"name": name, "image": spec_image, **more}


def raw_pod(
    uid: str = "uid-1",
    *,
    namespace: str = "shop",
    name: str = f"web-{HASH}-abcde",
    owners: Iterable[Mapping[str, Any]] | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    phase: str = "Running",
    letter: str = "a",
    **metadata: object,
) -> dict[str, Any]:
    """Return a running pod of the Deployment shop/web, as core/v1 JSON."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "uid": uid,
            "namespace": namespace,
            "name": name,
            "creationTimestamp": "2024-01-15T10:30:00Z",
            "labels": {"pod-template-hash": HASH} if labels is None else dict(labels),
            "annotations": dict(annotations or {}),
            "ownerReferences": [raw_owner()] if owners is None else [dict(each) for each in owners],
            **metadata,
        },
        "spec": {"containers": [raw_container()]},
        "status": {
            "phase": phase,
            "containerStatuses": [
                {
                    "name": "app",
                    "image": "ghcr.io/acme/app:v1",
                    "imageID": f"ghcr.io/acme/app@{digest(letter)}",
                }
            ],
        },
    }
