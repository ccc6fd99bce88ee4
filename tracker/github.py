"""
GitHub's artifact metadata API: records out, answers back.

A record goes alone, or up to a thousand of one cluster go in one call. What GitHub holds is read
back by digest only, and is less than was sent: no status, name or version. What a reply means is
decided in `tracker.answers`; what a network can do ends in `tracker.transport`. A token that GitHub
refuses is renewed once, so that one which was rotated a moment ago costs nothing.

In a dry run `DryRun` stands in for the client: it has no transport and no token, so there is
nothing that could leave.

https://docs.github.com/en/rest/orgs/artifact-metadata
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote

import structlog
from pydantic import SecretStr

from tracker.answers import (
    Acknowledged,
    Answer,
    BatchAnswer,
    Failed,
    KnownAnswer,
    Limited,
    Reply,
    Told,
    Unauthorized,
    classify,
    classify_batch,
    classify_known,
    is_readable,
)
from tracker.images import Digest
from tracker.records import Record, Scope, batch_payload
from tracker.transport import Transport

__all__ = ["DryRun", "GitHub", "Meter", "NoToken", "Tokens"]

_log = structlog.get_logger(__name__)

MAX_BODY = 64 * 1024
"""Bytes of an answer that are read; what follows is cut off and the answer judged by its status."""
MAX_BATCH_BODY = 4 * 2**20
"""The same for an answer that may hold many records: to a batch, or about a digest."""

NoToken = Failed | Limited | Unauthorized
"""Why there is no token to send with, as an answer to what was to be sent with it."""


class Tokens(Protocol):
    """Where the token comes from. Never raises for what a network, a file or GitHub can do."""

    async def token(self) -> SecretStr | NoToken:
        """Return the token to send with, which may be empty."""
        ...

    async def renew(self, refused: SecretStr) -> SecretStr | NoToken:
        """Return another token than the refused one, or that one again when there is no other."""
        ...


class Meter(Protocol):
    """Counts requests."""

    def requested(
        self, call: str, *, status: int | None, seconds: float, headers: Mapping[str, str]
    ) -> None:
        """Count one; `status` None: nothing came back. Names of headers are in lower case."""
        ...


class GitHub:
    """The client for one organisation, over a transport that somebody else opens and closes."""

    def __init__(
        self, *, transport: Transport, scope: Scope, tokens: Tokens, meter: Meter | None = None
    ) -> None:
        org, cluster = quote(scope.org, safe=""), quote(scope.cluster, safe="")
        self._transport = transport
        self._scope = scope
        self._tokens = tokens
        self._meter = meter
        self._artifacts_path = f"/orgs/{org}/artifacts"
        self._path = f"{self._artifacts_path}/metadata/deployment-record"
        self._cluster_path = f"{self._path}/cluster/{cluster}"
        self._is_readable = True

    async def send(self, record: Record) -> Answer:
        """Post a record and return what GitHub said; `Failed` when nothing came back."""
        reply = await self._post("single", self._path, record.payload(self._scope), MAX_BODY)
        if not isinstance(reply, Reply):
            return reply
        answer = classify(reply, record)
        if isinstance(answer, Acknowledged):
            self._look_at_body(reply)
        return answer

    def _look_at_body(self, reply: Reply) -> None:
        """Tell, once for as long as it lasts, of acknowledgements that only a status gives."""
        was_readable, self._is_readable = self._is_readable, is_readable(reply)
        if was_readable and not self._is_readable:
            _log.warning(
                "acknowledged by the status alone", reason=f"HTTP {reply.status} without JSON"
            )

    async def send_batch(self, records: Sequence[Record]) -> BatchAnswer:
        """
        Post records of different names in one call and return what GitHub said.

        The scope must name a cluster.
        """
        payload = batch_payload(records, self._scope)
        reply = await self._post("batch", self._cluster_path, payload, MAX_BATCH_BODY)
        return classify_batch(reply, records) if isinstance(reply, Reply) else reply

    async def records_of(self, digest: Digest) -> KnownAnswer:
        """Ask which records GitHub holds for a digest, and return what it said."""
        path = f"{self._artifacts_path}/{quote(digest, safe=':')}/metadata/deployment-records"

        async def get(token: SecretStr) -> Reply | Failed:
            return await self._transport.get(path, token=token, max_answer=MAX_BATCH_BODY)

        reply = await self._with_token(get)
        return classify_known(reply) if isinstance(reply, Reply) else reply

    async def _post(self, call: str, path: str, payload: object, most: int) -> Reply | NoToken:
        body = json.dumps(payload, separators=(",", ":")).encode()

        async def post(token: SecretStr) -> Reply | Failed:
            began = asyncio.get_running_loop().time()
            reply = await self._transport.post(path, body=body, token=token, max_answer=most)
            self._count(call, reply, seconds=asyncio.get_running_loop().time() - began)
            return reply

        return await self._with_token(post)

    def _count(self, call: str, reply: Reply | Failed, *, seconds: float) -> None:
        if self._meter is None:
            return
        self._meter.requested(
            call,
            status=reply.status if isinstance(reply, Reply) else None,
            seconds=seconds,
            headers=reply.headers if isinstance(reply, Reply) else {},
        )

    async def _with_token(
        self, request: Callable[[SecretStr], Awaitable[Reply | Failed]]
    ) -> Reply | NoToken:
        """Make a request with the token, and once more with another one when that is refused."""
        token = await self._tokens.token()
        if not isinstance(token, SecretStr):
            return token
        reply = await request(token)
        if not isinstance(reply, Reply) or reply.status != HTTPStatus.UNAUTHORIZED:
            return reply
        renewed = await self._tokens.renew(token)
        if not isinstance(renewed, SecretStr):
            return renewed
        if renewed == token:
            return reply
        return await request(renewed)


class DryRun:
    """A sender that sends nothing: whatever would be posted is taken for acknowledged."""

    async def send(self, record: Record) -> Answer:  # noqa: ARG002 - what would be posted
        """Answer as GitHub would that holds the record."""
        return Acknowledged()

    async def send_batch(self, records: Sequence[Record]) -> BatchAnswer:
        """Answer as GitHub would that holds each of the records."""
        return Told(answers=(Acknowledged(),) * len(records))
