"""What the log says of subscribers that fail, and of one that does not return."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import NamedTuple

__all__ = ['FailureLog', 'StallWatch']

log = logging.getLogger(__name__)

REPEAT_INTERVAL = 60.0
"""Seconds in which failures of one kind are counted before the log says how many there were."""

FORGET_AFTER = 3_600.0
"""Seconds after which a failure is logged as if it had never happened before."""

MAX_KINDS = 100
"""Kinds of failures that are remembered."""

STALL_TIME, LONGEST_INTERVAL = 60.0, 3_600.0
"""Seconds after which a subscriber that does not return is logged. It is logged again after twice
the time each, at least every LONGEST_INTERVAL."""

_FRAMEWORK = ('pyramid.', 'zope.', 'pyramid_sendmail.')


@dataclass(slots=True)
class _Kind:
    logged_at: float
    seen_at: float
    count: int = 0
    last: str = ''


class FailureLog:
    """Logs each kind of failure once with its traceback, and after that how many more there were.
    A kind is an exception's type and the line that raised it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._kinds: dict[tuple[type[BaseException], str, int], _Kind] = {}

    def add(self, text: str, error: BaseException) -> None:
        """Log a failure, or count it. ``text``: what failed, and what follows."""
        now = self._monotonic()
        key = (type(error), *_place(error))
        kind = self._kinds.pop(key, None)
        if kind is None or now - kind.seen_at > FORGET_AFTER:
            log.error('%s', text, exc_info=error)
            kind = _Kind(now, now)
        else:
            kind.seen_at = now
            kind.count += 1
            words = ' '.join(str(error).split())[:200]
            kind.last = f'{text}: {type(error).__name__}: {words}'
        self._kinds[key] = kind
        if len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        if now - kind.logged_at >= REPEAT_INTERVAL:
            self._log_count(kind, now)

    def flush(self) -> None:
        """Log what was counted and not logged yet."""
        now = self._monotonic()
        for kind in self._kinds.values():
            self._log_count(kind, now)

    def _log_count(self, kind: _Kind, now: float) -> None:
        count, kind.count, kind.logged_at = kind.count, 0, now
        if count == 1:
            log.error('%s (its traceback was logged before)', kind.last)
        elif count:
            log.error(
                'in the same way failed %d times more (the traceback was logged before), the last: '
                '%s',
                count,
                kind.last,
            )


def _place(error: BaseException) -> tuple[str, int]:
    """Return file and line that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return ('', 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)


class _Running(NamedTuple):
    since: float
    what: str


class StallWatch:
    """Logs a subscriber that does not return: it holds up all events behind it.

    ``caller``: the function that calls subscribers, in the watched thread.
    """

    def __init__(self, caller: CodeType) -> None:
        self._caller = caller
        self._running: _Running | None = None

    def begin(self, what: str) -> None:
        """Subscribers of an event begin to run."""
        self._running = _Running(time.monotonic(), what)

    def end(self) -> None:
        """They have returned, or raised."""
        self._running = None

    def run(self, ident: int, stop: threading.Event) -> None:
        """Watch a thread until ``stop`` is set: the work of another one."""
        logged: _Running | None = None
        interval = STALL_TIME
        next_at = 0.0
        while not stop.wait(STALL_TIME / 4):
            running, now = self._running, time.monotonic()
            if running is None or now - running.since < STALL_TIME:
                continue
            if running is not logged:
                logged, interval, next_at = running, STALL_TIME, now
            if now >= next_at:
                interval = min(interval * 2, LONGEST_INTERVAL)
                next_at = now + interval
                log.warning(
                    '%s: a subscriber has not returned for %d s, and all events wait for it: %s',
                    running.what,
                    now - running.since,
                    self._where(ident),
                )

    def _where(self, ident: int) -> str:
        """Return which subscriber it is, and which line it is at."""
        frame = sys._current_frames().get(ident)
        frames: list[FrameType] = []
        while frame is not None and frame.f_code is not self._caller:
            frames.append(frame)
            frame = frame.f_back
        if not frames:
            return 'unknown'
        for each in reversed(frames):
            module = each.f_globals.get('__name__', '')
            if not module.startswith(_FRAMEWORK):
                name = f'{module}.{each.f_code.co_qualname}'
                return f'{name}, at {frames[0].f_code.co_filename}:{frames[0].f_lineno}'
        return f'{frames[0].f_code.co_filename}:{frames[0].f_lineno}'
