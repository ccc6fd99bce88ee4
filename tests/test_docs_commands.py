"""
Every command of the documents does what it is there for.

`tests/support/documented.py` says how each is tried. Here are those that need no more than the
simulated servers; `tests/e2e/test_docs_commands.py` has those of kubectl.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import aiohttp
import pytest

from tests.support import kubectl
from tests.support.commands import entry_of, ledger_of, record_of
from tests.support.documented import Way, documented, way_of
from tests.support.documents import ROOT, Command
from tests.support.program import Program
from tests.support.simulated import IN_STEP, World, made, pod
from tracker.settings import load
from tracker.transport import API_VERSION

PLACEHOLDERS = {"NAMESPACE/POD": "shop/web-5d8f7c9b4-x2x1z"}
"""What a reader puts in; other words in capitals are files of the folder that a command runs in."""

COMMANDS = list(documented())


@asynccontextmanager
async def place(folder: Path) -> AsyncIterator[World]:
    """Yield a world in whose folder is what the documents speak of, with a ledger in step."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in (("deployment-tracker", "tracker"), ("kopf", "kopf"), ("python", "")):
        script = programs / name
        told = f"-m {module} " if module else ""
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {told}"$@"\n')
        script.chmod(0o755)
    (folder / "tracker").symlink_to(ROOT / "tracker")
    with (folder / "pods.json").open("w") as stream:
        kubectl.write_json(kubectl.many_pods(10), stream)
    async with made(folder) as world:
        hash_ = "5d8f7c9b4"
        reader = pod("web", name=f"web-{hash_}-x2x1z", labels={"pod-template-hash": hash_})
        reader["metadata"]["ownerReferences"][0]["name"] = f"web-{hash_}"
        world.cluster.create(reader)
        world.cluster.write_kubeconfig(folder / "KUBECONFIG")
        await record(world)
        yield world


async def record(world: World) -> None:
    """Have GitHub and the ledger hold what runs."""
    environ, entry = environ_of(world), entry_of("web", acknowledged=record_of("web"))
    async with ledger_of(environ, world.folder / "ledger.db", [entry]):
        pass
    async with (
        aiohttp.ClientSession(world.github.url) as session,
        session.post(
            f"/orgs/{environ['ORG']}/artifacts/metadata/deployment-record",
            json=record_of("web").payload(load({}, environ).scope),
            headers={
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": API_VERSION,
                "Authorization": f"Bearer {environ['API_TOKEN']}",
            },
        ) as response,
    ):
        assert response.status == HTTPStatus.OK, await response.text()


def environ_of(world: World) -> dict[str, str]:
    return world.environ(
        KUBECONFIG=str(world.folder / "KUBECONFIG"),
        LEDGER_PATH=str(world.folder / "ledger.db"),
        PATH=f"{world.folder / '.venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        PYTHONPATH=str(ROOT),
    )


def program(command: Command, world: World) -> Program:
    text = command.text
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return Program(
        ["bash", "-euo", "pipefail", "-c", text], environ=environ_of(world), folder=world.folder
    )


def those(way: Way) -> list[object]:
    return [
        pytest.param(command, id=str(command)) for command in COMMANDS if way_of(command)[0] is way
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_somebody_tries_each_command(command: Command) -> None:
    way, told = way_of(command)
    assert way is not None, "say in tests/support/documented.py how it is tried"
    if way is Way.ELSEWHERE:
        assert (ROOT / told).is_file()
    else:
        assert bool(told) is (way is Way.NOT)


@pytest.mark.parametrize("command", those(Way.ENDS))
async def test_a_command_does_as_documented(command: Command, tmp_path: Path) -> None:
    async with place(tmp_path) as world, program(command, world) as ran:
        code = await ran.ended()
        assert code == 0, ran.story()
        assert "Traceback" not in ran.said


@pytest.mark.parametrize("command", those(Way.STAYS))
async def test_the_tracker_runs_as_documented(command: Command, tmp_path: Path) -> None:
    async with place(tmp_path) as world, program(command, world) as ran:
        await ran.until_said(IN_STEP)
        assert await ran.stopped() == 0, ran.story()


async def test_every_target_that_is_named_is_there() -> None:
    targets = {command.text.split()[1] for command in COMMANDS if command.text[:5] == "make "}
    process = await asyncio.create_subprocess_exec(
        *("make", "-n", *sorted(targets)), cwd=ROOT, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
