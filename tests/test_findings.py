"""Cluster, ledger and GitHub held against each other, as values."""

import pytest

from tests.support.builders import SCOPE, digest, record, workload
from tracker.answers import Known, ReadBack
from tracker.entries import Entry, State
from tracker.findings import Comparison, Finding, Held, compare, digests_of
from tracker.images import Digest
from tracker.inventory import Absent, Deployed, Judgement
from tracker.inventory import Held as HeldByPods
from tracker.records import Record

NAME = "shop/web/app"
OURS = (SCOPE.logical_environment, SCOPE.physical_environment, SCOPE.cluster)
ELSEWHERE = ("prod", "eu", "c2")

ABSENT = Absent()
HELD = HeldByPods(displaced=False)


def runs(letter: str = "a", *, version: str | None = "v1") -> Deployed:
    """Return the judgement of a name that runs an image."""
    return Deployed(
        record=record(letter, version=version),
        workload=workload(),
        container="app",
        displaced=False,
    )


def entry(
    acknowledged: Record | None = None,
    *,
    sent: Record | None = None,
    state: State = State.CLEAN,
    reason: str = "",
) -> Entry:
    """Return what the ledger has of the name."""
    return Entry(
        deployment_name=NAME,
        workload=workload(),
        container="app",
        acknowledged=acknowledged,
        sent=sent,
        state=state,
        reason=reason,
    )


def answer(
    *places: tuple[str, str, str], letter: str = "a", name: str = NAME, complete: bool = True
) -> dict[Digest, Known]:
    """Return what GitHub said of a digest: in which places it holds the name."""
    records = tuple(
        ReadBack(
            deployment_name=name,
            digest=digest(letter),
            logical_environment=logical,
            physical_environment=physical,
            cluster=cluster,
        )
        for logical, physical, cluster in places
    )
    return {digest(letter): Known(records=records, complete=complete)}


DEPLOYED = entry(record())
DECOMMISSIONED = entry(record().decommissioned())
NOT_FOUND = entry(sent=record(), state=State.NOT_FOUND, reason="HTTP 404 Not Found")
SENDING = entry(sent=record(), state=State.SENDING)
NEWER_REFUSED = entry(record(), sent=record("b"), state=State.PARKED, reason="HTTP 403")


@pytest.mark.parametrize(
    ("judgement", "known", "answers", "finding"),
    [
        pytest.param(runs(), DEPLOYED, answer(OURS), Finding.AGREES, id="as-it-should-be"),
        pytest.param(runs(), DEPLOYED, answer(OURS, ELSEWHERE), Finding.AGREES, id="in-two"),
        pytest.param(runs(), DEPLOYED, answer(), Finding.MISSING, id="lost"),
        pytest.param(runs(), DEPLOYED, answer(ELSEWHERE), Finding.ELSEWHERE, id="other-cluster"),
        pytest.param(runs(), DEPLOYED, {}, Finding.NOT_ASKED, id="no-answer"),
        pytest.param(
            runs(), DEPLOYED, answer(complete=False), Finding.NOT_ASKED, id="half-an-answer"
        ),
        pytest.param(
            runs(), DEPLOYED, answer(OURS, complete=False), Finding.AGREES, id="in-half-an-answer"
        ),
        pytest.param(HELD, DEPLOYED, answer(OURS), Finding.AGREES, id="held"),
        pytest.param(HELD, DEPLOYED, answer(), Finding.MISSING, id="held-and-lost"),
        pytest.param(ABSENT, DEPLOYED, answer(OURS), Finding.STANDING, id="gone"),
        pytest.param(ABSENT, SENDING, answer(OURS), Finding.STANDING, id="gone-and-open"),
        pytest.param(ABSENT, DECOMMISSIONED, answer(OURS), Finding.AGREES, id="taken-back"),
        pytest.param(ABSENT, DECOMMISSIONED, answer(), Finding.AGREES, id="taken-back-and-lost"),
        pytest.param(runs(), None, answer(), Finding.NOT_POSTED, id="new"),
        pytest.param(runs(), None, answer(OURS), Finding.NOT_POSTED, id="new-to-the-ledger-only"),
        pytest.param(runs(), NOT_FOUND, answer(), Finding.NOT_POSTED, id="not-found"),
        pytest.param(runs(), DECOMMISSIONED, answer(OURS), Finding.NOT_POSTED, id="again"),
        pytest.param(runs("b"), DEPLOYED, answer(OURS), Finding.NOT_POSTED, id="rolled-out"),
        pytest.param(runs("b"), NEWER_REFUSED, answer(), Finding.NOT_POSTED, id="refused"),
        pytest.param(
            runs(version="v2"), DEPLOYED, answer(OURS), Finding.NOT_POSTED, id="another-version"
        ),
    ],
)
def test_what_is_found_of_a_name(
    judgement: Judgement, known: Entry | None, answers: dict[Digest, Known], finding: Finding
) -> None:
    entries = {} if known is None else {NAME: known}
    (found,) = [
        each
        for each in compare({NAME: judgement}, entries, answers, scope=SCOPE)
        if each.finding is not Finding.UNKNOWN
    ]
    assert found.deployment_name == NAME
    assert found.finding is finding


@pytest.mark.parametrize(
    ("judgement", "answers", "finding"),
    [
        pytest.param(runs(), answer(OURS), Finding.AGREES, id="there"),
        pytest.param(runs(), answer(), Finding.MISSING, id="not-there"),
        pytest.param(runs(), answer(ELSEWHERE), Finding.ELSEWHERE, id="elsewhere"),
        pytest.param(runs(), {}, Finding.NOT_ASKED, id="no-answer"),
        pytest.param(HELD, answer(OURS), Finding.UNKNOWN, id="held"),
    ],
)
def test_without_a_ledger_the_cluster_is_held_against_github(
    judgement: Judgement, answers: dict[Digest, Known], finding: Finding
) -> None:
    (found,) = compare({NAME: judgement}, None, answers, scope=SCOPE)
    assert found.finding is finding
    assert found.ledger == ""


def test_what_nobody_here_knows_is_told_of_its_own_place_only() -> None:
    answers = {
        digest("a"): Known(
            records=(
                *answer(OURS)[digest("a")].records,
                *answer(OURS, ELSEWHERE, name="shop/other/app")[digest("a")].records,
            ),
            complete=True,
        )
    }
    found = compare({NAME: runs()}, {NAME: DEPLOYED}, answers, scope=SCOPE)
    assert [(each.deployment_name, each.finding) for each in found] == [
        ("shop/other/app", Finding.UNKNOWN),
        (NAME, Finding.AGREES),
    ]


def test_a_name_that_github_never_heard_of_and_nothing_runs_is_no_finding() -> None:
    known = {NAME: entry(sent=record(), state=State.NOT_FOUND)}
    assert compare({NAME: ABSENT}, known, {}, scope=SCOPE) == []


NOT_WATCHED = "its namespace is not watched"


@pytest.mark.parametrize(
    ("known", "answers", "finding", "reason"),
    [
        pytest.param(DEPLOYED, answer(OURS), Finding.NOT_JUDGED, NOT_WATCHED, id="stands"),
        pytest.param(SENDING, answer(OURS), Finding.NOT_JUDGED, NOT_WATCHED, id="open"),
        pytest.param(DECOMMISSIONED, answer(OURS), Finding.AGREES, "", id="taken-back"),
        pytest.param(DEPLOYED, answer(), Finding.MISSING, "", id="lost"),
        pytest.param(DEPLOYED, answer(ELSEWHERE), Finding.ELSEWHERE, "prod/eu/c2", id="elsewhere"),
        pytest.param(DEPLOYED, {}, Finding.NOT_ASKED, "", id="no-answer"),
    ],
)
def test_what_the_cluster_can_t_speak_of_is_held_against_github_only(
    known: Entry, answers: dict[Digest, Known], finding: Finding, reason: str
) -> None:
    """Once, a name that nothing runs "agreed" when the ledger was another cluster's."""
    (found,) = compare(
        {NAME: HELD}, {NAME: known}, answers, scope=SCOPE, unjudged={NAME: NOT_WATCHED}
    )
    assert (found.finding, found.reason) == (finding, reason)
    assert found.cluster == ""


def test_a_finding_says_what_each_of_the_three_told() -> None:
    (found,) = compare({NAME: runs("b")}, {NAME: NEWER_REFUSED}, answer(letter="b"), scope=SCOPE)
    assert found == Comparison(
        deployment_name=NAME,
        digest=digest("b"),
        cluster="runs",
        ledger="parked",
        github=Held.NONE,
        finding=Finding.NOT_POSTED,
        reason="HTTP 403",
    )


def test_what_runs_and_what_was_told_is_asked_for() -> None:
    judgements: dict[str, Judgement] = {"1": runs("a"), "2": ABSENT, "3": HELD}
    entries = {"2": entry(record("b")), "3": entry(sent=record("c"), state=State.OPEN)}
    assert digests_of(judgements, entries) == {digest("a"), digest("b"), digest("c")}
