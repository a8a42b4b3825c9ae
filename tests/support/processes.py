"""Work done in a child process, whose limits, user and locks are its own."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from tests.support.queues import reap

__all__ = ['in_child']


def in_child(work: Callable[[], object]) -> None:
    """Call ``work`` in a forked child, which must succeed; print its traceback otherwise."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    assert reap(pid) == 0
