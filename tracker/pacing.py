"""
When something may be sent: one pace for all workers.

Four things hold a send back. Nothing is sent before what the cluster holds is known (`open`). A
token bucket keeps the rate under GitHub's. A limit, a token that is refused or a long outage sets
one time before which nobody sends; it only ever moves later. And after such a time it is *doubtful*
whether the cause is gone, so that one sends alone, as a probe, and the others follow only when an
answer came that says nothing of the kind.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tracker.answers import (
    Answer,
    BatchAnswer,
    BatchRefused,
    Failed,
    KnownAnswer,
    Limited,
    Unauthorized,
)
from tracker.backoff import delay_after

__all__ = ["Bucket", "Pace"]

FIRST_PAUSE_SECONDS = 60.0
MAX_PAUSE_SECONDS = 3600.0
MAX_STREAK = 6
"""Limits in a row that are counted: the sixth doubling is over the longest pause."""
OUTAGE_FAILURES = 5
"""So many failures in a row, of whatever records, and the way to GitHub counts as broken."""


class Bucket:
    """
    A token bucket: `rate` tokens a second, `burst` at most; full at first.

    Times are seconds of any clock that never goes back.
    """

    def __init__(self, *, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._at = float("-inf")

    def wait(self, now: float, *, spare: float = 0.0) -> float:
        """
        Return how long until a token may be taken, 0.0 for at once.

        `spare` is the part of the burst that is to be left for others.
        """
        self._fill(now)
        missing = 1.0 + spare * (self._burst - 1) - self._level
        return max(missing / self._rate, 0.0)

    def take(self, now: float) -> None:
        """Take a token."""
        self._fill(now)
        self._level -= 1.0

    def _fill(self, now: float) -> None:
        gained = (now - self._at) * self._rate
        self._level = min(self._level + gained, float(self._burst))
        self._at = max(now, self._at)


class Pace:
    """
    What everyone waits for before they send.

    `rate` is in requests a second, `not_before` in seconds of the running loop's clock; given at
    the start, it is what a limit of an earlier run asked for. `chance()` gives a random number in
    [0, 1).
    """

    def __init__(
        self, *, rate: float, burst: int, chance: Callable[[], float], not_before: float = 0.0
    ) -> None:
        self._bucket = Bucket(rate=rate, burst=burst)
        self._chance = chance
        self._opened = asyncio.Event()
        self._opened_at = 0.0
        self._streak = 0
        self._failures = 0
        self._refusal: str | None = None
        self._doubtful = not_before > 0.0
        self._probing = asyncio.Lock()
        self.not_before = not_before

    def open(self) -> None:
        """Permit sending: what the cluster held at the start is known."""
        self._opened_at = asyncio.get_running_loop().time()
        self._opened.set()

    async def opened(self) -> None:
        """Wait until sending was permitted for the first time."""
        await self._opened.wait()

    @property
    def is_open(self) -> bool:
        """Tell whether sending was ever permitted."""
        return self._opened.is_set()

    @property
    def permits(self) -> bool:
        """Tell whether sending is permitted now."""
        return self.is_open and self.not_before <= asyncio.get_running_loop().time()

    @property
    def permitted_since(self) -> float:
        """Return the time of the loop's clock since when sending is permitted, if it is."""
        return max(self._opened_at, self.not_before)

    @property
    def is_broken(self) -> bool:
        """Tell whether the last requests, several in a row, all failed."""
        return self._failures >= OUTAGE_FAILURES

    @property
    def refusal(self) -> str | None:
        """
        Return why nothing may be sent with the token, or None when nothing is known against it.

        It stands until a request is taken: neither a limit nor an outage says that it is over.
        """
        return self._refusal

    async def passed(self) -> None:
        """Wait until sending is permitted."""
        await self._opened.wait()
        loop = asyncio.get_running_loop()
        # The time may move later while this waits for it.
        while (left := self.not_before - loop.time()) > 0:  # noqa: ASYNC110 - a time, not an event
            await asyncio.sleep(left)

    @asynccontextmanager
    async def turn(self, *, behind: bool = False) -> AsyncIterator[None]:
        """
        Yield when one request may be sent, which is to be done within the context.

        While it is doubtful whether any may, the context is for one at a time. `behind`: others
        come first, and half of what may go at once is left for them.
        """
        while True:
            await self._take(behind=behind)
            if not self._doubtful:
                yield
                return
            async with self._probing:
                if self.permits and self._doubtful:
                    yield
                    return

    async def _take(self, *, behind: bool) -> None:
        """Take a token when sending is permitted and there is one."""
        loop = asyncio.get_running_loop()
        while True:
            await self.passed()
            wait = self._bucket.wait(loop.time(), spare=0.5 if behind else 0.0)
            if not wait:
                break
            await asyncio.sleep(wait)
        self._bucket.take(loop.time())

    def note(self, answer: Answer | BatchAnswer | KnownAnswer) -> float:
        """Take note of an answer; return the seconds by which it stops everyone, mostly 0."""
        now = asyncio.get_running_loop().time()
        left = max(self.not_before - now, 0.0)
        if isinstance(answer, Unauthorized):
            self._refusal = answer.reason
        match answer:
            case Limited(pause_seconds=seconds) if seconds is not None:
                pause = seconds
            case Unauthorized(valid=False):
                # Another token may be there any time, and waits no longer than this.
                pause = left or FIRST_PAUSE_SECONDS
            case Limited() | Unauthorized():
                # What was under way when the pause began is told of the same limit once more.
                pause = left or min(FIRST_PAUSE_SECONDS * 2.0**self._streak, MAX_PAUSE_SECONDS)
            case Failed():
                return self._note_failure(now)
            case BatchRefused(by_content=False):
                return 0.0  # what that means another request will show
            case _:
                self._streak = self._failures = 0
                self._refusal = None
                self._doubtful = False
                return 0.0
        if not left:
            self._streak = min(self._streak + 1, MAX_STREAK)
        self._failures = 0
        self._pause(now + pause)
        return pause

    def _note_failure(self, now: float) -> float:
        """Note that nothing came back: nobody said that a limit is over, and maybe no one can."""
        self._failures += 1
        if not self.is_broken:
            return 0.0
        pause = delay_after(self._failures - OUTAGE_FAILURES + 1, self._chance())
        self._pause(now + pause)
        return pause

    def _pause(self, until: float) -> None:
        self.not_before = max(self.not_before, until)
        self._doubtful = True
