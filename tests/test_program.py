"""
The whole program against a simulated cluster and a simulated GitHub, faults included.

Nothing of it is replaced: a process is started as anybody would start it, and what is looked at is
what it says, what it sends and how it ends.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.support.program import LINE, Program, tracker_run
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.outages import (
    EndStream,
    Fault,
    Match,
    RawAnswer,
    Refuse,
    StreamError,
    Truncate,
)
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

Json = dict[str, Any]

IN_STEP: Final = "in step with the cluster"
TOKEN: Final = "ghp_canary0123456789abcdefghijklmnopqrstuv"  # noqa: S105 - opens the simulated GitHub only
CLUSTER_TOKEN: Final = "cluster-canary-0123456789"  # noqa: S105 - the simulated cluster's
DIGEST: Final = "sha256:" + "a" * 64
OTHER_DIGEST: Final = "sha256:" + "b" * 64
LATER: Final = "2100-01-01T00:00:00Z"


def pod(
    workload: str,
    *,
    digest: str = DIGEST,
    number: int = 0,
    container: str = "app",
    image: str = "ghcr.io/acme/app:1",
    **metadata: Any,  # noqa: ANN401 - raw JSON
) -> Json:
    """Return a running pod of a Deployment in the namespace `shop`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{workload}-abc-{number}",
            "namespace": "shop",
            "labels": {"pod-template-hash": "abc"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": f"{workload}-abc",
                    "uid": f"uid-of-{workload}",
                    "controller": True,
                }
            ],
            **metadata,
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": container, "image": image}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": container, "image": image, "imageID": f"ghcr.io/acme/app@{digest}"}
            ],
        },
    }


def name_of(workload: str) -> str:
    """Return the deployment name of a workload of `pod`."""
    return f"shop/{workload}/app"


@dataclass(kw_only=True)
class World:
    """Both simulators, and where the program runs."""

    cluster: SimulatedCluster
    github: SimulatedGitHub
    folder: Path

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of the program."""
        return {
            "ORG": "acme",
            "BASE_URL": self.github.url,
            "LOGICAL_ENVIRONMENT": "test",
            "CLUSTER": "simulated",
            "API_TOKEN": TOKEN,
            "DECOMMISSION_DELAY": "200ms",
            **more,
        }

    def program(self, *arguments: str, **environ: str) -> Program:
        """Return the program, to be started."""
        kubeconfig = self.cluster.write_kubeconfig(self.folder / "kubeconfig")
        command = tracker_run("-kubeconfig", str(kubeconfig), *arguments)
        return Program(command, environ=self.environ(**environ), folder=self.folder)

    async def told(self, workload: str, digest: str = DIGEST, status: str = "deployed") -> None:
        """Wait until GitHub holds a state of a workload."""
        await self.github.until(
            lambda: self.github.state(name_of(workload)) == (status, digest),
            within=20,
            why=f"{workload} being {status}",
        )


@asynccontextmanager
async def made(folder: Path) -> AsyncIterator[World]:
    """Yield a world of its own."""
    async with (
        SimulatedCluster(token=CLUSTER_TOKEN) as cluster,
        SimulatedGitHub(token=TOKEN) as github,
    ):
        yield World(cluster=cluster, github=github, folder=folder)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


# What GitHub may do to one record, while one program runs for all of the table.


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
        world.program(LOG_LEVEL="debug") as program,
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
        assert TOKEN not in program.said + "".join(program.stdout)
        assert CLUSTER_TOKEN not in program.said + "".join(program.stdout)


@pytest.mark.asyncio(loop_scope="module")
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


@pytest.mark.asyncio(loop_scope="module")
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


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("status", REDIRECTS)
async def test_a_redirect_is_never_followed(shared: Shared, status: int) -> None:
    name = name_of(f"redirect-{status}")
    await shared.program.until(lambda: len(shared.program.about(name)) == 2)
    failed, acknowledged = shared.program.about(name)
    assert str(failed.error).startswith(f"HTTP {status} ")
    assert acknowledged.state == ("deployed", DIGEST)
    assert shared.elsewhere.history == []


@pytest.mark.asyncio(loop_scope="module")
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
    assert line.error == f"HTTP {status} Scripted by the sandbox"
    assert len(world.github.posts(name)) == 1
    # Another image is another matter: it is asked for at once.
    script.stop()
    world.cluster.create(pod(case, number=3, digest=OTHER_DIGEST, creationTimestamp=LATER))
    await world.told(case, OTHER_DIGEST)


@pytest.mark.asyncio(loop_scope="module")
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


@pytest.mark.asyncio(loop_scope="module")
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


def of(name: str) -> Callable[[Exchange], bool]:
    """Return what tells whether a request is about a name."""
    return lambda exchange: name in exchange.names


# How it starts and ends.


async def test_every_mistake_in_the_settings_is_told_before_anything_is_connected_to(
    world: World,
) -> None:
    wrong = {
        "ORG": "no such org",
        "BASE_URL": "ftp://github.example",
        "CLUSTER": "a/b",
        "DN_TEMPLATE": "{{pod}}",
        "API_TOKEN": f"{TOKEN} and more",
        "DECOMMISSION_DELAY": "soon",
        "LOG_LEVEL": "loud",
    }
    async with world.program("-workers", "none", **wrong) as program:
        assert await program.ended() == 2
    assert program.stdout == []
    assert len(program.stderr) == len(wrong) + 1
    for setting in (*wrong, "-workers"):
        assert sum(setting in line for line in program.stderr) == 1
    assert TOKEN not in program.said
    assert world.github.history == []
    assert world.cluster.requests == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param("{", "kubeconfig", id="no-yaml"),
        pytest.param("just words", "kubeconfig", id="no-mapping"),
        pytest.param("clusters: words\nusers: 7\ncontexts: {a: b}\n", "", id="no-lists"),
        pytest.param("apiVersion: v1\nkind: Config\n", "kubeconfig", id="empty"),
        pytest.param(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n"
            "- {name: a, context: {cluster: b, user: c}}\n",
            "kubeconfig",
            id="no-such-cluster",
        ),
    ],
)
async def test_without_credentials_for_the_cluster_it_says_so_and_ends(
    world: World, content: str | None, told: str
) -> None:
    path = world.folder / "broken-kubeconfig"
    if content is not None:
        path.write_text(content)
    command = tracker_run("-kubeconfig", str(path))
    async with Program(command, environ=world.environ(), folder=world.folder) as program:
        assert await program.ended() == 2
    assert program.stdout == []
    last = program.stderr[-1]
    assert last.startswith("deployment-tracker: ")
    assert str(path) in last
    assert told in last
    assert "Traceback" not in program.said
    assert world.github.history == []


async def test_with_github_down_at_the_start_it_stays_up_and_delivers_later(world: World) -> None:
    names = [f"early-{number}" for number in range(3)]
    for each in names:
        world.cluster.create(pod(each))
    await world.github.down()
    async with world.program() as program:
        await program.until(lambda: len(program.lines) == len(names))
        assert {line.error for line in program.lines} == {"connection refused"}
        # What is told next is not the next failure of the same kind, but what is new about it.
        world.github.script(answers(503), match=of(name_of("early-0")), times=2)
        await world.github.up()
        for each in names:
            await world.told(each)
        assert await program.stopped() == 0
    for each in names:
        told = [(line.outcome, line.error) for line in program.about(name_of(each))]
        reasons = ["connection refused"]
        if each == "early-0":
            reasons.append("HTTP 503 Scripted by the sandbox")
        assert told == [*(("FAILED", reason) for reason in reasons), ("OK", None)]
    assert "Traceback" not in program.said


async def test_with_the_cluster_down_at_the_start_it_stays_up_and_delivers_later(
    world: World,
) -> None:
    world.cluster.create(pod("early"))
    program = world.program()
    await world.cluster.pause()
    async with program:
        await program.until_said("pods can't be listed")
        assert world.github.history == []
        await world.cluster.resume()
        await world.told("early")
        assert await program.stopped() == 0
    assert "Traceback" not in program.said


async def test_a_stop_waits_for_the_answer_that_is_under_way(world: World) -> None:
    script = world.github.script(hangs(applied=True), times=1)
    world.cluster.create(pod("late"))
    async with world.program() as program:
        await world.github.until(lambda: bool(script.used))
        program.terminate()
        # The watch is ended first: a pod that comes now is for the next start.
        await world.cluster.until(lambda: world.cluster.watches == 0)
        world.cluster.create(pod("too-late"))
        assert program.running
        world.github.release()
        assert await program.ended() == 0
    assert [line.state for line in program.lines] == [("deployed", DIGEST)]
    assert world.github.posts(name_of("too-late")) == []
    assert "stopped with everything sent" in program.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
async def test_a_second_signal_ends_a_drain_at_once_and_in_order(
    world: World, number: signal.Signals
) -> None:
    script = world.github.script(hangs())
    world.cluster.create(pod("stuck"))
    world.cluster.create(pod("stuck-too"))
    async with world.program(DRAIN_TIMEOUT="1h") as program:
        await world.github.until(lambda: len(script.used) == 2)
        program.send(number)
        await world.cluster.until(lambda: world.cluster.watches == 0)
        assert program.running
        program.send(number)
        assert await program.ended() == 1
    assert program.stdout == []
    assert "stopped at once, as told twice" in program.said
    assert "Traceback" not in program.said
    assert "Task was destroyed" not in program.said


async def test_a_drain_ends_with_its_time_and_says_what_is_left(world: World) -> None:
    script = world.github.script(hangs())
    world.cluster.create(pod("stuck"))
    async with world.program(DRAIN_TIMEOUT="100ms") as program:
        await world.github.until(lambda: len(script.used) == 1)
        assert await program.stopped() == 0
    assert "stopped with names not sent" in program.said
    assert "Traceback" not in program.said


# What pods may hold.

HOSTILE: Final = (
    "\x1b[31mred\n[2024-01-15T10:30:00Z] OK CREATED name=\u202eevil\u2066\u2028\x00\x07\ud800"
)

NO_DIGEST: Final = {
    "config-id": "sha256:" + "c" * 64,
    "docker-config-id": "docker://sha256:" + "c" * 64,
    "bare-hex": "c" * 64,
    "upper-case": "ghcr.io/acme/app@sha256:" + "C" * 64,
    "too-long": "ghcr.io/acme/app@sha256:" + "c" * 65,
    "sha512": "ghcr.io/acme/app@sha512:" + "c" * 128,
    "trailing-junk": "ghcr.io/acme/app@sha256:" + "c" * 64 + "\n",
    "no-repository": "@sha256:" + "c" * 64,
    "hostile-repository": f"{HOSTILE}@sha256:" + "c" * 64,
}


def hostile_pods() -> list[Json]:
    """Return pods that nobody should write, and somebody will."""
    bare = pod("bare")
    del bare["metadata"]["ownerReferences"]
    junk = [pod(f"junk-{case}") for case in NO_DIGEST]
    for body, image_id in zip(junk, NO_DIGEST.values(), strict=True):
        body["status"]["containerStatuses"][0]["imageID"] = image_id
    shapeless = pod("shapeless")
    shapeless["spec"] = {"nodeName": "node-1", "containers": ["app", None, {"name": 7}]}
    shapeless["status"] = {"phase": ["Running"], "containerStatuses": {"name": "app"}}
    timeless = pod("timeless", creationTimestamp="yesterday")
    large = pod("large", annotations={"note": "x" * 2**18, HOSTILE: HOSTILE})
    large["metadata"]["labels"] |= {f"label-{number}": HOSTILE for number in range(2000)}
    return [
        bare,
        *junk,
        shapeless,
        timeless,
        large,
        pod("hostile-image", image=f"ghcr.io/acme/app:{HOSTILE}"),
        pod("hostile-name", container=HOSTILE),
        pod("quoted", container='a"b\\c d=e'),
        pod("long", container="x" * 300),
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_hostile_pods_forge_no_line_and_harm_nobody(world: World, log_format: str) -> None:
    for body in hostile_pods():
        world.cluster.create(body)
    world.cluster.create(pod("refused"))
    world.github.script(answers(422, body={"message": HOSTILE}), match=of(name_of("refused")))
    recorded = ["large", "hostile-image"]
    containers = {"hostile-name": HOSTILE, "quoted": 'a"b\\c d=e'}
    async with world.program(LOG_FORMAT=log_format, LOG_LEVEL="debug") as program:
        for workload in recorded:
            await world.told(workload)
        for workload, container in containers.items():
            name = f"shop/{workload}/{container}"
            await world.github.until(partial(is_recorded, world.github, name))
        # It comes last, so all the others were seen before.
        world.cluster.create(pod("honest"))
        await world.told("honest")
        assert await program.stopped() == 0
    names = [*map(name_of, [*recorded, "honest"])]
    names += [f"shop/{workload}/{container}" for workload, container in containers.items()]
    told = [parsed(text, log_format) for text in program.stdout]
    acknowledged = [each for each in told if each["outcome"] == "OK"]
    assert sorted(each["deployment_name"] for each in acknowledged) == sorted(names)
    (failed,) = [each for each in told if each["outcome"] == "FAILED"]
    assert failed["deployment_name"] == name_of("refused")
    assert failed["error"].startswith("HTTP 422 [31mred [2024-01-15T10:30:00Z] OK CREATED")
    heard = {name for exchange in world.github.history for name in exchange.names}
    assert heard == {*names, name_of("refused")}
    assert all(text.isprintable() for text in [*program.stdout, *program.stderr])
    assert "Traceback" not in program.said
    for secret in (TOKEN, CLUSTER_TOKEN):
        assert secret not in program.said + "".join(program.stdout)
    if log_format == "json":
        diagnostics = [json.loads(text) for text in program.stderr]
        (counts,) = [each for each in diagnostics if each["event"] == "not recorded"]
        assert counts["bare-pod"] == 1
        assert counts["malformed"] == 1
        assert counts["no-manifest-digest"] == len(NO_DIGEST)
        assert counts["deployment-name-too-long"] == 1


def is_recorded(github: SimulatedGitHub, name: str) -> bool:
    """Tell whether GitHub holds anything under a name."""
    return github.state(name) is not None


def parsed(text: str, log_format: str) -> Mapping[str, str]:
    """Return the facts of a line on stdout; a quoted word is a JSON string in either format."""
    if log_format == "json":
        facts: dict[str, str] = json.loads(text)
        return facts
    match = LINE.fullmatch(text)
    assert match is not None, text
    words = {key: value for key, value in match.groupdict().items() if value is not None}
    quoted = {key: json.loads(value) for key, value in words.items() if value[0] == '"'}
    return words | quoted


# What the API server may do.

CUTS: Final[Mapping[str, Callable[[SimulatedCluster], int]]] = {
    "reset": lambda cluster: cluster.cut_watches(),
    "reset-in-mid-line": lambda cluster: cluster.cut_watches(in_mid_line=True),
    "ended": lambda cluster: cluster.end_watches(),
    "gone": lambda cluster: cluster.fail_watches(code=410),
}
"""What may happen to a watch that is open, and Kopf takes in its stride."""

REFUSALS: Final[Mapping[str, Fault]] = {
    "http-401": Refuse(code=401),
    "http-403": Refuse(code=403),
    "http-429": Refuse(code=429, retry_after=1),
    "http-500": Refuse(code=500),
    "truncated": Truncate(),
    "ended-at-once": EndStream(),
}
"""What may be answered to the request for a watch, and Kopf asks again."""

ENDS: Final[Mapping[str, Fault]] = {
    "html": RawAnswer(),
    "http-410": Refuse(code=410),
    "error-500": StreamError(),
    "error-without-code": StreamError(code=None),
}
"""What Kopf ends on, and is started again after."""


@dataclass(kw_only=True)
class Watching:
    """A program whose watch is broken in one way after the other."""

    world: World
    program: Program


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watching(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watching]:
    """Run one program for the tests of the watch."""
    async with made(tmp_path_factory.mktemp("watching")) as world, world.program() as program:
        await program.until_said(IN_STEP)
        yield Watching(world=world, program=program)
        assert await program.stopped() == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CUTS)
async def test_a_watch_that_breaks_is_begun_again(watching: Watching, case: str) -> None:
    world = watching.world
    await world.cluster.until(lambda: world.cluster.watches == 1)
    CUTS[case](world.cluster)
    world.cluster.create(pod(case))
    await world.told(case)
    assert watching.program.running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", REFUSALS)
async def test_a_watch_that_is_refused_is_asked_for_again(watching: Watching, case: str) -> None:
    await refuse_a_watch(watching.world, case, REFUSALS[case])
    assert watching.program.running


async def test_what_ends_the_watch_does_not_end_the_program(tmp_path: Path) -> None:
    # Side by side: Kopf takes its seconds to end.
    async with asyncio.TaskGroup() as group:
        for case, fault in ENDS.items():
            folder = tmp_path / case
            folder.mkdir()
            group.create_task(assert_outlives(folder, case, fault))


async def assert_outlives(folder: Path, case: str, fault: Fault) -> None:
    """Let Kopf end by a fault; the tracker must go on, and know what it knew."""
    async with made(folder) as world:
        world.cluster.create(pod("early"))
        async with world.program() as program:
            await world.told("early")
            await refuse_a_watch(world, case, fault)
            await program.until_said("the watch is started again")
            assert await program.stopped() == 0
        # What it had said outlived the watch: nothing is told again.
        assert [line.deployment_name for line in program.lines] == [name_of("early"), name_of(case)]


async def refuse_a_watch(world: World, case: str, fault: Fault) -> None:
    """Let a fault hit the next request for a watch; a pod that comes then is told all the same."""
    await world.cluster.until(lambda: world.cluster.watches == 1)
    injection = world.cluster.inject(fault, match=Match(verb="watch"), times=1)
    world.cluster.end_watches()
    await world.cluster.until(lambda: injection.hits == 1)
    world.cluster.create(pod(case))
    await world.told(case)
