"""
Builders and processes for the ledger's tests.

`python -c` loads this module to be the process that is killed, or that has no room: what the
ledger promises must hold for a real file and a real end.
"""

import asyncio
import hashlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tracker.entries import Entry
from tracker.errors import LedgerError, LedgerWriteError
from tracker.images import Digest
from tracker.ledger import Identity, SqliteLedger
from tracker.logs import configure
from tracker.records import Record, Status
from tracker.workloads import Workload

__all__ = [
    "IDENTITY",
    "NOW",
    "ROOT",
    "Gate",
    "Wall",
    "entry",
    "hold_open",
    "numbers",
    "outgrow_the_limit",
    "put_one",
    "put_until_killed",
    "record",
    "run_process",
    "spoil_and_put_until_killed",
    "sums",
]

ROOT = Path(__file__).parents[2]
IDENTITY = Identity(
    api_host="api.github.com",
    org="acme",
    logical_environment="production",
    physical_environment="eu-central-1",
    cluster="prod-eu-1",
)

NOW = 1_700_000_000.0


class Wall:
    """A wall clock that a test moves."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Gate:
    """Stops the writer thread at a step until it is opened, and counts the steps."""

    def __init__(self, step: str) -> None:
        self.reached = asyncio.Event()
        self.counts: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._step = step
        self._open = threading.Event()

    def __call__(self, step: str) -> None:
        self.counts[step] = self.counts.get(step, 0) + 1
        if step == self._step and not self._open.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            self._open.wait(timeout=30)

    def open(self) -> None:
        """Let it go on, now and later."""
        self._open.set()


def record(number: int = 0, status: Status = Status.DEPLOYED) -> Record:
    """Return a record; each number has a name and a digest of its own."""
    return Record(
        deployment_name=f"shop/app-{number:05}/web",
        name="ghcr.io/acme/app",
        version="1.2.3",
        digest=Digest(f"sha256:{number:064x}"),
        status=status,
    )


def entry(number: int = 0, **changes: object) -> Entry:
    """Return an entry whose record was acknowledged as deployed, with these fields changed."""
    made = Entry(
        deployment_name=f"shop/app-{number:05}/web",
        workload=Workload(
            api_version="apps/v1", kind="Deployment", namespace="shop", name=f"app-{number:05}"
        ),
        container="web",
        acknowledged=record(number),
    )
    return replace(made, **changes)  # type: ignore[arg-type] # a field's own type, per keyword


def numbers(ledger: SqliteLedger) -> list[int]:
    """Return the numbers of the entries that `entry` made, in order."""
    return sorted(int(kept.workload.name.removeprefix("app-")) for kept in ledger.entries())


def sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def run_process(function: Callable[..., None], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a function of this module in a process of its own, with these words."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {__name__} as ledgers; ledgers.{function.__name__}(*sys.argv[1:])",
            *words,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def put_one(path: str, number: str) -> None:
    """Open the ledger and put an entry."""

    async def main() -> None:
        async with SqliteLedger(path=Path(path), identity=IDENTITY, patience_seconds=0) as ledger:
            await ledger.put(entry(int(number)))

    asyncio.run(main())


def put_until_killed(path: str, step: str, count: str) -> None:
    """Put one entry after the other, printing each that is kept; die in the count-th `step`."""
    left = int(count)

    def on_step(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    async def main() -> None:
        ledger = SqliteLedger(path=Path(path), identity=IDENTITY, on_step=on_step)
        async with ledger:
            for number in range(20):
                await ledger.put(entry(number))
                print(number, flush=True)  # noqa: T201 - what the parent holds it to

    asyncio.run(main())


def spoil(path: str, how: str) -> None:
    """Delete a ledger that is open, or break it."""
    if how == "deleted":
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        return
    with closing(sqlite3.connect(path)) as another:
        another.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with Path(path).open("r+b") as file:
        file.write(b"\xff" * 4096)


def spoil_and_put_until_killed(path: str, how: str, step: str) -> None:
    """Delete or break an open ledger under itself, put an entry, and die in the next `step`."""
    spoilt = False

    def on_step(name: str) -> None:
        if spoilt and name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    async def main() -> None:
        nonlocal spoilt
        async with SqliteLedger(path=Path(path), identity=IDENTITY, on_step=on_step) as ledger:
            spoil(path, how)
            spoilt = True
            await ledger.put(entry(0))

    asyncio.run(main())


def outgrow_the_limit(path: str) -> None:
    """Write until files must not grow, go on when they may; print the number of entries kept."""
    configure(level="error", as_json=False, libraries=False)  # to stderr, not into what is printed

    async def main() -> None:
        async with SqliteLedger(path=Path(path), identity=IDENTITY) as ledger:
            await ledger.put(entry(0))
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            size = os.stat(f"{path}-wal").st_size  # noqa: PTH116 - nothing else runs here
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3 * 4096, hard))
            kept = 1
            try:
                while True:
                    await ledger.put(entry(kept))
                    kept += 1
            except LedgerWriteError as error:
                print(error)  # noqa: T201 - what the parent reads
            print(ledger.get(entry(kept).deployment_name))  # noqa: T201 - the same
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            await ledger.put(entry(kept))
            print(kept + 1, ledger.failure)  # noqa: T201 - the same

    asyncio.run(main())


def hold_open(path: str) -> None:
    """Try to open the ledger; print why it can't be, or that it is open."""

    async def main() -> None:
        try:
            async with SqliteLedger(path=Path(path), identity=IDENTITY, patience_seconds=0):
                print("open")  # noqa: T201 - what the parent reads
        except LedgerError as error:
            print(type(error).__name__, error)  # noqa: T201 - the same

    asyncio.run(main())
