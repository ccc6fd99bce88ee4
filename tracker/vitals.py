"""
Signs of life of what should go on for ever.

A task that ends is noticed at once; one that hangs is not. So each long task says, whenever it
begins something, by when its next sign is due at the latest. What succeeds does not count: with
the API server and GitHub away for a day everything here is alive, as long as it keeps trying.
`Laps` measures how late the event loop comes to its turn, which is what a handler that blocks, or
a node without a CPU to spare, does to everyone.

Times are seconds of the running loop's clock.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

__all__ = ["Grants", "Laps", "Vitals"]

LAP_SECONDS: Final = 0.5
"""How often the loop is to come to a turn that is measured."""
WINDOW_SECONDS: Final = 60.0
"""The longest lag is that of so long."""


class Vitals:
    """When the next sign of each long task is due."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def expect(self, task: str, within_seconds: float) -> None:
        """Take note of a sign of life; the next one is due within that time (`inf`: any time)."""
        self._due[task] = asyncio.get_running_loop().time() + within_seconds

    def expecting(self, task: str) -> Callable[[float], None]:
        """Return `expect` for one task."""
        return partial(self.expect, task)

    def overdue(self) -> dict[str, float]:
        """Return for how many seconds each sign is overdue that did not come."""
        now = asyncio.get_running_loop().time()
        return {task: now - due for task, due in sorted(self._due.items()) if due < now}


class Grants:
    """Whether what was asked of the API server last was granted: a watch, or a list before it."""

    def __init__(self) -> None:
        self._granted = False
        self._since = asyncio.get_running_loop().time()

    def ask(self) -> None:
        """Take note that it is asked for anew, or that it ended and will be."""
        if self._granted:
            self._granted = False
            self._since = asyncio.get_running_loop().time()

    def grant(self) -> None:
        """Take note that it was granted."""
        self._granted = True

    def wanting(self) -> float:
        """Return for how many seconds nothing has been granted, 0.0 while it is."""
        return 0.0 if self._granted else asyncio.get_running_loop().time() - self._since


class Laps:
    """How late the event loop came to its turns."""

    def __init__(self) -> None:
        self._lags: deque[tuple[float, float]] = deque()
        self.last = 0.0
        """By how many seconds the last turn was late."""

    async def run(self) -> None:
        """Measure for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAP_SECONDS
            await asyncio.sleep(LAP_SECONDS)
            now = loop.time()
            self.last = max(now - due, 0.0)
            # Only what no later lag surpasses can ever be the longest: a handful.
            while self._lags and self._lags[-1][1] <= self.last:
                self._lags.pop()
            self._lags.append((now, self.last))
            self._forget(now)

    def longest(self) -> float:
        """Return by how many seconds a turn of the last minute was late, at most."""
        self._forget(asyncio.get_running_loop().time())
        return self._lags[0][1] if self._lags else 0.0

    def _forget(self, now: float) -> None:
        while self._lags and self._lags[0][0] < now - WINDOW_SECONDS:
            self._lags.popleft()
