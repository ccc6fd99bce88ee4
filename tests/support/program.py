"""
The unmodified program as a process: started, listened to, stopped or killed.

A `Program` runs `python -m tracker` (or `kopf run`) with an environment of its own, so that
nothing of the machine the tests run on gets in. Its stdout is held against the documented format
line by line as it comes, its stderr is kept, and both are told with the error of a test that fails
while it runs. Waits are for lines and for the end of the process, never for time to pass.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["DIGEST", "LINE", "ROOT", "Line", "Program", "kopf_run", "parse_line", "tracker_run"]

ROOT: Final = Path(__file__).resolve().parents[2]

WITHIN: Final = 40.0
"""Seconds until a wait counts as failed; a start on a busy machine takes a few of them."""
TAIL: Final = 40
"""Lines of each stream that are told with a failure."""
MAX_LINE: Final = 2**20

DIGEST: Final = r"sha256:[0-9a-f]{64}"

_WORD: Final = r"""(?:[^\s"'\\]+|"(?:[^"\\]|\\.)*")"""
LINE: Final = re.compile(
    r"\[(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\] "
    r"(?P<outcome>OK|FAILED) (?P<action>CREATED|DELETED)"
    rf" name=(?P<name>{_WORD}) deployment_name=(?P<deployment_name>{_WORD})"
    rf" (?:digest=(?P<digest>{DIGEST}) status=(?P<status>deployed|decommissioned)"
    r"|error=(?P<error>\S.*))"
)
"""The format of a line on stdout, without its end. A quoted word is a JSON string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of stdout. `digest` and `status` are those of an OK, `error` that of a FAILED."""

    time: str
    outcome: str
    action: str
    name: str
    deployment_name: str
    digest: str | None
    status: str | None
    error: str | None

    @property
    def state(self) -> tuple[str, str]:
        """What was acknowledged: (status, digest)."""
        return self.status or "", self.digest or ""


def parse_line(text: str) -> Line | None:
    """Return what a line of stdout says, or None when it is not of the documented format."""
    match = LINE.fullmatch(text)
    if match is None or (match["outcome"] == "OK") is (match["error"] is not None):
        return None
    if match["status"] and (match["status"] == "deployed") is not (match["action"] == "CREATED"):
        return None
    return Line(**match.groupdict())


def tracker_run(*arguments: str) -> list[str]:
    """Return the command line of the tracker."""
    return [sys.executable, "-m", "tracker", *arguments]


def kopf_run(*arguments: str) -> list[str]:
    """Return the command line of development mode: Kopf with the tracker's handlers."""
    return [sys.executable, "-m", "kopf", "run", *arguments, str(ROOT / "tracker" / "main.py")]


class Program:
    """
    One process; an async context manager that starts it and, at the latest at its end, kills it.

    `environ` is the whole environment but for what Python itself needs. `folder` is where it
    runs (its `.env` and its home), so that no file of ours or of the machine is found there.
    `identity` is the user and the group it runs as, ours unless told (only root can tell).
    `stdin` is a file descriptor, by default of nothing to read.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        folder: Path,
        identity: tuple[int, int] | None = None,
        stdin: int = asyncio.subprocess.DEVNULL,
    ) -> None:
        self.command = tuple(command)
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "default",  # a coroutine never awaited is told on stderr
            "METRICS_PORT": "0",  # many run at once
            **environ,
        }
        self._folder = folder
        self._identity = identity
        self._stdin = stdin
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        user, group = self._identity or (None, None)
        process = await asyncio.create_subprocess_exec(
            *self.command,
            env=self._environ,
            cwd=self._folder,
            stdin=self._stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
        self._process = process
        for stream, lines in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            if stream is not None:
                self._readers.append(asyncio.create_task(self._read(stream, lines)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(self.story())
        self.kill()
        await self.ended()

    # What it said

    @property
    def lines(self) -> list[Line]:
        """The lines of stdout so far. A line that is not of the format fails the test."""
        found = []
        for text in self.stdout:
            line = parse_line(text)
            assert line is not None, f"not the documented format: {text!r}"
            found.append(line)
        return found

    def about(self, deployment_name: str) -> list[Line]:
        """Return the lines so far about one name."""
        return [line for line in self.lines if line.deployment_name == deployment_name]

    @property
    def said(self) -> str:
        """All of stderr so far."""
        return "\n".join(self.stderr)

    def story(self) -> str:
        """Return the ends of both streams, to tell with a failure."""
        code = "still running" if self.running else f"exit code {self._started.returncode}"
        return "\n".join(
            [
                f"{' '.join(self.command[1:])}: {code}",
                f"its stdout ({len(self.stdout)} lines):",
                *self.stdout[-TAIL:],
                f"its stderr ({len(self.stderr)} lines):",
                *self.stderr[-TAIL:],
            ]
        )

    # What it is doing

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._started.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._started.returncode is None

    async def until(self, condition: Callable[[], bool], *, within: float = WITHIN) -> None:
        """
        Wait until a condition holds; it is asked at each line and at the end of a stream.

        Raises TimeoutError, also as soon as it can't come true any more because the process ended.
        """
        async with asyncio.timeout(within):
            while not condition():
                if all(reader.done() for reader in self._readers):
                    message = "the process ended before"
                    raise TimeoutError(message)
                self._changed.clear()
                await self._changed.wait()

    async def until_said(self, text: str, *, times: int = 1, within: float = WITHIN) -> None:
        """Wait until a text stands in so many lines of stderr."""
        await self.until(lambda: sum(text in line for line in self.stderr) >= times, within=within)

    async def ended(self, *, within: float = WITHIN) -> int:
        """Wait until the process ends and all it said was read; return its exit code."""
        async with asyncio.timeout(within):
            await asyncio.gather(*self._readers)
            return await self._started.wait()

    # What is done to it

    def send(self, number: signal.Signals) -> None:
        """
        Send a signal, if it is still there.

        Not by way of asyncio, which before Python 3.12.5 asks for the exit code first: that of a
        process which has just ended is then lost to whoever waits for it, and told as 255
        (https://github.com/python/cpython/issues/87744).
        """
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to stop, as Kubernetes does."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to write anything."""
        self.send(signal.SIGKILL)

    async def stopped(self, *, within: float = WITHIN) -> int:
        """Ask it to stop and wait for that; return its exit code."""
        self.terminate()
        return await self.ended(within=within)

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            message = "the program was not started"
            raise RuntimeError(message)
        return self._process

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        try:
            while line := await stream.readline():
                # Strictly: what is no UTF-8 or has no end is not a line.
                lines.append(line.decode().removesuffix("\n"))
                self._changed.set()
        finally:
            self._changed.set()
