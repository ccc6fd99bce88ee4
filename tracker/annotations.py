"""
What people say about a deployment: annotations under `metadata.github.com/`.

Four words are known. `ignore` keeps a pod out of GitHub's records, `runtime-risks` is a comma list
of GitHub's four risks, `github-repository` names the repository of an image that has no
attestation; any other name is a tag. They may stand on a pod and on its workload, and the pod's
win, word by word and tag by tag.

Whoever may create a pod chooses this text. What GitHub would refuse is left out whole, never cut
or mended, and stands in `problems`; the work for one object is bounded however much it carries.

Fields and limits: https://docs.github.com/en/rest/orgs/artifact-metadata
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from heapq import nsmallest
from itertools import islice
from typing import Final

__all__ = [
    "IGNORE",
    "NO_MARKS",
    "PREFIX",
    "REPOSITORY",
    "RISKS",
    "Marks",
    "Problem",
    "read_marks",
]

PREFIX: Final = "metadata.github.com/"
IGNORE: Final = "ignore"
_RISKS: Final = "runtime-risks"
_REPOSITORY: Final = "github-repository"
_WORDS: Final = frozenset({IGNORE, _RISKS, _REPOSITORY})
_WORDS_WITH_PREFIX: Final = frozenset(PREFIX + word for word in _WORDS)

RISKS: Final = frozenset(
    {"critical-resource", "internet-exposed", "lateral-movement", "sensitive-data"}
)
"""The runtime risks that GitHub knows."""
REPOSITORY: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
"""A repository's bare name, by `fullmatch`."""
MAX_TAGS: Final = 5
MAX_LOOKED_AT: Final = 50
"""Annotations of one object that are looked at, the first by name; an object may have thousands."""
MAX_TAG_TEXT: Final = 100
"""Characters of a tag's name, and of its value."""
_MAX_RISKS_TEXT: Final = 1000
"""Characters of a list of risks that are looked at: four names take a tenth of it."""


class Problem(StrEnum):
    """Why a part of what was said is not used. A closed set: it is counted by these."""

    TAG = "tag-invalid"
    """Empty, over 100 characters, or not printable."""
    MANY_TAGS = "too-many-tags"
    """The first five by name are used."""
    RISK = "unknown-risk"
    REPOSITORY = "repository-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """
    What is said about a deployment, as far as it can be used.

    `ignored`, `risks` and `repository` are None where nothing is said. `tags` are sorted by name,
    `risks` too.
    """

    ignored: bool | None = None
    tags: tuple[tuple[str, str], ...] = ()
    risks: tuple[str, ...] | None = None
    repository: str | None = None
    problems: frozenset[Problem] = frozenset()

    def over(self, other: "Marks") -> "Marks":
        """Return both together; where both say something, this one's word counts."""
        if other == NO_MARKS:
            return self
        if self == NO_MARKS:
            return other
        tags = sorted((dict(other.tags) | dict(self.tags)).items())
        problems = self.problems | other.problems
        if len(tags) > MAX_TAGS:
            problems |= {Problem.MANY_TAGS}
        return Marks(
            ignored=other.ignored if self.ignored is None else self.ignored,
            tags=tuple(tags[:MAX_TAGS]),
            risks=other.risks if self.risks is None else self.risks,
            repository=other.repository if self.repository is None else self.repository,
            problems=problems,
        )


NO_MARKS: Final = Marks()
"""Nothing is said."""


def read_marks(annotations: Mapping[str, object]) -> Marks:
    """Return what these annotations of one object say. Takes any JSON object."""
    # The API server sends them sorted by name. The words are looked up, however much else there is.
    ours = (key for key in annotations if key.startswith(PREFIX))
    found = list(islice(ours, MAX_LOOKED_AT + 1))
    if not found:
        return NO_MARKS
    looked_at = {*found[:MAX_LOOKED_AT], *_WORDS_WITH_PREFIX}
    said = {key.removeprefix(PREFIX): annotations[key] for key in looked_at if key in annotations}
    problems: set[Problem] = set()
    return Marks(
        ignored={"true": True, "false": False}.get(_text(said.get(IGNORE))),
        tags=_tags(said, problems, more=len(found) > MAX_LOOKED_AT),
        risks=_risks(said, problems),
        repository=_repository(said, problems),
        problems=frozenset(problems),
    )


def _tags(
    said: Mapping[str, object], problems: set[Problem], *, more: bool
) -> tuple[tuple[str, str], ...]:
    good = ((name, _text(value)) for name, value in said.items() if name not in _WORDS)
    usable: list[tuple[str, str]] = []
    for name, value in good:
        if _is_tag_text(name) and _is_tag_text(value):
            usable.append((name, value))
        else:
            problems.add(Problem.TAG)
    if more or len(usable) > MAX_TAGS:
        problems.add(Problem.MANY_TAGS)
    return tuple(nsmallest(MAX_TAGS, usable))


def _is_tag_text(text: str) -> bool:
    # No control characters, nothing that turns a line's direction, no half of a character.
    return 0 < len(text) <= MAX_TAG_TEXT and text.isprintable() and not text.isspace()


def _risks(said: Mapping[str, object], problems: set[Problem]) -> tuple[str, ...] | None:
    if _RISKS not in said:
        return None
    text = _text(said[_RISKS])
    if len(text) > _MAX_RISKS_TEXT:
        problems.add(Problem.RISK)
        return None
    named = {part for each in text.lower().split(",") if (part := each.strip())}
    if not named <= RISKS:
        problems.add(Problem.RISK)
    known = tuple(sorted(named & RISKS))
    # Said and nothing of it known is not the same as said to be none.
    return known if known or not named else None


def _repository(said: Mapping[str, object], problems: set[Problem]) -> str | None:
    if _REPOSITORY not in said:
        return None
    text = _text(said[_REPOSITORY]).strip()
    if REPOSITORY.fullmatch(text) and text.strip("."):
        return text
    problems.add(Problem.REPOSITORY)
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
