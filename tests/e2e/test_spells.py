"""
What is rolled out while GitHub has a bad spell, on a real API server with its real controllers.

Each spell is short, since what it costs is known after a few requests; `make bench ARGS=spells`
makes them longer and tells the figures. The tracker is the same one all the time.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.controlplane import ControlPlane
from tests.support.installation import Installation, installed, rights_of_base
from tests.support.program import Program, tracker_run
from tracker.sandbox.script import Behaviour, answers, drops, lands_late, truncates

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

CALM = "spells-calm"
DEPLOYMENTS = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    """Run one tracker for all spells."""
    folder: Path = tmp_path_factory.mktemp("tracker")
    async with installed(control_plane, rights=rights_of_base()) as installation:
        await installation.create_namespace(CALM)
        command = tracker_run("-kubeconfig", str(installation.kubeconfig))
        environ = installation.environ(LEDGER_PATH=str(folder / "ledger.db"))
        async with Program(command, environ=environ, folder=folder) as program:
            await program.until_said("in step with the cluster")
            yield installation
            assert await program.stopped() == 0
            assert "Traceback" not in program.said


@pytest.mark.fault("G20")
@pytest.mark.parametrize(
    ("behaviour", "requests"),
    [
        pytest.param(answers(500), 3, id="errors"),
        pytest.param(drops(applied=False), 3, id="resets"),
        pytest.param(lands_late(1.0, answer=504), 2, id="lands-after-the-gateway-gave-up"),
        pytest.param(answers(429, headers={"Retry-After": "3"}), 1, id="limited"),
        # The last, since what can't be read is not sent in batches for an hour.
        pytest.param(truncates(), 3, id="truncated"),
    ],
)
async def test_what_is_rolled_out_in_a_spell_is_true_after_it(
    installation: Installation,
    behaviour: Behaviour,
    requests: int,
    request: pytest.FixtureRequest,
) -> None:
    github, title = installation.github, request.node.callspec.id
    async with installation.scene(title) as scene:
        names = [f"app-{number}" for number in range(DEPLOYMENTS)]
        for name in names:
            await scene.create(scene.deployment(name))
        for name in names:
            await scene.recorded(name)
        await scene.later_second()
        script = github.script(behaviour)
        for name in names:
            await scene.roll_out("deployments", name, scene.container("2"))
        await github.until(lambda: len(script.used) >= requests, within=40, why=title)
        script.stop()
        for name in names:
            await scene.recorded(name, "2")
        for name in names:
            await scene.running(name, version="2")
        # Whoever is told to wait waits: nobody else sends meanwhile.
        for used in script.used:
            seconds = float(behaviour.headers.get("Retry-After", 0))
            told = used.answered or 0.0
            assert not [each for each in github.history if told < each.arrived < told + seconds]
        await scene.judge(CALM)


async def test_the_tracker_only_ever_read_pods(installation: Installation) -> None:
    installation.assert_only_read()
