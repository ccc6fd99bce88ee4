"""What people say about a deployment: what is used of it, and that nothing in it does harm."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import image
from tracker.annotations import (
    MAX_TAG_TEXT,
    MAX_TAGS,
    NO_MARKS,
    PREFIX,
    RISKS,
    Marks,
    Problem,
    read_marks,
)
from tracker.records import Record
from tracker.sandbox.contract import read_single

pytestmark = pytest.mark.fault("W11")


def marks(**said: str) -> Marks:
    """Read annotations; an underscore stands for a hyphen."""
    return read_marks({PREFIX + word.replace("_", "-"): text for word, text in said.items()})


def test_what_is_not_ours_says_nothing() -> None:
    strangers = {"a": "b", "github.com/team": "x", "metadata.github.com": "y", "x/" + PREFIX: "z"}
    assert read_marks(strangers) == NO_MARKS


@pytest.mark.parametrize(
    ("text", "ignored"),
    [("true", True), ("false", False), ("True", None), (" true", None), ("yes", None), ("", None)],
)
def test_only_true_and_false_say_whether_to_ignore(text: str, ignored: bool | None) -> None:  # noqa: FBT001 - a parameter of the table
    assert marks(ignore=text).ignored is ignored


def test_any_other_word_is_a_tag() -> None:
    said = marks(team="payments", tier="gold é", ignore="false")
    assert said.tags == (("team", "payments"), ("tier", "gold é"))
    assert not said.problems


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("", "x", id="no-name"),
        pytest.param("team", "", id="empty"),
        pytest.param("team", "  ", id="blank"),
        pytest.param("team", "x" * (MAX_TAG_TEXT + 1), id="too-long"),
        pytest.param("t" * (MAX_TAG_TEXT + 1), "x", id="name-too-long"),
        pytest.param("team", "a\nb", id="line-break"),
        pytest.param("team", "a\x00b", id="nul"),
        pytest.param("team", "\x1b[31mred", id="ansi"),
        pytest.param("team", "a\u202eb", id="bidi"),
        pytest.param("team", "a\u2028b", id="line-separator"),
        pytest.param("team", "a\ud800b", id="half-a-character"),
    ],
)
def test_a_tag_that_can_not_be_used_is_left_out_alone_and_told(name: str, value: str) -> None:
    said = read_marks({PREFIX + name: value, PREFIX + "tier": "x" * MAX_TAG_TEXT})
    assert said.tags == (("tier", "x" * MAX_TAG_TEXT),)
    assert said.problems == {Problem.TAG}


def test_of_many_tags_the_first_by_name_are_used() -> None:
    said = marks(**{f"tag{number}": "x" for number in reversed(range(9))})
    assert [name for name, _ in said.tags] == [f"tag{number}" for number in range(MAX_TAGS)]
    assert said.problems == {Problem.MANY_TAGS}


@pytest.mark.parametrize(
    ("text", "risks", "problems"),
    [
        ("internet-exposed", ("internet-exposed",), set()),
        (" Sensitive-Data ,internet-exposed,", ("internet-exposed", "sensitive-data"), set()),
        ("sensitive-data,sensitive-data", ("sensitive-data",), set()),
        (",".join(RISKS), tuple(sorted(RISKS)), set()),
        ("", (), set()),
        ("sensitive-data,everything", ("sensitive-data",), {Problem.RISK}),
        ("everything", None, {Problem.RISK}),
        ("sensitive-data," * 500, None, {Problem.RISK}),
    ],
)
def test_risks_are_those_that_github_knows(
    text: str, risks: tuple[str, ...] | None, problems: set[Problem]
) -> None:
    said = marks(runtime_risks=text)
    assert said.risks == risks
    assert said.problems == problems


@pytest.mark.parametrize("text", ["shop", "Shop_1.x-y", " shop ", "x" * 100, ".github"])
def test_a_repository_is_named_by_its_bare_name(text: str) -> None:
    assert marks(github_repository=text).repository == text.strip()


@pytest.mark.parametrize("text", ["", "acme/shop", "https://github.com/acme/shop", "x" * 101, ".."])
def test_what_is_no_repository_is_left_out_and_told(text: str) -> None:
    said = marks(github_repository=text)
    assert said.repository is None
    assert said.problems == {Problem.REPOSITORY}


def test_the_lower_one_wins_word_by_word() -> None:
    pod = marks(team="pod", ignore="false", runtime_risks="")
    workload = marks(
        team="workload",
        tier="gold",
        ignore="true",
        runtime_risks="sensitive-data",
        github_repository="shop",
    )
    assert pod.over(workload) == Marks(
        ignored=False, tags=(("team", "pod"), ("tier", "gold")), risks=(), repository="shop"
    )
    assert pod.over(NO_MARKS) == pod
    assert NO_MARKS.over(workload) == workload


def test_tags_of_both_together_are_capped() -> None:
    both = marks(a="1", b="1", c="1").over(marks(d="2", e="2", f="2", a="2"))
    assert both.tags == (("a", "1"), ("b", "1"), ("c", "1"), ("d", "2"), ("e", "2"))
    assert both.problems == {Problem.MANY_TAGS}


def test_a_word_counts_however_much_else_there_is() -> None:
    said = read_marks(
        {f"{PREFIX}a{number:04}": "x" for number in range(5000)}
        | {
            PREFIX + "ignore": "true",
            PREFIX + "runtime-risks": "sensitive-data",
        }
    )
    assert said == Marks(
        ignored=True,
        tags=tuple((f"a{number:04}", "x") for number in range(MAX_TAGS)),
        risks=("sensitive-data",),
        problems=frozenset({Problem.MANY_TAGS}),
    )


# Whatever a pod's author writes, what leaves is valid, capped JSON.

WORDS = st.sampled_from(["ignore", "runtime-risks", "github-repository", "team"])
ANNOTATIONS = st.dictionaries(
    st.one_of(
        st.text().map(lambda text: PREFIX + text),
        WORDS.map(lambda text: PREFIX + text),
        st.text(),
    ),
    st.one_of(st.text(), st.sampled_from(sorted(RISKS)), st.none(), st.integers()),
    max_size=12,
)


@given(pod=ANNOTATIONS, workload=ANNOTATIONS)
def test_any_annotations_end_as_a_record_that_github_takes(
    pod: dict[str, Any], workload: dict[str, Any]
) -> None:
    said = read_marks(pod).over(read_marks(workload))
    record = Record.deployed("shop/web/app", image(), said)
    for each in (record, record.decommissioned()):
        body = json.loads(json.dumps({**each.fields(), "logical_environment": "prod"}).encode())
        (deployment,) = read_single(body, org="acme").deployments
        assert len(deployment.tags) <= MAX_TAGS
        for tag, text in deployment.tags:
            assert len(tag) <= MAX_TAG_TEXT
            assert len(text) <= MAX_TAG_TEXT
            assert (tag + text).isprintable()


def hostile(count: int, size: int) -> dict[str, str]:
    """Return that many annotations of ours, with NULs, colours and lines that run backwards."""
    text = ("\x00\x1b[31m\u202e\n" * size)[:size]
    return {f"{PREFIX}{number:05}\u202e": text for number in range(count)}


def test_hostile_annotations_cost_no_more_than_harmless_ones_of_another_prefix() -> None:
    # Of the processor's time, the least of several: ratios, since machines differ.
    def cost(annotations: dict[str, str]) -> float:
        best = float("inf")
        for _ in range(7):
            began = time.process_time()
            for _ in range(10):
                read_marks(annotations)
            best = min(best, time.process_time() - began)
        return best

    ours = hostile(5000, 50)
    harmless = {f"example.com/{number:05}": "x" * 50 for number in range(5000)}
    assert read_marks(ours).problems == {Problem.TAG, Problem.MANY_TAGS}
    assert cost(ours) < 15 * cost(harmless)
    one_large = {PREFIX + "team": "x" * 2**18}
    assert read_marks(one_large) == Marks(problems=frozenset({Problem.TAG}))
    assert cost(one_large) < cost(harmless)
