"""
What a test or the demo tells the simulated GitHub to do besides the contract.

One small mechanism: a behaviour answers two questions that a fault keeps apart, *is the request
applied, and when* and *what goes back, and when*. The functions below name the combinations that
happen on a real network; a script says which requests meet one and how often.
"""

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tracker.sandbox.exchanges import Exchange

__all__ = [
    "RELEASED",
    "Apply",
    "Behaviour",
    "Delivery",
    "Script",
    "answers",
    "delays",
    "drips",
    "drops",
    "garbles",
    "hangs",
    "lands_late",
    "pretends",
    "speaks",
    "truncates",
]

RELEASED = math.inf
"""As a number of seconds to wait: until the script is released."""


class Apply(Enum):
    """When a valid request reaches the table."""

    BEFORE = "before the answer"
    AFTER = "after the answer, in the background"
    NEVER = "never"


class Delivery(Enum):
    """How the answer goes back."""

    WHOLE = "whole"
    TRUNCATED = "half of the body, then the connection is closed"
    DRIPPED = "the body byte by byte"
    DROPPED = "the connection is closed without a byte"
    RAW = "the body's bytes alone, without a status line of ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """
    What one exchange does; the defaults are the plain contract.

    Waits are seconds, RELEASED waits for the script's release. `status` or `body` None is what the
    contract answers; `headers` are added to GitHub's own and win over them.
    """

    title: str
    apply: Apply = Apply.BEFORE
    apply_wait: float = 0.0
    answer_wait: float = 0.0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delivery: Delivery = Delivery.WHOLE
    drip_wait: float = 0.0


class Script:
    """A behaviour at work: for which requests, how many times more, and its gate."""

    def __init__(
        self, behaviour: Behaviour, match: Callable[[Exchange], bool], times: int | None
    ) -> None:
        self.behaviour = behaviour
        self.used: list[Exchange] = []
        """The exchanges that met it, in order."""
        self._match = match
        self._left = math.inf if times is None else times
        self._gate = asyncio.Event()

    def takes(self, exchange: Exchange) -> bool:
        """Say whether this exchange meets the behaviour, and count it if so."""
        if self._left < 1 or not self._match(exchange):
            return False
        self._left -= 1
        self.used.append(exchange)
        return True

    def stop(self) -> None:
        """Take no further exchange; those that are held stay so until `release`."""
        self._left = 0

    def release(self) -> None:
        """Let everything this script holds go on, now and later."""
        self._gate.set()

    async def wait(self, seconds: float) -> None:
        """Wait that long, or until the release when that comes first."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(None if seconds == RELEASED else seconds):
                await self._gate.wait()
        except TimeoutError:
            return


def answers(
    status: int,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | str | Mapping[str, Any] | None = None,
    apply: Apply = Apply.NEVER,
) -> Behaviour:
    """
    Answer this status instead: a limit, an outage, a redirect, a 2xx that is no acknowledgement.

    Without a body a GitHub-shaped error is written, and nothing at all for 204 and 304.
    """
    return Behaviour(
        title=f"answers {status}",
        apply=apply,
        status=status,
        headers=headers or {},
        body=None if body is None else _bytes(body),
    )


def drops(*, applied: bool) -> Behaviour:
    """Close the connection without an answer, after or instead of applying the request."""
    return Behaviour(
        title="drops after applying" if applied else "drops",
        apply=Apply.BEFORE if applied else Apply.NEVER,
        delivery=Delivery.DROPPED,
    )


def lands_late(seconds: float = RELEASED, *, answer: int | None = None) -> Behaviour:
    """
    Hold the request, then apply and answer it, whether or not the client still waits.

    With an `answer`, that status (504, say) goes back at once and the request lands later.
    """
    return Behaviour(
        title="lands late",
        apply=Apply.BEFORE if answer is None else Apply.AFTER,
        apply_wait=seconds,
        status=answer,
    )


def hangs(*, applied: bool = False) -> Behaviour:
    """
    Hold the answer until released; apply the request at once, or not at all.

    What was not applied has no answer then, either: an acknowledgement would be a lie (`pretends`).
    """
    return Behaviour(
        title="hangs after applying" if applied else "hangs",
        apply=Apply.BEFORE if applied else Apply.NEVER,
        answer_wait=RELEASED,
        delivery=Delivery.WHOLE if applied else Delivery.DROPPED,
    )


def delays(seconds: float) -> Behaviour:
    """Apply at once and answer that much later."""
    return Behaviour(title=f"delays {seconds} s", answer_wait=seconds)


def pretends() -> Behaviour:
    """Answer as the contract says and apply nothing."""
    return Behaviour(title="pretends", apply=Apply.NEVER)


def garbles(body: bytes = b"<html>ok</html>", *, apply: Apply = Apply.BEFORE) -> Behaviour:
    """Answer with the contract's status and a body that is not the contract's (b"": none)."""
    return Behaviour(title="garbles", apply=apply, body=body)


def truncates(*, apply: Apply = Apply.BEFORE) -> Behaviour:
    """Send the head and half of the body, then close the connection."""
    return Behaviour(title="truncates", apply=apply, delivery=Delivery.TRUNCATED)


def drips(seconds: float, *, apply: Apply = Apply.BEFORE) -> Behaviour:
    """Send the head, then a byte of the body each so many seconds (RELEASED: hang after it)."""
    return Behaviour(title="drips", apply=apply, delivery=Delivery.DRIPPED, drip_wait=seconds)


def speaks(raw: bytes, *, apply: Apply = Apply.NEVER) -> Behaviour:
    """Write these bytes to the socket, status line and all, and close it."""
    return Behaviour(title="speaks raw", apply=apply, body=raw, delivery=Delivery.RAW)


def _bytes(body: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(dict(body))).encode()
