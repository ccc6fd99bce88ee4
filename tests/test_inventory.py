"""What should stand, from the pods that were seen, however they came to be seen."""

from collections.abc import Iterable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import TEMPLATE, container, digest, image, pod, record, workload
from tracker.images import Image, SkipReason
from tracker.inventory import Absent, Deployed, Held, Inventory, Judgement
from tracker.pods import Container, Pod, Skipped
from tracker.records import Record

NAME: Final = "shop/web/app"
JOB: Final = workload("import", kind="Job")
CRONJOB: Final = workload("nightly", kind="CronJob")


def running(letter: str, uid: str = "uid-1", *, age: int = 0, phase: str = "Running") -> Pod:
    return pod(uid, age=age, phase=phase, containers=[container(letter=letter)])


def waiting(uid: str = "uid-1", *, age: int = 0) -> Pod:
    return pod(uid, age=age, phase="Pending", containers=[Container(name="app", image=None)])


def unrecordable(uid: str = "uid-1", *, age: int = 0) -> Pod:
    return pod(uid, age=age, containers=[container("app", SkipReason.NO_DIGEST)])


def terminating(letter: str, uid: str = "uid-1", *, age: int = 0) -> Pod:
    return pod(uid, age=age, terminating=True, containers=[container(letter=letter)])


def inventory_of(pods: Iterable[Pod | Skipped], template: str = TEMPLATE) -> Inventory:
    inventory = Inventory(template=template)
    for each in pods:
        inventory.observe(each)
    return inventory


def judged(pods: Iterable[Pod], name: str = NAME, acknowledged: Record | None = None) -> str:
    """Return a judgement as a word: the letter of the digest, or what it is instead."""
    judgement = inventory_of(pods).judge(name, acknowledged)
    match judgement:
        case Deployed():
            word = judgement.record.digest[-1]
        case Held():
            word = "held"
        case _:
            return "absent"
    return f"{word} displaced" if judgement.displaced else word


@pytest.mark.parametrize(
    ("pods", "acknowledged", "expected"),
    [
        pytest.param([], None, "absent", id="nothing"),
        pytest.param([running("a")], None, "a", id="running"),
        pytest.param([running("a")], "a", "a", id="running-and-acknowledged"),
        pytest.param([running("a", "1"), running("b", "2", age=1)], "a", "b", id="rollout"),
        pytest.param([running("b", "2", age=1)], "a", "b displaced", id="rollout-done"),
        pytest.param([running("a", "1"), waiting("2", age=1)], "a", "a", id="new-one-waits"),
        pytest.param([waiting()], "a", "held", id="only-waiting"),
        pytest.param([running("a", phase="Unknown")], "a", "held", id="node-lost"),
        pytest.param([running("a", phase="Unknown")], "b", "held", id="node-lost-after-another"),
        pytest.param([running("a", phase="Failed")], "a", "absent", id="failed"),
        pytest.param([running("a", phase="Succeeded")], "a", "absent", id="succeeded"),
        pytest.param([terminating("a")], "a", "a", id="on-its-way-out"),
        pytest.param(
            [terminating("b", "2", age=9), running("a", "1")], "b", "a", id="running-beats-leaving"
        ),
        pytest.param(
            [terminating("a", "1"), terminating("b", "2", age=1)], None, "b", id="newest-leaving"
        ),
        pytest.param([terminating("a", "1"), waiting("2", age=1)], "a", "a", id="recreate"),
        pytest.param([unrecordable()], None, "held", id="unrecordable"),
        pytest.param([unrecordable()], "a", "held displaced", id="unrecordable-replaced-it"),
        pytest.param(
            [running("a", "1"), unrecordable("2", age=1)], "a", "held", id="unrecordable-newest"
        ),
        pytest.param(
            [unrecordable("1"), running("a", "2", age=1)], "a", "a", id="unrecordable-older"
        ),
        pytest.param(
            [running("a", "1"), waiting("2", age=1), running("b", "3", phase="Failed", age=2)],
            "b", "a displaced", id="failed-does-not-hold",
        ),
    ],
)  # fmt: skip
def test_the_newest_running_image_stands(
    pods: list[Pod], acknowledged: str | None, expected: str
) -> None:
    held = None if acknowledged is None else record(acknowledged)
    assert judged(pods, acknowledged=held) == expected


@pytest.mark.parametrize("owner", [JOB, CRONJOB], ids=["job", "cronjob"])
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_stands_until_its_pod_goes(owner: object, phase: str) -> None:
    workload_ = JOB if owner is JOB else CRONJOB
    name = f"shop/{workload_.name}/app"
    finished = pod("1", owner=workload_, phase=phase)
    inventory = inventory_of([finished])
    assert isinstance(inventory.judge(name, None), Deployed)
    assert inventory.living() == frozenset()
    inventory.remove("1")
    assert inventory.judge(name, record()) == Absent()


def test_a_job_that_runs_now_beats_the_finished_run_before() -> None:
    pods = [
        pod("2", owner=CRONJOB, age=5, containers=[container(letter="b")]),
        pod("1", owner=CRONJOB, phase="Succeeded", containers=[container(letter="a")]),
    ]
    assert judged(pods, "shop/nightly/app") == "b"


def test_equally_old_pods_are_told_apart_by_name() -> None:
    one, two = (
        pod(uid, name=name, containers=[container(letter=letter)])
        for uid, name, letter in (("9", "web-a", "a"), ("1", "web-b", "b"))
    )
    assert judged([one, two]) == judged([two, one]) == "b"


def test_containers_of_one_pod_that_share_a_name_yield_to_the_first() -> None:
    shares = pod(containers=[container("app", letter="a"), container("proxy", letter="b")])
    inventory = inventory_of([shares], "{{namespace}}/{{deploymentName}}")
    judgement = inventory.judge("shop/web", None)
    assert isinstance(judgement, Deployed)
    assert (judgement.record.digest, judgement.container) == (digest("a"), "app")
    assert inventory.shared() == {"shop/web"}


def test_workloads_that_share_a_name_yield_to_the_newest_pod_and_are_told() -> None:
    one = pod("1", owner=workload("web"), containers=[container(letter="a")])
    two = pod("2", owner=workload("api"), age=1, containers=[container(letter="b")])
    inventory = inventory_of([two, one], "{{namespace}}/{{containerName}}")
    judgement = inventory.judge("shop/app", None)
    assert isinstance(judgement, Deployed)
    assert (judgement.record.digest, judgement.workload) == (digest("b"), workload("api"))
    assert inventory.shared() == {"shop/app"}
    inventory.remove("2")
    assert inventory.shared() == set()
    judgement = inventory.judge("shop/app", judgement.record)
    assert isinstance(judgement, Deployed)
    assert (judgement.record.digest, judgement.displaced) == (digest("a"), True)


def test_a_name_that_is_too_long_is_counted_and_not_declared() -> None:
    long = pod(containers=[container("c" * 250), container("app")])
    inventory = inventory_of([long])
    assert list(inventory.names()) == [NAME]
    assert inventory.skipped() == {SkipReason.DEPLOYMENT_NAME: 1}
    inventory.remove("uid-1")
    assert inventory.skipped() == {}


def test_what_is_skipped_is_counted_by_reason_as_it_is_now() -> None:
    def bare(uid: str) -> Skipped:
        return Skipped(uid=uid, namespace="shop", name=uid, reason=SkipReason.BARE)

    inventory = inventory_of([bare("1"), bare("2"), bare("2"), unrecordable("3")])
    assert inventory.skipped() == {SkipReason.BARE: 2, SkipReason.NO_DIGEST: 1}
    assert "1" in inventory
    assert inventory.observe(bare("3")) == {NAME}
    assert inventory.skipped() == {SkipReason.BARE: 3}


def test_an_event_names_what_it_may_change_and_nothing_else() -> None:
    inventory = Inventory(template=TEMPLATE)
    two = pod(containers=[container("app"), container("proxy")])
    assert inventory.observe(two) == {NAME, "shop/web/proxy"}
    assert inventory.observe(two) == frozenset()
    assert inventory.observe(pod(containers=[container("app")])) == {NAME, "shop/web/proxy"}
    assert inventory.remove("uid-1") == {NAME}
    assert inventory.remove("uid-1") == frozenset()
    assert len(inventory) == 0


OWNERS = (workload("web"), workload("api"), JOB, CRONJOB)
IMAGES = st.sampled_from([image("a"), image("b"), SkipReason.NO_DIGEST, None])
PODS = st.builds(
    pod,
    uid=st.sampled_from("12345"),
    owner=st.sampled_from(OWNERS),
    name=st.sampled_from(["p", "q"]),
    age=st.integers(0, 2),
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    terminating=st.booleans(),
    containers=st.lists(
        st.builds(Container, name=st.sampled_from(["app", "proxy"]), image=IMAGES),
        max_size=2,
        unique_by=lambda each: each.name,
    ),
)
SKIPPED = st.builds(
    Skipped,
    uid=st.sampled_from("12345"),
    namespace=st.just("shop"),
    name=st.just("p"),
    reason=st.sampled_from([SkipReason.BARE, SkipReason.IGNORED]),
)
EVENTS = st.lists(st.one_of(PODS, SKIPPED, st.sampled_from("12345")), max_size=14)
TEMPLATES = st.sampled_from([TEMPLATE, "{{namespace}}/{{containerName}}", "{{namespace}}"])
ACKNOWLEDGED = st.sampled_from([None, record("a"), record("b"), record("b").decommissioned()])


def rendered(template: str, owner: Pod, each: Container) -> str:
    return (
        template.replace("{{namespace}}", owner.namespace)
        .replace("{{deploymentName}}", owner.workload.name)
        .replace("{{containerName}}", each.name)
    )


def oracle(live: list[Pod], template: str, name: str, acknowledged: Record | None) -> Judgement:
    """Judge a name by the rules, slowly, from all live pods at once."""
    declared = [
        (each, next(c for c in each.containers if rendered(template, each, c) == name))
        for each in live
        if any(rendered(template, each, c) == name for c in each.containers)
    ]
    job = {"Job", "CronJob"}
    holding = [
        (each, declares)
        for each, declares in declared
        if each.terminating
        or each.phase in {"Pending", "Running", "Unknown"}
        or each.workload.kind in job
    ]
    if not holding:
        return Absent()
    runs_it = acknowledged is None or any(
        isinstance(declares.image, Image) and declares.image.digest == acknowledged.digest
        for _, declares in holding
    )
    started = [(each, declares) for each, declares in holding if declares.image is not None]
    staying = [
        (each, declares)
        for each, declares in started
        if not each.terminating
        and (
            each.phase == "Running"
            or (each.workload.kind in job and each.phase in {"Succeeded", "Failed"})
        )
    ]
    leaving = [(each, declares) for each, declares in started if each.terminating]
    ranked = sorted(staying or leaving, key=lambda pair: (pair[0].created, pair[0].name))
    if not ranked:
        return Held(displaced=False)
    newest, declares = ranked[-1]
    if not isinstance(declares.image, Image):
        return Held(displaced=not runs_it)
    return Deployed(
        record=Record.deployed(name, declares.image),
        workload=newest.workload,
        container=declares.name,
        displaced=not runs_it,
    )


@given(events=EVENTS, template=TEMPLATES, acknowledged=ACKNOWLEDGED)
def test_every_judgement_follows_from_the_live_pods_alone(
    events: list[Pod | Skipped | str], template: str, acknowledged: Record | None
) -> None:
    inventory = Inventory(template=template)
    live: dict[str, Pod | Skipped] = {}
    for event in events:
        names = set(inventory.names())
        before = {name: inventory.judge(name, acknowledged) for name in names}
        if isinstance(event, str):
            live.pop(event, None)
            changed = inventory.remove(event)
        else:
            live[event.uid] = event
            changed = inventory.observe(event)
        for name in (names | set(inventory.names())) - changed:
            assert inventory.judge(name, acknowledged) == before.get(name), "changed unheard"
    pods = [each for each in live.values() if isinstance(each, Pod)]
    declared = {rendered(template, each, c) for each in pods for c in each.containers}
    assert set(inventory.names()) == declared
    tie = len({each.age_rank for each in pods}) < len(pods)
    for name in {*declared, NAME}:
        found = inventory.judge(name, acknowledged)
        expected = oracle(pods, template, name, acknowledged)
        if not tie:
            assert found == expected
        assert isinstance(found, Absent) == isinstance(expected, Absent)
    assert len(inventory) == len(live)
    assert inventory.living() == {each.workload for each in pods if each.unfinished}


@given(
    pods=st.lists(
        st.one_of(PODS, SKIPPED),
        max_size=5,
        unique_by=(
            lambda each: each.uid,
            lambda each: each.age_rank if isinstance(each, Pod) else each.uid,
        ),
    ),
    data=st.data(),
    acknowledged=ACKNOWLEDGED,
)
def test_order_and_repetition_of_events_change_nothing(
    pods: list[Pod | Skipped], data: st.DataObject, acknowledged: Record | None
) -> None:
    repeated = data.draw(st.permutations(pods + pods))
    once, twice = inventory_of(pods), inventory_of(repeated)
    assert set(once.names()) == set(twice.names())
    for name in once.names():
        assert once.judge(name, acknowledged) == twice.judge(name, acknowledged)
    assert once.skipped() == twice.skipped()
    assert once.shared() == twice.shared()


@given(events=EVENTS, template=TEMPLATES)
def test_nothing_is_kept_of_pods_that_are_gone(
    events: list[Pod | Skipped | str], template: str
) -> None:
    inventory = Inventory(template=template)
    fresh = vars(Inventory(template=template))
    for event in events:
        if not isinstance(event, str):
            inventory.observe(event)
    for uid in "12345":
        inventory.remove(uid)
    assert vars(inventory) == fresh
