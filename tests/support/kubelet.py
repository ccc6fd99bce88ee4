"""
A kubelet for clusters that have none: it binds pods, runs their containers and stops them.

`Kubelet` watches all pods over the API, the simulated one or a real one, and does what a scheduler
and a kubelet would be seen doing: the binding, a status of Running with an ``imageID`` for each
container, the end of a Job's pods, and for a pod being deleted first the terminated containers and
then the delete with grace 0. Nothing is pulled and nothing runs, so a pod is Running at once.

The steps of one pod are in order; different pods go side by side, so that some hundreds of pods a
second come up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self, assert_never

import aiohttp

from tests.support.apiclient import STRATEGIC, ApiClient, ApiFailureError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from types import TracebackType

__all__ = ["Kubelet", "digest_of", "image_id_of"]

Json = dict[str, Any]

JobEnd = Literal["Succeeded", "Failed"]
Step = Literal["bind", "run", "fail to pull", "end", "stop", "finish"]

GONE = frozenset({404, 409})
"""Answers to a step that came too late: the pod has gone or somebody was faster."""

SIDE_BY_SIDE = 16
"""How many pods are worked on at once."""


def digest_of(image: str) -> str:
    """Return a digest made from an image's text alone, so that tests can expect it."""
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def image_id_of(image: str) -> str:
    """Return the imageID containerd would report: the repository at its digest."""
    name, at, digest = image.partition("@")
    head, slash, last = name.rpartition("/")
    repository = f"{head}{slash}{last.partition(':')[0]}"
    return f"{repository}@{digest if at else digest_of(image)}"


@dataclasses.dataclass(slots=True)
class _Work:
    """What is known of one pod: its newest state and whether somebody is at work on it."""

    body: Json
    busy: bool = False


class Kubelet:
    """
    Plays scheduler and kubelet; an async context manager that works while it is entered.

    ``image_ids`` overrides the imageID of an image, with "" or anything else a runtime might
    report; ``broken`` images never start (ImagePullBackOff, the pod stays Pending). Both can be
    changed while it runs and count for pods that start later. Pods of Jobs run and then end as
    ``job_end`` says, or stay Running for None; with ``instant_jobs`` they end without ever being
    seen Running. ``terminate`` False leaves pods that are being deleted as they are, until
    `finish_deletions` is called. ``namespace`` narrows it to one namespace.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        node: str = "node-1",
        namespace: str = "",
        image_ids: Mapping[str, str] | None = None,
        broken: frozenset[str] | set[str] = frozenset(),
        job_end: JobEnd | None = "Succeeded",
        instant_jobs: bool = False,
        terminate: bool = True,
    ) -> None:
        self.image_ids = dict(image_ids or {})
        self.broken = set(broken)
        self.job_end = job_end
        self.instant_jobs = instant_jobs
        self.terminate = terminate
        self._client = client
        self._node = node
        self._path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        self._work: dict[str, _Work] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._watch(), name="kubelet watch")]
        self._tasks += [
            asyncio.create_task(self._serve(), name=f"kubelet worker {number}")
            for number in range(SIDE_BY_SIDE)
        ]
        await self._or_failure(self._ready.wait())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for end in ends:
            # A kubelet that has broken down must not pass for one that had nothing to do.
            if isinstance(end, Exception) and error is None:
                raise end

    def image_id(self, image: str) -> str:
        """Return the imageID that containers of an image report."""
        return self.image_ids.get(image, image_id_of(image))

    async def settle(self, *, within: float = 20.0) -> None:
        """Wait until every pod seen so far is where it stays; raises TimeoutError if too late."""
        async with asyncio.timeout(within):
            await self._or_failure(self._settled())

    async def finish_deletions(self) -> None:
        """Stop the pods that are being deleted, and from now on all that will be."""
        self.terminate = True
        for uid in list(self._work):
            self._notice(uid)
        await self.settle()

    async def set_image_id(self, namespace: str, name: str, image: str, image_id: str) -> None:
        """Let the running containers of a pod that were started from an image report another id."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        body = await self._client.call("GET", path)
        statuses = body["status"].get("containerStatuses", [])
        for each in statuses:
            if each["image"] == image:
                each["imageID"] = image_id
        await self._patch_status(body, {"containerStatuses": statuses})

    async def restart_in_place(self, namespace: str, name: str) -> None:
        """Run a pod's containers again from the images that its spec names now."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        body = await self._client.call("GET", path)
        await self._patch_status(body, self._running(body))

    # Watching.

    async def _watch(self) -> None:
        version = ""
        while True:
            query = {"resourceVersion": version} if version else {}
            if not version:
                version = await self._list()
                self._ready.set()
                continue
            try:
                async with self._client.watch(self._path, **query) as watch:
                    while (event := await watch.next(within=None)) is not None:
                        if event["type"] == "ERROR":
                            version = ""
                            break
                        version = event["object"]["metadata"]["resourceVersion"]
                        self._see(event)
            except aiohttp.ClientError:
                # The server went away under a test of just that; a list tells when it is back.
                version = ""

    async def _list(self) -> str:
        while True:
            try:
                listed = await self._client.call("GET", self._path)
            except (aiohttp.ClientError, ApiFailureError):
                await asyncio.sleep(0.1)  # a poll: nobody tells when a server is back
                continue
            present = {body["metadata"]["uid"] for body in listed["items"]}
            for uid in [uid for uid in self._work if uid not in present]:
                del self._work[uid]
            for body in listed["items"]:
                self._see({"type": "MODIFIED", "object": body})
            return str(listed["metadata"]["resourceVersion"])

    def _see(self, event: Json) -> None:
        body = event["object"]
        uid = body["metadata"]["uid"]
        if event["type"] == "DELETED":
            self._work.pop(uid, None)
        elif uid in self._work:
            self._work[uid].body = body
        else:
            self._work[uid] = _Work(body)
        self._notice(uid)

    def _notice(self, uid: str) -> None:
        """Queue a pod if there is something to do, and wake who waits for all to be still."""
        work = self._work.get(uid)
        if work is not None and not work.busy and self._step_of(work.body) is not None:
            work.busy = True
            self._waiting.put_nowait(uid)
        self._changed.set()

    # Working.

    async def _serve(self) -> None:
        while True:
            uid = await self._waiting.get()
            work = self._work.get(uid)
            if work is None:
                continue
            step = self._step_of(work.body)
            try:
                if step is not None:
                    body = await self._take(step, work.body)
                    if body is not None:
                        work.body = body
            except ApiFailureError as failure:
                if failure.code not in GONE:
                    raise
                with contextlib.suppress(KeyError):
                    if failure.code == 404:
                        del self._work[uid]
            except aiohttp.ClientError:
                pass  # the server is away; the list after its return shows the pod again
            work.busy = False
            self._notice(uid)

    def _step_of(self, body: Json) -> Step | None:  # noqa: PLR0911 - one for each step
        """Return the next thing to do for a pod, None if it is where it stays."""
        phase = body.get("status", {}).get("phase", "Pending")
        if "deletionTimestamp" in body["metadata"]:
            if not self.terminate or not body["spec"].get("nodeName"):
                return None
            if body["metadata"].get("finalizers") and phase in {"Succeeded", "Failed"}:
                return None
            return "finish" if phase in {"Succeeded", "Failed"} else "stop"
        if not body["spec"].get("nodeName"):
            return "bind"
        if phase == "Pending":
            waiting = bool(body["status"].get("containerStatuses"))
            if self._is_broken(body):
                return None if waiting else "fail to pull"
            return "end" if self.instant_jobs and _is_of_job(body) and self.job_end else "run"
        if phase == "Running" and _is_of_job(body) and self.job_end:
            return "end"
        return None

    async def _take(self, step: Step, body: Json) -> Json | None:
        """Do one step; return the pod as it is then, None if it is gone."""
        path = _path_of(body)
        match step:
            case "bind":
                target = {"apiVersion": "v1", "kind": "Node", "name": self._node}
                binding = {"apiVersion": "v1", "kind": "Binding", "target": target}
                metadata = {"metadata": {"name": body["metadata"]["name"]}}
                await self._client.call("POST", f"{path}/binding", binding | metadata)
                return body | {"spec": body["spec"] | {"nodeName": self._node}}
            case "run":
                return await self._patch_status(body, self._running(body))
            case "fail to pull":
                return await self._patch_status(body, self._waiting_for_image(body))
            case "end":
                return await self._patch_status(body, self._ended(body, self.job_end or "Failed"))
            case "stop":
                return await self._patch_status(body, self._ended(body, "Succeeded"))
            case "finish":
                uid = body["metadata"]["uid"]
                options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
                await self._client.call("DELETE", path, options)
                return None
            case _:
                assert_never(step)

    async def _patch_status(self, body: Json, status: Json) -> Json:
        # With its uid, so that a new pod of the same name does not get the old one's status.
        patch = {"metadata": {"uid": body["metadata"]["uid"]}, "status": status}
        path = f"{_path_of(body)}/status"
        return await self._client.call("PATCH", path, patch, content_type=STRATEGIC)

    # What it reports.

    def _running(self, body: Json) -> Json:
        state = {"running": {"startedAt": _now()}}
        done = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": _now()}}
        return {
            "phase": "Running",
            "startTime": _now(),
            "podIP": "10.0.0.1",
            "conditions": _conditions(ready=True),
            "containerStatuses": self._statuses(body, "containers", state, ready=True),
            **self._init_statuses(body, running=state, done=done),
        }

    def _ended(self, body: Json, phase: JobEnd) -> Json:
        code = 0 if phase == "Succeeded" else 1
        reason = "Completed" if phase == "Succeeded" else "Error"
        done = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": _now()}}
        before = {each["name"]: each for each in body["status"].get("containerStatuses", ())}
        statuses = self._statuses(body, "containers", done, ready=False)
        for each in statuses:
            # A container that never started has no image; one that did keeps what it ran.
            known = before.get(each["name"])
            if known is not None:
                each |= {"image": known["image"], "imageID": known["imageID"]}
        return {
            "phase": phase,
            "conditions": _conditions(ready=False),
            "containerStatuses": statuses,
            **self._init_statuses(body, running=done, done=done),
        }

    def _waiting_for_image(self, body: Json) -> Json:
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "back-off pulling image"}}
        statuses = self._statuses(body, "containers", waiting, ready=False)
        for each in statuses:
            each["imageID"] = ""
        return {
            "phase": "Pending",
            "conditions": _conditions(ready=False),
            "containerStatuses": statuses,
        }

    def _init_statuses(self, body: Json, *, running: Json, done: Json) -> Json:
        """Return the statuses of init containers: ended, but for sidecars, which go on."""
        sidecars = {
            each["name"]
            for each in body["spec"].get("initContainers", ())
            if each.get("restartPolicy") == "Always"
        }
        statuses = self._statuses(body, "initContainers", done, ready=True)
        for each in statuses:
            if each["name"] in sidecars:
                each["state"] = running
        return {"initContainerStatuses": statuses} if statuses else {}

    def _statuses(self, body: Json, field: str, state: Json, *, ready: bool) -> list[Json]:
        return [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": self.image_id(container["image"]),
                "ready": ready,
                "started": ready,
                "restartCount": 0,
                "state": state,
                "lastState": {},
            }
            for container in body["spec"].get(field, ())
        ]

    def _is_broken(self, body: Json) -> bool:
        fields = ("containers", "initContainers")
        images = {each["image"] for field in fields for each in body["spec"].get(field, ())}
        return bool(images & self.broken)

    # Waiting.

    async def _settled(self) -> None:
        while any(work.busy or self._step_of(work.body) for work in self._work.values()):
            self._changed.clear()
            await self._changed.wait()

    async def _or_failure(self, wait: Coroutine[None, None, object]) -> None:
        """Wait, but for no longer than all tasks live: their failure is raised here."""
        waiting = asyncio.create_task(wait, name="kubelet wait")
        try:
            await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
        finally:
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting


def _is_of_job(body: Json) -> bool:
    owners = body["metadata"].get("ownerReferences", ())
    return any(owner["kind"] == "Job" and owner.get("controller") for owner in owners)


def _path_of(body: Json) -> str:
    metadata = body["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _conditions(*, ready: bool) -> list[Json]:
    value = "True" if ready else "False"
    kinds = {"Initialized": "True", "Ready": value, "ContainersReady": value}
    return [
        {"type": kind, "status": status, "lastTransitionTime": _now()}
        for kind, status in kinds.items()
    ]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
