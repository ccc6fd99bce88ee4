"""What an administrator of the real control plane does by hand: kubectl."""

import shutil
import subprocess

import pytest

from tests.support.controlplane import ControlPlane

__all__ = ["kubectl"]

KUBECTL_SECONDS = 60


def kubectl(plane: ControlPlane, *arguments: str, text: str = "") -> tuple[int, str]:
    """
    Return kubectl's exit code and what it printed on both streams; `text` is its input.

    Skips the test where there is no kubectl.
    """
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not on PATH")
    done = subprocess.run(
        [program, "--kubeconfig", str(plane.kubeconfig()), *arguments],
        input=text,
        text=True,
        capture_output=True,
        check=False,
        timeout=KUBECTL_SECONDS,
    )
    return done.returncode, done.stdout + done.stderr
