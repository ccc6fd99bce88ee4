"""
Every `kubectl …` of the documents is taken by a real API server, with the tracker installed.

It is installed as the README says, by what stands there. What would take it away, or change what
others need, is asked for as a dry run at the server, but for the taking back of all records, which
is played to its end: the Job that it makes is run by the kubelet of the tests.

`kubectl logs` and `kubectl exec` reach the API server and the pod's node, and there nobody: nodes
of this cluster have no address. So they fail, with just these words, behind all that is checked.
"""

import asyncio
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.documented import Way, documented, way_of
from tests.support.documents import ROOT, Command
from tests.support.installation import installed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NOBODY = "no preferred addresses found"
INSTALL = "kubectl apply -k my-cluster"
RETIRE = ("--replicas=0", "deployment-tracker-retire")
"""What the commands have in them that take all records back; they come last, in their order."""
DRY = re.compile(r"kubectl (?:(?:-n|-A) \S+ )?(?:apply|delete) ")
WITHIN = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the commands are typed."""

    folder: Path
    kubeconfig: Path

    async def type(self, text: str) -> tuple[int, str]:
        """Return the exit code of a command and what it printed on both streams."""
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", text),
            cwd=self.folder,
            env={
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "HOME": str(self.folder),
                "KUBECONFIG": str(self.kubeconfig),
                "PYTHONPATH": str(ROOT),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(WITHIN):
            printed, _ = await process.communicate()
        return process.returncode or 0, printed.decode()


def placed(folder: Path, kubeconfig: Path) -> Place:
    """Put into a folder what the README says stands there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (kustomization,) = re.findall(r"^```yaml\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    (folder / "manifests").symlink_to(ROOT / "manifests")
    (folder / "my-cluster").mkdir()
    (folder / "my-cluster" / "kustomization.yaml").write_text(kustomization)
    (folder / "FILE").write_text("a-token")
    script = folder / "deployment-tracker"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tracker "$@"\n')
    script.chmod(0o755)
    return Place(folder=folder, kubeconfig=kubeconfig)


def in_order() -> list[Command]:
    """Return the commands, those that install it first, those that take records back last."""
    all_of_them = [each for each in documented() if way_of(each)[0] in {Way.CLUSTER, Way.KUBELET}]
    last = [each for each in all_of_them if any(part in each.text for part in RETIRE)]
    (first,) = (each for each in all_of_them if each.text == INSTALL)
    between = [each for each in all_of_them if each not in {first, *last}]
    # A Secret that is there can't be created; the other way to write it takes it as it is.
    between.sort(key=lambda each: " create secret " not in each.text)
    return [first, *between, *last]


def wrong(command: Command, code: int, printed: str) -> str | None:
    """Return what is wrong with how a command ended, or None."""
    alone = way_of(command)[0] is Way.KUBELET
    if (code != 0, NOBODY in printed) == (alone, alone):
        return None
    return f"{command}: exit code {code}\n{printed}"


async def test_the_commands_for_a_cluster_are_taken(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    missing = [program for program in ("bash", "jq", "kubectl") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not on PATH: {missing}")
    place = placed(tmp_path, control_plane.kubeconfig())
    async with installed(control_plane, rights=[]) as installation:
        await installation.create_node("node-1")
        try:
            found = []
            for command in in_order():
                dry = command.text != INSTALL and DRY.match(command.text)
                text = f"{command.text} --dry-run=server" if dry else command.text
                found.append(wrong(command, *await place.type(text)))
            assert not [each for each in found if each is not None]
        finally:
            await place.type("kubectl delete -k my-cluster --timeout=50s")
