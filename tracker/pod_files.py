"""
Pods in a file or a pipe, as `kubectl get pods -A -o yaml` or `-o json` prints them.

`read_objects` yields one pod after the other while the text is read: a large cluster's list is a
hundred megabytes, and no more of it is held than the pod at hand. Lists, single pods and several
documents of them are taken; what is no pod is passed over and counted.

Of YAML only what `tracker.pods.read_pod` looks at is read: PyYAML takes a minute, also with its C
parser, for what JSON takes a second. So a pod in the plain style that kubectl writes is read here
(`_Plain`), by its indentation, and whatever else is skipped by it. A pod in any other style
(quotes with escapes, folded or flowing text where it matters, anchors) is given whole to PyYAML,
which then is the judge. Both ways end in the same `Pod`; a test holds them to it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NoReturn, TextIO

import yaml

from tracker.annotations import PREFIX
from tracker.answers import clean_text
from tracker.errors import PodFileError
from tracker.pods import MIRROR
from tracker.workloads import DEPLOYMENT_HASH, ROLLOUT_HASH

__all__ = ["PodFile"]

CHUNK: Final = 2**20
"""Characters of JSON read at once."""
MAX_SHOWN: Final = 120

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_SCALAR: Final = re.compile(
    r"'([^'\n]*)'|\"([^\"\\\n]*)\"|([A-Za-z0-9_./](?:[A-Za-z0-9_./@+=-]|:(?=[^ \n]))*)"
)
"""Text in single or double quotes, or in none."""
_WORDS: Final[Mapping[str, bool | None]] = {"": None, "null": None, "true": True, "false": False}
_KEY: Final = r"[^ \t\-?:,\[\]{}#&*!|>'\"%@`<=\n](?:[^:#\n]*[^:#\s])?"
"""A key that is read or passed over here."""
_SILENCE: Final = frozenset({"#", "\n"})
"""How a line begins, behind its spaces, that says nothing."""
_SILENT: Final = r" *(?:#|\n|\Z)"
"""What a line that says nothing goes on with: a comment, or its end."""
_FIRST: Final = re.compile(rf"(?:\n(?={_SILENT})[^\n]*)*\n( *)(?=[^ \n#])")
"""What stands before the first line that says something, and how deep that is."""
_EMPTY: Final[Mapping[str, Callable[[], object]]] = {
    "{}": dict,
    "[]": list,
    "null": lambda: None,
}

# What `read_pod` looks at: of a pod the sections, of a section the fields, of a field the entries,
# or those of each element when it is in a list. None stands for a scalar.
_Keys = frozenset[str]
_Wanted = Mapping[str, Any]
_NEVER_PLAIN: Final = object()
_PASSED_OVER: Final = object()
_OURS: Final = f"{PREFIX}*"
"""Every key with our prefix."""
_LABELS: Final = frozenset({DEPLOYMENT_HASH, ROLLOUT_HASH})
_ANNOTATIONS: Final = frozenset({MIRROR, _OURS})
_OWNER: Final = frozenset({"apiVersion", "kind", "name", "controller"})
_CONTAINER: Final = frozenset({"name", "image", "restartPolicy"})
_STATUS: Final = frozenset({"name", "image", "imageID"})
_ENTRIES: Final = _LABELS | _ANNOTATIONS | _OWNER | _CONTAINER | _STATUS
_POD: Final[_Wanted] = {
    "apiVersion": None,
    "kind": None,
    "metadata": {
        "name": None,
        "namespace": None,
        "uid": None,
        "resourceVersion": None,
        "creationTimestamp": None,
        "deletionTimestamp": None,
        "labels": _LABELS,
        "annotations": _ANNOTATIONS,
        "ownerReferences": [_OWNER],
    },
    "spec": {"containers": [_CONTAINER], "initContainers": [_CONTAINER]},
    "status": {
        "phase": None,
        "containerStatuses": [_STATUS],
        "initContainerStatuses": [_STATUS],
    },
}
FIELD: Final = 2
"""How far to the right of a section its fields stand."""
ENTRY: Final = 4


_Found = tuple[object, bool]
"""What was found, and whether it stood in a list."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # either one
    """PyYAML's, but that a time stays the text it is, as in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


_RESOLVERS: Final = _Loader.yaml_implicit_resolvers
"""Patterns of plain text that is no text, by first character."""


class _UnfamiliarError(Exception):
    """The text is not in the style that is read here; it may well be YAML."""


@dataclass(slots=True, kw_only=True)
class PodFile:
    """
    A text that is read once; `name` is what messages call it.

    `whole` tells, when it was read, whether it held a list, so that what it lacks is not there;
    `others` counts what was no pod.
    """

    name: str
    stream: TextIO
    whole: bool = False
    others: int = 0

    def read_objects(self) -> Iterator[Mapping[str, Any]]:
        """Yield the pods (decoded JSON). Raises `PodFileError`."""
        try:
            start = self._start()
            found = self._json(start) if start.lstrip()[:1] in {"{", "["} else self._yaml(start)
            for each, listed in found:
                # The API's own lists of pods don't say of each that it is one.
                default = "Pod" if listed else ""
                if isinstance(each, Mapping) and each.get("kind", default) == "Pod":
                    yield each
                else:
                    self.others += 1
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise PodFileError(f"{self.name} can't be read: {said}") from error
        except RecursionError as error:
            raise PodFileError(f"{self.name} can't be read: it is nested too deeply") from error

    def _start(self) -> str:
        """Return the beginning, up to the first line that says something."""
        start = ""
        while not start.strip() and (line := self.stream.readline(CHUNK)):
            start += line.removeprefix("\ufeff")
        return start

    # JSON: objects one after the other, lists element by element.

    def _json(self, start: str) -> Iterator[_Found]:
        text = _Json(start, self.stream, self.name)
        while text.peek():
            yield from self._value(text)

    def _value(self, text: "_Json") -> Iterator[_Found]:
        """Yield the next object, or the elements of the next list."""
        if text.peek() == "[":
            self.whole = True
            yield from ((each, True) for each in text.elements())
            return
        if text.peek() != "{":
            text.fail("an object was expected")
        found: dict[str, object] = {}
        listed = False
        for key in text.take_keys():
            if key == "items" and text.peek() == "[":
                listed = self.whole = True
                yield from ((each, True) for each in text.elements())
            else:
                found[key] = text.value()
        if listed:
            return
        if str(found.get("kind", "")).endswith("List"):
            self.whole = True  # `items: null`
        else:
            yield found, False

    # YAML: documents line by line, lists element by element.

    def _yaml(self, start: str) -> Iterator[_Found]:
        text = _Yaml(start, self.stream, self.name)
        while text.more():
            yield from self._document(text)

    def _document(self, text: "_Yaml") -> Iterator[_Found]:
        """Yield the next document, or the elements of the list in it."""
        head: list[str] = []
        listed = False
        for line in text.document():
            if line.rstrip() == "items:":
                if listed:
                    text.fail("it holds two lists without --- between them")
                listed = self.whole = True
                for margin, element in text.elements():
                    yield text.load(element, _POD, margin), True
            else:
                head.append(line)
        if listed:
            # What cut the list short would be left out with all that follows: it is an error.
            if not isinstance(text.parse("".join(head)), Mapping):
                text.fail("its list ends in mid-text")
            return
        if all(_says_nothing(line) for line in head):
            return
        found = text.load("".join(head), {**_POD, "items": _NEVER_PLAIN}, 0)
        if isinstance(found, Mapping) and str(found.get("kind", "")).endswith("List"):
            self.whole = True
            elements = found.get("items")
            yield from ((each, True) for each in (elements if isinstance(elements, list) else ()))
        elif found is not None:
            yield found, False


class _Json:
    """JSON text that is decoded while it is read."""

    def __init__(self, start: str, stream: TextIO, name: str) -> None:
        self._text = start
        self._at = 0
        self._stream = stream
        self._ended = False
        self._name = name
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def take(self, expected: str) -> str:
        """Return the next character, which must be one of these, and go on behind it."""
        found = self.peek()
        if not found or found not in expected:
            self.fail(f"{' or '.join(expected)} was expected")
        self._at += 1
        return found

    def value(self) -> object:
        """Return the next value."""
        self.peek()
        while True:
            try:
                found, end = self._decode(self._text, self._at)
            except (json.JSONDecodeError, StopIteration) as error:
                if not self._fill():
                    self.fail(str(getattr(error, "msg", "it ends too early")))
                continue
            except ValueError:  # Python's bound of digits, against numbers that take for ever
                self.fail("it has a number of too many digits")
            if end == len(self._text) and self._fill():
                continue  # a number may go on
            self._at = end
            return found

    def take_keys(self) -> Iterator[str]:
        """Yield the keys of the next object; its user takes each value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.value()
            self.take(":")
            yield str(key)
            if self.take(",}") == "}":
                return

    def elements(self) -> Iterator[object]:
        """Yield the elements of the next array."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def fail(self, why: str) -> NoReturn:
        """Raise `PodFileError` that says where it was."""
        at = self._text[self._at : self._at + 40]
        raise PodFileError(f"{self._name} is not JSON of pods: {why}, near {json.dumps(at)}")

    def _fill(self) -> bool:
        """Read on; return False at the end."""
        if self._ended:
            return False
        # What waits doubles, so that a long value is not begun anew for each small piece.
        more = self._stream.read(max(CHUNK, len(self._text) - self._at))
        self._ended = not more
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more)


class _Yaml:
    """YAML text, cut into documents and elements while it is read."""

    def __init__(self, start: str, stream: TextIO, name: str) -> None:
        self._text = start
        self._at = 0
        self._stream = stream
        self._ended = False
        self._name = name
        self._number = 1

    def more(self) -> bool:
        """Tell whether there is another line."""
        return self._at < len(self._text) or self._fill()

    def document(self) -> Iterator[str]:
        """Yield the lines up to the next document; its user may take elements between two."""
        while line := self._line():
            if line.startswith(("---", "...")) and not line[3:].strip():
                return
            if not line.startswith("%"):
                yield line

    def elements(self) -> Iterator[tuple[int, str]]:
        """Yield the column and the text of each element that follows, its dash made a space."""
        first = self._line()
        while first and _says_nothing(first):
            first = self._line()
        indent = len(first) - len(first.lstrip(" "))
        dash, inner = " " * indent + "- ", " " * (indent + 2)
        self._back(first)
        if not first.startswith(dash):
            return
        # A line that belongs to no element: it is neither within one nor empty nor a comment.
        ends = re.compile(rf"\n(?!{inner}|{dash}| *(?:\n|#|$))")
        boundary = "\n" + dash
        while True:
            found = self._find(boundary)
            end = found + 1 if found >= 0 else len(self._text)
            element = self._text[self._at : end]
            last = ends.search(element)
            if last is not None:
                element = element[: last.start() + 1]
            self._at += len(element)
            self._number += element.count("\n")
            yield len(inner), inner + element[indent + 2 :]
            if last is not None or found < 0:
                return

    def load(self, text: str, wanted: _Wanted, margin: int) -> object:
        """Return what a text at this column says: in the plain style, what is wanted of it."""
        with suppress(_UnfamiliarError):
            return _Plain.read(text, wanted, margin)
        return self.parse(text)

    def parse(self, text: str) -> object:
        """Return all that a text says, as PyYAML reads it."""
        try:
            return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe one
        except (yaml.YAMLError, ValueError) as error:
            # Its own text has several lines, and some of the file in them.
            mark = getattr(error, "problem_mark", None)
            before = text.count("\n") - (mark.line if mark is not None else 0)
            why = getattr(error, "problem", None) or str(error)
            self.fail(f"{why:.{MAX_SHOWN}}", before=before, cause=error)

    def fail(self, why: str, *, before: int = 0, cause: Exception | None = None) -> NoReturn:
        """Raise `PodFileError` that says where it was: so many lines before what was read."""
        line = max(self._number - before, 1)
        raise PodFileError(
            f"{self._name} is not YAML of pods: {clean_text(why)}, about line {line}"
        ) from cause

    def _line(self) -> str:
        """Return the next line with its end, "" when there is none."""
        found = self._find("\n")
        end = found + 1 if found >= 0 else len(self._text)
        line = self._text[self._at : end]
        self._at = end
        self._number += 1
        return line

    def _back(self, line: str) -> None:
        """Put the line that was read last back."""
        self._at -= len(line)
        self._number -= 1

    def _find(self, what: str) -> int:
        """Return where this is next, read on until it is there; -1: it never comes."""
        begin = self._at
        while (found := self._text.find(what, begin)) < 0:
            seen = max(len(self._text) - len(what), self._at) - self._at
            if not self._fill():
                return -1
            begin = self._at + seen
        return found

    def _fill(self) -> bool:
        """Read on; return False at the end."""
        if self._ended:
            return False
        more = self._stream.read(max(CHUNK, len(self._text) - self._at))
        self._ended = not more
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more)


_Line = tuple[str, str, str, str, str, str]
"""
A line: its indentation within the margin, its dash, its key, the rest behind that, and how the next
line begins: its spaces, and a dash, a comment or a line's end behind them.
"""


class _Plain:
    """
    One pod in block style, read by its indentation, as kubectl writes it.

    It has three columns, two spaces apart: sections (`metadata`), their fields (`labels`; of
    `containers` the dashes stand there, too), and the entries of those. One pattern finds the
    lines at these columns, in the last one only those that may matter: most lines of a pod stand
    deeper. Raises `_UnfamiliarError` where what is wanted is not as plain as that.
    """

    __slots__ = ("_elements", "_entries", "_fields", "_found", "_keys", "_margin", "_section")

    def __init__(self, margin: int) -> None:
        self._margin = margin
        self._found: dict[str, object] = {}
        self._section: dict[str, object] = {}
        self._fields: _Wanted | None = None
        """What is wanted of the section at hand."""
        self._keys: _Keys = frozenset()
        """What is wanted of the field at hand."""
        self._entries: dict[str, object] | None = None
        self._elements: list[object] | None = None

    @classmethod
    def read(cls, text: str, wanted: _Wanted, margin: int) -> dict[str, object]:
        """Return what is wanted of a mapping whose keys stand at this column."""
        text = "\n" + text.rstrip("\n")
        first = _FIRST.match(text)
        if first is None or len(first[1]) != margin:
            raise _UnfamiliarError
        reading = cls(margin)
        reading._take(_lines(margin).findall(text), wanted)
        return reading._found

    def _take(self, lines: Iterable[_Line], wanted: _Wanted) -> None:
        for line in lines:
            column = len(line[0])
            if column == ENTRY:
                if self._entries is not None:
                    self._take_entry(line, self._entries)
            elif column == FIELD:
                if self._fields is not None:
                    self._take_field(line, self._fields)
            elif column == 0:
                self._take_section(line, wanted)
            elif self._fields is not None and (column < FIELD or self._entries is not None):
                raise _UnfamiliarError  # nothing may stand there, but in what is passed over

    def _take_section(self, line: _Line, wanted: _Wanted) -> None:
        key = line[2]
        self._fields = self._entries = self._elements = None
        kind = wanted.get(key, _PASSED_OVER)
        if not key or line[1] or kind is _NEVER_PLAIN:
            raise _UnfamiliarError
        if kind is None:
            self._found[key] = self._scalar(line, 0)
        elif kind is not _PASSED_OVER:
            self._section = {}
            self._found[key] = self._filled(line, 0, self._section)
            self._fields = kind

    def _take_field(self, line: _Line, fields: _Wanted) -> None:
        key = line[2]
        if line[1]:
            if self._elements is not None:
                self._entries = {}
                self._elements.append(self._entries)
                self._take_entry(line, self._entries)
            return
        self._entries = self._elements = None
        kind = fields.get(key, _PASSED_OVER)
        if not key:
            raise _UnfamiliarError
        if kind is None:
            self._section[key] = self._scalar(line, FIELD)
        elif isinstance(kind, list):
            self._keys, self._elements = kind[0], []
            self._section[key] = self._filled(line, FIELD, self._elements)
        elif kind is not _PASSED_OVER:
            self._keys, self._entries = kind, {}
            self._section[key] = self._filled(line, FIELD, self._entries)

    def _take_entry(self, line: _Line, entries: dict[str, object]) -> None:
        key = line[2]
        if key in self._keys or (_OURS in self._keys and key.startswith(PREFIX)):
            entries[key] = self._scalar(line, ENTRY)
        elif not key:
            raise _UnfamiliarError

    def _filled(self, line: _Line, column: int, lines: dict[str, object] | list[object]) -> object:
        """Return `lines` where those that follow fill it, else what the key's line itself says."""
        _, _, _, rest, space, mark = line
        text = rest.strip(" ")
        if text in _EMPTY:
            return _EMPTY[text]()
        deeper = len(space) - self._margin - column
        if text or mark in _SILENCE:
            raise _UnfamiliarError
        if (deeper, mark) == ((0, "-") if isinstance(lines, list) else (FIELD, "")):
            return lines
        if deeper > 0 or (deeper == 0 and mark):
            raise _UnfamiliarError
        return None

    def _scalar(self, line: _Line, column: int) -> object:
        """Return the scalar that a key at this column has in its line."""
        _, _, _, rest, space, mark = line
        deeper = len(space) - self._margin - column
        if deeper > 0 or mark in _SILENCE or (mark and deeper == 0):
            raise _UnfamiliarError  # it goes on, or may
        return _scalar(rest)


@lru_cache(maxsize=1024)
def _scalar(text: str) -> object:
    """Return the scalar that the rest of a line is."""
    text = text.strip(" ")
    if match := _SCALAR.fullmatch(text):
        if (plain := match[3]) is None:
            return match[match.lastindex or 0]
        for _, pattern in _RESOLVERS.get(plain[0], ()):
            if pattern.match(plain):
                break  # a number, or a word like `yes`
        else:
            return plain
    if text in _WORDS:
        return _WORDS[text]
    raise _UnfamiliarError


@lru_cache(maxsize=256)
def _lines(margin: int) -> re.Pattern[str]:
    """
    Return what finds the lines of a `_Plain` whose sections stand at this column.

    All of them at the first two columns, and at the third those with a key that may be wanted. Of
    what is unfamiliar there, or stands between them, the key is empty.
    """
    entry = r"\n" + " " * (margin + ENTRY)
    wanted = "|".join(
        re.escape(PREFIX) + r"(?:[^:#\n]*[^:#\s])?" if key == _OURS else re.escape(key)
        for key in sorted(_ENTRIES)
    )
    deeper = f"{' ' * (ENTRY + 1)}|{' ' * ENTRY}-"
    indent = rf"\n{' ' * margin}(?!{deeper})( {{0,{ENTRY}}}+)"
    dash = rf"((?<!{entry})- )?(?! )"
    key = rf"((?<!{entry}){_KEY}|{wanted}):(?: ([^\n]*))?(?=\n|\Z)"
    following = r"(?=(?:\n( *)([-#\n]?))?)"
    unfamiliar = rf"(?![ \n#]|\Z|{_KEY}:(?=[ \n]|\Z))"
    return re.compile(rf"{indent}{dash}(?:{key}{following}|{unfamiliar})")


def _says_nothing(line: str) -> bool:
    """Tell whether a line is empty or a comment."""
    text = line.lstrip()
    return not text or text.startswith("#")
