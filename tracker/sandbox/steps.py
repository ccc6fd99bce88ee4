"""
The steps of the demo, in their order: each makes something happen and holds the tracker to it.

A step plays on the stage, waits until GitHub holds what it should, and says what it took. What
does not come true is a `StoryError`, and the demo has failed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tracker.sandbox.exchanges import Outcome
from tracker.sandbox.script import answers, hangs
from tracker.sandbox.stage import Played, digest_of
from tracker.sandbox.stand import Stand, records_of
from tracker.sandbox.tracker_process import StoryError

__all__ = ["ORG", "STEPS", "Step", "build"]

ORG: Final = "acme"
WORKLOADS: Final = (
    ("Deployment", "shop", "web", ("web", "proxy")),
    ("Deployment", "shop", "cart", ("cart",)),
    ("Deployment", "shop", "payments", ("payments",)),
    ("Rollout", "shop", "search", ("search",)),
    ("CronJob", "shop", "report", ("report",)),
    ("StatefulSet", "data", "orders-db", ("db",)),
    ("Job", "data", "migrate", ("migrate",)),
    ("DaemonSet", "infra", "log-agent", ("agent",)),
    ("ReplicaSet", "infra", "cache", ("cache",)),
    ("ReplicationController", "infra", "dns", ("dns",)),
)
BARE: Final = ("infra", "debug")
GROWING: Final = ("web", "web", "web", "cart", "payments", "search", "orders-db", "log-agent")
"""Who gets the pods that are left when each workload has one."""
RETRY_AFTER: Final = 3
"""Seconds that the limit asks to wait."""
SLACK_SECONDS: Final = 0.05
"""By so much two clocks of one machine may differ in telling a wait."""

DEPLOYED, DECOMMISSIONED = "deployed", "decommissioned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is told of a step, and what plays it."""

    title: str
    why: str
    play: Callable[[Stand], Awaitable[None]]


async def build(stand: Stand) -> int:
    """Start what runs before the tracker does; return how many pods that are."""
    replicas = dict.fromkeys((name for _, _, name, _ in WORKLOADS), 1)
    for index in range(stand.pods - len(WORKLOADS) - 1):
        replicas[GROWING[index % len(GROWING)]] += 1
    for kind, namespace, name, containers in WORKLOADS:
        images = {container: _image(container, "1.0") for container in containers}
        stand.workloads[name] = await stand.stage.start(
            kind, namespace, name, images, replicas=replicas[name]
        )
    await stand.stage.finish(stand.workloads["migrate"])
    await stand.stage.start("Pod", *BARE, {"sh": _image("debug", "1.0")}, replicas=1)
    return len(stand.cluster.objects("pods"))


async def _examine(stand: Stand) -> None:
    ran = await stand.command("doctor")
    checks = ran.stdout.partition("\n\n")[2].split("\n")  # below the settings
    stand.screen.ran("deployment-tracker doctor", [line for line in checks if line.strip()])


async def _record(stand: Stand) -> None:
    await stand.tracker.start()
    await stand.agreed("the first records")
    kinds = len({workload.kind for workload in stand.workloads.values()})
    stand.screen.prove(f"{_sum_up(stand, 0)}, for {kinds} kinds of workload")
    place = "/".join(BARE)
    ran = await stand.command("explain", place)
    stand.screen.happen(f"and {place}, which is in none of them?")
    stand.screen.ran(f"deployment-tracker explain {place}", ran.stdout.splitlines())


async def _roll_out(stand: Stand) -> None:
    web, before = stand.workloads["web"], len(stand.github.posts())
    stand.screen.happen(f"shop/web goes from 1.0 to 1.1, {_pods(len(web.pods))} one by one")
    await _to(stand, web, "1.1", "web")
    await stand.agreed("the rollout")
    _expect(stand, before, {("shop/web/web", DEPLOYED)})
    stand.screen.prove(f"{_sum_up(stand, before)}; its proxy has the same image as before")


async def _scale(stand: Stand) -> None:
    cart, stand.scaled_at = stand.workloads["cart"], len(stand.github.posts())
    number = len(cart.pods)
    stand.screen.happen(f"shop/cart goes from {_pods(number)} to {number + 4}, and then to 1")
    await stand.stage.scale(cart, number + 4)
    await stand.stage.scale(cart, 1)
    # That nothing comes of it later either is seen with the next records.
    _expect(stand, stand.scaled_at, set())
    stand.screen.prove("no record and no request")


async def _limit(stand: Stand) -> None:
    before = stand.scaled_at
    limit = answers(
        429,
        headers={"Retry-After": str(RETRY_AFTER)},
        body={"message": "You have exceeded a secondary rate limit."},
    )
    stand.github.script(limit, times=1)
    names = ("payments", "cart", "search", "log-agent")
    stand.screen.happen(f"four workloads roll out; GitHub answers 429, Retry-After: {RETRY_AFTER}")
    await _to(stand, stand.workloads[names[0]], "1.1", names[0])
    await stand.told(lambda line: " FAILED " in line, "a post that meets the limit")
    for name in names[1:]:
        workload = stand.workloads[name]
        await _to(stand, workload, "1.1", next(iter(workload.images)))
    await stand.agreed("what waited")
    _expect(
        stand,
        before,
        {
            ("shop/payments/payments", DEPLOYED),
            ("shop/cart/cart", DEPLOYED),
            ("shop/search/search", DEPLOYED),
            ("infra/log-agent/agent", DEPLOYED),
        },
    )
    limited, *others = stand.github.posts()[before:]
    waited = min(each.arrived for each in others) - (limited.answered or limited.arrived)
    if waited < RETRY_AFTER - SLACK_SECONDS:
        message = f"the limit asked for {RETRY_AFTER} s, and {waited:.1f} s later a post came"
        raise StoryError(message)
    stand.screen.prove(f"silence for {waited:.1f} s, then {_sum_up(stand, before + 1)}")


async def _attest_late(stand: Stand) -> None:
    before, image = len(stand.github.posts()), _image("checkout", "1.0")
    stand.github.unknown.add(digest_of(image))
    stand.screen.happen("shop/checkout starts; its image is pushed, and not attested yet")
    stand.workloads["checkout"] = await stand.stage.start(
        "Deployment", "shop", "checkout", {"checkout": image}, replicas=2
    )
    name = "shop/checkout/checkout"
    await stand.until(
        lambda: any(
            exchange.outcomes().get(name) is Outcome.REFUSED
            for exchange in stand.github.posts(name)
        ),
        "an answer that the image is not known",
    )
    await stand.told(lambda line: " FAILED " in line and name in line, f"a failure of {name}")
    stand.screen.happen("now the attestation arrives")
    stand.github.learn(digest_of(image))
    await stand.agreed("the late attestation")
    _expect(stand, before, {(name, DEPLOYED)})
    asked = len(stand.github.posts()[before:])
    stand.screen.prove(f"asked {asked} times, recorded once it was known")


async def _kill(stand: Stand) -> None:
    before = len(stand.github.posts())
    script = stand.github.script(hangs(applied=True), times=1)
    stand.screen.happen("shop/web goes to 1.2; GitHub writes it down, and its answer hangs")
    # Of a large workload the pods go on being replaced while the tracker is down.
    rolling = asyncio.create_task(_to(stand, stand.workloads["web"], "1.2", "web"))
    try:
        await stand.until(
            lambda: any(each.applied is not None for each in script.used), "a post that hangs"
        )
        await stand.tracker.kill()
    finally:
        await rolling
    stand.screen.happen("kill -9; while it is down shop/cart is deleted, shop/search goes to 1.2")
    stand.github.heal()
    await stand.stage.delete(stand.workloads.pop("cart"))
    await _to(stand, stand.workloads["search"], "1.2", "search")
    _expect(stand, before, {("shop/web/web", DEPLOYED)})
    restart = len(stand.github.posts())
    await stand.tracker.start()
    stand.screen.happen("it starts again, with its ledger")
    await stand.agreed("what changed while it was down")
    difference = {
        ("shop/web/web", DEPLOYED),
        ("shop/search/search", DEPLOYED),
        ("shop/cart/cart", DECOMMISSIONED),
    }
    await stand.until(
        lambda: difference <= set(records_of(stand.github.posts()[restart:])),
        "the post whose answer was lost",
    )
    await stand.agreed("the restart")
    _expect(stand, restart, difference)
    stand.screen.prove("exactly the difference; shop/web again, since its answer never came")


async def _look(stand: Stand) -> None:
    ran = await stand.command("status")
    stand.screen.ran("deployment-tracker status", ran.stdout.splitlines())


STEPS: Final = (
    Step(
        title="Is all there that it needs?",
        why="doctor asks the API server and GitHub, and writes nothing anywhere.",
        play=_examine,
    ),
    Step(
        title="It starts, and records what runs",
        why="Nothing is sent before all pods were seen: no half picture is recorded.",
        play=_record,
    ),
    Step(
        title="A rollout is one update",
        why="Records follow what a name runs, not its pods.",
        play=_roll_out,
    ),
    Step(
        title="Scaling is none",
        why="The same image in more pods is no news to GitHub.",
        play=_scale,
    ),
    Step(
        title="GitHub sets a limit",
        why="All wait as long as it asks for; what gathers meanwhile goes together.",
        play=_limit,
    ),
    Step(
        title="An attestation is late",
        why="An unknown image is asked for again: after 2 s here, usually after 5 min.",
        play=_attest_late,
    ),
    Step(
        title="It is killed, and the cluster goes on without it",
        why="The ledger knows what GitHub acknowledged, and what it never answered.",
        play=_kill,
    ),
    Step(
        title="Do all three agree?",
        why="status reads the ledger while the tracker has it, and does not disturb it.",
        play=_look,
    ),
)


async def _to(stand: Stand, workload: Played, version: str, container: str) -> None:
    """Roll a workload out with another version of one of its images."""
    images = workload.images | {container: _image(container, version)}
    await stand.stage.roll_out(workload, images)


def _image(name: str, version: str) -> str:
    return f"ghcr.io/{ORG}/{name}:{version}"


def _expect(stand: Stand, since: int, records: set[tuple[str, str]]) -> None:
    """Raise StoryError unless exactly these records were written, each once, since that post."""
    written = sorted(records_of(stand.github.posts()[since:]))
    if written != sorted(records):
        message = f"expected {sorted(records)}, but GitHub was told {written}"
        raise StoryError(message)


def _sum_up(stand: Stand, since: int) -> str:
    """Return how many records were written since that post, and with how many requests."""
    exchanges = stand.github.posts()[since:]
    records, requests = len(records_of(exchanges)), len(exchanges)
    return f"{records} {_many('record', records)} in {requests} {_many('request', requests)}"


def _pods(number: int) -> str:
    return f"{number} {_many('pod', number)}"


def _many(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"
