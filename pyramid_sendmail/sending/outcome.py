"""What an attempt came to: classify the relay's answers, record them, dispatch the events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..durations import span_text
from ..envelope import Envelope, Outcome, PendingEvent, Tally, Verdict
from ..exceptions import QueueError
from ..interfaces import IMailClaim, IMailEventDispatcher
from ..queue.ticket import milliseconds
from ..retry import RetryPolicy

__all__ = ['OutcomeRecorder', 'report_settled']

log = logging.getLogger(__name__)

Kind = Literal['sent', 'deferred', 'error']

_LEVELS: dict[Kind, int] = {
    'sent': logging.INFO,
    'deferred': logging.WARNING,
    'error': logging.ERROR,
}

_AMBIGUOUS = 'ambiguous: '
"""How the reason of an ambiguous mail begins."""

THROTTLED_DELAY = 1.0
"""Seconds until recipients are due again that the relay throttled. The pause of the mailer may be
longer."""

PERIOD_RESOLUTION = 0.002
"""Seconds: a queue keeps milliseconds."""

_NO_VERDICT = Verdict('deferred', None, 'the mailer gave no answer for this recipient')


class Unrecorded(NamedTuple):
    """A claim, and the outcome that could not be written to the queue yet."""

    claim: IMailClaim
    events: list[PendingEvent]
    retry_at: float | None
    silent: Set[str]
    """The ids of the events that are not dispatched."""


@dataclass(slots=True)
class OutcomeRecorder:
    """Writes the outcome of each attempt to the queue, and dispatches its events.

    ``policy`` says when a mail is tried again. ``ambiguous``: 'resend' or 'hold'. ``durable``:
    whether the queue outlives this process, and keeps what failed. ``clock``: epoch seconds.
    """

    policy: RetryPolicy
    dispatcher: IMailEventDispatcher
    ambiguous: str = 'resend'
    durable: bool = True
    clock: Callable[[], float] = time.time
    unrecorded: list[Unrecorded] = field(default_factory=list, init=False)
    """Outcomes that could not be written yet. Their claims stay locked, and nothing more may be
    claimed until ``write_unrecorded`` has emptied the list."""

    def write_unrecorded(self) -> None:
        """Write the outcomes that could not be written before.

        Raises QueueError if one cannot be written yet, and keeps it.
        """
        while self.unrecorded:
            self._write(*self.unrecorded[0])
            del self.unrecorded[0]

    def record_outcome(
        self,
        claim: IMailClaim,
        outcome: Outcome,
        mailer: str,
        tally: Tally | None = None,
        *,
        throttled: Collection[str] = (),
    ) -> None:
        """Classify an outcome, log it, count it, write it to the queue and dispatch its events.

        ``throttled``: recipients that the relay throttled, beside others that it did not: they are
        due again in a moment, and no event is dispatched for them. Raises QueueError if it cannot
        be written; the claim is kept in ``unrecorded`` then.
        """
        events, retry_at = self._classify(claim, outcome, mailer, throttled)
        silent: Set[str] = frozenset()
        if throttled:
            silent = {event.id for event in events if event.recipients[0] in throttled}
        if tally is not None:
            tally.count(events)
        try:
            self._write(claim, events, retry_at, silent)
        except QueueError:
            self.unrecorded.append(Unrecorded(claim, events, retry_at, silent))
            log.critical(
                '%s: outcome could not be written to the queue; sending stops until it can',
                claim.envelope.message_id,
            )
            raise

    def _classify(
        self, claim: IMailClaim, outcome: Outcome, mailer: str, throttled: Collection[str]
    ) -> tuple[list[PendingEvent], float | None]:
        """Return one event for all recipients with the same answer, and the time at which the
        mail is due again."""
        envelope = claim.envelope
        number = claim.attempt + 1
        first_part = _event_prefix(claim, envelope, number)
        groups = _by_verdict(claim.todo, outcome)
        first, recipients = groups[0]
        if first.status == 'delivered' and len(groups) == 1:
            # Almost every mail.
            id = f'{first_part}-sent-0'
            event = PendingEvent(
                id, 'sent', recipients, number, mailer, first.reply, permanent=False
            )
            self._log(event, first, envelope)
            return [event], None
        now = self.clock()
        # The age of a mail with ``due`` counts from then.
        delay = self.policy.delay(number, now - max(claim.since, envelope.not_before))
        next_try = None if delay is None else now + delay
        retry_at = None
        events: list[PendingEvent] = []
        for verdict, recipients in groups:
            waits = recipients[0] in throttled
            kind = 'deferred' if waits else self._kind(verdict, delay)
            if waits:
                retry_at = now + THROTTLED_DELAY
            elif kind == 'deferred':
                retry_at = retry_at or next_try
            event = PendingEvent(
                id=f'{first_part}-{kind}-{len(events)}',
                kind=kind,
                recipients=recipients,
                attempt=number,
                mailer=mailer,
                reply=verdict.reply,
                reason=_reason(verdict, kind, given_up=delay is None),
                permanent=verdict.status == 'failed',
                retry_at=next_try if kind == 'deferred' else None,
            )
            if not waits:
                self._log(event, verdict, envelope)
            events.append(event)
        return events, retry_at

    def _kind(self, verdict: Verdict, delay: float | None) -> Kind:
        if verdict.status == 'delivered':
            return 'sent'
        if verdict.status == 'failed' or delay is None:
            return 'error'
        return 'error' if verdict.status == 'ambiguous' and self.ambiguous == 'hold' else 'deferred'

    def _write(
        self,
        claim: IMailClaim,
        events: list[PendingEvent],
        retry_at: float | None,
        silent: Set[str],
    ) -> None:
        # Events of earlier attempts are dispatched again, and not settled again.
        pending = events
        if silent:
            pending = [event for event in events if event.id not in silent]
        if older := claim.pending_events:
            known = {event.id for event in events}
            pending = [event for event in older if event.id not in known] + pending
        wanted = any(map(self.dispatcher.wants, {event.kind for event in pending}))
        claim.settle(events, retry_at=retry_at, report=wanted)
        if wanted:
            self.dispatcher.dispatch(claim, pending)

    def _log(self, event: PendingEvent, verdict: Verdict, envelope: Envelope) -> None:
        level = _LEVELS[event.kind]
        if not log.isEnabledFor(level):
            return
        ambiguous = verdict.status == 'ambiguous'
        word: str = 'ambiguous' if ambiguous else event.kind
        text = event.reason or event.reply or ''
        if ambiguous:
            text = str(text).removeprefix(_AMBIGUOUS)
        if event.retry_at is not None:
            text = f'{text} ({self._next_try(event.retry_at, twice=ambiguous)})'
        if event.kind == 'error':
            if not ambiguous:
                word = 'refused' if event.permanent and event.reply else 'failed'
            text = f'{text} (will not be tried again{"; see failed/" if self.durable else ""})'
            if not (self.durable or ambiguous or event.permanent):
                word = 'not sent and lost'
                text = f'no queue is configured (mail.queue_path): {verdict}'
        log.log(
            level,
            '%s: %s for %s (attempt %d, %s): %s',
            envelope.message_id,
            word,
            ', '.join(event.recipients),
            event.attempt,
            event.mailer or 'not sent',
            text,
            extra={
                'message_id': envelope.message_id,
                'mail_id': envelope.id,
                'outcome': 'ambiguous' if ambiguous else event.kind,
                'recipients': event.recipients,
                'attempt': event.attempt,
            },
        )

    def _next_try(self, at: float, *, twice: bool) -> str:
        after = span_text(at - self.clock())
        return f'sent again in {after}: it may arrive twice' if twice else f'next try in {after}'


def report_settled(claim: IMailClaim, dispatcher: IMailEventDispatcher) -> None:
    """Dispatch the events of a claim that has nothing to send; without events, complete its move.

    Raises QueueError if it cannot be moved; the claim is released then.
    """
    events = claim.pending_events
    if events:
        dispatcher.dispatch(claim, events)
        return
    try:
        claim.acknowledge(())
    except QueueError:
        claim.release()
        raise


def _event_prefix(claim: IMailClaim, envelope: Envelope, number: int) -> str:
    """Return how the ids of an attempt's events begin. Where the attempts have begun anew, since a
    person had a dead letter tried again, they name that time: no two events have the same id."""
    since: float = claim.since
    if since - envelope.queued_at > PERIOD_RESOLUTION:
        return f'{envelope.id}-{number}.{milliseconds(since):x}'
    return f'{envelope.id}-{number}'


def _by_verdict(todo: Sequence[str], outcome: Outcome) -> list[tuple[Verdict, tuple[str, ...]]]:
    """Group recipients with the same answer, in the order of the first recipient of each group."""
    first = outcome.get(todo[0], _NO_VERDICT)
    if len(todo) == 1 or all(outcome.get(recipient) is first for recipient in todo):
        return [(first, tuple(todo))]
    groups: dict[Verdict, list[str]] = {}
    for recipient in todo:
        groups.setdefault(outcome.get(recipient, _NO_VERDICT), []).append(recipient)
    return [(verdict, tuple(recipients)) for verdict, recipients in groups.items()]


def _reason(verdict: Verdict, kind: Kind, *, given_up: bool) -> str:
    if kind == 'sent':
        return ''
    reason = str(verdict)
    if verdict.status == 'ambiguous':
        reason = f'{_AMBIGUOUS}{reason}'
    if given_up and verdict.status != 'failed':
        reason = f'given up: {reason}'
    return reason
