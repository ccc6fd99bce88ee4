"""
What GitHub says to one request, worked out from its head, its body and what GitHub holds.

Pure but for the table it reads: the server asks for a verdict, and applies and sends it as the
script at work wants. The order of the checks is GitHub's: who asks, whether there is such a place,
whether the body can be read, whether it is right, whether the artifact is known.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

from tracker.sandbox.contract import (
    CLUSTER_IN_PATH,
    DIGEST,
    Batch,
    ContractError,
    Deployment,
    FieldError,
    read_batch,
    read_single,
)
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.table import Row, Table

__all__ = ["Policy", "Route", "Verdict", "complaint", "judge", "read", "route_of"]

ACCEPT: Final = "application/vnd.github+json"
API_VERSION: Final = "2022-11-28"
DOCUMENTATION: Final = "https://docs.github.com/rest/orgs/artifact-metadata"

_RECORD: Final = re.compile(r"/orgs/(?P<org>[^/]+)/artifacts/metadata/deployment-record")
_CLUSTER: Final = re.compile(_RECORD.pattern + r"/cluster/(?P<cluster>[^/]+)")
_MINT: Final = re.compile(r"/app/installations/(?P<installation>[0-9]{1,18})/access_tokens")
_READ_BACK: Final = re.compile(
    r"/orgs/(?P<org>[^/]+)/artifacts/(?P<digest>[^/]+)/metadata/deployment-records"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    What this GitHub knows and permits, beside the contract.

    `tokens` are the bearer tokens that are taken; a place that mints them adds to the server's set.
    `refuses` is answered 403 on a single post and "unauthorized" in a batch; an organization's
    name is compared in lower case, `orgs` None takes any.
    """

    knows: Callable[[str], bool]
    refuses: Callable[[str], bool]
    tokens: frozenset[str]
    mints: Callable[[str, int], Mapping[str, Any] | None] = lambda _signed, _installation: None
    """Takes what an App signed and its installation; None: not signed well, empty: unknown."""
    orgs: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request goes; `cluster` and `digest` where the path names them."""

    method: str
    org: str
    cluster: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to answer, and which deployments to apply when the script lets them."""

    status: int
    body: Mapping[str, Any]
    accepted: tuple[Deployment, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def route_of(method: str, path: str) -> Route | None:
    """Return the endpoint of a request, None when GitHub has none there."""
    if method == "POST":
        if found := _RECORD.fullmatch(path):
            return Route(method=method, org=_org(found))
        if found := _CLUSTER.fullmatch(path):
            cluster = unquote(found["cluster"])
            if CLUSTER_IN_PATH.fullmatch(cluster) and cluster not in {".", ".."}:
                return Route(method=method, org=_org(found), cluster=cluster)
    elif method == "GET" and (found := _READ_BACK.fullmatch(path)):
        digest = unquote(found["digest"])
        if DIGEST.fullmatch(digest):
            return Route(method=method, org=_org(found), digest=digest)
    return None


def read(route: Route, payload: object) -> tuple[Batch | None, tuple[FieldError, ...]]:
    """Return what a POST asks for, or what is wrong with it."""
    try:
        if route.cluster is None:
            return read_single(payload, org=route.org), ()
        return read_batch(payload, org=route.org, cluster=route.cluster), ()
    except ContractError as error:
        return None, error.errors


def judge(
    exchange: Exchange, *, authorization: str, policy: Policy, table: Table, now: datetime
) -> Verdict:
    """Return the contract's verdict; nothing is applied."""
    headers = {name.lower(): value for name, value in exchange.headers.items()}
    if exchange.method == "POST" and (found := _MINT.fullmatch(exchange.path)):
        return _mint(authorization, int(found["installation"]), policy)
    refusal = _who(authorization, headers, policy)
    if refusal is not None:
        return refusal
    route = route_of(exchange.method, exchange.path)
    if route is None or (policy.orgs is not None and route.org not in policy.orgs):
        return complaint(404, "Not Found")
    refusal = _head(headers)
    if refusal is not None:
        return refusal
    if route.digest is not None:
        rows = table.of_digest(route.org, route.digest)
        return Verdict(status=200, body=_records(rows))
    return _post(exchange, headers, policy, table, now)


def complaint(
    status: int,
    message: str,
    *,
    errors: tuple[FieldError, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> Verdict:
    """Return a GitHub-shaped error."""
    body: dict[str, Any] = {"message": message}
    if errors:
        body["errors"] = [error.as_json() for error in errors]
    body |= {"documentation_url": DOCUMENTATION, "status": str(status)}
    return Verdict(status=status, body=body, headers=headers or {})


def _mint(authorization: str, installation: int, policy: Policy) -> Verdict:
    scheme, _, signed = authorization.partition(" ")
    minted = policy.mints(signed, installation) if scheme.lower() == "bearer" else None
    if minted is None:
        return complaint(401, "A JSON web token could not be decoded")
    return Verdict(status=201, body=minted) if minted else complaint(404, "Not Found")


def _who(authorization: str, headers: Mapping[str, str], policy: Policy) -> Verdict | None:
    if not headers.get("user-agent", "").strip():
        return complaint(
            403,
            "Request forbidden by administrative rules. "
            "Please make sure your request has a User-Agent header",
        )
    if not authorization:
        return complaint(401, "Requires authentication")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or token not in policy.tokens:
        return complaint(401, "Bad credentials")
    return None


def _head(headers: Mapping[str, str]) -> Verdict | None:
    if headers.get("accept") != ACCEPT:
        return complaint(415, f"Unsupported 'Accept' header: must be {ACCEPT!r}.")
    if headers.get("x-github-api-version") != API_VERSION:
        return complaint(400, f"X-GitHub-Api-Version must be {API_VERSION!r}.")
    return None


def _post(
    exchange: Exchange, headers: Mapping[str, str], policy: Policy, table: Table, now: datetime
) -> Verdict:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        return complaint(415, "Content-Type must be application/json.")
    if exchange.request is None:
        return _unreadable(exchange)
    causes = {posted.deployment_name: _cause(posted, policy) for posted in exchange.deployments}
    if not exchange.request.partial_success:
        if "unauthorized" in causes.values():
            return complaint(403, "Resource not accessible by personal access token")
        if "not_found" in causes.values():
            return complaint(404, "Not Found")
    accepted = tuple(
        posted for posted in exchange.deployments if causes[posted.deployment_name] is None
    )
    rows = table.planned(accepted, now=now, seq=exchange.seq)
    body = _records(rows if exchange.request.return_records else (), total=len(rows))
    if len(accepted) == len(causes):
        return Verdict(status=200, body=body, accepted=accepted)
    raw = {record["deployment_name"]: record for record in exchange.payload["deployments"]}
    body["errors"] = [
        {"cause": cause, "deployment": raw[name]} for name, cause in causes.items() if cause
    ]
    return Verdict(status=207, body=body, accepted=accepted)


def _unreadable(exchange: Exchange) -> Verdict:
    if exchange.payload is None:
        return complaint(400, "Problems parsing JSON")
    if not isinstance(exchange.payload, dict):
        return complaint(400, "Body should be a JSON object")
    listed = "\n".join(f"{error.field!r} {error.message}." for error in exchange.errors)
    return complaint(422, f"Invalid request.\n\n{listed}", errors=exchange.errors)


def _cause(posted: Deployment, policy: Policy) -> str | None:
    """Return why this deployment can't be recorded; a repository makes an image known."""
    if policy.refuses(posted.digest):
        return "unauthorized"
    if posted.github_repository is None and not policy.knows(posted.digest):
        return "not_found"
    return None


def _records(rows: tuple[Row, ...], *, total: int | None = None) -> dict[str, Any]:
    return {
        "total_count": len(rows) if total is None else total,
        "deployment_records": [row.as_json() for row in rows],
    }


def _org(found: re.Match[str]) -> str:
    return unquote(found["org"]).lower()
