"""The queue of names and its workers, with a sender in memory and virtual time."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Final

import pytest
from structlog.testing import capture_logs

from tests.support.builders import container, pod, record
from tracker.answers import (
    Acknowledged,
    Answer,
    Failed,
    Forbidden,
    Limited,
    NotFound,
    Unauthorized,
    Unconfirmed,
)
from tracker.delivery import FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, Delivery, Pause
from tracker.entries import SETTLE_SECONDS, Entry, State
from tracker.inventory import Inventory, Judgement
from tracker.ledger import MemoryLedger
from tracker.pods import Pod
from tracker.records import Record, Status
from tracker.workloads import Workload

pytestmark = pytest.mark.looptime

NAME: Final = "shop/web/app"
TEMPLATE: Final = "{{namespace}}/{{deploymentName}}/{{containerName}}"
OK: Final = Acknowledged()
LOST: Final = Failed(reason="timeout", landed=True)
UNSENT: Final = Failed(reason="connection refused", landed=False)
UNKNOWN: Final = NotFound(reason="HTTP 404 Not Found")


class ScriptedSender:
    """
    A sender that answers what it was told, by name, and acknowledges after that.

    Each send takes `seconds`. It fails the test when two of one name are under way together.
    """

    def __init__(self, *, seconds: float = 0.1) -> None:
        self.sent: list[tuple[float, Record]] = []
        self.answers: defaultdict[str, list[Answer]] = defaultdict(list)
        self.always: Answer = OK
        self.seconds = seconds
        self.under_way: set[str] = set()
        self.most_at_once = 0
        self.on_send: Callable[[Record], None] = lambda _record: None

    async def send(self, record: Record) -> Answer:
        """Answer as scripted."""
        name = record.deployment_name
        assert name not in self.under_way, f"{name} is sent twice at once"
        self.under_way.add(name)
        self.most_at_once = max(self.most_at_once, len(self.under_way))
        try:
            self.sent.append((asyncio.get_running_loop().time(), record))
            self.on_send(record)
            await asyncio.sleep(self.seconds)
            return self.answers[name].pop(0) if self.answers[name] else self.always
        finally:
            self.under_way.discard(name)

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


class Told:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def acknowledged(self, record: Record) -> None:
        """Keep it."""
        self.lines.append(f"OK {record.digest[-1]} {record.status}")

    def failed(self, record: Record, reason: str) -> None:
        """Keep it."""
        self.lines.append(f"FAILED {record.digest[-1]} {reason}")


class Scene:
    """A delivery with everything around it."""

    def __init__(self, *, workers: int, ledger: MemoryLedger | None = None) -> None:
        self.inventory = Inventory(template=TEMPLATE)
        self.ledger = MemoryLedger() if ledger is None else ledger
        self.sender = ScriptedSender()
        self.absences = SureAbsences()
        self.told = Told()
        self.pause = Pause()
        self.judge: Callable[[str, Record | None], Judgement] = self.inventory.judge
        self.delivery = Delivery(
            judge=self.judged,
            ledger=self.ledger,
            sender=self.sender,
            absences=self.absences,
            reporter=self.told,
            pause=self.pause,
            workers=workers,
            chance=lambda: 0.5,
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
async def scene(*, workers: int = 2, ledger: MemoryLedger | None = None) -> AsyncIterator[Scene]:
    made = Scene(workers=workers, ledger=ledger)
    made.pause.open()
    made.run = asyncio.create_task(made.delivery.run())
    try:
        yield made
    finally:
        await made.cancel()


def running(letter: str = "a", *, uid: str = "uid-1", app: str = "app") -> Pod:
    return pod(uid, containers=[container(app, letter=letter)])


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


async def test_what_github_does_not_know_is_asked_for_as_long_as_it_runs() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [UNKNOWN] * 3
        on.see(running("a"))
        await asyncio.sleep(1e5)
        assert on.sender.gaps() == pytest.approx([315, 630, 1260])
        assert on.told.lines == ["FAILED a HTTP 404 Not Found", "OK a deployed"]


async def test_what_github_never_knew_is_forgotten_when_it_is_gone() -> None:
    async with scene() as on:
        on.sender.always = UNKNOWN
        on.see(running("a"))
        await asyncio.sleep(10)
        on.lose()
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
        assert 4 <= len(on.sender.sent) <= 30
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
        assert on.pause.not_before - waited() == pytest.approx(FIRST_PAUSE_SECONDS, abs=0.2)


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
    pause = Pause()
    pause.open()
    stops = 0.0
    for answer in answers:
        await pause.passed()
        stops = pause.note(answer)
    assert stops == pytest.approx(seconds)
    began = waited()
    await pause.passed()
    assert waited() - began == pytest.approx(seconds)


async def test_a_pause_only_ever_moves_later() -> None:
    pause = Pause()
    pause.open()
    pause.note(Limited(reason="", pause_seconds=100))
    until = pause.not_before
    pause.note(Limited(reason="", pause_seconds=5))
    pause.note(Limited(reason="", pause_seconds=None))
    pause.note(OK)
    assert pause.not_before == until
    pause.note(Limited(reason="", pause_seconds=200))
    assert pause.not_before > until


async def test_nothing_is_sent_before_everything_was_seen() -> None:
    on = Scene(workers=2)
    on.run = asyncio.create_task(on.delivery.run())
    on.see(running("a"))
    await asyncio.sleep(3600)
    assert on.sender.sent == []
    assert await on.delivery.drain(20) == 1
    on.see(running("b"))
    on.pause.open()
    await asyncio.sleep(1)
    assert on.sender.digests == "b"
    await on.cancel()


async def test_a_drain_waits_for_what_is_queued_and_for_due_retries() -> None:
    async with scene() as on:
        on.sender.answers[NAME] = [UNSENT, UNSENT]
        for app in range(30):
            on.see(running(uid=f"many-{app}", app=f"app-{app}"))
        on.see(running("a"))
        began = waited()
        assert await on.delivery.drain(20) == 0
        assert waited() - began < 20
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
        on.see(running("a", uid="2", app="known"), running("a", uid="3", app="unknown"))
        assert await on.delivery.drain(20) == 1


async def test_a_drain_does_not_wait_for_a_pause_that_outlasts_it() -> None:
    async with scene() as on:
        on.see(running("a"))
        on.pause.note(Limited(reason="HTTP 429", pause_seconds=600))
        began = waited()
        assert await on.delivery.drain(20) == 1
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
        on.pause.note(Limited(reason="HTTP 429", pause_seconds=5))
        assert await on.delivery.drain(20) == 0
        assert on.sender.digests == "a"


class SlowLedger(MemoryLedger):
    """A ledger whose writes take a second."""

    async def put(self, entry: Entry) -> None:
        """Write an entry, slowly."""
        await asyncio.sleep(1)
        await super().put(entry)


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

    class Mute(Told):
        def failed(self, record: Record, reason: str) -> None:
            raise BrokenPipeError(record, reason)

    on = Scene(workers=1)
    on.delivery = Delivery(
        judge=on.inventory.judge,
        ledger=on.ledger,
        sender=on.sender,
        absences=on.absences,
        reporter=Mute(),
        pause=on.pause,
        workers=1,
        chance=lambda: 0.5,
    )
    on.pause.open()
    on.run = asyncio.create_task(on.delivery.run())
    on.sender.answers[NAME] = [Limited(reason="HTTP 429", pause_seconds=600)]
    on.see(running("a"))
    await asyncio.sleep(1)
    assert on.pause.not_before - waited() > 500
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
            last = next(
                each for _, each in reversed(on.sender.sent) if each.deployment_name == name
            )
            assert (last.status is Status.DEPLOYED) == (name in on.inventory.names())
            assert on.entry(name).acknowledged == last
