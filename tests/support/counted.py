"""
The tracker with one thing added: it writes down, once a second, how many tasks its loop holds.

    python -m tests.support.counted REPORT [arguments of the tracker]

A task that is never done shows in no metric and in no memory worth a name; over half an hour of
faults its number does.
"""

import asyncio
import sys
from pathlib import Path

from tracker.imports import lighten

lighten()

from tracker import app  # noqa: E402 - as light as the program that is counted
from tracker.cli import main  # noqa: E402 - the same

__all__: list[str] = []

TICK_SECONDS = 1.0

_start = app.Tracker.start


async def _count(report: Path) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        report.write_text(str(len(asyncio.all_tasks())))  # noqa: ASYNC240 - a few bytes


def _start_and_count(self: app.Tracker) -> None:
    _start(self)
    self._tasks.append(asyncio.create_task(_count(Path(sys.argv[1])), name="count"))


if __name__ == "__main__":
    app.Tracker.start = _start_and_count  # type: ignore[method-assign] # the one thing added
    main(sys.argv[2:])
