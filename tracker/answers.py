"""
What GitHub said to one send: from status, headers and body to one of a closed set of answers.

All that is decided about an answer is decided here, without I/O, a clock or randomness; the
adapter that speaks HTTP hands over what it received, or why it received nothing. Nothing falls
through to a success: a status nobody thought of is a failure.

The rules are GitHub's: https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
and https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from tracker.records import Record

__all__ = [
    "Acknowledged",
    "Answer",
    "Failed",
    "Limited",
    "NotFound",
    "Rejected",
    "Reply",
    "Unauthorized",
    "Unconfirmed",
    "classify",
    "clean_text",
]

MAX_REASON = 256
"""Characters of GitHub's own words that are kept."""
MIN_PAUSE_SECONDS = 1.0
DEFAULT_PAUSE_SECONDS = 60.0
"""GitHub: wait at least a minute when a limit comes without a time."""
MAX_PAUSE_SECONDS = 3600.0
FORBIDDEN_RETRY_SECONDS = 3600.0
REJECTED_RETRY_SECONDS = 24 * 3600.0

_MAX_DIGITS = 15
_UNREADABLE = object()
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LIMIT_WORDS = re.compile(r"rate limit|abuse|secondary limit|too many requests", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """
    A received response. Header names are in lower case.

    `body` is cut at what the adapter reads; `whole` says that it was read to its end.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """GitHub said that it holds this very record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A success by its status that does not name the record."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """GitHub knows no artifact of this digest, or may not show it to this token."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """This record is refused; asking again is for `retry_seconds` later, or when it changes."""

    reason: str
    retry_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unauthorized:
    """The token is not valid: nothing can be sent with it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """A limit: no one may send for `pause_seconds`, or for a growing minute when it is None."""

    reason: str
    pause_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No answer, or one that says nothing of the record. `landed`: it may have had its effect."""

    reason: str
    landed: bool


Answer = Acknowledged | Unconfirmed | NotFound | Rejected | Unauthorized | Limited | Failed


def classify(reply: Reply, record: Record) -> Answer:
    """Return what a reply to the single post of `record` means."""
    status = reply.status
    answer: Answer
    if status in {HTTPStatus.OK, HTTPStatus.CREATED}:
        answer = _judge_success(reply, record)
    elif HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        answer = Unconfirmed(reason=_reason(reply))
    elif status == HTTPStatus.TOO_MANY_REQUESTS or (
        status == HTTPStatus.FORBIDDEN and _tells_limit(reply)
    ):
        answer = Limited(reason=_reason(reply), pause_seconds=_pause_seconds(reply.headers))
    elif status == HTTPStatus.UNAUTHORIZED:
        answer = Unauthorized(reason=_reason(reply))
    elif status == HTTPStatus.FORBIDDEN:
        answer = Rejected(reason=_reason(reply), retry_seconds=FORBIDDEN_RETRY_SECONDS)
    elif status == HTTPStatus.NOT_FOUND:
        answer = NotFound(reason=_reason(reply))
    elif status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
        answer = Rejected(reason=_reason(reply), retry_seconds=REJECTED_RETRY_SECONDS)
    else:
        # A server's error, or its impatience, says nothing of what it did before; any other
        # status is one that this endpoint does not give: something between us and GitHub spoke.
        landed = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT
        answer = Failed(reason=_reason(reply), landed=landed)
    return answer


def clean_text(text: str, limit: int = MAX_REASON) -> str:
    """Return text from outside as one printable line of at most `limit` characters."""
    printable = "".join(
        " " if unicodedata.category(char) in _UNPRINTABLE else char for char in text[: limit * 4]
    )
    return " ".join(printable.split())[:limit]


def _judge_success(reply: Reply, record: Record) -> Answer:
    """Judge a 200 or 201: a readable body must name the record, an unreadable one can't deny it."""
    body = _json(reply)
    if body is _UNREADABLE:
        return Acknowledged()
    records = body.get("deployment_records") if isinstance(body, Mapping) else None
    for found in records if isinstance(records, list) else ():
        if (
            isinstance(found, Mapping)
            and found.get("deployment_name") == record.deployment_name
            and found.get("digest") == record.digest
        ):
            return Acknowledged()
    return Unconfirmed(reason=f"HTTP {reply.status} without the record")


def _tells_limit(reply: Reply) -> bool:
    headers = reply.headers
    if "retry-after" in headers or headers.get("x-ratelimit-remaining", "").strip() == "0":
        return True
    return _LIMIT_WORDS.search(_message(reply)) is not None


def _pause_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a limit asks to wait, between 1 s and 1 h, or None when it names none."""
    now = _http_date(headers.get("date", ""))
    retry_after = headers.get("retry-after", "").strip()
    if retry_after:
        seconds = _number(retry_after)
        if seconds is None and (moment := _http_date(retry_after)) is not None and now is not None:
            seconds = (moment - now).total_seconds()
        return DEFAULT_PAUSE_SECONDS if seconds is None else _bounded(seconds)
    reset = _number(headers.get("x-ratelimit-reset", "").strip())
    exhausted = headers.get("x-ratelimit-remaining", "").strip() == "0"
    if exhausted and reset is not None and now is not None:
        # The server's own clock, since ours may be wrong.
        return _bounded(reset - now.timestamp())
    return None


def _bounded(seconds: float) -> float:
    return min(max(seconds, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS)


def _number(text: str) -> float | None:
    """Return the whole number a header holds, or None for anything else."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        return None
    return float(text)


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _json(reply: Reply) -> object:
    """Return the decoded body, or `_UNREADABLE` when it can't be read as JSON to its end."""
    if not reply.whole:
        return _UNREADABLE
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        return _UNREADABLE


def _message(reply: Reply) -> str:
    body = _json(reply)
    message = body.get("message") if isinstance(body, Mapping) else None
    return message if isinstance(message, str) else ""


def _reason(reply: Reply) -> str:
    """Return one line that names the status and GitHub's own words, if it had any."""
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    words = clean_text(_message(reply)) or phrase
    return f"HTTP {reply.status} {words}".rstrip()
