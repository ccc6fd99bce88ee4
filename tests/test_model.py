"""
The whole tracker as a state machine: whatever happens in whatever order, the promises hold.

Hypothesis plays the cluster, the watch, GitHub, the scheduler and death; `tests.support.model`
holds every step to what was promised. The defects at the end are planted to show that the model
would notice them. `HYPOTHESIS_PROFILE=random` searches longer, and elsewhere in each run.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.builders import digest, image, workload
from tests.support.model import Ledger, Tracker
from tests.support.modelworld import BrokenPromiseError, Outcome, World, promise
from tracker import entries
from tracker.answers import Acknowledged, Answer, Failed, Limited
from tracker.entries import Entry, Send, State, Step
from tracker.images import Image, SkipReason
from tracker.inventory import Judgement
from tracker.ledger_schema import Moment
from tracker.records import Record
from tracker.workloads import Workload

pytestmark = pytest.mark.fault("G10")

WEB, API = DEPLOYMENTS = workload("web"), workload("api")
JOB: Final = workload("import", kind="Job")
WORKLOADS: Final = st.sampled_from([DEPLOYMENTS[0], DEPLOYMENTS[0], DEPLOYMENTS[1], JOB])
IMAGES: Final = st.sampled_from(
    [*map(image, "abc"), image("a", version="v2"), SkipReason.NO_DIGEST]
)
GOOD_IMAGES: Final = st.sampled_from([*map(image, "ab")])
CONTAINERS: Final = {DEPLOYMENTS[0]: ["app"], DEPLOYMENTS[1]: ["app", "proxy"], JOB: ["app"]}
FATES: Final = ("start", "start", "terminate", "delete", "delete", "Succeeded", "Failed", "Unknown")
PICK: Final = st.integers(0, 5)
WAITS: Final = st.sampled_from([0.0, 6.0, 6.0, 61.0, 130.0])
WORKERS: Final = 3
EXAMPLES: Final = 150
OK, LATE, HANG = Outcome.ACKNOWLEDGED, Outcome.RESET_AND_LATE, Outcome.HANG_AND_LATE
LIMITED: Final = Outcome.LIMITED_FOR_SECONDS
MANY_PODS: Final = 8
SETTLED_SECONDS: Final = 2 * 3600.0
REFUSED_SECONDS: Final = 60 * 3600.0
OUTCOMES: Final = st.one_of(
    st.just(Outcome.ACKNOWLEDGED),
    st.just(Outcome.ACKNOWLEDGED),
    st.just(Outcome.RESET_AND_LATE),
    st.sampled_from(Outcome),
)
JUMPS: Final = st.sampled_from([0.0, 0.0, 86_400.0, -86_400.0, 3600.0])

Course = Sequence[tuple[Outcome, float]]
COURSES: Final = st.lists(st.tuples(OUTCOMES, WAITS), max_size=4)
STEPS_OF_A_SEND: Final = 5

T = TypeVar("T")


def pick(number: int, choices: Sequence[T]) -> T:
    return choices[number % len(choices)]


class Model(RuleBasedStateMachine):
    """Everything that can happen, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.ledger = Ledger()
        self.tracker: Tracker | None = None
        self.start()
        self.bring_all()

    # The cluster. What follows is often what usually follows.

    @rule(owner=WORKLOADS, spec=IMAGES, started=st.booleans(), course=COURSES)
    def a_pod_comes(
        self, owner: Workload, spec: Image | SkipReason, course: Course, *, started: bool
    ) -> None:
        if len(self.world.pods) < MANY_PODS:
            self.new_pod(owner, spec, started=started)
        self.follow(course)

    def new_pod(self, owner: Workload, spec: Image | SkipReason, *, started: bool) -> None:
        uid = self.world.create(owner, spec, CONTAINERS[owner])
        if started:
            self.world.start(uid)

    @precondition(lambda self: self.world.pods)
    @rule(number=PICK, fate=st.sampled_from(FATES), course=COURSES)
    def something_befalls_a_pod(self, number: int, fate: str, course: Course) -> None:
        uid = pick(number, list(self.world.pods))
        if fate == "start":
            self.world.start(uid)
        elif fate == "terminate":
            self.world.terminate(uid)
        elif fate == "delete":
            self.world.delete(uid)
        else:
            self.world.finish(uid, fate)
        self.follow(course)

    @precondition(lambda self: self.world.pods)
    @rule(number=PICK, spec=IMAGES, course=COURSES)
    def a_pod_is_patched_in_place(
        self, number: int, spec: Image | SkipReason, course: Course
    ) -> None:
        uid = pick(number, list(self.world.pods))
        self.world.specs[uid] = spec
        self.world.start(uid)
        self.follow(course)

    @rule(owner=WORKLOADS, specs=st.lists(IMAGES, min_size=1, max_size=3), course=COURSES)
    def a_workload_rolls_out(
        self, owner: Workload, specs: Sequence[Image | SkipReason], course: Course
    ) -> None:
        for spec in specs:
            old = self.world.uids(owner)
            self.tick(0.5)
            self.new_pod(owner, spec, started=True)
            for uid in old:
                self.world.terminate(uid)
                self.world.delete(uid)
            self.follow(course)

    @rule(owner=WORKLOADS, course=COURSES)
    def a_workload_is_deleted(self, owner: Workload, course: Course) -> None:
        self.world.remove(owner)
        self.follow(course)

    @rule(owner=st.sampled_from(DEPLOYMENTS), course=COURSES)
    def a_workload_is_scaled_to_zero(self, owner: Workload, course: Course) -> None:
        known = {
            name: entry.acknowledged
            for name, entry in self.ledger.entries.items()
            if entry.acknowledged is not None and entry.last is entry.acknowledged
        }
        self.world.scale_to_zero(owner, known)
        self.follow(course)

    # The watch.

    @precondition(lambda self: self.tracker)
    @rule()
    def the_watch_breaks_or_begins_anew(self) -> None:
        if self.world.connected:
            self.world.disconnect()
        elif self.tracker:
            self.tracker.watch_anew()

    @precondition(lambda self: self.tracker and self.world.undelivered)
    @rule(number=PICK, coalesced=st.booleans())
    def the_watch_brings_one(self, number: int, *, coalesced: bool) -> None:
        if self.tracker:
            uid = pick(number, sorted(self.world.undelivered))
            self.world.deliver(self.tracker, uid, coalesced=coalesced)

    @precondition(lambda self: self.tracker and self.world.last_delivered)
    @rule()
    def the_watch_repeats_itself(self) -> None:
        if self.tracker and self.world.last_delivered:
            self.tracker.hear_of(*self.world.last_delivered)

    def bring_all(self) -> None:
        """Let the watch bring all there is, and the gate open."""
        while self.tracker and self.world.undelivered:
            self.world.deliver(self.tracker, min(self.world.undelivered), coalesced=False)
        self.list_first()

    # Lists.

    @precondition(lambda self: self.tracker and not self.tracker.gate_open)
    @rule()
    def pods_are_listed_at_the_start(self) -> None:
        self.list_first()

    def list_first(self) -> None:
        if self.tracker and not self.tracker.gate_open:
            self.tracker.list_first()
            if self.tracker.may_open:
                self.tracker.open_gate()

    @precondition(lambda self: self.tracker and self.tracker.gate_open)
    @rule(steps=st.integers(1, 3))
    def reconcile_goes_on(self, steps: int) -> None:
        for _ in range(steps):
            if self.tracker:
                self.tracker.reconcile()

    @precondition(lambda self: self.tracker and self.tracker.gate_open)
    @rule(owner=WORKLOADS, spec=IMAGES, course=COURSES)
    def the_watch_overtakes_a_list(
        self, owner: Workload, spec: Image | SkipReason, course: Course
    ) -> None:
        if self.tracker:
            while self.tracker.listed is None:
                self.tracker.reconcile()
            self.new_pod(owner, spec, started=True)
            self.follow(course)
            self.tracker.reconcile()

    @rule(owner=WORKLOADS, spec=IMAGES, course=COURSES)
    def a_list_overtakes_the_watch(
        self, owner: Workload, spec: Image | SkipReason, course: Course
    ) -> None:
        self.bring_all()
        old = self.world.uids(owner)
        self.new_pod(owner, spec, started=True)
        for uid in old:
            self.world.delete(uid)
            if self.tracker and uid in self.world.undelivered:
                self.world.deliver(self.tracker, uid, coalesced=False)
        self.follow(course, brought=False)

    @precondition(
        lambda self: self.tracker and (self.tracker.due or self.tracker.confirming is not None)
    )
    @rule()
    def absences_are_confirmed(self) -> None:
        self.confirm()

    def confirm(self) -> None:
        if self.tracker and self.tracker.confirming is not None:
            self.tracker.confirm_absences()
        elif self.tracker and self.tracker.due:
            self.tracker.list_absences()

    # GitHub and the workers.

    @precondition(lambda self: self.tracker and (self.tracker.busy or self.tracker.queue))
    @rule(number=PICK, outcome=OUTCOMES, steps=st.integers(1, 5))
    def a_worker_goes_on(self, number: int, outcome: Outcome, steps: int) -> None:
        if self.tracker:
            name = pick(number, [*self.tracker.busy, *self.tracker.queue])
            for _ in range(steps):
                self.tracker.advance(name, outcome)

    @precondition(lambda self: self.tracker)
    @rule(course=COURSES, brought=st.booleans())
    def things_take_their_course(self, course: Course, *, brought: bool) -> None:
        self.follow(course, brought=brought)

    def follow(self, course: Course, *, brought: bool = True) -> None:
        """Let the watch bring all, absences be confirmed and workers work, with these outcomes."""
        if course and brought:
            self.bring_all()
        for outcome, seconds in course:
            self.confirm()
            self.confirm()
            if self.tracker:
                for name in [*self.tracker.busy, *self.tracker.queue] * STEPS_OF_A_SEND:
                    self.tracker.advance(name, outcome)
            self.tick(seconds)

    @rule(letter=st.sampled_from("abc"))
    def github_changes_its_mind_about_a_digest(self, letter: str) -> None:
        if digest(letter) in self.world.known:
            self.world.rejected ^= {digest(letter)}
        self.world.known.add(digest(letter))

    @precondition(lambda self: self.world.late)
    @rule(number=PICK)
    def what_was_late_lands(self, number: int) -> None:
        self.world.land(pick(number, self.world.late))

    # Time and death.

    @rule(seconds=st.sampled_from([0.5, 5.0, 31.0, 61.0, 121.0, 400.0, 4000.0, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.tick(seconds)

    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)
        if self.tracker:
            self.tracker.wake()

    @rule(jump=JUMPS, at_once=st.booleans())
    def the_process_is_killed_or_starts(self, jump: float, *, at_once: bool) -> None:
        if self.tracker:
            self.kill()
            if not at_once:
                return
        self.start(jump)

    def kill(self) -> None:
        if self.tracker:
            self.tracker.die()
        self.tracker = None
        self.world.disconnect()

    def start(self, jump: float = 0.0) -> None:
        world = self.world
        then = Moment(loop=world.now, wall=world.now + world.wall_offset)
        world.wall_offset += jump
        now = Moment(loop=world.now, wall=world.now + world.wall_offset)
        world.excuses.update(self.ledger.reopen(then, now))
        # A limit's end is kept as a wall time: nothing else can be known after a stop.
        world.limited_until = min(world.limited_until, self.ledger.pause_until)
        self.tracker = Tracker(world, self.ledger, workers=WORKERS)

    # What must always hold.

    @invariant()
    def what_is_due_is_looked_at(self) -> None:
        if self.tracker:
            self.tracker.check_awake()

    @invariant()
    def memory_is_bounded(self) -> None:
        if self.tracker:
            self.tracker.check_bounded()

    def teardown(self) -> None:
        """Heal everything, come to rest, and hold GitHub against the cluster."""
        if self.tracker is None:
            self.start()
        assert self.tracker is not None
        self.tracker.rest(SETTLED_SECONDS)
        self.world.check_converged(self.ledger.entries, refused_too=False)
        self.world.rejected.clear()
        self.world.known.add(digest("c"))
        self.tracker.rest(REFUSED_SECONDS)
        self.world.check_converged(self.ledger.entries, refused_too=True)
        promise(not self.tracker.timers, "rest is rest", self.tracker.timers)
        promise(not self.tracker.wanted, "rest is rest", self.tracker.wanted)
        posts = self.world.posts
        self.kill()
        self.start()
        self.tracker.rest(SETTLED_SECONDS)
        promise(self.world.posts == posts, "a restart without change posts nothing")


IN_CI: Final = os.environ.get("HYPOTHESIS_PROFILE", "ci") == "ci"
TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES if IN_CI else 40 * EXAMPLES,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)


# What it found once: each sequence is the shortest that broke a promise.


def test_a_decommission_with_an_open_end_is_asked_for_again() -> None:
    """Once, it was given up while other pods held the name, and a late post stood for ever."""
    model = Model()
    model.a_pod_comes(
        owner=WEB, spec=image("b"), started=True, course=[(Outcome.RESET_AND_LATE, 61.0)]
    )
    model.a_pod_is_patched_in_place(
        number=0,
        spec=SkipReason.NO_DIGEST,
        course=[(Outcome.ERROR_AFTER_ALL, 6.0), (Outcome.ERROR_AFTER_ALL, 6.0)],
    )
    model.teardown()


def test_of_two_open_posts_the_first_is_not_forgotten() -> None:
    """Once, only one was remembered, and the other landed unnoticed after the rollback."""
    model = Model()
    course = [(HANG, 0.0), (OK, 61.0), (OK, 6.0)]
    model.a_workload_rolls_out(owner=WEB, specs=[image("b"), image("a")], course=course)
    model.a_worker_goes_on(number=0, outcome=Outcome.LIMITED_FOR_SECONDS, steps=5)
    model.a_workload_rolls_out(owner=WEB, specs=[image("b")], course=[])
    model.teardown()


def test_a_decommission_that_is_not_found_forgets_no_other_open_post() -> None:
    """Once, the digest of the later open post was asked back, not found, and the name forgotten."""
    model = Model()
    model.a_workload_rolls_out(owner=WEB, specs=[image("b")], course=[(LATE, 2.0)])
    model.a_workload_rolls_out(owner=WEB, specs=[image("c")], course=[])
    model.bring_all()
    model.a_worker_goes_on(number=0, outcome=OK, steps=2)
    model.the_process_is_killed_or_starts(jump=0.0, at_once=True)
    model.a_workload_is_deleted(owner=WEB, course=[])
    model.teardown()


def test_what_is_to_be_settled_does_not_take_turns_with_what_is_refused() -> None:
    """Once, three refused records sent each other off without a wait between them."""
    model = Model()
    model.a_pod_comes(
        owner=WEB, spec=image("a"), started=True, course=[(HANG, 6.0), (OK, 61.0), (OK, 6.0)]
    )
    model.a_pod_is_patched_in_place(number=0, spec=image("a", version="v2"), course=[(OK, 6.0)])
    model.world.rejected.add(digest("a"))
    model.a_pod_is_patched_in_place(number=0, spec=image("c"), course=[])
    model.teardown()


def test_a_digest_that_runs_again_is_not_decommissioned_once_more() -> None:
    """Once, the settling of its decommission came although its new record was only parked."""
    model = Model()
    model.a_pod_comes(
        owner=WEB, spec=image("a", version="v2"), started=True, course=[(Outcome.RESET, 130.0)]
    )
    model.a_pod_is_patched_in_place(
        number=0, spec=SkipReason.NO_DIGEST, course=[(OK, 6.0), (OK, 61.0)]
    )
    model.a_pod_is_patched_in_place(
        number=0, spec=image("a"), course=[(Outcome.INVALID, 130.0), (OK, 0.0)]
    )
    model.teardown()


@pytest.mark.fault("L11")
@pytest.mark.parametrize("outcome", [LIMITED, LATE])
def test_a_clock_that_was_set_back_holds_no_name_back(outcome: Outcome) -> None:
    """Once, a wait of seconds became one of a day when the clock was set back before a restart."""
    model = Model()
    model.a_workload_rolls_out(owner=WEB, specs=[image("a")], course=[(outcome, 6.0)])
    model.the_process_is_killed_or_starts(jump=-86_400.0, at_once=True)
    model.a_workload_rolls_out(owner=WEB, specs=[image("b")], course=[])
    model.teardown()


def test_a_clock_that_was_set_forward_settles_nothing_before_its_time() -> None:
    """Once, the second post came at the restart, and what was late landed after it."""
    model = Model()
    model.a_workload_rolls_out(owner=WEB, specs=[image("a")], course=[(LATE, 2.0)])
    model.a_workload_rolls_out(owner=WEB, specs=[image("b")], course=[(OK, 2.0)])
    model.the_process_is_killed_or_starts(jump=86_400.0, at_once=True)
    model.teardown()


# Defects, planted to show that the model notices them.


def acknowledge_at_once(patch: pytest.MonkeyPatch) -> None:
    conclude = entries.conclude

    def defect(entry: Entry, answer: Answer, *, now: float, chance: float) -> Entry:
        lost = isinstance(answer, Failed) and answer.landed
        return conclude(entry, Acknowledged() if lost else answer, now=now, chance=chance)

    patch.setattr(entries, "conclude", defect)


def skip_the_intent(patch: pytest.MonkeyPatch) -> None:
    put = Ledger.put

    def defect(ledger: Ledger, entry: Entry, *, said: Record | None) -> None:
        if entry.state is not State.SENDING:
            put(ledger, entry, said=said)

    patch.setattr(Ledger, "put", defect)


def note_what_was_seen_after_the_list(patch: pytest.MonkeyPatch) -> None:
    mend = Tracker.mend

    def defect(tracker: Tracker) -> None:
        tracker.take_snapshot()
        mend(tracker)

    patch.setattr(Tracker, "mend", defect)


def retry_the_older_state(patch: pytest.MonkeyPatch) -> None:
    next_step = entries.next_step

    def defect(judgement: Judgement, entry: Entry | None, **more: Any) -> Step:  # noqa: ANN401
        step = next_step(judgement, entry, **more)
        if isinstance(step, Send) and entry is not None and entry.unsettled is not None:
            return replace(step, record=entry.unsettled)
        return step

    patch.setattr(entries, "next_step", defect)


def send_before_the_gate(patch: pytest.MonkeyPatch) -> None:
    begin = Tracker.begin

    def defect(tracker: Tracker) -> None:
        begin(tracker)
        tracker.gate_open = True

    patch.setattr(Tracker, "begin", defect)


def forget_an_open_send(patch: pytest.MonkeyPatch) -> None:
    conclude = entries.conclude

    def defect(entry: Entry, answer: Answer, *, now: float, chance: float) -> Entry:
        if isinstance(answer, Failed):
            answer = replace(answer, landed=False)
            entry = replace(entry, unsettled=None)
        return conclude(entry, answer, now=now, chance=chance)

    patch.setattr(entries, "conclude", defect)


def believe_the_pods_alone(patch: pytest.MonkeyPatch) -> None:
    confirm = Tracker.confirm_absences

    def defect(tracker: Tracker) -> None:
        if tracker.confirming is not None:
            tracker.confirming = set(), tracker.confirming[1]
        confirm(tracker)

    patch.setattr(Tracker, "confirm_absences", defect)


def drop_what_is_limited(patch: pytest.MonkeyPatch) -> None:
    conclude = entries.conclude

    def defect(entry: Entry, answer: Answer, *, now: float, chance: float) -> Entry:
        concluded = conclude(entry, answer, now=now, chance=chance)
        limited = isinstance(answer, Limited)
        return replace(concluded, not_before=now + 1e9) if limited else concluded

    patch.setattr(entries, "conclude", defect)


@pytest.mark.parametrize(
    "plant",
    [
        acknowledge_at_once,
        skip_the_intent,
        note_what_was_seen_after_the_list,
        retry_the_older_state,
        send_before_the_gate,
        forget_an_open_send,
        drop_what_is_limited,
    ],
)
def test_the_model_notices_a_planted_defect(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(BrokenPromiseError):
        run_state_machine_as_test(
            Model,
            settings=settings(
                max_examples=20 * EXAMPLES,
                stateful_step_count=30,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_the_model_notices_a_list_that_is_not_held_against_the_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model()
    model.a_workload_rolls_out(owner=WEB, specs=[image("a")], course=[(OK, 0.0)])
    believe_the_pods_alone(monkeypatch)
    with pytest.raises(BrokenPromiseError, match="while a pod holds it"):
        model.a_list_overtakes_the_watch(owner=WEB, spec=image("b"), course=[(OK, 6.0), (OK, 6.0)])
