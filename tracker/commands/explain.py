"""
`deployment-tracker explain NAMESPACE/POD`: why one pod is recorded as it is, or is not.

Each step on the way from the pod to its record is shown with where it came from: its owner, its
annotations, each container's image, the name, what the inventory says of that name, and what the
ledger holds.
"""

import asyncio
import difflib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracker.annotations import NO_MARKS, Marks
from tracker.commands.output import (
    EXIT_CONFIGURATION,
    EXIT_FAILURE,
    EXIT_OK,
    Format,
    age,
    make_console,
    short,
    to_text,
    write_json,
)
from tracker.commands.plan import Row, row_of
from tracker.commands.status import entry_as_json
from tracker.commands.view import (
    NOT_WATCHED,
    Look,
    View,
    ledger_for,
    open_pod_file,
    say,
    see_cluster,
)
from tracker.entries import Entry, account_of
from tracker.errors import CredentialsError, ListError, PodFileError
from tracker.images import Image, Resolution, SkipReason, Source, trace_image
from tracker.inventory import Absent, Deployed, Held
from tracker.pods import Container, Pod, Skipped, controllers_in, said_of, texts_of
from tracker.records import render
from tracker.settings import Settings
from tracker.workloads import Owner, Workload

__all__ = ["explain"]

ALIKE: Final = 5
"""Pods of similar names that are told when the one asked for is not there."""
_WHY_SKIPPED: Final[Mapping[SkipReason, str]] = {
    SkipReason.BARE: "no controller owns it",
    SkipReason.STATIC: "a node runs it on its own account (a static pod)",
    SkipReason.IGNORED: 'metadata.github.com/ignore says "true"',
    SkipReason.NAMESPACE: "EXCLUDE_NAMESPACES leaves its namespace out",
    SkipReason.MALFORMED: "it lacks a uid, a name or a creationTimestamp",
    SkipReason.IMAGE: "IMAGES leaves it out",
    SkipReason.NO_DIGEST: (
        "the runtime names no manifest's digest (repository@sha256:…), nor does the spec's image"
    ),
    SkipReason.IMAGE_NAME: "the image's name is over 256 characters",
    SkipReason.DEPLOYMENT_NAME: "the deployment name would be over 256 characters",
}
ALIASED: Final = (
    "IMAGES leaves out the name by which its node knows it, and not the one that the pod asks for;"
    " what stands of the same digest stays"
)
_TOLD_BY: Final[Mapping[Source | None, str]] = {
    Source.IMAGE_ID: "the status's imageID",
    Source.SPEC: "the spec's image",
    None: "",
}


class _Watched(View):
    """A view that keeps the text of one pod."""

    def __init__(self, *, settings: Settings, namespace: str, name: str) -> None:
        super().__init__(settings=settings, reading=ledger_for(settings), now=time.time())
        self.raw: Mapping[str, Any] | None = None
        self.namespace = namespace
        self.name = name
        self.names: list[str] = []

    def see(self, raw: object) -> None:
        """Take note of a pod."""
        super().see(raw)
        metadata = raw.get("metadata") if isinstance(raw, Mapping) else None
        if isinstance(metadata, Mapping) and metadata.get("namespace") == self.namespace:
            self.names.append(str(metadata.get("name")))
            if metadata.get("name") == self.name:
                self.raw = raw if isinstance(raw, Mapping) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ContainerStory:
    """One container, and what follows from it."""

    container: Container
    spec_image: str
    image_id: str
    traced: Resolution
    name: str | None
    look: Look | None
    row: Row | None
    speaker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Story:
    """
    A pod, and what follows from it; `marks` are (word, value, where it is said).

    `watched`: it is in the namespace that the tracker watches.
    """

    pod: Pod | Skipped
    watched: bool
    phase: str
    created: str
    owners: tuple[Owner, ...]
    workload: Workload | None
    marks: Sequence[tuple[str, str, str]]
    problems: Sequence[str]
    containers: Sequence[_ContainerStory]


def explain(settings: Settings, *, pod: str, file: str | None, output: Format) -> int:
    """Show the way of `NAMESPACE/POD` to its records; return the exit code."""
    namespace, slash, name = pod.partition("/")
    if not (namespace and slash and name) or "/" in name:
        say(f"{pod!a} names no pod: write NAMESPACE/POD, for example shop/web-5d8f7c9b4-x2x1z")
        return EXIT_CONFIGURATION
    view = _Watched(settings=settings, namespace=namespace, name=name)
    # Where names have the namespace in them no other namespace's pods can have a say.
    apart = "{{namespace}}" in settings.dn_template
    try:
        if file is None:
            of = namespace if apart or not view.watches(namespace) else settings.namespace
            asyncio.run(see_cluster(view, environ=os.environ, namespace=of))
        else:
            with open_pod_file(file) as pods:
                view.see_file(pods)
    except CredentialsError as error:
        say(f"{error}, or give pods with -f")
        return EXIT_CONFIGURATION
    except (ListError, PodFileError) as error:
        say(str(error))
        return EXIT_FAILURE
    if view.raw is None:
        alike = difflib.get_close_matches(name, view.names, n=ALIKE, cutoff=0.5)
        hint = f"; there are {', '.join(ascii(each)[1:-1] for each in alike)}" if alike else ""
        say(f"there is no pod {namespace}/{name}"[:600] + hint)
        return EXIT_FAILURE
    story = _story(view, view.raw)
    if output is Format.JSON:
        write_json(_as_json(view, story))
    else:
        _show(make_console(), view, story)
    return EXIT_OK


def _story(view: _Watched, raw: Mapping[str, Any]) -> _Story:
    metadata = raw["metadata"]
    found = next(
        each
        for each in [*view.skipped, *view.unwatched, *view.inventory.pods()]
        if (each.namespace, each.name) == (view.namespace, view.name)
    )
    workload = found.workload
    of_pod = said_of(raw)
    of_workload = (view.catalog.marks(workload) if workload is not None else None) or NO_MARKS
    containers = []
    watched = view.watches(found.namespace)
    if isinstance(found, Pod) and watched:
        containers = [
            _container_story(view, found, each, texts)
            for each, (_, *texts) in zip(found.containers, texts_of(raw), strict=True)
        ]
    status = raw.get("status")
    phase = status.get("phase", "") if isinstance(status, Mapping) else ""
    return _Story(
        pod=found,
        watched=watched,
        phase=found.phase if isinstance(found, Pod) else str(phase),
        created=str(metadata.get("creationTimestamp", "")),
        owners=controllers_in(metadata),
        workload=workload,
        marks=_marks(of_pod, of_workload, workload),
        problems=sorted(each.value for each in of_pod.over(of_workload).problems),
        containers=containers,
    )


def _container_story(
    view: View, pod: Pod, container: Container, texts: Sequence[str]
) -> _ContainerStory:
    name = render(
        view.settings.dn_template,
        namespace=pod.namespace,
        workload=pod.workload.name,
        container=container.name,
    )
    look = None if name is None else view.look(name)
    told = None if name is None else view.inventory.told_by(name)
    return _ContainerStory(
        container=container,
        spec_image=texts[0],
        image_id=texts[2],
        traced=trace_image(*texts),
        name=name,
        look=look,
        row=None if look is None else row_of(view, look, shared=name in view.inventory.shared()),
        speaker=None if told is None else told[0].name,
    )


def _marks(
    pod: Marks, of_workload: Marks, workload: Workload | None
) -> Sequence[tuple[str, str, str]]:
    """Return each word that counts, its value, and whose it is."""
    owner = "" if workload is None else f"{workload.kind} {workload.name}"
    merged = pod.over(of_workload)
    found: list[tuple[str, str, str]] = []
    for word, value, is_pods in (
        ("ignore", merged.ignored, pod.ignored is not None),
        ("runtime-risks", merged.risks, pod.risks is not None),
        ("github-repository", merged.repository, pod.repository is not None),
    ):
        if value is not None:
            text = ", ".join(value) if isinstance(value, tuple) else str(value).lower()
            found.append(
                (
                    word,
                    text if word != "github-repository" else str(value),
                    "pod" if is_pods else owner,
                )
            )
    tags = dict(pod.tags)
    found += [(tag, text, "pod" if tag in tags else owner) for tag, text in merged.tags]
    return found


def _show(console: Console, view: View, story: _Story) -> None:
    pod = story.pod
    head = _Facts()
    created = f", created {story.created}" if story.created else ""
    head.add("Pod", f"{pod.namespace}/{pod.name}", f"{story.phase}{created}")
    for owner in story.owners:
        head.add("Owner", f"{owner.kind} {owner.name}", owner.api_version)
    if story.workload is not None:
        head.add("Workload", f"{story.workload.kind} {story.workload.name}", _why_workload(story))
    for word, value, where in story.marks:
        head.add(
            "Annotation",
            f"{word} = {value}",
            f"of the {where}" if where == "pod" else f"of {where}",
        )
    for problem in story.problems:
        head.add("Annotation", "not used", problem, style="yellow")
    if not story.watched:
        told = f"NAMESPACE is {view.settings.namespace}"
        head.add("Skipped", NOT_WATCHED, told, style="yellow")
    elif isinstance(pod, Skipped):
        head.add("Skipped", pod.reason.value, _WHY_SKIPPED[pod.reason], style="yellow")
    head.write(console)
    for each in story.containers:
        console.print()
        _show_container(console, view, story, each)


def _why_workload(story: _Story) -> str:
    owner = story.owners[0] if story.owners else None
    if owner is None or story.workload is None:
        return ""
    if (owner.kind, owner.name) == (story.workload.kind, story.workload.name):
        return "the owner itself"
    if owner.kind == "ReplicaSet":
        return "by the pod's template hash"
    return "by the Job's name or its owner"


def _show_container(console: Console, view: View, story: _Story, each: _ContainerStory) -> None:
    facts = _Facts()
    facts.add("Container", each.container.name, style="bold")
    facts.add("  spec", each.spec_image or "(none)")
    facts.add("  imageID", each.image_id or "(not started yet)")
    image = each.container.image
    traced = each.traced
    if isinstance(image, Image):
        # Whole it stands in one of the two lines above, or in the JSON.
        facts.add("  digest", f"@{short(image.digest)}", f"from {_TOLD_BY[traced.digest_from]}")
        facts.add("  name", image.name, f"from {_TOLD_BY[traced.name_from]}")
        why = "" if image.version else "none: no tag, or spec and status are not of one moment"
        facts.add("  version", image.version or "-", why)
        if image.repository:
            facts.add("  repository", image.repository, "by REPOSITORIES")
    elif isinstance(image, SkipReason):
        why = _WHY_SKIPPED[image] if each.container.digest is None else ALIASED
        facts.add("  skipped", image.value, why, style="yellow")
    if each.name is None:
        reason = SkipReason.DEPLOYMENT_NAME
        facts.add("  skipped", reason.value, _WHY_SKIPPED[reason], style="yellow")
        facts.write(console)
        return
    facts.add("  recorded as", each.name, f"by DN_TEMPLATE {view.settings.dn_template}")
    facts.add("  stands", *_judgement(story, each))
    if view.reading is not None:
        facts.add("  ledger", *_ledger(view, each.look.entry if each.look else None))
    if each.row is not None:
        facts.add("  now", each.row.action.value, each.row.reason, style="bold")
    facts.write(console)


def _judgement(story: _Story, each: _ContainerStory) -> tuple[str, str]:
    """Return what should stand, and why."""
    judgement = each.look.judgement if each.look is not None else None
    speaker = "this pod" if each.speaker == story.pod.name else f"pod {each.speaker}"
    match judgement:
        case Deployed(record=record):
            what = f"deployed, @{short(record.digest)}"
            return what, f"{speaker} says so, the newest that runs"
        case Held():
            if each.look is not None and each.look.kept is not None:
                return "held", each.look.kept.value
            told = (
                "no pod says yet what runs"
                if each.speaker is None
                else f"{speaker} runs what is not recorded"
            )
            return "held", told
        case Absent() | None:
            return "absent", "no pod holds the name"


def _ledger(view: View, entry: Entry | None) -> tuple[str, str]:
    if entry is None:
        return "nothing", "it was never posted"
    said = []
    if entry.acknowledged is not None:
        at = entry.acknowledged_at
        ago = f" {age(view.now - at)} ago" if at is not None else ""
        record = entry.acknowledged
        said.append(f"GitHub took {record.status.value} @{short(record.digest)}{ago}")
    if entry.sent is not None:
        said.append(f"sent {entry.sent.status.value} @{short(entry.sent.digest)} {entry.attempts}x")
    if entry.reason:
        said.append(entry.reason)
    if entry.not_before is not None:
        due = entry.not_before - view.now
        said.append(f"again in {age(due)}" if due > 0 else "again now")
    return account_of(entry).value, "; ".join(said)


class _Facts:
    """Lines of label, value and where it is from."""

    def __init__(self) -> None:
        self._table = Table.grid(padding=(0, 2))
        self._table.add_column(no_wrap=True, style="dim")
        self._table.add_column(overflow="fold")

    def add(self, label: str, value: str, source: str = "", *, style: str = "") -> None:
        text = to_text(value, style)
        if source:
            text = Text.assemble(text, "  ", to_text(source, "dim"))
        self._table.add_row(Text(label), text)

    def write(self, console: Console) -> None:
        console.print(self._table)


def _as_json(view: View, story: _Story) -> dict[str, object]:
    pod, workload = story.pod, story.workload
    return {
        "namespace": pod.namespace,
        "pod": pod.name,
        "phase": story.phase,
        "owners": [
            {"apiVersion": each.api_version, "kind": each.kind, "name": each.name}
            for each in story.owners
        ],
        "workload": None
        if workload is None
        else {
            "apiVersion": workload.api_version,
            "kind": workload.kind,
            "namespace": workload.namespace,
            "name": workload.name,
        },
        "annotations": [
            {"word": word, "value": value, "from": where} for word, value, where in story.marks
        ],
        "problems": list(story.problems),
        "skipped": _skipped(story),
        "containers": [_container_as_json(view, story, each) for each in story.containers],
    }


def _skipped(story: _Story) -> str | None:
    if not story.watched:
        return NOT_WATCHED
    return story.pod.reason.value if isinstance(story.pod, Skipped) else None


def _container_as_json(view: View, story: _Story, each: _ContainerStory) -> dict[str, object]:
    image = each.container.image
    entry = each.look.entry if each.look is not None else None
    is_image = isinstance(image, Image)
    traced = each.traced
    return {
        "container": each.container.name,
        "spec_image": each.spec_image,
        "image_id": each.image_id,
        "digest": image.digest if isinstance(image, Image) else None,
        "digest_from": traced.digest_from.value if is_image and traced.digest_from else None,
        "name": image.name if isinstance(image, Image) else None,
        "name_from": traced.name_from.value if is_image and traced.name_from else None,
        "version": image.version if isinstance(image, Image) else None,
        "repository": image.repository if isinstance(image, Image) else None,
        "skipped": image.value if isinstance(image, SkipReason) else None,
        "deployment_name": each.name,
        "stands": None if each.name is None else _judgement(story, each)[0].partition(",")[0],
        "told_by": each.speaker,
        "ledger": None
        if entry is None or view.reading is None
        else entry_as_json(entry, view.reading),
        "action": None if each.row is None else each.row.action.value,
        "reason": "" if each.row is None else each.row.reason,
    }
