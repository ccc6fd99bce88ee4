"""`plan`: what would be posted, from a cluster or a file, with a ledger or without."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import kubectl
from tests.support.commands import entry_of, ledger_of, record_of, run, terminal
from tests.support.program import Program, tracker_run
from tests.support.simulated import DIGEST, OTHER_DIGEST, World, made, name_of, pod
from tracker.commands import plan as plan_module
from tracker.commands.output import Format
from tracker.commands.plan import Action, change, plan
from tracker.entries import State
from tracker.records import Status
from tracker.sandbox.outages import Match, Refuse
from tracker.settings import load

Json = dict[str, Any]
OF_CRONJOB = "2024-01-15T10:30:00Z"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with made(tmp_path) as world:
        yield world


def seen(workload: str, **fields: Any) -> Json:  # noqa: ANN401 - raw JSON
    """Return a pod as the API server would send it."""
    raw = pod(workload, **fields)
    raw["metadata"] |= {"uid": f"uid-of-{workload}", "creationTimestamp": "2024-01-15T10:30:00Z"}
    return raw


def pending(workload: str) -> Json:
    raw = seen(workload)
    raw["status"] = {"phase": "Pending"}
    return raw


def without_digest(workload: str) -> Json:
    raw = seen(workload)
    raw["status"]["containerStatuses"][0]["imageID"] = "sha256:" + "c" * 64
    return raw


def bare(workload: str) -> Json:
    raw = seen(workload)
    del raw["metadata"]["ownerReferences"]
    return raw


def finished(workload: str) -> Json:
    raw = seen(workload)
    raw["status"]["phase"] = "Failed"
    return raw


def listed(*pods: Json) -> str:
    stream = io.StringIO()
    kubectl.write_yaml(pods, stream)
    return stream.getvalue()


def actions(found: Json) -> dict[str, tuple[str, str]]:
    """Return action and reason of each row, by deployment name or pod."""
    return {
        row["deployment_name"] or row["pod"]: (row["action"], row["reason"])
        for row in found["rows"]
    }


PODS = (
    seen("web"),
    seen("new", annotations={"metadata.github.com/team": "shop"}),
    seen("changed", digest="sha256:" + "e" * 64),
    seen("refused"),
    seen("unattested", digest=OTHER_DIGEST),
    pending("waiting"),
    pending("starting"),
    without_digest("local"),
    bare("bare"),
    seen("hidden", annotations={"metadata.github.com/ignore": "true"}),
    finished("over"),
)


async def fill(environ: dict[str, str], path: Path) -> None:
    """Leave a ledger that knows some of it."""
    soon = asyncio.get_running_loop().time() + 600
    entries = [
        *(entry_of(name, acknowledged=record_of(name)) for name in ("web", "changed", "waiting")),
        entry_of("gone", acknowledged=record_of("gone")),
        entry_of("nightly", acknowledged=record_of("nightly"), kind="CronJob"),
        entry_of("before", acknowledged=record_of("before", status=Status.DECOMMISSIONED)),
        entry_of("never", sent=record_of("never"), state=State.PARKED, reason="422: no"),
        entry_of(
            "refused",
            sent=record_of("refused"),
            state=State.PARKED,
            reason="403: Forbidden",
            attempts=1,
            not_before=soon,
        ),
        entry_of(
            "elsewhere",
            sent=record_of("elsewhere", OTHER_DIGEST),
            state=State.NOT_FOUND,
            reason="404: no artifact",
            attempts=1,
            not_before=soon,
        ),
    ]
    async with ledger_of(environ, path, entries):
        pass


EXPECTED = {
    "shop/web/app": ("unchanged", ""),
    "shop/new/app": ("create", ""),
    "shop/changed/app": ("update", "digest was aaaaaaaaaaaa"),
    "shop/refused/app": ("wait", "403: Forbidden; again in 9m"),
    "shop/unattested/app": ("wait", "404: no artifact; again in 9m"),
    "shop/waiting/app": ("hold", "no pod says yet what runs (Pending)"),
    "shop/starting/app": ("skip", "no pod says yet what runs (Pending)"),
    "shop/local/app": ("skip", "no-manifest-digest"),
    "shop/bare-abc-0": ("skip", "bare-pod"),
    "shop/hidden-abc-0": ("skip", "ignored"),
    "shop/over/app": ("skip", "its pods have finished"),
    "shop/gone/app": ("decommission", "no pod holds it"),
    "shop/nightly/app": (
        "decommission",
        "no pod holds it; a CronJob's name stands 25h after its last pod",
    ),
    "shop/before/app": ("unchanged", "decommissioned"),
    "shop/never/app": ("forget", "no pod holds it, and GitHub never acknowledged it"),
    "shop/elsewhere/app": ("forget", "no pod holds it, and GitHub never acknowledged it"),
}


async def test_a_file_is_held_against_the_ledger(tmp_path: Path) -> None:
    environ = {"ORG": "acme", "LEDGER_PATH": str(tmp_path / "ledger.db")}
    await fill(environ, tmp_path / "ledger.db")
    ended = await run(
        "plan", "-f", "-", "-o", "json", "--all", environ=environ, stdin=listed(*PODS)
    )
    assert ended.code == 0, ended.stderr
    assert actions(ended.json) == EXPECTED
    assert ended.json["summary"] == {
        action.value: sum(found == action.value for found, _ in EXPECTED.values())
        for action in Action
    }
    assert ended.json["pods"] == len(PODS)
    created = next(row for row in ended.json["rows"] if row["action"] == "create")
    assert created == {
        "action": "create",
        "deployment_name": "shop/new/app",
        "pod": None,
        "name": "ghcr.io/acme/app",
        "version": "1",
        "digest": DIGEST,
        "status": "deployed",
        "reason": "",
    }


async def test_the_cluster_says_the_same_as_a_file(world: World) -> None:
    path = world.folder / "ledger.db"
    for each in PODS:
        world.cluster.create(each)
    await fill(world.environ(), path)
    ended = await run(
        "plan", "-o", "json", "--all", world=world, environ={"LEDGER_PATH": str(path)}
    )
    assert ended.code == 0, ended.stderr
    assert actions(ended.json) == EXPECTED
    assert not world.github.posts()


async def test_a_plan_is_what_the_tracker_then_posts(world: World) -> None:
    """The same decisions: what plan tells to be created is what stands a while later."""
    for each in (seen("web"), seen("api", digest=OTHER_DIGEST), without_digest("local")):
        world.cluster.create(each)
    ended = await run("plan", "-o", "json", world=world)
    planned = {
        (row["deployment_name"], row["digest"])
        for row in ended.json["rows"]
        if row["action"] == "deploy"
    }
    async with world.program() as program:
        await world.told("web")
        await world.told("api", OTHER_DIGEST)
        assert await program.stopped() == 0
    assert set(world.github.deployed().items()) == planned


async def test_without_ledger_or_org_all_that_runs_is_to_be_deployed() -> None:
    ended = await run("plan", "-f", "-", "-o", "json", stdin=listed(*PODS))
    assert ended.code == 0, ended.stderr
    assert ended.stderr == ""
    found = actions(ended.json)
    assert {name for name, (action, _) in found.items() if action == "deploy"} == {
        name_of(each) for each in ("web", "new", "changed", "refused", "unattested")
    }
    assert {action for action, _ in found.values()} == {"deploy", "skip"}
    assert ended.json["ledger"] is None


async def test_settings_that_plan_does_not_need_are_not_its_business() -> None:
    environ = {"API_TOKEN": "a b", "WORKERS": "many", "GH_APP_ID": "1"}
    ended = await run("plan", "-f", "-", environ=environ, stdin=listed(seen("web")))
    assert ended.code == 0, ended.stderr
    environ = {"ORG": "a b", "NAMESPACE": "A", "DN_TEMPLATE": "{{x}}"}
    ended = await run("plan", "-f", "-", environ=environ, stdin=listed(seen("web")))
    assert ended.code == 2
    assert ended.stderr.count("\n") == 3


async def test_the_operator_s_wishes_count() -> None:
    environ = {
        "IMAGES": "ghcr.io/acme/*,!ghcr.io/acme/app",
        "DN_TEMPLATE": "{{deploymentName}}" * 9,
    }
    pods = [seen("web"), seen("x" * 60)]
    ended = await run("plan", "-f", "-", "-o", "json", environ=environ, stdin=listed(*pods))
    found = actions(ended.json)
    assert found.pop("web" * 9) == ("skip", "excluded-image")
    assert found == {f"shop/{'x' * 60}-abc-0/app": ("skip", "deployment-name-too-long")}
    ended = await run(
        "plan", "-f", "-", "-exclude-namespaces", "sh*", "-o", "json", stdin=listed(*pods)
    )
    assert set(actions(ended.json).values()) == {("skip", "excluded-namespace")}


async def test_single_pods_tell_nothing_of_what_they_are_not(tmp_path: Path) -> None:
    environ = {"ORG": "acme", "LEDGER_PATH": str(tmp_path / "ledger.db")}
    entries = [entry_of(name, acknowledged=record_of(name)) for name in ("web", "gone")]
    async with ledger_of(environ, tmp_path / "ledger.db", entries):
        ended = await run(
            "plan", "-f", "-", "-o", "json", "--all", environ=environ, stdin=json.dumps(seen("web"))
        )
    assert actions(ended.json) == {
        "shop/web/app": ("unchanged", ""),
        "shop/gone/app": ("hold", "the file holds single pods, not a list of all"),
    }


async def test_names_of_namespaces_that_are_not_watched_are_held(world: World) -> None:
    path = world.folder / "ledger.db"
    async with ledger_of(world.environ(), path, [entry_of("a", acknowledged=record_of("a"))]):
        pass
    environ = {"LEDGER_PATH": str(path)}
    ended = await run("plan", "-namespace", "other", "-o", "json", world=world, environ=environ)
    assert actions(ended.json) == {
        "shop/a/app": ("hold", "its namespace is not watched (NAMESPACE)")
    }


async def test_a_file_s_pods_of_other_namespaces_are_not_watched() -> None:
    """Once, they were told as to be deployed by a tracker that never sees them."""
    outside = [seen("web"), bare("bare")]
    for each in outside:
        each["metadata"] |= {"namespace": "billing", "uid": f"another-{each['metadata']['uid']}"}
    nameless = seen("lost")
    del nameless["metadata"]["namespace"]
    pods = listed(seen("web"), *outside, nameless)
    for environ, flags in (({"NAMESPACE": "shop"}, ()), ({}, ("-namespace", "shop"))):
        ended = await run("plan", "-f", "-", "-o", "json", *flags, environ=environ, stdin=pods)
        assert actions(ended.json) == {
            "shop/web/app": ("deploy", ""),
            "billing/web-abc-0": ("skip", "not-watched: NAMESPACE is shop"),
            "billing/bare-abc-0": ("skip", "not-watched: NAMESPACE is shop"),
            "lost-abc-0": ("skip", "malformed"),
        }
        assert ended.json["pods"] == 4


async def test_what_a_workload_keeps_is_held_where_workloads_are_read(world: World) -> None:
    path = world.folder / "ledger.db"
    entries = [entry_of(name, acknowledged=record_of(name)) for name in ("scaled", "gone")]
    async with ledger_of(world.environ(), path, entries):
        pass
    world.cluster.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "scaled", "namespace": "shop"},
            "spec": {},
        }
    )
    environ = {"LEDGER_PATH": str(path), "WORKLOADS": "true"}
    ended = await run("plan", "-o", "json", world=world, environ=environ)
    assert actions(ended.json) == {
        "shop/scaled/app": ("hold", "its workload is there, without pods"),
        "shop/gone/app": ("decommission", "no pod holds it"),
    }
    world.cluster.inject(Refuse(code=403), match=Match(resource="deployments"))
    ended = await run("plan", "-o", "json", world=world, environ=environ)
    assert "workloads can't be read" in ended.stderr
    assert {action for action, _ in actions(ended.json).values()} == {"hold"}


async def test_a_ledger_of_another_cluster_decommissions_nothing(world: World) -> None:
    path = world.folder / "ledger.db"
    async with ledger_of(
        world.environ(), path, [entry_of("a", acknowledged=record_of("a"))]
    ) as ledger:
        await ledger.adopt_cluster("another")
    environ = {"LEDGER_PATH": str(path)}
    ended = await run("plan", "-o", "json", world=world, environ=environ)
    assert actions(ended.json)["shop/a/app"][0] == "hold"
    environ["LEDGER_ADOPT"] = "true"
    ended = await run("plan", "-o", "json", world=world, environ=environ)
    assert actions(ended.json)["shop/a/app"][0] == "decommission"


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        pytest.param({"ORG": "acme", "LEDGER_PATH": "/nowhere/l.db"}, "no ledger at", id="missing"),
        pytest.param({"LEDGER_PATH": "/nowhere/l.db"}, "ORG is not", id="no ORG"),
    ],
)
async def test_a_ledger_that_can_t_be_read_is_told_and_left_out(
    environ: dict[str, str], match: str
) -> None:
    ended = await run("plan", "-f", "-", environ=environ, stdin=listed(seen("web")))
    assert ended.code == 0
    assert match in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "deploy" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "match"),
    [
        pytest.param(["-f", "/nowhere"], "", 1, "can't be read: No such file", id="no file"),
        pytest.param(["-f", "/"], "", 1, "can't be read: Is a directory", id="a folder"),
        pytest.param(["-f", "-"], "", 1, "holds no pods", id="nothing"),
        pytest.param(["-f", "-"], "kind: Service\n", 1, "holds no pods", id="no pods"),
        pytest.param(["-f", "-"], "{", 1, "is not JSON of pods", id="cut"),
        pytest.param(["-f", "-"], "items: []\nkind: List\n", 0, "", id="an empty list"),
        pytest.param(["-kubeconfig", "/nowhere"], "", 2, "or give pods with -f", id="no cluster"),
        pytest.param(["--output", "xml"], "", 2, "xml", id="no such format"),
    ],
)
async def test_what_can_t_be_planned_is_told_in_a_line(
    arguments: list[str], stdin: str, code: int, match: str
) -> None:
    ended = await run("plan", *arguments, stdin=stdin)
    assert ended.code == code
    assert match in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_closed_stdin_is_told_in_a_line(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *tracker_run("plan", "-f", "-")]
    async with Program(command, environ={}, folder=tmp_path) as program:
        assert await program.ended() == 1
    (line,) = program.stderr
    assert "stdin can't be read: it is closed; give pods in a pipe" in line


async def test_a_cluster_that_can_t_be_had_is_told(world: World) -> None:
    kubeconfig = world.cluster.write_kubeconfig(world.folder / "kubeconfig")
    await world.cluster.pause()
    ended = await run("plan", environ={"KUBECONFIG": str(kubeconfig)})
    await world.cluster.resume()
    assert ended.code == 1
    assert "the API server can't be asked for pods" in ended.stderr
    assert ended.stderr.count("\n") == 1


# How it looks


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Have a plan shown on a terminal of 80 columns; return where its text goes."""
    console = terminal(80)
    monkeypatch.setattr(plan_module, "make_console", lambda: console)
    assert isinstance(console.file, io.StringIO)
    return console.file


def test_80_columns_show_it_all(shown: io.StringIO, tmp_path: Path) -> None:
    pods = tmp_path / "pods.yaml"
    pods.write_text(listed(seen("web"), without_digest("local"), bare("bare")))
    settings = load({}, {}, needs_org=False)
    assert plan(settings, file=str(pods), output=Format.TABLE, everything=False) == 0
    assert shown.getvalue() == (
        "action  deployment name      image and reason\n"
        "deploy  shop/web/app         ghcr.io/acme/app:1\n"
        "                             @aaaaaaaaaaaa\n"
        "skip    pod shop/bare-abc-0  bare-pod\n"
        "skip    shop/local/app       no-manifest-digest\n"
        "\n"
        "     1 deploy       posted as deployed, no ledger says whether it is news\n"
        "     2 skip         not recorded\n"
        "     3 pods\n"
    )


def test_what_a_pod_s_author_wrote_does_not_break_the_table(
    shown: io.StringIO, tmp_path: Path
) -> None:
    hostile = "\x1b[31mred\u202e\n[bold]x[/bold]\t\x00" + "w" * 2000
    pods = tmp_path / "pods.json"
    raw = seen("web")
    raw["metadata"]["ownerReferences"][0] |= {"name": hostile, "kind": hostile}
    bad = bare("bare")
    bad["metadata"] |= {"name": hostile, "namespace": hostile}
    pods.write_text(json.dumps({"kind": "List", "items": [raw, bad, 7, {"kind": hostile}]}))
    settings = load({}, {"DN_TEMPLATE": "{{deploymentName}}"}, needs_org=False)
    assert plan(settings, file=str(pods), output=Format.TABLE, everything=True) == 0
    for line in shown.getvalue().splitlines():
        assert line.isprintable()
        assert len(line) <= 80


@pytest.mark.parametrize(
    ("version", "digest", "status", "said"),
    [
        pytest.param("1", DIGEST, Status.DEPLOYED, "", id="nothing"),
        pytest.param(None, DIGEST, Status.DEPLOYED, "version was not known", id="version"),
        pytest.param("1", OTHER_DIGEST, Status.DEPLOYED, "digest was bbbbbbbbbbbb", id="digest"),
        pytest.param("1", DIGEST, Status.DECOMMISSIONED, "was decommissioned", id="status"),
    ],
)
def test_what_differs_is_told(version: str | None, digest: str, status: Status, said: str) -> None:
    assert (
        change(record_of("web", digest, version=version, status=status), record_of("web")) == said
    )


async def test_help_is_short_and_names_examples_and_exit_codes() -> None:
    for command in ("plan", "status", "explain"):
        ended = await run(command, "-h")
        assert ended.code == 0
        assert "Exit codes" in ended.stdout
        assert f"deployment-tracker {command}" in ended.stdout
        assert len(ended.stdout.splitlines()) < 45
        assert max(map(len, ended.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param("deployment-tracker pl", {"plan"}, id="a command"),
        pytest.param("deployment-tracker plan --out", {"--output"}, id="an option"),
        pytest.param("deployment-tracker plan -o j", {"json"}, id="a choice"),
    ],
)
async def test_a_shell_can_complete(words: str, offered: set[str]) -> None:
    environ = {
        "_DEPLOYMENT_TRACKER_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    ended = await run(environ=environ)
    assert {line.partition(",")[2] for line in ended.stdout.splitlines()} == offered
