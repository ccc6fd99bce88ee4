"""
The flags of the command line, by name: known without the settings, which are slow to import.

They are those of the Go deployment-tracker, whose flag package takes one dash or two.
"""

from collections.abc import Sequence
from typing import Final

__all__ = ["FLAGS", "FLAG_ONLY", "SWITCHES", "normalise"]

FLAGS: Final = ("kubeconfig", "namespace", "workers", "exclude_namespaces", "metrics_port")
"""Fields that have a flag: `exclude_namespaces` is `-exclude-namespaces`. Each takes a value."""

FLAG_ONLY: Final = ("kubeconfig",)
"""Fields without a variable of their own. (`KUBECONFIG` is read where the cluster is opened.)"""

SWITCHES: Final = ("dry-run", "help", "version")
"""Long flags without a value, which Go's flag package would take with one dash too."""


def normalise(argv: Sequence[str], *, switches: Sequence[str] = SWITCHES) -> list[str]:
    """
    Return the arguments with Go's `-namespace x` and `-workers=4` written `--namespace x`, ….

    Only flags that exist are touched: those of `FLAGS`, which take a value, and the `switches`,
    which don't. Their values, real short options (`-f`, `-h`, also `-fpods.yaml`) and everything
    after `--` stay as they are.
    """
    valued = {name.replace("_", "-") for name in FLAGS}
    known = valued.union(switches)
    result: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--":
            result.append(word)
            break
        name, equals, _ = word.lstrip("-").partition("=")
        dashes = len(word) - len(word.lstrip("-"))
        if name in known and dashes in {1, 2}:
            result.append(word if dashes == 2 else f"-{word}")  # noqa: PLR2004 - `--name`
            if name in valued and not equals:
                result.extend(value for value in (next(rest, None),) if value is not None)
        else:
            result.append(word)
    result.extend(rest)
    return result
