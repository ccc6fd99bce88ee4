"""
What the pods and the ledger tell at this moment, judged as the operator judges it.

`plan`, `status` and `explain` differ in what they show of it. A `View` is fed with pods from a
file (`see_file`) or from the cluster (`see_cluster`) and with what the ledger holds, and asked
about names. It decides nothing by itself: pods are read by `read_pod`, what should stand is said
by `Inventory.judge`, and what is to be done by `next_step`.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TextIO

from tracker import __version__
from tracker.catalog import Catalog, Presence
from tracker.entries import Entry, Step, next_step
from tracker.errors import LedgerError, ListError, PodFileError
from tracker.inventory import Absent, Held, Inventory, Judgement
from tracker.judging import covers, is_kept
from tracker.ledger_reader import read_ledger
from tracker.ledger_schema import LedgerReading
from tracker.pod_files import PodFile
from tracker.pods import Pod, Skipped, read_pod
from tracker.refusals import Unknowns
from tracker.settings import Settings
from tracker.workloads import Workload

__all__ = [
    "FIELDS",
    "NOT_WATCHED",
    "Kept",
    "Look",
    "View",
    "ledger_for",
    "open_pod_file",
    "say",
    "see_cluster",
]

FIELDS = frozenset(
    {
        "org",
        "base_url",
        "dn_template",
        "logical_environment",
        "physical_environment",
        "cluster",
        "kubeconfig",
        "namespace",
        "exclude_namespaces",
        "images",
        "repositories",
        "workloads",
        "ledger_path",
        "ledger_adopt",
        "cronjob_hold",
    }
)
"""The settings that what stands here depends on: no token and no way to GitHub is among them."""
NOT_WATCHED: Final = "not-watched"
"""
Why a pod outside of NAMESPACE is not recorded.

It is none of `SkipReason`, which are of pods that a tracker sees: it never sees this one.
"""


class Kept(StrEnum):
    """Why a name stands that no pod holds."""

    WORKLOAD = "its workload is there, without pods"
    UNREAD = "its workload could not be read"
    UNWATCHED = "its namespace is not watched (NAMESPACE)"
    FOREIGN = "the ledger is of another cluster (LEDGER_ADOPT)"
    PARTIAL = "the file holds single pods, not a list of all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is to say of one name; `kept` is why it is held though no pod holds it."""

    name: str
    entry: Entry | None
    judgement: Judgement
    step: Step
    kept: Kept | None


class View:
    """
    Pods and a ledger at one moment, `now` in wall-clock seconds.

    `reading` is None where no ledger is read: then nothing is known of what GitHub acknowledged.
    Pods outside of the namespace that is watched are kept apart (`unwatched`), as the tracker is
    not told of them: they have no say.
    """

    def __init__(self, *, settings: Settings, reading: LedgerReading | None, now: float) -> None:
        self.settings = settings
        self.reading = reading
        self.now = now
        self.catalog = Catalog(enabled=settings.workloads)
        self.inventory = Inventory(
            template=settings.dn_template,
            marks_of=self.catalog.marks,
            resolve=self.catalog.resolve,
        )
        self.skipped: list[Skipped] = []
        self.unwatched: list[Pod | Skipped] = []
        self.entries: Mapping[str, Entry] = (
            {} if reading is None else {entry.deployment_name: entry for entry in reading.entries}
        )
        self.foreign = False
        self.whole = True
        self.seen = 0
        self._rules = settings.rules
        self._unknown = Unknowns(self.entries.values())

    def see(self, raw: object) -> None:
        """Take note of a pod (decoded JSON)."""
        self.seen += 1
        pod = read_pod(raw, rules=self._rules)
        if pod.namespace and not self.watches(pod.namespace):
            self.unwatched.append(pod)
            return
        if isinstance(pod, Skipped):
            self.skipped.append(pod)
        if pod.uid:
            self.inventory.observe(pod)

    def watches(self, namespace: str) -> bool:
        """Tell whether a tracker of these settings is told of the pods of a namespace."""
        return self.settings.namespace in {"", namespace}

    def see_file(self, file: PodFile) -> None:
        """Take note of the pods of a file. Raises `PodFileError`."""
        for raw in file.read_objects():
            self.see(raw)
        if not self.seen and not file.whole:
            raise PodFileError(
                f"{file.name} holds no pods: give what kubectl get pods -o yaml says"
            )
        self.whole = file.whole

    def looks(self) -> Iterator[Look]:
        """Yield what there is to say of each name that pods declare or the ledger knows."""
        living = self.inventory.living()
        for name in sorted({*self.inventory.names(), *self.entries}):
            yield self._look(name, living)

    def look(self, name: str) -> Look:
        """Return what there is to say of one name."""
        return self._look(name, self.inventory.living())

    def _look(self, name: str, living: frozenset[Workload]) -> Look:
        entry = self.entries.get(name)
        judgement = self.inventory.judge(name, None if entry is None else entry.held)
        kept = None
        if entry is not None and isinstance(judgement, Absent):
            kept = self._why_kept(entry, living)
            if kept is not None:
                judgement = Held(displaced=False, idle=kept is Kept.WORKLOAD)
        step = next_step(
            judgement,
            entry,
            absence_confirmed=True,  # by the list that the pods are from
            now=self.now,
            unknown=self._unknown,
        )
        return Look(name=name, entry=entry, judgement=judgement, step=step, kept=kept)

    def _why_kept(self, entry: Entry, living: frozenset[Workload]) -> Kept | None:
        if not self.whole:
            return Kept.PARTIAL
        if self.foreign:
            return Kept.FOREIGN
        if not covers(entry, watched=self.settings.namespace):
            return Kept.UNWATCHED
        if self.catalog.presence(entry.workload) is Presence.UNKNOWN:
            return Kept.UNREAD
        if is_kept(
            entry,
            catalog=self.catalog,
            living=living,
            rules=self._rules,
            template=self.settings.dn_template,
        ):
            return Kept.WORKLOAD
        return None


async def see_cluster(view: View, *, environ: Mapping[str, str], namespace: str) -> None:
    """
    Take note of the pods of a namespace ("": all that are there), and of the workloads.

    Raises `CredentialsError` before anything is connected to, and `ListError`.
    """
    # Theirs takes a second to import.
    from tracker.cluster import Cluster  # noqa: PLC0415
    from tracker.lookups import Lookups  # noqa: PLC0415

    settings = view.settings
    async with Cluster(
        kubeconfig=settings.kubeconfig,
        environ=environ,
        namespace=namespace,
        user_agent=f"deployment-tracker/{__version__}",
    ) as cluster:
        endpoint = await cluster.check_credentials()
        reading = view.reading
        view.foreign = (
            reading is not None
            and bool(reading.entries)
            and reading.fingerprint not in {None, endpoint.fingerprint}
            and not settings.ledger_adopt
        )
        async for raw in cluster.each_pod():
            view.see(raw)
        if not settings.workloads:
            return

        def reassign() -> None:
            view.inventory.reassign()

        lookups = Lookups(
            reader=cluster, catalog=view.catalog, touch=lambda _name: None, learned=reassign
        )
        try:
            await lookups.read_all()
        except ListError as error:
            say(f"workloads can't be read: {error}")


@contextmanager
def open_pod_file(name: str) -> Iterator[PodFile]:
    """Yield the file of pods of a name, "-" for stdin. Raises `PodFileError`."""
    if name == "-":
        stdin: TextIO | None = sys.stdin  # None where it was closed (`<&-`)
        if stdin is None:
            raise PodFileError(
                "stdin can't be read: it is closed; give pods in a pipe, or name a file with -f"
            )
        stdin.reconfigure(encoding="utf-8")  # type: ignore[attr-defined] # it is text from a pipe
        yield PodFile(name="stdin", stream=stdin)
        return
    try:
        stream: TextIO = Path(name).open(encoding="utf-8")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise PodFileError(f"{name} can't be read: {said}") from error
    with stream:
        yield PodFile(name=name, stream=stream)


def ledger_for(settings: Settings) -> LedgerReading | None:
    """Return what the ledger holds, or None where there is none to be read, and say why."""
    if settings.ledger_path is None:
        return None
    if not settings.org:
        say("LEDGER_PATH is set and ORG is not: the ledger is not read")
        return None
    try:
        return read_ledger(settings.ledger_path, settings.identity)
    except LedgerError as error:
        say(f"{error}; everything is shown as if nothing had been posted yet")
        return None


def say(text: str) -> None:
    """Say something about what is shown, on stderr."""
    sys.stderr.write(f"deployment-tracker: {text}\n")
