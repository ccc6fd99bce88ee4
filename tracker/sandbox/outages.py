"""
What can go wrong between a client and an API server, as values that the simulated cluster plays.

A `Fault` is what a request gets instead of, or mixed into, its proper answer; a `Match` says which
requests; `SimulatedCluster.inject` puts the two together for a number of requests or until it is
taken back. Faults that hit streams already running (cut, freeze) are methods of the cluster.
"""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracker.sandbox.requests import Request

__all__ = [
    "Drip",
    "EndStream",
    "Fault",
    "Hang",
    "Injection",
    "Match",
    "RawAnswer",
    "Refuse",
    "StreamError",
    "Truncate",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """
    Answer with a failure Status.

    ``retry_after`` (seconds) becomes the header of that name; reason and message follow from the
    code unless given.
    """

    code: int
    message: str = ""
    reason: str | None = None
    retry_after: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    """Answer with anything at all: by default the 200 text/html of a load balancer."""

    code: int = 200
    content_type: str = "text/html"
    body: bytes = b"<html><body>Welcome</body></html>"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamError:
    """Open a watch with 200, send one ERROR event and end it; ``code`` None leaves it out."""

    code: int | None = 500
    message: str = "etcdserver: leader changed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """Send half of the answer, for a watch half of a line, then reset the connection."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndStream:
    """Answer 200 and end at once without a byte of body."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """
    Keep the connection and say nothing, not even its end: a half-open connection.

    With ``after_headers`` the client at least gets its 200. It lasts until the client goes away,
    the injection is removed (then the connection is reset) or the cluster stops.
    """

    after_headers: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drip:
    """Send the proper answer a few bytes at a time."""

    size: int = 1
    every_seconds: float = 1.0


Fault = Refuse | RawAnswer | StreamError | Truncate | EndStream | Hang | Drip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """
    Which requests a fault hits; a field left empty hits any.

    ``verb`` is get, list, watch, create, update, patch or delete; ``resource`` the plural;
    ``path`` a glob over the path without query; ``paged`` says whether the request continues a
    paged list (True), begins one (False) or either (None).
    """

    verb: str = ""
    resource: str = ""
    namespace: str = ""
    path: str = ""
    paged: bool | None = None

    def covers(self, request: Request) -> bool:
        """Tell whether a request is meant."""
        return (
            self.verb in {"", request.verb}
            and self.resource in {"", request.resource}
            and self.namespace in {"", request.namespace}
            and (not self.path or fnmatchcase(request.path, self.path))
            and (self.paged is None or self.paged == ("continue" in request.query))
        )


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Injection:
    """A fault in force; ``left`` None means until removed, ``hits`` counts what it has hit."""

    fault: Fault
    match: Match
    left: int | None
    hits: int = 0

    @property
    def spent(self) -> bool:
        """Tell whether it has hit as often as it was meant to."""
        return self.left is not None and self.hits >= self.left
