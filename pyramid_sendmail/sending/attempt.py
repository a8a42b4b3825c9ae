"""``attempt``: send claimed mail through a session, and settle each claim.

Direct delivery, the queue processor and its thread in a web process all call it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from ..envelope import Envelope, Outcome, Tally, Verdict
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailClaim, IMailSession
from .outcome import OutcomeRecorder, report_settled
from .relay_connection import RelayConnection

__all__ = ['attempt']

log = logging.getLogger(__name__)


def attempt(
    claims: Iterable[IMailClaim],
    connection: RelayConnection,
    recorder: OutcomeRecorder,
    tally: Tally,
) -> None:
    """Send each claimed mail once, pulling the claims one by one; settle and count each.

    Returns at the end of the claims, when the session has sent its batch, or when the session has
    failed: call it again for the rest. Raises MailerUnavailable if the relay cannot be used; mail
    that was not sent is released unchanged. Raises QueueError if an outcome could not be written.
    Each claim pulled is settled, released, or kept in ``recorder.unrecorded``.
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
        connection: RelayConnection,
        recorder: OutcomeRecorder,
        tally: Tally,
    ) -> None:
        self._source = iter(claims)
        self._connection = connection
        self._recorder = recorder
        self._tally = tally
        self._name = connection.name
        self._pulled: deque[IMailClaim] = deque()
        self._resend: deque[IMailClaim] = deque()
        self._ambiguous: dict[str, tuple[str, ...]] = {}
        """The recipients marked as ambiguous, by the envelope's id."""
        connection.in_flight = (self._pulled, self._resend)

    @property
    def holding(self) -> bool:
        """Whether claims wait to be sent over another session."""
        return bool(self._resend)

    def send(self, session: IMailSession) -> bool:
        """Send over this session; return whether there is mail to send over another one."""
        # Read the flag from the class: a forwarding wrapper must not inherit it.
        cooperative = getattr(type(session), 'cooperative', False)
        with self._recorder.cooperative_lock.held() if cooperative else nullcontext():
            return self._send(session)

    def _send(self, session: IMailSession) -> bool:
        self._name = self._connection.name
        outcomes = iter(session.send(self._envelopes(), before_final_dot=self._before_final_dot))
        while True:
            try:
                outcome = next(outcomes, None)
            except MailerUnavailable as error:
                self._clear_ambiguous()
                if not (error.stale and self._connection.mails_on_session):
                    raise
                self._connection.close()
                break
            except QueueError:
                raise
            except Exception as error:
                log.exception('%s: the session failed; its connection is closed', self._name)
                self._session_failed(' '.join(f'{type(error).__name__}: {error}'.split()))
                break
            if outcome is None:
                if self._pulled:
                    self._session_failed('the session ended without an answer')
                break
            self._connection.record_answer()
            self._record_first(outcome)
        self._resend.extendleft(reversed(self._pulled))
        self._pulled.clear()
        return self.holding

    def _envelopes(self) -> Iterator[Envelope]:
        while self._resend or not self._connection.is_used_up(len(self._pulled)):
            claim = self._resend.popleft() if self._resend else next(self._source, None)
            if claim is None:
                return
            if self._needs_sending(claim):
                self._pulled.append(claim)
                yield _for_todo(claim)

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

    def _before_final_dot(self, envelope: Envelope, recipients: Iterable[str]) -> None:
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

    def _record_first(self, outcome: Outcome) -> None:
        claim = self._pulled.popleft()
        self._recorder.record_outcome(claim, outcome, self._name, self._tally)

    def _session_failed(self, reason: str) -> None:
        """Settle the first mail, which failed the session, and those that follow it whose final
        dot may have been sent: they are ambiguous. The others are sent again."""
        self._connection.close()
        if not self._pulled:
            raise MailerUnavailable(f'{self._name}: {reason}')
        first = self._pulled[0]
        while self._pulled:
            claim = self._pulled[0]
            ambiguous = self._ambiguous.get(claim.envelope.id, ())
            if claim is not first and not ambiguous:
                break
            self._record_first(_unanswered(claim, ambiguous, reason))

    def release(self) -> None:
        """Release the claims that were neither settled nor kept."""
        left = (*self._pulled, *self._resend)
        self._pulled.clear()
        self._resend.clear()
        for claim in left:
            claim.release()


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
