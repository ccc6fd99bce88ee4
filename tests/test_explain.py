"""`explain NAMESPACE/POD`: each step from a pod to its records, and where it comes from."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import entry_of, ledger_of, record_of, run, terminal
from tests.support.simulated import DIGEST, OTHER_DIGEST, World, made, pod
from tests.test_plan import bare, listed, seen, without_digest
from tracker.commands import explain as explain_module
from tracker.commands.explain import explain
from tracker.commands.output import Format
from tracker.entries import State
from tracker.settings import load

Json = dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with made(tmp_path) as world:
        yield world


async def told(name: str, *pods: Json, **environ: str) -> Json:
    """Return what is explained of a pod of a file, as JSON."""
    ended = await run(
        "explain", f"shop/{name}", "-f", "-", "-o", "json", environ=environ, stdin=listed(*pods)
    )
    assert ended.code == 0, ended.stderr
    found: Json = ended.json
    return found


async def test_a_name_of_the_node_that_is_left_out_is_told_from_the_image_s_own() -> None:
    moved = seen("web")
    image = f"registry.local/stage@{DIGEST}"
    moved["status"]["containerStatuses"][0].update(image=image.partition("@")[0], imageID=image)
    environ = {"IMAGES": "ghcr.io/acme/*"}
    arguments = ("explain", "shop/web-abc-0", "-f", "-")
    ended = await run(*arguments, environ=environ, stdin=listed(moved))
    assert "the name by which its node knows it" in " ".join(ended.stdout.split())
    ended = await run(*arguments, environ={"IMAGES": "quay.io/*"}, stdin=listed(moved))
    assert "IMAGES leaves it out" in " ".join(ended.stdout.split())


async def test_each_step_says_where_it_comes_from() -> None:
    found = await told(
        "web-abc-0", seen("web", annotations={"metadata.github.com/team": "shop"}), seen("api")
    )
    assert found["owners"] == [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc"}]
    assert found["workload"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "namespace": "shop",
        "name": "web",
    }
    assert found["annotations"] == [{"word": "team", "value": "shop", "from": "pod"}]
    assert found["containers"] == [
        {
            "container": "app",
            "spec_image": "ghcr.io/acme/app:1",
            "image_id": f"ghcr.io/acme/app@{DIGEST}",
            "digest": DIGEST,
            "digest_from": "status.imageID",
            "name": "ghcr.io/acme/app",
            "name_from": "spec.image",
            "version": "1",
            "repository": None,
            "skipped": None,
            "deployment_name": "shop/web/app",
            "stands": "deployed",
            "told_by": "web-abc-0",
            "ledger": None,
            "action": "deploy",
            "reason": "",
        }
    ]


def moved(workload: str) -> Json:
    """Return a pod whose spec names another tag than the one that runs."""
    raw = seen(workload)
    raw["spec"]["containers"][0]["image"] = "ghcr.io/acme/app:2"
    return raw


def by_digest(workload: str) -> Json:
    """Return a pod whose runtime tells no digest, and whose spec does."""
    raw = without_digest(workload)
    raw["spec"]["containers"][0]["image"] = f"ghcr.io/acme/app@{DIGEST}"
    raw["status"]["containerStatuses"][0]["image"] = ""
    return raw


def starting(workload: str) -> Json:
    raw = seen(workload)
    raw["status"] = {"phase": "Pending"}
    return raw


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(
            moved("web"),
            {"name_from": "status.imageID", "version": None, "stands": "deployed"},
            id="another tag in the spec",
        ),
        pytest.param(
            by_digest("web"),
            {"digest": DIGEST, "digest_from": "spec.image", "version": None},
            id="a digest in the spec",
        ),
        pytest.param(
            without_digest("web"),
            {"skipped": "no-manifest-digest", "digest": None, "stands": "held", "action": "skip"},
            id="no digest",
        ),
        pytest.param(
            starting("web"),
            {"image_id": "", "stands": "held", "told_by": None, "action": "skip"},
            id="not started",
        ),
    ],
)
async def test_a_container_s_image_is_traced(raw: Json, expected: Json) -> None:
    (found,) = (await told("web-abc-0", raw))["containers"]
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("raw", "environ", "reason"),
    [
        pytest.param(bare("web"), {}, "bare-pod", id="bare"),
        pytest.param(
            seen("web", annotations={"metadata.github.com/ignore": "true"}),
            {},
            "ignored",
            id="ignored",
        ),
        pytest.param(
            seen("web"), {"EXCLUDE_NAMESPACES": "sho?"}, "excluded-namespace", id="namespace"
        ),
        # Once, it was told as deployed.
        pytest.param(seen("web"), {"NAMESPACE": "billing"}, "not-watched", id="not watched"),
    ],
)
async def test_why_a_pod_is_skipped_is_told(
    raw: Json, environ: dict[str, str], reason: str
) -> None:
    found = await told("web-abc-0", raw, **environ)
    assert found["skipped"] == reason
    assert found["containers"] == []


@pytest.mark.parametrize("template", ["{{namespace}}/{{deploymentName}}", "{{deploymentName}}"])
async def test_a_pod_outside_of_the_namespace_that_is_watched_is_told_to_be(
    world: World, template: str
) -> None:
    world.cluster.create(pod("web"))
    environ = {"NAMESPACE": "billing", "DN_TEMPLATE": template}
    ended = await run("explain", "shop/web-abc-0", world=world, environ=environ)
    assert ended.code == 0, ended.stderr
    assert "not-watched  NAMESPACE is billing" in ended.stdout
    assert "deployed" not in ended.stdout
    ended = await run("explain", "shop/web-abc-0", "-namespace", "billing", world=world)
    assert "not-watched  NAMESPACE is billing" in ended.stdout


async def test_a_name_that_the_template_makes_too_long_is_told() -> None:
    (found,) = (await told("web-abc-0", seen("web"), DN_TEMPLATE="{{namespace}}" * 65))[
        "containers"
    ]
    assert found["deployment_name"] is None


async def test_another_pod_may_speak_for_the_name() -> None:
    newer = seen("web", digest=OTHER_DIGEST, number=1)
    newer["metadata"] |= {"uid": "another", "creationTimestamp": "2024-01-16T10:30:00Z"}
    (found,) = (await told("web-abc-0", seen("web"), newer))["containers"]
    assert found["told_by"] == "web-abc-1"
    assert found["digest"] == DIGEST, "what this pod runs"


async def test_what_the_ledger_and_the_workload_say_stands_there(world: World) -> None:
    path = world.folder / "ledger.db"
    world.cluster.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": "web",
                "namespace": "shop",
                "annotations": {
                    "metadata.github.com/team": "platform",
                    "metadata.github.com/github-repository": "shop",
                    "metadata.github.com/runtime-risks": "internet-exposed,bogus",
                },
            },
            "spec": {},
        }
    )
    world.cluster.create(pod("web", annotations={"metadata.github.com/team": "shop"}))
    entry = entry_of(
        "web",
        sent=record_of("web"),
        state=State.PARKED,
        reason="403: Forbidden",
        attempts=3,
        not_before=asyncio.get_running_loop().time() + 3000,
    )
    environ = {"LEDGER_PATH": str(path), "WORKLOADS": "true"}
    async with ledger_of(world.environ(), path, [entry]):
        ended = await run("explain", "shop/web-abc-0", "-o", "json", world=world, environ=environ)
        text = await run("explain", "shop/web-abc-0", world=world, environ=environ)
    assert ended.code == 0, ended.stderr
    assert {each["word"]: (each["value"], each["from"]) for each in ended.json["annotations"]} == {
        "team": ("shop", "pod"),
        "github-repository": ("shop", "Deployment web"),
        "runtime-risks": ("internet-exposed", "Deployment web"),
    }
    assert ended.json["problems"] == ["unknown-risk"]
    (found,) = ended.json["containers"]
    assert found["ledger"]["state"] == "parked"
    assert found["ledger"]["attempts"] == 3
    assert found["ledger"]["next_attempt"]
    assert "parked" in text.stdout
    assert "403: Forbidden" in text.stdout
    assert "of Deployment web" in text.stdout


@pytest.mark.parametrize(
    ("pod_name", "code", "match"),
    [
        pytest.param("web", 2, "write NAMESPACE/POD", id="no namespace"),
        pytest.param("a/b/c", 2, "write NAMESPACE/POD", id="too much"),
        pytest.param("\x1b[31m", 2, "write NAMESPACE/POD", id="hostile"),
        pytest.param("shop/web-abc-9", 1, "no pod shop/web-abc-9; there are web-abc-0", id="alike"),
        pytest.param("else/web-abc-0", 1, "no pod else/web-abc-0", id="elsewhere"),
    ],
)
async def test_a_pod_that_is_not_there_is_told_in_a_line(
    pod_name: str, code: int, match: str
) -> None:
    ended = await run("explain", pod_name, "-f", "-", stdin=listed(seen("web")))
    assert ended.code == code
    assert match in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.rstrip("\n").isprintable()


# How it looks


def shown(monkeypatch: pytest.MonkeyPatch, path: Path, name: str) -> str:
    console = terminal(80)
    monkeypatch.setattr(explain_module, "make_console", lambda: console)
    settings = load({}, {}, needs_org=False)
    assert explain(settings, pod=name, file=str(path), output=Format.TABLE) == 0
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_80_columns_show_it_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    path.write_text(json.dumps(seen("web", annotations={"metadata.github.com/team": "shop"})))
    assert shown(monkeypatch, path, "shop/web-abc-0") == (
        """\
Pod         shop/web-abc-0  Running, created 2024-01-15T10:30:00Z
Owner       ReplicaSet web-abc  apps/v1
Workload    Deployment web  by the pod's template hash
Annotation  team = shop  of the pod

Container      app
  spec         ghcr.io/acme/app:1
  imageID      ghcr.io/acme/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
               aaaaaaaaaaaaaaaaaaaaaaa
  digest       @aaaaaaaaaaaa  from the status's imageID
  name         ghcr.io/acme/app  from the spec's image
  version      1
  recorded as  shop/web/app  by DN_TEMPLATE
               {{namespace}}/{{deploymentName}}/{{containerName}}
  stands       deployed, @aaaaaaaaaaaa  this pod says so, the newest that runs
  now          deploy"""
    )


@pytest.mark.parametrize(
    "where",
    ["ownerReferences", "annotations", "containers", "statuses", "spec", "status", "nonsense"],
)
def test_no_pod_breaks_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str) -> None:
    hostile = "\x1b[31m[bold]\u202e\nnext line " + "w" * 1500
    raw = seen("web")
    match where:
        case "ownerReferences":
            raw["metadata"][where][0] |= {"name": hostile, "kind": hostile}
        case "annotations":
            raw["metadata"][where] = {f"metadata.github.com/{hostile}": hostile}
        case "containers":
            raw["spec"][where][0] |= {"name": hostile, "image": hostile}
        case "statuses":
            raw["status"]["containerStatuses"][0] |= {"image": hostile, "imageID": hostile}
        case "spec" | "status":
            raw[where] = 7
        case _:
            raw["metadata"] |= {"annotations": [1], "labels": 7, "ownerReferences": {"a": 1}}
            raw["spec"]["containers"] = [7, {"image": 7}, {"name": 7}, {"name": "x", "image": [7]}]
            raw["status"] = {"containerStatuses": [7, {"name": [7]}], "phase": {}}
    path = tmp_path / "pods.json"
    path.write_text(json.dumps(raw))
    for line in shown(monkeypatch, path, "shop/web-abc-0").splitlines():
        assert line.isprintable()
        assert len(line) <= 80
