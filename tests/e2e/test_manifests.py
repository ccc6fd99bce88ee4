"""
A real API server takes the manifests, and they grant what the README says and nothing more.

Each overlay is applied as a user would, looked at, and deleted again as a user would; that the
namespace is gone afterwards is part of it, and keeps it from disturbing the other tests.
"""

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.e2e.administrator import kubectl
from tests.support.controlplane import ControlPlane
from tests.support.generated import ROOT, render

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

ACCOUNT = "deployment-tracker"

ALONE = "manifests-restricted"
"""Stands in for the namespaced overlay's, so that no other test meets its pod security rules."""

NOW_AND_THEN = "manifests-cronjob"
"""Where the CronJob component is asked for."""

Manifest = dict[str, Any]  # raw YAML

Right = tuple[str, str]
"""What `kubectl auth can-i --list` has in a line: `deployments.apps` and `get list`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One kustomization, in a cluster."""

    name: str
    folder: Path
    namespace: str
    printed: str
    manifests: tuple[Manifest, ...]

    @property
    def reads_workloads(self) -> bool:
        """Whether it has the component that does."""
        return self.name == "overlays/production"

    def one(self, kind: str) -> Manifest:
        """Return the only manifest of a kind."""
        (found,) = (each for each in self.manifests if each["kind"] == kind)
        return found


def own_overlay(folder: Path, over: str, **more: Any) -> Path:  # noqa: ANN401 - raw YAML
    """Write a kustomization over one of the project's, as a user's is."""
    kustomization = {"resources": [os.path.relpath(ROOT / "manifests" / over, folder)], **more}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


@pytest.fixture(
    scope="module",
    params=["base", "overlays/development", "overlays/namespaced", "overlays/production"],
)
def applied(
    request: pytest.FixtureRequest,
    control_plane: ControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Applied]:
    """Apply one kustomization after the other, and delete it."""
    name: str = request.param
    # As where it never was: other tests made its namespace by other means.
    absent = ("delete", "namespace", ACCOUNT, "--ignore-not-found", "--timeout=50s")
    code, printed = kubectl(control_plane, *absent)
    assert code == 0, printed
    folder, namespace = ROOT / "manifests" / name, ACCOUNT
    if name == "overlays/namespaced":  # into a namespace that is there already
        namespace = ALONE
        folder = own_overlay(tmp_path_factory.mktemp("own"), name, namespace=namespace)
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": namespace, "labels": restricted}
        control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    code, printed = kubectl(control_plane, "apply", "-k", str(folder))
    try:
        assert code == 0, printed
        yield Applied(
            name=name,
            folder=folder,
            namespace=namespace,
            printed=printed,
            manifests=tuple(yaml.safe_load_all(render(folder) or "")),
        )
    finally:
        code, printed = kubectl(control_plane, "delete", "-k", str(folder), "--timeout=50s")
        if namespace == ALONE:
            assert code == 0, printed
            code, printed = kubectl(control_plane, "delete", "namespace", ALONE, "--timeout=50s")
        assert code == 0, printed


def test_it_is_applied_without_a_warning_and_a_second_time_without_a_change(
    applied: Applied, control_plane: ControlPlane
) -> None:
    lines = applied.printed.splitlines()
    assert len(lines) == len(applied.manifests)
    assert all(line.endswith((" created", " configured", " unchanged")) for line in lines)
    code, printed = kubectl(control_plane, "apply", "-k", str(applied.folder))
    assert code == 0
    assert all(line.endswith(" unchanged") for line in printed.splitlines()), printed


def test_the_server_takes_the_cronjob_component(
    tmp_path: Path, control_plane: ControlPlane
) -> None:
    root = os.path.relpath(ROOT / "manifests", tmp_path)
    # A namespace of its own: what was applied in the usual one is somebody else's.
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"namespace: {NOW_AND_THEN}\nresources: [{root}/base]\n"
        f"components: [{root}/components/workloads, {root}/components/persistence,"
        f" {root}/components/cronjob]\n"
    )
    text = render(tmp_path)
    if text is None:
        pytest.skip("kubectl is not on PATH")
    manifests = list(yaml.safe_load_all(text))
    control_plane.apply(*(m for m in manifests if m["kind"] == "Namespace"))
    others = yaml.safe_dump_all(m for m in manifests if m["kind"] != "Namespace")
    asked = ("apply", "--dry-run=server", "-f", "-")
    code, printed = kubectl(control_plane, *asked, text=others)
    assert code == 0, printed
    assert "Warning" not in printed
    assert "cronjob.batch/deployment-tracker created" in printed
    # Not the pod of the Deployment, but the one that the CronJob's Jobs would make.
    (cronjob,) = (m for m in manifests if m["kind"] == "CronJob")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "deployment-tracker-0"},
        "spec": cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"],
    }
    path = f"/api/v1/namespaces/{NOW_AND_THEN}/pods?dryRun=All"
    status, answer = control_plane.request("POST", path, pod)
    assert status == 201, answer


def test_its_pod_may_run_where_pod_security_is_restricted(
    applied: Applied, control_plane: ControlPlane
) -> None:
    """The Deployment's controller really makes it; without its hardening it would be refused."""
    status, namespace = control_plane.request("GET", f"/api/v1/namespaces/{applied.namespace}")
    assert status == 200
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    selector = "app.kubernetes.io/name=deployment-tracker"
    waits = ("wait", "--for=create", "pod", "-l", selector, "--timeout=40s")
    code, printed = kubectl(control_plane, "-n", applied.namespace, *waits)
    assert code == 0, printed
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "unrestricted"},
        "spec": copy.deepcopy(applied.one("Deployment")["spec"]["template"]["spec"]),
    }
    path = f"/api/v1/namespaces/{applied.namespace}/pods?dryRun=All"
    status, answer = control_plane.request("POST", path, pod)
    assert status == 201, answer
    del pod["spec"]["containers"][0]["securityContext"]
    status, answer = control_plane.request("POST", path, pod)
    assert status == 403
    assert "PodSecurity" in answer["message"]


def test_what_selects_the_pod_finds_it(applied: Applied, control_plane: ControlPlane) -> None:
    """The Deployment, and in production the NetworkPolicy and the Service of the metrics."""
    paths = {
        "Deployment": ("spec", "selector", "matchLabels"),
        "NetworkPolicy": ("spec", "podSelector", "matchLabels"),
        "Service": ("spec", "selector"),
    }
    selectors = {}
    for manifest in applied.manifests:
        if manifest["kind"] in paths:
            labels: Any = manifest
            for key in paths[manifest["kind"]]:
                labels = labels[key]
            selectors[manifest["kind"]] = ",".join(f"{k}={v}" for k, v in labels.items())
    assert set(selectors) == (set(paths) if applied.name.endswith("production") else {"Deployment"})
    for selector in selectors.values():
        waits = ("wait", "--for=create", "pod", "-l", selector, "--timeout=40s")
        code, printed = kubectl(control_plane, "-n", applied.namespace, *waits)
        assert code == 0, printed
        path = f"/api/v1/namespaces/{applied.namespace}/pods?labelSelector={quote(selector)}"
        _, pods = control_plane.request("GET", path)
        owners = {pod["metadata"]["ownerReferences"][0]["name"] for pod in pods["items"]}
        assert len(owners) == 1


def readme_table() -> dict[Right, str]:
    """Return the README's table of permissions, each with where it says it is granted."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Permissions\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    rights = {}
    for group, resources, verbs, where in rows:
        suffix = "" if group.startswith('`""`') else f".{group.strip('`')}"
        for resource in re.findall(r"`([^`]+)`", resources):
            rights[f"{resource}{suffix}", " ".join(re.findall(r"`([^`]+)`", verbs))] = where
    return rights


def may(control_plane: ControlPlane, applied: Applied, namespace: str) -> set[Right]:
    """Return what the account may do in a namespace, but for asking who it is."""
    account = f"system:serviceaccount:{applied.namespace}:{ACCOUNT}"
    question = ("auth", "can-i", "--list", "-n", namespace, f"--as={account}")
    code, printed = kubectl(control_plane, *question)
    assert code == 0, printed
    rights = set()
    for line in printed.splitlines()[1:]:
        match = re.fullmatch(r"(\S*)\s+\[(.*)\]\s+\[(.*)\]\s+\[(.*)\]", line)
        assert match, line
        resource, _, named, verbs = match.groups()
        assert not named
        if resource and not resource.startswith("selfsubject"):
            rights.add((resource, verbs))
    return rights


def test_kubectl_says_exactly_what_the_readme_says(
    applied: Applied, control_plane: ControlPlane
) -> None:
    table = readme_table()
    assert set(table.values()) == {"always", "`components/workloads`"}
    expected = {
        right for right, where in table.items() if where == "always" or applied.reads_workloads
    }
    assert may(control_plane, applied, applied.namespace) == expected
    elsewhere = set() if applied.namespace == ALONE else expected
    assert may(control_plane, applied, "kube-system") == elsewhere


QUESTIONS = [
    ("watch", "pods", "yes"),
    ("delete", "pods", "no"),
    ("create", "pods/exec", "no"),
    ("list", "secrets", "no"),
    ("list", "deployments.apps", "with workloads"),
    ("patch", "deployments.apps", "no"),
    ("create", "events", "no"),
]
"""Each takes kubectl a moment; the list above is what is exact."""


def test_kubectl_answers_single_questions_as_the_readme_would(
    applied: Applied, control_plane: ControlPlane
) -> None:
    account = f"system:serviceaccount:{applied.namespace}:{ACCOUNT}"
    answers = []
    for verb, asked, _ in QUESTIONS:
        resource, _, subresource = asked.partition("/")  # kubectl would take it for a pod's name
        question = ["auth", "can-i", verb, resource, f"--subresource={subresource}"]
        where = ["-n", ALONE] if applied.namespace == ALONE else ["--all-namespaces"]
        code, printed = kubectl(control_plane, *question, *where, f"--as={account}")
        # Beside the answer there may be a warning, that a resource has no namespace.
        (answer,) = re.findall(r"^(yes|no)\b", printed, flags=re.MULTILINE)
        assert code == (0 if answer == "yes" else 1), printed
        answers.append((verb, asked, answer))
    workloads = "yes" if applied.reads_workloads else "no"
    assert answers == [
        (verb, asked, workloads if answer == "with workloads" else answer)
        for verb, asked, answer in QUESTIONS
    ]


def test_the_job_that_retires_the_records_is_one_the_server_takes(
    applied: Applied, control_plane: ControlPlane
) -> None:
    """The command of docs/operations.md, but for its effect."""
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("jq is not on PATH")
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"-o json \| jq '(\{.*?\})' \|", text, flags=re.DOTALL)
    get = ("get", "deployment", "deployment-tracker", "-o", "json")
    _, deployment = kubectl(control_plane, "-n", applied.namespace, *get)
    job = subprocess.run(
        [jq, program], input=deployment, text=True, capture_output=True, check=True
    )
    apply = ("apply", "--dry-run=server", "-o", "yaml", "-f", "-")
    code, printed = kubectl(control_plane, "-n", applied.namespace, *apply, text=job.stdout)
    assert code == 0, printed
    assert "Warning" not in printed
    (container,) = yaml.safe_load(printed)["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["once", "--retire", "--yes", "--timeout", "2h"]
    assert not any(key.endswith("Probe") for key in container)
