"""What is known of workloads: that they are there, what they say, and which names they keep."""

import pytest

from tests.support.builders import TEMPLATE, workload
from tracker.annotations import NO_MARKS, Marks
from tracker.catalog import Catalog, Kept, Known, Presence, keeps
from tracker.workloads import Owner, Workload

WEB = workload("web")
API = workload("api", namespace="other")
JOB = workload("import-1", kind="Job")
NIGHTLY = workload("nightly", kind="CronJob")
ROLLOUT = Workload(api_version="argoproj.io/v1alpha1", kind="Rollout", namespace="shop", name="web")
NAME = "shop/web/app"
THERE = Known(controller=None, terminating=False, marks=NO_MARKS)
GOING = Known(controller=None, terminating=True, marks=NO_MARKS)
IGNORED = Known(controller=None, terminating=False, marks=Marks(ignored=True))


def of_cronjob(name: str = "nightly", api_version: str = "batch/v1") -> Known:
    owner = Owner(api_version=api_version, kind="CronJob", name=name)
    return Known(controller=owner, terminating=False, marks=NO_MARKS)


def catalog(**lists: dict[Workload, Known]) -> Catalog:
    """Return a catalog after complete lists of these kinds."""
    made = Catalog(enabled=True)
    for kind, found in lists.items():
        made.take_list(kind, found, namespace=None)
    return made


def test_where_workloads_may_not_be_read_none_is_covered() -> None:
    disabled = Catalog(enabled=False)
    assert disabled.presence(WEB) is Presence.UNCOVERED
    assert disabled.marks(WEB) == NO_MARKS
    assert not disabled.is_news(WEB)
    assert not keeps(disabled, WEB, "app", NAME, template=TEMPLATE)


def test_a_kind_of_another_group_is_not_covered() -> None:
    found = catalog(Job={})
    volcano = Workload(
        api_version="batch.volcano.sh/v1alpha1", kind="Job", namespace="shop", name="train"
    )
    assert found.presence(volcano) is Presence.UNCOVERED
    assert found.presence(ROLLOUT) is Presence.UNCOVERED
    assert found.marks(ROLLOUT) == NO_MARKS
    assert not found.is_news(ROLLOUT)


def test_what_no_list_showed_is_unknown_until_a_complete_one_lacks_it() -> None:
    found = Catalog(enabled=True)
    assert found.presence(WEB) is Presence.UNKNOWN
    assert found.marks(WEB) is None
    found.take_list("Deployment", {WEB: THERE}, namespace="shop")
    assert found.presence(WEB) is Presence.THERE
    assert found.presence(API) is Presence.UNKNOWN, "the list was of another namespace"
    found.take_list("Deployment", {WEB: GOING}, namespace=None)
    assert found.presence(WEB) is Presence.GOING
    assert found.presence(API) is Presence.GONE
    assert found.marks(API) == NO_MARKS
    assert found.presence(JOB) is Presence.UNKNOWN, "the list was of another kind"


def test_a_list_of_a_namespace_says_nothing_of_others() -> None:
    found = catalog(Deployment={WEB: THERE, API: THERE})
    found.take_list("Deployment", {}, namespace="shop")
    assert found.presence(WEB) is Presence.GONE
    assert found.presence(API) is Presence.THERE


def test_a_workload_is_news_once_and_only_after_a_list() -> None:
    found = Catalog(enabled=True)
    assert not found.is_news(WEB), "the list will tell"
    found.take_list("Deployment", {}, namespace=None)
    assert found.is_news(WEB)
    found.take(WEB, None)
    assert not found.is_news(WEB)
    assert found.presence(WEB) is Presence.GONE
    found.take(WEB, THERE)
    assert found.presence(WEB) is Presence.THERE


def test_a_workload_that_could_not_be_read_is_unknown_until_the_next_list() -> None:
    found = catalog(Deployment={})
    found.miss(WEB)
    assert not found.is_news(WEB)
    assert found.presence(WEB) is Presence.UNKNOWN
    assert found.marks(WEB) is None
    found.take_list("Deployment", {}, namespace="shop")
    assert found.presence(WEB) is Presence.GONE


def test_what_was_asked_for_is_forgotten_with_its_pods() -> None:
    found = catalog(Deployment={})
    found.take(WEB, None)
    found.miss(API)
    found.prune({API})
    assert found.is_news(WEB)
    assert not found.is_news(API)
    found.prune(())
    assert found.presence(API) is Presence.GONE


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param(of_cronjob(), NIGHTLY, id="its-cronjob"),
        pytest.param(of_cronjob(api_version="x/v1"), JOB, id="another-cronjob"),
        pytest.param(THERE, JOB, id="its-own"),
    ],
)
def test_a_job_belongs_to_the_cronjob_that_controls_it(known: Known, expected: Workload) -> None:
    assert catalog(Job={JOB: known}).resolve(JOB) == expected


def test_only_a_job_is_part_of_another_workload() -> None:
    assert catalog(Deployment={WEB: of_cronjob()}).resolve(WEB) == WEB


@pytest.mark.parametrize(
    ("known", "template", "kept"),
    [
        pytest.param(THERE, TEMPLATE, True, id="scaled-to-zero"),
        pytest.param(GOING, TEMPLATE, False, id="on-its-way-out"),
        pytest.param(None, TEMPLATE, False, id="gone"),
        pytest.param(IGNORED, TEMPLATE, False, id="ignored"),
        pytest.param(THERE, "x-" + TEMPLATE, False, id="another-template"),
    ],
)
def test_a_name_is_kept_by_a_workload_that_is_there(
    known: Known | None,
    template: str,
    kept: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    found = catalog(Deployment={} if known is None else {WEB: known})
    assert keeps(found, WEB, "app", NAME, template=template) is kept


def test_what_is_unknown_keeps_nothing_by_itself() -> None:
    assert not keeps(Catalog(enabled=True), WEB, "app", NAME, template=TEMPLATE)


def test_a_job_that_is_a_cronjobs_keeps_no_name_of_its_own() -> None:
    found = catalog(Job={JOB: of_cronjob()}, CronJob={NIGHTLY: THERE})
    assert not keeps(found, JOB, "app", "shop/import-1/app", template=TEMPLATE)
    assert keeps(found, NIGHTLY, "app", "shop/nightly/app", template=TEMPLATE)


def test_names_are_kept_by_one_workload_each_and_let_go_by_name() -> None:
    kept = Kept()
    for name in ("one", "two"):
        kept.add(name, WEB)
    kept.add("two", API)
    assert set(kept.names()) == {"one", "two"}
    assert kept.of(WEB) == {"one"}
    assert kept.of(API) == {"two"}
    kept.discard("one")
    kept.discard("never")
    assert "one" not in kept
    assert kept.of(WEB) == frozenset()
    kept.clear()
    assert "two" not in kept
    assert vars(kept) == vars(Kept())
