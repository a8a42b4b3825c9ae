"""Whether one more worker of a queue processor may go ahead, and would be of help."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from random import random
from threading import get_ident

from ..exceptions import QueueError
from ..threads import CooperativeLock

__all__ = ['FIRST_PAUSE', 'CircuitBreaker', 'ConcurrencyController']

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a closed road is tried again: at first, doubling, and at most."""

CROWDED_PAUSE = 30.0
"""Seconds that a worker rests who found no way in while others went on sending."""

HELP = 0.02
"""Seconds over which it is seen how much of the time somebody works."""

ENOUGH = 0.6
"""The part of it beyond which nobody else would be of help."""

_PASSING = re.compile(
    r"""(?<!\S)
    (?! (\d{3} | \d\.\d{1,3}\.\d{1,3}) [,:;]? (?!\S) )  # a reply's code, and an enhanced one
    \S*\d\S*""",
    re.VERBOSE,
)
"""Words of a reason that may be others the next time although it is the same reason: relays write
the time and the number of a session into what they refuse it with."""


class CircuitBreaker:
    """Whether the road is open, as far as the workers know.

    ============ ====================================================================
    nobody is in one worker is admitted at a time, and the others wait for what it finds
    somebody is  everybody is admitted: there is a session, so the road is open
    closed       nobody is, for a pause that grows; who is in passes nothing more
    ============ ====================================================================

    ``pause``: see FIRST_PAUSE; a fifth more or less by ``chance``, between 0 and 1, so that
    processors that found the road closed together do not come back together. The log has a line
    for each change, and for each new reason.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        pause: float = FIRST_PAUSE,
        chance: Callable[[], float] = random,
    ) -> None:
        self._monotonic = monotonic
        self._pause = pause
        self._chance = chance
        self._lock = threading.Lock()
        self._trying: int | None = None
        self._inside: dict[int, int] = {}
        self._closures = 0
        self._failures = 0
        self._until = 0.0
        self._reason = ''

    def admit(self) -> float:
        """0 to go ahead; else the seconds to wait before asking again."""
        with self._lock:
            if self._closures in self._inside.values():
                return 0.0
            wait = self._until - self._monotonic()
            if wait > 0:
                return wait
            if self._trying is not None:
                return self._pause
            self._trying = get_ident()
            return 0.0

    def enter(self) -> None:
        """The asker has a session."""
        with self._lock:
            self._inside[get_ident()] = self._closures
            self._stop_trying()

    @property
    def passable(self) -> bool:
        """Whether nothing has been found closed since the asker entered."""
        # His own entry, which nobody else changes: no lock is needed, once a mail.
        return self._inside.get(get_ident()) == self._closures

    def answered(self) -> None:
        """Mail of the asker was answered: the road is open indeed."""
        if not self._failures:
            return  # as nearly always
        with self._lock:
            if self._inside.get(get_ident()) != self._closures:
                return  # it has been closed since
            failures, self._failures = self._failures, 0
            self._reason = ''
        if failures:
            log.warning('mail is sent again, after %d failures', failures)

    def leave(self) -> None:
        """The asker has come to an end, whatever it was."""
        with self._lock:
            self._inside.pop(get_ident(), None)
            self._stop_trying()

    def failed(self, error: Exception) -> float:
        """The asker could not go on. Return the seconds that he alone should rest: where others
        have sessions, the relay takes no more of them, and nothing is closed."""
        reason = _PASSING.sub('', str(error))
        with self._lock:
            self._inside.pop(get_ident(), None)
            self._stop_trying()
            crowd = not isinstance(error, QueueError) and self._closures in self._inside.values()
            now = self._monotonic()
            # Another worker was told a moment ago, and has told it.
            known = bool(self._failures and self._until > now)
            if not (crowd or known):
                pause = min(self._pause * 2.0 ** min(self._failures, 20), LONGEST_PAUSE)
                self._until = now + pause * (0.8 + 0.4 * self._chance())
                self._failures += 1
                self._closures += 1
                known = self._reason == reason
                self._reason = reason
        if crowd:
            log.info('no further connection, others go on: %s', error)
            return CROWDED_PAUSE
        level = logging.DEBUG if known else logging.ERROR
        log.log(level, 'nothing can be sent now, and all mail waits: %s', error)
        return 0.0

    def closed_for(self) -> float:
        """Seconds until a closed road is tried; 0 while it is open."""
        with self._lock:
            return max(self._until - self._monotonic(), 0.0) if self._failures else 0.0

    def _stop_trying(self) -> None:
        if self._trying == get_ident():
            self._trying = None


class ConcurrencyController:
    """Whether one more worker would be of any help to those who work already.

    They take turns, so that it is none where somebody always works: a relay on the same machine is
    served by one worker, and sooner than by four. Where they mostly wait for a relay far away, as
    many more join at each look. Of sessions that take no turns nothing is known: all join.
    """

    def __init__(
        self, cooperative_lock: CooperativeLock, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._cooperative_lock = cooperative_lock
        self._monotonic = monotonic
        self._looked = 0.0
        self._worked = 0.0
        self._welcome = 0

    def wait(self, working: int) -> float:
        """Seconds until it can be told, beside so many who work; 0 to join them."""
        worked, now = self._cooperative_lock.worked, self._monotonic()
        if not working:
            self._looked, self._worked, self._welcome = now, worked, 0
            return 0.0
        if not worked:
            return 0.0
        if self._welcome:
            self._welcome -= 1
            return 0.0
        elapsed = now - self._looked
        if elapsed < HELP:
            return HELP - elapsed
        share = (worked - self._worked) / elapsed
        self._looked, self._worked = now, worked
        if share >= ENOUGH:
            return HELP
        self._welcome = working - 1
        return 0.0
