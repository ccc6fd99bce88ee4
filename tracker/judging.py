"""
What the pods alone can't say about a name: whether a list of them speaks of it at all.

That no pod holds a name means that what it stood for is gone, but for two cases: its workload is
there without pods (scaled to zero), or its namespace is not one that is watched. The operator
asks before it decommissions, the commands before they say that it would.
"""

from collections.abc import Collection

from tracker.catalog import Catalog, keeps
from tracker.entries import Entry
from tracker.pods import Rules
from tracker.records import Status
from tracker.workloads import Workload

__all__ = ["covers", "is_kept", "leaves_out"]


def is_kept(
    entry: Entry, *, catalog: Catalog, living: Collection[Workload], rules: Rules, template: str
) -> bool:
    """
    Tell whether a name is kept by a workload that is there and has no pods.

    `living` are the workloads that have pods which may run: what those don't declare is gone. And
    what was last to be told of a name is kept: when that is its end, there is nothing to keep.
    """
    workload = entry.workload
    if workload in living or leaves_out(rules, entry):
        return False
    if entry.last is not None and entry.last.status is Status.DECOMMISSIONED:
        return False
    return keeps(catalog, workload, entry.container, entry.deployment_name, template=template)


def leaves_out(rules: Rules, entry: Entry) -> bool:
    """Tell whether the operator's rules leave out what a name stands for."""
    if rules.excludes(entry.workload.namespace):
        return True
    return entry.held is not None and rules.images.leave_out(entry.held.name)


def covers(entry: Entry, *, watched: str) -> bool:
    """Tell whether the pods of the one namespace that is watched ("": all) can hold a name."""
    return not watched or entry.workload.namespace == watched
