"""
A simulated cluster that is never at rest, and the truth of it at each moment.

`RecordedCluster` writes down what follows from each change for the deployment names, at the moment
it is made: nothing has to be watched, so the evidence is never late. `Churn` changes it: workloads
start, roll out, roll back, scale, lose all their pods and get new ones, are deleted and come back
under the same name, several at a time. What it does follows from its seed; when it does it depends
on the machine, as in a real cluster.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from tests.support.truthlog import TruthLog
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.stage import Played, Stage
from tracker.sandbox.truth import Scope

__all__ = ["Churn", "RecordedCluster"]

NAMESPACE: Final = "shop"
KINDS: Final = ("Deployment", "Deployment", "DaemonSet", "StatefulSet")
TOPMOST: Final = frozenset(KINDS)
"""Kinds that give a deployment its name; what is between them and the pods keeps none."""
MOST_REPLICAS: Final = 3
VERSIONS: Final = 9
"""How many versions of each image there are: few enough that a rollout often brings back one."""

Json = dict[str, Any]


class RecordedCluster(SimulatedCluster):
    """
    A simulated cluster that keeps a truth log of its pods in `log`; made in a running loop.

    With `workloads` the truth is that of who may read workloads, too.
    """

    def __init__(
        self, *, token: str | None = None, scope: Scope | None = None, workloads: bool = False
    ) -> None:
        self.log = TruthLog(scope)
        self._workloads = workloads
        super().__init__(token=token)

    def create(self, body: Mapping[str, Any]) -> Json:
        """Create an object, and take note."""
        created = super().create(body)
        self._note("ADDED", created)
        return created

    def replace(self, body: Mapping[str, Any]) -> Json:
        """Replace an object, and take note."""
        replaced = super().replace(body)
        self._note("MODIFIED", replaced)
        return replaced

    def patch(self, plural: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        """Change an object, and take note."""
        patched = super().patch(plural, namespace, name, patch)
        self._note("MODIFIED", patched)
        return patched

    def delete(
        self,
        plural: str,
        namespace: str,
        name: str,
        *,
        grace_seconds: int | None = None,
        propagation: str = "Background",
    ) -> None:
        """Delete an object, and take note of what became of it and of all that hung on it."""
        before = self.get(plural, namespace, name)
        super().delete(
            plural, namespace, name, grace_seconds=grace_seconds, propagation=propagation
        )
        if before is not None and before["kind"] in TOPMOST:
            self._note("DELETED", before)
        if before is None or before["kind"] != "Pod":
            now = asyncio.get_running_loop().time()
            self.log.snapshot(now, self.objects("pods"))
        elif (left := self.get(plural, namespace, name)) is None:
            self._note("DELETED", before)
        else:
            self._note("MODIFIED", left)

    def _note(self, kind: str, body: Mapping[str, Any]) -> None:
        now = asyncio.get_running_loop().time()
        if body["kind"] == "Pod":
            self.log.event(now, kind, body)
        elif self._workloads and body["kind"] in TOPMOST:
            place = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
            self.log.workload(now, place, there=kind != "DELETED")


@dataclass(slots=True)
class _Place:
    """A name that a workload has, had or will have; `played` None while there is none."""

    kind: str
    name: str
    version: int
    played: Played | None = None
    past: list[int] = field(default_factory=list)

    @property
    def images(self) -> dict[str, str]:
        """The images of its present version; every third workload has a second container."""
        names = ("app", "proxy") if self.name.endswith("0") else ("app",)
        return {each: f"ghcr.io/acme/{self.name}-{each}:{self.version}" for each in names}


class Churn:
    """
    What goes on in a cluster; an async context manager that goes on while it is entered.

    `actors` workloads at a time are at something; between two things an actor rests for up to
    `rest_seconds`. `steps` counts what was done.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        *,
        seed: int,
        workloads: int = 9,
        actors: int = 3,
        rest_seconds: float = 0.1,
    ) -> None:
        self.steps = 0
        self._cluster = cluster
        self._chance = random.Random(seed)  # noqa: S311 - a play on a stage, nothing secret
        self._stage = Stage(cluster, seed=seed)
        self._rest = rest_seconds
        self._over = asyncio.Event()
        places = [
            _Place(kind=self._chance.choice(KINDS), name=f"w{number // 3}{number % 3}", version=1)
            for number in range(workloads)
        ]
        self._shares = [places[each::actors] for each in range(actors)]
        self._actors: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number, places in enumerate(self._shares):
            # Each has dice of its own: what one does must not depend on how fast the others are.
            chance = random.Random(self._chance.random())  # noqa: S311 - the same
            self._actors.append(
                asyncio.create_task(self._act(places, chance), name=f"churn-{number}")
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.stop()
            return
        for actor in self._actors:
            actor.cancel()
        await asyncio.gather(*self._actors, return_exceptions=True)

    async def stop(self) -> None:
        """Let each actor finish what it is at; raise what one failed with."""
        self._over.set()
        await asyncio.gather(*self._actors)

    async def _act(self, places: list[_Place], chance: random.Random) -> None:
        for place in places:
            await self._start(place, chance)
        while not self._over.is_set():
            place = chance.choice(places)
            await self._step(place, chance)
            self.steps += 1
            try:
                async with asyncio.timeout(chance.random() * self._rest):
                    await self._over.wait()
            except TimeoutError:
                continue

    async def _step(self, place: _Place, chance: random.Random) -> None:
        if place.played is None:
            await self._start(place, chance)
            return
        act: Callable[[_Place, Played, random.Random], Awaitable[None]] = chance.choices(
            (self._roll_out, self._roll_back, self._scale, self._blink, self._delete, self._renew),
            weights=(6, 3, 2, 2, 3, 2),
        )[0]
        await act(place, place.played, chance)

    async def _start(self, place: _Place, chance: random.Random) -> None:
        place.played = await self._stage.start(
            place.kind,
            NAMESPACE,
            place.name,
            place.images,
            replicas=chance.randint(1, MOST_REPLICAS),
        )

    async def _roll_out(self, place: _Place, played: Played, chance: random.Random) -> None:
        place.past.append(place.version)
        place.version = chance.randint(1, VERSIONS)
        await self._change(place, played)

    async def _roll_back(self, place: _Place, played: Played, chance: random.Random) -> None:
        place.version = place.past.pop() if place.past else chance.randint(1, VERSIONS)
        await self._change(place, played)

    async def _change(self, place: _Place, played: Played) -> None:
        if played.kind != "StatefulSet":
            await self._stage.roll_out(played, place.images)
            return
        # Its pods have fixed names: an old one ends before its successor begins.
        replicas = len(played.pods)
        await self._stage.scale(played, 0)
        played.images = place.images
        await self._stage.scale(played, replicas)

    async def _scale(self, _place: _Place, played: Played, chance: random.Random) -> None:
        await self._stage.scale(played, chance.randint(0, MOST_REPLICAS))

    async def _blink(self, _place: _Place, played: Played, _chance: random.Random) -> None:
        """Lose all pods and get as many new ones of the same images: no state changes."""
        replicas = len(played.pods)
        await self._stage.scale(played, 0)
        await self._stage.scale(played, replicas)

    async def _delete(self, place: _Place, played: Played, _chance: random.Random) -> None:
        place.played = None
        await self._stage.delete(played)

    async def _renew(self, place: _Place, played: Played, chance: random.Random) -> None:
        """Delete a workload and make another one of its name."""
        await self._delete(place, played, chance)
        place.version = chance.randint(1, VERSIONS)
        await self._start(place, chance)
