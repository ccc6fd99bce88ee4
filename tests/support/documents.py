"""
What the documents say in a way that a machine can check: commands, links, headings.

A command is a line of a block that is marked `sh`, or of an indented block, or text in backticks
that begins with a program of `PROGRAMS` and has more words than that. Continued lines are one
command, and so are lines within quotes.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["DOCUMENTS", "PROGRAMS", "ROOT", "Command", "anchors", "commands", "links", "prose"]

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
PROGRAMS: Final = (
    *("deployment-tracker", "docker", "gh", "helm", "jq", "kind", "kopf", "kubectl", "make"),
    *("pip", "pre-commit", "python"),
)

_FENCE: Final = re.compile(r"^```(\w*)$")
_SPAN: Final = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_COMMENT: Final = re.compile(r"(?:^|[ \t]+)#[^\n]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command, where it stands, and its text without comment."""

    document: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


def commands(path: Path) -> Iterator[Command]:
    """Yield the commands of a document, those in blocks first, in the order in which they stand."""
    document = path.relative_to(ROOT).as_posix()
    lines = path.read_text(encoding="utf-8").splitlines()
    language: str | None = None
    text, began = "", 0
    for number, line in enumerate(lines, 1):
        if fence := _FENCE.match(line):
            assert not text, f"{document}:{began}: a quote or a continued line has no end"
            language = fence[1] if language is None else None
        elif language == "sh" or (language is None and _is_indented_command(line)):
            began = began if text else number
            text = f"{text}\n{line}" if text else line.strip()
            if _is_whole(text):
                if text := _COMMENT.sub("", text):
                    yield Command(document=document, line=began, text=text)
                text = ""
    for number, span in _spans("\n".join(lines)):
        if " " in span and _program(span) in PROGRAMS:
            yield Command(document=document, line=number, text=span)


def prose(text: str) -> str:
    """Return the text of a document with its blocks emptied, so that lines keep their numbers."""
    return re.sub(
        r"^```.*?^```$",
        lambda block: "\n" * block[0].count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )


def links(path: Path) -> Iterator[str]:
    """Yield where a document's links lead."""
    yield from _LINK.findall(prose(path.read_text(encoding="utf-8")))


def anchors(path: Path) -> Iterator[str]:
    """
    Yield the anchors that GitHub gives the headings of a document.

    In lower case, without what is neither letter, digit, underscore, blank nor hyphen, with a
    hyphen for each blank; one that was there before has a number behind it.
    """
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?) *$", prose(path.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        yield f"{anchor}-{count}" if count else anchor


def _spans(text: str) -> Iterator[tuple[int, str]]:
    """Yield what stands in backticks, with its line; a line break in it is a blank."""
    plain = prose(text)
    for span in _SPAN.finditer(plain):
        yield plain.count("\n", 0, span.start()) + 1, " ".join(span[1].split())


def _is_indented_command(line: str) -> bool:
    return line.startswith("    ") and line[4:5].isalpha() and _program(line) in PROGRAMS


def _program(text: str) -> str:
    return text.split(maxsplit=1)[0].removeprefix(".venv/bin/")


def _is_whole(text: str) -> bool:
    """Tell whether a command has its end: no quote is open, and no line is to be continued."""
    if text.endswith("\\"):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True
