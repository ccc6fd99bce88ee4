"""
How each command of the documents is tried: one table, by the words that it begins with.

The longest beginning that fits counts. What is in no row is in no test, and a test says so.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum
from typing import Final

from tests.support.documents import DOCUMENTS, Command, commands

__all__ = ["TABLE", "Way", "documented", "way_of"]


class Way(Enum):
    """Where and how a command is tried."""

    ENDS = "against the simulated servers, to its end, with exit code 0"
    STAYS = "against the simulated servers, until it is in step; then it is stopped"
    CLUSTER = "against a real API server"
    KUBELET = "against a real API server, up to the kubelet that is not there"
    ELSEWHERE = "by what the table names"
    NOT = "not at all, for the reason that the table gives"


ENDS: Final = (Way.ENDS, "")
STAYS: Final = (Way.STAYS, "")
CLUSTER: Final = (Way.CLUSTER, "")
KUBELET: Final = (Way.KUBELET, "")

TABLE: Final[Mapping[str, tuple[Way, str]]] = {
    "deployment-tracker": ENDS,
    "deployment-tracker --dry-run": STAYS,
    "deployment-tracker -namespace": STAYS,
    "deployment-tracker once --retire": (Way.ELSEWHERE, "tests/test_once.py"),  # at a terminal
    "deployment-tracker run": STAYS,
    "deployment-tracker demo": (Way.ELSEWHERE, "tests/test_demo.py"),
    "eval": ENDS,
    "python -m tracker": STAYS,
    "python -m tracker doctor": ENDS,
    "python -m tracker status": ENDS,
    "python -m tests.support.generated": (Way.ELSEWHERE, "tests/test_docs.py"),
    "kopf run": (Way.NOT, "the name of a mode; with its file it is a command"),
    "kopf run tracker/main.py": STAYS,
    "kopf run -A tracker/main.py": STAYS,
    "make .venv/.dev": (Way.ELSEWHERE, "Makefile"),  # each target that tests begins with it
    "make bench": (Way.NOT, "minutes, and its figures are not for tests"),
    "make soak": (Way.NOT, "half an hour"),
    "python -m bench.pictures": (Way.NOT, "it draws anew what the documents show"),
    "make check": (Way.ELSEWHERE, ".github/workflows/ci.yml"),
    "make demo": (Way.ELSEWHERE, "tests/test_demo.py"),
    "make docs": (Way.ELSEWHERE, "tests/test_docs.py"),
    "make e2e": (Way.ELSEWHERE, "Makefile"),  # a part of `make check`, as are the next three
    "make faults": (Way.ELSEWHERE, "Makefile"),
    "make lint": (Way.ELSEWHERE, "Makefile"),
    "make test": (Way.ELSEWHERE, "Makefile"),
    "make fmt": (Way.NOT, "it changes the code; `make lint` fails where it would"),
    "make run": (Way.ELSEWHERE, "tests/test_program.py"),
    "make torture": (Way.ELSEWHERE, "tests/test_torture.py"),
    "kubectl": CLUSTER,
    "kubectl exec": KUBELET,
    "kubectl logs": KUBELET,
    "docker build": (Way.ELSEWHERE, "tests/test_image.py"),  # its steps, without a daemon
    "gh attestation verify": (Way.NOT, "it asks GitHub"),
    "pip install pre-commit": (Way.NOT, "it asks a package index, and changes the checkout"),
}


def way_of(command: Command) -> tuple[Way | None, str]:
    """Return how a command is tried, and a word on it; None when the table has nothing of it."""
    words = command.text.replace(".venv/bin/", "").split()
    for count in range(len(words), 0, -1):
        if found := TABLE.get(" ".join(words[:count])):
            return found
    return None, ""


def documented() -> Iterator[Command]:
    """
    Yield every command of the documents, each text once.

    What is run in a pod (`kubectl exec … -- COMMAND`) is a command of its own as well.
    """
    seen = set[str]()
    for document in DOCUMENTS:
        for command in commands(document):
            inner = re.fullmatch(r"kubectl exec .* -- (.*)", command.text)
            for text in (command.text, *(inner.groups() if inner else ())):
                if text not in seen:
                    seen.add(text)
                    yield replace(command, text=text)
