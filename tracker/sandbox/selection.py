"""
Label and field selectors, as lists and watches take them.

Both come as text in a query. A selector that cannot be read, or a field that cannot be selected by,
is a 400 with the API server's words. The empty text selects everything and gives None, so that the
common case costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tracker.sandbox.statuses import ApiError, bad_request

if TYPE_CHECKING:
    from tracker.sandbox.resources import Resource

__all__ = ["Selector", "parse_fields", "parse_labels", "parse_selectors"]

Selector = Callable[[Mapping[str, Any]], bool]
"""Tells whether one object (as JSON) is selected."""

Labels = Mapping[str, str]

TOKEN = re.compile(r"\s*(!=|==|=|!|,|\(|\)|<|>|[^\s,()=!<>]+)")

POD_FIELDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "metadata.name": lambda body: str(body["metadata"]["name"]),
    "metadata.namespace": lambda body: str(body["metadata"].get("namespace", "")),
    "spec.nodeName": lambda body: str(body.get("spec", {}).get("nodeName", "")),
    "status.phase": lambda body: str(body.get("status", {}).get("phase", "")),
}
"""The fields of a pod that can be selected by here; a real server knows a few more."""

COMMON_FIELDS = ("metadata.name", "metadata.namespace")


def parse_selectors(resource: Resource, query: Mapping[str, str]) -> Selector | None:
    """Return one selector for a query's ``labelSelector`` and ``fieldSelector``, None for all."""
    labels = parse_labels(query.get("labelSelector", ""))
    fields = parse_fields(resource, query.get("fieldSelector", ""))
    if labels is None or fields is None:
        return labels or fields
    return lambda body: labels(body) and fields(body)


def parse_labels(text: str) -> Selector | None:
    """
    Return the selector a label selector describes, None for the empty one.

    Understood are ``a=b``, ``a==b``, ``a!=b``, ``a in (b,c)``, ``a notin (b,c)``, ``a`` and ``!a``,
    joined by commas. ``a!=b`` and ``a notin (b)`` also select objects without the label.
    """
    if not text.strip():
        return None
    requirements = _LabelParser(text).requirements()

    def matches(body: Mapping[str, Any]) -> bool:
        labels: Labels = body["metadata"].get("labels") or {}
        return all(requirement(labels) for requirement in requirements)

    return matches


def parse_fields(resource: Resource, text: str) -> Selector | None:
    """Return the selector of a field selector (``a=b``, ``a==b``, ``a!=b``), None if empty."""
    if not text.strip():
        return None
    terms: list[tuple[Callable[[Mapping[str, Any]], str], str, bool]] = []
    for term in filter(None, text.split(",")):
        name, operator, value = _split_field_term(term)
        terms.append((_field_of(resource, name), value, operator != "!="))

    def matches(body: Mapping[str, Any]) -> bool:
        return all((read(body) == value) is wanted for read, value, wanted in terms)

    return matches


def _split_field_term(term: str) -> tuple[str, str, str]:
    for operator in ("!=", "==", "="):
        name, found, value = term.partition(operator)
        if found:
            return name, operator, value
    message = f"invalid selector: '{term}'; can't understand '{term}'"
    raise bad_request(message)


def _field_of(resource: Resource, name: str) -> Callable[[Mapping[str, Any]], str]:
    if resource.plural == "pods":
        if name in POD_FIELDS:
            return POD_FIELDS[name]
        message = f"field label not supported: {name}"
        raise bad_request(message)
    if name in COMMON_FIELDS:
        return POD_FIELDS[name]
    message = f'"{name}" is not a known field selector: only "metadata.name", "metadata.namespace"'
    raise bad_request(message)


class _LabelParser:
    """A recursive-descent parser over the tokens of one label selector."""

    def __init__(self, text: str) -> None:
        self._tokens = TOKEN.findall(text)
        self._at = 0

    def requirements(self) -> list[Callable[[Labels], bool]]:
        """Return every requirement; the labels must meet all of them."""
        found = [self._requirement()]
        while self._peek() == ",":
            self._take()
            if not _is_word(self._peek()) and self._peek() != "!":
                message = f"found '{self._peek()}', expected: identifier after ','"
                raise bad_request(message)
            found.append(self._requirement())
        if self._peek():
            raise self._fail("',' or 'end of string'")
        return found

    def _requirement(self) -> Callable[[Labels], bool]:
        if self._peek() == "!":
            self._take()
            absent = self._word("identifier")
            return lambda labels: absent not in labels
        if not _is_word(self._peek()):
            message = f"found '{self._peek()}', expected: !, identifier, or 'end of string'"
            raise bad_request(message)
        key = self._take()
        match self._peek():
            case "" | ",":
                return lambda labels: key in labels
            case "=" | "==":
                self._take()
                value = self._value()
                return lambda labels: labels.get(key) == value
            case "!=":
                self._take()
                value = self._value()
                return lambda labels: labels.get(key) != value
            case "in":
                self._take()
                values = self._values()
                return lambda labels: labels.get(key) in values
            case "notin":
                self._take()
                values = self._values()
                return lambda labels: labels.get(key) not in values
            case _:
                raise self._fail("in, notin, =, ==, !=, gt, lt")

    def _values(self) -> frozenset[str]:
        if self._peek() != "(":
            raise self._fail("'('")
        self._take()
        values = set()
        while self._peek() != ")":
            if self._peek() == ",":
                self._take()
                continue
            if not _is_word(self._peek()):
                raise self._fail("',' or ')'")
            values.add(self._take())
        self._take()
        return frozenset(values or {""})

    def _value(self) -> str:
        """Return the value of an equality, which may be empty (``a=``)."""
        if self._peek() in {"", ","}:
            return ""
        return self._word("identifier")

    def _word(self, expected: str) -> str:
        if not _is_word(self._peek()):
            raise self._fail(expected)
        return self._take()

    def _peek(self) -> str:
        return str(self._tokens[self._at]) if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _fail(self, expected: str) -> ApiError:
        message = f"unable to parse requirement: found '{self._peek()}', expected: {expected}"
        return bad_request(message)


def _is_word(token: str) -> bool:
    return bool(token) and token not in {"!=", "==", "=", "!", ",", "(", ")", "<", ">"}
