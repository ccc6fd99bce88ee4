"""
Metrics, as Prometheus reads them.

What happens is counted when it happens, by the methods of `Metrics`; what *is* (names by state,
the queue, a pause) is asked for when somebody scrapes, as a `Snapshot`. Labels come from closed
sets and every series exists from the start, so neither a busy cluster nor a hostile pod can make
more of them, and a rate never begins with its first event missing. No label holds a pod, a name or
a digest.

`METRICS` describes each one; docs/metrics.md is made of it.
"""

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tracker.answers import Outcome
from tracker.entries import Account
from tracker.images import SkipReason

__all__ = ["METRICS", "PREFIX", "Described", "Kind", "Metrics", "Snapshot"]

PREFIX: Final = "deployment_tracker_"

NAME_SHARED: Final = "name-shared"
EVENTS: Final = {None: "listed", "ADDED": "added", "MODIFIED": "modified", "DELETED": "deleted"}
CALLS: Final = ("single", "batch")
CODES: Final = ("2xx", "3xx", "4xx", "5xx", "none")
RESULTS: Final = ("ok", "failed")

# A request takes some tenths of a second, and thirty seconds at most (`tracker.transport`).
REQUEST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# From a pod that runs to its record: a second of gathering, minutes of a limit, hours of an outage.
DELIVERY_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
WRITE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Kind(StrEnum):
    """What Prometheus calls the type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """
    One metric: its name without `PREFIX`, what it tells, and its labels with all their values.

    A label without values holds what is the same for as long as the process lives.
    """

    name: str
    kind: Kind
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """Return the name that is scraped; that of a counter ends in `_total`."""
        return f"{PREFIX}{self.name}"


_SKIPPED = (*sorted(reason.value for reason in SkipReason), NAME_SHARED)

METRICS: Final = (
    Described(
        name="build_info",
        kind=Kind.GAUGE,
        text="The program's version and what it runs on; always 1.",
        labels={"version": (), "python": (), "kopf": ()},
    ),
    Described(
        name="events_total",
        kind=Kind.COUNTER,
        text="What the watch told of pods, by type of event.",
        labels={"type": tuple(EVENTS.values())},
    ),
    Described(
        name="pods",
        kind=Kind.GAUGE,
        text="Pods that were seen and have not gone, recorded or not.",
    ),
    Described(
        name="names",
        kind=Kind.GAUGE,
        text="Deployment names in the ledger, by state.",
        labels={"state": tuple(account.value for account in Account)},
    ),
    Described(
        name="skipped",
        kind=Kind.GAUGE,
        text="Pods, containers and names without a record now, by reason.",
        labels={"reason": _SKIPPED},
    ),
    Described(
        name="queue_depth",
        kind=Kind.GAUGE,
        text="Names that wait for a worker or are with one.",
    ),
    Described(
        name="oldest_pending_seconds",
        kind=Kind.GAUGE,
        text=(
            "How long the name has waited that waits longest for its record; 0 when none does. "
            "Names that GitHub refused are not among them."
        ),
    ),
    Described(
        name="posts_total",
        kind=Kind.COUNTER,
        text="Records posted, by what GitHub said of them.",
        labels={"outcome": tuple(outcome.value for outcome in Outcome)},
    ),
    Described(
        name="requests_total",
        kind=Kind.COUNTER,
        text="Requests to GitHub with records, by class of status.",
        labels={"call": CALLS, "code": CODES},
    ),
    Described(
        name="request_seconds",
        kind=Kind.HISTOGRAM,
        text="How long requests to GitHub with records took.",
        labels={"call": CALLS},
        buckets=REQUEST_BUCKETS,
    ),
    Described(
        name="delivery_seconds",
        kind=Kind.HISTOGRAM,
        text="From the first sign of a change to GitHub's acknowledgement of it.",
        buckets=DELIVERY_BUCKETS,
    ),
    Described(
        name="last_acknowledged_timestamp_seconds",
        kind=Kind.GAUGE,
        text="When GitHub acknowledged a record last; 0: not since the start.",
    ),
    Described(
        name="paused_seconds",
        kind=Kind.GAUGE,
        text="How much longer nothing is sent to GitHub.",
    ),
    Described(
        name="ratelimit_remaining",
        kind=Kind.GAUGE,
        text="What GitHub said last is left of its limit; NaN until it says so.",
    ),
    Described(
        name="watch_last_granted_timestamp_seconds",
        kind=Kind.GAUGE,
        text="When the API server granted a list or a watch of pods last; 0: never.",
    ),
    Described(
        name="watch_last_event_timestamp_seconds",
        kind=Kind.GAUGE,
        text="When the watch told of a pod last; 0: never.",
    ),
    Described(
        name="watch_in_step",
        kind=Kind.GAUGE,
        text="1 while a watch of pods is granted.",
    ),
    Described(
        name="watch_restarts_total",
        kind=Kind.COUNTER,
        text="How often the watch was started again.",
    ),
    Described(
        name="reconcile_passes_total",
        kind=Kind.COUNTER,
        text="Comparisons with a list of all pods, by result.",
        labels={"result": RESULTS},
    ),
    Described(
        name="reconcile_last_success_timestamp_seconds",
        kind=Kind.GAUGE,
        text="When such a comparison succeeded last; 0: never.",
    ),
    Described(
        name="workloads_readable",
        kind=Kind.GAUGE,
        text="1 while workloads can be read, 0 while they can't; NaN without WORKLOADS.",
    ),
    Described(
        name="ledger_writes_total",
        kind=Kind.COUNTER,
        text="Transactions of the ledger's file, by result.",
        labels={"result": RESULTS},
    ),
    Described(
        name="ledger_write_seconds",
        kind=Kind.HISTOGRAM,
        text="How long these took, the disk included.",
        buckets=WRITE_BUCKETS,
    ),
    Described(
        name="loop_lag_seconds",
        kind=Kind.GAUGE,
        text="The longest time in the last minute in which the program did not come to its turn.",
    ),
)

_BY_NAME: Final = {described.name: described for described in METRICS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is now. Seconds are durations; `ratelimit_remaining` None: GitHub has not said."""

    pods: int
    names: Mapping[Account, int]
    skipped: Mapping[SkipReason, int]
    shared_names: int
    queue_depth: int
    oldest_pending_seconds: float
    paused_seconds: float
    watch_in_step: bool
    workloads_readable: bool | None
    loop_lag_seconds: float


class Metrics:
    """
    The metrics of one tracker, in a registry of their own.

    `wall()` returns the time in seconds since the epoch. What `snapshot` returns is asked for at
    each scrape; before it is set there is nothing to tell of what is.
    """

    def __init__(self, *, version: str, kopf_version: str, wall: Callable[[], float]) -> None:
        # A second series for each counter, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call] # theirs
        self.registry = CollectorRegistry(auto_describe=False)
        self.snapshot: Callable[[], Snapshot] | None = None
        self._wall = wall
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = self._gauge("build_info")
        build.labels(version=version, python=platform.python_version(), kopf=kopf_version).set(1)
        self._events = self._counter("events_total")
        self._posts = self._counter("posts_total")
        self._requests = self._counter("requests_total")
        self._request_seconds = self._histogram("request_seconds")
        self._delivery_seconds = self._histogram("delivery_seconds")
        self._restarts = self._counter("watch_restarts_total")
        self._passes = self._counter("reconcile_passes_total")
        self._writes = self._counter("ledger_writes_total")
        self._write_seconds = self._histogram("ledger_write_seconds")
        self._acknowledged_at = self._gauge("last_acknowledged_timestamp_seconds")
        self._granted_at = self._gauge("watch_last_granted_timestamp_seconds")
        self._event_at = self._gauge("watch_last_event_timestamp_seconds")
        self._reconciled_at = self._gauge("reconcile_last_success_timestamp_seconds")
        self._remaining = self._gauge("ratelimit_remaining")
        self._remaining.set(math.nan)
        self.registry.register(_Pulled(self))

    def render(self, accept: str) -> tuple[bytes, str]:
        """
        Return all of it as text, and its content type, for what a scraper accepts.

        An Accept header that makes no sense gets the plain text format.
        """
        try:
            encoder, content_type = choose_encoder(accept)
            content_type.encode("ascii")  # it has the version that was asked for in it
        except (TypeError, ValueError):  # it compares a version's words with numbers
            encoder, content_type = choose_encoder("")
        return encoder(self.registry), content_type

    # What happens.

    def watched(self, kind: str | None) -> None:
        """Count an event of the watch, by the type that Kopf gives it (None: from a list)."""
        if kind in EVENTS:
            self._events.labels(type=EVENTS[kind]).inc()
        self._event_at.set(self._wall())

    def granted(self) -> None:
        """Note that the API server granted a list or a watch."""
        self._granted_at.set(self._wall())

    def restarted(self) -> None:
        """Count a start of the watch that was not the first."""
        self._restarts.inc()

    def reconciled(self, *, well: bool) -> None:
        """Count a comparison with a list of all pods."""
        self._passes.labels(result=RESULTS[not well]).inc()
        if well:
            self._reconciled_at.set(self._wall())

    def answered(self, outcome: Outcome) -> None:
        """Count what GitHub said of one record."""
        self._posts.labels(outcome=outcome.value).inc()
        if outcome is Outcome.ACKNOWLEDGED:
            self._acknowledged_at.set(self._wall())

    def delivered(self, seconds: float) -> None:
        """Note how long it took from a change to its acknowledgement."""
        self._delivery_seconds.observe(seconds)

    def requested(
        self, call: str, *, status: int | None, seconds: float, headers: Mapping[str, str]
    ) -> None:
        """
        Count a request; `call` is one of `CALLS`, `status` None when nothing came back.

        `headers` are the answer's, by names in lower case.
        """
        code = "none" if status is None else f"{status // 100}xx"
        if code in CODES:
            self._requests.labels(call=call, code=code).inc()
        self._request_seconds.labels(call=call).observe(seconds)
        remaining = headers.get("x-ratelimit-remaining", "")
        if remaining.isascii() and remaining.isdecimal():
            self._remaining.set(float(remaining[:9]))

    def written(self, *, well: bool, seconds: float) -> None:
        """Count a transaction of the ledger."""
        self._writes.labels(result=RESULTS[not well]).inc()
        self._write_seconds.observe(seconds)

    # How they are made.

    def _counter(self, name: str) -> Counter:
        described = _BY_NAME[name]
        counter = Counter(
            described.full_name, described.text, tuple(described.labels), registry=self.registry
        )
        for values in _series(described):
            counter.labels(**values)
        return counter

    def _gauge(self, name: str) -> Gauge:
        described = _BY_NAME[name]
        return Gauge(
            described.full_name, described.text, tuple(described.labels), registry=self.registry
        )

    def _histogram(self, name: str) -> Histogram:
        described = _BY_NAME[name]
        histogram = Histogram(
            described.full_name,
            described.text,
            tuple(described.labels),
            buckets=described.buckets,
            registry=self.registry,
        )
        for values in _series(described):
            histogram.labels(**values)
        return histogram


class _Pulled(Collector):
    """What is asked for at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield a family for each metric of what is now."""
        if self._metrics.snapshot is None:
            return
        now = self._metrics.snapshot()
        readable = now.workloads_readable
        for name, value in (
            ("pods", now.pods),
            ("queue_depth", now.queue_depth),
            ("oldest_pending_seconds", now.oldest_pending_seconds),
            ("paused_seconds", now.paused_seconds),
            ("watch_in_step", now.watch_in_step),
            ("workloads_readable", math.nan if readable is None else readable),
            ("loop_lag_seconds", now.loop_lag_seconds),
        ):
            described = _BY_NAME[name]
            yield GaugeMetricFamily(described.full_name, described.text, value=float(value))
        yield _family("names", {account.value: now.names.get(account, 0) for account in Account})
        skipped = {reason.value: now.skipped.get(reason, 0) for reason in SkipReason}
        yield _family("skipped", {**skipped, NAME_SHARED: now.shared_names})


def _family(name: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    """Return a family with one label."""
    described = _BY_NAME[name]
    family = GaugeMetricFamily(described.full_name, described.text, labels=tuple(described.labels))
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _series(described: Described) -> Iterator[dict[str, str]]:
    """Yield the labels of each series of a metric that has any."""
    if not described.labels:
        return
    series: list[dict[str, str]] = [{}]
    for label, values in described.labels.items():
        series = [{**labels, label: value} for labels in series for value in values]
    yield from series
