"""
What the ledger knows of one deployment name, and what follows from it.

An entry holds two records: the one that GitHub *acknowledged* and the one that was last *sent*
and is not acknowledged. Everything that delivery does to a name is one of a few steps, each a
function of values: `next_step` says what to do now, `intend` writes down what is about to leave,
`conclude` writes down what came of it. The rule behind them is

    post = what should stand - what GitHub acknowledged

and the care is for sends whose outcome is not known. Such a send is *open*: it may have landed,
and it may land late, after a newer one. So a state that follows an open one of the same name is
posted once more, two minutes after it was acknowledged.

A digest that GitHub does not know is *unknown* for every name that runs it: one name asks for all
of them, and the others are written down as if they had asked (`amend`).

Times are seconds of whatever clock the caller uses, as long as it is the same one everywhere.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, assert_never

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
from tracker.backoff import CAP_SECONDS, delay_after
from tracker.images import Digest
from tracker.inventory import Absent, Deployed, Held, Judgement
from tracker.records import Record, Status
from tracker.workloads import Workload

__all__ = [
    "Account",
    "Adopt",
    "Confirm",
    "Defer",
    "Drop",
    "Entry",
    "Forget",
    "Nothing",
    "Send",
    "State",
    "Step",
    "Unknown",
    "Wait",
    "account_of",
    "amend",
    "conclude",
    "intend",
    "is_asked_again",
    "next_step",
    "reopen",
]

SETTLE_SECONDS = 120.0
"""How long after its acknowledgement a state is posted again that followed an open one."""
NOT_FOUND_SECONDS = 300.0
"""The first wait after GitHub did not know a digest, unless the settings say another one."""
NOT_FOUND_CAP_SECONDS = 6 * 3600.0
MAX_DOUBLINGS = 15
"""From a second on, these are enough to reach the cap."""
NOT_FOUND_PARTS = 10
"""Moments of an interval at which what is not found is asked for, each together for many names."""
GIVE_UP_SECONDS = 30 * 24 * 3600.0
"""How long a decommission is asked for of which GitHub knows no artifact any more."""
FORBIDDEN_SECONDS = 3600.0
"""How long a record parks that the token may not write."""
REJECTED_SECONDS = 24 * 3600.0
"""How long a record parks that GitHub finds malformed, unless it changes."""
UNCONFIRMED_SECONDS = 3600.0
"""How long a record parks that GitHub took twice without saying that it holds it."""


class State(StrEnum):
    """What is known of the record that was last sent."""

    CLEAN = "clean"
    """Nothing is under way: it was acknowledged, or surely had no effect."""
    SENDING = "sending"
    OPEN = "open"
    NOT_FOUND = "not_found"
    PARKED = "parked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    One name's row.

    `acknowledged_at` is when GitHub acknowledged last, that record or the same one again.
    `sent` is the record last sent, as long as it is not acknowledged. `attempts` counts the
    sends of `sent` in a row. `not_before` is when it may be sent again. `reason` is why it was
    not acknowledged. `unsettled` is what an earlier send carried that is still open; `settle_at`
    is when the acknowledged record is posted again because an open one may have come after it.
    `refused` is the record that GitHub refused before it was sent `sent`: two refused ones take
    turns (a new image and the decommission of the old one), and neither may come back at once.
    """

    deployment_name: str
    workload: Workload
    container: str
    acknowledged: Record | None = None
    acknowledged_at: float | None = None
    sent: Record | None = None
    state: State = State.CLEAN
    reason: str = ""
    attempts: int = 0
    not_before: float | None = None
    unsettled: Record | None = None
    settle_at: float | None = None
    refused: Record | None = None

    @property
    def is_refused(self) -> bool:
        """Tell whether GitHub refused `sent`, which waits for itself to be asked for again."""
        return self.state in {State.NOT_FOUND, State.PARKED}

    @property
    def in_doubt(self) -> Record | None:
        """Return what may have landed, or may yet land, without our knowing."""
        return self.sent if self.state in {State.SENDING, State.OPEN} else self.unsettled

    @property
    def last(self) -> Record | None:
        """Return what the name stands for: what may have landed or is to, else what did."""
        if self.state in {State.SENDING, State.OPEN}:
            return self.sent
        return self.unheard or self.acknowledged

    @property
    def unheard(self) -> Record | None:
        """Return the deployed record that was sent last, unless GitHub took or refused it."""
        if self.sent is None or self.is_refused or self.sent.status is not Status.DEPLOYED:
            return None
        return self.sent

    @property
    def may_stand(self) -> bool:
        """Tell whether GitHub may hold something as deployed, as far as is known."""
        if self.acknowledged is not None and self.acknowledged.status is Status.DEPLOYED:
            return True
        # An open decommission leaves open whether what it was to take back still stands.
        return self.in_doubt is not None and self.in_doubt != self.acknowledged

    @property
    def held(self) -> Record | None:
        """
        Return what GitHub holds as far as is known: what it said, else what it may hold.

        After an acknowledged decommission that is what was sent since and may have landed.
        """
        said = self.acknowledged
        if said is None or said.status is Status.DECOMMISSIONED:
            return self.in_doubt or said
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Post this record now; `workload` and `container` say whose it is."""

    record: Record
    workload: Workload
    container: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """
    A digest that GitHub did not know when it was asked, `attempts` times in a row.

    It is asked for again at `due`; `reason` is what GitHub said.
    """

    due: float
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Defer:
    """Don't send: the digest is unknown. Write that down as this name's answer, too."""

    send: Send
    unknown: Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """What was sent last surely had no effect, and is not to be told any more: write that down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """
    GitHub holds what should stand, and the name is another workload's now: write that down.

    Whether that workload is there decides, later, whether the name is kept without pods.
    """

    workload: Workload
    container: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Look again at this time, or when something changes."""

    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """
    A decommission is due as far as the pods that were seen tell: have its absence confirmed.

    `workload` is the one whose record it is. `absent` says that no pod holds the name at all;
    otherwise pods hold it that can't be recorded, and the acknowledged digest runs nowhere.
    """

    workload: Workload
    absent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """GitHub never heard of the name and no pod holds it: the entry can go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """GitHub holds what should stand."""


class Account(StrEnum):
    """Where a name is, for whoever counts them: each is in one of these."""

    ACKNOWLEDGED = "acknowledged"
    NOT_FOUND = "not_found"
    PARKED = "parked"
    PENDING = "pending"
    """Under way, or to be sent again after a failure."""


def account_of(entry: Entry) -> Account:
    """Return where a name is."""
    match entry.state:
        case State.NOT_FOUND:
            return Account.NOT_FOUND
        case State.PARKED:
            return Account.PARKED
        case State.CLEAN if entry.sent is None:
            return Account.ACKNOWLEDGED
        case _:
            return Account.PENDING


Step = Send | Defer | Drop | Adopt | Wait | Confirm | Forget | Nothing

_NONE_UNKNOWN: Final[Mapping[Digest, Unknown]] = MappingProxyType({})


def next_step(
    judgement: Judgement,
    entry: Entry | None,
    *,
    absence_confirmed: bool,
    now: float,
    unknown: Mapping[Digest, Unknown] = _NONE_UNKNOWN,
) -> Step:
    """
    Return what to do about a name, given what should stand and what GitHub acknowledged.

    `absence_confirmed` says that a consistent list, newer than the name's last pod event, showed
    that nothing runs which is not known here. `unknown` are the digests that GitHub does not know.
    """
    step = _step_of_its_own(judgement, entry, absence_confirmed=absence_confirmed, now=now)
    if not isinstance(step, Send) or step.record.status is Status.DECOMMISSIONED:
        return step
    if step.record.repository is not None:
        return step  # GitHub need not know its digest
    found = unknown.get(step.record.digest)
    if found is None or now >= found.due:
        return step
    if entry is not None and is_asked_again(entry, step.record):
        return Wait(until=found.due)
    return Defer(send=step, unknown=found)


def is_asked_again(entry: Entry | None, record: Record) -> bool:
    """Tell whether this record is one that GitHub refused: it goes behind what is new."""
    return entry is not None and entry.is_refused and entry.sent == record


def _step_of_its_own(
    judgement: Judgement, entry: Entry | None, *, absence_confirmed: bool, now: float
) -> Step:
    """Return what to do about a name, whatever is known of its digest by others."""
    match judgement:
        case Deployed():
            return _step_deployed(judgement, entry, now, confirmed=absence_confirmed)
        case Held():
            return _step_held(judgement, entry, now, confirmed=absence_confirmed)
        case Absent():
            if entry is None:
                return Nothing()
            return _step_gone(entry, now, confirmed=absence_confirmed, absent=True)
    assert_never(judgement)


def intend(entry: Entry | None, send: Send) -> Entry:
    """Return the entry to be written before the record's bytes leave."""
    record = send.record
    if entry is None:
        entry = Entry(
            deployment_name=record.deployment_name, workload=send.workload, container=send.container
        )
    record = record.after((entry.acknowledged, entry.sent, entry.unsettled, entry.refused))
    again = entry.sent == record
    refused = entry.sent if not again and entry.is_refused else entry.refused
    return replace(
        entry,
        workload=send.workload,
        container=send.container,
        sent=record,
        state=State.SENDING,
        reason=entry.reason if again else "",
        attempts=entry.attempts + 1 if again or record == entry.refused else 1,
        not_before=None,
        unsettled=entry.in_doubt,
        refused=refused,
    )


def amend(entry: Entry | None, step: Defer | Drop | Adopt) -> Entry:
    """
    Return the entry after a step that takes no send.

    Raises ValueError for a name without an entry, unless it is to be deferred.
    """
    if isinstance(step, Defer):
        return _deferred(entry, step)
    if entry is None:
        message = f"there is no entry for {step}"
        raise ValueError(message)
    if isinstance(step, Adopt):
        return replace(entry, workload=step.workload, container=step.container)
    return replace(
        entry, sent=None, state=State.CLEAN, reason="", attempts=0, not_before=None, refused=None
    )


def _deferred(entry: Entry | None, step: Defer) -> Entry:
    """Return the entry as if its record had been sent and its digest not been found."""
    unknown = step.unknown
    return replace(
        intend(entry, step.send),
        state=State.NOT_FOUND,
        reason=unknown.reason,
        attempts=unknown.attempts,
        not_before=unknown.due,
    )


def conclude(
    entry: Entry,
    answer: Answer | BatchRefused | BatchUnclear,
    *,
    now: float,
    chance: float,
    not_found_seconds: float = NOT_FOUND_SECONDS,
) -> Entry:
    """
    Return the entry after an answer to the send of `entry.sent`, which must be set.

    What was said of a batch as a whole leaves the record to be sent at once, with fewer others.
    `chance` is a random number in [0, 1) for the jitter of what is asked again, `not_found_seconds`
    the first wait of what GitHub did not know.
    """
    if isinstance(answer, Acknowledged):
        return _acknowledged(entry, now)
    if isinstance(answer, NotFound) and _holds_nothing(entry):
        # GitHub never held it: there is nothing to take back.
        return replace(entry, sent=None, state=State.CLEAN, not_before=None, unsettled=None)
    if isinstance(answer, BatchRefused | BatchUnclear):
        # What is said of a batch is not this record's reason.
        state = State.OPEN if isinstance(answer, BatchUnclear) else State.CLEAN
        reason, until = entry.reason, now
    else:
        state, until = _after(entry, answer, now, chance, not_found_seconds)
        reason = answer.reason
    if isinstance(answer, Unconfirmed) and state is State.PARKED:
        # Parked or not, GitHub may hold it: it is not to be forgotten.
        entry = replace(entry, unsettled=entry.sent)
    if state is State.OPEN:
        entry = replace(entry, settle_at=_settle_at_least(entry, now))
    return replace(entry, state=state, reason=reason, not_before=until)


def _acknowledged(entry: Entry, now: float) -> Entry:
    return replace(
        entry,
        acknowledged=entry.sent,
        acknowledged_at=now,
        sent=None,
        state=State.CLEAN,
        reason="",
        attempts=0,
        not_before=None,
        unsettled=None,
        settle_at=_settle_at(entry, now),
        refused=None,
    )


def _holds_nothing(entry: Entry) -> bool:
    """Tell whether `entry.sent` is to take back something that was never there."""
    # With a time to settle at, another record may have landed than the one to take back.
    nothing_held = entry.acknowledged is None and entry.settle_at is None
    return nothing_held and entry.sent is not None and entry.sent.status is Status.DECOMMISSIONED


def _after(
    entry: Entry,
    answer: Unconfirmed | NotFound | Forbidden | Rejected | Unauthorized | Limited | Failed,
    now: float,
    chance: float,
    not_found_seconds: float,
) -> tuple[State, float]:
    """Return what is known of a record that was not acknowledged, and when to send it again."""
    match answer:
        case NotFound():
            found = State.NOT_FOUND, _not_found_due(now, entry.attempts, not_found_seconds)
        case Forbidden():
            found = State.PARKED, now + FORBIDDEN_SECONDS
        case Rejected():
            found = State.PARKED, now + REJECTED_SECONDS
        case Unconfirmed() if entry.attempts <= 1:
            found = State.OPEN, now
        case Unconfirmed():
            # A server that says it twice will not say otherwise by being asked at once.
            found = State.PARKED, now + UNCONFIRMED_SECONDS
        case Unauthorized() | Limited():
            found = State.CLEAN, now
        case Failed(landed=landed):
            state = State.OPEN if landed else State.CLEAN
            found = state, now + delay_after(entry.attempts, chance)
        case _:
            assert_never(answer)
    return found


def reopen(entry: Entry, *, now: float) -> Entry:
    """
    Return an entry as it is to be taken after a stop of unknown length, its times moved to `now`.

    They come by a wall clock that may have been set meanwhile. So a failure of the way there
    holds a name no longer than the longest backoff, and what is to be settled is settled two
    minutes from now: no earlier, since a request of before the stop may still land.
    """
    not_before = entry.not_before
    if not_before is not None and not entry.is_refused:
        not_before = min(not_before, now + CAP_SECONDS)
    return replace(
        entry,
        not_before=not_before,
        settle_at=now + SETTLE_SECONDS if _settle_at_least(entry, now) is not None else None,
    )


def _step_deployed(
    judgement: Deployed, entry: Entry | None, now: float, *, confirmed: bool
) -> Step:
    send = Send(record=judgement.record, workload=judgement.workload, container=judgement.container)
    if entry is None:
        return send
    if entry.acknowledged == judgement.record and entry.in_doubt is None:
        return _step_standing(judgement, entry, now)
    last_refused = entry.sent if entry.is_refused else entry.refused
    if last_refused == judgement.record and judgement.displaced and entry.may_stand:
        # The new image can't be recorded and the old one runs nowhere: at least say that.
        return _step_gone(entry, now, confirmed=confirmed, absent=False)
    step = _unless_waiting(entry, send, now)
    settle = _settle(entry, now, displaced=judgement.displaced)
    match step, settle:
        case Wait(), Send():
            # The new record waits to be asked for, maybe for hours: what stands is settled first.
            return settle
        case Wait(until=one), Wait(until=other):
            return Wait(until=min(one, other))
        case _:
            return step


def _step_standing(judgement: Deployed, entry: Entry, now: float) -> Step:
    """Return what is to do where GitHub acknowledged what should stand, and nothing is in doubt."""
    if _is_unsent(entry):
        # Once, a record that a limit held up was sent after the rollback of what it stood for.
        return Drop()
    if (entry.workload, entry.container) != (judgement.workload, judgement.container):
        return Adopt(workload=judgement.workload, container=judgement.container)
    return _settle(entry, now, displaced=False)


def _step_held(judgement: Held, entry: Entry | None, now: float, *, confirmed: bool) -> Step:
    if entry is None:
        return Nothing()
    if judgement.displaced and entry.may_stand:
        return _step_gone(entry, now, confirmed=confirmed, absent=False)
    if judgement.idle and entry.unheard is not None:
        # Nothing newer may be said of the name for who knows how long. And the same record is the
        # only one that overwrites nothing newer, whether it landed or not.
        return _unless_waiting(entry, _again(entry, entry.unheard), now)
    if judgement.idle and _is_unsent(entry) and entry.in_doubt is None:
        return Drop()  # an end that nobody heard of, of a name that is held again
    return _settle(entry, now, displaced=judgement.displaced)


def _step_gone(entry: Entry, now: float, *, confirmed: bool, absent: bool) -> Step:
    """Return the way to a decommission of what GitHub holds, or may hold, under the name."""
    if entry.held is None:
        return Forget()
    record = entry.held.decommissioned()
    if is_asked_again(entry, record) and _not_found_seconds(entry) >= GIVE_UP_SECONDS:
        # For a month GitHub knew no such artifact: there is nothing it could take back.
        return Forget()
    if entry.acknowledged == record and entry.in_doubt is None:
        return Drop() if _is_unsent(entry) else _settle(entry, now, displaced=True)
    if not confirmed:
        return Confirm(workload=entry.workload, absent=absent)
    return _unless_waiting(entry, _again(entry, record), now)


def _unless_waiting(entry: Entry, send: Send, now: float) -> Step:
    """
    Return the send, or the wait that its last failure asked for.

    A record that GitHub refused waits for itself alone: a new record of the name goes at once.
    A failure of the way there keeps the name waiting, whatever is to be sent.
    """
    if entry.not_before is None or now >= entry.not_before:
        return send
    if entry.is_refused and send.record not in {entry.sent, entry.refused}:
        return send
    return Wait(until=entry.not_before)


def _settle(entry: Entry, now: float, *, displaced: bool) -> Step:
    """
    Return the second post of an acknowledged record that an open one may have overwritten.

    None while something newer may have landed: the older record would follow it. And none of what
    is not true any more: `displaced` says that the digest runs nowhere.
    """
    if entry.settle_at is None or entry.acknowledged is None:
        return Nothing()
    if entry.in_doubt not in {None, entry.acknowledged}:
        return Nothing()
    if displaced != (entry.acknowledged.status is Status.DECOMMISSIONED):
        return Nothing()
    if now < entry.settle_at:
        return Wait(until=entry.settle_at)
    return _unless_waiting(entry, _again(entry, entry.acknowledged), now)


def _is_unsent(entry: Entry) -> bool:
    """Tell whether something new was sent last, surely had no effect, and was not refused."""
    return entry.state is State.CLEAN and entry.sent not in {None, entry.acknowledged}


def _again(entry: Entry, record: Record) -> Send:
    """Return another send of a record of this name."""
    return Send(record=record, workload=entry.workload, container=entry.container)


def _settle_at(entry: Entry, now: float) -> float | None:
    """Return when the record just acknowledged is to be posted again, or None."""
    if entry.unsettled not in {None, entry.sent}:
        return now + SETTLE_SECONDS
    # An older open send may be under way still, unless this was the post that settles it.
    return entry.settle_at if entry.settle_at is not None and now < entry.settle_at else None


def _settle_at_least(entry: Entry, now: float) -> float | None:
    """
    Return when to settle what is acknowledged next, `entry.sent` being open now, or None.

    `unsettled` remembers one record. When two that differ are open, whichever is acknowledged may
    be overwritten by the other.
    """
    if entry.in_doubt is not None and entry.unsettled not in {None, entry.in_doubt}:
        return now + SETTLE_SECONDS
    return entry.settle_at


def _not_found_due(now: float, attempts: int, first: float) -> float:
    """
    Return when to ask again for what was not found: in `first` seconds, doubled with each attempt.

    It is six hours at most. That is moved up to a tenth later, to one of the moments that all
    others with the same delay have: so thousands of digests are asked for in a few requests, and
    the clocks of different machines keep different trackers apart.
    """
    delay = _not_found_delay(attempts, first)
    step = delay / NOT_FOUND_PARTS
    return math.ceil((now + delay) / step) * step


def _not_found_delay(attempts: int, first: float = NOT_FOUND_SECONDS) -> float:
    return min(first * 2.0 ** min(max(attempts - 1, 0), MAX_DOUBLINGS), NOT_FOUND_CAP_SECONDS)


def _not_found_seconds(entry: Entry) -> float:
    """
    Return for how long, about, GitHub has not found what an entry asks for.

    With the usual first wait; with another one it is off by two days at most.
    """
    if entry.state is not State.NOT_FOUND:
        return 0.0
    return sum(_not_found_delay(attempt) for attempt in range(1, entry.attempts))
