"""Waiting for what comes, on a machine that may be busy."""

import time
from collections.abc import Callable

# The longest to wait for what is due at once; whatever takes as long has come to a stop.
SECONDS_MAX = 120
TRIES = 3


def until(comes: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not comes():
        assert time.monotonic() < deadline, f"it has not come in {SECONDS_MAX} s"
        time.sleep(0.05)


def promptly(seconds: float, attempt: Callable[[], float]) -> None:
    """Has a try, which gives the seconds it took, take less than so many: one of a few, as another process
    may have the processor. Whatever else is asserted holds in each."""
    took: list[float] = []
    while not took or took[-1] >= seconds:
        assert len(took) < TRIES, f"{took} s, and none within {seconds} s"
        took.append(attempt())
