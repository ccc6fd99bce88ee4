"""What should stand, from the pods that were seen, however they came to be seen."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import (
    TEMPLATE,
    container,
    digest,
    image,
    pod,
    raw_pod,
    record,
    workload,
)
from tracker.annotations import NO_MARKS, Marks, Problem
from tracker.images import Image, ImageRules, SkipReason
from tracker.inventory import Absent, Deployed, Held, Inventory, Judgement
from tracker.pods import Container, Pod, Rules, Skipped, read_pod
from tracker.records import Record

NAME: Final = "shop/web/app"
JOB: Final = workload("import", kind="Job")
CRONJOB: Final = workload("nightly", kind="CronJob")
ALIASED: Final = replace(image(version=None, name="registry.local/stage"), asked="ghcr.io/acme/app")
"""What a node tells of the image of the letter a that knows it by another name as well."""
UNTOLD: Final = SkipReason.NO_DIGEST


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
        pytest.param(
            [terminating("b", "2", age=1), terminating("a", "1")], None, "b", id="seen-in-any-order"
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


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        pytest.param(("ghcr.io/acme/app", "v1"), "held", id="same"),
        pytest.param(("ghcr.io/acme/app", "v2"), "held displaced", id="another-version"),
        pytest.param(("ghcr.io/acme/other", "v1"), "held displaced", id="another-name"),
        pytest.param(None, "held displaced", id="not-in-accord"),
    ],
)
def test_the_same_image_without_a_digest_is_not_taken_for_another(
    named: tuple[str, str] | None, expected: str
) -> None:
    """It was brought to the node and not pulled, so its runtime knows no manifest's digest."""
    moved = pod("2", age=1, containers=[Container(name="app", image=UNTOLD, named=named)])
    assert judged([moved], acknowledged=record("a")) == expected


@pytest.mark.parametrize(
    ("pods", "acknowledged", "said"),
    [
        pytest.param([0, 1], None, ("ghcr.io/acme/app", "v1"), id="an-older-pod-agrees"),
        pytest.param([1], "a", ("ghcr.io/acme/app", "v1"), id="acknowledged"),
        pytest.param([1], "b", ("registry.local/stage", None), id="another-is-acknowledged"),
        pytest.param([1], None, ("registry.local/stage", None), id="nobody-says-otherwise"),
        pytest.param([2, 1], None, ("registry.local/stage", None), id="older-runs-another"),
    ],
)
def test_how_a_node_calls_an_image_makes_no_other_record_of_it(
    pods: list[int], acknowledged: str | None, said: tuple[str, str | None]
) -> None:
    each = [
        running("a", "0"),
        pod("1", age=2, containers=[Container(name="app", image=ALIASED)]),
        running("b", "2"),
    ]
    held = None if acknowledged is None else record(acknowledged)
    judgement = inventory_of(each[number] for number in pods).judge(NAME, held)
    assert isinstance(judgement, Deployed)
    assert judgement.record.digest == digest("a")
    assert (judgement.record.name, judgement.record.version) == said


RULES: Final = Rules(
    images=ImageRules(
        include=("ghcr.io/acme/*", "quay.io/acme/*"),
        repositories=(("ghcr.io/acme/old", "old"), ("ghcr.io/*", "app"), ("quay.io/*", "quay")),
    )
)


def seen(spec: str, status: str, letter: str = "a", *, uid: str = "1") -> Pod:
    """Return a pod as it is read that asks for an image, and whose node tells of another."""
    raw = raw_pod(uid, name=f"web-5d8f-{uid}", creationTimestamp=f"2024-01-15T10:30:0{uid}Z")
    raw["spec"]["containers"] = [{"name": "app", "image": spec}]
    image_id = f"{status.partition(':')[0]}@{digest(letter)}"
    raw["status"] = {
        "phase": "Running",
        "containerStatuses": [{"name": "app", "image": status, "imageID": image_id}],
    }
    pod = read_pod(raw, rules=RULES)
    assert isinstance(pod, Pod)
    return pod


def told(*pods: Pod, acknowledged: Record | None = None) -> tuple[str | None, ...]:
    """Return name, version and repository of what is to stand, or nothing and what it is."""
    judgement = inventory_of(pods).judge(NAME, acknowledged)
    if not isinstance(judgement, Deployed):
        return (f"held{' displaced' * (isinstance(judgement, Held) and judgement.displaced)}",)
    made = judgement.record
    return made.name, made.version, made.repository


def acknowledged_of(name: str, version: str, letter: str = "a") -> Record:
    return replace(record(letter), name=name, version=version)


def test_a_name_has_its_own_repository_whichever_of_them_a_node_tells() -> None:
    app, quay = "ghcr.io/acme/app:1", "quay.io/acme/mirror:1"
    right = ("ghcr.io/acme/app", "1", "app")
    assert told(seen(app, app)) == right
    aliased = seen(app, quay)
    assert told(aliased, acknowledged=acknowledged_of("ghcr.io/acme/app", "1")) == right
    assert told(seen(app, app), seen(app, quay, uid="2")) == right
    assert told(aliased) == ("quay.io/acme/mirror", None, "quay"), "nobody says otherwise"
    before = replace(acknowledged_of("ghcr.io/acme/before", "1"), repository="before")
    assert told(aliased, acknowledged=before) == ("ghcr.io/acme/before", "1", "before")


def test_a_change_in_place_tells_nothing_of_the_new_image_before_it_runs() -> None:
    old, new = "ghcr.io/acme/old:1", "ghcr.io/acme/new:2"
    changing = seen(new, old)
    held = acknowledged_of("ghcr.io/acme/old", "1")
    assert told(changing, acknowledged=held) == ("ghcr.io/acme/old", "1", "old")
    assert told(changing) == ("ghcr.io/acme/old", None, "old")
    # From one that is left out, and to one.
    assert told(seen(new, "docker.io/vendor/x:1")) == ("held",)
    assert told(seen("docker.io/vendor/x:1", old), acknowledged=held) == (
        ("ghcr.io/acme/old", "1", "old")
    )


def test_a_name_of_the_node_that_is_left_out_takes_nothing_back() -> None:
    app, staging = "ghcr.io/acme/app:1", "registry.local/stage:1"
    held = acknowledged_of("ghcr.io/acme/app", "1")
    moved = seen(app, staging, uid="2")
    assert told(moved, acknowledged=held) == ("ghcr.io/acme/app", "1", None)
    ended = replace(held, repository="app").decommissioned()
    assert told(moved, acknowledged=ended) == ("ghcr.io/acme/app", "1", "app"), "it runs again"
    assert told(seen(app, app), moved, acknowledged=held) == ("ghcr.io/acme/app", "1", "app")
    assert told(seen(app, app), moved) == ("ghcr.io/acme/app", "1", "app")
    assert told(moved) == ("held",), "which of its names is to be recorded nobody says"
    # What ran before is another image all the same, and what is left out by both names is.
    assert told(moved, acknowledged=acknowledged_of("ghcr.io/acme/app", "0", "b")) == (
        ("held displaced",)
    )
    left_out = seen("docker.io/vendor/x:1", staging)
    assert told(left_out, acknowledged=held) == ("held displaced",)


def test_a_job_that_waits_to_start_again_does_not_speak_before_it_runs() -> None:
    """Its container ran before, or its image is there already: the pod does not run."""
    pods = [
        pod("1", owner=JOB, phase="Running", containers=[container(letter="a")]),
        pod("2", owner=JOB, age=5, phase="Pending", containers=[container(letter="b")]),
    ]
    assert judged(pods, "shop/import/app") == "a"


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


def test_pods_of_one_workload_share_no_name() -> None:
    assert inventory_of([running("a", "1"), running("b", "2")]).shared() == set()


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


def test_a_pod_that_may_have_gone_unseen_does_not_speak_for_its_name() -> None:
    """After a gap in the watch an older pod that is gone must not follow a newer one that goes."""
    inventory = inventory_of([running("a", "old", age=1)])
    inventory.doubt()
    assert inventory.judge(NAME, record("a")) == Held(displaced=False)
    inventory.observe(running("b", "new", age=2))
    assert inventory.judge(NAME, record("a")) == Held(displaced=False)
    inventory.remove("new")
    assert inventory.judge(NAME, record("b")) == Held(displaced=False)
    assert inventory.remove("old") == {NAME}  # a reconcile showed that it has gone
    assert inventory.judge(NAME, record("b")) == Absent()


def test_a_list_that_is_half_read_does_not_bring_back_the_older_half_of_a_rollout() -> None:
    """Once, the first successor that a page brought spoke at once, whatever the next one held."""
    inventory = inventory_of([running("a", "old-1", age=1), running("b", "old-2", age=2)])
    inventory.doubt()  # in the gap both were replaced
    inventory.observe(running("a", "new-1", age=8))
    assert inventory.judge(NAME, record("b")) == Held(displaced=False)
    inventory.observe(running("b", "new-2", age=9))
    assert inventory.judge(NAME, record("b")) == Held(displaced=False)
    for uid in ("old-1", "old-2"):
        inventory.remove(uid)  # a reconcile showed that they have gone
    judgement = inventory.judge(NAME, record("b"))
    assert isinstance(judgement, Deployed)
    assert judgement.record == record("b")


def test_a_pod_that_is_seen_again_speaks_again_and_its_names_are_looked_at() -> None:
    inventory = inventory_of([running("a", "old")])
    assert inventory.observe(running("a", "old")) == frozenset()
    inventory.doubt()
    assert inventory.observe(running("a", "old")) == {NAME}
    assert inventory.judge(NAME, None) == judgement_of([running("a", "old")])


def test_a_list_ends_doubts_that_are_not_newer_than_it() -> None:
    inventory = inventory_of([running("a", "old")])
    inventory.doubt()
    gaps = inventory.gaps
    inventory.doubt()  # while the list was under way
    assert inventory.trust(gaps) == frozenset()
    assert inventory.judge(NAME, None) == Held(displaced=False)
    assert inventory.trust(inventory.gaps) == {NAME}
    assert inventory.judge(NAME, None) == judgement_of([running("a", "old")])


def judgement_of(pods: Iterable[Pod]) -> Judgement:
    return inventory_of(pods).judge(NAME, None)


def test_an_event_names_what_it_may_change_and_nothing_else() -> None:
    inventory = Inventory(template=TEMPLATE)
    two = pod(containers=[container("app"), container("proxy")])
    assert inventory.observe(two) == {NAME, "shop/web/proxy"}
    assert inventory.observe(two) == frozenset()
    assert inventory.observe(pod(containers=[container("app")])) == {NAME, "shop/web/proxy"}
    assert inventory.remove("uid-1") == {NAME}
    assert inventory.remove("uid-1") == frozenset()
    assert len(inventory) == 0


# What workloads say.

TAGGED: Final = Marks(tags=(("team", "x"),))


def of_workload(marks: Marks | None, *pods: Pod) -> Inventory:
    """Return an inventory of pods whose workload says this."""
    inventory = Inventory(template=TEMPLATE, marks_of=lambda _workload: marks)
    for each in pods:
        inventory.observe(each)
    return inventory


def tags_of(judgement: Judgement) -> tuple[tuple[str, str], ...]:
    assert isinstance(judgement, Deployed)
    return judgement.record.tags


def test_what_pod_and_workload_say_is_in_the_record_and_the_pods_counts() -> None:
    own = pod(marks=Marks(tags=(("tier", "gold"),)))
    assert tags_of(of_workload(TAGGED, own).judge(NAME, None)) == (("team", "x"), ("tier", "gold"))
    other = pod(marks=Marks(tags=(("team", "y"),)))
    assert tags_of(of_workload(TAGGED, other).judge(NAME, None)) == (("team", "y"),)


def test_the_newest_pod_says_what_is_said() -> None:
    old, new = (pod(str(age), age=age, marks=Marks(tags=(("age", str(age)),))) for age in (0, 1))
    assert tags_of(inventory_of([new, old]).judge(NAME, None)) == (("age", "1"),)


def test_what_a_workload_says_is_kept_while_it_is_not_known() -> None:
    inventory = of_workload(None, pod(marks=Marks(tags=(("tier", "gold"),))))
    before = Record.deployed(NAME, image("b"), TAGGED)
    assert tags_of(inventory.judge(NAME, before)) == (("team", "x"), ("tier", "gold"))
    assert tags_of(inventory.judge(NAME, None)) == (("tier", "gold"),)
    assert tags_of(inventory.judge(NAME, before.decommissioned())) == (("tier", "gold"),)


def test_a_changed_annotation_of_a_pod_is_an_event_of_its_names() -> None:
    inventory = inventory_of([pod()])
    assert inventory.observe(pod(marks=TAGGED)) == {NAME}
    assert inventory.observe(pod(marks=TAGGED)) == frozenset()


@pytest.mark.parametrize(
    ("own", "of_owner", "ignored"),
    [(None, True, True), (False, True, False), (None, False, False), (None, None, False)],
)
def test_a_workload_that_is_ignored_has_no_names_unless_the_pod_says_otherwise(
    own: bool | None,  # noqa: FBT001 - a parameter of the table
    of_owner: bool | None,  # noqa: FBT001
    ignored: bool,  # noqa: FBT001
) -> None:
    inventory = of_workload(Marks(ignored=of_owner), pod(marks=Marks(ignored=own)))
    assert isinstance(inventory.judge(NAME, record()), Absent) == ignored
    assert (NAME not in inventory.held_names()) == ignored
    assert inventory.skipped() == ({SkipReason.IGNORED: 1} if ignored else {})
    assert inventory.living() == {workload()}, "it has pods all the same"


def test_an_ignored_pod_is_of_a_workload_that_lives() -> None:
    ignored = Skipped(
        uid="1", namespace="shop", name="p", reason=SkipReason.IGNORED, workload=workload()
    )
    assert inventory_of([ignored]).living() == {workload()}


def test_what_can_not_be_used_is_counted_by_workload() -> None:
    bad = Marks(problems=frozenset({Problem.TAG}))
    pods = [pod(str(number), marks=bad) for number in range(3)]
    other = pod("9", owner=workload("api"), marks=bad)
    assert inventory_of([*pods, other]).problems() == {Problem.TAG: 2}


def test_a_job_that_turns_out_to_be_a_cronjobs_gives_its_pods_the_name_of_that() -> None:
    parts = {JOB: JOB}
    inventory = Inventory(template=TEMPLATE, resolve=lambda one: parts.get(one, one))
    inventory.observe(pod(owner=JOB))
    assert inventory.reassign() == frozenset()
    parts[JOB] = CRONJOB
    assert inventory.reassign() == {"shop/import/app", "shop/nightly/app"}
    assert inventory.names() == {"shop/nightly/app"}
    assert inventory.reassign() == frozenset()
    del parts[JOB]
    # The Job is gone and its pod on its way out: whose it was stands.
    assert inventory.observe(pod(owner=JOB, terminating=True)) == {"shop/nightly/app"}
    assert inventory.names() == {"shop/nightly/app"}


OWNERS = (workload("web"), workload("api"), JOB, CRONJOB)
IMAGES = st.sampled_from([image("a"), image("b"), ALIASED, UNTOLD, None])
NAMED = st.sampled_from([None, (image().name, "v1"), (image().name, "v2")])
PODS = st.builds(
    pod,
    uid=st.sampled_from("12345"),
    owner=st.sampled_from(OWNERS),
    name=st.sampled_from(["p", "q"]),
    age=st.integers(0, 2),
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    terminating=st.booleans(),
    containers=st.lists(
        st.builds(Container, name=st.sampled_from(["app", "proxy"]), image=IMAGES, named=NAMED).map(
            lambda each: each if each.image is UNTOLD else replace(each, named=None)
        ),
        max_size=2,
        unique_by=lambda each: each.name,
    ),
    marks=st.sampled_from([NO_MARKS, TAGGED, Marks(ignored=False)]),
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
        declares.image.digest == acknowledged.digest
        if isinstance(declares.image, Image)
        else declares.named == (acknowledged.name, acknowledged.version)
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
        return Held(displaced=False, idle=True)
    newest, declares = ranked[-1]
    if not isinstance(declares.image, Image):
        return Held(displaced=not runs_it)
    told = declares.image
    if told == ALIASED:
        if any(one.image == image() for _, one in (*staying, *leaving)):
            told = image()
        elif acknowledged is not None and acknowledged.digest == told.digest:
            told = replace(told, name=acknowledged.name, version=acknowledged.version)
    return Deployed(
        record=Record.deployed(name, told, newest.marks),
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
