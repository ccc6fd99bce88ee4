"""
The checks of `doctor`: what stands between these settings and records at GitHub.

It goes the ways the tracker goes, with the same settings and credentials: the API server, the
rights, the pods and the names they get, the ledger, the token, GitHub. Each check ends ok, with a
warning, failed or skipped, and what is not ok has its cause and its next step from
`tracker.advice`. A check whose ground has failed is skipped and says so.

Nothing is written anywhere. GitHub gets GETs alone (and, from a GitHub App, the exchange for a
token); the API server gets lists and, to ask what we may do, SelfSubjectAccessReviews: POSTs that
store nothing. The tracker itself never sends those. Each step on a network ends within ten seconds.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from pydantic import SecretStr

from tracker.advice import ADVICE, Trouble, see, trouble_of
from tracker.answers import Failed, Reply, classify_stop, clean_text, server_time
from tracker.app import USER_AGENT, open_tokens
from tracker.catalog import KINDS
from tracker.cluster import Cluster, Endpoint
from tracker.errors import (
    ConnectionSettingError,
    CredentialsError,
    LedgerError,
    LedgerMissingError,
    ListError,
)
from tracker.images import Digest
from tracker.inventory import Deployed, Inventory
from tracker.ledger_file import unwritable
from tracker.ledger_reader import read_ledger
from tracker.ledger_schema import LedgerReading
from tracker.pods import read_pod
from tracker.records import Status
from tracker.settings import Settings
from tracker.transport import Transport, proxy_of

__all__ = ["Finding", "Result", "examine", "kind_of_token"]

STEP_SECONDS: Final = 10.0
"""For each step on a network, from its first to its last byte."""
SKEW_SECONDS: Final = 30.0
"""GitHub Apps sign with the time, and a minute off is refused; a second is a network's."""
EXPIRES_SOON: Final = timedelta(days=14)
MAX_ANSWER: Final = 4 * 2**20
SHOWN_NAMES: Final = 3
EXPIRATION: Final = "github-authentication-token-expiration"
NO_DIGEST: Final = Digest(f"sha256:{'0' * 64}")
"""What is asked for when nothing that runs has a digest: the host and the token answer as well."""

_REMEDY: Final = re.compile(r"(?<=\)): |; | process: ")
"""What comes before the next step in the text of an error, which the catalogue has as well."""

_T = TypeVar("_T")


class Result(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found; `trouble` says what it is about when it is not ok."""

    check: str
    result: Result
    says: str
    trouble: Trouble | None = None

    def as_json(self) -> Mapping[str, object]:
        """Return it for a program."""
        plain = {"check": self.check, "result": self.result.value, "says": self.says}
        if self.trouble is None:
            return plain
        advice = ADVICE[self.trouble]
        return {
            **plain,
            "trouble": self.trouble.value,
            "why": advice.why,
            "next": advice.next_step,
            "see": see(self.trouble),
        }


async def examine(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    wall: Callable[[], float] = time.time,
    step_seconds: float = STEP_SECONDS,
) -> AsyncIterator[Finding]:
    """
    Yield what each check finds, in an order in which each rests on those before it.

    `wall()` returns our time in seconds since the epoch.
    """
    examination = _Examination(
        settings=settings, environ=environ, wall=wall, step_seconds=step_seconds
    )
    async with AsyncExitStack() as stack:
        for finding in examination.settings():
            yield finding
        async for finding in examination.cluster(stack):
            yield finding
        yield await examination.ledger()
        async for finding in examination.github(stack):
            yield finding


class _Examination:
    """One examination, and what its checks found out for those that follow."""

    def __init__(
        self,
        *,
        settings: Settings,
        environ: Mapping[str, str],
        wall: Callable[[], float],
        step_seconds: float,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._wall = wall
        self._step_seconds = step_seconds
        self._endpoint: Endpoint | None = None
        self._may_list = False
        self._inventory: Inventory | None = None
        self._reading: LedgerReading | None = None

    async def _within(self, work: Awaitable[_T]) -> _T:
        """Await a step on a network. Raises TimeoutError when it takes too long."""
        async with asyncio.timeout(self._step_seconds):
            return await work

    @property
    def _too_long(self) -> str:
        return f"no answer within {self._step_seconds:g} seconds"

    # Settings.

    def settings(self) -> Iterator[Finding]:
        """Check what can be said of the settings alone; that they are valid is known already."""
        yield _ok("settings", "each of them can be used")
        for warning in self._settings.warnings():
            trouble = trouble_of(warning)
            if trouble is Trouble.TOKEN:
                continue  # the token has a check of its own
            # Without an environment nothing is recorded at all.
            result = Result.FAIL if trouble is Trouble.ENVIRONMENT else Result.WARN
            says = warning.partition("; ")[0]
            yield Finding(check="settings", result=result, says=says, trouble=trouble)

    # The cluster.

    async def cluster(self, stack: AsyncExitStack) -> AsyncIterator[Finding]:
        """Check the API server, what we may do there and what runs there."""
        cluster = await stack.enter_async_context(
            Cluster(
                kubeconfig=self._settings.kubeconfig,
                environ=self._environ,
                namespace=self._settings.namespace,
                user_agent=USER_AGENT,
            )
        )
        answers = await self._api_server(cluster)
        yield answers
        if answers.result is Result.FAIL:
            for check in ("rbac", "workloads", "pods", "names"):
                yield _skipped(check, "the API server could not be asked")
            return
        yield await self._rights(cluster)
        yield await self._rights_on_workloads(cluster)
        if not self._may_list:
            yield _skipped("pods", "pods may not be listed")
            yield _skipped("names", "pods may not be listed")
            return
        yield (pods := await self._pods(cluster))
        yield self._names() if pods.result is Result.OK else _skipped("names", "no list of pods")

    async def _api_server(self, cluster: Cluster) -> Finding:
        try:
            self._endpoint = await self._within(cluster.check_credentials())
            version = await self._within(cluster.server_version())
        except (CredentialsError, ListError) as error:
            return _error("api server", error, Trouble.API_SERVER)
        except TimeoutError:
            where = "" if self._endpoint is None else f" from {self._endpoint.server}"
            return _fail("api server", f"{self._too_long}{where}", Trouble.API_SERVER)
        return _ok("api server", f"{self._endpoint.server} answers: {version}")

    async def _rights(self, cluster: Cluster) -> Finding:
        where = self._settings.namespace
        scope = f"in the namespace {where}" if where else "in all namespaces"
        asked = [(verb, "", "pods") for verb in ("get", "list", "watch")]
        return await self._may(cluster, "rbac", asked, scope, Trouble.RBAC)

    async def _rights_on_workloads(self, cluster: Cluster) -> Finding:
        if not self._settings.workloads:
            return _skipped("workloads", "WORKLOADS is not set: they are not read")
        asked = [
            (verb, kind.group, kind.plural) for kind in KINDS.values() for verb in ("get", "list")
        ]
        return await self._may(cluster, "workloads", asked, "", Trouble.WORKLOADS)

    async def _may(
        self,
        cluster: Cluster,
        check: str,
        asked: Sequence[tuple[str, str, str]],
        scope: str,
        trouble: Trouble,
    ) -> Finding:
        """Ask what we may do, verb by verb, as the account that the tracker has."""
        verbs: dict[str, list[str]] = {}
        denied: dict[str, list[str]] = {}
        try:
            for verb, group, plural in asked:
                allowed = await self._within(cluster.may(verb, group=group, plural=plural))
                self._may_list |= allowed and (verb, plural) == ("list", "pods")
                (verbs if allowed else denied).setdefault(plural, []).append(verb)
        except ListError as error:
            return _error(check, error, Trouble.API_SERVER)
        except TimeoutError:
            return _fail(check, self._too_long, Trouble.API_SERVER)
        may, may_not = (
            "; ".join(f"{', '.join(of)} {plural}" for plural, of in each.items())
            for each in (verbs, denied)
        )
        if denied:
            rest = f"; it may {may}" if may else ""
            return _fail(check, f"the account may not {may_not} {scope}".rstrip() + rest, trouble)
        return _ok(check, f"the account may {may} {scope}".rstrip())

    async def _pods(self, cluster: Cluster) -> Finding:
        try:
            inventory, listed = await self._within(self._seen(cluster))
        except ListError as error:
            return _error("pods", error, Trouble.API_SERVER)
        except TimeoutError:
            # They may be many. The tracker takes a minute for each page of them.
            says = f"not all of them came within {self._step_seconds:g} seconds"
            return _warn("pods", says, Trouble.API_SERVER)
        self._inventory = inventory
        says = f"{listed} listed, {_number(len(inventory.names()), 'deployment name')}"
        skipped = inventory.skipped()
        if skipped:
            reasons = sorted((reason.value, count) for reason, count in skipped.items())
            says += f"; without a record: {', '.join(f'{count} {why}' for why, count in reasons)}"
        return _ok("pods", says)

    async def _seen(self, cluster: Cluster) -> tuple[Inventory, int]:
        """Return what all pods declare, and how many they are."""
        inventory = Inventory(template=self._settings.dn_template)
        listed = 0
        async for raw in cluster.each_pod():
            inventory.observe(read_pod(raw, rules=self._settings.rules))
            listed += 1
        return inventory, listed

    def _names(self) -> Finding:
        shared = sorted(self._inventory.shared()) if self._inventory is not None else []
        if not shared:
            return _ok("names", "no two workloads or containers share one")
        some = ", ".join(clean_text(name, 80) for name in shared[:SHOWN_NAMES])
        more = f" and {len(shared) - SHOWN_NAMES} more" if len(shared) > SHOWN_NAMES else ""
        return _fail("names", f"shared: {some}{more}", Trouble.NAME_SHARED)

    # The ledger.

    async def ledger(self) -> Finding:
        """Check whether the ledger can be used and is this cluster's."""
        path = self._settings.ledger_path
        if path is None:
            return _warn("ledger", "in memory: LEDGER_PATH is empty", Trouble.LEDGER_MEMORY)
        try:
            reading = await asyncio.to_thread(read_ledger, path, self._settings.identity)
        except LedgerMissingError:
            return self._place(path)
        except LedgerError as error:
            return _error("ledger", error, Trouble.LEDGER_PLACE)
        self._reading = reading
        return self._judge_ledger(path, reading)

    def _place(self, path: Path) -> Finding:
        """Say whether a ledger can be made where none is; its folder is made, too."""
        folder = path.absolute().parent
        if not (folder.exists() or folder.parent.exists()):
            says = f"{path}: its folder is missing"
            return _fail("ledger", says, Trouble.LEDGER_PLACE)
        return self._write(path) or _ok("ledger", f"{path} is not there yet; the tracker makes it")

    def _write(self, path: Path) -> Finding | None:
        """Say what a tracker could not write to, None when it may write to all that it needs."""
        hindrance = unwritable(path)
        if hindrance is None:
            return None
        what = "its folder" if hindrance.is_dir() else hindrance.name
        says = f"{path}: this user may not write to {what}"
        return _fail("ledger", says, Trouble.LEDGER_PLACE)

    def _judge_ledger(self, path: Path, reading: LedgerReading) -> Finding:
        # A tracker that has it does write to it, and may be another user than this one.
        if not reading.owned and (refusal := self._write(path)) is not None:
            return refusal
        says = f"{path}: {_number(len(reading.entries), 'name')}"
        if reading.owned:
            says += "; a running tracker has it"
        seen = reading.fingerprint
        if self._endpoint is None:
            says += "; the cluster could not be compared"
        elif reading.entries and seen not in {None, self._endpoint.fingerprint}:
            says = f"{path} was kept for another API server address or CA"
            if not self._settings.ledger_adopt:
                return _fail("ledger", says, Trouble.LEDGER_CLUSTER)
            says += "; LEDGER_ADOPT takes it for this cluster's"
        if reading.others:
            says += "; what stands of others: " + ", ".join(
                f"{_number(count, 'record')} of {other}" for other, count in reading.others.items()
            )
            return _warn("ledger", says, Trouble.LEDGER_IDENTITY)
        return _ok("ledger", says)

    # GitHub.

    async def github(self, stack: AsyncExitStack) -> AsyncIterator[Finding]:
        """Check the token, the way to GitHub, its clock, and what it says about one digest."""
        settings = self._settings
        try:
            transport = await stack.enter_async_context(
                Transport(
                    base_url=settings.base_url,
                    user_agent=USER_AGENT,
                    proxy=(
                        proxy_of(settings.base_url, self._environ)
                        if settings.proxy_from_env
                        else None
                    ),
                    ca_file=settings.ca_file,
                )
            )
        except ConnectionSettingError as error:
            yield _error("github", error, Trouble.CONNECTION)
            for check in ("token", "clock", "access", "org", "digest"):
                yield _skipped(check, "GitHub can't be asked")
            return
        token, finding = await self._token(transport)
        yield finding
        digest, name = self._sample()
        org = quote(settings.org, safe="")
        path = f"/orgs/{org}/artifacts/{digest}/metadata/deployment-records"
        try:
            reply = await self._within(
                transport.get(path, token=token or SecretStr(""), max_answer=MAX_ANSWER)
            )
        except TimeoutError:
            reply = Failed(reason=f"timeout: {self._too_long}", landed=True)
        if isinstance(reply, Failed):
            says = f"{settings.base_url}: {reply.reason}"
            yield _fail("github", says, trouble_of(reply.reason) or Trouble.CONNECTION)
            for check in ("clock", "access", "org", "digest"):
                yield _skipped(check, "GitHub did not answer")
            return
        yield self._host(reply)
        yield self._clock(reply)
        if token is None:
            for check in ("access", "org", "digest"):
                yield _skipped(check, "there is no token to ask with")
            return
        if not _is_githubs(reply):
            for check in ("access", "org", "digest"):
                yield _skipped(check, "the answer is none of GitHub's API")
            return
        yield self._access(reply)
        yield self._org(reply, digest)
        yield self._digest(reply, digest, name)

    async def _token(self, transport: Transport) -> tuple[SecretStr | None, Finding]:
        """Return the token, None when there is none to send, and what was found of it."""
        where = {"token": "API_TOKEN", "file": "API_TOKEN_FILE", "app": "the GitHub App"}
        kind = self._settings.credentials
        if kind == "none":
            return None, _fail("token", "API_TOKEN is empty", Trouble.TOKEN)
        try:
            token = await self._within(open_tokens(self._settings, transport).token())
        except ConnectionSettingError as error:
            return None, _error("token", error, Trouble.TOKEN)
        except TimeoutError:
            token = Failed(reason=f"no token for the App: timeout, {self._too_long}", landed=False)
        if not isinstance(token, SecretStr):
            trouble = trouble_of(token.reason) or Trouble.GITHUB_APP
            return None, _fail("token", token.reason.partition("; ")[0], trouble)
        name, usable = kind_of_token(token)
        says = f"from {where[kind]}: {name}"
        return (
            (token, _ok("token", says)) if usable else (None, _fail("token", says, Trouble.TOKEN))
        )

    def _sample(self) -> tuple[Digest, str]:
        """Return a digest that runs and its deployment name, best one that GitHub acknowledged."""
        known = {
            entry.deployment_name: entry.acknowledged.digest
            for entry in (self._reading.entries if self._reading is not None else ())
            if entry.acknowledged is not None and entry.acknowledged.status is Status.DEPLOYED
        }
        runs: dict[str, Digest] = {}
        if self._inventory is not None:
            for name in self._inventory.names():
                judgement = self._inventory.judge(name, None)
                if isinstance(judgement, Deployed):
                    runs[name] = judgement.record.digest
        both = sorted(name for name, digest in runs.items() if known.get(name) == digest)
        for names, digests in ((both, runs), (sorted(runs), runs), (sorted(known), known)):
            if names:
                return digests[names[0]], names[0]
        return NO_DIGEST, ""

    def _host(self, reply: Reply) -> Finding:
        if not _is_githubs(reply):
            says = f"{self._settings.base_url} answers: {_reason(reply)}"
            if reply.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                return _fail("github", f"{says}, as no GitHub would", Trouble.UNEXPECTED_ANSWER)
            return _fail("github", says, Trouble.HTTP_5XX)
        secure = self._settings.base_url.startswith("https:")
        return _ok("github", f"{self._settings.base_url} answers" + ", over TLS" * secure)

    def _clock(self, reply: Reply) -> Finding:
        theirs = server_time(reply)
        if theirs is None:
            return _skipped("clock", "the answer tells no time")
        ahead = self._wall() - theirs
        if abs(ahead) <= SKEW_SECONDS:
            return _ok("clock", "in step with GitHub's")
        side = "ahead of" if ahead > 0 else "behind"
        return _warn("clock", f"{abs(ahead):.0f} seconds {side} GitHub's", Trouble.CLOCK)

    def _access(self, reply: Reply) -> Finding:
        """Say whether the token is taken, and until when."""
        if reply.status == HTTPStatus.UNAUTHORIZED:
            return _fail("access", _reason(reply), Trouble.HTTP_401)
        until = _moment(reply.headers.get(EXPIRATION, ""))
        says = "the token is taken; whether it may write, the first record shows"
        if until is None:
            return _ok("access", says)
        left = until - datetime.fromtimestamp(server_time(reply) or self._wall(), tz=UTC)
        says = f"{says}. It expires on {until:%Y-%m-%d}"
        if left > EXPIRES_SOON:
            return _ok("access", says)
        return _warn("access", f"{says}, in {max(left.days, 0)} days", Trouble.TOKEN_EXPIRY)

    def _org(self, reply: Reply, digest: Digest) -> Finding:
        org, reason = self._settings.org, _reason(reply)
        match reply.status:
            case HTTPStatus.OK:
                return _ok("org", f"{org} is there, and the token may read its records")
            case HTTPStatus.NOT_FOUND:
                sure = digest in self._acknowledged()
                doubt = "" if sure else " (or an artifact that it does not know)"
                says = f"{org}: {reason}: no organisation that this token may see{doubt}"
                return _fail("org", says, Trouble.ORG)
            case HTTPStatus.UNAUTHORIZED:
                return _skipped("org", "the token is not taken")
            case _:
                return self._refusal(reason)

    def _refusal(self, reason: str) -> Finding:
        org, trouble = self._settings.org, trouble_of(reason)
        if trouble is Trouble.HTTP_429:
            return _warn("org", reason, trouble)
        return _fail("org", f"{org}: {reason}", Trouble.HTTP_403)

    def _digest(self, reply: Reply, digest: Digest, name: str) -> Finding:
        if not name:
            return _skipped("digest", "nothing that runs has a digest to ask for")
        if reply.status != HTTPStatus.OK:
            return _skipped("digest", "GitHub did not tell")
        count = len(_records(reply) or ())
        says = f"{digest[:19]}… of {clean_text(name, 80)}: {_number(count, 'record')} at GitHub"
        if not count and digest in self._acknowledged():
            return _warn("digest", says, Trouble.RECORD_LOST)
        return _ok("digest", says)

    def _acknowledged(self) -> frozenset[Digest]:
        entries = self._reading.entries if self._reading is not None else ()
        return frozenset(
            entry.acknowledged.digest for entry in entries if entry.acknowledged is not None
        )


# What a token is, by its first letters alone:
# https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/about-authentication-to-github
_KINDS: Final[Sequence[tuple[re.Pattern[str], str, bool]]] = tuple(
    (re.compile(sign), name, usable)
    for sign, name, usable in (
        ("github_pat_", "a fine-grained personal access token", True),
        ("ghp_", "a classic personal access token", True),
        ("gho_", "an OAuth App's token", True),
        ("ghu_", "a GitHub App's token for a user", True),
        ("ghs_", "a GitHub App's token for its installation, which lasts an hour", True),
        ("ghr_", "a refresh token, which GitHub takes for nothing else", False),
        (r"eyJ[A-Za-z0-9_-]*\.", "a GitHub App's signature, which is no token yet", False),
        ("[0-9a-f]{40}$", "an old personal access token, without a prefix", True),
        ("", "of a kind that is not known", True),
    )
)


def kind_of_token(token: SecretStr) -> tuple[str, bool]:
    """Return what kind of token this is, and whether it is one that can be sent."""
    secret = token.get_secret_value()
    return next((name, usable) for sign, name, usable in _KINDS if sign.match(secret))


def _reason(reply: Reply) -> str:
    """Return status and GitHub's own words, as a record's failure has them."""
    if (stop := classify_stop(reply)) is not None:
        return stop.reason
    said = _fields(reply).get("message")
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    words = clean_text(said) if isinstance(said, str) else ""
    return f"HTTP {reply.status} {words or phrase}".rstrip()


def _is_githubs(reply: Reply) -> bool:
    """
    Tell whether an answer is one that GitHub's API gives to this question.

    A login page, a gateway and the web pages of a GitHub server have the same statuses; only the
    API answers in JSON. What is about all that is sent may come from what stands before the API.
    """
    if classify_stop(reply) is not None:
        return True
    if reply.status == HTTPStatus.OK:
        return _records(reply) is not None
    return reply.status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND} and bool(_fields(reply))


def _records(reply: Reply) -> list[Any] | None:
    """Return the records that an answer holds, or None when it is no list of them."""
    found = _fields(reply).get("deployment_records")
    return found if isinstance(found, list) else None


def _fields(reply: Reply) -> Mapping[str, Any]:
    """Return the JSON object that an answer is, an empty one when it is none."""
    try:
        body = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _moment(text: str) -> datetime | None:
    """Return when a token ends: `2026-01-31 12:00:00 UTC`, or with an offset like `+0100`."""
    try:
        return datetime.strptime(text.strip().replace("UTC", "+0000"), "%Y-%m-%d %H:%M:%S %z")
    except ValueError:
        return None


def _ok(check: str, says: str) -> Finding:
    return Finding(check=check, result=Result.OK, says=says)


def _skipped(check: str, says: str) -> Finding:
    return Finding(check=check, result=Result.SKIPPED, says=says)


def _fail(check: str, says: str, trouble: Trouble) -> Finding:
    return Finding(check=check, result=Result.FAIL, says=says, trouble=trouble)


def _warn(check: str, says: str, trouble: Trouble) -> Finding:
    return Finding(check=check, result=Result.WARN, says=says, trouble=trouble)


def _error(check: str, error: Exception, otherwise: Trouble) -> Finding:
    """Return a failure of an error of ours: what it is about, and its text without the remedy."""
    text = str(error)
    says = _REMEDY.split(text, maxsplit=1)[0]
    return _fail(check, says, trouble_of(text) or otherwise)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
