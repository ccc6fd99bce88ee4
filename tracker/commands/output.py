"""
How commands show what they found: a table for people, JSON for programs.

What is shown goes to stdout, and what is said about it (progress, what could not be had) to
stderr, so that a pipe gets the one and a person sees both. Colours are for terminals alone. Much
of what is shown was chosen by the author of a pod or by a server, so each value is printed as
text: no markup, no control characters.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracker.answers import clean_text

__all__ = [
    "EXIT_CONFIGURATION",
    "EXIT_FAILURE",
    "EXIT_OK",
    "Format",
    "make_console",
    "make_table",
    "to_text",
    "write_json",
]

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
"""It was done, and what came out is not as it should be; or it could not be done."""
EXIT_CONFIGURATION: Final = 2
"""What was asked for, or a setting, can't be used; nothing was connected to."""

MAX_CELL: Final = 512
"""Characters of one value in a table."""
PIPED_WIDTH: Final = 160
"""Columns of a table that goes into a file or a pipe, where nobody's screen is the measure."""


class Format(StrEnum):
    """How a result is written (`--output`)."""

    TABLE = "table"
    JSON = "json"


def make_console(stream: TextIO | None = None) -> Console:
    """Return a console for a stream, stdout by default: colours only on a terminal."""
    stream = sys.stdout if stream is None else stream
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def to_text(value: object, style: str = "") -> Text:
    """Return a value as it may be printed: one line, no markup, no control characters."""
    return Text(clean_text(str(value), MAX_CELL), style=style)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table; a cell that is a `Text` keeps its style, any other is made one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else to_text(cell) for cell in row))
    return table


def write_json(value: Mapping[str, object] | Sequence[object]) -> None:
    """Write a result to stdout as JSON (ASCII, indented, in the order it was made)."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
