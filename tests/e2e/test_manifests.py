"""A real API server takes the manifests, and they grant what they say and nothing more."""

import copy
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.controlplane import ControlPlane
from tests.support.generated import ROOT, render

pytestmark = pytest.mark.e2e

NAMESPACE = "manifests-restricted"
"""Stands in for the namespaced overlay's, so that no other test meets its pod security rules."""

READ_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}

Manifest = dict[str, Any]  # raw YAML


@pytest.fixture(
    params=[
        pytest.param(("base", "deployment-tracker"), id="base"),
        pytest.param(("overlays/development", "deployment-tracker"), id="development"),
        pytest.param(("overlays/namespaced", NAMESPACE), id="namespaced"),
    ]
)
def installed(request: pytest.FixtureRequest, control_plane: ControlPlane) -> tuple[str, str]:
    """One kustomization, as text, and its namespace, which exists and is restricted."""
    folder, namespace = request.param
    text = render(ROOT / "manifests" / folder)
    if text is None:
        pytest.skip("kubectl is not on PATH")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": labels},
        }
    )
    return text.replace("namespace: shop\n", f"namespace: {NAMESPACE}\n"), namespace


def pod_of(text: str) -> Manifest:
    """Return a pod as the Deployment would make it."""
    (deployment,) = (m for m in yaml.safe_load_all(text) if m["kind"] == "Deployment")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "deployment-tracker-0"},
        "spec": copy.deepcopy(deployment["spec"]["template"]["spec"]),
    }


def kubectl(control_plane: ControlPlane, *arguments: str, text: str = "") -> tuple[int, str]:
    """Return kubectl's exit code and what it printed on both streams."""
    program = shutil.which("kubectl")
    assert program is not None
    done = subprocess.run(
        [program, "--kubeconfig", str(control_plane.kubeconfig()), *arguments],
        input=text,
        text=True,
        capture_output=True,
        check=False,
        timeout=50,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_server_takes_every_object_without_a_warning(
    installed: tuple[str, str], control_plane: ControlPlane
) -> None:
    text, _ = installed
    code, printed = kubectl(
        control_plane, "apply", "--server-side", "--dry-run=server", "-f", "-", text=text
    )
    assert code == 0, printed
    assert "Warning" not in printed
    assert len(printed.splitlines()) == len(list(yaml.safe_load_all(text)))


def test_the_server_takes_the_cronjob_component(
    tmp_path: Path, control_plane: ControlPlane
) -> None:
    root = os.path.relpath(ROOT / "manifests", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{root}/base]\n"
        f"components: [{root}/components/workloads, {root}/components/cronjob]\n"
    )
    text = render(tmp_path)
    if text is None:
        pytest.skip("kubectl is not on PATH")
    control_plane.apply(*(m for m in yaml.safe_load_all(text) if m["kind"] == "Namespace"))
    code, printed = kubectl(
        control_plane, "apply", "--server-side", "--dry-run=server", "-f", "-", text=text
    )
    assert code == 0, printed
    assert "Warning" not in printed
    assert "cronjob.batch/deployment-tracker serverside-applied" in printed
    # Not the pod of the Deployment, but the one that the CronJob's Jobs would make.
    (cronjob,) = (m for m in yaml.safe_load_all(text) if m["kind"] == "CronJob")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "deployment-tracker-0"},
        "spec": cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"],
    }
    path = "/api/v1/namespaces/deployment-tracker/pods?dryRun=All"
    status, answer = control_plane.request("POST", path, pod)
    assert status == 201, answer


def test_its_pod_may_run_where_pod_security_is_restricted(
    installed: tuple[str, str], control_plane: ControlPlane
) -> None:
    text, namespace = installed
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    pod = pod_of(text)
    status, answer = control_plane.request("POST", path, pod)
    assert status == 201, answer
    del pod["spec"]["containers"][0]["securityContext"]
    status, answer = control_plane.request("POST", path, pod)
    assert status == 403
    assert "PodSecurity" in answer["message"]


def test_its_account_may_read_pods_and_nothing_else(
    installed: tuple[str, str], control_plane: ControlPlane
) -> None:
    text, namespace = installed
    rights = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    control_plane.apply(*(m for m in yaml.safe_load_all(text) if m["kind"] in rights))
    token = control_plane.service_account_token(namespace, "deployment-tracker")
    assert rules_in(namespace, token, control_plane) == [READ_PODS]
    elsewhere = [] if namespace == NAMESPACE else [READ_PODS]
    assert rules_in("kube-system", token, control_plane) == elsewhere


def rules_in(namespace: str, token: str, control_plane: ControlPlane) -> list[Manifest]:
    """Return what the token's account may do there, but for asking who it is."""
    status, answer = control_plane.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        },
        token=token,
    )
    assert status == 201, answer
    assert answer["status"]["incomplete"] is False
    return [
        {key: sorted(value) for key, value in rule.items()}
        for rule in answer["status"]["resourceRules"]
        if not all(resource.startswith("selfsubject") for resource in rule["resources"])
    ]


@pytest.mark.parametrize(
    ("verb", "resource", "answer"),
    [
        ("get", "pods", "yes"),
        ("list", "pods", "yes"),
        ("watch", "pods", "yes"),
        ("create", "pods", "no"),
        ("patch", "pods", "no"),
        ("delete", "pods", "no"),
        ("get", "pods/log", "no"),
        ("create", "pods/exec", "no"),
        ("patch", "pods/status", "no"),
        ("list", "secrets", "no"),
        ("list", "namespaces", "no"),
        ("list", "deployments.apps", "no"),
        ("create", "events", "no"),
    ],
)
def test_kubectl_says_what_the_readme_promises(
    control_plane: ControlPlane, verb: str, resource: str, answer: str
) -> None:
    text = render(ROOT / "manifests" / "base")
    if text is None:
        pytest.skip("kubectl is not on PATH")
    rights = [m for m in yaml.safe_load_all(text) if m["kind"].startswith("ClusterRole")]
    control_plane.apply(*rights)
    account = "system:serviceaccount:deployment-tracker:deployment-tracker"
    resource, _, subresource = resource.partition("/")  # kubectl would take it for a pod's name
    question = ["auth", "can-i", verb, resource, f"--subresource={subresource}"]
    code, printed = kubectl(control_plane, *question, "--all-namespaces", f"--as={account}")
    assert printed.splitlines()[-1].partition(" ")[0] == answer, printed
    assert code == (0 if answer == "yes" else 1)
