"""
What GitHub said to one send: from status, headers and body to one of a closed set of answers.

All that is decided about an answer is decided here, without I/O, a clock or randomness; the
adapter that speaks HTTP hands over what it received, or why it received nothing. Nothing falls
through to a success: a status nobody thought of is a failure.

What is said of a batch is either `Told`, an answer for each of its records, or one answer that
leaves open what each of them is worth; then what follows is decided by asking for fewer at a time.

The rules are GitHub's: https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
and https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import assert_never

from tracker.advice import ADVICE, Trouble
from tracker.records import Record

__all__ = [
    "Acknowledged",
    "Answer",
    "BatchAnswer",
    "BatchRefused",
    "BatchUnclear",
    "Failed",
    "Forbidden",
    "Known",
    "KnownAnswer",
    "Limited",
    "NotFound",
    "Outcome",
    "ReadBack",
    "Rejected",
    "Reply",
    "Told",
    "Unauthorized",
    "Unconfirmed",
    "classify",
    "classify_batch",
    "classify_known",
    "classify_stop",
    "clean_text",
    "is_readable",
    "outcome_of",
    "server_time",
    "without_user_info",
]

MAX_REASON = 256
"""Characters of GitHub's own words that are kept."""
MIN_PAUSE_SECONDS = 1.0
DEFAULT_PAUSE_SECONDS = 60.0
"""GitHub: wait at least a minute when a limit comes without a time."""
MAX_PAUSE_SECONDS = 3600.0
NOT_FOUND_HELP = ADVICE[Trouble.HTTP_404].what
FORBIDDEN_HELP = ADVICE[Trouble.HTTP_403].what
"""In a record's line a few words; the rest of the advice is told once."""

_TELLING = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.MULTI_STATUS})
_NOT_FOR_BATCHES = frozenset(
    {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
)
_MALFORMED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})
MAX_MESSAGE = 64 * 1024
"""Bytes of a body in which GitHub's words are looked for."""
PARTS_OF_A_RECORD = 64
"""More than the fields, tags and risks of a record, and what holds them, in an answer."""

_MAX_DIGITS = 15
_UNREADABLE = object()
# It is run over texts of any length: what begins one is short, and what follows ends where the next
# one may begin, so that none is read twice. A password may hold anything but these two.
_USER_INFO = re.compile(r"((?:https?|socks(?:[45][ah]?)?)://)[^/ ]*@", re.IGNORECASE)
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
class Forbidden:
    """The token may not write this record; somebody has to permit it, or all of them."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """This record is malformed to GitHub: asking again makes sense when it has changed."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unauthorized:
    """Nothing can be sent with the token: it is not valid or, if `valid`, may write nothing."""

    reason: str
    valid: bool = False


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


Answer = (
    Acknowledged | Unconfirmed | NotFound | Forbidden | Rejected | Unauthorized | Limited | Failed
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The answers to the records of a batch, in their order."""

    answers: tuple[Acknowledged | Unconfirmed | NotFound | Forbidden | Rejected, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchUnclear:
    """A success that does not say of which records: each of them may have landed."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRefused:
    """
    The batch as a whole was refused and had no effect.

    `by_content`: one of its records is malformed, so that fewer at a time show which. Otherwise
    the call itself is not there or not permitted: one record alone shows which it is.
    """

    reason: str
    by_content: bool


class Outcome(StrEnum):
    """What became of one post of one record, for whoever counts them."""

    ACKNOWLEDGED = "acknowledged"
    UNCONFIRMED = "unconfirmed"
    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    REJECTED = "rejected"
    UNAUTHORIZED = "unauthorized"
    LIMITED = "limited"
    FAILED = "failed"
    BATCH_REFUSED = "batch_refused"
    """The batch it was in was refused as a whole: it is sent again with fewer others."""


BatchAnswer = Told | BatchUnclear | BatchRefused | Unauthorized | Limited | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """A record as GitHub gives it back: never with its status, name or version."""

    deployment_name: str
    digest: str
    logical_environment: str
    physical_environment: str
    cluster: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """
    The records that GitHub holds for a digest.

    `complete` says that these are all; otherwise nothing follows from one that is not among them.
    """

    records: tuple[ReadBack, ...]
    complete: bool


KnownAnswer = Known | NotFound | Forbidden | Rejected | Unauthorized | Limited | Failed


def outcome_of(answer: Answer | BatchRefused | BatchUnclear) -> Outcome:
    """Return what an answer is counted as."""
    match answer:
        case Acknowledged():
            outcome = Outcome.ACKNOWLEDGED
        case Unconfirmed() | BatchUnclear():
            outcome = Outcome.UNCONFIRMED
        case NotFound():
            outcome = Outcome.NOT_FOUND
        case Forbidden():
            outcome = Outcome.FORBIDDEN
        case Rejected():
            outcome = Outcome.REJECTED
        case Unauthorized():
            outcome = Outcome.UNAUTHORIZED
        case Limited():
            outcome = Outcome.LIMITED
        case Failed():
            outcome = Outcome.FAILED
        case BatchRefused():
            outcome = Outcome.BATCH_REFUSED
        case _:
            assert_never(answer)
    return outcome


def classify(reply: Reply, record: Record) -> Answer:
    """Return what a reply to the single post of `record` means."""
    status = reply.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return _judge_success(reply, record)
    if (stop := classify_stop(reply)) is not None:
        return stop
    if status == HTTPStatus.FORBIDDEN:
        return Forbidden(reason=f"{_reason(reply)}: {FORBIDDEN_HELP}")
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(reason=f"{_reason(reply)}: {NOT_FOUND_HELP}")
    if status in _MALFORMED:
        return Rejected(reason=_reason(reply))
    return _failed(reply)


def is_readable(reply: Reply) -> bool:
    """Tell whether the body of a reply is JSON, as all of GitHub's are, to its end."""
    return _json(reply) is not _UNREADABLE


def classify_batch(reply: Reply, records: Sequence[Record]) -> BatchAnswer:
    """Return what a reply to the cluster call with these records means."""
    status = reply.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return _judge_batch(reply, records)
    if (stop := classify_stop(reply)) is not None:
        return stop
    if status in _NOT_FOR_BATCHES:
        return BatchRefused(reason=_reason(reply), by_content=False)
    if status in _MALFORMED or status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return BatchRefused(reason=_reason(reply), by_content=True)
    return _failed(reply)


def classify_known(reply: Reply) -> KnownAnswer:
    """Return what a reply to the question for a digest's records means."""
    status = reply.status
    if status == HTTPStatus.OK:
        return _judge_known(reply)
    if (stop := classify_stop(reply)) is not None:
        return stop
    if status == HTTPStatus.FORBIDDEN:
        return Forbidden(reason=f"{_reason(reply)}: {FORBIDDEN_HELP}")
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(reason=f"{_reason(reply)}: {NOT_FOUND_HELP}")
    if status in _MALFORMED:
        return Rejected(reason=_reason(reply))
    return _failed(reply)


def clean_text(text: str, limit: int = MAX_REASON) -> str:
    """
    Return text from outside as one printable line of at most `limit` characters.

    What an address in it has of a user's name and password is left out.
    """
    text = without_user_info(text[: limit * 4])
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())[:limit]


def without_user_info(text: str) -> str:
    """Return a text without the user names and passwords of http and proxies' addresses in it."""
    return _USER_INFO.sub(r"\1", text) if "@" in text else text


def classify_stop(reply: Reply) -> Unauthorized | Limited | None:
    """Return the answer that is about everything that is sent, or None when it is none."""
    status = reply.status
    if status == HTTPStatus.TOO_MANY_REQUESTS or (
        status == HTTPStatus.FORBIDDEN and _tells_limit(reply)
    ):
        reason = _reason(reply)
        if status == HTTPStatus.FORBIDDEN and _LIMIT_WORDS.search(reason) is None:
            reason = f"{reason}, a limit"  # its headers say so, its words do not
        return Limited(reason=reason, pause_seconds=_pause_seconds(reply.headers))
    if status == HTTPStatus.UNAUTHORIZED:
        return Unauthorized(reason=_reason(reply))
    return None


def _failed(reply: Reply) -> Failed:
    # A server's error, or its impatience, says nothing of what it did before; any other status is
    # one that these calls do not give: something between us and GitHub spoke.
    status = reply.status
    landed = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT
    return Failed(reason=_reason(reply), landed=landed)


def _judge_success(reply: Reply, record: Record) -> Acknowledged | Unconfirmed:
    """
    Judge a success by its body, where it can be read; an unreadable one can't deny the record.

    GitHub gives no other success than 200 and 201 here: another one is somebody else's.
    """
    if reply.status not in {HTTPStatus.OK, HTTPStatus.CREATED}:
        return Unconfirmed(reason=_reason(reply))
    body = _json(reply)
    if body is _UNREADABLE or (record.deployment_name, record.digest) in _returned(body):
        return Acknowledged()
    return Unconfirmed(reason=f"HTTP {reply.status} without the record")


def _judge_batch(reply: Reply, records: Sequence[Record]) -> Told | BatchUnclear:
    """
    Judge each record by the body alone: the status says nothing of any one of them.

    A record that is returned and complained about at once is not acknowledged.
    """
    if reply.status not in _TELLING:
        return BatchUnclear(reason=_reason(reply))
    body = _json(reply) if _is_about(reply.body, records) else _UNREADABLE
    if not isinstance(body, Mapping) or not isinstance(body.get("deployment_records"), list):
        return BatchUnclear(reason=f"HTTP {reply.status} without a readable list of records")
    returned = _returned(body)
    causes = _causes(body)

    def judge(record: Record) -> Acknowledged | Unconfirmed | NotFound | Forbidden | Rejected:
        key = record.deployment_name, record.digest
        if key in causes:
            return _judge_cause(reply.status, causes[key])
        if key in returned:
            return Acknowledged()
        return Unconfirmed(reason=f"HTTP {reply.status} without the record")

    return Told(answers=tuple(map(judge, records)))


def _is_about(body: bytes, records: Sequence[Record]) -> bool:
    """
    Tell whether a body has no more parts than an answer about these records may have.

    Four megabytes of empty lists are a second of the loop's time and a hundred megabytes of memory
    when they are decoded. Text of ours that comes back may hold as many brackets as it likes.
    """
    most = sum(
        PARTS_OF_A_RECORD
        + len(record.deployment_name)
        + len(record.name)
        + sum(len(tag) + len(value) for tag, value in record.tags)
        for record in records
    )
    return sum(map(body.count, (b"[", b"{", b","))) <= most


def _judge_known(reply: Reply) -> Known | Failed:
    body = _json(reply)
    records = body.get("deployment_records") if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(records, list):
        reason = f"HTTP {reply.status} without a readable list of records"
        return Failed(reason=reason, landed=False)
    found = tuple(_read_back(each) for each in records if isinstance(each, Mapping))
    total = body.get("total_count")
    whole = len(found) == len(records) and (not isinstance(total, int) or total <= len(found))
    return Known(records=found, complete=whole)


def _read_back(raw: Mapping[str, object]) -> ReadBack:
    def text(field: str) -> str:
        value = raw.get(field)
        return value if isinstance(value, str) else ""

    return ReadBack(
        deployment_name=text("deployment_name"),
        digest=text("digest"),
        logical_environment=text("logical_environment"),
        physical_environment=text("physical_environment"),
        cluster=text("cluster"),
    )


def _judge_cause(status: int, cause: str) -> NotFound | Forbidden | Rejected:
    reason = f"HTTP {status} {clean_text(cause) or 'no cause given'}"
    match cause:
        case "not_found":
            return NotFound(reason=f"{reason}: {NOT_FOUND_HELP}")
        case "unauthorized":
            return Forbidden(reason=f"{reason}: {FORBIDDEN_HELP}")
        case _:
            return Rejected(reason=reason)


def _returned(body: object) -> frozenset[tuple[object, object]]:
    """Return (deployment_name, digest) of each record that an answer says GitHub holds."""
    records = body.get("deployment_records") if isinstance(body, Mapping) else None
    return frozenset(_keys(records))


def _causes(body: Mapping[str, object]) -> dict[tuple[object, object], str]:
    """Return why, by (deployment_name, digest), for each record that was not taken."""
    errors = body.get("errors")
    causes: dict[tuple[object, object], str] = {}
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, Mapping):
            cause = error.get("cause")
            for key in _keys([error.get("deployment")]):
                causes[key] = cause if isinstance(cause, str) else ""
    return causes


def _keys(records: object) -> Iterable[tuple[str, str]]:
    """Yield the key of each record of a list that is one; whatever else is in it is passed over."""
    for record in records if isinstance(records, list) else ():
        if isinstance(record, Mapping):
            name, digest = record.get("deployment_name"), record.get("digest")
            if isinstance(name, str) and isinstance(digest, str):
                yield name, digest


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


def server_time(reply: Reply) -> float | None:
    """Return what time the server has, in seconds since the epoch, or None when it does not say."""
    moment = _http_date(reply.headers.get("date", ""))
    return None if moment is None else moment.timestamp()


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
    body = _json(reply) if len(reply.body) <= MAX_MESSAGE else None
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
