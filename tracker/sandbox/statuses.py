"""
The ``Status`` objects a Kubernetes API server answers with when something cannot be done.

Clients decide by ``code``, ``reason`` and ``details``, people read ``message``; all four are worded
as kube-apiserver 1.36 words them. `ApiError` carries one from where it is noticed to the socket.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracker.sandbox.resources import Resource

__all__ = [
    "ApiError",
    "already_exists",
    "bad_request",
    "conflict",
    "expired",
    "forbidden",
    "invalid",
    "not_found",
    "reason_of",
    "status",
    "success",
    "too_large_version",
    "unknown_path",
]

REASONS: Mapping[int, str] = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class ApiError(Exception):
    """An answer that is a failure: ``code`` is the HTTP status, ``body`` the Status object."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body["message"])
        self.body = body
        self.code: int = body["code"]


def reason_of(code: int) -> str:
    """Return the machine-readable reason that goes with an HTTP status, "" if none does."""
    return REASONS.get(code, "")


def status(
    code: int,
    message: str,
    *,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a failure Status; the reason follows from the code unless it is given."""
    body: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": dict(metadata or {}),
        "status": "Failure",
        "message": message,
    }
    named = reason_of(code) if reason is None else reason
    if named:
        body["reason"] = named
    if details is not None:
        body["details"] = dict(details)
    body["code"] = code
    return body


def success(*, details: Mapping[str, Any] | None = None, code: int | None = None) -> dict[str, Any]:
    """Return a success Status, as deletes (with details) and bindings (with a code) get it."""
    body: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
    }
    if details is not None:
        body["details"] = dict(details)
    if code is not None:
        body["code"] = code
    return body


def bad_request(message: str) -> ApiError:
    """Return the 400 for a request that makes no sense."""
    return ApiError(status(HTTPStatus.BAD_REQUEST, message))


def not_found(resource: Resource, name: str) -> ApiError:
    """Return the 404 for one object that is not there."""
    message = f'{resource.qualified} "{name}" not found'
    return ApiError(status(HTTPStatus.NOT_FOUND, message, details=details_of(resource, name)))


def unknown_path() -> ApiError:
    """Return the 404 for a resource that the server does not serve."""
    message = "the server could not find the requested resource"
    return ApiError(status(HTTPStatus.NOT_FOUND, message, details={}))


def already_exists(resource: Resource, name: str) -> ApiError:
    """Return the 409 for a create whose name is taken."""
    message = f'{resource.qualified} "{name}" already exists'
    details = details_of(resource, name)
    return ApiError(status(HTTPStatus.CONFLICT, message, reason="AlreadyExists", details=details))


def conflict(resource: Resource, name: str, why: str | None = None) -> ApiError:
    """Return the 409 for a write that is based on an older version of the object."""
    reason = why or (
        "the object has been modified; "
        "please apply your changes to the latest version and try again"
    )
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {reason}'
    return ApiError(status(HTTPStatus.CONFLICT, message, details=details_of(resource, name)))


def forbidden(resource: Resource, name: str, why: str) -> ApiError:
    """Return the 403 for one object."""
    message = f'{resource.qualified} "{name}" is forbidden: {why}'
    return ApiError(status(HTTPStatus.FORBIDDEN, message, details=details_of(resource, name)))


def invalid(resource: Resource, name: str, *, field: str, cause: str, why: str) -> ApiError:
    """Return the 422 for an object with one wrong field; ``cause`` is like FieldValueRequired."""
    details = details_of(resource, name) | {
        "kind": resource.kind,
        "causes": [{"reason": cause, "message": why, "field": field}],
    }
    if not name:
        del details["name"]
    message = f'{resource.kind} "{name}" is invalid: {field}: {why}'
    return ApiError(status(HTTPStatus.UNPROCESSABLE_ENTITY, message, details=details))


def expired(message: str, *, continue_token: str | None = None) -> ApiError:
    """Return the 410 for a version that is no longer kept."""
    metadata = {"continue": continue_token} if continue_token else {}
    return ApiError(status(HTTPStatus.GONE, message, metadata=metadata))


def too_large_version(wanted: int, current: int) -> ApiError:
    """Return the 504 for a version that does not exist yet."""
    message = f"Timeout: Too large resource version: {wanted}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    details = {"causes": [cause], "retryAfterSeconds": 1}
    return ApiError(status(HTTPStatus.GATEWAY_TIMEOUT, message, details=details))


def details_of(resource: Resource, name: str) -> dict[str, Any]:
    """Return the details that name one object."""
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, **group, "kind": resource.plural}
