"""
`make bench`: whole runs of the unmodified program, timed from outside.

    make bench                                     what takes a few minutes
    make bench ARGS='start-10000 churn'            scenarios by name
    make bench ARGS=all
    make bench ARGS="latency --other './tracker'"  another program beside it, same scenarios
    make bench ARGS='--json bench/history/x.json'  the figures, and what plots are made of
    make bench ARGS='--plots bench/history/x.json' docs/performance/*.svg of such a file

With KUBEBUILDER_ASSETS a real API server (and controllers) serves, else the simulated one; the
table says which. GitHub is the simulated one in both. Another program is given the same
environment and `-kubeconfig PATH`. These are measurements, not tests: machines are noisy, so look
at several runs.
"""

import argparse
import asyncio
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.annotations import reading
from bench.grounds import Real, Simulated
from bench.outages import down, spells
from bench.scenarios import DEFAULT, SCENARIOS, TARGETS, Bench, Scenario
from tests.support.controlplane import find_assets
from tests.support.program import tracker_run

ALL: Final[Mapping[str, Scenario]] = {
    **SCENARIOS,
    "down": down,
    "spells": spells,
    "annotations": reading,
}
OURS: Final = "this tracker"


def _kubeconfig_to(command: Sequence[str]) -> Callable[[Path], list[str]]:
    return lambda path: [*command, "-kubeconfig", str(path)]


async def _measure(names: Sequence[str], other: str, *, simulated: bool) -> dict[str, Any]:
    """Return the figures and series of each scenario, by tracker."""
    trackers = {OURS: tracker_run()}
    if other:
        trackers[other] = shlex.split(other)
    results: dict[str, Any] = {}
    for name in names:
        for title, command in trackers.items():
            bench = Bench(command=_kubeconfig_to(command), ours=title == OURS, simulated=simulated)
            print(f"{name}: {title} …", file=sys.stderr)
            try:
                figures = await ALL[name](bench)
            except TimeoutError as error:
                # What another program never reaches is a figure as well.
                figures = {"not_reached": str(error).partition("\n")[0] or "in time"}
            # At once as well: a long run may be cut off.
            told = ", ".join(f"{figure} {_cell(value)}" for figure, value in figures.items())
            print(f"  {told}", file=sys.stderr)
            results.setdefault(name, {})[title] = {"figures": figures, "series": bench.series}
    return results


def _machine() -> dict[str, Any]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("deployment-tracker", "kopf", "aiohttp")},
    }


def _show(run: Mapping[str, Any], console: Console) -> None:
    results: Mapping[str, Any] = run["results"]
    titles = list(dict.fromkeys(title for by in results.values() for title in by))
    facts = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
    table = Table(title=f"{run['ground']}; {facts}", title_justify="left")
    table.add_column("scenario")
    table.add_column("figure")
    for title in titles:
        table.add_column(title, justify="right")
    table.add_column("target", justify="right")
    for name, by in results.items():
        figures = list(dict.fromkeys(each for of in by.values() for each in of["figures"]))
        for number, figure in enumerate(figures):
            target = TARGETS.get((name, figure))
            cells = [_cell(by[title]["figures"].get(figure)) for title in titles if title in by]
            table.add_row("" if number else name, figure, *cells, _verdict(by, figure, target))
        table.add_section()
    console.print(table)


def _verdict(by: Mapping[str, Any], figure: str, target: float | None) -> str:
    """Return a target and whether this tracker, where it was measured, keeps to it."""
    if target is None:
        return ""
    value = by.get(OURS, {}).get("figures", {}).get(figure)
    kept = isinstance(value, float | int) and value <= target
    return f"≤ {target:.4g} {'met' if kept else '[bold]MISSED[/bold]'}"


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the same with four digits of each number, which is more than a run is good for."""
    match value:
        case float():
            return float(f"{value:.4g}")
        case Mapping():
            return {key: _rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
        case _:
            return value


def main() -> None:
    """Measure and show a table."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=…", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", help=f"all, or of: {', '.join(ALL)}")
    parser.add_argument("--other", default="", metavar="COMMAND", help="another tracker")
    parser.add_argument("--simulated", action="store_true", help="even with KUBEBUILDER_ASSETS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the run to a file")
    parser.add_argument("--plots", type=Path, metavar="FILE", help="draw a run; measure nothing")
    arguments = parser.parse_args()
    if arguments.plots:
        from bench.plots import draw  # noqa: PLC0415 - matplotlib is there for this only

        draw(json.loads(arguments.plots.read_text()))
        return
    names = arguments.scenarios or list(DEFAULT)
    names = list(ALL) if names == ["all"] else names
    if unknown := [name for name in names if name not in ALL]:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    simulated = arguments.simulated or find_assets() is None
    machine = _machine()
    run = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ground": Simulated.title if simulated else Real.title,
        "machine": machine,
        "results": asyncio.run(_measure(names, arguments.other, simulated=simulated)),
    }
    _show(run, Console(width=max(Console().width, 100)))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(_rounded(run), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
