"""
Two instances that share a cluster by what they leave out do each other no harm.

Both watch the whole cluster; that instances for one namespace each get along is told in
`test_restart.py`, over outages.
"""

from pathlib import Path

import pytest

from tests.support.simulated import IN_STEP, OTHER_DIGEST, World, made, pod

pytestmark = pytest.mark.timeout(180)


def run(world: World, *namespaces: str) -> None:
    """Have the same workload run in each namespace."""
    for namespace in namespaces:
        world.cluster.create(pod("web", namespace=namespace))


async def test_each_records_its_own_and_leaves_the_other_s_alone(tmp_path: Path) -> None:
    shares = ({"EXCLUDE_NAMESPACES": "blue"}, {"EXCLUDE_NAMESPACES": "red,shop"})
    async with made(tmp_path) as world:
        run(world, "red", "blue")
        ledgers = [str(tmp_path / name) for name in ("red.db", "blue.db")]
        both = (
            world.program(**shares[0], LEDGER_PATH=ledgers[0]),
            world.program(**shares[1], LEDGER_PATH=ledgers[1]),
        )
        async with both[0] as red, both[1] as blue:
            for program in (red, blue):
                await program.until_said(IN_STEP)
            await told(world, red="deployed", blue="deployed")
            world.cluster.delete("pods", "red", "web-abc-0", grace_seconds=0)
            await told(world, red="decommissioned", blue="deployed")
            world.cluster.create(pod("web", digest=OTHER_DIGEST, number=1, namespace="red"))
            await told(world, red="deployed", blue="deployed")
            for program in (red, blue):
                assert await program.stopped() == 0
        assert {line.deployment_name for line in red.lines} == {"red/web/app"}
        assert {line.deployment_name for line in blue.lines} == {"blue/web/app"}
        posted = len(world.github.posts())
        # Started anew, neither takes what the other recorded for something that is gone.
        for share, ledger in zip(shares, ledgers, strict=True):
            async with world.program(**share, LEDGER_PATH=ledger) as program:
                await program.until_said(IN_STEP)
                assert await program.stopped() == 0
        assert len(world.github.posts()) == posted


async def told(world: World, **states: str) -> None:
    """Wait until GitHub holds the workload of each namespace in a state."""
    await world.github.until(
        lambda: all(
            state is not None and state[0] == expected
            for state, expected in (
                (world.github.state(f"{namespace}/web/app"), expected)
                for namespace, expected in states.items()
            )
        ),
        within=40,
        why=f"{states}",
    )
