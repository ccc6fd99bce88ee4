"""How commands show what they found."""

import io
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tests.support.commands import terminal
from tracker.commands.output import age, make_console, short, write_table

COLUMNS: Final = ["state", "deployment name", "reason"]


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_fits_a_terminal() -> None:
    console = terminal(60)
    rows = [
        [Text("parked", style="red"), "shop/web/app", "403: Resource not accessible by this token"],
        ["pending", "shop/a-deployment-of-a-very-long-name/app", Text("two\nlines")],
    ]
    write_table(console, COLUMNS, rows)
    assert written(console) == (
        "state    deployment name           reason\n"
        "parked   shop/web/app              403: Resource not\n"
        "                                   accessible by this token\n"
        "pending  shop/a-deployment-of-a-   two\n"
        "         very-long-name/app        lines\n"
    )


def test_a_pipe_gets_a_line_for_each_row() -> None:
    console = make_console(io.StringIO())
    write_table(console, COLUMNS, [["x" * 100, "y" * 100, "z" * 100]] * 3)
    assert len(written(console).splitlines()) == 4


def test_colours_are_for_terminals() -> None:
    rows = [[Text("parked", style="red"), "a", "b"]]
    pipe = make_console(io.StringIO())
    write_table(pipe, COLUMNS, rows)
    assert "\x1b" not in written(pipe)
    coloured = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    write_table(coloured, COLUMNS, rows)
    assert "\x1b[31mparked\x1b[0m" in written(coloured)


@given(
    rows=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))),
    width=st.integers(40, 120),
)
def test_no_text_breaks_a_table(rows: list[tuple[str, str, str]], width: int) -> None:
    console = terminal(width)
    write_table(console, COLUMNS, rows)
    lines = written(console).split("\n")
    assert lines.pop() == ""
    assert len(lines) >= len(rows) + 1
    for line in lines:
        assert cell_len(line) <= width
        assert line.isprintable()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (89.9, "89s"), (90, "1m"), (5399, "89m"), (5400, "1h"), (172_800, "2d")],
)
def test_an_age_has_a_unit_that_suits_it(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_a_digest_is_cut_to_what_tells_it_from_others() -> None:
    assert short("sha256:0123456789abcdef") == "0123456789ab"
