"""The kill loop, as far as there is time for it in each run; `make torture` has more of it."""

from pathlib import Path

import pytest

from tests.torture import torture

ROUNDS = 20


@pytest.mark.fault("P1", "P8")
@pytest.mark.timeout(400)  # a machine that does much else at the same time is no failure
async def test_killed_at_any_point_it_loses_nothing_and_repeats_little(tmp_path: Path) -> None:
    tally = await torture(rounds=ROUNDS, seed=1, folder=tmp_path)
    assert not tally.violations, "\n".join(tally.reports)
    assert tally.rounds == ROUNDS
    assert tally.posts > tally.names > 0
