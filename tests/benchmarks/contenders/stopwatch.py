"""Times the same step many times, and prints what it took as one line of JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ['measure', 'peak_memory', 'report']

Step = Callable[[], object]


def measure(
    make: Callable[[], Step],
    *,
    steps: int,
    mails_a_step: int = 1,
    threads: int = 1,
    warm_up: int = 20,
) -> None:
    """Take ``steps`` steps in each thread, and print the figures of all.

    ``make()`` is called in each thread and returns its step. The clock starts with the first step
    of any thread, when every thread has done its warm-up, and ends with the last step of any.
    """
    ready = threading.Barrier(threads)
    took: list[float] = []
    begins: list[tuple[float, float]] = []
    ends: list[tuple[float, float]] = []
    errors: list[BaseException] = []

    def work() -> None:
        mine: list[float] = []
        try:
            step = make()
            for _ in range(min(warm_up, max(steps // 4, 1))):
                step()
            ready.wait()
            # Not by another thread: it would wait for the interpreter, and begin too late.
            begins.append((time.perf_counter(), time.process_time()))
            for _ in range(steps):
                start = time.perf_counter()
                step()
                mine.append(time.perf_counter() - start)
            ends.append((time.perf_counter(), time.process_time()))
        except BaseException as error:
            errors.append(error)
            ready.abort()
            raise
        took.extend(mine)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        sys.exit(f'a step failed: {errors[0]!r}')
    began, used_before = map(min, zip(*begins, strict=True))
    ended, used = map(max, zip(*ends, strict=True))
    wall, cpu = ended - began, used - used_before
    took.sort()
    mails = steps * threads * mails_a_step
    report(
        mails=mails,
        rate=mails / wall,
        cpu=cpu / mails,
        memory=peak_memory(),
        median=took[len(took) // 2],
        worst=took[-1],
    )


def peak_memory() -> float:
    """The most memory that this process has had, in MB (0 where the system does not tell)."""
    try:
        status = Path('/proc/self/status').read_text()
    except OSError:
        return 0.0
    line = next(line for line in status.splitlines() if line.startswith('VmHWM:'))
    return int(line.split()[1]) / 1024


def report(**figures: float) -> None:
    """Print the figures for the process that started this one."""
    print(json.dumps(figures), flush=True)
