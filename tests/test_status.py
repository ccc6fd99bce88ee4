"""`status`: what the ledger of a tracker holds, while the tracker has it or not."""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from tests.support.commands import entry_of, ledger_of, record_of, run, terminal
from tests.support.simulated import IN_STEP, World, made, pod
from tracker.commands import status as status_module
from tracker.commands.output import Format
from tracker.commands.status import status
from tracker.entries import Entry, State
from tracker.records import Status
from tracker.settings import load

ENVIRON = {"ORG": "acme", "LOGICAL_ENVIRONMENT": "test"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with made(tmp_path) as world:
        yield world


def well() -> list[Entry]:
    return [
        entry_of("web", acknowledged=record_of("web")),
        entry_of("old", acknowledged=record_of("old", status=Status.DECOMMISSIONED)),
    ]


def unwell(now: float) -> list[Entry]:
    return [
        entry_of(
            "refused",
            sent=record_of("refused"),
            state=State.PARKED,
            reason="403: Forbidden",
            attempts=2,
            not_before=now + 3000,
        ),
        entry_of(
            "unattested",
            sent=record_of("unattested"),
            state=State.NOT_FOUND,
            reason="404: no artifact",
            attempts=1,
            not_before=now + 900,
        ),
        entry_of("sending", sent=record_of("sending"), state=State.SENDING, attempts=1),
    ]


async def asked(path: Path, entries: Iterable[Entry], *arguments: str) -> tuple[int, str]:
    async with ledger_of(ENVIRON, path, entries):
        ended = await run(
            "status", "--offline", *arguments, environ={**ENVIRON, "LEDGER_PATH": str(path)}
        )
    assert ended.stderr == ""
    return ended.code, ended.stdout


async def test_all_acknowledged_is_0_and_lists_nothing(path: Path) -> None:
    code, said = await asked(path, well())
    assert code == 0
    assert said.startswith("     2 acknowledged")
    assert "1 stand as deployed" in said
    assert "a tracker has it now" in said


async def test_what_is_not_is_1_and_listed_what_needs_a_person_first(path: Path) -> None:
    now = asyncio.get_running_loop().time()
    code, said = await asked(path, [*well(), *unwell(now)])
    assert code == 1
    table = said.partition("\n\n")[0].splitlines()
    cells = [re.split(r" {2,}", line.strip()) for line in table]
    assert [row[:3] for row in cells] == [
        ["state", "deployment name", "reason"],
        ["parked", "shop/refused/app", "403: Forbidden (asked 2x)"],
        ["not_found", "shop/unattested/app", "404: no artifact"],
        ["pending", "shop/sending/app", "deployed @aaaaaaaaaaaa"],
    ]
    assert all(re.fullmatch(r"\d+s", age) for _, _, _, age, _ in cells[1:])
    assert [re.sub(r"\d+", "N", due) for *_, due in cells[1:]] == ["in Nm", "in Nm", "now"]


async def test_states_can_be_chosen(path: Path) -> None:
    entries = [*well(), *unwell(asyncio.get_running_loop().time())]
    code, said = await asked(path, entries, "--state", "not_found", "--state", "acknowledged")
    assert code == 1
    names = re.findall(r"shop/\w+/app", said)
    assert names == ["shop/unattested/app", "shop/old/app", "shop/web/app"]
    _, said = await asked(path, entries, "--all")
    assert len(re.findall(r"shop/\w+/app", said)) == len(entries)


async def test_programs_get_it_as_json(path: Path) -> None:
    now = asyncio.get_running_loop().time()
    entries = [*well(), *unwell(now)]
    async with ledger_of({**ENVIRON, "CLUSTER": "other"}, path, well()):
        pass
    async with ledger_of(ENVIRON, path, entries) as ledger:
        await ledger.set_pause_until(now + 60)
        environ = {**ENVIRON, "LEDGER_PATH": str(path)}
        ended = await run("status", "--offline", "-o", "json", "--all", environ=environ)
    found = ended.json
    assert ended.code == 1
    assert found["summary"] == {"acknowledged": 2, "not_found": 1, "parked": 1, "pending": 1}
    assert found["standing"] == 1
    assert found["owned"] is True
    assert found["held"] is None
    assert [each["names"] for each in found["other_identities"]] == [1]
    assert found["other_identities"][0]["cluster"] == "other"
    time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
    assert time.fullmatch(found["pause_until"])
    refused = found["names"][0]
    assert time.fullmatch(refused.pop("written_at"))
    assert time.fullmatch(refused.pop("next_attempt"))
    assert refused == {
        "deployment_name": "shop/refused/app",
        "state": "parked",
        "reason": "403: Forbidden",
        "attempts": 2,
        "acknowledged": None,
        "acknowledged_at": None,
        "sent": record_of("refused").fields(),
    }


async def test_names_that_only_waiting_pods_hold_are_told(world: World) -> None:
    path = world.folder / "ledger.db"
    waiting, rolling = pod("waiting"), pod("rolling", number=1)
    for each in (waiting, rolling):
        each["status"] = {"phase": "Pending"}
        world.cluster.create(each)
    world.cluster.create(pod("rolling"))
    entries = [entry_of(name, acknowledged=record_of(name)) for name in ("waiting", "rolling")]
    async with ledger_of(world.environ(), path, entries):
        ended = await run("status", "-o", "json", world=world, environ={"LEDGER_PATH": str(path)})
        (held,) = ended.json["held"]
        assert ended.code == 0
        assert held["deployment_name"] == "shop/waiting/app"
        assert held["pods"] == ["waiting-abc-0 (Pending)"]
        ended = await run("status", world=world, environ={"LEDGER_PATH": str(path)})
        assert "held   shop/waiting/app  waiting-abc-0 (Pending)" in ended.stdout


async def test_a_cluster_that_can_t_be_asked_is_told_and_left_out(path: Path) -> None:
    environ = {**ENVIRON, "LEDGER_PATH": str(path), "KUBECONFIG": "/nowhere"}
    async with ledger_of(ENVIRON, path, well()):
        ended = await run("status", environ=environ)
    assert ended.code == 0
    assert "the cluster was not asked" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "2 acknowledged" in ended.stdout


async def test_a_tracker_that_runs_is_looked_into(world: World) -> None:
    path = world.folder / "ledger.db"
    world.cluster.create(pod("web"))
    async with world.program(LEDGER_PATH=str(path)) as program:
        await program.until_said(IN_STEP)
        await world.told("web")
        await program.until(lambda: bool(program.lines))
        ended = await run("status", world=world, environ={"LEDGER_PATH": str(path)})
        assert ended.code == 0, ended.stderr
        assert "1 acknowledged" in ended.stdout
        assert "a tracker has it now" in ended.stdout
        assert await program.stopped() == 0
    ended = await run("status", world=world, environ={"LEDGER_PATH": str(path)})
    assert "no tracker has it now" in ended.stdout


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        pytest.param({"ORG": "acme"}, "LEDGER_PATH is not set", id="no path"),
        pytest.param({"LEDGER_PATH": "/nowhere/l.db"}, "ORG: required", id="no org"),
        pytest.param({**ENVIRON, "LEDGER_PATH": "/nowhere/l.db"}, "no ledger at", id="missing"),
        pytest.param({**ENVIRON, "LEDGER_PATH": "/dev/null"}, "not a plain file", id="no file"),
    ],
)
async def test_what_can_t_be_looked_into_is_2_and_a_line(
    environ: dict[str, str], match: str
) -> None:
    ended = await run("status", environ=environ)
    assert ended.code == 2
    assert match in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


async def test_80_columns_show_it_and_no_text_breaks_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = terminal(80)
    monkeypatch.setattr(status_module, "make_console", lambda: console)
    hostile = "\x1b[31m[bold]\u202e\nnext line " + "w" * 1500
    entries = [
        *unwell(asyncio.get_running_loop().time()),
        entry_of("hostile", sent=record_of("hostile"), state=State.OPEN, reason=hostile),
    ]
    async with ledger_of(ENVIRON, path, entries):
        settings = load({}, {**ENVIRON, "LEDGER_PATH": str(path)})
        code = status(settings, output=Format.TABLE, states=(), everything=True, offline=True)
    assert code == 1
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].split() == ["state", "deployment", "name", "reason", "age", "next"]
    for line in lines:
        assert line.isprintable()
        # A path of a test's folder may be as long as it likes.
        assert len(line) <= 80 or str(path) in line
