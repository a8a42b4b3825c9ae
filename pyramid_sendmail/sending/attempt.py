"""Send claimed mail through a session, and settle each claim.

``attempt`` does it over a session that blocks: direct delivery and the queue processor's workers
call it. The processor's loop hands out and records the mails of a Batch itself.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from ..envelope import Envelope, Outcome, Reply, Tally, Verdict
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailClaim, IMailSession
from .outcome import OutcomeRecorder, report_settled
from .refusals import NoMailTaken, Refusals
from .relay_connection import RelayConnection
from .throttling import Throttle

__all__ = ['Batch', 'attempt']

log = logging.getLogger(__name__)


def attempt(
    claims: Iterable[IMailClaim],
    connection: RelayConnection,
    recorder: OutcomeRecorder,
    tally: Tally,
    refusals: Refusals | None = None,
    throttle: Throttle | None = None,
) -> None:
    """Send each claimed mail once, pulling the claims one by one; settle and count each.

    Returns at the end of the claims, when the session has sent its batch, or when the session has
    failed: call it again for the rest. Raises MailerUnavailable if the relay cannot be used; mail
    that was not sent, or throttled, is released unchanged. Raises QueueError if an outcome could
    not be written. Each claim pulled is settled, released, or kept in ``recorder.unrecorded``.
    """
    batch = Batch(claims, connection, recorder, tally, refusals, throttle)
    try:
        while batch.send_over(connection, connection.session(holding=batch.holding)):
            pass
        if connection.is_used_up():
            connection.close()
    except BaseException:
        connection.close()
        raise
    finally:
        batch.release()


class Relay(Protocol):
    """The connection that a batch is sent over."""

    @property
    def name(self) -> str:
        """Where the session sends to."""

    def record_answer(self) -> None:
        """Count one answered mail."""

    def is_used_up(self, waiting: int = 0) -> bool:
        """Return whether the session has sent as many mails as it may, ``waiting`` included."""


class Batch:
    """The claims of one attempt.

    ============ ====================================================================
    ``_source``  not claimed yet
    ``_pulled``  pulled by the session and not answered, in the order of the answers
    ``_resend``  pulled, and to be sent over another session: the last one was stale
    ============ ====================================================================
    """

    def __init__(
        self,
        claims: Iterable[IMailClaim],
        relay: Relay,
        recorder: OutcomeRecorder,
        tally: Tally,
        refusals: Refusals | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self._source = iter(claims)
        self._relay = relay
        self._recorder = recorder
        self._tally = tally
        self._refusals = refusals
        self._throttle = throttle
        self.error: NoMailTaken | None = None
        """The relay is at fault and not the mails: no more are sent, and those in flight get their
        outcomes before it is raised."""
        self._name = relay.name
        self._pulled: deque[IMailClaim] = deque()
        self._resend: deque[IMailClaim] = deque()
        self._ambiguous: dict[str, tuple[str, ...]] = {}
        """The recipients marked as ambiguous, by the envelope's id."""
        self.in_flight = (self._pulled, self._resend)
        """The mails that wait for their answer, or to be sent once more."""

    @property
    def holding(self) -> bool:
        """Whether claims wait to be sent over another session."""
        return bool(self._resend)

    @property
    def waiting(self) -> int:
        """How many mails wait for their answer, or to be sent once more."""
        return len(self._pulled) + len(self._resend)

    def send_over(self, connection: RelayConnection, session: IMailSession) -> bool:
        """Send over a session that blocks; return whether there is mail to send over another
        one."""
        connection.in_flight = self.in_flight
        self.session_opened()
        outcomes = iter(session.send(self._envelopes(), before_final_dot=self.before_final_dot))
        while True:
            try:
                outcome = next(outcomes, None)
            except MailerUnavailable as error:
                if self.session_throttled(error.reply):
                    connection.close()
                    break
                if not self.session_ended(stale=error.stale and connection.mails_on_session > 0):
                    raise
                connection.close()
                break
            except QueueError:
                raise
            except Exception as error:
                log.exception('%s: the session failed; its connection is closed', self._name)
                connection.close()
                self.session_failed(' '.join(f'{type(error).__name__}: {error}'.split()))
                break
            if outcome is None:
                if self._pulled:
                    connection.close()
                    self.session_failed('the session ended without an answer')
                break
            self.record(outcome)
        if self.error is not None:
            raise self.error
        return self.holding

    def session_opened(self) -> None:
        """A new session sends from now on."""
        self._name = self._relay.name

    def next_envelope(self) -> Envelope | None:
        """Return the next mail to send; None if there is none now, or the session is used up."""
        if self.error is not None:
            return None
        while self._resend or not self._relay.is_used_up(len(self._pulled)):
            claim = self._resend.popleft() if self._resend else next(self._source, None)
            if claim is None:
                return None
            if self._needs_sending(claim):
                self._pulled.append(claim)
                return _for_todo(claim)
        return None

    def record(self, outcome: Outcome) -> None:
        """Record the outcome of the first mail without one. Raises QueueError. ``error`` is set if
        the relay is at fault and not the mail."""
        self._relay.record_answer()
        throttled: tuple[str, ...] = ()
        if self._throttle is not None:
            envelope = self._pulled[0].envelope
            throttled = self._throttle.judge(envelope.id, outcome, envelope.sender)
        if throttled and len(throttled) < len(outcome) and not self._recorder.durable:
            throttled = ()  # a part of a mail cannot wait: no queue keeps it
        if throttled and self._throttle is not None:
            self.error = self.error or self._throttle.error
        elif self._refusals is not None:
            outcome, error = self._refusals.judge(outcome)
            self.error = self.error or error
        self._record_first(outcome, throttled)

    def session_ended(self, *, stale: bool) -> bool:
        """The session took no more mail, and the mails without an answer are untouched. Return
        whether they may be sent over another session: the old one was ``stale``."""
        self._clear_ambiguous()
        if stale:
            self._send_again()
        return stale

    def session_throttled(self, reply: Reply | None) -> bool:
        """Return whether the relay ended the session by a reply that throttles. The mails without
        an answer are released untouched then, to be sent after the pause."""
        if reply is None or self._throttle is None or not self._pulled:
            return False
        envelope = self._pulled[0].envelope
        if not self._throttle.slows(envelope.id, reply, envelope.sender):
            return False
        self.error = self.error or self._throttle.error
        self._clear_ambiguous()
        self._send_again()
        while self._resend:
            _put_back(self._resend.popleft())
        return True

    def _send_again(self) -> None:
        self._resend.extendleft(reversed(self._pulled))
        self._pulled.clear()

    def _envelopes(self) -> Iterator[Envelope]:
        while (envelope := self.next_envelope()) is not None:
            yield envelope

    def _needs_sending(self, claim: IMailClaim) -> bool:
        """Return whether a claim has to be sent; settle it here if it need not be."""
        recorder, envelope = self._recorder, claim.envelope
        if not claim.todo:
            report_settled(claim, recorder.dispatcher)
            return False
        if claim.interrupted:
            outcome = _unanswered(
                claim, claim.ambiguous, 'a process stopped while it was sending this mail'
            )
            recorder.record_outcome(claim, outcome, self._name, self._tally)
            return False
        if envelope.expires is not None and recorder.clock() >= envelope.expires:
            expired = Verdict(
                'failed', None, 'expired: it could not be sent before its time was over'
            )
            outcome = dict.fromkeys(claim.todo, expired)
            recorder.record_outcome(claim, outcome, '', self._tally)
            return False
        return True

    def before_final_dot(self, envelope: Envelope, recipients: Iterable[str]) -> None:
        """See IMailSession.send."""
        claim = self._pulled[0]
        if claim.envelope.id != envelope.id:
            claim = next(claim for claim in self._pulled if claim.envelope.id == envelope.id)
        ambiguous = tuple(recipients)
        claim.mark_ambiguous(ambiguous)
        before = self._ambiguous.get(envelope.id)
        self._ambiguous[envelope.id] = (*before, *ambiguous) if before else ambiguous

    def _clear_ambiguous(self) -> None:
        """Undo the marks of mail without an answer: the relay did not accept it, even if its text
        was sent."""
        for claim in self._pulled:
            if self._ambiguous.pop(claim.envelope.id, None):
                claim.clear_ambiguous()

    def _record_first(self, outcome: Outcome, throttled: Collection[str] = ()) -> None:
        claim = self._pulled.popleft()
        if throttled and len(throttled) == len(claim.todo):
            if self._ambiguous.pop(claim.envelope.id, None):
                claim.clear_ambiguous()
            _put_back(claim)
            return
        try:
            self._recorder.record_outcome(
                claim, outcome, self._name, self._tally, throttled=throttled
            )
        except QueueError:
            raise  # the recorder keeps the claim
        except Exception:
            # The relay has answered, and neither the session nor the next mail is at fault.
            log.exception('%s: its outcome could not be handled', claim.envelope.message_id)
            claim.release()

    def session_failed(self, reason: str) -> None:
        """Settle the first mail, which failed the session, and those that follow it whose final
        dot may have been sent: they are ambiguous. The others are sent again."""
        if not self._pulled:
            raise MailerUnavailable(f'{self._name}: {reason}')
        first = self._pulled[0]
        while self._pulled:
            claim = self._pulled[0]
            ambiguous = self._ambiguous.get(claim.envelope.id, ())
            if claim is not first and not ambiguous:
                break
            self._record_first(_unanswered(claim, ambiguous, reason))
        self._send_again()

    def release(self) -> None:
        """Release the claims that were neither settled nor kept."""
        left = (*self._pulled, *self._resend)
        self._pulled.clear()
        self._resend.clear()
        for claim in left:
            claim.release()


def _put_back(claim: IMailClaim) -> None:
    """Release a claim whose mail was throttled. Those of a processor and of direct delivery have a
    place where it waits for the end of the pause."""
    getattr(claim, 'put_back', claim.release)()


def _for_todo(claim: IMailClaim) -> Envelope:
    """Return the envelope with those recipients alone that are still to be tried."""
    envelope: Envelope = claim.envelope
    if envelope.recipients == claim.todo:
        return envelope
    return replace(envelope, recipients=claim.todo)


def _unanswered(claim: IMailClaim, ambiguous: Sequence[str], reason: str) -> Outcome:
    """Return the outcome of a mail without an answer: deferred for all recipients but the
    ambiguous ones, which may have got it."""
    return {
        to: Verdict('ambiguous' if to in ambiguous else 'deferred', None, reason)
        for to in claim.todo
    }
