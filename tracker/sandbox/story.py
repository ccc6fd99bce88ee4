"""
The demo: the whole job on this machine, told step by step.

A simulated API server and a simulated GitHub listen on loopback sockets, workloads come and go on
the one, and the *unmodified* tracker runs beside them as a process of its own, with a kubeconfig,
a token and a ledger as it would have anywhere. It ends well only when cluster, ledger and GitHub
agree in every name, and when nothing was posted twice but what the kill left open.
"""

import asyncio
import os
import shlex
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from rich.text import Text

from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.screen import Screen
from tracker.sandbox.stage import Stage
from tracker.sandbox.stand import Line, Stand, repeated
from tracker.sandbox.steps import ORG, STEPS, build
from tracker.sandbox.tracker_process import StoryError, TrackerProcess

__all__ = ["tell"]

Environ = dict[str, str]
_SHOWN_DIGEST: Final = slice(len("sha256:"), len("sha256:") + 12)


def tell(*, pods: int, keep: bool, seed: int) -> int:
    """
    Run the demo with that many pods at first; return 0 when all three sides agree, else 1.

    With `keep` the servers and the tracker stay up afterwards until interrupted.
    """
    screen = Screen()
    try:
        return asyncio.run(_tell(screen, pods=pods, keep=keep, seed=seed))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.say("\ninterrupted")
        return 1


async def _tell(screen: Screen, *, pods: int, keep: bool, seed: int) -> int:
    began = time.monotonic()
    _end_at_sigterm()
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(SimulatedCluster(anonymous=keep))
        github = await stack.enter_async_context(SimulatedGitHub())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracker-demo-")))
        environ = _environment(folder, cluster, github)
        tracker = await stack.enter_async_context(
            TrackerProcess(environ=environ, show=screen.quote)
        )
        stand = Stand(
            screen=screen,
            cluster=cluster,
            github=github,
            stage=Stage(cluster, seed=seed),
            tracker=tracker,
            pods=pods,
        )
        try:
            running = await build(stand)
            screen.say(
                f"{running} pods in a simulated cluster, a simulated GitHub, and the real tracker.",
                style="dim",
            )
            for number, step in enumerate(STEPS, 1):
                screen.step(number, len(STEPS), step.title, step.why)
                await step.play(stand)
            lines = await stand.lines()
        except StoryError as error:
            screen.fail(str(error), tracker.diagnostics())
            return 1
        _show(screen, lines)
        seconds = time.monotonic() - began
        if keep:
            await _stay(stand, folder)
        return await _end(stand, lines, seconds)


def _environment(folder: Path, cluster: SimulatedCluster, github: SimulatedGitHub) -> Environ:
    """Return all that the tracker is told: what anyone sets, and short waits for a short story."""
    kept = ("PATH", "HOME", "PYTHONPATH")
    return {
        **{key: os.environ[key] for key in kept if key in os.environ},
        "KUBECONFIG": str(cluster.write_kubeconfig(folder / "kubeconfig")),
        "ORG": ORG,
        "BASE_URL": github.url,
        "LOGICAL_ENVIRONMENT": "production",
        "CLUSTER": "demo",
        "API_TOKEN": github.token,
        "LEDGER_PATH": str(folder / "ledger.db"),
        "DECOMMISSION_DELAY": "1s",
        "NOT_FOUND_INTERVAL": "2s",
        "METRICS_PORT": "0",  # the usual one may be somebody else's on this machine
    }


async def _end(stand: Stand, lines: list[Line], seconds: float) -> int:
    """Stop the tracker, tell how it all ended, and return the exit code."""
    code = await stand.tracker.stop()
    posts = stand.github.posts()
    explained, needless = repeated(posts)
    agreed = all(not line.why for line in lines)
    well = agreed and not needless and code == 0
    text = (
        f"cluster, ledger and GitHub {'agree' if agreed else 'DIFFER'} in {len(lines)} names"
        f" after {len(posts)} posts and {seconds:.0f} s"
    )
    (stand.screen.prove if well else stand.screen.say)(text)
    stand.screen.add(f"posted twice without need: {', '.join(needless) or 'none'}")
    stand.screen.add(f"once more, as its answer was lost: {', '.join(explained) or 'none'}")
    stand.screen.add(f"the tracker stopped with exit code {code}")
    return 0 if well else 1


def _show(screen: Screen, lines: list[Line]) -> None:
    """Show cluster, ledger and GitHub side by side; a digest is of what is deployed."""
    rows = []
    for line in lines:
        told = line.comparison
        rows.append(
            (
                Text(told.deployment_name),
                Text(
                    told.cluster[_SHOWN_DIGEST] or told.wanted, style="" if told.cluster else "dim"
                ),
                _state(line.ledger_digest, line.ledger_status),
                _state(told.github, told.status),
                Text(line.why, style="red") if line.why else Text("✓", style="green"),
            )
        )
    screen.table(
        "What runs, what the ledger knows, what GitHub holds",
        ("deployment name", "cluster", "ledger", "GitHub", ""),
        rows,
    )


def _state(digest: str, status: str) -> Text:
    """Return the digest that stands as deployed, else what the record says."""
    if status == "deployed":
        return Text(digest[_SHOWN_DIGEST])
    return Text(status or "no record", style="dim")


async def _stay(stand: Stand, folder: Path) -> None:
    """Leave everything up until interrupted."""
    settings = folder / "settings.sh"
    settings.write_text(
        "".join(
            f"export {name}={shlex.quote(value)}\n"
            for name, value in stand.tracker.environ.items()
            if name not in {"PATH", "HOME"}
        )
    )
    settings.chmod(0o600)
    stand.screen.say(
        f"\nstill up, until Ctrl-C:\n"
        f"  API server  {stand.cluster.url}   kubeconfig {folder}/kubeconfig\n"
        f"  GitHub      {stand.github.url}   token {stand.github.token}, organisation {ORG}\n"
        f"  settings    {settings}: source it, then look around:\n"
        f"              kubectl get pods -A\n"
        f"              {sys.executable} -m tracker status --all\n"
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def _end_at_sigterm() -> None:
    """Have SIGTERM end the demo as Ctrl-C does, so that no tracker is left behind."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
