"""A relay that says that mail comes too fast: the mailer as a whole slows down, and no mail is
deferred.

``454 Throttling failure: Maximum sending rate exceeded`` (Amazon SES), ``432 4.3.2 Concurrent
connections limit exceeded`` (Exchange Online), ``421 4.7.28`` (Gmail) and their like say nothing
about the mail that got them: the next one, or the same a second later, is accepted.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf

from ..durations import span_text
from ..envelope import Outcome, Reply
from .circuit_breaker import FIRST_PAUSE, LONGEST_PAUSE
from .refusals import NoMailTaken

__all__ = ['Throttle', 'Throttled', 'is_throttling']

log = logging.getLogger(__name__)

RECOVERY_TIME = 60.0
"""Seconds in which the pace grows from half of what the relay took back to all of it."""

FULL_PACE_TIME = 3 * RECOVERY_TIME
"""Seconds without a throttling reply until there is no limit any more, if mail was taken meanwhile.
The pace is twice what the relay took by then."""

SLOWEST_PACE = 1.0
"""Mails a second, at least, to begin with."""

BURST_TIME = 0.1
"""Seconds whose mails may leave together, where the pace is high."""

MEASURED_MAILS = 1_000
"""Mails of the last second that are counted, at most."""

LASTING_PAUSES = 5
"""Pauses in a row, 31 seconds in all, between which no mail was taken: after these the relay counts
as unavailable."""

BLAMED_AFTER = 5
"""How often one mail may be throttled while others are taken, before it is deferred as any other:
its sender or its recipients may be the reason, and it must not slow all mail for ever."""

MAX_SUSPECTS = 1_000
"""Mails for which that is counted, and senders that are remembered."""

_ENHANCED_CODE = re.compile(r'[245]\.(\d{1,3})\.(\d{1,3})\b')

_RECIPIENT = re.compile(r'\b(?:receiving|recipient|mailbox|inbox)\b', re.IGNORECASE)
"""'The user you are trying to contact is receiving mail at a rate ...' (Gmail), 'recipient thread
limit exceeded' (Exchange): the others may be sent to meanwhile."""

_TOO_SLOW = re.compile(
    r'\b(?:data|transfer)\srate\b|\btoo\s(?:slow|low)\b|\bbelow\b|\bminimum\b', re.IGNORECASE
)
"""'Data rate too slow', 'below the minimum rate': what is too slow is our line."""

_NOT_THE_RATE = (('3', '1'), ('3', '4'), ('3', '5'))
"""X.3.1 a full disk ('no space on volume'), X.3.4 the size ('message line limit'), X.3.5 a wrong
configuration (RFC 3463, 3.4)."""

_SESSION = re.compile(r'\b(?:this|one|per|each|a)\s(?:connection|session)\b', re.IGNORECASE)
"""'Too many messages in this connection' (Exim): another connection will do."""

_TOO_FAST = re.compile(
    r"""throttl
    | \brates?\b | \brate-?limit
    | \btoo\s(?:many|much)\s(?:messages|mails?|e-?mails?|connections|sessions)\b
    | \btoo\s(?:fast|quickly|frequently|often)\b
    | \bslow(?:er|ing)?\sdown\b
    | \bvolume\b
    | \bconcurrent\sconnections\b
    | \bmessages\sper\s(?:second|minute|hour|day)\b
    | \b(?:daily|hourly|messages?|messaging|mails?|e-?mails?|sending|send|submission|sender
        |concurrent|connections?|thread)\s(?:(?!size)\w+\s)?(?:limits?|quota)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Words of the rate, as Amazon SES, Exchange Online, Gmail, Yahoo, SendGrid, Postfix, Sendmail,
mailcow and hosting providers have them: tests/unit/sending/test_throttling.py quotes them."""


def is_throttling(reply: Reply | None) -> bool:
    """Return whether a reply says that mail comes too fast, whatever the mail.

    A temporary one, with 4.7.28 (IANA, enhanced status codes: unsolicited mail rate), with 432
    4.3.2 (Exchange Online), or with words of the rate. A reply about a recipient never is: by its
    enhanced code (RFC 3463, X.1.x and X.2.x), or by its words; nor one about a single session or
    transaction (X.5.x), about content (X.6.x), about the relay's disk or configuration, or about a
    line that is too slow.
    """
    if reply is None or reply.code // 100 != 4:
        return False
    code = _ENHANCED_CODE.match(reply.text)
    numbers = code.group(1, 2) if code is not None else ()
    if code is not None and (code[1] in '1256' or numbers in _NOT_THE_RATE):
        return False
    if any(words.search(reply.text) for words in (_RECIPIENT, _SESSION, _TOO_SLOW)):
        return False
    if numbers == ('7', '28') or (reply.code == 432 and numbers == ('3', '2')):
        return True
    return _TOO_FAST.search(reply.text) is not None


class Throttled(NoMailTaken):
    """The relay takes no mail at all, because too much was sent."""


class Throttle:
    """Slows a mailer whose relay throttles it. Thread-safe.

    After a throttling reply no mail leaves for a pause; then half as many in a second as the relay
    took before, and slowly more: additive increase, multiplicative decrease (Chiu and Jain, 1989;
    RFC 5681, 3.1). Replies that come during the pause are about mail of the same burst. If no mail
    is taken between two pauses, each is twice as long as the one before.

    ``relay``: its name, for the log, which has one line when the relay begins to throttle, and one
    when there is no limit any more. ``pause``: the first one, in seconds.
    """

    def __init__(
        self,
        relay: str = '',
        *,
        pause: float = FIRST_PAUSE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._relay = relay
        self._first_pause = pause
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._taken: deque[float] = deque(maxlen=MEASURED_MAILS)
        """When the relay answered for a mail, without throttling."""
        self._total = 0
        """How many mails it did so for."""
        self._pace = inf
        """Mails a second, at the end of the last pause."""
        self._resume_at = self._next_at = 0.0
        """The end of the last pause, and when the next mail is due by the pace."""
        self._in_a_row = 0
        """Pauses between which no mail was taken."""
        self._total_then = -1
        """``_total`` when the last pause began."""
        self._slowed_since = 0.0
        self._times_slowed = 0
        self._reply = ''
        self._senders: set[str] = set()
        """Whose mail was throttled since a mail was taken."""
        self._suspects: dict[str, tuple[int, int]] = {}
        """By the envelope's id: how often the mail was throttled, and ``_total`` then."""

    # What the relay says

    def judge(self, id: str, outcome: Outcome, sender: str = '') -> tuple[str, ...]:
        """Return the recipients that were throttled, and slow down if there are any.

        ``id``, ``sender``: the envelope's.
        """
        throttled: list[str] = []
        reply: Reply | None = None
        taken = False
        for recipient, verdict in outcome.items():
            if verdict.status == 'delivered':
                taken = True
            elif verdict.status == 'deferred' and is_throttling(verdict.reply):
                throttled.append(recipient)
                reply = verdict.reply
            elif verdict.reply is not None:
                taken = True
        if taken:
            self._total += 1
            self._taken.append(self._monotonic())
        if reply is not None:
            return tuple(throttled) if self.slows(id, reply, sender) else ()
        if self._suspects:
            self._suspects.pop(id, None)
        return ()

    def slows(self, id: str, reply: Reply, sender: str = '') -> bool:
        """Slow down if this reply to a mail throttles. Return False if it does not, or if it is the
        mail's own fault."""
        if not is_throttling(reply):
            return False
        with self._lock:
            if self._blames_mail(id):
                return False
            first = self._slow_down(reply)
            if len(self._senders) < MAX_SUSPECTS:
                self._senders.add(sender)
        if first is not None:
            pause, pace = first
            log.warning(
                '%s throttles; all mail waits for %.0f s, then leaves at %.3g a second, and slowly '
                'faster: %s',
                *(self._relay, pause, pace, reply),
            )
        return True

    def passes(self, sender: str) -> bool:
        """Return whether mail of this sender may be tried before that of others: not if it was
        throttled and no mail has been taken since. The limit may be that of the sender."""
        return self._total != self._total_then or sender not in self._senders

    @property
    def error(self) -> Throttled | None:
        """The error if the relay has taken no mail through LASTING_PAUSES pauses, or None."""
        if self._in_a_row <= LASTING_PAUSES or self._total != self._total_then:
            return None
        return Throttled(f'{self._relay}: it takes no mail, too much was sent: {self._reply}')

    # What may leave: the rate limiter and direct delivery ask

    def acquire(self) -> bool:
        """Return whether a mail may leave now, and count it."""
        if self._pace == inf:
            return True  # the usual case, without the lock
        with self._lock:
            now = self._monotonic()
            if self._is_over(now):
                return True
            if now < max(self._resume_at, self._next_at - BURST_TIME):
                return False
            self._next_at = max(self._next_at, now) + 1 / self._pace_at(now)
            return True

    def refund(self) -> bool:
        """A mail did not leave after all. Return whether another may leave earlier now."""
        with self._lock:
            if self._pace == inf:
                return False
            self._next_at -= 1 / self._pace_at(self._monotonic())
            return True

    def retry_in(self, mails: int = 1) -> float:
        """Return the seconds until so many mails may leave at once; infinity if that many never
        may."""
        if self._pace == inf:
            return 0.0
        with self._lock:
            now = self._monotonic()
            if self._is_over(now):
                return 0.0
            ahead = (mails - 1) / self._pace_at(now)
            if ahead > BURST_TIME:
                return inf
            return max(max(self._resume_at, self._next_at + ahead - BURST_TIME) - now, 0.0)

    def _slow_down(self, reply: Reply) -> tuple[float, float] | None:
        """Begin a pause, unless there is one. Return it and the pace if the mailer was at full
        pace."""
        now = self._monotonic()
        first = self._is_over(now)
        if now < self._resume_at:
            return None
        if self._total == self._total_then:
            self._in_a_row += 1
        else:
            self._in_a_row = 1
            self._senders.clear()
            self._pace = max(min(self._pace_at(now), self._measured(now)) / 2, SLOWEST_PACE)
        self._total_then = self._total
        self._reply = str(reply)
        if first:
            self._slowed_since, self._times_slowed = now, 0
        self._times_slowed += 1
        pause = min(self._first_pause * 2.0 ** (self._in_a_row - 1), LONGEST_PAUSE)
        self._resume_at = self._next_at = now + pause
        return (pause, self._pace) if first else None

    def _measured(self, now: float) -> float:
        """Return how many mails the relay took in the last second."""
        moments = list(self._taken)
        lately = [moment for moment in moments if moment > now - 1.0]
        if len(lately) < MEASURED_MAILS:
            return len(lately)
        return len(lately) / max(now - lately[0], 0.001)

    def _pace_at(self, now: float) -> float:
        """Return how many mails may leave in a second."""
        return self._pace * (1 + max(now - self._resume_at, 0.0) / RECOVERY_TIME)

    def _is_over(self, now: float) -> bool:
        """Return whether there is no limit; lift it, if it is time."""
        if self._pace == inf:
            return True
        if now < self._resume_at + FULL_PACE_TIME or self._total == self._total_then:
            return False
        self._pace = inf
        log.warning(
            '%s: mail leaves at full pace again, after it was slowed down %d times in %s',
            *(self._relay, self._times_slowed, span_text(now - self._slowed_since)),
        )
        return True

    def _blames_mail(self, id: str) -> bool:
        """Count that a mail was throttled, if others were taken since the last time; return whether
        that was too often."""
        times, total = self._suspects.pop(id, (0, -1))
        if total != self._total:
            times += 1
        self._suspects[id] = (times, self._total)
        if len(self._suspects) > MAX_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        return times > BLAMED_AFTER
