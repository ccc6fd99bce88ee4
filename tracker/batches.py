"""
How many records go together, and how to go on when a batch did not tell of each.

A record that GitHub does not like spoils the batch it is in. So what is left open is sent once more
and then in halves, until what is wrong stands alone, where its answer is its own; the others are
through by then. A batch that fails as a whole may be too large, so the next ones are smaller.

Times are seconds of whatever clock the caller uses.
"""

from dataclasses import dataclass, replace

from tracker.answers import (
    Answer,
    BatchAnswer,
    BatchRefused,
    BatchUnclear,
    Failed,
    Limited,
    Told,
    Unauthorized,
    Unconfirmed,
)

__all__ = ["MAX_BATCH", "SINGLES_SECONDS", "Batching", "Part", "Said", "follow", "said_of_each"]

MAX_BATCH = 1000
"""Records that GitHub takes in one call."""
SINGLES_SECONDS = 3600.0
"""How long nothing is sent in batches after one was refused whose record alone was taken."""
DECIDERS = 3
"""So many records are asked for alone before a token counts as one that may write nothing."""
SMALL_FAILURES = 3
"""So many batches of next to nothing that fail, while single records get through, are enough."""

Said = Answer | BatchRefused | BatchUnclear
"""What was said of one record, alone or in a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """
    Names whose records are sent together, and why it is these.

    `repeated`: a batch with them left open what became of each. `halved`: and then a larger one
    was cut into this. `deciding`: this one alone shows whether it is the batch that is refused;
    `others` are asked after it, one by one, if it is refused for its own sake as well. `refused`
    are the names among them whose records were refused alone before.
    """

    names: tuple[str, ...]
    repeated: bool = False
    halved: bool = False
    deciding: bool = False
    others: tuple[str, ...] = ()
    refused: frozenset[str] = frozenset()

    def halves(self, names: tuple[str, ...] | None = None) -> list["Part"]:
        """Return the halves of these names of it, or of all; the first half is the last."""
        names = self.names if names is None else names
        middle = (len(names) + 1) // 2
        halves = names[middle:], names[:middle]
        return [replace(self, names=half, halved=True) for half in halves if half]

    def next_decider(self) -> list["Part"]:
        """Return the part that decides when this one could not, none when that was the last."""
        return [replace(self, names=self.others[:1], others=self.others[1:])] if self.others else []


class Batching:
    """How many records go together now; `permitted` is what the operator says."""

    def __init__(self, *, permitted: bool) -> None:
        self._permitted = permitted
        self._most = MAX_BATCH
        self._small_failures = 0
        self._singles_until = float("-inf")

    def most(self, now: float) -> int:
        """Return how many records may go together, 1 when none may go with another."""
        return self._most if self._permitted and now >= self._singles_until else 1

    def permits(self, now: float) -> bool:
        """Tell whether batches are sent at all."""
        return self._permitted and now >= self._singles_until

    def send_singly(self, now: float) -> None:
        """Send no batches for an hour."""
        self._singles_until = now + SINGLES_SECONDS

    def note(self, said: Answer | BatchAnswer, count: int, *, now: float) -> None:
        """Note what came of sending so many records together."""
        match said:
            case Failed() if count > 1:
                self._most = max(min(self._most, count) // 2, 1)
            case Failed() | Limited() | Unauthorized():
                pass
            case _:
                if self._most == 1:
                    # It was a batch that failed last, and one alone does not.
                    self._small_failures += 1
                elif count > 1:
                    self._small_failures = 0
                self._most = min(self._most * 2, MAX_BATCH)
        if self._small_failures >= SMALL_FAILURES:
            self._small_failures = 0
            self.send_singly(now)


def said_of_each(said: BatchAnswer, count: int) -> tuple[Said, ...]:
    """
    Return what a batch's answer says of each of its `count` records.

    One that is missing from it is asked for in smaller batches before that is its own answer.
    """
    if not isinstance(said, Told):
        return (said,) * count
    return tuple(
        BatchUnclear(reason=one.reason) if isinstance(one, Unconfirmed) else one
        for one in said.answers
    )


def follow(
    part: Part,
    said: BatchAnswer,
    left: tuple[str, ...],
    *,
    refusals: int = 0,
    refused: frozenset[str] = frozenset(),
) -> list[Part] | None:
    """
    Return how to go on with the names that an answer to a part left open, the last one first.

    None says that answers to batches can't be read at all. `refusals` says how many batches were
    refused before: each time it is others that decide. `refused` are the names that were refused
    alone before.
    """
    if not left:
        return []
    match said:
        case BatchRefused(by_content=False):
            first, *others = _deciders(left, refusals)
            return [Part(names=(first,), deciding=True, others=tuple(others), refused=refused)]
        case BatchRefused():
            return part.halves(left)
        case BatchUnclear() if part.halved:
            return None
        case _ if part.repeated:
            return part.halves(left)
        case _:
            return [replace(part, names=left, repeated=True)]


def _deciders(names: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """
    Return a few names from all over, others in each turn until all had theirs.

    What the token may not write lies together: names are sorted, by namespace first.
    """
    count = min(DECIDERS, len(names))
    apart = len(names) // count
    return tuple(names[(turn + number * apart) % len(names)] for number in range(count))
