"""The judge itself: what GitHub should hold, from raw pods and nothing else."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tracker.sandbox.contract import Deployment, Identity
from tracker.sandbox.table import Row, Table
from tracker.sandbox.truth import Scope, Truth, compare, should_stand

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
CONFIG_ID = "sha256:" + "f" * 64
NAME = "shop/web/app"
NOON = "2026-01-15T12:00:00Z"
NOON_MINUTES = int(datetime.fromisoformat(NOON).timestamp()) // 60


def owner(kind: str, name: str, api_version: str = "apps/v1", **more: object) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "name": name, "controller": True} | more


def container(
    name: str = "app", digest: str | None = A, image: str = "ghcr.io/acme/app:1", **status: object
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (spec, status) of a container; digest None is an image that is not told yet."""
    repository = image.partition("@")[0].removesuffix(":1")
    told = {
        "name": name,
        "image": image,
        "imageID": f"{repository}@{digest}" if digest else "",
    }
    return {"name": name, "image": image}, told | status


def pod(
    name: str = "web-5d9-x",
    *containers: tuple[dict[str, Any], dict[str, Any]],
    phase: str = "Running",
    created: str = NOON,
    deleted: str | None = None,
    of: dict[str, Any] | None = None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    namespace: str = "shop",
    init: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (),
) -> dict[str, Any]:
    """Return a raw pod of Deployment `web` unless another owner is given."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
        "creationTimestamp": created,
        "labels": {"pod-template-hash": "5d9"} if labels is None else labels,
        "annotations": annotations,
        "ownerReferences": [owner("ReplicaSet", "web-5d9") if of is None else of],
    }
    if deleted is not None:
        metadata["deletionTimestamp"] = deleted
    all_of = containers or (container(),)
    return {
        "metadata": metadata,
        "spec": {
            "containers": [spec for spec, _ in all_of],
            "initContainers": [spec for spec, _ in init],
            "ephemeralContainers": [{"name": "debug", "image": "busybox:1"}],
        },
        "status": {
            "phase": phase,
            "containerStatuses": [status for _, status in all_of],
            "initContainerStatuses": [status for _, status in init],
            "ephemeralContainerStatuses": [{"name": "debug", "imageID": f"busybox@{C}"}],
        },
    }


def later(minutes: int) -> str:
    return f"2026-01-15T12:{minutes:02d}:00Z"


def digests(truth: Truth) -> dict[str, str]:
    return {name: digest for name, (digest, _, _) in truth.standing.items()}


JOB = owner("Job", f"sync-{NOON_MINUTES}", "batch/v1")


@pytest.mark.parametrize(
    ("of", "labels", "expected"),
    [
        pytest.param(owner("ReplicaSet", "web-5d9"), {"pod-template-hash": "5d9"}, "web", id="rs"),
        pytest.param(
            owner("ReplicaSet", "web-5d9"),
            {"rollouts-pod-template-hash": "5d9"},
            "web",
            id="argo-rollout",
        ),
        pytest.param(owner("ReplicaSet", "web-5d9"), {}, "web-5d9", id="bare-replicaset"),
        pytest.param(
            owner("ReplicaSet", "web-5d9"), {"pod-template-hash": "77"}, "web-5d9", id="other-hash"
        ),
        pytest.param(
            owner("ReplicaSet", "-5d9"), {"pod-template-hash": "5d9"}, "-5d9", id="nothing-left"
        ),
        pytest.param(owner("StatefulSet", "db"), {}, "db", id="statefulset"),
        pytest.param(owner("DaemonSet", "agent"), {}, "agent", id="daemonset"),
        pytest.param(owner("ReplicationController", "old", "v1"), {}, "old", id="rc"),
        pytest.param(owner("Thing", "x-1", "example.com/v1"), {}, "x-1", id="any-controller"),
        pytest.param(JOB, {}, "sync", id="cronjob-now"),
        pytest.param(
            owner("Job", f"sync-{NOON_MINUTES - 2880}", "batch/v1"), {}, "sync", id="two-days"
        ),
        pytest.param(
            owner("Job", f"sync-{NOON_MINUTES - 2881}", "batch/v1"),
            {},
            f"sync-{NOON_MINUTES - 2881}",
            id="longer-ago",
        ),
        pytest.param(
            owner("Job", f"sync-{NOON_MINUTES + 1}", "batch/v1"),
            {},
            f"sync-{NOON_MINUTES + 1}",
            id="in-the-future",
        ),
        pytest.param(owner("Job", "load-17", "batch/v1"), {}, "load-17", id="job-with-a-number"),
        pytest.param(owner("Job", "load", "batch/v1"), {}, "load", id="plain-job"),
        pytest.param(
            owner("Job", f"sync-{NOON_MINUTES}", "other/v1"),
            {},
            f"sync-{NOON_MINUTES}",
            id="job-of-another-group",
        ),
    ],
)
def test_a_workload_is_named_by_its_pod_alone(
    of: dict[str, Any], labels: dict[str, str], expected: str
) -> None:
    truth = should_stand([pod(of=of, labels=labels)])

    assert list(truth.standing) == [f"shop/{expected}/app"]
    assert bool(truth.cronjobs) == (expected == "sync")


@pytest.mark.parametrize(
    "ignored",
    [
        pytest.param(
            pod(of={}) | {"metadata": pod()["metadata"] | {"ownerReferences": []}}, id="0"
        ),
        pytest.param(pod(of=owner("ReplicaSet", "web-5d9", controller=False)), id="no-controller"),
        pytest.param(pod(of=owner("Node", "node-1", "v1")), id="static"),
        pytest.param(pod(annotations={"kubernetes.io/config.mirror": "x"}), id="mirror"),
        pytest.param(pod(annotations={"metadata.github.com/ignore": "true"}), id="ignored"),
        pytest.param(pod(namespace="kube-system"), id="excluded-namespace"),
    ],
)
def test_a_pod_that_does_not_count_claims_nothing(ignored: dict[str, Any]) -> None:
    assert should_stand([ignored], scope=Scope(exclude_namespaces=("kube-*",))).verdicts == {}


def test_only_the_watched_namespace_counts() -> None:
    pods = [pod(), pod(namespace="other")]

    assert list(should_stand(pods, scope=Scope(namespace="other")).standing) == ["other/web/app"]


def test_ignore_wants_the_exact_word() -> None:
    assert should_stand([pod(annotations={"metadata.github.com/ignore": "yes"})]).standing


@pytest.mark.parametrize(
    ("image", "status", "expected"),
    [
        pytest.param("ghcr.io/acme/app:1", {}, (A, "ghcr.io/acme/app", "1"), id="plain"),
        pytest.param("r:5000/app", {}, (A, "r:5000/app", ""), id="port-and-no-tag"),
        pytest.param(
            "nginx:1.25",
            {"image": "docker.io/library/nginx:1.25", "imageID": f"docker.io/library/nginx@{A}"},
            (A, "nginx", "1.25"),
            id="written-out-by-the-runtime",
        ),
        pytest.param(
            "nginx",
            {"image": "docker.io/library/nginx:latest", "imageID": f"docker.io/library/nginx@{A}"},
            (A, "nginx", ""),
            id="latest-is-understood",
        ),
        pytest.param(
            "app:1",
            {"imageID": f"docker-pullable://app@{A}"},
            (A, "app", "1"),
            id="docker-pullable",
        ),
        pytest.param("app:1", {"image": CONFIG_ID}, (A, "app", "1"), id="status-names-none"),
        pytest.param(
            f"app:1@{A}", {"image": f"app@{A}"}, (A, "app", "1"), id="status-names-the-digest"
        ),
        pytest.param(
            f"app:2@{B}",
            {"image": f"app@{A}", "imageID": f"app@{A}"},
            (A, "app", ""),
            id="spec-digest-ahead",
        ),
        pytest.param(
            "app:2",
            {"image": "app:1", "imageID": f"reg/app@{A}"},
            (A, "reg/app", ""),
            id="spec-tag-ahead",
        ),
        pytest.param(
            "app:2", {"image": f"app@{A}"}, (A, "app", ""), id="status-names-no-tag-but-a-digest"
        ),
        pytest.param(
            "new:1",
            {"image": "old:1", "imageID": f"old@{A}"},
            (A, "old", ""),
            id="spec-repository-ahead",
        ),
        pytest.param("app:" + "v" * 101, {}, (A, "app", ""), id="tag-too-long"),
        pytest.param(
            f"app:1@{B}", {"imageID": CONFIG_ID}, (B, "app", "1"), id="config-id-digest-in-spec"
        ),
        pytest.param(
            f"app@{B}", {"imageID": f"docker://{CONFIG_ID}"}, (B, "app", ""), id="docker-config-id"
        ),
        pytest.param("app:1", {"imageID": CONFIG_ID}, "no-manifest-digest", id="config-id"),
        pytest.param("app:1", {"imageID": "f" * 64}, "no-manifest-digest", id="bare-hex"),
        pytest.param("app:1", {"imageID": f"app@{A}x"}, "no-manifest-digest", id="junk-behind"),
        pytest.param(
            "app:1", {"imageID": f"app@{A.upper()}"}, "no-manifest-digest", id="upper-case"
        ),
        pytest.param(
            "app:1", {"imageID": "app@sha512:" + "a" * 128}, "no-manifest-digest", id="sha512"
        ),
        pytest.param("app:1", {"imageID": ""}, None, id="not-told-yet"),
        pytest.param(f"app:1@{B}", {"imageID": ""}, None, id="not-told-yet-whatever-the-spec-says"),
        pytest.param(
            f"app:2@{B}",
            {"image": "app:1", "imageID": CONFIG_ID},
            "no-manifest-digest",
            id="spec-digest-ahead-of-a-config-id",
        ),
        pytest.param(
            f"app:2@{B}", {"image": CONFIG_ID}, (A, "app", ""), id="spec-digest-is-another"
        ),
        pytest.param(
            f"app:1@{B}",
            {"image": "app:1", "imageID": f"app@{A}"},
            (A, "app", "1"),
            id="the-index-in-the-spec-and-the-platform-in-the-status",
        ),
    ],
)
def test_an_image_is_what_the_status_names(
    image: str, status: dict[str, str], expected: tuple[str, str, str] | str | None
) -> None:
    spec, told = container(image=image)
    if "imageID" not in status:
        told["imageID"] = f"{image.partition('@')[0].removesuffix(':1').removesuffix(':2')}@{A}"
    truth = should_stand([pod("p", (spec, told | status))])

    match expected:
        case None:
            assert truth.held == {NAME}
        case str():
            assert truth.unrecordable == {NAME: expected}
        case _:
            assert truth.standing == {NAME: expected}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        pytest.param([], None, id="no-pod"),
        pytest.param([pod()], A, id="running"),
        pytest.param([pod(phase="Pending")], "held", id="pending"),
        pytest.param([pod(phase="Unknown")], "held", id="unknown"),
        pytest.param([pod(phase="Failed")], None, id="failed"),
        pytest.param([pod(phase="Succeeded")], None, id="succeeded"),
        pytest.param([pod(deleted=NOON)], A, id="terminating"),
        pytest.param([pod(phase="Succeeded", deleted=NOON)], A, id="terminating-and-ended"),
        pytest.param([pod(phase="Pending", deleted=NOON)], A, id="terminating-and-told"),
        pytest.param(
            [pod("a", container(digest=None), phase="Pending", deleted=NOON)],
            "held",
            id="terminating-never-started",
        ),
        pytest.param(
            [pod("a"), pod("b", container(digest=B), created=later(1))], B, id="newest-wins"
        ),
        pytest.param(
            [pod("a", container(digest=B)), pod("b")], A, id="of-two-equally-old-the-later-name"
        ),
        pytest.param(
            [pod("a"), pod("b", container(digest=B), created=later(1), phase="Pending")],
            A,
            id="a-pending-one-says-nothing-yet",
        ),
        pytest.param(
            [pod("a"), pod("b", container(digest=B), created=later(1), deleted=NOON)],
            A,
            id="a-running-one-beats-a-newer-terminating-one",
        ),
        pytest.param(
            [pod("a", deleted=NOON), pod("b", container(digest=B), phase="Pending")],
            A,
            id="terminating-while-the-next-is-pending",
        ),
        pytest.param(
            [pod("a", phase="Failed"), pod("b", phase="Pending")], "held", id="failed-and-pending"
        ),
        pytest.param(
            [pod("a"), pod("b", container(digest=None), created=later(1))],
            A,
            id="the-older-stands-until-the-newer-is-told",
        ),
        pytest.param(
            [pod("a"), pod("b", container(digest=B), created=later(1), phase="Failed")],
            A,
            id="a-failed-one-is-none",
        ),
    ],
)
def test_the_newest_running_pod_says_what_stands(
    pods: list[dict[str, Any]], expected: str | None
) -> None:
    for order in (pods, pods[::-1]):
        truth = should_stand(order)
        if expected is None:
            assert truth.verdicts == {}
        elif expected == "held":
            assert truth.held == {NAME}
        else:
            assert digests(truth) == {NAME: expected}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Running"])
def test_a_jobs_pod_counts_until_it_is_deleted(phase: str) -> None:
    assert digests(should_stand([pod(of=JOB, phase=phase)])) == {"shop/sync/app": A}


def test_a_finished_pod_of_a_newer_job_beats_an_older_running_one() -> None:
    older = pod("a", of=owner("Job", f"sync-{NOON_MINUTES - 5}", "batch/v1"))
    newer = pod("b", container(digest=B), of=JOB, phase="Succeeded", created=later(1))

    assert digests(should_stand([newer, older])) == {"shop/sync/app": B}


def test_init_containers_and_sidecars_count_and_ephemeral_ones_do_not() -> None:
    side = container("mesh", B)
    side[0]["restartPolicy"] = "Always"

    truth = should_stand([pod("p", container(), init=(container("migrate", C), side))])

    assert digests(truth) == {"shop/web/app": A, "shop/web/mesh": B, "shop/web/migrate": C}


@pytest.mark.parametrize(
    ("containers", "init", "expected"),
    [
        pytest.param((container("z", A), container("a", B)), (), A, id="spec-order"),
        pytest.param((container("z", A),), (container("a", B),), A, id="before-init"),
    ],
)
def test_a_name_shared_by_containers_is_the_first_ones(
    containers: tuple[Any, ...], init: tuple[Any, ...], expected: str
) -> None:
    scope = Scope(template="{{namespace}}-{{deploymentName}}")

    truth = should_stand([pod("p", *containers, init=init)], scope=scope)

    assert digests(truth) == {"shop-web": expected}


def test_a_sidecar_comes_before_an_init_container() -> None:
    side = container("mesh", B)
    side[0]["restartPolicy"] = "Always"
    odd = pod("p", container("app", A), init=(container("migrate", C), side))
    odd["spec"]["containers"] = []

    truth = should_stand([odd], scope=Scope(template="{{namespace}}"))

    assert digests(truth) == {"shop": B}


def test_a_name_shared_by_workloads_is_the_newest_pods() -> None:
    pods = [
        pod("a"),
        pod("b", container(digest=B), of=owner("StatefulSet", "db"), created=later(1)),
    ]

    truth = should_stand(pods, scope=Scope(template="{{namespace}}/{{containerName}}"))

    assert digests(truth) == {"shop/app": B}


def test_a_name_is_filled_in_one_pass() -> None:
    odd = pod(of=owner("StatefulSet", "{{containerName}}"))

    assert list(should_stand([odd]).standing) == ["shop/{{containerName}}/app"]


def test_a_name_that_is_too_long_is_never_cut() -> None:
    long = "w" * (256 - len("shop//app"))

    assert should_stand([pod(of=owner("StatefulSet", long))]).standing
    assert not should_stand([pod(of=owner("StatefulSet", f"{long}w"))]).verdicts


def test_an_unknown_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\{\{pod\}\}"):
        should_stand([pod()], scope=Scope(template="{{pod}}"))


def test_an_image_that_github_does_not_take_leaves_what_still_runs() -> None:
    pods = [pod("a"), pod("b", container(digest=B), created=later(1))]

    truth = should_stand(pods, recordable=lambda digest: digest != B)

    assert truth.unrecordable == {NAME: "not-recordable"}
    assert truth.verdicts[NAME].carried == {A, B}


def rows(
    *, status: str = "deployed", digest: str = A, version: str | None = "1", **named: str
) -> list[Row]:
    table = Table()
    table.apply(
        [
            Deployment(
                identity=Identity(
                    org="acme",
                    logical_environment="prod",
                    physical_environment="",
                    cluster="",
                    deployment_name=named.get("deployment_name", NAME),
                ),
                digest=digest,
                name="ghcr.io/acme/app",
                version=version,
                status=status,
            )
        ],
        now=datetime(2026, 1, 15, tzinfo=UTC),
        seq=1,
    )
    return list(table)


NEWER = pod("b", container(digest=B), created=later(1))


@pytest.mark.parametrize(
    ("truth", "held", "wanted", "why"),
    [
        pytest.param(should_stand([pod()]), rows(), "standing", "", id="agree"),
        pytest.param(should_stand([pod()]), [], "standing", "is not recorded", id="absent"),
        pytest.param(should_stand([pod()]), rows(digest=B), "standing", "another", id="other"),
        pytest.param(
            should_stand([pod()]), rows(status="decommissioned"), "standing", "runs and", id="runs"
        ),
        pytest.param(
            should_stand([pod()]), rows(version=None), "standing", "recorded as", id="version"
        ),
        pytest.param(
            should_stand([pod(), pod("c", container("twin", image="ghcr.io/acme/app:2"))]),
            rows(version="2"),
            "standing",
            "",
            id="an-artifact-has-one-name",
        ),
        pytest.param(should_stand([pod(phase="Pending")]), rows(digest=C), "held", "", id="held"),
        pytest.param(should_stand([]), rows(), "gone", "no pod carries", id="gone"),
        pytest.param(should_stand([]), rows(status="decommissioned"), "gone", "", id="gone-told"),
        pytest.param(
            should_stand([pod(), NEWER], recordable=lambda digest: digest != B),
            rows(),
            "unrecordable",
            "",
            id="the-acknowledged-one-still-runs",
        ),
        pytest.param(
            should_stand([NEWER], recordable=lambda digest: digest != B),
            rows(),
            "unrecordable",
            "no pod runs",
            id="the-acknowledged-one-runs-no-more",
        ),
    ],
)
def test_the_table_tells_where_github_differs(
    truth: Truth, held: list[Row], wanted: str, why: str
) -> None:
    line = next(line for line in compare(truth, held) if line.deployment_name == NAME)

    assert line.wanted == wanted
    assert why in line.why
    assert line.agrees == (not why)


def test_a_cronjob_without_pods_is_held_for_its_day() -> None:
    [line] = compare(should_stand([]), rows(), cronjobs=[NAME])

    assert (line.wanted, line.agrees) == ("held", True)
