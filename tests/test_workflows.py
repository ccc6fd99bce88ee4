"""The workflows run what the project promises, with few rights and known actions."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.generated import ROOT
from tests.support.imagebuild import arguments

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))

Json = dict[str, Any]


def workflow(path: Path) -> Json:
    """Return a workflow."""
    # YAML 1.1 takes the key `on` for a truth value.
    loaded: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def steps(path: Path) -> list[Json]:
    """Return the steps of all its jobs."""
    return [step for job in workflow(path)["jobs"].values() for step in job.get("steps", [])]


def named(path: Path) -> str:
    """Return a test's name for a file."""
    return path.name


every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=named)


@every_workflow
def test_every_action_is_pinned_by_a_commit_that_is_told_by_its_release(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    used = [line.partition("uses:")[2].strip() for line in lines if "uses:" in line]
    assert used
    for action in used:
        assert action.startswith("./") or re.fullmatch(
            r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v[0-9]+\.[0-9]+\.[0-9]+", action
        )


def test_one_action_has_one_version_everywhere() -> None:
    used = {step["uses"] for path in WORKFLOWS for step in steps(path) if "uses" in step}
    names = [action.partition("@")[0] for action in used]
    assert len(set(names)) == len(names)


@every_workflow
def test_rights_are_given_job_by_job(path: Path) -> None:
    whole = workflow(path)
    assert set(whole["permissions"].values()) <= {"read"}
    for job in whole["jobs"].values():
        if "write" in job.get("permissions", {}).values():
            assert path.name == "release.yml"


@every_workflow
def test_no_token_is_left_for_later_steps_and_no_text_of_others_gets_into_a_shell(
    path: Path,
) -> None:
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", "")


@every_workflow
def test_every_job_ends(path: Path) -> None:
    for job in workflow(path)["jobs"].values():
        assert "uses" in job or job["timeout-minutes"] <= 60


def test_ci_checks_all_of_it_with_a_control_plane_and_the_python_of_the_image() -> None:
    check = workflow(FOLDER / "ci.yml")["jobs"]["check"]["steps"]
    assert check[-1] == {"run": "make check"}
    assert any("KUBEBUILDER_ASSETS" in step.get("run", "") for step in check)
    (python,) = (step["with"]["python-version"] for step in check if "python" in str(step))
    assert all(f"python:{python}." in base for base in arguments("FROM"))


def test_a_release_is_checked_built_for_both_platforms_and_attested() -> None:
    jobs = workflow(FOLDER / "release.yml")["jobs"]
    assert jobs["check"]["uses"] == "./.github/workflows/ci.yml"
    assert (jobs["image"]["needs"], jobs["manifest"]["needs"]) == ("check", "image")
    (push,) = (step for step in jobs["image"]["steps"] if step.get("id") == "push")
    assert push["with"]["platforms"] == "linux/amd64,linux/arm64"
    assert push["with"]["sbom"] is True
    attested = {
        step["with"].get("subject-digest", step["with"].get("subject-path"))
        for job in jobs.values()
        for step in job.get("steps", [])
        if "attest" in step.get("uses", "")
    }
    assert attested == {
        "${{ steps.push.outputs.digest }}",
        "${{ steps.platforms.outputs.amd64 }}",
        "${{ steps.platforms.outputs.arm64 }}",
        "dist/install.yaml",
    }


def test_updates_wait_until_others_had_a_look_at_them() -> None:
    updates = workflow(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {each["package-ecosystem"] for each in updates} == {"github-actions", "docker"}
    assert all(each["cooldown"]["default-days"] >= 7 for each in updates)
