"""
The image does its job as its user, on a root that it can't write to.

There is no container engine in the tests: the Dockerfile is followed by `tests.support.imagebuild`,
with this machine's Python, and what comes of it runs as the image's user. A build in CI does the
same with a real one (`.github/workflows/ci.yml`).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.generated import ROOT
from tests.support.imagebuild import Image, arguments, built, python_for, sent_to_the_builder
from tests.support.program import Program
from tests.support.simulated import TOKEN, assert_secret, made, pod
from tracker import __version__


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Yield a folder that every user may enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="image-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def image(folder: Path) -> Image:
    """Build it once."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a program as another user")
    uid = int(arguments("USER")[0].partition(":")[0])
    python = python_for(uid)
    if python is None:
        pytest.skip(f"no Python of this machine may be run by user {uid}")
    try:
        return built(folder, python)
    except subprocess.CalledProcessError as error:
        if "ConnectionError" in error.stderr or "NewConnectionError" in error.stderr:
            pytest.skip("no package index can be reached")
        pytest.fail(f"{error}\n{error.stdout}\n{error.stderr}")


def run(image: Image, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the image as its user."""
    return subprocess.run(
        [image.rootfs / "opt/tracker/bin/python", *words],
        user=image.uid,
        group=image.gid,
        extra_groups=[],
        cwd=image.workdir,
        env=dict(image.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def written(image: Image) -> list[Path]:
    """Return what in the image belongs to its user: nothing should."""
    places = [image.rootfs, *image.rootfs.rglob("*")]
    return [place for place in places if place.lstat().st_uid == image.uid]


@pytest.mark.timeout(400)
def test_it_starts_as_its_user_from_the_locked_dependencies(image: Image) -> None:
    words = image.entrypoint
    assert words[0] == "python"
    done = run(image, *words[1:], "version")
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout
    done = run(image, "-c", "import sys, tracker; print(sys.prefix); print(tracker.__file__)")
    assert done.stdout.splitlines() == [
        str(image.rootfs / "opt/tracker"),
        str(image.rootfs / "opt/tracker/app/tracker/__init__.py"),
    ]


@pytest.mark.timeout(400)
def test_it_holds_what_was_locked_and_nothing_that_builds(image: Image) -> None:
    listed = "import importlib.metadata as m; print(*{d.name.lower() for d in m.distributions()})"
    done = run(image, "-c", listed)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {line.partition("==")[0] for line in lock if "==" in line[:80] and line[0].isalpha()}
    held = {name.replace("_", "-") for name in done.stdout.split()}
    assert held
    assert held <= locked  # some are for other systems or Pythons
    assert not held & {"pip", "setuptools", "hatchling", "pytest"}


def test_the_builder_is_sent_the_program_and_nothing_beside_it() -> None:
    sent = {str(path) for path in sent_to_the_builder()}
    assert {"LICENSE", "requirements.lock", "tracker/__main__.py", "tracker/py.typed"} <= sent
    assert all(path.startswith("tracker/") for path in sent - {"LICENSE", "requirements.lock"})
    assert not any("__pycache__" in path for path in sent)


@pytest.mark.timeout(400)
async def test_it_records_as_its_user_with_nothing_but_its_volume_to_write_to(
    image: Image, folder: Path
) -> None:
    data = folder / "data"
    data.mkdir()
    os.chown(data, image.uid, image.gid)
    secret = folder / "token"
    secret.write_text(TOKEN)
    secret.chmod(0o440)  # as the manifests mount it: root's, for the pod's group to read
    os.chown(secret, 0, image.gid)
    async with made(folder) as world:
        kubeconfig = world.cluster.write_kubeconfig(folder / "kubeconfig")
        os.chown(kubeconfig, image.uid, image.gid)
        world.cluster.create(pod("web"))
        command = [str(image.rootfs / "opt/tracker/bin/python"), *image.entrypoint[1:]]
        program = Program(
            [*command, "-kubeconfig", str(kubeconfig)],
            environ={
                **image.environ,
                **world.environ(
                    API_TOKEN="",
                    API_TOKEN_FILE=str(secret),
                    LEDGER_PATH=str(data / "ledger" / "ledger.db"),
                ),
            },
            folder=image.workdir,
            identity=(image.uid, image.gid),
        )
        async with program:
            await world.told("web")
            assert await program.stopped() == 0
            assert_secret(program)
            assert "Traceback" not in program.said
    assert not written(image)
    assert (data / "ledger" / "ledger.db").stat().st_uid == image.uid
