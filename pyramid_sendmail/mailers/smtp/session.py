"""A session by SMTP or LMTP: mail after mail on one connection (RFC 5321, 3.3; RFC 2033).

What a reply means for the mail's recipients and for the session:

=============================  =============================================================
reply                          outcome
=============================  =============================================================
421, 530, 534, 535, 538,       the session ends with MailerUnavailable, and the mail is
454 4.7.x, up to DATA          untouched; after a refused recipient on a fresh connection:
                               deferred
452 to MAIL                    the session has sent as much as the relay allows: a stale
                               connection, if it has answered for a mail before; else deferred
lost before MAIL's reply       MailerUnavailable
lost before the final dot      a stale connection, MailerUnavailable, if it has answered for a
                               mail before; else deferred
lost after the final dot       ambiguous for the accepted recipients
4xx, 5xx to MAIL               deferred, failed: every recipient
4xx, 5xx to RCPT               deferred, failed: this recipient
4xx, 5xx to DATA, final dot    deferred, failed: the accepted recipients
2xx to the final dot           delivered: the accepted recipients
=============================  =============================================================

Only the first digit of other codes counts (RFC 5321, 4.2.1). A time-out, a line that is no reply,
a reply that makes no sense in its place and one without a command count as a lost connection. By
LMTP each accepted recipient has a reply of its own to the final dot.

With PIPELINING commands leave in groups, and their replies are read one by one (RFC 2920). Without
it a group is one command. Commands, replies and outcomes are the same both ways, except that with
PIPELINING a command may leave that an earlier reply makes needless. The next mail's commands leave
together with the final dot, so that a mail costs one round trip.

A mail to more recipients than the relay takes at once needs several mail transactions. From the
second on, a lost connection or a session failure defers the recipients that are left: the mail is
not untouched any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

from zope.interface import implementer

from ...envelope import Envelope, Outcome, Reply, Verdict
from ...exceptions import MailerUnavailable, QueueError
from ...interfaces import IMailSession
from ..session import BeforeFinalDot
from .connection import BLOCK_BYTES, ConnectionLost, SMTPConnection
from .dot_stuffing import stuffed
from .extensions import (
    Extensions,
    final_verdict,
    is_session_failure,
    is_session_full,
    is_too_many_recipients,
    refusal,
    session_failure_reason,
)
from .options import DEFAULT_SESSION, SessionOptions, Timeouts
from .transaction import MAX_PIPELINED_COMMANDS, Command, EnvelopeSource, MailTransaction

__all__ = ['SMTPSession']

_DATA = Command('DATA', b'DATA\r\n')

_END_BYTES = 5  # CRLF.CRLF


@implementer(IMailSession)
class SMTPSession:
    """A session on a connection that is past EHLO and AUTH.

    ``extensions``: the keywords of EHLO, with their parameters. ``name``: the mailer's. ``lmtp``:
    the relay replies to the final dot for each accepted recipient (RFC 2033, 4.2).
    """

    cooperative = True  # see IMailSession

    def __init__(
        self,
        connection: SMTPConnection,
        *,
        name: str,
        extensions: Mapping[str, str],
        timeouts: Timeouts,
        options: SessionOptions = DEFAULT_SESSION,
        lmtp: bool = False,
    ) -> None:
        self.name = name
        self._connection = connection
        self._extensions = Extensions(extensions, options)
        self._timeouts = timeouts
        self._options = options
        self._lmtp = lmtp
        self._max_pipelined = MAX_PIPELINED_COMMANDS if self._extensions.pipelining else 1
        self._unsent: deque[Command] = deque()
        self._awaiting_reply: deque[Command] = deque()
        self._in_transaction = False  # the relay holds a mail transaction
        self._has_answered = False  # the relay has answered for a mail
        # Why nothing more can be sent, and whether the connection was stale.
        self._end_reason: tuple[str, bool] | None = None

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: BeforeFinalDot | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        if self._awaiting_reply:
            self._drop('an earlier send was not finished')
        rejected = self._extensions.rejected_before_sending
        source = EnvelopeSource(envelopes, rejected, before_final_dot)
        while (mail := source.take()) is not None:
            if self._end_reason is not None:
                reason, stale = self._end_reason
                raise MailerUnavailable(f'{self.name}: {reason}', stale=stale)
            yield from self._send_mail(mail, source)

    def close(self) -> None:
        """See IMailSession."""
        if self._awaiting_reply:
            self.abandon()
        else:
            self._connection.quit(self._timeouts.quit)
            self._end('the session is closed', stale=True)

    def abandon(self) -> None:
        """See IMailSession."""
        self._connection.close()
        self._end('the session is closed', stale=True)

    def _send_mail(self, mail: MailTransaction, source: EnvelopeSource) -> Iterator[Outcome]:
        """Send a mail, in as many transactions as it takes, and yield its outcome."""
        try:
            while mail.todo or mail.opened:
                self._run_transaction(mail, source)
        except MailerUnavailable:
            raise
        except QueueError as error:
            self.abandon()
            if mail.verdicts and mail.ambiguous:
                # Some recipients have their replies: these count, so yield before raising.
                self._defer_rest(mail, str(error))
                yield mail.outcome
            raise
        except BaseException:
            # The transfer stopped in the middle of a message.
            self.abandon()
            raise
        yield mail.outcome

    def _run_transaction(self, mail: MailTransaction, source: EnvelopeSource) -> None:
        """Run one mail transaction and add its verdicts."""
        try:
            self._prepare_commands(mail, data=True)
            self._exchange(mail)
            mail.opened = False
            if mail.accepted:
                self._send_text(mail, source)
            self._has_answered = self._has_answered or not (mail.todo or mail.opened)
        except ConnectionLost as lost:
            self._on_connection_lost(mail, lost)

    def _on_connection_lost(self, mail: MailTransaction, lost: ConnectionLost) -> None:
        """The connection broke during the envelope commands or the text."""
        self._connection.lost = True  # QUIT might be taken for text
        reason = f'the connection was lost: {lost}'
        if mail.is_untouched(self._has_answered) and (self._has_answered or not mail.answered):
            self._unavailable(reason, stale=self._has_answered)
        self._defer_rest(mail, reason)

    def _prepare_commands(self, mail: MailTransaction, *, data: bool, reset: bool = False) -> None:
        """Queue the commands of the mail's next transaction, unless that was done already.

        ``data``: DATA as well. ``reset``: RSET even if it is not needed.
        """
        if mail.opened:
            return
        mail.opened = True
        limit = self._options.max_recipients
        mail.asked, mail.todo = mail.todo[:limit], mail.todo[limit:]
        if self._in_transaction or reset:
            # The relay still holds a mail that ended before its text.
            self._unsent.append(Command('RSET', b'RSET\r\n'))
        self._unsent.append(Command('MAIL', self._extensions.mail(mail.envelope, mail.asked)))
        for recipient in mail.asked:
            self._unsent.append(Command('RCPT', self._extensions.rcpt(recipient), recipient))
        if data:
            self._unsent.append(_DATA)

    def _next_group(self, mail: MailTransaction) -> bytes:
        """Return the command lines that may leave now."""
        unsent, awaiting = self._unsent, self._awaiting_reply
        if unsent and unsent[0].verb == 'DATA' and not (awaiting or mail.accepted):
            unsent.clear()  # no recipient was accepted (RFC 5321, 4.1.1.4)
        room = self._max_pipelined - len(awaiting)
        group = [unsent.popleft() for _ in range(min(room, len(unsent)))]
        awaiting.extend(group)
        return b''.join([command.line for command in group])

    def _exchange(self, mail: MailTransaction) -> None:
        """Send the commands up to DATA and read their replies."""
        unsent, awaiting = self._unsent, self._awaiting_reply
        self._check_nothing_unread()
        half = self._max_pipelined // 2
        while True:
            if unsent and len(awaiting) <= half and (group := self._next_group(mail)):
                self._connection.write(group)
            if not awaiting:
                return
            command = awaiting.popleft()
            if mail.decided:
                self._discard_reply(command)
                self._check_nothing_unread()
            else:
                self._apply_reply(mail, command, self._read_reply(mail, command))

    def _read_reply(self, mail: MailTransaction, command: Command) -> Reply:
        """Return the reply to a command: one that accepts it, or a 4xx or 5xx.

        Raises ConnectionLost, or MailerUnavailable if the reply ends the session.
        """
        data = command.verb == 'DATA'
        reply = self._connection.reply(self._timeouts.data if data else self._timeouts.command)
        if reply.code // 100 == (3 if data else 2):
            self._check_nothing_unread(text_follows=data)
            return reply
        if is_session_failure(reply):
            secure, stale = self._connection.secure, reply.code == 421
            reason = session_failure_reason(command.verb, reply, secure=secure)
            self._connection.lost = stale or bool(self._awaiting_reply)
            if mail.is_untouched(self._has_answered):
                self._unavailable(reason, stale=stale)
            self._end(reason, stale=stale)
            raise ConnectionLost(reason)
        if command.verb == 'MAIL' and self._has_answered and is_session_full(reply):
            self._connection.lost = bool(self._awaiting_reply)
            self._unavailable(f'MAIL was answered {reply}', stale=True)
        if reply.code < 400:
            raise ConnectionLost(f'the relay answered {command.verb} with {reply}')
        self._check_nothing_unread()
        return reply

    def _check_nothing_unread(self, *, text_follows: bool = False) -> None:
        """Raise ConnectionLost if the relay sent a reply too many: it would be taken for the reply
        to the next command. Allowed are 421, at any time (RFC 5321, 3.8), and a refusal where
        ``text_follows``."""
        if self._awaiting_reply or not (unread := self._connection.unread) or unread == b'421':
            return
        if not (text_follows and unread[:1] in (b'4', b'5')):
            raise ConnectionLost('the relay sent more replies than it got commands')

    def _apply_reply(self, mail: MailTransaction, command: Command, reply: Reply) -> None:
        """Record what a reply means for the mail."""
        positive = reply.code < 400
        if command.verb == 'RSET':
            if not positive:
                raise ConnectionLost(f'the relay answered RSET with {reply}')
            self._in_transaction = False
        elif command.verb == 'MAIL':
            mail.answered = True
            self._in_transaction = positive
            if not positive:
                self._unsent.clear()
                mail.set_verdict(mail.asked, refusal(reply))
        elif command.verb == 'RCPT':
            if positive:
                mail.accepted.append(command.recipient)
            elif is_too_many_recipients(reply) and mail.accepted:
                mail.asked.remove(command.recipient)
                mail.todo.append(command.recipient)
            else:
                # In a later transaction of this mail 552 still means too many recipients.
                too_many = is_too_many_recipients(reply) and mail.ambiguous
                mail.verdicts[command.recipient] = refusal(reply, too_many=too_many)
        elif not positive:
            mail.set_verdict(mail.accepted, refusal(reply))
            mail.accepted = []

    def _discard_reply(self, command: Command) -> None:
        """Read a reply that changes nothing for the mail, though it may end the session."""
        try:
            reply = self._connection.reply(self._timeouts.command)
            if reply.code == 421:
                raise ConnectionLost(f'{command.verb} was answered {reply}')
            if command.verb == 'DATA' and reply.code // 100 == 3:
                # The relay waits for a text without recipients: send an empty one (RFC 2920, 3.1).
                if self._lmtp:
                    raise ConnectionLost('the relay accepted DATA without a recipient')
                self._in_transaction = True
                self._connection.write(b'.\r\n')
                self._connection.reply(self._timeouts.final)
        except ConnectionLost as lost:
            self._drop(f'the connection was lost: {lost}')

    def _send_text(self, mail: MailTransaction, source: EnvelopeSource) -> None:
        """Send the text and, in the same write, the commands that may follow the final dot."""
        recipients, mail.accepted = tuple(mail.accepted), []
        pieces = stuffed(mail.envelope.blocks())
        end = 0
        cut_short = None
        try:
            text = next(pieces)
            for piece in pieces:
                self._connection.write(text)
                text = piece
            # The final dot leaves with the last of the text: one packet for a small mail.
            if last := max(len(text) - BLOCK_BYTES, 0):
                self._connection.write(memoryview(text)[:last])
            following_mail = self._next_pipelined(mail, source)
            source.before_final_dot(mail, recipients)
            # From here on the queue knows that the mail may have left.
            mail.ambiguous = True
            self._in_transaction = False
            following = b''
            if following_mail is not None and following_mail.todo:
                self._prepare_commands(following_mail, data=True)
                following = self._next_group(following_mail)
            end = _END_BYTES + len(following)
            self._connection.write(b''.join((text[last:], following)))
        except ConnectionLost as lost:
            cut_short = lost
            if lost.unsent >= end:
                verdict = self._early_reply()
                if verdict is None:
                    raise
                mail.set_verdict(recipients, verdict)
                self._defer_rest(mail, f'the connection was lost: {lost}')
                return
        self._read_final_replies(mail, recipients, cut_short)

    def _next_pipelined(
        self, mail: MailTransaction, source: EnvelopeSource
    ) -> MailTransaction | None:
        """Return the mail whose commands may leave with the text of this one."""
        # If an LMTP service sent too few replies to the text, the replies to the commands behind
        # it would be taken for those of recipients.
        if self._max_pipelined > 1 and not self._lmtp:
            return mail if mail.todo else source.peek()
        return None

    def _early_reply(self) -> Verdict | None:
        """Return the relay's refusal of a text that it stopped reading; None if there is none."""
        try:
            reply = self._connection.reply(self._timeouts.quit)
        except ConnectionLost:
            return None
        return None if reply.code < 400 or reply.code == 421 else refusal(reply)

    def _read_final_replies(
        self, mail: MailTransaction, recipients: tuple[str, ...], cut_short: ConnectionLost | None
    ) -> None:
        """Read the reply to the final dot: one, or by LMTP one for each recipient.

        ``cut_short``: the error of a write that may have sent part of the final dot.
        """
        timeout = self._timeouts.final if cut_short is None else self._timeouts.quit
        unanswered = list(recipients)
        closing = cut_short
        try:
            while unanswered:
                reply = self._connection.reply(timeout)
                positive = reply.code // 100 == 2
                if reply.code // 100 == 3 or (positive and cut_short is not None):
                    raise ConnectionLost(f'the relay answered the final dot with {reply}')
                if reply.code == 421:
                    closing = closing or ConnectionLost(f'the relay answered {reply}')
                answered = [unanswered.pop(0)] if self._lmtp else unanswered
                mail.set_verdict(answered, final_verdict(reply))
                if not self._lmtp:
                    break
        except ConnectionLost as lost:
            reason = f'{self.name}: no answer to the whole message: {cut_short or lost}'
            mail.set_verdict(unanswered, Verdict('ambiguous', None, reason))
            closing = lost
        if closing is not None:
            self._defer_rest(mail, f'the connection was lost: {closing}')

    def _defer_rest(self, mail: MailTransaction, reason: str) -> None:
        """Defer the recipients without a reply, and close the connection."""
        verdict = Verdict('deferred', None, f'{self.name}: {reason}')
        mail.set_missing_verdicts(mail.envelope.recipients, verdict)
        mail.todo, mail.opened = [], False
        self._drop(reason)

    def _unavailable(self, reason: str, *, stale: bool) -> NoReturn:
        """End the session and raise MailerUnavailable."""
        stale = stale and self._has_answered
        self._end(reason, stale=stale)
        raise MailerUnavailable(f'{self.name}: {reason}', stale=stale)

    def _drop(self, reason: str) -> None:
        """Close the connection; the next mail needs another."""
        self._connection.close()
        self._end(reason, stale=True)

    def _end(self, reason: str, *, stale: bool) -> None:
        """Send nothing more. The first reason counts."""
        self._end_reason = self._end_reason or (reason, stale)
        self._awaiting_reply.clear()
        self._unsent.clear()
