"""Several mailers in order of preference: the next one where one cannot connect."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zope.interface import implementer

from ..exceptions import MailerUnavailable
from ..interfaces import IMailer, IMailSession

__all__ = ['AGAIN', 'FailoverMailer']

log = logging.getLogger(__name__)

AGAIN = 60.0
"""Seconds for which a mailer that could not connect is passed over."""


@dataclass(slots=True)
class _Place:
    mailer: IMailer
    closed_until: float | None = None
    """None: it is not passed over."""
    reason: str = ''
    """Why it was, the last time."""
    trying: bool = False
    """A thread finds out whether it is there again."""


@implementer(IMailer)
class FailoverMailer:
    """Connects by the first of the ``mailers`` that can.

    Only what ``connect`` raises moves on to the next: what a relay says about a mail is its
    answer. A mailer that could not connect is passed over for ``again`` seconds; then one thread
    tries it while the others go on where they are. Where all others fail, those passed over are
    tried as well.

    ``fallbacks`` and ``connections`` count: connections by other than the first, and all of them.
    """

    def __init__(
        self,
        mailers: Sequence[IMailer],
        *,
        again: float = AGAIN,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(mailers) < 2:
            raise ValueError('failover needs two mailers or more')
        self.fallbacks = 0
        self.connections = 0
        self._places = [_Place(mailer) for mailer in mailers]
        self._again = again
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._current = self._places[0]

    @property
    def name(self) -> str:
        return ', else '.join(place.mailer.name for place in self._places)

    def __repr__(self) -> str:
        return f'<FailoverMailer {self.name}>'

    def connect(self) -> IMailSession:
        """See IMailer. The session is that of the mailer that has connected."""
        reasons: dict[int, str] = {}
        tried: set[int] = set()
        while (number := self._choose(tried)) is not None:
            tried.add(number)
            place = self._places[number]
            connected = False
            try:
                session = place.mailer.connect()
                connected = True
            except MailerUnavailable as error:
                reasons[number] = str(error)
            finally:
                self._note(place, connected=connected, reason=reasons.get(number))
            if connected:
                self._arrived(place)
                return session
        raise MailerUnavailable(' | '.join(reasons[number] for number in sorted(reasons)))

    def _choose(self, tried: set[int]) -> int | None:
        """Whose turn it is: the first not passed over, else the first that was not tried."""
        with self._lock:
            left = [number for number in range(len(self._places)) if number not in tried]
            for number in left:
                place = self._places[number]
                if place.closed_until is None:
                    return number
                if self._monotonic() >= place.closed_until and not place.trying:
                    place.trying = True
                    return number
            return left[0] if left else None

    def _note(self, place: _Place, *, connected: bool, reason: str | None) -> None:
        with self._lock:
            place.trying = False
            if connected:
                place.closed_until = None
            elif reason is not None:
                place.closed_until = self._monotonic() + self._again
                place.reason = reason

    def _arrived(self, place: _Place) -> None:
        """Count, and tell each change of the road once."""
        with self._lock:
            self.connections += 1
            self.fallbacks += place is not self._places[0]
            before = self._current
            worse = self._places.index(place) > self._places.index(before)
            # Who chose before the first came back is not the news.
            if place is before or (worse and before.closed_until is None):
                return
            self._current = place
            # This thread may not have asked it: another one had been told.
            reason = before.reason
        extra = {'mailer': place.mailer.name, 'instead_of': before.mailer.name}
        if worse:
            log.warning(
                'mail goes by %s now: %s',
                place.mailer.name,
                reason,
                extra={**extra, 'reason': reason},
            )
        else:
            log.info('mail goes by %s again', place.mailer.name, extra={**extra, 'reason': ''})
