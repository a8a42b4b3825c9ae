"""``attempt``: send claimed mail through a session, and settle what becomes of it.

Direct delivery, the queue processor and its thread in a web process all call it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .envelope import Envelope, Fate, Outcome, Verdict
from .exceptions import MailerUnavailable, QueueError
from .interfaces import IMailClaim, IMailer, IMailReporter, IMailSession
from .retry import RetryPolicy

__all__ = ['Attempts', 'Road', 'Tally', 'attempt']

log = logging.getLogger(__name__)


class Road:
    """A mailer and the one session that is kept with it, for use by one thread.

    ``batch``: mails after which the session is closed. ``idle``: seconds after which a session
    that nobody used is not trusted any more.
    """

    def __init__(
        self,
        mailer: IMailer,
        *,
        batch: int = 100,
        idle: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mailer = mailer
        self._batch = batch
        self.idle = idle
        self._monotonic = monotonic
        self._session: Any = None
        self._pid = os.getpid()
        self._carried = 0
        self._used = 0.0
        self.connecting = False
        """Whether its thread waits for a session, and holds no claim meanwhile."""

    def session(self, *, holding: bool = False) -> IMailSession:
        """The session, opened if need be; ``holding``: while the caller has claims already.

        Raises MailerUnavailable.
        """
        if self._session is not None and self._pid != os.getpid():
            self._session.abandon()
            self._session = None
        if self._session is not None and self._monotonic() - self._used > self.idle:
            self.close()
        if self._session is None:
            self.connecting = not holding
            try:
                self._session = self.mailer.connect()
            finally:
                self.connecting = False
            self._pid = os.getpid()
            self._carried = 0
        self._used = self._monotonic()
        return self._session

    def carried(self) -> None:
        """A mail was answered."""
        self._carried += 1
        self._used = self._monotonic()

    @property
    def spent(self) -> bool:
        """Whether the session has carried its share."""
        return self._carried >= self._batch

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


@dataclass(slots=True)
class Tally:
    """Counts of mails: ``delivered`` to every recipient, ``deferred`` for some, ``failed`` for
    some and deferred for none."""

    delivered: int = 0
    deferred: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.delivered + self.deferred + self.failed

    def add(self, other: Tally) -> None:
        self.delivered += other.delivered
        self.deferred += other.deferred
        self.failed += other.failed


@dataclass(slots=True)
class Attempts:
    """What an attempt needs besides claims and a road.

    ``ambiguous``: 'resend' or 'hold'. ``unrecorded``: claims whose outcome could not be written
    down yet; they stay locked, and nothing more may be claimed until ``record`` has emptied it.
    """

    policy: RetryPolicy
    reporter: IMailReporter
    ambiguous: Literal['resend', 'hold'] | str = 'resend'
    clock: Callable[[], float] = time.time
    unrecorded: list[tuple[IMailClaim, list[Fate], float | None]] = field(default_factory=list)

    def record(self) -> None:
        """Write down what could not be written before. Raises QueueError, and keeps it."""
        while self.unrecorded:
            claim, fates, retry_at = self.unrecorded[0]
            self._record(claim, fates, retry_at)
            del self.unrecorded[0]

    def settle(self, claim: Any, outcome: Outcome, mailer: str) -> Tally:
        """Classify an outcome, write it down, and report it. Raises QueueError."""
        envelope = claim.envelope
        number = claim.attempt + 1
        now = self.clock()
        delay = self.policy.delay(number, now - claim.since)
        groups: dict[tuple[str, Verdict], list[str]] = {}
        for recipient, verdict in outcome.items():
            groups.setdefault((self._kind(verdict, delay), verdict), []).append(recipient)
        retry_at = None
        if delay is not None and any(kind == 'deferred' for kind, _ in groups):
            retry_at = now + delay
        fates = []
        for group, ((kind, verdict), recipients) in enumerate(groups.items()):
            fate = Fate(
                id=f'{envelope.id}-{number}-{kind}-{group}',
                kind=kind,  # type: ignore[arg-type]
                recipients=tuple(recipients),
                attempt=number,
                mailer=mailer,
                reply=verdict.reply,
                reason=self._reason(verdict, kind),
                permanent=verdict.status == 'failed',
                retry_at=retry_at if kind == 'deferred' else None,
            )
            _log_fate(fate, verdict, envelope)
            fates.append(fate)
        try:
            self._record(claim, fates, retry_at)
        except QueueError:
            log.critical(
                '%s: what became of it could not be recorded; it is kept, and nothing more is '
                'sent until it can be',
                envelope.message_id,
            )
            self.unrecorded.append((claim, fates, retry_at))
            raise
        kinds = {fate.kind for fate in fates}
        if 'deferred' in kinds:
            return Tally(deferred=1)
        return Tally(failed=1) if 'error' in kinds else Tally(delivered=1)

    def _record(self, claim: Any, fates: list[Fate], retry_at: float | None) -> None:
        known = {fate.id for fate in fates}
        older = [fate for fate in claim.fates if fate.id not in known]
        told = [fate for fate in [*older, *fates] if self.reporter.wants(fate.kind)]
        claim.settle(fates, retry_at=retry_at, report=bool(told))
        if told:
            self.reporter.submit(claim, [*older, *fates])

    def _kind(self, verdict: Verdict, delay: float | None) -> str:
        if verdict.status == 'delivered':
            return 'sent'
        if verdict.status == 'failed' or delay is None:
            return 'error'
        return 'error' if verdict.status == 'ambiguous' and self.ambiguous == 'hold' else 'deferred'

    def _reason(self, verdict: Verdict, kind: str) -> str:
        if kind == 'sent':
            return ''
        reason = str(verdict)
        if verdict.status == 'ambiguous':
            reason = f'ambiguous: {reason}'
        if kind == 'error' and verdict.status == 'deferred':
            reason = f'given up: {reason}'
        return reason


def attempt(
    claims: Iterable[IMailClaim], road: Road, attempts: Attempts, tally: Tally
) -> None:
    """Send each claimed mail once, pulling the claims one by one; settle and count each.

    Returns when the claims or the session's share have come to an end: call it again with the
    rest. Raises MailerUnavailable where the road is closed: what was not sent is released, unchanged.
    Raises QueueError where an outcome could not be recorded. Every claim pulled is settled,
    released, or kept in ``attempts.unrecorded``.
    """
    pulled: deque[Any] = deque()
    again: deque[Any] = deque()
    sealed: set[str] = set()
    source = iter(claims)

    def envelopes() -> Iterator[Envelope]:
        while not road.spent or again:
            claim: Any = again.popleft() if again else next(source, None)
            if claim is None:
                return
            if claim in retried or _ready(claim, attempts, tally):
                pulled.append(claim)
                yield _for_todo(claim)

    retried: set[Any] = set()

    def sealing(envelope: Envelope, recipients: Iterable[str]) -> None:
        claim = next(claim for claim in pulled if claim.envelope.id == envelope.id)
        claim.sealing(tuple(recipients))
        sealed.add(envelope.id)

    def answered(outcome: Outcome) -> None:
        claim = pulled.popleft()
        retried.discard(claim)
        sealed.discard(claim.envelope.id)
        road.carried()
        tally.add(attempts.settle(claim, outcome, road.mailer.name))

    try:
        while True:
            session: Any = road.session(holding=bool(again))
            try:
                for outcome in session.send(envelopes(), sealing=sealing):
                    answered(outcome)
            except MailerUnavailable as error:
                road.close()
                if not error.stale:
                    raise
                again.extendleft(reversed(pulled))
                retried.update(pulled)
                pulled.clear()
                continue
            except QueueError:
                road.close()
                raise
            except Exception as error:
                log.exception('%s: the session failed', road.mailer.name)
                road.close()
                if not pulled:
                    raise MailerUnavailable(f'{road.mailer.name}: {error!r}') from error
                status = 'ambiguous' if pulled[0].envelope.id in sealed else 'deferred'
                reason = f'{type(error).__name__}: {error}'
                answered(dict.fromkeys(pulled[0].todo, Verdict(status, None, reason)))
                again.extendleft(reversed(pulled))
                retried.update(pulled)
                pulled.clear()
                continue
            if again:
                continue
            if road.spent:
                road.close()
            return
    finally:
        for claim in (*pulled, *again):
            claim.release()


def _for_todo(claim: Any) -> Envelope:
    envelope: Envelope = claim.envelope
    if envelope.recipients == claim.todo:
        return envelope
    return replace(envelope, recipients=claim.todo)


def _ready(claim: Any, attempts: Attempts, tally: Tally) -> bool:
    """Whether there is anything to send; what needs no relay is settled here."""
    if not claim.todo:
        fates = claim.fates
        if fates:
            attempts.reporter.submit(claim, fates)
        else:
            claim.reported(())
        return False
    envelope = claim.envelope
    if claim.interrupted:
        reason = 'a process stopped while it was sending this mail'
        status = 'deferred' if claim.interrupted == 'sending' else 'ambiguous'
        outcome = dict.fromkeys(claim.todo, Verdict(status, None, reason))  # type: ignore[arg-type]
        tally.add(attempts.settle(claim, outcome, ''))
        return False
    if envelope.expires is not None and attempts.clock() >= envelope.expires:
        expired = Verdict('failed', None, 'expired: it could not be sent before its time was over')
        tally.add(attempts.settle(claim, dict.fromkeys(claim.todo, expired), ''))
        return False
    return True


def _log_fate(fate: Fate, verdict: Verdict, envelope: Envelope) -> None:
    level = {'sent': logging.INFO, 'deferred': logging.WARNING, 'error': logging.ERROR}[fate.kind]
    word = 'ambiguous' if verdict.status == 'ambiguous' else fate.kind
    answer = fate.reason or fate.reply or ''
    log.log(
        level,
        '%s: %s for %s (attempt %d, %s): %s',
        envelope.message_id,
        word,
        ', '.join(fate.recipients),
        fate.attempt,
        fate.mailer or 'not sent',
        answer,
        extra={
            'message_id': envelope.message_id,
            'mail_id': envelope.id,
            'outcome': word,
            'recipients': fate.recipients,
            'attempt': fate.attempt,
        },
    )
