"""
What differs between what was seen and what a list shows, and how much of it is to be believed.

A list is the word of the API server about one moment. The pods that were seen are to be taken
from *before* the list was asked for: one that was seen since may be younger than the list, and its
absence there says nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["Drift", "Listed", "drift_of", "is_mass"]

MASS_NAMES = 20
"""Up to so many names at once are believed to have gone by one list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A pod as a metadata list shows it; `version` is its resourceVersion as a number."""

    namespace: str
    name: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """
    Uids of pods that were seen and are not there, and of those that are there otherwise.

    `lacking` was not seen, or is listed with another version than was seen.
    """

    gone: frozenset[str]
    lacking: frozenset[str]


def drift_of(seen: Mapping[str, int], listed: Mapping[str, Listed]) -> Drift:
    """
    Return what differs; `seen` is version by uid, taken before the list was asked for.

    One that was seen newer than it is listed lacks, too: what was seen is from before the list,
    so the cluster was restored from an older state and counts its versions anew.
    """
    return Drift(
        gone=frozenset(uid for uid in seen if uid not in listed),
        lacking=frozenset(
            uid for uid, pod in listed.items() if uid not in seen or seen[uid] != pod.version
        ),
    )


def is_mass(absent: Collection[str], standing: Collection[str]) -> bool:
    """
    Tell whether so many of the names that stand are absent that one list is not believed.

    An API server that answers with half of what it holds, or a watch pointed at the wrong
    cluster, looks the same as half of a cluster deleted at once.
    """
    return len(absent) > MASS_NAMES and 2 * len(absent) > len(standing)
