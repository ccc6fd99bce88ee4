"""
The kinds the simulated cluster serves, and how it tells clients about them (discovery).

Kopf, kubectl and the client libraries ask for discovery before anything else, and each wants other
fields of it: ``singularName`` and ``patch`` among the verbs for Kopf, ``shortNames`` and
``categories`` for kubectl. The values are those of kube-apiserver 1.36.
"""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["DEPLOYMENTS", "NAMESPACES", "PODS", "RESOURCES", "Resource", "discovery", "version"]

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object; ``group`` is "" for the core group."""

    group: str = ""
    version: str = "v1"
    plural: str
    singular: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("all",)

    @property
    def api_version(self) -> str:
        """Return the apiVersion its objects carry, like ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """Return the plural with its group, like ``deployments.apps``, as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Resource(plural="pods", singular="pod", kind="Pod", short_names=("po",))
NAMESPACES = Resource(
    plural="namespaces",
    singular="namespace",
    kind="Namespace",
    namespaced=False,
    short_names=("ns",),
    categories=(),
)
DEPLOYMENTS = Resource(
    group="apps",
    plural="deployments",
    singular="deployment",
    kind="Deployment",
    short_names=("deploy",),
)

RESOURCES: tuple[Resource, ...] = (
    NAMESPACES,
    PODS,
    Resource(
        group="apps",
        plural="daemonsets",
        singular="daemonset",
        kind="DaemonSet",
        short_names=("ds",),
    ),
    DEPLOYMENTS,
    Resource(
        group="apps",
        plural="replicasets",
        singular="replicaset",
        kind="ReplicaSet",
        short_names=("rs",),
    ),
    Resource(
        group="apps",
        plural="statefulsets",
        singular="statefulset",
        kind="StatefulSet",
        short_names=("sts",),
    ),
    Resource(
        group="batch",
        plural="cronjobs",
        singular="cronjob",
        kind="CronJob",
        short_names=("cj",),
    ),
    Resource(group="batch", plural="jobs", singular="job", kind="Job"),
    Resource(
        plural="replicationcontrollers",
        singular="replicationcontroller",
        kind="ReplicationController",
        short_names=("rc",),
    ),
    # Of a CustomResourceDefinition, as where Argo Rollouts is installed.
    Resource(
        group="argoproj.io",
        version="v1alpha1",
        plural="rollouts",
        singular="rollout",
        kind="Rollout",
        short_names=("ro",),
        categories=(),
    ),
)


def version() -> dict[str, str]:
    """Return what ``/version`` answers."""
    return {
        "major": "1",
        "minor": "36",
        "gitVersion": "v1.36.0-simulated",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": "linux/amd64",
    }


def discovery(path: str, *, address: str) -> dict[str, Any] | None:
    """
    Return the discovery document at a path, or None if there is none.

    ``address`` is the ``host:port`` that ``/api`` tells to clients.
    """
    segments = [segment for segment in path.split("/") if segment]
    match segments:
        case ["api"]:
            return {
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs": [
                    {"clientCIDR": "0.0.0.0/0", "serverAddress": address}
                ],
            }
        case ["apis"]:
            groups = [_group(name) for name in _versions()]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["apis", group] if group in _versions():
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}
        case ["api", "v1"]:
            return _resource_list("", "v1")
        case ["apis", group, version_name] if version_name == _versions().get(group):
            return _resource_list(group, version_name)
        case _:
            return None


def _versions() -> dict[str, str]:
    """Return the groups but the core one, in order, and the one version that each has here."""
    return dict(sorted((each.group, each.version) for each in RESOURCES if each.group))


def _group(name: str) -> dict[str, Any]:
    version_name = _versions()[name]
    only = {"groupVersion": f"{name}/{version_name}", "version": version_name}
    return {"name": name, "versions": [only], "preferredVersion": only}


def _resource_list(group: str, version_name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for resource in RESOURCES:
        if resource.group != group:
            continue
        # Namespaces are deleted one by one only, as in a real cluster.
        verbs = [verb for verb in VERBS if resource.namespaced or verb != "deletecollection"]
        row: dict[str, Any] = {
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": verbs,
        }
        if resource.short_names:
            row["shortNames"] = list(resource.short_names)
        if resource.categories:
            row["categories"] = list(resource.categories)
        rows.append(row)
        if resource is PODS:
            rows.append(_subresource(resource, "binding", kind="Binding", verbs=["create"]))
        rows.append(_subresource(resource, "status", verbs=["get", "patch", "update"]))
    document: dict[str, Any] = {"kind": "APIResourceList"}
    if group:  # the core list carries no apiVersion, the others do
        document["apiVersion"] = "v1"
    group_version = f"{group}/{version_name}" if group else version_name
    return document | {"groupVersion": group_version, "resources": rows}


def _subresource(
    resource: Resource, name: str, *, verbs: list[str], kind: str | None = None
) -> dict[str, Any]:
    return {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind or resource.kind,
        "verbs": verbs,
    }
