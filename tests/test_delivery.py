"""The queue of names and its workers, with a sender in memory and virtual time."""

import asyncio
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Final

import pytest
from structlog.testing import capture_logs

from tests.support.builders import container, digest, pod, record
from tracker.annotations import Marks
from tracker.answers import (
    Acknowledged,
    Answer,
    BatchAnswer,
    BatchRefused,
    BatchUnclear,
    Failed,
    Forbidden,
    Limited,
    NotFound,
    Outcome,
    Rejected,
    Told,
    Unauthorized,
    Unconfirmed,
)
from tracker.delivery import GATHER_SECONDS, Delivery
from tracker.entries import SETTLE_SECONDS, Account, Entry, State, account_of
from tracker.errors import LedgerTextError, LedgerWriteError
from tracker.images import Digest, Image
from tracker.inventory import Deployed, Inventory, Judgement
from tracker.ledger import MemoryLedger
from tracker.pacing import FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, Pace
from tracker.pods import Container, Pod
from tracker.records import Record, Status
from tracker.workloads import Workload

pytestmark = pytest.mark.looptime

TellingAnswer = Acknowledged | Unconfirmed | NotFound | Forbidden | Rejected

NAME: Final = "shop/web/app"
TEMPLATE: Final = "{{namespace}}/{{deploymentName}}/{{containerName}}"
OK: Final = Acknowledged()
LOST: Final = Failed(reason="timeout", landed=True)
UNSENT: Final = Failed(reason="connection refused", landed=False)
UNKNOWN: Final = NotFound(reason="HTTP 404 Not Found")


def unlimited() -> Pace:
    """Return a pace without a rate to speak of."""
    return Pace(rate=1e6, burst=100_000, chance=lambda: 0.5)


class ScriptedSender:
    """
    A sender that answers what it was told, by name, and acknowledges after that.

    Each send takes `seconds`. `twice` are the names of which two were under way together, which
    the scene looks at in the end: an error here would be taken for one of the name.
    """

    def __init__(self, *, seconds: float = 0.1) -> None:
        self.sent: list[tuple[float, Record]] = []
        self.answers: defaultdict[str, list[Answer]] = defaultdict(list)
        self.always: Answer = OK
        self.seconds = seconds
        self.under_way: set[str] = set()
        self.twice: set[str] = set()
        self.most_at_once = 0
        self.on_send: Callable[[Record], None] = lambda _record: None
        self.batches: list[tuple[str, ...]] = []
        self.whole: Callable[[Sequence[Record]], BatchAnswer | None] = lambda _records: None

    async def send(self, record: Record) -> Answer:
        """Answer as scripted."""
        name = record.deployment_name
        self.twice |= {name} & self.under_way
        self.under_way.add(name)
        self.most_at_once = max(self.most_at_once, len(self.under_way))
        try:
            self.sent.append((asyncio.get_running_loop().time(), record))
            self.on_send(record)
            await asyncio.sleep(self.seconds)
            return self.answers[name].pop(0) if self.answers[name] else self.always
        finally:
            self.under_way.discard(name)

    async def send_batch(self, records: Sequence[Record]) -> BatchAnswer:
        """
        Answer each of them as `send` would, and the batch if one of the answers is for all.

        `whole` is asked first: it may answer for the batch whatever its records' answers are.
        """
        self.batches.append(tuple(record.deployment_name for record in records))
        names = {record.deployment_name for record in records}
        self.twice |= names & self.under_way
        self.under_way |= names
        try:
            now = asyncio.get_running_loop().time()
            self.sent += [(now, record) for record in records]
            for record in records:
                self.on_send(record)
            await asyncio.sleep(self.seconds)
            if (whole := self.whole(records)) is not None:
                return whole
            answers: list[Answer] = [
                self.answers[name].pop(0) if self.answers[name] else self.always
                for name in (record.deployment_name for record in records)
            ]
            told: list[TellingAnswer] = []
            for answer in answers:
                if isinstance(answer, Failed | Limited | Unauthorized):
                    return answer
                told.append(answer)
            return Told(answers=tuple(told))
        finally:
            self.under_way -= names

    def sent_alone(self) -> set[str]:
        """Return the names that were sent in no batch last."""
        batched = [name for batch in self.batches for name in batch]
        singles = Counter(record.deployment_name for _, record in self.sent) - Counter(batched)
        return set(singles)

    @property
    def digests(self) -> str:
        """The digests that were sent, a letter each, in upper case for decommissions."""
        return "".join(
            each.digest[-1].upper() if each.status is Status.DECOMMISSIONED else each.digest[-1]
            for _, each in self.sent
        )

    def gaps(self) -> list[float]:
        """Return the seconds between sends, less what a send takes."""
        times = [when for when, _ in self.sent]
        return [later - earlier - self.seconds for earlier, later in pairwise(times)]


class SureAbsences:
    """Absences that are confirmed as soon as they are wanted, once `sure`."""

    def __init__(self) -> None:
        self.sure = True
        self.wanted: dict[str, bool] = {}
        self._confirmed: set[str] = set()
        self.touch: Callable[[str], None] = lambda _name: None

    def confirmed(self, name: str) -> bool:
        """Tell whether it was wanted since the last withdrawal."""
        return name in self._confirmed

    def want(self, name: str, workload: Workload, *, absent: bool) -> None:  # noqa: ARG002 - the protocol's
        """Confirm at once."""
        self.wanted[name] = absent
        if self.sure:
            self._confirmed.add(name)
            self.touch(name)

    def withdraw(self, name: str) -> None:
        """Forget it."""
        self.wanted.pop(name, None)
        self._confirmed.discard(name)


class Reports:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def acknowledged(self, record: Record) -> None:
        """Keep it."""
        self.lines.append(f"OK {record.digest[-1]} {record.status}")

    def failed(self, record: Record, reason: str) -> None:
        """Keep it."""
        self.lines.append(f"FAILED {record.digest[-1]} {reason}")


class Counts:
    """A meter that keeps what it was told."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.seconds: list[float] = []

    def answered(self, outcome: Outcome) -> None:
        """Keep it."""
        self.outcomes.append(outcome.value)

    def delivered(self, seconds: float) -> None:
        """Keep it."""
        self.seconds.append(seconds)


class Scene:
    """A delivery with everything around it."""

    def __init__(
        self,
        *,
        workers: int,
        ledger: MemoryLedger | None = None,
        batches: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self.inventory = Inventory(template=TEMPLATE)
        self.ledger = MemoryLedger() if ledger is None else ledger
        self.sender = ScriptedSender()
        self.absences = SureAbsences()
        self.told = Reports()
        self.counted = Counts()
        self.pace = unlimited() if pace is None else pace
        self.judge: Callable[[str, Record | None], Judgement] = self.inventory.judge
        self.delivery = Delivery(
            judge=self.judged,
            ledger=self.ledger,
            sender=self.sender,
            absences=self.absences,
            reporter=self.told,
            pace=self.pace,
            workers=workers,
            batches=batches,
            chance=lambda: 0.5,
            meter=self.counted,
        )
        self.absences.touch = self.delivery.touch
        self.run: asyncio.Task[None] | None = None

    def judged(self, name: str, held: Record | None) -> Judgement:
        """Judge as `judge` does now, which a test may change."""
        return self.judge(name, held)

    def see(self, *pods: Pod) -> None:
        """Take note of pods as the tracker does."""
        for each in pods:
            self.change(self.inventory.observe(each))

    def lose(self, uid: str = "uid-1") -> None:
        """Take note that a pod is gone as the tracker does."""
        self.change(self.inventory.remove(uid))

    def change(self, names: Iterable[str]) -> None:
        for name in names:
            self.absences.withdraw(name)
            self.delivery.touch(name)

    def entry(self, name: str = NAME) -> Entry:
        found = self.ledger.get(name)
        assert found is not None
        return found

    async def cancel(self) -> None:
        assert self.run is not None
        self.run.cancel()
        with suppress(asyncio.CancelledError):
            await self.run


@asynccontextmanager
async def scene(
    *,
    workers: int = 2,
    ledger: MemoryLedger | None = None,
    batches: bool = False,
    pace: Pace | None = None,
) -> AsyncIterator[Scene]:
    made = Scene(workers=workers, ledger=ledger, batches=batches, pace=pace)
    made.pace.open()
    made.run = asyncio.create_task(made.delivery.run())
    try:
        yield made
    finally:
        await made.cancel()
    assert not made.sender.twice


def running(letter: str = "a", *, uid: str = "uid-1", app: str = "app") -> Pod:
    return pod(uid, containers=[container(app, letter=letter)])


def unknown(number: int) -> Image:
    """Return an image whose digest is its own."""
    own = hashlib.sha256(str(number).encode()).hexdigest()
    return Image(name="ghcr.io/acme/app", version=None, digest=Digest(f"sha256:{own}"))


def waited() -> float:
    return asyncio.get_running_loop().time()


async def test_what_runs_is_posted_once_and_told_once() -> None:
    async with scene() as on:
        on.see(running("a"))
        for replica in range(20):
            on.see(running("a", uid=f"replica-{replica}"))
        await asyncio.sleep(3600)
        assert on.sender.digests == "a"
        assert on.told.lines == ["OK a deployed"]
        assert on.entry().acknowledged == record("a")
        assert on.delivery.backlog == 0


async def test_each_answer_is_counted_and_what_waits_is_timed_until_it_is_acknowledged() -> None:
    async with scene() as on:
        await asyncio.sleep(1000)
        on.sender.answers[NAME] = [LOST, LOST]
        on.see(running("a"))
        began = waited()
        await asyncio.sleep(0.5)
        assert on.delivery.pending_since == began
        await asyncio.sleep(60)
        assert on.counted.outcomes == ["failed", "failed", "acknowledged"]
        (seconds,) = on.counted.seconds
        first, _, last = (when for when, _ in on.sender.sent)
        assert seconds == pytest.approx(last - first + on.sender.seconds)
        assert on.delivery.pending_since is None


async def test_what_github_refuses_is_not_what_waits_for_it() -> None:
    async with scene() as on:
        on.sender.always = UNKNOWN
        on.see(running("a"))
        await asyncio.sleep(10)
        assert on.delivery.pending_since is None
        await asyncio.sleep(24 * 3600)  # it was asked for again and again
        assert on.delivery.pending_since is None
        assert set(on.counted.outcomes) == {"not_found"}
        assert on.counted.seconds == []


async def test_what_is_gone_is_decommissioned_with_the_digest_that_was_acknowledged() -> None:
    async with scene() as on:
        on.see(running("a"))
        await asyncio.sleep(1)
        on.lose()
        await asyncio.sleep(3600)
        assert on.sender.digests == "aA"
        assert on.told.lines == ["OK a deployed", "OK a decommissioned"]


async def test_nothing_is_decommissioned_that_is_not_confirmed_to_be_gone() -> None:
    async with scene() as on:
        on.absences.sure = False
        on.see(running("a"))
        await asyncio.sleep(1)
        on.lose()
        await asyncio.sleep(1e5)
        assert on.sender.digests == "a"
        assert on.absences.wanted == {NAME: True}


async def test_only_the_newest_state_of_a_burst_is_posted() -> None:
    async with scene() as on:
        for letter in "abcdef":
            on.see(running(letter))
        await asyncio.sleep(10)
        assert on.sender.digests == "f"


async def test_the_state_that_came_during_a_send_is_posted_after_it() -> None:
    async with scene() as on:
        letters = iter("bcd")

        def change(_record: Record) -> None:
            if (letter := next(letters, None)) is not None:
                on.see(running("e"), running(letter))

        on.sender.on_send = change
        on.see(running("a"))
        await asyncio.sleep(10)
        assert on.sender.digests == "abcd"
        assert on.entry().acknowledged == record("d")


async def test_one_request_of_a_name_is_under_way_at_most_and_workers_share_the_names() -> None:
    async with scene(workers=4) as on:
        on.sender.seconds = 1.0
        for app in range(12):
            on.see(running(uid=f"uid-{app}", app=f"app-{app}"))
        for turn in range(40):
            await asyncio.sleep(0.3)
            letter = "abcdef"[turn % 6]
            on.see(*(running(letter, uid=f"uid-{app}", app=f"app-{app}") for app in range(12)))
        await asyncio.sleep(100)
        assert on.sender.most_at_once == 4
        assert len(on.ledger.entries()) == 12
        for entry in on.ledger.entries():
            assert entry.acknowledged is not None
            assert entry.acknowledged.digest[-1] == "d"


async def test_the_backlog_is_what_waits_and_what_is_with_a_worker() -> None:
    async with scene(workers=2) as on:
        on.sender.seconds = 5.0
        on.see(*many(5))
        # What was acknowledged is looked at once more.
        for left in (5, 5, 1, 0):
            await asyncio.sleep(0.1)
            assert on.delivery.backlog == left
            await asyncio.sleep(4.95)


async def test_work_was_tried_when_it_came_after_none_and_whenever_a_name_is_taken() -> None:
    """Liveness judges a queue by that: one that was empty for days is not one that hangs."""
    on = Scene(workers=1)
    on.run = asyncio.create_task(on.delivery.run())
    await asyncio.sleep(1000)
    on.see(running("a"))
    began = waited()
    assert on.delivery.tried_at == began
    await asyncio.sleep(10)
    on.see(running("a", uid="2", app="other"))
    assert on.delivery.tried_at == began, "nothing was taken yet"
    on.pace.open()
    await asyncio.sleep(1)
    assert on.delivery.tried_at > began + 10
    await on.cancel()


async def test_a_slow_name_does_not_hold_the_others_up() -> None:
    async with scene(workers=2) as on:
        on.sender.answers[NAME] = [LOST] * 1000
        on.see(running("a"))
        for app in range(20):
            on.see(running(uid=f"uid-{app}-x", app=f"app-{app}"))
        await asyncio.sleep(30)
        assert on.told.lines.count("OK a deployed") == 20


async def test_a_failure_is_asked_again_with_a_growing_wait_and_told_once() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [UNSENT, UNSENT, UNSENT, UNSENT, LOST, LOST]
        on.see(running("a"))
        await asyncio.sleep(600)
        assert on.sender.digests == "a" * 7
        assert on.sender.gaps() == pytest.approx([0.5, 1, 2, 4, 8, 16])
        assert on.told.lines == [
            "FAILED a connection refused",
            "FAILED a timeout",
            "OK a deployed",
        ]


async def test_a_failure_for_another_reason_is_told_whichever_it_is() -> None:
    async with scene() as on:
        reasons = ["timeout", "connection refused", "connection refused", "timeout"]
        on.sender.answers[NAME] = [Failed(reason=reason, landed=False) for reason in reasons]
        on.see(running("a"))
        await asyncio.sleep(600)
        assert on.told.lines == [
            "FAILED a timeout",
            "FAILED a connection refused",
            "FAILED a timeout",
            "OK a deployed",
        ]


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        pytest.param(Limited(reason="HTTP 429", pause_seconds=7.0), "warning", id="it-passes"),
        pytest.param(Unauthorized(reason="HTTP 401"), "error", id="somebody-must-see-to-it"),
    ],
)
async def test_a_pause_is_told_as_loudly_as_somebody_must_see_to_it(
    answer: Answer, level: str
) -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [answer]
        with capture_logs() as logs:
            on.see(running("a"))
            await asyncio.sleep(5)
        (line,) = (each for each in logs if each["event"] == "sending paused")
        assert line["log_level"] == level
        assert line["reason"] == getattr(answer, "reason", None)


async def test_what_never_left_is_dropped_when_it_is_rolled_back() -> None:
    """Once, it stayed in the ledger, and the name counted as pending."""
    async with scene() as on:
        on.see(running("a"))
        await asyncio.sleep(10)
        on.sender.answers[NAME] = [Limited(reason="HTTP 429", pause_seconds=60)]
        on.see(running("b"))
        await asyncio.sleep(10)
        assert on.entry().sent == record("b")
        on.see(running("a"))
        await asyncio.sleep(100)
        assert on.entry().sent is None
        assert on.entry().acknowledged == record("a")
        assert on.sender.digests == "ab"


async def test_what_github_does_not_know_is_asked_for_as_long_as_it_runs() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [UNKNOWN] * 3
        on.see(running("a"))
        await asyncio.sleep(1e5)
        for gap, delay in zip(on.sender.gaps(), [300, 600, 1200], strict=True):
            assert delay <= gap <= 1.1 * delay + 2 * GATHER_SECONDS
        assert on.told.lines == ["FAILED a HTTP 404 Not Found", "OK a deployed"]


async def test_what_github_never_knew_is_forgotten_when_it_is_gone() -> None:
    async with scene() as on:
        on.sender.always = UNKNOWN
        on.see(running("a"))
        await asyncio.sleep(10)
        on.lose()
        await asyncio.sleep(1)
        assert on.delivery.pending_since is None, "nobody waits for it"
        await asyncio.sleep(1e5)
        assert on.sender.digests == "a"
        assert list(on.ledger.entries()) == []


async def test_a_state_after_an_open_one_is_posted_once_more() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [LOST]
        on.see(running("a"))
        await asyncio.sleep(0.2)
        on.see(running("b"))
        await asyncio.sleep(1e4)
        assert on.sender.digests == "abb"
        assert on.sender.gaps()[1] == pytest.approx(SETTLE_SECONDS)


async def test_two_refused_records_of_a_name_do_not_spin() -> None:
    """The new image is not known and the old one's decommission is refused, over and over."""
    async with scene() as on:
        on.see(running("a"))
        await asyncio.sleep(1)
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(running("b"))
        await asyncio.sleep(24 * 3600)
        # One an hour, and at first the probes that see whether the spell is over.
        assert 4 <= len(on.sender.sent) <= 40
        assert on.sender.digests.startswith("abA")


async def test_a_limit_stops_every_worker_for_its_time() -> None:
    async with scene(workers=4) as on:
        on.sender.answers["shop/web/app-0"] = [Limited(reason="HTTP 429", pause_seconds=70)]
        on.sender.seconds = 1.0
        for app in range(40):
            on.see(running(uid=f"uid-{app}", app=f"app-{app}"))
        await asyncio.sleep(1e4)
        times = [when for when, _ in on.sender.sent]
        began = min(times)
        limited = began + 1.0
        assert not [when for when in times if limited < when < limited + 70]
        assert len(times) == 41
        assert len(on.told.lines) == 41


async def test_a_limit_without_a_time_makes_longer_and_longer_pauses() -> None:
    async with scene(workers=1) as on:
        on.sender.answers[NAME] = [Limited(reason="HTTP 403", pause_seconds=None)] * 9
        on.see(running("a"))
        await asyncio.sleep(1e6)
        assert on.sender.gaps() == pytest.approx(
            [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600], abs=0.01
        )


async def test_workers_that_meet_one_limit_together_pause_for_it_once() -> None:
    """Once, each of them doubled the pause: sixteen workers stood still for an hour."""
    async with scene(workers=16) as on:
        for app in range(16):
            limit = Limited(reason="HTTP 403", pause_seconds=None)
            on.sender.answers[f"shop/web/app-{app}"] = [limit]
            on.see(running(uid=f"uid-{app}", app=f"app-{app}"))
        await asyncio.sleep(0.2)
        assert on.pace.not_before - waited() == pytest.approx(FIRST_PAUSE_SECONDS, abs=0.2)


@pytest.mark.parametrize(
    ("answers", "seconds"),
    [
        pytest.param([Limited(reason="", pause_seconds=5)], 5, id="its-own-time"),
        pytest.param([Unauthorized(reason="")], 60, id="token"),
        pytest.param([LOST], 0, id="failure"),
        pytest.param([OK], 0, id="success"),
        pytest.param([UNKNOWN], 0, id="not-found"),
        pytest.param([Unconfirmed(reason="")], 0, id="unconfirmed"),
        pytest.param([Limited(reason="", pause_seconds=None)] * 2, 120, id="again"),
        pytest.param(
            [Limited(reason="", pause_seconds=None), LOST, Limited(reason="", pause_seconds=None)],
            120,
            id="a-failure-ends-no-limit",
        ),
        pytest.param(
            [Limited(reason="", pause_seconds=None), OK, Limited(reason="", pause_seconds=None)],
            60,
            id="a-success-ends-it",
        ),
        pytest.param(
            [Limited(reason="", pause_seconds=1)] * 2000
            + [Limited(reason="", pause_seconds=None)],
            MAX_PAUSE_SECONDS,
            id="thousands",
        ),
    ],
)  # fmt: skip
async def test_an_answer_pauses_everyone_or_no_one(answers: list[Answer], seconds: float) -> None:
    pace = unlimited()
    pace.open()
    stops = 0.0
    for answer in answers:
        await pace.passed()
        stops = pace.note(answer)
    assert stops == pytest.approx(seconds)
    began = waited()
    await pace.passed()
    assert waited() - began == pytest.approx(seconds)


async def test_a_pause_only_ever_moves_later() -> None:
    pace = unlimited()
    pace.open()
    pace.note(Limited(reason="", pause_seconds=100))
    until = pace.not_before
    pace.note(Limited(reason="", pause_seconds=5))
    pace.note(Limited(reason="", pause_seconds=None))
    pace.note(OK)
    assert pace.not_before == until
    pace.note(Limited(reason="", pause_seconds=200))
    assert pace.not_before > until


async def test_nothing_is_sent_before_everything_was_seen() -> None:
    on = Scene(workers=2)
    on.run = asyncio.create_task(on.delivery.run())
    on.see(running("a"))
    await asyncio.sleep(3600)
    assert on.sender.sent == []
    assert await on.delivery.drain(20) == 1
    on.see(running("b"))
    on.pace.open()
    await asyncio.sleep(1)
    assert on.sender.digests == "b"
    await on.cancel()


async def test_a_drain_waits_for_what_is_queued_and_for_due_retries() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [UNSENT, UNSENT]
        for app in range(30):
            on.see(running(uid=f"many-{app}", app=f"app-{app}"))
        on.see(running("a"))
        assert await on.delivery.drain(20) == 0
        last = max(when for when, _ in on.sender.sent)
        assert waited() - last == pytest.approx(on.sender.seconds, abs=0.2), "and no longer"
        assert on.entry().acknowledged == record("a")
        assert on.told.lines.count("OK a deployed") == 31


async def test_a_drain_ends_in_its_time_and_returns_what_is_left() -> None:
    async with scene(workers=1) as on:
        on.sender.seconds = 3.0
        for app in range(10):
            on.see(running(uid=f"uid-{app}", app=f"app-{app}"))
        began = waited()
        left = await on.delivery.drain(10)
        assert waited() - began == pytest.approx(10)
        assert left == 10 - 3


async def test_a_drain_counts_what_could_not_be_sent_and_not_what_github_refused() -> None:
    async with scene() as on:
        on.sender.always = UNSENT
        on.see(running("a"))
        on.sender.answers["shop/web/known"] = [OK]
        on.sender.answers["shop/web/unknown"] = [UNKNOWN]
        on.see(running("a", uid="2", app="known"), running("c", uid="3", app="unknown"))
        assert await on.delivery.drain(20) == 1


async def test_a_drain_does_not_wait_for_a_pause_that_outlasts_it() -> None:
    async with scene() as on:
        on.see(running("a"))
        on.pace.note(Limited(reason="HTTP 429", pause_seconds=600))
        began = waited()
        assert await on.delivery.drain(20) == 1
        assert waited() - began < 1


async def test_a_drain_does_not_wait_for_what_is_due_within_a_pause_that_outlasts_it() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [UNSENT] * 9
        on.see(running("a"))
        await asyncio.sleep(20)  # the next attempt is due in ten seconds or so
        on.pace.note(Limited(reason="HTTP 429", pause_seconds=600))
        on.see(running("a", uid="2", app="other"))
        began = waited()
        assert await on.delivery.drain(20) == 2, "what waits to be asked for again is left, too"
        assert waited() - began < 1


async def test_a_drain_ends_when_a_pause_begins_that_outlasts_it() -> None:
    async with scene(workers=1) as on:
        on.sender.answers[NAME] = [Limited(reason="HTTP 429", pause_seconds=600)]
        on.see(running("a"))
        began = waited()
        assert await on.delivery.drain(20) == 1
        assert waited() - began < 1


async def test_a_drain_waits_for_a_pause_that_ends_in_time() -> None:
    async with scene() as on:
        on.see(running("a"))
        on.pace.note(Limited(reason="HTTP 429", pause_seconds=5))
        assert await on.delivery.drain(20) == 0
        assert on.sender.digests == "a"


class FullLedger(MemoryLedger):
    """A ledger that can't be written, because of these names, until they are taken out."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.full = set(names)
        self.error: Exception = LedgerWriteError("disk full")

    async def put(self, *entries: Entry) -> None:
        """Write entries, or none of them."""
        if self.full.intersection(entry.deployment_name for entry in entries):
            raise self.error
        await super().put(*entries)


async def test_what_can_not_be_written_is_not_sent_and_tried_again() -> None:
    """Once, it was tried again at once, thousands of times a second."""
    ledger = FullLedger(NAME)
    async with scene(ledger=ledger) as on:
        on.see(running("a"))
        with capture_logs() as logs:
            await asyncio.sleep(60)
        assert not on.sender.sent
        assert 10 <= len(logs) <= 13
        ledger.full.clear()
        await asyncio.sleep(10)
        assert on.entry().acknowledged == record("a")


@pytest.mark.parametrize(
    ("error", "within"),
    [
        pytest.param(LedgerTextError("no Unicode"), 10.0, id="the-ledger-refuses-it"),
        pytest.param(ZeroDivisionError(), 70.0, id="a-mistake-of-ours"),
    ],
)
async def test_a_name_that_breaks_a_batch_holds_up_no_other_one(
    error: Exception, within: float
) -> None:
    ledger = FullLedger(NAME)
    ledger.error = error
    async with scene(workers=1, ledger=ledger, batches=True) as on:
        on.see(running("b", uid="0", app="first"))
        await asyncio.sleep(0.5)
        on.see(running("a"), *(running("b", uid=f"{n}", app=f"x{n}") for n in range(1, 9)))
        await asyncio.sleep(9)
        assert {record.deployment_name for _, record in on.sender.sent} == {
            "shop/web/first",
            *(f"shop/web/x{n}" for n in range(1, 9)),
        }
        ledger.full.clear()
        await asyncio.sleep(within)
        assert on.entry().acknowledged == record("a")


class SlowLedger(MemoryLedger):
    """A ledger whose writes take a second."""

    async def put(self, *entries: Entry) -> None:
        """Write entries, slowly."""
        await asyncio.sleep(1)
        await super().put(*entries)


async def test_a_stop_while_an_acknowledgement_is_written_keeps_and_tells_it() -> None:
    async with scene(workers=1, ledger=SlowLedger()) as on:
        on.see(running("a"))
        await asyncio.sleep(1.5)
        assert on.sender.digests == "a"
        assert on.entry().state is State.SENDING
        await on.cancel()
        assert on.entry().acknowledged == record("a")
        assert on.told.lines == ["OK a deployed"]


@pytest.mark.parametrize("known", [False, True])
async def test_a_limit_that_comes_while_an_intent_is_written_stops_that_send(
    *, known: bool
) -> None:
    """Once, what was about to be sent was sent into the pause."""
    async with scene(workers=2, ledger=SlowLedger()) as on:
        if known:
            on.see(running("c"))
            await asyncio.sleep(10)
        before = on.ledger.get(NAME)
        on.see(running("a", uid="2", app="other"))
        await asyncio.sleep(0.5)
        on.sender.answers["shop/web/other"] = [Limited(reason="HTTP 429", pause_seconds=600)]
        on.see(running("a"))
        await asyncio.sleep(30)
        assert len(on.sender.sent) == 1 + known
        assert on.ledger.get(NAME) == before
        await asyncio.sleep(600)
        assert on.entry().acknowledged == record("a")


async def test_a_stop_during_a_send_leaves_its_intent() -> None:
    async with scene() as on:
        on.sender.seconds = 100
        on.see(running("a"))
        await asyncio.sleep(1)
        await on.cancel()
        assert on.entry().state is State.SENDING
        assert on.entry().in_doubt == record("a")


async def test_the_intent_is_in_the_ledger_before_anything_is_sent() -> None:
    async with scene() as on:
        seen: list[Entry] = []
        on.sender.on_send = lambda _record: seen.append(on.entry())
        on.see(running("a"))
        await asyncio.sleep(1)
        assert [(entry.state, entry.sent) for entry in seen] == [(State.SENDING, record("a"))]


async def test_an_error_of_ours_with_one_name_leaves_the_workers_alive() -> None:
    async with scene(workers=1) as on:
        broken = True

        def judge(name: str, held: Record | None) -> Judgement:
            if broken and name == NAME:
                message = "a bug"
                raise LookupError(message)
            return on.inventory.judge(name, held)

        on.judge = judge
        with capture_logs() as logs:
            on.see(running("a"), running("a", uid="2", app="other"))
            await asyncio.sleep(30)
        assert on.told.lines == ["OK a deployed"]
        assert [line["event"] for line in logs] == ["name failed"], "told once, and no spin"
        broken = False
        await asyncio.sleep(60)
        assert on.told.lines == ["OK a deployed"] * 2


async def test_a_limit_counts_though_it_could_not_be_told() -> None:
    """Once, a broken pipe on stdout kept a limit from stopping the workers."""

    class Mute(Reports):
        def failed(self, record: Record, reason: str) -> None:
            raise BrokenPipeError(record, reason)

    on = Scene(workers=1)
    on.delivery = Delivery(
        judge=on.inventory.judge,
        ledger=on.ledger,
        sender=on.sender,
        absences=on.absences,
        reporter=Mute(),
        pace=on.pace,
        workers=1,
        batches=False,
        chance=lambda: 0.5,
    )
    on.pace.open()
    on.run = asyncio.create_task(on.delivery.run())
    on.sender.answers[NAME] = [Limited(reason="HTTP 429", pause_seconds=600)]
    on.see(running("a"))
    await asyncio.sleep(1)
    assert on.pace.not_before - waited() > 500
    await on.cancel()


async def test_pods_that_come_and_go_end_in_what_runs() -> None:
    async with scene(workers=3) as on:
        failing: list[Answer] = [LOST, UNSENT, Limited(reason="HTTP 429", pause_seconds=2), UNKNOWN]
        for turn in range(60):
            app = f"app-{turn % 5}"
            on.sender.answers[f"shop/web/{app}"].append(failing[turn % 4])
            if turn % 3:
                on.see(running("abc"[turn % 3], uid=f"uid-{app}", app=app))
            else:
                on.lose(f"uid-{app}")
            await asyncio.sleep(turn % 4)
        on.sender.answers.clear()
        await asyncio.sleep(1e5)
        for app in (f"app-{number}" for number in range(5)):
            name = f"shop/web/{app}"
            acknowledged = on.entry(name).acknowledged
            assert acknowledged is not None
            match on.inventory.judge(name, None):
                case Deployed(record=stands):
                    assert acknowledged == stands
                case _:
                    assert acknowledged.status is Status.DECOMMISSIONED


def letters(count: int) -> list[str]:
    """Return so many names of applications, in their order."""
    return [f"app-{number:04}" for number in range(count)]


def many(count: int, letter: str = "a") -> list[Pod]:
    """Return pods of so many applications, which all run one image."""
    return [running(letter, uid=f"uid-{app}", app=app) for app in letters(count)]


async def test_what_waits_goes_in_one_batch_sorted_by_name() -> None:
    async with scene(batches=True) as on:
        on.see(*reversed(many(300)))
        await asyncio.sleep(5)
        (batch,) = on.sender.batches
        assert list(batch) == [f"shop/web/{app}" for app in letters(300)]
        assert on.told.lines == ["OK a deployed"] * 300
        assert on.delivery.backlog == 0


async def test_a_full_batch_does_not_wait_and_five_thousand_go_in_five() -> None:
    async with scene(batches=True) as on:
        on.see(*many(5000))
        began = waited()
        await asyncio.sleep(10)
        assert [len(batch) for batch in on.sender.batches] == [1000] * 5
        assert max(when for when, _ in on.sender.sent) - began < 1


async def test_a_quiet_tracker_posts_at_once_and_what_follows_within_a_second_together() -> None:
    async with scene(batches=True) as on:
        await asyncio.sleep(100)
        on.see(running("a"))
        began = waited()
        await asyncio.sleep(0.2)
        assert [when - began for when, _ in on.sender.sent] == pytest.approx([0])
        assert on.sender.batches == []
        for pod in many(50):
            on.see(pod)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(on.sender.sent) == 1
        await asyncio.sleep(1)
        assert [len(batch) for batch in on.sender.batches] == [50]
        assert on.sender.sent[-1][0] - began == pytest.approx(1)


async def test_a_batch_is_bounded_in_bytes() -> None:
    async with scene(batches=True) as on:
        long = "x" * 200
        image = Image(name=long, version=None, digest=digest())
        on.see(
            *(
                pod(f"uid-{number}", containers=[container(f"{long}-{number}", image=image)])
                for number in range(3000)
            )
        )
        await asyncio.sleep(20)
        sent = {record.deployment_name: record for _, record in on.sender.sent}
        sizes = [
            sum(len(json.dumps(sent[name].fields())) for name in batch)
            for batch in on.sender.batches
        ]
        assert len(on.ledger.entries()) == 3000
        assert max(map(len, on.sender.batches)) <= 1000
        most = max(sizes)
        assert 256 * 1024 < most <= (512 - 15) * 1024, "there is room for what surrounds them"
        # What goes behind goes together no more than that.
        on.sender.always = Forbidden(reason="HTTP 403")
        repeated = len(on.sender.batches)
        for name in sent:
            on.delivery.repost(name)
        await asyncio.sleep(60)
        behind = on.sender.batches[repeated:]
        sizes = [sum(len(json.dumps(sent[name].fields())) for name in batch) for batch in behind]
        assert sum(map(len, behind)) == 3000
        assert 256 * 1024 < max(sizes) <= most


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "reposted"])
async def test_what_goes_behind_goes_together_and_no_more_than_github_takes(
    *, refused: bool
) -> None:
    async with scene(batches=True) as on:
        if refused:
            on.sender.always = Forbidden(reason="HTTP 403")
        on.see(*many(1200))
        await asyncio.sleep(10)
        first = len(on.sender.batches)
        on.sender.always = OK
        if not refused:
            for app in letters(1200):
                on.delivery.repost(f"shop/web/{app}")
        on.see(running("b", uid="new", app="new"))
        await asyncio.sleep(30)
        assert [len(batch) for batch in on.sender.batches[first:]] == [1000, 200]
        assert on.told.lines.count("OK a deployed") == (1200 if refused else 2400)


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "reposted"])
async def test_what_is_new_goes_before_what_was_refused_or_is_only_posted_again(
    *, refused: bool
) -> None:
    pace = Pace(rate=1.0, burst=4, chance=lambda: 0.5)
    async with scene(pace=pace) as on:
        if refused:
            on.sender.always = Forbidden(reason="HTTP 403")
        on.see(*many(40))
        await asyncio.sleep(60)
        on.sender.always = OK
        if not refused:
            for app in letters(40):
                on.delivery.repost(f"shop/web/{app}")
        on.see(running("b", uid="new", app="new"))
        await asyncio.sleep(10)
        assert 5 <= len(on.sender.sent) - 41 < 20, "the others are on their way"
        on.see(*(running("c", uid=f"new-{each}", app=f"new-{each}") for each in range(3)))
        began = waited()
        await asyncio.sleep(6)
        new = [when - began for when, each in on.sender.sent if each.digest == digest("c")]
        assert len(new) == 3
        assert max(new) < 3


async def test_half_of_what_may_go_at_once_is_for_what_is_new() -> None:
    pace = Pace(rate=0.1, burst=4, chance=lambda: 0.5)
    async with scene(pace=pace, workers=4) as on:
        on.see(*many(4))
        began = waited()
        await asyncio.sleep(1)
        assert [when - began for when, _ in on.sender.sent] == pytest.approx([0.0] * 4)
        await asyncio.sleep(100)
        for app in letters(4):
            on.delivery.repost(f"shop/web/{app}")
        await asyncio.sleep(3)
        assert len(on.sender.sent) == 4 + 2
        on.see(*(running("b", uid=f"new-{each}", app=f"new-{each}") for each in range(2)))
        await asyncio.sleep(1)
        assert on.sender.digests[-2:] == "bb"


async def test_a_name_that_is_queued_behind_and_before_is_sent_once_at_a_time() -> None:
    async with scene(workers=1) as on:
        on.see(*many(5))
        await asyncio.sleep(60)
        on.sender.seconds = 3.0
        for app in letters(5):
            on.delivery.repost(f"shop/web/{app}")
        await asyncio.sleep(1)
        on.see(*many(5, "b"))
        await asyncio.sleep(60)
        # The scene sees in the end that none was sent twice at once.
        assert on.sender.digests == "aaaaa" + "a" + "bbbbb", "of one the repost was under way"


async def test_names_that_wait_for_a_digest_go_when_another_answer_shows_that_it_is_known() -> None:
    async with scene() as on:
        on.sender.always = UNKNOWN
        on.see(running("a"))
        await asyncio.sleep(1)
        on.see(running("a", uid="2", app="other"))
        await asyncio.sleep(60)
        on.sender.always = OK
        marks = Marks(repository="shop")
        on.see(pod("3", containers=[container("third")], marks=marks))
        await asyncio.sleep(5)
        assert on.told.lines.count("OK a deployed") == 3


@pytest.mark.fault("G15")
async def test_one_bad_record_among_a_thousand_costs_the_others_nothing() -> None:
    """The requests it takes are the halves on the way down to it."""
    bad = "shop/web/app-0617"

    def refuse(records: Sequence[Record]) -> BatchAnswer | None:
        if any(each.deployment_name == bad for each in records):
            return BatchRefused(reason="HTTP 422 Invalid request.", by_content=True)
        return None

    async with scene(batches=True) as on:
        on.sender.whole = refuse
        on.sender.answers[bad] = [Rejected(reason="HTTP 422 digest is invalid")] * 9
        on.see(*many(1000))
        await asyncio.sleep(60)
        singles = len(on.sender.sent) - sum(map(len, on.sender.batches))
        assert len(on.sender.batches) + singles <= 25
        assert on.told.lines.count("OK a deployed") == 999
        assert on.told.lines.count("FAILED a HTTP 422 digest is invalid") == 1
        assert len(on.told.lines) == 1000, "no line tells of what was only wrong with a batch"
        assert on.entry(bad).state is State.PARKED


async def test_records_that_an_answer_leaves_out_are_asked_for_alone_at_the_end() -> None:
    missing = {"shop/web/app-0007", "shop/web/app-0008", "shop/web/app-0150"}

    def leave_out(records: Sequence[Record]) -> BatchAnswer | None:
        unsure = Unconfirmed(reason="HTTP 200 without the record")
        return Told(
            answers=tuple(unsure if each.deployment_name in missing else OK for each in records)
        )

    async with scene(batches=True) as on:
        on.sender.whole = leave_out
        on.see(*many(200))
        await asyncio.sleep(60)
        assert [len(batch) for batch in on.sender.batches] == [200, 3, 2]
        assert on.told.lines == ["OK a deployed"] * 200
        assert on.sender.sent_alone() == missing


@pytest.mark.fault("G16")
async def test_an_answer_that_can_not_be_read_is_asked_for_again_and_then_singly() -> None:
    async with scene(batches=True) as on:
        on.sender.whole = lambda _records: BatchUnclear(reason="HTTP 200 unreadable")
        on.see(*many(40))
        await asyncio.sleep(60)
        assert [len(batch) for batch in on.sender.batches] == [40, 40, 20, 20]
        assert len(on.sender.sent_alone()) == 40
        assert on.told.lines == ["OK a deployed"] * 40
        on.sender.whole = lambda _records: None
        on.see(*many(40, "b"))
        await asyncio.sleep(60)
        assert len(on.sender.batches) == 4
        await asyncio.sleep(3600)
        on.see(*many(40, "c"))
        await asyncio.sleep(60)
        assert len(on.sender.batches) == 5


async def test_where_batches_are_refused_one_record_decides() -> None:
    async with scene(batches=True) as on:
        on.sender.whole = lambda _records: BatchRefused(reason="HTTP 404", by_content=False)
        on.see(*many(40))
        await asyncio.sleep(60)
        assert [len(batch) for batch in on.sender.batches] == [40]
        assert on.told.lines == ["OK a deployed"] * 40


@pytest.mark.fault("G14")
@pytest.mark.parametrize("reason", ["HTTP 404", "HTTP 403 Forbidden"])
async def test_where_batches_are_refused_what_may_not_be_written_holds_nobody_up(
    reason: str,
) -> None:
    """Once, the first name of all decided, for ever, and nothing else was sent."""
    async with scene(batches=True) as on:
        on.sender.whole = lambda _records: BatchRefused(reason=reason, by_content=False)
        refused = [f"shop/web/app-{number:04}" for number in (*range(14), *range(27, 40))]
        for name in refused:
            on.sender.answers[name] = [Forbidden(reason="HTTP 403 Forbidden")] * 1000
        on.see(*many(40))
        await asyncio.sleep(180)
        assert on.told.lines.count("OK a deployed") == 13
        parked = {each.deployment_name for each in on.ledger.entries() if each.is_refused}
        assert parked == {*refused}


def forbid(on: Scene, count: int) -> set[str]:
    """Have so many names refused, alone and any batch with them; return them."""
    refused = {f"shop/web/{app}" for app in letters(count)}
    for name in refused:
        on.sender.answers[name] = [Forbidden(reason="HTTP 403 Forbidden")] * 10_000

    def whole(records: Sequence[Record]) -> BatchAnswer | None:
        if refused.isdisjoint(record.deployment_name for record in records):
            return None
        return BatchRefused(reason="HTTP 403", by_content=False)

    on.sender.whole = whole
    return refused


@pytest.mark.fault("G14")
@pytest.mark.parametrize("count", [2, 12])
async def test_what_may_not_be_written_alone_stops_nobody_in_a_cluster_that_is_at_rest(
    count: int,
) -> None:
    """It is all that is due, every hour, and a new process knows of nothing that was taken."""
    ledger = MemoryLedger()
    for _ in range(2):
        async with scene(batches=True, ledger=ledger) as on:
            refused = forbid(on, count)
            on.see(*many(40))
            for turn in range(144):
                await asyncio.sleep(600)
                assert on.pace.permits, f"paused after {turn} turns"
                assert on.pace.refusal is None
            parked = {each.deployment_name for each in ledger.entries() if each.is_refused}
            assert parked == refused


@pytest.mark.fault("G14")
@pytest.mark.parametrize("count", [2, 3, 12])
async def test_what_may_not_be_written_alone_stops_nobody_when_it_is_due_again(count: int) -> None:
    """An hour later it is due together, and a batch of it holds nothing else."""
    async with scene(batches=True) as on:
        refused = forbid(on, count)
        on.see(*many(40))
        for turn in range(48):
            await asyncio.sleep(600)
            assert on.pace.permits, f"paused after {turn} turns"
            on.see(running("abcdef"[turn % 6], uid="new", app="new"))
            await asyncio.sleep(10)
            assert on.sender.sent[-1][1].digest == digest("abcdef"[turn % 6])
            assert account_of(on.entry("shop/web/new")) is Account.ACKNOWLEDGED
        parked = {each.deployment_name for each in on.ledger.entries() if each.is_refused}
        assert parked == refused
        assert len(on.sender.sent) < 600


@pytest.mark.fault("G14")
async def test_a_token_that_may_write_no_more_stops_all_sending_at_once() -> None:
    async with scene(batches=True) as on:
        on.see(*many(40))
        await asyncio.sleep(10)
        on.sender.whole = lambda _records: BatchRefused(reason="HTTP 403", by_content=False)
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(*many(40, "b"))
        await asyncio.sleep(20)
        assert on.pace.not_before > waited()
        assert len(on.sender.sent) == 40 + 40 + 3
        on.sender.whole = lambda _records: None
        on.sender.always = OK
        await asyncio.sleep(90)
        assert on.told.lines.count("OK b deployed") == 40


@pytest.mark.fault("G14")
async def test_new_records_that_may_not_be_written_stop_all_sending_a_few_times() -> None:
    """They are all that is due, so at first it looks as if nothing might be written."""
    async with scene(batches=True) as on:
        refused = forbid(on, 10)
        on.see(*many(40)[20:])
        await asyncio.sleep(60)
        on.see(*many(10))
        await asyncio.sleep(600)
        assert {each.deployment_name for each in on.ledger.entries() if each.is_refused} == refused
        for _ in range(24):
            await asyncio.sleep(600)
            assert on.pace.permits


@pytest.mark.fault("G14")
async def test_where_nothing_may_be_written_all_sending_pauses_and_one_request_probes() -> None:
    async with scene(batches=True) as on:
        on.sender.whole = lambda _records: BatchRefused(reason="HTTP 403", by_content=False)
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(*many(40))
        await asyncio.sleep(1800)
        # Each probe is a batch and the one record that decides.
        assert len(on.sender.batches) <= 6
        assert not [entry for entry in on.ledger.entries() if entry.state is State.PARKED]
        on.sender.whole = lambda _records: None
        on.sender.always = OK
        await asyncio.sleep(1900)
        assert on.told.lines.count("OK a deployed") == 40


async def test_after_a_pause_one_request_goes_alone() -> None:
    async with scene(workers=8) as on:
        on.sender.seconds = 5.0
        on.sender.answers["shop/web/app-0000"] = [Unauthorized(reason="HTTP 401")] * 20
        on.see(*many(1))
        await asyncio.sleep(10)
        on.see(*many(40))
        for pod in many(40):
            on.sender.answers[f"shop/web/{pod.containers[0].name}"] = [
                Unauthorized(reason="HTTP 401")
            ] * 20
        await asyncio.sleep(600)
        gaps = on.sender.gaps()
        assert len(gaps) == 9, "one probe a minute"
        assert min(gaps) >= 60 - 0.01


async def test_a_long_outage_is_probed_by_one_request_and_all_follows_at_once() -> None:
    async with scene(batches=True) as on:
        on.sender.always = LOST
        on.see(*many(3000))
        await asyncio.sleep(600)
        assert len(on.sender.batches) + len(on.sender.sent_alone()) <= 40
        on.sender.always = OK
        came_back = waited()
        await asyncio.sleep(90)
        assert on.told.lines.count("OK a deployed") == 3000
        assert on.delivery.backlog == 0
        assert max(when for when, _ in on.sender.sent) - came_back < 75


async def test_when_the_way_to_github_is_there_again_nobody_waits_for_the_end_of_a_backoff() -> (
    None
):
    async with scene() as on:
        on.sender.answers[NAME] = [UNSENT] * 9
        on.see(running("a"))
        tried = asyncio.Event()
        while len(on.sender.sent) < 9:
            tried.clear()
            on.sender.on_send = lambda _record: tried.set()
            await tried.wait()
        # It is not to be asked for again for minutes. Now nothing gets through, and then all does.
        on.sender.always = UNSENT
        on.see(*many(6))
        await asyncio.sleep(20)
        on.sender.always = OK
        failed = len(on.sender.sent)
        await asyncio.sleep(40)
        back = [when for when, _ in on.sender.sent[failed:]]
        assert len(back) == 7
        assert max(back) - min(back) < 2


async def test_where_batches_fail_and_singles_do_not_it_is_singles_for_an_hour() -> None:
    async with scene(batches=True) as on:
        on.sender.whole = lambda _records: Failed(reason="HTTP 502 Bad Gateway", landed=True)
        on.see(*many(100))
        await asyncio.sleep(300)
        assert on.told.lines.count("OK a deployed") == 100
        assert len(on.sender.batches) <= 15


@pytest.mark.fault("G17")
async def test_unknown_digests_are_asked_for_in_few_requests_and_once_each() -> None:
    """Most images of a cluster are third-party and stay unknown for ever."""
    digests = 4000
    async with scene(batches=True) as on:
        on.sender.always = UNKNOWN
        pods = [
            pod(
                f"uid-{number}",
                containers=[container(f"app-{number:04}", image=unknown(number % digests))],
            )
            for number in range(5000)
        ]
        on.see(*pods)
        await asyncio.sleep(60)
        asked = len(on.sender.batches)
        assert asked <= 5
        for interval in (330, 660, 1320):
            await asyncio.sleep(interval)
            assert len(on.sender.batches) - asked <= 10
            asked = len(on.sender.batches)
        again = [record for when, record in on.sender.sent if when > 60]
        assert len(again) <= 3 * digests
        assert len({entry.state for entry in on.ledger.entries()}) == 1


async def test_a_digest_that_becomes_known_is_posted_for_every_name() -> None:
    async with scene(batches=True) as on:
        on.sender.always = UNKNOWN
        on.see(*many(30))
        await asyncio.sleep(200)
        assert len(on.sender.sent) <= 31
        on.sender.always = OK
        await asyncio.sleep(200)
        assert on.told.lines.count("OK a deployed") == 30


async def test_a_digest_that_github_has_elsewhere_is_asked_for_by_each_name() -> None:
    """It is known: that it is not found under one name says something of that name only."""
    async with scene() as on:
        on.see(running("a"))
        await asyncio.sleep(5)
        on.sender.always = UNKNOWN
        on.see(running("a", uid="2", app="two"))
        await asyncio.sleep(5)
        on.sender.always = OK
        on.see(running("a", uid="3", app="three"))
        await asyncio.sleep(5)
        assert on.sender.digests == "aaa"
        assert account_of(on.entry("shop/web/three")) is Account.ACKNOWLEDGED


async def test_a_name_of_an_unknown_digest_does_not_ask_and_is_told_why() -> None:
    async with scene() as on:
        on.sender.always = UNKNOWN
        on.see(running("a"))
        await asyncio.sleep(1)
        on.see(running("a", uid="2", app="other"))
        await asyncio.sleep(10)
        assert on.sender.digests == "a"
        assert on.told.lines == ["FAILED a HTTP 404 Not Found"] * 2
        assert on.entry("shop/web/other").state is State.NOT_FOUND
        on.see(running("b", uid="3", app="other"))
        await asyncio.sleep(1)
        assert on.sender.digests == "ab", "a new digest is asked for at once"


async def test_what_is_unknown_delays_nothing_that_is_new() -> None:
    async with scene(workers=1, batches=True) as on:
        on.sender.seconds = 5.0
        on.sender.always = UNKNOWN
        on.see(*many(2))
        await asyncio.sleep(300)
        asked = asyncio.Event()
        on.sender.on_send = lambda _record: asked.set()
        await asked.wait()
        on.sender.always = OK
        on.see(running("b", uid="2", app="new"))
        began = waited()
        await asyncio.sleep(1)
        assert on.sender.sent[-1][0] == pytest.approx(began)


async def test_the_first_success_after_a_spell_of_refusals_makes_all_of_them_due() -> None:
    async with scene() as on:
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(*many(30))
        await asyncio.sleep(30)
        on.sender.always = OK
        on.see(running("b", uid="2", app="new"))
        await asyncio.sleep(10)
        assert on.told.lines.count("OK a deployed") == 30


async def test_a_spell_of_refusals_that_nothing_new_ends_is_probed() -> None:
    async with scene() as on:
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(*many(30))
        await asyncio.sleep(40)
        on.sender.always = OK
        await asyncio.sleep(90)
        assert on.told.lines.count("OK a deployed") == 30


async def test_a_probe_of_which_there_is_nothing_to_send_leaves_it_to_the_next() -> None:
    """Once, a rollback to what GitHub holds ended the probing, and the others waited an hour."""
    async with scene() as on:
        on.see(running("a", uid="first", app="aaa"))
        await asyncio.sleep(1)
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(running("b", uid="first", app="aaa"), *many(30))
        await asyncio.sleep(30)
        on.see(running("a", uid="first", app="aaa"))
        on.sender.always = OK
        await asyncio.sleep(160)
        assert on.told.lines.count("OK a deployed") == 31


@pytest.mark.fault("G21")
async def test_one_that_is_refused_for_good_hides_no_end_of_a_spell_of_refusals() -> None:
    """Once, it was the only one that was ever asked for."""
    async with scene() as on:
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.sender.answers["shop/web/aaa"] = [Forbidden(reason="HTTP 403 Forbidden")] * 1000
        on.see(running("a", uid="first", app="aaa"), *many(30))
        await asyncio.sleep(30)
        on.sender.always = OK
        await asyncio.sleep(200)
        assert on.told.lines.count("OK a deployed") == 30


async def test_a_new_spell_of_refusals_is_probed_soon_whatever_the_last_one_was() -> None:
    async with scene() as on:
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(*many(5))
        await asyncio.sleep(3 * 3600)
        on.sender.always = OK
        on.see(running("b", uid="new", app="new"))
        await asyncio.sleep(10)
        assert len(on.told.lines) == 5 + 6
        on.sender.always = Forbidden(reason="HTTP 403 Forbidden")
        on.see(*many(5, "c"))
        await asyncio.sleep(30)
        on.sender.always = OK
        await asyncio.sleep(60)
        assert on.told.lines.count("OK c deployed") == 5


async def test_what_is_refused_for_good_does_not_go_round_with_every_success() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [Forbidden(reason="HTTP 403 Forbidden")] * 1000
        on.see(running("a"))
        for turn in range(60):
            on.see(running("abcdef"[turn % 6], uid="2", app="other"))
            await asyncio.sleep(50)
        assert 2 <= sum(each.deployment_name == NAME for _, each in on.sender.sent) <= 4


async def test_a_limit_outlives_a_restart() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [Limited(reason="HTTP 429", pause_seconds=100)]
        on.see(running("a"))
        await asyncio.sleep(1)
        assert on.ledger.pause_until == on.pace.not_before


async def test_what_was_not_found_before_a_restart_is_not_asked_for_by_each_name() -> None:
    ledger = MemoryLedger()
    async with scene(ledger=ledger) as on:
        on.sender.always = UNKNOWN
        on.see(*many(20))
        await asyncio.sleep(10)
    async with scene(ledger=ledger) as on:
        on.sender.always = UNKNOWN
        on.see(*many(20))
        await asyncio.sleep(400)
        assert len(on.sender.sent) == 1


async def test_a_name_is_unfinished_until_it_is_answered_and_settled() -> None:
    async with scene() as on:
        assert on.delivery.unfinished == frozenset()
        on.sender.answers[NAME] = [LOST]
        on.see(running())
        assert on.delivery.unfinished == {NAME}
        await asyncio.sleep(0.3)
        assert on.delivery.unfinished == {NAME}, "it waits for its next try"
        await asyncio.sleep(10)
        assert on.delivery.unfinished == frozenset()
        on.sender.answers[NAME] = [LOST]
        on.see(running("b"))
        on.see(running("c", uid="uid-2"))
        await asyncio.sleep(20)
        while on.delivery.unfinished:
            assert on.delivery.unfinished == {NAME}, "it is posted once more later"
            await asyncio.sleep(1)
        assert on.entry().settle_at is None


async def test_what_github_refused_is_not_unfinished_until_it_is_asked_for_again() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [UNKNOWN]
        on.see(running())
        await asyncio.sleep(5)
        assert on.delivery.unfinished == frozenset()
        on.sender.seconds = 30.0
        due = on.entry().not_before
        assert due is not None
        await asyncio.sleep(due - waited() + 5)
        assert on.delivery.unfinished == {NAME}
        await asyncio.sleep(60)
        assert on.delivery.unfinished == frozenset()


# What is posted again, and what waits for somebody else's answer.


class Writes(FullLedger):
    """One that has something happen, besides, while its next intent is written."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] | None = None

    async def put(self, *entries: Entry) -> None:
        """Write entries."""
        if self.meanwhile is not None and any(each.state is State.SENDING for each in entries):
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        await super().put(*entries)


@asynccontextmanager
async def standing(ledger: MemoryLedger) -> AsyncIterator[Scene]:
    """Yield a scene in which one name runs and is acknowledged, and nothing is to be sent."""
    async with scene(ledger=ledger) as on:
        on.see(running("a"))
        await asyncio.sleep(1)
        on.sender.sent.clear()
        yield on


async def test_what_a_success_made_due_is_due_still_when_it_could_not_be_written() -> None:
    """Once, it waited for the rest of its hour."""
    ledger = Writes()
    async with scene(ledger=ledger, workers=1) as on:
        on.sender.always = Forbidden(reason="HTTP 403")
        on.see(running("a", uid="1", app="one"), running("b", uid="2", app="two"))
        await asyncio.sleep(10)
        on.sender.always = OK
        ledger.full.add("shop/web/two")
        on.see(running("c", uid="3", app="three"))  # its success ends the spell
        await asyncio.sleep(1)
        ledger.full.clear()
        await asyncio.sleep(60)
        for app in ("one", "two"):
            assert on.entry(f"shop/web/{app}").acknowledged is not None


@pytest.mark.parametrize("trouble", ["full", "limit"])
async def test_a_repost_whose_intent_came_to_nothing_is_still_to_be_posted(trouble: str) -> None:
    ledger = Writes()
    async with standing(ledger) as on:
        if trouble == "full":
            ledger.full.add(NAME)
        else:
            limit = Limited(reason="HTTP 429", pause_seconds=5.0)
            ledger.meanwhile = partial(on.pace.note, limit)
        on.delivery.repost(NAME)
        await asyncio.sleep(1)
        assert on.sender.sent == []
        assert on.delivery.to_repost == {NAME}
        ledger.full.clear()
        await asyncio.sleep(60)
        assert on.sender.digests == "a"
        assert not on.delivery.to_repost


@pytest.mark.parametrize("answer", [Limited(reason="HTTP 429", pause_seconds=2.0), UNSENT])
async def test_a_repost_that_was_not_answered_is_posted_again(answer: Answer) -> None:
    async with standing(MemoryLedger()) as on:
        on.sender.answers[NAME] = [answer]
        on.delivery.repost(NAME)
        await asyncio.sleep(120)
        assert on.sender.digests == "aa"
        assert account_of(on.entry()) is Account.ACKNOWLEDGED


async def test_a_repost_that_does_not_get_through_is_tried_with_a_growing_wait() -> None:
    async with standing(MemoryLedger()) as on:
        on.sender.answers[NAME] = [UNSENT] * 4
        on.delivery.repost(NAME)
        await asyncio.sleep(120)
        assert on.sender.gaps() == pytest.approx([0.5, 1, 2, 4])


async def test_there_is_nothing_to_repost_of_a_name_that_was_never_acknowledged() -> None:
    async with scene() as on:
        on.see(pod("1", phase="Pending", containers=[Container(name="app", image=None)]))
        with capture_logs() as logs:
            on.delivery.repost(NAME)
            await asyncio.sleep(60)
        assert on.sender.sent == []
        assert not on.delivery.to_repost
        assert logs == []


async def test_a_repost_that_is_refused_waits_for_the_next_one() -> None:
    async with standing(MemoryLedger()) as on:
        on.sender.answers[NAME] = [UNKNOWN]
        on.delivery.repost(NAME)
        await asyncio.sleep(3600)
        assert on.sender.digests == "a"
        assert not on.delivery.to_repost
        on.delivery.repost(NAME)  # somebody put the artifact back, and asks for it
        await asyncio.sleep(10)
        assert on.sender.digests == "aa"
        assert account_of(on.entry()) is Account.ACKNOWLEDGED


async def test_an_end_that_a_pod_contradicts_while_it_is_written_down_does_not_leave() -> None:
    ledger = Writes()
    async with standing(ledger) as on:
        ledger.meanwhile = lambda: on.see(running("a", uid="uid-2"))
        on.lose()
        await asyncio.sleep(600)
        assert on.sender.sent == []
        assert on.entry().acknowledged == record("a")
        assert on.entry().sent is None


async def test_of_a_batch_only_what_is_contradicted_stays() -> None:
    ledger = Writes()
    async with scene(ledger=ledger, batches=True) as on:
        for app in ("one", "two"):
            on.see(running("a", uid=app, app=app))
        await asyncio.sleep(1)
        on.sender.sent.clear()
        ledger.meanwhile = lambda: on.see(running("a", uid="again", app="two"))
        for app in ("one", "two"):
            on.lose(app)
        await asyncio.sleep(600)
        assert [each.deployment_name for _, each in on.sender.sent] == ["shop/web/one"]
        assert on.sender.digests == "A"


async def test_a_drain_waits_for_what_is_under_way_behind_and_begins_no_more_of_it() -> None:
    async with scene() as on:
        on.sender.always = UNKNOWN
        on.see(running("a"), running("b", uid="uid-2", app="other"))
        await asyncio.sleep(1)
        on.sender.seconds = 3.0
        asked_again = asyncio.Event()
        on.sender.on_send = lambda _record: asked_again.set()
        await asked_again.wait()
        asked = len(on.sender.sent)
        await on.delivery.drain(20)
        assert not on.sender.under_way
        assert on.entry().state is State.NOT_FOUND
        await asyncio.sleep(3600)
        assert len(on.sender.sent) == asked


async def test_a_batch_that_is_halved_for_long_is_work() -> None:
    """Once, liveness took it for a queue that nobody works at."""
    on = Scene(workers=2, batches=True, pace=Pace(rate=2.6, burst=20, chance=lambda: 0.5))
    on.pace.open()
    on.sender.whole = lambda _records: BatchRefused(reason="HTTP 422", by_content=True)
    on.sender.always = Rejected(reason="HTTP 422")
    on.run = asyncio.create_task(on.delivery.run())
    for number in range(200):
        on.see(running("a", uid=f"uid-{number}", app=f"app-{number:03}"))
    longest = 0.0
    while on.delivery.backlog:
        await asyncio.sleep(1)
        longest = max(longest, waited() - on.delivery.tried_at)
    await on.cancel()
    assert len(on.sender.sent) > 1000
    assert longest < 10
