"""The demo: 0 when cluster, ledger and GitHub agree, 1 for anything else."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.support.program import ROOT
from tests.support.simulated import DIGEST
from tests.support.terminal import on_a_terminal
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import answers, drops
from tracker.sandbox.stand import line_of, repeated
from tracker.sandbox.truth import Comparison

WITHIN = 110.0
"""Seconds; it aims at half a minute on an idle machine and at one on two busy cores."""
COMMAND = (sys.executable, "-m", "tracker", "demo")


async def demo(*arguments: str, folder: Path, path: Path = ROOT) -> asyncio.subprocess.Process:
    """Start the demo as a user would, outside of the checkout."""
    return await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments),
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


def plant(folder: Path, code: str) -> None:
    """Have this run first in the tracker itself (`tracking`) and in its commands."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "tracking = sys.orig_argv[1:] == ['-m', 'tracker']\n"
        f"if 'API_TOKEN' in os.environ:\n    {code}\n"
    )


async def test_the_demo_tells_its_story_and_stays_up_until_it_is_interrupted(
    tmp_path: Path,
) -> None:
    process = await demo("--pods", "30", "--seed", "7", "--keep", folder=tmp_path)
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(WITHIN):
        while "look around" not in said:
            line = (await process.stdout.readline()).decode()
            assert line, said
            said += line
    url = next(word for word in said.split("API server  ")[-1].split())
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/api/v1/namespaces/shop/pods") as response,
    ):
        assert response.status == 200
        assert (await response.json())["items"]
    process.send_signal(signal.SIGINT)
    said += await told_by(process)
    assert process.returncode == 0, said
    assert "30 pods in a simulated cluster" in said
    assert re.findall(r"^(\d)/8", said, flags=re.MULTILINE) == list("12345678")
    assert re.search(r"ok +github +http://127\.0\.0\.1:\d+ answers", said), "doctor"
    # Eleven containers at first, a rollout, four behind the limit, one attested late, and after
    # the kill what was rolled out before and meanwhile.
    assert said.count(" OK CREATED ") == 11 + 1 + 4 + 1 + 2
    assert said.count(" OK DELETED ") == 1
    assert said.count(" FAILED CREATED ") == 2  # the limit, and the image that is not known yet
    assert "✓ 11 records in 1 request, for 8 kinds of workload" in said
    assert "Skipped  bare-pod  no controller owns it" in said
    assert "✓ 1 record in 1 request;" in said
    assert "then 4 records in 1 request" in said
    assert "GitHub knows no artifact of this digest" in said
    assert re.search(r"shop/cart/cart +gone +decommissioned +decommissioned +✓", said)
    assert "cluster, ledger and GitHub agree in 12 names" in said
    assert "posted twice without need: none" in said
    assert "once more, as its answer was lost: shop/web/web" in said
    assert "the tracker stopped with exit code 0" in said


async def test_on_a_terminal_the_demo_keeps_to_80_columns(tmp_path: Path) -> None:
    async with asyncio.timeout(WITHIN):
        shown, code = await on_a_terminal([*COMMAND, "--pods", "11"], at=tmp_path)
    assert code == 0, shown
    assert "\x1b[1;32m✓ \x1b[0m" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any(line.startswith("     OK CREATED … deployment_name=shop/web/web") for line in lines)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("sys.exit('no such luck')", "doctor ended with exit code 1", id="doctor"),
        pytest.param(
            "tracking and print('no such luck', file=sys.stderr, flush=True) or tracking and"
            " os._exit(3)",
            "the tracker ended with exit code 3",
            id="tracker",
        ),
    ],
)
async def test_the_demo_fails_at_once_when_the_program_can_not_run(
    tmp_path: Path, code: str, expected: str
) -> None:
    plant(tmp_path, code)
    process = await demo(folder=tmp_path, path=tmp_path)
    said = await told_by(process)
    assert process.returncode == 1
    assert f"failed: {expected}" in said
    assert "no such luck" in said


async def test_the_demo_fails_when_the_tracker_keeps_to_no_limit(tmp_path: Path) -> None:
    plant(tmp_path, "from tracker.pacing import Pace; Pace.note = lambda *_: 0.0")
    process = await demo("--pods", "11", folder=tmp_path, path=tmp_path)
    said = await told_by(process)
    assert process.returncode == 1, said
    assert re.search(r"failed: the limit asked for 3 s, and [01]\.\d s later a post came", said)
    assert "6/8" not in said


async def test_a_demo_that_is_ended_leaves_no_tracker_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    plant(tmp_path, f"tracking and open({str(pid)!r}, 'w').write(str(os.getpid()))")
    process = await demo(folder=tmp_path, path=tmp_path)
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN):
        while line := await process.stdout.readline():
            if b"in step with the cluster" in line:
                break
    process.send_signal(signal.SIGTERM)
    said = await told_by(process)
    assert process.returncode == 1
    assert "interrupted" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(
    ("why", "state", "status", "expected"),
    [
        pytest.param("", "acknowledged", "deployed", "", id="agree"),
        pytest.param("", "acknowledged", "decommissioned", "the ledger has it otherwise", id="old"),
        pytest.param("", "pending", "deployed", "the ledger has it as pending", id="pending"),
        pytest.param("", "", "", "the ledger has it as unknown", id="unknown"),
        pytest.param("is not recorded", "acknowledged", "deployed", "is not recorded", id="GitHub"),
    ],
)
def test_a_name_agrees_only_on_all_three_sides(
    why: str, state: str, status: str, expected: str
) -> None:
    comparison = Comparison(
        deployment_name="shop/web/web",
        wanted="standing",
        cluster=DIGEST,
        github=DIGEST,
        status="deployed",
        agrees=not why,
        why=why,
    )
    entry = {"state": state, "acknowledged": {"digest": DIGEST, "status": status}} if state else {}
    assert line_of(comparison, entry).why == expected


async def test_a_post_is_repeated_for_a_reason_when_its_answer_was_lost() -> None:
    """What is told of as posted twice without need is what makes the demo fail."""
    record = {
        "name": "ghcr.io/acme/app",
        "digest": DIGEST,
        "status": "deployed",
        "logical_environment": "test",
    }

    async with SimulatedGitHub() as github, aiohttp.ClientSession() as session:

        async def post(name: str) -> None:
            headers = {
                "Authorization": f"Bearer {github.token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
            }
            url = f"{github.url}/orgs/acme/artifacts/metadata/deployment-record"
            body = {**record, "deployment_name": name}
            async with session.post(url, json=body, headers=headers):
                pass

        await post("fine")
        github.script(drops(applied=True), times=1)
        with pytest.raises(aiohttp.ClientError):
            await post("lost")
        await post("lost")
        github.script(answers(429), times=1)
        await post("refused")
        await post("refused")
        assert repeated(github.posts()) == (["lost"], [])
        await post("fine")
        assert repeated(github.posts()) == (["lost"], ["fine"])
