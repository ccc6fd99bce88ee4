"""
Kopf inside of a process that outlives it, without a process of its own.

The watch and all around it run in the loop of the test, against both simulators, so that what
becomes of tasks and signals can be looked at.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sized
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import kopf
import pytest

import tracker.main
from tests.support.builders import TEMPLATE, raw_pod
from tracker.cluster import Cluster
from tracker.inventory import Inventory
from tracker.pods import read_pod
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.outages import Match, StreamError
from tracker.sandbox.script import hangs
from tracker.settings import load
from tracker.watch import (
    LISTLESS_SECONDS,
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    SPARE_PHASES,
    WATCHLESS_SECONDS,
    EndlessBackoffs,
    PhasesInMemory,
    Pulse,
    serve,
)

assert tracker.main.__all__  # it is what registers the handlers

WITHIN: Final = 20.0
OURS: Final = ("reconcile", "delivery", "absences", "watch", "failure", "stopped")
"""Names of tasks that live as long as the process."""

# Back-off.


def test_backoffs_have_no_end_and_keep_their_bounds() -> None:
    first = list(islice(EndlessBackoffs(), 1000))
    assert all(MIN_RETRY_SECONDS <= each <= MIN_RETRY_SECONDS + MAX_RETRY_SECONDS for each in first)
    assert len(set(first)) > 500  # jitter: many that failed together don't come back together


def test_each_request_has_the_short_backoffs_first() -> None:
    backoffs = EndlessBackoffs()
    list(islice(backoffs, 100))
    assert next(iter(backoffs)) <= MIN_RETRY_SECONDS + 1.0
    # Kopf would stop after as many as it can count, and could iterate an iterator only once.
    assert not isinstance(backoffs, Sized | Iterator)


# What is kept of pods.


def essence(phase: object) -> kopf.BodyEssence:
    """Return what is kept of a pod in a phase."""
    return cast("kopf.BodyEssence", {"status": {"phase": phase}})


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        pytest.param({"status": {"phase": "Running", "podIP": "10.0.0.1"}}, "Running", id="phase"),
        pytest.param({"status": {}}, None, id="none"),
        pytest.param({}, None, id="no-status"),
        pytest.param({"status": None}, None, id="null"),
        pytest.param({"status": "Running"}, None, id="text"),
    ],
)
def test_nothing_is_kept_of_a_pod_but_its_phase(body: dict[str, Any], kept: str | None) -> None:
    phases = PhasesInMemory(pods=Inventory(template=TEMPLATE))
    built = phases.build(body=kopf.Body(cast("Any", body)))
    assert built == ({} if kept is None else essence(kept))


def test_a_phase_is_kept_by_uid_until_it_is_forgotten() -> None:
    phases = PhasesInMemory(pods=Inventory(template=TEMPLATE))
    body = kopf.Body(cast("Any", raw_pod("uid-1")))
    assert phases.fetch(body=body) is None
    patch = kopf.Patch()
    phases.store(body=body, patch=patch, essence=essence("Running"))
    assert phases.fetch(body=body) == essence("Running")
    assert not patch  # nothing is for the pod
    phases.forget("uid-1")
    phases.forget("uid-1")
    assert phases.fetch(body=body) is None


def test_a_phase_that_was_noted_is_no_news_until_it_changes() -> None:
    phases = PhasesInMemory(pods=Inventory(template=TEMPLATE))
    waiting, running = raw_pod(phase="Pending"), raw_pod()
    assert phases.is_news(waiting)
    phases.note(waiting)
    assert not phases.is_news(waiting)
    assert phases.is_news(running)
    assert phases.fetch(body=kopf.Body(cast("Any", running))) == essence("Pending")


def test_phases_of_pods_that_went_unseen_are_dropped_in_time() -> None:
    pods = Inventory(template=TEMPLATE)
    pods.observe(read_pod(raw_pod("alive")))
    phases = PhasesInMemory(pods=pods)
    for uid in ("alive", *(f"gone-{number}" for number in range(3 * SPARE_PHASES))):
        body = kopf.Body(cast("Any", raw_pod(uid)))
        phases.store(body=body, patch=kopf.Patch(), essence=essence("Running"))
        assert len(phases) <= SPARE_PHASES + 4
    assert phases.fetch(body=kopf.Body(cast("Any", raw_pod("alive")))) == essence("Running")


# The pulse.


@pytest.mark.fault("K8")
@pytest.mark.looptime
@pytest.mark.parametrize(
    ("signs", "lost_at"),
    [
        pytest.param([], LISTLESS_SECONDS, id="nothing"),
        pytest.param([(100, "listing")], 100 + LISTLESS_SECONDS, id="a-list"),
        pytest.param([(1, "watching")], 1 + WATCHLESS_SECONDS, id="a-watch"),
        pytest.param(
            [(1, "watching"), (300, "watching")], 300 + WATCHLESS_SECONDS, id="two-watches"
        ),
        pytest.param(
            [(1, "watching"), (2, "listing")], 2 + LISTLESS_SECONDS, id="a-list-and-no-watch"
        ),
        pytest.param([(LISTLESS_SECONDS + 1, "listing")], LISTLESS_SECONDS, id="too-late"),
    ],
)
async def test_a_pulse_is_lost_when_the_next_sign_of_life_is_overdue(
    signs: list[tuple[float, str]], lost_at: float
) -> None:
    loop, pulse = asyncio.get_running_loop(), Pulse()
    began = loop.time()
    for at, sign in signs:
        loop.call_later(at, getattr(pulse, sign))
    await pulse.lost()
    assert loop.time() - began == pytest.approx(lost_at)


# The requests of who watches.


@pytest.mark.fault("K6")
@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        pytest.param({"limit": "500"}, 0.1 + 0.2 + 0.4 + 0.4, id="lists-more-and-more"),
        pytest.param({"watch": "true", "timeoutSeconds": "0"}, 4 * 0.1, id="watches"),
    ],
)
async def test_requests_that_follow_each_other_at_once_are_spaced_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: dict[str, str], seconds: float
) -> None:
    monkeypatch.setattr("tracker.cluster.APART_SECONDS", 0.1)
    monkeypatch.setattr("tracker.cluster.MAX_APART_SECONDS", 0.4)
    told: list[str] = []
    async with (
        SimulatedCluster() as cluster,
        Cluster(
            kubeconfig=cluster.write_kubeconfig(tmp_path / "kubeconfig"),
            environ={},
            namespace="",
            user_agent="test",
        ) as ours,
    ):
        connection = await ours.connect(
            on_ask=lambda: told.append("ask"),
            on_list=lambda: told.append("list"),
            on_page=lambda: told.append("page"),
            on_watch=lambda: told.append("watch"),
        )
        began = asyncio.get_running_loop().time()
        async with connection.session as session:
            for _ in range(5):
                url = f"{connection.server}/api/v1/pods"
                async with session.get(url, params=query) as response:
                    assert response.status == 200
                    await response.read()
        # At least: that is what the spaces add up to, however slow the machine is.
        assert asyncio.get_running_loop().time() - began >= seconds - 0.01
    assert told == (["ask", "watch"] if "watch" in query else ["ask", "page", "list"]) * 5


# The whole of it.


@dataclass(kw_only=True)
class Stand:
    """A tracker that runs in the loop of the test."""

    cluster: SimulatedCluster
    github: SimulatedGitHub
    served: "asyncio.Task[int]"

    def create(self, workload: str) -> None:
        """Create a running pod."""
        body = raw_pod("", name=f"{workload}-x")
        del body["metadata"]["uid"]
        body["metadata"]["ownerReferences"][0]["name"] = workload
        body["metadata"]["labels"] = {}
        self.cluster.create(body)

    async def told(self, workload: str) -> None:
        """Wait until GitHub holds a workload."""
        name = f"shop/{workload}/app"
        await self.github.until(lambda: self.github.state(name) is not None, within=WITHIN)

    async def end_kopf(self) -> None:
        """Have Kopf end by an error in its stream, and wait for its next watch."""
        fault = self.cluster.inject(StreamError(code=500), match=Match(verb="watch"), times=1)
        self.cluster.end_watches()
        await self.cluster.until(
            lambda: fault.hits == 1 and self.cluster.watches == 1, within=WITHIN
        )


@pytest.fixture
async def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    """Run a tracker that waits less than usual, and stop it if the test did not."""
    monkeypatch.setattr("tracker.watch.AGAIN_SECONDS", 0.1)
    monkeypatch.setattr("tracker.watch.MAX_RETRY_SECONDS", 0.1)
    monkeypatch.setattr("tracker.reconcile.CALM_SECONDS", 0.2)
    async with running(tmp_path) as stand:
        yield stand


@asynccontextmanager
async def running(folder: Path, **environ: str) -> AsyncIterator[Stand]:
    """Run a tracker; stop it at the end."""
    async with SimulatedCluster() as cluster, SimulatedGitHub() as github:
        settings = load(
            {"kubeconfig": str(cluster.write_kubeconfig(folder / "kubeconfig"))},
            {
                "ORG": "acme",
                "BASE_URL": github.url,
                "LOGICAL_ENVIRONMENT": "test",
                "API_TOKEN": github.token,
                "DECOMMISSION_DELAY": "100ms",
                "METRICS_PORT": "0",
                **environ,
            },
        )
        served = asyncio.create_task(serve(settings), name="served")
        stand = Stand(cluster=cluster, github=github, served=served)
        try:
            await cluster.until(lambda: cluster.watches == 1, within=WITHIN)
            yield stand
        finally:
            served.cancel()
            with suppress(asyncio.CancelledError):
                await served


def tasks(is_meant: Callable[[str], bool]) -> set["asyncio.Task[Any]"]:
    """Return the tasks with such names."""
    return {task for task in asyncio.all_tasks() if is_meant(task.get_name())}


@pytest.mark.fault("K15")
async def test_when_kopf_ends_no_task_of_ours_does_and_none_of_its_own_is_left(
    stand: Stand,
) -> None:
    stand.create("first")
    await stand.told("first")
    ours = tasks(OURS.__contains__)
    assert {task.get_name() for task in ours} >= {"reconcile", "delivery", "absences", "watch"}
    kopfs = tasks(lambda name: "watcher for" in name)
    assert len(kopfs) == 1
    script = stand.github.script(hangs(applied=True), times=1)
    stand.create("in-flight")
    await stand.github.until(lambda: bool(script.used), within=WITHIN)
    before = len(asyncio.all_tasks())
    for _ in range(2):
        await stand.end_kopf()
    assert tasks(OURS.__contains__) >= {task for task in ours if task.get_name() != "stopped"}
    again = tasks(lambda name: "watcher for" in name)
    assert len(again) == 1
    assert not again & kopfs
    assert len(asyncio.all_tasks()) <= before + 3
    # The post that was under way all the time is answered now, and was not cut or sent again.
    stand.github.release()
    stand.create("second")
    await stand.told("second")
    assert [each.gone for each in stand.github.posts("shop/in-flight/app")] == [None]


async def test_the_last_pod_that_went_in_a_gap_is_found_though_the_new_list_is_empty(
    stand: Stand,
) -> None:
    stand.create("last")
    await stand.told("last")
    stand.cluster.cut_watches()
    stand.cluster.delete("pods", "shop", "last-x", grace_seconds=0)
    stand.cluster.compact()
    await stand.github.until(lambda: stand.github.deployed() == {}, within=WITHIN)
    assert stand.cluster.objects("pods") == []


async def test_an_operator_that_is_cancelled_from_inside_is_started_again(stand: Stand) -> None:
    (operator,) = tasks("operator".__eq__)
    operator.cancel()
    await stand.cluster.until(lambda: operator.done() and stand.cluster.watches == 1, within=WITHIN)
    stand.create("after")
    await stand.told("after")
    assert not stand.served.done()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
async def test_signals_are_ours_also_after_kopf_was_started_again(
    stand: Stand, number: signal.Signals
) -> None:
    await stand.end_kopf()
    os.kill(os.getpid(), number)
    async with asyncio.timeout(WITHIN):
        assert await stand.served == 0
    assert stand.cluster.watches == 0


async def test_a_second_signal_ends_a_drain(tmp_path: Path) -> None:
    async with running(tmp_path, DRAIN_TIMEOUT="1h") as stand:
        script = stand.github.script(hangs())
        stand.create("stuck")
        await stand.github.until(lambda: bool(script.used), within=WITHIN)
        os.kill(os.getpid(), signal.SIGTERM)
        await stand.cluster.until(lambda: stand.cluster.watches == 0, within=WITHIN)
        assert not stand.served.done()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(WITHIN):
            assert await stand.served == 1


async def test_a_stop_while_kopf_waits_to_be_started_again_is_heeded_at_once(stand: Stand) -> None:
    stand.cluster.inject(StreamError(code=500), match=Match(verb="watch"))
    stand.cluster.end_watches()
    (first,) = tasks("operator".__eq__)
    async with asyncio.timeout(WITHIN):
        await asyncio.wait({first})
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(WITHIN):
        assert await stand.served == 0


async def test_an_error_that_nobody_looks_at_is_told_without_a_token(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    class LeakyError(Exception):
        def __repr__(self) -> str:
            return "LeakyError(Authorization: Bearer canary)"

    loop = asyncio.get_running_loop()
    context = {"message": "Task exception was never retrieved", "exception": LeakyError("told")}
    loop.call_exception_handler(context)
    told = capsys.readouterr().out
    assert "canary" not in told
    assert "LeakyError: told" in told
    assert not stand.served.done()
