"""What GitHub's replies to the cluster call mean, record by record, and over a real socket."""

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.support.builders import SCOPE, digest, record
from tracker.answers import (
    Acknowledged,
    BatchAnswer,
    BatchRefused,
    BatchUnclear,
    Failed,
    Forbidden,
    Limited,
    NotFound,
    Rejected,
    Reply,
    Told,
    Unauthorized,
    Unconfirmed,
    classify_batch,
)
from tracker.auth import FixedToken
from tracker.github import GitHub
from tracker.records import batch_payload
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import drops, garbles, truncates
from tracker.transport import Transport

RECORDS: Final = tuple(record(letter, name=f"shop/{letter}/app") for letter in "abcd")
ENTRIES: Final = [{"deployment_name": r.deployment_name, "digest": r.digest} for r in RECORDS]


def error(index: int, cause: object) -> dict[str, object]:
    return {"cause": cause, "deployment": ENTRIES[index]}


def answer(
    status: int,
    body: object = b"",
    headers: Mapping[str, str] | None = None,
    *,
    whole: bool = True,
) -> BatchAnswer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = Reply(status=status, headers=headers or {}, body=content, whole=whole)
    return classify_batch(reply, RECORDS)


def told(status: int, body: object) -> list[type]:
    found = answer(status, body)
    assert isinstance(found, Told)
    return [type(each) for each in found.answers]


@pytest.mark.parametrize("status", [200, 201, 207])
def test_each_record_is_judged_by_the_body_alone(status: int) -> None:
    every = {"deployment_records": ENTRIES}
    assert told(status, every) == [Acknowledged] * 4
    some = {
        "deployment_records": [ENTRIES[3], {"deployment_name": "x"}, None, 7],
        "errors": [error(1, "not_found"), error(0, "unauthorized"), "rubbish", {"cause": "x"}],
    }
    assert told(status, some) == [Forbidden, NotFound, Unconfirmed, Acknowledged]
    assert told(status, {"deployment_records": []}) == [Unconfirmed] * 4
    other = [entry | {"digest": digest("f")} for entry in ENTRIES]
    assert told(status, {"deployment_records": other}) == [Unconfirmed] * 4


@pytest.mark.parametrize("cause", ["no such cause", "", None, 7, ["not_found"], "\x1b[31m\n\u202e"])
def test_a_cause_nobody_thought_of_refuses_the_record(cause: object) -> None:
    found = answer(207, {"deployment_records": ENTRIES, "errors": [error(2, cause)]})
    assert isinstance(found, Told)
    assert [type(each) for each in found.answers] == [
        Acknowledged,
        Acknowledged,
        Rejected,
        Acknowledged,
    ]
    refused = found.answers[2]
    assert isinstance(refused, Rejected)
    told = {"no such cause": "no such cause", "": "no cause given", "\x1b[31m\n\u202e": "[31m"}
    assert refused.reason == f"HTTP 207 {told.get(str(cause), refused.reason[9:])}"
    assert refused.reason.isprintable()


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (b"", True),
        (b"<html>", True),
        (b"[]", True),
        (b"{}", True),
        (b'{"deployment_records": {}}', True),
        (b"[" * 100_000, True),
        (b"\xff\xfe", True),
        (json.dumps({"deployment_records": ENTRIES}).encode(), False),
    ],
)
def test_a_success_that_can_not_be_read_leaves_all_open(body: bytes, *, whole: bool) -> None:
    assert isinstance(answer(200, body, whole=whole), BatchUnclear)
    assert isinstance(answer(202, body, whole=whole), BatchUnclear)


@pytest.mark.parametrize("part", [b"[]", b"{}", b"1", b'""'])
def test_a_body_of_more_parts_than_an_answer_has_is_not_read(part: bytes) -> None:
    held = json.dumps({"deployment_records": ENTRIES}).encode()
    stuffed = held[:-1] + b',"x":[' + b",".join([part] * 10_000) + b"]}"
    assert isinstance(answer(200, stuffed), BatchUnclear)
    refused = answer(422, b'{"message":"no","x":[' + b",".join([part] * 100_000) + b"]}")
    assert isinstance(refused, BatchRefused)
    assert refused.reason.startswith("HTTP 422 ")


@pytest.mark.fault("G11")
@pytest.mark.parametrize("status", [200, 403, 422])
def test_megabytes_of_empty_lists_are_not_decoded(status: int) -> None:
    """Once, they were a second of the loop and a hundred megabytes."""
    content = b'{"deployment_records":[' + b"[]," * (5 * 2**18) + b"[]]}"
    tracemalloc.start()
    try:
        found = answer(status, content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found, BatchUnclear | BatchRefused)
    assert peak < 2**20


@given(
    tags=st.dictionaries(
        st.text(st.sampled_from("[{,a"), min_size=1, max_size=100),
        st.text(st.sampled_from("[{,a"), max_size=100),
        max_size=5,
    )
)
def test_what_tags_say_makes_no_answer_unreadable(tags: dict[str, str]) -> None:
    records = [replace(each, tags=tuple(sorted(tags.items()))) for each in RECORDS]
    refused = [
        {"cause": "not_found", "deployment": each.fields() | {"version": "1", "x": [1] * 4}}
        for each in records[2:]
    ]
    returned = [each.payload(SCOPE) | {"id": 7, "x": [1] * 4} for each in records[:2]]
    body = json.dumps({"deployment_records": returned, "errors": refused}).encode()
    found = classify_batch(Reply(status=207, headers={}, body=body, whole=True), records)
    assert isinstance(found, Told)
    assert [type(each) for each in found.answers] == [Acknowledged] * 2 + [NotFound] * 2


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        *((status, {}, BatchRefused) for status in (400, 403, 404, 405, 413, 422)),
        (401, {}, Unauthorized),
        (429, {}, Limited),
        (403, {"retry-after": "7"}, Limited),
        (403, {"x-ratelimit-remaining": "0"}, Limited),
        *(
            (status, {}, Failed)
            for status in (300, 301, 307, 402, 408, 409, 418, 500, 502, 503, 599)
        ),
        *((status, {}, BatchUnclear) for status in (202, 204, 206, 299)),
    ],
)
def test_every_other_status_is_about_the_batch(
    status: int, headers: dict[str, str], expected: type
) -> None:
    found = answer(status, {"deployment_records": ENTRIES, "message": "x"}, headers)
    assert type(found) is expected
    if isinstance(found, BatchRefused):
        assert found.by_content == (status in {400, 413, 422})
    if isinstance(found, Failed):
        assert found.landed == (status >= 500 or status == 408)


BODIES: Final = st.one_of(
    st.binary(max_size=40),
    st.fixed_dictionaries(
        {
            "deployment_records": st.lists(st.sampled_from([*ENTRIES, None, 1, {}]), max_size=6),
            "errors": st.lists(
                st.builds(
                    error,
                    st.integers(0, 3),
                    st.sampled_from(["not_found", "unauthorized", "?", None]),
                ),
                max_size=3,
            ),
            "message": st.text(max_size=30),
        }
    ).map(lambda body: json.dumps(body).encode()),
)


@given(status=st.integers(100, 999), body=BODIES, whole=st.booleans())
def test_only_what_comes_back_without_complaint_is_ever_acknowledged(
    status: int, body: bytes, *, whole: bool
) -> None:
    found = answer(status, body, whole=whole)
    assert isinstance(found, Told | BatchUnclear | BatchRefused | Unauthorized | Limited | Failed)
    if not isinstance(found, Told):
        assert found.reason.isprintable()
        return
    assert whole
    assert status in {200, 201, 207}
    content: dict[str, Any] = json.loads(body)
    blamed = [each["deployment"] for each in content.get("errors", [])]
    for entry, each in zip(ENTRIES, found.answers, strict=True):
        is_held = entry in content["deployment_records"] and entry not in blamed
        assert isinstance(each, Acknowledged) == is_held


# Over a socket.


async def test_a_batch_is_posted_as_the_contract_says() -> None:
    async with (
        SimulatedGitHub() as github,
        Transport(base_url=github.url, user_agent="test") as transport,
    ):
        ours = GitHub(
            transport=transport, scope=SCOPE, tokens=FixedToken(SecretStr("sandbox-token"))
        )
        records = [
            replace(record(name=f"shop/{number:04}/app"), version=None if number % 2 else "v1")
            for number in range(1000)
        ]
        found = await ours.send_batch(list(reversed(records)))
        assert found == Told(answers=(Acknowledged(),) * 1000)
        (post,) = github.posts()
        assert post.path == "/orgs/acme/artifacts/metadata/deployment-record/cluster/c1"
        assert post.names == tuple(each.deployment_name for each in records)
        assert post.errors == ()
        assert json.loads(post.body) == batch_payload(records, SCOPE)


async def test_a_part_of_a_batch_is_refused_with_its_cause() -> None:
    async with (
        SimulatedGitHub() as github,
        Transport(base_url=github.url, user_agent="test") as transport,
    ):
        ours = GitHub(
            transport=transport, scope=SCOPE, tokens=FixedToken(SecretStr("sandbox-token"))
        )
        github.unknown.add(digest("b"))
        github.unauthorized.add(digest("d"))
        found = await ours.send_batch(RECORDS)
        assert isinstance(found, Told)
        kinds = [type(each) for each in found.answers]
        assert kinds == [Acknowledged, NotFound, Acknowledged, Forbidden]
        assert "GitHub knows no artifact" in str(found.answers[1])
        for behaviour, expected in (
            (drops(applied=True), Failed),
            (truncates(), BatchUnclear),
            (garbles(), BatchUnclear),
        ):
            script = github.script(behaviour, times=1)
            assert isinstance(await ours.send_batch(RECORDS), expected)
            script.stop()


def test_a_scope_leaves_out_what_it_does_not_name() -> None:
    scope = replace(SCOPE, physical_environment="", logical_environment="")
    payload = batch_payload(RECORDS[:1], scope)
    assert payload.keys() == {
        "logical_environment",
        "deployments",
        "partial_success",
        "return_records",
    }
