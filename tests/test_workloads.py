"""Which workload a pod belongs to, from the pod alone."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import EPOCH
from tracker.workloads import Owner, Workload, workload_of

NOW = int(EPOCH.timestamp()) // 60


def owner(kind: str, name: str) -> Owner:
    return Owner(api_version="x/v1", kind=kind, name=name)


@pytest.mark.parametrize(
    ("kind", "name", "labels", "expected"),
    [
        pytest.param(
            "ReplicaSet", "web-5d8f", {"pod-template-hash": "5d8f"}, "Deployment web", id="deploy"
        ),
        pytest.param(
            "ReplicaSet", "a-b-5d8f", {"pod-template-hash": "5d8f"}, "Deployment a-b", id="dashes"
        ),
        pytest.param(
            "ReplicaSet", "x-1-1", {"pod-template-hash": "1"}, "Deployment x-1", id="one-hash-only"
        ),
        pytest.param(
            "ReplicaSet", "web-7c", {"rollouts-pod-template-hash": "7c"}, "Rollout web", id="argo"
        ),
        pytest.param("ReplicaSet", "web-5d8f", {}, "ReplicaSet web-5d8f", id="no-label"),
        pytest.param(
            "ReplicaSet", "web-5d8f", {"pod-template-hash": "beef"}, "ReplicaSet web-5d8f",
            id="another-hash",
        ),
        pytest.param(
            "ReplicaSet", "web5d8f", {"pod-template-hash": "5d8f"}, "ReplicaSet web5d8f",
            id="hash-without-dash",
        ),
        pytest.param(
            "ReplicaSet", "-5d8f", {"pod-template-hash": "5d8f"}, "ReplicaSet -5d8f",
            id="nothing-before-hash",
        ),
        pytest.param(
            "ReplicaSet", "web-", {"pod-template-hash": ""}, "ReplicaSet web-", id="empty-hash"
        ),
        pytest.param(
            "ReplicaSet", "web-1", {"pod-template-hash": 1}, "ReplicaSet web-1", id="hash-no-text"
        ),
        pytest.param(
            "StatefulSet", "db-5d8f", {"pod-template-hash": "5d8f"}, "StatefulSet db-5d8f",
            id="stateful-set",
        ),
        pytest.param("DaemonSet", "agent", {}, "DaemonSet agent", id="daemon-set"),
        pytest.param("ReplicationController", "rc", {}, "ReplicationController rc", id="rc"),
        pytest.param("CloneSet", "clone", {}, "CloneSet clone", id="any-other-controller"),
        pytest.param("Job", "import", {}, "Job import", id="job"),
        pytest.param("Job", f"nightly-{NOW}", {}, "CronJob nightly", id="cronjob"),
        pytest.param("Job", f"a-{NOW}-{NOW}", {}, f"CronJob a-{NOW}", id="cronjob-last-digits"),
        pytest.param("Job", f"nightly-{NOW - 2880}", {}, "CronJob nightly", id="two-days-ago"),
        pytest.param(
            "Job", f"nightly-{NOW - 2881}", {}, f"Job nightly-{NOW - 2881}", id="longer-ago"
        ),
        pytest.param("Job", f"nightly-{NOW + 1}", {}, "CronJob nightly", id="clock-skew"),
        pytest.param("Job", f"nightly-{NOW + 2}", {}, f"Job nightly-{NOW + 2}", id="future"),
        pytest.param("Job", "batch-42", {}, "Job batch-42", id="digits-of-another-kind"),
        pytest.param("Job", f"-{NOW}", {}, f"Job -{NOW}", id="no-name-before-digits"),
        pytest.param("Job", f"n-{'9' * 400}", {}, f"Job n-{'9' * 400}", id="huge-number"),
        pytest.param("Job", "n-\u0662\u0668", {}, "Job n-\u0662\u0668", id="other-digits"),
    ],
)  # fmt: skip
def test_the_names_that_controllers_give_lead_to_the_workload(
    kind: str, name: str, labels: Mapping[str, object], expected: str
) -> None:
    found = workload_of("shop", [owner(kind, name)], labels, EPOCH)
    assert found is not None
    assert f"{found.kind} {found.name}" == expected
    assert found.namespace == "shop"
    assert found.is_job == (found.kind in {"Job", "CronJob"})


def test_no_controller_means_no_workload() -> None:
    assert workload_of("shop", [], {"pod-template-hash": "5d8f"}, EPOCH) is None


def test_a_second_controller_does_not_count() -> None:
    """The API server admits one; whatever sends two, the first one is believed."""
    found = workload_of("shop", [owner("DaemonSet", "a"), owner("Job", "b")], {}, EPOCH)
    assert found == Workload(api_version="x/v1", kind="DaemonSet", namespace="shop", name="a")


@given(
    name=st.text(min_size=1, max_size=20),
    label=st.one_of(st.none(), st.integers(), st.text(max_size=10)),
    kind=st.sampled_from(["ReplicaSet", "Job", "StatefulSet"]),
    created=st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)),  # noqa: DTZ001 - bounds are naive
)
def test_any_owner_gives_a_workload_with_a_name(
    name: str, label: object, kind: str, created: datetime
) -> None:
    labels = {"pod-template-hash": label, "rollouts-pod-template-hash": label}
    found = workload_of("ns", [owner(kind, name)], labels, created.replace(tzinfo=UTC))
    assert found is not None
    assert found.name
    assert name.startswith(found.name)


@given(minutes=st.integers(0, 2880), seconds=st.integers(0, 59))
def test_every_run_of_a_cronjob_has_the_same_workload(minutes: int, seconds: int) -> None:
    created = EPOCH + timedelta(minutes=minutes, seconds=0 if minutes == 2880 else seconds)
    found = workload_of("shop", [owner("Job", f"nightly-{NOW}")], {}, created)
    assert found is not None
    assert (found.kind, found.name) == ("CronJob", "nightly")
