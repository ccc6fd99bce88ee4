"""
What goes on in a cluster, with the events of different pods in every order.

A watch keeps the order of one pod's events and nothing else: a new pod may be seen to run before
the old one is seen to go, or long after. Each scenario is told in all orders that a watch can bring
it in, and must end the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.builders import TEMPLATE, digest, raw_owner, raw_pod, record
from tracker.inventory import Absent, Deployed, Held, Inventory
from tracker.pods import Pod, read_pod

GONE: Final = "gone"
NAME: Final = "shop/web/app"
STATEFUL: Final = [raw_owner("StatefulSet", "web")]
JOB: Final = [raw_owner("Job", "web")]

State = Mapping[str, Any] | str


def state(
    letter: str = "a",
    phase: str = "Running",
    *,
    age: int = 0,
    owners: Sequence[Mapping[str, Any]] = tuple(STATEFUL),
    terminating: bool = False,
    started: bool = True,
    debug: bool = False,
) -> dict[str, Any]:
    """Return one state of a pod, to be given its uid and version."""
    made = raw_pod(
        owners=owners,
        phase=phase,
        letter=letter,
        name="web-0",
        creationTimestamp=f"2024-01-15T10:30:{age:02}Z",
    )
    if terminating:
        made["metadata"]["deletionTimestamp"] = "2024-01-15T12:00:00Z"
    if not started:
        made["status"].pop("containerStatuses")
    if debug:
        made["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "busybox"}]
        made["status"]["ephemeralContainerStatuses"] = [
            {"name": "debug", "image": "busybox", "imageID": f"busybox@{digest('d')}"}
        ]
    return made


SCENARIOS: Final[dict[str, tuple[Sequence[Sequence[State]], str]]] = {
    # Each list is one pod's life; the word is what stands in the end.
    "stateful-pod-replaced": (
        [
            [state("a"), state("a", terminating=True), GONE],
            [state("b", "Pending", age=9, started=False), state("b", age=9)],
        ],
        "b",
    ),
    "rollout": (
        [
            [state("a"), state("a", terminating=True), GONE],
            [state("a", age=1), state("a", age=1, terminating=True), GONE],
            [state("b", "Pending", age=9, started=False), state("b", age=9)],
        ],
        "b",
    ),
    "rolled-back": (
        [
            [state("a"), state("a", terminating=True), GONE],
            [state("b", age=5), state("b", age=5, terminating=True), GONE],
            [state("a", "Pending", age=9, started=False), state("a", age=9)],
        ],
        "a",
    ),
    "digest-comes-late": ([[state("a", started=False), state("a")]], "a"),
    "changed-in-place": ([[state("a"), state("b")]], "b"),
    "evicted-pod-lingers": (
        [[state("a"), state("a", "Failed")], [state("a", age=9), state("b", age=9)]],
        "b",
    ),
    "all-evicted": ([[state("a"), state("a", "Failed")], [state("a", "Failed", age=9)]], "absent"),
    "node-lost": ([[state("a"), state("a", "Unknown")]], "held"),
    "node-lost-and-replaced": (
        [[state("a"), state("a", "Unknown")], [state("a", "Pending", age=9), state("b", age=9)]],
        "b",
    ),
    "pending-for-ever": (
        [[state("a")], [state("b", "Pending", age=9, started=False)]],
        "a",
    ),
    "only-pending": ([[state("b", "Pending", started=False)], [state("a"), GONE]], "held"),
    "short-job": (
        [[state("a", "Pending", owners=JOB, started=False), state("a", "Succeeded", owners=JOB)]],
        "a",
    ),
    "job-tried-again": (
        [
            [state("a", owners=JOB), state("a", "Failed", owners=JOB)],
            [state("a", age=5, owners=JOB), state("a", "Succeeded", age=5, owners=JOB)],
        ],
        "a",
    ),
    "debugged": ([[state("a"), state("a", debug=True)]], "a"),
    "all-gone": (
        [[state("a"), state("a", terminating=True), GONE], [state("b", age=9), GONE]],
        "absent",
    ),
}


def interleavings(lives: Sequence[Sequence[State]]) -> Iterator[list[tuple[int, int]]]:
    """Yield every order of (pod, state) in which each pod's states keep theirs."""
    done = [0] * len(lives)

    def go(order: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        if all(count == len(life) for count, life in zip(done, lives, strict=True)):
            yield list(order)
            return
        for number, life in enumerate(lives):
            if done[number] < len(life):
                done[number] += 1
                yield from go([*order, (number, done[number] - 1)])
                done[number] -= 1

    yield from go([])


def tell(
    inventory: Inventory, lives: Sequence[Sequence[State]], pod: int, step: int
) -> frozenset[str]:
    """Let an inventory hear of a state of a pod."""
    told = lives[pod][step]
    if isinstance(told, str):
        return inventory.remove(f"uid-{pod}")
    metadata = {
        **told["metadata"],
        "uid": f"uid-{pod}",
        "resourceVersion": f"{10 * pod + step + 1}",
    }
    return inventory.observe(read_pod({**told, "metadata": metadata}))


def judged(inventory: Inventory) -> str:
    """Return what stands, in a word."""
    match inventory.judge(NAME, record("a")):
        case Deployed(record=stands):
            return stands.digest[-1]
        case Held():
            return "held"
        case Absent():
            return "absent"


@pytest.mark.parametrize("title", SCENARIOS)
def test_every_order_of_events_ends_the_same(title: str) -> None:
    lives, expected = SCENARIOS[title]
    orders = 0
    for order in interleavings(lives):
        orders += 1
        inventory = Inventory(template=TEMPLATE)
        for pod, step in order:
            before = judged(inventory)
            names = tell(inventory, lives, pod, step)
            assert judged(inventory) == before or names == {NAME}, "changed unheard"
        assert judged(inventory) == expected, order
    assert orders >= 1


@pytest.mark.parametrize("title", ["rollout", "rolled-back", "pending-for-ever"])
def test_while_pods_are_replaced_the_name_is_never_without_one(title: str) -> None:
    """In the order of a rollout, where new pods run before old ones go, nothing ever looks gone."""
    lives, _ = SCENARIOS[title]
    for order in interleavings(lives):
        runs_at = order.index((len(lives) - 1, len(lives[-1]) - 1))
        goes_at = [order.index((number, 2)) for number, life in enumerate(lives) if len(life) > 2]
        if goes_at and min(goes_at) < runs_at:
            continue
        inventory = Inventory(template=TEMPLATE)
        for pod, step in order:
            tell(inventory, lives, pod, step)
            assert judged(inventory) != "absent"


@settings(max_examples=200)
@given(title=st.sampled_from(sorted(SCENARIOS)), data=st.data())
def test_states_that_come_again_or_late_change_nothing(title: str, data: st.DataObject) -> None:
    """A list and the watch overlap: an older state of a pod that is there may come once more."""
    lives, expected = SCENARIOS[title]
    order = data.draw(st.sampled_from(list(interleavings(lives))))
    inventory = Inventory(template=TEMPLATE)
    gone: set[int] = set()
    for at, (pod, step) in enumerate(order):
        tell(inventory, lives, pod, step)
        if lives[pod][step] == GONE:
            gone.add(pod)
        earlier = [each for each in order[: at + 1] if each[0] not in gone]
        for again in data.draw(st.lists(st.sampled_from(earlier), max_size=3)) if earlier else []:
            tell(inventory, lives, *again)
    assert judged(inventory) == expected


def test_the_scenarios_are_of_one_name() -> None:
    for lives, _ in SCENARIOS.values():
        for told in (each for life in lives for each in life if not isinstance(each, str)):
            pod = read_pod(told)
            assert isinstance(pod, Pod)
            assert [each.name for each in pod.containers] == ["app"], "the debugger is none"
            assert (pod.namespace, pod.workload.name) == ("shop", "web")
