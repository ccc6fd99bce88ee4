"""
A simulated GitHub on a loopback socket: the artifact metadata API as its contract says.

For the demo, the tests and users' own CI. It validates every request, keeps what it *applied*
apart from what it *answered*, writes down every exchange, and does on command what networks and
services do: answer anything, cut the connection before or after applying, apply late, hang. It
imports nothing of the tracker, so it can't share its mistakes.

    async with SimulatedGitHub() as github:
        github.script(answers(503), times=3)
        ...                                   # point a tracker at github.url with github.token
        await github.until(lambda: github.deployed() == {"shop/web/app": digest})
"""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from tracker.sandbox.apps import Apps
from tracker.sandbox.contract import names_in
from tracker.sandbox.door import Door
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.judgement import Policy, Verdict, complaint, judge, read, route_of
from tracker.sandbox.script import Apply, Behaviour, Delivery, Script
from tracker.sandbox.table import Table

__all__ = ["NotReachedError", "SimulatedGitHub"]

_CONTRACT: Final = Behaviour(title="")
_MINUTE: Final = 60.0
_MAX_REQUEST_BYTES: Final = 64 * 2**20
_PRIMARY_LIMIT: Final = 900
"""Points a minute, told in the headers; a POST costs five of them."""


class NotReachedError(TimeoutError):
    """`until` waited in vain; the text shows the table and the last exchanges."""


class SimulatedGitHub:
    """
    GitHub's deployment records, and everything that can go wrong with them.

    `history` is every exchange since the start, `table` what is held now, `tokens` the bearer
    tokens that are taken. An unknown digest (in `unknown`, or one for which `knows` says False)
    is answered 404, or not_found in a batch, unless the post names a github_repository. `apps`
    are the GitHub Apps it knows, `clock_offset` is by how many seconds its clock is ahead.
    `posts_per_minute` None means no limit. Over `posts_without_abuse` a minute (None: any number)
    the secondary limit refuses everything for a minute, and for one more whenever somebody carries
    on meanwhile. All times are those of the running event loop's clock.
    """

    def __init__(
        self,
        *,
        token: str = "sandbox-token",  # noqa: S107 - opens nothing but this server
        knows: Callable[[str], bool] = lambda _digest: True,
        orgs: frozenset[str] | None = None,
        posts_per_minute: int | None = None,
        port: int = 0,
    ) -> None:
        self.token = token
        self.tokens = {token}
        self.unknown: set[str] = set()
        self.unauthorized: set[str] = set()
        self.posts_per_minute = posts_per_minute
        self.posts_without_abuse: int | None = None
        self.clock_offset = 0.0
        self.apps = Apps(wall=self._wall)
        self.table = Table()
        self.history: list[Exchange] = []
        self._knows = knows
        self._learned: set[str] = set()
        self._orgs = None if orgs is None else frozenset(org.lower() for org in orgs)
        self._door = Door(port)
        self._scripts: list[Script] = []
        self._recent_posts: deque[float] = deque()
        self._blocked_until = float("-inf")
        self._work: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The base URL; its port stays the same through `down` and `up`."""
        return f"http://127.0.0.1:{self._door.port}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # A client that leaves cancels its handler: that is how `gone` comes to be known.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.0
        )
        await self._runner.setup()
        await self.up()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._runner is not None:
            await self._door.close(self._runner)
            self._runner = None

    async def up(self) -> None:
        """Listen, at first on a free port, later on the same one again."""
        if self._runner is not None:
            await self._door.open(self._runner)

    async def down(self) -> None:
        """Refuse new connections and reset those that are open; what was held may still land."""
        if self._runner is not None:
            await self._door.shut(self._runner)

    # What it knows

    def knows(self, digest: str) -> bool:
        """Say whether an artifact of this digest is known without a repository."""
        return digest in self._learned or (digest not in self.unknown and self._knows(digest))

    def learn(self, digest: str) -> None:
        """Know this digest from now on, as when its attestation arrives."""
        self.unknown.discard(digest)
        self._learned.add(digest)
        self._notify()

    def deployed(self) -> dict[str, str]:
        """Return deployment_name → digest of what stands as deployed; for one identity only."""
        return {name: row[1] for name, row in self._states().items() if row[0] == "deployed"}

    def state(self, deployment_name: str) -> tuple[str, str] | None:
        """Return (status, digest) of a name, None when it has no record."""
        return self._states().get(deployment_name)

    def posts(self, deployment_name: str | None = None) -> list[Exchange]:
        """Return the POSTs so far, or those that carry this name."""
        return [
            exchange
            for exchange in self.history
            if exchange.method == "POST"
            and (deployment_name is None or deployment_name in exchange.names)
        ]

    # What it is told to do

    def script(
        self,
        behaviour: Behaviour,
        *,
        match: Callable[[Exchange], bool] = lambda _exchange: True,
        times: int | None = None,
    ) -> Script:
        """
        Do this with the requests that match, so many times (None: until stopped or healed).

        The first script that takes an exchange has it, in the order they were given.
        """
        script = Script(behaviour, match, times)
        self._scripts.append(script)
        return script

    def release(self) -> None:
        """Let everything that is held by any script go on."""
        for script in self._scripts:
            script.release()

    def heal(self) -> None:
        """End every script and limit, and let go on what they hold."""
        for script in self._scripts:
            script.stop()
        self.release()
        self.posts_per_minute = self.posts_without_abuse = None
        self._blocked_until = float("-inf")

    async def until(
        self, predicate: Callable[[], bool], *, within: float = 10.0, why: str = "a condition"
    ) -> None:
        """
        Wait until the predicate holds; it is asked again at every arrival, application and answer.

        Raises NotReachedError after `within` seconds.
        """
        try:
            async with asyncio.timeout(within):
                while not predicate():
                    await self._changed.wait()
        except TimeoutError:
            last = "\n".join(map(str, self.history[-20:])) or "(no exchange)"
            text = f"waited {within} s for {why} in vain.\n{self.table}\nLast requests:\n{last}"
            raise NotReachedError(text) from None

    # How it works

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        exchange = self._arrive(request)
        try:
            exchange.body = await request.read()
            self._understand(exchange)
            script = next((each for each in self._scripts if each.takes(exchange)), None)
            behaviour = _CONTRACT if script is None else script.behaviour
            exchange.scripted = behaviour.title
            self._notify()
            authorization = request.headers.get("Authorization", "")
            # Shielded: what is held lands even when the client has left meanwhile.
            verdict = await asyncio.shield(
                self._start(self._proceed(exchange, authorization, script))
            )
            return await self._deliver(request, exchange, verdict, script)
        except asyncio.CancelledError:
            if exchange.answered is None:
                exchange.gone = self._now()
                self._notify()
            raise

    def _arrive(self, request: web.Request) -> Exchange:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in {"authorization", "cookie", "proxy-authorization"}
        }
        peer = request.transport.get_extra_info("peername") if request.transport else None
        exchange = Exchange(
            seq=len(self.history) + 1,
            method=request.method,
            path=request.rel_url.raw_path,
            query=request.rel_url.raw_query_string,
            headers=headers,
            peer=("", 0) if peer is None else (peer[0], peer[1]),
            arrived=self._now(),
            arrived_at=datetime.now(UTC),
        )
        self.history.append(exchange)
        return exchange

    def _understand(self, exchange: Exchange) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            exchange.payload = json.loads(exchange.body)
        exchange.names = names_in(exchange.payload)
        route = route_of(exchange.method, exchange.path)
        if route is not None and route.method == "POST" and exchange.payload is not None:
            exchange.request, exchange.errors = read(route, exchange.payload)

    async def _proceed(
        self, exchange: Exchange, authorization: str, script: Script | None
    ) -> Verdict:
        """Judge and apply when the script says so, and return what the contract answers."""
        if script is None:
            verdict = self._judge(exchange, authorization)
            self._apply(exchange, verdict)
            return verdict
        behaviour = script.behaviour
        if behaviour.apply is not Apply.AFTER:
            await script.wait(behaviour.apply_wait)
        verdict = self._judge(exchange, authorization)
        if behaviour.apply is Apply.BEFORE:
            self._apply(exchange, verdict)
        elif behaviour.apply is Apply.AFTER:
            self._start(self._land(exchange, authorization, script))
        await script.wait(behaviour.answer_wait)
        return verdict

    async def _land(self, exchange: Exchange, authorization: str, script: Script) -> None:
        await script.wait(script.behaviour.apply_wait)
        self._apply(exchange, self._contract(exchange, authorization))

    def _judge(self, exchange: Exchange, authorization: str) -> Verdict:
        return self._limited(exchange) or self._contract(exchange, authorization)

    def _contract(self, exchange: Exchange, authorization: str) -> Verdict:
        policy = Policy(
            knows=self.knows,
            refuses=self.unauthorized.__contains__,
            tokens=self.apps.tokens() | self.tokens,
            mints=self.apps.mint,
            orgs=self._orgs,
        )
        return judge(
            exchange,
            authorization=authorization,
            policy=policy,
            table=self.table,
            now=datetime.now(UTC),
        )

    def _limited(self, exchange: Exchange) -> Verdict | None:
        if exchange.method != "POST":
            return None
        now = self._now()
        while self._recent_posts and self._recent_posts[0] <= now - _MINUTE:
            self._recent_posts.popleft()
        abuse = self.posts_without_abuse
        if now < self._blocked_until or (abuse is not None and len(self._recent_posts) >= abuse):
            self._blocked_until = now + _MINUTE
            return complaint(
                403,
                "You have exceeded a secondary rate limit. Please wait a few minutes before you try"
                " again.",
                headers={"Retry-After": str(int(_MINUTE))},
            )
        if self.posts_per_minute is None or len(self._recent_posts) < self.posts_per_minute:
            self._recent_posts.append(now)
            return None
        wait = self._recent_posts[0] + _MINUTE - now
        return complaint(
            403,
            "API rate limit exceeded for installation.",
            headers={
                "x-ratelimit-remaining": "0",
                "x-ratelimit-reset": str(int(self._wall() + wait) + 1),
            },
        )

    def _apply(self, exchange: Exchange, verdict: Verdict) -> None:
        if not verdict.accepted:
            return
        now = datetime.now(UTC)
        exchange.rows = self.table.apply(verdict.accepted, now=now, seq=exchange.seq)
        exchange.applied, exchange.applied_at = self._now(), now
        self._notify()

    async def _deliver(
        self, request: web.Request, exchange: Exchange, verdict: Verdict, script: Script | None
    ) -> web.StreamResponse:
        behaviour = _CONTRACT if script is None else script.behaviour
        status = verdict.status if behaviour.status is None else behaviour.status
        body = _body(verdict, behaviour)
        exchange.answered, exchange.answered_at = self._now(), datetime.now(UTC)
        exchange.cut = behaviour.delivery in {Delivery.DROPPED, Delivery.TRUNCATED, Delivery.RAW}
        exchange.whole = behaviour.delivery is Delivery.WHOLE
        if behaviour.delivery in {Delivery.DROPPED, Delivery.RAW}:
            if request.transport is not None and behaviour.delivery is Delivery.RAW:
                exchange.answer = body
                request.transport.write(body)
                request.transport.close()
            elif request.transport is not None:
                request.transport.abort()
            self._notify()
            return web.Response()
        exchange.status = status
        exchange.answer_headers = self._headers(exchange, verdict, behaviour)
        exchange.answer = body[: len(body) // 2] if exchange.cut else body
        if exchange.path.endswith("/access_tokens"):
            exchange.answer = b""  # what is written down of an exchange holds no secret
        self._notify()
        if exchange.whole:
            return web.Response(status=status, body=body, headers=exchange.answer_headers)
        response = web.StreamResponse(status=status, headers=exchange.answer_headers)
        response.content_length = len(body)
        await response.prepare(request)
        if exchange.cut:
            await response.write(exchange.answer)
            if request.transport is not None:
                request.transport.close()
        elif script is not None:
            for byte in body:
                await script.wait(behaviour.drip_wait)
                await response.write(bytes([byte]))
        return response

    def _headers(
        self, exchange: Exchange, verdict: Verdict, behaviour: Behaviour
    ) -> Mapping[str, str]:
        used = min(5 * len(self._recent_posts), _PRIMARY_LIMIT)
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Date": formatdate(self._wall(), usegmt=True),
            "Server": "github.com",
            "x-github-api-version-selected": "2022-11-28",
            "x-github-media-type": "github.v3; format=json",
            "x-github-request-id": f"5A4D:{self._door.port:04X}:{exchange.seq:06X}",
            "x-ratelimit-limit": str(_PRIMARY_LIMIT),
            "x-ratelimit-remaining": str(_PRIMARY_LIMIT - used),
            "x-ratelimit-reset": str(int(self._wall() + _MINUTE)),
            "x-ratelimit-resource": "core",
            "x-ratelimit-used": str(used),
        }
        for name, value in {**verdict.headers, **behaviour.headers}.items():
            known = next((each for each in headers if each.lower() == name.lower()), name)
            headers[known] = value
        return headers

    def _states(self) -> dict[str, tuple[str, str]]:
        states: dict[str, tuple[str, str]] = {}
        for row in self.table:
            if row.deployment_name in states:
                text = f"{row.deployment_name} stands in more than one environment: read the table"
                raise LookupError(text)
            states[row.deployment_name] = (row.status, row.digest)
        return states

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="simulated-github")
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _wall(self) -> float:
        return time.time() + self.clock_offset

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _body(verdict: Verdict, behaviour: Behaviour) -> bytes:
    if behaviour.body is not None:
        return behaviour.body
    if behaviour.status in {204, 304}:
        return b""
    if behaviour.status is None or behaviour.status == verdict.status:
        return json.dumps(dict(verdict.body)).encode()
    if behaviour.status < 300:  # noqa: PLR2004 - the first status that is not a success
        return b"{}"
    return json.dumps(dict(complaint(behaviour.status, "Scripted by the sandbox").body)).encode()
