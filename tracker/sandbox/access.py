"""
Who may do what at the simulated API server, and how a client asks about itself.

Everything is permitted but what a test or a story takes away: pairs of a verb and a plural, like
``("watch", "pods")``. A request for one of these is answered 403, and a SelfSubjectAccessReview,
which stores nothing and which any account may send, says so beforehand.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from tracker.sandbox.statuses import ApiError, bad_request, status

if TYPE_CHECKING:
    from collections.abc import Collection

    from tracker.sandbox.requests import Target

__all__ = ["REVIEWS", "check", "review"]

API_VERSION: Final = "authorization.k8s.io/v1"
KIND: Final = "SelfSubjectAccessReview"
REVIEWS: Final = f"/apis/{API_VERSION}/selfsubjectaccessreviews"

Json = dict[str, Any]


def check(verb: str, target: Target, forbidden: Collection[tuple[str, str]]) -> None:
    """Raise the 403 for a request that is not permitted."""
    resource = target.resource
    if (verb, resource.plural) not in forbidden:
        return
    where = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
    name = f' "{target.name}"' if target.name else ""
    message = (
        f'{resource.qualified}{name} is forbidden: User "simulated" cannot {verb} resource'
        f' "{resource.plural}" in API group "{resource.group}" {where}'
    )
    details = {"kind": resource.plural}
    if resource.group:
        details["group"] = resource.group
    if target.name:
        details["name"] = target.name
    raise ApiError(status(HTTPStatus.FORBIDDEN, message, details=details))


def review(raw: bytes, forbidden: Collection[tuple[str, str]]) -> Json:
    """Return a SelfSubjectAccessReview with its answer; raises ApiError for what is not one."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the request body can't be read: {error}") from error
    if not isinstance(body, dict) or (body.get("kind"), body.get("apiVersion")) != (
        KIND,
        API_VERSION,
    ):
        raise bad_request(f"the request body is no {API_VERSION} {KIND}")
    spec = body.get("spec")
    asked = spec.get("resourceAttributes") if isinstance(spec, dict) else None
    if not isinstance(asked, dict):
        why = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        details = {
            "group": "authorization.k8s.io",
            "kind": KIND,
            "causes": [
                {"reason": "FieldValueInvalid", "message": why, "field": "spec.resourceAttributes"}
            ],
        }
        message = f'{KIND}.authorization.k8s.io "" is invalid: spec.resourceAttributes: {why}'
        raise ApiError(status(HTTPStatus.UNPROCESSABLE_ENTITY, message, details=details))
    allowed = (asked.get("verb"), asked.get("resource")) not in forbidden
    answer: Json = {"allowed": allowed}
    if allowed:
        answer["reason"] = "everything is permitted but what was taken away"
    return {
        "kind": KIND,
        "apiVersion": API_VERSION,
        "metadata": {},
        "spec": {"resourceAttributes": asked},
        "status": answer,
    }
