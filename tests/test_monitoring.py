"""The dashboard and the alerts ask for metrics that exist, and tell what to do about them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    Expr,
    MatchOp,
    MatrixSelector,
    VectorSelector,
    parse,
    walk,
)

from tests.support.generated import ALERTS, COMMAND, PROMETHEUS_RULE, ROOT, prometheus_rule
from tracker.metrics import METRICS as DESCRIBED
from tracker.metrics import PREFIX

DASHBOARD = ALERTS.with_name("dashboard.json")
Json = dict[str, Any]

ANY: frozenset[str] = frozenset()
"""Values that no query may name: they are told at run time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric as /metrics has it: its type and, for each label, the closed set of values."""

    type: str
    labels: dict[str, frozenset[str]] = field(default_factory=dict)

    def names(self, name: str) -> Iterator[tuple[str, dict[str, frozenset[str]]]]:
        """Yield the names of its series with their labels."""
        if self.type != "histogram":
            yield name, self.labels
            return
        yield f"{name}_bucket", {**self.labels, "le": ANY}
        yield f"{name}_sum", self.labels
        yield f"{name}_count", self.labels


METRICS = {
    described.name: Metric(
        type=described.kind.value,
        labels={label: frozenset(values) for label, values in described.labels.items()},
    )
    for described in DESCRIBED
}
OF_THE_CLIENT = {
    "process_resident_memory_bytes": Metric(type="gauge"),
    "process_cpu_seconds_total": Metric(type="counter"),
}

SERIES = {
    name: labels
    for metric, what in [
        *((PREFIX + name, what) for name, what in METRICS.items()),
        *OF_THE_CLIENT.items(),
    ]
    for name, labels in what.names(metric)
}
COUNTERS = {
    *(PREFIX + name for name, metric in METRICS.items() if metric.type == "counter"),
    *(name for name in SERIES if name.endswith(("_bucket", "_sum", "_count"))),
    "process_cpu_seconds_total",
}

OF_THE_SCRAPE = {"instance"}
"""Labels that every Prometheus adds."""


def rules() -> list[Json]:
    """Return the alert rules."""
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found: list[Json] = group["rules"]
    return found


def dashboard() -> Json:
    """Return the dashboard."""
    found: Json = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def targets() -> list[tuple[str, Json]]:
    """Return each query of the dashboard with its panel's title."""
    return [
        (panel["title"], target)
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]


QUERIES = [
    *((rule["alert"], rule["expr"]) for rule in rules()),
    *((f"{title}: {target['refId']}", target["expr"]) for title, target in targets()),
]


def parsed(query: str) -> Expr:
    """Parse a query as Prometheus would, after Grafana filled in its own variable."""
    expression = parse(query.replace("$__rate_interval", "5m"))
    assert isinstance(expression, Expr)
    return expression


def nodes(expression: Expr) -> list[Expr]:
    """Return every part of a query."""
    found: list[Expr] = []
    walk(expression, found.append)
    return found


def selectors(expression: Expr) -> list[VectorSelector]:
    """Return what a query takes from the store."""
    # The parser's walk does not go into what a range is over.
    return [
        each.vector_selector if isinstance(each, MatrixSelector) else each
        for each in nodes(expression)
        if isinstance(each, VectorSelector | MatrixSelector)
    ]


@pytest.mark.parametrize(
    "query", [query for _, query in QUERIES], ids=[name for name, _ in QUERIES]
)
def test_every_query_asks_for_what_there_is(query: str) -> None:
    expression = parsed(query)
    assert selectors(expression)
    labels: set[str] = {*OF_THE_SCRAPE}
    for selector in selectors(expression):
        assert selector.name in SERIES
        known = SERIES[selector.name]
        labels |= known.keys()
        for matcher in selector.matchers.matchers:
            if matcher.name in OF_THE_SCRAPE:
                continue
            values = set(matcher.value.split("|"))
            assert values <= known[matcher.name], f"{selector.name}: {matcher}"
            assert len(values) == 1 or matcher.op == MatchOp.Re
    for each in nodes(expression):
        if isinstance(each, AggregateExpr) and each.modifier is not None:
            assert set(each.modifier.labels) <= labels, each.prettify()


@pytest.mark.parametrize(
    "query", [query for _, query in QUERIES], ids=[name for name, _ in QUERIES]
)
def test_what_only_grows_is_asked_for_its_growth(query: str) -> None:
    """And what goes up and down is not: a rate of a gauge means nothing."""
    growing = {
        each.vector_selector.name
        for each in nodes(parsed(query))
        if isinstance(each, MatrixSelector) and "min_over_time" not in query
    }
    assert growing <= COUNTERS
    if "min_over_time" not in query:
        assert {each.name for each in selectors(parsed(query))} & COUNTERS == growing


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_has_its_place_on_the_dashboard(name: str) -> None:
    asked = {
        selector.name for _, target in targets() for selector in selectors(parsed(target["expr"]))
    }
    assert asked & {series for series, _ in METRICS[name].names(PREFIX + name)}


def test_the_dashboard_has_a_name_a_place_and_a_sentence_for_each_panel() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (at["x"] + column, at["y"] + line)
            for column in range(at["w"])
            for line in range(at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_query_of_the_dashboard_can_be_narrowed_to_one_tracker() -> None:
    for title, target in targets():
        for selector in selectors(parsed(target["expr"])):
            chosen = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
            assert chosen.get("instance") == "$instance", title
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"}
    assert variables["instance"]["definition"] == f"label_values({PREFIX}build_info, instance)"


def test_what_a_legend_shows_is_left_by_its_query() -> None:
    for title, target in targets():
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        kept: set[str] = set(OF_THE_SCRAPE)
        for each in nodes(parsed(target["expr"])):
            if isinstance(each, AggregateExpr):
                kept = set()
                if each.modifier is not None and each.modifier.type == AggModifierType.By:
                    kept = set(each.modifier.labels) - {"le"}
                break
        else:
            for selector in selectors(parsed(target["expr"])):
                kept |= SERIES[selector.name or ""].keys()
        assert shown <= kept, title


def test_each_alert_says_what_it_means_and_where_it_is_told_what_to_do() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (\w+)$", operations, flags=re.MULTILINE)
    alerts = [rule["alert"] for rule in rules()]
    assert len(set(alerts)) == len(alerts)
    assert [name for name in headings if name.startswith("DeploymentTracker")] == alerts
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"DeploymentTracker[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"[1-9][0-9]*[mh]", rule["for"])
        assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
        told = rule["annotations"]
        assert set(told) == {"summary", "description", "runbook"}
        assert told["runbook"].endswith(f" docs/operations.md#{rule['alert'].lower()}")
        assert all("\n" not in text for text in told.values())


def test_the_operator_s_rules_are_in_step_with_the_rule_file() -> None:
    assert PROMETHEUS_RULE.read_text(encoding="utf-8") == prometheus_rule(), f"run: {COMMAND}"
    assert yaml.safe_load(prometheus_rule())["spec"] == yaml.safe_load(ALERTS.read_text())


def series(name: str, values: str, **labels: str) -> Json:
    """Return a series for promtool: a sample a minute, in its own short form."""
    shown = ",".join(f'{label}="{value}"' for label, value in {"instance": "a", **labels}.items())
    return {"series": f"{PREFIX}{name}{{{shown}}}", "values": values}


RUNS = series("build_info", "1x240", version="0.1.0")
PENDING = series("names", "5x240", state="pending")
KNOWN = series("names", "25x240", state="acknowledged")

SCENARIOS: list[tuple[str, list[Json], str, set[str]]] = [
    ("nobody is there", [], "20m", {"DeploymentTrackerAbsent"}),
    ("all is well", [RUNS, KNOWN, series("names", "0x240", state="pending")], "3h", set()),
    (
        "one waits for half an hour",
        [RUNS, series("oldest_pending_seconds", "0+60x240")],
        "30m",
        {"DeploymentTrackerQueueOld"},
    ),
    (
        "one waits for ten minutes and goes",
        [RUNS, series("oldest_pending_seconds", "0+60x10 0x240")],
        "30m",
        set(),
    ),
    (
        "nothing gets through",
        [RUNS, PENDING, series("posts_total", "7x240", outcome="acknowledged")],
        "30m",
        {"DeploymentTrackerNothingAcknowledged"},
    ),
    (
        "something is always pending, and gets through",
        [RUNS, PENDING, series("posts_total", "0+1x240", outcome="acknowledged")],
        "30m",
        set(),
    ),
    (
        "nothing is acknowledged since nothing changes",
        [
            RUNS,
            series("names", "0x240", state="pending"),
            series("posts_total", "7x240", outcome="acknowledged"),
        ],
        "30m",
        set(),
    ),
    (
        "most images are not known",
        [RUNS, KNOWN, series("names", "75x240", state="not_found")],
        "2h",
        {"DeploymentTrackerManyNotFound"},
    ),
    (
        "some images are not known",
        [RUNS, KNOWN, series("names", "5x240", state="not_found")],
        "2h",
        set(),
    ),
    (
        "most of a few images are not known",
        [RUNS, series("names", "5x240", state="not_found")],
        "2h",
        set(),
    ),
    (
        "a record is refused",
        [RUNS, KNOWN, series("names", "1x240", state="parked")],
        "3h",
        {"DeploymentTrackerRecordsRefused"},
    ),
    (
        "the token is refused, once a minute",
        [RUNS, KNOWN, series("posts_total", "0+1x240", outcome="unauthorized")],
        "20m",
        {"DeploymentTrackerAuthenticationRefused"},
    ),
    (
        "the token was refused long ago",
        [RUNS, KNOWN, series("posts_total", "3x240", outcome="unauthorized")],
        "20m",
        set(),
    ),
    (
        # promtool's clock begins at 0, so a watch that was granted never has been since then.
        "no watch was ever granted",
        [RUNS, series("watch_last_granted_timestamp_seconds", "0x240")],
        "30m",
        {"DeploymentTrackerWatchSilent"},
    ),
    (
        "a watch is granted every minute",
        [RUNS, series("watch_last_granted_timestamp_seconds", "0+60x240")],
        "3h",
        set(),
    ),
    (
        "no comparison since the start",
        [RUNS, series("reconcile_last_success_timestamp_seconds", "0x240")],
        "1h",
        {"DeploymentTrackerReconcileOverdue"},
    ),
    (
        "the disk is full",
        [RUNS, series("ledger_writes_total", "0+1x240", result="failed")],
        "20m",
        {"DeploymentTrackerLedgerNotWritable"},
    ),
    (
        "the ledger is written",
        [RUNS, series("ledger_writes_total", "0+1x240", result="ok")],
        "20m",
        set(),
    ),
    (
        "the loop is late",
        [RUNS, series("loop_lag_seconds", "2x240")],
        "15m",
        {"DeploymentTrackerLoopLag"},
    ),
]


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """Prometheus' own tool plays the rules against what the tracker would show."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH")
    told = {rule["alert"]: rule for rule in rules()}
    assert {name for *_, firing in SCENARIOS for name in firing} == set(told)
    # Only whether an alert fires is asked here, so what it says is left out.
    bare = [{**rule, "annotations": {}, "labels": {}} for rule in rules()]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "deployment-tracker", "rules": bare}]})
    )
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": given,
            "alert_rule_test": [
                {
                    "eval_time": at,
                    "alertname": alert,
                    "exp_alerts": [
                        {"exp_labels": {} if alert.endswith("Absent") else {"instance": "a"}}
                    ]
                    if alert in firing
                    else [],
                }
                for alert in told
            ],
        }
        for name, given, at, firing in SCENARIOS
    ]
    played = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(played))
    for command in (
        ["check", "rules", str(ALERTS)],
        ["test", "rules", str(tmp_path / "tests.yaml")],
    ):
        done = subprocess.run(
            [promtool, *command], capture_output=True, text=True, check=False, timeout=50
        )
        assert done.returncode == 0, done.stdout + done.stderr
