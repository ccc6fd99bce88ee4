"""
How the demo looks: numbered steps, why each one is told, and what the tracker itself says.

On a terminal the tracker's lines are dimmed and cut to the width, their times and images left out:
the story is what is read. In a pipe or a file every line stands as it came, without colours.
"""

import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["Screen"]

INDENT: Final = 5
"""Columns of the number of a step, which all that belongs to it is moved by."""
_STAMP: Final = re.compile(r"^\[?\d{4}-\d\d-\d\dT[\d:.]+Z\]?\s*")
_NAME: Final = re.compile(r" name=\S+ ")
_PADDING: Final = re.compile(r" +\]")
_STYLES: Final = (("OK ", "green"), ("FAILED ", "yellow"))
"""How what the tracker says of records is shown, by how it begins after the time."""


class Screen:
    """Where the story is told; stdout."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a mark shows ?
        self._console = Console(highlight=False, markup=False, emoji=False)

    def say(self, text: str = "", style: str = "") -> None:
        """Tell something that belongs to no step."""
        self._show(Text(text, style=style), indent=0)

    def step(self, number: int, total: int, title: str, why: str) -> None:
        """Begin a step."""
        self._console.print()
        head = Text.assemble((f"{number}/{total}".ljust(INDENT), "bold cyan"), (title, "bold"))
        self._show(head, indent=0)
        self._show(Text(why, style="italic"))

    def happen(self, text: str) -> None:
        """Tell what happens on the stage."""
        self._show(Text.assemble(("» ", "cyan"), text), indent=INDENT - 2, hanging=2)

    def prove(self, text: str) -> None:
        """Tell what was found to be as it should be."""
        self._show(Text.assemble(("✓ ", "bold green"), text), indent=INDENT - 2, hanging=2)

    def add(self, text: str) -> None:
        """Add something to what was told last."""
        self._show(Text(text, style="dim"))

    def fail(self, error: str, diagnostics: str) -> None:
        """Tell what did not come true, and what the tracker said last."""
        self._console.print()
        self._console.print(Text(f"failed: {error}", style="red"), soft_wrap=True)
        self._console.print(Text(diagnostics, style="dim"), soft_wrap=True)

    def quote(self, line: str) -> None:
        """Show a line of the tracker's own."""
        bare = _STAMP.sub("", line)
        style = next((style for begins, style in _STYLES if bare.startswith(begins)), "")
        # The image's repository is left out, so that the deployment name and what follows fit.
        short = _NAME.sub(" … ", _PADDING.sub("]", bare), count=1)
        word, blank, rest = (short if self._console.is_terminal else line).partition(" ")
        self._cut(Text.assemble((word + blank, style), (rest, "dim")))

    def ran(self, command: str, lines: Iterable[str]) -> None:
        """Show a command of the tracker's, and what it printed."""
        self._cut(Text.assemble(("$ ", "cyan"), command))
        for line in lines:
            word, blank, rest = line.rstrip().partition(" ")
            style = "green" if word == "ok" else "dim"
            self._cut(Text.assemble((word + blank, style), (rest, "dim")))

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Text]]) -> None:
        """Show a table; its first and its last column may be folded."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column in columns[1:-1])
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._show(Text(title, style="bold"), indent=0)
        self._console.print(table)
        self._console.print()

    def _show(self, text: Text, *, indent: int = INDENT, hanging: int = 0) -> None:
        """Print a text, folded to a terminal's width and otherwise in one line."""
        if not self._console.is_terminal:
            self._console.print(Text(" " * indent) + text, soft_wrap=True)
            return
        width = self._console.width - indent - hanging
        shown: RenderableType
        for number, line in enumerate(text.wrap(self._console, width)):
            shown = Padding(line, (0, 0, 0, indent + (hanging if number else 0)), expand=False)
            self._console.print(shown)

    def _cut(self, text: Text) -> None:
        """Print a line that is not ours, cut to a terminal's width."""
        if self._console.is_terminal:
            text.truncate(self._console.width - INDENT, overflow="ellipsis")
        self._console.print(Text(" " * INDENT) + text, soft_wrap=True)
