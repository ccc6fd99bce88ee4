"""What GitHub's replies to the question for a digest's records mean."""

import json
from collections.abc import Mapping

import pytest

from tests.support.builders import digest
from tracker.answers import (
    Failed,
    Forbidden,
    Known,
    Limited,
    NotFound,
    Rejected,
    Reply,
    Unauthorized,
    classify_known,
)


def reply(status: int, body: object, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a reply with a JSON body."""
    content = json.dumps(body).encode()
    return Reply(status=status, headers=headers or {}, body=content, whole=True)


def held(*names: str, total: object = None, **more: object) -> dict[str, object]:
    records = [{"deployment_name": name, "digest": digest(), "id": 7} for name in names]
    return {
        "total_count": len(names) if total is None else total,
        "deployment_records": records,
    } | more


@pytest.mark.parametrize(
    ("body", "names", "complete"),
    [
        pytest.param(held(), [], True, id="none"),
        pytest.param(held("a", "b"), ["a", "b"], True, id="all"),
        pytest.param(held("a", total=2), ["a"], False, id="not-all"),
        pytest.param(held("a", total="one"), ["a"], True, id="no-total"),
        pytest.param({"deployment_records": [{}, None, 7]}, [""], False, id="junk"),
        pytest.param(
            {"deployment_records": [{"deployment_name": 7, "cluster": None}]},
            [""],
            True,
            id="types",
        ),
    ],
)
def test_what_is_held_of_a_digest_is_read(
    body: object, names: list[str], *, complete: bool
) -> None:
    found = classify_known(reply(200, body))
    assert isinstance(found, Known)
    assert [each.deployment_name for each in found.records] == names
    assert found.complete is complete


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (422, Rejected),
        (500, Failed),
        (302, Failed),
        (204, Failed),
    ],
)
def test_any_other_status_tells_of_no_record(status: int, expected: type) -> None:
    assert type(classify_known(reply(status, held("a")))) is expected


def test_a_limit_on_questions_is_a_limit() -> None:
    assert classify_known(reply(429, {}, {"retry-after": "7"})) == Limited(
        reason="HTTP 429 Too Many Requests", pause_seconds=7
    )


@pytest.mark.parametrize("body", [b"", b"[]", b'{"deployment_records": {}}', b"{" * 100_000])
def test_an_unreadable_answer_says_nothing_of_what_is_held(body: bytes) -> None:
    said = Reply(status=200, headers={}, body=body, whole=True)
    assert isinstance(classify_known(said), Failed)
    cut = Reply(status=200, headers={}, body=json.dumps(held("a")).encode(), whole=False)
    assert isinstance(classify_known(cut), Failed)
