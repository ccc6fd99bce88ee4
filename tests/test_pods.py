"""From the API server's JSON to what is kept of a pod."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import EPOCH, HASH, digest, raw_container, raw_owner, raw_pod
from tracker.images import Image, SkipReason
from tracker.pods import Pod, Rules, Skipped, read_pod
from tracker.workloads import Workload

pytestmark = pytest.mark.fault("W2")


def kept(raw: object) -> Pod:
    pod = read_pod(raw)
    assert isinstance(pod, Pod)
    return pod


def test_a_running_pod_is_kept_with_its_workload_and_images() -> None:
    pod = kept(raw_pod())
    assert pod.workload == Workload(
        api_version="apps/v1", kind="Deployment", namespace="shop", name="web"
    )
    assert (pod.uid, pod.namespace, pod.name) == ("uid-1", "shop", f"web-{HASH}-abcde")
    assert (pod.created, pod.phase, pod.terminating) == (EPOCH, "Running", False)
    (container,) = pod.containers
    assert container.name == "app"
    assert container.image == Image(name="ghcr.io/acme/app", version="v1", digest=digest())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(raw_pod(owners=[]), SkipReason.BARE, id="bare"),
        pytest.param(
            raw_pod(owners=[raw_owner(controller=False)]), SkipReason.BARE, id="owner-no-controller"
        ),
        pytest.param(
            raw_pod(owners=[raw_owner() | {"controller": "true"}]), SkipReason.BARE, id="not-a-bool"
        ),
        pytest.param(raw_pod(owners=[raw_owner(name="")]), SkipReason.BARE, id="nameless-owner"),
        pytest.param(
            raw_pod(owners=[raw_owner(name="\ud800")]), SkipReason.BARE, id="owner-no-unicode"
        ),
        pytest.param(raw_pod(name="\ud800"), SkipReason.MALFORMED, id="name-no-unicode"),
        pytest.param(raw_pod(owners=[raw_owner("Node", "node-1")]), SkipReason.STATIC, id="static"),
        pytest.param(
            raw_pod(annotations={"kubernetes.io/config.mirror": "x"}),
            SkipReason.STATIC,
            id="mirror",
        ),
        pytest.param(
            raw_pod(annotations={"metadata.github.com/ignore": "true"}),
            SkipReason.IGNORED,
            id="ignored",
        ),
        pytest.param(
            raw_pod(namespace="kube-system"), SkipReason.NAMESPACE, id="excluded-namespace"
        ),
        pytest.param(raw_pod(namespace="ci-42"), SkipReason.NAMESPACE, id="excluded-by-glob"),
        pytest.param(raw_pod(namespace=""), SkipReason.MALFORMED, id="no-namespace"),
        pytest.param(raw_pod(name=""), SkipReason.MALFORMED, id="no-name"),
        pytest.param(raw_pod(creationTimestamp=None), SkipReason.MALFORMED, id="no-creation-time"),
        pytest.param(
            raw_pod(creationTimestamp="2024-01-15T10:30:00"), SkipReason.MALFORMED, id="no-zone"
        ),
        pytest.param(
            raw_pod(creationTimestamp="0001-01-01T00:00:00Z"), SkipReason.MALFORMED, id="zero-time"
        ),
        pytest.param(raw_pod(creationTimestamp="\ud800"), SkipReason.MALFORMED, id="hostile-time"),
    ],
)
def test_a_pod_that_is_not_recorded_says_why(raw: object, reason: SkipReason) -> None:
    skipped = read_pod(raw, rules=Rules(excluded_namespaces=("kube-*", "ci-*")))
    assert isinstance(skipped, Skipped)
    assert (skipped.uid, skipped.reason) == ("uid-1", reason)


@pytest.mark.parametrize("word", ["True", "1", "yes", "", " true", True, None])
def test_only_the_word_true_has_a_pod_ignored(word: object) -> None:
    raw = raw_pod()
    raw["metadata"]["annotations"]["metadata.github.com/ignore"] = word
    assert isinstance(read_pod(raw), Pod)


@pytest.mark.parametrize(
    ("phase", "deleted", "kind", "unfinished", "holds"),
    [
        ("Pending", None, "ReplicaSet", True, True),
        ("Running", None, "ReplicaSet", True, True),
        ("Unknown", None, "ReplicaSet", True, True),
        ("Failed", None, "ReplicaSet", False, False),
        ("Succeeded", None, "ReplicaSet", False, False),
        ("Failed", "2024-01-15T11:00:00Z", "ReplicaSet", True, True),
        ("Succeeded", "2024-01-15T11:00:00Z", "Job", True, True),
        ("Succeeded", None, "Job", False, True),
        ("Failed", None, "Job", False, True),
        ("Running", None, "Job", True, True),
        ("", None, "ReplicaSet", True, True),
    ],
)
def test_a_pod_holds_its_names_while_it_may_run(
    phase: str, deleted: str | None, kind: str, *, unfinished: bool, holds: bool
) -> None:
    raw = raw_pod(phase=phase, owners=[raw_owner(kind, "one")], deletionTimestamp=deleted)
    pod = kept(raw)
    assert (pod.unfinished, pod.holds) == (unfinished, holds)
    assert pod.terminating == (deleted is not None)


def test_containers_come_in_the_order_in_which_they_win_a_name() -> None:
    raw = raw_pod()
    raw["spec"] = {
        "initContainers": [
            raw_container("setup"),
            raw_container("proxy", restartPolicy="Always"),
            raw_container("migrate", restartPolicy="Never"),
        ],
        "containers": [raw_container("app"), raw_container("worker")],
        "ephemeralContainers": [raw_container("debugger")],
    }
    raw["status"]["initContainerStatuses"] = [
        {"name": "proxy", "image": "ghcr.io/acme/app:v1", "imageID": f"x@{digest('b')}"}
    ]
    raw["status"]["ephemeralContainerStatuses"] = [
        {"name": "worker", "image": "ghcr.io/acme/app:v1", "imageID": f"x@{digest('c')}"}
    ]
    pod = kept(raw)
    assert [each.name for each in pod.containers] == ["app", "worker", "proxy", "setup", "migrate"]
    images = {each.name: each.image for each in pod.containers}
    assert images["worker"] is None
    assert isinstance(images["proxy"], Image)
    assert images["proxy"].digest == digest("b")


def test_a_container_without_an_image_id_is_not_known_yet() -> None:
    raw = raw_pod(phase="Pending")
    raw["status"]["containerStatuses"][0]["imageID"] = ""
    assert kept(raw).containers[0].image is None
    del raw["status"]
    pod = kept(raw)
    assert (pod.phase, pod.containers[0].image) == ("Unknown", None)


def test_what_calls_for_no_other_record_makes_no_other_pod() -> None:
    raw = raw_pod()
    changed = copy.deepcopy(raw)
    changed["metadata"] |= {"resourceVersion": "2", "annotations": {"a": "b"}}
    changed["status"] |= {"conditions": [{"type": "Ready"}], "podIP": "10.0.0.1"}
    assert kept(raw) == kept(changed)


def test_later_pods_rank_higher_and_their_names_break_ties() -> None:
    first = kept(raw_pod(name="b", creationTimestamp="2024-01-15T10:30:00Z"))
    tied = kept(raw_pod(name="c", creationTimestamp="2024-01-15T10:30:00Z"))
    later = kept(raw_pod(name="a", creationTimestamp="2024-01-15T10:30:01Z"))
    assert first.age_rank < tied.age_rank < later.age_rank


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "metadata",
        "spec",
        "status",
        "uid",
        "namespace",
        "name",
        "creationTimestamp",
        "deletionTimestamp",
        "labels",
        "annotations",
        "ownerReferences",
        "containers",
        "initContainers",
        "containerStatuses",
        "initContainerStatuses",
        "image",
        "imageID",
        "phase",
        "controller",
        "kind",
        "apiVersion",
        "restartPolicy",
        "pod-template-hash",
        "metadata.github.com/ignore",
    ]
)
POD_SHAPED = st.recursive(
    JSON, lambda inner: st.dictionaries(KEYS, inner, max_size=5) | st.lists(inner, max_size=3)
)


def check(raw: object) -> None:
    pod = read_pod(raw, rules=Rules(excluded_namespaces=("kube-*",)))
    assert isinstance(pod, Pod | Skipped)
    assert hash(pod) == hash(read_pod(raw, rules=Rules(excluded_namespaces=("kube-*",))))
    if isinstance(pod, Pod):
        assert pod.uid
        assert pod.workload.name
        assert all(container.name for container in pod.containers)
        # Nothing that goes into a record or the ledger is no Unicode: this would raise.
        workload = (pod.workload.api_version, pod.workload.kind, pod.workload.name)
        for text in (pod.namespace, pod.name, *workload, *(each.name for each in pod.containers)):
            text.encode()


@given(raw=POD_SHAPED)
def test_any_json_gives_a_pod_or_a_reason(raw: object) -> None:
    check(raw)


def places(raw: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of everything within a JSON value."""
    found = [path] if path else []
    entries = (
        raw.items() if isinstance(raw, dict) else enumerate(raw if isinstance(raw, list) else [])
    )
    for key, value in entries:
        found += places(value, (*path, key))
    return found


VALID: dict[str, Any] = raw_pod(annotations={"a": "b"}, deletionTimestamp="2024-01-15T11:00:00Z")
VALID["spec"]["initContainers"] = [raw_container("proxy", restartPolicy="Always")]


@given(path=st.sampled_from(places(VALID)), value=st.none() | JSON, more=st.lists(JSON, max_size=2))
def test_a_pod_with_anything_in_any_place_gives_a_pod_or_a_reason(
    path: tuple[str | int, ...], value: object, more: list[object]
) -> None:
    raw = copy.deepcopy(VALID)
    target: Any = raw
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    if isinstance(target, list):
        target += more
    check(raw)


@given(uid=st.text(max_size=5), reason=st.sampled_from(["bare", "time", "ignored"]))
def test_a_skipped_pod_keeps_its_uid_since_it_was_seen(uid: str, reason: str) -> None:
    raw = raw_pod(
        uid,
        owners=[] if reason == "bare" else None,
        creationTimestamp=7 if reason == "time" else "2024-01-15T10:30:00Z",
        annotations={"metadata.github.com/ignore": "true"},
    )
    skipped = read_pod(raw)
    assert isinstance(skipped, Skipped)
    assert skipped.uid == uid
