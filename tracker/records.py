"""
What GitHub is told: records, their key and their place.

A record's key is its *deployment name*, rendered from a template that the operator chooses.
Together with the scope (organisation, environments, cluster) it is the identity under which
GitHub keeps the record; posting again under the same identity updates it in place, and nothing
can ever delete it.

Fields and limits: https://docs.github.com/en/rest/orgs/artifact-metadata
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tracker.annotations import NO_MARKS, Marks
from tracker.images import Digest, Image

__all__ = [
    "MAX_DEPLOYMENT_NAME",
    "Record",
    "Scope",
    "Status",
    "batch_payload",
    "check_template",
    "render",
]

MAX_DEPLOYMENT_NAME = 256
"""Characters GitHub takes for a deployment name. A longer one is skipped: cut, it would collide."""

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PLACEHOLDERS = ("namespace", "deploymentName", "containerName")


class Status(StrEnum):
    """Whether a deployment runs. GitHub takes it and never gives it back."""

    DEPLOYED = "deployed"
    DECOMMISSIONED = "decommissioned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where all records of one tracker live; empty text where the operator named none."""

    org: str
    logical_environment: str
    physical_environment: str
    cluster: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """
    One deployment record; two are the same state of a deployment when they are equal.

    `tags` are sorted by name, `risks` too. `emptied` names what an earlier record of the name may
    have filled and this one has not: it is said to be empty, where it is else left out.
    """

    deployment_name: str
    name: str
    version: str | None
    digest: Digest
    status: Status
    tags: tuple[tuple[str, str], ...] = ()
    risks: tuple[str, ...] = ()
    repository: str | None = None
    emptied: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def deployed(cls, deployment_name: str, image: Image, marks: Marks = NO_MARKS) -> "Record":
        """
        Return the record that says that this image runs under this name.

        What `marks` say of its repository counts before what the operator's rules say.
        """
        return cls(
            deployment_name=deployment_name,
            name=image.name,
            version=image.version,
            digest=image.digest,
            status=Status.DEPLOYED,
            tags=marks.tags,
            risks=marks.risks or (),
            repository=marks.repository or image.repository,
        )

    def decommissioned(self) -> "Record":
        """Return the record that says that what this one describes runs no more."""
        return replace(self, status=Status.DECOMMISSIONED)

    def after(self, others: Iterable["Record | None"]) -> "Record":
        """Return this record as it is to be posted where GitHub may hold one of the others."""
        held = [other for other in others if other is not None]
        emptied = {
            word
            for word, here, there in (
                ("tags", self.tags, [other.tags for other in held]),
                ("runtime_risks", self.risks, [other.risks for other in held]),
            )
            if not here and any(there)
        }
        return replace(self, emptied=self.emptied | emptied)

    @property
    def marks(self) -> Marks:
        """Return what was said about the deployment, as far as the record tells."""
        return Marks(tags=self.tags, risks=self.risks or None, repository=self.repository)

    def payload(self, scope: Scope) -> dict[str, object]:
        """Return the JSON body of a single post; what is empty is left out, never sent as ""."""
        place = {
            "logical_environment": scope.logical_environment,
            "physical_environment": scope.physical_environment,
            "cluster": scope.cluster,
        }
        return self.fields() | _without_empty(place)

    def fields(self) -> dict[str, object]:
        """Return what is said of the record itself, wherever it stands."""
        said: dict[str, object] = {
            "name": self.name,
            "digest": self.digest,
            "status": self.status.value,
            "deployment_name": self.deployment_name,
        }
        if self.version is not None:
            said["version"] = self.version
        if self.tags or "tags" in self.emptied:
            said["tags"] = dict(self.tags)
        if self.risks or "runtime_risks" in self.emptied:
            said["runtime_risks"] = list(self.risks)
        if self.repository is not None:
            said["github_repository"] = self.repository
        return said


def batch_payload(records: Sequence[Record], scope: Scope) -> dict[str, object]:
    """
    Return the JSON body of the cluster call, whose path names the organisation and the cluster.

    The records are of different names. They go sorted: of two with the same digest but another
    name or version the first one gives it to both, which should be the same one each time.
    """
    place = {
        "logical_environment": scope.logical_environment,
        "physical_environment": scope.physical_environment,
    }
    return _without_empty(place) | {
        "deployments": [
            record.fields() for record in sorted(records, key=lambda each: each.deployment_name)
        ],
        "partial_success": True,
        "return_records": True,
    }


def _without_empty(place: Mapping[str, str]) -> dict[str, object]:
    """Leave out what the operator did not name; the logical environment is required."""
    return {key: value for key, value in place.items() if value or key == "logical_environment"}


def check_template(template: str) -> str | None:
    """
    Return why a deployment name template can't be used, or None when it can.

    It needs at least one of `{{namespace}}`, `{{deploymentName}}` and `{{containerName}}`, and
    must hold no other placeholder, no lone braces and no control characters.
    """
    known = " ".join(f"{{{{{name}}}}}" for name in _PLACEHOLDERS)
    found = _PLACEHOLDER.findall(template)
    for placeholder in found:
        if placeholder not in _PLACEHOLDERS:
            return f"unknown placeholder {{{{{placeholder}}}}}; known are {known}"
    if not found:
        return f"it holds no placeholder, so every container would get the same name; use {known}"
    rest = _PLACEHOLDER.sub("", template)
    if "{{" in rest or "}}" in rest:
        return f"it holds {{{{ or }}}} that belong to no placeholder; known are {known}"
    if not template.isprintable():
        return "it holds control characters or line breaks"
    if len(rest) >= MAX_DEPLOYMENT_NAME:
        return f"its fixed text leaves no room in the {MAX_DEPLOYMENT_NAME} characters of a name"
    return None


def render(template: str, *, namespace: str, workload: str, container: str) -> str | None:
    """
    Return the deployment name of a container, or None when it would be over 256 characters.

    One pass: what is put in is never read as a placeholder again.
    """
    values: Mapping[str, str] = {
        "namespace": namespace,
        "deploymentName": workload,
        "containerName": container,
    }
    name = _PLACEHOLDER.sub(lambda match: values[match[1]], template)
    return name if len(name) <= MAX_DEPLOYMENT_NAME else None
