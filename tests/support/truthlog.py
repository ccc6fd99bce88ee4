"""
What was true of each deployment name, and when: the cluster's side of the evidence.

A test records it through a watch of its own (on a real API server or a simulated one), or by
telling it what it does to the pods. Times are seconds of the event loop's clock, the same as in
the simulated GitHub's history; they may be late by what a watch takes, and the checker grants that.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tracker.sandbox.truth import Claim, Scope, Truth, Verdict, claims_of, verdict_of

__all__ = ["Span", "TruthLog"]

CRONJOB_HOLD_SECONDS = 25 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From `start` on this was true of a name, until its next span; `verdict` None is gone."""

    start: float
    verdict: Verdict | None
    spared_until: float = 0.0
    """A CronJob's name is not decommissioned before this moment, though it has no pod."""


class TruthLog:
    """The spans of every name, from pod events or whole lists, in the order of their times."""

    def __init__(
        self, scope: Scope | None = None, *, cronjob_hold_seconds: float = CRONJOB_HOLD_SECONDS
    ) -> None:
        self.spans: dict[str, list[Span]] = {}
        self._scope = scope or Scope()
        self._hold = cronjob_hold_seconds
        self._pods: dict[str, Mapping[str, Any]] = {}
        self._claims: defaultdict[str, dict[str, Claim]] = defaultdict(dict)
        self._names_of: dict[str, tuple[str, ...]] = {}
        self._there: set[str] = set()

    def event(self, at: float, kind: str, pod: Mapping[str, Any]) -> None:
        """Take one watch event: ADDED, MODIFIED or DELETED; bookmarks are not for it."""
        uid = pod["metadata"]["uid"]
        if kind == "DELETED":
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod
        self._look(at, [uid])

    def snapshot(self, at: float, pods: Iterable[Mapping[str, Any]]) -> None:
        """Take a complete list: a pod that is not in it is gone."""
        listed = {pod["metadata"]["uid"]: pod for pod in pods}
        changed = [uid for uid, pod in listed.items() if self._pods.get(uid) != pod]
        gone = self._pods.keys() - listed.keys()
        self._pods = listed
        self._look(at, [*gone, *changed])

    def workload(self, at: float, place: str, *, there: bool) -> None:
        """
        Take note that a workload is there, or no more; `place` is what its names begin with.

        One that is there keeps the names it had when it has no pods: only who is told of workloads
        is held to that.
        """
        if there:
            self._there.add(place)
        else:
            self._there.discard(place)
        for name in self.spans:
            if self._place_of(name) == place:
                self._judge(at, name, cronjob=False)

    def rescope(self, at: float, scope: Scope) -> None:
        """Judge by another template or other namespaces from now on."""
        self._scope = scope
        self._look(at, list(self._pods))

    def line(self, deployment_name: str) -> list[Span]:
        """Return what was true of a name, oldest first; it starts as gone, long ago."""
        start = Span(start=float("-inf"), verdict=None)
        return [start, *self.spans.get(deployment_name, ())]

    def truth(self, recordable: Callable[[str], bool] = lambda _digest: True) -> Truth:
        """Return what should stand now."""
        verdicts = {name: self._verdict(name, recordable) for name in self._claims}
        return Truth(
            verdicts={name: verdict for name, verdict in verdicts.items() if verdict is not None}
        )

    def spared(self, at: float) -> frozenset[str]:
        """Return names of CronJobs that have no pod and are held still."""
        return frozenset(
            name
            for name, spans in self.spans.items()
            if spans[-1].verdict is None and spans[-1].spared_until > at
        )

    def _look(self, at: float, uids: Iterable[str]) -> None:
        """Judge the names anew that these pods claim or claimed."""
        touched: dict[str, bool] = {}
        for uid in uids:
            for name in self._names_of.pop(uid, ()):
                claim = self._claims[name].pop(uid)
                touched[name] = touched.get(name, False) or claim.cronjob
            if (pod := self._pods.get(uid)) is None:
                continue
            claims = claims_of(pod, self._scope)
            self._names_of[uid] = tuple(claim.deployment_name for claim in claims)
            for claim in claims:
                self._claims[claim.deployment_name][uid] = claim
                touched.setdefault(claim.deployment_name, claim.cronjob)
        for name, cronjob in touched.items():
            self._judge(at, name, cronjob=cronjob)

    def _judge(self, at: float, name: str, *, cronjob: bool) -> None:
        verdict = self._verdict(name)
        if verdict == self.line(name)[-1].verdict:
            return
        spared = at + self._hold if cronjob and verdict is None else 0.0
        self.spans.setdefault(name, []).append(Span(start=at, verdict=verdict, spared_until=spared))

    def _verdict(
        self, name: str, recordable: Callable[[str], bool] = lambda _digest: True
    ) -> Verdict | None:
        verdict = verdict_of(self._claims[name].values(), recordable)
        if verdict is None and name in self.spans and self._place_of(name) in self._there:
            return Verdict()
        return verdict

    @staticmethod
    def _place_of(name: str) -> str:
        return name.rpartition("/")[0]
