"""
What a person sees, as pictures: docs/pictures/{demo,doctor,plan,status,explain,audit}.svg.

    python -m bench.pictures [NAME …]

The commands run as they are, in a terminal of 80 columns, against the simulated cluster and GitHub;
what they print is kept with its colours and drawn by rich. The tracker runs beside them and comes
into every state by itself: an image that is not attested, one that the token may not write, a
GitHub that fails. A picture of a command that this version has not is left out.
"""

import argparse
import asyncio
import io
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from tests.support.generated import ROOT
from tests.support.program import tracker_run
from tests.support.terminal import COLUMNS, on_a_terminal
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.exchanges import Outcome
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import answers
from tracker.sandbox.stage import Played, Stage, digest_of
from tracker.sandbox.tracker_process import TrackerProcess

PICTURES: Final = ROOT / "docs" / "pictures"
EXIT_USAGE: Final = 2
MAX_BYTES: Final = 150 * 1024
WITHIN: Final = 60.0
FAILURES: Final = 3
"""So often a post has failed in the picture: its next attempt is some seconds away."""
TAGS: Final = {
    "metadata.github.com/team": "storefront",
    "metadata.github.com/runtime-risks": "internet-exposed",
}
WORKLOADS: Final = (
    ("Deployment", "shop", "web", 3),
    ("Deployment", "shop", "cart", 2),
    ("Deployment", "shop", "payments", 1),
    ("Rollout", "shop", "search", 2),
    ("CronJob", "shop", "report", 1),
    ("StatefulSet", "data", "orders-db", 1),
    ("DaemonSet", "infra", "log-agent", 3),
    ("Pod", "infra", "debug", 1),
)
DEMO_BEGINS: Final = "5/8"
"""The step that the demo's picture begins with: the steps before say less."""
_FONT: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""A font from somebody's server; the viewer's own for code will do."""


@dataclass(slots=True, kw_only=True)
class Scene:
    """Both servers and the tracker in the middle of a day's work."""

    cluster: SimulatedCluster
    github: SimulatedGitHub
    stage: Stage
    tracker: TrackerProcess
    folder: Path
    played: dict[str, Played] = field(default_factory=dict)

    async def draw(self, name: str, *arguments: str, **environ: str) -> None:
        """Run a command, and draw what it shows."""
        shown, code = await on_a_terminal(
            tracker_run(name, *arguments),
            at=self.folder,
            # Seen from its folder the ledger is the same, whatever the folder is called today.
            environ={
                **self.tracker.environ,
                "LEDGER_PATH": "ledger.db",
                "TERM": "xterm-256color",
                **environ,
            },
        )
        if code == EXIT_USAGE and "No such command" in shown:
            print(f"{name}: not a command of this version")
            return
        _save(name, " ".join(("deployment-tracker", name, *arguments)), shown)

    async def until(self, condition: Callable[[], bool], why: str) -> None:
        """Wait for what GitHub is to see."""
        await self.github.until(condition, within=WITHIN, why=why)

    def annotate(self, workload: str) -> None:
        """Give a workload's pods their annotations."""
        played = self.played[workload]
        for pod in played.pods:
            self.cluster.patch("pods", played.namespace, pod, {"metadata": {"annotations": TAGS}})

    def refused(self, name: str) -> bool:
        """Say whether GitHub refused a name."""
        return any(
            exchange.outcomes().get(name) is Outcome.REFUSED for exchange in self.github.posts(name)
        )


def image(name: str, version: str = "1.4.0") -> str:
    """Return an image of the organisation."""
    return f"ghcr.io/acme/{name}:{version}"


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """Yield a cluster whose tracker has met what there is to meet, and runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with SimulatedCluster() as cluster, SimulatedGitHub() as github:
            environ = {
                "ORG": "acme",
                "BASE_URL": github.url,
                "LOGICAL_ENVIRONMENT": "production",
                "CLUSTER": "prod-eu-1",
                "API_TOKEN": github.token,
                "KUBECONFIG": str(cluster.write_kubeconfig(folder / "kubeconfig")),
                "LEDGER_PATH": str(folder / "ledger.db"),
                "METRICS_PORT": "0",
                "PYTHONPATH": str(ROOT),
            }
            async with TrackerProcess(environ=environ, show=lambda _line: None) as tracker:
                made = Scene(
                    cluster=cluster,
                    github=github,
                    stage=Stage(cluster, seed=1),
                    tracker=tracker,
                    folder=folder,
                )
                await _live(made)
                yield made


async def _live(scene: Scene) -> None:
    """Have the tracker meet what there is to meet."""
    for kind, namespace, name, replicas in WORKLOADS:
        scene.played[name] = await scene.stage.start(
            kind, namespace, name, {name: image(name)}, replicas=replicas
        )
    scene.annotate("web")
    scene.github.unknown.add(digest_of(image("payments")))
    scene.github.unauthorized.add(digest_of(image("search")))
    await scene.tracker.start()
    names = {"shop/web/web", "shop/cart/cart", "data/orders-db/orders-db"}
    await scene.until(
        lambda: (
            names <= scene.github.deployed().keys()
            and scene.refused("shop/payments/payments")
            and scene.refused("shop/search/search")
        ),
        "the first records",
    )
    fails = scene.github.script(
        answers(503, body={"message": "Service unavailable"}),
        match=lambda each: "shop/cart/cart" in each.names,
    )
    await scene.stage.roll_out(scene.played["cart"], {"cart": image("cart", "1.5.0")})
    await scene.until(lambda: len(fails.used) > FAILURES, "a post that fails again")
    waiting = {"status": {"phase": "Pending", "containerStatuses": []}}
    scene.cluster.patch("pods", "data", scene.played["orders-db"].pods[0], waiting)


async def _draw_commands(wanted: Sequence[str]) -> None:
    """Draw what the commands show, each in a moment in which it has something to say."""
    async with scene() as made:
        if "status" in wanted:
            await made.draw("status")
        if "explain" in wanted:
            await made.draw("explain", f"shop/{made.played['web'].pods[-1]}")
        await made.tracker.kill()
        made.github.heal()
        await made.stage.roll_out(made.played["web"], {"web": image("web", "1.5.0")})
        made.annotate("web")
        await made.stage.delete(made.played["log-agent"])
        await made.stage.start(
            "Deployment", "shop", "checkout", {"checkout": image("checkout")}, replicas=2
        )
        if "plan" in wanted:
            await made.draw("plan")
        if "audit" in wanted:
            await made.draw("audit", LOG_LEVEL="warning")  # the table is what is to be seen
        if "doctor" in wanted:
            made.cluster.forbidden.add(("watch", "pods"))
            made.github.clock_offset = 400.0
            await made.draw("doctor")


async def _draw_demo() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shown, code = await on_a_terminal(
            tracker_run("demo"), at=Path(folder), environ={"TERM": "xterm-256color"}
        )
    if code:
        sys.exit(f"the demo ended with exit code {code}")
    lines = shown.splitlines()
    begins = next(number for number, line in enumerate(lines) if DEMO_BEGINS in line)
    _save("demo", "make demo", "\n".join(lines[begins:]), prompt=False)


def _save(name: str, title: str, shown: str, *, prompt: bool = True) -> None:
    """Draw what a terminal showed."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    if prompt:
        console.print(Text.assemble(("$ ", "bold cyan"), (title, "bold")))
    for line in Text.from_ansi(shown.replace("\r\n", "\n").rstrip()).split():
        line.rstrip()
        console.print(line, soft_wrap=True)
    path = PICTURES / f"{name}.svg"
    drawn = _FONT.sub("", console.export_svg(title=title, unique_id=name))
    # Some viewers swallow blanks at the beginning of a text otherwise.
    drawn = drawn.replace("<text ", '<text xml:space="preserve" ')
    path.write_text(
        "\n".join(line.rstrip() for line in drawn.rstrip().split("\n")) + "\n", encoding="utf-8"
    )
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size // 1024} KiB")
    if size > MAX_BYTES:
        sys.exit(f"{path} is over {MAX_BYTES // 1024} KiB")


def main() -> None:
    """Draw the pictures that are asked for, all by default."""
    drawn = ("demo", "doctor", "plan", "status", "explain", "audit")
    parser = argparse.ArgumentParser(prog="python -m bench.pictures")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(drawn)}")
    wanted = parser.parse_args().names or drawn
    if "demo" in wanted:
        asyncio.run(_draw_demo())
    if set(wanted) - {"demo"}:
        asyncio.run(_draw_commands(wanted))


if __name__ == "__main__":
    main()
