"""The circuit breaker: whether a worker of a queue processor, or direct delivery, may use the relay
now."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from random import random

from ..durations import span_text
from ..exceptions import QueueError
from .refusals import VARYING_WORDS, EveryMailRefused, NoMailTaken

__all__ = [
    'CROWDED_PAUSE',
    'FIRST_PAUSE',
    'LONGEST_PAUSE',
    'PROBE_PATIENCE',
    'CircuitBreaker',
]

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until an unavailable relay is tried again: the first pause, from which on each is twice
as long, and the longest."""

REMINDERS = (60.0, 300.0, 900.0)
"""Seconds from the start of an outage to further lines in the log."""

REMINDER_INTERVAL = 3_600.0
"""Seconds between the lines after that."""

CROWDED_PAUSE = 30.0
"""Pause, in seconds, of a worker that got no connection while others had one."""

PROBE_PATIENCE = 5.0
"""Seconds after which another worker may try to connect too, where one that tries stalls: a relay
whose list of new connections is full loses one of them without a word (listen(2), backlog), and
RFC 5321, 4.5.3.2.1, waits five minutes for a greeting."""


class CircuitBreaker:
    """Whether the relay is available, as far as the workers know. Thread-safe.

    ========= ==============================================================================
    half-open no worker has a session: one worker may try, and one more after each
              PROBE_PATIENCE; the others wait for them
    closed    a worker has a session, so the relay is available: every worker may connect
    open      no worker may connect for a pause that grows; a worker with a session may not
              take further mail
    ========= ==============================================================================

    After NoMailTaken a session proves nothing: the breaker stays half-open until a mail has
    another outcome.

    ``relay``: the name of the relay, and ``consequence``: what an outage means for mail, for the
    log. ``pause``: see FIRST_PAUSE, in seconds.
    ``chance()``, between 0 and 1, makes each pause up to a fifth shorter or longer, so that
    processors that lost the relay together do not come back together. The log has one line for
    each change and for each new reason, and is reminded of an outage that lasts. ``backlog()``
    returns how many mails wait, and for how many seconds the oldest of them.

    A worker is one connection: ``worker`` identifies it.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        relay: str = '',
        pause: float = FIRST_PAUSE,
        consequence: str = 'mail stays queued',
        chance: Callable[[], float] = random,
        backlog: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
    ) -> None:
        self._monotonic = monotonic
        self._relay = relay
        self._pause = pause
        self._consequence = consequence
        self._chance = chance
        self._backlog = backlog
        self._lock = threading.Lock()
        self._times_opened = 0
        self._probing: Hashable = None
        """The last worker that tries to connect while the breaker is half-open."""
        self._probing_since = 0.0
        self._on_trial = False
        """Whether a session alone does not close the breaker."""
        self._sessions: dict[Hashable, int] = {}
        """``_times_opened`` at the moment when each worker opened its session."""
        self._failures = 0
        self._failing_since = 0.0
        self._remind_at = 0.0
        self._open_until = 0.0
        self._reason = ''
        self._part = ''

    def acquire(self, worker: Hashable) -> float:
        """Return 0 if this worker may connect now, else the seconds until it should ask again."""
        with self._lock:
            if self._times_opened in self._sessions.values() and not self._on_trial:
                return 0.0
            now = self._monotonic()
            wait = self._open_until - now
            if wait > 0:
                return wait
            wait = self._probing_since + PROBE_PATIENCE - now
            if self._probing is not None and wait > 0:
                return wait
            self._probing, self._probing_since = worker, now
            return 0.0

    def session_opened(self, worker: Hashable) -> None:
        """Record that this worker has a session."""
        with self._lock:
            self._sessions[worker] = self._times_opened
            if not self._on_trial:
                self._stop_probing(worker)

    def allows(self, worker: Hashable) -> bool:
        """Return whether this worker may take another mail: the breaker did not open since its
        session was opened."""
        # Asked for every mail. Only its own thread writes this entry, so no lock is needed.
        return self._sessions.get(worker) == self._times_opened

    def record_success(self, worker: Hashable) -> None:
        """Record that mail of this worker was answered: the relay is available."""
        if not self._failures:
            return  # the usual case, without the lock
        with self._lock:
            if self._sessions.get(worker) != self._times_opened:
                return  # the breaker opened after this session
            self._on_trial = False
            failures, self._failures = self._failures, 0
            part, self._reason, self._part = self._part, '', ''
            lasted = span_text(self._monotonic() - self._failing_since)
        if not failures:
            return
        if part == 'queue':
            log.warning('queue can be written again after %d failed attempts', failures)
        else:
            waiting, oldest = self._backlog()
            log.warning(
                'relay available again, after %d failed attempts in %s; mails that wait: %d, the '
                'oldest for %s: %s',
                *(failures, lasted, waiting, span_text(oldest), self._relay),
            )

    def release(self, worker: Hashable) -> None:
        """Record that this worker has no session and does not try to open one."""
        with self._lock:
            self._sessions.pop(worker, None)
            self._stop_probing(worker)

    def record_failure(self, error: Exception, worker: Hashable) -> float:
        """Record that this worker could not go on. None is no worker: the scan.

        If other workers still have sessions, the relay accepts no more of them: return the
        seconds that this worker alone should pause. Otherwise open the breaker and return 0. A
        QueueError always opens it.
        """
        reason = VARYING_WORDS.sub('', str(error))
        part = 'queue' if isinstance(error, QueueError) else 'relay'
        with self._lock:
            self._sessions.pop(worker, None)
            self._stop_probing(worker)
            everything = isinstance(error, NoMailTaken)
            others = self._times_opened in self._sessions.values()
            crowded = part == 'relay' and others and not everything
            now = self._monotonic()
            # Another worker failed a moment ago, and has logged it.
            known = crowded or bool(self._failures and self._open_until > now)
            if not known:
                pause = min(self._pause * 2.0 ** min(self._failures, 20), LONGEST_PAUSE)
                pause = min(pause * (0.8 + 0.4 * self._chance()), LONGEST_PAUSE)
                self._open_until = now + pause
                if not self._failures:
                    self._failing_since, self._remind_at = now, now + REMINDERS[0]
                self._failures += 1
                self._times_opened += 1
                self._on_trial = everything
                known = self._reason == reason
                self._reason, self._part = reason, part
            lasted, next_try = now - self._failing_since, self._open_until - now
            due = not crowded and now >= self._remind_at
            if due:
                later = (self._failing_since + each for each in REMINDERS if each > lasted)
                self._remind_at = next(later, now + REMINDER_INTERVAL)
        if crowded:
            log.info('no further connection, other workers continue: %s', error)
            return CROWDED_PAUSE
        if due and known:
            waiting, oldest = self._backlog()
            log.error(
                '%s still unavailable, after %d failed attempts in %s; mails that wait: %d, the '
                'oldest for %s; next try in %d s: %s',
                *(part, self._failures, span_text(lasted)),
                *(waiting, span_text(oldest), next_try, error),
            )
        else:
            critical = isinstance(error, EveryMailRefused)
            level = logging.CRITICAL if critical else logging.ERROR
            level = logging.DEBUG if known else level
            log.log(level, '%s unavailable, %s: %s', part, self._consequence, error)
        return 0.0

    @property
    def failures(self) -> int:
        """How many attempts have failed since the last success."""
        return self._failures

    def retry_in(self) -> float:
        """Return the seconds until the next try; 0 if the breaker is not open."""
        with self._lock:
            return max(self._open_until - self._monotonic(), 0.0) if self._failures else 0.0

    def retry_now(self) -> None:
        """End the pause: a worker may try at once, and the log has a line if that fails."""
        with self._lock:
            if self._failures:
                self._open_until = self._remind_at = self._monotonic()

    def _stop_probing(self, worker: Hashable) -> None:
        if self._probing == worker:
            self._probing = None
