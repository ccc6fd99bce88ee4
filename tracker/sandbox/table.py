"""
The records the simulated GitHub holds: one row per identity, updated in place, never deleted.

A row keeps what GitHub knows but never tells (status, name, version) next to what it returns, so
that a test can read the truth that no client can read back.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tracker.sandbox.contract import Deployment, Identity

__all__ = ["Row", "Table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record as GitHub holds it; times are aware UTC, `seq` is the exchange that wrote it."""

    id: int
    identity: Identity
    digest: str
    name: str
    version: str | None
    status: str
    tags: tuple[tuple[str, str], ...]
    runtime_risks: tuple[str, ...]
    github_repository: str | None
    created_at: datetime
    updated_at: datetime
    attestation_id: int | None
    seq: int

    @property
    def deployment_name(self) -> str:
        """The name of this record within its environment and cluster."""
        return self.identity.deployment_name

    def as_json(self) -> dict[str, Any]:
        """Return what GitHub tells of a record: never its status, name or version."""
        return {
            "id": self.id,
            "digest": self.digest,
            "logical_environment": self.identity.logical_environment,
            "physical_environment": self.identity.physical_environment,
            "cluster": self.identity.cluster,
            "deployment_name": self.deployment_name,
            "tags": dict(self.tags),
            "runtime_risks": list(self.runtime_risks),
            "created_at": _stamp(self.created_at),
            "updated_at": _stamp(self.updated_at),
            "attestation_id": self.attestation_id,
        }


class Table:
    """Rows by identity, in the order of their creation."""

    def __init__(self) -> None:
        self._rows: dict[Identity, Row] = {}
        self._created = 0

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, identity: Identity) -> Row:
        return self._rows[identity]

    def named(self, deployment_name: str) -> tuple[Row, ...]:
        """Return the rows of that name, one for each environment and cluster it was posted to."""
        return tuple(row for row in self if row.deployment_name == deployment_name)

    def of_digest(self, org: str, digest: str) -> tuple[Row, ...]:
        """Return an organization's rows that hold this digest now."""
        return tuple(row for row in self if row.identity.org == org and row.digest == digest)

    def planned(
        self, deployments: Iterable[Deployment], *, now: datetime, seq: int
    ) -> tuple[Row, ...]:
        """
        Return the rows these deployments would make, without making them.

        Of two with the same repository and digest the first one gives the name and the version:
        an artifact has one name.
        """
        first: dict[tuple[str | None, str], Deployment] = {}
        rows: list[Row] = []
        created = self._created
        for posted in deployments:
            artifact = first.setdefault((posted.github_repository, posted.digest), posted)
            before = self._rows.get(posted.identity)
            if before is None:
                created += 1
            rows.append(
                Row(
                    id=created if before is None else before.id,
                    identity=posted.identity,
                    digest=posted.digest,
                    name=artifact.name,
                    version=artifact.version,
                    status=posted.status,
                    tags=posted.tags,
                    runtime_risks=posted.runtime_risks,
                    github_repository=posted.github_repository,
                    created_at=now if before is None else before.created_at,
                    updated_at=now,
                    # An image that is known by its repository alone has no attestation.
                    attestation_id=None if posted.github_repository else _attestation(posted),
                    seq=seq,
                )
            )
        return tuple(rows)

    def apply(
        self, deployments: Iterable[Deployment], *, now: datetime, seq: int
    ) -> tuple[Row, ...]:
        """Create or update the rows of these deployments and return them."""
        rows = self.planned(deployments, now=now, seq=seq)
        self._created += sum(row.identity not in self._rows for row in rows)
        self._rows.update((row.identity, row) for row in rows)
        return rows

    def alter(self, identity: Identity, *, status: str) -> None:
        """Change a row behind everybody's back, as drift does."""
        self._rows[identity] = replace(self._rows[identity], status=status)

    def forget(self, identity: Identity) -> None:
        """Lose one row, as drift may."""
        del self._rows[identity]

    def place(self, identity: Identity, *, like: str) -> None:
        """Hold a row of another identity that is like the first one of this name."""
        self._created += 1
        row = self.named(like)[0]
        self._rows[identity] = replace(row, id=self._created, identity=identity)

    def wipe(self) -> None:
        """Lose every row, as drift may."""
        self._rows.clear()

    def __str__(self) -> str:
        lines = sorted(
            f"{row.deployment_name}  {row.digest[:19]}  {row.status}"
            f"  {row.name}:{row.version or '-'}  {row.identity.cluster or '-'}  #{row.seq}"
            for row in self
        )
        return "\n".join(lines) or "(no rows)"


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _attestation(posted: Deployment) -> int:
    return int(posted.digest[len("sha256:") :][:8], 16)
