"""Records, their payload and the template of their key."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import SCOPE, TEMPLATE, digest, image, record
from tracker.annotations import Marks
from tracker.records import MAX_DEPLOYMENT_NAME, Record, Scope, Status, check_template, render

BARE = Scope(org="acme", logical_environment="", physical_environment="", cluster="")


def test_a_payload_has_the_fields_of_the_contract() -> None:
    assert record().payload(SCOPE) == {
        "name": "ghcr.io/acme/app",
        "digest": digest(),
        "version": "v1",
        "status": "deployed",
        "logical_environment": "prod",
        "physical_environment": "eu",
        "cluster": "c1",
        "deployment_name": "shop/web/app",
    }


def test_what_is_empty_is_left_out_but_for_what_github_requires() -> None:
    assert record(version=None).payload(BARE) == {
        "name": "ghcr.io/acme/app",
        "digest": digest(),
        "status": "deployed",
        "logical_environment": "",
        "deployment_name": "shop/web/app",
    }


def test_a_decommission_says_what_it_takes_back() -> None:
    deployed = Record.deployed("shop/web/app", image("b"))
    gone = deployed.decommissioned()
    assert gone.payload(SCOPE) == deployed.payload(SCOPE) | {"status": "decommissioned"}
    assert gone.decommissioned() == gone
    assert gone != deployed
    assert gone.status is Status.DECOMMISSIONED


MARKED = Record.deployed(
    "shop/web/app",
    image(),
    Marks(tags=(("team", "x"),), risks=("sensitive-data",), repository="shop"),
)


def test_what_is_said_about_a_deployment_goes_with_it_to_its_end() -> None:
    said = {
        "tags": {"team": "x"},
        "runtime_risks": ["sensitive-data"],
        "github_repository": "shop",
    }
    assert MARKED.payload(SCOPE) == record().payload(SCOPE) | said
    assert MARKED.decommissioned().payload(SCOPE).items() >= said.items()
    assert record() != MARKED


def test_the_repository_of_an_annotation_counts_before_that_of_a_rule() -> None:
    ruled = replace(image(), repository="by-rule")
    assert Record.deployed("x", ruled).repository == "by-rule"
    assert Record.deployed("x", ruled, Marks(repository="own")).repository == "own"


def test_what_is_said_no_more_is_said_to_be_empty_once() -> None:
    """Left out, it might stand for ever: nobody can look."""
    bare = record().after([None, MARKED.decommissioned()])
    assert bare == record()
    assert bare.payload(SCOPE) == record().payload(SCOPE) | {"tags": {}, "runtime_risks": []}
    # Posted once more to settle it, it says so again; the one after it does not.
    assert bare.after([bare]).payload(SCOPE) == bare.payload(SCOPE)
    assert record("b").after([bare]).payload(SCOPE) == record("b").payload(SCOPE)
    assert MARKED.after([MARKED]).emptied == frozenset()


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (TEMPLATE, None),
        ("{{containerName}}", None),
        ("{single} {{namespace}}", None),
        ("", "no placeholder"),
        ("static", "no placeholder"),
        ("{{Namespace}}", "unknown placeholder {{Namespace}}"),
        ("{{ namespace }}", "unknown placeholder"),
        ("{{}}", "unknown placeholder"),
        ("{{{namespace}}}", "unknown placeholder"),
        ("{{namespace}}{{", "belong to no placeholder"),
        ("}}{{namespace}}", "belong to no placeholder"),
        ("{{namespace}}\n", "control characters"),
        ("\x1b[1m{{namespace}}", "control characters"),
        ("x" * 256 + "{{namespace}}", "no room"),
        ("x" * 255 + "{{namespace}}", None),
    ],
)
def test_a_template_is_checked_before_it_is_used(template: str, complaint: str | None) -> None:
    found = check_template(template)
    if complaint is None:
        assert found is None
    else:
        assert found is not None
        assert complaint in found


def test_what_is_put_in_is_not_read_as_a_placeholder() -> None:
    made = render(
        TEMPLATE, namespace="{{containerName}}", workload="{{namespace}}", container="\\1"
    )
    assert made == "{{containerName}}/{{namespace}}/\\1"


@pytest.mark.parametrize("length", [MAX_DEPLOYMENT_NAME, MAX_DEPLOYMENT_NAME + 1])
def test_a_name_that_is_too_long_is_no_name(length: int) -> None:
    made = render("{{namespace}}", namespace="n" * length, workload="", container="")
    assert made == ("n" * length if length == MAX_DEPLOYMENT_NAME else None)


@given(text=st.text(max_size=40), parts=st.tuples(st.text(), st.text(), st.text()))
def test_a_template_that_was_found_good_renders_anything(
    text: str, parts: tuple[str, str, str]
) -> None:
    for template in (text, f"{text}{{{{namespace}}}}", f"{{{{containerName}}}}{text}"):
        if check_template(template) is None:
            namespace, workload, container = parts
            made = render(template, namespace=namespace, workload=workload, container=container)
            assert made is None or len(made) <= MAX_DEPLOYMENT_NAME


@given(name=st.text(min_size=1), version=st.none() | st.text(min_size=1))
def test_a_payload_is_json_whatever_text_it_carries(name: str, version: str | None) -> None:
    payload = record(name=name, version=version).payload(SCOPE)
    assert json.loads(json.dumps(payload)) == payload
    assert "" not in payload.values()
