"""A tracker with all its parts, of which none runs: what it makes of what it is told."""

import io
import time
from pathlib import Path

from tracker.app import Tracker
from tracker.auth import FixedToken
from tracker.cluster import Cluster
from tracker.github import GitHub
from tracker.ledger import MemoryLedger
from tracker.metrics import Metrics
from tracker.records import Scope
from tracker.settings import Settings
from tracker.transport import Transport

__all__ = ["tracker_with"]


async def tracker_with(ledger: MemoryLedger | None = None, **settings: object) -> Tracker:
    """Return a tracker whose tasks do not run."""
    given = Settings.model_validate(
        {"org": "acme", "logical_environment": "test", "api_token": "t", **settings}
    )
    scope = Scope(org="acme", logical_environment="", physical_environment="", cluster="")
    return Tracker(
        settings=given,
        cluster=Cluster(
            kubeconfig=Path("/nowhere"), environ={}, namespace=given.namespace, user_agent="test"
        ),
        github=GitHub(
            transport=Transport(base_url=given.base_url, user_agent="test"),
            scope=scope,
            tokens=FixedToken(given.api_token),
        ),
        ledger=MemoryLedger() if ledger is None else ledger,
        stdout=io.StringIO(),
        metrics=Metrics(version="1", kopf_version="1", wall=time.time),
        foreign=False,
        fingerprint="this",
    )
