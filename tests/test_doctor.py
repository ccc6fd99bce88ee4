"""`doctor` over sockets: for each thing that can be wrong, the check that finds it, and advice."""

import asyncio
import json
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr

from tests.support.certificates import certificate
from tests.support.ledgers import entry, sums
from tests.support.program import ROOT, Program, tracker_run
from tests.support.simulated import DIGEST, TOKEN, World, assert_secret, made, name_of, pod
from tests.support.terminal import on_a_terminal
from tracker.advice import ADVICE, Trouble, see
from tracker.commands.checks import Finding, Result, examine, kind_of_token
from tracker.errors import LedgerError
from tracker.images import Digest
from tracker.ledger import Identity, SqliteLedger
from tracker.records import Record, Status
from tracker.sandbox.outages import Hang
from tracker.sandbox.script import Behaviour, answers, drops, hangs
from tracker.settings import load

WRONG_TOKEN: Final = "ghp_wrong"  # noqa: S105 - opens nothing
KEY: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM: Final = KEY.private_bytes(
    Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
).decode()
CHECKS: Final = (
    "settings",
    "api server",
    "rbac",
    "workloads",
    "pods",
    "names",
    "ledger",
    "token",
    "github",
    "clock",
    "access",
    "org",
    "digest",
)


pytestmark = pytest.mark.timeout(150)  # the whole program several times, on a busy machine


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own, in which one pod runs."""
    async with made(tmp_path) as world:
        world.cluster.create(pod("web"))
        world.cluster.write_kubeconfig(world.folder / "kubeconfig")
        yield world


async def examined(world: World, **environ: str) -> list[Finding]:
    """Return what each check finds."""
    return await within(10.0, world, environ)


async def within(seconds: float, world: World, environ: Mapping[str, str]) -> list[Finding]:
    """Return what each check finds when a step on a network may take so long."""
    settings = load({}, world.environ(**environ))
    told = {"KUBECONFIG": str(world.folder / "kubeconfig"), **environ}
    return [found async for found in examine(settings, environ=told, step_seconds=seconds)]


def only(findings: list[Finding], check: str) -> Finding:
    """Return what one check found."""
    (finding,) = (each for each in findings if each.check == check)
    return finding


def bad(findings: list[Finding]) -> dict[str, tuple[Result, Trouble | None]]:
    """Return what is neither ok nor skipped, by check."""
    return {
        each.check: (each.result, each.trouble)
        for each in findings
        if each.result in {Result.WARN, Result.FAIL}
    }


def skipped(findings: list[Finding]) -> set[str]:
    """Return what was skipped, but for workloads, which no test here sets."""
    found = {each.check for each in findings if each.result is Result.SKIPPED}
    return found - {"workloads"}


IN_MEMORY: Final = {"ledger": (Result.WARN, Trouble.LEDGER_MEMORY)}


async def test_all_is_well(world: World) -> None:
    path = world.folder / "ledger.db"
    findings = await examined(world, LEDGER_PATH=str(path))
    assert tuple(each.check for each in findings) == CHECKS
    assert bad(findings) == {}
    assert skipped(findings) == set()
    said = {each.check: each.says for each in findings}
    assert said["api server"] == f"{world.cluster.url} answers: v1.36.0-simulated"
    assert said["rbac"] == "the account may get, list, watch pods in all namespaces"
    assert said["pods"] == "1 listed, 1 deployment name"
    assert said["ledger"] == f"{path} is not there yet; the tracker makes it"
    assert only(findings, "token").says == "from API_TOKEN: a classic personal access token"
    assert said["org"] == "acme is there, and the token may read its records"
    assert said["digest"] == f"{DIGEST[:19]}… of {name_of('web')}: 0 records at GitHub"
    assert not path.exists()


async def test_nothing_is_written_anywhere(world: World) -> None:
    await examined(world, WORKLOADS="true")
    assert {exchange.method for exchange in world.github.history} == {"GET"}
    writes = [each for each in world.cluster.requests if each.verb not in {"get", "list"}]
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert {(each.method, each.path) for each in writes} == {("POST", reviews)}
    assert len(writes) == 3 + 2 * 6


# The cluster.


@pytest.mark.parametrize(
    ("verb", "rest", "unseen"),
    [
        pytest.param("watch", "get, list", set(), id="watch"),
        pytest.param("get", "list, watch", set(), id="get"),
        pytest.param("list", "get, watch", {"pods", "names", "digest"}, id="list"),
    ],
)
async def test_a_right_that_is_missing_is_told_by_verb(
    world: World, verb: str, rest: str, unseen: set[str]
) -> None:
    world.cluster.forbidden.add((verb, "pods"))
    findings = await examined(world)
    assert bad(findings) == {**IN_MEMORY, "rbac": (Result.FAIL, Trouble.RBAC)}
    assert only(findings, "rbac").says == (
        f"the account may not {verb} pods in all namespaces; it may {rest} pods"
    )
    assert skipped(findings) == unseen


async def test_rights_on_workloads_count_where_they_are_asked_for(world: World) -> None:
    assert only(await examined(world), "workloads").result is Result.SKIPPED
    assert only(await examined(world, WORKLOADS="true"), "workloads").result is Result.OK
    world.cluster.forbidden |= {("list", "jobs"), ("get", "jobs"), ("list", "cronjobs")}
    finding = only(await examined(world, WORKLOADS="true"), "workloads")
    assert (finding.result, finding.trouble) == (Result.FAIL, Trouble.WORKLOADS)
    assert finding.says.startswith("the account may not get, list jobs; list cronjobs; it may ")


async def away(world: World) -> None:
    await world.cluster.pause()


async def another_token(world: World) -> None:
    world.cluster.token += "-rotated"


async def no_kubeconfig(world: World) -> None:
    (world.folder / "kubeconfig").unlink()


@pytest.mark.parametrize(
    ("happens", "trouble", "says"),
    [
        pytest.param(away, Trouble.API_SERVER, "the API server can't be asked", id="away"),
        pytest.param(no_kubeconfig, Trouble.KUBECONFIG, "no credentials for the", id="kubeconfig"),
        pytest.param(
            another_token, Trouble.API_SERVER_401, "the API server refused", id="another-token"
        ),
    ],
)
async def test_without_an_api_server_what_rests_on_it_is_skipped(
    world: World,
    happens: Callable[[World], Any],
    trouble: Trouble,
    says: str,
) -> None:
    await happens(world)
    findings = await examined(world)
    assert bad(findings) == {**IN_MEMORY, "api server": (Result.FAIL, trouble)}
    assert only(findings, "api server").says.startswith(says)
    assert skipped(findings) == {"rbac", "pods", "names", "digest"}
    # The way to GitHub is examined all the same, with a digest that nothing has.
    assert only(findings, "org").result is Result.OK


async def test_an_api_server_that_hangs_holds_nobody_up(world: World) -> None:
    world.cluster.inject(Hang())
    # So short that it is over soon; what else takes longer on a busy machine is not asked about.
    findings = await within(0.5, world, {})
    assert only(findings, "api server") == Finding(
        check="api server",
        result=Result.FAIL,
        says=f"no answer within 0.5 seconds from {world.cluster.url}",
        trouble=Trouble.API_SERVER,
    )
    assert skipped(findings) >= {"rbac", "pods", "names", "digest"}


async def test_workloads_that_share_a_name_are_told(world: World) -> None:
    world.cluster.create(pod("api"))
    findings = await examined(world, DN_TEMPLATE="{{namespace}}/{{containerName}}")
    assert bad(findings) == {**IN_MEMORY, "names": (Result.FAIL, Trouble.NAME_SHARED)}
    assert only(findings, "names").says == "shared: shop/app"


async def test_what_has_no_record_is_counted(world: World) -> None:
    bare = pod("bare", name="alone")
    del bare["metadata"]["ownerReferences"]
    world.cluster.create(bare)
    findings = await examined(world)
    assert only(findings, "pods").says == (
        "2 listed, 1 deployment name; without a record: 1 bare-pod"
    )


# Settings.


async def test_a_setting_that_can_only_be_warned_of_is(world: World) -> None:
    findings = await examined(world, LOGICAL_ENVIRONMENT="", DN_TEMPLATE="{{deploymentName}}")
    told = [(each.result, each.trouble) for each in findings if each.check == "settings"]
    assert told == [
        (Result.OK, None),
        (Result.FAIL, Trouble.ENVIRONMENT),
        (Result.WARN, Trouble.TEMPLATE),
    ]


# The token.


@pytest.mark.parametrize(
    ("token", "kind", "usable"),
    [
        ("github_pat_11A_x", "a fine-grained personal access token", True),
        (TOKEN, "a classic personal access token", True),
        ("gho_x", "an OAuth App's token", True),
        ("ghu_x", "a GitHub App's token for a user", True),
        ("ghs_x", "a GitHub App's token for its installation, which lasts an hour", True),
        ("ghr_x", "a refresh token, which GitHub takes for nothing else", False),
        ("eyJhbGciOi.eyJpc3Mi.x", "a GitHub App's signature, which is no token yet", False),
        (
            "0123456789abcdef" * 2 + "01234567",
            "an old personal access token, without a prefix",
            True,
        ),
        ("sandbox", "of a kind that is not known", True),
    ],
)
def test_a_token_is_known_by_its_first_letters(token: str, kind: str, *, usable: bool) -> None:
    assert kind_of_token(SecretStr(token)) == (kind, usable)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        pytest.param({"API_TOKEN": ""}, "API_TOKEN is empty", id="none"),
        pytest.param(
            {"API_TOKEN": "ghr_x"},
            "from API_TOKEN: a refresh token, which GitHub takes for nothing else",
            id="refresh",
        ),
        pytest.param(
            {"API_TOKEN": "", "API_TOKEN_FILE": "/nowhere"},
            "API_TOKEN_FILE=/nowhere: No such file or directory",
            id="no-file",
        ),
    ],
)
async def test_without_a_token_to_send_the_host_is_examined_all_the_same(
    world: World, environ: Mapping[str, str], says: str
) -> None:
    findings = await examined(world, **environ)
    assert bad(findings) == {**IN_MEMORY, "token": (Result.FAIL, Trouble.TOKEN)}
    assert only(findings, "token").says == says
    assert skipped(findings) == {"access", "org", "digest"}
    assert only(findings, "github").result is Result.OK


async def test_a_wrong_token_is_told(world: World) -> None:
    findings = await examined(world, API_TOKEN=WRONG_TOKEN)
    assert bad(findings) == {**IN_MEMORY, "access": (Result.FAIL, Trouble.HTTP_401)}
    assert only(findings, "access").says == "HTTP 401 Bad credentials"
    assert skipped(findings) == {"org", "digest"}


@pytest.mark.parametrize(
    ("days", "result", "says"),
    [
        pytest.param(100, Result.OK, r"It expires on \d{4}-\d\d-\d\d", id="later"),
        pytest.param(5, Result.WARN, r"It expires on .*, in [45] days", id="soon"),
        pytest.param(-1, Result.WARN, r"It expires on .*, in 0 days", id="over"),
    ],
)
@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S +0000"])
async def test_the_end_of_a_token_is_told(
    world: World, days: int, result: Result, says: str, form: str
) -> None:
    end = (datetime.now(tz=UTC) + timedelta(days=days)).strftime(form)
    headers = {"GitHub-Authentication-Token-Expiration": end}
    world.github.script(Behaviour(title="tells the end of the token", headers=headers))
    finding = only(await examined(world), "access")
    assert finding.result is result
    assert re.search(says, finding.says)
    assert (finding.trouble is Trouble.TOKEN_EXPIRY) is (result is Result.WARN)


def app_environ(key: str = PEM) -> dict[str, str]:
    """Return the settings of a GitHub App."""
    return {
        "API_TOKEN": "",
        "GH_APP_ID": "123",
        "GH_INSTALL_ID": "7",
        "GH_APP_PRIVATE_KEY": key,
    }


async def test_an_app_is_asked_for_a_token(world: World) -> None:
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    world.github.apps.register("123", 7, public.decode())
    findings = await examined(world, **app_environ())
    assert bad(findings) == IN_MEMORY
    assert only(findings, "token").says == (
        "from the GitHub App: a GitHub App's token for its installation, which lasts an hour"
    )
    assert [each.method for each in world.github.history] == ["POST", "GET"]
    world.github.apps.register("456", 7, public.decode())
    findings = await examined(world, **app_environ())
    assert only(findings, "token") == Finding(
        check="token",
        result=Result.FAIL,
        says="no token for the App: HTTP 401",
        trouble=Trouble.GITHUB_APP,
    )


async def test_a_key_that_is_none_is_told(world: World) -> None:
    finding = only(await examined(world, **app_environ("no key")), "token")
    assert (finding.result, finding.trouble) == (Result.FAIL, Trouble.GITHUB_APP)


# GitHub.


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        pytest.param(answers(403), {"org": (Result.FAIL, Trouble.HTTP_403)}, id="403"),
        pytest.param(answers(404), {"org": (Result.FAIL, Trouble.ORG)}, id="404"),
        pytest.param(answers(429), {"org": (Result.WARN, Trouble.HTTP_429)}, id="429"),
        pytest.param(
            answers(403, headers={"Retry-After": "60"}),
            {"org": (Result.WARN, Trouble.HTTP_429)},
            id="403-with-a-limit",
        ),
        pytest.param(answers(502), {"github": (Result.FAIL, Trouble.HTTP_5XX)}, id="502"),
        pytest.param(
            answers(302, headers={"Location": "https://login.example.com/"}),
            {"github": (Result.FAIL, Trouble.UNEXPECTED_ANSWER)},
            id="302",
        ),
        *(
            pytest.param(
                answers(status, body=body),
                {"github": (Result.FAIL, Trouble.UNEXPECTED_ANSWER)},
                id=f"{status}-{name}",
            )
            for status, name, body in [
                (200, "html", b"<html>"),
                (200, "other-json", b"{}"),
                (200, "a-list", b"[]"),
                (204, "empty", b""),
                (400, "json", None),
                (403, "html", b"<html>"),
                (404, "html", b"<html>"),
            ]
        ),
        pytest.param(
            drops(applied=False), {"github": (Result.FAIL, Trouble.CONNECTION)}, id="closed"
        ),
    ],
)
async def test_what_github_answers_is_explained(
    world: World, behaviour: Behaviour, expected: dict[str, tuple[Result, Trouble]]
) -> None:
    world.github.script(behaviour)
    findings = await examined(world)
    assert bad(findings) == {**IN_MEMORY, **expected}
    if "github" in expected:
        assert skipped(findings) >= {"access", "org", "digest"}, "nobody told of them"


async def test_an_organisation_that_is_none_is_told(world: World) -> None:
    findings = await examined(world, ORG="nobody", BASE_URL=world.github.url)
    assert only(findings, "org").result is Result.OK  # this GitHub takes any
    async with made(world.folder) as other:
        other.github.script(answers(404, body={"message": "Not Found"}))
        finding = only(await examined(other, ORG="nobody"), "org")
    assert finding.trouble is Trouble.ORG
    assert finding.says.startswith("nobody: HTTP 404 Not Found: no organisation")


async def test_a_host_that_hangs_holds_nobody_up(world: World) -> None:
    world.github.script(hangs())
    # So short that it is over soon; what else takes longer on a busy machine is not asked about.
    findings = await within(0.5, world, {})
    finding = only(findings, "github")
    assert (finding.result, finding.trouble) == (Result.FAIL, Trouble.CONNECTION)
    assert "no answer within 0.5 seconds" in finding.says
    assert skipped(findings) >= {"clock", "access", "org", "digest"}


async def test_a_proxy_that_is_none_is_found_and_told_without_its_password(world: World) -> None:
    environ = {"PROXY_FROM_ENV": "true", "HTTP_PROXY": "http://user:canary℀@proxy:3128"}
    findings = await examined(world, **environ)
    assert bad(findings)["github"] == (Result.FAIL, Trouble.PROXY)
    assert "canary" not in str(findings)


async def test_a_host_that_is_none_is_told(world: World) -> None:
    findings = await examined(world, BASE_URL="https://nowhere.invalid")
    assert bad(findings) == {**IN_MEMORY, "github": (Result.FAIL, Trouble.DNS)}
    assert only(findings, "github").says == (
        "https://nowhere.invalid: host name not found: nowhere.invalid"
    )


@pytest.mark.parametrize(
    ("days", "host", "trusted", "says"),
    [
        pytest.param(-1, "127.0.0.1", True, "certificate has expired", id="expired"),
        pytest.param(1, "example.com", True, "mismatch", id="wrong-host"),
        pytest.param(1, "127.0.0.1", False, "self-signed certificate", id="self-signed"),
        pytest.param(1, "127.0.0.1", True, "", id="good"),
    ],
)
async def test_a_host_that_can_not_prove_itself_is_told(
    world: World, days: int, host: str, says: str, *, trusted: bool
) -> None:
    pem, key = certificate(world.folder, days=days, host=host)
    ca = {"CA_FILE": str(pem)} if trusted else {}
    async with https(pem, key) as url:
        findings = await examined(world, BASE_URL=url, **ca)
    if not says:
        assert bad(findings) == IN_MEMORY
        assert only(findings, "github").says == f"{url} answers, over TLS"
        assert only(findings, "clock") == Finding(
            check="clock", result=Result.SKIPPED, says="the answer tells no time"
        )
        return
    assert bad(findings) == {**IN_MEMORY, "github": (Result.FAIL, Trouble.TLS)}
    assert says in only(findings, "github").says


@asynccontextmanager
async def https(pem: Path, key: Path) -> AsyncIterator[str]:
    """Serve an answer without records over TLS, and yield the URL."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pem, key)
    body = b'{"total_count": 0, "deployment_records": []}'

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def test_a_ca_file_that_is_none_is_told(world: World) -> None:
    findings = await examined(world, CA_FILE="/nowhere.pem")
    assert bad(findings) == {**IN_MEMORY, "github": (Result.FAIL, Trouble.TLS)}
    assert skipped(findings) == {"token", "clock", "access", "org", "digest"}


@pytest.mark.parametrize(
    ("offset", "says"), [(3600, "behind GitHub's"), (-3600, "ahead of GitHub's")]
)
async def test_a_clock_that_is_off_is_warned_of(world: World, offset: float, says: str) -> None:
    world.github.clock_offset = offset
    findings = await examined(world)
    assert bad(findings) == {**IN_MEMORY, "clock": (Result.WARN, Trouble.CLOCK)}
    assert only(findings, "clock").says.endswith(says)


# The ledger.


def identity(world: World, **changes: str) -> Identity:
    """Return the identity of the world's settings."""
    fields = {
        "api_host": world.github.url.removeprefix("http://"),
        "org": "acme",
        "logical_environment": "test",
        "physical_environment": "",
        "cluster": "simulated",
    }
    return Identity(**{**fields, **changes})


@asynccontextmanager
async def ledger(
    world: World, *, fingerprint: str | None = None, **changes: str
) -> AsyncIterator[Path]:
    """Yield the path of a ledger that is open, with the record of the pod that runs in it."""
    path = world.folder / "ledger" / "ledger.db"
    stands = Record(
        deployment_name=name_of("web"),
        name="ghcr.io/acme/app",
        version="1",
        digest=Digest(DIGEST),
        status=Status.DEPLOYED,
    )
    async with SqliteLedger(path=path, identity=identity(world, **changes)) as opened:
        await opened.put(entry(deployment_name=name_of("web"), acknowledged=stands))
        if fingerprint is not None:
            await opened.adopt_cluster(fingerprint)
        yield path


def durable(path: Path) -> dict[str, str]:
    """Return the sums of a ledger's files, but for the memory that SQLite's users share."""
    return {name: found for name, found in sums(path.parent).items() if not name.endswith("-shm")}


async def test_a_ledger_that_a_tracker_has_is_fine_and_not_touched(world: World) -> None:
    async with ledger(world) as path:
        before = durable(path)
        findings = await examined(world, LEDGER_PATH=str(path))
        assert durable(path) == before
    assert only(findings, "ledger") == Finding(
        check="ledger", result=Result.OK, says=f"{path}: 1 name; a running tracker has it"
    )


async def test_a_record_that_github_lost_is_told(world: World) -> None:
    async with ledger(world) as path:
        pass
    findings = await examined(world, LEDGER_PATH=str(path))
    assert bad(findings) == {"digest": (Result.WARN, Trouble.RECORD_LOST)}
    assert only(findings, "ledger").says == f"{path}: 1 name"


async def test_a_404_for_what_was_acknowledged_leaves_no_doubt(world: World) -> None:
    world.github.script(answers(404, body={"message": "Not Found"}))
    async with ledger(world) as path:
        findings = await examined(world, LEDGER_PATH=str(path))
    assert only(findings, "org").says == (
        "acme: HTTP 404 Not Found: no organisation that this token may see"
    )


async def test_a_ledger_of_another_cluster_is_told(world: World) -> None:
    async with ledger(world, fingerprint="of another cluster") as path:
        pass
    findings = await examined(world, LEDGER_PATH=str(path))
    assert only(findings, "ledger").trouble is Trouble.LEDGER_CLUSTER
    assert only(findings, "ledger").result is Result.FAIL
    adopted = await examined(world, LEDGER_PATH=str(path), LEDGER_ADOPT="true")
    assert only(adopted, "ledger").result is Result.OK
    await world.cluster.pause()
    unknown = await examined(world, LEDGER_PATH=str(path), KUBECONFIG="/nowhere")
    assert "the cluster could not be compared" in only(unknown, "ledger").says


async def test_a_ledger_of_another_identity_is_told(world: World) -> None:
    async with ledger(world, org="before") as path:
        pass
    finding = only(await examined(world, LEDGER_PATH=str(path)), "ledger")
    assert (finding.result, finding.trouble) == (Result.WARN, Trouble.LEDGER_IDENTITY)
    assert "before" in finding.says


def newer(path: Path) -> None:
    # The header's user_version: https://www.sqlite.org/fileformat2.html
    with path.open("r+b") as file:
        file.seek(60)
        file.write((99).to_bytes(4))


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def of_others(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(68)
        file.write((1).to_bytes(4))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        pytest.param(newer, Trouble.LEDGER_NEWER, id="newer"),
        pytest.param(corrupt, Trouble.LEDGER_CORRUPT, id="corrupt"),
        pytest.param(of_others, Trouble.LEDGER_PLACE, id="another-program-s"),
        pytest.param(folder, Trouble.LEDGER_PLACE, id="folder"),
    ],
)
async def test_a_ledger_that_can_not_be_used_is_told(
    world: World, change: Callable[[Path], None], trouble: Trouble
) -> None:
    async with ledger(world) as path:
        pass
    change(path)
    is_file = change is not folder
    before = sums(path.parent) if is_file else {}
    finding = only(await examined(world, LEDGER_PATH=str(path)), "ledger")
    assert (finding.result, finding.trouble) == (Result.FAIL, trouble)
    # Nothing of what is done about it stands there twice.
    assert not finding.says.endswith(ADVICE[trouble].next_step)
    assert (sums(path.parent) if is_file else {}) == before
    # And it is what a tracker says that starts with it, but for a corrupt one, which it moves away.
    if trouble is not Trouble.LEDGER_CORRUPT:
        with pytest.raises(LedgerError):
            async with SqliteLedger(path=path, identity=identity(world)):
                pass


async def test_a_place_where_no_ledger_can_be_made_is_told(world: World) -> None:
    path = world.folder / "missing" / "folder" / "ledger.db"
    finding = only(await examined(world, LEDGER_PATH=str(path)), "ledger")
    assert (finding.result, finding.trouble) == (Result.FAIL, Trouble.LEDGER_PLACE)


def a_folder(path: Path) -> None:
    path.parent.chmod(0o555)


def the_file(path: Path) -> None:
    path.chmod(0o444)


def its_lock(path: Path) -> None:
    path.with_name("ledger.db.lock").chmod(0o444)


def only_its_lock(path: Path) -> None:
    path.unlink()
    its_lock(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        pytest.param(a_folder, "its folder", id="folder"),
        pytest.param(the_file, "ledger.db", id="file"),
        pytest.param(its_lock, "ledger.db.lock", id="lock"),
        pytest.param(only_its_lock, "ledger.db.lock", id="lock-without-file"),
    ],
)
async def test_a_ledger_that_may_be_read_and_not_written_is_told(
    world: World, change: Callable[[Path], None], what: str
) -> None:
    """Once, doctor said that it is well, and the tracker would not start with it."""
    async with ledger(world) as path:
        pass
    change(path)
    before = sums(path.parent)
    environ = world.environ(LEDGER_PATH=str(path))
    flags = ("-kubeconfig", str(world.folder / "kubeconfig"))
    commands = {
        name: Program(
            [*mortal(), *tracker_run(name, *flags, *more)], environ=environ, folder=world.folder
        )
        for name, more in (("doctor", ("-o", "json")), ("once", ()))
    }
    try:
        async with commands["doctor"] as program:
            assert await program.ended() == 1
        async with commands["once"] as tracker:
            assert await tracker.ended() == 2, "it is what a tracker says that starts with it"
    finally:
        path.parent.chmod(0o755)
    found = {each["check"]: each for each in json.loads("\n".join(program.stdout))["checks"]}
    assert found["ledger"]["result"] == "fail"
    assert found["ledger"]["trouble"] == Trouble.LEDGER_PLACE.value
    assert found["ledger"]["says"] == f"{path}: this user may not write to {what}"
    assert sums(path.parent) == before


async def test_a_ledger_in_use_is_for_its_owner_to_write(world: World) -> None:
    async with ledger(world) as path:
        path.chmod(0o400)
        command = tracker_run("doctor", "-kubeconfig", str(world.folder / "kubeconfig"))
        environ = world.environ(LEDGER_PATH=str(path))
        async with Program([*mortal(), *command], environ=environ, folder=world.folder) as program:
            assert await program.ended() == 0


def mortal() -> list[str]:
    """Return what comes before a command so that modes of files count for it: root passes them."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv may write to everything")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


# The program.


def doctor(world: World, *arguments: str, **environ: str) -> Program:
    """Return the command, to be started."""
    command = tracker_run("doctor", "-kubeconfig", str(world.folder / "kubeconfig"), *arguments)
    return Program(command, environ=world.environ(**environ), folder=world.folder)


async def test_the_command_ends_with_0_when_nothing_failed(world: World) -> None:
    async with doctor(world) as program:
        assert await program.ended() == 0
        assert program.stderr == []
        assert program.stdout[-1] == "11 ok, 1 warn, 1 skipped"
        assert_secret(program)
    assert not any("\x1b" in line for line in program.stdout)


async def test_the_command_tells_all_as_json(world: World) -> None:
    world.cluster.forbidden.add(("list", "pods"))
    arguments = ("--output", "json", "-namespace", "shop")
    async with doctor(world, *arguments, API_TOKEN=WRONG_TOKEN, GITHUB_ORG="acme") as program:
        assert await program.ended() == 1
        assert program.stderr == []
        told = json.loads("\n".join(program.stdout))
        assert WRONG_TOKEN not in "\n".join(program.stdout)
        assert_secret(program)
    assert told["result"] == "fail"
    assert tuple(check["check"] for check in told["checks"]) == CHECKS
    (rbac,) = (check for check in told["checks"] if check["check"] == "rbac")
    advice = ADVICE[Trouble.RBAC]
    assert rbac == {
        "check": "rbac",
        "result": "fail",
        "says": ("the account may not list pods in the namespace shop; it may get, watch pods"),
        "trouble": "rbac",
        "why": advice.why,
        "next": advice.next_step,
        "see": see(Trouble.RBAC),
    }
    settings = {each["name"]: (each["value"], each["where"]) for each in told["settings"]}
    assert settings["NAMESPACE"] == ("shop", "flag")
    assert settings["API_TOKEN"] == ("(set, not shown)", "variable")
    assert settings["ORG"] == ("acme", "variable")
    assert settings["WORKERS"] == ("2", "default")


async def test_the_command_reads_the_file_that_kopf_run_reads(world: World) -> None:
    (world.folder / "my.env").write_text(f"ORG=acme\nAPI_TOKEN={TOKEN}\n")
    environ = world.environ(ORG="", API_TOKEN="")
    command = tracker_run("doctor", "--env-file", "my.env", "-kubeconfig", "kubeconfig")
    async with Program(command, environ=environ, folder=world.folder) as program:
        assert await program.ended() == 0
        assert_secret(program)
    assert any(re.fullmatch(r"ORG +acme +ORG in my\.env *", line) for line in program.stdout)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("nowhere.env", "No such file or directory", id="missing"),
        pytest.param("kubeconfig/my.env", "Not a directory", id="below-a-file"),
        pytest.param(".", "it is not a plain file", id="folder"),
    ],
)
async def test_an_env_file_that_is_none_is_refused(world: World, name: str, why: str) -> None:
    """Once, it was passed over, and what would be examined was not what was asked for."""
    async with doctor(world, "--env-file", name) as program:
        assert await program.ended() == 2
    assert program.stdout == []
    (line,) = program.stderr
    assert f"--env-file {name}: can't be read ({why}); " in line
    assert not world.cluster.requests


async def test_the_command_ends_with_2_when_a_setting_can_not_be_used(world: World) -> None:
    async with doctor(world, ORG="a b") as program:
        assert await program.ended() == 2
        assert program.stdout == []
    assert [line.rpartition(" ")[2] for line in program.stderr] == ["(docs/troubleshooting.md#org)"]
    assert not world.github.history
    assert not world.cluster.requests


async def test_a_canary_is_told_nowhere_whatever_fails(world: World) -> None:
    """In a file, in a wrong place, in the answers: no check repeats it."""
    canary = "ghp_sparrow0123456789"
    file = world.folder / "token"
    file.write_text(f"{canary}\n")
    world.github.script(answers(401, body={"message": f"bad {TOKEN[:4]}…"}))
    for output, environ in (
        ("table", {"API_TOKEN": canary}),
        ("json", {"API_TOKEN": "", "API_TOKEN_FILE": str(file)}),
        ("table", {**app_environ(), "GH_APP_PRIVATE_KEY": PEM.replace("A", "B")}),
        ("json", {"CLUSTER": canary}),
    ):
        async with doctor(world, "--output", output, LOG_LEVEL="debug", **environ) as program:
            assert await program.ended() == 1
        said = "\n".join([*program.stdout, *program.stderr])
        assert canary not in said
        assert PEM.splitlines()[1] not in said


async def test_the_table_fits_a_terminal(world: World) -> None:
    """As it is written down in tests/data/doctor.txt, at 80 columns; colours are for terminals."""
    world.cluster.create(pod("api"))
    environ = world.environ(
        API_TOKEN=WRONG_TOKEN, DN_TEMPLATE="{{namespace}}/{{containerName}}", TERM="xterm"
    )
    told, code = await on_a_terminal(
        tracker_run("doctor", "-kubeconfig", "kubeconfig"), at=world.folder, environ=environ
    )
    assert code == 1
    assert "\x1b[1;31mfail" in told
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told)
    lines = [line.rstrip() for line in plain.splitlines()]
    assert max(map(len, lines)) <= 80
    shown = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", "\n".join(lines)) + "\n"
    assert shown == (ROOT / "tests" / "data" / "doctor.txt").read_text(encoding="utf-8")
