"""
Where the token for GitHub comes from: given once, kept in a file, or minted for a GitHub App.

Each kind answers two questions. `token` is asked before each request, and `renew` when GitHub
refused a token: a file is read again, an App mints another one. Both answer with a value, never
with an error of a network, a file or GitHub: why there is no token is an answer to what was to be
sent with it. No text of this module ever holds a secret.

An App's tokens live an hour and are renewed early, by one caller at a time. What they are exchanged
for is signed with a time that GitHub compares with its own, so a clock that is off is the classic
failure: then GitHub's `Date` is believed.

https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app
"""

import asyncio
import base64
import binascii
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pydantic import SecretStr

from tracker.answers import (
    Failed,
    Limited,
    Reply,
    Unauthorized,
    classify_stop,
    clean_text,
    server_time,
)
from tracker.errors import ConnectionSettingError
from tracker.transport import Transport

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

__all__ = ["AppToken", "FixedToken", "TokenFile", "read_key", "read_key_file"]

MAX_FILE = 64 * 1024
MAX_ANSWER = 64 * 1024
EARLY_SECONDS = 300.0
"""So long before its end a token is renewed, or at half of its life when that is shorter."""
LIFETIME_SECONDS = 3600.0
"""What an App's token lives: when GitHub does not say, and at most."""
AGAIN_SECONDS = 60.0
"""How often an early renewal that failed is tried again while the old token lasts."""
ISSUED_AGO_SECONDS = 60
EXPIRES_IN_SECONDS = 480
"""Nine minutes after it was issued, of which one is past: GitHub takes ten."""
SKEW_SECONDS = 30.0
"""A clock that is further off than this is not the reason why GitHub refused a signature."""

_TOKEN = re.compile(r"[!-~]+")
_CHECK = (
    "check GH_APP_ID, GH_INSTALL_ID and the key: the App must be installed in ORG, and the key be"
    " one of its own"
)

_log = structlog.get_logger(__name__)

_NoToken = Failed | Limited | Unauthorized


class FixedToken:
    """A token that is given once and stays the same; it may be empty."""

    def __init__(self, token: SecretStr) -> None:
        self._token = token

    async def token(self) -> SecretStr:
        """Return it."""
        return self._token

    async def renew(self, refused: SecretStr) -> SecretStr:  # noqa: ARG002 - the protocol's
        """Return it: there is no other."""
        return self._token


class TokenFile:
    """
    A token in a file, read again when the file changes and when the token is refused.

    A file that is gone or can't be read in mid-run leaves the token that was read last. Raises
    `ConnectionSettingError` when there is no token in it at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._told = False
        try:
            self._token = self._read()
        except OSError as error:
            raise ConnectionSettingError(
                f"API_TOKEN_FILE={path}: {error.strerror or error}; name a file that this user may"
                " read"
            ) from None

    async def token(self) -> SecretStr:
        """Return the token that the file holds now."""
        try:
            if self._stamp() != self._seen:
                self._reread()
        except OSError as error:
            self._complain(error.strerror or str(error))
        return self._token

    async def renew(self, refused: SecretStr) -> SecretStr:  # noqa: ARG002 - the protocol's
        """Read the file whether it seems changed or not, and return its token."""
        try:
            self._reread()
        except OSError as error:
            self._complain(error.strerror or str(error))
        return self._token

    def _reread(self) -> None:
        try:
            self._token = self._read()
        except ConnectionSettingError as error:
            self._complain(str(error))
        else:
            self._told = False

    def _read(self) -> SecretStr:
        self._seen = self._stamp()
        with self._path.open("rb") as file:
            text = file.read(MAX_FILE).strip()
        if not text or not _TOKEN.fullmatch(decoded := text.decode("latin-1")):
            raise ConnectionSettingError(
                f"API_TOKEN_FILE={self._path}: it holds no token, which is one line of printable"
                " ASCII; write it again"
            )
        return SecretStr(decoded)

    def _stamp(self) -> tuple[int, int, int]:
        # Followed through links: that is how Kubernetes swaps what a volume holds.
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _complain(self, reason: str) -> None:
        if not self._told:
            self._told = True
            _log.warning("the token file can't be read", path=str(self._path), reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Minted:
    """A token and its times, in seconds since the epoch by the clock that is believed."""

    token: SecretStr
    renew_at: float
    expires_at: float


class AppToken:
    """
    The tokens of a GitHub App's installation, minted over `transport`.

    `read_key()` returns the App's RSA key as it is kept now, or raises `ConnectionSettingError`;
    it is asked at once, and when GitHub refused what was signed. `wall()` returns the time in
    seconds since the epoch. An early renewal that fails leaves the old token while it lasts, but
    for one that meets a limit: that is the answer then, and nobody sends into it.
    """

    def __init__(
        self,
        *,
        app_id: str,
        installation_id: int,
        read_key: "Callable[[], RSAPrivateKey]",
        transport: Transport,
        wall: Callable[[], float],
    ) -> None:
        self._app_id = app_id
        self._path = f"/app/installations/{installation_id}/access_tokens"
        self._read_key = read_key
        self._key = read_key()
        self._transport = transport
        self._wall = wall
        self._offset = 0.0
        self._minted: _Minted | None = None
        self._renewing = asyncio.Lock()
        self._failed: _NoToken | None = None
        self._renewals = 0

    async def token(self) -> SecretStr | _NoToken:
        """Return a token that lasts a while; mint one when there is none or it ends soon."""
        minted, now = self._minted, self._now()
        if minted is not None and (
            now < minted.renew_at or (now < minted.expires_at and self._renewing.locked())
        ):
            return minted.token
        return await self._renew(None)

    async def renew(self, refused: SecretStr) -> SecretStr | _NoToken:
        """Return another token than the refused one."""
        return await self._renew(refused)

    async def _renew(self, refused: SecretStr | None) -> SecretStr | _NoToken:
        renewals = self._renewals
        async with self._renewing:
            minted = self._minted
            if minted is not None and minted.token != refused and self._now() < minted.renew_at:
                return minted.token  # somebody else was before us
            if self._failed is not None and self._renewals != renewals:
                return self._failed  # and heard why there is none: it may be a limit
            found = await self._mint()
            self._renewals += 1
            self._failed = None
            if isinstance(found, _Minted):
                self._minted = found
                return found.token
            now = self._now()
            usable = minted is not None and minted.token != refused and now < minted.expires_at
            # A limit is about everyone who sends, whatever token they have.
            if minted is None or not usable or isinstance(found, Limited):
                self._failed = found
                return found
            _log.warning("the App's token could not be renewed early", reason=found.reason)
            self._minted = _Minted(
                token=minted.token, renew_at=now + AGAIN_SECONDS, expires_at=minted.expires_at
            )
            return minted.token

    async def _mint(self) -> _Minted | _NoToken:
        reply = await self._exchange()
        for mended in (self._follow_clock, self._follow_key):
            if not isinstance(reply, Reply) or reply.status != HTTPStatus.UNAUTHORIZED:
                break
            if mended(reply):
                reply = await self._exchange()
        return self._judge(reply) if isinstance(reply, Reply) else reply

    def _follow_clock(self, refusal: Reply) -> bool:
        """Believe GitHub's clock; tell whether it differs from what was believed before."""
        theirs = server_time(refusal)
        if theirs is None or abs(theirs - self._now()) <= SKEW_SECONDS:
            return False
        self._offset = theirs - self._wall()
        _log.warning("the clock is off; GitHub's is used", seconds=round(-self._offset))
        return True

    def _follow_key(self, _refusal: Reply) -> bool:
        """Read the key again; tell whether it is another one than before."""
        try:
            key = self._read_key()
        except ConnectionSettingError as error:
            _log.warning("the App's key can't be read again", reason=str(error))
            return False
        before, self._key = self._key, key
        return key.public_key() != before.public_key()

    async def _exchange(self) -> Reply | Failed:
        now = int(self._now())
        claims = {
            "iat": now - ISSUED_AGO_SECONDS,
            "exp": now + EXPIRES_IN_SECONDS,
            "iss": self._app_id,
        }
        import jwt

        signed = SecretStr(jwt.encode(claims, self._key, algorithm="RS256"))
        reply = await self._transport.post(
            self._path, body=b"{}", token=signed, max_answer=MAX_ANSWER
        )
        if isinstance(reply, Failed):
            # Nothing of a record has left with it.
            return Failed(reason=f"no token for the App: {reply.reason}", landed=False)
        return reply

    def _judge(self, reply: Reply) -> _Minted | _NoToken:
        reason = f"no token for the App: HTTP {reply.status}"
        stop = classify_stop(reply)
        if isinstance(stop, Limited):
            return Limited(reason=f"{reason}, a limit", pause_seconds=stop.pause_seconds)
        if reply.status == HTTPStatus.CREATED:
            return self._read(reply) or Failed(reason=f"{reason} without a token", landed=False)
        if HTTPStatus.BAD_REQUEST <= reply.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unauthorized(reason=f"{reason}; {_CHECK}")
        return Failed(reason=reason, landed=False)

    def _read(self, reply: Reply) -> _Minted | None:
        try:
            body = json.loads(reply.body)
        except (ValueError, RecursionError):
            return None
        token = body.get("token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            return None
        # By GitHub's clock: ours may be off by less than what it minds, and still by minutes.
        now, theirs = self._now(), server_time(reply)
        ends = _epoch(body.get("expires_at"))
        lifetime = 0.0 if ends is None else ends - (now if theirs is None else theirs)
        if not 0.0 < lifetime <= LIFETIME_SECONDS:
            lifetime = LIFETIME_SECONDS
        early = min(EARLY_SECONDS, lifetime / 2)
        return _Minted(
            token=SecretStr(token), renew_at=now + lifetime - early, expires_at=now + lifetime
        )

    def _now(self) -> float:
        return self._wall() + self._offset


def read_key_file(path: Path) -> "RSAPrivateKey":
    """Return the key in a file. Raises `ConnectionSettingError`."""
    try:
        with path.open("rb") as file:
            if _is_open_to_others(os.fstat(file.fileno())):
                _log.warning("others may read the App's key", path=str(path))
            content = file.read(MAX_FILE)
    except OSError as error:
        raise ConnectionSettingError(
            f"GH_APP_PRIV_KEY_PATH={path}: {error.strerror or error}; name a file that this user"
            " may read"
        ) from None
    return read_key(content.decode("latin-1"), where=f"GH_APP_PRIV_KEY_PATH={path}")


def _is_open_to_others(status: os.stat_result) -> bool:
    """Tell whether others may read a file; who is of a group with us is not taken for another."""
    # It is by `fsGroup` that a pod which is not root may read what is mounted for it.
    ours = {os.getegid(), *os.getgroups()}
    readable = stat.S_IROTH if status.st_gid in ours else stat.S_IROTH | stat.S_IRGRP
    return bool(status.st_mode & readable)


def read_key(text: str, *, where: str = "GH_APP_PRIVATE_KEY") -> "RSAPrivateKey":
    r"""
    Return a GitHub App's key, given as PEM, as PEM with `\n` for its line ends, or as base64 of it.

    Raises `ConnectionSettingError`, which names `where` it came from and never what it was.
    """
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = text.strip().replace("\\r", "").replace("\\n", "\n")
    if "-----BEGIN" not in pem:
        try:
            pem = base64.b64decode("".join(pem.split()), validate=True).decode("latin-1")
        except (binascii.Error, ValueError):
            pem = ""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except Exception:  # noqa: BLE001 - whatever the library raises may quote what it was given
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ConnectionSettingError(
            f"{where}: not the private key of a GitHub App (RSA, without a passphrase, as PEM or as"
            " base64 of it); download one from the App's settings"
        ) from None
    return key


def _epoch(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(clean_text(text))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None
