"""
The world around a modelled tracker: a cluster, the watch on it, a GitHub with every fault, a clock.

It is also the judge. Promises are checked where they could be broken; what can only be told at the
end is in `World.check_converged`. What the tracker was *told* is kept here a second time
(`World.view`) and judged by rules of its own, so that the order of posts is held against the order
in which states came to be known: a state is older when the tracker knew it earlier.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import Final, NamedTuple, Protocol

from tests.support.builders import EPOCH, digest
from tracker.answers import (
    Acknowledged,
    BatchRefused,
    BatchUnclear,
    Failed,
    Reply,
    Unconfirmed,
    classify,
)
from tracker.batches import Said
from tracker.entries import SETTLE_SECONDS, Entry
from tracker.images import Digest, Image, SkipReason
from tracker.pods import Container, Pod
from tracker.records import Record, Status
from tracker.workloads import Workload

__all__ = ["BrokenPromiseError", "Hearer", "Late", "Outcome", "World", "names_of", "promise"]

LATE_SECONDS: Final = SETTLE_SECONDS - 1
"""How long after its failure was known a request may still land."""
TIMEOUT_SECONDS: Final = 30.0
MAX_SENDS_AT_ONCE: Final = 8


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
    LEFT_OUT = (207, Effect.NOW)
    LEFT_OUT_AND_LOST = (207, Effect.NEVER)
    REFUSED_WITH_OTHERS = (413, Effect.NEVER)

    def __init__(self, status: int, effect: Effect, seconds: float = 0.0) -> None:
        self.status = status
        self.effect = effect
        self.seconds = seconds

    def after(self, attempts: int) -> "Outcome":
        """Return what this is at a record's attempt: batches that fail leave it alone in time."""
        alone = attempts > MOST_IN_BATCHES and self.status in OF_A_BATCH
        return Outcome.ACKNOWLEDGED if alone else self


OF_A_BATCH: Final = frozenset({207, 413})
"""Statuses of what is said of a batch: the record's own answer is yet to come."""
MOST_IN_BATCHES: Final = 3
"""So often a record goes with others before it stands alone."""
BEFORE_THE_RECORD: Final = frozenset({-1, 401, 429})
"""Statuses that come before GitHub looks at the record; -1 is a refused connection."""


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


def promise(kept: object, words: str, *facts: object) -> None:
    """Raise `BrokenPromiseError` with the facts unless the promise was kept."""
    if not kept:
        raise BrokenPromiseError(": ".join([words, *map(str, facts)]))


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


@dataclass(slots=True)
class Late:
    """A request that has yet to land."""

    record: Record
    deadline: float = float("inf")


class Hearer(Protocol):
    """Who is told what the watch brings."""

    def hear_of(self, uid: str, pod: Pod | None) -> None:
        """Take note of a pod, or that it is gone."""
        ...


class World:
    """The cluster, the watch, GitHub, the clock, and what was promised about them."""

    def __init__(self, *, twins_outlive: bool = False) -> None:
        self.now = 1000.0
        self.wall_offset = 1.7e9
        # The cluster. Versions and uids only ever grow.
        self.pods: dict[str, Pod] = {}
        self.specs: dict[str, Image | SkipReason] = {}
        self._version = 0
        # Workloads that were scaled to zero and not deleted since, and what is kept by that.
        self.scaled: set[Workload] = set()
        self.kept: dict[str, Record] = {}
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

    def create(
        self, workload: Workload, spec: Image | SkipReason, containers: Iterable[str]
    ) -> str:
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

    def scale_to_zero(self, workload: Workload, acknowledged: Mapping[str, Record]) -> None:
        """
        End all pods of a workload that stays; these of its names are acknowledged for sure.

        What the tracker did not see to run is not held against it.
        """
        stands = {
            name: record
            for name, record in acknowledged.items()
            if self.connected
            and record == standing(self.pods.values(), name).stands
            and record == standing(self.view.values(), name).stands
        }
        for uid in self.uids(workload):
            self.terminate(uid)
            self.delete(uid)
        self.scaled.add(workload)
        self.kept |= stands

    def remove(self, workload: Workload) -> None:
        """Delete a workload and its pods."""
        self.scaled.discard(workload)
        for uid in self.uids(workload):
            self.terminate(uid)
            self.delete(uid)
        self.kept = {name: each for name, each in self.kept.items() if not _is_of(name, workload)}

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
            self.kept.pop(name, None)
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

    def deliver(self, hearer: Hearer, uid: str, *, coalesced: bool) -> None:
        """Bring the next state of one pod, or only its last one."""
        states = self.undelivered[uid]
        state = states[-1] if coalesced else states[0]
        if coalesced or len(states) == 1:
            del self.undelivered[uid]
        else:
            states.popleft()
        self.last_delivered = uid, state
        hearer.hear_of(uid, state)

    # GitHub.

    def receive(self, record: Record, outcome: Outcome) -> tuple[Said, float, Late | None]:
        """Take a request; return what is said, when it is there, and what may land later."""
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
        if status in BEFORE_THE_RECORD or status in {403, 404, 413, 422}:
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

    def close(self, record: Record, answer: Said | None, late: Late | None) -> None:
        """Note that the tracker knows how a request ended; None: that it died before it could."""
        name = record.deployment_name
        if late is not None:
            late.deadline = min(late.deadline, self.now + LATE_SECONDS)
        if (
            answer is None
            or isinstance(answer, Unconfirmed | BatchUnclear)
            or (isinstance(answer, Failed) and answer.landed)
        ):
            self.excuses[name] += 1
            self._effective[name] = record
        if isinstance(answer, Acknowledged) and not self._twins_outlive:
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
        raise BrokenPromiseError(
            f"an older state never follows a newer one: {record} after {known}"
        )

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

    def _is_scaled(self, name: str) -> bool:
        return any(_is_of(name, workload) for workload in self.scaled)

    def check_converged(self, ledger: Mapping[str, Entry], *, refused_too: bool) -> None:
        """Hold GitHub's table against the cluster; without `refused_too` less what it refuses."""
        names = {name for pod in self.pods.values() for name in names_of(pod)}
        for name in names | self.table.keys():
            entry = ledger.get(name)
            if not refused_too and entry is not None and (entry.is_refused or entry.refused):
                continue
            row = self.table.get(name)
            deployed = row if row is not None and row.status is Status.DEPLOYED else None
            truth = standing(self.pods.values(), name)
            if not truth.known and (truth.held or self._is_scaled(name)):
                # Nothing that runs says what stands: but it is known.
                open_end = entry is not None and entry.unheard is not None
                promise(not open_end, "no open outcome is left behind", name, row, entry)
                kept = self.kept.get(name)
                promise(kept in {None, deployed}, "what is scaled to zero stands", name, row, entry)
            elif not truth.held:
                promise(deployed is None, "what is gone is decommissioned", name, row, entry)
            elif truth.stands is not None:
                promise(deployed == truth.stands, "what runs is recorded", name, row, truth, entry)
            elif truth.known and not _runs_what_is_held(truth, entry):
                promise(
                    deployed is None or deployed.digest in truth.runs,
                    "what was replaced is decommissioned",
                    name,
                    row,
                    entry,
                )


def _is_of(name: str, workload: Workload) -> bool:
    return name.startswith(f"{workload.namespace}/{workload.name}/")


def names_of(pod: Pod) -> list[str]:
    """Return the deployment names that a pod declares."""
    return [name_of(pod.workload, container.name) for container in pod.containers]


def _runs_what_is_held(truth: Standing, entry: Entry | None) -> bool:
    """
    Tell whether what GitHub holds, as far as is known, runs next to a newer unrecordable pod.

    Nothing is posted then, so that another record of which a send is open may stand.
    """
    held = None if entry is None else entry.held
    return held is not None and held.digest in truth.runs


def _answer(record: Record, outcome: Outcome, status: int) -> Said:
    """Return what the tracker makes of a status, by way of the real classification."""
    if status == 207:
        return BatchUnclear(reason="the answer does not tell of it")
    if status == 413:
        return BatchRefused(reason="HTTP 413", by_content=True)
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
