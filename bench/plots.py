"""
Plots of a run's series over time, as SVG for docs/performance.md.

matplotlib is in a dependency group and lock of its own, which only this needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.support.program import ROOT

__all__ = ["draw"]

FOLDER: Final = ROOT / "docs" / "performance"
UNITS: Final = {
    "latency_ms": "latency, ms",
    "rss_mib": "resident memory, MiB",
    "backlog": "names that wait",
}


def draw(run: Mapping[str, Any]) -> None:
    """Write one file for each scenario that has series."""
    # The same run gives the same file.
    mpl.rcParams["svg.hashsalt"] = "bench"
    FOLDER.mkdir(exist_ok=True)
    for scenario, by in run["results"].items():
        named = [name for name in UNITS if any(of["series"].get(name) for of in by.values())]
        if not named:
            continue
        figure = Figure(figsize=(8, 2.2 * len(named)), layout="constrained")
        axes = figure.subplots(len(named), sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, named, strict=True):
            for title, of in by.items():
                points = of["series"].get(name, [])
                style = "." if name == "latency_ms" else "-"
                axis.plot(*zip(*points, strict=True), style, label=title, markersize=3)
            axis.set_ylabel(UNITS[name])
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        if len(by) > 1:
            axes[0].legend()
        axes[-1].set_xlabel("seconds since the process began")
        figure.suptitle(f"{scenario}, {run['ground']}, {run['at'][:10]}", fontsize=10)
        path = Path(FOLDER, f"{scenario}.svg")
        figure.savefig(path, metadata={"Date": None})
        print(path)
