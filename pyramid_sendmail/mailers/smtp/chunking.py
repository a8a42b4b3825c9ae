"""A session with several mails in flight, by CHUNKING (RFC 3030).

BDAT announces the length of a text, so the text need not wait for a reply: MAIL, RCPT, BDAT and
text leave for one mail after the other without waiting. The replies come in the same order and mean
what they mean in SMTPSession, except that the text has left already:

=============================  =============================================================
reply                          outcome
=============================  =============================================================
a session failure, or 452 to   MailerUnavailable if no mail behind it was accepted either; else
MAIL                           deferred
lost, and all of the text      ambiguous for all recipients that were not refused, and for the
may have left                  mails behind it
lost, and the text has not     MailerUnavailable: the mail is untouched
left; or the relay sent 421
before it hung up
=============================  =============================================================

A relay whose reply refused the transaction reads the text that comes anyway, discards it and
refuses it as well. RSET stands in front of each MAIL and costs no round trip.

The first mail waits for the replies to its RCPTs before its text leaves: if the connection has
died unnoticed, no mail is in doubt. Large mail, and mail to many recipients, goes by DATA while
nothing is in flight; so does the rest of a mail to more recipients than the relay takes at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...envelope import BLOCK_SIZE, Outcome, Reply, Verdict
from ...exceptions import MailerUnavailable, QueueError
from .connection import ConnectionLost
from .extensions import (
    final_verdict,
    is_session_failure,
    is_session_full,
    session_failure_reason,
)
from .session import SMTPSession
from .transaction import MAX_PIPELINED_COMMANDS, Command, EnvelopeSource, MailTransaction

__all__ = ['MAX_BYTES_IN_FLIGHT', 'ChunkingSession']

MAX_BYTES_IN_FLIGHT = 4 * BLOCK_SIZE
"""Bytes of text in flight at most: what becomes ambiguous if the connection is lost."""

_COMMANDS_BESIDE_RCPT = 3  # RSET, MAIL, BDAT


@dataclass(slots=True)
class InFlight:
    """A mail whose text has left, or is about to.

    ``replies_due``: how many replies are still to come. ``may_have_left``: whether the last byte
    of its text may have left. ``session_failure``: a reason that is not the mail's fault, and
    whether the connection was stale.
    """

    mail: MailTransaction
    replies_due: int = 0
    may_have_left: bool = True
    session_failure: tuple[str, bool] | None = None

    @property
    def settled(self) -> bool:
        return not (self.replies_due or self.session_failure or self.mail.todo)

    def is_untouched(self, has_answered: bool) -> bool:
        """See MailTransaction."""
        return self.session_failure is not None and self.mail.is_untouched(has_answered)


@dataclass(slots=True)
class Flight:
    """The mails in flight, in order, and what has ended the flight.

    ``complete``: no more mail joins. ``closing_reply``: the 421 by which the relay announced that
    it closes. ``queue_error``: raised by the queue; raised again when every mail has its outcome.
    """

    source: EnvelopeSource
    mails: deque[InFlight] = field(default_factory=deque)
    complete: bool = False
    closing_reply: str = ''
    lost: ConnectionLost | None = None
    hung_up: bool = False
    queue_error: QueueError | None = None

    @property
    def bytes_in_flight(self) -> int:
        return sum(each.mail.envelope.size for each in self.mails if each.replies_due)


class ChunkingSession(SMTPSession):
    """See SMTPSession; for a relay that offers PIPELINING and CHUNKING."""

    def _send_mail(self, mail: MailTransaction, source: EnvelopeSource) -> Iterator[Outcome]:
        if not (mail.todo and self._may_share(mail)):
            yield from super()._send_mail(mail, source)
            return
        flight = Flight(source)
        try:
            self._ask_recipients(mail)
            if mail.accepted and self._end_reason is None:
                self._fill(flight, self._join(flight, mail, mail.accepted))
        except MailerUnavailable:
            raise
        except BaseException:
            self.abandon()
            raise
        if not flight.mails:
            yield mail.outcome
            return
        yield from self._pump(flight)

    def _next_pipelined(
        self, mail: MailTransaction, source: EnvelopeSource
    ) -> MailTransaction | None:
        return mail if mail.todo else None

    def _may_share(self, mail: MailTransaction) -> bool:
        """Return whether the mail is small enough to be in flight with others."""
        recipients = len(mail.todo)
        return (
            mail.envelope.size <= BLOCK_SIZE
            and recipients <= self._options.max_recipients
            and recipients + _COMMANDS_BESIDE_RCPT <= MAX_PIPELINED_COMMANDS
        )

    def _ask_recipients(self, mail: MailTransaction) -> None:
        """Send MAIL and RCPT for the first mail and read the replies."""
        try:
            self._prepare_commands(mail, data=False)
            self._exchange(mail)
            mail.opened = False
            self._has_answered = self._has_answered or not mail.accepted
        except ConnectionLost as lost:
            self._on_connection_lost(mail, lost)

    def _pump(self, flight: Flight) -> Iterator[Outcome]:
        """Keep the flight full, read replies, and yield each mail's outcome in order."""
        while True:
            while flight.mails and flight.mails[0].settled:
                yield flight.mails.popleft().mail.outcome
            try:
                if not (flight.complete or self._connection.unread):
                    self._fill(flight)
                if not self._awaiting_reply:
                    break
                self._read_next_reply(flight)
            except BaseException:
                self.abandon()
                raise
        untouched = self._finish(flight)
        for each in flight.mails:
            if each.mail.todo and self._end_reason is not None:
                self._defer_rest(each.mail, self._end_reason[0])
            try:
                # The rest of a mail to many recipients goes by DATA, now that nothing is in flight.
                yield from super()._send_mail(each.mail, flight.source)
            except QueueError as error:
                # The mails behind it have their replies: yield their outcomes first.
                flight.queue_error = flight.queue_error or error
        if flight.queue_error is not None:
            raise flight.queue_error
        if untouched is not None:
            reason, stale = untouched
            self._unavailable(reason, stale=stale)

    def _fill(self, flight: Flight, texts: bytes = b'') -> None:
        """Write ``texts``, and as many mails behind it as there is room for."""
        group, length = [texts], len(texts)
        ends = [(each, length) for each in flight.mails if texts]
        try:
            while (mail := self._next_to_join(flight)) is not None:
                text = self._join(flight, mail, mail.todo)
                group.append(text)
                length += len(text)
                ends.append((flight.mails[-1], length))
        except QueueError as error:
            flight.queue_error, flight.complete = error, True
        if length:
            try:
                self._connection.write(b''.join(group))
            except ConnectionLost as lost:
                flight.lost, flight.complete = lost, True
                for each, end in ends:
                    each.may_have_left = end <= length - lost.unsent

    def _next_to_join(self, flight: Flight) -> MailTransaction | None:
        """Take the next mail, if there is one now and it may join the flight."""
        mail = None if flight.complete else flight.source.peek()
        if mail is None or not self._may_share(mail):
            flight.complete = True
        elif (
            len(flight.mails) < self._options.window
            and len(self._awaiting_reply) + len(mail.todo) + _COMMANDS_BESIDE_RCPT
            <= MAX_PIPELINED_COMMANDS
            and flight.bytes_in_flight + mail.envelope.size <= MAX_BYTES_IN_FLIGHT
        ):
            return flight.source.take()
        return None

    def _join(self, flight: Flight, mail: MailTransaction, recipients: list[str]) -> bytes:
        """Add a mail to the flight and return its commands and text.

        ``before_final_dot`` is called before they are returned.
        """
        if not recipients:
            # All of them were rejected before sending.
            flight.mails.append(InFlight(mail))
            return b''
        flight.source.before_final_dot(mail, recipients)
        if not mail.accepted:
            self._prepare_commands(mail, data=False, reset=True)
            mail.opened = False
        raw = mail.envelope.raw
        self._unsent.append(Command('BDAT', b'BDAT %d LAST\r\n' % len(raw)))
        flight.mails.append(InFlight(mail, len(self._unsent)))
        lines = [command.line for command in self._unsent]
        self._awaiting_reply.extend(self._unsent)
        self._unsent.clear()
        return b''.join((*lines, raw))

    def _read_next_reply(self, flight: Flight) -> None:
        each = next(each for each in flight.mails if each.replies_due)
        command = self._awaiting_reply.popleft()
        timeout = self._timeouts.final if command.verb == 'BDAT' else self._timeouts.command
        if flight.lost is not None or flight.closing_reply:
            timeout = self._timeouts.quit
        try:
            reply = self._connection.reply(timeout)
            self._check_nothing_unread()
            self._apply_flight_reply(flight, each, command, reply)
            each.replies_due -= 1
        except ConnectionLost as lost:
            flight.lost, flight.complete = flight.lost or lost, True
            flight.hung_up = lost.hung_up
            self._awaiting_reply.clear()

    def _apply_flight_reply(
        self, flight: Flight, each: InFlight, command: Command, reply: Reply
    ) -> None:
        """Record what a reply means for a mail in flight."""
        verb, mail = command.verb, each.mail
        if reply.code == 421:
            flight.closing_reply = flight.closing_reply or f'{verb} was answered {reply}'
            flight.complete = True
        if reply.code // 100 not in (2, 4, 5):
            raise ConnectionLost(f'the relay answered {verb} with {reply}')
        if verb == 'BDAT':
            self._has_answered, self._in_transaction = True, reply.code >= 400
            recipients, mail.accepted = mail.accepted, []
            if recipients:
                mail.ambiguous = True
                mail.set_verdict(recipients, final_verdict(reply))
        elif verb == 'RCPT' and not self._in_transaction:
            return  # MAIL was refused, and so is RCPT
        elif is_session_failure(reply) or (verb == 'MAIL' and is_session_full(reply)):
            each.session_failure = each.session_failure or (
                session_failure_reason(verb, reply, secure=self._connection.secure),
                reply.code in (421, 452),
            )
            self._in_transaction = self._in_transaction and verb == 'RCPT'
            flight.complete = True
        else:
            self._apply_reply(mail, command, reply)
            flight.complete = flight.complete or bool(mail.todo)

    def _finish(self, flight: Flight) -> tuple[str, bool] | None:
        """Give each mail a verdict, except the untouched ones at the end, which leave the flight.

        No more replies will come. Return why those are untouched, and whether the connection was
        stale.
        """
        mails, reason = flight.mails, f'the connection was lost: {flight.lost}'
        for each in mails:
            if each.replies_due and not each.mail.decided:
                self._lost_in_flight(flight, each, reason)
        failure = next((each.session_failure for each in mails if each.session_failure), None)
        if flight.lost is not None:
            self._drop(reason)
        elif flight.closing_reply or failure:
            self._connection.lost = bool(flight.closing_reply)
            end_reason, stale = failure or (flight.closing_reply, True)
            self._end(end_reason, stale=stale)
        behind = []
        while mails and (mails[-1].is_untouched(self._has_answered) or not mails[-1].mail.asked):
            behind.append(mails.pop())
        untouched = [each for each in behind if each.session_failure]
        if not untouched:
            # Only mail that was rejected before sending: it has its verdicts.
            mails.extend(reversed(behind))
        for each in mails:
            if each.session_failure:
                verdict = Verdict('deferred', None, f'{self.name}: {each.session_failure[0]}')
                each.mail.set_missing_verdicts(each.mail.asked, verdict)
        return untouched[-1].session_failure if untouched else None

    def _lost_in_flight(self, flight: Flight, each: InFlight, reason: str) -> None:
        """The connection was lost before a mail had its last reply."""
        if not each.may_have_left:
            each.session_failure = each.session_failure or (reason, True)
        elif flight.closing_reply and flight.hung_up:
            each.session_failure = each.session_failure or (flight.closing_reply, True)
        else:
            each.session_failure = None
            verdict = Verdict(
                'ambiguous', None, f'{self.name}: no answer to the whole message: {flight.lost}'
            )
            each.mail.set_missing_verdicts(each.mail.asked, verdict)
