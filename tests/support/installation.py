"""
The tracker as it is installed: on a real API server, with the rights of the manifests.

An `Installation` is everything around the program: the ServiceAccount with exactly what the
manifests grant, the simulated GitHub, a kubelet, and the truth that is recorded beside it. A
`Scene` is one namespace of it, in which one test plays one scenario and is judged.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.apiclient import MERGE, ApiClient
from tests.support.checker import Circumstances, Crash, Environment, check, report
from tests.support.claims import under_way
from tests.support.controlplane import AuditEntry, ControlPlane, object_path
from tests.support.kubelet import Kubelet, digest_of
from tests.support.program import ROOT, Program
from tests.support.truthwatch import TruthWatch
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.truth import Scope

__all__ = [
    "ACCOUNT",
    "READING",
    "Installation",
    "Scene",
    "installed",
    "rights_in",
    "rights_of_base",
    "rights_with_workloads",
]

ACCOUNT: Final = "deployment-tracker"
CRONJOB_HOLD_SECONDS: Final = 3.0
DECOMMISSION_DELAY_SECONDS: Final = 0.5
READING: Final = frozenset({"get", "list", "watch"})

Json = dict[str, Any]
State = tuple[str, str]
"""(status, digest)."""

scene_numbers = itertools.count(1)
calm_numbers = itertools.count(1)


def rights_of_base() -> list[Json]:
    """Return what the base grants: the ClusterRole and its binding, as they stand in the files."""
    base = ROOT / "manifests" / "base"
    role, binding = (
        yaml.safe_load((base / name).read_text())
        for name in ("clusterrole.yaml", "clusterrolebinding.yaml")
    )
    for subject in binding["subjects"]:
        subject["namespace"] = "deployment-tracker"  # as kustomize fills it in
    return [role, binding]


def rights_with_workloads() -> list[Json]:
    """Return what the base grants with the workloads component on top."""
    role, binding = rights_of_base()
    component = ROOT / "manifests" / "components" / "workloads" / "kustomization.yaml"
    patches = yaml.safe_load(component.read_text())["patches"]
    (patch,) = (each["patch"] for each in patches if "Role" in each["target"]["kind"])
    role["rules"] += [operation["value"] for operation in yaml.safe_load(patch)]
    return [role, binding]


def rights_in(namespace: str) -> list[Json]:
    """Return what the namespaced overlay grants, for this namespace."""
    overlay = ROOT / "manifests" / "overlays" / "namespaced"
    role, binding = (
        yaml.safe_load((overlay / name).read_text()) for name in ("role.yaml", "rolebinding.yaml")
    )
    for each in (role, binding):
        each["metadata"]["namespace"] = namespace
    for subject in binding["subjects"]:
        subject["namespace"] = namespace
    return [role, binding]


@dataclass(kw_only=True)
class Installation:
    """What surrounds the program; `kubeconfig` holds the ServiceAccount's `token`."""

    plane: ControlPlane
    client: ApiClient
    kubelet: Kubelet
    github: SimulatedGitHub
    truth: TruthWatch
    token: str
    kubeconfig: Path
    user: str
    _audited: int
    crashes: list[Crash] = field(default_factory=list)
    reposts: int = 0

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of the program."""
        return {
            "ORG": "acme",
            "BASE_URL": self.github.url,
            "LOGICAL_ENVIRONMENT": "e2e",
            "CLUSTER": "real",
            "API_TOKEN": self.github.token,
            "DECOMMISSION_DELAY": f"{DECOMMISSION_DELAY_SECONDS}s",
            "CRONJOB_HOLD": f"{CRONJOB_HOLD_SECONDS}s",
            **more,
        }

    def requests(self) -> list[AuditEntry]:
        """Return what the ServiceAccount asked the API server since this was set up."""
        return self.plane.audit(user=self.user)[self._audited :]

    def assert_only_read(self, *more: str) -> None:
        """Fail when the program did anything but read pods (and `more`), or was refused it."""
        requests = self.requests()
        assert requests
        wrong = [
            each
            for each in requests
            if each.verb not in READING
            or each.decision != "allow"
            or each.code in {401, 403}
            or each.resource not in {"pods", "", *more}
        ]
        assert not wrong

    @asynccontextmanager
    async def scene(self, title: str) -> AsyncIterator["Scene"]:
        """Yield a namespace of its own, with the title in its name."""
        namespace = f"{title}-{next(scene_numbers)}"
        await self.create_namespace(namespace)
        yield Scene(installation=self, namespace=namespace)

    async def create_namespace(self, name: str) -> None:
        """Create a namespace."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await self.client.call("POST", "/api/v1/namespaces", body)

    async def crash(self, program: Program, ledger: Path | None = None) -> None:
        """Kill a program; what GitHub said last may not stand in its ledger, if it keeps one."""
        program.kill()
        await program.ended()
        now = asyncio.get_running_loop().time()
        in_doubt = {} if ledger is None else under_way(ledger)
        self.crashes.append(Crash(at=now, in_doubt=in_doubt))

    async def create_node(self, name: str) -> Json:
        """Create a node, if it is not there yet, and return it."""
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        await self.client.request("POST", "/api/v1/nodes", body)
        # A new node is tainted until its kubelet says that it is ready; here nobody does.
        path, patch = f"/api/v1/nodes/{name}", {"spec": {"taints": None}}
        return await self.client.call("PATCH", path, patch, content_type=MERGE)

    async def calm(self, namespace: str) -> None:
        """
        Wait until the tracker has done what all that happened so far makes it do.

        A workload that comes and goes is the proof: its events are behind all others, and so are
        its record and, since absences are confirmed in the order in which they began, the end of
        it.
        """
        name = f"calm-{next(calm_numbers)}"
        scene = Scene(installation=self, namespace=namespace)
        await scene.create(scene.replicaset(name))
        await scene.recorded(name)
        await scene.delete("replicasets", name)
        await scene.gone(name)

    def violations(self, names: Callable[[str], bool]) -> str:
        """Return what promises were broken about the names that are meant, "" when none was."""
        history = [each for each in self.github.history if any(map(names, each.names))]
        rows = [row for row in self.github.table if names(row.deployment_name)]
        circumstances = Circumstances(
            environment=Environment("acme", "e2e", "", "real"),
            crashes=tuple(self.crashes),
            reposts=self.reposts,
            ended=asyncio.get_running_loop().time(),
        )
        log = self.truth.log
        found = check(history, rows, log, circumstances)
        found = [each for each in found if names(each.deployment_name)]
        return report(found, history) if found else ""


@asynccontextmanager
async def installed(
    plane: ControlPlane,
    *,
    rights: Sequence[Mapping[str, Any]],
    namespace: str = "deployment-tracker",
    scope: Scope | None = None,
) -> AsyncIterator[Installation]:
    """
    Yield an installation whose ServiceAccount, in `namespace`, has exactly these rights.

    They are taken away again in the end: the next one may have others.
    """
    token = plane.service_account_token(namespace, ACCOUNT)
    plane.apply(*rights)
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    async with AsyncExitStack() as stack:
        for each in rights:
            stack.callback(plane.request, "DELETE", object_path(each))
        client = await stack.enter_async_context(
            ApiClient(plane.url, token=plane.token, ca_file=plane.ca_file)
        )
        truth = TruthWatch(client, scope or Scope(), cronjob_hold_seconds=CRONJOB_HOLD_SECONDS)
        yield Installation(
            plane=plane,
            client=client,
            truth=await stack.enter_async_context(truth),
            kubelet=await stack.enter_async_context(Kubelet(client)),
            github=await stack.enter_async_context(SimulatedGitHub()),
            token=token,
            kubeconfig=plane.kubeconfig(token, user=ACCOUNT),
            user=user,
            _audited=len(plane.audit(user=user)),
        )


PLACES: Final = {
    "Deployment": "/apis/apps/v1",
    "ReplicaSet": "/apis/apps/v1",
    "StatefulSet": "/apis/apps/v1",
    "DaemonSet": "/apis/apps/v1",
    "Job": "/apis/batch/v1",
    "CronJob": "/apis/batch/v1",
    "Pod": "/api/v1",
    "ReplicationController": "/api/v1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One namespace, the workloads in it and what GitHub was told of them."""

    installation: Installation
    namespace: str

    # Manifests

    def image(self, version: str = "1", container: str = "app") -> str:
        """Return an image of this namespace's own."""
        return f"registry.example/{self.namespace}/{container}:{version}"

    def container(self, version: str = "1", name: str = "app", **more: Any) -> Json:  # noqa: ANN401 - raw JSON
        """Return a container of a pod."""
        return {"name": name, "image": self.image(version, name), **more}

    def template(self, name: str, *containers: Json, **spec: Any) -> Json:  # noqa: ANN401 - raw JSON
        """Return a pod template whose pods end without grace."""
        return {
            "metadata": {"labels": {"app": name}},
            "spec": {
                "containers": list(containers or (self.container(),)),
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
                **spec,
            },
        }

    def workload(
        self,
        kind: str,
        name: str,
        *containers: Json,
        pod: Mapping[str, Any] | None = None,
        **spec: Any,  # noqa: ANN401 - raw JSON
    ) -> Json:
        """Return a workload whose pods have these containers; `pod` is more of their spec."""
        return {
            "apiVersion": PLACES[kind].removeprefix("/apis/").removeprefix("/api/"),
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": self.template(name, *containers, **(pod or {})),
                **spec,
            },
        }

    def deployment(self, name: str, *containers: Json, replicas: int = 1) -> Json:
        """Return a Deployment."""
        return self.workload("Deployment", name, *containers, replicas=replicas)

    def replicaset(self, name: str, *containers: Json, replicas: int = 1) -> Json:
        """Return a ReplicaSet."""
        return self.workload("ReplicaSet", name, *containers, replicas=replicas)

    def job(self, name: str, *containers: Json, owner: Json | None = None) -> Json:
        """Return a Job, of a CronJob when one is given."""
        body = self.workload("Job", name, *containers, pod={"restartPolicy": "Never"})
        del body["spec"]["selector"]  # the API server makes it
        if owner is not None:
            body["metadata"]["ownerReferences"] = [
                {
                    "apiVersion": "batch/v1",
                    "kind": "CronJob",
                    "name": owner["metadata"]["name"],
                    "uid": owner["metadata"]["uid"],
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ]
        return body

    # What is done to the cluster

    async def create(self, body: Json) -> Json:
        """Create an object."""
        path = f"{PLACES[body['kind']]}/namespaces/{self.namespace}/{body['kind'].lower()}s"
        return await self.installation.client.call("POST", path, body)

    async def patch(self, plural: str, name: str, patch: Json, *, content: str = MERGE) -> Json:
        """Change an object (`deployments/web`, `pods/web-0/status`) by a merge patch."""
        path = f"{self._place(plural)}/{name}"
        return await self.installation.client.call("PATCH", path, patch, content_type=content)

    async def roll_out(self, plural: str, name: str, *containers: Json) -> None:
        """Give a workload other containers."""
        template = {"spec": {"containers": list(containers)}}
        await self.patch(plural, name, {"spec": {"template": template}})

    async def scale(self, plural: str, name: str, replicas: int) -> None:
        """Set the number of replicas and wait until so many run."""
        await self.patch(plural, name, {"spec": {"replicas": replicas}})
        await self.running(name, replicas)

    async def delete(self, plural: str, name: str, propagation: str = "Background") -> None:
        """Delete an object."""
        options = {"propagationPolicy": propagation}
        await self.installation.client.call("DELETE", f"{self._place(plural)}/{name}", options)

    # What is waited for

    def pods(self, workload: str) -> list[Json]:
        """Return the pods of a workload that are there now."""
        return [
            pod
            for pod in self.installation.truth.pods(self.namespace)
            if pod["metadata"].get("labels", {}).get("app") == workload
        ]

    def images(self, workload: str) -> list[str]:
        """Return the image of the first container of each pod that runs and stays."""
        return [
            pod["spec"]["containers"][0]["image"]
            for pod in self.pods(workload)
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the pods holds."""
        await self.installation.truth.until(condition)

    async def running(self, workload: str, count: int = 1, version: str = "1") -> None:
        """Wait until exactly so many pods of a workload are there, all running this version."""
        expected = [self.image(version)] * count
        await self.until(
            lambda: self.images(workload) == expected and len(self.pods(workload)) == count
        )

    async def later_second(self) -> None:
        """Wait until a new pod is newer than all there are: pods are dated in whole seconds."""
        stamps = [
            datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
            for pod in self.installation.truth.pods(self.namespace)
        ]
        due = max(stamps) + timedelta(seconds=1)
        while (left := (due - datetime.now(UTC)).total_seconds()) > 0:  # noqa: ASYNC110 - the clock
            await asyncio.sleep(left)

    async def surged(self, workload: str, version: str, count: int) -> None:
        """Wait until so many pods of a workload run this version, beside others."""
        await self.until(lambda: self.images(workload).count(self.image(version)) == count)

    async def without_pods(self, workload: str) -> None:
        """Wait until a workload has no pod."""
        await self.until(lambda: not self.pods(workload))

    async def rolled_out(self, deployment: str) -> None:
        """Wait until a Deployment's controller has done what was last asked of it."""
        client = self.installation.client
        path, only = self._place("deployments"), f"metadata.name={deployment}"
        async with client.watch(path, fieldSelector=only) as watch:
            while (event := await watch.next()) is not None:
                body = event["object"]
                status, replicas = body.get("status", {}), body["spec"]["replicas"]
                fields = ("replicas", "updatedReplicas", "availableReplicas")
                if status.get("observedGeneration") == body["metadata"]["generation"] and all(
                    status.get(field) == replicas for field in fields
                ):
                    return

    def name(self, workload: str, container: str = "app") -> str:
        """Return a deployment name."""
        return f"{self.namespace}/{workload}/{container}"

    async def recorded(self, workload: str, version: str = "1", *, container: str = "app") -> State:
        """Wait until GitHub holds this version as deployed; return the state."""
        state = ("deployed", digest_of(self.image(version, container)))
        await self._until_state(self.name(workload, container), state)
        return state

    async def gone(self, workload: str, version: str = "1", *, container: str = "app") -> State:
        """Wait until GitHub holds this version as decommissioned; return the state."""
        state = ("decommissioned", digest_of(self.image(version, container)))
        await self._until_state(self.name(workload, container), state)
        return state

    # What GitHub was told

    def told(self, workload: str, container: str = "app") -> list[State]:
        """Return every state that was posted under a name, in order, repetitions included."""
        name = self.name(workload, container)
        return [
            (posted.status, posted.digest)
            for exchange in self.installation.github.posts(name)
            for posted in exchange.deployments
            if posted.deployment_name == name
        ]

    def names_told(self) -> set[str]:
        """Return all names of this namespace that GitHub ever heard of."""
        history: list[Exchange] = self.installation.github.history
        return {name for each in history for name in each.names if self._is_ours(name)}

    async def judge(self, calm_in: str) -> None:
        """Wait until all is calm; fail when GitHub and cluster differ or a promise was broken."""
        await self.installation.kubelet.settle()
        await self.installation.calm(calm_in)
        await self.installation.truth.catch_up(self.namespace)
        broken = self.installation.violations(self._is_ours)
        assert not broken, broken

    def _is_ours(self, name: str) -> bool:
        return name.startswith(f"{self.namespace}/")

    def _place(self, plural: str) -> str:
        roots = {f"{kind.lower()}s": root for kind, root in PLACES.items()}
        return f"{roots[plural]}/namespaces/{self.namespace}/{plural}"

    async def _until_state(self, name: str, state: State) -> None:
        github = self.installation.github
        await github.until(
            lambda: (
                github.state(name) == state
                and all(post.ended is not None for post in github.posts(name))
            ),
            within=40,
            why=f"{name} being {state}",
        )
