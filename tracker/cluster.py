"""
The Kubernetes API server: where it is, how to be let in, and lists of what is there.

Credentials come from where people expect them (a kubeconfig, with its exec plugins, or the pod's
ServiceAccount) and are read anew at each login, so that a rotated token is found. Sessions are our
own: no proxy and no `.netrc` from the environment apply to the API server.

Lists ask for metadata only and for a consistent state (no resourceVersion, so the server answers
from a quorum and not from a cache that may be behind), in pages; a list that does not come to its
end is no list.
"""

import asyncio
import hashlib
import json
import math
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, cast
from urllib.parse import quote

import aiohttp
import structlog
import yaml
from kubernetes_asyncio import client
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
)
from kubernetes_asyncio.config.incluster_config import SERVICE_HOST_ENV_NAME

from tracker.annotations import read_marks
from tracker.answers import clean_text
from tracker.catalog import KINDS, Kind, Known
from tracker.drift import Listed
from tracker.errors import CredentialsError, ListError
from tracker.pods import controllers_in, read_version
from tracker.transport import take_user_info
from tracker.workloads import Workload

__all__ = ["Cluster", "Connection", "Endpoint"]

PAGE: Final = 500
"""Objects asked for at once: metadata of 500 pods is well under a megabyte."""
APART_SECONDS: Final = 1.0
"""Between the beginnings of two watches, and of two lists for one, at least."""
MAX_APART_SECONDS: Final = 20.0
"""Between two such lists when one follows the other again and again."""
LIST_SECONDS: Final = 60.0
"""For one page from its first to its last byte."""
LOGIN_SECONDS: Final = 60.0
"""For reading the credentials, an exec plugin's run included."""
CONNECT_SECONDS: Final = 10.0
READ_BUFFER: Final = 2**21
"""Bytes; one line of a watch holds a whole object, and etcd takes objects of up to 1.5 MiB."""
WORKLOAD_PAGE: Final = 1000
METADATA_OF_MANY: Final = (
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
)
METADATA_OF_ONE: Final = METADATA_OF_MANY.replace("MetadataList", "Metadata")
WHOLE: Final = "application/json"
JSON: Final = {"Content-Type": WHOLE}
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
PODS: Final = ("/api/v1", "pods")
PLURALS: Final = frozenset(
    {"version", "selfsubjectaccessreviews", "pods", *(kind.plural for kind in KINDS.values())}
)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An API server's address and a session that is let in. Whoever opens one closes it."""

    server: str
    session: aiohttp.ClientSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An API server's address and what tells it from another: a hash of address and CA."""

    server: str
    fingerprint: str


class Cluster:
    """
    One API server, as one identity: an async context manager that owns one session for lists.

    `kubeconfig` is a path given by hand, `environ` the process environment, `namespace` the one
    that is watched, or "" for all.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path | None,
        environ: Mapping[str, str],
        namespace: str,
        user_agent: str,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._environ = environ
        self._namespace = namespace
        self._user_agent = user_agent
        self._api: client.ApiClient | None = None
        # One list at a time: they are rare, and a login that failed is not closed under another.
        self._turn = asyncio.Lock()
        self._watches = _Turns(apart=APART_SECONDS, at_most=APART_SECONDS)
        self._lists = _Turns(apart=APART_SECONDS, at_most=MAX_APART_SECONDS)
        self._had_token = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._logout()

    async def check_credentials(self) -> Endpoint:
        """Return which API server this is. Raises `CredentialsError`. Connects to nothing."""
        configuration = await self._configuration()
        server = str(configuration.host)
        told = hashlib.sha256(server.encode())
        if configuration.ssl_ca_cert:
            told.update(await asyncio.to_thread(Path(configuration.ssl_ca_cert).read_bytes))
        return Endpoint(server=server, fingerprint=told.hexdigest())

    async def connect(
        self,
        *,
        on_ask: Callable[[], None],
        on_list: Callable[[], None],
        on_page: Callable[[], None],
        on_watch: Callable[[], None],
    ) -> Connection:
        """
        Read the credentials anew and return a session with them, for watching.

        Watches of all such sessions are spaced out, and so are lists, since a server that ends
        each at once would be asked thousands of times a second. `on_list` is called when a list
        was begun: what went between the end of a watch and the list that follows no watch will
        tell. `on_page` and `on_watch` are called when the API server grants a page of a list, or a
        watch; `on_ask` when either is asked for. Raises `CredentialsError`.
        """
        configuration = await self._configuration()
        trace = aiohttp.TraceConfig()

        async def on_request_start(
            _session: aiohttp.ClientSession,
            _context: object,
            request: aiohttp.TraceRequestStartParams,
        ) -> None:
            kind = _kind_of(request.url.path, request.url.query)
            if kind == "watch":
                await self._watches.next()
            elif kind == "list":
                await self._lists.next()
            if kind:
                on_ask()

        async def on_request_end(
            _session: aiohttp.ClientSession,
            _context: object,
            request: aiohttp.TraceRequestEndParams,
        ) -> None:
            kind = _kind_of(request.url.path, request.url.query)
            if not kind or request.response.status != HTTPStatus.OK:
                return
            if kind == "watch":
                on_watch()
                return
            on_page()
            if kind == "list":
                # Not when it is asked for: all that goes before the state it shows is missed, and
                # a server may take its time to come to that state.
                on_list()

        trace.on_request_start.append(on_request_start)
        trace.on_request_end.append(on_request_end)
        session = _session(configuration, self._user_agent, trace)
        if token := await configuration.get_api_key_with_prefix("BearerToken"):
            session.headers["Authorization"] = token.strip()
        return Connection(server=str(configuration.host), session=session)

    async def pod_uids(self, namespace: str | None) -> frozenset[str]:
        """
        Return the uids of all pods of a namespace, or of all that are watched when it is None.

        The list is consistent and complete. Raises `ListError`.
        """
        return frozenset(await self._pods(namespace or self._namespace))

    async def list_pods(self) -> Mapping[str, Listed]:
        """Return all pods that are watched, by uid: consistent, complete. Raises `ListError`."""
        return await self._pods(self._namespace)

    async def each_pod(self) -> AsyncIterator[object]:
        """
        Yield all pods that are watched as they are, page by page: consistent, complete at the end.

        Decoded JSON, of which no more than a page is there at a time: a pod may be many kilobytes.
        Raises `ListError`; what was yielded before is no list then.
        """
        async for items in self._pages(_path(PODS, self._namespace), WHOLE, page=PAGE):
            for raw in items:
                yield raw

    async def fetch_pod(self, namespace: str, name: str) -> object | None:
        """Return one pod as it is, or None when there is none. Raises `ListError`."""
        return await self._fetch(_path(PODS, namespace, name), WHOLE, "Pod")

    async def list_workloads(self, kind: Kind, namespace: str | None) -> Mapping[Workload, Known]:
        """
        Return all workloads of a kind in a namespace, or of all that are watched when it is None.

        Metadata only, consistent and complete. Raises `ListError`.
        """
        path = _path(_root(kind), namespace or self._namespace)
        try:
            return dict(
                await self._list(
                    path,
                    METADATA_OF_MANY,
                    page=WORKLOAD_PAGE,
                    read=lambda item: _workload(kind, item["metadata"]),
                )
            )
        except (KeyError, TypeError, AttributeError) as error:
            message = f"a list of {kind.plural} lacks names"
            raise ListError(message) from error

    async def fetch_workload(self, kind: Kind, workload: Workload) -> Known | None:
        """Return one workload's metadata, or None when there is none. Raises `ListError`."""
        path = _path(_root(kind), workload.namespace, workload.name)
        found = await self._fetch(path, METADATA_OF_ONE, "Metadata")
        if found is None:
            return None
        try:
            return _workload(kind, found["metadata"])[1]
        except (KeyError, TypeError, AttributeError) as error:
            message = f"one of {kind.plural} lacks a name"
            raise ListError(message) from error

    async def server_version(self) -> str:
        """Return the API server's version, like `v1.36.0`. Raises `ListError`."""
        async with self._turn:
            status, body = await self._ask("/version", WHOLE, {})
        if status != HTTPStatus.OK:
            message = f"the API server refused to tell of its version: {status}"
            raise ListError(message)
        try:
            version = json.loads(body)["gitVersion"]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            message = "what answered for the API server is not one"
            raise ListError(message) from error
        return clean_text(str(version))

    async def may(self, verb: str, *, group: str, plural: str) -> bool:
        """
        Return whether we may do this with all objects of a kind that are watched.

        It asks with a SelfSubjectAccessReview, which is a POST that stores nothing and which any
        account may send. Only `doctor`, a person's command, calls this: the tracker itself sends
        nothing but get, list and watch. Raises `ListError`.
        """
        asked = {"verb": verb, "group": group, "resource": plural, "namespace": self._namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        async with self._turn:
            status, body = await self._ask(ACCESS_REVIEWS, WHOLE, {}, body=review)
        if status == HTTPStatus.CREATED:
            status = HTTPStatus.OK
        found = _decoded(status, body, "SelfSubjectAccessReview", ACCESS_REVIEWS)
        told = found.get("status")
        return isinstance(told, Mapping) and told.get("allowed") is True

    async def _pods(self, namespace: str) -> dict[str, Listed]:
        path = _path(PODS, namespace)
        try:
            return dict(await self._list(path, METADATA_OF_MANY, page=PAGE, read=_pod))
        except (KeyError, TypeError, AttributeError) as error:
            message = "a list of pods lacks uids"
            raise ListError(message) from error

    async def _list(
        self, path: str, accept: str, *, page: int, read: Callable[[Any], T]
    ) -> list[T]:
        """
        Return what `read` keeps of each item of all pages.

        It is asked page by page: decoded metadata of ten thousand pods is some tens of megabytes,
        and what such a list takes for a moment the process may never give back.
        """
        items: list[T] = []
        async for listed in self._pages(path, accept, page=page):
            items += map(read, listed)
        return items

    async def _pages(self, path: str, accept: str, *, page: int) -> AsyncIterator[list[Any]]:
        """Yield the items of one page after the other."""
        query: dict[str, str] = {"limit": str(page)}
        async with self._turn:
            while True:
                status, body = await self._ask(path, accept, query)
                found = _decoded(status, body, "List", path)
                listed = found.get("items") or []
                if not isinstance(listed, list):
                    message = f"a list of {_plural(path)} lacks its items"
                    raise ListError(message)
                yield listed
                metadata = found.get("metadata")
                token = metadata.get("continue") or "" if isinstance(metadata, Mapping) else ""
                if not token:
                    return
                query["continue"] = token

    async def _fetch(self, path: str, accept: str, kind: str) -> Mapping[str, Any] | None:
        """Return one object, or None when there is none."""
        async with self._turn:
            status, body = await self._ask(path, accept, {})
        if status == HTTPStatus.NOT_FOUND:
            return None
        return _decoded(status, body, kind, path)

    async def _ask(
        self, path: str, accept: str, query: Mapping[str, str], *, body: object = None
    ) -> tuple[int, bytes]:
        """Send one GET, or the one POST of `may`; return status and body. Raises `ListError`."""
        try:
            api = await self._login()
            response = cast(
                "aiohttp.ClientResponse",
                await api.call_api(
                    path,
                    "GET" if body is None else "POST",
                    query_params=list(query.items()),
                    header_params={"Accept": accept, **({} if body is None else JSON)},
                    body=body,
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                    _request_timeout=LIST_SECONDS,
                ),
            )
            async with response:
                status, answer = response.status, await response.read()
        except (aiohttp.ClientError, OSError, ConfigException, ValueError) as error:
            # The last two are of the token, which is read again now and then: none, or not one.
            await self._logout()
            said = clean_text(str(error)) or type(error).__name__
            message = f"the API server can't be asked for {_plural(path)}: {said}"
            raise ListError(message) from error
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            # A rotated token, a moved server, a token that was not there yet (who sends none is
            # forbidden, not unauthorized): the next list starts from the credentials again.
            await self._logout()
        return status, answer

    async def _login(self) -> client.ApiClient:
        """Return a client that is let in. Raises `ListError`."""
        if self._api is None:
            try:
                configuration = await self._configuration()
                session = _session(configuration, self._user_agent)
            except CredentialsError as error:
                raise ListError(str(error)) from error
            api = client.ApiClient(configuration)
            await api.rest_client.pool_manager.close()
            api.rest_client.pool_manager = session
            api.user_agent = self._user_agent
            self._api = api
        return self._api

    async def _logout(self) -> None:
        api, self._api = self._api, None
        if api is not None:
            await api.close()

    async def _configuration(self) -> client.Configuration:
        """
        Return where the API server is and how to be let in.

        In the order of client-go's tools: a path given by hand, `KUBECONFIG`, the ServiceAccount
        of the pod we run in, `~/.kube/config`.
        """
        configuration = client.Configuration()
        named = str(self._kubeconfig or "") or self._environ.get("KUBECONFIG", "")
        in_cluster = not named and bool(self._environ.get(SERVICE_HOST_ENV_NAME))
        try:
            if in_cluster:
                load_incluster_config(configuration)  # type: ignore[no-untyped-call] # theirs
            else:
                path = named or str(Path(self._environ.get("HOME", "~"), ".kube", "config"))
                _check_readable(path)
                # An exec plugin that waits for a network or for a person would hold up all lists.
                async with asyncio.timeout(LOGIN_SECONDS):
                    await load_kube_config(
                        path, client_configuration=configuration, persist_config=False
                    )
        except (
            ConfigException,
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            yaml.YAMLError,
        ) as error:
            where = "the pod's ServiceAccount" if in_cluster else named or "~/.kube/config"
            message = (
                f"no credentials for the API server in {where}: {clean_text(str(error))};"
                " name a kubeconfig with -kubeconfig or KUBECONFIG"
            )
            raise CredentialsError(message) from error
        try:
            _take_passwords(configuration)
        except ValueError as error:
            where = "the pod's ServiceAccount" if in_cluster else named or "~/.kube/config"
            message = f"no credentials for the API server in {where}: {error}"
            raise CredentialsError(message) from None
        token = configuration.api_key.get("BearerToken", "").strip()
        if self._had_token and not token:
            # Its file is about to be written. Who sends no token is somebody else, anonymous.
            message = "the token for the API server is empty"
            raise CredentialsError(message)
        self._had_token = bool(token)
        if token:
            configuration.api_key["BearerToken"] = token  # a file of it may end in a line break
        return configuration


def _take_passwords(configuration: client.Configuration) -> None:
    """
    Take user names and passwords out of the addresses of the API server and of its proxy.

    An address is shown, and the HTTP client tells it as it is with many an error. A user of the
    server's is presented where there is no token, as client-go does. Raises ValueError, which
    tells nothing of the address, when one is none.
    """
    configuration.proxy_headers = {}
    host, proxy = str(configuration.host), str(configuration.proxy or "")
    if "@" in host:
        configuration.host, basic = _taken("server", host, "https://kubernetes.example.com:6443")
        if basic is not None and not configuration.api_key.get("BearerToken"):
            configuration.api_key["BearerToken"] = basic
    if proxy:
        configuration.proxy, basic = _taken("proxy-url", proxy, "http://proxy.example.com:3128")
        if basic is not None:
            configuration.proxy_headers = {"Proxy-Authorization": basic}


def _taken(field: str, url: str, example: str) -> tuple[str, str | None]:
    try:
        return take_user_info(url)
    except ValueError as error:
        message = f"its {field} is {error}; write it like {example}"
        raise ValueError(message) from None


def _check_readable(path: str) -> None:
    """Raise OSError with the path and the reason when none of the kubeconfigs is readable."""
    paths = [Path(part).expanduser() for part in path.split(os.pathsep) if part]
    if not any(part.exists() for part in paths):
        message = f"{path} does not exist"
        raise FileNotFoundError(message)


def _kind_of(path: str, query: Mapping[str, str]) -> Literal["watch", "list", "page", ""]:
    """Return what is asked for: a watch of pods, a list of them, its next page, or else nothing."""
    if not path.endswith("/pods"):
        return ""
    if "watch" in query:
        return "watch"
    return "page" if "continue" in query else "list"


class _Turns:
    """
    Turns that are `apart` seconds apart at least.

    While each is asked for too early, the time doubles from one to the next, up to `at_most`.
    """

    def __init__(self, *, apart: float, at_most: float) -> None:
        self._least = self._apart = apart
        self._most = at_most
        self._last = -math.inf

    async def next(self) -> None:
        """Wait for the next turn."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        begin = max(now, self._last + self._apart)
        self._apart = min(2 * self._apart, self._most) if begin > now else self._least
        self._last = begin
        await asyncio.sleep(begin - now)


def _session(
    configuration: client.Configuration, user_agent: str, *traces: aiohttp.TraceConfig
) -> aiohttp.ClientSession:
    """Return a session that presents a configuration's identity. Raises `CredentialsError`."""
    try:
        tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            tls.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    except OSError as error:  # ssl's own errors included: a file that is missing, or half written
        message = f"a certificate for the API server can't be read: {clean_text(str(error))}"
        raise CredentialsError(message) from error
    if not configuration.verify_ssl:
        # The kubeconfig says `insecure-skip-tls-verify`: its owner's word about their own server.
        _log.warning("the kubeconfig turns TLS verification of the API server off")
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls),
        headers={"User-Agent": user_agent},
        proxy=configuration.proxy,
        trust_env=False,
        trace_configs=list(traces),
        middlewares=[
            _with_proxy_headers({"User-Agent": user_agent, **(configuration.proxy_headers or {})})
        ],
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BUFFER,
        timeout=aiohttp.ClientTimeout(total=LIST_SECONDS, sock_connect=CONNECT_SECONDS),
    )


def _with_proxy_headers(headers: Mapping[str, str]) -> aiohttp.ClientMiddlewareType:
    """
    Return what gives a proxy its own headers and none of the API server's.

    Left to itself the HTTP client shows a proxy all that a session shows to the server: it takes
    an Authorization for the proxy's and sends the API server's token in the clear.
    """

    async def send(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.proxy is not None:
            request.update_proxy(request.proxy, None, dict(headers))
            if not request.is_ssl():
                request.headers.update(headers)  # there is no tunnel: the proxy reads the request
        return await handler(request)

    return send


def _root(kind: Kind) -> tuple[str, str]:
    """Return where a kind is in the API."""
    return f"/apis/{kind.api_version}", kind.plural


def _path(root: tuple[str, str], namespace: str, name: str = "") -> str:
    """Return the path of all objects of a kind, of a namespace's, or of one of them."""
    api, plural = root
    parts = [api, *(["namespaces", quote(namespace, safe="")] if namespace else []), plural]
    return "/".join([*parts, *([quote(name, safe="")] if name else [])])


def _plural(path: str) -> str:
    """Return what a path is about, for a message."""
    return next((part for part in reversed(path.split("/")) if part in PLURALS), "objects")


def _pod(item: Mapping[str, Any]) -> tuple[str, Listed]:
    """Return a pod's uid and what a list says of it. Raises KeyError, TypeError, AttributeError."""
    metadata = item["metadata"]
    listed = Listed(
        namespace=metadata["namespace"],
        name=metadata["name"],
        version=read_version(metadata.get("resourceVersion")),
    )
    return metadata["uid"], listed


def _workload(kind: Kind, metadata: Mapping[str, Any]) -> tuple[Workload, Known]:
    """Return a workload from its metadata. Raises KeyError, TypeError, AttributeError."""
    workload = Workload(
        api_version=kind.api_version,
        kind=kind.kind,
        namespace=metadata["namespace"],
        name=metadata["name"],
    )
    known = Known(
        # Only a Job's is asked for, and there are many ReplicaSets.
        controller=next(iter(controllers_in(metadata)), None) if kind.kind == "Job" else None,
        terminating=bool(metadata.get("deletionTimestamp")),
        marks=read_marks(metadata.get("annotations") or {}),
    )
    return workload, known


def _decoded(status: int, body: bytes, kind: str, path: str) -> Mapping[str, Any]:
    """Return an object whose kind ends in `kind`. Raises `ListError` for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if status != HTTPStatus.OK:
        said = clean_text(str(found.get("message"))) if isinstance(found, Mapping) else ""
        message = f"the API server refused to tell of {_plural(path)}: {status} {said}"
        raise ListError(message.rstrip())
    if not isinstance(found, Mapping) or not str(found.get("kind", "")).endswith(kind):
        message = "what answered for the API server is not one"
        raise ListError(message)
    return found
