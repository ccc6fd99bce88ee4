"""
Wiring: from settings to a running tracker, without Kopf.

`Tracker` is what lives as long as the process: the inventory, the queue with its workers, the
lists, the ledger, the client for GitHub. It is told of pods (`see`, `lose`) by whoever watches
them, so that the watch may fail and start again without any of it being lost.
"""

import asyncio
import importlib.metadata
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import TextIO

import structlog

from tracker import __version__
from tracker.auth import AppToken, FixedToken, TokenFile, read_key, read_key_file
from tracker.catalog import Catalog, Kept
from tracker.cluster import Cluster
from tracker.condition import Condition
from tracker.delivery import Delivery, Sender
from tracker.drift import is_mass
from tracker.entries import Account, Entry, account_of
from tracker.errors import LedgerError, ListError
from tracker.github import DryRun, GitHub, Tokens
from tracker.health import HealthServer
from tracker.inventory import Absent, Deployed, Held, Inventory, Judgement
from tracker.judging import covers, is_kept, leaves_out
from tracker.ledger import MemoryLedger, SqliteLedger
from tracker.ledger_reader import read_ledger
from tracker.logs import Lines
from tracker.lookups import Lookups
from tracker.metrics import Metrics
from tracker.pacing import Pace
from tracker.pods import Pod, Skipped, read_pod
from tracker.reconcile import Absences, Reconciler, Sightings, see_everything, to_repost
from tracker.records import Record, Status, render
from tracker.settings import Settings
from tracker.transport import Transport, proxy_of
from tracker.vitals import Vitals

__all__ = [
    "DRY_RUN",
    "USER_AGENT",
    "Ledger",
    "Tracker",
    "copy_ledger",
    "make_lines",
    "make_pace",
    "open_github",
    "open_ledger",
    "open_tokens",
    "open_tracker",
]

Ledger = MemoryLedger | SqliteLedger

USER_AGENT = f"deployment-tracker/{__version__}"
GONE_SECONDS = 600.0
"""How long a pod that a list showed to be gone stays so, whatever a late event says."""
KEEP_DECOMMISSIONED_SECONDS = 30 * 24 * 3600.0
"""How long the ledger remembers what was decommissioned."""

FRESH_PART = 0.1
"""Of the reconcile interval: workloads that were all read so long ago are not read again."""
REASONS_TOLD = 10
"""Of the reasons why names are not acknowledged the most frequent ones are told in a line."""
AGEING_SECONDS = 24 * 3600.0
DRY_RUN = "a dry run: nothing is sent to GitHub, and nothing is written to the ledger"
"""What is said at the start of one."""
DRY_RATE = 1000.0
"""Posts a second of a dry run, which asks nobody for anything."""

_log = structlog.get_logger(__name__)


class Tracker:
    """
    The parts of a running tracker and the few ways into them.

    Build it with `open_tracker`, which also runs and stops its tasks. `foreign` says that the
    ledger was kept for another cluster than the one of this `fingerprint`: what is absent here is
    no deletion then. In a `dry_run` nothing is sent: `github` is
    one that only answers.
    """

    def __init__(  # noqa: PLR0913 - each part is named, so that a test builds it without the rest
        self,
        *,
        settings: Settings,
        cluster: Cluster,
        github: Sender,
        ledger: Ledger,
        stdout: TextIO,
        metrics: Metrics,
        foreign: bool,
        fingerprint: str,
        dry_run: bool = False,
    ) -> None:
        self.metrics = metrics
        self._vitals = Vitals()
        chance = random.SystemRandom().random
        self.settings = settings
        self.cluster = cluster
        self.ledger = ledger
        self.pace = make_pace(settings, ledger, dry_run=dry_run)
        self.catalog = Catalog(enabled=settings.workloads)
        self.inventory = Inventory(
            template=settings.dn_template,
            marks_of=self.catalog.marks,
            resolve=self.catalog.resolve,
        )
        self._rules = settings.rules
        self._kept = Kept()
        self._workloads_read_at = -inf
        self._fingerprint = fingerprint
        self._foreign = foreign
        self._dry_run = dry_run
        self._chance = chance
        self._gone: dict[str, float] = {}
        self._uncovered_told = False
        self._shared_told: set[str] = set()
        self._unrecorded_told: dict[str, int] = {}
        self._accounts_told: dict[str, object] = {}
        self._problems_told: dict[str, int] = {}
        self._sightings = Sightings(known=self.inventory.__contains__)
        self._lookups = Lookups(
            reader=cluster,
            catalog=self.catalog,
            touch=self._touch,
            learned=self._reassign,
            alive=self._vitals.expecting("lookups"),
        )
        self._absences = Absences(
            lists=cluster,
            sightings=self._sightings,
            living=self.inventory.living,
            touch=self._touch,
            chance=chance,
            delay_seconds=settings.decommission_delay.total_seconds(),
            # Where CronJobs are read, the CronJob itself says whether there will be a next run.
            cronjob_seconds=0.0 if settings.workloads else settings.cronjob_hold.total_seconds(),
            spans_namespaces="{{namespace}}" not in settings.dn_template,
            astray=self.request_reconcile,
            read_workloads=self._lookups.read,
            keep=self._keep,
            alive=self._vitals.expecting("absences"),
            unwanted=self._is_unwanted,
        )
        self._reconciler = Reconciler(
            pods=cluster,
            view=self,
            gone_meanwhile=self._sightings.gone_meanwhile,
            chance=chance,
            interval_seconds=settings.reconcile_interval.total_seconds(),
            alive=self._vitals.expecting("reconcile"),
            passed=lambda well: metrics.reconciled(well=well),
        )
        self._delivery = Delivery(
            judge=self.judge,
            ledger=ledger,
            sender=github,
            absences=self._absences,
            reporter=make_lines(settings, stdout, dry_run=dry_run),
            pace=self.pace,
            workers=settings.workers,
            batches=bool(settings.cluster) and settings.bulk_cluster_sync,
            chance=chance,
            not_found_seconds=settings.not_found_interval.total_seconds(),
            meter=metrics,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.condition = Condition(
            hindrances=settings.hindrances(),
            reads_workloads=settings.workloads,
            inventory=self.inventory,
            ledger=ledger,
            pace=self.pace,
            delivery=self._delivery,
            lookups=self._lookups,
            vitals=self._vitals,
            metrics=metrics,
        )

    # What the watch tells.

    def see(self, raw: object) -> None:
        """Take note of a pod as the API server tells of it (decoded JSON). Never raises."""
        self._see(self.read(raw), surely=False)

    def lose(self, uid: str) -> None:
        """Take note that the pod of this uid is gone."""
        self._sightings.note_gone(uid)
        self._change(uid, self.inventory.remove(uid))

    def watch_asked(self) -> None:
        """Take note that the API server is asked for a list or a watch: the last one is over."""
        self.condition.asked()
        self._absences.distrust()

    def watch_began_anew(self) -> None:
        """Take note that the watch begins with a list: what went before it, it will not tell."""
        self.inventory.doubt()
        self.request_reconcile()

    def request_reconcile(self) -> None:
        """Take note that the watch began anew: what went in the gap it will not tell."""
        self._reconciler.request()

    # What does without a watch (`tracker.commands`).

    async def see_all(self) -> None:
        """Take note of every pod that there is. Raises `ListError`."""
        async for raw in self.cluster.each_pod():
            self.see(raw)

    async def reconcile(self) -> None:
        """Compare what was seen with what is there, once, and mend it. Raises `ListError`."""
        await self._reconciler.once()

    @property
    def unfinished(self) -> frozenset[str]:
        """Return the names of which something is to be sent, settled or confirmed yet."""
        return self._delivery.unfinished | self._absences.unfinished | self._lookups.unfinished

    @property
    def names(self) -> frozenset[str]:
        """Return all names: those that pods declare and those of the ledger."""
        known = (entry.deployment_name for entry in self.ledger.entries())
        return frozenset(self.inventory.names()).union(known)

    @property
    def is_foreign(self) -> bool:
        """Tell whether the ledger was kept for another cluster: what is absent stays as it is."""
        return self._foreign

    def unacknowledged(self) -> list[Entry]:
        """Return the entries that are ours to deliver and of which not all is acknowledged."""
        return [
            entry
            for entry in self.ledger.entries()
            if account_of(entry) is not Account.ACKNOWLEDGED and self._covers(entry)
        ]

    def repost(self, name: str) -> bool:
        """
        Have what is acknowledged of a name posted again: GitHub may have lost it.

        Return False, and do nothing, for one that is not ours to speak of: of another cluster, or
        of a namespace that is not watched.
        """
        entry = self.ledger.get(name)
        if entry is None or self._foreign or not self._covers(entry):
            return False
        self._delivery.repost(name)
        return True

    # What reconcile sees and tells.

    def versions(self) -> Mapping[str, int]:
        """Return the version of each pod that was seen, by uid, as of now."""
        return self.inventory.versions()

    def standing(self) -> Collection[str]:
        """Return the names that stand as deployed and that a list of pods can speak about."""
        return [
            entry.deployment_name
            for entry in self.ledger.entries()
            if entry.acknowledged is not None
            and entry.acknowledged.status is Status.DEPLOYED
            and self._covers(entry)
        ]

    def held(self, *, without: Collection[str] = ()) -> Collection[str]:
        """Return the names that are held, or would be if the pods of these uids were gone."""
        return self.inventory.held_names(without=without).union(self._kept.names())

    def read(self, raw: object) -> Pod | Skipped:
        """Return what is kept of a pod as the API server tells of it (decoded JSON)."""
        return read_pod(raw, rules=self._rules)

    def see_surely(self, pod: Pod | Skipped) -> None:
        """Take note of a pod that was fetched."""
        self._see(pod, surely=True)

    def lose_surely(self, uid: str) -> None:
        """Take note that a pod is gone, whatever a late event says of it."""
        now = asyncio.get_running_loop().time()
        self._gone = {gone: until for gone, until in self._gone.items() if until > now}
        self._gone[uid] = now + GONE_SECONDS
        self.lose(uid)

    async def read_workloads(self) -> None:
        """
        Read all workloads anew, where they may be read. Raises `ListError`.

        Not those that were read just now, at the start or because the watch began anew: a pass
        for the sake of the pods needs no second look at them.
        """
        now = asyncio.get_running_loop().time()
        fresh = FRESH_PART * self.settings.reconcile_interval.total_seconds()
        if not self.settings.workloads or now - self._workloads_read_at < fresh:
            return
        try:
            await self._lookups.read_all()
            self._workloads_read_at = now
        finally:
            self.catalog.prune(self.inventory.living())
            self._kept.clear()
            self._keep([entry.deployment_name for entry in self.ledger.entries()])

    @property
    def gaps(self) -> int:
        """Return how often the watch began anew so far."""
        return self.inventory.gaps

    def trust(self, gaps: int) -> None:
        """Take the pods that are known for those that are there, as of after so many gaps."""
        self._look_anew(self.inventory.trust(gaps))

    def look_at_all(self) -> None:
        """
        Have every name looked at, those of the ledger included.

        Open outcomes come first. What was acknowledged long ago is posted again, so many at a
        time that all of them are within their interval.
        """
        entries = sorted(self.ledger.entries(), key=lambda entry: entry.in_doubt is None)
        for entry in entries:
            self._delivery.touch(entry.deployment_name)
        for name in self.inventory.names():
            self._delivery.touch(name)
        held = self.held()
        due = to_repost(
            [
                entry
                for entry in entries
                if self._covers(entry)
                and entry.deployment_name in held
                and entry.deployment_name not in self._delivery.to_repost
            ],
            now=asyncio.get_running_loop().time(),
            interval_seconds=self.settings.resync_interval.total_seconds(),
            pass_seconds=self.settings.reconcile_interval.total_seconds(),
        )
        for name in due:
            self._delivery.repost(name)
        self._tell_unrecorded()
        if not self._dry_run:  # nothing is sent, so nothing of what is told there is so
            self._tell_accounts(entries)

    # Its life.

    def start(self) -> None:
        """Start the tasks. None of them ever ends by itself."""
        # Before the watch brings anything: what a stop cut off is settled first.
        for entry in self.ledger.entries():
            if entry.in_doubt is not None:
                self._delivery.touch(entry.deployment_name)
        for name, work in (
            ("reconcile", self._reconcile()),
            ("delivery", self._delivery.run()),
            ("absences", self._absences.run()),
            ("lookups", self._lookups.run()),
            ("ageing", self._age()),
            ("laps", self.condition.laps.run()),
        ):
            self._tasks.append(asyncio.create_task(work, name=name))

    async def failure(self) -> None:
        """Wait until a task ends, which none should; raise what ended it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        message = f"{', '.join(task.get_name() for task in done)} ended by itself"
        raise RuntimeError(message)

    async def drain(self) -> None:
        """Send what is due, for the drain timeout at most, and say what is left."""
        seconds = self.settings.drain_timeout.total_seconds()
        left = await self._delivery.drain(seconds)
        if left:
            _log.warning("stopped with names not sent", names=left, drain_seconds=seconds)
        else:
            _log.info("stopped with everything sent")

    async def stop(self) -> None:
        """Cancel the tasks and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reconcile(self) -> None:
        await see_everything(
            lists=self.cluster,
            sightings=self._sightings,
            chance=self._chance,
            alive=self._vitals.expecting("reconcile"),
        )
        try:
            await self.read_workloads()
        except ListError:
            self.request_reconcile()  # it was told; what is not known is held
        standing = frozenset(self.standing())
        absent = standing - frozenset(self.held())
        if self._foreign:
            # When all that may stand runs here, address or CA have changed and not the cluster.
            # Most of it won't do: what was posted from here since stands in the ledger, too. Nor
            # will what is watched: the rest of the ledger is of the other cluster as well.
            held = frozenset(self.held())
            absent = frozenset(
                entry.deployment_name
                for entry in self.ledger.entries()
                if entry.may_stand and entry.deployment_name not in held
            )
            self._foreign = bool(absent)
        if not self._foreign:
            await self._adopt()
        if self._foreign:
            _log.error(
                "the ledger was kept for another cluster (API server address or CA); what is"
                " absent here is left as it stands. If this is the same cluster, start once with"
                " LEDGER_ADOPT=true",
                names=len(absent),
            )
        elif is_mass(absent, standing):
            _log.warning(
                "more than half of the names are absent; asking again before that is believed",
                absent=len(absent),
                standing=len(standing),
            )
            self._absences.doubt(absent)
        _log.info(
            "in step with the cluster",
            pods=len(self.inventory),
            names=len(self.inventory.names()),
            standing=len(standing),
        )
        self.look_at_all()
        self.pace.open()
        self.metrics.reconciled(well=True)
        await self._reconciler.run()

    async def _age(self) -> None:
        """Forget what was decommissioned long ago, once a day and at the start, for ever."""
        while True:
            try:
                aged = await self.ledger.age_out(time.time() - KEEP_DECOMMISSIONED_SECONDS)
            except LedgerError as error:
                _log.warning("decommissioned names were not forgotten", reason=str(error))
            else:
                if aged:
                    _log.info("forgot what was decommissioned long ago", names=aged)
            await asyncio.sleep(AGEING_SECONDS)

    async def _adopt(self) -> None:
        try:
            await self.ledger.adopt_cluster(self._fingerprint)
        except LedgerError as error:
            # It is asked for again at the next start; until then nothing rests on it.
            _log.error("the cluster was not noted in the ledger", reason=str(error))

    def _see(self, pod: Pod | Skipped, *, surely: bool) -> None:
        if surely:
            self._gone.pop(pod.uid, None)
        if not pod.uid or pod.uid in self._gone:
            return
        if isinstance(pod, Skipped) and pod.uid not in self.inventory:
            _log.debug("skipped", namespace=pod.namespace, pod=pod.name, reason=pod.reason.value)
        self._change(pod.uid, self.inventory.observe(pod, surely=surely))
        if pod.workload is not None and (isinstance(pod, Skipped) or pod.unfinished):
            # A workload that has pods again keeps only what they declare.
            self._look_anew(self._kept.of(self.catalog.resolve(pod.workload)))

    def _change(self, uid: str, names: frozenset[str]) -> None:
        self._sightings.note(uid)
        self._look_anew(names)

    def _look_anew(self, names: Iterable[str]) -> None:
        """Have names looked at of which nothing that was found out before counts any more."""
        for name in names:
            self._kept.discard(name)
            self._absences.withdraw(name)
            self._delivery.touch(name)

    def _reassign(self) -> None:
        """Take note that workloads were read: a Job may have turned out to be a CronJob's."""
        self._look_anew(self.inventory.reassign())

    def _keep(self, names: Iterable[str]) -> Collection[str]:
        """Return which of these names are kept by a workload that is there and has no pods."""
        living = self.inventory.living()
        kept: set[str] = set()
        for name in names:
            entry = self.ledger.get(name)
            if entry is not None and is_kept(
                entry,
                catalog=self.catalog,
                living=living,
                rules=self._rules,
                template=self.settings.dn_template,
            ):
                kept.add(name)
                self._kept.add(name, entry.workload)
        return kept

    def _is_unwanted(self, name: str) -> bool:
        """Tell whether a name would not be recorded today if its workload had pods."""
        entry = self.ledger.get(name)
        if entry is None or leaves_out(self._rules, entry):
            return True
        return name != render(
            self.settings.dn_template,
            namespace=entry.workload.namespace,
            workload=entry.workload.name,
            container=entry.container,
        )

    def _tell_unrecorded(self) -> None:
        """Tell what is not recorded, by reason, when that changed; and each shared name once."""
        shared = self.inventory.shared()
        for name in sorted(shared - self._shared_told):
            _log.warning(
                "a name is shared: the newest pod's record stands, the others have none; give"
                " DN_TEMPLATE more of its placeholders",
                deployment_name=name,
            )
        self._shared_told = set(shared)  # one that comes back is news
        counts = {reason.value: count for reason, count in self.inventory.skipped().items()}
        if shared:
            counts["name-shared"] = len(shared)
        if counts != self._unrecorded_told:
            self._unrecorded_told = counts
            _log.info("not recorded", **dict(sorted(counts.items())))
        problems = {each.value: count for each, count in self.inventory.problems().items()}
        if problems != self._problems_told:
            self._problems_told = problems
            if problems:
                _log.warning(
                    "annotations under metadata.github.com/ can't be used, by number of workloads",
                    **dict(sorted(problems.items())),
                )
            else:
                _log.info("all annotations under metadata.github.com/ can be used")

    def _tell_accounts(self, entries: Collection[Entry]) -> None:
        """Tell how many names are in which state, and why, when that changed."""
        counts = Counter(account_of(entry).value for entry in entries)
        reasons = Counter(
            entry.reason.partition(":")[0]
            for entry in entries
            if account_of(entry) is not Account.ACKNOWLEDGED and entry.reason
        )
        accounts: dict[str, object] = dict(sorted(counts.items()))
        if reasons:
            most = reasons.most_common(REASONS_TOLD)
            accounts["reasons"] = "; ".join(f"{count}x {reason}" for reason, count in most)
        if accounts and accounts != self._accounts_told:
            self._accounts_told = accounts
            _log.info("delivery", **accounts)

    def _touch(self, name: str) -> None:
        self._delivery.touch(name)

    def judge(self, name: str, acknowledged: Record | None) -> Judgement:
        """
        Judge a name by the inventory, but for an absence that a list can't speak about.

        `acknowledged` is what GitHub holds as far as is known.
        """
        judgement = self.inventory.judge(name, acknowledged)
        if self._foreign and isinstance(judgement, Held):
            return replace(judgement, idle=False)  # what was sent last was of another cluster
        if isinstance(judgement, Deployed) and self._lookups.awaits(judgement.workload, name):
            return Held(displaced=False)
        if isinstance(judgement, Absent):
            entry = self.ledger.get(name)
            if name in self._kept:
                return Held(displaced=False, idle=True)
            if entry is not None and (self._foreign or not self._covers(entry)):
                return Held(displaced=False)
        return judgement

    def _covers(self, entry: Entry) -> bool:
        """Tell whether the pods that are watched are all that can hold a name."""
        watched = self.settings.namespace
        covered = covers(entry, watched=watched)
        if not covered and not self._uncovered_told:
            self._uncovered_told = True
            _log.warning(
                "the ledger holds names of namespaces that are not watched; they are left as they"
                " stand",
                watched=watched,
                example=entry.deployment_name,
            )
        return covered


@asynccontextmanager
async def open_tracker(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    stdout: TextIO,
    dry_run: bool = False,
    serves: bool = True,
) -> AsyncIterator[Tracker]:
    """
    Yield a tracker whose tasks run; stop them and close what it opened at the end.

    In a `dry_run` nothing is sent and no token is asked for, and the ledger's file is left alone:
    what it holds is copied into memory. `serves`: metrics and probes, at the port of the settings.
    Raises `CredentialsError`, `ConnectionSettingError`,
    `LedgerError` or `PortError` before anything is connected to.
    """
    metrics = Metrics(
        version=__version__, kopf_version=importlib.metadata.version("kopf"), wall=time.time
    )
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            Cluster(
                kubeconfig=settings.kubeconfig,
                environ=environ,
                namespace=settings.namespace,
                user_agent=USER_AGENT,
            )
        )
        endpoint = await cluster.check_credentials()
        ledger: Ledger
        github: Sender
        if dry_run:
            ledger = copy_ledger(settings)
        else:
            ledger = await stack.enter_async_context(open_ledger(settings, metrics))
        known = await ledger.seen_cluster(endpoint.fingerprint)
        if dry_run:
            github = DryRun()
        else:
            github = await stack.enter_async_context(
                open_github(settings, environ=environ, meter=metrics)
            )
        tracker = Tracker(
            settings=settings,
            cluster=cluster,
            github=github,
            ledger=ledger,
            stdout=stdout,
            metrics=metrics,
            foreign=not known and not settings.ledger_adopt,
            fingerprint=endpoint.fingerprint,
            dry_run=dry_run,
        )
        if serves and settings.metrics_port:
            await stack.enter_async_context(
                HealthServer(
                    host=None,
                    port=settings.metrics_port,
                    subject=tracker.condition,
                    render=metrics.render,
                )
            )
        _introduce(settings, endpoint.server, ledger)
        tracker.start()
        try:
            yield tracker
        finally:
            await tracker.stop()


@asynccontextmanager
async def open_github(
    settings: Settings, *, environ: Mapping[str, str], meter: Metrics | None = None
) -> AsyncIterator[GitHub]:
    """Yield a client for GitHub; close it at the end. Raises `ConnectionSettingError`."""
    async with Transport(
        base_url=settings.base_url,
        user_agent=USER_AGENT,
        proxy=proxy_of(settings.base_url, environ) if settings.proxy_from_env else None,
        ca_file=settings.ca_file,
    ) as transport:
        tokens = open_tokens(settings, transport)
        yield GitHub(transport=transport, scope=settings.scope, tokens=tokens, meter=meter)


def open_ledger(settings: Settings, meter: Metrics | None = None) -> Ledger:
    """Return the ledger, to be entered, which raises `LedgerError` when it can't be opened."""
    if settings.ledger_path is None:
        return MemoryLedger()
    return SqliteLedger(
        path=settings.ledger_path, identity=settings.identity, wall=time.time, meter=meter
    )


def copy_ledger(settings: Settings) -> MemoryLedger:
    """
    Return what the ledger's file holds, in memory, whoever has the file; empty if there is none.

    Raises `LedgerError` when it can't be read.
    """
    if settings.ledger_path is None or not settings.ledger_path.exists():
        return MemoryLedger()
    return MemoryLedger.copied(read_ledger(settings.ledger_path, settings.identity))


def make_pace(settings: Settings, ledger: Ledger, *, dry_run: bool = False) -> Pace:
    """Return the pace at which GitHub is asked, which an earlier run's limit may hold back."""
    return Pace(
        rate=DRY_RATE if dry_run else settings.github_rate,
        burst=settings.github_burst,
        chance=random.SystemRandom().random,
        not_before=0.0 if dry_run else ledger.pause_until,
    )


def make_lines(settings: Settings, stdout: TextIO, *, dry_run: bool = False) -> Lines:
    """Return what tells of records on stdout."""
    return Lines(
        stream=stdout,
        now=lambda: datetime.now(tz=UTC),
        as_json=settings.log_format == "json",
        dry_run=dry_run,
    )


def open_tokens(settings: Settings, transport: Transport) -> Tokens:
    """Return where the token comes from. Raises `ConnectionSettingError`."""
    if settings.credentials == "app":
        path = settings.gh_app_priv_key_path
        text = settings.gh_app_private_key.get_secret_value()
        return AppToken(
            app_id=settings.gh_app_id,
            installation_id=settings.gh_install_id,
            read_key=partial(read_key, text) if path is None else partial(read_key_file, path),
            transport=transport,
            wall=time.time,
        )
    if settings.api_token_file is not None:
        return TokenFile(settings.api_token_file)
    return FixedToken(settings.api_token)


def _introduce(settings: Settings, server: str, ledger: Ledger) -> None:
    """Say at the start who watches what, and what an operator should know of the settings."""
    for warning in settings.warnings():
        _log.warning(warning)
    _log.info(
        "starting",
        version=__version__,
        api_server=server,
        namespace=settings.namespace or "(all)",
        github=settings.base_url,
        credentials=settings.credentials,
        org=settings.org,
        logical_environment=settings.logical_environment,
        cluster=settings.cluster,
        ledger=str(settings.ledger_path or "(memory)"),
    )
    if settings.ledger_path is None:
        _log.info(
            "the ledger is in memory: a restart posts what runs once more, and what is deleted"
            " while the tracker is down is not noticed; set LEDGER_PATH"
        )
    if others := ledger.other_identities():
        _log.warning(
            "the ledger holds records of another organisation, environment, cluster or host; they"
            " stand at GitHub as they were left",
            records=sum(others.values()),
            identities=", ".join(sorted(str(other) for other in others)),
        )
