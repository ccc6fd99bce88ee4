"""
One set of expectations for the simulated API server and for a real one.

The other tests trust the simulated cluster because of this suite: each test here runs against both,
the real half where a control plane can be had. What is compared are the parts that clients act on:
codes, reasons, the shape of lists, and the order of events.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.apiclient import MERGE, STRATEGIC, ApiClient, ApiFailureError
from tracker.sandbox.cluster import SimulatedCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.controlplane import ControlPlane

Json = dict[str, Any]

METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
METADATA_ONE = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"

namespace_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An API server under test, a client of it, and a namespace of this test's own."""

    client: ApiClient
    namespace: str
    forget: Callable[[], None]
    stranger: Callable[[str | None], ApiClient]
    reader: Callable[[], ApiClient]
    """Makes a client that may get and list the pods of the namespace, and not watch them."""

    @property
    def pods(self) -> str:
        """Return the path of the namespace's pods."""
        return f"/api/v1/namespaces/{self.namespace}/pods"

    async def create_pod(self, name: str, *, node: str = "", **labels: str) -> Json:
        """Create a pod, on a node if one is named."""
        return await self.client.call("POST", self.pods, pod(name, node=node, **labels))

    async def set_phase(self, name: str, phase: str) -> Json:
        """Set a pod's phase, as a kubelet does."""
        patch = {"status": {"phase": phase}}
        return await self.client.call(
            "PATCH", f"{self.pods}/{name}/status", patch, content_type=MERGE
        )

    async def set_labels(self, name: str, **labels: str | None) -> Json:
        """Set labels of a pod, None to take one off."""
        patch = {"metadata": {"labels": labels}}
        return await self.client.call("PATCH", f"{self.pods}/{name}", patch, content_type=MERGE)

    async def version(self) -> str:
        """Return the resource version of now."""
        listed = await self.client.call("GET", self.pods, query={"limit": "1"})
        return str(listed["metadata"]["resourceVersion"])


def pod(name: str, *, node: str = "", **labels: str) -> Json:
    """Return the least manifest of a pod."""
    spec: Json = {"containers": [{"name": "c", "image": "registry.example/app:1"}]}
    if node:
        spec["nodeName"] = node
    metadata: Json = {"name": name}
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.e2e)])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """Give the server under test with a fresh namespace."""
    namespace = f"conformance-{next(namespace_numbers)}"
    if request.param == "real":
        plane: ControlPlane = request.getfixturevalue("control_plane")

        def forget() -> None:
            # The API server answers from its own memory; only a new one asks etcd what it forgot.
            plane.compact()
            plane.stop_apiserver()
            plane.start_apiserver()

        def stranger(token: str | None) -> ApiClient:
            return ApiClient(plane.url, token=token, ca_file=plane.ca_file)

        def reader() -> ApiClient:
            token = plane.service_account_token(namespace, "reader")
            plane.apply(*rights_to_read_pods(namespace, "reader"))
            return ApiClient(plane.url, token=token, ca_file=plane.ca_file)

        async with ApiClient(plane.url, token=plane.token, ca_file=plane.ca_file) as client:
            await create_namespace(client, namespace)
            yield Server(
                client=client,
                namespace=namespace,
                forget=forget,
                stranger=stranger,
                reader=reader,
            )
        return
    async with (
        SimulatedCluster() as cluster,
        ApiClient(cluster.url, token=cluster.token) as client,
    ):
        await create_namespace(client, namespace)

        def simulated_reader() -> ApiClient:
            cluster.forbidden.add(("watch", "pods"))
            return ApiClient(cluster.url, token=cluster.token)

        yield Server(
            client=client,
            namespace=namespace,
            forget=cluster.compact,
            stranger=lambda token: ApiClient(cluster.url, token=token),
            reader=simulated_reader,
        )


def rights_to_read_pods(namespace: str, account: str) -> list[Json]:
    """Return a Role to get and list pods, and its binding to a ServiceAccount of the namespace."""
    metadata = {"name": account, "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    return [role, binding]


async def create_namespace(client: ApiClient, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await client.call("POST", "/api/v1/namespaces", body)


def names(listed: Json) -> list[str]:
    """Return the names in a list."""
    return [each["metadata"]["name"] for each in listed["items"]]


def seen(event: Json) -> tuple[str, str]:
    """Return type and name of an event."""
    return event["type"], event["object"]["metadata"]["name"]


def steps(events: list[Json]) -> list[tuple[str, str | None, int | None]]:
    """Return type, phase and deletion grace (None while not being deleted) of events."""
    return [
        (
            event["type"],
            event["object"].get("status", {}).get("phase"),
            event["object"]["metadata"].get("deletionGracePeriodSeconds"),
        )
        for event in events
    ]


# Discovery.


async def test_the_version_is_told(server: Server) -> None:
    version = await server.client.call("GET", "/version")
    assert version["major"] == "1"
    assert version["minor"].isdigit()
    assert version["gitVersion"].startswith("v")


async def test_the_groups_are_told(server: Server) -> None:
    core = await server.client.call("GET", "/api")
    assert core["versions"] == ["v1"]
    listed = await server.client.call("GET", "/apis")
    groups = {group["name"]: group for group in listed["groups"]}
    for name in ("apps", "batch"):
        assert groups[name]["preferredVersion"] == {"groupVersion": f"{name}/v1", "version": "v1"}
        assert groups[name]["preferredVersion"] in groups[name]["versions"]
        alone = await server.client.call("GET", f"/apis/{name}")
        assert (alone["kind"], alone["name"]) == ("APIGroup", name)


EVERYTHING = {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}


@pytest.mark.parametrize(
    ("root", "name", "singular", "kind", "short_names", "categories"),
    [
        pytest.param("/api/v1", "pods", "pod", "Pod", ["po"], ["all"], id="pods"),
        pytest.param(
            "/apis/apps/v1",
            "deployments",
            "deployment",
            "Deployment",
            ["deploy"],
            ["all"],
            id="deployments",
        ),
        pytest.param(
            "/apis/apps/v1",
            "replicasets",
            "replicaset",
            "ReplicaSet",
            ["rs"],
            ["all"],
            id="replicasets",
        ),
        pytest.param(
            "/apis/apps/v1",
            "statefulsets",
            "statefulset",
            "StatefulSet",
            ["sts"],
            ["all"],
            id="statefulsets",
        ),
        pytest.param(
            "/apis/apps/v1",
            "daemonsets",
            "daemonset",
            "DaemonSet",
            ["ds"],
            ["all"],
            id="daemonsets",
        ),
        pytest.param(
            "/api/v1",
            "replicationcontrollers",
            "replicationcontroller",
            "ReplicationController",
            ["rc"],
            ["all"],
            id="replicationcontrollers",
        ),
        pytest.param("/apis/batch/v1", "jobs", "job", "Job", None, ["all"], id="jobs"),
        pytest.param(
            "/apis/batch/v1", "cronjobs", "cronjob", "CronJob", ["cj"], ["all"], id="cronjobs"
        ),
    ],
)
async def test_a_resource_is_described_for_discovery(
    server: Server,
    root: str,
    name: str,
    singular: str,
    kind: str,
    short_names: list[str] | None,
    categories: list[str],
) -> None:
    listed = await server.client.call("GET", root)
    rows = {row["name"]: row for row in listed["resources"]}
    row = rows[name]
    assert (row["singularName"], row["kind"], row["namespaced"]) == (singular, kind, True)
    assert row.get("shortNames") == short_names
    assert row["categories"] == categories
    assert set(row["verbs"]) == EVERYTHING
    part = rows[f"{name}/status"]
    assert (part["singularName"], part["kind"]) == ("", kind)
    assert set(part["verbs"]) == {"get", "patch", "update"}


async def test_namespaces_are_described_for_discovery(server: Server) -> None:
    listed = await server.client.call("GET", "/api/v1")
    row = next(row for row in listed["resources"] if row["name"] == "namespaces")
    assert (row["singularName"], row["namespaced"]) == ("namespace", False)
    assert set(row["verbs"]) == EVERYTHING - {"deletecollection"}


# Lists.


async def test_an_empty_list_has_an_empty_list_of_items(server: Server) -> None:
    listed = await server.client.call("GET", server.pods)
    assert (listed["kind"], listed["apiVersion"], listed["items"]) == ("PodList", "v1", [])
    assert set(listed["metadata"]) == {"resourceVersion"}


async def test_a_namespace_that_is_not_there_lists_nothing(server: Server) -> None:
    listed = await server.client.call("GET", "/api/v1/namespaces/no-such-namespace/pods")
    assert listed["items"] == []


async def test_entries_of_a_list_carry_no_kind(server: Server) -> None:
    await server.create_pod("a")
    listed = await server.client.call("GET", server.pods)
    assert set(listed["items"][0]) == {"metadata", "spec", "status"}


async def test_a_list_is_ordered_by_name_whatever_came_first(server: Server) -> None:
    for name in ("b", "c", "a"):
        await server.create_pod(name)
    assert names(await server.client.call("GET", server.pods)) == ["a", "b", "c"]


async def test_pages_show_the_state_the_first_page_showed(server: Server) -> None:
    for name in "abcde":
        await server.create_pod(name)
    first = await server.client.call("GET", server.pods, query={"limit": "2"})
    await server.create_pod("bb")
    await server.client.call("DELETE", f"{server.pods}/d")
    query = {"limit": "2", "continue": first["metadata"]["continue"]}
    second = await server.client.call("GET", server.pods, query=query)
    query = {"limit": "2", "continue": second["metadata"]["continue"]}
    third = await server.client.call("GET", server.pods, query=query)
    assert [names(page) for page in (first, second, third)] == [["a", "b"], ["c", "d"], ["e"]]
    versions = {page["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert len(versions) == 1
    counts = [page["metadata"].get("remainingItemCount") for page in (first, second, third)]
    assert counts == [3, 1, None]
    assert "continue" not in third["metadata"]


async def test_a_list_over_all_namespaces_is_paged_too(server: Server) -> None:
    longer = f"{server.namespace}-longer"
    await create_namespace(server.client, longer)
    await server.client.call("POST", f"/api/v1/namespaces/{longer}/pods", pod("c"))
    for name in ("a", "b"):
        await server.create_pod(name)
    found, token = [], ""
    while True:
        query = {"limit": "1", "labelSelector": "!nothing"} | ({"continue": token} if token else {})
        page = await server.client.call("GET", "/api/v1/pods", query=query)
        found += [f"{e['metadata']['namespace']}/{e['metadata']['name']}" for e in page["items"]]
        token = page["metadata"].get("continue", "")
        if not token:
            break
    # The order is that of the whole key, in which a dash comes before the slash.
    assert found == sorted(found)
    expected = [f"{longer}/c", f"{server.namespace}/a", f"{server.namespace}/b"]
    assert [each for each in found if each.startswith((f"{server.namespace}/", longer))] == expected


async def test_a_page_of_a_selection_does_not_count_the_rest(server: Server) -> None:
    for name in "abc":
        await server.create_pod(name, app="x")
    query = {"limit": "2", "labelSelector": "app=x"}
    page = await server.client.call("GET", server.pods, query=query)
    assert set(page["metadata"]) == {"resourceVersion", "continue"}


async def test_a_list_at_version_zero_ignores_the_limit(server: Server) -> None:
    for name in "abc":
        await server.create_pod(name)
    # The version zero may lag behind; asked for after a consistent list it does not.
    await server.version()
    listed = await server.client.call(
        "GET", server.pods, query={"limit": "2", "resourceVersion": "0"}
    )
    assert names(listed) == ["a", "b", "c"]
    assert "continue" not in listed["metadata"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param({"resourceVersionMatch": "Exact"}, ["a"], id="exact"),
        pytest.param({"limit": "5"}, ["a"], id="a-limit-means-exact"),
        pytest.param({"resourceVersionMatch": "NotOlderThan"}, ["a", "b"], id="not-older"),
        pytest.param({}, ["a", "b"], id="no-match-means-not-older"),
        pytest.param(
            {"resourceVersionMatch": "NotOlderThan", "limit": "5"},
            ["a", "b"],
            id="not-older-with-limit",
        ),
    ],
)
async def test_a_list_at_a_version_follows_the_match(
    server: Server, query: dict[str, str], expected: list[str]
) -> None:
    await server.create_pod("a")
    version = await server.version()
    await server.create_pod("b")
    await server.version()
    listed = await server.client.call(
        "GET", server.pods, query={"resourceVersion": version} | query
    )
    assert names(listed) == expected
    assert (listed["metadata"]["resourceVersion"] == version) is (expected == ["a"])


@pytest.mark.parametrize(
    ("query", "code", "reason"),
    [
        pytest.param({"limit": "x"}, 400, "BadRequest", id="limit-no-number"),
        pytest.param({"continue": "zzz"}, 400, "BadRequest", id="forged-token"),
        pytest.param({"resourceVersion": "abc"}, 400, "BadRequest", id="version-no-number"),
        pytest.param({"resourceVersionMatch": "Exact"}, 422, "Invalid", id="match-alone"),
        pytest.param(
            {"resourceVersionMatch": "Exact", "resourceVersion": "0"},
            422,
            "Invalid",
            id="exactly-zero",
        ),
        pytest.param(
            {"resourceVersionMatch": "Foo", "resourceVersion": "3"},
            422,
            "Invalid",
            id="unknown-match",
        ),
        pytest.param({"resourceVersion": "99999999"}, 504, "Timeout", id="version-to-come"),
        pytest.param({"labelSelector": "a==b!"}, 400, "BadRequest", id="label-selector"),
        pytest.param({"labelSelector": "=x"}, 400, "BadRequest", id="label-without-key"),
        pytest.param({"labelSelector": "a b"}, 400, "BadRequest", id="unknown-operator"),
        pytest.param({"labelSelector": "a in (x"}, 400, "BadRequest", id="open-bracket"),
        pytest.param({"labelSelector": "a=x,,b"}, 400, "BadRequest", id="empty-requirement"),
        pytest.param({"fieldSelector": "foo=b"}, 400, "BadRequest", id="unknown-field"),
        pytest.param({"fieldSelector": "x"}, 400, "BadRequest", id="field-without-value"),
        pytest.param(
            {"watch": "1", "timeoutSeconds": "x"}, 400, "BadRequest", id="timeout-no-number"
        ),
        pytest.param({"watch": "1", "resourceVersion": "abc"}, 500, None, id="watch-from-nowhere"),
        pytest.param(
            {"watch": "1", "resourceVersion": "5", "resourceVersionMatch": "Exact"},
            422,
            "Invalid",
            id="watch-with-a-match",
        ),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(
    server: Server, query: dict[str, str], code: int, reason: str | None
) -> None:
    answered, body = await server.client.request("GET", server.pods, query=query)
    assert answered == code
    assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", code)
    assert body.get("reason") == reason
    assert body["message"]


async def test_a_continue_token_takes_no_version(server: Server) -> None:
    for name in "ab":
        await server.create_pod(name)
    page = await server.client.call("GET", server.pods, query={"limit": "1"})
    query = {"limit": "1", "continue": page["metadata"]["continue"], "resourceVersion": "5"}
    code, body = await server.client.request("GET", server.pods, query=query)
    assert (code, body["reason"]) == (400, "BadRequest")


# Metadata only.


async def test_a_list_of_metadata_leaves_everything_else_out(server: Server) -> None:
    await server.create_pod("a", app="x")
    code, listed = await server.client.request("GET", server.pods, accept=METADATA_LIST)
    assert code == 200
    assert listed["kind"] == "PartialObjectMetadataList"
    assert listed["apiVersion"] == "meta.k8s.io/v1"
    [entry] = listed["items"]
    assert set(entry) == {"kind", "apiVersion", "metadata"}
    assert (entry["kind"], entry["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")
    assert entry["metadata"]["labels"] == {"app": "x"}


async def test_a_list_of_metadata_is_paged(server: Server) -> None:
    for name in "abc":
        await server.create_pod(name)
    query = {"limit": "2"}
    _, first = await server.client.request("GET", server.pods, query=query, accept=METADATA_LIST)
    assert first["metadata"]["remainingItemCount"] == 1
    query["continue"] = first["metadata"]["continue"]
    _, second = await server.client.request("GET", server.pods, query=query, accept=METADATA_LIST)
    assert (names(first), names(second)) == (["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("path", "accept", "code", "kind"),
    [
        pytest.param("/a", METADATA_ONE, 200, "PartialObjectMetadata", id="one"),
        pytest.param("/a", METADATA_LIST, 406, "Status", id="one-as-a-list"),
        pytest.param("", METADATA_ONE, 406, "Status", id="a-list-as-one"),
        pytest.param(
            "",
            "application/json;as=Foo;v=v1;g=meta.k8s.io, application/json",
            200,
            "PodList",
            id="falls-back",
        ),
        pytest.param("", "application/json;as=Foo;v=v1;g=meta.k8s.io", 406, "Status", id="foo"),
        pytest.param(
            "",
            f"application/vnd.acme, {METADATA_LIST}",
            200,
            "PartialObjectMetadataList",
            id="second-choice",
        ),
        pytest.param("", "*/*", 200, "PodList", id="anything"),
        pytest.param("", "text/html", 406, "Status", id="html"),
    ],
)
async def test_the_form_follows_the_accept_header(
    server: Server, path: str, accept: str, code: int, kind: str
) -> None:
    await server.create_pod("a")
    answered, body = await server.client.request("GET", server.pods + path, accept=accept)
    assert (answered, body["kind"]) == (code, kind)


async def test_a_watch_of_metadata_sends_metadata(server: Server) -> None:
    await server.create_pod("a")
    async with server.client.watch(
        server.pods, accept=METADATA_ONE, allowWatchBookmarks="true"
    ) as watch:
        added, bookmark = await watch.take(2)
        await server.set_phase("a", "Running")
        [modified] = await watch.take(1)
    assert set(added["object"]) == {"kind", "apiVersion", "metadata"}
    assert added["object"]["kind"] == modified["object"]["kind"] == "PartialObjectMetadata"
    assert (bookmark["type"], bookmark["object"]["kind"]) == ("BOOKMARK", "PartialObjectMetadata")


# Watches.


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}, {"resourceVersion": ""}])
async def test_a_watch_without_a_version_begins_with_what_is_there(
    server: Server, query: dict[str, str]
) -> None:
    for name in ("b", "a"):
        await server.create_pod(name)
    await server.version()
    async with server.client.watch(server.pods, **query) as watch:
        first = await watch.take(2)
        await server.create_pod("c")
        [third] = await watch.take(1)
    assert sorted(map(seen, first)) == [("ADDED", "a"), ("ADDED", "b")]
    assert seen(third) == ("ADDED", "c")
    assert third["object"]["kind"] == "Pod"


async def test_a_watch_from_a_version_sends_what_came_after_it_in_order(server: Server) -> None:
    await server.create_pod("a")
    version = await server.version()
    await server.create_pod("b")
    await server.set_phase("a", "Running")
    await server.client.call("DELETE", f"{server.pods}/b")
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        events = await watch.take(4)
    assert [seen(event) for event in events] == [
        ("ADDED", "b"),
        ("MODIFIED", "a"),
        ("MODIFIED", "b"),
        ("DELETED", "b"),
    ]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))
    assert versions[0] > int(version)


async def test_a_watch_resumes_after_each_event_it_has_seen(server: Server) -> None:
    version = await server.version()
    for name in "abc":
        await server.create_pod(name)
    resumed = []
    for _ in range(3):
        async with server.client.watch(server.pods, resourceVersion=version) as watch:
            [event] = await watch.take(1)
        version = event["object"]["metadata"]["resourceVersion"]
        resumed.append(seen(event))
    assert resumed == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")]


async def test_a_watch_can_begin_at_the_version_of_a_list(server: Server) -> None:
    await server.create_pod("a")
    version = await server.version()
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        await server.create_pod("b")
        [event] = await watch.take(1)
    assert seen(event) == ("ADDED", "b")


async def test_a_watch_of_a_namespace_sees_no_other(server: Server) -> None:
    other = f"{server.namespace}-other"
    await create_namespace(server.client, other)
    version = await server.version()
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        await server.client.call("POST", f"/api/v1/namespaces/{other}/pods", pod("elsewhere"))
        await server.create_pod("here")
        [event] = await watch.take(1)
    assert seen(event) == ("ADDED", "here")


async def test_a_watch_of_everything_sees_each_namespace(server: Server) -> None:
    version = await server.version()
    async with server.client.watch("/api/v1/pods", resourceVersion=version) as watch:
        await server.create_pod("here")
        [event] = await watch.take(1)
    assert event["object"]["metadata"]["namespace"] == server.namespace


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"resourceVersion": "0"},
        {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"},
    ],
)
async def test_the_end_of_the_initial_events_is_marked_by_a_bookmark(
    server: Server, query: dict[str, str]
) -> None:
    await server.create_pod("a")
    version = await server.version()
    async with server.client.watch(
        server.pods, allowWatchBookmarks="true", timeoutSeconds="2", **query
    ) as watch:
        added, bookmark = await watch.take(2)
    assert seen(added) == ("ADDED", "a")
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["kind"] == "Pod"
    metadata = bookmark["object"]["metadata"]
    assert int(metadata["resourceVersion"]) >= int(version)
    assert metadata["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_watch_ends_in_order_at_its_timeout(server: Server) -> None:
    version = await server.version()
    async with server.client.watch(
        server.pods, resourceVersion=version, timeoutSeconds="1"
    ) as watch:
        assert await watch.rest() == []


async def test_a_watch_for_a_version_to_come_waits(server: Server) -> None:
    async with server.client.watch(
        server.pods, resourceVersion="99999999", timeoutSeconds="1"
    ) as watch:
        await server.create_pod("a")
        assert await watch.rest() == []


async def test_a_watch_from_a_forgotten_version_is_told_so_in_the_stream(server: Server) -> None:
    version = await server.version()
    await server.create_pod("a")
    server.forget()
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        events = await watch.rest()
    [event] = events
    assert event["type"] == "ERROR"
    told = event["object"]
    assert (told["kind"], told["reason"], told["code"]) == ("Status", "Expired", 410)
    assert re.fullmatch(rf"too old resource version: {version} \(\d+\)", told["message"])


async def test_a_list_at_a_forgotten_version_is_gone(server: Server) -> None:
    version = await server.version()
    await server.create_pod("a")
    server.forget()
    code, body = await server.client.request(
        "GET", server.pods, query={"resourceVersion": version, "resourceVersionMatch": "Exact"}
    )
    assert (code, body["reason"]) == (410, "Expired")
    assert body["message"] == "The resourceVersion for the provided list is too old."


async def test_an_expired_page_offers_to_go_on_inconsistently(server: Server) -> None:
    for name in "abcd":
        await server.create_pod(name)
    page = await server.client.call("GET", server.pods, query={"limit": "2"})
    await server.create_pod("bb")
    server.forget()
    query = {"limit": "2", "continue": page["metadata"]["continue"]}
    code, body = await server.client.request("GET", server.pods, query=query)
    assert (code, body["reason"], body["code"]) == (410, "Expired", 410)
    assert body["message"].startswith("The provided continue parameter is too old to display")
    query["continue"] = body["metadata"]["continue"]
    page = await server.client.call("GET", server.pods, query=query)
    assert names(page) == ["bb", "c"]


# Selectors.


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param({"labelSelector": "app=x"}, "ab", id="equals"),
        pytest.param({"labelSelector": "app==y"}, "c", id="double-equals"),
        pytest.param({"labelSelector": "app!=x"}, "cd", id="not-equal-or-absent"),
        pytest.param({"labelSelector": "app in (x, y)"}, "abc", id="in"),
        pytest.param({"labelSelector": "app notin (x)"}, "cd", id="not-in-or-absent"),
        pytest.param({"labelSelector": "tier"}, "b", id="exists"),
        pytest.param({"labelSelector": "!tier"}, "acd", id="absent"),
        pytest.param({"labelSelector": "app=x,!tier"}, "a", id="both"),
        pytest.param({"labelSelector": "app in ()"}, "", id="in-nothing"),
        pytest.param({"labelSelector": "tier="}, "", id="empty-value"),
        pytest.param({"fieldSelector": "metadata.name=b"}, "b", id="name"),
        pytest.param({"fieldSelector": "metadata.name!=b"}, "acd", id="not-the-name"),
        pytest.param({"fieldSelector": "spec.nodeName=n1"}, "a", id="node"),
        pytest.param({"fieldSelector": "spec.nodeName="}, "bcd", id="no-node"),
        pytest.param({"fieldSelector": "status.phase=Running"}, "a", id="phase"),
        pytest.param(
            {"fieldSelector": "status.phase=Pending,metadata.name==c"}, "c", id="two-fields"
        ),
        pytest.param(
            {"fieldSelector": "status.phase=Pending", "labelSelector": "app=x"}, "b", id="mixed"
        ),
    ],
)
async def test_a_list_is_selected(server: Server, query: dict[str, str], expected: str) -> None:
    await server.create_pod("a", node="n1", app="x")
    await server.create_pod("b", app="x", tier="web")
    await server.create_pod("c", app="y")
    await server.create_pod("d")
    await server.set_phase("a", "Running")
    listed = await server.client.call("GET", server.pods, query=query)
    assert "".join(names(listed)) == expected


async def test_fields_of_other_kinds_are_name_and_namespace_only(server: Server) -> None:
    code, body = await server.client.request(
        "GET", "/apis/apps/v1/deployments", query={"fieldSelector": "status.phase=x"}
    )
    assert (code, body["reason"]) == (400, "BadRequest")


async def test_a_watched_selection_tells_who_leaves_and_enters_it(server: Server) -> None:
    await server.create_pod("a", app="x", step="1")
    version = await server.version()
    async with server.client.watch(
        server.pods, resourceVersion=version, labelSelector="app=x"
    ) as watch:
        await server.set_labels("a", step="2")
        await server.set_labels("a", app="y", step="3")
        await server.set_labels("a", step="4")
        last = await server.set_labels("a", app="x", step="5")
        await server.client.call("DELETE", f"{server.pods}/a")
        events = await watch.take(5)
    # Who leaves is shown as it was when it was last selected, under the version of its leaving.
    assert [(e["type"], e["object"]["metadata"]["labels"]["step"]) for e in events] == [
        ("MODIFIED", "2"),
        ("DELETED", "2"),
        ("ADDED", "5"),
        ("MODIFIED", "5"),
        ("DELETED", "5"),
    ]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))
    assert str(versions[2]) == last["metadata"]["resourceVersion"]


async def test_a_watched_phase_tells_deleted_of_a_pod_that_goes_on_to_another(
    server: Server,
) -> None:
    async with server.client.watch(server.pods, fieldSelector="status.phase=Running") as watch:
        await server.create_pod("a", node="n1")
        await server.set_phase("a", "Running")
        await server.set_phase("a", "Succeeded")
        events = await watch.take(2)
    assert steps(events) == [("ADDED", "Running", None), ("DELETED", "Running", None)]


async def test_a_selection_also_holds_for_what_was_missed(server: Server) -> None:
    await server.create_pod("a", app="x")
    version = await server.version()
    await server.set_labels("a", app="y")
    await server.create_pod("b", app="y")
    async with server.client.watch(
        server.pods, resourceVersion=version, labelSelector="app=x"
    ) as watch:
        await server.create_pod("c", app="x")
        events = await watch.take(2)
    assert [seen(event) for event in events] == [("DELETED", "a"), ("ADDED", "c")]


# Writes.


async def test_a_created_pod_gets_identity_time_version_and_phase(server: Server) -> None:
    code, made = await server.client.request("POST", server.pods, pod("a", app="x"))
    assert code == 201
    metadata = made["metadata"]
    assert re.fullmatch(r"[0-9a-f-]{36}", metadata["uid"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])
    assert metadata["resourceVersion"].isdigit()
    assert metadata["generation"] == 1
    assert metadata["namespace"] == server.namespace
    assert made["status"]["phase"] == "Pending"
    assert made["spec"]["terminationGracePeriodSeconds"] == 30
    assert made["spec"]["restartPolicy"] == "Always"
    assert await server.client.call("GET", f"{server.pods}/a") == made


async def test_a_client_cannot_create_a_status_or_an_identity(server: Server) -> None:
    body = pod("a")
    body["status"] = {"phase": "Running"}
    body["metadata"]["uid"] = "mine"
    body["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
    made = await server.client.call("POST", server.pods, body)
    assert made["status"]["phase"] == "Pending"
    assert made["metadata"]["uid"] != "mine"
    assert not made["metadata"]["creationTimestamp"].startswith("2001")


async def test_a_generated_name_extends_its_prefix(server: Server) -> None:
    body = pod("")
    body["metadata"] = {"generateName": "job-"}
    made = await server.client.call("POST", server.pods, body)
    assert re.fullmatch(r"job-[a-z0-9]{5}", made["metadata"]["name"])
    assert made["metadata"]["generateName"] == "job-"


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason", "details"),
    [
        pytest.param(
            "POST",
            "",
            pod("a"),
            409,
            "AlreadyExists",
            {"name": "a", "kind": "pods"},
            id="name-taken",
        ),
        pytest.param(
            "POST", "", pod(""), 422, "Invalid", {"kind": "Pod"}, id="create-without-name"
        ),
        pytest.param(
            "POST",
            "",
            pod("x") | {"metadata": {"name": "x", "namespace": "other"}},
            400,
            "BadRequest",
            None,
            id="other-namespace",
        ),
        pytest.param(
            "POST",
            "",
            {"apiVersion": "v1", "kind": "Foo", "metadata": {"name": "x"}},
            400,
            "BadRequest",
            None,
            id="other-kind",
        ),
        pytest.param("POST", "", b'{"api', 400, "BadRequest", None, id="broken-json"),
        pytest.param(
            "GET", "/nope", None, 404, "NotFound", {"name": "nope", "kind": "pods"}, id="get"
        ),
        pytest.param(
            "PUT",
            "/nope",
            pod("nope"),
            404,
            "NotFound",
            {"name": "nope", "kind": "pods"},
            id="replace-missing",
        ),
        pytest.param("PUT", "/a", pod("b"), 400, "BadRequest", None, id="replace-other-name"),
        pytest.param(
            "DELETE",
            "/nope",
            None,
            404,
            "NotFound",
            {"name": "nope", "kind": "pods"},
            id="delete-missing",
        ),
        pytest.param(
            "DELETE",
            "/a",
            {"preconditions": {"uid": "x"}},
            409,
            "Conflict",
            {"name": "a", "kind": "Pod"},
            id="delete-another-uid",
        ),
        pytest.param("PUT", "", pod("a"), 405, "MethodNotAllowed", {}, id="replace-a-list"),
        pytest.param(
            "PATCH", "/a", {"metadata": {}}, 415, "UnsupportedMediaType", {}, id="patch-as-json"
        ),
    ],
)
async def test_a_write_that_cannot_be_is_refused(
    server: Server,
    method: str,
    path: str,
    body: object,
    code: int,
    reason: str,
    details: Json | None,
) -> None:
    await server.create_pod("a")
    answered, told = await server.client.request(method, server.pods + path, body)
    assert answered == code
    assert (told["kind"], told["apiVersion"], told["status"]) == ("Status", "v1", "Failure")
    assert (told["reason"], told["code"]) == (reason, code)
    if details is None:
        assert "details" not in told
    else:
        assert {key: told["details"].get(key) for key in details} == details


async def test_a_missing_namespace_takes_no_pods(server: Server) -> None:
    code, told = await server.client.request(
        "POST", "/api/v1/namespaces/no-such-namespace/pods", pod("a")
    )
    assert (code, told["reason"]) == (404, "NotFound")
    assert told["details"] == {"name": "no-such-namespace", "kind": "namespaces"}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_write_from_an_older_version_is_a_conflict(server: Server, method: str) -> None:
    made = await server.create_pod("a")
    await server.set_labels("a", step="2")
    code, told = await server.client.request(
        method,
        f"{server.pods}/a",
        made,
        content_type=MERGE if method == "PATCH" else "application/json",
    )
    assert (code, told["reason"]) == (409, "Conflict")
    assert told["details"] == {"name": "a", "kind": "pods"}
    assert "the object has been modified" in told["message"]


async def test_a_replacement_without_a_version_always_wins(server: Server) -> None:
    made = await server.create_pod("a", step="1")
    await server.set_labels("a", step="2")
    del made["metadata"]["resourceVersion"]
    after = await server.client.call("PUT", f"{server.pods}/a", made)
    assert after["metadata"]["labels"] == {"step": "1"}
    assert after["metadata"]["uid"] == made["metadata"]["uid"]


async def test_a_change_that_changes_nothing_makes_no_version(server: Server) -> None:
    await server.create_pod("a", step="1")
    version = await server.version()
    same = await server.set_labels("a", step="1")
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        await server.set_labels("a", step="2")
        [event] = await watch.take(1)
    assert int(same["metadata"]["resourceVersion"]) <= int(version)
    assert event["object"]["metadata"]["labels"] == {"step": "2"}


async def test_a_merge_patch_takes_away_what_is_null(server: Server) -> None:
    await server.create_pod("a", keep="1", drop="1")
    after = await server.set_labels("a", drop=None, new="1")
    assert after["metadata"]["labels"] == {"keep": "1", "new": "1"}


async def test_a_change_of_the_image_is_a_new_generation(server: Server) -> None:
    await server.create_pod("a")
    patch = {"spec": {"containers": [{"name": "c", "image": "registry.example/app:2"}]}}
    after = await server.client.call("PATCH", f"{server.pods}/a", patch, content_type=STRATEGIC)
    assert after["spec"]["containers"][0]["image"] == "registry.example/app:2"
    assert after["metadata"]["generation"] == 2


async def test_the_rest_of_a_pods_spec_cannot_be_changed(server: Server) -> None:
    await server.create_pod("a")
    code, told = await server.client.request(
        "PATCH", f"{server.pods}/a", {"spec": {"nodeName": "n2"}}, content_type=MERGE
    )
    assert (code, told["reason"]) == (422, "Invalid")
    assert told["details"]["causes"][0]["field"] == "spec"


async def test_an_identity_cannot_be_changed(server: Server) -> None:
    await server.create_pod("a")
    code, told = await server.client.request(
        "PATCH", f"{server.pods}/a", {"metadata": {"uid": "zzz"}}, content_type=MERGE
    )
    assert (code, told["reason"]) == (422, "Invalid")
    assert told["details"]["causes"][0]["field"] == "metadata.uid"


async def test_status_and_spec_are_written_apart(server: Server) -> None:
    await server.create_pod("a")
    path = f"{server.pods}/a"
    both = {"metadata": {"labels": {"l": "1"}}, "status": {"phase": "Failed"}}
    after = await server.client.call("PATCH", path, both, content_type=MERGE)
    assert (after["metadata"]["labels"], after["status"]["phase"]) == ({"l": "1"}, "Pending")
    both = {
        "spec": {"containers": [{"name": "c", "image": "registry.example/app:2"}]},
        "status": {"phase": "Running"},
    }
    after = await server.client.call("PATCH", f"{path}/status", both, content_type=MERGE)
    assert after["status"]["phase"] == "Running"
    assert after["spec"]["containers"][0]["image"] == "registry.example/app:1"


@pytest.mark.parametrize("content_type", [MERGE, STRATEGIC])
async def test_container_statuses_are_replaced_as_a_whole(
    server: Server, content_type: str
) -> None:
    await server.create_pod("a", node="n1")
    path = f"{server.pods}/a/status"
    one = {"name": "c", "ready": True, "restartCount": 0, "image": "i", "imageID": "i@sha256:1"}
    other = one | {"name": "d"}
    await server.client.call(
        "PATCH", path, {"status": {"containerStatuses": [one, other]}}, content_type=content_type
    )
    after = await server.client.call(
        "PATCH", path, {"status": {"containerStatuses": [one]}}, content_type=content_type
    )
    assert [each["name"] for each in after["status"]["containerStatuses"]] == ["c"]


async def test_conditions_are_merged_by_type_by_a_strategic_patch(server: Server) -> None:
    await server.create_pod("a", node="n1")
    path = f"{server.pods}/a/status"
    for kind, value in [("Ready", "False"), ("Initialized", "True"), ("Ready", "True")]:
        await server.client.call(
            "PATCH",
            path,
            {"status": {"conditions": [{"type": kind, "status": value}]}},
            content_type=STRATEGIC,
        )
    after = await server.client.call("GET", f"{server.pods}/a")
    conditions = {each["type"]: each["status"] for each in after["status"]["conditions"]}
    assert {"Ready": "True", "Initialized": "True"}.items() <= conditions.items()


async def test_a_binding_puts_a_pod_on_a_node_once(server: Server) -> None:
    await server.create_pod("a")
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "a"},
        "target": {"kind": "Node", "name": "n1"},
    }
    code, told = await server.client.request("POST", f"{server.pods}/a/binding", body)
    assert (code, told["status"]) == (201, "Success")
    bound = await server.client.call("GET", f"{server.pods}/a")
    assert bound["spec"]["nodeName"] == "n1"
    assert [(c["type"], c["status"]) for c in bound["status"]["conditions"]] == [
        ("PodScheduled", "True")
    ]
    code, told = await server.client.request("POST", f"{server.pods}/a/binding", body)
    assert (code, told["reason"]) == (409, "Conflict")


# Deletions.


@pytest.mark.parametrize(
    ("node", "phase", "grace", "expected"),
    [
        pytest.param(
            "",
            "Pending",
            None,
            [("MODIFIED", "Pending", 0), ("DELETED", "Pending", 0)],
            id="on-no-node-goes-at-once",
        ),
        pytest.param(
            "n1",
            "Running",
            0,
            [("MODIFIED", "Running", 0), ("DELETED", "Running", 0)],
            id="forced-goes-at-once",
        ),
        pytest.param(
            "n1",
            "Succeeded",
            None,
            [("MODIFIED", "Succeeded", 0), ("DELETED", "Succeeded", 0)],
            id="finished-goes-at-once",
        ),
        pytest.param(
            "n1", "Running", None, [("MODIFIED", "Running", 30)], id="running-waits-its-grace"
        ),
        pytest.param("n1", "Running", 7, [("MODIFIED", "Running", 7)], id="or-the-one-asked-for"),
        pytest.param(
            "n1", "Pending", None, [("MODIFIED", "Pending", 30)], id="pending-on-a-node-waits-too"
        ),
    ],
)
async def test_deleting_a_pod_depends_on_who_has_to_stop_it(
    server: Server,
    node: str,
    phase: str,
    grace: int | None,
    expected: list[tuple[str, str, int]],
) -> None:
    await server.create_pod("a", node=node)
    if phase != "Pending":
        await server.set_phase("a", phase)
    version = await server.version()
    options = None if grace is None else {"gracePeriodSeconds": grace}
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        answer = await server.client.call("DELETE", f"{server.pods}/a", options)
        events = await watch.take(len(expected))
        await server.create_pod("next")
        [after] = await watch.take(1)
    assert steps(events) == expected
    assert seen(after) == ("ADDED", "next")
    assert answer["kind"] == "Pod"
    assert answer["metadata"]["deletionGracePeriodSeconds"] == expected[-1][2]
    assert answer["metadata"]["generation"] == 2
    code, _ = await server.client.request("GET", f"{server.pods}/a")
    assert code == (404 if expected[-1][0] == "DELETED" else 200)


async def test_the_kubelets_part_of_a_deletion_ends_it(server: Server) -> None:
    await server.create_pod("a", node="n1")
    await server.set_phase("a", "Running")
    version = await server.version()
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        await server.client.call("DELETE", f"{server.pods}/a")
        await server.client.call("DELETE", f"{server.pods}/a")  # asking again changes nothing
        await server.set_phase("a", "Succeeded")
        await server.client.call("DELETE", f"{server.pods}/a", {"gracePeriodSeconds": 0})
        events = await watch.take(4)
    assert steps(events) == [
        ("MODIFIED", "Running", 30),
        ("MODIFIED", "Succeeded", 30),
        ("MODIFIED", "Succeeded", 0),
        ("DELETED", "Succeeded", 0),
    ]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))


async def test_the_grace_of_a_deletion_can_be_cut_short_but_not_extended(server: Server) -> None:
    await server.create_pod("a", node="n1")
    await server.set_phase("a", "Running")
    version = await server.version()
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        for grace in (20, 25, 5):
            await server.client.call("DELETE", f"{server.pods}/a", {"gracePeriodSeconds": grace})
        events = await watch.take(2)
    assert steps(events) == [("MODIFIED", "Running", 20), ("MODIFIED", "Running", 5)]
    assert {event["object"]["metadata"]["generation"] for event in events} == {2}


async def test_a_finalizer_holds_an_object_until_it_is_taken_off(server: Server) -> None:
    body = pod("a")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    await server.client.call("POST", server.pods, body)
    version = await server.version()
    async with server.client.watch(server.pods, resourceVersion=version) as watch:
        await server.client.call("DELETE", f"{server.pods}/a")
        patch: Json = {"metadata": {"finalizers": []}}
        await server.client.call("PATCH", f"{server.pods}/a", patch, content_type=MERGE)
        events = await watch.take(2)
    assert steps(events) == [("MODIFIED", "Pending", 0), ("DELETED", "Pending", 0)]
    code, _ = await server.client.request("GET", f"{server.pods}/a")
    assert code == 404


def replica_set(name: str) -> Json:
    """Return a ReplicaSet that wants no pods, so that no controller interferes."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod("x")["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }


async def owned_pod(server: Server) -> str:
    """Create a ReplicaSet and a pod that it owns; return the path of the ReplicaSet."""
    path = f"/apis/apps/v1/namespaces/{server.namespace}/replicasets"
    owner = await server.client.call("POST", path, replica_set("rs"))
    body = pod("a")
    body["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": "rs",
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": True,
        }
    ]
    await server.client.call("POST", server.pods, body)
    return f"{path}/rs"


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
async def test_deleting_an_owner_deletes_its_dependents(server: Server, policy: str) -> None:
    path = await owned_pod(server)
    version = await server.version()
    collection, _, _ = path.rpartition("/")
    async with (
        server.client.watch(server.pods, resourceVersion=version) as pods,
        server.client.watch(collection, fieldSelector="metadata.name=rs") as owners,
    ):
        await server.client.call("DELETE", path, {"propagationPolicy": policy})
        deleted = (await pods.take(2))[-1]
        while (event := await owners.next()) is not None and event["type"] != "DELETED":
            pass
    assert seen(deleted) == ("DELETED", "a")
    code, _ = await server.client.request("GET", path)
    assert code == 404


async def test_deleting_an_owner_as_orphan_leaves_its_dependents(server: Server) -> None:
    path = await owned_pod(server)
    version = await server.version()
    async with server.client.watch(server.pods, resourceVersion=version) as pods:
        await server.client.call("DELETE", path, {"propagationPolicy": "Orphan"})
        [event] = await pods.take(1)
    assert seen(event) == ("MODIFIED", "a")
    assert not event["object"]["metadata"].get("ownerReferences")


async def test_deleting_another_kind_answers_with_a_status(server: Server) -> None:
    path = f"/apis/apps/v1/namespaces/{server.namespace}/replicasets"
    made = await server.client.call("POST", path, replica_set("rs"))
    answer = await server.client.call("DELETE", f"{path}/rs")
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"] == {
        "name": "rs",
        "group": "apps",
        "kind": "replicasets",
        "uid": made["metadata"]["uid"],
    }


async def test_an_error_about_a_kind_of_a_group_names_the_group(server: Server) -> None:
    path = f"/apis/apps/v1/namespaces/{server.namespace}/deployments/nope"
    code, told = await server.client.request("GET", path)
    assert (code, told["message"]) == (404, 'deployments.apps "nope" not found')
    assert told["details"] == {"name": "nope", "group": "apps", "kind": "deployments"}


async def test_a_namespace_goes_with_what_is_in_it(server: Server) -> None:
    await server.create_pod("a")
    path = f"/api/v1/namespaces/{server.namespace}"
    async with (
        server.client.watch(server.pods) as pods,
        server.client.watch(
            "/api/v1/namespaces", fieldSelector=f"metadata.name={server.namespace}"
        ) as namespaces,
    ):
        answer = await server.client.call("DELETE", path)
        deleted = (await pods.take(3))[-1]
        events = [event := (await namespaces.take(1))[0]]
        while event["type"] != "DELETED":
            [event] = await namespaces.take(1)
            events.append(event)
    assert answer["status"]["phase"] == "Terminating"
    assert seen(deleted) == ("DELETED", "a")
    assert events[1]["object"]["status"]["phase"] == "Terminating"
    assert events[1]["object"]["metadata"]["deletionTimestamp"]


async def test_a_collection_is_deleted_by_selector(server: Server) -> None:
    await server.create_pod("a", app="x")
    await server.create_pod("b", app="y")
    await server.client.call("DELETE", server.pods, query={"labelSelector": "app=x"})
    assert names(await server.client.call("GET", server.pods)) == ["b"]


# Who asks, and for what.


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        pytest.param("wrong", 401, "Unauthorized", id="wrong-token"),
        pytest.param(None, 403, "Forbidden", id="no-token"),
    ],
)
async def test_who_is_not_known_is_refused(
    server: Server, token: str | None, code: int, reason: str
) -> None:
    async with server.stranger(token) as client:
        answered, told = await client.request("GET", server.pods)
        assert answered == code
        assert (told["kind"], told["status"], told["reason"]) == ("Status", "Failure", reason)
        with pytest.raises(ApiFailureError) as refused:
            async with client.watch(server.pods):
                pass
    assert refused.value.code == code


@pytest.mark.parametrize("path", ["/version", "/healthz", "/livez", "/readyz"])
async def test_health_and_version_are_open_to_all(server: Server, path: str) -> None:
    async with server.stranger(None) as client:
        code, _ = await client.request("GET", path)
    assert code == 200
    # A token that nobody knows is worse than none.
    async with server.stranger("wrong") as client:
        code, _ = await client.request("GET", path)
    assert code == 401


@pytest.mark.parametrize(
    ("path", "told"),
    [
        pytest.param("/api/v1/foos", "NotFound", id="unknown-resource"),
        pytest.param("/api/v1/namespaces/default/foos", "NotFound", id="in-a-namespace"),
        pytest.param("/apis/foo.example/v1", None, id="unknown-group"),
        pytest.param("/nothing", None, id="unknown-path"),
    ],
)
async def test_an_unknown_path_is_not_found(server: Server, path: str, told: str | None) -> None:
    code, body = await server.client.request("GET", path)
    assert code == 404
    assert (body["reason"] if isinstance(body, dict) else None) == told


# What one may do.

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def review(verb: str, namespace: str, **spec: object) -> Json:
    """Return the question whether one may do this with the pods of a namespace."""
    asked = {"verb": verb, "group": "", "resource": "pods", "namespace": namespace}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": spec or {"resourceAttributes": asked},
    }


@pytest.mark.parametrize(("verb", "allowed"), [("get", True), ("list", True), ("watch", False)])
async def test_anyone_may_ask_what_they_may_do(server: Server, verb: str, *, allowed: bool) -> None:
    async with server.reader() as client:
        code, answer = await client.request("POST", REVIEWS, review(verb, server.namespace))
    assert code == 201
    assert (answer["apiVersion"], answer["kind"]) == (
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
    )
    assert answer["status"]["allowed"] is allowed
    assert answer["spec"]["resourceAttributes"]["verb"] == verb


async def test_what_one_may_not_do_is_refused_as_was_told(server: Server) -> None:
    async with server.reader() as client:
        assert (await client.request("GET", server.pods))[0] == 200
        with pytest.raises(ApiFailureError) as refused:
            async with client.watch(server.pods):
                pass
    assert refused.value.code == 403
    told = refused.value.body
    assert (told["kind"], told["status"], told["reason"]) == ("Status", "Failure", "Forbidden")
    assert told["details"] == {"kind": "pods"}
    assert re.fullmatch(
        r'pods is forbidden: User ".*" cannot watch resource "pods" in API group ""'
        rf' in the namespace "{server.namespace}"',
        told["message"],
    )


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        pytest.param(review("get", "x", wrong={}), 422, "Invalid", id="nothing-asked"),
        pytest.param({"kind": "Pod", "apiVersion": "v1"}, 400, "BadRequest", id="not-a-review"),
        pytest.param(b"{", 400, "BadRequest", id="not-json"),
    ],
)
async def test_a_review_that_asks_nothing_is_refused(
    server: Server, body: object, code: int, reason: str
) -> None:
    answered, told = await server.client.request("POST", REVIEWS, body)
    assert (answered, told["reason"]) == (code, reason), told


async def test_only_who_is_known_may_ask(server: Server) -> None:
    for token, code in (("wrong", 401), (None, 403)):
        async with server.stranger(token) as client:
            answered, _ = await client.request("POST", REVIEWS, review("get", server.namespace))
        assert answered == code
