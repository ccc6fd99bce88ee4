"""
A launcher: the unmodified tracker, with hooks that kill it at a named point.

    python -m tests.support.crashing --kill after-intent:3 -- -kubeconfig PATH

runs `deployment-tracker -kubeconfig PATH` and ends it by SIGKILL right after the third intent is
durable. A hook only looks on, and then there is nothing left that could be tidied up: what is lost
is what a power cut or the OOM killer would take. `--set tracker.entries.SETTLE_SECONDS=1` shortens
waits that no setting shortens; `--plant` builds in one defect (`tests.support.defects`), for the
tests of the checker; `--next-schema` is a later version of the program, whose ledger has one more
migration. The program's own arguments come after `--`.

Points that only the other side can see (the request has arrived) are not here: there the parent
kills, as it does at random times.
"""

import argparse
import functools
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any, ParamSpec, TypeVar, cast

from tests.support.defects import Defect, plant
from tracker import cli, ledger, ledger_file, ledger_schema
from tracker.answers import Acknowledged, Told
from tracker.cluster import Cluster
from tracker.delivery import Delivery
from tracker.entries import Entry, State
from tracker.github import GitHub
from tracker.ledger import SqliteLedger

__all__ = ["Point", "crashing_run"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Point(StrEnum):
    """Where the process ends itself; each is counted as often as it is passed."""

    EVENT = "after-event"
    """A name is in the queue for a pod's event; nothing of it is written."""
    UNWRITTEN = "before-intent"
    """What is to be sent is worked out, and not written down."""
    INTENT = "after-intent"
    """The intent is durable; no byte has left."""
    ANSWER = "after-answer"
    """GitHub said that it holds the record; that is not written down."""
    LIST = "after-list"
    """A list of reconcile has come; nothing was concluded from it."""
    ABSENCE = "after-uids"
    """The list that confirms absences, or that begins a start, has come."""
    BEGIN = "begin"
    """The ledger's writer thread is about to open a transaction."""
    BEFORE_COMMIT = "before-commit"
    AFTER_COMMIT = "after-commit"
    MIGRATING = "migrating"
    """A migration is done and not committed."""


STEPS = (Point.BEGIN, Point.BEFORE_COMMIT, Point.AFTER_COMMIT, Point.MIGRATING)
"""The points that the ledger's own `on_step` names."""

LATER_SCHEMA = "CREATE TABLE of_a_later_version (spare TEXT) STRICT"


def crashing_run(
    *arguments: str,
    kill: tuple[Point, int] | None = None,
    constants: dict[str, float] | None = None,
    defect: Defect | None = None,
    next_schema: bool = False,
) -> list[str]:
    """
    Return the command line of the tracker under this launcher.

    `kill` is a point and the how manieth pass of it is the last. `constants` are numbers by
    `module.NAME`.
    """
    command = [sys.executable, "-m", __name__]
    if kill is not None:
        command += ["--kill", f"{kill[0]}:{kill[1]}"]
    for name, value in (constants or {}).items():
        command += ["--set", f"{name}={value}"]
    if defect is not None:
        command += ["--plant", defect]
    if next_schema:
        command += ["--next-schema"]
    return [*command, "--", *arguments]


def main(argv: Sequence[str]) -> None:
    """Do what the arguments say to this process, then run the tracker in it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--plant", type=Defect)
    parser.add_argument("--next-schema", action="store_true")
    parser.add_argument("arguments", nargs="*")
    told = parser.parse_args(argv)
    for assignment in told.set:
        name, _, value = assignment.partition("=")
        set_constant(name, float(value))
    if told.next_schema:
        add_migration()
    if told.plant is not None:
        plant(told.plant)
    if told.kill is not None:
        point, _, count = told.kill.partition(":")
        hook(Point(point), Countdown(int(count)))
    cli.main(told.arguments)


class Countdown:
    """Ends the process the how manieth time it is called."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def set_constant(path: str, value: float) -> None:
    """Set a number of a module; it must be there, so that a renamed one is not missed."""
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    setattr(module, name, type(getattr(module, name))(value))


def add_migration() -> None:
    """Make the ledger's schema one version newer."""
    migrations = (*ledger_schema.MIGRATIONS, (LATER_SCHEMA,))
    replace(ledger, "migrate", lambda old: functools.partial(old, migrations=migrations))
    replace(ledger_file, "VERSION", lambda _old: len(migrations))


def hook(point: Point, passed: Callable[[], None]) -> None:
    """Have `passed` called each time that the point is passed."""
    if point in STEPS:
        replace(SqliteLedger, "__init__", lambda old: with_step(old, point, passed))
        return
    match point:
        case Point.EVENT:
            replace(Delivery, "touch", lambda old: then(old, passed))
        case Point.UNWRITTEN:
            replace(SqliteLedger, "put", lambda old: before_intent(old, passed))
        case Point.INTENT:
            replace(SqliteLedger, "put", lambda old: after_intent(old, passed))
        case Point.ANSWER:
            for name in ("send", "send_batch"):
                replace(GitHub, name, lambda old: after_acknowledgement(old, passed))
        case Point.LIST:
            replace(Cluster, "list_pods", lambda old: then_async(old, passed))
        case Point.ABSENCE:
            replace(Cluster, "pod_uids", lambda old: then_async(old, passed))
        case _:
            raise LookupError(point)


def replace(owner: object, name: str, make: Callable[[Any], object]) -> None:
    """Put something else in the place of an attribute that is there, made from what it was."""
    setattr(owner, name, make(getattr(owner, name)))


def then(function: Callable[_P, _R], passed: Callable[[], None]) -> Callable[_P, _R]:
    """Return the function with a call after it."""

    @functools.wraps(function)
    def followed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        result = function(*args, **kwargs)
        passed()
        return result

    return followed


def then_async(
    function: Callable[_P, Awaitable[_R]], passed: Callable[[], None]
) -> Callable[_P, Awaitable[_R]]:
    """Return the coroutine function with a call after it."""

    @functools.wraps(function)
    async def followed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        result = await function(*args, **kwargs)
        passed()
        return result

    return followed


def with_step(
    function: Callable[..., None], point: Point, passed: Callable[[], None]
) -> Callable[..., None]:
    """Return `SqliteLedger.__init__` with the ledger's own hook set."""

    def on_step(name: str) -> None:
        if name == point.value:
            passed()

    @functools.wraps(function)
    def hooked(*args: object, **kwargs: object) -> None:
        function(*args, **kwargs | {"on_step": on_step})

    return hooked


def before_intent(
    put: Callable[..., Awaitable[None]], passed: Callable[[], None]
) -> Callable[..., Awaitable[None]]:
    """Return `SqliteLedger.put` with a call before each intent."""

    async def hooked(self: SqliteLedger, *entries: Entry) -> None:
        if any(entry.state is State.SENDING for entry in entries):
            passed()
        await put(self, *entries)

    return hooked


def after_intent(
    put: Callable[..., Awaitable[None]], passed: Callable[[], None]
) -> Callable[..., Awaitable[None]]:
    """Return `SqliteLedger.put` with a call after each intent."""

    async def hooked(self: SqliteLedger, *entries: Entry) -> None:
        await put(self, *entries)
        if any(entry.state is State.SENDING for entry in entries):
            passed()

    return hooked


def after_acknowledgement(
    send: Callable[..., Awaitable[object]], passed: Callable[[], None]
) -> Callable[..., Awaitable[object]]:
    """Return `GitHub.send` or `send_batch` with a call after each acknowledgement."""

    async def hooked(*args: object) -> object:
        answer = await send(*args)
        if isinstance(answer, Acknowledged | Told):
            passed()
        return answer

    return hooked


if __name__ == "__main__":
    main(cast("Sequence[str]", sys.argv[1:]))
