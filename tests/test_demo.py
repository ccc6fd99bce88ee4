"""The demo: 0 when cluster and GitHub agree, 1 for anything else."""

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.support.program import ROOT

WITHIN = 50.0


async def demo(*arguments: str, folder: Path, path: Path = ROOT) -> asyncio.subprocess.Process:
    """Start the demo as a user would, outside of the checkout."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tracker", "demo", *arguments),
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": f"{path}:{ROOT}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def told_by(process: asyncio.subprocess.Process) -> str:
    """Return all it said, once it has ended."""
    async with asyncio.timeout(WITHIN):
        said, _ = await process.communicate()
    return said.decode()


async def test_the_demo_ends_with_both_sides_in_agreement(tmp_path: Path) -> None:
    process = await demo("--pods", "30", "--seed", "7", folder=tmp_path)
    said = await told_by(process)
    assert process.returncode == 0, said
    assert "30 pods run" in said
    assert said.count(" OK CREATED ") == 11  # nine containers, and two rollouts
    assert said.count(" OK DELETED ") == 1
    assert said.count(" FAILED CREATED ") == 1
    assert "cluster and GitHub agree" in said
    assert "none posted twice" in said


async def test_the_demo_fails_at_once_when_the_tracker_ends(tmp_path: Path) -> None:
    """What the interpreter loads first stands for a tracker that can't run on this machine."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'API_TOKEN' in os.environ: print('no such luck', file=sys.stderr); "
        "os._exit(3)\n"
    )
    process = await demo(folder=tmp_path, path=tmp_path)
    said = await told_by(process)
    assert process.returncode == 1
    assert "the tracker ended with exit code 3" in said
    assert "no such luck" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_kept_up_the_servers_answer_until_it_is_interrupted(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = await demo("--pods", "8", "--keep", folder=tmp_path)
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(WITHIN):
        while "token" not in said:
            said += (await process.stdout.readline()).decode()
    url = next(word for word in said.split() if word.startswith("http://"))
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/api/v1/namespaces/shop/pods") as response,
    ):
        assert response.status == 200
        assert (await response.json())["items"]
    process.send_signal(number)
    said += await told_by(process)
    assert process.returncode == 0, said
    assert "stopped with exit code 0" in said
