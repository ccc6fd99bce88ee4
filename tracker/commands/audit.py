"""
`audit`: cluster, ledger and GitHub side by side, and with `--fix` what differs posted again.

The cluster's side is what the operator's own judge says of a full list of pods; the ledger's is a
copy of its file, so that it may be read while the operator runs. GitHub is asked for one digest
after the other, at the pace of the settings, and its answers are kept in a file until all were
asked: five thousand of them take half an hour, and an interruption must not begin anew.

With `--fix` the tracker is opened for real: what is due is posted as the operator would, and what
GitHub lost is posted again by the same delivery. What GitHub holds and nobody here knows is only
told of: it may be another tracker's.
"""

import asyncio
import io
import os
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, assert_never

import structlog
from rich.text import Text

from tracker.answers import Failed, Forbidden, Known, Limited, NotFound, Rejected, Unauthorized
from tracker.app import (
    Tracker,
    copy_ledger,
    make_pace,
    open_github,
    open_tracker,
)
from tracker.commands.audit_file import AuditFile
from tracker.commands.once import (
    retried,
    run_until_stopped,
    see_everything,
    stopped_at_once,
    wait_until_idle,
)
from tracker.commands.output import (
    EXIT_FAILURE,
    EXIT_OK,
    Format,
    make_console,
    make_table,
    to_text,
    write_json,
)
from tracker.commands.progress import Progress
from tracker.commands.view import Kept
from tracker.entries import Entry
from tracker.errors import AuditFileError
from tracker.findings import Comparison, Finding, Held, compare, digests_of
from tracker.github import GitHub
from tracker.images import Digest
from tracker.inventory import Absent, Judgement
from tracker.inventory import Held as HeldByPods
from tracker.judging import covers
from tracker.settings import Settings
from tracker.stopping import Signals

__all__ = ["audit"]

MAX_IN_A_ROW: Final = 20
"""So many answers in a row that tell nothing, and nothing more is asked."""
FIXABLE: Final = frozenset(
    {Finding.MISSING, Finding.ELSEWHERE, Finding.NOT_POSTED, Finding.STANDING}
)
REPOSTED: Final = frozenset({Finding.MISSING, Finding.ELSEWHERE})
"""What GitHub acknowledged and does not hold: nothing is due of it, so it is to be asked for."""
ATTEMPTS: Final = 3
"""How often a digest is asked for that no answer comes to."""
SHOWN_DIGEST: Final = slice(len("sha256:"), len("sha256:") + 12)
NO_DIFFERENCE: Final = frozenset({Finding.AGREES, Finding.NOT_JUDGED})
"""A name that is not judged is another instance's, or of a ledger that is told of by itself."""
STYLES: Final = {
    Finding.AGREES: "green",
    Finding.NOT_JUDGED: "yellow",
    Finding.NOT_ASKED: "yellow",
}
FOOTNOTE: Final = "* the ledger's word: GitHub does not tell whether a record is deployed"

_log = structlog.get_logger(__name__)


def audit(  # noqa: PLR0913 - one parameter for each option
    settings: Settings,
    *,
    fix: bool,
    output: Format,
    show_all: bool,
    concurrency: int,
    resume: Path | None,
) -> int:
    """
    Hold cluster, ledger and GitHub against each other and show what differs; return the exit code.

    Raises `CredentialsError`, `ConnectionSettingError`, `LedgerError` or `AuditFileError` before
    anything is connected to.
    """
    with ExitStack() as stack:
        file = _open_file(stack, settings, resume)
        result = asyncio.run(_audit(settings, file, fix=fix, concurrency=concurrency))
        if result is None:
            return EXIT_FAILURE
        if file is not None and result.asked_all:
            file.remove()
    if output is Format.JSON:
        _show_json(result)
    else:
        _show_table(result, show_all=show_all)
    return EXIT_OK if result.is_good else EXIT_FAILURE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """
    What was found. `fixed` is None when nothing was to be, else whether all of it was.

    `foreign`: the ledger was kept for another cluster, so that what is absent here says nothing.
    """

    comparisons: Sequence[Comparison]
    digests: int
    asked: int
    has_ledger: bool
    foreign: bool
    fixed: bool | None

    @property
    def asked_all(self) -> bool:
        return self.asked == self.digests

    @property
    def is_good(self) -> bool:
        """Tell whether all that is ours to judge agrees, or was brought to."""
        if self.foreign:
            return False
        differing = {each.finding for each in self.comparisons} - NO_DIFFERENCE
        return not differing or (self.fixed is True and differing <= FIXABLE)


def _open_file(stack: ExitStack, settings: Settings, resume: Path | None) -> AuditFile | None:
    """Return where answers are kept, or None when there is no place for them."""
    path = resume
    if path is None and settings.ledger_path is not None:
        path = settings.ledger_path.with_name(f"{settings.ledger_path.name}.audit")
    if path is None:
        _log.info(
            "answers are kept nowhere: an interruption begins anew; name a file with --resume"
        )
        return None
    try:
        return stack.enter_context(AuditFile(path, identity=str(settings.identity)))
    except AuditFileError as error:
        if resume is not None:
            raise
        _log.warning("an interruption begins this audit anew", reason=str(error))
        return None


async def _audit(
    settings: Settings, file: AuditFile | None, *, fix: bool, concurrency: int
) -> _Result | None:
    """Return what was found, or None when it was interrupted."""
    signals = Signals()
    signals.take()
    try:
        with Progress("auditing", unit="digests", settings=settings) as progress:
            # stdout is for what is found; what a copy of the ledger would lead to is not told.
            lines = progress.stderr if fix else io.StringIO()
            async with open_tracker(
                settings, environ=os.environ, stdout=lines, dry_run=not fix, serves=False
            ) as tracker:
                # As they are before anything is posted, or only thought to be.
                entries = {entry.deployment_name: entry for entry in tracker.ledger.entries()}
                work = _Audit(
                    tracker=tracker,
                    entries=entries,
                    file=file,
                    progress=progress,
                    concurrency=concurrency,
                    fix=fix,
                )
                done = await run_until_stopped(
                    work.run,
                    failure=tracker.failure,
                    drain=tracker.drain if fix else _nothing,
                    signals=signals,
                )
    except asyncio.CancelledError:
        if not signals.hurried:
            raise
        stopped_at_once()
        return None
    if not done:
        _log.warning(
            "interrupted; run it again to go on"
            if file is not None
            else "interrupted; its answers were not kept",
            asked=len(work.answers),
            of=work.digests,
        )
        return None
    return work.result()


async def _nothing() -> None:
    """Stand for a drain where nothing is sent."""


class _Audit:
    """One audit at work. `answers` are GitHub's so far, of `digests` that are asked for."""

    def __init__(  # noqa: PLR0913 - each part is named
        self,
        *,
        tracker: Tracker,
        entries: Mapping[str, Entry],
        file: AuditFile | None,
        progress: Progress,
        concurrency: int,
        fix: bool,
    ) -> None:
        self.answers: dict[Digest, Known] = {}
        self.digests = 0
        self._tracker = tracker
        self._settings = tracker.settings
        self._entries = entries
        self._file = file
        self._progress = progress
        self._concurrency = concurrency
        self._fix = fix
        self._pace = make_pace(tracker.settings, tracker.ledger)
        self._pace.open()
        self._reasons: dict[Digest, str] = {}
        self._in_a_row = 0
        self._stop_reason = ""
        self._comparisons: list[Comparison] = []
        self._fixed: bool | None = None

    async def run(self) -> bool:
        """Ask and compare, and mend what differs if that was asked for; return True."""
        await see_everything(self._tracker)
        judgements = self._judgements()
        wanted = digests_of(judgements, self._entries)
        self.digests = len(wanted)
        if self._file is not None:
            earlier = self._file.answers
            self.answers = {digest: earlier[digest] for digest in wanted if digest in earlier}
        doubtful = frozenset(self.answers)
        left = self._pace.not_before - asyncio.get_running_loop().time()
        if left > 0:
            reason = "GitHub asked the tracker to wait"
            _log.warning("asking paused", seconds=round(left, 1), reason=reason)
        async with open_github(self._settings, environ=os.environ) as github:
            await self._ask(github, wanted - doubtful)
            self._comparisons = self._compare(judgements)
            await self._look_again(github, doubtful)
        if self._fix:
            self._fixed = await self._mend()
        return True

    def result(self) -> _Result:
        """Return what was found."""
        return _Result(
            comparisons=self._comparisons,
            digests=self.digests,
            asked=len(self.answers),
            has_ledger=self._settings.ledger_path is not None,
            foreign=self._tracker.is_foreign,
            fixed=self._fixed,
        )

    def _judgements(self) -> dict[str, Judgement]:
        """Return what the cluster says of each name, as the operator would judge it."""
        found = {}
        for name in self._tracker.names.union(self._entries):
            entry = self._entries.get(name)
            judgement = self._tracker.judge(name, None if entry is None else entry.held)
            if isinstance(judgement, Absent) and entry is not None and self._between_runs(entry):
                judgement = HeldByPods(displaced=False)
            found[name] = judgement
        return found

    def _unjudged(self) -> dict[str, str]:
        """Return why the pods that are watched don't speak of a name, by name."""
        held = frozenset(self._tracker.held())
        found = {}
        for name in self._entries.keys() - held:
            if self._tracker.is_foreign:
                found[name] = Kept.FOREIGN.value
            elif not covers(self._entries[name], watched=self._settings.namespace):
                found[name] = Kept.UNWATCHED.value
        return found

    def _between_runs(self, entry: Entry) -> bool:
        """Tell whether a name is one that a CronJob holds, which only its pods tell of."""
        return entry.workload.kind == "CronJob" and not self._settings.workloads

    def _compare(self, judgements: Mapping[str, Judgement]) -> list[Comparison]:
        has_ledger = self._settings.ledger_path is not None
        found = compare(
            judgements,
            self._entries if has_ledger else None,
            self.answers,
            scope=self._settings.scope,
            unjudged=self._unjudged(),
        )
        return [
            replace(each, reason=self._why_not_asked(each.digest))
            if each.finding is Finding.NOT_ASKED and each.digest is not None
            else each
            for each in found
        ]

    def _why_not_asked(self, digest: Digest) -> str:
        if digest in self.answers:
            return "GitHub's answer has not all of the digest's records"
        return self._reasons.get(digest, self._stop_reason)

    async def _look_again(self, github: GitHub, earlier: frozenset[Digest]) -> None:
        """
        Have what differs confirmed, where it may have changed since it was asked for or read.

        That is what an earlier audit was answered; and, while a tracker runs beside this, what was
        rolled out and posted since.
        """
        differing = [each for each in self._comparisons if each.finding not in NO_DIFFERENCE]
        if not differing or self._stop_reason:
            return
        before = self._entries
        if not self._fix:  # else nobody but this process posts, and what it posted is to be told
            await retried(self._tracker.reconcile)
            ledger = copy_ledger(self._settings)
            self._entries = {entry.deployment_name: entry for entry in ledger.entries()}
        judgements = self._judgements()
        again = {
            each.digest
            for each in differing
            if each.digest in earlier
            or _said(before.get(each.deployment_name))
            != _said(self._entries.get(each.deployment_name))
        }
        wanted = digests_of(judgements, self._entries)
        news = wanted - self.answers.keys() - self._reasons.keys()
        self.digests = len(wanted | self.answers.keys())
        await self._ask(github, news.union(digest for digest in again if digest is not None))
        self._comparisons = self._compare(judgements)

    async def _ask(self, github: GitHub, digests: Iterable[Digest]) -> None:
        """Ask for digests, so many at once, until each was answered or nothing is to be had."""
        queue = deque((digest, 1) for digest in sorted(digests))
        async with asyncio.TaskGroup() as group:
            for number in range(self._concurrency):
                group.create_task(self._ask_one_by_one(github, queue), name=f"audit-{number}")
        self._progress.show(len(self.answers), self.digests)

    async def _ask_one_by_one(self, github: GitHub, queue: deque[tuple[Digest, int]]) -> None:
        while queue and not self._stop_reason:
            self._progress.show(len(self.answers), self.digests)
            digest, attempt = queue.popleft()
            async with self._pace.turn():
                answer = await github.records_of(digest)
                pause = self._pace.note(answer)
            if pause:
                reason = getattr(answer, "reason", "")
                _log.warning("asking paused", seconds=round(pause, 1), reason=reason)
            match answer:
                case Known():
                    self._take(digest, answer)
                case NotFound():
                    self._take(digest, Known(records=(), complete=True))
                case Limited():
                    queue.appendleft((digest, attempt))
                case Unauthorized():
                    self._stop_reason = answer.reason
                case Failed() if attempt < ATTEMPTS:
                    queue.append((digest, attempt + 1))
                    self._miss(digest, answer.reason)
                case Failed() | Forbidden() | Rejected():
                    self._miss(digest, answer.reason)
                case _:
                    assert_never(answer)

    def _take(self, digest: Digest, answer: Known) -> None:
        self._in_a_row = 0
        self._reasons.pop(digest, None)
        self.answers[digest] = answer
        if self._file is not None:
            self._file.keep(digest, answer)

    def _miss(self, digest: Digest, reason: str) -> None:
        self._reasons[digest] = reason
        self._in_a_row += 1
        if self._in_a_row >= MAX_IN_A_ROW:
            self._stop_reason = reason
            _log.error("GitHub does not answer; nothing more is asked", reason=reason)

    async def _mend(self) -> bool:
        """Have what differs posted; return whether all of it was, and acknowledged."""
        began = asyncio.get_running_loop().time()
        lost = [each.deployment_name for each in self._comparisons if each.finding in REPOSTED]
        reposted = [self._tracker.repost(name) for name in lost]
        idle = await wait_until_idle(
            lambda: self._tracker.unfinished,
            lambda: self._tracker.names,
            ledger=self._tracker.ledger,
            since=began,
            pace=self._tracker.pace,
            progress=self._progress,
        )
        if not idle or not all(reposted) or self._tracker.unacknowledged():
            return False
        # A name between two runs of its CronJob, say, is not posted though it was asked for.
        told = [self._tracker.ledger.get(name) for name in lost]
        return all(each is not None and (each.acknowledged_at or 0.0) >= began for each in told)


def _said(entry: Entry | None) -> tuple[object, ...]:
    """Return what of an entry GitHub's answers are held against."""
    return () if entry is None else (entry.acknowledged, entry.in_doubt)


# What is shown.


def _show_table(result: _Result, *, show_all: bool) -> None:
    console = make_console()
    shown = [each for each in result.comparisons if show_all or each.finding is not Finding.AGREES]
    if shown:
        ledger = "ledger*" if result.has_ledger else "ledger"
        console.print(
            make_table(
                ("deployment name", "digest", "cluster", ledger, "GitHub", "finding"),
                [_row(each) for each in shown],
            )
        )
        console.print()
    for reason, names in _reasons(shown):
        console.print(to_text(f"{names[0]}{_more(len(names) - 1)}: {reason}", style="dim"))
    counts = Counter(each.finding for each in result.comparisons)
    told = ", ".join(f"{counts[each]} {each.value}" for each in Finding if counts[each])
    console.print(to_text(f"{len(result.comparisons)} names: {told or 'nothing to compare'}"))
    if shown and result.has_ledger:
        console.print(to_text(FOOTNOTE, style="dim"))
    if result.fixed is not None:
        console.print(to_text(_told_of_fix(result)))
    elif any(each.finding in FIXABLE for each in result.comparisons):
        console.print(to_text("the tracker posts what is due by itself; --fix posts all of it now"))


def _told_of_fix(result: _Result) -> str:
    fixable = sum(each.finding in FIXABLE for each in result.comparisons)
    if not fixable:
        return "there was nothing to post"
    if result.fixed:
        return f"what differed was posted, and GitHub acknowledged it: {fixable} names"
    return "what differed was posted, but not all of it, or not acknowledged: see status"


def _row(each: Comparison) -> list[object]:
    style = STYLES.get(each.finding, "red")
    return [
        each.deployment_name,
        (each.digest or "")[SHOWN_DIGEST],
        each.cluster or "-",
        each.ledger or "-",
        each.github.value,
        Text(each.finding.value, style=style),
    ]


def _reasons(shown: Iterable[Comparison]) -> Iterable[tuple[str, list[str]]]:
    """Yield each reason once, with the names that have it."""
    found: dict[str, list[str]] = {}
    for each in shown:
        if each.reason:
            found.setdefault(f"{each.finding.value}: {each.reason}", []).append(
                each.deployment_name
            )
    return found.items()


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _show_json(result: _Result) -> None:
    counts = Counter(each.finding.value for each in result.comparisons)
    write_json(
        {
            "agree": result.is_good,
            "digests": {"total": result.digests, "answered": result.asked},
            "findings": dict(sorted(counts.items())),
            "fixed": result.fixed,
            "names": [
                {
                    "deployment_name": each.deployment_name,
                    "digest": each.digest,
                    "cluster": each.cluster or None,
                    # The ledger's word: GitHub does not tell whether a record is deployed.
                    "ledger_status": each.ledger or None,
                    "github": None if each.github is Held.NOT_KNOWN else each.github.value,
                    "finding": each.finding.value,
                    "reason": each.reason,
                }
                for each in result.comparisons
            ],
        }
    )
