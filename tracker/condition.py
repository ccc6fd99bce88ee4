"""
How the tracker is: what `/healthz` and `/readyz` say, and what a scrape of the metrics finds.

It looks at the parts from outside and changes nothing in them. *Alive* is what tries, however
little comes of it; *ready* is what does its job.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from tracker.delivery import Delivery
from tracker.entries import Entry, account_of
from tracker.inventory import Inventory
from tracker.lookups import Lookups
from tracker.metrics import Metrics, Snapshot
from tracker.pacing import Pace
from tracker.vitals import Grants, Laps, Vitals

__all__ = ["Condition", "Ledger"]

LATE_SECONDS: Final = 5.0
"""A loop whose last turn was later than this is not well; it comes to one twice a second."""
ASKING_SECONDS: Final = 900.0
"""A watch that is granted is asked for anew after five minutes, one that is not much sooner."""
UNGRANTED_SECONDS: Final = 30.0
"""How long the API server may take to grant a watch: what ended is asked for at once."""
UNTRIED_SECONDS: Final = 300.0
"""How long names may wait for a worker when nothing else is waited for."""
TASKS: Final = ("watch", "reconcile", "absences", "lookups")


class Ledger(Protocol):
    """What GitHub acknowledged, and whether that can be written down."""

    @property
    def failure(self) -> str | None:
        """Return why the last write failed, or None when it was kept."""
        ...

    @property
    def taken(self) -> str | None:
        """Return why another file or owner has the ledger's place, or None."""
        ...

    def entries(self) -> Collection[Entry]:
        """Return all entries, as they are now."""
        ...


class Condition:
    """
    The health of a tracker that has these parts.

    `hindrances` are why GitHub will refuse everything, as far as the settings tell. It is told of
    the watch (`asked`, `granted`, `ended`), which lives outside of the tracker.
    """

    def __init__(  # noqa: PLR0913 - each part is named, so that a test builds it without the rest
        self,
        *,
        hindrances: Collection[str],
        reads_workloads: bool,
        inventory: Inventory,
        ledger: Ledger,
        pace: Pace,
        delivery: Delivery,
        lookups: Lookups,
        vitals: Vitals,
        metrics: Metrics,
    ) -> None:
        self._hindrances = hindrances
        self._reads_workloads = reads_workloads
        self._inventory = inventory
        self._ledger = ledger
        self._pace = pace
        self._delivery = delivery
        self._lookups = lookups
        self._vitals = vitals
        self._metrics = metrics
        self._grants = Grants()
        self.laps = Laps()
        metrics.snapshot = self.snapshot

    def asked(self) -> None:
        """Take note that the API server is asked for a list or a watch of pods."""
        self._vitals.expect("watch", ASKING_SECONDS)
        self._grants.ask()

    def granted(self) -> None:
        """Take note that it granted what it was asked for."""
        self._vitals.expect("watch", ASKING_SECONDS)
        self._grants.grant()
        self._metrics.granted()

    def ended(self) -> None:
        """Take note that the watch ended and is started again."""
        self.asked()
        self._metrics.restarted()

    def liveness(self) -> Mapping[str, str | None]:
        """Return what a restart would mend, by what was looked at; None where nothing is wrong."""
        late = self.laps.last
        overdue = self._vitals.overdue()
        return {
            "loop": f"its last turn came {late:.1f} s late" if late > LATE_SECONDS else None,
            **{
                task: f"its sign of life is {overdue[task]:.0f} s overdue"
                if task in overdue
                else None
                for task in TASKS
            },
            "delivery": self._untried(),
            # A start takes up what stands in its place, or waits in line for it; this process may
            # do neither. Whatever else keeps a ledger from being written a restart does not mend,
            # and it would forget what memory still knows.
            "ledger": self._ledger.taken,
        }

    def readiness(self) -> Mapping[str, str | None]:
        """Return why it does not do its job, by what was looked at; None where nothing is wrong."""
        wanting = self._grants.wanting()
        failure = self._ledger.failure
        trouble = self._lookups.trouble
        return {
            "settings": "; ".join(self._hindrances) or None,
            "token": self._refused(),
            "start": None if self._pace.is_open else "not every pod of the first list was seen yet",
            "watch": f"the API server has granted no watch of pods for {wanting:.0f} s"
            if wanting > UNGRANTED_SECONDS
            else None,
            "ledger": None if failure is None else f"it can't be written: {failure}",
            "workloads": f"they can't be read: {trouble}" if trouble else None,
        }

    def snapshot(self) -> Snapshot:
        """Return what is now."""
        now = asyncio.get_running_loop().time()
        since = self._delivery.pending_since
        return Snapshot(
            pods=len(self._inventory),
            names=Counter(account_of(entry) for entry in self._ledger.entries()),
            skipped=self._inventory.skipped(),
            shared_names=len(self._inventory.shared()),
            queue_depth=self._delivery.backlog,
            oldest_pending_seconds=0.0 if since is None else now - since,
            paused_seconds=max(self._pace.not_before - now, 0.0),
            watch_in_step=not self._grants.wanting(),
            workloads_readable=not self._lookups.trouble if self._reads_workloads else None,
            loop_lag_seconds=self.laps.longest(),
        )

    def _refused(self) -> str | None:
        """
        Return that GitHub refuses the token that something waits to be sent with, or None.

        That is set-up, which somebody has to mend. Limits and outages pass by themselves: a pod
        that is unready for them would hold up a rollout over what nobody here can change.
        """
        refusal = self._pace.refusal
        if refusal is None or not self._delivery.unfinished:
            return None
        return f"nothing can be sent with it: {refusal}"

    def _untried(self) -> str | None:
        """Return that no worker takes what waits, though it may be sent, or None."""
        if not self._delivery.backlog or not self._pace.permits:
            return None
        now = asyncio.get_running_loop().time()
        waited = now - max(self._delivery.tried_at, self._pace.permitted_since)
        if waited <= UNTRIED_SECONDS:
            return None
        return f"names wait, and none was taken for {waited:.0f} s"
