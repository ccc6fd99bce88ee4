"""
How far a command is, for whoever waits for it: a bar on a terminal, else a line now and then.

It goes to stderr, beside the diagnostics, so that stdout stays what was asked for. While a bar is
shown, whatever else is written to the terminal has to go above it: diagnostics do, and what goes to
`Progress.stdout`.
"""

import io
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self, TextIO, cast

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from tracker import logs
from tracker.commands.output import make_console
from tracker.settings import Settings

__all__ = ["Progress"]

LINE_SECONDS: Final = 10.0
"""Between two lines where there is no terminal."""
REFRESHES_PER_SECOND: Final = 5

_log = structlog.get_logger(__name__)


class Progress:
    """
    So much done of so much: a context manager. `show` may be called as often as one likes.

    `title` says what is done, `unit` what is counted. `stdout` and `stderr` are where to write to
    meanwhile, so that it does not run into the bar.
    """

    def __init__(self, title: str, *, unit: str, settings: Settings) -> None:
        self._title = title
        self._unit = unit
        self._settings = settings
        self._bar: Bar | None = None
        self._stack = ExitStack()
        self._told_at = time.monotonic()
        self._shown = (0, 0)
        self._began: tuple[float, int] | None = None
        self.stdout, self.stderr = sys.stdout, sys.stderr

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            console = make_console(sys.stderr)
            self._bar = self._stack.enter_context(
                Bar(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=None),
                    MofNCompleteColumn(),
                    TextColumn(self._unit),
                    TimeRemainingColumn(compact=True),
                    console=console,
                    expand=True,
                    transient=True,
                    refresh_per_second=REFRESHES_PER_SECOND,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
            )
            self._bar.add_task(self._title, total=None)
            above = cast("TextIO", _AboveBar(console))
            self._stack.callback(self._configure_logs, sys.stderr)
            self._configure_logs(above)
            self.stderr = above
            if sys.stdout.isatty():
                self.stdout = above
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self._stack.close()
        self._bar = None

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done; a total of 0 is not known yet."""
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.update(task, completed=done, total=total or None)
            return
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        if now - self._told_at < LINE_SECONDS or (done, total) == self._shown:
            return
        self._told_at = now
        self._shown = (done, total)
        began, done_before = self._began
        rate = (done - done_before) / (now - began) if now > began else 0.0
        estimate = {"left_seconds": round((total - done) / rate)} if rate > 0 else {}
        _log.info(self._title, done=done, of=total, **estimate)

    def _configure_logs(self, stream: TextIO) -> None:
        as_json = self._settings.log_format == "json"
        logs.configure(level=self._settings.log_level, as_json=as_json, stream=stream)


class _AboveBar(io.TextIOBase):
    """A stream to a terminal of which each whole line goes above the bar, as it was written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = f"{self._rest}{text}".split("\n")
        for line in lines:
            # The terminal breaks it where it ends, so that it can be copied as one line.
            self._console.print(Text.from_ansi(line), soft_wrap=True)
        return len(text)

    def isatty(self) -> bool:
        return True
