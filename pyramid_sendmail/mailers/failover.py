"""Several mailers in order of preference: a fallback is used while the ones before it fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from zope.interface import implementer

from ..exceptions import MailerUnavailable
from ..interfaces import IMailer, IMailSession
from ..threads import after_fork

__all__ = ['RETRY_INTERVAL', 'FailoverMailer']

log = logging.getLogger(__name__)

RETRY_INTERVAL = 60.0
"""Seconds for which a mailer that could not connect is skipped."""


@dataclass(slots=True)
class _Candidate:
    rank: int
    mailer: IMailer
    skipped_until: float | None = None
    """On the monotonic clock. None: it is not skipped."""
    reason: str = ''
    """Why its last connection failed."""
    probing: bool = False
    """A thread is trying it again; the other threads skip it meanwhile."""


@implementer(IMailer)
class FailoverMailer:
    """Connects with the first of its mailers that can.

    Only MailerUnavailable, raised by ``connect``, leads to the next mailer: what a relay says
    about a mail is final. A mailer that could not connect is skipped for ``retry_interval``
    seconds. Then one thread tries it while the others stay with the fallback. If all others fail,
    the skipped ones are tried too.

    ``connections`` counts all connections, ``fallbacks`` those of other mailers than the first.
    """

    def __init__(
        self,
        mailers: Sequence[IMailer],
        *,
        retry_interval: float = RETRY_INTERVAL,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(mailers) < 2:
            raise ValueError('failover needs two mailers or more')
        self.fallbacks = 0
        self.connections = 0
        self._candidates = [_Candidate(rank, mailer) for rank, mailer in enumerate(mailers)]
        self._retry_interval = retry_interval
        self._monotonic = monotonic
        self._current = self._candidates[0]
        after_fork(self._reset)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return ', else '.join(candidate.mailer.name for candidate in self._candidates)

    def __repr__(self) -> str:
        return f'<FailoverMailer {self.name}>'

    def connect(self) -> IMailSession:
        """See IMailer. Return the session of the mailer that has connected."""
        attempts = self.attempts()
        mailer = next(attempts)
        while True:
            try:
                session = mailer.connect()
            except MailerUnavailable as error:
                mailer = attempts.send(error)
            except BaseException:
                attempts.close()
                raise
            else:
                with suppress(StopIteration):
                    attempts.send(None)
                return session

    def attempts(self) -> Generator[IMailer, MailerUnavailable | None, None]:
        """Yield the mailer to connect with. Send its error, or None when it has connected; close
        the generator if it has done neither.

        Raises MailerUnavailable when no mailer is left.
        """
        reasons: dict[int, str] = {}
        while (candidate := self._choose(reasons)) is not None:
            connected, reason = False, None
            try:
                error = yield candidate.mailer
                connected = error is None
                if error is not None:
                    reason = reasons[candidate.rank] = str(error)
            finally:
                self._record(candidate, connected=connected, reason=reason)
            if connected:
                self._record_switch(candidate)
                return
        raise MailerUnavailable(' | '.join(reason for _, reason in sorted(reasons.items())))

    @property
    def mailers(self) -> list[IMailer]:
        """The mailers, in order of preference."""
        return [candidate.mailer for candidate in self._candidates]

    def _choose(self, failed: dict[int, str]) -> _Candidate | None:
        """Return the first that is not skipped, else the first that has not failed just now."""
        with self._lock:
            left = [each for each in self._candidates if each.rank not in failed]
            for candidate in left:
                if candidate.skipped_until is None:
                    return candidate
                if self._monotonic() >= candidate.skipped_until and not candidate.probing:
                    candidate.probing = True
                    return candidate
            return left[0] if left else None

    def _record(self, candidate: _Candidate, *, connected: bool, reason: str | None) -> None:
        with self._lock:
            candidate.probing = False
            if connected:
                candidate.skipped_until = None
            elif reason is not None:
                candidate.skipped_until = self._monotonic() + self._retry_interval
                candidate.reason = reason

    def _record_switch(self, candidate: _Candidate) -> None:
        """Count the connection, and log once that another mailer is used from now on."""
        with self._lock:
            self.connections += 1
            self.fallbacks += candidate.rank > 0
            before = self._current
            is_fallback = candidate.rank > before.rank
            # A thread may have chosen the fallback before another one came back to the first.
            if candidate is before or (is_fallback and before.skipped_until is None):
                return
            self._current = candidate
            # Another thread may have met the failure, so the reason is kept with the mailer.
            reason = before.reason if is_fallback else ''
        name, other = candidate.mailer.name, before.mailer.name
        extra = {'mailer': name, 'instead_of': other, 'reason': reason}
        if is_fallback:
            log.warning('switched from %s to %s: %s', other, name, reason, extra=extra)
        else:
            log.info('switched back from %s to %s', other, name, extra=extra)
