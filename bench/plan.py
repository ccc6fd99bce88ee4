"""
`python -m bench.plan`: how long `plan -f` takes for a large cluster, and how much memory.

Writes pods as kubectl prints them, as YAML and as JSON, and runs the program on each as a user
would, in a process of its own. The least of several runs counts: the first one finds no file of
the page cache. What is asked for: 10,000 pods in 5 s and 150 MB.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table

from tests.support import kubectl

__all__ = ["main"]

WRITERS: Final[dict[str, Callable[..., None]]] = {
    "yaml": kubectl.write_yaml,
    "json": kubectl.write_json,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time plan -f.")
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(argv)
    table = Table("pods", "file", "MB", "shown as", "seconds", "CPU seconds", "MB of memory")
    with TemporaryDirectory() as folder:
        for suffix, write in WRITERS.items():
            path = Path(folder) / f"pods.{suffix}"
            with path.open("w", encoding="utf-8") as stream:
                _write(write, options.pods, stream)
            for output in ("table", "json"):
                took, cpu, peak = min(_timed(path, output) for _ in range(options.runs))
                table.add_row(
                    f"{options.pods:,}",
                    suffix,
                    f"{path.stat().st_size / 1e6:.0f}",
                    output,
                    f"{took:.2f}",
                    f"{cpu:.2f}",
                    f"{peak / 1024:.0f}",
                )
    Console().print(table)


def _write(write: Callable[..., None], pods: int, stream: TextIO) -> None:
    write(kubectl.many_pods(pods), stream)


def _timed(path: Path, output: str) -> tuple[float, float, int]:
    """Run the program on a file; return seconds, CPU seconds, and kilobytes at its peak."""
    environ = {"PATH": os.environ.get("PATH", "")}
    began = time.perf_counter()
    # `wait4` tells of this child alone, also of its memory.
    process = subprocess.Popen(
        [sys.executable, "-m", "tracker", "plan", "-f", str(path), "-o", output],
        env=environ,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"plan ended with {process.returncode}")
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


if __name__ == "__main__":
    main()
