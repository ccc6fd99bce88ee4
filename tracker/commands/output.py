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

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tracker.answers import clean_text

__all__ = [
    "EXIT_CONFIGURATION",
    "EXIT_FAILURE",
    "EXIT_OK",
    "Format",
    "age",
    "make_console",
    "make_table",
    "short",
    "to_text",
    "write_json",
    "write_table",
]

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
"""It was done, and what came out is not as it should be; or it could not be done."""
EXIT_CONFIGURATION: Final = 2
"""What was asked for, or a setting, can't be used; nothing was connected to."""

MAX_CELL: Final = 512
"""Characters of one value in a table."""
SHORT_DIGEST: Final = 12
"""Hex digits, as container tools show them."""
GAP: Final = "  "
"""Between two columns."""
MIN_COLUMN: Final = 12
"""Columns of a terminal that a table's column has at least."""
PIPED_WIDTH: Final = 160
"""Columns of a table that goes into a file or a pipe, where nobody's screen is the measure."""


class Format(StrEnum):
    """How a result is written (`--output`)."""

    TABLE = "table"
    JSON = "json"


def age(seconds: float) -> str:
    """Return a time in a unit that suits it: 45s, 12m, 3h, 8d."""
    for size, unit, most in ((1, "s", 90), (60, "m", 5400), (3600, "h", 172_800)):
        if seconds < most:
            return f"{max(int(seconds // size), 0)}{unit}"
    return f"{int(seconds // 86_400)}d"


def short(digest: str) -> str:
    """Return the beginning of a digest, which is enough to tell it from others."""
    return digest.removeprefix("sha256:")[:SHORT_DIGEST]


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


def write_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """
    Write a table of any length; a cell that is a `Text` keeps its style, any other is made one.

    A `Text` may have several lines. On a terminal the widest columns are folded until a row fits.
    """
    cells = [[_lines_of(cell) for cell in row] for row in rows]
    widths = [cell_len(column) for column in columns]
    for row in cells:
        for number, (lines, _) in enumerate(row):
            widths[number] = max(widths[number], *(_length(line) for line in lines))
    if console.is_terminal:
        widths = _fitted(widths, console.width - len(GAP) * (len(columns) - 1))
    colours = console.color_system is not None
    header: list[_Cell] = [([column], Style(bold=True)) for column in columns]
    for row in [header, *cells]:
        folded = [
            ([part for line in lines for part in _folded(line, width)], style)
            for (lines, style), width in zip(row, widths, strict=True)
        ]
        for number in range(max(len(lines) for lines, _ in folded)):
            line = ""
            for (lines, style), width in zip(folded, widths, strict=True):
                text = lines[number] if number < len(lines) else ""
                padding = " " * (width - _length(text) + len(GAP))
                line += (style.render(text) if style and colours and text else text) + padding
            console.file.write(line.rstrip(" ") + "\n")


_Cell = tuple[list[str], Style | None]


def _lines_of(cell: object) -> _Cell:
    """Return the lines of a cell, as they may be printed, and its style."""
    if not isinstance(cell, Text):
        return [clean_text(str(cell), MAX_CELL)], None
    style = cell.style if isinstance(cell.style, Style) else Style.parse(cell.style)
    return [clean_text(line, MAX_CELL) for line in cell.plain.split("\n")], style


def _fitted(widths: Sequence[int], total: int) -> list[int]:
    """Return widths that are no more than `total` together, the widest ones cut down."""
    fitted = list(widths)
    while sum(fitted) > total and max(fitted) > MIN_COLUMN:
        # The widest becomes as wide as the next one, or as is enough.
        widest = max(fitted)
        others = [width for width in fitted if width < widest]
        equals = fitted.count(widest)
        excess = sum(fitted) - total
        target = max([MIN_COLUMN, *others, widest - -(-excess // equals)])
        fitted = [min(width, target) for width in fitted]
    return fitted


def _folded(line: str, width: int) -> list[str]:
    """Return a line in parts of this width, cut behind what parts words and names if it can be."""
    parts = []
    while _length(line) > width:
        part = line[:width] if line.isascii() else (chop_cells(line, width) or [line])[0]
        cut = max(part.rfind(mark) for mark in " /:,-") + 1
        if cut > width // 2:
            part = part[:cut]
        parts.append(part.rstrip(" "))
        line = line[len(part) :].lstrip(" ")
    return [*parts, line]


def _length(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)
