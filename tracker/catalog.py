"""
What is known of the workloads themselves, where they may be read (`WORKLOADS=true`).

From the pods alone a workload that is scaled to zero looks like one that was deleted. The catalog
holds what lists of workloads showed, metadata only: that a workload is there, that it is on its
way out, who controls it, what its annotations say. It answers three questions: does a name without
pods still stand for something, what is said about a deployment, and whose is a Job.

What was not read is not guessed: a workload of a kind that no list showed completely is unknown.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tracker.annotations import NO_MARKS, Marks
from tracker.records import render
from tracker.workloads import Owner, Workload

__all__ = ["KINDS", "Catalog", "Kept", "Kind", "Known", "Presence", "keeps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of workload that can be read: its place in the API."""

    kind: str
    group: str
    plural: str

    @property
    def api_version(self) -> str:
        """Return the apiVersion, like `apps/v1`."""
        return f"{self.group}/v1"


KINDS: Final[Mapping[str, Kind]] = {
    kind: Kind(kind=kind, group=group, plural=plural)
    for kind, group, plural in (
        ("Deployment", "apps", "deployments"),
        ("ReplicaSet", "apps", "replicasets"),
        ("StatefulSet", "apps", "statefulsets"),
        ("DaemonSet", "apps", "daemonsets"),
        ("Job", "batch", "jobs"),
        ("CronJob", "batch", "cronjobs"),
    )
}
"""What `manifests/components/workloads` grants; other controllers are known by their pods only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A workload as it was read: its controller, whether it is being deleted, what it says."""

    controller: Owner | None
    terminating: bool
    marks: Marks


class Presence(Enum):
    """Whether a workload is there."""

    THERE = "there"
    GOING = "going"
    """It has a deletionTimestamp."""
    GONE = "gone"
    UNKNOWN = "unknown"
    """It could not be read."""
    UNCOVERED = "uncovered"
    """Its kind is none that is read."""


class Catalog:
    """The workloads that were read. With `enabled` False it covers none and knows nothing."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._known: dict[Workload, Known] = {}
        self._complete: set[str] = set()
        self._asked: set[Workload] = set()
        self._unread: set[Workload] = set()

    def __len__(self) -> int:
        return len(self._known)

    def covers(self, workload: Workload) -> bool:
        """Tell whether workloads of this kind are read at all."""
        kind = KINDS.get(workload.kind)
        return self._enabled and kind is not None and workload.api_version == kind.api_version

    def presence(self, workload: Workload) -> Presence:
        """Return whether a workload is there, as far as is known."""
        if not self.covers(workload):
            return Presence.UNCOVERED
        known = self._known.get(workload)
        if known is not None:
            return Presence.GOING if known.terminating else Presence.THERE
        if workload.kind in self._complete and workload not in self._unread:
            return Presence.GONE
        return Presence.UNKNOWN

    def marks(self, workload: Workload) -> Marks | None:
        """Return what a workload's annotations say, or None when that is not known."""
        known = self._known.get(workload)
        if known is not None:
            return known.marks
        return None if self.presence(workload) is Presence.UNKNOWN else NO_MARKS

    def ignores(self, workload: Workload) -> bool:
        """Tell whether a workload asks that its pods are not recorded."""
        known = self._known.get(workload)
        return known is not None and known.marks.ignored is True

    def resolve(self, workload: Workload) -> Workload:
        """Return the workload, or the CronJob when it is a Job that says it is one's."""
        known = self._known.get(workload) if workload.kind == "Job" else None
        owner = None if known is None else known.controller
        kind = KINDS["CronJob"]
        if owner is None or (owner.kind, owner.api_version) != (kind.kind, kind.api_version):
            return workload
        return Workload(
            api_version=kind.api_version,
            kind=kind.kind,
            namespace=workload.namespace,
            name=owner.name,
        )

    def is_news(self, workload: Workload) -> bool:
        """
        Tell whether a workload is one to ask for by itself: it is younger than the last list.

        Never where a list could not be had, and never twice.
        """
        return (
            self.covers(workload)
            and workload.kind in self._complete
            and workload not in self._known
            and workload not in self._asked
        )

    def take_list(
        self, kind: str, found: Mapping[Workload, Known], *, namespace: str | None
    ) -> None:
        """Take a complete list of a kind; `namespace` None is all that is watched."""
        for workload in [
            each
            for each in self._known
            if each.kind == kind and namespace in {None, each.namespace} and each not in found
        ]:
            del self._known[workload]
        self._known.update(found)
        self._unread = {
            each
            for each in self._unread
            if each.kind != kind or namespace not in {None, each.namespace}
        }
        if namespace is None:
            self._complete.add(kind)

    def take(self, workload: Workload, known: Known | None) -> None:
        """Take what was read of one workload; None: there is none."""
        self._asked.add(workload)
        self._unread.discard(workload)
        if known is None:
            self._known.pop(workload, None)
        else:
            self._known[workload] = known

    def miss(self, workload: Workload) -> None:
        """Note that a workload was asked for and could not be read."""
        self._asked.add(workload)
        self._unread.add(workload)

    def prune(self, living: Collection[Workload]) -> None:
        """Drop what was noted of workloads that are not among those with pods."""
        self._asked.intersection_update(living)
        self._unread.intersection_update(living)


class Kept:
    """Names that stand though no pod declares them, each with the workload that keeps it."""

    def __init__(self) -> None:
        self._keepers: dict[str, Workload] = {}
        self._names: dict[Workload, set[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._keepers

    def names(self) -> Collection[str]:
        """Return all of them."""
        return self._keepers.keys()

    def of(self, workload: Workload) -> frozenset[str]:
        """Return those that a workload keeps."""
        return frozenset(self._names.get(workload, ()))

    def add(self, name: str, workload: Workload) -> None:
        """Take note that a workload keeps a name."""
        self.discard(name)
        self._keepers[name] = workload
        self._names.setdefault(workload, set()).add(name)

    def discard(self, name: str) -> None:
        """Take note that nothing is known to keep a name."""
        workload = self._keepers.pop(name, None)
        if workload is None:
            return
        names = self._names[workload]
        names.discard(name)
        if not names:
            del self._names[workload]

    def clear(self) -> None:
        """Forget all of them."""
        self._keepers.clear()
        self._names.clear()


def keeps(
    catalog: Catalog, workload: Workload, container: str, name: str, *, template: str
) -> bool:
    """
    Tell whether a workload that has no pods at all keeps this name of one of its containers.

    It does as long as it is there and not on its way out, its annotations do not say that it is
    to be ignored, and `template` gives the container that name today.
    """
    if catalog.presence(workload) is not Presence.THERE or catalog.ignores(workload):
        return False
    owner = catalog.resolve(workload)
    return name == render(
        template, namespace=owner.namespace, workload=owner.name, container=container
    )
