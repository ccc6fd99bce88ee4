"""`doctor` on a real API server, with the rights that the manifests grant and with fewer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.installation import (
    Installation,
    installed,
    rights_in,
    rights_of_base,
    rights_with_workloads,
)
from tests.support.program import Program, tracker_run

pytestmark = pytest.mark.e2e

Json = dict[str, Any]
SHOP = "doctor-shop"


async def examined(
    installation: Installation, folder: Path, *arguments: str, **environ: str
) -> tuple[int, dict[str, Json]]:
    """Return the exit code and what each check found."""
    kubeconfig = str(installation.kubeconfig)
    command = tracker_run("doctor", "--output", "json", "-kubeconfig", kubeconfig, *arguments)
    async with Program(command, environ=installation.environ(**environ), folder=folder) as program:
        code = await program.ended()
        assert program.stderr == []
        told = json.loads("\n".join(program.stdout))
        assert installation.token not in "\n".join(program.stdout)
    return code, {check["check"]: check for check in told["checks"]}


@pytest.mark.parametrize(
    ("rights", "arguments", "environ", "results"),
    [
        pytest.param(rights_of_base(), (), {}, ("ok", "skipped", "ok"), id="base"),
        pytest.param(
            rights_with_workloads(), (), {"WORKLOADS": "true"}, ("ok", "ok", "ok"), id="workloads"
        ),
        pytest.param(
            rights_of_base(),
            (),
            {"WORKLOADS": "true"},
            ("ok", "fail", "ok"),
            id="workloads-not-granted",
        ),
        pytest.param(
            rights_in(SHOP), ("-namespace", SHOP), {}, ("ok", "skipped", "ok"), id="namespaced"
        ),
        pytest.param(rights_in(SHOP), (), {}, ("fail", "skipped", "skipped"), id="role-for-all"),
        pytest.param([], (), {}, ("fail", "skipped", "skipped"), id="nothing"),
    ],
)
async def test_rights_are_told_as_they_are(
    control_plane: ControlPlane,
    tmp_path: Path,
    rights: list[Json],
    arguments: tuple[str, ...],
    environ: Mapping[str, str],
    results: tuple[str, str, str],
) -> None:
    namespace = SHOP if rights == rights_in(SHOP) else "deployment-tracker"
    async with installed(control_plane, rights=rights, namespace=namespace) as installation:
        code, checks = await examined(installation, tmp_path, *arguments, **environ)
        asked = installation.requests()
    assert tuple(checks[name]["result"] for name in ("rbac", "workloads", "pods")) == results
    assert code == (1 if "fail" in results else 0)
    assert control_plane.url in checks["api server"]["says"]
    # It tells of what is missing beforehand: nothing that it does is refused.
    assert {each.decision for each in asked} == {"allow"}
    assert {each.verb for each in asked} <= {"get", "list", "create"}
    created = {each.resource for each in asked if each.verb == "create"}
    assert created == {"selfsubjectaccessreviews"}


async def test_the_verbs_that_are_missing_are_named(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    role, binding = rights_of_base()
    (rule,) = role["rules"]
    rule["verbs"].remove("watch")
    async with installed(control_plane, rights=[role, binding]) as installation:
        code, checks = await examined(installation, tmp_path)
    assert code == 1
    assert checks["rbac"]["says"] == (
        "the account may not watch pods in all namespaces; it may get, list pods"
    )
    assert checks["rbac"]["see"] == "docs/troubleshooting.md#rbac"


async def test_a_token_that_the_api_server_does_not_know_is_told(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with installed(control_plane, rights=rights_of_base()) as installation:
        installation.kubeconfig = control_plane.kubeconfig("not-a-token", user="nobody")
        code, checks = await examined(installation, tmp_path)
    assert code == 1
    assert checks["api server"]["trouble"] == "api-server-401"
