"""
What GitHub refused, remembered for all names together: when it is worth asking again.

Three answers are about more than one name. A digest of which GitHub knows no artifact is unknown
for every name that runs it (`Unknowns`): one of them asks, and what it hears holds for all, but for
a name with a repository of its own, which GitHub takes without knowing the digest. A token
that may not write is often mended for many records at once (`Spell`): the first success after a
spell of refusals makes all of them due, but none of them twice, since a record of which the token
really may not write would go round and round with every success of another one. And when the way
to GitHub was broken and is not any more, whatever failed on it is due.

Times are seconds of whatever clock the caller uses. Nothing here is kept over a restart: what the
ledger holds is enough to begin with.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

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
from tracker.entries import Entry, State, Unknown
from tracker.images import Digest
from tracker.records import Record, Status

__all__ = ["Refusals", "Spell", "Unknowns", "known_digests"]

STALE_SECONDS = 2 * 3600.0
"""A digest that nobody asked for so long after it was due is of no name any more."""
FIRST_PROBE_SECONDS = 60.0
MAX_PROBE_SECONDS = 3600.0
MAX_PROBES_COUNTED = 6
MIN_KEPT = 100


def known_digests(entries: Iterable[Entry]) -> frozenset[Digest]:
    """Return the digests that GitHub acknowledged as deployed under some name."""
    return frozenset(
        entry.acknowledged.digest
        for entry in entries
        if entry.acknowledged is not None and entry.acknowledged.status is Status.DEPLOYED
    )


class Unknowns(Mapping[Digest, Unknown]):
    """The digests that GitHub does not know, and the names that wait for each."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._unknown: dict[Digest, Unknown] = {}
        self._names: dict[Digest, set[str]] = {}
        self._prune_at = MIN_KEPT
        entries = tuple(entries)
        known = known_digests(entries)
        for entry in entries:
            if entry.state is not State.NOT_FOUND or entry.sent is None:
                continue
            if entry.sent.digest in known or entry.sent.repository is not None:
                continue
            found = Unknown(
                due=entry.not_before or 0.0, attempts=entry.attempts, reason=entry.reason
            )
            other = self._unknown.get(entry.sent.digest)
            if other is None or other.attempts < found.attempts:
                self._unknown[entry.sent.digest] = found

    def __getitem__(self, digest: Digest) -> Unknown:
        return self._unknown[digest]

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._unknown)

    def __len__(self) -> int:
        return len(self._unknown)

    def note(self, digest: Digest, unknown: Unknown, *, now: float) -> Collection[str]:
        """Note what was answered for a digest; return the names that wait for it, to look anew."""
        if len(self._unknown) >= self._prune_at:
            self._prune(now)
        self._unknown[digest] = unknown
        return self._names.pop(digest, ())

    def wait(self, digest: Digest, name: str) -> None:
        """Note that a name waits for what is answered for a digest, if it is unknown."""
        if digest in self._unknown:
            self._names.setdefault(digest, set()).add(name)

    def found(self, digest: Digest) -> Collection[str]:
        """Note that a digest is unknown no more; return the names that waited for it."""
        self._unknown.pop(digest, None)
        return self._names.pop(digest, ())

    def _prune(self, now: float) -> None:
        stale = [each for each, found in self._unknown.items() if found.due + STALE_SECONDS < now]
        for digest in stale:
            self.found(digest)
        self._prune_at = max(2 * len(self._unknown), MIN_KEPT)


class Spell:
    """The names that were refused for the token's sake since the last success."""

    def __init__(self) -> None:
        self._parked: set[str] = set()
        self._released: set[str] = set()
        self._stubborn: set[str] = set()
        self._probes = 0
        self._probed = ""

    @property
    def is_on(self) -> bool:
        """Tell whether names are parked that a success would make due."""
        return not self._parked <= self._stubborn

    def refuse(self, name: str) -> None:
        """Note a refusal."""
        if not self.is_on:
            self._probes = 0
        if name in self._released:
            self._stubborn.add(name)
        self._parked.add(name)

    def end(self, name: str) -> Collection[str]:
        """Note a success of a name; return those that were parked in the spell it ends."""
        self.forget(name)
        released = self._parked - self._stubborn
        self._released |= released
        self._parked.clear()
        self._probes = 0
        return released

    def forget(self, name: str) -> None:
        """Drop a name that is asked for no more."""
        for names in (self._parked, self._released, self._stubborn):
            names.discard(name)

    def probe(self) -> str | None:
        """
        Return a name to ask for, to see whether the spell is over; None when there is none.

        Each in its turn: one that is refused for a reason of its own hides no end of the spell.
        """
        parked = self._parked - self._stubborn
        later = [name for name in parked if name > self._probed]
        name = min(later or parked, default=None)
        self._probed = name or ""
        return name

    def probe_seconds(self) -> float:
        """Return how long to wait for the next probe: a minute, doubled each time, up to 1 h."""
        seconds = FIRST_PROBE_SECONDS * 2.0**self._probes
        self._probes = min(self._probes + 1, MAX_PROBES_COUNTED)
        return min(seconds, MAX_PROBE_SECONDS)


class Refusals:
    """
    What was refused or failed, by name, and which names are due at once all the same.

    `unknown` are the digests that GitHub does not know.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.unknown = Unknowns(entries)
        self.spell = Spell()
        self._failed: set[str] = set()
        self._due: set[str] = set()

    def is_due(self, name: str) -> bool:
        """Tell whether a name is to be asked for at once, whatever its entry waits for."""
        return name in self._due

    def is_unknown(self, record: Record) -> bool:
        """Tell whether GitHub did not know what a record is to say that it runs."""
        return _asks_for_its_digest(record) and record.digest in self.unknown

    def intend(self, entry: Entry) -> Entry:
        """Return an intent with the attempts of all names that asked for its digest."""
        if entry.sent is None or not self.is_unknown(entry.sent):
            return entry
        return replace(entry, attempts=self.unknown[entry.sent.digest].attempts + 1)

    def rest(self, name: str) -> None:
        """Note that there is nothing to be asked for a name."""
        self._due.discard(name)
        self.spell.forget(name)

    def forget(self, name: str) -> None:
        """Drop what is known of a name."""
        self._due.discard(name)
        self._failed.discard(name)
        self.spell.forget(name)

    def learn(  # noqa: PLR0913 - what was said, and when
        self,
        entry: Entry,
        after: Entry,
        said: Said,
        *,
        now: float,
        paused_until: float,
        known: Collection[Digest] = (),
    ) -> Collection[str]:
        """
        Take from an answer to one name what it says of others; return those to look at anew.

        `entry` is the intent, `after` what was concluded; nobody sends before `paused_until`.
        `known` are digests that GitHub acknowledged: that one of them is not found says nothing
        of other names.
        """
        record, name = entry.sent, entry.deployment_name
        self._failed.discard(name)
        # Not before: an intent that was not written, or was undone, has not asked.
        self._due.discard(name)
        if isinstance(said, Failed):
            self._failed.add(name)
        match said:
            case _ if record is None:
                return ()
            case Acknowledged():
                return self._make_due({*self.unknown.found(record.digest), *self.spell.end(name)})
            case NotFound() if _asks_for_its_digest(record) and record.digest not in known:
                due = after.not_before or now
                found = Unknown(due=due, attempts=entry.attempts, reason=said.reason)
                return self.unknown.note(record.digest, found, now=now)
            case Forbidden() | Rejected():
                if isinstance(said, Forbidden):
                    self.spell.refuse(name)
                return self._make_due(self.unknown.found(record.digest))
            case Failed() | Limited() | Unauthorized() if self.is_unknown(record):
                # It was not answered: the digest is asked for when anything may be.
                asked = self.unknown[record.digest]
                due = max(after.not_before or now, asked.due, paused_until)
                return self.unknown.note(record.digest, replace(asked, due=due), now=now)
            case _:
                return ()

    def recover(self) -> Collection[str]:
        """Note that the way to GitHub is there again; return the names that failed on it."""
        failed, self._failed = self._failed, set()
        return self._make_due(failed)

    def probe(self) -> Collection[str]:
        """Return a name to be asked for, to see whether a spell of refusals is over; or none."""
        name = self.spell.probe()
        return () if name is None else self._make_due([name])

    def _make_due(self, names: Collection[str]) -> Collection[str]:
        self._due.update(names)
        return names


def _asks_for_its_digest(record: Record) -> bool:
    """Tell whether the answer to a record is about its digest: a repository makes it known."""
    return record.status is Status.DEPLOYED and record.repository is None
