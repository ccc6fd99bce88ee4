"""
What GitHub's published REST description says of a deployment record, and nothing else.

An independent reading: the simulated GitHub judges every request by these tables, so a tracker that
misreads the contract is told so by its own sandbox before GitHub tells it. Pure: JSON values in,
deployments or complaints out. The source is GitHub's "REST API endpoints for artifact metadata",
version 2022-11-28: https://docs.github.com/en/rest/orgs/artifact-metadata
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

__all__ = [
    "CLUSTER_IN_PATH",
    "DIGEST",
    "MAX_DEPLOYMENTS",
    "Batch",
    "ContractError",
    "Deployment",
    "FieldError",
    "Identity",
    "names_in",
    "read_batch",
    "read_single",
]

DIGEST: Final = re.compile(r"sha256:[a-f0-9]{64}")
"""A digest, by `fullmatch`."""

CLUSTER_IN_PATH: Final = re.compile(r"[a-zA-Z0-9._-]{1,128}")
"""A cluster's name as a part of a path, by `fullmatch`."""

MAX_DEPLOYMENTS: Final = 1_000
"""The most deployments one cluster call may carry."""

MAX_TAGS: Final = 5
MAX_RISKS: Final = 4
RISKS: Final = frozenset(
    {"critical-resource", "internet-exposed", "lateral-movement", "sensitive-data"}
)
REPOSITORY: Final = re.compile(r"[A-Za-z0-9.\-_]+")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Identity:
    """What makes two posts the same record; an environment or cluster that is absent is ""."""

    org: str
    logical_environment: str
    physical_environment: str
    cluster: str
    deployment_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One valid record as it was posted; `tags` are sorted by key, `version` None when left out."""

    identity: Identity
    digest: str
    name: str
    version: str | None
    status: str
    tags: tuple[tuple[str, str], ...] = ()
    runtime_risks: tuple[str, ...] = ()
    github_repository: str | None = None

    @property
    def deployment_name(self) -> str:
        """The name of this record within its environment and cluster."""
        return self.identity.deployment_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One valid request: a single post is a batch of one that is not partial."""

    deployments: tuple[Deployment, ...]
    partial_success: bool = False
    return_records: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One complaint, in the shape of GitHub's `errors[]`; `field` is a path into the body."""

    field: str
    code: str
    message: str

    def as_json(self) -> dict[str, str]:
        """Return the complaint as an element of an error body."""
        return {
            "resource": "DeploymentRecord",
            "field": self.field,
            "code": self.code,
            "message": self.message,
        }


class ContractError(Exception):
    """A body breaks the contract; `errors` names every field that does."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


Check = Callable[[object], str | None]
"""Says what is wrong with a value, or None."""


def _text(minimum: int, maximum: int, pattern: re.Pattern[str] | None = None) -> Check:
    def check(value: object) -> str | None:
        if not isinstance(value, str):
            return "is not a string"
        if not minimum <= len(value) <= maximum:
            return f"is {len(value)} characters long, not {minimum} to {maximum}"
        if pattern is not None and pattern.fullmatch(value) is None:
            return f"does not match ^{pattern.pattern}$"
        return None

    return check


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "is not a boolean"


def _status(value: object) -> str | None:
    return None if value in {"deployed", "decommissioned"} else "is not deployed or decommissioned"


def _tags(value: object) -> str | None:
    if not isinstance(value, dict):
        return "is not an object"
    if len(value) > MAX_TAGS:
        return f"has {len(value)} entries, more than {MAX_TAGS}"
    if not all(isinstance(tag, str) for tag in value.values()):
        return "has a value that is not a string"
    return None


def _risks(value: object) -> str | None:
    if not isinstance(value, list):
        return "is not an array"
    if not all(isinstance(risk, str) and risk in RISKS for risk in value):
        return f"has an element that is not one of {', '.join(sorted(RISKS))}"
    if len(value) > MAX_RISKS or len(set(value)) != len(value):
        return f"has more than {MAX_RISKS} elements, or one of them twice"
    return None


def _deployments(value: object) -> str | None:
    if not isinstance(value, list):
        return "is not an array"
    if not 1 <= len(value) <= MAX_DEPLOYMENTS:
        return f"has {len(value)} elements, not 1 to {MAX_DEPLOYMENTS}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    fields: Mapping[str, Check]
    required: frozenset[str]


_DEPLOYMENT = _Shape(
    fields={
        "name": _text(1, 256),
        "digest": _text(71, 71, DIGEST),
        "version": _text(1, 100),
        "status": _status,
        "deployment_name": _text(1, 256),
        "github_repository": _text(1, 100, REPOSITORY),
        "tags": _tags,
        "runtime_risks": _risks,
    },
    required=frozenset({"name", "digest", "deployment_name"}),
)
_ENVIRONMENT: Final[Mapping[str, Check]] = {
    "logical_environment": _text(1, 128),
    "physical_environment": _text(0, 128),
    "return_records": _flag,
}
_SINGLE = _Shape(
    fields={**_DEPLOYMENT.fields, **_ENVIRONMENT, "cluster": _text(0, 128)},
    required=_DEPLOYMENT.required | {"status", "logical_environment"},
)
_BATCH = _Shape(
    fields={**_ENVIRONMENT, "partial_success": _flag, "deployments": _deployments},
    required=frozenset({"logical_environment", "deployments"}),
)


def read_single(body: object, *, org: str) -> Batch:
    """
    Return the one deployment of a single post.

    Raises ContractError with every complaint; an unknown field is one.
    """
    record = _checked(body, _SINGLE, "")
    return Batch(
        deployments=(_deployment(record, record, org=org, cluster=record.get("cluster", "")),),
        return_records=bool(record.get("return_records", True)),
    )


def read_batch(body: object, *, org: str, cluster: str) -> Batch:
    """
    Return the deployments of a cluster call.

    Raises ContractError with every complaint: an unknown field, a deployment_name that is there
    twice, more than a thousand deployments are some.
    """
    request = _checked(body, _BATCH, "")
    errors: list[FieldError] = []
    deployments: list[Deployment] = []
    seen: set[str] = set()
    for index, raw in enumerate(cast("list[object]", request["deployments"])):
        at = f"deployments[{index}]"
        try:
            record = _checked(raw, _DEPLOYMENT, f"{at}.")
        except ContractError as error:
            errors.extend(error.errors)
            continue
        deployment = _deployment(record, request, org=org, cluster=cluster)
        if deployment.deployment_name in seen:
            errors.append(
                FieldError(
                    field=f"{at}.deployment_name",
                    code="already_exists",
                    message=f"{deployment.deployment_name!r} is there twice",
                )
            )
        seen.add(deployment.deployment_name)
        deployments.append(deployment)
    if errors:
        raise ContractError(tuple(errors))
    return Batch(
        deployments=tuple(deployments),
        partial_success=bool(request.get("partial_success", False)),
        return_records=bool(request.get("return_records", True)),
    )


def names_in(body: object) -> tuple[str, ...]:
    """Return every deployment_name a body mentions, valid or not, in its order."""
    if not isinstance(body, dict):
        return ()
    listed = body.get("deployments")
    records = listed if isinstance(listed, list) else [body]
    return tuple(
        record["deployment_name"]
        for record in records
        if isinstance(record, dict) and isinstance(record.get("deployment_name"), str)
    )


def _checked(body: object, shape: _Shape, prefix: str) -> dict[str, object]:
    if not isinstance(body, dict):
        field = prefix.rstrip(".") or "body"
        raise ContractError((FieldError(field=field, code="invalid", message="is not an object"),))
    errors = [
        FieldError(field=f"{prefix}{field}", code="missing_field", message="wasn't supplied")
        for field in sorted(shape.required - body.keys())
    ]
    for field, value in body.items():
        check = shape.fields.get(field)
        if check is None:
            wrong: str | None = "is not a permitted key"
        else:
            wrong = check(value)
        if wrong is not None:
            code = "unprocessable" if check is None else "invalid"
            errors.append(FieldError(field=f"{prefix}{field}", code=code, message=wrong))
    if errors:
        raise ContractError(tuple(errors))
    return body


def _deployment(
    record: Mapping[str, object], environment: Mapping[str, object], *, org: str, cluster: object
) -> Deployment:
    """Build the value of a record that was checked, so the casts below hold."""
    return Deployment(
        identity=Identity(
            org=org,
            logical_environment=cast("str", environment["logical_environment"]),
            physical_environment=cast("str", environment.get("physical_environment", "")),
            cluster=cast("str", cluster),
            deployment_name=cast("str", record["deployment_name"]),
        ),
        digest=cast("str", record["digest"]),
        name=cast("str", record["name"]),
        version=cast("str | None", record.get("version")),
        status=cast("str", record.get("status", "deployed")),
        tags=tuple(sorted(cast("dict[str, str]", record.get("tags", {})).items())),
        runtime_risks=tuple(sorted(cast("list[str]", record.get("runtime_risks", [])))),
        github_repository=cast("str | None", record.get("github_repository")),
    )
