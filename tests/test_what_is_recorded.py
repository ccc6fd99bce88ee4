"""The tables of docs/what-is-recorded.md, held to the code row by row."""

import re
from typing import Any

import pytest

from tests.support.builders import TEMPLATE, digest, raw_owner, raw_pod, record, workload
from tests.support.generated import ROOT
from tracker.annotations import NO_MARKS, Marks
from tracker.catalog import KINDS, Catalog, Known, Presence, keeps
from tracker.images import ImageRules, SkipReason
from tracker.inventory import Absent, Deployed, Held, Inventory
from tracker.pods import Rules, Skipped, read_pod
from tracker.workloads import Owner, Workload

PAGE = (ROOT / "docs" / "what-is-recorded.md").read_text(encoding="utf-8")
HEX = "a" * 64
RULES = Rules(excluded_namespaces=("excluded",), images=ImageRules(exclude=("*/left-out",)))
REPORT = workload("report", kind="CronJob")


def rows(heading: str) -> list[tuple[str, ...]]:
    """Return the rows of the table below a heading."""
    _, _, text = PAGE.partition(f"\n## {heading}\n")
    text = text.partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def pod_of(controller: str, state: str, image_id: str) -> dict[str, Any]:
    """Return the pod that a row is about."""
    annotations, labels = {}, {}
    repository = "ghcr.io/acme/left-out" if "left out" in controller else "ghcr.io/acme/app"
    if label := re.search(r"`([a-z-]+): ([0-9a-f]+)`", controller):
        labels = {label[1]: label[2]}
    if "ignore" in controller:
        annotations = {"metadata.github.com/ignore": "true"}
    owners = []
    if named := re.match(r"(\w+) `([^`]+)`", controller):
        group = KINDS[named[1]].api_version if named[1] in KINDS else "x/v1"
        owners = [raw_owner(named[1], named[2]) | {"apiVersion": group}]
    else:
        assert controller == "none"
    pod = raw_pod(
        owners=owners,
        labels=labels,
        annotations=annotations,
        namespace="excluded" if "excluded namespace" in controller else "shop",
        phase=state.partition(",")[0],
        # The schedule of the row's Job, and an hour.
        creationTimestamp="2024-01-15T10:30:00Z",
    )
    if state.endswith("being deleted"):
        pod["metadata"]["deletionTimestamp"] = "2024-01-15T11:00:00Z"
    [container], [status] = pod["spec"]["containers"], pod["status"]["containerStatuses"]
    container["image"] = status["image"] = f"{repository}:v1"
    if "with its digest" in controller:
        container["image"] += f"@{digest()}"
    image_id = image_id.strip("`").replace("repo", repository).replace("sha256:…", digest())
    status["imageID"] = "" if image_id == "none yet" else image_id.replace("…", HEX * 2)
    return pod


def recorded(controller: str, state: str, image_id: str) -> str:
    """Return what the code makes of a row, in the words of the table."""
    catalog = Catalog(enabled="with `WORKLOADS=true`" in controller)
    if "CronJob `report`" in controller:
        owner = Owner(api_version="batch/v1", kind="CronJob", name="report")
        job = workload("by-hand", kind="Job")
        known = Known(controller=owner, terminating=False, marks=NO_MARKS)
        if catalog.covers(job):
            catalog.take_list("Job", {job: known}, namespace=None)
    inventory = Inventory(template=TEMPLATE, marks_of=catalog.marks, resolve=catalog.resolve)
    pod = read_pod(pod_of(controller, state, image_id), rules=RULES)
    inventory.observe(pod)
    if isinstance(pod, Skipped):
        return f"nothing: `{pod.reason.value}`"
    (name,) = inventory.names()
    match inventory.judge(name, record("b", name=name)):
        case Deployed():
            return f"deployed as `{name}`"
        case Absent():
            return "nothing; what stood before is decommissioned"
        case Held():
            (image,) = (each.image for each in pod.containers)
            if isinstance(image, SkipReason):
                return f"nothing: `{image.value}`"
            return "nothing yet; what stood before stays"


@pytest.mark.parametrize("row", rows("A pod and its name"), ids=lambda row: " ".join(row)[:90])
def test_a_pod_is_recorded_as_the_table_says(row: tuple[str, ...]) -> None:
    controller, state, image_id, expected = row
    assert recorded(controller, state, image_id) == expected


def left(kind: str, there: str, reads: str) -> str:
    """Return what becomes of a name without pods, in the words of the table."""
    owner = {
        "Rollout": Workload(
            api_version="argoproj.io/v1alpha1", kind="Rollout", namespace="shop", name="web"
        )
    }.get(kind, workload("web", kind=kind))
    catalog = Catalog(enabled=reads == "true")
    if not catalog.covers(owner):
        return "is decommissioned"
    known = Known(
        controller=None,
        terminating=there == "being deleted",
        marks=Marks(ignored=True) if "ignore" in there else NO_MARKS,
    )
    if there != "could not be read":
        found = {} if there == "no" else {owner: known}
        catalog.take_list(kind, found, namespace=None)
    if catalog.presence(owner) is Presence.UNKNOWN:
        return "stays, until it can be read"
    kept = keeps(catalog, owner, "app", "shop/web/app", template=TEMPLATE)
    return "stays" if kept else "is decommissioned"


@pytest.mark.parametrize(
    "row", rows("When the last pod of a name is gone"), ids=lambda row: " ".join(row)[:90]
)
def test_a_name_without_pods_ends_as_the_table_says(row: tuple[str, ...]) -> None:
    kind, there, reads, expected = row
    assert left(kind, there, reads) == expected


def test_the_tables_are_read() -> None:
    assert len(rows("A pod and its name")) == 30
    assert len(rows("When the last pod of a name is gone")) == 11
