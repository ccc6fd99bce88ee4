"""
Which workload a pod belongs to, read from the pod alone.

A person knows "the Deployment `shop`"; the pod knows only its direct controller, a ReplicaSet
`shop-5d8f7c9b4`. The names that controllers give to what they create are part of their
interface, and following them costs no request and needs no permission.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

__all__ = ["Owner", "Workload", "workload_of"]

DEPLOYMENT_HASH = "pod-template-hash"
"""Label in which a Deployment keeps the hash it appends to its ReplicaSets' names."""
ROLLOUT_HASH = "rollouts-pod-template-hash"
"""The same of an Argo Rollout."""
CRONJOB_WINDOW_SECONDS = 2 * 24 * 3600
"""How long before its pod's creation a CronJob may have scheduled a Job."""
CLOCK_SKEW_SECONDS = 60
"""The controller's clock names the Job, the API server's dates the pod: they may differ."""

# https://github.com/kubernetes/kubernetes/blob/master/pkg/controller/cronjob/utils.go: a Job is
# named after its CronJob and the scheduled time in minutes since the epoch.
_SCHEDULED = re.compile(r"(?P<name>.+)-(?P<minutes>[0-9]{1,12})", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The controller among a pod's owner references."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a person deployed: kind and name in a namespace."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @property
    def is_job(self) -> bool:
        """Tell whether its pods are meant to finish: a finished one still says what ran."""
        return self.kind in {"Job", "CronJob"}


def workload_of(
    namespace: str, owners: Iterable[Owner], labels: Mapping[str, object], created: datetime
) -> Workload | None:
    """
    Return the workload of a pod in `namespace`, or None when no controller owns it.

    `owners` are the pod's owner references with `controller: true`, `created` is its
    creationTimestamp (aware, UTC).
    """
    owner = next(iter(owners), None)
    if owner is None:
        return None
    api_version, kind, name = owner.api_version, owner.kind, owner.name
    if kind == "ReplicaSet":
        if (deployment := _without_hash(name, labels.get(DEPLOYMENT_HASH))) is not None:
            api_version, kind, name = "apps/v1", "Deployment", deployment
        elif (rollout := _without_hash(name, labels.get(ROLLOUT_HASH))) is not None:
            api_version, kind, name = "argoproj.io/v1alpha1", "Rollout", rollout
    elif kind == "Job" and (cronjob := _cronjob_of(name, created)) is not None:
        api_version, kind, name = "batch/v1", "CronJob", cronjob
    return Workload(api_version=api_version, kind=kind, namespace=namespace, name=name)


def _without_hash(name: str, template_hash: object) -> str | None:
    if not isinstance(template_hash, str) or not template_hash:
        return None
    workload = name.removesuffix(f"-{template_hash}")
    return workload if workload and workload != name else None


def _cronjob_of(job: str, created: datetime) -> str | None:
    match = _SCHEDULED.fullmatch(job)
    if match is None:
        return None
    age = created.timestamp() - int(match["minutes"]) * 60
    return match["name"] if -CLOCK_SKEW_SECONDS <= age <= CRONJOB_WINDOW_SECONDS else None
