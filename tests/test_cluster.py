"""Lists and credentials, against the simulated API server."""

import asyncio
import base64
import json
import os
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.builders import raw_pod, workload
from tracker.catalog import KINDS
from tracker.cluster import Cluster
from tracker.errors import CredentialsError, ListError
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.outages import Fault, Hang, Match, RawAnswer, Refuse, Truncate
from tracker.workloads import Owner, Workload

LISTS = Match(verb="list", resource="pods")
USER_AGENT = "deployment-tracker/test"


LATER_PAGES = Match(verb="list", resource="pods", paged=True)


@pytest.fixture
async def server() -> AsyncIterator[SimulatedCluster]:
    async with SimulatedCluster() as opened:
        yield opened


@asynccontextmanager
async def cluster_of(
    server: SimulatedCluster, folder: Path, *, namespace: str = "", **environ: str
) -> AsyncIterator[Cluster]:
    async with Cluster(
        kubeconfig=server.write_kubeconfig(folder / "kubeconfig"),
        environ=environ,
        namespace=namespace,
        user_agent=USER_AGENT,
    ) as opened:
        yield opened


def fill(server: SimulatedCluster, count: int, *, namespace: str = "shop") -> set[str]:
    return {
        server.create(raw_pod(f"{namespace}-{number}", namespace=namespace, name=f"p-{number}"))[
            "metadata"
        ]["uid"]
        for number in range(count)
    }


def lists_of(server: SimulatedCluster) -> list[Mapping[str, str]]:
    return [request.query for request in server.requests if request.verb == "list"]


async def test_all_pods_are_listed_by_uid(server: SimulatedCluster, tmp_path: Path) -> None:
    shop, blog = fill(server, 3), fill(server, 2, namespace="blog")
    async with cluster_of(server, tmp_path) as cluster:
        assert await cluster.pod_uids(None) == shop | blog
        assert await cluster.pod_uids("blog") == blog
        assert await cluster.pod_uids("empty") == frozenset()
    assert {request.user_agent for request in server.requests} == {USER_AGENT}


async def test_one_namespace_is_listed_where_one_is_watched(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    shop = fill(server, 3)
    fill(server, 2, namespace="blog")
    async with cluster_of(server, tmp_path, namespace="shop") as cluster:
        assert await cluster.pod_uids(None) == shop
        assert set(await cluster.list_pods()) == shop
        assert len([pod async for pod in cluster.each_pod()]) == 3
    assert {request.namespace for request in server.requests} == {"shop"}


@pytest.mark.parametrize(("pods", "page", "pages"), [(0, 2, 1), (2, 2, 1), (5, 2, 3), (6, 2, 3)])
async def test_a_list_is_taken_in_consistent_pages_to_its_end(
    server: SimulatedCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pods: int,
    page: int,
    pages: int,
) -> None:
    monkeypatch.setattr("tracker.cluster.PAGE", page)
    uids = fill(server, pods)
    async with cluster_of(server, tmp_path) as cluster:
        assert await cluster.pod_uids(None) == uids
    queries = lists_of(server)
    assert len(queries) == pages
    for query in queries:
        assert query["limit"] == str(page)
        assert "resourceVersion" not in query, "a cache may be behind"
        assert "resourceVersionMatch" not in query


async def test_whole_pods_are_asked_for_page_by_page_as_they_are_taken(
    server: SimulatedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod may be many kilobytes: ten thousand of them at once are more than a limit allows."""
    monkeypatch.setattr("tracker.cluster.PAGE", 2)
    fill(server, 6)
    async with cluster_of(server, tmp_path) as cluster:
        asked = [len(lists_of(server)) async for _ in cluster.each_pod()]
    assert asked == [1, 1, 2, 2, 3, 3]


async def test_a_listed_pod_has_its_name_and_version(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    made = server.create(raw_pod("1"))
    async with cluster_of(server, tmp_path) as cluster:
        (listed,) = (await cluster.list_pods()).values()
    assert (listed.namespace, listed.name) == ("shop", made["metadata"]["name"])
    assert listed.version == int(made["metadata"]["resourceVersion"])


async def test_a_pod_is_fetched_whole_or_is_none(server: SimulatedCluster, tmp_path: Path) -> None:
    made = server.create(raw_pod("1"))
    async with cluster_of(server, tmp_path) as cluster:
        await cluster.list_pods()  # metadata only: the other form must not stick
        assert await cluster.fetch_pod("shop", made["metadata"]["name"]) == made
        (whole,) = [pod async for pod in cluster.each_pod()]
        assert isinstance(whole, dict)
        assert whole["spec"] == made["spec"]
        assert await cluster.fetch_pod("shop", "missing") is None


BROKEN: list[Any] = [
    pytest.param(Refuse(code=403), id="forbidden"),
    pytest.param(Refuse(code=401), id="unauthorized"),
    pytest.param(Refuse(code=429, retry_after=1), id="too-many-requests"),
    pytest.param(Refuse(code=500), id="error"),
    pytest.param(Refuse(code=503), id="unavailable"),
    pytest.param(Refuse(code=410, reason="Expired"), id="expired"),
    pytest.param(RawAnswer(), id="html"),
    pytest.param(RawAnswer(code=502), id="html-502"),
    pytest.param(RawAnswer(body=b""), id="empty"),
    pytest.param(RawAnswer(body=b"[]"), id="array"),
    pytest.param(RawAnswer(body=b"{}"), id="no-kind"),
    pytest.param(RawAnswer(body=b'{"kind":"Status"}'), id="another-kind"),
    pytest.param(RawAnswer(body=b'{"kind":"PodList","items":7}'), id="items-no-list"),
    pytest.param(RawAnswer(body=b'{"kind":"PodList","items":[{}]}'), id="no-uids"),
    pytest.param(RawAnswer(body=b'{"kind":"PodList","items":[null]}'), id="null-item"),
    pytest.param(RawAnswer(body=b"[" * 100_000), id="deep"),
    pytest.param(RawAnswer(body=b"\xff\xfe"), id="no-text"),
    pytest.param(Truncate(), id="truncated"),
]


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        *(pytest.param(*case.values, LISTS, id=f"{case.id}-at-once") for case in BROKEN),
        pytest.param(Refuse(code=403), LATER_PAGES, id="forbidden-later"),
        pytest.param(Refuse(code=503), LATER_PAGES, id="unavailable-later"),
        pytest.param(RawAnswer(), LATER_PAGES, id="html-later"),
        pytest.param(
            RawAnswer(body=b'{"kind":"PodList","items":7}'), LATER_PAGES, id="items-later"
        ),
        pytest.param(Truncate(), LATER_PAGES, id="truncated-later"),
    ],
)
async def test_a_list_that_does_not_come_to_its_end_is_no_list(
    server: SimulatedCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    match: Match,
) -> None:
    monkeypatch.setattr("tracker.cluster.PAGE", 2)
    uids = fill(server, 5)
    async with cluster_of(server, tmp_path) as cluster:
        server.inject(fault, match=match, times=1)
        with pytest.raises(ListError) as failed:
            await cluster.pod_uids(None)
        assert str(failed.value).isprintable()
        assert len(lists_of(server)) == (1 if match is LISTS else 2)
        assert await cluster.pod_uids(None) == uids, "the next list is whole again"


async def test_an_expired_continue_token_ends_the_list(
    server: SimulatedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.cluster.PAGE", 2)
    uids = fill(server, 5)
    async with cluster_of(server, tmp_path) as cluster:
        expires = server.inject(Refuse(code=410, reason="Expired"), match=LATER_PAGES)
        with pytest.raises(ListError, match="410"):
            await cluster.pod_uids(None)
        server.remove(expires)
        assert await cluster.pod_uids(None) == uids


async def test_a_server_that_hangs_is_left_after_a_time(
    server: SimulatedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.cluster.LIST_SECONDS", 0.3)
    async with cluster_of(server, tmp_path) as cluster:
        for after_headers in (False, True):
            hang = server.inject(Hang(after_headers=after_headers), match=LISTS)
            with pytest.raises(ListError):
                await cluster.pod_uids(None)
            server.remove(hang)
        assert await cluster.pod_uids(None) == frozenset()


async def test_a_server_that_is_away_is_no_empty_cluster(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    uids = fill(server, 1)
    async with cluster_of(server, tmp_path) as cluster:
        await server.pause()
        with pytest.raises(ListError):
            await cluster.pod_uids(None)
        await server.resume()
        assert await cluster.pod_uids(None) == uids


async def test_a_rotated_token_is_found_after_it_was_refused(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    uids = fill(server, 1)
    async with cluster_of(server, tmp_path) as cluster:
        assert await cluster.pod_uids(None) == uids
        server.token = "rotated"  # noqa: S105 - the sandbox's
        with pytest.raises(ListError, match="401"):
            await cluster.pod_uids(None)
        server.write_kubeconfig(tmp_path / "kubeconfig")
        assert await cluster.pod_uids(None) == uids


async def test_a_hostile_message_is_one_printable_line(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    async with cluster_of(server, tmp_path) as cluster:
        server.inject(Refuse(code=403, message="no\n[fake] OK\x1b[31m\u202e" + "x" * 5000))
        with pytest.raises(ListError) as failed:
            await cluster.pod_uids(None)
        assert str(failed.value).isprintable()
        assert len(str(failed.value)) < 400


async def test_proxies_of_the_environment_are_not_used(
    server: SimulatedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    uids = fill(server, 1)
    async with cluster_of(server, tmp_path) as cluster:
        assert await cluster.pod_uids(None) == uids


@asynccontextmanager
async def refusing_proxy() -> AsyncIterator[tuple[int, list[bytes]]]:
    """Yield the port of a proxy that lets nobody through, and the heads of what it was asked."""
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


def behind(path: Path, server: SimulatedCluster, *, url: str, proxy: str = "") -> Cluster:
    """Return the cluster of a kubeconfig that names this address and this proxy."""
    named = f"{url}\n      proxy-url: {json.dumps(proxy)}" if proxy else json.dumps(url)
    path.write_text(server.kubeconfig().replace(server.url, named))
    return Cluster(kubeconfig=path, environ={}, namespace="", user_agent=USER_AGENT)


async def get(cluster: Cluster) -> str:
    """Ask for pods as the watch does; return what comes of it, in words."""

    def unheard() -> None:
        pass

    connection = await cluster.connect(
        on_ask=unheard, on_list=unheard, on_page=unheard, on_watch=unheard
    )
    async with connection.session as session:
        try:
            async with session.get(f"{connection.server}/api/v1/pods") as response:
                return str(response.status)
        except aiohttp.ClientError as error:
            return str(error)


@pytest.mark.fault("G22")
@pytest.mark.parametrize("url", ["https://10.1.2.3:6443", "http://10.1.2.3:8080"])
async def test_a_proxy_gets_its_own_password_and_nobody_else_does(
    server: SimulatedCluster, tmp_path: Path, url: str
) -> None:
    """
    The HTTP client tells its address, password and all, when it refuses.

    And it took the token that the watch's session presents to the API server for the proxy's,
    where the proxy's address had no password: in the clear, at each connection.
    """
    path = tmp_path / "kubeconfig"
    async with refusing_proxy() as (port, heads):
        for user, expected in (
            ("user:p%40canary@", base64.b64encode(b"user:p@canary")),
            ("", None),
        ):
            proxy = f"http://{user}127.0.0.1:{port}"
            heads.clear()
            async with behind(path, server, url=url, proxy=proxy) as cluster:
                with pytest.raises(ListError, match="407") as failed:
                    await cluster.pod_uids(None)
                said = await get(cluster)
            assert "407" in said
            assert "canary" not in f"{said} {failed.value} {failed.value.__cause__}"
            assert len(heads) == 2
            for head in heads:
                named = [line for line in head.split(b"\r\n") if b"proxy-auth" in line.lower()]
                value = None if expected is None else b"Proxy-Authorization: Basic " + expected
                assert named == ([] if value is None else [value])
                assert f"\r\nUser-Agent: {USER_AGENT}\r\n".encode() in head
                assert url.startswith("http:") or server.token.encode() not in head


@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:canary@[proxy",
        "http://user:canary℀@proxy:3128",
        "http://user:canary@proxy:port",
        "http://proxy:canary",
        "socks5://user:canary@proxy:1080",
        "user:canary@proxy:3128",
    ],
)
async def test_a_proxy_that_is_none_is_told_before_anything_is_connected_to(
    server: SimulatedCluster, tmp_path: Path, proxy: str
) -> None:
    path = tmp_path / "kubeconfig"
    async with behind(path, server, url=server.url, proxy=proxy) as cluster:
        with pytest.raises(CredentialsError, match="proxy-url") as failed:
            await cluster.check_credentials()
    assert str(path) in str(failed.value)
    assert "canary" not in "".join(traceback.format_exception(failed.value))


async def test_credentials_are_looked_for_in_the_order_of_kubectl(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    home = tmp_path / "home" / ".kube"
    home.mkdir(parents=True)
    server.write_kubeconfig(home / "config")
    named = tmp_path / "named"
    named.write_text(server.kubeconfig().replace(server.url, "http://127.0.0.1:1"))
    environ = {"HOME": str(tmp_path / "home"), "KUBECONFIG": str(named)}
    for kubeconfig, environment, host in (
        (None, {"HOME": environ["HOME"]}, server.url),
        (None, environ, "http://127.0.0.1:1"),
        (home / "config", environ, server.url),
    ):
        async with Cluster(
            kubeconfig=kubeconfig, environ=environment, namespace="", user_agent=USER_AGENT
        ) as cluster:
            assert (await cluster.check_credentials()).server == host
    assert server.requests == [], "checking connects to nothing"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param("", "", id="empty"),
        pytest.param("{}", "", id="no-clusters"),
        pytest.param("- not\n- a mapping\n", "", id="a-list"),
        pytest.param("{{ not yaml", "", id="no-yaml"),
        pytest.param("current-context: x\n", "", id="unknown-context"),
    ],
)
async def test_credentials_that_can_not_be_used_are_told_before_anything_is_connected_to(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    async with Cluster(kubeconfig=path, environ={}, namespace="", user_agent=USER_AGENT) as cluster:
        with pytest.raises(CredentialsError) as failed:
            await cluster.check_credentials()
        assert str(path) in str(failed.value)
        assert reason in str(failed.value)
        assert str(failed.value).isprintable()
        with pytest.raises(ListError):
            await cluster.pod_uids(None)


async def test_two_clusters_have_two_fingerprints(server: SimulatedCluster, tmp_path: Path) -> None:
    fingerprints = set()
    for url in (server.url, "http://127.0.0.1:1", server.url):
        path = tmp_path / "kubeconfig"
        path.write_text(server.kubeconfig().replace(server.url, url))
        async with Cluster(
            kubeconfig=path, environ=os.environ, namespace="", user_agent=USER_AGENT
        ) as cluster:
            fingerprints.add((await cluster.check_credentials()).fingerprint)
    assert len(fingerprints) == 2
    assert server.token not in json.dumps(sorted(fingerprints))


async def test_a_user_in_the_server_s_address_is_let_in_and_told_nowhere(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    """As client-go does it: who has a token is known by that, and nobody else loses the user."""
    uids = fill(server, 1)
    url = server.url.replace("://", "://me:c%40nary@")
    path = tmp_path / "kubeconfig"
    basic = base64.b64encode(b"me:c@nary").decode()
    token = f"token: {server.token}"
    fingerprints = set()
    for user, secret in ((token, server.token), ("username: only", basic)):
        kubeconfig = server.kubeconfig().replace(server.url, url).replace(token, user)
        path.write_text(kubeconfig)
        async with Cluster(
            kubeconfig=path, environ={}, namespace="", user_agent=USER_AGENT
        ) as cluster:
            endpoint = await cluster.check_credentials()
            assert endpoint.server == server.url
            fingerprints.add(endpoint.fingerprint)
            configuration = await cluster._configuration()  # noqa: SLF001 - what it presents
            kind = "Bearer" if user == token else "Basic"
            assert configuration.api_key["BearerToken"] == f"{kind} {secret}"
            assert configuration.host == server.url
            if user == token:
                assert await cluster.pod_uids(None) == uids
                assert await get(cluster) == "200"
            else:
                with pytest.raises(ListError, match="401"):
                    await cluster.pod_uids(None)
    async with cluster_of(server, tmp_path) as plain:
        fingerprints.add((await plain.check_credentials()).fingerprint)
    assert len(fingerprints) == 1, "a password is no part of which cluster it is"


@pytest.mark.parametrize("url", ["https://me:canary@[host", "me:canary@host", "https://me:canary@"])
async def test_a_server_s_address_that_is_none_is_told_without_its_password(
    server: SimulatedCluster, tmp_path: Path, url: str
) -> None:
    async with behind(tmp_path / "kubeconfig", server, url=url) as cluster:
        with pytest.raises(CredentialsError, match="server") as failed:
            await cluster.check_credentials()
    assert "canary" not in "".join(traceback.format_exception(failed.value))


# Workloads.

DEPLOYMENT = KINDS["Deployment"]


def put(
    server: SimulatedCluster,
    name: str,
    *,
    namespace: str = "shop",
    **metadata: Any,  # noqa: ANN401 - raw JSON
) -> Workload:
    server.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace, **metadata},
            "spec": {"replicas": 1},
        }
    )
    return workload(name, namespace=namespace)


async def test_workloads_are_listed_by_their_metadata_in_pages(
    server: SimulatedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.cluster.WORKLOAD_PAGE", 2)
    said = {"metadata.github.com/team": "x"}
    expected = {put(server, name) for name in ("api", "db", "web")}
    tagged = put(server, "tagged", annotations=said, namespace="other")
    async with cluster_of(server, tmp_path) as cluster:
        everywhere = await cluster.list_workloads(DEPLOYMENT, None)
        here = await cluster.list_workloads(DEPLOYMENT, "shop")
    assert everywhere.keys() == {*expected, tagged}
    assert here.keys() == expected
    assert everywhere[tagged].marks.tags == (("team", "x"),)
    lists = [each for each in server.requests if each.resource == "deployments"]
    assert [each.namespace for each in lists] == ["", "", "shop", "shop"]
    assert {each.query["limit"] for each in lists} == {"2"}


async def test_workloads_are_listed_where_pods_are_watched(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    put(server, "web", namespace="other")
    here = put(server, "web")
    async with cluster_of(server, tmp_path, namespace="shop") as cluster:
        assert (await cluster.list_workloads(DEPLOYMENT, None)).keys() == {here}


async def test_one_workload_is_fetched_or_is_not_there(
    server: SimulatedCluster, tmp_path: Path
) -> None:
    going = put(server, "going", finalizers=["foregroundDeletion"])
    server.delete("deployments", "shop", "going")
    async with cluster_of(server, tmp_path) as cluster:
        found = await cluster.fetch_workload(DEPLOYMENT, going)
        assert found is not None
        assert found.terminating
        assert await cluster.fetch_workload(DEPLOYMENT, workload("none")) is None


async def test_a_job_tells_whose_it_is(server: SimulatedCluster, tmp_path: Path) -> None:
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "report", "uid": "u"}
    server.create(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": "by-hand",
                "namespace": "shop",
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {},
        }
    )
    job = workload("by-hand", kind="Job")
    async with cluster_of(server, tmp_path) as cluster:
        (found,) = (await cluster.list_workloads(KINDS["Job"], None)).values()
        assert await cluster.fetch_workload(KINDS["Job"], job) == found
    assert found.controller == Owner(api_version="batch/v1", kind="CronJob", name="report")


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(code=403),
        Refuse(code=500),
        RawAnswer(),
        RawAnswer(content_type="application/json", body=b'{"kind": "PartialObjectMetadataList"}x'),
        RawAnswer(
            content_type="application/json",
            body=b'{"kind": "PartialObjectMetadata", "metadata": {"name": 1}}',
        ),
        RawAnswer(
            content_type="application/json",
            body=b'{"kind": "PartialObjectMetadataList", "items": [{"metadata": {}}]}',
        ),
    ],
    ids=["forbidden", "broken", "html", "no-json", "another-kind", "no-names"],
)
async def test_workloads_that_can_not_be_read_are_no_workloads(
    server: SimulatedCluster, tmp_path: Path, fault: Fault
) -> None:
    server.inject(fault, match=Match(resource="deployments"))
    async with cluster_of(server, tmp_path) as cluster:
        with pytest.raises(ListError) as refused:
            await cluster.list_workloads(DEPLOYMENT, None)
        with pytest.raises(ListError):
            await cluster.fetch_workload(DEPLOYMENT, workload("web"))
    assert str(refused.value).isprintable()
