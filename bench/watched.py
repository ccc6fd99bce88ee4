"""
The tracker with a witness in its loop, which tells how late a timer came.

    python -m bench.watched REPORT [arguments of the tracker]

runs the program as it is and writes, at its end, the longest lag in milliseconds to REPORT.
"""

import asyncio
import sys
from pathlib import Path

from tracker import app
from tracker.cli import main

TICK_SECONDS = 0.02

_longest = 0.0
_start = app.Tracker.start


async def _witness() -> None:
    global _longest  # noqa: PLW0603 - one process, one witness
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        _longest = max(_longest, loop.time() - due)


def _start_with_witness(self: app.Tracker) -> None:
    _start(self)
    self._tasks.append(asyncio.create_task(_witness(), name="witness"))


if __name__ == "__main__":
    report = Path(sys.argv[1])
    app.Tracker.start = _start_with_witness  # type: ignore[method-assign] # the one thing added
    try:
        main(sys.argv[2:])
    finally:
        report.write_text(f"{_longest * 1000:.0f}\n")
