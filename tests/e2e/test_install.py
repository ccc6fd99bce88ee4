"""
Production, installed as a user does it: an overlay of one's own, `kubectl apply -k`, a Secret.

What the API server makes of it is started as a kubelet would: the pod's own environment,
arguments, files and probes, its ServiceAccount's token where a program in a cluster looks for it,
a root that can't be written to.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.e2e.administrator import kubectl
from tests.support.container import Container, of_pod, reason_against
from tests.support.controlplane import ControlPlane
from tests.support.generated import ROOT
from tests.support.installation import Installation, Scene, installed
from tests.support.program import Program
from tests.support.simulated import IN_STEP

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

Json = dict[str, Any]

NAMESPACE: Final = "tracker-production"
NAME: Final = "deployment-tracker"
WITHIN: Final = 60.0

OVERLAY: Final = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: {namespace}
resources:
  - {production}
configMapGenerator:
  - name: deployment-tracker
    behavior: merge
    literals:
      - ORG=acme
      - LOGICAL_ENVIRONMENT=e2e
      - CLUSTER=real
      - BASE_URL={github}
      - DECOMMISSION_DELAY=500ms
"""


async def administer(plane: ControlPlane, *arguments: str) -> str:
    """Run kubectl as an administrator, who succeeds; return what it printed."""
    code, printed = await asyncio.to_thread(kubectl, plane, *arguments)
    assert code == 0, f"{arguments}: {printed}"
    return printed


def write_overlay(folder: Path, github: str, token: str) -> None:
    """Write what a user writes: a kustomization of their own, and the token to a file."""
    production = os.path.relpath(ROOT / "manifests" / "overlays" / "production", folder)
    (folder / "kustomization.yaml").write_text(
        OVERLAY.format(namespace=NAMESPACE, production=production, github=github)
    )
    (folder / "token").write_text(token)


@asynccontextmanager
async def applied(plane: ControlPlane, folder: Path, github: str, token: str) -> AsyncIterator[str]:
    """
    Install production in a namespace; yield what kubectl printed; take it all away again.

    The namespace is not the usual one: an overlay that names another has to do as well.
    """
    write_overlay(folder, github, token)
    printed = await administer(plane, "apply", "-k", str(folder))
    secret = ("create", "secret", "generic", NAME, f"--from-file=token={folder / 'token'}")
    try:
        await administer(plane, "-n", NAMESPACE, *secret)
        yield printed
    finally:
        await administer(plane, "delete", "-k", str(folder), "--timeout=50s")


async def pod_of(installation: Installation) -> Json:
    """Return the pod that the Deployment's controller made, once it is there."""
    await installation.truth.until(lambda: bool(installation.truth.pods(NAMESPACE)))
    (pod,) = installation.truth.pods(NAMESPACE)
    return dict(pod)


async def probe(container: Container, which: str) -> tuple[int, Json]:
    """Ask what a probe of the pod asks."""
    asked = container.spec[which]["httpGet"]
    assert asked["port"] == "metrics"
    url = f"http://127.0.0.1:{container.metrics_port}{asked['path']}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, json.loads(await response.text())


async def until_ready(container: Container) -> None:
    """Wait until the readiness probe succeeds, as a kubelet does: by asking."""
    async with asyncio.timeout(WITHIN):
        while True:
            with suppress(aiohttp.ClientConnectionError):
                status, _ = await probe(container, "readinessProbe")
                if status == 200:
                    return
            await asyncio.sleep(0.1)


async def play(scene: Scene) -> None:
    """Let workloads come, roll out, scale and go."""
    await scene.installation.create_node("node-1")
    for name in ("web", "cart", "search"):
        await scene.create(scene.deployment(name, replicas=2))
    for name in ("web", "cart", "search"):
        await scene.recorded(name)
    await scene.roll_out("deployments", "web", scene.container("2"))
    await scene.recorded("web", "2")
    await scene.patch("deployments", "cart", {"spec": {"replicas": 0}})
    await scene.without_pods("cart")
    await scene.delete("deployments", "search")
    await scene.gone("search")


async def judge(installation: Installation, scene: Scene, container: Container) -> None:
    """Hold GitHub's table against what was done, and the audit log against the RBAC table."""
    ours = (f"{NAMESPACE}/", f"{scene.namespace}/")  # it sees what other tests left as well
    states = {
        row.deployment_name: row.status
        for row in installation.github.table
        if row.deployment_name.startswith(ours)
    }
    assert states == {
        # The tracker's own pod is one like any other.
        f"{NAMESPACE}/{NAME}/tracker": "deployed",
        scene.name("web"): "deployed",
        scene.name("cart"): "deployed",  # scaled to zero, and the workload is there
        scene.name("search"): "decommissioned",
    }
    for which in ("startupProbe", "livenessProbe", "readinessProbe"):
        status, told = await probe(container, which)
        assert (status, told["status"]) == (200, "ok")
    kinds = ("deployments", "replicasets", "statefulsets", "daemonsets", "jobs", "cronjobs")
    installation.assert_only_read(*kinds)


async def test_production_does_its_job_as_it_is_installed(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    overlay, volumes = tmp_path / "overlay", tmp_path / "volumes"
    overlay.mkdir()
    volumes.mkdir()
    async with installed(control_plane, rights=[], namespace=NAMESPACE) as installation:
        github = installation.github
        async with applied(control_plane, overlay, github.url, github.token) as printed:
            for what in ("deployment.apps", "persistentvolumeclaim", "networkpolicy", "service"):
                assert f"{what}" in printed
            pod = await pod_of(installation)
            assert pod["spec"]["serviceAccountName"] == NAME
            container = of_pod(control_plane, pod, token=installation.token, folder=volumes)
            program: Program = container.program()
            async with program, installation.scene("installed") as scene:
                await until_ready(container)
                assert IN_STEP in program.said
                await play(scene)
                await judge(installation, scene, container)
                ledger = container.mounts["/data"] / "ledger" / "ledger.db"
                assert ledger.stat().st_mode & 0o777 == 0o600
                assert await program.stopped() == 0
                assert "Traceback" not in program.said
                assert github.token not in "\n".join([*program.stdout, *program.stderr])
