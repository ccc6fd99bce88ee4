"""
What every step of the demo works with: both servers, the stage, the tracker, and how to wait.

What should agree is worked out from the API server's own objects (`tracker.sandbox.truth`), never
by the tracker's code; the ledger is read by the tracker's own `status`, as a person would.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.exchanges import Exchange, Outcome
from tracker.sandbox.github import NotReachedError, SimulatedGitHub
from tracker.sandbox.screen import Screen
from tracker.sandbox.stage import Played, Stage
from tracker.sandbox.tracker_process import PATIENCE_SECONDS, Ran, StoryError, TrackerProcess
from tracker.sandbox.truth import Comparison, compare, should_stand

__all__ = ["Line", "Stand", "line_of", "records_of", "repeated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One deployment name on three sides; "" is nothing. `why` says what is wrong, if it is."""

    comparison: Comparison
    ledger_digest: str = ""
    ledger_status: str = ""
    why: str = ""


@dataclass(slots=True, kw_only=True)
class Stand:
    """What every step works with; `workloads` is filled by the first one."""

    screen: Screen
    cluster: SimulatedCluster
    github: SimulatedGitHub
    stage: Stage
    tracker: TrackerProcess
    pods: int
    workloads: dict[str, Played] = field(default_factory=dict)
    scaled_at: int = 0
    """How many posts there were when a workload began to scale: it must have added none."""

    async def agreed(self, what: str) -> None:
        """Wait until GitHub holds what the cluster runs, and the tracker has told of it."""

        def agree() -> bool:
            return all(comparison.agrees for comparison in self.comparisons())

        await self.until(agree, what)
        await self.until(self._answered, f"the answers to {what}")
        acknowledged = sum(
            outcome is Outcome.ACKNOWLEDGED
            for exchange in self.github.posts()
            for outcome in exchange.outcomes().values()
        )
        await self._unless_ended(
            self.tracker.until(
                lambda: sum(" OK " in line for line in self.tracker.lines) >= acknowledged,
                f"the lines of {acknowledged} acknowledged records",
            )
        )

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what GitHub is to see. Raises StoryError, at once when the tracker has ended."""
        try:
            await self._unless_ended(
                self.github.until(condition, within=PATIENCE_SECONDS, why=what)
            )
        except NotReachedError as error:
            raise StoryError(str(error)) from None

    async def told(self, matches: Callable[[str], bool], what: str) -> None:
        """Wait until the tracker says such a line. Raises StoryError."""
        await self._unless_ended(
            self.tracker.until(lambda: any(map(matches, self.tracker.lines)), what)
        )

    async def command(self, *arguments: str, well: Sequence[int] = (0,)) -> Ran:
        """Run a command of the tracker's. Raises StoryError when it does not end well."""
        ran = await self.tracker.run(*arguments)
        if ran.code not in well:
            message = f"{' '.join(arguments)} ended with exit code {ran.code}\n{ran.stdout}"
            raise StoryError(message + ran.stderr)
        return ran

    def comparisons(self) -> list[Comparison]:
        """Return cluster and GitHub side by side."""
        return compare(should_stand(self.cluster.objects("pods")), self.github.table)

    async def lines(self) -> list[Line]:
        """Return cluster, ledger and GitHub side by side, the ledger as `status` tells of it."""
        ran = await self.command("status", "--all", "--offline", "-o", "json", well=(0, 1))
        ledger = {each["deployment_name"]: each for each in json.loads(ran.stdout)["names"]}
        found = [line_of(each, ledger.pop(each.deployment_name, {})) for each in self.comparisons()]
        if ledger:
            message = f"the ledger has names that nobody else has: {', '.join(sorted(ledger))}"
            raise StoryError(message)
        return found

    def _answered(self) -> bool:
        return all(exchange.ended is not None for exchange in self.github.posts())

    async def _unless_ended(self, awaited: Any) -> None:  # noqa: ANN401 - any coroutine
        """Await it unless the tracker ends before."""
        seen = asyncio.ensure_future(awaited)
        ended = asyncio.create_task(self.tracker.ended())
        try:
            await asyncio.wait({seen, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not seen.done():
                message = f"the tracker ended with exit code {ended.result()}"
                raise StoryError(message)
            seen.result()
        finally:
            seen.cancel()
            ended.cancel()
            await asyncio.gather(seen, ended, return_exceptions=True)


def line_of(comparison: Comparison, entry: Mapping[str, Any]) -> Line:
    """Return a name's line; `entry` is what `status` tells of it, empty when it has nothing."""
    acknowledged = entry.get("acknowledged") or {}
    digest, status = acknowledged.get("digest", ""), acknowledged.get("status", "")
    why = comparison.why
    if not why and entry.get("state") != "acknowledged":
        why = f"the ledger has it as {entry.get('state', 'unknown')}"
    elif not why and (digest, status) != (comparison.github, comparison.status):
        why = "the ledger has it otherwise"
    return Line(comparison=comparison, ledger_digest=digest, ledger_status=status, why=why)


def records_of(exchanges: Sequence[Exchange]) -> list[tuple[str, str]]:
    """Return deployment name and status of each record that these posts wrote."""
    return [(row.deployment_name, row.status) for each in exchanges for row in each.rows]


def repeated(exchanges: Sequence[Exchange]) -> tuple[list[str], list[str]]:
    """
    Return the names that were posted twice in a row in the same state: for a reason, and without.

    A reason is that the first answer never arrived: then nobody can know whether it was written.
    """
    last: dict[str, tuple[str, str]] = {}
    known: dict[str, bool] = {}
    explained: list[str] = []
    needless: list[str] = []
    for exchange in exchanges:
        outcomes = exchange.outcomes()
        for row in exchange.rows:
            name, state = row.deployment_name, (row.digest, row.status)
            if last.get(name) == state:
                (needless if known[name] else explained).append(name)
            last[name] = state
            known[name] = outcomes.get(name) is Outcome.ACKNOWLEDGED
    return explained, needless
