"""``attempt``: send claimed mail through a session, and settle what becomes of it.

Direct delivery, the queue processor and its thread in a web process all call it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..envelope import Envelope, Outcome, PendingEvent, Verdict
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailClaim, IMailEventDispatcher
from ..retry import RetryPolicy
from ..threads import CooperativeLock
from .connection import RelayConnection

__all__ = ['OutcomeRecorder', 'Tally', 'attempt', 'report_settled']

log = logging.getLogger(__name__)

Kind = Literal['sent', 'deferred', 'error']

_LEVELS: dict[Kind, int] = {
    'sent': logging.INFO,
    'deferred': logging.WARNING,
    'error': logging.ERROR,
}

_SILENCE = Verdict('deferred', None, 'the mailer gave no answer for this recipient')


@dataclass(slots=True)
class Tally:
    """Counts of mails: ``delivered`` to every recipient, ``deferred`` for some, ``failed`` for
    some and deferred for none."""

    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.delivered + self.deferred + self.failed

    def add(self, other: Tally) -> None:
        self.delivered += other.delivered
        self.deferred += other.deferred
        self.failed += other.failed
        self.total += other.total

    def count(self, events: Iterable[PendingEvent]) -> None:
        """Add one mail."""
        kinds = [fate.kind for fate in events]
        if 'deferred' in kinds:
            self.deferred += 1
        elif 'error' in kinds:
            self.failed += 1
        else:
            self.delivered += 1
        self.total += 1


@dataclass(slots=True)
class OutcomeRecorder:
    """What an attempt needs besides claims and a road.

    ``ambiguous``: 'resend' or 'hold'. ``unrecorded``: claims whose outcome could not be written
    down yet; they stay locked, and nothing more may be claimed until ``record`` has emptied it.
    ``cooperative_lock``: held over sessions that give it up while they wait.
    """

    policy: RetryPolicy
    dispatcher: IMailEventDispatcher
    ambiguous: str = 'resend'
    clock: Callable[[], float] = time.time
    unrecorded: list[tuple[IMailClaim, list[PendingEvent], float | None]] = field(
        default_factory=list
    )
    cooperative_lock: CooperativeLock = field(default_factory=CooperativeLock)

    def record(self) -> None:
        """Write down what could not be written before. Raises QueueError, and keeps it."""
        while self.unrecorded:
            self._record(*self.unrecorded[0])
            del self.unrecorded[0]

    def settle(self, claim: Any, outcome: Outcome, mailer: str, tally: Tally | None = None) -> None:
        """Classify an outcome, log it, count it, write it down, and report it.

        Raises QueueError where it could not be written down, and keeps the claim then.
        """
        events, retry_at = self._fates(claim, outcome, mailer)
        if tally is not None:
            tally.count(events)
        try:
            self._record(claim, events, retry_at)
        except QueueError:
            self.unrecorded.append((claim, events, retry_at))
            log.critical(
                '%s: what became of it could not be recorded; it is kept, and nothing more is '
                'sent until it can be',
                claim.envelope.message_id,
            )
            raise

    def _fates(
        self, claim: Any, outcome: Outcome, mailer: str
    ) -> tuple[list[PendingEvent], float | None]:
        """One fate for all recipients with the same answer, and when the mail is due again."""
        envelope: Envelope = claim.envelope
        number = claim.attempt + 1
        groups = _by_verdict(claim.todo, outcome)
        now, delay = 0.0, None
        if groups[0][0].status != 'delivered' or len(groups) > 1:
            now = self.clock()
            # Mail for a later day is not old on that day.
            delay = self.policy.delay(number, now - max(claim.since, envelope.not_before))
        again = None if delay is None else now + delay
        retry_at = None
        events: list[PendingEvent] = []
        for verdict, recipients in groups:
            kind = self._kind(verdict, delay)
            if kind == 'deferred':
                retry_at = again
            fate = PendingEvent(
                id=f'{envelope.id}-{number}-{kind}-{len(events)}',
                kind=kind,
                recipients=recipients,
                attempt=number,
                mailer=mailer,
                reply=verdict.reply,
                reason=_reason(verdict, kind, given_up=delay is None),
                permanent=verdict.status == 'failed',
                retry_at=again if kind == 'deferred' else None,
            )
            _log_fate(fate, verdict, envelope)
            events.append(fate)
        return events, retry_at

    def _kind(self, verdict: Verdict, delay: float | None) -> Kind:
        if verdict.status == 'delivered':
            return 'sent'
        if verdict.status == 'failed' or delay is None:
            return 'error'
        return 'error' if verdict.status == 'ambiguous' and self.ambiguous == 'hold' else 'deferred'

    def _record(self, claim: Any, events: list[PendingEvent], retry_at: float | None) -> None:
        older = claim.pending_events
        if older:
            known = {fate.id for fate in events}
            older = [fate for fate in older if fate.id not in known]
            older += events
        events = older or events
        told = any(map(self.dispatcher.wants, {fate.kind for fate in events}))
        claim.settle(events, retry_at=retry_at, report=told)
        if told:
            self.dispatcher.dispatch(claim, events)


def attempt(
    claims: Iterable[IMailClaim],
    connection: RelayConnection,
    recorder: OutcomeRecorder,
    tally: Tally,
) -> None:
    """Send each claimed mail once, pulling the claims one by one; settle and count each.

    Returns when the claims or the session's share have come to an end, or when the session has
    failed: call it again with the rest. Raises MailerUnavailable where the road is closed: what
    was not sent is released, unchanged. Raises QueueError where an outcome could not be recorded.
    Every claim pulled is settled, released, or kept in ``attempts.unrecorded``.
    """
    batch = Batch(claims, connection, recorder, tally)
    try:
        while batch.send(connection.session(holding=batch.holding)):
            pass
        if connection.is_used_up():
            connection.close()
    except BaseException:
        connection.close()
        raise
    finally:
        batch.release()


class Batch:
    """The claims of one attempt: ``pulled`` by the session and not answered, and those that a
    session which was lost has left to send ``again``."""

    def __init__(
        self,
        claims: Iterable[IMailClaim],
        connection: RelayConnection,
        recorder: OutcomeRecorder,
        tally: Tally,
    ) -> None:
        self._source = iter(claims)
        self._road = connection
        self._recorder = recorder
        self._tally = tally
        self._name = connection.name
        self._pulled: deque[Any] = deque()
        self._again: deque[Any] = deque()
        self._sealed: dict[str, tuple[str, ...]] = {}
        connection.in_flight = (self._pulled, self._again)

    @property
    def holding(self) -> bool:
        return bool(self._again)

    def send(self, session: Any) -> bool:
        """Send over this session; whether there is mail to be sent over another one."""
        # Its own promise: what wraps a session, and hands on what it is asked for, makes none.
        cooperative = getattr(type(session), 'cooperative', False)
        with self._recorder.cooperative_lock.held() if cooperative else nullcontext():
            return self._send(session)

    def _send(self, session: Any) -> bool:
        self._name = self._road.name
        outcomes = iter(session.send(self._envelopes(), before_final_dot=self._sealing))
        while True:
            try:
                outcome = next(outcomes, None)
            except MailerUnavailable as error:
                self._unseal()
                if not (error.stale and self._road.mails_on_session):
                    raise
                self._road.close()
                break
            except QueueError:
                raise
            except Exception as error:
                log.exception('%s: the session failed', self._name)
                self._lose(' '.join(f'{type(error).__name__}: {error}'.split()))
                break
            if outcome is None:
                if self._pulled:
                    self._lose('the session ended without an answer')
                break
            self._road.record_answer()
            self._settle(outcome)
        self._again.extendleft(reversed(self._pulled))
        self._pulled.clear()
        return self.holding

    def _envelopes(self) -> Iterator[Envelope]:
        while self._again or not self._road.is_used_up(len(self._pulled)):
            claim: Any = self._again.popleft() if self._again else next(self._source, None)
            if claim is None:
                return
            if self._ready(claim):
                self._pulled.append(claim)
                yield _for_todo(claim)

    def _ready(self, claim: Any) -> bool:
        """Whether there is anything to send; what needs no relay is settled here."""
        recorder, envelope = self._recorder, claim.envelope
        if not claim.todo:
            report_settled(claim, recorder.dispatcher)
            return False
        if claim.interrupted:
            outcome = _lost(
                claim, claim.ambiguous, 'a process stopped while it was sending this mail'
            )
            recorder.settle(claim, outcome, self._name, self._tally)
            return False
        if envelope.expires is not None and recorder.clock() >= envelope.expires:
            expired = Verdict(
                'failed', None, 'expired: it could not be sent before its time was over'
            )
            outcome = dict.fromkeys(claim.todo, expired)
            recorder.settle(claim, outcome, '', self._tally)
            return False
        return True

    def _sealing(self, envelope: Envelope, recipients: Iterable[str]) -> None:
        claim = self._pulled[0]
        if claim.envelope.id != envelope.id:
            claim = next(claim for claim in self._pulled if claim.envelope.id == envelope.id)
        ambiguous = tuple(recipients)
        claim.mark_ambiguous(ambiguous)
        before = self._sealed.get(envelope.id)
        self._sealed[envelope.id] = (*before, *ambiguous) if before else ambiguous

    def _unseal(self) -> None:
        """What was pulled and not answered is untouched, though its text may have left."""
        for claim in self._pulled:
            if self._sealed.pop(claim.envelope.id, None):
                claim.clear_ambiguous()

    def _settle(self, outcome: Outcome) -> None:
        claim = self._pulled.popleft()
        self._recorder.settle(claim, outcome, self._name, self._tally)

    def _lose(self, reason: str) -> None:
        """The session has failed over the first mail; what else is sealed has left as well."""
        self._road.close()
        if not self._pulled:
            raise MailerUnavailable(f'{self._name}: {reason}')
        first = self._pulled[0]
        while self._pulled:
            claim = self._pulled[0]
            ambiguous = self._sealed.get(claim.envelope.id, ())
            if claim is not first and not ambiguous:
                break
            self._settle(_lost(claim, ambiguous, reason))

    def release(self) -> None:
        left = (*self._pulled, *self._again)
        self._pulled.clear()
        self._again.clear()
        for claim in left:
            claim.release()


def report_settled(claim: Any, dispatcher: Any) -> None:
    """A claim with nothing to send waits for its event, or only to be moved. Raises QueueError,
    and releases it then."""
    events = claim.pending_events
    if events:
        dispatcher.dispatch(claim, events)
        return
    try:
        claim.acknowledge(())
    except QueueError:
        claim.release()
        raise


def _by_verdict(todo: Sequence[str], outcome: Outcome) -> list[tuple[Verdict, tuple[str, ...]]]:
    """Recipients with the same answer, in the order in which the first of each stands."""
    first = outcome.get(todo[0], _SILENCE)
    if len(todo) == 1 or all(outcome.get(recipient) is first for recipient in todo):
        return [(first, tuple(todo))]
    groups: dict[Verdict, list[str]] = {}
    for recipient in todo:
        groups.setdefault(outcome.get(recipient, _SILENCE), []).append(recipient)
    return [(verdict, tuple(recipients)) for verdict, recipients in groups.items()]


def _for_todo(claim: Any) -> Envelope:
    envelope: Envelope = claim.envelope
    if envelope.recipients == claim.todo:
        return envelope
    return replace(envelope, recipients=claim.todo)


def _lost(claim: Any, ambiguous: Sequence[str], reason: str) -> Outcome:
    """The outcome where nobody can be asked any more: only those whose final dot may have left
    may have got the mail."""
    return {
        to: Verdict('ambiguous' if to in ambiguous else 'deferred', None, reason)
        for to in claim.todo
    }


def _reason(verdict: Verdict, kind: Kind, *, given_up: bool) -> str:
    if kind == 'sent':
        return ''
    reason = str(verdict)
    if verdict.status == 'ambiguous':
        reason = f'ambiguous: {reason}'
    if given_up and verdict.status != 'failed':
        reason = f'given up: {reason}'
    return reason


def _log_fate(fate: PendingEvent, verdict: Verdict, envelope: Envelope) -> None:
    if not log.isEnabledFor(_LEVELS[fate.kind]):
        return
    word = 'ambiguous' if verdict.status == 'ambiguous' else fate.kind
    log.log(
        _LEVELS[fate.kind],
        '%s: %s for %s (attempt %d, %s): %s',
        envelope.message_id,
        word,
        ', '.join(fate.recipients),
        fate.attempt,
        fate.mailer or 'not sent',
        fate.reason or fate.reply or '',
        extra={
            'message_id': envelope.message_id,
            'mail_id': envelope.id,
            'outcome': word,
            'recipients': fate.recipients,
            'attempt': fate.attempt,
        },
    )
