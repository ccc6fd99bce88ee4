"""
The whole program against everything that GitHub, and the way there, may do to a record.

One process runs for all of the table; each row has a deployment name of its own.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

import pytest
import pytest_asyncio

from tests.support.program import Program
from tests.support.simulated import (
    DIGEST,
    IN_STEP,
    LATER,
    OTHER_DIGEST,
    World,
    assert_secret,
    made,
    name_of,
    of,
    pod,
)
from tracker.sandbox.exchanges import Outcome
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import (
    RELEASED,
    Apply,
    Behaviour,
    answers,
    drips,
    drops,
    garbles,
    hangs,
    speaks,
    truncates,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSING: Final[Mapping[str, tuple[Behaviour, str]]] = {
    "server-error": (answers(500), "HTTP 500 Scripted by the sandbox"),
    "bad-gateway": (answers(502, body=b"<html>no</html>"), "HTTP 502 Bad Gateway"),
    "gateway-timeout": (answers(504), "HTTP 504 Scripted by the sandbox"),
    "request-timeout": (answers(408), "HTTP 408 Scripted by the sandbox"),
    "unheard-of-status": (answers(799), "HTTP 799 Scripted by the sandbox"),
    "reset-before": (drops(applied=False), "connection closed without an answer"),
    "reset-after": (drops(applied=True), "connection closed without an answer"),
    "no-http": (speaks(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "malformed answer"),
    "long-header": (
        speaks(b"HTTP/1.1 200 OK\r\nx-long: " + b"a" * 200_000 + b"\r\n\r\n"),
        "malformed answer",
    ),
    "accepted": (answers(202), "HTTP 202 Accepted"),
    "no-content": (answers(204), "HTTP 204 No Content"),
    "another-record": (
        answers(200, body={"total_count": 0, "deployment_records": []}),
        "HTTP 200 without the record",
    ),
}
"""What GitHub or the way there does once, and the reason that is told; then all is well again."""

ELSEWHERE_PATH: Final = "/orgs/acme/artifacts/metadata/deployment-record"
FORBIDDEN: Final = 403
REDIRECTS: Final = (301, 302, 307, 308)


@dataclass(kw_only=True)
class Shared:
    """A program that runs for several tests, each with names of its own."""

    world: World
    program: Program
    elsewhere: SimulatedGitHub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    """Run one program for the tests of answers, and a server that no request may ever reach."""
    async with (
        made(tmp_path_factory.mktemp("shared")) as world,
        SimulatedGitHub() as elsewhere,
        world.program(
            LOG_LEVEL="debug", BULK_CLUSTER_SYNC="false", GITHUB_RATE="1000", GITHUB_BURST="1000"
        ) as program,
    ):
        await program.until_said(IN_STEP)
        # What is tried again is tried after a while; these wait for that side by side.
        for case, (behaviour, _) in PASSING.items():
            world.github.script(behaviour, match=of(name_of(case)), times=1)
            world.cluster.create(pod(case))
        for status in REDIRECTS:
            case = f"redirect-{status}"
            redirect = answers(status, headers={"Location": elsewhere.url + ELSEWHERE_PATH})
            world.github.script(redirect, match=of(name_of(case)), times=1)
            world.cluster.create(pod(case))
        yield Shared(world=world, program=program, elsewhere=elsewhere)
        assert await program.stopped() == 0
        assert "Traceback" not in program.said
        assert_secret(program)
        # One line for each acknowledged record, and nothing counts that GitHub did not say.
        told = Counter(
            (line.deployment_name, line.digest) for line in program.lines if line.outcome == "OK"
        )
        assert told == Counter(
            (posted.deployment_name, posted.digest)
            for exchange in world.github.posts()
            for posted in exchange.deployments
            if exchange.outcomes()[posted.deployment_name] is Outcome.ACKNOWLEDGED
        )


@pytest.mark.fault("G2")
@pytest.mark.parametrize(
    ("case", "reason"), [pytest.param(case, row[1], id=case) for case, row in PASSING.items()]
)
async def test_what_passes_is_told_once_and_then_made_good(
    shared: Shared, case: str, reason: str
) -> None:
    world, name = shared.world, name_of(case)
    await shared.program.until(lambda: len(shared.program.about(name)) == 2)
    failed, acknowledged = shared.program.about(name)
    assert (failed.outcome, failed.action, failed.error) == ("FAILED", "CREATED", reason)
    assert acknowledged.state == ("deployed", DIGEST)
    assert world.github.state(name) == ("deployed", DIGEST)
    first, second = world.github.posts(name)
    assert first.payload == second.payload


@pytest.mark.fault("G6")
@pytest.mark.parametrize(
    ("case", "behaviour"),
    [
        pytest.param("truncated", truncates(), id="truncated"),
        pytest.param("no-json", garbles(), id="no-json"),
        pytest.param("no-body", garbles(b""), id="no-body"),
        pytest.param("deep-json", garbles(b"[" * 60_000), id="deep-json"),
        pytest.param("endless", garbles(b" " * 3_000_000), id="three-megabytes"),
        pytest.param("slow", drips(0.001), id="byte-by-byte"),
        pytest.param("created", answers(201, body=b"", apply=Apply.BEFORE), id="created"),
    ],
)
async def test_a_success_acknowledges_one_record_even_when_its_body_is_of_no_use(
    shared: Shared, case: str, behaviour: Behaviour
) -> None:
    world, name = shared.world, name_of(case)
    world.github.script(behaviour, match=of(name), times=1)
    world.cluster.create(pod(case))
    await shared.program.until(lambda: len(shared.program.about(name)) == 1)
    assert [line.state for line in shared.program.about(name)] == [("deployed", DIGEST)]
    assert len(world.github.posts(name)) == 1


@pytest.mark.fault("G9")
@pytest.mark.parametrize("status", REDIRECTS)
async def test_a_redirect_is_never_followed(shared: Shared, status: int) -> None:
    name = name_of(f"redirect-{status}")
    await shared.program.until(lambda: len(shared.program.about(name)) == 2)
    failed, acknowledged = shared.program.about(name)
    assert str(failed.error).startswith(f"HTTP {status} ")
    assert acknowledged.state == ("deployed", DIGEST)
    assert shared.elsewhere.history == []


@pytest.mark.fault("G4")
@pytest.mark.parametrize("status", [403, 404, 422, 400])
async def test_a_refusal_is_told_once_and_holds_up_nobody_else(shared: Shared, status: int) -> None:
    world, case = shared.world, f"refused-{status}"
    name = name_of(case)
    script = world.github.script(answers(status), match=of(name))
    world.cluster.create(pod(case))
    await shared.program.until(lambda: len(shared.program.about(name)) == 1)
    for replica in (1, 2):
        world.cluster.create(pod(case, number=replica))
    world.cluster.create(pod(f"{case}-other"))
    await world.told(f"{case}-other")
    (line,) = shared.program.about(name)
    assert (line.error or "").startswith(f"HTTP {status} Scripted by the sandbox")
    # A success ends a spell of refusals: what was parked in it is asked for once more.
    assert len(world.github.posts(name)) <= 1 + (status == FORBIDDEN)
    # Another image is another matter: it is asked for at once.
    script.stop()
    world.cluster.create(pod(case, number=3, digest=OTHER_DIGEST, creationTimestamp=LATER))
    await world.told(case, OTHER_DIGEST)


@pytest.mark.fault("G8")
async def test_a_record_that_hangs_holds_up_nobody_else_and_is_sent_once(shared: Shared) -> None:
    world, name = shared.world, name_of("hanging")
    script = world.github.script(hangs(applied=True), match=of(name), times=1)
    world.cluster.create(pod("hanging"))
    await world.github.until(lambda: bool(script.used))
    others = [f"beside-{number}" for number in range(5)]
    for other in others:
        world.cluster.create(pod(other))
    # A newer state waits for the answer: two requests for one name are never under way.
    world.cluster.create(pod("hanging", number=1, digest=OTHER_DIGEST, creationTimestamp=LATER))
    for other in others:
        await world.told(other)
    assert shared.program.about(name) == []
    assert len(world.github.posts(name)) == 1
    script.release()
    await shared.program.until(lambda: len(shared.program.about(name)) == 2)
    states = [line.state for line in shared.program.about(name)]
    assert states == [("deployed", DIGEST), ("deployed", OTHER_DIGEST)]
    assert len(world.github.posts(name)) == 2


async def test_a_limit_stops_everyone_for_as_long_as_it_says(shared: Shared) -> None:
    world, names = shared.world, {name_of(f"limited-{number}") for number in range(6)}
    limit = Behaviour(
        title="limits when released",
        apply=Apply.NEVER,
        answer_wait=RELEASED,
        status=429,
        headers={"Retry-After": "1"},
    )
    ours = names.issuperset
    script = world.github.script(limit, match=lambda exchange: ours(exchange.names), times=2)
    for number in range(6):
        world.cluster.create(pod(f"limited-{number}"))
    # Both workers are under way when they are told, so whatever arrives later was sent later.
    await world.github.until(lambda: len(script.used) == 2)
    script.release()
    for number in range(6):
        await world.told(f"limited-{number}")
    told_at = min(float(each.answered or 0) for each in script.used)
    later = [each for each in world.github.posts() if ours(each.names) and each.status != 429]
    assert len(later) == 6
    assert min(each.arrived for each in later) - told_at > 0.95
    failed = [line for name in names for line in shared.program.about(name) if line.error]
    assert [line.error for line in failed] == ["HTTP 429 Scripted by the sandbox"] * 2


async def test_what_comes_and_goes_is_told_in_the_documented_lines(shared: Shared) -> None:
    world, name = shared.world, name_of("visitor")
    world.cluster.create(pod("visitor"))
    await shared.program.until(lambda: len(shared.program.about(name)) == 1)
    world.cluster.delete("pods", "shop", "visitor-abc-0", grace_seconds=0)
    await shared.program.until(lambda: len(shared.program.about(name)) == 2)
    texts = [text for text in shared.program.stdout if name in text]
    facts = f"name=ghcr.io/acme/app deployment_name={name} digest={DIGEST}"
    assert [text.partition("] ")[2] for text in texts] == [
        f"OK CREATED {facts} status=deployed",
        f"OK DELETED {facts} status=decommissioned",
    ]
