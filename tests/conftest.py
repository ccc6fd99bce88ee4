"""What every test has: hypothesis as CI runs it, the check for left tasks, the control plane."""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.controlplane import ASSETS_VARIABLE, ControlPlane, find_assets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

# Derandomized: the same examples in each run, so that a red build is red for its change. A longer
# random search is a matter of HYPOTHESIS_PROFILE=random.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("random", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


HOW_TO_GET_ASSETS = (
    f"{ASSETS_VARIABLE} is not set: name a folder with etcd and kube-apiserver "
    "(setup-envtest prints one) to run these"
)


@pytest.fixture(autouse=True)
def _no_task_is_left(request: pytest.FixtureRequest) -> None:
    """Hold coroutine tests to leaving no task; others need no event loop made for them."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("task_check")


@pytest.fixture
async def task_check() -> AsyncIterator[None]:
    """Fail a test that leaves an asyncio task behind: it would die with the loop, unheard."""
    before = asyncio.all_tasks()
    yield
    for _ in range(3):  # a task whose cancellation was asked for may need a turn to end
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


def pytest_configure() -> None:
    """
    Say that there is no event loop, so that nobody makes one by asking for it.

    pytest-asyncio asks for the current loop to restore it later. The first time that makes a loop
    which nobody closes, and its ResourceWarning fails some later test.
    """
    asyncio.set_event_loop(None)


FAULTS = frozenset(
    {
        "test_audit.py",
        "test_demo.py",
        "test_docs_commands.py",
        "test_image.py",
        "test_once.py",
        "test_outages.py",
        "test_planted.py",
        "test_program_watch.py",
        "test_program_workloads.py",
        "test_restart.py",
        "test_sharding.py",
        "test_torture.py",
    }
)
"""Files that run the whole program under faults, again and again, or build its image."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what takes minutes."""
    if item.path.name in FAULTS and item.path.parent.name == "tests":
        item.add_marker(pytest.mark.faults)


@pytest.hookimpl(trylast=True)  # when a folder's own conftest has set its marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a control plane where there is none."""
    if find_assets() is None:
        for item in items:
            if item.get_closest_marker("e2e"):
                item.add_marker(pytest.mark.skip(reason=HOW_TO_GET_ASSETS))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let all skips for want of a control plane come from one place: the summary has one line."""
    report = yield
    if isinstance(report.longrepr, tuple) and report.longrepr[2].endswith(HOW_TO_GET_ASSETS):
        report.longrepr = (__file__, 1, report.longrepr[2])
        # The summary tells places apart by this word as well.
        report.keywords = {word: 1 for word in report.keywords if word != "skip"}
    return report


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One real control plane for the whole session, started by the first test that needs it."""
    assets = find_assets()
    if assets is None:
        pytest.skip(HOW_TO_GET_ASSETS)
    with ControlPlane(assets) as plane:
        yield plane
