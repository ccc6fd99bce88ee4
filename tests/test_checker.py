"""The checker passes good runs and catches every kind of bad one."""

import asyncio
import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from tests.support.checker import (
    Circumstances,
    Crash,
    Environment,
    Promise,
    Violation,
    check,
    report,
)
from tests.support.truthlog import TruthLog
from tracker.sandbox.contract import names_in, read_batch, read_single
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import drops
from tracker.sandbox.table import Table
from tracker.sandbox.truth import Scope

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
WEB = "shop/web/app"
START = datetime(2026, 1, 15, 12, tzinfo=UTC)
HERE = Environment("acme", "prod", "", "east")
PATH = "/orgs/acme/artifacts/metadata/deployment-record"


def pod(
    uid: str, digest: str = A, *, phase: str = "Running", of: str = "web", kind: str = "StatefulSet"
) -> dict[str, Any]:
    """Return a raw pod; pods are as old as their uids sort."""
    age = timedelta(minutes=int(uid.strip("p")))
    return {
        "metadata": {
            "name": uid,
            "namespace": "shop",
            "uid": uid,
            "creationTimestamp": (START + age).isoformat(),
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1" if kind == "Job" else "apps/v1",
                    "kind": kind,
                    "name": of,
                    "controller": True,
                }
            ],
        },
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "app", "image": "app:1", "imageID": f"app@{digest}"}],
        },
    }


class Run:
    """One run, told moment by moment: `pod`, `gone` and `post` at a time in seconds."""

    def __init__(self) -> None:
        self.log = TruthLog()
        self.history: list[Exchange] = []
        self.table = Table()
        self.circumstances = Circumstances(environment=HERE)

    def pod(self, at: float, uid: str, digest: str = A, **more: str) -> "Run":
        self.log.event(at, "MODIFIED", pod(uid, digest, **more))
        return self

    def gone(self, at: float, uid: str) -> "Run":
        self.log.event(at, "DELETED", pod(uid))
        return self

    def post(
        self,
        at: float,
        digest: str = A,
        status: str = "deployed",
        /,
        *,
        answer: int | None = 200,
        took: float = 0.1,
        gone_after: float | None = None,
        applied: bool | None = None,
        scripted: str = "",
        **changed: object,
    ) -> "Run":
        """Post one record; an answer of None is a connection that was cut."""
        payload = {
            "name": "app",
            "version": "1",
            "digest": digest,
            "status": status,
            "deployment_name": WEB,
            "logical_environment": "prod",
            "cluster": "east",
        } | changed
        exchange = self._exchange(at, PATH, payload)
        exchange.request = read_single(payload, org="acme")
        exchange.scripted = scripted
        success = answer == 200
        if applied if applied is not None else success:
            rows = self.table.apply(exchange.deployments, now=START, seq=exchange.seq)
            exchange.rows, exchange.applied = rows, at + took
            records = [row.as_json() for row in rows]
            exchange.answer = json.dumps({"deployment_records": records}).encode()
        if gone_after is not None:
            exchange.gone = at + gone_after
        else:
            exchange.answered, exchange.status = at + took, answer
            exchange.whole, exchange.cut = success, answer is None
        return self

    def batch(self, at: float, *names: str, digest: str = A, refused: str = "") -> "Run":
        """Post a batch, of which one name is refused as not found."""
        deployments = [
            {"name": "app", "version": "1", "digest": digest, "deployment_name": name}
            for name in names
        ]
        payload = {"logical_environment": "prod", "deployments": deployments}
        exchange = self._exchange(at, f"{PATH}/cluster/east", payload)
        exchange.request = read_batch(payload, org="acme", cluster="east")
        accepted = [each for each in exchange.deployments if each.deployment_name != refused]
        rows = self.table.apply(accepted, now=START, seq=exchange.seq)
        errors = [
            {"deployment": each} for each in deployments if each["deployment_name"] == refused
        ]
        answer = {"deployment_records": [row.as_json() for row in rows], "errors": errors}
        exchange.answer = json.dumps(answer).encode()
        exchange.answered, exchange.status, exchange.whole = at + 0.1, 207, True
        return self

    def given(self, **more: Any) -> "Run":  # noqa: ANN401 - any field of Circumstances
        self.circumstances = dataclasses.replace(self.circumstances, **more)
        return self

    def violations(self) -> list[Violation]:
        return check(self.history, self.table, self.log, self.circumstances)

    def _exchange(self, at: float, path: str, payload: dict[str, Any]) -> Exchange:
        exchange = Exchange(
            seq=len(self.history) + 1,
            method="POST",
            path=path,
            query="",
            headers={},
            peer=("127.0.0.1", 1),
            arrived=at,
            arrived_at=START + timedelta(seconds=at),
            payload=payload,
            names=names_in(payload),
        )
        self.history.append(exchange)
        return exchange


def rollout() -> Run:
    """Tell of A that is rolled over to B while both run."""
    return Run().pod(0, "p1", A).post(1, A).pod(10, "p2", B).post(11, B).gone(12, "p1")


def ended() -> Run:
    """Tell of A that ran, was recorded and is gone."""
    return Run().pod(0, "p1").post(1).gone(10, "p1").post(15, A, "decommissioned")


def crash(at: float, in_doubt: str = WEB, sent: str = A) -> Crash:
    """Return a kill that left the send of one name in doubt, or none."""
    return Crash(at=at, in_doubt={in_doubt: ("deployed", sent)} if in_doubt else {})


CRONJOB = {"of": f"sync-{int(START.timestamp()) // 60}", "kind": "Job"}
SYNC = "shop/sync/app"

GOOD = {
    "nothing-happens": Run,
    "recorded": lambda: Run().pod(0, "p1").post(1),
    "rolled-out": rollout,
    "rolled-back-for-real": lambda: rollout().pod(20, "p3", A).gone(20, "p2").post(21, A),
    "ended": ended,
    "ended-and-back": lambda: ended().pod(20, "p2").post(21),
    "retried-after-a-refusal": lambda: Run().pod(0, "p1").post(1, answer=429).post(60),
    "retried-after-an-open-outcome": lambda: (
        Run().pod(0, "p1").post(1, answer=None, applied=True).post(2)
    ),
    "retried-after-a-timeout": lambda: Run().pod(0, "p1").post(1, gone_after=30).post(31),
    "told-again-because-an-older-one-may-land-late": lambda: (
        Run().pod(0, "p1").post(1, A, gone_after=1).pod(3, "p2", B).post(4, B).post(124, B)
    ),
    "back-after-an-open-one-that-may-land-late": lambda: (
        Run()
        .pod(0, "p1", A)
        .post(1, A)
        .pod(3, "p2", B)
        .post(4, B, gone_after=1)
        .pod(6, "p3", A)
        .post(7, A)
        .post(127, A)
    ),
    "coalesced": lambda: (
        Run().pod(0, "p1", A).pod(1, "p2", B).pod(2, "p3", C).gone(2, "p1").post(9, C)
    ),
    "delayed-by-an-outage": lambda: (
        Run().pod(0, "p1", A).pod(10, "p2", B).post(600, A).post(601, B)
    ),
    "held-while-pending": lambda: (
        Run().pod(0, "p1").post(1).pod(9, "p2", phase="Pending").gone(9, "p1")
    ),
    "crashed-after-the-answer": lambda: (
        Run().pod(0, "p1").post(1).post(99).given(crashes=(crash(1.2),))
    ),
    # Once, the third was taken for needless when the second start was slow: a window of seconds
    # about the crash decided, and not whether the answer had been written down.
    "crashed-twice-after-an-answer": lambda: (
        Run()
        .pod(0, "p1", A)
        .post(1, A)
        .pod(10, "p2", B)
        .gone(11, "p1")
        .post(20, B)
        .post(80, B)
        .post(81, B)
        .given(crashes=(crash(2), crash(21)))
    ),
    "crashed-between-intent-and-bytes": lambda: (
        Run()
        .pod(0, "p1", A)
        .pod(10, "p2", B)
        .gone(11, "p1")
        .post(20, B)
        .post(140, B)
        .given(crashes=(crash(2),))
    ),
    # Once, a repetition that was refused counted as the one that an open outcome permits.
    "settled-after-an-open-outcome-and-a-refusal": lambda: (
        Run()
        .pod(0, "p1", A)
        .post(1, A)
        .pod(10, "p2", B)
        .gone(11, "p1")
        .post(12, B, answer=503)
        .post(20, B, answer=403)
        .pod(30, "p3", C)
        .gone(31, "p2")
        .post(32, C)
        .post(152, C)
    ),
    # Once, the same of the post that settles: it met a limit, twice.
    "settled-behind-a-limit": lambda: (
        Run()
        .pod(0, "p1", A)
        .post(1, A, answer=503)
        .pod(10, "p2", B)
        .gone(11, "p1")
        .post(12, B)
        .post(132, B, answer=429)
        .post(134, B, answer=429)
        .post(136, B)
    ),
    # Once, A was taken for needless that was to overwrite a B of which nobody heard again.
    "back-to-what-stood-before-a-crash": lambda: (
        Run()
        .pod(0, "p1", A)
        .post(1, A)
        .pod(2, "p2", B)
        .gone(3, "p1")
        .pod(4, "p3", A)
        .gone(5, "p2")
        .post(20, A)
        .post(140, A)
        .given(crashes=(crash(3.5, sent=B),))
    ),
    "posted-anew-after-a-lost-ledger": lambda: Run().pod(0, "p1").post(1).post(9).given(reposts=1),
    "unknown-to-github": lambda: (
        Run().pod(0, "p1").post(1, answer=404).given(recordable=lambda _digest: False)
    ),
    "unrecordable-and-the-old-one-gone": lambda: (
        Run()
        .pod(0, "p1", A)
        .post(1, A)
        .pod(9, "p2", B)
        .post(10, B, answer=404)
        .gone(20, "p1")
        .post(26, A, "decommissioned")
        .given(recordable=lambda digest: digest != B)
    ),
    "a-batch-with-a-refusal": lambda: (
        Run()
        .pod(0, "p1")
        .pod(0, "p2", B, of="db")
        .batch(1, WEB)
        .batch(2, "shop/db/app", digest=B, refused="shop/db/app")
        .given(recordable=lambda digest: digest != B)
    ),
    "a-changed-tag": lambda: Run().pod(0, "p1").post(1).post(9, A, tags={"team": "pay"}),
    "a-retried-decommission-though-a-pod-is-back": lambda: (
        Run()
        .pod(0, "p1")
        .post(1)
        .gone(10, "p1")
        .post(15, A, "decommissioned", answer=None)
        .pod(16, "p2")
        .post(18, A, "decommissioned")
        .post(19)
    ),
    "a-cronjob-between-its-jobs": lambda: (
        Run().pod(0, "p1", **CRONJOB).post(1, deployment_name=SYNC).gone(9, "p1")
    ),
    "renamed": lambda: (
        Run()
        .pod(0, "p1")
        .post(1, cluster="west")
        .post(9)
        .given(former=(Environment("acme", "prod", "", "west"),))
    ),
    "parked": lambda: Run().pod(0, "p1").post(1, answer=422, scripted="x").given(excused={WEB}),
    "honest": lambda: Run().pod(0, "p1").post(1).given(claimed={WEB: ("deployed", A)}),
    "settled": lambda: rollout().given(settled_within=5),
    "known-a-little-late": lambda: Run().post(1).pod(1.5, "p1"),
}

BAD: dict[str, tuple[Callable[[], Run], set[Promise]]] = {
    "never-recorded": (lambda: Run().pod(0, "p1"), {Promise.CONVERGENCE}),
    "an-older-digest-is-the-last-word": (
        lambda: rollout().post(20, A),
        {Promise.ORDER, Promise.CONVERGENCE},
    ),
    "an-older-state-in-between": (lambda: rollout().post(20, A).post(21, B), {Promise.ORDER}),
    "never-decommissioned": (
        lambda: Run().pod(0, "p1").post(1).gone(9, "p1"),
        {Promise.CONVERGENCE},
    ),
    "invented": (lambda: Run().pod(0, "p1").post(1, C).post(2, A), {Promise.TRUTH}),
    "a-new-tag-with-an-old-digest": (
        lambda: Run().pod(0, "p1").post(1, A, version="2").post(2, A),
        {Promise.TRUTH},
    ),
    "told-before-it-was": (lambda: Run().post(1).pod(9, "p1"), {Promise.TRUTH}),
    "risen-again": (
        lambda: ended().post(20),
        {Promise.NO_RESURRECTION, Promise.CONVERGENCE},
    ),
    "decommissioned-while-it-runs": (
        lambda: Run().pod(0, "p1").post(1).post(9, A, "decommissioned").post(19),
        {Promise.NO_PHANTOM, Promise.ORDER},
    ),
    "decommissioned-because-of-a-replaced-pod": (
        lambda: (
            Run()
            .pod(0, "p1")
            .post(1)
            .gone(10, "p1")
            .pod(10.1, "p2")
            .post(15, A, "decommissioned")
            .post(16)
        ),
        # In order it is right, since the name was gone for a moment; but that was long before.
        {Promise.NO_PHANTOM},
    ),
    "decommissioned-while-pending": (
        lambda: (
            Run()
            .pod(0, "p1")
            .post(1)
            .pod(5, "p2", phase="Pending")
            .gone(9, "p1")
            .post(15, A, "decommissioned")
        ),
        {Promise.NO_PHANTOM, Promise.ORDER},
    ),
    "a-cronjob-decommissioned-between-its-jobs": (
        lambda: (
            Run()
            .pod(0, "p1", **CRONJOB)
            .post(1, deployment_name=SYNC)
            .gone(9, "p1")
            .post(15, A, "decommissioned", deployment_name=SYNC)
        ),
        {Promise.NO_PHANTOM},
    ),
    "decommissioned-while-the-acknowledged-one-runs": (
        lambda: (
            Run()
            .pod(0, "p1", A)
            .post(1, A)
            .pod(9, "p2", B)
            .post(10, B, answer=404)
            .post(16, A, "decommissioned")
            .given(recordable=lambda digest: digest != B)
        ),
        {Promise.NO_PHANTOM, Promise.ORDER},
    ),
    "two-in-flight": (
        lambda: Run().pod(0, "p1").post(1, answer=None, took=5).post(2),
        {Promise.ONE_IN_FLIGHT},
    ),
    "two-in-flight-while-one-hangs": (
        lambda: Run().pod(0, "p1").post(1, gone_after=30).post(2),
        {Promise.ONE_IN_FLIGHT},
    ),
    "posted-twice": (lambda: Run().pod(0, "p1").post(1).post(9), {Promise.NO_NEEDLESS_POST}),
    "posted-twice-for-one-open-outcome": (
        lambda: Run().pod(0, "p1").post(1, answer=None).post(2).post(9),
        {Promise.NO_NEEDLESS_POST},
    ),
    "posted-twice-after-a-crash-that-left-nothing-open": (
        lambda: Run().pod(0, "p1").post(1).post(9).given(crashes=(crash(1.2, in_doubt=""),)),
        {Promise.NO_NEEDLESS_POST},
    ),
    "posted-three-times-for-one-crash-that-cut-it": (
        lambda: (
            Run().pod(0, "p1").post(1, gone_after=0.1).post(9).post(10).given(crashes=(crash(1.2),))
        ),
        {Promise.NO_NEEDLESS_POST},
    ),
    "posted-three-times-for-one-crash": (
        lambda: Run().pod(0, "p1").post(1).post(9).post(10).given(crashes=(crash(1.2),)),
        {Promise.NO_NEEDLESS_POST},
    ),
    "settled-twice-after-a-crash": (
        lambda: (
            Run()
            .pod(0, "p1", A)
            .post(1, A)
            .post(20, A)
            .post(140, A)
            .post(141, A)
            .given(crashes=(crash(3.5, sent=B),))
        ),
        {Promise.NO_NEEDLESS_POST},
    ),
    "decommissioned-twice": (
        lambda: ended().post(20, A, "decommissioned"),
        {Promise.NO_NEEDLESS_POST},
    ),
    "reverted-to-what-stands-after-a-refusal": (
        lambda: Run().pod(0, "p1", A).post(1, A).post(3, A, answer=422, tags={"a": "b"}).post(9, A),
        {Promise.NO_NEEDLESS_POST, Promise.CONTRACT},
    ),
    "a-digest-never-sent-is-decommissioned": (
        lambda: Run().pod(0, "p1").post(1).gone(10, "p1").post(15, C, "decommissioned"),
        {Promise.LAST_DIGEST},
    ),
    "an-open-outcome-is-forgotten": (
        lambda: Run().pod(0, "p1").post(1, answer=None, applied=True),
        {Promise.OPEN_END},
    ),
    "believed-though-not-applied": (
        lambda: Run().pod(0, "p1").post(1, applied=False).given(claimed={WEB: ("deployed", A)}),
        {Promise.CONVERGENCE},
    ),
    "claimed-after-a-refusal": (
        lambda: (
            Run()
            .pod(0, "p1")
            .post(1, answer=404)
            .given(claimed={WEB: ("deployed", A)}, recordable=lambda _digest: False)
        ),
        {Promise.HONESTY},
    ),
    "claimed-for-another-digest": (
        lambda: rollout().given(claimed={WEB: ("deployed", C)}),
        {Promise.HONESTY},
    ),
    "sent-to-another-cluster": (
        lambda: Run().pod(0, "p1").post(1).post(2, cluster="west"),
        {Promise.IDENTITY},
    ),
    "too-slow": (
        lambda: (
            Run()
            .pod(0, "p1", A)
            .pod(60, "p2", B)
            .gone(60, "p1")
            .post(61, B)
            .given(settled_within=30)
        ),
        {Promise.PROGRESS},
    ),
}


@pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in GOOD.items()])
def test_a_good_run_breaks_no_promise(run: Callable[[], Run]) -> None:
    told = run()

    assert told.violations() == [], report(told.violations(), told.history)


@pytest.mark.parametrize(
    ("run", "promises"),
    [pytest.param(run, promises, id=name) for name, (run, promises) in BAD.items()],
)
def test_a_bad_run_is_caught(run: Callable[[], Run], promises: set[Promise]) -> None:
    told = run()
    violations = told.violations()

    assert {violation.promise for violation in violations} == promises
    text = report(violations, told.history)
    assert all(violation.promise.value in text for violation in violations)


def test_every_promise_is_broken_by_some_bad_run() -> None:
    assert {promise for _, promises in BAD.values() for promise in promises} == set(Promise)


async def test_a_real_exchange_is_judged_on_the_loops_clock() -> None:
    clock = asyncio.get_running_loop().time
    log = TruthLog()
    body = {
        "name": "app",
        "version": "1",
        "status": "deployed",
        "digest": A,
        "deployment_name": WEB,
        "logical_environment": "prod",
        "cluster": "east",
    }
    headers = {
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
        "Authorization": "Bearer sandbox-token",
    }
    async with SimulatedGitHub() as github, aiohttp.ClientSession(headers=headers) as session:
        log.event(clock(), "ADDED", pod("p1"))
        github.script(drops(applied=True), times=1)
        with pytest.raises(aiohttp.ClientError):
            await session.post(github.url + PATH, json=body)
        async with session.post(github.url + PATH, json=body) as response:
            assert response.status == 200
        circumstances = Circumstances(environment=HERE)

        assert check(github.history, github.table, log, circumstances) == []

        async with session.post(github.url + PATH, json=body) as response:
            assert response.status == 200
        [violation] = check(github.history, github.table, log, circumstances)
        assert violation.promise is Promise.NO_NEEDLESS_POST


def test_a_run_that_is_not_over_is_not_judged_by_its_end() -> None:
    assert Run().pod(0, "p1").given(converged=False).violations() == []


def test_a_request_that_breaks_the_contract_is_caught() -> None:
    told = Run().pod(0, "p1").post(1)
    told.history[0].status = 415

    assert {violation.promise for violation in told.violations()} >= {Promise.CONTRACT}


def test_a_list_tells_the_log_what_is_gone() -> None:
    log = TruthLog()

    log.snapshot(0, [pod("p1"), pod("p2", B, of="db")])
    log.snapshot(5, [pod("p2", B, of="db")])

    assert log.truth().standing == {"shop/db/app": (B, "app", "1")}
    assert [span.start for span in log.spans[WEB]] == [0, 5]


def test_a_new_template_ends_the_old_names() -> None:
    log = TruthLog()
    log.event(0, "ADDED", pod("p1"))

    log.rescope(5, Scope(template="{{namespace}}.{{deploymentName}}"))

    assert list(log.truth().standing) == ["shop.web"]
    assert log.line(WEB)[-1].verdict is None


def test_a_cronjob_is_due_a_day_after_its_last_pod() -> None:
    told = Run().pod(0, "p1", **CRONJOB).post(1, deployment_name=SYNC).gone(9, "p1")

    assert told.log.spared(9) == {SYNC}
    late = told.given(ended=26 * 3600.0).violations()
    assert {violation.promise for violation in late} == {Promise.CONVERGENCE}
