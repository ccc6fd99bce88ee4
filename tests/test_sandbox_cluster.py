"""What only the simulated cluster has: outages on demand, the request log, the way in process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
from typing import TYPE_CHECKING, Any

import aiohttp
import kopf
import pytest
from kubernetes_asyncio import client as kubernetes
from kubernetes_asyncio import config as kubernetes_config

from tests.support.apiclient import ApiClient, ApiFailureError
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.outages import (
    Drip,
    EndStream,
    Hang,
    Match,
    RawAnswer,
    Refuse,
    StreamError,
    Truncate,
)
from tracker.sandbox.statuses import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tracker.sandbox.outages import Fault

Json = dict[str, Any]

PODS = "/api/v1/namespaces/shop/pods"
LISTS = Match(verb="list", resource="pods")
WATCHES = Match(verb="watch", resource="pods")


@pytest.fixture
async def cluster() -> AsyncIterator[SimulatedCluster]:
    async with SimulatedCluster() as running:
        yield running


@pytest.fixture
async def client(cluster: SimulatedCluster) -> AsyncIterator[ApiClient]:
    async with ApiClient(cluster.url, token=cluster.token) as opened:
        yield opened


def pod(name: str, **status: object) -> Json:
    """Return a pod in the namespace of these tests, with a status if one is given."""
    body: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "app:1"}]},
    }
    return body | {"status": status} if status else body


def names(listed: Json) -> list[str]:
    """Return the names in a list."""
    return [each["metadata"]["name"] for each in listed["items"]]


# The way in process.


async def test_what_is_created_in_process_keeps_its_status_identity_and_time(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    body = pod("a", phase="Running")
    body["metadata"] |= {"uid": "u-1", "creationTimestamp": "2024-01-15T10:30:00Z"}
    made = cluster.create(body)
    assert await client.call("GET", f"{PODS}/a") == made
    assert made["status"] == {"phase": "Running"}
    assert made["metadata"]["uid"] == "u-1"
    assert made["metadata"]["creationTimestamp"] == "2024-01-15T10:30:00Z"


async def test_a_namespace_is_made_for_what_is_created_in_it(cluster: SimulatedCluster) -> None:
    cluster.create(pod("a"))
    assert cluster.get("namespaces", "", "shop") is not None


async def test_copies_are_given_out_never_the_cluster_itself(cluster: SimulatedCluster) -> None:
    body = pod("a", phase="Pending")
    made = cluster.create(body)
    for copy in (body, made, cluster.get("pods", "shop", "a"), cluster.objects("pods")[0]):
        assert copy is not None
        copy["status"]["phase"] = "Failed"
    assert cluster.objects("pods")[0]["status"]["phase"] == "Pending"


async def test_changes_in_process_reach_a_watch_in_order(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    async with client.watch(PODS) as watch:
        made = cluster.create(pod("a"))
        cluster.patch("pods", "shop", "a", {"status": {"phase": "Running"}})
        made["metadata"].pop("resourceVersion")
        cluster.replace(made | {"status": {"phase": "Succeeded"}})
        cluster.delete("pods", "shop", "a")
        events = await watch.take(5)
    assert [(e["type"], e["object"]["status"]["phase"]) for e in events] == [
        ("ADDED", "Pending"),
        ("MODIFIED", "Running"),
        ("MODIFIED", "Succeeded"),
        ("MODIFIED", "Succeeded"),
        ("DELETED", "Succeeded"),
    ]


async def test_a_pod_deleted_in_process_waits_for_its_kubelet_unless_forced(
    cluster: SimulatedCluster,
) -> None:
    cluster.create(pod("a", phase="Running"))
    cluster.delete("pods", "shop", "a")
    going = cluster.get("pods", "shop", "a")
    assert going is not None
    assert going["metadata"]["deletionGracePeriodSeconds"] == 30
    cluster.delete("pods", "shop", "a", grace_seconds=0)
    assert cluster.objects("pods", "shop") == []


async def test_what_cannot_be_done_in_process_is_told_by_an_error(
    cluster: SimulatedCluster,
) -> None:
    cluster.create(pod("a"))
    with pytest.raises(ApiError, match=r'pods "a" already exists'):
        cluster.create(pod("a"))
    with pytest.raises(ApiError, match=r'pods "b" not found'):
        cluster.delete("pods", "shop", "b")
    with pytest.raises(LookupError, match="does not serve v1 Secret"):
        cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}})
    with pytest.raises(LookupError, match="does not serve secrets"):
        cluster.objects("secrets")


async def test_dependents_follow_their_owner_down_to_the_pods(cluster: SimulatedCluster) -> None:
    owner: Json = {}
    for kind, name in (("Deployment", "d"), ("ReplicaSet", "d-1")):
        metadata: Json = {"name": name, "namespace": "shop"}
        if owner:
            metadata["ownerReferences"] = [reference(owner)]
        owner = cluster.create({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata})
    body = pod("a", phase="Running")
    body["metadata"]["ownerReferences"] = [reference(owner)]
    cluster.create(body)
    cluster.delete("deployments", "shop", "d", propagation="Foreground")
    # The pod waits for its kubelet, and its owners for the pod.
    assert [len(cluster.objects(k)) for k in ("deployments", "replicasets", "pods")] == [1, 1, 1]
    cluster.delete("pods", "shop", "a", grace_seconds=0)
    assert [len(cluster.objects(k)) for k in ("deployments", "replicasets", "pods")] == [0, 0, 0]


def reference(owner: Json) -> Json:
    """Return the reference that makes an object a dependent of another."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


async def test_a_namespace_waits_for_pods_that_a_kubelet_has_to_stop(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    cluster.create(pod("a", phase="Running"))
    await client.call("DELETE", "/api/v1/namespaces/shop")
    code, told = await client.request("POST", PODS, pod("b"))
    assert (code, told["reason"]) == (403, "Forbidden")
    cluster.delete("pods", "shop", "a", grace_seconds=0)
    assert cluster.get("namespaces", "", "shop") is None


async def test_text_no_encoding_can_carry_is_served_escaped(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    body = pod("a")
    body["metadata"]["annotations"] = {"odd": "\ud800 \x00 \u2028 é"}
    cluster.create(body)
    async with client.watch(PODS) as watch:
        [event] = await watch.take(1)
    assert event["object"]["metadata"]["annotations"] == body["metadata"]["annotations"]


# The request log.


async def test_each_request_is_logged_as_the_api_would_name_it(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    cluster.create(pod("a"))
    await client.call("GET", PODS, query={"limit": "5"})
    await client.call("GET", f"{PODS}/a")
    await client.request("GET", f"{PODS}/b")
    await client.request("DELETE", f"{PODS}/b")
    await client.call("GET", "/apis/apps/v1")
    async with client.watch("/api/v1/pods"):
        pass
    told = [
        (each.verb, each.resource, each.namespace, each.name, each.status)
        for each in cluster.requests
    ]
    assert told == [
        ("list", "pods", "shop", "", 200),
        ("get", "pods", "shop", "a", 200),
        ("get", "pods", "shop", "b", 404),
        ("delete", "pods", "shop", "b", 404),
        ("get", "", "", "", 200),
        ("watch", "pods", "", "", 200),
    ]
    assert cluster.requests[0].query == {"limit": "5"}
    assert cluster.requests[0].user_agent.startswith("Python/")
    times = [each.at for each in cluster.requests]
    assert times == sorted(times)


async def test_a_condition_can_be_waited_for(cluster: SimulatedCluster, client: ApiClient) -> None:
    waiting = asyncio.ensure_future(cluster.until(lambda: len(cluster.objects("pods")) == 1))
    await client.call("GET", PODS)
    assert not waiting.done()
    cluster.create(pod("a"))
    await waiting
    with pytest.raises(TimeoutError):
        await cluster.until(lambda: False, within=0)


# Outages.


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (410, "Expired"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ],
)
async def test_a_request_can_be_refused_so_many_times(
    cluster: SimulatedCluster, client: ApiClient, code: int, reason: str
) -> None:
    injection = cluster.inject(Refuse(code=code), match=LISTS, times=2)
    for _ in range(2):
        answered, told = await client.request("GET", PODS)
        assert (answered, told["code"], told["reason"]) == (code, code, reason)
    assert (await client.call("GET", PODS))["items"] == []
    assert injection.hits == 2


async def test_a_refusal_can_say_when_to_come_back(cluster: SimulatedCluster) -> None:
    cluster.inject(Refuse(code=429, retry_after=7, message="slow down"))
    async with (
        aiohttp.ClientSession() as session,
        session.get(cluster.url + PODS) as response,
    ):
        assert response.headers["Retry-After"] == "7"
        assert (await response.json())["message"] == "slow down"


async def test_a_fault_hits_only_what_it_was_meant_for(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    for name in ("a", "b"):
        cluster.create(pod(name))
    cluster.inject(Refuse(code=500), match=Match(verb="list", paged=True))
    cluster.inject(Refuse(code=503), match=Match(namespace="other"))
    cluster.inject(Refuse(code=403), match=Match(path="/apis/*"))
    page = await client.call("GET", PODS, query={"limit": "1"})
    query = {"limit": "1", "continue": page["metadata"]["continue"]}
    assert (await client.request("GET", PODS, query=query))[0] == 500
    assert (await client.request("GET", "/api/v1/namespaces/other/pods"))[0] == 503
    assert (await client.request("GET", "/apis/apps/v1/deployments"))[0] == 403
    assert (await client.request("GET", f"{PODS}/a"))[0] == 200


async def test_a_fault_lasts_until_it_is_removed(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    injection = cluster.inject(Refuse(code=500))
    for _ in range(3):
        assert (await client.request("GET", PODS))[0] == 500
    cluster.remove(injection)
    assert (await client.request("GET", PODS))[0] == 200
    cluster.inject(Refuse(code=500))
    cluster.heal()
    assert (await client.request("GET", PODS))[0] == 200


async def test_a_load_balancer_may_answer_in_its_own_words(cluster: SimulatedCluster) -> None:
    cluster.inject(RawAnswer())
    async with (
        aiohttp.ClientSession() as session,
        session.get(cluster.url + PODS) as response,
    ):
        assert (response.status, response.content_type) == (200, "text/html")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(410, {"code": 410, "reason": "Expired"}, id="gone"),
        pytest.param(500, {"code": 500, "reason": "InternalError"}, id="internal"),
        pytest.param(None, {}, id="without-a-code"),
    ],
)
async def test_a_watch_can_begin_with_an_error(
    cluster: SimulatedCluster, client: ApiClient, code: int | None, expected: Json
) -> None:
    cluster.inject(StreamError(code=code, message="no"), match=WATCHES, times=1)
    async with client.watch(PODS) as watch:
        [event] = await watch.rest()
    assert event["type"] == "ERROR"
    told = {key: event["object"][key] for key in ("code", "reason") if key in event["object"]}
    assert told == expected
    assert event["object"]["message"] == "no"


async def test_a_watch_can_end_at_once(cluster: SimulatedCluster, client: ApiClient) -> None:
    cluster.create(pod("a"))
    cluster.inject(EndStream(), match=WATCHES, times=1)
    async with client.watch(PODS) as watch:
        assert await watch.rest() == []
    async with client.watch(PODS) as watch:
        assert len(await watch.take(1)) == 1


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_an_answer_can_break_off_in_the_middle(
    cluster: SimulatedCluster, client: ApiClient, verb: str
) -> None:
    cluster.create(pod("a"))
    cluster.inject(Truncate(), match=Match(verb=verb), times=1)
    query = {"watch": "1"} if verb == "watch" else {}
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
        await client.request("GET", PODS, query=query)
    assert names(await client.call("GET", PODS)) == ["a"]


@pytest.mark.parametrize("after_headers", [False, True])
async def test_a_connection_can_fall_silent(
    cluster: SimulatedCluster, client: ApiClient, *, after_headers: bool
) -> None:
    # A write, since aiohttp sends a read once more by itself when its connection is reset.
    hang = Hang(after_headers=after_headers)
    injection = cluster.inject(hang, match=Match(verb="create"), times=1)
    request = asyncio.ensure_future(client.call("POST", PODS, pod("a")))
    await cluster.until(lambda: injection.hits == 1)
    # Another request passes while the first hangs on.
    assert (await client.call("GET", PODS))["items"] == []
    assert not request.done()
    cluster.heal()
    with pytest.raises(aiohttp.ClientError):
        await request
    assert cluster.objects("pods") == []


async def test_a_client_that_gives_up_leaves_nothing_hanging(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    injection = cluster.inject(Hang(), match=LISTS)
    request = asyncio.ensure_future(client.call("GET", PODS))
    await cluster.until(lambda: injection.hits == 1)
    request.cancel()
    await asyncio.wait([request])
    cluster.remove(injection)
    assert (await client.call("GET", PODS))["items"] == []


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_an_answer_can_come_in_drips(
    cluster: SimulatedCluster, client: ApiClient, verb: str
) -> None:
    cluster.create(pod("a"))
    cluster.inject(Drip(size=7, every_seconds=0), match=Match(verb=verb))
    if verb == "list":
        assert names(await client.call("GET", PODS)) == ["a"]
        return
    async with client.watch(PODS) as watch:
        [event] = await watch.take(1)
    assert event["object"]["metadata"]["name"] == "a"


@pytest.mark.parametrize("in_mid_line", [False, True])
async def test_open_watches_can_be_cut(
    cluster: SimulatedCluster, client: ApiClient, *, in_mid_line: bool
) -> None:
    cluster.create(pod("a"))
    async with client.watch(PODS) as watch:
        await watch.take(1)
        assert cluster.cut_watches(in_mid_line=in_mid_line) == 1
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await watch.rest()
    await cluster.until(lambda: cluster.watches == 0)


async def test_open_watches_can_be_ended_or_failed(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    async with client.watch(PODS) as watch:
        cluster.create(pod("a"))
        assert cluster.end_watches() == 1
        assert [event["type"] for event in await watch.rest()] == ["ADDED"]
    async with client.watch(PODS) as watch:
        await watch.take(1)
        assert cluster.fail_watches(code=410) == 1
        [event] = await watch.rest()
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


async def test_a_frozen_watch_is_silent_until_it_goes_on(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    async with client.watch(PODS) as frozen:
        await cluster.until(lambda: cluster.watches == 1)
        assert cluster.freeze_watches() == 1
        async with client.watch(PODS) as lively:
            cluster.create(pod("a"))
            await lively.take(1)
        waiting = asyncio.ensure_future(frozen.next())
        await client.call("GET", PODS)
        assert not waiting.done()
        cluster.heal()
        event = await waiting
    assert event is not None
    assert event["object"]["metadata"]["name"] == "a"


async def test_a_frozen_watch_does_not_even_end(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    async with client.watch(PODS) as watch:
        await cluster.until(lambda: cluster.watches == 1)
        cluster.freeze_watches()
        cluster.end_watches()
        await client.call("GET", PODS)
        assert cluster.watches == 1
        cluster.heal()
        assert await watch.rest() == []


async def test_bookmarks_come_on_demand_to_who_wants_them(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    async with (
        client.watch(PODS, resourceVersion="1", allowWatchBookmarks="true") as with_bookmarks,
        client.watch(PODS, resourceVersion="1") as without,
    ):
        await cluster.until(lambda: cluster.watches == 2)
        cluster.bookmark()
        cluster.create(pod("a"))
        bookmark, added = await with_bookmarks.take(2)
        [only] = await without.take(1)
    assert (bookmark["type"], added["type"], only["type"]) == ("BOOKMARK", "ADDED", "ADDED")
    before = int(bookmark["object"]["metadata"]["resourceVersion"])
    assert before < int(added["object"]["metadata"]["resourceVersion"])


async def test_bookmarks_come_by_themselves() -> None:
    async with (
        SimulatedCluster(bookmark_seconds=0.01) as cluster,
        ApiClient(cluster.url, token=cluster.token) as client,
        client.watch(PODS, resourceVersion="1", allowWatchBookmarks="true") as watch,
    ):
        events = await watch.take(3)
    assert {event["type"] for event in events} == {"BOOKMARK"}


async def test_the_history_is_bounded() -> None:
    async with (
        SimulatedCluster(history=3) as cluster,
        ApiClient(cluster.url, token=cluster.token) as client,
    ):
        versions = [
            cluster.create(pod(name))["metadata"]["resourceVersion"]
            for name in ("a", "b", "c", "d")
        ]
        for name in ("a", "b"):
            cluster.patch("pods", "shop", name, {"metadata": {"labels": {"l": "1"}}})
        async with client.watch(PODS, resourceVersion=versions[0]) as watch:
            [event] = await watch.rest()
        async with client.watch(PODS, resourceVersion=versions[3]) as watch:
            events = await watch.take(2)
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    assert [each["type"] for each in events] == ["MODIFIED", "MODIFIED"]


async def test_a_paused_server_refuses_and_comes_back_on_the_same_port(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    cluster.create(pod("a"))
    url = cluster.url
    async with client.watch(PODS) as watch:
        [event] = await watch.take(1)
        await cluster.pause()
        with pytest.raises(aiohttp.ClientError):
            await watch.rest()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.call("GET", PODS)
    cluster.create(pod("b"))
    await cluster.resume()
    assert cluster.url == url
    version = event["object"]["metadata"]["resourceVersion"]
    async with client.watch(PODS, resourceVersion=version) as watch:
        [missed] = await watch.take(1)
    assert (missed["type"], missed["object"]["metadata"]["name"]) == ("ADDED", "b")


async def test_a_token_can_be_changed_under_a_client(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    cluster.token = "rotated"  # noqa: S105 - of a server that lives as long as this test
    assert (await client.request("GET", PODS))[0] == 401
    async with ApiClient(cluster.url, token=cluster.token) as other:
        assert (await other.call("GET", PODS))["items"] == []


@pytest.mark.parametrize(
    "fault",
    [Refuse(code=500), RawAnswer(), StreamError(), EndStream(), Truncate(), Hang(), Drip()],
    ids=lambda fault: type(fault).__name__,
)
async def test_the_cluster_stops_whatever_is_going_on(fault: Fault) -> None:
    async with ApiClient("", token=None) as client, SimulatedCluster(anonymous=True) as cluster:
        client.url = cluster.url
        cluster.create(pod("a"))
        injection = cluster.inject(fault)
        request = asyncio.ensure_future(client.request("GET", PODS))
        await cluster.until(lambda: injection.hits == 1)
    request.cancel()
    await asyncio.wait([request])


# Other people's clients.


async def test_a_kubeconfig_is_for_its_owner_only(
    cluster: SimulatedCluster, tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"
    path.touch(mode=0o644)
    assert cluster.write_kubeconfig(path) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == cluster.kubeconfig()


async def test_kubernetes_asyncio_lists_and_reads_with_the_kubeconfig(
    cluster: SimulatedCluster, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        cluster.create(pod(name, phase="Running"))
    configuration = kubernetes.Configuration()
    await kubernetes_config.load_kube_config(
        str(cluster.write_kubeconfig(tmp_path / "kubeconfig")),
        client_configuration=configuration,
    )
    async with kubernetes.ApiClient(configuration) as api:
        core = kubernetes.CoreV1Api(api)
        listed = await core.list_pod_for_all_namespaces(limit=2)
        rest = await core.list_pod_for_all_namespaces(limit=2, _continue=listed.metadata._continue)  # noqa: SLF001 - their name for it
        one = await core.read_namespaced_pod("b", "shop")
        with pytest.raises(kubernetes.ApiException) as missing:
            await core.read_namespaced_pod("nope", "shop")
    assert [each.metadata.name for each in listed.items + rest.items] == ["a", "b", "c"]
    assert one.status.phase == "Running"
    assert missing.value.status == 404


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH")
async def test_kubectl_works_with_the_kubeconfig(tmp_path: Path) -> None:
    async with SimulatedCluster(anonymous=True) as cluster:
        cluster.create(pod("a", phase="Running"))
        path = cluster.write_kubeconfig(tmp_path / "kubeconfig")
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            "get",
            "pods",
            "--all-namespaces",
            "--output",
            "json",
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(path)},
        )
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert names(json.loads(output)) == ["a"]


async def test_a_kopf_operator_follows_the_cluster_and_only_reads(
    cluster: SimulatedCluster,
) -> None:
    registry = kopf.OperatorRegistry()
    seen: list[tuple[str | None, str | None]] = []
    noted = asyncio.Event()

    @kopf.on.event("pods", registry=registry)
    async def note(event: kopf.RawEvent, name: str | None, **_: object) -> None:
        seen.append((event["type"], name))
        noted.set()

    @kopf.on.login(registry=registry)
    def login(**_: object) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=cluster.url, token=cluster.token)

    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.reconnect_backoff = 0
    stop = asyncio.Event()
    operator = asyncio.ensure_future(
        kopf.operator(
            registry=registry, settings=settings, clusterwide=True, standalone=True, stop_flag=stop
        )
    )
    watches = [
        lambda: cluster.watches == 1,
        lambda: sum(each.verb == "watch" for each in cluster.requests) > 1,
    ]
    cluster.create(pod("a"))
    await cluster.until(watches[0])
    cluster.create(pod("b"))
    cluster.fail_watches(code=410)  # it lists again
    await cluster.until(watches[1])
    cluster.delete("pods", "shop", "a", grace_seconds=0)
    async with asyncio.timeout(10):
        while ("DELETED", "a") not in seen:
            noted.clear()
            await noted.wait()
    stop.set()
    await operator
    assert ("ADDED", "b") in seen
    assert seen.count((None, "a")) == 2
    assert {each.verb for each in cluster.requests} <= {"get", "list", "watch"}


async def test_a_watch_that_cannot_begin_is_answered_with_a_status(
    cluster: SimulatedCluster, client: ApiClient
) -> None:
    cluster.inject(Refuse(code=410), match=WATCHES, times=1)
    with pytest.raises(ApiFailureError) as refused:
        async with client.watch(PODS):
            pass
    assert refused.value.body["reason"] == "Expired"
