"""
The tracker as one thread of small steps, and the world around it, for the test by a state machine.

`World` is a cluster, the watch on it, and a GitHub with every fault it can have, on one virtual
clock. `Tracker` is the real core (inventory, entries, drift, answers) with a shell whose every
await is a step of its own, so that anything may happen between two steps: it can die between any
two, and all but its ledger dies with it. The promises are checked where they could be broken; what
can only be told at the end is in `World.check_converged`.

What the tracker was *told* is kept here a second time (`World.view`) and judged by rules of its
own, so that the order of posts is held against the order in which states came to be known.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from typing import Final, NamedTuple

from tests.support.builders import EPOCH, TEMPLATE, digest, image
from tracker import drift, entries
from tracker.answers import (
    Acknowledged,
    Answer,
    Failed,
    Limited,
    Reply,
    Unauthorized,
    Unconfirmed,
    classify,
)
from tracker.drift import Listed
from tracker.entries import Confirm, Entry, Forget, Nothing, Send, State, Step, Wait
from tracker.images import Digest, Image, SkipReason
from tracker.inventory import Inventory
from tracker.ledger_schema import Moment
from tracker.pods import Container, Pod
from tracker.records import Record, Status
from tracker.workloads import Workload

__all__ = ["Attempt", "Broken", "Ledger", "Outcome", "Stage", "Tracker", "World"]

LATE_SECONDS: Final = entries.SETTLE_SECONDS - 1
"""How long after its failure was known a request may still land."""
TIMEOUT_SECONDS: Final = 30.0
DECOMMISSION_DELAY_SECONDS: Final = 5.0
GONE_SECONDS: Final = 600.0
FIRST_PAUSE_SECONDS: Final = 60.0
MAX_PAUSE_SECONDS: Final = 3600.0
MAX_STEPS_TO_REST: Final = 5000
MAX_SENDS_AT_ONCE: Final = 8
CHANCE: Final = 0.5


class Effect(Enum):
    """What a request does to GitHub's table."""

    NOW = "at once"
    LATE = "some time after its failure is known"
    NEVER = "never"


class Outcome(Enum):
    """What becomes of one request: status (0: no reply), effect, seconds until it is known."""

    ACKNOWLEDGED = (200, Effect.NOW)
    UNREADABLE = (201, Effect.NOW)
    VAGUE = (202, Effect.NOW)
    VAGUE_AND_LOST = (204, Effect.NEVER)
    ERROR = (503, Effect.NEVER)
    ERROR_AFTER_ALL = (500, Effect.NOW)
    ERROR_AND_LATE = (504, Effect.LATE)
    RESET = (0, Effect.NEVER)
    ANSWER_LOST = (0, Effect.NOW, 0.0)
    RESET_AND_LATE = (0, Effect.LATE)
    HANG = (0, Effect.NEVER, TIMEOUT_SECONDS)
    HANG_AND_LATE = (0, Effect.LATE, TIMEOUT_SECONDS)
    REFUSED_CONNECTION = (-1, Effect.NEVER)
    LIMITED = (429, Effect.NEVER)
    LIMITED_FOR_SECONDS = (429, Effect.NEVER, 0.0)
    UNAUTHORIZED = (401, Effect.NEVER)
    FORBIDDEN = (403, Effect.NEVER)
    INVALID = (422, Effect.NEVER)

    def __init__(self, status: int, effect: Effect, seconds: float = 0.0) -> None:
        self.status = status
        self.effect = effect
        self.seconds = seconds


BEFORE_THE_RECORD: Final = frozenset({-1, 401, 429})
"""Statuses that come before GitHub looks at the record; -1 is a refused connection."""


class Broken(AssertionError):
    """A promise was broken."""


def promise(kept: object, words: str, *facts: object) -> None:
    """Raise `Broken` with the facts unless the promise was kept."""
    if not kept:
        raise Broken(": ".join([words, *map(str, facts)]))


class Standing(NamedTuple):
    """What pods say of a name, by rules written down a second time."""

    held: bool
    known: bool
    stands: Record | None
    runs: frozenset[Digest]

    def explains(self, record: Record) -> bool:
        """Tell whether a tracker that knows this, and any acknowledgement, may post a record."""
        if record.status is Status.DEPLOYED:
            return record == self.stands
        return not self.held or (self.known and record.digest not in self.runs)


NOBODY: Final = Standing(held=False, known=False, stands=None, runs=frozenset())


def standing(pods: Iterable[Pod], name: str) -> Standing:
    """Judge a name, slowly, from all pods at once."""
    claims = [
        (pod, container)
        for pod in pods
        for container in pod.containers
        if name_of(pod.workload, container.name) == name
    ]
    claims = [
        (pod, container)
        for pod, container in claims
        if pod.terminating
        or pod.phase in {"Pending", "Running", "Unknown"}
        or pod.workload.kind == "Job"
    ]
    started = [claim for claim in claims if claim[1].image is not None]
    staying = [
        claim
        for claim in started
        if not claim[0].terminating
        and (claim[0].phase == "Running" or claim[0].phase in {"Succeeded", "Failed"})
    ]
    leaving = [claim for claim in started if claim[0].terminating]
    newest = max(
        staying or leaving, key=lambda claim: (claim[0].created, claim[0].name), default=None
    )
    stands = newest[1].image if newest else None
    return Standing(
        held=bool(claims),
        known=newest is not None,
        stands=Record.deployed(name, stands) if isinstance(stands, Image) else None,
        runs=frozenset(c.image.digest for _, c in claims if isinstance(c.image, Image)),
    )


def name_of(workload: Workload, container: str) -> str:
    """Return the deployment name of a container."""
    return f"{workload.namespace}/{workload.name}/{container}"


class Stage(Enum):
    """How far a worker is with a name; between any two the world moves on."""

    DECIDED = 1
    INTENDED = 2
    POSTED = 3
    HEARD = 4


@dataclass(slots=True)
class Late:
    """A request that has yet to land."""

    record: Record
    deadline: float = float("inf")


@dataclass(slots=True)
class Attempt:
    """One send of one name, on its way."""

    send: Send
    stage: Stage = Stage.DECIDED
    intended: Entry | None = None
    answer: Answer | None = None
    ready_at: float = 0.0
    late: Late | None = None
    concluded: Entry | None = None


class World:
    """The cluster, the watch, GitHub, the clock, and what was promised about them."""

    def __init__(self, *, twins_outlive: bool = False) -> None:
        self.now = 1000.0
        self.wall_offset = 1.7e9
        # The cluster. Versions and uids only ever grow.
        self.pods: dict[str, Pod] = {}
        self.specs: dict[str, Image | SkipReason] = {}
        self._version = 0
        # The watch: undelivered states by uid, None for the deletion.
        self.connected = True
        self.undelivered: dict[str, deque[Pod | None]] = {}
        self.last_delivered: tuple[str, Pod | None] | None = None
        # GitHub.
        self.table: dict[str, Record] = {}
        self.late: list[Late] = []
        self.known = {digest("a"), digest("b")}
        self.rejected: set[Digest] = set()
        self.limited_until = 0.0
        self.posts = 0
        self._twins_outlive = twins_outlive
        # What is remembered to hold the tracker to.
        self.view: dict[str, Pod] = {}
        self.told: defaultdict[str, list[Standing]] = defaultdict(lambda: [NOBODY])
        self._posted_at: Counter[str] = Counter()
        self._last_posted: dict[str, Record] = {}
        self._moment = 0
        self._held_since: dict[str, int] = {}
        self._touched_at: Counter[str] = Counter()
        self._effective: dict[str, Record] = {}
        self.extra: Counter[str] = Counter()
        self.excuses: Counter[str] = Counter()
        self._at_once: Counter[str] = Counter()

    # The cluster.

    def create(self, workload: Workload, spec: Image | SkipReason, containers: Iterable[str]) -> str:
        """Create a pod that waits to be started; return its uid."""
        uid = f"{len(self.specs):03}"
        self.specs[uid] = spec
        self._put(
            Pod(
                uid=uid,
                namespace=workload.namespace,
                name=f"{workload.name}-{uid}",
                created=EPOCH + timedelta(seconds=int(self.now)),
                phase="Pending",
                terminating=False,
                workload=workload,
                containers=tuple(Container(name=name, image=None) for name in containers),
            )
        )
        return uid

    def start(self, uid: str) -> None:
        """Let a pod run what its spec says, newly or after it was patched in place."""
        pod = self.pods[uid]
        if pod.phase in {"Pending", "Running"}:
            spec = self.specs[uid]
            running = tuple(Container(name=each.name, image=spec) for each in pod.containers)
            self._put(replace(pod, phase="Running", containers=running))

    def finish(self, uid: str, phase: str) -> None:
        """Let a pod end by itself, or its node be lost (Unknown)."""
        if self.pods[uid].unfinished and not self.pods[uid].terminating:
            self._put(replace(self.pods[uid], phase=phase))

    def terminate(self, uid: str) -> None:
        """Ask a pod to go."""
        if not self.pods[uid].terminating:
            self._put(replace(self.pods[uid], terminating=True))

    def delete(self, uid: str) -> None:
        """Take a pod away."""
        pod = self.pods.pop(uid)
        self._emit(uid, None, pod)

    def uids(self, workload: Workload) -> list[str]:
        """Return the pods of a workload, oldest first."""
        return [uid for uid, pod in self.pods.items() if pod.workload == workload]

    def _put(self, pod: Pod) -> None:
        self._version += 1
        pod = replace(pod, version=self._version)
        self.pods[pod.uid] = pod
        self._emit(pod.uid, pod, pod)

    def _emit(self, uid: str, state: Pod | None, pod: Pod) -> None:
        if self.connected:
            self.undelivered.setdefault(uid, deque()).append(state)
        self._moment += 1
        for name in names_of(pod):
            if standing(self.pods.values(), name).held:
                self._held_since.setdefault(name, self._moment)
            else:
                self._held_since.pop(name, None)

    # The watch.

    def disconnect(self) -> None:
        """Lose the watch and what it had not brought yet."""
        self.connected = False
        self.undelivered.clear()
        self.last_delivered = None

    def connect(self) -> None:
        """List and watch anew: what there is comes again, what went meanwhile is not told."""
        self.connected = True
        self.undelivered = {uid: deque([pod]) for uid, pod in self.pods.items()}
        self.last_delivered = None

    def deliver(self, tracker: "Tracker", uid: str, *, coalesced: bool) -> None:
        """Bring the next state of one pod, or only its last one."""
        states = self.undelivered[uid]
        state = states[-1] if coalesced else states[0]
        if coalesced or len(states) == 1:
            del self.undelivered[uid]
        else:
            states.popleft()
        self.last_delivered = uid, state
        tracker.hear_of(uid, state)

    # GitHub.

    def receive(self, record: Record, outcome: Outcome) -> tuple[Answer, float, Late | None]:
        """Take a request; return the answer, when it is there, and what may land later."""
        name = record.deployment_name
        promise(self.now >= self.limited_until, "the limit is respected", name)
        self._check_order(record)
        self.posts += 1
        self._at_once[name] += 1
        promise(self._at_once[name] <= MAX_SENDS_AT_ONCE, "no name spins", record)
        status, effect, seconds = outcome.status, outcome.effect, outcome.seconds
        if status not in BEFORE_THE_RECORD:
            if record.digest in self.rejected:
                status, effect, seconds = 422, Effect.NEVER, 0.0
            elif record.digest not in self.known:
                status, effect, seconds = 404, Effect.NEVER, 0.0
        late = None
        if effect is Effect.NOW:
            self.table[name] = record
        elif effect is Effect.LATE:
            late = Late(record)
            self.late.append(late)
        answer = _answer(record, outcome, status)
        if status in BEFORE_THE_RECORD or status in {403, 404, 422}:
            return answer, self.now, late
        if self._effective.get(name) == record:
            self.extra[name] += 1
        self._effective[name] = record
        promise(
            self.extra[name] <= self.excuses[name],
            "at most one extra post for each open outcome or crash",
            record,
        )
        return answer, self.now + seconds, late

    def land(self, late: Late) -> None:
        """Apply what was late."""
        self.late.remove(late)
        self.table[late.record.deployment_name] = late.record

    def close(self, attempt: Attempt, *, heard: bool) -> None:
        """Note that the tracker knows how a request ended, or died before it could know."""
        record, answer = attempt.send.record, attempt.answer
        name = record.deployment_name
        if attempt.late is not None:
            attempt.late.deadline = min(attempt.late.deadline, self.now + LATE_SECONDS)
        open_end = isinstance(answer, Unconfirmed) or (
            isinstance(answer, Failed) and answer.landed
        )
        if not heard or open_end:
            self.excuses[name] += 1
            self._effective[name] = record
        if heard and isinstance(answer, Acknowledged) and not self._twins_outlive:
            # Of two requests with the same record the first one lands before the second is heard.
            self.late = [other for other in self.late if other.record != record]

    # Time.

    def tick(self, seconds: float) -> None:
        """Let time pass; what is late lands at its deadline."""
        self.now += seconds
        self._at_once.clear()
        for late in sorted(self.late, key=lambda each: each.deadline):
            if late.deadline <= self.now:
                self.land(late)

    # What the tracker is held to.

    def note_told(self, names: Iterable[str]) -> None:
        """Note what the tracker knows of these names by now."""
        for name in names:
            now_stands = standing(self.view.values(), name)
            if self.told[name][-1] != now_stands:
                self.told[name].append(now_stands)
                self._at_once.pop(name, None)

    def note_event(self, names: Iterable[str]) -> None:
        """Note that the tracker was told of a pod of these names."""
        self._moment += 1
        for name in names:
            self._touched_at[name] = self._moment

    def _check_order(self, record: Record) -> None:
        """Hold a post against the states that were known, none older than the last post's."""
        name = record.deployment_name
        # What is settled is no new state, nor is what GitHub holds after a newer one was refused.
        if record in {self._last_posted.get(name), self._effective.get(name)}:
            return
        known = self.told[name]
        for index in range(self._posted_at[name], len(known)):
            if known[index].explains(record):
                self._posted_at[name] = index
                self._last_posted[name] = record
                return
        raise Broken(f"an older state never follows a newer one: {record} after {known}")

    def check_decommission(self, record: Record) -> None:
        """Hold a decision to decommission against the cluster as it was since the last event."""
        name = record.deployment_name
        now_stands = standing(self.view.values(), name)
        settles = record == self._effective.get(name) and record.digest not in now_stands.runs
        kept = settles or now_stands.explains(record)
        promise(kept, "what runs is not decommissioned", record)
        if not settles and not now_stands.held:
            since = self._held_since.get(name)
            kept = since is None or since >= self._touched_at[name]
            promise(kept, "nothing is decommissioned while a pod holds it", record)

    def check_forget(self, name: str) -> None:
        """Hold GitHub to never having heard of a name that is forgotten, or only to its end."""
        row = self.table.get(name)
        promise(row is None or row.status is Status.DECOMMISSIONED, "nothing is lost", row)
        for late in self.late:
            lost = late.record.deployment_name == name and late.record.status is Status.DEPLOYED
            promise(not lost, "nothing is lost that may land", late.record)

    def check_converged(self, ledger: Mapping[str, Entry], *, refused_too: bool) -> None:
        """Hold GitHub's table against the cluster; without `refused_too` less what it refuses."""
        names = {name for pod in self.pods.values() for name in names_of(pod)}
        for name in names | self.table.keys():
            entry = ledger.get(name)
            if not refused_too and entry is not None and (_is_refused(entry) or entry.refused):
                continue
            row = self.table.get(name)
            deployed = row if row is not None and row.status is Status.DEPLOYED else None
            truth = standing(self.pods.values(), name)
            if not truth.held:
                promise(deployed is None, "what is gone is decommissioned", name, row, entry)
            elif truth.stands is not None:
                promise(deployed == truth.stands, "what runs is recorded", name, row, truth, entry)
            elif truth.known and (entry is None or entry.in_doubt is None):
                promise(
                    deployed is None or deployed.digest in truth.runs,
                    "what was replaced is decommissioned",
                    name,
                    row,
                    entry,
                )


def names_of(pod: Pod) -> list[str]:
    """Return the deployment names that a pod declares."""
    return [name_of(pod.workload, container.name) for container in pod.containers]


def _is_refused(entry: Entry) -> bool:
    return entry.state in {State.NOT_FOUND, State.PARKED}


def _answer(record: Record, outcome: Outcome, status: int) -> Answer:
    """Return what the tracker makes of a status, by way of the real classification."""
    if status == -1:
        return Failed(reason="connection refused", landed=False)
    if status == 0:
        return Failed(reason="timeout" if outcome.seconds else "reset", landed=True)
    headers, body, whole = {}, b"{}", True
    if status == 200:
        body = (
            f'{{"deployment_records":[{{"deployment_name":"{record.deployment_name}",'
            f'"digest":"{record.digest}"}}]}}'
        ).encode()
    elif status == 201:
        whole = False
    elif outcome is Outcome.LIMITED_FOR_SECONDS:
        headers = {"retry-after": "20"}
    return classify(Reply(status=status, headers=headers, body=body, whole=whole), record)


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
        self.confirming: tuple[set[str], dict[str, Wanted]] | None = None
        self.gone: dict[str, float] = {}
        self.gate_open = False
        self.first_list: set[str] | None = None
        self.seen: dict[str, int] | None = None
        self.listed: dict[str, Listed] | None = None
        self.reconcile_requested = False
        self.streak = 0
        self.begin()

    def begin(self) -> None:
        """Begin with nothing seen, and a watch that brings all there is."""
        self.world.view = {}
        self.world.connect()

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
        if self.gate_open and (told := pod or before) is not None:
            self.world.note_told(names_of(told))

    def _changed(self, uid: str, names: Iterable[str]) -> None:
        for listing in (self.first_list, self.confirming and self.confirming[0]):
            if listing:
                listing.discard(uid)
        self.world.note_event(names)
        for name in names:
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
        self.seen = self.inventory.versions()

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
        for name, wanted in due.items():
            if not left and self.wanted.get(name) is wanted:
                del self.wanted[name]
                self.confirmed.add(name)
                self.touch(name)

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
            case Confirm(absent=absent):
                wanted = self.wanted.get(name)
                if wanted is None or wanted.absent != absent:
                    self.wanted[name] = Wanted(
                        due=self.world.now + DECOMMISSION_DELAY_SECONDS, absent=absent
                    )
            case Forget():
                self.world.check_forget(name)
                self._withdraw(name)
                del self.ledger.entries[name]
            case Nothing():
                self._withdraw(name)

    def next_step(self, name: str) -> Step:
        """Return what is to be done about a name now."""
        entry = self.ledger.entries.get(name)
        judgement = self.inventory.judge(name, None if entry is None else entry.held)
        return entries.next_step(
            judgement, entry, absence_confirmed=name in self.confirmed, now=self.world.now
        )

    def write_intent(self, name: str) -> None:
        """Write down what is about to leave."""
        attempt = self.busy[name]
        attempt.intended = entries.intend(self.ledger.entries.get(name), attempt.send)
        self.ledger.put(attempt.intended, said=None)
        attempt.stage = Stage.INTENDED

    def post(self, name: str, outcome: Outcome) -> None:
        """Let the bytes leave."""
        attempt = self.busy[name]
        attempt.answer, attempt.ready_at, attempt.late = self.world.receive(
            attempt.send.record, outcome
        )
        attempt.stage = Stage.POSTED

    def hear(self, name: str) -> None:
        """Receive the answer."""
        attempt = self.busy[name]
        if attempt.answer is None or attempt.intended is None:
            raise AssertionError("an answer without a question")
        self.world.close(attempt, heard=True)
        attempt.concluded = entries.conclude(
            attempt.intended, attempt.answer, now=self.world.now, chance=CHANCE
        )
        self._pause(attempt.answer)
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

    def _pause(self, answer: Answer) -> None:
        left = max(self.ledger.pause_until - self.world.now, 0.0)
        match answer:
            case Limited(pause_seconds=seconds) if seconds is not None:
                pause = seconds
            case Limited() | Unauthorized():
                pause = left or min(FIRST_PAUSE_SECONDS * 2.0**self.streak, MAX_PAUSE_SECONDS)
                self.streak = self.streak if left else min(self.streak + 1, 6)
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
                self.world.close(attempt, heard=False)

    def check_awake(self) -> None:
        """Hold every name to being looked at when there is something to do about it."""
        if not self.gate_open:
            return
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
                    kept = name in self.wanted
                case _:
                    kept = False
            promise(kept, "what is due is looked at", name, step)

    def check_bounded(self) -> None:
        """Hold memory to the pods that are known and the names there are."""
        names = {*self.inventory.names(), *self.ledger.entries}
        promise(len(self.inventory) == len(self.world.view), "no pod is kept that went")
        for kept in (self.timers, self.wanted, self.confirmed):
            promise(names.issuperset(kept), "no name is kept that went", kept)
        fresh = Inventory(template=TEMPLATE)
        for pod in self.world.view.values():
            fresh.observe(pod)
        promise(set(fresh.names()) == set(self.inventory.names()), "nothing is left of old pods")

    def rest(self, seconds: float) -> None:
        """Work without faults until there is nothing left to do for so many seconds."""
        until = self.world.now + seconds
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
        raise Broken(f"no rest: {self.ledger.entries}")

    def _work_on(self) -> bool:
        """Do whatever can be done now; return whether anything could."""
        world = self.world
        if not world.connected:
            world.connect()
            self.reconcile_requested = True
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
            # A pass that was under way may have begun before the watch broke: it is no answer.
            self.reconcile_requested = self.reconcile_requested and self.seen is not None
            self.reconcile()
            return True
        return any(
            [self.advance(name, Outcome.ACKNOWLEDGED) for name in [*self.busy, *self.queue]]
        )

    def _times(self) -> Iterator[float]:
        """Return the times at which something will be possible that is not now."""
        yield from self.timers.values()
        yield from (wanted.due for wanted in self.wanted.values())
        yield from (each.ready_at for each in self.busy.values() if each.stage is Stage.POSTED)
        yield from (late.deadline for late in self.world.late)
        if (self.queue or self.busy) and self.ledger.pause_until > self.world.now:
            yield self.ledger.pause_until
