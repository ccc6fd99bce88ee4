"""
The truth of a real API server, recorded by a watch that is not the tracker's.

The checker judges by it; the tests wait by it until controllers and kubelet have done what a
scenario is about.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests.support.apiclient import ApiClient
from tests.support.truthlog import TruthLog
from tracker.sandbox.truth import Scope

__all__ = ["TruthWatch"]

PODS = "/api/v1/pods"
WITHIN = 40.0

Pod = dict[str, Any]


class TruthWatch:
    """
    All pods as they are now, and in `log` what followed from them for each name, and when.

    An async context manager; it watches while it is entered. Times are the running loop's.
    """

    def __init__(self, client: ApiClient, scope: Scope, *, cronjob_hold_seconds: float) -> None:
        self.log = TruthLog(scope, cronjob_hold_seconds=cronjob_hold_seconds)
        self._client = client
        self._pods: dict[str, Pod] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        listed = await self._client.call("GET", PODS)
        self._pods = {pod["metadata"]["uid"]: pod for pod in listed["items"]}
        self.log.snapshot(self._now(), self._pods.values())
        version = listed["metadata"]["resourceVersion"]
        self._task = asyncio.create_task(self._watch(version), name="truth watch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def pods(self, namespace: str) -> list[Pod]:
        """Return a namespace's pods as they are now."""
        return [pod for pod in self._pods.values() if pod["metadata"]["namespace"] == namespace]

    async def until(self, condition: Callable[[], bool], *, within: float = WITHIN) -> None:
        """Wait until a condition holds; it is asked after each event of a pod."""
        async with asyncio.timeout(within):
            while not condition():
                if self._task is not None and self._task.done():
                    self._task.result()
                self._changed.clear()
                await self._changed.wait()

    async def catch_up(self, namespace: str) -> None:
        """Wait until this has seen what a list of the namespace shows now."""
        listed = await self._client.call("GET", f"/api/v1/namespaces/{namespace}/pods")
        least = {
            pod["metadata"]["uid"]: int(pod["metadata"]["resourceVersion"])
            for pod in listed["items"]
        }

        def caught_up() -> bool:
            seen = {
                pod["metadata"]["uid"]: int(pod["metadata"]["resourceVersion"])
                for pod in self.pods(namespace)
            }
            return seen.keys() <= least.keys() and all(
                seen.get(uid, 0) >= version for uid, version in least.items()
            )

        await self.until(caught_up)

    async def _watch(self, version: str) -> None:
        try:
            async with self._client.watch(PODS, resourceVersion=version) as watch:
                while (event := await watch.next(within=None)) is not None:
                    self._see(event)
        finally:
            self._changed.set()
        message = "the truth watch ended: the rest of the run would go unrecorded"
        raise RuntimeError(message)

    def _see(self, event: dict[str, Any]) -> None:
        pod = event["object"]
        if event["type"] == "DELETED":
            self._pods.pop(pod["metadata"]["uid"], None)
        else:
            self._pods[pod["metadata"]["uid"]] = pod
        self.log.event(self._now(), event["type"], pod)
        self._changed.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
