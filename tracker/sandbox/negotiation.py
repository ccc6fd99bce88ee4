"""
Which representation a client gets: whole objects or only their metadata.

The ``Accept`` header may list several, best first; what is not known here (protobuf, tables) is
passed over for the next, as an older API server does.
https://kubernetes.io/docs/reference/using-api/api-concepts/#alternate-representations-of-resources
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tracker.sandbox.statuses import ApiError, status

if TYPE_CHECKING:
    from tracker.sandbox.objects import Form
    from tracker.sandbox.resources import Resource

__all__ = ["negotiate"]

JSON_TYPES: Final = frozenset({"application/json", "application/*", "*/*"})
ONE: Final = "PartialObjectMetadata"
MANY: Final = "PartialObjectMetadataList"


def negotiate(accept: str, resource: Resource, *, many: bool) -> Form:
    """
    Return the form for an ``Accept`` header ("" accepts all); ``many`` is true for a list.

    Raises the 406 if nothing fits, or if metadata of one object is asked of a list or the reverse.
    """
    for clause in sorted(_clauses(accept or "*/*"), key=_quality, reverse=True):
        if clause["type"] not in JSON_TYPES:
            continue
        wanted = clause.get("as", "")
        if not wanted:
            return "full"
        if clause.get("g") != "meta.k8s.io" or clause.get("v") != "v1":
            continue
        if wanted == (MANY if many else ONE):
            return "metadata"
        if wanted in {ONE, MANY}:
            article = "a list" if many else "not a list"
            kind = f"*core.{resource.kind}{'List' if many else ''}"
            message = f"you requested {wanted}, but the requested object is {article} ({kind})"
            raise ApiError(status(HTTPStatus.NOT_ACCEPTABLE, message))
    message = "only the following media types are accepted: application/json"
    raise ApiError(status(HTTPStatus.NOT_ACCEPTABLE, message))


def _clauses(accept: str) -> list[dict[str, str]]:
    clauses = []
    for text in accept.split(","):
        media_type, *parameters = (part.strip() for part in text.split(";"))
        clause = {"type": media_type.lower()}
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            clause[name.strip()] = value.strip()
        clauses.append(clause)
    return clauses


def _quality(clause: dict[str, str]) -> float:
    try:
        return float(clause.get("q", "1"))
    except ValueError:
        return 1.0
