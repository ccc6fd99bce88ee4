"""
Pods in a file or a pipe, as `kubectl get pods -A -o yaml` or `-o json` prints them.

`read_objects` yields one pod after the other while the text is read: a large cluster's list is a
hundred megabytes, and no more of it is held than the pod at hand. Lists, single pods and several
documents of them are taken; what is no pod is passed over and counted.

Of YAML only what `tracker.pods.read_pod` looks at is read: PyYAML takes a minute, also with its C
parser, for what JSON takes a second. So a pod in the plain style that kubectl writes is read here
(`_read_plain`), by its indentation, and whatever else is skipped by it. A pod in any other style
(quotes with escapes, folded or flowing text where it matters, anchors) is given whole to PyYAML,
which then is the judge. Both ways end in the same `Pod`; a test holds them to it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
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
_PLAIN_KEY: Final = r"[^ \t\-?:,\[\]{}#&*!|>'\"%@`<=\n](?:[^:#\n]*[^:#\s])?:(?=[ \n]|\Z)"
"""A key that is read or passed over here."""
_SILENT: Final = r" *(?:#|\n|\Z)"
"""What a line that says nothing goes on with: a comment, or its end."""
_FIRST: Final = re.compile(rf"(?:\n(?={_SILENT})[^\n]*)*\n( *)(?=[^ \n])")
"""What stands before the first line that says something, and how deep that is."""
_EMPTY: Final[Mapping[str, Callable[[], object]]] = {
    "{}": dict,
    "[]": list,
    "null": lambda: None,
}

# What `read_pod` looks at. Of a mapping either the keys to read, each with what to read of it, or a
# set of keys whose values are scalars, as None stands for; what is in a list is read for each
# element of a sequence.
_Keys = frozenset[str]
_Wanted = Mapping[str, Any]
_NEVER_PLAIN: Final = object()
_OURS: Final = f"{PREFIX}*"
"""Every key with our prefix."""
_CONTAINER: Final = frozenset({"name", "image", "restartPolicy"})
_STATUS: Final = frozenset({"name", "image", "imageID"})
_OWNER: Final = frozenset({"apiVersion", "kind", "name", "controller"})
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
        "labels": frozenset({DEPLOYMENT_HASH, ROLLOUT_HASH}),
        "annotations": frozenset({MIRROR, _OURS}),
        "ownerReferences": [_OWNER],
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
        with suppress(_UnfamiliarError):
            return _read_plain(text, wanted)
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


def _read_plain(text: str, wanted: _Wanted) -> dict[str, object]:
    """
    Return what is wanted of a mapping in block style, read by its indentation.

    What is wanted is searched for, whatever else is passed over: a pod has a few hundred lines, and
    two dozen of them matter. Of a mapping only the lines at the column of its keys are looked at;
    those that stand deeper belong to the key above them. Raises `_UnfamiliarError` where a line
    there is not as plain as kubectl writes it, or what is wanted is not.
    """
    text = "\n" + text.rstrip("\n")
    first = _FIRST.match(text)
    if first is None:
        raise _UnfamiliarError
    return _mapping(text, 0, len(text), len(first[1]), wanted)


def _mapping(text: str, at: int, end: int, indent: int, wanted: _Wanted) -> dict[str, object]:
    """Return what is wanted of a mapping whose keys stand at this column."""
    found: dict[str, object] = {}
    search = _lines(indent, frozenset(wanted)).search
    while (match := search(text, at, end)) is not None:
        key, rest, goes_on = match.groups()
        if key is None:
            raise _UnfamiliarError
        at = match.end()
        kind = wanted[key]
        if kind is None:
            if goes_on:
                raise _UnfamiliarError
            found[key] = _scalar(rest or "")
            continue
        behind = _siblings(indent).search(text, at, end)
        last = end if behind is None else behind.start()
        value = (rest or "").strip(" ")
        if value in _EMPTY:
            found[key] = _EMPTY[value]()
        elif value or kind is _NEVER_PLAIN:
            raise _UnfamiliarError
        else:
            found[key] = _nested(text, at, last, indent, kind)
        at = last
    return found


def _scalars(text: str, at: int, end: int, indent: int, wanted: _Keys) -> dict[str, object]:
    """Return the wanted scalars of a mapping whose keys stand at this column."""
    found: dict[str, object] = {}
    for key, rest, goes_on in _lines(indent, wanted).findall(text, at, end):
        if not key or goes_on:
            raise _UnfamiliarError
        found[key] = _scalar(rest)
    return found


def _nested(text: str, at: int, end: int, indent: int, kind: Any) -> object:  # noqa: ANN401 - see _POD
    """Return the mapping or sequence below a key at this column."""
    first = _FIRST.match(text, at, end)
    if first is None:
        return None
    inner = len(first[1])
    if isinstance(kind, list):
        is_sequence = inner >= indent and text[first.end()] == "-"
        return _sequence(text, at, end, inner, kind[0]) if is_sequence else None
    if inner <= indent:
        return None
    if isinstance(kind, frozenset):
        return _scalars(text, at, end, inner, kind)
    return _mapping(text, at, end, inner, kind)


def _sequence(text: str, at: int, end: int, indent: int, wanted: _Keys) -> list[object]:
    """Return a sequence of mappings whose dashes stand at this column."""
    found: list[object] = []
    margin = "\n" + " " * (indent + 2)
    dashes = list(_dashes(indent).finditer(text, at, end))
    ends = [dash.start() for dash in dashes[1:]] + [end]
    for dash, last in zip(dashes, ends, strict=True):
        if dash[1] is None:
            raise _UnfamiliarError
        element = margin + text[dash.end() : last]
        found.append(_scalars(element, 0, len(element), indent + 2, wanted))
    return found


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


def _below(indent: int) -> str:
    """Return how a line begins that belongs to a key at this column above it."""
    return rf" {{{indent + 1}}}| {{{indent}}}-"


@lru_cache(maxsize=256)
def _siblings(indent: int) -> re.Pattern[str]:
    """Return what begins a line that does not belong to the key at this column before it."""
    return re.compile(rf"\n(?!{_below(indent)}|{_SILENT})")


@lru_cache(maxsize=256)
def _lines(indent: int, wanted: _Keys) -> re.Pattern[str]:
    """
    Return what finds, of a mapping at this column, the lines of the wanted keys.

    Its groups are the key, the rest of the line, and whether that goes on in the next, or may. It
    also finds, without a key, what is unfamiliar at that column or stands where nothing may.
    """
    keys = "|".join(
        re.escape(PREFIX) + r"(?:[^:#\n]*[^:#\s])?" if key == _OURS else re.escape(key)
        for key in sorted(wanted)
    )
    line = rf"({keys or '(?!)'}):(?: ([^\n]*))?(?=(\n(?:{_below(indent)}|\n))?)(?=\n|\Z)"
    here = rf" {{{indent}}}"
    return re.compile(
        rf"{_siblings(indent).pattern}(?:{here}(?:{line}|(?!{_PLAIN_KEY}))|(?!{here}))"
    )


@lru_cache(maxsize=256)
def _dashes(indent: int) -> re.Pattern[str]:
    """Return what finds a dash at this column; without one a line that may not stand there."""
    return re.compile(rf"\n(?! {{{indent + 1}}}|{_SILENT})(?: {{{indent}}}(- )(?![ \n#-]|\Z)|)")


def _says_nothing(line: str) -> bool:
    """Tell whether a line is empty or a comment."""
    text = line.lstrip()
    return not text or text.startswith("#")
