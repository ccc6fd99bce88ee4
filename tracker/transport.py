"""
HTTP to GitHub's host: one request out, one `Reply` back, or why none came.

Everything that a network or a server can do ends here as a value. No redirect is ever followed
(the body would go to another host), no compression is asked for (a small answer could unfold to a
large one), no more of an answer is read than is needed, and each request has a total time. A proxy
and further certificates are used only when they are named; nothing is read from the environment.
"""

import errno
import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import aiohttp
from pydantic import SecretStr

from tracker.answers import Failed, Reply, clean_text
from tracker.errors import ConnectionSettingError

__all__ = ["Transport", "proxy_of", "take_user_info"]

API_VERSION = "2022-11-28"
TOTAL_SECONDS = 30.0
"""For one request, first byte to last: nothing a server does can hold a worker longer."""
CONNECT_SECONDS = 10.0
DNS_SECONDS = 30
"""How long an address is believed; a moved host is found again without a restart."""
MAX_HEADER = 8190
"""Bytes of one header line of an answer; a longer one makes it a malformed answer."""


class Transport:
    """
    An HTTP session for one host: an async context manager.

    `base_url` is `scheme://host[:port]`; `proxy` is the URL of an HTTP proxy, which may hold a
    password; `ca_file` is a PEM file of authorities that are trusted besides the system's. Opening
    raises `ConnectionSettingError` for a `ca_file` that can't be used.
    """

    def __init__(
        self,
        *,
        base_url: str,
        user_agent: str,
        proxy: SecretStr | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._base_url = base_url
        self._headers = {
            "Accept": "application/vnd.github+json",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent,
            "X-GitHub-Api-Version": API_VERSION,
        }
        self._proxy = proxy
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        tls = ssl.create_default_context()
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._ca_file is not None:
            _trust(tls, self._ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0, ttl_dns_cache=DNS_SECONDS),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
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

    async def post(
        self, path: str, *, body: bytes, token: SecretStr, max_answer: int
    ) -> Reply | Failed:
        """
        Post a JSON text to `path` (encoded) and return what came back.

        An empty `token` sends no Authorization. At most `max_answer` bytes of the answer's body
        are read.
        """
        return await self._request("POST", path, body=body, token=token, max_answer=max_answer)

    async def get(self, path: str, *, token: SecretStr, max_answer: int) -> Reply | Failed:
        """Get `path` (encoded) and return what came back; the rest is as with `post`."""
        return await self._request("GET", path, body=None, token=token, max_answer=max_answer)

    async def _request(
        self, method: str, path: str, *, body: bytes | None, token: SecretStr, max_answer: int
    ) -> Reply | Failed:
        if self._session is None:
            message = "the transport is used outside its context"
            raise RuntimeError(message)
        headers: dict[str, str] = {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if secret := token.get_secret_value():
            headers["Authorization"] = f"Bearer {secret}"
        proxy = None if self._proxy is None else self._proxy.get_secret_value()
        try:
            async with self._session.request(
                method,
                f"{self._base_url}{path}",
                data=body,
                headers=headers,
                proxy=proxy,
                allow_redirects=False,
            ) as response:
                return await _read(response, max_answer)
        except aiohttp.ClientConnectorError as error:
            return Failed(reason=_why_unconnected(error), landed=False)
        except aiohttp.ClientHttpProxyError as error:
            # There is no way through it yet: nothing but the name of the host went there.
            return Failed(reason=f"the proxy refused: HTTP {error.status}", landed=False)
        except TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            return Failed(reason="timeout", landed=not connecting)
        except (aiohttp.ClientError, OSError) as error:
            # The request was under way; how far it came is not known. A malformed answer is
            # among these: aiohttp's own status for it is not one that a server gave.
            return Failed(reason=_why_cut(error), landed=True)


def proxy_of(base_url: str, environ: Mapping[str, str]) -> SecretStr | None:
    """
    Return the proxy that an environment names for a URL, or None when it names none.

    The variables are those of curl and others: HTTPS_PROXY or HTTP_PROXY by the URL's scheme, and
    NO_PROXY, a comma list of hosts, domains or `*`; small letters come first. Raises
    `ConnectionSettingError`, without the proxy's password, for one that is no http or https URL.
    """
    target = urlsplit(base_url)

    def named(name: str) -> str:
        return (environ.get(name.lower()) or environ.get(name) or "").strip()

    proxy = named(f"{target.scheme.upper()}_PROXY")
    host = (target.hostname or "").lower()
    spared = [part.strip().lower().lstrip(".") for part in named("NO_PROXY").split(",")]
    if not proxy or any(
        part in {"*", host, target.netloc.lower()} or host.endswith(f".{part}")
        for part in spared
        if part
    ):
        return None
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        take_user_info(url)
    except ValueError:
        raise ConnectionSettingError(
            f"{target.scheme.upper()}_PROXY: not the URL of an HTTP proxy; for example"
            " http://proxy.example.com:3128"
        ) from None
    return SecretStr(url)


def take_user_info(url: str) -> tuple[str, str | None]:
    """
    Return an http or https URL without user name and password, and these for an Authorization.

    The second is None where there are none. Raises ValueError, which tells nothing of the URL, for
    what is no such URL: the standard library's own error may quote the password.
    """
    # Raised outside of what handles the other error, so that this one does not hold it.
    if (taken := _taken(url)) is None:
        message = "not an http or https URL"
        raise ValueError(message)
    return taken


def _taken(url: str) -> tuple[str, str | None] | None:
    try:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            return None
        if not host.isprintable() or " " in host:
            return None  # the HTTP client would refuse it, at each request
        name, _, password = map(unquote, user.partition(":"))
        basic = aiohttp.encode_basic_auth(name, password) if at else None
    except ValueError:
        return None
    return parts._replace(netloc=host).geturl(), basic


def _trust(tls: ssl.SSLContext, path: Path) -> None:
    try:
        tls.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else ""
        raise ConnectionSettingError(
            f"CA_FILE={path}: {reason or 'not a PEM file of certificates'}; name a file of PEM"
            " certificates that this user may read"
        ) from None


async def _read(response: aiohttp.ClientResponse, most: int) -> Reply:
    """Read at most `most` bytes; a body that breaks off leaves a status to judge by."""
    body = bytearray()
    whole = False
    try:
        while len(body) < most:
            chunk = await response.content.read(most - len(body))
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
