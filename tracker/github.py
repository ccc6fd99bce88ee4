"""
GitHub's artifact metadata API, spoken with aiohttp.

This module turns a record into one request and what comes back into a `Reply`; what a reply means
is decided in `tracker.answers`. It never raises for what a network or a server can do, never
follows a redirect (the body would go to another host), asks for no compression (a small answer
could unfold to a large one), reads no more than it needs, and gives each request a total time.

https://docs.github.com/en/rest/orgs/artifact-metadata
"""

import errno
import os
import socket
import ssl
from types import TracebackType
from typing import Self
from urllib.parse import quote

import aiohttp

from tracker.answers import Answer, Failed, Reply, classify, clean_text
from tracker.records import Record, Scope

__all__ = ["GitHub"]

API_VERSION = "2022-11-28"
TOTAL_SECONDS = 30.0
"""For one request, first byte to last: nothing a server does can hold a worker longer."""
CONNECT_SECONDS = 10.0
DNS_SECONDS = 30
"""How long an address is believed; a moved host is found again without a restart."""
MAX_BODY = 64 * 1024
"""Bytes of an answer that are read; what follows is cut off and the answer judged by its status."""


class GitHub:
    """
    The client for one organisation: an async context manager that owns one HTTP session.

    `base_url` is `scheme://host[:port]`, `token` may be empty (then no Authorization is sent).
    """

    def __init__(self, *, base_url: str, scope: Scope, token: str, user_agent: str) -> None:
        self._scope = scope
        org = quote(scope.org, safe="")
        self._url = f"{base_url}/orgs/{org}/artifacts/metadata/deployment-record"
        self._headers = {
            "Accept": "application/vnd.github+json",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent,
            "X-GitHub-Api-Version": API_VERSION,
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        tls = ssl.create_default_context()
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0, ttl_dns_cache=DNS_SECONDS),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, record: Record) -> Answer:
        """Post a record and return what GitHub said; `Failed` when nothing came back."""
        if self._session is None:
            message = "the GitHub client is used outside its context"
            raise RuntimeError(message)
        try:
            async with self._session.post(
                self._url, json=record.payload(self._scope), allow_redirects=False
            ) as response:
                reply = await _read(response)
        except aiohttp.ClientConnectorError as error:
            return Failed(reason=_why_unconnected(error), landed=False)
        except TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            return Failed(reason="timeout", landed=not connecting)
        except (aiohttp.ClientError, OSError) as error:
            # The request was under way; how far it came is not known. A malformed answer is
            # among these: aiohttp's own status for it is not one that a server gave.
            return Failed(reason=_why_cut(error), landed=True)
        return classify(reply, record)


async def _read(response: aiohttp.ClientResponse) -> Reply:
    """Read at most `MAX_BODY` bytes; a body that breaks off leaves a status to judge by."""
    body = bytearray()
    whole = False
    try:
        while len(body) < MAX_BODY:
            chunk = await response.content.read(MAX_BODY - len(body))
            if not chunk:
                whole = True
                break
            body += chunk
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass
    if not whole:
        response.close()  # what is left of it is not worth reading, nor the connection keeping
    return Reply(
        status=response.status,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=bytes(body),
        whole=whole,
    )


def _why_unconnected(error: aiohttp.ClientConnectorError) -> str:
    """Return why no connection came about, in words that stay the same from try to try."""
    cause = error.os_error
    match error, cause:
        case aiohttp.ClientConnectorDNSError(), _:
            return f"host name not found: {error.host}"
        case _, ssl.SSLCertVerificationError():
            return f"TLS certificate refused: {clean_text(cause.verify_message)}"
        case _, ssl.SSLError():
            return f"TLS failed: {clean_text(cause.reason or 'no reason given')}"
        case _, socket.gaierror():
            return f"host name not found: {error.host}"
        case _, OSError(errno=int(number)) if number in errno.errorcode:
            return os.strerror(number).lower()
    return "no connection"


def _why_cut(error: Exception) -> str:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "connection closed without an answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return "malformed answer"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return clean_text(f"connection failed: {type(error).__name__}")
