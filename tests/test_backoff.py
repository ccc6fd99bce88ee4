"""How long to wait before asking again."""

from hypothesis import given
from hypothesis import strategies as st

from tracker.backoff import BASE_SECONDS, CAP_SECONDS, delay_after

CHANCES = st.floats(0, 1, exclude_max=True)


@given(attempts=st.integers(-5, 10**9), chance=CHANCES)
def test_a_delay_is_never_negative_nor_over_the_cap(attempts: int, chance: float) -> None:
    assert 0 <= delay_after(attempts, chance) <= CAP_SECONDS


@given(attempts=st.integers(1, 10_000), chance=CHANCES)
def test_a_delay_never_shrinks_with_another_failure(attempts: int, chance: float) -> None:
    assert delay_after(attempts, chance) <= delay_after(attempts + 1, chance)


def test_the_bound_doubles_from_a_second_to_the_cap() -> None:
    bounds = [delay_after(attempts, 1.0) for attempts in range(1, 9)]
    assert bounds == [BASE_SECONDS, 2, 4, 8, 16, 32, CAP_SECONDS, CAP_SECONDS]


def test_chance_spreads_a_delay_over_its_whole_range() -> None:
    assert [delay_after(3, chance) for chance in (0.0, 0.25, 0.5)] == [0.0, 1.0, 2.0]
