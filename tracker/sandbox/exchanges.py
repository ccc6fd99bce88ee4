"""
One request to the simulated GitHub and all that became of it.

An exchange keeps three things apart that a fault can part: what arrived, what was applied to the
table, and what went back. The checker and the tests read them; nothing here talks to a socket.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, cast

from tracker.sandbox.contract import Batch, Deployment, FieldError
from tracker.sandbox.table import Row

__all__ = ["Exchange", "Outcome"]

OK, CREATED, MULTI_STATUS, MULTIPLE_CHOICES = 200, 201, 207, 300
REQUEST_TIMEOUT, SERVER_ERROR = 408, 500


class Outcome(Enum):
    """What a client that read the answer may believe of one name."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    OPEN = "open"


@dataclass(slots=True, kw_only=True)
class Exchange:
    """
    One exchange; it fills while it runs, so it is the one value here that is not frozen.

    `arrived`, `applied`, `answered` and `gone` are seconds of the event loop's clock, the same as
    `time.monotonic()` on a real loop; the `_at` ones are aware UTC. None: it has not happened.
    """

    seq: int
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    """As sent, but without `Authorization`."""
    peer: tuple[str, int]
    """The client's address: two exchanges of one connection have the same."""
    arrived: float
    arrived_at: datetime
    body: bytes = b""
    payload: Any = None
    """The body as JSON, None when it is none."""
    names: tuple[str, ...] = ()
    """Every deployment_name of the request, valid or not."""
    request: Batch | None = None
    """What a valid POST asks for."""
    errors: tuple[FieldError, ...] = ()
    """What of the contract the body breaks."""
    applied: float | None = None
    applied_at: datetime | None = None
    rows: tuple[Row, ...] = ()
    """The rows this exchange wrote."""
    answered: float | None = None
    """When the answer left, or the connection was cut instead."""
    answered_at: datetime | None = None
    status: int | None = None
    """The status line that left; None when none did."""
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    answer: bytes = b""
    """The body that left, which may be a part of one."""
    whole: bool = False
    """The answer left to its end."""
    cut: bool = False
    """The server closed the connection instead of answering, or in the middle of the answer."""
    gone: float | None = None
    """When the client was found to have closed its side before the answer."""
    scripted: str = ""
    """The scripted behaviour that was at work, "" for the plain contract."""

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """The deployments of a valid POST."""
        return () if self.request is None else self.request.deployments

    @property
    def is_batch(self) -> bool:
        """Whether this is a cluster call."""
        return "/deployment-record/cluster/" in self.path

    @property
    def ended(self) -> float | None:
        """When it stopped being in flight for the client: answered, cut or left; None: it is."""
        ends = [moment for moment in (self.answered, self.gone) if moment is not None]
        return min(ends) if ends else None

    def outcomes(self) -> dict[str, Outcome]:
        """
        Return what the answer, as it left, says of each deployment_name of a valid request.

        A 2xx status line acknowledges a single post even when its body can't be read; in a batch
        only the body can say it. No status line, 408 and 5xx leave the outcome open.
        """
        if self.status is None or self.status == REQUEST_TIMEOUT or self.status >= SERVER_ERROR:
            every = Outcome.OPEN
        elif self.status >= MULTIPLE_CHOICES:
            every = Outcome.REFUSED
        elif self.status in ({OK, MULTI_STATUS} if self.is_batch else {OK, CREATED}):
            return self._told()
        else:
            every = Outcome.OPEN
        return {posted.deployment_name: every for posted in self.deployments}

    def _told(self) -> dict[str, Outcome]:
        """Return what the body of a success says of each name."""
        answer = _parsed(self.answer) if self.whole else None
        listed = None if answer is None else _listed(answer)
        if answer is None or listed is None:
            unread = Outcome.OPEN if self.is_batch else Outcome.ACKNOWLEDGED
            return {posted.deployment_name: unread for posted in self.deployments}
        refused = _refused(answer)
        silent = self.is_batch and self.request is not None and not self.request.return_records
        outcomes: dict[str, Outcome] = {}
        for posted in self.deployments:
            if (posted.deployment_name, posted.digest) in listed:
                outcome = Outcome.ACKNOWLEDGED
            elif posted.deployment_name in refused:
                outcome = Outcome.REFUSED
            else:
                outcome = Outcome.ACKNOWLEDGED if silent else Outcome.OPEN
            outcomes[posted.deployment_name] = outcome
        return outcomes

    def __str__(self) -> str:
        names = ", ".join(self.names[:3]) + (", …" if len(self.names) > 3 else "")  # noqa: PLR2004 - a line's worth
        states = ",".join(sorted({posted.status for posted in self.deployments}))
        end = "cut" if self.cut else "gone" if self.status is None and self.gone else self.status
        applied = "" if self.applied is None else f" applied={len(self.rows)}"
        scripted = f" ({self.scripted})" if self.scripted else ""
        return (
            f"#{self.seq} {self.arrived:.3f} {self.method} {self.path} [{names}] {states}"
            f" -> {end or 'in flight'}{applied}{scripted}"
        )


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else None


def _listed(answer: dict[str, Any]) -> set[tuple[str, str]] | None:
    """Return (deployment_name, digest) of every record in an answer, None if it has no list."""
    records = answer.get("deployment_records")
    if not isinstance(records, list):
        return None
    return {
        (str(record.get("deployment_name")), str(record.get("digest")))
        for record in records
        if isinstance(record, dict)
    }


def _refused(answer: dict[str, Any]) -> set[str]:
    errors = answer.get("errors")
    return {
        str(error["deployment"].get("deployment_name"))
        for error in (errors if isinstance(errors, list) else [])
        if isinstance(error, dict) and isinstance(error.get("deployment"), dict)
    }
