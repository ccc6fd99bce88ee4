"""
Commands as a user runs them: processes of their own against the simulated servers.

`ledger_of` writes the ledger that a tracker of the same settings would have.
"""

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tests.support.program import ROOT
from tests.support.simulated import DIGEST, World, name_of
from tracker.entries import Entry
from tracker.images import Digest
from tracker.ledger import SqliteLedger
from tracker.records import Record, Status
from tracker.settings import load
from tracker.workloads import Workload

__all__ = ["Ended", "entry_of", "ledger_of", "record_of", "run", "terminal"]

WITHIN: Final = 50.0
"""Seconds that a command may take on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - raw JSON
        """Return what it wrote as JSON."""
        return json.loads(self.stdout)


async def run(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    stdin: str = "",
    world: World | None = None,
) -> Ended:
    """Run a command to its end, with nothing but this in its environment."""
    given = dict(environ or {})
    if world is not None:
        kubeconfig = world.cluster.write_kubeconfig(world.folder / "kubeconfig")
        given = {**world.environ(), "KUBECONFIG": str(kubeconfig), **given}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tracker",
        *arguments,
        cwd=ROOT,
        env=given,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WITHIN):
            stdout, stderr = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(code=process.returncode or 0, stdout=stdout.decode(), stderr=stderr.decode())


def record_of(
    workload: str,
    digest: str = DIGEST,
    *,
    version: str | None = "1",
    status: Status = Status.DEPLOYED,
) -> Record:
    """Return the record of a workload of `tests.support.simulated.pod`."""
    return Record(
        deployment_name=name_of(workload),
        name="ghcr.io/acme/app",
        version=version,
        digest=Digest(digest),
        status=status,
    )


def entry_of(workload: str, **fields: Any) -> Entry:  # noqa: ANN401 - a field's own type, per keyword
    """Return the entry of such a workload."""
    kind = fields.pop("kind", "Deployment")
    return Entry(
        deployment_name=name_of(workload),
        workload=Workload(
            api_version="batch/v1" if kind in {"Job", "CronJob"} else "apps/v1",
            kind=kind,
            namespace="shop",
            name=workload,
        ),
        container="app",
        **fields,
    )


@asynccontextmanager
async def ledger_of(
    environ: Mapping[str, str], path: Path, entries: Iterable[Entry]
) -> AsyncIterator[SqliteLedger]:
    """Yield a ledger with these entries, held by this process as by a tracker of the settings."""
    async with SqliteLedger(path=path, identity=load({}, environ).identity) as ledger:
        await ledger.put(*entries)
        yield ledger


def terminal(width: int = 80) -> Console:
    """Return a console that is a terminal without colours, of this width; `file` has its text."""
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
