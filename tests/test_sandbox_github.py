"""The simulated GitHub holds to the contract, and its scripts do what their names say."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tracker.sandbox.contract import Identity
from tracker.sandbox.exchanges import Exchange, Outcome
from tracker.sandbox.github import NotReachedError, SimulatedGitHub
from tracker.sandbox.script import (
    RELEASED,
    Apply,
    Behaviour,
    answers,
    delays,
    drips,
    drops,
    garbles,
    hangs,
    lands_late,
    pretends,
    speaks,
    truncates,
)

RECORD = "/orgs/acme/artifacts/metadata/deployment-record"
CLUSTER = f"{RECORD}/cluster/prod-1"
A, B, C = ("sha256:" + letter * 64 for letter in "abc")
HEADERS = {
    "Accept": "application/vnd.github+json",
    "X-GitHub-Api-Version": "2022-11-28",
    "User-Agent": "test",
    "Authorization": "Bearer sandbox-token",
}
LOST = aiohttp.ClientError
NEVER_HOLDS = asyncio.Event().is_set


def single(called: str = "shop/web/app", /, digest: str = A, **more: object) -> dict[str, Any]:
    return {
        "name": "ghcr.io/acme/app",
        "digest": digest,
        "status": "deployed",
        "logical_environment": "prod",
        "cluster": "prod-1",
        "deployment_name": called,
    } | more


def deployment(called: str = "shop/web/app", /, digest: str = A, **more: object) -> dict[str, Any]:
    return {"name": "ghcr.io/acme/app", "digest": digest, "deployment_name": called} | more


def batch(*deployments: dict[str, Any], **more: object) -> dict[str, Any]:
    return {
        "logical_environment": "prod",
        "deployments": list(deployments),
        "partial_success": True,
    } | more


def without(body: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {field: value for field, value in body.items() if field not in fields}


class Client:
    """A raw client of one simulated GitHub: a call returns (status, body, headers)."""

    def __init__(self, github: SimulatedGitHub, session: aiohttp.ClientSession) -> None:
        self.github = github
        self.session = session

    async def post(
        self, body: object, path: str = RECORD, *, timeout_seconds: float = 10, **changed: str
    ) -> tuple[int, Any, Any]:
        headers = HEADERS | {name.replace("_", "-"): value for name, value in changed.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
        return await self.request("POST", path, headers, content, timeout_seconds)

    async def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        content: bytes | None = None,
        timeout_seconds: float = 10,
    ) -> tuple[int, Any, Any]:
        async with self.session.request(
            method,
            f"{self.github.url}{path}",
            data=content,
            headers={name: value for name, value in headers.items() if value},
            allow_redirects=False,
            skip_auto_headers=["User-Agent", "Content-Type"],
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        ) as response:
            raw = await response.read()
            try:
                return response.status, json.loads(raw), response.headers
            except ValueError:
                return response.status, raw, response.headers


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    async with SimulatedGitHub() as github, aiohttp.ClientSession() as session:
        yield Client(github, session)


async def test_a_single_post_is_recorded_and_answered_without_status_name_and_version(
    client: Client,
) -> None:
    status, body, headers = await client.post(
        single(version="1.2", tags={"team": "pay"}, runtime_risks=["sensitive-data"])
    )

    assert status == 200
    assert body["total_count"] == 1
    [record] = body["deployment_records"]
    assert set(record) == {
        "id",
        "digest",
        "logical_environment",
        "physical_environment",
        "cluster",
        "deployment_name",
        "tags",
        "runtime_risks",
        "created_at",
        "updated_at",
        "attestation_id",
    }
    assert record["tags"] == {"team": "pay"}
    assert headers["x-github-request-id"]
    assert headers["Date"]
    assert int(headers["x-ratelimit-remaining"]) < int(headers["x-ratelimit-limit"])
    [row] = client.github.table.named("shop/web/app")
    assert (row.status, row.name, row.version) == ("deployed", "ghcr.io/acme/app", "1.2")


async def test_posting_again_updates_the_record_in_place(client: Client) -> None:
    await client.post(single(digest=A))
    await client.post(single(digest=B))
    await client.post(single(digest=B, status="decommissioned"))

    assert client.github.state("shop/web/app") == ("decommissioned", B)
    assert len(client.github.table) == 1
    assert [len(exchange.rows) for exchange in client.github.history] == [1, 1, 1]


async def test_environment_and_cluster_belong_to_the_identity(client: Client) -> None:
    await client.post(single())
    await client.post(single(cluster="prod-2"))
    await client.post(single(physical_environment="west"))
    await client.post(single(), path=RECORD.replace("acme", "ACME"))

    assert {row.identity for row in client.github.table} == {
        Identity(
            org="acme",
            logical_environment="prod",
            physical_environment=physical,
            cluster=cluster,
            deployment_name="shop/web/app",
        )
        for physical, cluster in [("", "prod-1"), ("", "prod-2"), ("west", "prod-1")]
    }
    with pytest.raises(LookupError, match="more than one environment"):
        client.github.deployed()


async def test_a_cluster_call_and_a_single_post_name_the_same_record(client: Client) -> None:
    await client.post(single())
    status, body, _ = await client.post(batch(deployment(digest=B)), CLUSTER)

    assert status == 200
    assert body["total_count"] == 1
    assert client.github.deployed() == {"shop/web/app": B}


async def test_a_record_left_out_of_a_cluster_call_keeps_its_state(client: Client) -> None:
    await client.post(batch(deployment("a"), deployment("b")), CLUSTER)
    await client.post(batch(deployment("a", status="decommissioned")), CLUSTER)

    assert client.github.deployed() == {"b": A}


async def test_an_unknown_digest_of_a_partial_batch_is_told_by_its_payload(client: Client) -> None:
    client.github.unknown = {B}
    client.github.unauthorized = {C}
    unknown, forbidden = deployment("b", B), deployment("c", C)

    status, body, _ = await client.post(batch(deployment("a"), unknown, forbidden), CLUSTER)

    assert status == 207
    assert [record["deployment_name"] for record in body["deployment_records"]] == ["a"]
    assert body["errors"] == [
        {"cause": "not_found", "deployment": unknown},
        {"cause": "unauthorized", "deployment": forbidden},
    ]
    assert client.github.deployed() == {"a": A}
    assert client.github.history[-1].outcomes() == {
        "a": Outcome.ACKNOWLEDGED,
        "b": Outcome.REFUSED,
        "c": Outcome.REFUSED,
    }


@pytest.mark.parametrize(("digest", "expected"), [(B, 404), (C, 403)])
async def test_a_batch_that_is_not_partial_is_all_or_nothing(
    client: Client, digest: str, expected: int
) -> None:
    client.github.unknown = {B}
    client.github.unauthorized = {C}

    body = batch(deployment("a"), deployment("b", digest), partial_success=False)
    status, _, _ = await client.post(body, CLUSTER)

    assert status == expected
    assert len(client.github.table) == 0


async def test_records_are_left_out_of_the_answer_on_request(client: Client) -> None:
    body = batch(deployment("a"), deployment("b"), return_records=False)
    status, answer, _ = await client.post(body, CLUSTER)

    assert (status, answer) == (200, {"total_count": 2, "deployment_records": []})
    assert set(client.github.history[-1].outcomes().values()) == {Outcome.ACKNOWLEDGED}


async def test_an_artifact_has_one_name_within_a_batch_and_the_first_one_wins(
    client: Client,
) -> None:
    await client.post(
        batch(
            deployment("a", name="one", version="1"),
            deployment("b", name="two", version="2"),
            deployment("c", name="three", github_repository="other"),
        ),
        CLUSTER,
    )

    assert [(row.name, row.version) for row in client.github.table] == [
        ("one", "1"),
        ("one", "1"),
        ("three", None),
    ]


async def test_a_repository_makes_an_unknown_digest_known(client: Client) -> None:
    client.github.unknown = {A}

    assert (await client.post(single()))[0] == 404
    assert (await client.post(single(github_repository="app")))[0] == 200
    client.github.learn(A)
    assert (await client.post(single()))[0] == 200


async def test_records_are_read_back_by_the_digest_they_hold_now(client: Client) -> None:
    await client.post(batch(deployment("a", A), deployment("b", B)), CLUSTER)
    await client.post(batch(deployment("b", A, status="decommissioned")), CLUSTER)
    path = "/orgs/acme/artifacts/{}/metadata/deployment-records"

    status, body, _ = await client.request("GET", path.format(A), HEADERS)
    _, nothing, _ = await client.request("GET", path.format(B), HEADERS)

    assert status == 200
    assert [record["deployment_name"] for record in body["deployment_records"]] == ["a", "b"]
    assert nothing == {"total_count": 0, "deployment_records": []}


@pytest.mark.parametrize(
    ("method", "path", "changed", "expected"),
    [
        pytest.param("GET", RECORD, {}, 404, id="wrong-method"),
        pytest.param("POST", f"{RECORD}s", {}, 404, id="wrong-path"),
        pytest.param("POST", f"{RECORD}/", {}, 404, id="slash-at-the-end"),
        pytest.param("POST", f"{RECORD}/cluster/a%20b", {}, 404, id="cluster-with-a-space"),
        pytest.param("POST", f"{RECORD}/cluster/{'c' * 129}", {}, 404, id="cluster-too-long"),
        pytest.param("POST", RECORD, {"Authorization": ""}, 401, id="no-token"),
        pytest.param("POST", RECORD, {"Authorization": "Bearer x"}, 401, id="wrong-token"),
        pytest.param(
            "POST", RECORD, {"Authorization": "Basic sandbox-token"}, 401, id="wrong-scheme"
        ),
        pytest.param("POST", RECORD, {"User-Agent": ""}, 403, id="no-user-agent"),
        pytest.param("POST", RECORD, {"Accept": "*/*"}, 415, id="wrong-accept"),
        pytest.param("POST", RECORD, {"X-GitHub-Api-Version": ""}, 400, id="no-version"),
        pytest.param("POST", RECORD, {"Content-Type": "text/plain"}, 415, id="wrong-type"),
    ],
)
async def test_a_request_with_a_wrong_head_is_refused(
    client: Client, method: str, path: str, changed: dict[str, str], expected: int
) -> None:
    headers = {**HEADERS, "Content-Type": "application/json", **changed}
    status, body, _ = await client.request(method, path, headers, json.dumps(single()).encode())

    assert status == expected
    assert body["message"]
    assert body["documentation_url"].startswith("https://docs.github.com/")
    assert len(client.github.table) == 0


@pytest.mark.parametrize(
    ("body", "expected", "field"),
    [
        pytest.param(b"{", 400, None, id="not-json"),
        pytest.param(b"[" * 100_000, 400, None, id="too-deep"),
        pytest.param([], 400, None, id="not-an-object"),
        pytest.param(without(single(), "name"), 422, "name", id="no-name"),
        pytest.param(without(single(), "status"), 422, "status", id="no-status"),
        pytest.param(
            without(single(), "logical_environment"), 422, "logical_environment", id="no-env"
        ),
        pytest.param(single(name=""), 422, "name", id="empty-name"),
        pytest.param(single(name="n" * 257), 422, "name", id="long-name"),
        pytest.param(single(name=1), 422, "name", id="name-a-number"),
        pytest.param(single(digest="sha256:" + "A" * 64), 422, "digest", id="upper-case-digest"),
        pytest.param(single(digest="a" * 64), 422, "digest", id="bare-digest"),
        pytest.param(single(digest=A + "\n"), 422, "digest", id="digest-and-newline"),
        pytest.param(single(version=""), 422, "version", id="empty-version"),
        pytest.param(single(version=None), 422, "version", id="null-version"),
        pytest.param(single(version="v" * 101), 422, "version", id="long-version"),
        pytest.param(single(status="gone"), 422, "status", id="unknown-status"),
        pytest.param(
            single(logical_environment=""), 422, "logical_environment", id="empty-environment"
        ),
        pytest.param(
            single(physical_environment="p" * 129), 422, "physical_environment", id="long-physical"
        ),
        pytest.param(single(cluster="c" * 129), 422, "cluster", id="long-cluster"),
        pytest.param(single("d" * 257), 422, "deployment_name", id="long-deployment-name"),
        pytest.param(
            single(github_repository="acme/app"), 422, "github_repository", id="repository-path"
        ),
        pytest.param(single(tags={"a": 1}), 422, "tags", id="tag-a-number"),
        pytest.param(
            single(tags={str(number): "x" for number in range(6)}), 422, "tags", id="six-tags"
        ),
        pytest.param(single(runtime_risks=["fire"]), 422, "runtime_risks", id="unknown-risk"),
        pytest.param(
            single(runtime_risks=["sensitive-data"] * 2), 422, "runtime_risks", id="risk-twice"
        ),
        pytest.param(single(color="red"), 422, "color", id="unknown-field"),
    ],
)
async def test_a_single_post_that_breaks_the_contract_is_refused(
    client: Client, body: object, expected: int, field: str | None
) -> None:
    status, answer, _ = await client.post(body)

    assert status == expected
    assert [error["field"] for error in answer.get("errors", [])] == ([field] if field else [])
    assert len(client.github.table) == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(batch(), "deployments", id="empty"),
        pytest.param(
            batch(*(deployment(str(number)) for number in range(1_001))), "deployments", id="1001"
        ),
        pytest.param(
            batch(deployment(), deployment(digest=B)),
            "deployments[1].deployment_name",
            id="name-twice",
        ),
        pytest.param(
            batch(deployment("a"), deployment("b", cluster="x")),
            "deployments[1].cluster",
            id="cluster-inside",
        ),
        pytest.param(batch(deployment("a", version="")), "deployments[0].version", id="in-one"),
        pytest.param(batch(deployment(), cluster="x"), "cluster", id="cluster-in-the-body"),
        pytest.param(batch(deployment(), partial_success="yes"), "partial_success", id="flag"),
        pytest.param(batch(deployments=["x"]), "deployments[0]", id="not-an-object"),
    ],
)
async def test_a_batch_that_breaks_the_contract_is_refused_as_a_whole(
    client: Client, body: object, field: str
) -> None:
    status, answer, _ = await client.post(body, CLUSTER)

    assert status == 422
    assert [error["field"] for error in answer["errors"]] == [field]
    assert len(client.github.table) == 0
    assert client.github.history[-1].errors


async def test_a_thousand_deployments_go_in_one_batch(client: Client) -> None:
    body = batch(*(deployment(str(number)) for number in range(1_000)))

    assert (await client.post(body, CLUSTER))[0] == 200
    assert len(client.github.table) == 1_000


async def test_the_history_tells_everything_but_the_token(client: Client) -> None:
    await client.post(single())

    [exchange] = client.github.history
    assert (exchange.method, exchange.path, exchange.seq) == ("POST", RECORD, 1)
    assert exchange.payload == single()
    assert exchange.applied is not None
    assert exchange.answered is not None
    assert exchange.arrived <= exchange.applied <= exchange.answered
    assert exchange.arrived_at.tzinfo is not None
    assert exchange.peer[0] == "127.0.0.1"
    assert "sandbox-token" not in repr(exchange)
    assert str(exchange).startswith("#1 ")
    assert exchange.outcomes() == {"shop/web/app": Outcome.ACKNOWLEDGED}


@pytest.mark.parametrize(
    ("behaviour", "expected", "applied"),
    [
        pytest.param(answers(429, headers={"Retry-After": "2"}), 429, False, id="limited"),
        pytest.param(answers(403, body={"message": "secondary rate limit"}), 403, False, id="403"),
        pytest.param(answers(500), 500, False, id="500"),
        pytest.param(answers(503, apply=Apply.BEFORE), 503, True, id="503-after-applying"),
        pytest.param(answers(401), 401, False, id="401"),
        pytest.param(answers(404), 404, False, id="404"),
        pytest.param(answers(422), 422, False, id="422"),
        pytest.param(answers(202), 202, False, id="202"),
        pytest.param(answers(204), 204, False, id="204"),
        pytest.param(
            answers(307, headers={"Location": "http://127.0.0.1:1/"}), 307, False, id="307"
        ),
        pytest.param(pretends(), 200, False, id="acknowledges-without-applying"),
        pytest.param(garbles(), 200, True, id="garbage"),
        pytest.param(garbles(b""), 200, True, id="empty-body"),
        pytest.param(delays(0.01), 200, True, id="delayed"),
        pytest.param(lands_late(0.01), 200, True, id="lands-late-and-answers"),
        pytest.param(lands_late(0.01, answer=504), 504, True, id="lands-after-504"),
        pytest.param(drips(0.0), 200, True, id="drips"),
        pytest.param(
            speaks(b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            418,
            False,
            id="raw",
        ),
        pytest.param(drops(applied=True), None, True, id="drops-after-applying"),
        pytest.param(drops(applied=False), None, False, id="drops-before-applying"),
        pytest.param(truncates(), None, True, id="truncates"),
        pytest.param(speaks(b"nonsense\r\n\r\n"), None, False, id="not-http"),
    ],
)
async def test_a_script_parts_what_is_applied_from_what_is_answered(
    client: Client, behaviour: Behaviour, expected: int | None, *, applied: bool
) -> None:
    script = client.github.script(behaviour, times=1)

    if expected is None:
        with pytest.raises(LOST):
            await client.post(single())
    else:
        status, _, headers = await client.post(single())
        assert status == expected
        assert behaviour.headers.items() <= headers.items()
    if applied:
        await client.github.until(lambda: client.github.deployed() == {"shop/web/app": A})
    [exchange] = script.used
    assert (exchange.applied is not None) == applied
    assert exchange.scripted == behaviour.title

    assert (await client.post(single("next")))[0] == 200
    assert client.github.history[-1].scripted == ""


@pytest.mark.parametrize(
    ("behaviour", "path", "outcome"),
    [
        pytest.param(garbles(), RECORD, Outcome.ACKNOWLEDGED, id="single-unreadable"),
        pytest.param(truncates(), RECORD, Outcome.ACKNOWLEDGED, id="single-truncated"),
        pytest.param(garbles(), CLUSTER, Outcome.OPEN, id="batch-unreadable"),
        pytest.param(truncates(), CLUSTER, Outcome.OPEN, id="batch-truncated"),
        pytest.param(answers(200, body={}), RECORD, Outcome.ACKNOWLEDGED, id="single-no-list"),
        pytest.param(
            answers(200, body={"deployment_records": []}), RECORD, Outcome.OPEN, id="single-absent"
        ),
        pytest.param(
            answers(207, body={"deployment_records": []}), CLUSTER, Outcome.OPEN, id="batch-absent"
        ),
        pytest.param(answers(202), RECORD, Outcome.OPEN, id="other-success"),
        pytest.param(answers(301), RECORD, Outcome.REFUSED, id="redirect"),
        pytest.param(answers(422), CLUSTER, Outcome.REFUSED, id="refused"),
        pytest.param(answers(500), RECORD, Outcome.OPEN, id="server-error"),
        pytest.param(drops(applied=True), RECORD, Outcome.OPEN, id="dropped"),
    ],
)
async def test_an_outcome_is_what_the_answer_that_left_says(
    client: Client, behaviour: Behaviour, path: str, outcome: Outcome
) -> None:
    client.github.script(behaviour)
    body = single() if path == RECORD else batch(deployment())

    try:
        await client.post(body, path)
    except LOST:
        assert client.github.history[-1].cut

    assert client.github.history[-1].outcomes() == {"shop/web/app": outcome}


async def test_what_is_held_lands_when_released_though_the_client_has_left(client: Client) -> None:
    script = client.github.script(lands_late(), times=1)

    with pytest.raises(TimeoutError):
        await client.post(single(digest=A), timeout_seconds=0.05)
    [late] = script.used
    await client.github.until(lambda: late.gone is not None, why="the client's leaving")
    await client.post(single(digest=B))
    assert client.github.deployed() == {"shop/web/app": B}

    script.release()
    await client.github.until(lambda: late.applied is not None)
    assert client.github.deployed() == {"shop/web/app": A}
    assert late.status is None
    assert late.ended == late.gone
    assert late.outcomes() == {"shop/web/app": Outcome.OPEN}


@pytest.mark.parametrize("applied", [True, False])
async def test_a_hang_ends_with_the_release(client: Client, *, applied: bool) -> None:
    client.github.script(hangs(applied=applied))
    waiting = asyncio.create_task(client.post(single()))
    await client.github.until(lambda: len(client.github.history) == 1)
    [exchange] = client.github.history
    assert exchange.ended is None

    client.github.heal()

    if applied:
        assert (await waiting)[0] == 200
    else:  # once, it was acknowledged
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await waiting
    assert (exchange.applied is not None) == applied


async def test_a_drip_that_is_never_released_hangs_after_the_head(client: Client) -> None:
    client.github.script(drips(RELEASED))

    with pytest.raises(TimeoutError):
        await client.post(single(), timeout_seconds=0.05)

    assert client.github.history[-1].status == 200
    assert not client.github.history[-1].whole


async def test_a_script_meets_only_what_matches_and_the_first_one_wins(client: Client) -> None:
    def named(name: str) -> Callable[[Exchange], bool]:
        return lambda exchange: name in exchange.names

    github = client.github
    github.script(answers(500), match=named("a"), times=1)
    github.script(answers(429), match=named("a"), times=1)

    seen = [(await client.post(single(name)))[0] for name in ("b", "a", "a", "a")]

    assert seen == [200, 500, 429, 200]


async def test_posts_beyond_the_limit_of_a_minute_are_refused_with_the_headers(
    client: Client,
) -> None:
    client.github.posts_per_minute = 2

    seen = [await client.post(single(str(number))) for number in range(3)]

    assert [status for status, _, _ in seen] == [200, 200, 403]
    assert seen[-1][2]["x-ratelimit-remaining"] == "0"
    assert int(seen[-1][2]["x-ratelimit-reset"]) > 0
    assert len(client.github.table) == 2


async def test_the_secondary_limit_holds_for_a_minute_whatever_the_rate_is_then(
    client: Client,
) -> None:
    github = client.github
    github.posts_without_abuse = 2

    seen = [await client.post(single(str(number))) for number in range(3)]
    github.posts_without_abuse = 1000
    seen.append(await client.post(single("3")))

    assert [status for status, _, _ in seen] == [200, 200, 403, 403]
    assert "secondary rate limit" in seen[-1][1]["message"]
    assert seen[-1][2]["Retry-After"] == "60"
    assert int(seen[-1][2]["x-ratelimit-remaining"]) > 0
    github.heal()
    assert (await client.post(single("4")))[0] == 200


async def test_an_organization_that_is_not_one_is_not_found() -> None:
    github = SimulatedGitHub(orgs=frozenset({"Acme"}))
    async with github, aiohttp.ClientSession() as session:
        client = Client(github, session)
        assert (await client.post(single()))[0] == 200
        assert (await client.post(single(), RECORD.replace("acme", "other")))[0] == 404


async def test_down_refuses_connections_and_up_listens_at_the_same_place(client: Client) -> None:
    await client.post(single())
    url = client.github.url

    await client.github.down()
    with pytest.raises(LOST):
        await client.post(single())
    await client.github.up()

    assert client.github.url == url
    assert (await client.post(single()))[0] == 200


async def test_waiting_in_vain_shows_the_table_and_the_last_requests(client: Client) -> None:
    await client.post(single())

    with pytest.raises(NotReachedError, match=r"a miracle in vain") as caught:
        await client.github.until(NEVER_HOLDS, within=0.01, why="a miracle")

    assert "shop/web/app" in str(caught.value)
    assert "#1 " in str(caught.value)


async def test_leaving_while_requests_are_held_ends_them_unapplied() -> None:
    async with aiohttp.ClientSession() as session:
        async with SimulatedGitHub() as github:
            github.script(lands_late())
            waiting = asyncio.create_task(Client(github, session).post(single()))
            await github.until(lambda: len(github.history) == 1)
        with pytest.raises(LOST):
            await waiting
    assert len(github.table) == 0
