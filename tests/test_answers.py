"""What GitHub's replies to a single post mean."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import digest, record
from tracker.answers import (
    MAX_REASON,
    Acknowledged,
    Answer,
    Failed,
    Forbidden,
    Limited,
    NotFound,
    Rejected,
    Reply,
    Unauthorized,
    Unconfirmed,
    classify,
    clean_text,
    server_time,
    without_user_info,
)

pytestmark = pytest.mark.fault("G1", "G7")

RECORD = record()
HELD = {"deployment_name": RECORD.deployment_name, "digest": RECORD.digest, "id": 1}
NOW = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
DATE = format_datetime(NOW, usegmt=True)
EPOCH_SECONDS = int(NOW.timestamp())


def body(*records: object, **more: object) -> bytes:
    return json.dumps({"total_count": len(records), "deployment_records": records, **more}).encode()


def answer(
    status: int,
    content: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    whole: bool = True,
) -> Answer:
    return classify(Reply(status=status, headers=headers or {}, body=content, whole=whole), RECORD)


def said(message: str) -> bytes:
    return json.dumps({"message": message}).encode()


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    ("content", "whole"),
    [
        pytest.param(body(HELD), True, id="the-record"),
        pytest.param(body({"deployment_name": "x", "digest": digest("b")}, HELD), True, id="among"),
        pytest.param(b"", True, id="empty"),
        pytest.param(b"<html>ok</html>", True, id="html"),
        pytest.param(body(HELD)[:-1], True, id="not-json"),
        pytest.param(body(), False, id="cut-off"),
        pytest.param(b"[" * 100_000, True, id="deep"),
        pytest.param(b'{"a":' * 100_000, True, id="deep-objects"),
        pytest.param(b"\xff\xfe\x00", True, id="not-utf8"),
        pytest.param(b"1" * 5000, True, id="huge-number"),
        pytest.param(b"\x1f\x8b\x08\x00", True, id="gzip"),
    ],
)
def test_a_success_with_the_record_or_an_unreadable_body_acknowledges(
    status: int, content: bytes, *, whole: bool
) -> None:
    assert answer(status, content, whole=whole) == Acknowledged()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(body(), id="no-records"),
        pytest.param(body(HELD | {"digest": digest("b")}), id="another-digest"),
        pytest.param(body(HELD | {"deployment_name": "other"}), id="another-name"),
        pytest.param(body(None, 1, "x", [], {}), id="rubbish-records"),
        pytest.param(body({"digest": HELD["digest"]}), id="a-digest-without-a-name"),
        pytest.param(body(HELD | {"digest": ["x"]}), id="a-digest-that-is-none"),
        pytest.param(b"{}", id="no-list"),
        pytest.param(b'{"deployment_records": {"deployment_name": 1}}', id="no-list-but-object"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"ok"', id="text"),
        pytest.param(b'{"deployment_records": null, "x": "\\ud800"}', id="lone-surrogate"),
    ],
)
def test_a_readable_success_without_the_record_acknowledges_nothing(content: bytes) -> None:
    assert isinstance(answer(200, content), Unconfirmed)
    assert isinstance(answer(201, content), Unconfirmed)


@pytest.mark.parametrize("status", [202, 203, 204, 205, 206, 207, 208, 226, 299])
def test_any_other_success_acknowledges_nothing(status: int) -> None:
    assert isinstance(answer(status, body(HELD)), Unconfirmed)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (422, Rejected),
        (429, Limited),
        *((status, Failed) for status in (100, 101, 300, 301, 302, 303, 304, 307, 308)),
        *((status, Failed) for status in (402, 405, 406, 408, 409, 410, 413, 418, 421, 425, 499)),
        *((status, Failed) for status in (500, 501, 502, 503, 504, 520, 599, 600, 999)),
    ],
)
def test_every_other_status_has_its_answer(status: int, kind: type[Answer]) -> None:
    assert type(answer(status, body(HELD))) is kind


@given(status=st.integers(100, 999), content=st.binary(max_size=30), whole=st.booleans())
def test_only_200_and_201_ever_acknowledge(status: int, content: bytes, *, whole: bool) -> None:
    found = answer(status, content, whole=whole)
    assert (status in {200, 201}) or not isinstance(found, Acknowledged)
    if not isinstance(found, Acknowledged):
        assert found.reason.startswith(f"HTTP {status}")
        assert found.reason.isprintable()


@pytest.mark.parametrize(
    ("status", "landed"),
    [(302, False), (405, False), (408, True), (500, True), (503, True), (504, True), (599, True)],
)
def test_a_failure_tells_whether_the_record_may_have_landed(status: int, *, landed: bool) -> None:
    found = answer(status)
    assert isinstance(found, Failed)
    assert found.landed == landed


def later(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(EPOCH_SECONDS + seconds, tz=UTC), usegmt=True)


EXHAUSTED = {"x-ratelimit-remaining": "0", "date": DATE}


@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"retry-after": "2"}, 2, id="seconds"),
        pytest.param({"retry-after": " 30 "}, 30, id="blanks"),
        pytest.param({"retry-after": "0"}, 1, id="zero"),
        pytest.param({"retry-after": "-5"}, 1, id="negative"),
        pytest.param({"retry-after": "1000000000000"}, 3600, id="huge"),
        pytest.param({"retry-after": "9" * 5000}, 60, id="absurd"),
        pytest.param({"retry-after": "abc"}, 60, id="rubbish"),
        pytest.param({"retry-after": "1.5"}, 60, id="fraction"),
        pytest.param({"retry-after": "1e9"}, 60, id="exponent"),
        pytest.param({"retry-after": "nan"}, 60, id="nan"),
        pytest.param({"retry-after": "--5"}, 60, id="two-signs"),
        pytest.param({"retry-after": "\u0663"}, 60, id="other-digits"),
        pytest.param({"retry-after": later(90), "date": DATE}, 90, id="date"),
        pytest.param({"retry-after": later(-90), "date": DATE}, 1, id="past-date"),
        pytest.param({"retry-after": later(90_000), "date": DATE}, 3600, id="far-date"),
        pytest.param({"retry-after": later(90)}, 60, id="date-without-date"),
        pytest.param({"retry-after": later(90), "date": "?"}, 60, id="date-with-bad-date"),
        pytest.param({"retry-after": "5"} | EXHAUSTED, 5, id="retry-after-before-reset"),
        pytest.param({"x-ratelimit-reset": str(EPOCH_SECONDS + 70)} | EXHAUSTED, 70, id="reset"),
        pytest.param({"x-ratelimit-reset": str(EPOCH_SECONDS - 9)} | EXHAUSTED, 1, id="past-reset"),
        pytest.param({"x-ratelimit-reset": "9" * 14} | EXHAUSTED, 3600, id="far-reset"),
        pytest.param({"x-ratelimit-reset": "soon"} | EXHAUSTED, None, id="bad-reset"),
        pytest.param({"x-ratelimit-remaining": "0"}, None, id="no-reset"),
        pytest.param(
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9" * 10}, None, id="no-clock"
        ),
        pytest.param({"retry-after": ""}, None, id="empty"),
    ],
)
def test_a_limit_says_how_long_to_wait(
    status: int, headers: Mapping[str, str], seconds: float | None
) -> None:
    """The server's own Date is the clock: ours may be a day off."""
    found = answer(status, said("slow down"), headers)
    assert isinstance(found, Limited)
    assert found.pause_seconds == seconds


@pytest.mark.parametrize("remaining", ["170", "-1", "", "00"])
def test_a_limit_that_is_not_used_up_is_not_waited_for(remaining: str) -> None:
    headers = {
        "x-ratelimit-remaining": remaining,
        "x-ratelimit-reset": str(EPOCH_SECONDS + 70),
        "date": DATE,
    }
    found = answer(429, said("slow down"), headers)
    assert isinstance(found, Limited)
    assert found.pause_seconds is None


@pytest.mark.parametrize(
    ("message", "limited"),
    [
        ("You have exceeded a secondary rate limit.", True),
        ("API rate limit exceeded for installation.", True),
        ("You have triggered an abuse detection mechanism.", True),
        ("TOO MANY REQUESTS", True),
        ("Resource not accessible by personal access token", False),
        ("", False),
    ],
)
def test_a_403_is_a_limit_when_its_message_says_so(message: str, *, limited: bool) -> None:
    found = answer(403, said(message), {"x-ratelimit-remaining": "170"})
    assert isinstance(found, Limited if limited else Forbidden)
    assert not isinstance(found, Limited) or found.pause_seconds is None


@pytest.mark.parametrize("status", [400, 401, 404, 405, 422, 500, 503])
def test_no_other_status_is_a_limit_whatever_it_says(status: int) -> None:
    headers = {"retry-after": "5", "x-ratelimit-remaining": "0"}
    found = answer(status, said("API rate limit exceeded"), headers)
    assert not isinstance(found, Limited | Forbidden)


@pytest.mark.parametrize(
    ("status", "message", "headers", "reason"),
    [
        (403, "no", {"retry-after": "5"}, "HTTP 403 no, a limit"),
        (403, "no", {"x-ratelimit-remaining": "0"}, "HTTP 403 no, a limit"),
        (403, "rate limit exceeded", {"retry-after": "5"}, "HTTP 403 rate limit exceeded"),
        (429, "no", {"retry-after": "5"}, "HTTP 429 no"),
    ],
)
def test_a_limit_is_told_as_one(
    status: int, message: str, headers: Mapping[str, str], reason: str
) -> None:
    found = answer(status, said(message), headers)
    assert isinstance(found, Limited)
    assert found.reason == reason


def test_a_server_s_time_is_that_of_its_header() -> None:
    def told(date: str) -> float | None:
        return server_time(Reply(status=200, headers={"date": date}, body=b"", whole=True))

    assert told("Thu, 01 Jan 1970 00:01:00 GMT") == 60.0
    assert told("Thu, 01 Jan 1970 00:01:00 -0000") == 60.0, "no zone is UTC"
    assert told("Thu, 01 Jan 1970 01:01:00 +0100") == 60.0
    assert told("once") is None


HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset", "date"]),
    st.one_of(
        st.text(max_size=30),
        st.integers().map(str),
        st.just(DATE),
        st.text(st.sampled_from("MonJan 0123456789:,+-GMT()\t."), max_size=40),
    ),
)


@given(status=st.sampled_from([403, 429]), headers=HEADERS)
def test_any_headers_give_a_pause_between_a_second_and_an_hour(
    status: int, headers: Mapping[str, str]
) -> None:
    found = answer(status, b"", headers)
    if isinstance(found, Limited) and found.pause_seconds is not None:
        assert 1 <= found.pause_seconds <= 3600


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (said("Validation failed"), "HTTP 422 Validation failed"),
        (b"", "HTTP 422 Unprocessable Entity"),
        (said("a\nFAILED CREATED\x1b[31m\u202e b"), "HTTP 422 a FAILED CREATED [31m b"),
        (said("\ud800"), "HTTP 422 Unprocessable Entity"),
        (b'{"message": ["no", "text"]}', "HTTP 422 Unprocessable Entity"),
        (b"[" * 100_000, "HTTP 422 Unprocessable Entity"),
    ],
)
def test_a_reason_is_one_line_with_githubs_own_words(content: bytes, reason: str) -> None:
    found = answer(422, content)
    assert isinstance(found, Rejected)
    assert found.reason in {reason, reason.replace("Entity", "Content")}


@given(text=st.text(st.characters(), max_size=600), limit=st.integers(1, 300))
def test_clean_text_is_one_printable_line(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit)
    assert cleaned.isprintable()
    assert len(cleaned) <= limit
    assert cleaned.splitlines() in ([], [cleaned])
    assert clean_text(cleaned, limit) == cleaned.strip()


def test_a_long_message_is_cut() -> None:
    assert clean_text("x" * 10_000) == "x" * MAX_REASON


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("HTTPS://me:pw@host/x, http://u@h", "HTTPS://host/x, http://h"),
        ("socks5h://me:pw@host:1080 socks://a:b@c", "socks5h://host:1080 socks://c"),
        ("see 'https://host' or mail a@b", "see 'https://host' or mail a@b"),
    ],
)
def test_user_names_are_those_of_addresses(text: str, told: str) -> None:
    assert without_user_info(text) == told


def test_a_long_text_takes_no_longer_for_what_it_is_made_of() -> None:
    """A megabyte of what a hostile server may send: it is read once, or this never ends."""
    for part in ("socks", "socks5://", "http://", "https:/", "http://a:", "a"):
        text = part * (10**6 // len(part))
        assert without_user_info(f"{text} @") == f"{text} @"


def test_clean_text_holds_no_password_of_an_address() -> None:
    url = "url='http://me:c@nary\n%s@proxy.example.com:3128'"
    assert clean_text(f"407, {url}") == "407, url='http://proxy.example.com:3128'"
    assert clean_text(f"https://ghcr.io/app@sha256:0 {url}", 42).endswith(" url='http://p")
