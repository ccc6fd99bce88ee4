"""
Starts and stops on a real API server: in mid-rollout, in one namespace only, under `kopf run`.

Each test has a GitHub and a tracker of its own, and the rights that this way of running needs.
"""

import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.installation import (
    Installation,
    Scene,
    installed,
    rights_in,
    rights_of_base,
)
from tests.support.kubelet import digest_of
from tests.support.program import Program, kopf_run, tracker_run
from tracker.sandbox.script import hangs
from tracker.sandbox.truth import Scope

# Several starts each; they are slow on a busy machine.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

IN_STEP = "in step with the cluster"

# /var/run is a link to /run; the files of a pod's ServiceAccount are put there for this process
# and its children only. `exec` keeps the process id, so that signals reach the tracker.
IN_A_POD = """\
mount -t tmpfs none /run &&
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount &&
cp token ca.crt /var/run/secrets/kubernetes.io/serviceaccount &&
exec "$@"
"""

UNSHARE = ("unshare", "--mount", "--map-root-user")

namespace_numbers = itertools.count(1)


@asynccontextmanager
async def running(
    installation: Installation, folder: Path, *arguments: str, **environ: str
) -> AsyncIterator[Program]:
    """Run the tracker with the installation's account until it is in step."""
    command = tracker_run("-kubeconfig", str(installation.kubeconfig), *arguments)
    async with Program(command, environ=installation.environ(**environ), folder=folder) as program:
        await program.until_said(IN_STEP)
        yield program


@pytest.mark.fault("P13")
async def test_a_start_in_mid_rollout_tells_nothing_old(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """However far the rollouts are when it starts, what is newest then is told first."""
    async with (
        installed(control_plane, rights=rights_of_base()) as installation,
        installation.scene("restart") as scene,
    ):
        names = [f"web-{surge}" for surge in (1, 2, 3, 4)]
        for surge, name in enumerate(names, start=1):
            body = scene.deployment(name, replicas=4)
            rolling = {"maxSurge": surge, "maxUnavailable": 0}
            body["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
            await scene.create(body)
        async with running(installation, tmp_path) as program:
            for name in names:
                await scene.recorded(name)
            # The first rollouts begin under a tracker, which is killed in the midst of them.
            await hold_in_mid_rollout(scene, names, "2")
            await installation.crash(program)
        for version in ("2", "3"):
            if version != "2":
                await hold_in_mid_rollout(scene, names, version)
            await start_and_look(installation, scene, tmp_path, names, version)
            # Now one starts while the rollouts go on and come to their ends.
            for name in names:
                await scene.patch("deployments", name, {"spec": {"minReadySeconds": 0}})
            await start_and_look(installation, scene, tmp_path, names, version)
            for name in names:
                await scene.running(name, 4, version)


async def hold_in_mid_rollout(scene: Scene, names: list[str], version: str) -> None:
    """
    Roll out a version until the new pods run beside all the old ones, and no further.

    They never count as available, so the controller waits; how many there are is the surge.
    """
    log = scene.installation.truth.log
    digest = digest_of(scene.image(version))
    await scene.later_second()
    for name in names:
        containers = [scene.container(version)]
        spec = {"minReadySeconds": 300, "template": {"spec": {"containers": containers}}}
        await scene.patch("deployments", name, {"spec": spec})
    for surge, name in enumerate(names, start=1):
        await scene.surged(name, version, surge)
        standing = log.truth().standing
        assert standing[scene.name(name)][0] == digest


async def start_and_look(
    installation: Installation, scene: Scene, folder: Path, names: list[str], version: str
) -> None:
    """Start a tracker, kill it when it has told all, and look for what it told that was old."""
    digest = digest_of(scene.image(version))
    told_before = {name: len(scene.told(name)) for name in names}
    assert all(
        installation.truth.log.truth().standing[scene.name(name)][0] == digest for name in names
    )
    async with running(installation, folder) as program:
        for name in names:
            await scene.recorded(name, version)
        await installation.calm(scene.namespace)
        await installation.crash(program)
    for name in names:
        assert set(scene.told(name)[told_before[name] :]) <= {("deployed", digest)}


async def test_with_a_role_in_one_namespace_only_that_one_is_asked_for_and_told(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with namespaced(control_plane) as (installation, inside, outside):
        async with running(installation, tmp_path, "-namespace", inside.namespace) as program:
            await deploy_and_retire(inside)
            assert await program.stopped() == 0
        assert outside.names_told() == set()
        assert {line.deployment_name for line in program.lines} == inside.names_told()
        assert_only_asked_for(installation, inside.namespace)


async def test_kopf_run_delivers_from_all_namespaces_with_settings_of_environment_and_file(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with (
        installed(control_plane, rights=rights_of_base()) as installation,
        installation.scene("kopf-run") as scene,
    ):
        environ = installation.environ(KUBECONFIG=str(installation.kubeconfig))
        in_file = ("ORG", "LOGICAL_ENVIRONMENT", "DECOMMISSION_DELAY")
        text = "".join(f"{name}={environ.pop(name)}\n" for name in in_file)
        # Where both name one, the environment has it.
        (tmp_path / ".env").write_text(f"{text}CLUSTER=of-the-file\n")
        async with Program(kopf_run("-A"), environ=environ, folder=tmp_path) as program:
            await program.until_said(IN_STEP)
            await deploy_and_retire(scene)
            await assert_drains(program, scene)
        broken = installation.violations(lambda _name: True)
        assert not broken, broken
        installation.assert_only_read()


async def test_kopf_run_with_a_namespace_needs_a_role_there_and_no_more(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with namespaced(control_plane) as (installation, inside, outside):
        environ = installation.environ(KUBECONFIG=str(installation.kubeconfig))
        command = kopf_run("-n", inside.namespace)
        async with Program(command, environ=environ, folder=tmp_path) as program:
            await program.until_said(IN_STEP)
            await deploy_and_retire(inside)
            await assert_drains(program, inside)
        assert outside.names_told() == set()
        assert_only_asked_for(installation, inside.namespace)


@asynccontextmanager
async def namespaced(
    plane: ControlPlane,
) -> AsyncIterator[tuple[Installation, Scene, Scene]]:
    """Yield an installation that may read one namespace, that namespace, and another one."""
    namespace = f"inside-{next(namespace_numbers)}"
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    async with (
        installed(
            plane,
            rights=rights_in(namespace),
            namespace=namespace,
            scope=Scope(namespace=namespace),
        ) as installation,
        installation.scene("outside") as outside,
    ):
        await outside.create(outside.deployment("web"))
        await outside.running("web")
        yield installation, Scene(installation=installation, namespace=namespace), outside


async def deploy_and_retire(scene: Scene) -> None:
    """Let a workload come and go, and judge what was told of it."""
    await scene.create(scene.deployment("web", replicas=2))
    first = await scene.recorded("web")
    await scene.running("web", 2)
    await scene.delete("deployments", "web")
    last = await scene.gone("web")
    await scene.judge(scene.namespace)
    assert scene.told("web") == [first, last]


async def assert_drains(program: Program, scene: Scene) -> None:
    """Ask a program to stop while GitHub holds its answer; the answer must be waited for."""
    github = scene.installation.github
    name = scene.name("late")
    script = github.script(hangs(applied=True), match=lambda exchange: name in exchange.names)
    await scene.create(scene.deployment("late"))
    await github.until(lambda: len(script.used) == 1, within=40, why="the record in flight")
    assert program.about(name) == []
    program.terminate()
    await program.until_said("SIGTERM")
    assert program.running
    github.heal()
    assert await program.ended() == 0
    assert [line.state for line in program.about(name)] == [
        ("deployed", digest_of(scene.image("1")))
    ]
    assert "Traceback" not in program.said


def assert_only_asked_for(installation: Installation, namespace: str) -> None:
    """Fail when pods of another namespace, or of all, were asked for, or anything was refused."""
    installation.assert_only_read()
    pods = [each for each in installation.requests() if each.resource == "pods"]
    assert {each.verb for each in pods} == {"list", "watch"}
    assert {each.namespace for each in pods} == {namespace}


async def test_in_a_pod_it_uses_the_service_account_it_finds_there(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """In a mount namespace of its own it finds the files where a pod has them."""
    if not can_have_mounts_of_its_own():
        pytest.skip("a mount namespace of its own is not permitted here")
    async with (
        installed(control_plane, rights=rights_of_base()) as installation,
        installation.scene("in-pod") as scene,
    ):
        (tmp_path / "token").write_text(installation.token)
        (tmp_path / "ca.crt").write_bytes(control_plane.ca_file.read_bytes())
        address = urlsplit(control_plane.url)
        environ = installation.environ(
            KUBERNETES_SERVICE_HOST=str(address.hostname),
            KUBERNETES_SERVICE_PORT=str(address.port),
        )
        command = [*UNSHARE, "sh", "-c", IN_A_POD, "sh", *tracker_run()]
        async with Program(command, environ=environ, folder=tmp_path) as program:
            await program.until_said(IN_STEP)
            await deploy_and_retire(scene)
            assert await program.stopped() == 0
        installation.assert_only_read()


def can_have_mounts_of_its_own() -> bool:
    """Tell whether this machine lets a process have a /run of its own."""
    if not shutil.which("unshare") or not Path("/var/run").samefile("/run"):
        return False
    trial = [*UNSHARE, "mount", "-t", "tmpfs", "none", "/run"]
    return subprocess.run(trial, check=False, capture_output=True).returncode == 0


async def test_with_a_ledger_a_start_tells_what_changed_meanwhile_and_nothing_else(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with (
        installed(control_plane, rights=rights_of_base()) as installation,
        installation.scene("ledger") as scene,
    ):
        ledger = str(tmp_path / "ledger.db")
        names = ("kept", "rolled", "deleted", "recreated")
        async with running(installation, tmp_path, LEDGER_PATH=ledger) as program:
            for name in names:
                await scene.create(scene.deployment(name, replicas=2))
            first = {name: await scene.recorded(name) for name in names}
            await installation.calm(scene.namespace)
            await installation.crash(program, Path(ledger))
        await scene.roll_out("deployments", "rolled", scene.container("2"))
        for name in ("deleted", "recreated"):
            await scene.delete("deployments", name)
            await scene.without_pods(name)
        await scene.create(scene.deployment("recreated", replicas=2))
        await scene.running("recreated", 2)
        await scene.running("rolled", 2, "2")
        async with running(installation, tmp_path, LEDGER_PATH=ledger) as program:
            second = await scene.recorded("rolled", "2")
            last = await scene.gone("deleted")
            await scene.judge(scene.namespace)
            assert await program.stopped() == 0
        assert scene.told("kept") == [first["kept"]]
        assert scene.told("recreated") == [first["recreated"]]
        assert scene.told("rolled") == [first["rolled"], second]
        assert scene.told("deleted") == [first["deleted"], last]
