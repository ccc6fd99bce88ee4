"""
What the simulated API server answers, worked out without a socket.

`Api` turns a request into bytes: lists with paging and resource versions, single objects, writes.
Watches are begun here and sent by ``tracker.sandbox.cluster``. The semantics are those of
https://kubernetes.io/docs/reference/using-api/api-concepts/ as kube-apiserver 1.36 has them.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tracker.sandbox.negotiation import negotiate
from tracker.sandbox.objects import (
    Form,
    ObjectStore,
    Stored,
    Subscription,
    encode,
    order_of,
    watch_line,
)
from tracker.sandbox.patches import merge_patch, strategic_merge_patch
from tracker.sandbox.resources import PODS, Resource
from tracker.sandbox.selection import Selector, parse_selectors
from tracker.sandbox.statuses import (
    ApiError,
    bad_request,
    expired,
    not_found,
    status,
    success,
    too_large_version,
    unknown_path,
)
from tracker.sandbox.writes import DeleteOptions, Writer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from tracker.sandbox.objects import Json
    from tracker.sandbox.requests import Request, Target

__all__ = ["Answer", "Api", "Watch"]

MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"

INCONSISTENT: Final = -1
"""The version in a continue token that goes on at the present state, whatever that is."""

CONTINUE_EXPIRED: Final = (
    "The provided continue parameter is too old to display a consistent list result. You can start "
    "a new list without the continue parameter, or use the continue token in this response to "
    "retrieve the remainder of the results. Continuing with the provided token results in an "
    "inconsistent list - objects that were created, modified, or deleted between the time the "
    "first chunk was returned and now may show up in the list."
)

SUBRESOURCES: Final = frozenset({"", "status", "binding"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP status and a JSON body."""

    code: int
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """
    A watch that has begun.

    ``error`` is the one line it ends with at once (a version that is no longer kept), else None.
    ``timeout_seconds`` None means as long as the server likes; ``bookmarks`` whether it wants them.
    """

    subscription: Subscription
    error: bytes | None
    timeout_seconds: int | None
    bookmarks: bool


class Api:
    """The API over one store."""

    def __init__(self, store: ObjectStore, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    def answer(  # noqa: PLR0911 - one arm for each verb
        self, request: Request, target: Target, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Return the answer to anything but a watch; raises ApiError for a failure."""
        if target.subresource not in SUBRESOURCES:
            raise unknown_path()
        accept = headers.get("Accept", "")
        content_type = headers.get("Content-Type", "")
        match request.verb:
            case "list":
                form = negotiate(accept, target.resource, many=True)
                return Answer(code=HTTPStatus.OK, body=self._list(target, request.query, form))
            case "get":
                return _one(HTTPStatus.OK, self._get(target), accept)
            case "create" if target.subresource == "binding":
                return self._bind(target, body)
            case "create" if not target.name:
                return _one(HTTPStatus.CREATED, self._create(target, content_type, body), accept)
            case "update" if target.name:
                return _one(HTTPStatus.OK, self._replace(target, content_type, body), accept)
            case "patch" if target.name:
                stored = self._patch(target, content_type.partition(";")[0].strip(), body)
                return _one(HTTPStatus.OK, stored, accept)
            case "delete" if not target.subresource:
                options = DeleteOptions.parse(_parsed(body) if body else {}, request.query)
                key = (target.namespace, target.name)
                deleted = self._writer.delete(target.resource, key, options)
                return Answer(code=HTTPStatus.OK, body=encode(deleted))
            case "deletecollection" if target.namespace:
                return self._delete_collection(target, request.query, body)
            case _:
                message = "the server does not allow this method on the requested resource"
                raise ApiError(status(HTTPStatus.METHOD_NOT_ALLOWED, message, details={}))

    def watch(
        self, target: Target, query: Mapping[str, str], accept: str, wake: asyncio.Event, limit: int
    ) -> Watch:
        """
        Begin a watch: what it is owed already is pending when this returns.

        Raises ApiError for a watch that cannot begin. The caller unsubscribes in the end.
        """
        resource = target.resource
        form = negotiate(accept, resource, many=False)
        timeout = _whole_number(query, "timeoutSeconds")
        _check_match(query, watch=True)
        since = self._since(query)
        bookmarks = _is_true(query.get("allowWatchBookmarks", ""))
        subscription = Subscription(
            resource=resource,
            namespace=target.namespace,
            selector=parse_selectors(resource, query),
            form=form,
            wake=wake,
            limit=limit,
        )
        floor = self._store.subscribe(subscription, since=since)
        error = None
        if floor is not None:
            message = f"too old resource version: {since} ({floor})"
            error = watch_line("ERROR", encode(expired(message).body))
        elif since is None and bookmarks:
            subscription.push(self.bookmark(resource, form, initial=True))
        return Watch(
            subscription=subscription, error=error, timeout_seconds=timeout, bookmarks=bookmarks
        )

    def bookmark(self, resource: Resource, form: Form, *, initial: bool = False) -> bytes:
        """Return the line that tells a watch which version it has seen everything up to."""
        metadata: Json = {"resourceVersion": str(self._store.version)}
        if initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        kind = {"kind": resource.kind, "apiVersion": resource.api_version}
        if form == "metadata":
            kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        return watch_line("BOOKMARK", encode({**kind, "metadata": metadata}))

    # Reading.

    def _get(self, target: Target) -> Stored:
        stored = self._store.get(target.resource, (target.namespace, target.name))
        if stored is None:
            raise not_found(target.resource, target.name)
        return stored

    def _list(self, target: Target, query: Mapping[str, str], form: Form) -> bytes:
        resource = target.resource
        selector = parse_selectors(resource, query)
        limit = _whole_number(query, "limit") or 0
        token = query.get("continue", "")
        after: tuple[str, str] | None = None
        if token:
            if query.get("resourceVersion", "") not in {"", "0"}:
                message = "specifying resource version is not allowed when using continue"
                raise bad_request(message)
            at, after = _read_token(token, resource, target.namespace)
            objects = self._continued(resource, at, after, target.namespace)
        else:
            at = self._listed_version(query, limit)
            objects = self._store.at_version(resource, at)
            if query.get("resourceVersion") == "0":
                limit = 0  # the real server answers these from its cache, whole
        if at == INCONSISTENT:
            at = self._store.version
        page, rest = _page(objects, target.namespace, selector, after, limit)
        metadata: Json = {"resourceVersion": str(at)}
        if rest:
            metadata["continue"] = _token(at, page[-1].key, target.namespace)
            if selector is None:
                metadata["remainingItemCount"] = rest
        return _list_bytes(resource, metadata, page, form)

    def _continued(
        self, resource: Resource, at: int, after: tuple[str, str], namespace: str
    ) -> Sequence[Stored]:
        if at == INCONSISTENT:
            return self._store.at_version(resource, self._store.version)
        try:
            return self._store.at_version(resource, at)
        except ApiError as error:
            token = _token(INCONSISTENT, after, namespace)
            raise expired(CONTINUE_EXPIRED, continue_token=token) from error

    def _listed_version(self, query: Mapping[str, str], limit: int) -> int:
        """Return the version a list that begins is to show."""
        _check_match(query, watch=False)
        text = query.get("resourceVersion", "")
        current = self._store.version
        if text in {"", "0"}:
            return current
        try:
            wanted = _version_number(text)
        except ApiError as error:
            message = f"invalid resource version: {error}"
            raise bad_request(message) from error
        if wanted > current:
            raise too_large_version(wanted, current)
        # A limit without a match has always meant exactly that version.
        match query.get("resourceVersionMatch", "Exact" if limit else "NotOlderThan"):
            case "Exact":
                return wanted
            case _:
                return current

    def _since(self, query: Mapping[str, str]) -> int | None:
        text = query.get("resourceVersion", "")
        if text in {"", "0"} or _is_true(query.get("sendInitialEvents", "")):
            return None
        try:
            return _version_number(text)
        except ApiError as error:
            # The real server answers a watch from no version at all with 500, without a reason.
            body = status(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), reason="")
            raise ApiError(body) from error

    # Writing.

    def _create(self, target: Target, kind: str, raw: bytes) -> Stored:
        body = _parsed_object(raw, target.resource, kind)
        namespace = body.get("metadata", {}).get("namespace") or target.namespace
        if namespace != target.namespace:
            message = (
                "the namespace of the provided object does not match "
                "the namespace sent on the request"
            )
            raise bad_request(message)
        return self._writer.create(target.resource, target.namespace, body, trusted=False)

    def _replace(self, target: Target, kind: str, raw: bytes) -> Stored:
        body = _parsed_object(raw, target.resource, kind)
        name = body.get("metadata", {}).get("name", target.name)
        if name != target.name:
            message = (
                f"the name of the object ({name}) "
                f"does not match the name on the URL ({target.name})"
            )
            raise bad_request(message)
        return self._update(target, lambda _before: body)

    def _patch(self, target: Target, kind: str, raw: bytes) -> Stored:
        if kind == MERGE_PATCH:
            apply = merge_patch
        elif kind == STRATEGIC_PATCH:
            apply = strategic_merge_patch
        else:
            code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
            raise ApiError(status(code, "415: Unsupported Media Type", details={}))
        patch = _parsed(raw)
        return self._update(target, lambda before: apply(before, patch))

    def _update(self, target: Target, change: Callable[[Json], Json]) -> Stored:
        return self._writer.update(
            target.resource,
            (target.namespace, target.name),
            change,
            subresource=target.subresource,
        )

    def _bind(self, target: Target, raw: bytes) -> Answer:
        if target.resource is not PODS:
            raise unknown_path()
        node = _parsed(raw).get("target", {}).get("name", "")
        self._writer.bind((target.namespace, target.name), node)
        body = encode(success(code=HTTPStatus.CREATED))
        return Answer(code=HTTPStatus.CREATED, body=body)

    def _delete_collection(self, target: Target, query: Mapping[str, str], raw: bytes) -> Answer:
        options = DeleteOptions.parse(_parsed(raw) if raw else {}, query)
        selector = parse_selectors(target.resource, query)
        chosen = self._store.present(target.resource, namespace=target.namespace, selector=selector)
        for stored in chosen:
            self._writer.delete(target.resource, stored.key, options)
        metadata: Json = {"resourceVersion": str(self._store.version)}
        body = _list_bytes(target.resource, metadata, chosen, "full")
        return Answer(code=HTTPStatus.OK, body=body)


def _one(code: int, stored: Stored, accept: str) -> Answer:
    form = negotiate(accept, stored.resource, many=False)
    return Answer(code=code, body=stored.alone(form))


def _list_bytes(resource: Resource, metadata: Json, page: Sequence[Stored], form: Form) -> bytes:
    kind, api_version = f"{resource.kind}List", resource.api_version
    if form == "metadata":
        kind, api_version = "PartialObjectMetadataList", "meta.k8s.io/v1"
    head = encode({"kind": kind, "apiVersion": api_version, "metadata": metadata})
    items = b",".join(stored.item(form) for stored in page)
    return head[:-1] + b',"items":[' + items + b"]}"


def _page(
    objects: Sequence[Stored],
    namespace: str,
    selector: Selector | None,
    after: tuple[str, str] | None,
    limit: int,
) -> tuple[list[Stored], int]:
    """Return the objects of one page and how many follow it."""
    begin = "" if after is None else order_of(after)
    chosen = [
        stored
        for stored in objects
        if (not namespace or stored.key[0] == namespace)
        and (not begin or order_of(stored.key) > begin)
        and (selector is None or selector(stored.body))
    ]
    if not limit or len(chosen) <= limit:
        return chosen, 0
    return chosen[:limit], len(chosen) - limit


def _token(at: int, last: tuple[str, str], namespace: str) -> str:
    """Return the opaque token for the page after an object, in the real server's own form."""
    place = last[1] if namespace or not last[0] else "/".join(last)
    content = encode({"v": "meta.k8s.io/v1", "rv": at, "start": f"{place}\0"})
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _read_token(token: str, resource: Resource, namespace: str) -> tuple[int, tuple[str, str]]:
    """Return version and last object of a continue token; raises the 400 for a forged one."""
    try:
        padded = token + "=" * (-len(token) % 4)
        content = json.loads(base64.urlsafe_b64decode(padded))
        at, place = int(content["rv"]), str(content["start"]).removesuffix("\0")
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        message = f"invalid continue token: continue key is not valid: {error}"
        raise bad_request(message) from error
    if namespace or not resource.namespaced:
        return at, (namespace, place)
    first, _, second = place.partition("/")
    return at, (first, second)


def _parsed(raw: bytes) -> Json:
    try:
        body = json.loads(raw)
    except ValueError as error:
        message = f"couldn't get version/kind; json parse error: {error}"
        raise bad_request(message) from error
    if not isinstance(body, dict):
        message = "couldn't get version/kind; json parse error: not an object"
        raise bad_request(message)
    return body


def _parsed_object(raw: bytes, resource: Resource, kind: str) -> Json:
    if kind.partition(";")[0].strip() not in {"", "application/json"}:
        # kubectl writes built-in kinds as protobuf, which is not spoken here.
        code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        message = "the body of the request was in an unknown format - accepted media types include:"
        raise ApiError(status(code, f"{message} application/json"))
    body = _parsed(raw)
    given = body.get("apiVersion", resource.api_version), body.get("kind", resource.kind)
    if given != (resource.api_version, resource.kind):
        message = (
            f'{given[1]} in version "{given[0]}" cannot be handled as a {resource.kind}: '
            f'no kind "{given[1]}" is registered for version "{given[0]}"'
        )
        raise bad_request(message)
    return body


def _whole_number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        message = f'strconv.ParseInt: parsing "{text}": invalid syntax'
        raise bad_request(message) from error


def _version_number(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    parse = f'strconv.ParseUint: parsing "{text}": invalid syntax'
    message = f'resourceVersion: Invalid value: "{text}": {parse}'
    raise bad_request(message)


def _is_true(text: str) -> bool:
    return text in {"1", "t", "T", "true", "TRUE", "True"}


def _check_match(query: Mapping[str, str], *, watch: bool) -> None:
    """Raise the 422 for a resourceVersionMatch that goes with nothing else in the query."""
    match = query.get("resourceVersionMatch", "")
    if not match:
        return
    at = query.get("resourceVersion", "")
    cause, why = "FieldValueForbidden", ""
    if watch and "sendInitialEvents" not in query:
        why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
    elif not watch and not at:
        why = "resourceVersionMatch is forbidden unless resourceVersion is provided"
    elif match not in {"Exact", "NotOlderThan"}:
        cause = "FieldValueNotSupported"
        why = f'"{match}": supported values: "Exact", "NotOlderThan", ""'
    elif match == "Exact" and at == "0":
        why = 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
    if not why:
        return
    why = ("Forbidden: " if cause == "FieldValueForbidden" else "Unsupported value: ") + why
    details = {
        "group": "meta.k8s.io",
        "kind": "ListOptions",
        "causes": [{"reason": cause, "message": why, "field": "resourceVersionMatch"}],
    }
    message = f'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: {why}'
    raise ApiError(status(HTTPStatus.UNPROCESSABLE_ENTITY, message, details=details))
