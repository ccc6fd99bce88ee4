"""
The Dockerfile, followed without a container engine.

`built` plays the build in a folder: it copies what the Dockerfile copies, of what `.dockerignore`
lets through, runs what it runs, and returns what the image would say about how to start. Paths of
the image become paths below that folder. What is not played is the base image: Python is this
machine's, of another version maybe, and the system's files are all there.
"""

import fnmatch
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.generated import ROOT

__all__ = ["Image", "arguments", "built", "python_for", "sent_to_the_builder"]

DOCKERFILE: Final = ROOT / "Dockerfile"

BUILD_SECONDS: Final = 300.0
"""A build downloads some twenty packages, unless pip has them in its cache."""


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continuation lines joined."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def arguments(instruction: str) -> list[str]:
    """Return the arguments of every instruction of a kind, in order."""
    return [argument for name, argument in instructions() if name == instruction]


def sent_to_the_builder() -> Iterator[Path]:
    """Yield the project's files that `.dockerignore` lets through, relative to its root."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] not in {".git", ".venv"} and path.is_file():
            ignored = False
            for rule in rules:
                if _matches(relative, rule.removeprefix("!")):
                    ignored = not rule.startswith("!")
            if not ignored:
                yield relative


def _matches(path: Path, rule: str) -> bool:
    """Return whether a rule takes the file or a folder it is in; the last rule that does counts."""
    places = [path, *path.parents][:-1]
    if rule.startswith("**/"):
        return any(fnmatch.fnmatchcase(place.name, rule[3:]) for place in places)
    return any(fnmatch.fnmatchcase(str(place), rule) for place in places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """How a container of the image starts; `rootfs` is where its root is on this machine."""

    rootfs: Path
    entrypoint: tuple[str, ...]
    environ: Mapping[str, str]
    workdir: Path
    uid: int
    gid: int


@dataclass(kw_only=True)
class _Stage:
    rootfs: Path
    python: Path
    workdir: str = "/"
    environ: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"

    def here(self, path: str) -> Path:
        """Return where a path of the image is on this machine."""
        return self.rootfs / Path("/", self.workdir, path).relative_to("/")

    def run(self, command: list[str]) -> None:
        """Run a command as in the stage; its paths are the image's."""
        mapped = [str(self.here(word)) if word.startswith("/opt/") else word for word in command]
        if mapped[0] == "python":
            mapped[0] = str(self.python)
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        subprocess.run(
            mapped,
            cwd=self.here("."),
            # The cache is this machine's: the hashes of the lock are checked all the same.
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **pip},
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )


def built(folder: Path, python: Path) -> Image:
    """
    Build the image in a folder, with the Python that its base would have brought.

    Raises subprocess.CalledProcessError when a command of the build fails, and FileNotFoundError
    when something is copied that the builder is not sent.
    """
    sent = set(sent_to_the_builder())
    stages: dict[str, _Stage] = {}
    stage = _Stage(rootfs=folder, python=python)
    entrypoint: list[str] = []
    for instruction, text in instructions():
        match instruction:
            case "FROM":
                name = text.partition(" AS ")[2] or "final"
                stage = _Stage(rootfs=folder / name, python=python)
                stage.rootfs.mkdir()
                stages[name] = stage
            case "WORKDIR":
                stage.workdir = text
                stage.here(".").mkdir(parents=True, exist_ok=True)
            case "ENV":
                stage.environ |= dict(word.split("=", 1) for word in shlex.split(text))
            case "USER":
                stage.user = text
            case "COPY":
                _copy(stage, shlex.split(text), sent, stages)
            case "RUN":
                stage.run(json.loads(text))
            case "ENTRYPOINT":
                entrypoint = json.loads(text)
            case "LABEL" | "EXPOSE":
                pass
            case _:
                raise NotImplementedError(f"{instruction} is not played here")
    environ = {
        name: value.replace("/opt/", f"{stage.rootfs}/opt/").replace("$PATH", os.defpath)
        for name, value in stage.environ.items()
    }
    uid, gid = map(int, stage.user.split(":"))
    return Image(
        rootfs=stage.rootfs,
        entrypoint=tuple(entrypoint),
        environ=environ,
        workdir=stage.here("."),
        uid=uid,
        gid=gid,
    )


def _copy(stage: _Stage, words: list[str], sent: set[Path], stages: Mapping[str, _Stage]) -> None:
    """Copy files and folders as a builder does: a folder's content, with times and modes."""
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).removeprefix("--from=")]
        source, target = words
        shutil.copytree(origin.here(source), stage.here(target), symlinks=True)
        return
    *sources, target = words
    for source in sources:
        files = [path for path in sent if path == Path(source) or Path(source) in path.parents]
        if not files:
            raise FileNotFoundError(f"{source} is not sent to the builder")
        for path in files:
            below = path.relative_to(source) if path != Path(source) else Path()
            into = stage.here(target)
            if target.endswith("/"):
                into /= Path(source).name
            (into / below).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, into / below)


def python_for(uid: int) -> Path | None:
    """Return a Python of this machine that a user may run and that can build, if there is one."""
    check = "import sys, venv, sqlite3; sys.exit(sys.version_info < (3, 11))"
    names = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")
    folders = [Path(os.path.realpath(shutil.which(name) or name)).parent for name in names]
    for folder in (*folders, Path("/usr/local/bin"), Path("/usr/bin")):
        for name in names:
            try:
                done = subprocess.run(
                    [folder / name, "-c", check],
                    user=uid,
                    group=uid,
                    extra_groups=[],
                    cwd="/",
                    env={},
                    capture_output=True,
                    check=False,
                )
            except OSError:  # not there, or not for that user
                continue
            if done.returncode == 0:
                return folder / name
    return None
