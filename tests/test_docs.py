"""The documents agree with the code they tell of."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.faults import ROW, marked, with_tests
from tests.support.generated import (
    COMMAND,
    CONFIGURATION,
    FAULTS,
    METRICS_PAGE,
    ROOT,
    configuration,
    faults_page,
    metrics_page,
)
from tests.support.hygiene import findings
from tracker import __version__
from tracker.flags import FLAG_ONLY
from tracker.settings import Settings


def test_the_settings_page_is_in_step() -> None:
    assert CONFIGURATION.read_text(encoding="utf-8") == configuration(), f"run: {COMMAND}"


def test_the_metrics_page_is_in_step() -> None:
    assert METRICS_PAGE.read_text(encoding="utf-8") == metrics_page(), f"run: {COMMAND}"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_settings_page_names_every_setting_with_its_description(name: str) -> None:
    field = Settings.model_fields[name]
    title = f"-{name}" if name in FLAG_ONLY else name.upper()
    assert f"## {title}\n\n{field.description}\n" in configuration()


def test_the_changelog_has_an_unreleased_section_on_top() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert sections[0] == "[Unreleased]"


def test_the_version_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{__version__}"\n' in project
    base = (ROOT / "manifests" / "base" / "kustomization.yaml").read_text(encoding="utf-8")
    assert f"newTag: {__version__}\n" in base
    for path in (ROOT / "manifests").rglob("kustomization.yaml"):
        told = re.findall(r"app.kubernetes.io/version: (.*)", path.read_text(encoding="utf-8"))
        assert set(told) <= {__version__}, path


def test_every_file_is_sound() -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    found = [line for path in paths if path.is_file() for line in findings(path)]
    assert not found


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.py", b"x = 1\n", ""),
        ("empty.py", b"", ""),
        ("a.yaml", b"a: 1\n---\nb: 2\n", ""),
        ("a.yaml", b"a: [1\n", "a.yaml: while parsing"),
        ("a.toml", b"a = \n", "a.toml: Invalid value"),
        ("a.txt", b"a", "does not end in"),
        ("a.txt", b"a\n\n", "does not end in"),
        ("a.txt", b"a\r\n", "carriage returns"),
        ("a.txt", b"<<<<<<< HEAD\n", "merge conflict"),
        ("a.bin", b"\0" * (512 * 1024 + 1), "larger than"),
        ("a.pem", b"-----BEGIN RSA " + b"PRIVATE KEY-----\nMIIEowIBAAKCAQEA0\n", "private key"),
    ],
)
def test_an_unsound_file_is_found(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = list(findings(tmp_path / name))
    assert len(found) == (1 if expected else 0)
    assert expected in "".join(found)


def test_every_fault_has_a_test_that_is_marked_with_its_id() -> None:
    assert FAULTS.read_text(encoding="utf-8") == faults_page(), f"run: {COMMAND}"
    rows = [match["id"] for match in ROW.finditer(FAULTS.read_text(encoding="utf-8"))]
    assert len(rows) == len(set(rows))
    tests = marked(ROOT / "tests")
    assert not set(rows) - tests.keys(), "a fault without a test"
    assert not tests.keys() - set(rows), "a test of a fault that is in no row"


def test_a_fault_without_a_test_is_told_in_its_row() -> None:
    page = "| X1 | it burns | put out | `old` |\n| X2 | it rains | dried | |\n"
    found = with_tests(page, {"X1": ["test_fire.py::test_x", "test_fire.py"]})
    told = "`test_fire.py::test_x`, `test_fire.py`"
    assert found == (
        f"| X1 | it burns | put out | {told} |\n| X2 | it rains | dried | (no test) |\n"
    )


def test_every_picture_is_shown_and_every_one_that_is_shown_exists() -> None:
    shown = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for place in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            shown.add((page.parent / place).resolve())
    folders = (ROOT / "docs" / "pictures", ROOT / "docs" / "performance")
    assert shown == {picture for folder in folders for picture in folder.iterdir()}


@pytest.mark.parametrize(
    "picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda path: path.stem
)
def test_a_drawn_picture_is_small_and_asks_nobody_for_anything(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")
    assert len(text) < 150 * 1024
    assert not re.findall(r"url\((?!#)|href=|<script", text)


@pytest.mark.parametrize("document", ["faults.md", "guarantees.md"])
def test_every_test_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    named = re.findall(r"`(?:tests/)?((?:e2e/)?test_\w+\.py)(?:::(\w+))?`", text)
    assert named
    for path, name in named:
        source = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert re.search(rf"\b{name}\b", source) if name else source, f"{path}::{name}"
