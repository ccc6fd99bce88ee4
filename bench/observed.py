"""
A program under observation: what it takes from the machine, and what it says of itself.

Memory and CPU are read from `/proc`, so they are there for any program. The queue's depth and the
longest lag of the loop come from `/metrics`, where that is served.
"""

import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp

from tests.support.probe import free_port
from tests.support.program import Program

__all__ = ["Observed", "Samples"]

SAMPLE_SECONDS: Final = 0.5
METRICS_EVERY: Final = 4
"""Samples; Prometheus asks every 15 or 30 seconds, so this is more than it will ever be asked."""
SCRAPE_SECONDS: Final = 2.0
TICKS: Final = os.sysconf("SC_CLK_TCK")
METRIC: Final = re.compile(
    r"^deployment_tracker_(queue_depth|loop_lag_seconds) (\S+)$", re.MULTILINE
)

Series = list[tuple[float, float]]
"""(seconds since the process began, value)."""


@dataclass(slots=True)
class Samples:
    """What was read, over time; a program without metrics has no backlog and no lag."""

    rss_mib: Series = field(default_factory=list)
    backlog: Series = field(default_factory=list)
    lag_ms: Series = field(default_factory=list)


class Observed:
    """One run of a program; an async context manager like `Program`, which it starts."""

    def __init__(self, command: Sequence[str], *, environ: Mapping[str, str], folder: Path) -> None:
        self._port = free_port()
        metrics = {"METRICS_PORT": str(self._port)}
        self.program = Program(command, environ={**environ, **metrics}, folder=folder)
        self.began = 0.0
        """When the process began, by the loop's clock."""
        self.samples = Samples()
        self._sampling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.began = time.monotonic()
        await self.program.__aenter__()
        self._sampling = asyncio.create_task(self._sample(), name="samples")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            with suppress(asyncio.CancelledError):
                await self._sampling
        await self.program.__aexit__(kind, error, trace)

    def rss_mib(self) -> float:
        """Return the memory that is resident now, in MiB."""
        return self._status("VmRSS")

    def peak_mib(self) -> float:
        """Return the most memory that ever was resident, in MiB."""
        return self._status("VmHWM")

    def cpu_seconds(self) -> float:
        """Return the CPU seconds it used so far, those of the kernel for it included."""
        fields = Path(f"/proc/{self.program.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def lag_ms(self) -> float | None:
        """Return the longest time in which its loop did not come to its turn, if it tells."""
        return max((lag for _, lag in self.samples.lag_ms), default=None)

    def backlog(self) -> float | None:
        """Return the most names that ever waited, if it tells."""
        return max((depth for _, depth in self.samples.backlog), default=None)

    def _status(self, name: str) -> float:
        text = Path(f"/proc/{self.program.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0

    async def _sample(self) -> None:
        timeout = aiohttp.ClientTimeout(total=SCRAPE_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            number = 0
            while self.program.running:
                at = time.monotonic() - self.began
                with suppress(OSError):  # it has just ended
                    self.samples.rss_mib.append((at, self.rss_mib()))
                if number % METRICS_EVERY == 0:
                    await self._scrape(session)
                number += 1
                await asyncio.sleep(SAMPLE_SECONDS)

    async def _scrape(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(f"http://127.0.0.1:{self._port}/metrics") as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return  # not listening yet, or never
        at = time.monotonic() - self.began
        told = dict(METRIC.findall(text))
        if "queue_depth" in told:
            self.samples.backlog.append((at, float(told["queue_depth"])))
        if "loop_lag_seconds" in told:
            self.samples.lag_ms.append((at, float(told["loop_lag_seconds"]) * 1000))
