"""
What a bad spell of GitHub costs: a rollout of 100 Deployments meets it.

    KUBEBUILDER_ASSETS=… python -m bench.answers

On a real API server with controllers, one tracker for all spells, never restarted: the token is
refused (401), a limit without a time (429), nothing may be written (403), errors (500), resets.
Each row says how many requests went during the spell, how many of them (or after it) in the minute
after one that told to stop was answered, and how many seconds after its end GitHub held what runs.
The last row is the first one for longer, so that it shows the probes.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.down import Run
from tests.support.controlplane import ControlPlane, find_assets
from tests.support.installation import installed, rights_of_base
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.script import Behaviour, answers, drops

PAUSE_SECONDS = 60.0
"""What the first pause lasts when nobody says how long."""
UNDER_WAY_SECONDS = 0.5
"""What was on its way already when the answer came is not counted, nor is the pause's end."""
SPELLS: tuple[tuple[str, float, Behaviour], ...] = (
    ("401", 40.0, answers(401)),
    ("429 without a time", 40.0, answers(429)),
    ("403", 40.0, answers(403)),
    ("500", 40.0, answers(500)),
    ("reset", 40.0, drops(applied=False)),
    ("401", 150.0, answers(401)),
)


def _stops(exchange: Exchange) -> bool:
    """Tell whether an answer stopped all sending; of a batch's 403 one record alone decides."""
    if exchange.status == HTTPStatus.FORBIDDEN:
        return "/cluster/" not in exchange.path
    return exchange.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}


def _while_paused(posts: Sequence[Exchange]) -> str:
    """Return how many posts went in the minute after one was told to stop."""
    told = [each.answered for each in posts if _stops(each) and each.answered is not None]
    if not told:
        return "-"
    early, late = UNDER_WAY_SECONDS, PAUSE_SECONDS - UNDER_WAY_SECONDS
    return str(
        sum(1 for each in posts if any(at + early < each.arrived < at + late for at in told))
    )


async def _measure() -> list[tuple[str, ...]]:
    assets = find_assets()
    if assets is None:
        sys.exit("bench.answers: KUBEBUILDER_ASSETS is not set; a real API server is needed")
    rows: list[tuple[str, ...]] = []
    with (
        tempfile.TemporaryDirectory(prefix="tracker-answers-") as name,
        ControlPlane(assets) as plane,
    ):
        async with (
            installed(plane, rights=rights_of_base()) as installation,
            installation.scene("answers") as scene,
        ):
            run, github = Run(installation, scene, Path(name)), installation.github
            await run.begin()
            async with run.program() as program:
                await run.true(1)
                for version, (spell, lasts, behaviour) in enumerate(SPELLS, start=2):
                    before = len(github.posts())
                    script = github.script(behaviour)
                    ends = time.monotonic() + lasts
                    await run.roll_out(version)
                    await asyncio.sleep(ends - time.monotonic())
                    script.stop()
                    during = len(github.posts()) - before
                    ended = time.monotonic()
                    await run.true(version)
                    seconds = time.monotonic() - ended
                    after = len(github.posts()) - before - during
                    paused = _while_paused(github.posts()[before:])
                    told = f"{spell}, {lasts:.0f} s"
                    rows.append((told, str(during), paused, f"{seconds:.1f} s", str(after)))
                    print(*rows[-1], sep="  ", file=sys.stderr)
                await program.stopped()
    return rows


def main() -> None:
    """Measure and show a table."""
    title = "a real kube-apiserver, 100 Deployments roll out during"
    table = Table(title=title, title_justify="left")
    for column in ("spell", "requests in it", "while paused", "true after", "requests after"):
        table.add_column(column, justify="right" if column != "spell" else "left")
    for row in asyncio.run(_measure()):
        table.add_row(*row)
    Console(width=max(Console().width, 80)).print(table)


if __name__ == "__main__":
    main()
