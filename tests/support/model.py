"""
The tracker as one thread of small steps, for the test by a state machine.

`Tracker` is the real core (inventory, entries, drift, answers) in a shell whose every await is a
step of its own, so that anything may happen between two steps: it can die between any two, and all
but its `Ledger` dies with it. The world around it, which is also the judge, is `modelworld`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from tests.support.builders import TEMPLATE
from tests.support.modelworld import BrokenPromiseError, Late, Outcome, World, names_of, promise
from tracker import drift, entries
from tracker.annotations import NO_MARKS
from tracker.answers import Acknowledged, Failed, Limited, Unauthorized
from tracker.batches import Said
from tracker.catalog import KINDS, Catalog, Known
from tracker.drift import Listed
from tracker.entries import (
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
    Wait,
)
from tracker.inventory import Absent, Held, Inventory, Judgement
from tracker.judging import is_kept
from tracker.ledger_schema import Moment
from tracker.pods import EVERYTHING, Pod
from tracker.records import Record, Status
from tracker.refusals import Refusals, known_digests

__all__ = ["Attempt", "Ledger", "Stage", "Tracker", "Wanted"]

DECOMMISSION_DELAY_SECONDS: Final = 5.0
GONE_SECONDS: Final = 600.0
FIRST_PAUSE_SECONDS: Final = 60.0
MAX_PAUSE_SECONDS: Final = 3600.0
MAX_STREAK: Final = 6
MAX_STEPS_TO_REST: Final = 5000
CHANCE: Final = 0.5


class Stage(Enum):
    """How far a worker is with a name; between any two the world moves on."""

    DECIDED = 1
    INTENDED = 2
    POSTED = 3
    HEARD = 4


@dataclass(slots=True)
class Attempt:
    """One send of one name, on its way."""

    send: Send
    stage: Stage = Stage.DECIDED
    intended: Entry | None = None
    answer: Said | None = None
    ready_at: float = 0.0
    late: Late | None = None
    concluded: Entry | None = None


class Ledger:
    """What survives a crash: entries, and the time before which nothing is sent."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.pause_until = 0.0

    def put(self, entry: Entry, *, said: Record | None) -> None:
        """Write an entry; `said` is what GitHub acknowledged in this very exchange, if it did."""
        before = self.entries.get(entry.deployment_name)
        if entry.acknowledged is not None and (
            before is None or before.acknowledged != entry.acknowledged
        ):
            promise(entry.acknowledged == said, "only what GitHub said counts", entry)
        self.entries[entry.deployment_name] = entry

    def reopen(self, then: Moment, now: Moment) -> set[str]:
        """Read everything back by the wall clock, as after a stop; return what is to be settled."""
        for name, entry in self.entries.items():
            times = replace(
                entry,
                acknowledged_at=now.to_loop(then.to_wall(entry.acknowledged_at), most=0.0),
                not_before=now.to_loop(then.to_wall(entry.not_before)),
                settle_at=now.to_loop(then.to_wall(entry.settle_at)),
            )
            self.entries[name] = entries.reopen(times, now=now.loop)
        pause = now.to_loop(then.to_wall(self.pause_until), most=MAX_PAUSE_SECONDS)
        self.pause_until = pause or 0.0
        return {name for name, entry in self.entries.items() if entry.settle_at is not None}


@dataclass(slots=True)
class Wanted:
    """A decommission that waits for its confirmation."""

    due: float
    absent: bool


class Tracker:
    """The core in a shell of steps. All but `ledger` dies with it."""

    def __init__(self, world: World, ledger: Ledger, *, workers: int) -> None:
        self.world = world
        self.ledger = ledger
        self.workers = workers
        self.inventory = Inventory(template=TEMPLATE)
        self.queue: dict[str, None] = {}
        self.again: set[str] = set()
        self.timers: dict[str, float] = {}
        self.busy: dict[str, Attempt] = {}
        self.wanted: dict[str, Wanted] = {}
        self.confirmed: set[str] = set()
        self.kept: set[str] = set()
        self.confirming: tuple[set[str], dict[str, Wanted]] | None = None
        self.gone: dict[str, float] = {}
        self.gate_open = False
        self.first_list: set[str] | None = None
        self.seen: dict[str, int] | None = None
        self.gaps = 0
        self.listed: dict[str, Listed] | None = None
        self.reconcile_requested = False
        self.mends_a_gap = False
        self.streak = 0
        self.refusals = Refusals(ledger.entries.values())
        self.begin()

    def begin(self) -> None:
        """Begin with nothing seen, and a watch that brings all there is."""
        self.world.view = {}
        self.world.connect()

    def watch_anew(self) -> None:
        """List and watch anew: what went meanwhile is not told."""
        self.world.connect()
        self.inventory.doubt()
        self.confirmed.clear()
        self.reconcile_requested = True

    # What the watch tells.

    def hear_of(self, uid: str, pod: Pod | None, *, surely: bool = False) -> None:
        """Take note of a pod, or that it is gone."""
        before = self.world.view.get(uid)
        if pod is None:
            self._changed(uid, self.inventory.remove(uid))
            self.world.view.pop(uid, None)
        elif surely or uid not in self.gone:
            self._changed(uid, self.inventory.observe(pod, surely=surely))
            if surely or before is None or before.version <= pod.version:
                self.world.view[uid] = pod
        if pod is not None and pod.unfinished:
            # A workload that has pods again keeps only what they declare.
            self._look_anew(
                name for name in self.kept if self.ledger.entries[name].workload == pod.workload
            )
        if self.gate_open and (told := pod or before) is not None:
            self.world.note_told(names_of(told))

    def _changed(self, uid: str, names: Iterable[str]) -> None:
        for listing in (self.first_list, self.confirming and self.confirming[0]):
            if listing:
                listing.discard(uid)
        self.world.note_event(names)
        self._look_anew(names)

    def _look_anew(self, names: Iterable[str]) -> None:
        for name in list(names):
            self.kept.discard(name)
            self._withdraw(name)
            self.touch(name)

    def _withdraw(self, name: str) -> None:
        self.wanted.pop(name, None)
        self.confirmed.discard(name)

    def touch(self, name: str) -> None:
        """Have a name looked at."""
        self.timers.pop(name, None)
        if name in self.busy:
            self.again.add(name)
        else:
            self.queue[name] = None

    def look_at_all(self) -> None:
        """Have every name looked at."""
        for name in [*self.ledger.entries, *self.inventory.names()]:
            self.touch(name)

    # The first list: nothing is sent before all of it was seen.

    def list_first(self) -> None:
        """Ask for the list that opens the gate, or for a later one that it is held against."""
        listed = set(self.world.pods)
        if self.first_list is not None:
            listed &= self.first_list
        self.first_list = {uid for uid in listed if uid not in self.inventory}

    def open_gate(self) -> None:
        """Begin to send."""
        self.gate_open = True
        self.world.note_told({*self.world.told, *self.inventory.names()})
        self.look_at_all()

    @property
    def may_open(self) -> bool:
        """Tell whether all pods of the first list were seen or have gone."""
        return not self.gate_open and self.first_list is not None and not self.first_list

    # Reconcile, in three steps.

    def reconcile(self) -> None:
        """Take the next step of a pass."""
        if self.seen is None:
            self.take_snapshot()
        elif self.listed is None:
            self.list_pods()
        else:
            self.mend()

    def take_snapshot(self) -> None:
        """Note what was seen, before the list."""
        self.mends_a_gap, self.reconcile_requested = self.reconcile_requested, False
        self.seen = self.inventory.versions()
        self.gaps = self.inventory.gaps

    def list_pods(self) -> None:
        """List what is there."""
        self.listed = {
            uid: Listed(namespace=pod.namespace, name=pod.name, version=pod.version)
            for uid, pod in self.world.pods.items()
        }

    def mend(self) -> None:
        """Believe the difference."""
        if self.seen is None or self.listed is None:
            return
        found = drift.drift_of(self.seen, self.listed)
        for uid in sorted(found.gone):
            self.gone[uid] = self.world.now + GONE_SECONDS
            self.hear_of(uid, None)
        versions = self.inventory.versions()
        for uid in sorted(found.lacking):
            pod = self.world.pods.get(uid)
            if pod is not None and versions.get(uid, -1) < self.listed[uid].version:
                self.hear_of(uid, pod, surely=True)
        self.seen = self.listed = None
        self.mends_a_gap = False
        self._look_anew(self.inventory.trust(self.gaps))
        self.kept.clear()
        self._keep(self.ledger.entries)
        self.look_at_all()

    # Confirmation of absences.

    @property
    def due(self) -> dict[str, Wanted]:
        """Return the absences whose confirmation is due."""
        return {name: each for name, each in self.wanted.items() if each.due <= self.world.now}

    def list_absences(self) -> None:
        """List pods to confirm what is due."""
        left = {uid for uid in self.world.pods if uid not in self.inventory}
        self.confirming = left, self.due

    def confirm_absences(self) -> None:
        """Confirm them, unless a pod was listed that was not seen: then the next list tells."""
        if self.confirming is None:
            return
        left, due = self.confirming
        self.confirming = None
        if left:
            return
        kept = self._keep(name for name, wanted in due.items() if wanted.absent)
        for name, wanted in due.items():
            if self.wanted.get(name) is wanted:
                del self.wanted[name]
                if name not in kept:
                    self.confirmed.add(name)
                self.touch(name)

    def _keep(self, names: Iterable[str]) -> set[str]:
        """Read the workloads; return which of these names one keeps that has no pods."""
        catalog = Catalog(enabled=True)
        known = Known(controller=None, terminating=False, marks=NO_MARKS)
        for kind in KINDS:
            there = {each: known for each in self.world.scaled if each.kind == kind}
            catalog.take_list(kind, there, namespace=None)
        living = self.inventory.living()
        kept = {
            name
            for name in names
            if (entry := self.ledger.entries.get(name)) is not None
            and is_kept(entry, catalog=catalog, living=living, rules=EVERYTHING, template=TEMPLATE)
        }
        self.kept |= kept
        return kept

    # The workers.

    @property
    def ready(self) -> bool:
        """Tell whether a worker may take a name."""
        paused = self.world.now < self.ledger.pause_until
        return self.gate_open and not paused and len(self.busy) < self.workers

    def decide(self, name: str) -> None:
        """Let a worker take a name and work out what to do about it."""
        del self.queue[name]
        step = self.next_step(name)
        match step:
            case Send(record=record):
                if record.status is Status.DECOMMISSIONED:
                    self.world.check_decommission(record)
                self.busy[name] = Attempt(send=step)
            case Wait(until=until):
                promise(until > self.world.now, "a wait is for later", name, until)
                self.timers[name] = until
                kept = self.ledger.entries.get(name)
                if kept is not None and kept.sent is not None:
                    self.refusals.unknown.wait(kept.sent.digest, name)
            case Defer() | Drop() | Adopt():
                self.write_down(name, step)
            case Confirm(absent=absent):
                wanted = self.wanted.get(name)
                if wanted is None or wanted.absent != absent:
                    self.wanted[name] = Wanted(
                        due=self.world.now + DECOMMISSION_DELAY_SECONDS, absent=absent
                    )
            case Forget():
                self.world.check_forget(name)
                self._withdraw(name)
                self.kept.discard(name)
                self.refusals.forget(name)
                del self.ledger.entries[name]
            case Nothing():
                self._withdraw(name)
                self.refusals.rest(name)

    def write_down(self, name: str, step: Defer | Drop | Adopt) -> None:
        """Write down what needs no send."""
        self.ledger.put(entries.amend(self.ledger.entries.get(name), step), said=None)
        if not isinstance(step, Defer):
            self.refusals.rest(name)
        self.touch(name)

    def next_step(self, name: str) -> Step:
        """Return what is to be done about a name now."""
        entry = self.ledger.entries.get(name)
        judgement = self.judge(name, entry)
        if entry is not None and self.refusals.is_due(name):
            entry = replace(entry, not_before=None)
        return entries.next_step(
            judgement,
            entry,
            absence_confirmed=name in self.confirmed,
            now=self.world.now,
            unknown=self.refusals.unknown,
        )

    def judge(self, name: str, entry: Entry | None) -> Judgement:
        """Judge a name by the pods, and by the workload that may keep it without any."""
        judgement = self.inventory.judge(name, None if entry is None else entry.held)
        if isinstance(judgement, Absent) and name in self.kept:
            return Held(displaced=False, idle=True)
        return judgement

    def write_intent(self, name: str) -> None:
        """Write down what is about to leave."""
        attempt = self.busy[name]
        intended = entries.intend(self.ledger.entries.get(name), attempt.send)
        attempt.intended = self.refusals.intend(intended)
        self.ledger.put(attempt.intended, said=None)
        attempt.stage = Stage.INTENDED

    def post(self, name: str, outcome: Outcome) -> None:
        """Let the bytes leave."""
        attempt = self.busy[name]
        kept = self.ledger.entries.get(name)
        promise(
            kept is not None and kept.state is State.SENDING and kept.sent == attempt.send.record,
            "the intent is kept before bytes leave",
            kept,
        )
        attempts = 0 if kept is None else kept.attempts
        attempt.answer, attempt.ready_at, attempt.late = self.world.receive(
            attempt.send.record, outcome.after(attempts)
        )
        attempt.stage = Stage.POSTED

    def hear(self, name: str) -> None:
        """Receive the answer."""
        attempt = self.busy[name]
        if attempt.answer is None or attempt.intended is None:
            raise AssertionError("an answer without a question")
        self.world.close(attempt.send.record, attempt.answer, attempt.late)
        attempt.concluded = entries.conclude(
            attempt.intended, attempt.answer, now=self.world.now, chance=CHANCE
        )
        self._pause(attempt.answer)
        others = self.refusals.learn(
            attempt.intended,
            attempt.concluded,
            attempt.answer,
            now=self.world.now,
            paused_until=self.ledger.pause_until,
            known=known_digests(self.ledger.entries.values()),
        )
        for other in others:
            self.touch(other)
        attempt.stage = Stage.HEARD

    def write_outcome(self, name: str) -> None:
        """Write down what came of it."""
        attempt = self.busy.pop(name)
        if attempt.concluded is None:
            raise AssertionError("an end without an answer")
        said = attempt.send.record if isinstance(attempt.answer, Acknowledged) else None
        self.ledger.put(attempt.concluded, said=said)
        self.again.discard(name)
        self.touch(name)

    def advance(self, name: str, outcome: Outcome) -> bool:
        """Take a name one step further; return whether that was possible."""
        attempt = self.busy.get(name)
        if attempt is None:
            if name not in self.queue or not self.ready:
                return False
            self.decide(name)
        elif attempt.stage is Stage.DECIDED:
            self.write_intent(name)
        elif attempt.stage is Stage.INTENDED:
            if self.world.now < self.ledger.pause_until:
                return False
            self.post(name, outcome)
        elif attempt.stage is Stage.POSTED:
            if self.world.now < attempt.ready_at:
                return False
            self.hear(name)
        else:
            self.write_outcome(name)
        return True

    def _pause(self, answer: Said) -> None:
        left = max(self.ledger.pause_until - self.world.now, 0.0)
        match answer:
            case Limited(pause_seconds=seconds) if seconds is not None:
                pause = seconds
            case Unauthorized():
                pause = left or FIRST_PAUSE_SECONDS
            case Limited():
                pause = left or min(FIRST_PAUSE_SECONDS * 2.0**self.streak, MAX_PAUSE_SECONDS)
                self.streak = self.streak if left else min(self.streak + 1, MAX_STREAK)
            case Failed():
                return
            case _:
                self.streak = 0
                return
        self.ledger.pause_until = max(self.ledger.pause_until, self.world.now + pause)
        self.world.limited_until = self.ledger.pause_until

    # Time and death.

    def wake(self) -> None:
        """Look at the names whose time has come."""
        now = self.world.now
        for name in [name for name, when in self.timers.items() if when <= now]:
            self.touch(name)
        self.gone = {uid: until for uid, until in self.gone.items() if until > now}

    def die(self) -> None:
        """Die: what was under way has an open end."""
        for attempt in self.busy.values():
            if attempt.stage is not Stage.DECIDED:
                self.world.close(attempt.send.record, None, attempt.late)

    def check_awake(self) -> None:
        """Hold every name to being looked at when there is something to do about it."""
        if not self.gate_open or self.reconcile_requested or self.mends_a_gap:
            return  # after a gap in the watch all are looked at when it is known what went in it
        for name in {*self.inventory.names(), *self.ledger.entries}:
            if name in self.queue or name in self.busy:
                continue
            step = self.next_step(name)
            match step:
                case Nothing():
                    kept = True
                case Wait(until=until):
                    kept = self.timers.get(name, until + 1) <= until
                case Confirm():
                    # What a gap took back is wanted anew when it is looked at next.
                    kept = name in self.wanted or name in self.timers
                case _:
                    kept = False
            promise(kept, "what is due is looked at", name, step)

    def check_bounded(self) -> None:
        """Hold memory to the pods that are known and the names there are."""
        names = {*self.inventory.names(), *self.ledger.entries}
        promise(len(self.inventory) == len(self.world.view), "no pod is kept that went")
        for kept in (self.timers, self.wanted, self.confirmed, self.kept):
            promise(names.issuperset(kept), "no name is kept that went", kept)
        fresh = Inventory(template=TEMPLATE)
        for pod in self.world.view.values():
            fresh.observe(pod)
        promise(set(fresh.names()) == set(self.inventory.names()), "nothing is left of old pods")

    def rest(self, seconds: float) -> None:
        """Work without faults until there is nothing left to do for so many seconds."""
        until = self.world.now + seconds
        self.reconcile_requested = True  # as it is on an interval
        for _ in range(MAX_STEPS_TO_REST):
            if self._work_on():
                continue
            soonest = min(self._times(), default=until)
            if soonest >= until:
                self.world.tick(until - self.world.now)
                self.wake()
                if not self._work_on():
                    return
                continue
            self.world.tick(max(soonest - self.world.now, 0.0))
            self.wake()
        raise BrokenPromiseError(f"no rest: {self.ledger.entries}")

    def _work_on(self) -> bool:
        """Do whatever can be done now; return whether anything could."""
        world = self.world
        if not world.connected:
            self.watch_anew()
        for uid in list(world.undelivered):
            while uid in world.undelivered:
                world.deliver(self, uid, coalesced=False)
        if not self.gate_open:
            self.list_first()
            self.open_gate()
            return True
        if self.confirming is not None or self.due:
            if self.confirming is None:
                self.list_absences()
            self.confirm_absences()
            return True
        if self.reconcile_requested or self.seen is not None:
            self.reconcile()
            return True
        went_on = [self.advance(name, Outcome.ACKNOWLEDGED) for name in [*self.busy, *self.queue]]
        return any(went_on)

    def _times(self) -> Iterator[float]:
        """Return the times at which something will be possible that is not now."""
        yield from self.timers.values()
        yield from (wanted.due for wanted in self.wanted.values())
        yield from (each.ready_at for each in self.busy.values() if each.stage is Stage.POSTED)
        yield from (late.deadline for late in self.world.late)
        if (self.queue or self.busy) and self.ledger.pause_until > self.world.now:
            yield self.ledger.pause_until
