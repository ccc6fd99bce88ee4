"""
The port for machines: `/metrics`, `/healthz`, `/readyz`.

`/healthz` fails when a restart would help: the event loop does not come to its turn, a long task
gives no sign of life, or another file or owner took the ledger's place. It never depends on GitHub,
on the API server or on a disk that fails, which no restart mends. `/readyz` fails while the tracker
does not do its job, and says why: it was not in step with the cluster yet, the watch is not
granted, the ledger can't be written, workloads can't be read, GitHub refuses the token. An outage
of GitHub and a limit pass by themselves, and make it neither. Both answer with JSON: what was
looked at, and for each what is wrong, or null.

Whoever can reach the port can be slow on purpose. So each connection has one answer and a time to
live, and there are only so many: the oldest goes when one more comes.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from typing import Final, Protocol, Self

import structlog
from aiohttp import web

from tracker.errors import PortError

__all__ = ["HealthServer", "Subject"]

LIFETIME_SECONDS: Final = 10.0
"""How long a connection may take for all it has to say and to hear."""
MAX_CONNECTIONS: Final = 64
SWEEP_SECONDS: Final = 0.5
MAX_HEADER: Final = 8190

_log = structlog.get_logger(__name__)


class Subject(Protocol):
    """Whose health it is."""

    def liveness(self) -> Mapping[str, str | None]:
        """Return what a restart would mend, by what was looked at; None where nothing is wrong."""
        ...

    def readiness(self) -> Mapping[str, str | None]:
        """Return why it does not do its job, by what was looked at; None where nothing is wrong."""
        ...


class HealthServer:
    """
    The HTTP server: an async context manager that listens while it is open.

    `render` returns the metrics and their content type for an Accept header. `port` 0 takes a free
    one, which `port` tells afterwards. Opening raises `PortError` when it can't listen there.
    """

    def __init__(
        self,
        *,
        host: str | None,
        port: int,
        subject: Subject,
        render: Callable[[str], tuple[bytes, str]],
    ) -> None:
        self._host = host
        self._subject = subject
        self._render = render
        self._began: dict[object, float] = {}
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.port = port

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=0)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=0.0,
            lingering_time=0.0,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self.port).start()
        except OSError as error:
            await runner.cleanup()
            reason = error.strerror or str(error)
            raise PortError(
                f"METRICS_PORT={self.port}: can't listen there ({reason.lower()}); use another"
                " port, or 0 for none"
            ) from None
        self._runner = runner
        self.port = int(runner.addresses[0][1])
        self._sweeper = asyncio.create_task(self._sweep(), name="health-sweeper")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        if self._runner is not None:
            self._abort(list(self._began))
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._render(request.headers.get("Accept", ""))
        return _last(web.Response(body=body, headers={"Content-Type": content_type}))

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _judged(self._subject.liveness())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _judged(self._subject.readiness())

    async def _sweep(self) -> None:
        """End connections that are too old or too many, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            server = None if self._runner is None else self._runner.server
            connections = [] if server is None else server.connections
            self._began = {each: self._began.get(each, now) for each in connections}
            oldest_first = sorted(self._began, key=self._began.__getitem__)
            spare = max(len(oldest_first) - MAX_CONNECTIONS, 0)
            self._abort(
                [
                    each
                    for number, each in enumerate(oldest_first)
                    if number < spare or now - self._began[each] > LIFETIME_SECONDS
                ]
            )
            await asyncio.sleep(SWEEP_SECONDS)

    def _abort(self, connections: list[object]) -> None:
        for each in connections:
            transport = getattr(each, "transport", None)
            if transport is not None:
                transport.abort()


def _judged(findings: Mapping[str, str | None]) -> web.Response:
    well = all(finding is None for finding in findings.values())
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    body = json.dumps({"status": "ok" if well else "failing", "checks": dict(findings)}, indent=2)
    return _last(web.Response(text=body + "\n", status=status, content_type="application/json"))


def _last(response: web.Response) -> web.Response:
    """Return the response as the connection's last one."""
    response.force_close()
    return response
