"""
What a pod's author can say to the tracker: annotations under `metadata.github.com/`.

Today that is one word: `metadata.github.com/ignore: "true"` keeps a pod out of GitHub's records.
"""

from collections.abc import Mapping

__all__ = ["IGNORE", "is_ignored"]

IGNORE = "metadata.github.com/ignore"


def is_ignored(annotations: Mapping[str, object]) -> bool:
    """Tell whether these annotations of a pod ask that it is not recorded."""
    return annotations.get(IGNORE) == "true"
