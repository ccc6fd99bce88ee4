"""
What follows from a judgement and what GitHub said: three pure steps, held against a model.

The model is one deployment name: pods that come and go in a real inventory, and a GitHub that
acknowledges, refuses, loses answers, and applies late what it never answered.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.builders import TEMPLATE, container, digest, pod, record, workload
from tracker.answers import (
    Acknowledged,
    Answer,
    BatchRefused,
    BatchUnclear,
    Failed,
    Forbidden,
    Limited,
    NotFound,
    Rejected,
    Unauthorized,
    Unconfirmed,
)
from tracker.entries import (
    GIVE_UP_SECONDS,
    NOT_FOUND_CAP_SECONDS,
    NOT_FOUND_SECONDS,
    SETTLE_SECONDS,
    UNCONFIRMED_SECONDS,
    Adopt,
    Confirm,
    Defer,
    Drop,
    Entry,
    Forget,
    Nothing,
    Send,
    State,
    Step,
    Unknown,
    Wait,
    amend,
    conclude,
    intend,
    next_step,
)
from tracker.images import Image, SkipReason
from tracker.inventory import Absent, Deployed, Held, Inventory, Judgement
from tracker.records import Record, Status

pytestmark = pytest.mark.fault("G3")

NAME: Final = "shop/web/app"
CHANCE: Final = 0.5
A, B, C = (record(letter) for letter in "abc")
LOST: Final = Failed(reason="timeout", landed=True)
UNSENT: Final = Failed(reason="connection refused", landed=False)
UNKNOWN: Final = NotFound(reason="HTTP 404 Not Found")
REFUSED: Final = Rejected(reason="HTTP 422")
FORBIDDEN: Final = Forbidden(reason="HTTP 403")
LIMITED: Final = Limited(reason="HTTP 429", pause_seconds=None)
VAGUE: Final = Unconfirmed(reason="HTTP 200 without the record")
OK: Final = Acknowledged()
IDLE: Final = Held(displaced=False, idle=True)


def deployed(stands: Record, *, displaced: bool = False) -> Deployed:
    return Deployed(record=stands, workload=workload(), container="app", displaced=displaced)


def sending(sent: Record) -> Send:
    return Send(record=sent, workload=workload(), container="app")


def after(*history: tuple[Record, Answer], at: float = 0.0) -> Entry:
    """Return the entry after these sends and answers, all at one time."""
    entry: Entry | None = None
    for sent, answer in history:
        entry = conclude(intend(entry, sending(sent)), answer, now=at, chance=CHANCE)
    assert entry is not None
    return entry


def cut_off(sent: Record, *history: tuple[Record, Answer]) -> Entry:
    """Return the entry of a process that was killed before it had an answer."""
    return intend(after(*history) if history else None, sending(sent))


def step(
    judgement: Judgement, entry: Entry | None, *, now: float = 0.0, confirmed: bool = True
) -> Step:
    return next_step(judgement, entry, absence_confirmed=confirmed, now=now)


GONE_A, GONE_B = A.decommissioned(), B.decommissioned()


@pytest.mark.parametrize(
    ("judgement", "entry", "expected"),
    [
        pytest.param(deployed(A), None, A, id="never-posted"),
        pytest.param(deployed(A), after((A, OK)), Nothing, id="stands"),
        pytest.param(deployed(B), after((A, OK)), B, id="rollout"),
        pytest.param(deployed(A), after((A, OK), (B, UNKNOWN)), Nothing, id="rollback-of-unknown"),
        pytest.param(deployed(A), after((A, OK), (B, UNSENT)), Drop, id="rollback-of-unsent"),
        pytest.param(deployed(A), after((A, OK), (B, LOST)), Wait, id="rollback-of-open"),
        pytest.param(deployed(A), after((A, UNKNOWN)), Wait, id="unknown-waits"),
        pytest.param(deployed(B), after((A, UNKNOWN)), B, id="new-digest-at-once"),
        pytest.param(deployed(B), after((A, UNSENT)), Wait, id="outage-holds-the-name"),
        pytest.param(deployed(A), after((A, LIMITED)), A, id="limit-does-not-hold-the-name"),
        pytest.param(deployed(A), after((A, VAGUE)), A, id="once-more-at-once"),
        pytest.param(deployed(A), after((A, VAGUE), (A, VAGUE)), Wait, id="then-parked"),
        pytest.param(Held(displaced=False), None, Nothing, id="held-and-never-posted"),
        pytest.param(Held(displaced=False), after((A, OK)), Nothing, id="held"),
        pytest.param(Held(displaced=True), after((A, OK)), GONE_A, id="displaced"),
        pytest.param(
            Held(displaced=True), after((A, OK), (GONE_A, OK)), Nothing, id="displaced-and-said"
        ),
        # Once, what was sent without an answer stayed open for as long as nothing ran.
        pytest.param(IDLE, cut_off(A), A, id="idle-and-cut-off"),
        pytest.param(IDLE, cut_off(B, (A, OK)), B, id="idle-and-cut-off-in-a-rollout"),
        pytest.param(IDLE, after((A, OK), (B, LOST)), Wait, id="idle-in-an-outage"),
        pytest.param(IDLE, after((A, OK), (B, LIMITED)), B, id="idle-after-a-limit"),
        pytest.param(IDLE, cut_off(GONE_A, (A, OK)), Nothing, id="idle-after-an-end"),
        # Once, these were sent when nothing ran any more, after the rollback of what they were for.
        pytest.param(deployed(A), after((A, OK), (B, LIMITED)), Drop, id="rolled-back-in-a-limit"),
        pytest.param(deployed(A), after((A, OK), (B, LOST)), Wait, id="rolled-back-and-open"),
        pytest.param(deployed(A), after((A, OK), (B, REFUSED)), Nothing, id="rolled-back-refused"),
        pytest.param(deployed(A), after((A, OK), (GONE_A, LIMITED)), Drop, id="back-in-a-limit"),
        pytest.param(IDLE, after((A, OK), (GONE_A, LIMITED)), Drop, id="idle-again-in-a-limit"),
        pytest.param(IDLE, after((A, OK), (B, UNKNOWN)), Nothing, id="idle-and-not-known"),
        pytest.param(IDLE, after((A, OK), (B, REFUSED)), Nothing, id="idle-and-refused"),
        pytest.param(
            Held(displaced=False), cut_off(B, (A, OK)), Nothing, id="what-runs-speaks-against-it"
        ),
        pytest.param(
            deployed(B, displaced=True), after((A, OK), (B, UNKNOWN)), GONE_A, id="unknown"
        ),
        pytest.param(
            deployed(B, displaced=True), after((A, OK), (B, REFUSED)), GONE_A, id="refused"
        ),
        pytest.param(deployed(B, displaced=True), after((A, OK), (B, UNSENT)), Wait, id="outage"),
        pytest.param(Absent(), None, Nothing, id="never-heard-of"),
        pytest.param(Absent(), after((A, OK)), GONE_A, id="gone"),
        pytest.param(Absent(), after((A, OK), (GONE_A, OK)), Nothing, id="gone-and-said"),
        pytest.param(
            Absent(), after((A, OK), (GONE_A, OK), (A, UNSENT)), Drop, id="gone-again-in-an-outage"
        ),
        pytest.param(Absent(), after((A, UNSENT)), Forget, id="never-arrived"),
        pytest.param(Absent(), after((A, UNKNOWN)), Forget, id="never-known"),
        pytest.param(Absent(), after((A, REFUSED)), Forget, id="never-taken"),
        pytest.param(Absent(), after((A, LIMITED)), Forget, id="never-let-in"),
        pytest.param(Absent(), after((A, LOST), (A, UNKNOWN)), GONE_A, id="may-stand-all-the-same"),
        pytest.param(
            Absent(), after((A, VAGUE), (A, VAGUE)), GONE_A, id="may-stand-though-never-confirmed"
        ),
        # Once, what was parked at the first vague success was forgotten.
        pytest.param(
            Absent(), after((A, LIMITED), (A, VAGUE)), GONE_A, id="vague-once"
        ),
        pytest.param(Absent(), after((A, OK), (B, UNKNOWN)), GONE_A, id="last-acknowledged"),
        pytest.param(Absent(), after((A, LOST), (GONE_A, UNKNOWN)), Forget, id="nothing-to-revoke"),
        pytest.param(
            Absent(), after((A, OK), (GONE_A, UNKNOWN)), Wait, id="asked-again"
        ),
    ],
)  # fmt: skip
def test_what_to_do_is_what_should_stand_less_what_is_acknowledged(
    judgement: Judgement, entry: Entry | None, expected: Record | type[Step]
) -> None:
    found = step(judgement, entry)
    if isinstance(expected, Record):
        assert isinstance(found, Send)
        assert found.record == expected
    else:
        assert type(found) is expected


@pytest.mark.parametrize(
    ("judgement", "entry", "absent"),
    [
        (Absent(), after((A, OK)), True),
        (Absent(), after((A, LOST)), True),
        (Held(displaced=True), after((A, OK)), False),
        (deployed(B, displaced=True), after((A, OK), (B, UNKNOWN)), False),
    ],
)
def test_nothing_is_decommissioned_without_a_confirmation(
    judgement: Judgement, entry: Entry, *, absent: bool
) -> None:
    found = step(judgement, entry, confirmed=False)
    assert found == Confirm(workload=workload(), absent=absent)


def test_what_is_dropped_leaves_what_is_acknowledged_and_nothing_to_do() -> None:
    entry = amend(after((A, OK), (B, UNSENT)), Drop())
    assert entry == replace(after((A, OK)), acknowledged_at=entry.acknowledged_at)
    for judgement in (deployed(A), IDLE):
        assert step(judgement, entry, now=1e9) == Nothing()


def test_a_name_goes_to_the_workload_that_took_it_over_without_a_post() -> None:
    """Once, the workload that was asked for later, whether it keeps the name, was the old one."""
    entry = after((A, OK))
    taken_over = replace(deployed(A), workload=workload("web", kind="StatefulSet"), container="web")
    found = step(taken_over, entry)
    assert found == Adopt(workload=taken_over.workload, container="web")
    adopted = amend(entry, found)
    assert adopted == replace(entry, workload=taken_over.workload, container="web")
    assert step(taken_over, adopted) == Nothing()
    gone = step(Absent(), adopted, confirmed=False)
    assert gone == Confirm(workload=taken_over.workload, absent=True)


def test_nothing_but_what_takes_no_send_can_be_amended() -> None:
    with pytest.raises(ValueError, match="no entry"):
        amend(None, Drop())


def test_a_settling_post_of_what_github_knows_no_more_comes_to_an_end() -> None:
    entry = after((A, LOST), (GONE_A, OK))
    now, posts = 0.0, 0
    while not isinstance(found := step(Absent(), entry, now=now), Forget):
        if isinstance(found, Wait):
            now = found.until
            continue
        assert isinstance(found, Send)
        posts += 1
        entry = conclude(intend(entry, found), UNKNOWN, now=now, chance=CHANCE)
    assert GIVE_UP_SECONDS <= now < 2 * GIVE_UP_SECONDS
    assert posts < 200


def test_a_state_after_an_open_one_is_posted_once_more_two_minutes_later() -> None:
    entry = after((A, LOST), (B, OK))
    assert step(deployed(B), entry) == Wait(until=SETTLE_SECONDS)
    assert step(Held(displaced=False), entry) == Wait(until=SETTLE_SECONDS)
    again = step(deployed(B), entry, now=SETTLE_SECONDS)
    assert again == sending(B)
    entry = conclude(intend(entry, sending(B)), OK, now=SETTLE_SECONDS, chance=CHANCE)
    assert step(deployed(B), entry, now=1e9) == Nothing()


def test_the_second_post_is_of_what_stands_by_then() -> None:
    entry = after((A, LOST), (B, OK))
    entry = conclude(intend(entry, sending(C)), OK, now=50.0, chance=CHANCE)
    assert step(deployed(C), entry, now=60.0) == Wait(until=SETTLE_SECONDS)
    assert step(deployed(C), entry, now=SETTLE_SECONDS) == sending(C)


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_the_same_state_after_an_open_one_needs_no_second_post(lost: int) -> None:
    entry = after(*[(A, LOST)] * lost, (A, OK))
    assert step(deployed(A), entry, now=1e9) == Nothing()


@pytest.mark.parametrize("between", [LIMITED, UNSENT, UNKNOWN, REFUSED, VAGUE, LOST])
def test_an_open_state_is_remembered_whatever_is_answered_next(between: Answer) -> None:
    entry = after((A, LOST), (B, between), (B, OK))
    assert step(deployed(B), entry) == Wait(until=SETTLE_SECONDS)


def test_the_second_post_does_not_wait_for_a_new_state_that_is_refused() -> None:
    """Once, a late post of the old image stood for as long as the new one was not known."""
    entry = after((A, LOST), (GONE_A, OK), (B, UNKNOWN))
    judgement = deployed(B, displaced=True)
    assert step(judgement, entry) == Wait(until=SETTLE_SECONDS)
    assert step(judgement, entry, now=SETTLE_SECONDS) == sending(GONE_A)


def test_a_second_post_that_fails_is_asked_again_in_its_time() -> None:
    entry = replace(after((A, LOST), (B, OK)), settle_at=0.0)
    for answer in (UNKNOWN, REFUSED, LOST, UNSENT):
        failed = conclude(intend(entry, sending(B)), answer, now=0.0, chance=CHANCE)
        found = step(deployed(B), failed)
        assert isinstance(found, Wait)
        assert step(deployed(B), failed, now=found.until) == sending(B)


def test_a_digest_that_is_not_found_is_asked_for_less_and_less_often() -> None:
    waits = []
    entry: Entry | None = None
    for _ in range(10):
        entry = conclude(intend(entry, sending(A)), UNKNOWN, now=0.0, chance=0.0)
        assert entry.not_before is not None
        waits.append(entry.not_before)
    assert waits[:4] == [NOT_FOUND_SECONDS * 2**doubling for doubling in range(4)]
    assert waits[-1] == NOT_FOUND_CAP_SECONDS


@pytest.mark.parametrize("first", [1.0, 30.0, 6 * 3600.0])
def test_the_first_wait_for_what_is_not_found_may_be_another_one(first: float) -> None:
    waits = []
    entry: Entry | None = None
    for _ in range(17):
        entry = conclude(
            intend(entry, sending(A)), UNKNOWN, now=0.0, chance=0.0, not_found_seconds=first
        )
        waits.append(entry.not_before)
    assert waits[0] == first
    assert waits[-1] == NOT_FOUND_CAP_SECONDS


@given(now=st.floats(0, 1e7), attempts=st.integers(1, 12))
def test_what_is_not_found_together_is_asked_for_together(now: float, attempts: int) -> None:
    def due(now: float) -> float:
        intended = replace(intend(None, sending(A)), attempts=attempts)
        due = conclude(intended, UNKNOWN, now=now, chance=0.5).not_before
        assert due is not None
        return due

    delay = min(NOT_FOUND_SECONDS * 2 ** (attempts - 1), NOT_FOUND_CAP_SECONDS)
    assert delay <= due(now) - now <= 1.1 * delay + 1e-6
    moments = {due(now + delay * part / 100) for part in range(101)}
    assert len(moments) <= 12, "an interval has ten such moments"


FOUND_LATER: Final = Unknown(due=500.0, attempts=3, reason="HTTP 404")


def of_unknown(judgement: Judgement, entry: Entry | None, now: float = 0.0) -> Step:
    return next_step(
        judgement, entry, absence_confirmed=True, now=now, unknown={A.digest: FOUND_LATER}
    )


def test_a_name_of_an_unknown_digest_does_not_ask() -> None:
    step = of_unknown(deployed(A), None)
    assert step == Defer(send=sending(A), unknown=FOUND_LATER)
    entry = amend(None, step)
    assert (entry.state, entry.sent, entry.attempts) == (State.NOT_FOUND, A, 3)
    assert (entry.not_before, entry.reason) == (500.0, "HTTP 404")
    assert of_unknown(deployed(A), entry) == Wait(until=500.0)
    assert of_unknown(deployed(A), entry, now=500.0) == sending(A)
    assert of_unknown(deployed(B), entry) == sending(B)
    assert of_unknown(Absent(), entry) == Forget()


def test_an_unknown_digest_displaces_what_stood() -> None:
    step = of_unknown(deployed(A, displaced=True), after((B, OK)))
    assert isinstance(step, Defer)
    entry = amend(after((B, OK)), step)
    assert entry.acknowledged == B
    assert of_unknown(deployed(A, displaced=True), entry) == sending(GONE_B)


def test_what_is_in_doubt_stays_so_when_its_successor_is_unknown() -> None:
    entry = after((B, LOST))
    step = of_unknown(deployed(A), entry, now=100.0)
    assert isinstance(step, Defer)
    assert amend(entry, step).in_doubt == B


def test_a_decommission_is_asked_for_whatever_is_known_of_its_digest() -> None:
    assert of_unknown(Absent(), after((A, OK))) == sending(GONE_A)


def test_a_decommission_that_is_not_found_is_given_up_after_a_month() -> None:
    entry = after((A, OK))
    now = 0.0
    for _ in range(1000):
        found = step(Absent(), entry, now=now)
        if isinstance(found, Forget):
            break
        assert isinstance(found, Send)
        entry = conclude(intend(entry, found), UNKNOWN, now=now, chance=CHANCE)
        assert entry.not_before is not None
        now = entry.not_before
    assert 30 * 24 * 3600 <= now <= 35 * 24 * 3600


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (BatchUnclear(reason="HTTP 200 unreadable"), State.OPEN),
        (BatchRefused(reason="HTTP 422", by_content=True), State.CLEAN),
        (BatchRefused(reason="HTTP 404", by_content=False), State.CLEAN),
    ],
)
def test_what_is_said_of_a_batch_is_nothing_that_is_said_of_the_record(
    answer: BatchUnclear | BatchRefused, state: State
) -> None:
    before = after((A, OK), (B, UNSENT))
    entry = conclude(intend(before, sending(B)), answer, now=10.0, chance=CHANCE)
    assert (entry.state, entry.reason, entry.acknowledged) == (state, "connection refused", A)
    assert step(deployed(B), entry, now=10.0) == sending(B)


def test_an_outage_is_asked_again_less_and_less_often() -> None:
    waits = []
    entry: Entry | None = None
    for _ in range(8):
        entry = conclude(intend(entry, sending(A)), LOST, now=0.0, chance=1.0)
        waits.append(entry.not_before)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("answer", "state", "wait"),
    [
        (UNKNOWN, State.NOT_FOUND, 320),
        (REFUSED, State.PARKED, 86_400),
        (FORBIDDEN, State.PARKED, 3600),
        (LIMITED, State.CLEAN, 0),
        (Unauthorized(reason="HTTP 401"), State.CLEAN, 0),
        (LOST, State.OPEN, 0.5),
        (UNSENT, State.CLEAN, 0.5),
        (VAGUE, State.OPEN, 0),
    ],
)
def test_every_answer_leaves_its_state_reason_and_wait(
    answer: Answer, state: State, wait: float
) -> None:
    entry = after((A, answer), at=1000.0)
    assert not isinstance(answer, Acknowledged)
    assert (entry.state, entry.reason, entry.sent) == (state, answer.reason, A)
    assert entry.not_before == pytest.approx(1000.0 + wait)
    assert entry.acknowledged is None


def test_an_acknowledgement_leaves_nothing_behind() -> None:
    entry = after((A, UNKNOWN), (A, LOST), (A, OK))
    assert entry == Entry(
        deployment_name=NAME,
        workload=workload(),
        container="app",
        acknowledged=A,
        acknowledged_at=0.0,
    )


def test_the_intent_is_written_before_the_bytes_leave() -> None:
    entry = intend(after((A, OK)), sending(B))
    assert (entry.state, entry.sent, entry.acknowledged) == (State.SENDING, B, A)
    assert entry.in_doubt == B, "a crash now leaves it open"


def test_the_parked_record_that_was_vague_is_asked_again_hourly() -> None:
    entry = after((A, VAGUE), (A, VAGUE))
    assert entry.not_before == UNCONFIRMED_SECONDS
    assert step(deployed(A), entry, now=UNCONFIRMED_SECONDS) == sending(A)


@pytest.mark.parametrize("first", [UNKNOWN, FORBIDDEN])
@pytest.mark.parametrize("second", [UNKNOWN, FORBIDDEN, LOST, UNSENT, VAGUE])
def test_two_refused_records_take_turns_and_each_turn_waits(first: Answer, second: Answer) -> None:
    """Once, a refused image and the refused decommission of the old one sent each other off."""
    judgement = deployed(B, displaced=True)
    entry: Entry = after((A, OK))
    now = 0.0
    turns: list[Record] = []
    waits = 0
    while len(turns) < 30:
        found = step(judgement, entry, now=now)
        if isinstance(found, Wait):
            assert found.until > now
            now = found.until
            waits += 1
            continue
        assert isinstance(found, Send)
        turns.append(found.record)
        answer = first if found.record == B else second
        entry = conclude(intend(entry, found), answer, now=now, chance=CHANCE)
    assert waits >= len(turns) - 3
    assert GONE_A in turns
    if second in {UNKNOWN, FORBIDDEN, VAGUE}:
        assert turns.count(B) > 5, "the new image goes on being asked for"


# The model.

Outcome = tuple[str, Callable[[], Answer], bool | None]
"""Its name, the answer, and whether the record is applied: now, not at all, or later (None)."""
OUTCOMES: Final[tuple[Outcome, ...]] = (
    ("acknowledged", lambda: OK, True),
    ("applied, answer lost", lambda: LOST, True),
    ("answer lost, lands late", lambda: LOST, None),
    ("request lost", lambda: LOST, False),
    ("refused connection", lambda: UNSENT, False),
    ("limited", lambda: LIMITED, False),
    ("unauthorized", lambda: Unauthorized(reason="HTTP 401"), False),
    ("rejected", lambda: REFUSED, False),
    ("forbidden", lambda: FORBIDDEN, False),
    ("applied, vague", lambda: VAGUE, True),
    ("vague", lambda: VAGUE, False),
)
LATE_SECONDS: Final = SETTLE_SECONDS - 1
LETTERS: Final = st.sampled_from("abc")
MAX_SENDS_AT_ONCE: Final = 8


class OneName(RuleBasedStateMachine):
    """One deployment name, its pods, its entry, and GitHub's row."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.inventory = Inventory(template=TEMPLATE)
        self.entry: Entry | None = None
        self.confirmed = False
        self.row: Record | None = None
        self.late: list[tuple[float, Record]] = []
        self.known = {digest("a"), digest("b")}
        self.said: Record | None = None
        self.sends = 0

    # What happens in the cluster.

    def changed(self) -> None:
        self.confirmed = False
        self.sends = 0

    @rule(uid=st.sampled_from("123"), letter=LETTERS, age=st.integers(0, 3))
    def a_pod_runs(self, uid: str, letter: str, age: int) -> None:
        if self.inventory.observe(pod(uid, age=age, containers=[container(letter=letter)])):
            self.changed()

    @rule(uid=st.sampled_from("123"))
    def a_pod_waits(self, uid: str) -> None:
        waits = replace(container(), image=None)
        if self.inventory.observe(pod(uid, phase="Pending", containers=[waits])):
            self.changed()

    @rule(uid=st.sampled_from("123"))
    def a_pod_runs_what_can_not_be_recorded(self, uid: str) -> None:
        if self.inventory.observe(pod(uid, containers=[container("app", SkipReason.NO_DIGEST)])):
            self.changed()

    @rule(uids=st.sets(st.sampled_from("123"), min_size=1))
    def pods_go(self, uids: set[str]) -> None:
        if set().union(*(self.inventory.remove(uid) for uid in uids)):
            self.changed()

    # What happens at GitHub.

    @rule()
    def an_attestation_arrives(self) -> None:
        self.known.add(digest("c"))

    @precondition(lambda self: self.late)
    @rule()
    def what_was_late_lands(self) -> None:
        self.row = self.late.pop(0)[1]

    @rule(seconds=st.sampled_from([0.3, 1.0, 45.0, 400.0, 4000.0, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.move(self.now + seconds)

    def move(self, until: float) -> None:
        self.now = until
        self.sends = 0
        while self.late and self.late[0][0] <= until:
            self.row = self.late.pop(0)[1]

    # What the tracker does.

    def judge(self) -> Judgement:
        return self.inventory.judge(NAME, None if self.entry is None else self.entry.held)

    def next(self) -> Step:
        return next_step(self.judge(), self.entry, absence_confirmed=self.confirmed, now=self.now)

    @rule(outcome=st.sampled_from(OUTCOMES))
    def a_worker_takes_it(self, outcome: Outcome) -> None:
        self.work(outcome)

    @rule(outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=2, max_size=4))
    def a_worker_takes_it_some_times(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self.work(outcome)

    def work(self, outcome: Outcome) -> Step:
        found = self.next()
        match found:
            case Send():
                self.send(found, outcome)
            case Confirm(absent=absent):
                assert absent == isinstance(self.judge(), Absent)
                self.confirmed = True
            case Forget():
                self.entry = None
                self.said = None
                self.confirmed = False
            case Nothing():
                self.confirmed = False
            case Wait(until=until):
                assert until > self.now
            case Drop() | Adopt():
                self.entry = amend(self.entry, found)
            case Defer():
                raise AssertionError("nobody else asked for a digest")
        return found

    def send(self, send: Send, outcome: Outcome) -> None:
        sent = send.record
        if sent.status is Status.DECOMMISSIONED and sent != self.said:
            assert self.confirmed
            assert sent.digest not in self.running()
        self.entry = intend(self.entry, send)
        name, make, applied = outcome
        # What GitHub does not know it says at once; a limit comes before that.
        if sent.digest not in self.known and name not in {"limited", "refused connection"}:
            make, applied = (lambda: UNKNOWN), False
        answer = make()
        if applied:
            self.row = sent
        elif applied is None:
            self.late.append((self.now + LATE_SECONDS, sent))
        if isinstance(answer, Acknowledged):
            self.said = sent
            # Of two posts of one record the late one lands with the other at the latest.
            self.late = [(when, other) for when, other in self.late if other != sent]
        self.entry = conclude(self.entry, answer, now=self.now, chance=CHANCE)
        # A limit is waited for by all names together.
        if not isinstance(answer, Limited | Unauthorized):
            self.sends += 1

    def running(self) -> set[str]:
        """Return the digests that pods run under the name."""
        return {
            each.image.digest
            for running in vars(self.inventory)["_pods"].values()
            for each in running.containers
            if isinstance(each.image, Image)
        }

    # What must always hold.

    @invariant()
    def only_what_github_said_is_acknowledged(self) -> None:
        assert (None if self.entry is None else self.entry.acknowledged) == self.said

    @invariant()
    def no_name_is_sent_again_and_again_without_a_wait(self) -> None:
        assert self.sends <= MAX_SENDS_AT_ONCE

    @invariant()
    def a_name_is_forgotten_only_when_github_never_heard_of_it(self) -> None:
        if self.entry is None:
            assert self.row is None or self.row.status is Status.DECOMMISSIONED
            assert not any(late.status is Status.DEPLOYED for _, late in self.late)

    def teardown(self) -> None:
        """Heal, let all waits pass, and hold GitHub's row against the cluster."""
        self.sends = 0
        for _ in range(40):
            found = self.work(OUTCOMES[0])
            if isinstance(found, Nothing):
                break
            if isinstance(found, Wait):
                self.move(found.until)
        else:
            # What GitHub does not know is asked for as long as it runs, and nothing else is.
            assert self.entry is not None, "no rest"
            assert self.entry.sent is not None, f"no rest: {self.entry}"
            assert self.entry.sent.digest not in self.known, f"no rest: {self.entry}"
        self.no_name_is_sent_again_and_again_without_a_wait()
        self.move(self.now + LATE_SECONDS)
        stands = self.row if self.row and self.row.status is Status.DEPLOYED else None
        judgement = self.judge()
        match judgement:
            case Absent():
                assert stands is None
            case Held(displaced=displaced, idle=idle):
                assert not idle or self.entry is None or self.entry.unheard is None
                assert not displaced or self.said is None or self.said.status is not Status.DEPLOYED
            case Deployed():
                if judgement.record.digest in self.known:
                    assert stands == judgement.record
                else:
                    assert stands is None or stands.digest in self.running()


TestOneName = OneName.TestCase
TestOneName.settings = settings(
    max_examples=300, stateful_step_count=25, phases=[Phase.generate, Phase.shrink]
)
