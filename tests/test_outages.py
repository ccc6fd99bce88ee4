"""
The whole program while the API server is away, answers nonsense, or lies.

Every outage has a process, a simulated cluster and a simulated GitHub of its own. While it lasts a
workload is deleted, one is created and one gets another image; the watch can tell of none of it.
Afterwards the process still runs, GitHub holds what the cluster does, the history is clean of
decommissions of what was there, and the API server was asked for nothing but to get, list and
watch, and not often while it was bad.

The outages run side by side, since they mostly wait: a fixture runs those that are selected, and
each test tells of one.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.support.checker import Circumstances, Environment, check, report
from tests.support.program import ROOT, Program
from tests.support.truthlog import TruthLog
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.outages import (
    Drip,
    EndStream,
    Fault,
    Hang,
    Match,
    RawAnswer,
    Refuse,
    StreamError,
    Truncate,
)
from tracker.sandbox.truth import compare

# The programs share few cores; what runs long is told by its own waits.
pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

Json = dict[str, Any]
Outage = Callable[["Scene"], Awaitable[None]]

AT_ONCE: Final = 16
WITHIN: Final = 60.0
"""Seconds until a wait counts as failed, on a machine that runs several programs at once."""
PER_SECOND: Final = 2
BURST: Final = 8
"""Requests of one new beginning: discovery, Kopf's list and watch, our own list, a second try."""
OLD: Final = "cluster-token-0"
NEW: Final = "cluster-token-1"
LATER: Final = "2100-01-01T00:00:00Z"
IN_STEP: Final = "in step with the cluster"
WATCH: Final = Match(verb="watch", resource="pods")
LIST: Final = Match(verb="list", resource="pods")

SHORTENED: Final = """\
import sys
import tracker.cluster, tracker.reconcile, tracker.watch
for setting in sys.argv.pop(1).split(","):
    if setting:
        name, _, value = setting.partition("=")
        module, _, constant = name.partition(".")
        module = getattr(tracker, module)
        kind = type(getattr(module, constant))
        setattr(module, constant, kind(value))
from tracker.__main__ import main
main()
"""
"""The program with some of its bounds lowered: who waits 75 s for silence can't be waited for."""


def digest(letter: str) -> str:
    """Return the digest that repeats one hex digit."""
    return "sha256:" + letter * 64


def pod(workload: str, *, letter: str = "a", number: int = 0, **metadata: object) -> Json:
    """Return a running pod of a Deployment in the namespace `shop`."""
    image = "ghcr.io/acme/app:1"
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{workload}-abc"}
    status = {"name": "app", "image": image, "imageID": f"ghcr.io/acme/app@{digest(letter)}"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{workload}-abc-{number}",
            "namespace": "shop",
            "labels": {"pod-template-hash": "abc"},
            "ownerReferences": [{**owner, "uid": f"uid-of-{workload}", "controller": True}],
            **metadata,
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": image}]},
        "status": {"phase": "Running", "containerStatuses": [status]},
    }


@dataclass(kw_only=True)
class Scene:
    """One program with its cluster and its GitHub; the cluster is changed through it."""

    folder: Path
    cluster: SimulatedCluster
    github: SimulatedGitHub
    program: Program
    interloper: "Interloper"
    log: TruthLog = field(default_factory=TruthLog)
    bad_since: tuple[float, int] | None = None

    def create(self, body: Json) -> None:
        """Create a pod."""
        self.cluster.create(body)
        self.note()

    def delete(self, workload: str, number: int = 0) -> None:
        """Delete a pod at once, as when its kubelet is done with it."""
        self.cluster.delete("pods", "shop", f"{workload}-abc-{number}", grace_seconds=0)
        self.note()

    def replace_image(self, workload: str, letter: str) -> None:
        """Let a pod run another image, in place."""
        body = pod(workload, letter=letter)
        self.cluster.patch("pods", "shop", f"{workload}-abc-0", {"status": body["status"]})
        self.note()

    def change(self) -> None:
        """Do what the watch will not tell of: delete, create, and run another image."""
        self.delete("gone")
        self.create(pod("new"))
        self.replace_image("rolled", "b")

    def note(self) -> None:
        """Write down what is true of the cluster now."""
        self.log.snapshot(asyncio.get_running_loop().time(), self.cluster.objects("pods"))

    def begin(
        self, fault: Fault | None = None, *, match: Match | None = None, times: int = 0
    ) -> None:
        """Begin to be bad: from here on requests are counted. The open watch is cut."""
        if fault is not None:
            self.cluster.inject(fault, match=match or Match(), times=times or None)
        self.bad_since = (asyncio.get_running_loop().time(), len(self.cluster.requests))
        self.cluster.cut_watches()

    async def hit(self, times: int, match: Match | None = None) -> None:
        """Wait until so many requests came since it is bad."""
        assert self.bad_since is not None
        _, before = self.bad_since
        wanted = match or Match()

        def hits() -> int:
            return sum(map(wanted.covers, self.cluster.requests[before:]))

        await self.cluster.until(lambda: hits() >= times, within=WITHIN)

    async def heal(self) -> None:
        """End what is bad; while it was, the API server must not have been asked often."""
        assert self.bad_since is not None
        since, before = self.bad_since
        seconds = asyncio.get_running_loop().time() - since
        asked = self.cluster.requests[before:]
        told = [(round(each.at - since, 2), each.verb, each.path, each.status) for each in asked]
        assert len(asked) <= PER_SECOND * seconds + BURST, (seconds, told)
        self.cluster.heal()
        await self.cluster.resume()

    def agrees(self) -> bool:
        """Tell whether GitHub holds what the cluster does."""
        lines = compare(self.log.truth(), self.github.table)
        return all(line.agrees for line in lines)

    async def settled(self) -> None:
        """Wait until GitHub holds what the cluster does."""
        await self.github.until(self.agrees, within=WITHIN, why="GitHub being what the cluster is")

    def judge(self) -> None:
        """Hold the whole run to what was promised."""
        ended = asyncio.get_running_loop().time()
        environment = Environment(org="acme", logical="test", cluster="simulated")
        circumstances = Circumstances(environment=environment, ended=ended)
        rows = self.github.table
        violations = check(self.github.history, rows, self.log, circumstances)
        assert not violations, report(violations, self.github.history)
        verbs = {request.verb for request in self.cluster.requests}
        assert verbs <= {"get", "list", "watch"}
        assert {request.method for request in self.cluster.requests} == {"GET"}
        assert OLD not in self.program.said
        assert NEW not in self.program.said
        # Kopf tells at length what it ends with; of what is ours nothing may have failed.
        assert str(ROOT / "tracker") not in self.program.said


class Interloper:
    """
    What stands between the program and the API server: passes everything on, or answers itself.

    With `answer` set every request gets these bytes and the end of its connection.
    """

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.answer = b""
        self.answered = 0
        self._cluster = cluster
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield
        finally:
            self._server.close()
            self.cut()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

    def cut(self) -> None:
        """End every connection."""
        for task in self._connections:
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)

        def end(task: "asyncio.Task[None]") -> None:
            # Here and not in the task, which may be cancelled before its first step.
            self._connections.discard(task)
            writer.close()

        task.add_done_callback(end)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self.answer:
                await self._pass_on(reader, writer)
                return
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                self.answered += 1
                writer.write(self.answer)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._cluster.url.removeprefix("http://").split(":")
        onward, back = await asyncio.open_connection(host, int(port))
        ways = [
            asyncio.create_task(_pump(reader, back)),
            asyncio.create_task(_pump(onward, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            back.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while content := await source.read(2**16):
        sink.write(content)
        await sink.drain()


# The outages. Each begins when everything is in step and ends with GitHub to be looked at.


def away(attempts: int, restarts: int = 0) -> Outage:
    """Return an outage in which nobody listens, for so many retries and new starts of Kopf."""

    async def outage(scene: Scene) -> None:
        scene.begin()
        await scene.cluster.pause()
        scene.change()
        await scene.program.until_said("Request attempt", times=attempts, within=WITHIN)
        await scene.program.until_said("started again", times=restarts, within=WITHIN)
        await scene.heal()

    return outage


def answering(
    fault: Fault, *, match: Match | None = None, times: int = 0, hits: int = 3, compact: bool = True
) -> Outage:
    """Return an outage that answers so, for a number of times or until `hits` were answered."""

    async def outage(scene: Scene) -> None:
        scene.begin(fault, match=match, times=times)
        scene.change()
        if compact:
            # Whoever resumes is told to list, so nothing is told of what went.
            scene.cluster.compact()
        await scene.hit(times or hits, match)
        await scene.heal()

    return outage


async def compacted(scene: Scene) -> None:
    """Forget the history while the watch is cut."""
    scene.begin()
    scene.change()
    scene.cluster.compact()
    await scene.hit(1, LIST)
    await scene.heal()


async def cut_in_mid_line(scene: Scene) -> None:
    """End the watch in the middle of a line."""
    scene.bad_since = (asyncio.get_running_loop().time(), len(scene.cluster.requests))
    scene.cluster.cut_watches(in_mid_line=True)
    scene.change()
    scene.cluster.compact()
    await scene.hit(1, LIST)
    await scene.heal()


async def garbled(scene: Scene) -> None:
    """Answer with what claims to be gzip and is not."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    garbage = b"\x1f\x8b\x08\x00 this is no deflated block"
    scene.interloper.answer = head + b"Content-Length: %d\r\n\r\n" % len(garbage) + garbage
    scene.interloper.cut()
    scene.begin()
    scene.change()
    scene.cluster.compact()
    asked = scene.program
    await asked.until(lambda: scene.interloper.answered >= 3, within=WITHIN)
    scene.interloper.answer = b""
    await scene.heal()


async def rotated(scene: Scene) -> None:
    """Take another token from now on, which is in its file already."""
    (scene.folder / "token").write_text(f"{NEW}\n")
    scene.cluster.token = NEW
    scene.begin()
    scene.change()
    scene.cluster.compact()
    await scene.cluster.until(lambda: scene.cluster.watches == 1, within=WITHIN)
    await scene.heal()


async def emptied(scene: Scene) -> None:
    """Take another token from now on, while its file is being written."""
    (scene.folder / "token").write_text("")
    scene.cluster.token = NEW
    scene.begin()
    scene.change()
    scene.cluster.compact()
    await scene.program.until_said("the token for the API server is empty", within=WITHIN)
    (scene.folder / "token").write_text(NEW)
    await scene.heal()


async def frozen(scene: Scene) -> None:
    """Keep the watch open and say nothing on it any more, then on two new ones."""
    scene.cluster.freeze_watches()
    scene.cluster.inject(Hang(after_headers=True), match=WATCH, times=1)
    scene.cluster.inject(Hang(), match=WATCH, times=1)
    scene.bad_since = (asyncio.get_running_loop().time(), len(scene.cluster.requests))
    scene.change()
    await scene.hit(3, WATCH)
    await scene.settled()  # without being healed
    await scene.heal()


async def told_to_wait(scene: Scene) -> None:
    """Tell the one who watches to come back tomorrow."""
    scene.begin(Refuse(code=429, retry_after=86400), match=WATCH, times=1)
    scene.change()
    await scene.hit(1, WATCH)
    await scene.settled()  # without being healed
    await scene.heal()
    await scene.cluster.until(lambda: scene.cluster.watches == 1, within=WITHIN)


async def without_pods(scene: Scene) -> None:
    """Answer discovery as an API server that has no pods."""
    empty = {"kind": "APIResourceList", "groupVersion": "v1", "resources": []}
    answer = RawAnswer(content_type="application/json", body=json.dumps(empty).encode())
    scene.cluster.inject(StreamError(code=500), match=WATCH, times=1)
    scene.begin(answer, match=Match(path="/api/v1"), times=1)
    scene.change()
    await scene.program.until_said("nothing was heard from it for too long", within=WITHIN)
    await scene.heal()
    await scene.cluster.until(lambda: scene.cluster.watches == 1, within=WITHIN)


async def nothing_listed(scene: Scene) -> None:
    """List no pods, by mistake, until the first such list was doubted."""
    empty = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}}
    answer = RawAnswer(content_type="application/json", body=json.dumps(empty).encode())
    scene.begin(answer, match=LIST)
    scene.change()
    scene.cluster.compact()
    await scene.program.until_said("absent from a list of pods", within=WITHIN)
    await scene.heal()
    await scene.program.until_said("gone=1 ", within=WITHIN)


async def all_gone(scene: Scene) -> None:
    """Delete nearly everything in a gap: a second list agrees, so it is believed."""
    scene.begin(Refuse(code=410), match=WATCH, times=1)
    for number in range(25):
        scene.delete(f"many-{number}")
    scene.change()
    scene.cluster.compact()
    await scene.program.until_said("absent from a list of pods", within=WITHIN)
    await scene.heal()


async def said_to_be_deleted(scene: Scene) -> None:
    """Tell that a pod was deleted that is there, as a watch with a selector may."""
    body = scene.cluster.get("pods", "shop", "kept-abc-0")
    line = json.dumps({"type": "DELETED", "object": body}).encode() + b"\n"
    answer = RawAnswer(content_type="application/json", body=line)
    scene.begin(answer, match=WATCH, times=1)
    await scene.hit(2, WATCH)
    scene.change()
    await scene.heal()
    await scene.program.until_said("fetched=1", within=WITHIN)


async def from_another(scene: Scene) -> None:
    """Let another operator's marks be on pods, those on their way out included."""
    marks: Mapping[str, Any] = {
        "finalizers": ["kopf.zalando.org/KopfFinalizerMarker"],
        "annotations": {"kopf.zalando.org/last-handled-configuration": '{"spec":{}}\n'},
    }
    scene.begin()
    for workload in ("marked", "leaving"):
        scene.create(pod(workload, **marks))
    await scene.settled()
    scene.cluster.delete("pods", "shop", "leaving-abc-0", grace_seconds=0)
    scene.note()
    scene.replace_image("marked", "c")
    scene.create(pod("after"))
    await scene.settled()
    assert scene.cluster.get("pods", "shop", "leaving-abc-0") is not None
    scene.cluster.patch("pods", "shop", "leaving-abc-0", {"metadata": {"finalizers": None}})
    scene.note()
    scene.change()
    await scene.heal()


def a_line(kind: str) -> RawAnswer:
    """Return an answer to a watch: one event of an odd type."""
    line = json.dumps({"type": kind, "object": {"kind": "Pod", "metadata": {}}}).encode() + b"\n"
    return RawAnswer(content_type="application/json", body=line)


GONE: Final = StreamError(code=410, message="too old resource version")
QUICK_RETRIES: Final = (
    "watch.MIN_RETRY_SECONDS=0.05,watch.MAX_RETRY_SECONDS=0.1,watch.AGAIN_SECONDS=0.1,"
    "cluster.APART_SECONDS=0.05,cluster.MAX_APART_SECONDS=0.1"
)
SHORT_PAGES: Final = "cluster.PAGE=2,watch.CHUNK=2"

OUTAGES: Final[Mapping[str, Outage]] = {
    "refused": away(2),
    # As often as in a minute, and in ten: by then Kopf is missed, too, and started again.
    "refused-for-a-minute": away(9),
    "refused-for-ten-minutes": away(60, restarts=4),
    "unavailable": answering(Refuse(code=503), hits=5),
    "forbidden": answering(Refuse(code=403), hits=5),
    "gone-in-stream": answering(GONE, match=WATCH, times=1, compact=False),
    "gone-in-stream-again-and-again": answering(GONE, match=WATCH, hits=4),
    "gone-by-status": answering(Refuse(code=410), match=WATCH, times=1, compact=False),
    "compacted": compacted,
    "error-in-stream": answering(StreamError(code=500), match=WATCH, times=2),
    "error-without-code": answering(StreamError(code=None), match=WATCH, times=2),
    "unknown-type": answering(a_line("CONFUSED"), match=WATCH, times=1),
    "no-type": answering(
        RawAnswer(content_type="application/json", body=b"[1]\n"), match=WATCH, times=1
    ),
    "html-for-watch": answering(RawAnswer(), match=WATCH, hits=3),
    "html-for-list": answering(RawAnswer(), match=LIST, times=3),
    "html-for-everything": answering(RawAnswer(), hits=6),
    "truncated-line": cut_in_mid_line,
    "truncated-watch": answering(Truncate(), match=WATCH, times=2),
    "truncated-list": answering(Truncate(), match=LIST, times=3),
    "garbled-gzip": garbled,
    "stray-401": answering(Refuse(code=401), times=1),
    "stray-401-for-list": answering(Refuse(code=401), match=LIST, times=2),
    "token-rotated": rotated,
    "token-file-empty": emptied,
    "watch-ends-at-once": answering(EndStream(), match=WATCH, hits=11, compact=False),
    "half-open": frozen,
    "slow-list": answering(Drip(size=1, every_seconds=0.5), match=LIST, times=3),
    "told-to-wait": told_to_wait,
    "discovery-without-pods": without_pods,
    "continue-expired": answering(
        Refuse(code=410), match=Match(verb="list", resource="pods", paged=True), times=3
    ),
    "nothing-listed": nothing_listed,
    "all-gone": all_gone,
    "said-to-be-deleted": said_to_be_deleted,
    "from_another-finalizer": from_another,
}

BOUNDS: Final = {
    "refused-for-a-minute": QUICK_RETRIES,
    "refused-for-ten-minutes": (
        f"{QUICK_RETRIES},watch.WATCHLESS_SECONDS=3,watch.LISTLESS_SECONDS=1"
    ),
    "half-open": "watch.SILENCE_SECONDS=1",
    "slow-list": "watch.REQUEST_SECONDS=2,cluster.LIST_SECONDS=2",
    "told-to-wait": "watch.WATCHLESS_SECONDS=3",
    "discovery-without-pods": "watch.LISTLESS_SECONDS=2",
    "continue-expired": SHORT_PAGES,
    "nothing-listed": "reconcile.SECOND_LIST_SECONDS=2",
    "all-gone": "reconcile.SECOND_LIST_SECONDS=2",
}
"""What is lowered for an outage."""

CROWDS: Final = {"nothing-listed": 25, "all-gone": 25}
"""How many more names there are."""


@asynccontextmanager
async def set_up(name: str, folder: Path) -> AsyncIterator[Scene]:
    """Yield a scene in which everything is in step."""
    async with SimulatedCluster(token=OLD) as cluster, SimulatedGitHub() as github:
        interloper = Interloper(cluster)
        async with interloper.listening():
            (folder / "token").write_text(OLD)
            content = cluster.kubeconfig().replace(
                f"token: {OLD}", f"tokenFile: {folder / 'token'}"
            )
            kubeconfig = folder / "kubeconfig"
            kubeconfig.write_text(content.replace(cluster.url, interloper.url))
            bounds = f"reconcile.CALM_SECONDS=1,{BOUNDS.get(name, '')}"
            command = [sys.executable, "-c", SHORTENED, bounds]
            program = Program(
                [*command, "-kubeconfig", str(kubeconfig)],
                environ={
                    "ORG": "acme",
                    "BASE_URL": github.url,
                    "LOGICAL_ENVIRONMENT": "test",
                    "CLUSTER": "simulated",
                    "API_TOKEN": github.token,
                    "DECOMMISSION_DELAY": "200ms",
                    "RECONCILE_INTERVAL": "10s",
                },
                folder=folder,
            )
            scene = Scene(
                folder=folder,
                cluster=cluster,
                github=github,
                program=program,
                interloper=interloper,
            )
            for workload in ("kept", "gone", "rolled"):
                scene.create(pod(workload))
            for number in range(CROWDS.get(name, 0)):
                scene.create(pod(f"many-{number}"))
            async with program:
                await program.until_said(IN_STEP, within=WITHIN)
                await scene.settled()
                yield scene


async def play(name: str, folder: Path) -> None:
    """Run one outage from its beginning to its end, and look at what came of it."""
    async with set_up(name, folder) as scene:
        await OUTAGES[name](scene)
        await scene.settled()
        assert scene.github.state("shop/kept/app") == ("deployed", digest("a"))
        assert scene.github.state("shop/gone/app") == ("decommissioned", digest("a"))
        assert scene.github.state("shop/new/app") == ("deployed", digest("a"))
        assert scene.github.state("shop/rolled/app") == ("deployed", digest("b"))
        # The watch is back: what happens now is told at once.
        scene.delete("kept")
        scene.create(pod("afterwards"))
        await scene.settled()
        assert scene.program.running
        assert await scene.program.stopped(within=WITHIN) == 0
        scene.judge()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, BaseException | None]:
    """Run the outages that are selected, side by side; return what each ended with."""
    selected = [
        item.callspec.params["outage"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == request.path
        and hasattr(item, "callspec")
    ]
    free = asyncio.Semaphore(AT_ONCE)

    async def run(name: object) -> None:
        async with free:
            await play(str(name), tmp_path_factory.mktemp(str(name)))

    ended = await asyncio.gather(*map(run, selected), return_exceptions=True)
    return dict(zip(map(str, selected), ended, strict=True))


@pytest.mark.fault("K1", "K2", "K3", "K4", "K5", "K7", "K12", "K14")
@pytest.mark.parametrize("outage", OUTAGES)
async def test_after_an_outage_github_holds_what_the_cluster_runs(
    outcomes: Mapping[str, BaseException | None], outage: str
) -> None:
    if (error := outcomes[outage]) is not None:
        raise error
