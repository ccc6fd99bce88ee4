"""
What GitHub should hold, worked out from the API server's pods alone: the judge.

The demo and the end-to-end tests compare this with what the simulated GitHub holds. It reads raw
pods (the JSON of `GET /api/v1/pods`), shares no line with the tracker, and is written to be read:
each rule is one small function. Pure: no clock, no I/O.

A deployment name is in one of four states:

- *standing*: its newest running pod names an image, and GitHub must hold exactly that;
- *held*: pods declare it but none runs (all Pending, say): what GitHub holds may stay as it is;
- *unrecordable*: its newest running image can't be recorded: GitHub holds what it acknowledged
  before as long as a pod still runs that, and else nothing as deployed;
- *gone*, when it is in none of these: decommissioned, or never recorded.

Workloads are known by their pods only, as with the permission to read pods and nothing else.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Final

from tracker.sandbox.table import Row

__all__ = [
    "Claim",
    "Comparison",
    "Image",
    "Scope",
    "Truth",
    "Verdict",
    "claims_of",
    "compare",
    "should_stand",
    "verdict_of",
]

RawPod = Mapping[str, Any]

IGNORE: Final = "metadata.github.com/ignore"
MIRROR: Final = "kubernetes.io/config.mirror"
MAX_NAME: Final = 256
MAX_VERSION: Final = 100
CRONJOB_WINDOW: Final = timedelta(days=2)
"""A Job's number is its schedule in minutes when it lies this close before its pod."""

_PLACEHOLDER: Final = re.compile(r"\{\{(.*?)\}\}")
_MANIFEST: Final = re.compile(
    r"(?:docker-pullable://)?(?P<repository>.+)@(?P<digest>sha256:[0-9a-f]{64})"
)
_NUMBERED: Final = re.compile(r"(?P<name>.+)-(?P<minutes>[0-9]+)")
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which pods are watched and how names are made; `namespace` "" is all of them."""

    template: str = "{{namespace}}/{{deploymentName}}/{{containerName}}"
    namespace: str = ""
    exclude_namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Image:
    """
    What is recorded of an image; `version` is "" where the record has none.

    `named_by_node`: the pod asks for another name, which may be told of the digest as well.
    """

    digest: str
    name: str
    version: str = ""
    named_by_node: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """
    One pod's claim to a deployment name, by the container that has it.

    `image` None with a `reason` is an image that can't be recorded, without one an image that the
    kubelet has not told yet; `named` is its (name, version) where only its digest is
    missing. `rank` orders who may say what stands: 2 running, 1 terminating, 0 nobody yet;
    `newness` orders within it.
    """

    deployment_name: str
    uid: str
    newness: tuple[datetime, str]
    cronjob: bool
    holds: bool
    rank: int
    image: Image | None
    reason: str = ""
    named: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    What must be true of one deployment name that pods claim.

    Standing has an `image` and no `reason`; unrecordable has a `reason`; held has neither.
    `carried` are the digests that pods of this name run, new and old, `named` the (name, version)
    of what they run of which no digest is told.
    """

    image: Image | None = None
    reason: str = ""
    carried: frozenset[str] = frozenset()
    named: frozenset[tuple[str, str]] = frozenset()

    def may_run(self, digest: str, name: str, version: str | None) -> bool:
        """Tell whether any pod runs this, or what may be this."""
        return digest in self.carried or (name, version or "") in self.named


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The verdicts by deployment name; a name that is not here is gone."""

    verdicts: Mapping[str, Verdict]
    cronjobs: frozenset[str] = frozenset()
    """Names of CronJobs among them: they are held for a day after their last pod."""

    @property
    def standing(self) -> dict[str, tuple[str, str, str]]:
        """Deployment name → (digest, name, version) of what must stand as deployed."""
        return {
            name: (verdict.image.digest, verdict.image.name, verdict.image.version)
            for name, verdict in self.verdicts.items()
            if verdict.image is not None and not verdict.reason
        }

    @property
    def held(self) -> frozenset[str]:
        """Names of which whatever stood before stands."""
        return frozenset(
            name
            for name, verdict in self.verdicts.items()
            if verdict.image is None and not verdict.reason
        )

    @property
    def unrecordable(self) -> dict[str, str]:
        """Deployment name → why its newest image can't be recorded."""
        return {name: verdict.reason for name, verdict in self.verdicts.items() if verdict.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One line of the table that shows cluster and GitHub side by side; "" is nothing."""

    deployment_name: str
    wanted: str
    """standing, held, unrecordable or gone."""
    cluster: str
    """The digest that should stand."""
    github: str
    """The digest GitHub holds."""
    status: str
    """Its status at GitHub."""
    agrees: bool
    why: str = field(default="")
    """What is wrong, when it is."""


def should_stand(
    pods: Iterable[RawPod],
    *,
    scope: Scope | None = None,
    recordable: Callable[[str], bool] = lambda _digest: True,
) -> Truth:
    """
    Return what GitHub should hold while exactly these pods are there.

    `recordable` says whether GitHub takes a digest (it may not know the artifact, or refuse it).
    Raises ValueError for a template with an unknown placeholder.
    """
    by_name: defaultdict[str, list[Claim]] = defaultdict(list)
    for pod in pods:
        for claim in claims_of(pod, scope or Scope()):
            by_name[claim.deployment_name].append(claim)
    verdicts = {name: verdict_of(claims, recordable) for name, claims in by_name.items()}
    return Truth(
        verdicts={name: verdict for name, verdict in verdicts.items() if verdict is not None},
        cronjobs=frozenset(
            name for name, claims in by_name.items() if any(claim.cronjob for claim in claims)
        ),
    )


def verdict_of(
    claims: Iterable[Claim], recordable: Callable[[str], bool] = lambda _digest: True
) -> Verdict | None:
    """
    Return what must be true of the one name that all these claims are to, None when it is gone.

    The newest running pod says what stands, a terminating one only when none runs. A pod whose
    image is not told yet says nothing, so that the one before it stands until it is. How its node
    calls the image counts only while no pod that asks for it by the name it has is there.
    """
    holding = [claim for claim in claims if claim.holds]
    if not holding:
        return None
    carried = frozenset(claim.image.digest for claim in holding if claim.image is not None)
    named = frozenset(claim.named for claim in holding if claim.named is not None)
    telling = [claim for claim in holding if claim.rank and (claim.image or claim.reason)]
    if not telling:
        return Verdict(carried=carried, named=named)
    newest = max(telling, key=lambda claim: (claim.rank, claim.newness))
    image = newest.image
    if image is None:
        return Verdict(reason=newest.reason, carried=carried, named=named)
    if image.named_by_node:
        same = [
            (claim.newness, claim.image)
            for claim in telling
            if claim.image is not None
            and claim.image.digest == image.digest
            and not claim.image.named_by_node
        ]
        image = max(same, key=lambda each: each[0], default=(newest.newness, image))[1]
    reason = "" if recordable(image.digest) else "not-recordable"
    return Verdict(image=image, reason=reason, carried=carried, named=named)


def claims_of(pod: RawPod, scope: Scope) -> tuple[Claim, ...]:
    """
    Return the deployment names a pod claims; none when it does not count.

    Of two containers of a pod that share a name, the first one has it.
    """
    metadata = pod["metadata"]
    owner = _controller(metadata)
    if owner is None or not _counts(metadata, owner, scope):
        return ()
    workload, cronjob = _workload(owner, metadata)
    of_job = _is(owner, "Job", "batch")
    claims: dict[str, Claim] = {}
    for container, status in _containers(pod):
        name = _filled(scope.template, metadata["namespace"], workload, container["name"])
        if len(name) > MAX_NAME or name in claims:
            continue
        image, reason, named = _image(container, status)
        claims[name] = Claim(
            deployment_name=name,
            uid=metadata["uid"],
            newness=(_moment(metadata.get("creationTimestamp")) or _LONG_AGO, metadata["name"]),
            cronjob=cronjob,
            holds=_holds(pod, of_job=of_job),
            rank=_rank(pod, of_job=of_job),
            image=image,
            reason=reason,
            named=named,
        )
    return tuple(claims.values())


def compare(truth: Truth, rows: Iterable[Row], *, cronjobs: Iterable[str] = ()) -> list[Comparison]:
    """
    Set the truth and GitHub's rows of one environment side by side, sorted by name.

    `cronjobs` are names whose CronJob had a pod within the last day, though none is there now.
    Every name either side knows gives a line; what to worry about is `not line.agrees`.
    """
    held_rows = {row.deployment_name: row for row in rows}
    spared = frozenset(cronjobs)
    # An artifact has one name at GitHub: within a batch, the first record of a digest gives it.
    artifacts: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for digest, name, version in truth.standing.values():
        artifacts[digest].add((name, version))
    return [
        _compared(
            name,
            truth.verdicts.get(name),
            held_rows.get(name),
            artifacts,
            spared=name in spared,
        )
        for name in sorted({*truth.verdicts, *held_rows})
    ]


def _compared(
    name: str,
    verdict: Verdict | None,
    row: Row | None,
    artifacts: Mapping[str, AbstractSet[tuple[str, str]]],
    *,
    spared: bool,
) -> Comparison:
    image = None if verdict is None else verdict.image
    deployed = row.digest if row is not None and row.status == "deployed" else ""
    why = ""
    if verdict is None:
        wanted = "held" if spared else "gone"
        if deployed and not spared:
            why = "stands as deployed and no pod carries it"
    elif verdict.reason:
        wanted = "unrecordable"
        if row is not None and deployed and not verdict.may_run(deployed, row.name, row.version):
            why = "a digest stands as deployed that no pod runs"
    elif image is None:
        wanted = "held"
    else:
        wanted = "standing"
        why = _wrong(image, row, artifacts)
    return Comparison(
        deployment_name=name,
        wanted=wanted,
        cluster="" if image is None else image.digest,
        github="" if row is None else row.digest,
        status="" if row is None else row.status,
        agrees=not why,
        why=why,
    )


def _wrong(
    image: Image, row: Row | None, artifacts: Mapping[str, AbstractSet[tuple[str, str]]]
) -> str:
    """Return what of a row is not what must stand, "" when all is right."""
    if row is None:
        return "is not recorded"
    if row.status != "deployed":
        return "runs and is recorded as decommissioned"
    if row.digest != image.digest:
        return "another digest is recorded"
    if not image.named_by_node and (row.name, row.version or "") not in artifacts[image.digest]:
        return f"recorded as {row.name}:{row.version or '-'}, not {image.name}:{image.version}"
    return ""


# Which pods count, and whose they are


def _controller(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    owners = metadata.get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def _counts(metadata: Mapping[str, Any], owner: Mapping[str, Any], scope: Scope) -> bool:
    annotations = metadata.get("annotations") or {}
    namespace = metadata["namespace"]
    return not (
        owner["kind"] == "Node"
        or MIRROR in annotations
        or annotations.get(IGNORE) == "true"
        or (scope.namespace and namespace != scope.namespace)
        or any(fnmatchcase(namespace, pattern) for pattern in scope.exclude_namespaces)
    )


def _is(owner: Mapping[str, Any], kind: str, group: str) -> bool:
    return owner["kind"] == kind and str(owner["apiVersion"]).partition("/")[0] == group


def _workload(owner: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the workload's name, and whether it is a CronJob."""
    name = str(owner["name"])
    if _is(owner, "ReplicaSet", "apps"):
        labels = metadata.get("labels") or {}
        for label in ("pod-template-hash", "rollouts-pod-template-hash"):
            parent = name.removesuffix(f"-{labels.get(label)}")
            if labels.get(label) and parent not in {name, ""}:
                return parent, False
    if _is(owner, "Job", "batch"):
        numbered = _NUMBERED.fullmatch(name)
        created = _moment(metadata.get("creationTimestamp"))
        if numbered is not None and created is not None:
            minutes = int(numbered["minutes"])
            age = created.timestamp() - minutes * 60
            if 0 <= age <= CRONJOB_WINDOW.total_seconds():
                return numbered["name"], True
    return name, False


def _filled(template: str, namespace: str, workload: str, container: str) -> str:
    """Fill a template in one pass, so that no value is read as a placeholder."""
    values = {
        "namespace": namespace,
        "deploymentName": workload,
        "containerName": container,
    }

    def value(found: re.Match[str]) -> str:
        try:
            return values[found[1]]
        except KeyError:
            text = f"unknown placeholder {found[0]} in the template {template!r}"
            raise ValueError(text) from None

    return _PLACEHOLDER.sub(value, template)


# What a pod says of a name


def _phase(pod: RawPod) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def _terminating(pod: RawPod) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def _holds(pod: RawPod, *, of_job: bool) -> bool:
    """Say whether a name stands for this pod: it is unfinished, or a Job's that is still there."""
    return of_job or _terminating(pod) or _phase(pod) not in {"Succeeded", "Failed"}


def _rank(pod: RawPod, *, of_job: bool) -> int:
    """Return 2 for a pod that runs (or ran, of a Job), 1 for a terminating one, else 0."""
    phase = _phase(pod)
    if _terminating(pod):
        return 1
    return 2 if phase == "Running" or (of_job and phase in {"Succeeded", "Failed"}) else 0


def _containers(pod: RawPod) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return (spec, status) of containers in their order, then sidecars, then init containers."""
    spec, status = pod["spec"], pod.get("status") or {}
    init = spec.get("initContainers") or []
    sidecars = [container for container in init if container.get("restartPolicy") == "Always"]
    ordered = [
        *spec["containers"],
        *sidecars,
        *(container for container in init if container not in sidecars),
    ]
    told = {
        each["name"]: each
        for part in ("initContainerStatuses", "containerStatuses")
        for each in status.get(part) or []
    }
    return [(container, told.get(container["name"], {})) for container in ordered]


# Which image that is


def _image(
    container: Mapping[str, Any], status: Mapping[str, Any]
) -> tuple[Image | None, str, tuple[str, str] | None]:
    """
    Return the image a container runs, or None and why it can't be recorded.

    The third is its (name, version) where that is all that is known of it.

    Only a manifest's digest counts. What the runtime tells instead may be the id of an image's
    configuration, which GitHub can't know: then a digest in the spec is the one that runs, unless
    the spec is ahead of what runs. Nothing told means that nothing was started yet.
    """
    image_id = str(status.get("imageID") or "")
    if not image_id:
        return None, "", None
    spec_image = str(container.get("image") or "")
    repository, tag, spec_digest = _parts(spec_image)
    manifest = _MANIFEST.fullmatch(image_id)
    running = "" if manifest is None else manifest["digest"]
    same = _same(spec_image, str(status.get("image") or ""), running)
    if manifest is None and not (same and spec_digest):
        version = _version(tag)
        return None, "no-manifest-digest", (repository, version) if same and version else None
    if not same and manifest is not None:
        # The spec is ahead of what runs: its tag must not be told with the old digest.
        return Image(digest=running, name=manifest["repository"], named_by_node=True), "", None
    return Image(digest=running or spec_digest, name=repository, version=_version(tag)), "", None


def _version(tag: str) -> str:
    return tag if len(tag) <= MAX_VERSION else ""


def _parts(image: str) -> tuple[str, str, str]:
    """Return (repository, tag, digest) of an image reference, "" where it has none."""
    rest, _, digest = image.partition("@")
    if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) is None:
        digest = ""
    head, colon, tag = rest.rpartition(":")
    # A colon before the last slash is a registry's port.
    if not colon or "/" in tag:
        return rest, "", digest
    return head, tag, digest


def _same(spec_image: str, status_image: str, running: str) -> bool:
    """
    Say whether the spec's image is the one that runs, of which `running` is the digest, if known.

    It is when the status names the spec's repository and tag, or names none at all. A digest in
    the spec must be the running one, or the status must name the very tag (an image's index and
    its manifest for one platform have different digests).
    """
    spec_repository, spec_tag, spec_digest = _parts(spec_image)
    repository, tag, digest = _parts(status_image)
    unnamed = not status_image or re.fullmatch(r"(?:sha256:)?[0-9a-f]{64}", status_image)
    same_repository = _canonical(repository) == _canonical(spec_repository)
    if spec_digest and running:
        told = not unnamed and same_repository and digest in {"", spec_digest}
        return spec_digest == running or (told and spec_tag == (tag or "latest"))
    if unnamed:
        return True
    if digest and (spec_digest or not tag):
        return same_repository and digest == spec_digest
    expected = spec_tag or ("" if spec_digest else "latest")
    return same_repository and expected == (tag or "latest")


def _canonical(repository: str) -> str:
    """Return a repository as runtimes write it out: `nginx` is `docker.io/library/nginx`."""
    host, slash, path = repository.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = "docker.io", repository
    if host in {"docker.io", "index.docker.io"}:
        return f"docker.io/{path}" if "/" in path else f"docker.io/library/{path}"
    return f"{host}/{path}"


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
