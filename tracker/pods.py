"""
What is kept of one pod: from the API server's JSON to a small frozen value.

`read_pod` never raises and never guesses: whatever JSON arrives becomes a `Pod` with its
workload and containers, or a `Skipped` with a reason from a closed set. Both carry the uid, since
a pod that is skipped has been *seen* all the same. Two `Pod`s that are equal call for the same
records, so an event that changes nothing of this costs nothing further.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Final

from tracker.annotations import NO_MARKS, Marks, read_marks
from tracker.images import EVERY_IMAGE, Digest, Image, ImageRules, Named, SkipReason, trace_image
from tracker.workloads import Owner, Workload, workload_of

__all__ = [
    "EVERYTHING",
    "Container",
    "Pod",
    "Rules",
    "Skipped",
    "controllers_in",
    "read_pod",
    "read_version",
    "said_of",
    "texts_of",
]

MIRROR = "kubernetes.io/config.mirror"
"""Annotation of the API server's copy of a static pod, which a node runs on its own account."""
FINISHED = frozenset({"Succeeded", "Failed"})
MAX_VERSION = 20
"""Digits of a resourceVersion: etcd's are 64 bits wide."""
_EPOCH = datetime.fromtimestamp(0, tz=UTC)
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""One of a surrogate pair: JSON can write it alone, and then it is no Unicode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the operator wants recorded; `excluded_namespaces` are shell-style globs."""

    excluded_namespaces: tuple[str, ...] = ()
    images: ImageRules = EVERY_IMAGE

    def excludes(self, namespace: str) -> bool:
        """Tell whether a namespace is left out."""
        return any(fnmatchcase(namespace, glob) for glob in self.excluded_namespaces)


EVERYTHING: Final = Rules()
"""Rules that leave nothing out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """
    One container that a pod declares, init containers and sidecars included.

    `image` is what it runs; a reason when that can't be recorded; None when it is not known yet.
    `named` is the image's name and version where its runtime tells no digest. `digest` is what it
    runs where only the name by which its node knows that is left out, not the one asked for.
    """

    name: str
    image: Image | SkipReason | None
    named: Named | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """
    One pod that a controller owns.

    `created` is its creationTimestamp (aware, UTC, whole seconds). `terminating` says that it has
    a deletionTimestamp. `containers` are in the order in which one of them wins a name that they
    share: those of the spec, then sidecars, then init containers. `version` is its resourceVersion
    as a number (0: none); it says which of two states is newer, not what the pod is.
    """

    uid: str
    namespace: str
    name: str
    created: datetime
    phase: str
    terminating: bool
    workload: Workload
    containers: tuple[Container, ...]
    marks: Marks = NO_MARKS
    version: int = field(default=0, compare=False)

    @property
    def holds(self) -> bool:
        """Tell whether what it declares still stands: it may run, or says what a Job ran."""
        return self.unfinished or self.workload.is_job

    @property
    def unfinished(self) -> bool:
        """Tell whether any of its containers may run now or later."""
        return self.terminating or self.phase not in FINISHED

    @property
    def age_rank(self) -> tuple[datetime, str]:
        """Return what orders pods from old to new."""
        return self.created, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """
    A pod that is not recorded, and why.

    `workload` is whose it is when it is ignored and may run: that workload has pods, and none of
    them is to be recorded.
    """

    uid: str
    namespace: str
    name: str
    reason: SkipReason
    workload: Workload | None = None
    version: int = field(default=0, compare=False)


def read_pod(raw: object, *, rules: Rules = EVERYTHING) -> Pod | Skipped:
    """
    Return what is kept of a pod as the API server sends it (core/v1 Pod, decoded JSON).

    Any JSON is taken; what is not pod-shaped is `Skipped` as malformed.
    """
    pod = _mapping(raw)
    metadata = _mapping(pod.get("metadata"))
    uid, namespace = _text(metadata.get("uid")), _name(metadata.get("namespace"))
    name = _name(metadata.get("name"))
    annotations = _mapping(metadata.get("annotations"))
    created = _time(metadata.get("creationTimestamp"))
    owners = controllers_in(metadata)
    version = read_version(metadata.get("resourceVersion"))

    def skipped(reason: SkipReason, workload: Workload | None = None) -> Skipped:
        return Skipped(
            uid=uid,
            namespace=namespace,
            name=name,
            reason=reason,
            workload=workload,
            version=version,
        )

    if not (uid and namespace and name) or created is None:
        return skipped(SkipReason.MALFORMED)
    if rules.excludes(namespace):
        return skipped(SkipReason.NAMESPACE)
    workload = workload_of(namespace, owners, _mapping(metadata.get("labels")), created)
    status = _mapping(pod.get("status"))
    phase = _text(status.get("phase")) or "Unknown"
    terminating = bool(metadata.get("deletionTimestamp"))
    marks = read_marks(annotations)
    if marks.ignored:
        may_run = terminating or phase not in FINISHED
        return skipped(SkipReason.IGNORED, workload if may_run else None)
    if MIRROR in annotations or any(owner.kind == "Node" for owner in owners):
        return skipped(SkipReason.STATIC)
    if workload is None:
        return skipped(SkipReason.BARE)
    return Pod(
        uid=uid,
        namespace=namespace,
        name=name,
        created=created,
        phase=phase,
        terminating=terminating,
        workload=workload,
        containers=tuple(_containers(_mapping(pod.get("spec")), status, rules.images)),
        marks=marks,
        version=version,
    )


def read_version(value: object) -> int:
    """
    Return a resourceVersion as a number, 0 for what is none.

    Versions of one resource type can be compared as numbers since Kubernetes 1.35:
    https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
    """
    text = _text(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_VERSION else 0


def texts_of(raw: object) -> Iterator[tuple[str, str, str, str]]:
    """
    Yield of each container name, spec.image, status.image and status.imageID ("" for none).

    Their order is that of `Pod.containers`. Takes any JSON.
    """
    pod = _mapping(raw)
    yield from _texts(_mapping(pod.get("spec")), _mapping(pod.get("status")))


def said_of(raw: object) -> Marks:
    """Return what a pod's own annotations say. Takes any JSON."""
    return read_marks(_mapping(_mapping(_mapping(raw).get("metadata")).get("annotations")))


def _containers(
    spec: Mapping[str, object], status: Mapping[str, object], rules: ImageRules
) -> Iterator[Container]:
    for name, *texts in _texts(spec, status):
        found = trace_image(*texts)
        if not isinstance(found.image, Image):
            yield Container(name=name, image=found.image, named=found.named)
            continue
        image, asked = rules.apply(found.image), found.image.asked
        aliased = isinstance(image, SkipReason) and asked and not rules.leave_out(asked)
        yield Container(name=name, image=image, digest=found.image.digest if aliased else None)


def _texts(
    spec: Mapping[str, object], status: Mapping[str, object]
) -> Iterator[tuple[str, str, str, str]]:
    regular = list(_mappings(spec.get("containers")))
    init = list(_mappings(spec.get("initContainers")))
    sidecars = [container for container in init if container.get("restartPolicy") == "Always"]
    plain = [container for container in init if container.get("restartPolicy") != "Always"]
    statuses = {
        _text(found.get("name")): found
        for key in ("containerStatuses", "initContainerStatuses")
        for found in _mappings(status.get(key))
    }
    for container in (*regular, *sidecars, *plain):
        name = _name(container.get("name"))
        if not name:
            continue
        found = statuses.get(name, {})
        yield (
            name,
            _text(container.get("image")),
            _text(found.get("image")),
            _text(found.get("imageID")),
        )


def controllers_in(metadata: Mapping[str, object]) -> tuple[Owner, ...]:
    """Return the owner references with `controller: true` in an object's metadata."""
    owners = (
        Owner(
            api_version=_name(reference.get("apiVersion")),
            kind=_name(reference.get("kind")),
            name=_name(reference.get("name")),
        )
        for reference in _mappings(metadata.get("ownerReferences"))
        if reference.get("controller") is True
    )
    return tuple(owner for owner in owners if owner.kind and owner.name)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, list | tuple):
        yield from (entry for entry in value if isinstance(entry, Mapping))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _name(value: object) -> str:
    """Return a text that can be sent and written down, "" for what is none."""
    text = _text(value)
    return "" if _HALF_CHARACTER.search(text) else text


def _time(value: object) -> datetime | None:
    """Return an RFC 3339 time in UTC, or None; the API server writes `2024-01-15T10:30:00Z`."""
    try:
        moment = datetime.fromisoformat(_text(value))
    except ValueError:
        return None
    # Years near the calendar's ends can't be moved to another zone or compared with an epoch.
    return moment if moment.tzinfo is UTC and moment >= _EPOCH else None
