"""
What a client asked the simulated API server: one `Request` each, as an audit log would tell it.

Reading a path is all there is to routing: the API's paths are regular enough that a table of routes
would only repeat them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from tracker.sandbox.resources import RESOURCES, Resource

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Request", "Target", "target_of", "verb_of"]

FALSE_WORDS: Final = frozenset({"", "0", "f", "F", "false", "FALSE", "False"})

VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

_BY_PLACE: Final = {(each.group, each.version, each.plural): each for each in RESOURCES}


@dataclasses.dataclass(slots=True, kw_only=True)
class Request:
    """
    One request as it arrived.

    ``verb`` is the API's (get, list, watch, create, update, patch, delete, deletecollection), also
    for paths that are no resource; ``resource`` is the plural, "" for such a path. ``at`` is in
    monotonic seconds. ``status`` is the HTTP status it was answered with, None until then or if the
    connection ended without one.
    """

    verb: str
    method: str
    path: str
    resource: str
    namespace: str
    name: str
    subresource: str
    query: Mapping[str, str]
    user_agent: str
    at: float
    status: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a path names: a resource, perhaps one object of it, perhaps a part of that."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def target_of(path: str) -> Target | None:  # noqa: PLR0911 - one for each shape of path
    """Return what a path names, None if it is not the path of a known resource."""
    segments = [segment for segment in path.split("/") if segment]
    match segments:
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            return None
    # `namespaces/NAME/status` is a part of a namespace, `namespaces/NAME/pods` a list in it.
    match rest:
        case ["namespaces", namespace, plural, *more] if plural not in {"status", "finalize"}:
            pass
        case [plural, *more]:
            namespace = ""
        case _:
            return None
    resource = _BY_PLACE.get((group, version, plural))
    if resource is None or (namespace and not resource.namespaced):
        return None
    match more:
        case []:
            return Target(resource=resource, namespace=namespace)
        case [name] if namespace or not resource.namespaced:
            return Target(resource=resource, namespace=namespace, name=name)
        case [name, subresource] if namespace or not resource.namespaced:
            return Target(
                resource=resource, namespace=namespace, name=name, subresource=subresource
            )
        case _:
            return None


def verb_of(method: str, target: Target | None, query: Mapping[str, str]) -> str:
    """Return the API's verb for a request."""
    if target is None or target.name:
        return VERBS.get(method, "get")
    match method:
        case "GET" | "HEAD":
            # As a real server reads booleans: what is no known word for false is true.
            return "list" if query.get("watch", "") in FALSE_WORDS else "watch"
        case "DELETE":
            return "deletecollection"
        case _:
            return VERBS.get(method, method.lower())
