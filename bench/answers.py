"""
What a bad spell of GitHub costs: a rollout of 100 Deployments meets it for 40 seconds.

    KUBEBUILDER_ASSETS=… python -m bench.answers

On a real API server with controllers, one tracker for all spells, never restarted: the token is
refused (401), a limit without a time (429), nothing may be written (403), errors (500), resets.
Each row says how many requests went during the spell, and how many seconds after its end GitHub
held what runs.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.down import Run
from tests.support.controlplane import ControlPlane, find_assets
from tests.support.installation import installed, rights_of_base
from tracker.sandbox.script import Behaviour, answers, drops

SPELL_SECONDS = 40.0
SPELLS: dict[str, Behaviour] = {
    "401": answers(401),
    "429 without a time": answers(429),
    "403": answers(403),
    "500": answers(500),
    "reset": drops(applied=False),
}


async def _measure() -> list[tuple[str, str, str, str]]:
    assets = find_assets()
    if assets is None:
        sys.exit("bench.answers: KUBEBUILDER_ASSETS is not set; a real API server is needed")
    rows = []
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
                for version, (spell, behaviour) in enumerate(SPELLS.items(), start=2):
                    before = len(github.posts())
                    script = github.script(behaviour)
                    ends = time.monotonic() + SPELL_SECONDS
                    await run.roll_out(version)
                    await asyncio.sleep(ends - time.monotonic())
                    script.stop()
                    during = len(github.posts()) - before
                    ended = time.monotonic()
                    await run.true(version)
                    seconds = time.monotonic() - ended
                    after = len(github.posts()) - before - during
                    rows.append((spell, str(during), f"{seconds:.1f} s", str(after)))
                await program.stopped()
    return rows


def main() -> None:
    """Measure and show a table."""
    title = f"a real kube-apiserver, 100 Deployments roll out, {SPELL_SECONDS:.0f} s of"
    table = Table(title=title, title_justify="left")
    for column in ("spell", "requests in it", "true after", "requests after"):
        table.add_column(column, justify="right" if column != "spell" else "left")
    for row in asyncio.run(_measure()):
        table.add_row(*row)
    Console(width=max(Console().width, 80)).print(table)


if __name__ == "__main__":
    main()
