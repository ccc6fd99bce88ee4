"""
Starts and stops on a real API server: in mid-rollout, in one namespace only, under `kopf run`.

Each test has a GitHub and a tracker of its own, and the rights that this way of running needs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.installation import (
    Installation,
    Scene,
    installed,
    rights_in,
    rights_of_base,
)
from tests.support.kubelet import digest_of
from tests.support.program import Program, kopf_run, tracker_run
from tracker.sandbox.script import hangs
from tracker.sandbox.truth import Scope

pytestmark = pytest.mark.e2e

LEFT_BY_OTHERS = ("conformance-*", "workloads-*")

IN_STEP = "in step with the cluster"


@asynccontextmanager
async def running(
    installation: Installation, folder: Path, *arguments: str, **environ: str
) -> AsyncIterator[Program]:
    """Run the tracker with the installation's account until it is in step."""
    command = tracker_run("-kubeconfig", str(installation.kubeconfig), *arguments)
    async with Program(command, environ=installation.environ(**environ), folder=folder) as program:
        await program.until_said(IN_STEP)
        yield program
