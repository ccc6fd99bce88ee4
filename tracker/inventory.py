"""
What should stand at GitHub: the pods that were seen, by the deployment names they declare.

The inventory is fed with pods (from events and lists, in any order, any number of times) and
asked about names. It never remembers how it came to know something: what it says of a name
follows from the pods it holds now, so that repeated, late and coalesced events end in the same
answer. Its memory is bounded by the pods that live.

It knows nothing of what GitHub holds but what it is told with a question: the record that GitHub
acknowledged last decides whether a digest that can't be replaced still runs. And of workloads it
knows only what it asks for: what their annotations say.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tracker.annotations import NO_MARKS, Marks, Problem
from tracker.images import Digest, Image, SkipReason
from tracker.pods import Container, Pod, Skipped
from tracker.records import Record, Status, render
from tracker.workloads import Workload

__all__ = ["Absent", "Deployed", "Held", "Inventory", "Judgement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """
    This record should stand. `displaced`: no pod runs the digest that was acknowledged any more.

    `workload` and `container` say whose record it is.
    """

    record: Record
    workload: Workload
    container: str
    displaced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """
    The name is kept, but no pod says what to record: what is acknowledged stands.

    Unless `displaced`: then something else runs, which can't be recorded, and the acknowledged
    digest runs nowhere. `idle` says that nothing is known to run under the name at all, so that
    nothing speaks against what was sent last.
    """

    displaced: bool
    idle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """No pod holds the name."""


Judgement = Deployed | Held | Absent


@dataclass(frozen=True, slots=True)
class _Claim:
    """A pod that declares a name, with the container that wins it within the pod."""

    pod: Pod
    container: Container


class Inventory:
    """
    The pods that were seen and what follows from them.

    `template` is a deployment name template that `tracker.records.check_template` found good.
    `marks_of` returns what a workload says of its pods, or None when that is not known; what a
    record said before is taken to be said still, then. `resolve` returns the workload that a
    workload is part of, or itself: a Job may be a CronJob's.
    """

    def __init__(
        self,
        *,
        template: str,
        marks_of: Callable[[Workload], Marks | None] = lambda _workload: NO_MARKS,
        resolve: Callable[[Workload], Workload] = lambda workload: workload,
    ) -> None:
        self._template = template
        self._marks_of = marks_of
        self._resolve = resolve
        self._pods: dict[str, Pod | Skipped] = {}
        self._claims: dict[str, dict[str, _Claim]] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._too_long: Counter[str] = Counter()
        self._shared_within: dict[str, set[str]] = {}
        self._doubtful: set[str] = set()
        self._gaps = 0

    def __len__(self) -> int:
        return len(self._pods)

    def __contains__(self, uid: str) -> bool:
        """Tell whether the pod of this uid was seen and has not gone, recorded or skipped."""
        return uid in self._pods

    def observe(self, pod: Pod | Skipped, *, surely: bool = False) -> frozenset[str]:
        """
        Take note of what a pod is now; return the deployment names this may change.

        A state that is older than the one that is known is passed over, since lists and watches
        overtake each other; `surely` takes it all the same (a restored cluster counts anew).
        """
        known = self._pods.get(pod.uid)
        if isinstance(pod, Pod):
            pod = self._with_workload(pod, known)
        if known is not None:
            if pod.version < known.version and not surely:
                return frozenset()
            was_doubtful = pod.uid in self._doubtful
            self._doubtful.discard(pod.uid)
            if known == pod:
                # Only the version is new: nothing to be looked at, but to be remembered. Unless it
                # is news that the pod is there at all.
                self._pods[pod.uid] = pod
                return frozenset(self._names.get(pod.uid, ())) if was_doubtful else frozenset()
        before = self._withdraw(pod.uid)
        self._pods[pod.uid] = pod
        return before | self._declare(pod) if isinstance(pod, Pod) else before

    def remove(self, uid: str) -> frozenset[str]:
        """Take note that a pod is gone; return the deployment names this may change."""
        names = self._withdraw(uid)
        self._pods.pop(uid, None)
        self._doubtful.discard(uid)
        return names

    @property
    def gaps(self) -> int:
        """Return how often it was doubted so far which pods are there."""
        return self._gaps

    def doubt(self) -> None:
        """
        Doubt of every pod that it is still there, until it is seen again.

        The watch began anew, and of what went meanwhile it will not tell: a pod that is gone must
        not speak for its name when a newer one goes.
        """
        self._gaps += 1
        self._doubtful = set(self._pods)

    def trust(self, gaps: int) -> frozenset[str]:
        """
        Take the pods that are known for those that are there; return the names this may change.

        A list showed it that was asked for after so many `gaps`; with a newer one it says nothing.
        """
        if gaps != self._gaps:
            return frozenset()
        doubtful, self._doubtful = self._doubtful, set()
        return frozenset(name for uid in doubtful for name in self._names.get(uid, ()))

    def reassign(self) -> frozenset[str]:
        """Ask anew whose workloads are part of others; return the names this may change."""
        changed: set[str] = set()
        for pod in list(self._pods.values()):
            if isinstance(pod, Pod) and self._resolve(pod.workload) != pod.workload:
                changed |= self.observe(pod)
        return frozenset(changed)

    def versions(self) -> dict[str, int]:
        """Return the resourceVersion of each pod by uid, as of now."""
        return {uid: pod.version for uid, pod in self._pods.items()}

    def held_names(self, *, without: Collection[str] = ()) -> frozenset[str]:
        """Return the names that are held, or that would be if the pods of these uids were gone."""
        return frozenset(
            name
            for name, claims in self._claims.items()
            if any(
                claim.pod.holds and uid not in without and not self._ignores(claim.pod)
                for uid, claim in claims.items()
            )
        )

    def names(self) -> Collection[str]:
        """Return the deployment names that pods declare."""
        return self._claims.keys()

    def judge(self, name: str, acknowledged: Record | None) -> Judgement:
        """Say what should stand under a name, given what GitHub acknowledged for it last."""
        claims = self._holding(name)
        if not claims:
            return Absent()
        displaced = acknowledged is not None and not any(
            _runs(claim.container, acknowledged) for claim in claims
        )
        newest = _newest(claims)
        if newest is None:
            # Nothing is known to run under the name: pods wait to start, or their node is lost.
            return Held(displaced=False, idle=True)
        if any(claim.pod.uid in self._doubtful for claim in claims):
            # One of them may have gone while nobody watched, and its successor be on a later page
            # of a list that is under way: what is seen so far may be older than what stands.
            return Held(displaced=False)
        image = _named(newest.container, claims, acknowledged)
        if image is None:
            return Held(displaced=displaced)
        return Deployed(
            record=Record.deployed(name, image, self._marks(newest.pod, acknowledged)),
            workload=newest.pod.workload,
            container=newest.container.name,
            displaced=displaced,
        )

    def pods(self) -> Collection[Pod | Skipped]:
        """Return the pods that were seen and have not gone."""
        return self._pods.values()

    def pods_of(self, name: str) -> tuple[Pod, ...]:
        """Return the pods that declare a name, whether they hold it or not."""
        return tuple(claim.pod for claim in self._claims.get(name, {}).values())

    def told_by(self, name: str) -> tuple[Pod, Container] | None:
        """Return the pod and the container that say what runs under a name, None when none can."""
        newest = _newest(self._holding(name))
        return None if newest is None else (newest.pod, newest.container)

    def living(self) -> frozenset[Workload]:
        """Return the workloads with a pod that may run now or later, whatever it declares."""
        return frozenset(
            pod.workload
            for pod in self._pods.values()
            if pod.workload is not None and (isinstance(pod, Skipped) or pod.unfinished)
        )

    def problems(self) -> Mapping[Problem, int]:
        """Return of how many workloads the pods' annotations can't be used, by what is wrong."""
        found = {
            (pod.workload, problem)
            for pod in self._pods.values()
            if isinstance(pod, Pod)
            for problem in self._marks(pod, None).problems
        }
        return Counter(problem for _, problem in found)

    def skipped(self) -> Mapping[SkipReason, int]:
        """Return how many pods, and containers of other pods, are not recorded now, by reason."""
        counts: Counter[SkipReason] = Counter()
        for pod in self._pods.values():
            if isinstance(pod, Skipped):
                counts[pod.reason] += 1
            elif self._ignores(pod):
                counts[SkipReason.IGNORED] += 1
            else:
                counts.update(
                    container.image
                    for container in pod.containers
                    if isinstance(container.image, SkipReason)
                )
        if too_long := self._too_long.total():
            counts[SkipReason.DEPLOYMENT_NAME] = too_long
        return counts

    def shared(self) -> frozenset[str]:
        """
        Return the names that more than one workload, or more than one container of a pod, declares.

        The newest pod's record stands, within a pod the first container's; the others have none.
        """
        found = {name for names in self._shared_within.values() for name in names}
        for name, claims in self._claims.items():
            if len(claims) > 1 and len({claim.pod.workload for claim in claims.values()}) > 1:
                found.add(name)
        return frozenset(found)

    def _holding(self, name: str) -> list[_Claim]:
        return [
            claim
            for claim in self._claims.get(name, {}).values()
            if claim.pod.holds and not self._ignores(claim.pod)
        ]

    def _with_workload(self, pod: Pod, known: Pod | Skipped | None) -> Pod:
        """Return a pod with the workload that its own is part of."""
        workload = self._resolve(pod.workload)
        if workload.kind == "Job" and isinstance(known, Pod) and known.workload.kind == "CronJob":
            # The Job is gone by now and can't say any more whose it was.
            workload = known.workload
        return pod if workload == pod.workload else replace(pod, workload=workload)

    def _ignores(self, pod: Pod) -> bool:
        """Tell whether the pod's workload asks that it is not recorded, and the pod does not."""
        if pod.marks.ignored is not None:
            return pod.marks.ignored
        marks = self._marks_of(pod.workload)
        return marks is not None and marks.ignored is True

    def _marks(self, pod: Pod, acknowledged: Record | None) -> Marks:
        """Return what is said about a pod, by itself and by its workload."""
        of_workload = self._marks_of(pod.workload)
        if of_workload is None:
            stands = acknowledged is not None and acknowledged.status is Status.DEPLOYED
            of_workload = acknowledged.marks if acknowledged is not None and stands else NO_MARKS
        return pod.marks.over(of_workload)

    def _declare(self, pod: Pod) -> frozenset[str]:
        names: list[str] = []
        for container in pod.containers:
            name = render(
                self._template,
                namespace=pod.namespace,
                workload=pod.workload.name,
                container=container.name,
            )
            if name is None:
                self._too_long[pod.uid] += 1
            elif name in names:  # containers of one pod share it: the first one wins
                self._shared_within.setdefault(pod.uid, set()).add(name)
            else:
                names.append(name)
                self._claims.setdefault(name, {})[pod.uid] = _Claim(pod, container)
        self._names[pod.uid] = tuple(names)
        return frozenset(names)

    def _withdraw(self, uid: str) -> frozenset[str]:
        names = self._names.pop(uid, ())
        self._too_long.pop(uid, None)
        self._shared_within.pop(uid, None)
        for name in names:
            claims = self._claims[name]
            del claims[uid]
            if not claims:
                del self._claims[name]
        return frozenset(names)


def _newest(claims: Iterable[_Claim]) -> _Claim | None:
    """
    Return the claim that says what stands, or None when none can.

    That is the newest pod that runs, else the newest that is on its way out. A finished pod of a
    Job counts as running: a short one is never seen otherwise. A container that was not started
    yet (no imageID) says nothing.
    """
    staying = leaving = None
    for claim in claims:
        pod = claim.pod
        if claim.container.image is None:
            continue
        if pod.terminating:
            if leaving is None or pod.age_rank > leaving.pod.age_rank:
                leaving = claim
        elif (pod.phase == "Running" or (pod.workload.is_job and not pod.unfinished)) and (
            staying is None or pod.age_rank > staying.pod.age_rank
        ):
            staying = claim
    return staying or leaving


def _runs(container: Container, record: Record) -> bool:
    """
    Tell whether a container runs what a record tells of, as far as is known.

    Where a runtime tells no digest of an image, since it was brought to the node and not pulled,
    its name and version are all that is known: the same ones are no sign that something else runs.
    """
    if (digest := _digest_of(container)) is not None:
        return digest == record.digest
    return container.named is not None and container.named == (record.name, record.version)


def _digest_of(container: Container) -> Digest | None:
    return container.image.digest if isinstance(container.image, Image) else container.digest


def _named(
    container: Container, claims: Iterable[_Claim], acknowledged: Record | None
) -> Image | None:
    """
    Return the image to tell of what a container runs, None when there is none.

    It has the name and version that pods of the same digest ask for in accord with their status: a
    node that knows the content by another name as well tells that one, and a change in place is not
    done yet. Neither makes another image of it. Where no pod's status agrees with what the pod asks
    for, what was acknowledged of the digest stays.
    """
    told = container.image
    if isinstance(told, Image) and told.asked is None:
        return told
    digest = _digest_of(container)
    if digest is None:
        return None
    agreeing = _newest(
        claim
        for claim in claims
        if isinstance(claim.container.image, Image)
        and claim.container.image.asked is None
        and claim.container.image.digest == digest
    )
    if agreeing is not None and isinstance(agreeing.container.image, Image):
        return agreeing.container.image
    image = told if isinstance(told, Image) else None
    if acknowledged is None or acknowledged.digest != digest:
        return image
    repositories: dict[str | None, str | None] = {}
    if image is not None:
        repositories = {image.asked: image.asked_repository, image.name: image.repository}
    return Image(
        name=acknowledged.name,
        version=acknowledged.version,
        digest=digest,
        repository=repositories.get(acknowledged.name, acknowledged.repository),
    )
