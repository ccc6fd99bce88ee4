"""What a refusal of one name says of others."""

from dataclasses import replace
from typing import Final

from tests.support.builders import digest, record, workload
from tracker.answers import (
    Acknowledged,
    Failed,
    Forbidden,
    Limited,
    NotFound,
    Rejected,
    Unauthorized,
)
from tracker.batches import Said
from tracker.entries import Entry, State, conclude, intend
from tracker.entries import Send as Sending
from tracker.images import Digest
from tracker.records import Record
from tracker.refusals import MIN_KEPT, STALE_SECONDS, Refusals, Spell, Unknowns, known_digests

OK: Final = Acknowledged()
UNKNOWN: Final = NotFound(reason="HTTP 404")
FORBIDDEN: Final = Forbidden(reason="HTTP 403")
A: Final = record("a")


def send(
    refusals: Refusals, name: str, said: Said, *, letter: str = "a", now: float = 0.0
) -> tuple[set[str], Entry]:
    """Let a name be answered; return what is to be looked at then, and its entry."""
    posted = record(letter, name=name)
    sending = Sending(record=posted, workload=workload(), container="app")
    entry = refusals.intend(intend(None, sending))
    after = conclude(entry, said, now=now, chance=0.5)
    return set(refusals.learn(entry, after, said, now=now, paused_until=now)), after


def test_a_digest_that_is_found_makes_all_due_that_wait_for_it() -> None:
    refusals = Refusals()
    send(refusals, "one", UNKNOWN)
    for name in ("two", "three"):
        refusals.unknown.wait(digest("a"), name)
    assert refusals.is_unknown(A)
    assert not refusals.is_unknown(A.decommissioned())
    others, _ = send(refusals, "one", OK)
    assert others == {"two", "three"}
    assert all(map(refusals.is_due, others))
    assert not refusals.is_unknown(A)


def test_the_attempts_of_all_names_count_for_their_digest() -> None:
    refusals = Refusals()
    delays = []
    now = 0.0
    for name in ("one", "two", "one", "three"):
        _, after = send(refusals, name, UNKNOWN, now=now)
        assert after.not_before is not None
        delays.append(after.not_before - now)
        now = after.not_before
    assert [round(delay / 300) for delay in delays] == [1, 2, 4, 8]


def test_a_digest_that_was_not_asked_for_is_asked_for_later() -> None:
    refusals = Refusals()
    for said in (Failed(reason="", landed=True), Limited(reason="", pause_seconds=5)):
        send(refusals, "one", UNKNOWN)
        before = refusals.unknown[digest("a")]
        refusals.unknown.wait(digest("a"), "two")
        others, _ = send(refusals, "one", said, now=before.due)
        assert others == {"two"}
        assert refusals.unknown[digest("a")].due >= before.due
        assert refusals.unknown[digest("a")].attempts == before.attempts


def test_another_refusal_of_a_digest_lets_every_name_ask_for_itself() -> None:
    for said in (FORBIDDEN, Rejected(reason="HTTP 422")):
        refusals = Refusals()
        send(refusals, "one", UNKNOWN)
        refusals.unknown.wait(digest("a"), "two")
        others, _ = send(refusals, "one", said)
        assert others == {"two"}
        assert digest("a") not in refusals.unknown


def test_what_github_holds_for_others_is_not_unknown() -> None:
    refusals = Refusals()
    posted = record("a", name="one")
    entry = intend(None, Sending(record=posted, workload=workload(), container="app"))
    after = conclude(entry, UNKNOWN, now=0.0, chance=0.5)
    others = refusals.learn(entry, after, UNKNOWN, now=0.0, paused_until=0.0, known={digest("a")})
    assert not others
    assert not refusals.unknown


def entry_of(name: str, *, state: State, attempts: int, sent: Record | None = None) -> Entry:
    return Entry(
        deployment_name=name,
        workload=workload(),
        container="app",
        sent=sent or record("a", name=name),
        state=state,
        attempts=attempts,
        not_before=100.0 * attempts,
    )


def test_a_start_takes_from_the_ledger_what_is_unknown() -> None:
    entries = [
        entry_of("one", state=State.NOT_FOUND, attempts=1),
        entry_of("two", state=State.NOT_FOUND, attempts=3),
        entry_of("three", state=State.PARKED, attempts=9, sent=record("b")),
    ]
    unknown = Unknowns(entries)
    assert dict(unknown.items()).keys() == {digest("a")}
    assert (unknown[digest("a")].attempts, unknown[digest("a")].due) == (3, 300.0)
    held = replace(entries[2], acknowledged=A)
    assert known_digests([held]) == {digest("a")}
    assert len(Unknowns([*entries, held])) == 0


def test_a_digest_that_nobody_asks_for_any_more_is_dropped() -> None:
    refusals = Refusals()
    for number in range(10 * MIN_KEPT):
        now = number * STALE_SECONDS
        posted = replace(record(name="x"), digest=Digest(f"sha256:{number:064x}"))
        entry = intend(None, Sending(record=posted, workload=workload(), container="app"))
        after = conclude(entry, UNKNOWN, now=now, chance=0.5)
        refusals.learn(entry, after, UNKNOWN, now=now, paused_until=now)
    assert len(refusals.unknown) <= 2 * MIN_KEPT


def test_the_success_that_ends_a_spell_makes_what_is_parked_due_but_nothing_twice() -> None:
    spell = Spell()
    spell.refuse("one")
    spell.refuse("two")
    assert set(spell.end("other")) == {"one", "two"}
    spell.refuse("one")
    assert spell.probe() is None
    assert spell.end("other") == set()
    assert spell.end("one") == set()
    spell.refuse("one")
    assert set(spell.end("other")) == {"one"}


def test_probes_of_a_spell_grow_apart_up_to_an_hour() -> None:
    spell = Spell()
    spell.refuse("one")
    assert spell.probe() == "one"
    assert [spell.probe_seconds() for _ in range(8)] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    spell.end("other")
    spell.refuse("two")
    assert spell.probe_seconds() == 60


def test_each_parked_name_is_a_probe_in_its_turn() -> None:
    spell = Spell()
    assert spell.probe() is None
    for name in ("b", "a", "c"):
        spell.refuse(name)
    assert [spell.probe() for _ in range(4)] == ["a", "b", "c", "a"]
    spell.forget("b")
    assert spell.probe() == "c"
    assert spell.is_on
    spell.end("x")
    assert not spell.is_on


def test_a_spell_that_ended_without_a_success_leaves_the_next_its_early_probes() -> None:
    spell = Spell()
    spell.refuse("one")
    assert [spell.probe_seconds() for _ in range(3)] == [60, 120, 240]
    spell.forget("one")
    spell.refuse("two")
    assert spell.probe_seconds() == 60


def test_what_failed_is_due_when_the_way_is_there_again() -> None:
    refusals = Refusals()
    send(refusals, "one", Failed(reason="", landed=False))
    send(refusals, "two", Failed(reason="", landed=True))
    send(refusals, "two", OK)
    send(refusals, "three", Unauthorized(reason=""))
    assert set(refusals.recover()) == {"one"}
    assert refusals.is_due("one")
    assert set(refusals.recover()) == set()
    refusals.forget("one")
    assert not refusals.is_due("one")
