"""What Prometheus reads: names that keep to its rules, series that are always the same ones."""

import math
import random
import re
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.builders import raw_pod
from tracker.answers import Outcome
from tracker.entries import Account
from tracker.images import SkipReason
from tracker.inventory import Inventory
from tracker.metrics import METRICS, PREFIX, Described, Kind, Metrics, Snapshot
from tracker.pods import Rules, read_pod

NOW = 1_700_000_000.0
UNITS = ("_seconds", "_bytes", "_total", "_info")
WITHOUT_UNIT = {"pods", "names", "skipped", "queue_depth", "ratelimit_remaining", "watch_in_step",
                "workloads_readable"}  # fmt: skip
"""Counts and claims: what they count is their name."""


def metrics() -> Metrics:
    return Metrics(version="1.2.3", kopf_version="1.45", wall=lambda: NOW)


def snapshot(**more: object) -> Snapshot:
    given = {
        "pods": 0,
        "names": {},
        "skipped": {},
        "shared_names": 0,
        "queue_depth": 0,
        "oldest_pending_seconds": 0.0,
        "paused_seconds": 0.0,
        "watch_in_step": True,
        "workloads_readable": None,
        "loop_lag_seconds": 0.0,
        **more,
    }
    return Snapshot(**given)  # type: ignore[arg-type] # the defaults are of many types


def samples(told: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield every sample of ours in a scrape."""
    body, _ = told.render("")
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                yield sample.name.removeprefix(PREFIX), sample.labels, sample.value


def value(told: Metrics, name: str, **labels: str) -> float:
    (found,) = (got for each, on, got in samples(told) if each == name and on == labels)
    return found


def series(told: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {(name, tuple(sorted(labels.items()))) for name, labels, _ in samples(told)}


@pytest.mark.parametrize("described", METRICS, ids=lambda each: each.name)
def test_a_metric_is_named_as_prometheus_names_them(described: Described) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", described.name)
    assert described.name.endswith("_total") is (described.kind is Kind.COUNTER)
    assert described.name.endswith(UNITS) is (described.name not in WITHOUT_UNIT)
    assert described.text.endswith(".")
    assert not set(described.labels) & {"pod", "namespace", "name", "digest", "deployment_name"}
    assert bool(described.buckets) is (described.kind is Kind.HISTOGRAM)
    assert list(described.buckets) == sorted(described.buckets)


def test_what_is_scraped_is_what_is_described() -> None:
    told = metrics()
    told.snapshot = snapshot
    body, content_type = told.render("")
    assert content_type.startswith("text/plain")
    families = {
        family.name: family
        for family in text_string_to_metric_families(body.decode())
        if family.name.startswith(PREFIX)
    }
    assert len(families) == len(METRICS)
    for described in METRICS:
        family = families[described.full_name.removesuffix("_total")]
        assert (family.type, family.documentation) == (described.kind.value, described.text)
        seen = {
            tuple(sorted((key, got) for key, got in sample.labels.items() if key != "le"))
            for sample in family.samples
        }
        if described.name == "build_info":
            assert [dict(labels)["version"] for labels in seen] == ["1.2.3"]
            continue
        expected = 1
        for values in described.labels.values():
            expected *= len(values)
        assert len(seen) == expected, described.name
        for labels in seen:
            assert {key: got for key, got in labels if got in described.labels[key]} == dict(labels)


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    body, content_type = metrics().render("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept",
    [
        pytest.param("application/openmetrics-text;version=x", id="no-version"),
        pytest.param("text/plain;version=1.x", id="half-a-version"),
        pytest.param("application/openmetrics-text;version=1.0.0.\udcff", id="no-text"),
        pytest.param("application/openmetrics-text;version=1.0.0.\u0661", id="other-digits"),
        pytest.param(";;==,;version", id="nonsense"),
    ],
)
def test_who_asks_for_nonsense_gets_plain_text(accept: str) -> None:
    """Once, it got a 500, and the log a traceback for each request."""
    body, content_type = metrics().render(accept)
    assert content_type == metrics().render("")[1]
    assert body.startswith(b"# HELP ")
    assert not body.endswith(b"# EOF\n")


def test_what_happens_is_counted() -> None:
    told = metrics()
    for kind in (None, "ADDED", "ADDED", "MODIFIED", "DELETED", "ERROR"):
        told.watched(kind)
    for outcome in (Outcome.ACKNOWLEDGED, Outcome.NOT_FOUND, Outcome.ACKNOWLEDGED):
        told.answered(outcome)
    told.delivered(0.3)
    told.requested("single", status=201, seconds=0.2, headers={"x-ratelimit-remaining": "42"})
    told.requested("batch", status=None, seconds=30.0, headers={})
    told.requested("batch", status=999, seconds=1.0, headers={"x-ratelimit-remaining": "-1"})
    told.written(well=True, seconds=0.001)
    told.written(well=False, seconds=0.001)
    told.reconciled(well=False)
    told.reconciled(well=True)
    told.restarted()
    told.granted()
    assert value(told, "events_total", type="listed") == 1
    assert value(told, "events_total", type="added") == 2
    assert value(told, "posts_total", outcome="acknowledged") == 2
    assert value(told, "posts_total", outcome="failed") == 0
    assert value(told, "requests_total", call="single", code="2xx") == 1
    assert value(told, "requests_total", call="batch", code="none") == 1
    assert value(told, "request_seconds_count", call="batch") == 2
    assert value(told, "delivery_seconds_bucket", le="0.5") == 1
    assert value(told, "ratelimit_remaining") == 42
    assert value(told, "ledger_writes_total", result="failed") == 1
    assert value(told, "ledger_write_seconds_count") == 2
    assert value(told, "reconcile_passes_total", result="ok") == 1
    assert value(told, "reconcile_passes_total", result="failed") == 1
    assert value(told, "watch_restarts_total") == 1
    for stamp in (
        "last_acknowledged",
        "watch_last_granted",
        "watch_last_event",
        "reconcile_last_success",
    ):
        assert value(told, f"{stamp}_timestamp_seconds") == NOW


def test_what_is_is_asked_for_at_each_scrape() -> None:
    told = metrics()
    told.snapshot = lambda: snapshot(
        pods=7,
        names={Account.PARKED: 2},
        skipped={SkipReason.BARE: 3},
        shared_names=1,
        oldest_pending_seconds=12.5,
        workloads_readable=False,
        watch_in_step=False,
    )
    assert value(told, "pods") == 7
    assert value(told, "names", state="parked") == 2
    assert value(told, "names", state="acknowledged") == 0
    assert value(told, "skipped", reason="bare-pod") == 3
    assert value(told, "skipped", reason="name-shared") == 1
    assert value(told, "oldest_pending_seconds") == 12.5
    assert value(told, "workloads_readable") == 0
    assert value(told, "watch_in_step") == 0
    told.snapshot = lambda: snapshot(pods=8)
    assert value(told, "pods") == 8
    assert math.isnan(value(told, "workloads_readable"))


def test_ten_thousand_random_pods_make_no_series() -> None:
    chance = random.Random(7)  # noqa: S311 - any pods will do, the same in each run
    told = metrics()
    inventory = Inventory(template="{{namespace}}/{{deploymentName}}/{{containerName}}")
    told.snapshot = lambda: snapshot(
        pods=len(inventory), skipped=inventory.skipped(), shared_names=len(inventory.shared())
    )
    before = series(told)
    rules = Rules(excluded_namespaces=("kube-*",))
    for number in range(10_000):
        raw = raw_pod(name=f"pod-{chance.random()}", uid=f"uid-{number}")
        raw["metadata"]["namespace"] = chance.choice(["kube-system", "shop", f"ns-{number}"])
        raw["status"]["phase"] = chance.choice(["Running", "Pending", f"Odd{number}", None])
        if chance.random() < 0.3:
            raw["metadata"].pop("ownerReferences")
        told.watched(chance.choice([None, "ADDED", f"ODD{number}"]))
        inventory.observe(read_pod(raw, rules=rules))
        told.requested("single", status=chance.randrange(1000), seconds=1.0, headers={})
    assert len(inventory) == 10_000
    assert series(told) == before
