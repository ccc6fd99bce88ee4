"""How long to wait before asking again: exponential, with full jitter, capped."""

__all__ = ["CAP_SECONDS", "delay_after"]

BASE_SECONDS = 1.0
CAP_SECONDS = 60.0
_MAX_DOUBLINGS = 16


def delay_after(attempts: int, chance: float) -> float:
    """
    Return the seconds to wait after `attempts` failures in a row (1 for the first).

    `chance` is a random number in [0, 1): with full jitter the wait is anywhere between nothing
    and the bound, so that many names that failed together do not come back together
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). The bound is
    1 s, doubled with each failure, 60 s at most.
    """
    bound = BASE_SECONDS * 2.0 ** min(max(attempts - 1, 0), _MAX_DOUBLINGS)
    return min(bound, CAP_SECONDS) * chance
