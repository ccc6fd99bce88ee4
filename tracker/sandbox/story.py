"""
The demo: the whole job on this machine, told step by step.

A simulated API server and a simulated GitHub listen on loopback sockets, workloads come and go on
the one, and the *unmodified* tracker runs beside them as a process of its own, with a kubeconfig
and a token as it would have anywhere. What should agree in the end is worked out from the API
server's own objects (`tracker.sandbox.truth`), never by the tracker's code.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import NotReachedError, SimulatedGitHub
from tracker.sandbox.script import answers
from tracker.sandbox.stage import Played, Stage
from tracker.sandbox.truth import Comparison, compare, should_stand

__all__ = ["tell"]

ORG = "acme"
ENVIRONMENT = "production"
CLUSTER = "demo"
PATIENCE_SECONDS = 30.0
"""How long one step may take before the demo has failed; on an idle machine it is a second."""
DECOMMISSION_DELAY = "1s"
WORKLOADS = (
    ("Deployment", "shop", "web", ("web", "proxy")),
    ("Deployment", "shop", "cart", ("cart",)),
    ("Deployment", "shop", "payments", ("payments",)),
    ("Deployment", "shop", "search", ("search",)),
    ("StatefulSet", "data", "orders-db", ("db",)),
    ("DaemonSet", "infra", "log-agent", ("agent",)),
    ("ReplicaSet", "infra", "cache", ("cache",)),
    ("CronJob", "shop", "report", ("report",)),
)
_SUCCESSES = frozenset({200, 201})
MAX_ROWS = 40
"""Lines of the last table; of a larger cluster those that differ come first."""
_SHOWN_DIGEST = slice(len("sha256:"), len("sha256:") + 12)


class StoryError(Exception):
    """A step did not come true; the text says what was waited for and what there was."""


@dataclass(slots=True, kw_only=True)
class _Stand:
    """What every step works with."""

    console: Console
    cluster: SimulatedCluster
    github: SimulatedGitHub
    stage: Stage
    tracker: "_Program"
    workloads: dict[str, Played]

    def comparisons(self) -> list[Comparison]:
        truth = should_stand(self.cluster.objects("pods"))
        return compare(truth, self.github.table)

    async def agreed(self, what: str) -> None:
        """Wait until GitHub holds what the cluster runs. Raises StoryError."""

        def agree() -> bool:
            return all(comparison.agrees for comparison in self.comparisons())

        await self.until(agree, what)
        await self.until(self._answered, "the answers")
        await self.tracker.caught_up()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what GitHub is to see. Raises StoryError, at once when the tracker has ended."""
        seen = asyncio.create_task(self.github.until(condition, within=PATIENCE_SECONDS, why=what))
        ended = asyncio.create_task(self.tracker.ended())
        try:
            await asyncio.wait({seen, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not seen.done():
                message = f"the tracker ended with exit code {ended.result()}"
                raise StoryError(message)
            seen.result()
        except NotReachedError as error:
            raise StoryError(str(error)) from None
        finally:
            seen.cancel()
            ended.cancel()
            await asyncio.gather(seen, ended, return_exceptions=True)

    def _answered(self) -> bool:
        return all(exchange.ended is not None for exchange in self.github.posts())


def tell(*, pods: int, keep: bool, seed: int) -> int:
    """
    Run the demo with that many pods at first; return 0 when cluster and GitHub agree, else 1.

    With `keep` the servers and the tracker stay up afterwards until interrupted.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        return asyncio.run(_tell(console, pods=pods, keep=keep, seed=seed))
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return 1


async def _tell(console: Console, *, pods: int, keep: bool, seed: int) -> int:
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(SimulatedCluster(anonymous=keep))
        github = await stack.enter_async_context(SimulatedGitHub())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracker-demo-")))
        kubeconfig = cluster.write_kubeconfig(folder / "kubeconfig")
        program = await stack.enter_async_context(_Program(console, kubeconfig, github))
        stand = _Stand(
            console=console,
            cluster=cluster,
            github=github,
            stage=Stage(cluster, seed=seed),
            tracker=program,
            workloads={},
        )
        try:
            for number, (title, step) in enumerate(_steps(pods), 1):
                console.print(f"\n[bold]{number}. {title}[/bold]")
                await step(stand)
        except StoryError as error:
            console.print(Text(f"\nfailed: {error}", style="red"))
            console.print(Text(program.diagnostics(), style="dim"))
            return 1
        agreed = _show(stand)
        repeated = _repeated(github)
        if keep:
            await _stay(stand, kubeconfig)
        code = await program.stop()
        seconds = time.monotonic() - began
        said = "[green]agree[/green]" if agreed else "[red]differ[/red]"
        console.print(
            f"cluster and GitHub {said} after {len(github.posts())} posts and {seconds:.0f} s;"
            f" {repeated or 'none'} posted twice; the tracker stopped with exit code {code}"
        )
        return 0 if agreed and not repeated and code == 0 else 1


def _steps(pods: int) -> list[tuple[str, Callable[[_Stand], Awaitable[None]]]]:
    async def start(stand: _Stand) -> None:
        replicas = _spread(pods, len(WORKLOADS))
        for (kind, namespace, name, containers), number in zip(WORKLOADS, replicas, strict=True):
            images = {container: f"ghcr.io/{ORG}/{container}:1.0" for container in containers}
            stand.workloads[name] = await stand.stage.start(
                kind, namespace, name, images, replicas=number
            )
        stand.console.print(f"   {sum(replicas)} pods run; the tracker starts")
        await stand.tracker.start()
        await stand.agreed("the first records")

    async def roll_out(stand: _Stand) -> None:
        web = stand.workloads["web"]
        images = {"web": f"ghcr.io/{ORG}/web:1.1", "proxy": web.images["proxy"]}
        await stand.stage.roll_out(web, images)
        await stand.agreed("the rollout")

    async def scale(stand: _Stand) -> None:
        before = len(stand.github.posts())
        cart = stand.workloads["cart"]
        await stand.stage.scale(cart, len(cart.pods) + 3)
        await stand.stage.scale(cart, max(len(cart.pods) - 4, 1))
        await stand.agreed("the scaling")
        posts = len(stand.github.posts()) - before
        if posts:
            message = f"scaling posts nothing, but there were {posts} posts"
            raise StoryError(message)
        stand.console.print("   three pods more, four less: nothing to tell GitHub")

    async def delete(stand: _Stand) -> None:
        await stand.stage.delete(stand.workloads.pop("search"))
        stand.console.print(f"   decommissioned after {DECOMMISSION_DELAY} and a list that agrees")
        await stand.agreed("the decommission")

    async def fail(stand: _Stand) -> None:
        stand.github.script(answers(503))
        before = len(stand.github.posts())
        payments = stand.workloads["payments"]
        await stand.stage.roll_out(payments, {"payments": f"ghcr.io/{ORG}/payments:2.0"})
        failed = 2
        await stand.until(
            lambda: len(stand.github.posts()) >= before + failed, "a post to be tried again"
        )
        stand.console.print(f"   GitHub answered 503 {failed} times; now it recovers")
        stand.github.heal()
        await stand.agreed("the recovery")

    return [
        (f"{len(WORKLOADS)} workloads start", start),
        ("one rolls out: shop/web from 1.0 to 1.1", roll_out),
        ("one scales: shop/cart up and down", scale),
        ("one is deleted: shop/search", delete),
        ("GitHub fails for a while, and shop/payments rolls out meanwhile", fail),
    ]


def _spread(total: int, number: int) -> list[int]:
    """Return `number` counts that sum up to `total`, each at least 1."""
    return [max(1, total // number + (index < total % number)) for index in range(number)]


def _show(stand: _Stand) -> bool:
    """Show cluster and GitHub side by side; return whether they agree in every line."""
    comparisons = stand.comparisons()
    table = Table(title="\nwhat runs, and what GitHub holds", title_justify="left")
    table.add_column("deployment name", overflow="fold")
    table.add_column("cluster", no_wrap=True)
    table.add_column("GitHub", no_wrap=True)
    table.add_column("", no_wrap=True)
    shown = sorted(comparisons, key=lambda comparison: comparison.agrees)[:MAX_ROWS]
    for comparison in sorted(shown, key=lambda comparison: comparison.deployment_name):
        status = comparison.status or "no record"
        table.add_row(
            comparison.deployment_name,
            comparison.cluster[_SHOWN_DIGEST] or comparison.wanted,
            f"{comparison.github[_SHOWN_DIGEST]} {status}".strip(),
            Text("agree", style="green")
            if comparison.agrees
            else Text(comparison.why, style="red"),
        )
    stand.console.print(table)
    if len(shown) < len(comparisons):
        stand.console.print(f"and {len(comparisons) - len(shown)} more that agree")
    return all(comparison.agrees for comparison in comparisons)


def _repeated(github: SimulatedGitHub) -> str:
    """Return the names that were acknowledged twice in a row in the same state, "" for none."""
    last: dict[str, tuple[str, str]] = {}
    repeated = []
    for exchange in github.posts():
        if exchange.status not in _SUCCESSES:
            continue
        for row in exchange.rows:
            state = (row.digest, row.status)
            if last.get(row.deployment_name) == state:
                repeated.append(row.deployment_name)
            last[row.deployment_name] = state
    return ", ".join(repeated)


async def _stay(stand: _Stand, kubeconfig: Path) -> None:
    """Leave everything up until interrupted."""
    stand.console.print(
        f"\nstill up, until Ctrl-C:\n"
        f"  API server  {stand.cluster.url}   kubectl --kubeconfig {kubeconfig} get pods -A\n"
        f"  GitHub      {stand.github.url}   token {stand.github.token}, organisation {ORG}\n"
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


class _Program:
    """The tracker as a process: its lines are shown as they come."""

    def __init__(self, console: Console, kubeconfig: Path, github: SimulatedGitHub) -> None:
        self._console = console
        self._kubeconfig = kubeconfig
        self._github = github
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._diagnostics: list[str] = []
        self._lines = 0
        self._told = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._send(signal.SIGKILL)
            await self._process.wait()
        await asyncio.gather(*self._readers)

    async def start(self) -> None:
        environment = {
            **{key: os.environ[key] for key in ("PATH", "HOME", "PYTHONPATH") if key in os.environ},
            "ORG": ORG,
            "BASE_URL": self._github.url,
            "LOGICAL_ENVIRONMENT": ENVIRONMENT,
            "CLUSTER": CLUSTER,
            "API_TOKEN": self._github.token,
            "DECOMMISSION_DELAY": DECOMMISSION_DELAY,
            "METRICS_PORT": "0",  # the usual one may be somebody else's on this machine
        }
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tracker", "-kubeconfig", str(self._kubeconfig)),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the demo, which then stops the tracker in order.
            start_new_session=True,
        )
        self._readers = [
            asyncio.create_task(self._read_lines(self._process.stdout)),
            asyncio.create_task(self._read_diagnostics(self._process.stderr)),
        ]

    async def caught_up(self) -> None:
        """Wait until the lines of what GitHub acknowledged were shown. Raises StoryError."""
        wanted = sum(1 for exchange in self._github.posts() if exchange.status in _SUCCESSES)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._lines < wanted:
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            message = f"{wanted} records were acknowledged and {self._lines} lines printed"
            raise StoryError(message) from None

    async def ended(self) -> int:
        """Wait for its end; return its exit code."""
        assert self._process is not None  # noqa: S101 - the first step started it
        code = await self._process.wait()
        await asyncio.gather(*self._readers)
        return code

    async def stop(self) -> int:
        """Stop it as Kubernetes would; return its exit code."""
        assert self._process is not None  # noqa: S101 - the first step started it
        if self._process.returncode is None:
            self._send(signal.SIGTERM)
        return await self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        # By way of asyncio the exit code of one that has just ended would be lost, and told as 255
        # (before Python 3.12.5: https://github.com/python/cpython/issues/87744).
        assert self._process is not None  # noqa: S101 - the first step started it
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def diagnostics(self) -> str:
        """Return what it said on stderr last."""
        return "".join(self._diagnostics[-20:])

    async def _read_lines(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None  # noqa: S101 - it is a pipe
        while line := (await stream.readline()).decode(errors="replace").rstrip("\n"):
            self._lines += " OK " in line
            style = "green" if " OK " in line else "yellow"
            self._console.print(Text(f"   {line}", style=style), soft_wrap=True)
            self._told.set()

    async def _read_diagnostics(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None  # noqa: S101 - it is a pipe
        while line := await stream.readline():
            self._diagnostics.append(line.decode(errors="replace"))
