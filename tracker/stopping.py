"""
Being told to stop: the first SIGTERM or SIGINT asks for an orderly end, the second ends it at once.

Who runs a loop for long takes both signals, waits for `Signals.stop` beside its work, and drains
when it is set. The second signal cancels the task that took them, with whatever it waits for.
"""

import asyncio
import signal

__all__ = ["Signals"]


class Signals:
    """
    SIGTERM and SIGINT: the first sets `stop`, the second cancels the task that made this.

    `hurried` says that a second one came. Made within a task of the running loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.stop = asyncio.Event()
        self.hurried = False

    def take(self) -> None:
        """Become the one who is told of them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if not self.stop.is_set():
            self.stop.set()
        elif self._task is not None:
            self.hurried = True
            self._task.cancel()
