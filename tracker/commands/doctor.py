"""
`doctor`: checks what the tracker needs, one thing after the other, and says what to do.

The checks are `tracker.commands.checks`; here they are shown as they come: a line each, with cause
and next step below what is not well, or all of them as one JSON text.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from tracker import __version__
from tracker.advice import ADVICE, see
from tracker.commands.checks import Finding, Result, examine
from tracker.commands.output import (
    EXIT_FAILURE,
    EXIT_OK,
    Format,
    make_console,
    make_table,
    to_text,
    write_json,
)
from tracker.settings import Origin, Settings

__all__ = ["run"]

_STYLES: Final[Mapping[Result, str]] = {
    Result.OK: "green",
    Result.WARN: "yellow",
    Result.FAIL: "bold red",
    Result.SKIPPED: "dim",
}
_RESULT_COLUMN: Final = 7
_CHECK_COLUMN: Final = 10
_LEAST_COLUMN: Final = 24


def run(
    settings: Settings,
    origins: Sequence[Origin],
    *,
    environ: Mapping[str, str],
    output: Format,
) -> int:
    """Examine, show what was found, and return the exit code: 1 when a check failed."""
    return asyncio.run(_run(settings, origins, environ, output))


async def _run(
    settings: Settings, origins: Sequence[Origin], environ: Mapping[str, str], output: Format
) -> int:
    console = make_console()
    if output is Format.TABLE:
        _show_settings(origins)
    findings = []
    async for finding in examine(settings, environ=environ):
        findings.append(finding)
        if output is Format.TABLE:
            _show(console, finding)
    failed = sum(finding.result is Result.FAIL for finding in findings)
    if output is Format.JSON:
        write_json(
            {
                "version": __version__,
                "result": (Result.FAIL if failed else Result.OK).value,
                "settings": [origin._asdict() for origin in origins],
                "checks": [finding.as_json() for finding in findings],
            }
        )
    else:
        console.print()
        console.print(to_text(_summary(findings), _STYLES[Result.FAIL if failed else Result.OK]))
    return EXIT_FAILURE if failed else EXIT_OK


def _show_settings(origins: Sequence[Origin]) -> None:
    """Show what was given, and in one paragraph what is as it is by default."""
    console = make_console()
    given = [origin for origin in origins if origin.where != "default"]
    console.print(make_table(("SETTING", "VALUE", "FROM"), given))
    rest = [origin for origin in origins if origin.where == "default"]
    shown = ", ".join(f"{name}={value}" if value else name for name, value, _ in rest)
    console.print(Text("by default: ", style="dim").append(shown))
    console.print()


def _show(console: Console, finding: Finding) -> None:
    """Show one finding, its advice below it; no line ends in blanks, whoever reads them."""
    found = to_text(finding.says)
    if finding.trouble is not None:
        advice = ADVICE[finding.trouble]
        for label, text in (
            ("why", advice.why),
            ("next", advice.next_step),
            ("see", see(finding.trouble)),
        ):
            found.append("\n").append(f"{label}: ", style="bold").append_text(to_text(text))
    head = Text(f"{finding.result.value:<{_RESULT_COLUMN}}  ", style=_STYLES[finding.result])
    begin = Text.assemble(head, f"{finding.check:<{_CHECK_COLUMN}}  ")
    width = max(console.width - len(begin), _LEAST_COLUMN)
    for line in found.wrap(console, width, overflow="fold"):
        line.rstrip()
        console.print(Text.assemble(begin, line), no_wrap=True, crop=False, overflow="ignore")
        begin = Text(" " * len(begin))


def _summary(findings: Sequence[Finding]) -> str:
    counts = {result: sum(finding.result is result for finding in findings) for result in Result}
    return ", ".join(f"{count} {result.value}" for result, count in counts.items() if count)
