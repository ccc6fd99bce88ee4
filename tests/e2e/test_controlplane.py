"""The real control plane does what the end-to-end tests rely on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.apiclient import ApiClient
from tests.support.controlplane import ControlPlane, find_assets
from tests.support.kubelet import Kubelet, image_id_of

READERS = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "pod-readers"},
    "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
}

BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "pod-readers"},
    "roleRef": {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "pod-readers",
    },
    "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "plane-rbac"}],
}


def test_a_service_account_may_what_its_role_says_and_the_audit_log_tells(
    control_plane: ControlPlane,
) -> None:
    token = control_plane.service_account_token("plane-rbac", "reader")
    path = "/api/v1/namespaces/plane-rbac/pods"
    refused, told = control_plane.request("GET", path, token=token)
    assert (refused, told["reason"]) == (403, "Forbidden")
    control_plane.apply(READERS, BINDING)
    deadline = time.monotonic() + 10
    while control_plane.request("GET", path, token=token)[0] != 200:
        assert time.monotonic() < deadline, "the role was never seen by the authorizer"
    code, _ = control_plane.request("DELETE", f"{path}/x", token=token)
    assert code == 403
    entries = control_plane.audit(user="system:serviceaccount:plane-rbac:reader")
    told_of = [(each.verb, each.resource, each.code, each.decision) for each in entries]
    assert told_of[0] == ("list", "pods", 403, "forbid")
    assert told_of[-2:] == [("list", "pods", 200, "allow"), ("delete", "pods", 403, "forbid")]


async def test_a_deployment_comes_up_and_goes_down(control_plane: ControlPlane) -> None:
    namespace = "plane-rollout"
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template,
        },
    }
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    async with (
        ApiClient(
            control_plane.url, token=control_plane.token, ca_file=control_plane.ca_file
        ) as client,
        Kubelet(client, namespace=namespace),
        client.watch(f"/api/v1/namespaces/{namespace}/pods") as pods,
    ):
        await client.call("POST", path, deployment)
        running: dict[str, str] = {}
        while len(running) < 2:
            [event] = await pods.take(1)
            if event["object"]["status"]["phase"] == "Running":
                [status] = event["object"]["status"]["containerStatuses"]
                running[event["object"]["metadata"]["name"]] = status["imageID"]
        assert set(running.values()) == {image_id_of("web:1")}
        await client.call("DELETE", f"{path}/web", {"propagationPolicy": "Foreground"})
        while running:
            [event] = await pods.take(1)
            if event["type"] == "DELETED":
                del running[event["object"]["metadata"]["name"]]


def test_a_server_that_was_stopped_has_left_its_port() -> None:
    """Its successor sometimes found the port taken, and ended at once."""
    assets = find_assets()
    assert assets is not None
    # One of its own: to the programs of the others an API server that is away is a nuisance.
    with ControlPlane(assets) as plane, socket.socket() as probe:
        plane.stop_apiserver()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every server does
        probe.bind(("127.0.0.1", int(plane.url.rpartition(":")[2])))
        probe.listen()


START_AND_WAIT = """
import sys
from tests.support.controlplane import ControlPlane, find_assets
with ControlPlane(find_assets()) as plane:
    print(plane.ca_file.parent.parent, plane.url.rpartition(":")[2], flush=True)
    sys.stdin.read()
"""


def test_a_killed_test_run_leaves_no_server_and_no_folder() -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        folder, port = process.stdout.readline().decode().split()
        assert is_listening(int(port))
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(folder).exists() or is_listening(int(port)):
        assert time.monotonic() < deadline, f"left behind: {folder}, port {port}"
        time.sleep(0.05)  # a poll: these processes are nobody's children any more


def is_listening(port: int) -> bool:
    """Tell whether somebody takes connections on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
