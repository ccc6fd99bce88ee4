"""
Pods in a file or a pipe, as `kubectl get pods -A -o yaml` or `-o json` prints them.

`read_objects` yields one pod after the other while the text is read: a large cluster's list is a
hundred megabytes, and no more of it is held than the pod at hand. Lists, single pods and several
documents of them are taken; what is no pod is passed over and counted.

Of YAML only what `tracker.pods.read_pod` looks at is read: PyYAML takes a minute, also with its C
parser, for what JSON takes a second. So the lines of a pod in the plain style that kubectl writes
are read here (`_Plain`), by their indentation, and whatever else is skipped by it. A pod in any
other style (quotes with escapes, folded or flowing text where it matters, anchors) is given whole
to PyYAML, which then is the judge. Both ways end in the same `Pod`; a test holds them to it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NoReturn, Self, TextIO

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
_ODD: Final = frozenset(" \t-?:,[]{}#&*!|>'\"%@`<=")
"""How no key begins that is read or skipped here."""
_BEHIND_KEY: Final = frozenset({"", " ", "\n"})
_EMPTY: Final[Mapping[str, Callable[[], object]]] = {
    "{}": dict,
    "[]": list,
    "null": lambda: None,
}

# What `read_pod` looks at. A mapping names the keys to read; None stands for a scalar, and what is
# in a list is read for each element of a sequence.
_Wanted = Mapping[str, Any]
_SKIP: Final = object()
_NEVER_PLAIN: Final = object()
_OURS: Final = f"{PREFIX}*"
"""Every key with our prefix."""
_CONTAINER: Final[_Wanted] = {"name": None, "image": None, "restartPolicy": None}
_STATUS: Final[_Wanted] = {"name": None, "image": None, "imageID": None}
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
        "labels": {DEPLOYMENT_HASH: None, ROLLOUT_HASH: None},
        "annotations": {MIRROR: None, _OURS: None},
        "ownerReferences": [{"apiVersion": None, "kind": None, "name": None, "controller": None}],
    },
    "spec": {"containers": [_CONTAINER], "initContainers": [_CONTAINER]},
    "status": {
        "phase": None,
        "containerStatuses": [_STATUS],
        "initContainerStatuses": [_STATUS],
    },
}


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
            if not listed and line.rstrip() == "items:":
                listed = self.whole = True
                for element in text.elements():
                    yield text.load(element, _POD), True
            else:
                head.append(line)
        if listed:
            # What cut the list short would be left out with all that follows: it is an error.
            if not isinstance(text.load("".join(head), {}), Mapping):
                text.fail("its list ends in mid-text")
            return
        if all(_says_nothing(line) for line in head):
            return
        found = text.load("".join(head), {**_POD, "items": _NEVER_PLAIN})
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

    def elements(self) -> Iterator[str]:
        """Yield each element of the sequence that follows, its dash made a space."""
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
            yield inner + element[indent + 2 :]
            if last is not None or found < 0:
                return

    def load(self, text: str, wanted: _Wanted) -> object:
        """Return what a text says: of a pod in the plain style, what is wanted of it."""
        for reading in (_Plain.glued, _Plain.whole):
            with suppress(_UnfamiliarError):
                return reading(text).read(wanted)
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


class _Plain:
    """
    The lines of one mapping in block style, read by their indentation.

    Raises `_UnfamiliarError` where a wanted part is not as plain as kubectl writes it.
    """

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._end = len(lines)
        self._at = 0

    @classmethod
    def whole(cls, text: str) -> Self:
        """Return a reading of all lines."""
        return cls(text.split("\n"))

    @classmethod
    def glued(cls, text: str) -> Self:
        """
        Return one that takes a line and those below it that stand too deep to matter for one.

        Nothing that is wanted stands there as kubectl indents it, and it is most of a pod.
        """
        indent = len(text) - len(text.lstrip(" "))
        lines = _shallow(indent).split(text)
        for line in lines:
            # What is glued to a line that says nothing is not that line's.
            if "\n" in line and _says_nothing(line.partition("\n")[0]):
                raise _UnfamiliarError
        return cls(lines)

    def read(self, wanted: _Wanted) -> dict[str, object]:
        """Return what is wanted of the mapping, to the last line."""
        self._skip_empty()
        if self._at == self._end:
            raise _UnfamiliarError
        line = self._lines[self._at]
        found = self._mapping(len(line) - len(line.lstrip(" ")), wanted)
        self._skip_empty()
        if self._at < self._end:
            raise _UnfamiliarError
        return found

    def _mapping(self, indent: int, wanted: _Wanted) -> dict[str, object]:
        """Read a mapping whose keys stand at this column."""
        found: dict[str, object] = {}
        margin, within = " " * indent, (" " * (indent + 1), " " * indent + "-")
        lines, end, at = self._lines, self._end, self._at
        every = _OURS in wanted
        while at < end and (line := lines[at]).startswith(margin):
            key, colon, rest = line[indent:].partition(":")
            kind = wanted.get(key, _SKIP)
            if kind is _SKIP:
                if key[:1] == "-":
                    break  # the next element of the sequence it is in
                if not key or key[0] in _ODD or "\n" in key:
                    _check_empty(line)
                    at += 1
                    continue
                if every and key.startswith(PREFIX):
                    kind = None
            if not colon or rest[:1] not in _BEHIND_KEY:
                raise _UnfamiliarError
            at += 1
            if kind is _SKIP:
                while at < end and (lines[at].startswith(within) or not lines[at]):
                    at += 1
                continue
            self._at = at
            text = rest.strip(" ")
            found[key] = (
                self._scalar(text, within[0]) if kind is None else self._nested(text, indent, kind)
            )
            at = self._at
            if at < end and len(lines[at]) <= indent:
                self._skip_empty()
                at = self._at
        self._at = at
        return found

    def _nested(self, rest: str, indent: int, kind: object) -> object:
        """Return the mapping or sequence that is the value of a key at this column."""
        if rest in _EMPTY:
            return _EMPTY[rest]()
        if rest or kind is _NEVER_PLAIN:
            raise _UnfamiliarError
        self._skip_empty()
        line = self._lines[self._at] if self._at < self._end else ""
        inner = len(line) - len(line.lstrip(" "))
        if isinstance(kind, Mapping) and inner > indent:
            return self._mapping(inner, kind)
        if isinstance(kind, list) and inner >= indent and line[inner : inner + 1] == "-":
            return self._sequence(inner, kind[0])
        return None

    def _sequence(self, indent: int, wanted: _Wanted) -> list[object]:
        """Return a sequence of mappings whose dashes stand at this column."""
        found: list[object] = []
        dash, inner = " " * indent + "- ", " " * (indent + 2)
        while self._at < self._end and self._lines[self._at].startswith(dash):
            self._lines[self._at] = inner + self._lines[self._at][indent + 2 :]
            found.append(self._mapping(indent + 2, wanted))
            self._skip_empty()
        if self._at < self._end and self._lines[self._at].startswith(dash[:-1]):
            raise _UnfamiliarError  # what begins on the line below its dash
        return found

    def _scalar(self, text: str, deeper: str) -> object:
        """Return a scalar that ends with its line."""
        if self._at < self._end:
            line = self._lines[self._at]
            if line.startswith(deeper) or (not line and self._at < self._end - 1):
                raise _UnfamiliarError  # it goes on, or may
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

    def _skip_empty(self) -> None:
        while self._at < self._end and _says_nothing(self._lines[self._at]):
            self._at += 1


def _says_nothing(line: str) -> bool:
    """Tell whether a line is empty or a comment."""
    text = line.lstrip()
    return not text or text.startswith("#")


def _check_empty(line: str) -> None:
    if not _says_nothing(line):
        raise _UnfamiliarError


@cache
def _shallow(indent: int) -> re.Pattern[str]:
    """Return what ends a line, but before one that stands deep in a mapping at this column."""
    return re.compile(rf"\n(?! {{{indent + 5}}}| {{{indent + 4}}}-)")
