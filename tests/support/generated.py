"""
The files that are made of others.

`docs/configuration.md` of the settings, `docs/metrics.md` of the metrics, `manifests/install.yaml`
of the base, the Prometheus operator's rules of the rule file, the last column of docs/faults.md of
the marks on tests. `python -m tests.support.generated`
writes them; the tests compare them with what it would write.
"""

import shutil
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tests.support.faults import marked, with_tests
from tracker.flags import FLAG_ONLY, FLAGS
from tracker.metrics import METRICS, Described
from tracker.settings import ALIASES, Settings, duration_text

__all__ = [
    "ALERTS",
    "COMMAND",
    "CONFIGURATION",
    "FAULTS",
    "INSTALL",
    "METRICS_PAGE",
    "PROMETHEUS_RULE",
    "ROOT",
    "configuration",
    "faults_page",
    "install",
    "metrics_page",
    "prometheus_rule",
    "render",
]

ROOT: Final = Path(__file__).resolve().parents[2]
CONFIGURATION: Final = ROOT / "docs" / "configuration.md"
METRICS_PAGE: Final = ROOT / "docs" / "metrics.md"
FAULTS: Final = ROOT / "docs" / "faults.md"
INSTALL: Final = ROOT / "manifests" / "install.yaml"

_COMPONENTS: Final = ROOT / "manifests" / "components"
ALERTS: Final = _COMPONENTS / "monitoring" / "alerts.yaml"
PROMETHEUS_RULE: Final = _COMPONENTS / "prometheus-operator" / "prometheusrule.yaml"

COMMAND: Final = "python -m tests.support.generated"
"""What brings the files into step again."""

_HEAD: Final = f"""\
<!-- Made of tracker/settings.py by `{COMMAND}`; changes here are lost. -->

# Configuration

Settings come from flags and environment variables. A flag beats a variable, and an empty variable
counts as not set. Only `ORG` is required to start; without `LOGICAL_ENVIRONMENT` and `API_TOKEN`
GitHub refuses everything. Every mistake is told at once, one line each, and the program stops with
exit code 2 before it connects to anything. Under
`kopf run tracker/main.py` (development) a `.env` file is read as well; variables beat it.

Durations are plain seconds (`90`, `0.5`) or numbers with a unit: `500ms`, `30s`, `90m`, `25h`,
`1h30m`. Flags may be written with one dash or two, with a blank or `=` before the value.

"""

_INSTALL_HEAD: Final = f"""\
# Made of manifests/base by `{COMMAND}`; changes here are lost.
#
# To install it without kustomize: set ORG and LOGICAL_ENVIRONMENT (and CLUSTER) in the ConfigMap
# and the image in the Deployment, then
#
#   kubectl apply -f manifests/install.yaml
#   kubectl -n deployment-tracker create secret generic deployment-tracker --from-file=token=FILE
#
# The pod waits until that Secret is there; a new token in it is taken without a restart. After a
# later change of the ConfigMap:
#
#   kubectl -n deployment-tracker rollout restart deployment/deployment-tracker
"""

_RULE_HEAD: Final = f"""\
# Made of components/monitoring/alerts.yaml by `{COMMAND}`; changes here are lost.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: deployment-tracker
  namespace: deployment-tracker
  labels:
    app.kubernetes.io/name: deployment-tracker
    app.kubernetes.io/instance: deployment-tracker
    app.kubernetes.io/component: alerts
    app.kubernetes.io/part-of: deployment-tracker
    app.kubernetes.io/managed-by: kustomize
spec:
"""


_METRICS_HEAD: Final = f"""\
<!-- Made of tracker/metrics.py by `{COMMAND}`; changes here are lost. -->

# Metrics

`METRICS_PORT` (9090) serves them at `/metrics`, as Prometheus' text or as OpenMetrics. Labels have
the values that stand here and no others, and every series is there from the start: a cluster of any
size makes no more of them. Besides these there are `process_…` (memory, CPU seconds, open files)
and `python_info`.

"""


def faults_page() -> str:
    """Return the text of docs/faults.md: as it is, with the tests that are marked now."""
    return with_tests(FAULTS.read_text(encoding="utf-8"), marked(ROOT / "tests"))


def metrics_page() -> str:
    """Return the text of docs/metrics.md."""
    table = ["| Metric | Type | What it tells |", "|---|---|---|"]
    table += [f"| `{each.full_name}` | {each.kind} | {each.text} |" for each in METRICS]
    labels = ["", "## Labels", "", "| Metric | Label | Values |", "|---|---|---|"]
    labels += [
        f"| `{each.name}` | `{label}` | {', '.join(f'`{value}`' for value in values) or 'one'} |"
        for each in METRICS
        for label, values in each.labels.items()
    ]
    buckets = ["", "## Buckets", "", "| Metric | Upper bounds in seconds |", "|---|---|"]
    buckets += [f"| `{each.name}` | {_bounds(each)} |" for each in METRICS if each.buckets]
    return _METRICS_HEAD + "\n".join([*table, *labels, *buckets]) + "\n"


def _bounds(described: Described) -> str:
    return ", ".join(f"{bound:g}" for bound in described.buckets)


def configuration() -> str:
    """Return the text of docs/configuration.md."""
    sections = [_section(name, field) for name, field in Settings.model_fields.items()]
    return _HEAD + "\n".join([_table(), *sections])


def _table() -> str:
    lines = ["| Variable | Flag | Default |", "|---|---|---|"]
    lines += [
        f"| {_variable(name)} | {_flag(name)} | {_default(field)} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(lines) + "\n"


def _section(name: str, field: FieldInfo) -> str:
    title = f"-{name}" if name in FLAG_ONLY else name.upper()
    lines = [f"## {title}\n", f"{field.description}\n"]
    facts = ["Required." if field.is_required() else f"Default: {_default(field)}."]
    bounds = [_bound(field, which) for which in ("ge", "le")]
    if all(bounds):
        facts.append(f"From {bounds[0]} to {bounds[1]}.")
    if name in FLAGS and name not in FLAG_ONLY:
        facts.append(f"Flag: {_flag(name)}.")
    facts += [f"Also read from `{alias}`." for alias, real in ALIASES.items() if real == title]
    examples = " or ".join(f"`{example}`" for example in field.examples or [])
    facts.append(f"Example: {examples}.")
    return "\n".join([*lines, " ".join(facts) + "\n"])


def _variable(name: str) -> str:
    return "" if name in FLAG_ONLY else f"`{name.upper()}`"


def _flag(name: str) -> str:
    return f"`-{name.replace('_', '-')}`" if name in FLAGS else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    default: object = field.default
    if isinstance(default, timedelta):
        return f"`{duration_text(default)}`"
    if default is None or default == () or default == SecretStr(""):
        default = ""
    return f"`{default}`" if default != "" else "(empty)"


def _bound(field: FieldInfo, which: str) -> str:
    for part in field.metadata:
        if (bound := getattr(part, which, None)) is not None:
            return duration_text(bound) if isinstance(bound, timedelta) else str(bound)
    return ""


def render(kustomization: Path) -> str | None:
    """Return what kustomize makes of a folder, or None when there is no kubectl to ask."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return None
    done = subprocess.run(
        [kubectl, "kustomize", str(kustomization)], check=True, capture_output=True, text=True
    )
    return done.stdout


def install() -> str | None:
    """Return the text of manifests/install.yaml, or None without kubectl."""
    rendered = render(ROOT / "manifests" / "base")
    return None if rendered is None else _INSTALL_HEAD + rendered


def prometheus_rule() -> str:
    """Return the text of the Prometheus operator's rules: the rule file, as an object's spec."""
    _, groups, rules = ALERTS.read_text(encoding="utf-8").partition("groups:\n")
    return _RULE_HEAD + textwrap.indent(groups + rules, "  ")


def main() -> int:
    """Write them; without kubectl install.yaml stays as it is, and that is an error."""
    METRICS_PAGE.write_text(metrics_page(), encoding="utf-8")
    FAULTS.write_text(faults_page(), encoding="utf-8")
    CONFIGURATION.write_text(configuration(), encoding="utf-8")
    PROMETHEUS_RULE.write_text(prometheus_rule(), encoding="utf-8")
    text = install()
    if text is None:
        sys.stderr.write("kubectl is not on PATH: manifests/install.yaml was left as it is\n")
        return 1
    INSTALL.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
