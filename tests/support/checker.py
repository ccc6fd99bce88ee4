"""
The one checker: GitHub's history and the cluster's truth in, broken promises out.

Every suite that runs the whole program ends here, whatever it did to the program meanwhile. The
checker sees only what can be seen from outside: what arrived at GitHub, what was answered, what
GitHub holds, and what was true of the cluster when. It knows nothing of queue, ledger or retries.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from tests.support.truthlog import Span, TruthLog
from tracker.sandbox.contract import Deployment, Identity
from tracker.sandbox.exchanges import Exchange, Outcome
from tracker.sandbox.table import Row
from tracker.sandbox.truth import Verdict, compare

__all__ = ["Circumstances", "Crash", "Environment", "Promise", "Violation", "check", "report"]

PARTIAL, FORBIDDEN = 207, 403

OF_THE_RECORD = frozenset({400, 403, 404, 422})
"""What refuses a record; 401, 429 and redirects say nothing about it."""

MALFORMED = frozenset({400, 415, 422})


class Promise(Enum):
    """What was promised, in the words of the one to whom it was."""

    CONVERGENCE = "when faults end, GitHub holds what the cluster runs"
    PROGRESS = "a state that lasts is recorded"
    OPEN_END = "no send is left with an open outcome"
    HONESTY = "a record counts as acknowledged only after GitHub said so"
    TRUTH = "only what was true of the cluster is told"
    ORDER = "an older state never follows a newer one"
    ONE_IN_FLIGHT = "never two requests in flight for the same name"
    NO_NEEDLESS_POST = "at most one extra post for each open outcome or crash"
    NO_PHANTOM = "nothing is decommissioned while a pod holds it"
    NO_RESURRECTION = "what is decommissioned stays so until a newer pod runs"
    LAST_DIGEST = "a decommission names the digest that was sent last"
    IDENTITY = "records go to the environment they belong to"
    CONTRACT = "every request keeps to GitHub's contract"


class Environment(NamedTuple):
    """Where records belong: an identity without its deployment_name; org in lower case."""

    org: str
    logical: str
    physical: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken promise."""

    promise: Promise
    deployment_name: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise.name} {self.deployment_name}: {self.text} ({self.promise.value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """
    A kill that left no time to write: `at` is when the process had ended.

    `in_doubt` are the names of which a send had no end that was written down, each with the status
    and the digest that were sent.
    """

    at: float
    in_doubt: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """
    What happened in this run that a promise makes an exception for; times are the loop's clock.

    `network_seconds` is how far truth and history may be apart. Each of `crashes` excuses one more
    post of each name that it left in doubt. `reposts` counts what makes everything be posted again:
    a lost ledger, a resync. `excused` are names parked with a reason. `claimed` is what the tracker
    says is acknowledged, by name: (status, digest). `settled_within` None judges no progress before
    the end. `former` are environments of before a rename.
    """

    environment: Environment
    former: tuple[Environment, ...] = ()
    recordable: Callable[[str], bool] = lambda _digest: True
    excused: frozenset[str] = frozenset()
    network_seconds: float = 1.0
    crashes: tuple[Crash, ...] = ()
    reposts: int = 0
    claimed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    settled_within: float | None = None
    ended: float = 0.0
    """When the run ended: a CronJob's name that is held longer than this needs no decommission."""
    converged: bool = True
    """Whether the end is to be judged: faults are healed and work has had its time."""


class State(NamedTuple):
    """What a post says of a name, as far as its order matters."""

    status: str
    digest: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.status} {self.digest[:15]} {self.name}:{self.version or '-'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One name's part of one request."""

    exchange: Exchange
    deployment: Deployment
    outcome: Outcome

    @property
    def state(self) -> State:
        """What it says."""
        posted = self.deployment
        return State(posted.status, posted.digest, posted.name, posted.version or "")

    def __str__(self) -> str:
        return f"#{self.exchange.seq} {self.state} ({self.outcome.value})"


def check(
    history: Sequence[Exchange], rows: Iterable[Row], log: TruthLog, circumstances: Circumstances
) -> list[Violation]:
    """Return every promise this run broke, by name and time; an empty list is a good run."""
    posts: defaultdict[Identity, list[Post]] = defaultdict(list)
    for exchange in sorted(history, key=lambda each: (each.arrived, each.seq)):
        outcomes = exchange.outcomes()
        for deployment in exchange.deployments:
            outcome = outcomes[deployment.deployment_name]
            posts[deployment.identity].append(
                Post(exchange=exchange, deployment=deployment, outcome=outcome)
            )
    found = _contract(history)
    found += _identity(posts, circumstances)
    refusals = _refusals(posts)
    for identity, of_name in posts.items():
        name = identity.deployment_name
        current = _environment(identity) == circumstances.environment
        spans = log.line(name)
        texts = [
            *_in_flight(of_name),
            *_needless(of_name, circumstances),
            *_last_digest(of_name),
        ]
        if current:
            texts += _order(of_name, spans, refusals, circumstances)
            texts += _phantoms(of_name, spans, refusals, circumstances)
            texts += _progress(of_name, spans, refusals, circumstances)
        if current and circumstances.converged and name not in circumstances.excused:
            texts += _open_end(of_name)
        found += [
            Violation(promise=promise, deployment_name=name, text=text) for promise, text in texts
        ]
    found += _honesty(posts, circumstances)
    if circumstances.converged:
        found += _convergence(rows, log, circumstances)
    return found


def report(violations: Sequence[Violation], history: Iterable[Exchange]) -> str:
    """Return the violations with all requests of the names they are about, to fail a test with."""
    names = {violation.deployment_name for violation in violations}
    about = [str(each) for each in history if names.intersection(each.names)]
    return "\n".join([*map(str, violations), "Requests of these names:", *about])


Finding = tuple[Promise, str]


def _environment(identity: Identity) -> Environment:
    return Environment(
        identity.org,
        identity.logical_environment,
        identity.physical_environment,
        identity.cluster,
    )


def _refusals(posts: Mapping[Identity, Sequence[Post]]) -> dict[str, float]:
    """Return when GitHub first said of a digest that it can't be recorded."""
    refusals: dict[str, float] = {}
    for of_name in posts.values():
        for post in of_name:
            if post.outcome is Outcome.REFUSED and _of_the_record(post.exchange):
                told = post.exchange.answered or post.exchange.arrived
                earliest = refusals.get(post.deployment.digest, told)
                refusals[post.deployment.digest] = min(earliest, told)
    return refusals


def _of_the_record(exchange: Exchange) -> bool:
    """Say whether a refusal is one of the record, and not of the caller, a limit or a batch."""
    if exchange.status == PARTIAL:
        return True
    limited = "limit" in exchange.answer.decode(errors="replace").lower() or any(
        name.lower() == "retry-after" for name in exchange.answer_headers
    )
    return (
        len(exchange.deployments) == 1
        and exchange.status in OF_THE_RECORD
        and not (exchange.status == FORBIDDEN and limited)
    )


def _contract(history: Iterable[Exchange]) -> list[Violation]:
    return [
        Violation(
            promise=Promise.CONTRACT,
            deployment_name=", ".join(exchange.names[:3]),
            text=" ".join(
                [str(exchange), *(f"{at.field} {at.message};" for at in exchange.errors)]
            ),
        )
        for exchange in history
        if exchange.errors or (not exchange.scripted and exchange.status in MALFORMED)
    ]


def _identity(
    posts: Mapping[Identity, Sequence[Post]], circumstances: Circumstances
) -> list[Violation]:
    known = {circumstances.environment, *circumstances.former}
    return [
        Violation(
            promise=Promise.IDENTITY,
            deployment_name=identity.deployment_name,
            text=f"{of_name[0]} went to {identity}",
        )
        for identity, of_name in posts.items()
        if _environment(identity) not in known
    ]


def _in_flight(posts: Sequence[Post]) -> list[Finding]:
    found: list[Finding] = []
    for earlier, later in pairwise(posts):
        first, second = earlier.exchange, later.exchange
        if first.answered is not None and first.gone is None:
            overlaps = second.arrived < first.answered
        else:
            # A client that gave up closes one connection and opens the next: the server may see
            # the second before the first, so only what is still open much later is a fault.
            overlaps = first.ended is None or second.arrived < first.ended - 0.25
        if overlaps:
            found.append((Promise.ONE_IN_FLIGHT, f"{later} arrived while {earlier} was unanswered"))
    return found


def _needless(posts: Sequence[Post], circumstances: Circumstances) -> list[Finding]:
    """Grant one more post of the name for each open outcome, answered or cut off by a crash."""
    found: list[Finding] = []
    budget = circumstances.reposts
    crashes = deque(sorted(circumstances.crashes, key=lambda crash: crash.at))
    since = float("-inf")
    standing: Post | None = None
    last: Post | None = None
    open_end: Post | None = None
    for post in posts:
        while crashes and crashes[0].at <= post.exchange.arrived:
            crash = crashes.popleft()
            budget += _is_left_open(crash, post.deployment.deployment_name, last, since)
            since = crash.at
            if _may_be_overwritten(standing, crash):
                standing = None
        stood = _says_the_same(standing, post)
        if stood and not budget:
            found.append((Promise.NO_NEEDLESS_POST, f"{post} though {standing} stood acknowledged"))
        elif stood or _says_the_same(open_end, post):
            # One that was refused had no effect: the next one is the one that is permitted.
            budget -= post.outcome is not Outcome.REFUSED
        if post.outcome is Outcome.ACKNOWLEDGED:
            standing = post
        elif post.outcome is Outcome.OPEN:
            budget += 1
            standing = standing if stood else None
        if post.outcome is not Outcome.REFUSED:
            open_end = post if post.outcome is Outcome.OPEN else None
        last = post
    return found


def _says_the_same(one: Post | None, other: Post) -> bool:
    return one is not None and one.deployment == other.deployment


def _may_be_overwritten(standing: Post | None, crash: Crash) -> bool:
    """Tell whether a crash left open whether another record came after the one that stood."""
    if standing is None:
        return False
    sent = crash.in_doubt.get(standing.deployment.deployment_name)
    return sent not in {None, standing.state[:2]}


def _is_left_open(crash: Crash, name: str, last: Post | None, since: float) -> bool:
    """
    Tell whether a crash left a send of a name open that does not count as open by itself.

    It left before it had an answer, or the answer was not written down; `last` is the last post
    before the crash, and `since` when the process that crashed may have begun.
    """
    if name not in crash.in_doubt:
        return False
    return last is None or last.outcome is not Outcome.OPEN or last.exchange.arrived <= since


def _last_digest(posts: Sequence[Post]) -> list[Finding]:
    found: list[Finding] = []
    acknowledged = sent = ""
    for post in posts:
        state = post.state
        if state.status == "decommissioned" and sent and state.digest not in {acknowledged, sent}:
            found.append((Promise.LAST_DIGEST, f"{post}, but {sent[:15]} was sent last"))
        sent = state.digest
        if post.outcome is Outcome.ACKNOWLEDGED:
            acknowledged = state.digest
    return found


def _order(
    posts: Sequence[Post],
    spans: Sequence[Span],
    refusals: Mapping[str, float],
    circumstances: Circumstances,
) -> list[Finding]:
    """
    Walk the posts along the truth: each must fit a span that is not before its predecessor's.

    The earliest span that fits is taken, so a post is only found guilty when no way of reading
    the history clears it. A repetition of the last state stays where that was.
    """
    found: list[Finding] = []
    at = 0
    last: Post | None = None
    for post in posts:
        if last is not None and last.state == post.state:
            continue
        fitting = [
            index
            for index, span in enumerate(spans)
            if span.start <= post.exchange.arrived + circumstances.network_seconds
            and _fits(post, span.verdict, refusals)
        ]
        onward = [index for index in fitting if index >= at]
        if onward:
            at = onward[0]
        elif not fitting:
            found.append((Promise.TRUTH, f"{post} was never true of the cluster until then"))
        elif last is not None and last.state.status == "decommissioned":
            found.append((Promise.NO_RESURRECTION, f"{post} after {last}, and no newer pod ran"))
        else:
            found.append((Promise.ORDER, f"{post} after {last}, which is newer"))
        last = post
    return found


def _fits(post: Post, verdict: Verdict | None, refusals: Mapping[str, float]) -> bool:
    """Say whether a post tells what was true; an unrecordable image may be told either way."""
    state = post.state
    if state.status == "decommissioned":
        return _decommissionable(post, verdict, refusals)
    image = None if verdict is None else verdict.image
    if image is None or image.digest != state.digest:
        return False
    return image.named_by_node or (image.name, image.version) == (state.name, state.version)


def _decommissionable(post: Post, verdict: Verdict | None, refusals: Mapping[str, float]) -> bool:
    """
    Say whether this verdict permits the decommission.

    The name is gone; or its image can't be recorded and no pod runs the one that was.
    """
    if verdict is None:
        return True
    digest = "" if verdict.image is None else verdict.image.digest
    refused = refusals.get(digest, float("inf")) <= post.exchange.arrived
    state = post.state
    runs = verdict.may_run(state.digest, state.name, state.version)
    return bool(verdict.reason or refused) and not runs


def _phantoms(
    posts: Sequence[Post],
    spans: Sequence[Span],
    refusals: Mapping[str, float],
    circumstances: Circumstances,
) -> list[Finding]:
    """Ask of each decommission that it was right at a moment shortly before it arrived."""
    found: list[Finding] = []
    last: Post | None = None
    for post in posts:
        # The retry of one that got no answer was decided when the first was.
        retried = last is not None and last.state == post.state
        retried = retried and last is not None and last.outcome is not Outcome.ACKNOWLEDGED
        last = post
        if post.state.status != "decommissioned" or retried:
            continue
        until = post.exchange.arrived + circumstances.network_seconds
        since = post.exchange.arrived - circumstances.network_seconds
        ends = [span.start for span in spans[1:]] + [float("inf")]
        lately = [
            span
            for span, end in zip(spans, ends, strict=True)
            if span.start <= until and end >= since
        ]
        if not any(
            _decommissionable(post, span.verdict, refusals) and span.spared_until <= until
            for span in lately
        ):
            found.append((Promise.NO_PHANTOM, f"{post} arrived while a pod held the name"))
    return found


def _progress(
    posts: Sequence[Post],
    spans: Sequence[Span],
    refusals: Mapping[str, float],
    circumstances: Circumstances,
) -> list[Finding]:
    """Ask of each image that stood long enough that it was acknowledged in time."""
    if circumstances.settled_within is None:
        return []
    found: list[Finding] = []
    for span, following in pairwise(spans):
        image = None if span.verdict is None or span.verdict.reason else span.verdict.image
        due = span.start + circumstances.settled_within
        if image is None or following.start < due or image.digest in refusals:
            continue
        told = [
            post.state
            for post in posts
            if post.outcome is Outcome.ACKNOWLEDGED and (post.exchange.answered or 0.0) <= due
        ]
        if not told or (told[-1].status, told[-1].digest) != ("deployed", image.digest):
            found.append((Promise.PROGRESS, f"{image.digest[:15]} stood {span} and was not told"))
    return found


def _open_end(posts: Sequence[Post]) -> list[Finding]:
    last = posts[-1]
    return [(Promise.OPEN_END, f"{last} is the last word")] if last.outcome is Outcome.OPEN else []


def _honesty(
    posts: Mapping[Identity, Sequence[Post]], circumstances: Circumstances
) -> list[Violation]:
    told = {
        (identity.deployment_name, post.state.status, post.state.digest)
        for identity, of_name in posts.items()
        if _environment(identity) == circumstances.environment
        for post in of_name
        if post.outcome is Outcome.ACKNOWLEDGED
    }
    return [
        Violation(
            promise=Promise.HONESTY,
            deployment_name=name,
            text=f"{status} {digest[:15]} is claimed, and GitHub never said so",
        )
        for name, (status, digest) in circumstances.claimed.items()
        if (name, status, digest) not in told
    ]


def _convergence(
    rows: Iterable[Row], log: TruthLog, circumstances: Circumstances
) -> list[Violation]:
    ours = [row for row in rows if _environment(row.identity) == circumstances.environment]
    lines = compare(
        log.truth(circumstances.recordable), ours, cronjobs=log.spared(circumstances.ended)
    )
    return [
        Violation(
            promise=Promise.CONVERGENCE,
            deployment_name=line.deployment_name,
            text=(
                f"{line.why}: cluster {line.wanted} {line.cluster[:15] or '-'},"
                f" GitHub {line.status or 'nothing'} {line.github[:15]}"
            ),
        )
        for line in lines
        if not line.agrees and line.deployment_name not in circumstances.excused
    ]
