"""
The Kubernetes API server: where it is, how to be let in, and lists of what is there.

Credentials come from where people expect them (a kubeconfig, with its exec plugins, or the pod's
ServiceAccount) and are read anew at each login, so that a rotated token is found. Sessions are our
own: no proxy and no `.netrc` from the environment apply to the API server.

Lists ask for metadata only and for a consistent state (no resourceVersion, so the server answers
from a quorum and not from a cache that may be behind), in pages; a list that does not come to its
end is no list.
"""

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

import aiohttp
import structlog
from kubernetes_asyncio import client
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
)
from kubernetes_asyncio.config.incluster_config import SERVICE_HOST_ENV_NAME

from tracker.answers import clean_text
from tracker.errors import CredentialsError, ListError

__all__ = ["Cluster", "Connection"]

PAGE: Final = 500
"""Objects asked for at once: metadata of 500 pods is well under a megabyte."""
LIST_SECONDS: Final = 60.0
"""For one page from its first to its last byte."""
CONNECT_SECONDS: Final = 10.0
READ_BUFFER: Final = 2**21
"""Bytes; one line of a watch holds a whole object, and etcd takes objects of up to 1.5 MiB."""
METADATA_ONLY: Final = (
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An API server's address and a session that is let in. Whoever opens one closes it."""

    server: str
    session: aiohttp.ClientSession


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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._logout()

    async def check_credentials(self) -> str:
        """Return the API server's address. Raises `CredentialsError`. Connects to nothing."""
        return str((await self._configuration()).host)

    async def connect(self) -> Connection:
        """Read the credentials anew and return a session with them. Raises `CredentialsError`."""
        configuration = await self._configuration()
        session = _session(configuration, self._user_agent)
        if token := await configuration.get_api_key_with_prefix("BearerToken"):
            session.headers["Authorization"] = token.strip()
        return Connection(server=str(configuration.host), session=session)

    async def pod_uids(self, namespace: str | None) -> frozenset[str]:
        """
        Return the uids of all pods of a namespace, or of all that are watched when it is None.

        The list is consistent and complete. Raises `ListError`.
        """
        try:
            api = await self._login()
            return frozenset(await self._list_uids(api, namespace or self._namespace))
        except CredentialsError as error:
            raise ListError(str(error)) from error
        except ListError:
            # A rotated token, a moved server: the next list starts from the credentials again.
            await self._logout()
            raise

    async def _list_uids(self, api: client.ApiClient, namespace: str) -> list[str]:
        core = client.CoreV1Api(api)
        uids: list[str] = []
        token = ""
        while True:
            try:
                response = await _page(core, namespace, token)
                async with response:
                    found, token = _read_page(response.status, await response.read())
            except (aiohttp.ClientError, OSError) as error:
                said = clean_text(str(error)) or type(error).__name__
                message = f"listing pods failed: {said}"
                raise ListError(message) from error
            uids += found
            if not token:
                return uids

    async def _login(self) -> client.ApiClient:
        if self._api is None:
            configuration = await self._configuration()
            api = client.ApiClient(configuration)
            await api.rest_client.pool_manager.close()
            api.rest_client.pool_manager = _session(configuration, self._user_agent)
            api.user_agent = self._user_agent
            api.set_default_header("Accept", METADATA_ONLY)
            self._api = api
        return self._api

    async def _logout(self) -> None:
        if self._api is not None:
            api, self._api = self._api, None
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
                await load_kube_config(
                    path, client_configuration=configuration, persist_config=False
                )
        except (ConfigException, OSError, ValueError, TypeError, KeyError) as error:
            where = "the pod's ServiceAccount" if in_cluster else named or "~/.kube/config"
            message = (
                f"no credentials for the API server in {where}: {clean_text(str(error))};"
                " name a kubeconfig with -kubeconfig or KUBECONFIG"
            )
            raise CredentialsError(message) from error
        return configuration


def _check_readable(path: str) -> None:
    """Raise OSError with the path and the reason when none of the kubeconfigs is readable."""
    paths = [Path(part).expanduser() for part in path.split(os.pathsep) if part]
    if not any(part.exists() for part in paths):
        message = f"{path} does not exist"
        raise FileNotFoundError(message)


def _session(configuration: client.Configuration, user_agent: str) -> aiohttp.ClientSession:
    """Return a session that presents the identity of a configuration."""
    tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        tls.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
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
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BUFFER,
        timeout=aiohttp.ClientTimeout(total=LIST_SECONDS, sock_connect=CONNECT_SECONDS),
    )


async def _page(core: client.CoreV1Api, namespace: str, token: str) -> aiohttp.ClientResponse:
    """Ask for the next page; `token` is "" for the first. Without its content it is a response."""
    if namespace:
        page = await core.list_namespaced_pod(
            namespace,
            limit=PAGE,
            _continue=token,
            _preload_content=False,
            _request_timeout=LIST_SECONDS,
        )
    else:
        page = await core.list_pod_for_all_namespaces(
            limit=PAGE,
            _continue=token,
            _preload_content=False,
            _request_timeout=LIST_SECONDS,
        )
    return cast("aiohttp.ClientResponse", page)


def _read_page(status: int, body: bytes) -> tuple[list[str], str]:
    """Return the uids of a page and the token for the next, "" at the end. Raises `ListError`."""
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        page = None
    if status != HTTPStatus.OK:
        said = page.get("message") if isinstance(page, Mapping) else ""
        message = f"the API server refused a list of pods: {status} {clean_text(str(said))}"
        raise ListError(message.rstrip())
    if not isinstance(page, Mapping) or not str(page.get("kind", "")).endswith("List"):
        message = "what answered a list of pods is not an API server"
        raise ListError(message)
    try:
        uids = [item["metadata"]["uid"] for item in page["items"] or ()]
        return uids, page["metadata"].get("continue") or ""
    except (KeyError, TypeError, AttributeError) as error:
        message = "a list of pods lacks uids"
        raise ListError(message) from error
