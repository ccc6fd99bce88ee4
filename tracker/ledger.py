"""
What GitHub acknowledged, kept in memory.

The ledger is what makes a restart quiet and a stop harmless, as far as it outlives the process.
This one does not: after a restart everything that runs is posted again, and what was deleted
meanwhile is not noticed.
"""

from collections.abc import Collection

from tracker.entries import Entry

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """Entries by deployment name, for as long as the process lives."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def get(self, name: str) -> Entry | None:
        """Return the entry of a name, or None when there is none."""
        return self._entries.get(name)

    def entries(self) -> Collection[Entry]:
        """Return all entries."""
        return self._entries.values()

    async def put(self, entry: Entry) -> None:
        """Write an entry."""
        self._entries[entry.deployment_name] = entry

    async def forget(self, name: str) -> None:
        """Drop the entry of a name."""
        self._entries.pop(name, None)
