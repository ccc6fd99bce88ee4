"""
The unmodified program as the demo runs it: processes with a kubeconfig, a token and a ledger.

`start`, `kill` and `stop` are about the tracker itself, whose lines are shown as they come; `run`
is for the commands that look. Nothing of it is imported: what is shown here happens anywhere.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["PATIENCE_SECONDS", "Ran", "StoryError", "TrackerProcess"]

PATIENCE_SECONDS: Final = 40.0
"""How long anything may take before the demo has failed; on an idle machine it is a second."""
REMEMBERED: Final = 20
"""Lines of stderr that are shown when the demo has failed."""
TELLING: Final = ("sending paused", "in step with the cluster")
"""Diagnostics that belong to the story."""


class StoryError(Exception):
    """A step did not come true; the text says what was waited for and what there was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


class TrackerProcess:
    """
    The tracker, started and ended as often as one likes, always with the same settings.

    `show` is called with each line that it says of a record, and with the few diagnostics that
    tell of all of them. Leaving the context kills it.
    """

    def __init__(self, *, environ: Mapping[str, str], show: Callable[[str], None]) -> None:
        self.environ = dict(environ)
        self.lines: list[str] = []
        """What it said on stdout, all processes together."""
        self._show = show
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._diagnostics: list[str] = []
        self._told = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start it; it must not be running."""
        self._diagnostics = []
        self._process = await self._spawn()
        self._readers = [
            asyncio.create_task(self._read_lines(self._process.stdout)),
            asyncio.create_task(self._read_diagnostics(self._process.stderr)),
        ]

    async def ended(self) -> int:
        """Wait for its end; return its exit code. While it was not started, wait for ever."""
        while self._process is None:
            await asyncio.Event().wait()
        code = await self._process.wait()
        await asyncio.gather(*self._readers)
        return code

    async def kill(self) -> None:
        """Kill it as `kill -9` does, if it runs."""
        if self._process is not None:
            self._send(signal.SIGKILL)
            await self.ended()
            self._process = None

    async def stop(self) -> int:
        """Stop it as Kubernetes would; return its exit code."""
        self._send(signal.SIGTERM)
        code = await self.ended()
        self._process = None
        return code

    async def run(self, *arguments: str) -> Ran:
        """Run another command of the program to its end. Raises StoryError when it takes long."""
        process = await self._spawn(*arguments)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            message = f"{' '.join(arguments)} did not end within {PATIENCE_SECONDS:.0f} s"
            raise StoryError(message) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Ran(code=process.returncode or 0, stdout=stdout.decode(), stderr=stderr.decode())

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what depends on its lines. Raises StoryError."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            message = f"waited for {what} in vain"
            raise StoryError(message) from None

    def diagnostics(self) -> str:
        """Return what it said on stderr last."""
        return "".join(self._diagnostics[-REMEMBERED:])

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tracker", *arguments),
            env=self.environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the demo, which then stops the tracker in order.
            start_new_session=True,
        )

    def _send(self, number: signal.Signals) -> None:
        # By way of asyncio the exit code of one that has just ended would be lost, and told as 255
        # (before Python 3.12.5: https://github.com/python/cpython/issues/87744).
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _read_lines(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None  # noqa: S101 - it is a pipe
        async for raw in stream:
            line = raw.decode(errors="replace").rstrip("\n")
            self.lines.append(line)
            self._show(line)
            self._told.set()

    async def _read_diagnostics(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None  # noqa: S101 - it is a pipe
        async for raw in stream:
            line = raw.decode(errors="replace")
            self._diagnostics.append(line)
            if any(telling in line for telling in TELLING):
                self._show(line.rstrip("\n"))
