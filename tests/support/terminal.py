"""A terminal of 80 columns, to see what a person sees."""

import asyncio
import os
import pty
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support.program import ROOT

__all__ = ["COLUMNS", "on_a_terminal"]

COLUMNS: Final = 80
ROWS: Final = 50


async def on_a_terminal(
    command: Sequence[str], *, at: Path, environ: Mapping[str, str] | None = None
) -> tuple[str, int]:
    """
    Return what a command shows on a terminal, escape sequences included, and its exit code.

    It runs in the folder `at`, with nothing but `environ` and what Python needs.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    given = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(at),
        "TERM": "xterm",
        **(environ or {}),
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=given,
            cwd=at,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    try:
        shown = await asyncio.to_thread(_read_to_the_end, ours)
        return shown, await process.wait()
    finally:
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()


def _read_to_the_end(terminal: int) -> str:
    """Read until nobody has the other side open any more, which Linux tells by an error."""
    parts = []
    with suppress(OSError):
        while part := os.read(terminal, 65536):
            parts.append(part)
    return b"".join(parts).decode()
