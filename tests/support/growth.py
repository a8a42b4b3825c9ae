"""Whether work grows with its input in proportion, or faster."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

__all__ = ['grows_linearly']

TRIES = 12

FACTOR = 3.0
"""Twice the input takes twice as long where work is linear, four times where it is quadratic."""

UNMEASURABLE = 0.002
"""Seconds in which nothing is seen."""


def grows_linearly(work: Callable[[int], object], size: int) -> bool:
    """Return whether ``work(2 * size)`` takes less than FACTOR times the processor's time that
    ``work(size)`` takes.

    A ratio, and no limit in seconds: a slow machine changes both. A disturbance changes one of
    them, so that one try in which the factor is kept is enough; quadratic work never keeps it.
    """
    gc.disable()
    try:
        for _ in range(TRIES):
            once, twice = _seconds(work, size), _seconds(work, 2 * size)
            if twice < max(FACTOR * once, UNMEASURABLE):
                return True
        return False
    finally:
        gc.enable()


def _seconds(work: Callable[[int], object], size: int) -> float:
    before = time.process_time()
    work(size)
    return time.process_time() - before
