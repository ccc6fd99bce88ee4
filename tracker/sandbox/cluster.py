"""
A simulated Kubernetes API server on a loopback socket, for the demo, the tests and users' own CI.

`SimulatedCluster` speaks the API as Kopf, kubernetes_asyncio and kubectl need it: discovery, lists
with paging and resource versions, watches that resume or are told 410, selectors, metadata-only
answers, writes with optimistic concurrency and two-step pod deletion. ``tests/test_conformance.py``
holds it and a real kube-apiserver to the same expectations. It has no schema, no admission, no
scheduler and no kubelet; a story, or a test that plays the kubelet, does their work.

Beside the socket there is an in-process way to change and read the cluster, a log of every request,
and outages on demand (``tracker.sandbox.outages``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self, assert_never

from aiohttp import web

from tracker.sandbox.access import REVIEWS, check, review
from tracker.sandbox.api import Api
from tracker.sandbox.door import Door
from tracker.sandbox.objects import HISTORY, ObjectStore, encode
from tracker.sandbox.outages import (
    Drip,
    EndStream,
    Hang,
    Injection,
    Match,
    RawAnswer,
    Refuse,
    StreamError,
    Truncate,
)
from tracker.sandbox.patches import merge_patch
from tracker.sandbox.requests import Request, target_of, verb_of
from tracker.sandbox.resources import RESOURCES, Resource, discovery, version
from tracker.sandbox.statuses import ApiError, status, unknown_path
from tracker.sandbox.streams import Connection, Stream, error_line
from tracker.sandbox.writes import DeleteOptions, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from tracker.sandbox.objects import Json, Stored
    from tracker.sandbox.outages import Fault
    from tracker.sandbox.requests import Target

__all__ = ["SimulatedCluster"]

SYSTEM_NAMESPACES: Final = ("default", "kube-node-lease", "kube-public", "kube-system")

HEALTH_PATHS: Final = frozenset({"/healthz", "/livez", "/readyz"})
OPEN_PATHS: Final = HEALTH_PATHS | {"/version"}
"""What a client may read without a token, as by the default roles of a real cluster."""


KUBECONFIG: Final = """\
apiVersion: v1
kind: Config
current-context: simulated
clusters:
  - name: simulated
    cluster:
      server: {url}
contexts:
  - name: simulated
    context:
      cluster: simulated
      user: simulated
users:
  - name: simulated
    user:
      token: {token}
"""


class SimulatedCluster:
    """
    The simulated API server; an async context manager that listens while it is entered.

    ``port`` 0 takes a free one. ``history`` is how many events of a resource a watch can resume
    over; ``bookmark_seconds`` how often a watch that wants bookmarks gets one. ``anonymous`` lets
    in who sends no token: kubectl sends none over plain http, whatever its kubeconfig says. What
    is put into ``forbidden``, like ``("watch", "pods")``, is refused with 403 from then on.

    Change it in process with `create`, `replace`, `patch` and `delete`, read it with `get` and
    `objects`. These are trusted: they may set status, uid and creation time. They need no running
    server, but belong to its event loop once there is one.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        token: str | None = None,
        history: int = HISTORY,
        bookmark_seconds: float = 60.0,
        anonymous: bool = False,
    ) -> None:
        self.token = token or secrets.token_hex(16)
        self.requests: list[Request] = []
        self.forbidden: set[tuple[str, str]] = set()
        self._door = Door(port)
        self._anonymous = anonymous
        self._history = history
        self._bookmark_seconds = bookmark_seconds
        self._store = ObjectStore(RESOURCES, history=history)
        self._writer = Writer(self._store)
        self._api = Api(self._store, self._writer)
        self._injections: list[Injection] = []
        self._hanging: dict[Connection, Injection] = {}
        self._streams: set[Stream] = set()
        self._runner: web.ServerRunner | None = None
        self._changed: list[asyncio.Event] = []
        for name in SYSTEM_NAMESPACES:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    async def __aenter__(self) -> Self:
        # A handler ends when its client goes: hanging answers and watches wait for nothing else.
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        await self.resume()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.pause()
        await asyncio.sleep(0)  # the loop's turn in which aborted transports close their sockets
        if self._runner is not None:
            await self._door.close(self._runner)
            self._runner = None

    # Where it is.

    @property
    def url(self) -> str:
        """Return where it listens, or last listened, like ``http://127.0.0.1:40123``."""
        return f"http://127.0.0.1:{self._door.port}"

    def kubeconfig(self) -> str:
        """Return a kubeconfig (YAML) that leads here with the present token."""
        return KUBECONFIG.format(url=self.url, token=self.token)

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the kubeconfig to a path (mode 0600, since it holds a token); return the path."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(self.kubeconfig())
        return path

    # Changing and reading it in process.

    @property
    def version(self) -> int:
        """Return the resource version of the latest change."""
        return self._store.version

    def create(self, body: Mapping[str, Any]) -> Json:
        """
        Create an object from its manifest and return it as stored.

        A namespace that is missing is created first. Raises ApiError if the name is taken.
        """
        own = _copy(body)
        namespace = own.get("metadata", {}).get("namespace", "default")
        stored = self._writer.create(resource_of(body), namespace, own, trusted=True)
        return self._done(stored)

    def replace(self, body: Mapping[str, Any]) -> Json:
        """Replace an object, status included; its uid and creation time stay as they were."""
        resource, own = resource_of(body), _copy(body)
        key = _key(resource, own["metadata"].get("namespace", "default"), own["metadata"]["name"])
        stored = self._writer.update(resource, key, lambda _before: own, trusted=True)
        return self._done(stored)

    def patch(self, plural: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        """Change an object by a JSON merge patch, which may touch the status too."""
        resource, own = _resource_named(plural), _copy(patch)
        stored = self._writer.update(
            resource,
            _key(resource, namespace, name),
            lambda before: merge_patch(before, own),
            trusted=True,
        )
        return self._done(stored)

    def delete(
        self,
        plural: str,
        namespace: str,
        name: str,
        *,
        grace_seconds: int | None = None,
        propagation: str = "Background",
    ) -> None:
        """
        Delete an object as a client would: a pod on a node waits for its kubelet.

        ``grace_seconds`` 0 removes a pod at once; ``propagation`` (Background, Foreground, Orphan)
        is what becomes of its dependents.
        """
        resource = _resource_named(plural)
        options = DeleteOptions(grace_seconds=grace_seconds, propagation=propagation)
        self._writer.delete(resource, _key(resource, namespace, name), options)
        self._notify()

    def get(self, plural: str, namespace: str, name: str) -> Json | None:
        """Return a copy of one object, None if there is none."""
        resource = _resource_named(plural)
        stored = self._store.get(resource, _key(resource, namespace, name))
        return None if stored is None else _copy(stored.body)

    def objects(self, plural: str, namespace: str | None = None) -> list[Json]:
        """Return copies of the objects of a kind, ordered by namespace and name."""
        found = self._store.present(_resource_named(plural), namespace=namespace or "")
        return [_copy(stored.body) for stored in found]

    async def until(self, condition: Callable[[], bool], *, within: float = 10.0) -> None:
        """
        Wait until a condition holds; it is asked after each request, write and end of a stream.

        Raises TimeoutError after ``within`` seconds.
        """
        changed = asyncio.Event()
        self._changed.append(changed)
        try:
            async with asyncio.timeout(within):
                while not condition():
                    await changed.wait()
                    changed.clear()
        finally:
            self._changed.remove(changed)

    # Outages.

    def inject(
        self, fault: Fault, *, match: Match | None = None, times: int | None = None
    ) -> Injection:
        """
        Put a fault in force for the requests that match (all of them by default).

        With ``times`` it hits that many and is over, otherwise it lasts until `remove` or `heal`.
        Of several that match, the one injected first hits.
        """
        injection = Injection(fault=fault, match=match or Match(), left=times)
        self._injections.append(injection)
        return injection

    def remove(self, injection: Injection) -> None:
        """Take a fault back; connections that hang in it are reset. Safe to call twice."""
        with contextlib.suppress(ValueError):
            self._injections.remove(injection)
        for connection, reason in list(self._hanging.items()):
            if reason is injection:
                connection.abort()

    def heal(self) -> None:
        """Take all faults back and let frozen watches go on."""
        for injection in list(self._injections):
            self.remove(injection)
        for connection in list(self._hanging):
            connection.abort()  # in a fault that had a number of times and was spent
        self.freeze_watches(frozen=False)

    @property
    def watches(self) -> int:
        """Return how many watches are open."""
        return len(self._streams)

    def cut_watches(self, *, in_mid_line: bool = False) -> int:
        """Reset all open watches, after half a line if so told; return how many there were."""
        streams = list(self._streams)
        for stream in streams:
            stream.cut(in_mid_line=in_mid_line)
        return len(streams)

    def end_watches(self) -> int:
        """End all open watches in order, as at their timeout; return how many there were."""
        streams = list(self._streams)
        for stream in streams:
            stream.end()
        return len(streams)

    def freeze_watches(self, *, frozen: bool = True) -> int:
        """
        Let open watches fall silent without an end (half-open), or go on; return how many.

        Events of the silence are sent when a watch goes on. Watches opened later are not silent.
        """
        streams = list(self._streams)
        for stream in streams:
            stream.frozen = frozen
            stream.wake.set()
        return len(streams)

    def fail_watches(self, *, code: int | None = 410, message: str = "too old") -> int:
        """Send an ERROR event to all open watches and end them; return how many there were."""
        streams = list(self._streams)
        for stream in streams:
            stream.fail(error_line(code, message))
        return len(streams)

    def bookmark(self) -> None:
        """Send a bookmark now to each open watch that wants bookmarks."""
        for stream in self._streams:
            stream.bookmark()

    def compact(self) -> None:
        """Forget the history: who resumes or pages from an older version is told 410."""
        self._store.compact()

    async def pause(self) -> None:
        """Stop listening and reset every connection: clients are refused until `resume`."""
        if self._runner is not None:
            await self._door.shut(self._runner)

    async def resume(self) -> None:
        """Listen (again), on the same port as before."""
        if self._runner is not None:
            await self._door.open(self._runner)

    # Serving.

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        target = target_of(http.path)
        request = Request(
            verb=verb_of(http.method, target, http.query),
            method=http.method,
            path=http.path,
            resource=target.resource.plural if target else "",
            namespace=target.namespace if target else "",
            name=target.name if target else "",
            subresource=target.subresource if target else "",
            query=dict(http.query),
            user_agent=http.headers.get("User-Agent", ""),
            at=asyncio.get_running_loop().time(),
        )
        self.requests.append(request)
        self._notify()
        connection = Connection(http)
        injection = self._hit(request)
        try:
            if injection is not None:
                return await self._play(injection, connection, request, target)
            return await self._answer(connection, request, target)
        finally:
            request.status = connection.status
            self._notify()

    def _hit(self, request: Request) -> Injection | None:
        """Return the fault that hits a request, counted; None if none does."""
        for injection in self._injections:
            if injection.match.covers(request):
                injection.hits += 1
                if injection.spent:
                    self._injections.remove(injection)
                return injection
        return None

    async def _answer(
        self, connection: Connection, request: Request, target: Target | None
    ) -> web.StreamResponse:
        """Give the proper answer, or the Status of what is wrong with the request."""
        try:
            self._authenticate(connection.http)
            if target is None:
                return await self._answer_path(connection)
            check(request.verb, target, self.forbidden)
            if request.verb == "watch":
                return await self._serve_watch(connection, request, target)
            body = await connection.http.content.read()
            answer = self._api.answer(request, target, connection.http.headers, body)
        except ApiError as error:
            return await connection.send(error.code, encode(error.body))
        return await connection.send(answer.code, answer.body)

    def _authenticate(self, http: web.BaseRequest) -> None:
        given = http.headers.get("Authorization", "")
        if given and given != f"Bearer {self.token}":
            raise ApiError(status(HTTPStatus.UNAUTHORIZED, "Unauthorized"))
        if given or self._anonymous or http.path in OPEN_PATHS:
            return
        message = f'forbidden: User "system:anonymous" cannot {http.method} path "{http.path}"'
        raise ApiError(status(HTTPStatus.FORBIDDEN, message, details={}))

    async def _answer_path(self, connection: Connection) -> web.StreamResponse:
        """Answer a path that is no stored resource: discovery, version, health, reviews."""
        path = connection.http.path
        if path in HEALTH_PATHS:
            return await connection.send(HTTPStatus.OK, b"ok", "text/plain")
        if path == "/version":
            return await connection.send(HTTPStatus.OK, encode(version()))
        if path == REVIEWS and connection.http.method == "POST":
            answer = review(await connection.http.content.read(), self.forbidden)
            return await connection.send(HTTPStatus.CREATED, encode(answer))
        document = discovery(path, address=f"127.0.0.1:{self._door.port}")
        if document is not None:
            return await connection.send(HTTPStatus.OK, encode(document))
        if any(path.startswith(f"/{each}/") for each in known_roots()):
            raise unknown_path()
        return await connection.send(HTTPStatus.NOT_FOUND, b"404 page not found\n", "text/plain")

    async def _serve_watch(
        self, connection: Connection, request: Request, target: Target
    ) -> web.StreamResponse:
        accept = connection.http.headers.get("Accept", "")
        wake = asyncio.Event()
        watch = self._api.watch(target, request.query, accept, wake, self._history)
        stream = Stream(connection, watch, self._api)
        self._streams.add(stream)
        try:
            request.status = HTTPStatus.OK
            return await stream.serve(self._bookmark_seconds)
        finally:
            self._streams.discard(stream)
            self._store.unsubscribe(watch.subscription)

    async def _play(  # noqa: PLR0911 - one arm for each fault
        self,
        injection: Injection,
        connection: Connection,
        request: Request,
        target: Target | None,
    ) -> web.StreamResponse:
        """Answer a request as the fault that hit it says."""
        fault = injection.fault
        match fault:
            case Refuse():
                body = status(fault.code, fault.message or _phrase(fault.code), reason=fault.reason)
                extra = {}
                if fault.retry_after is not None:
                    extra["Retry-After"] = str(fault.retry_after)
                return await connection.send(fault.code, encode(body), headers=extra)
            case RawAnswer():
                return await connection.send(fault.code, fault.body, fault.content_type)
            case StreamError():
                await connection.begin()
                await connection.write(error_line(fault.code, fault.message))
                return await connection.finish()
            case EndStream():
                await connection.begin()
                return await connection.finish()
            case Hang():
                return await self._hang(injection, connection, headers=fault.after_headers)
            case Truncate():
                connection.truncated = True
                return await self._answer(connection, request, target)
            case Drip():
                connection.drip = fault
                return await self._answer(connection, request, target)
            case _:
                assert_never(fault)

    async def _hang(
        self, injection: Injection, connection: Connection, *, headers: bool
    ) -> web.StreamResponse:
        if headers:
            await connection.begin()
        self._hanging[connection] = injection
        try:
            # Nothing sets it: the wait ends when the connection does.
            await asyncio.Event().wait()
        finally:
            del self._hanging[connection]
        return await connection.finish()

    def _done(self, stored: Stored) -> Json:
        self._notify()
        return _copy(stored.body)

    def _notify(self) -> None:
        for changed in self._changed:
            changed.set()


def known_roots() -> set[str]:
    """Return the roots below which an unknown resource is answered with a Status."""
    return {
        f"apis/{each.api_version}" if each.group else f"api/{each.api_version}"
        for each in RESOURCES
    }


def resource_of(body: Mapping[str, Any]) -> Resource:
    """Return the resource of an object by its apiVersion and kind; raises LookupError."""
    for resource in RESOURCES:
        if (resource.api_version, resource.kind) == (body["apiVersion"], body["kind"]):
            return resource
    message = f"the simulated cluster does not serve {body['apiVersion']} {body['kind']}"
    raise LookupError(message)


def _resource_named(plural: str) -> Resource:
    for resource in RESOURCES:
        if resource.plural == plural:
            return resource
    message = f"the simulated cluster does not serve {plural}"
    raise LookupError(message)


def _key(resource: Resource, namespace: str, name: str) -> tuple[str, str]:
    return (namespace if resource.namespaced else "", name)


def _copy(body: Mapping[str, Any]) -> Json:
    """Return an independent copy; the way over JSON is the fastest there is."""
    own: Json = json.loads(json.dumps(body))
    return own


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return "unknown"
