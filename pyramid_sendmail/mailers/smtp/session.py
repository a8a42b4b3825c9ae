"""A conversation by SMTP or LMTP: mail after mail on one connection (RFC 5321, 3.3; RFC 2033).

What an answer means, for the mail's recipients and for the connection:

=============================  =============================================================
answer                         outcome
=============================  =============================================================
421, 530, 534, 535, 538,       the road is closed: MailerUnavailable, nobody is to blame; but
454 4.7.x, up to DATA          behind a refused recipient, on a fresh connection: deferred
452 at MAIL                    the session has had its share: a stale connection, if it has
                               answered for a mail before; else deferred
lost before MAIL's answer      MailerUnavailable
lost before the final dot      a stale connection, MailerUnavailable, if it has answered for a
                               mail before; else deferred
lost after the final dot       ambiguous for the accepted recipients
4xx, 5xx at MAIL               deferred, failed: every recipient
4xx, 5xx at RCPT               deferred, failed: this recipient
4xx, 5xx at DATA, final dot    deferred, failed: the accepted recipients
2xx at the final dot           delivered: the accepted recipients
=============================  =============================================================

Only the first digit of other codes counts (RFC 5321, 4.2.1). A time-out, a reply that is none or
makes no sense where it came, and one that nobody has asked for, is a lost line. By LMTP each
accepted recipient has an answer of its own to the final dot.

Commands leave in groups as large as the window, and their answers are read one by one
(RFC 2920). A window of one is the lock-step of relays without PIPELINING: what is said, what is
read and what comes of it are the same, but that a command may have left by the time the answer
before it makes it needless. With a window, the next mail's commands leave together with the
final dot: a mail costs one round trip.

A mail to more recipients than the relay takes in one go needs several mail transactions. From
the second on, a lost line or a closed road defers those who are left, since the mail is not
untouched any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn

from zope.interface import implementer

from ...envelope import Envelope, Outcome, Reply, Verdict
from ...exceptions import MailerUnavailable, QueueError
from ...interfaces import IMailSession
from .connection import BLOCK, ConnectionLost, SMTPConnection, Timeouts
from .dot_stuffing import stuffed
from .extensions import Extensions, SessionOptions, closes, is_crowded, refusal
from .transaction import Command, EnvelopeSource, MailTransaction

__all__ = ['WINDOW', 'SMTPSession', 'Sealing']

Sealing = Callable[[Envelope, tuple[str, ...]], object]

WINDOW = 64
"""Commands that wait for an answer at most. Their answers, of 512 octets each, must fit into the
buffers of a connection, or both sides would wait for the other to read (RFC 2920, 3.1)."""

_END = 5  # octets of CRLF.CRLF

_OPTIONS = SessionOptions()
_DATA = Command('DATA', b'DATA\r\n')


@implementer(IMailSession)
class SMTPSession:
    """One connection to a relay that has greeted us and knows us.

    ``extensions``: EHLO's keywords, with their parameters. ``name``: the mailer's. ``lmtp``: the
    relay answers the final dot for each accepted recipient (RFC 2033, 4.2).
    """

    cooperative = True
    """See IMailSession."""

    def __init__(
        self,
        connection: SMTPConnection,
        *,
        name: str,
        extensions: Mapping[str, str],
        timeouts: Timeouts,
        options: SessionOptions = _OPTIONS,
        lmtp: bool = False,
    ) -> None:
        self.name = name
        self._wire = connection
        self._extensions = Extensions(extensions, options)
        self._timeouts = timeouts
        self._lmtp = lmtp
        self._window = WINDOW if self._extensions.pipelining else 1
        self._max_recipients = options.max_recipients
        self._unsaid: deque[Command] = deque()
        self._said: deque[Command] = deque()  # and not answered
        self._begun = False  # the relay holds a mail transaction
        self._carried = False  # the relay has answered for a mail: the road was open
        self._over: tuple[str, bool] | None = None  # why nothing more can be sent, and if stale

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: Sealing | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        if self._said:
            self._break('another conversation was left in the middle')
        source = EnvelopeSource(envelopes, self._extensions.unfit)
        while (mail := source.take()) is not None:
            if self._over is not None:
                reason, stale = self._over
                raise MailerUnavailable(f'{self.name}: {reason}', stale=stale)
            yield from self._turn(mail, source, before_final_dot)

    def _turn(
        self, mail: MailTransaction, source: EnvelopeSource, before_final_dot: Sealing | None
    ) -> Iterator[Outcome]:
        """Send one mail, in as many transactions as it takes, and yield what came of it."""
        try:
            while mail.todo or mail.opened:
                self._transact(mail, source, before_final_dot)
        except MailerUnavailable:
            raise
        except QueueError as error:
            self.abandon()
            if mail.verdicts and mail.ambiguous:
                # Some have had their answer: it counts, before the trouble is told.
                self._lose(mail, str(error))
                yield mail.outcome
            raise
        except BaseException:
            # Half a mail is on the line, and nobody knows which half.
            self.abandon()
            raise
        yield mail.outcome

    def close(self) -> None:
        """See IMailSession."""
        if self._said:
            self.abandon()
        else:
            self._wire.farewell(self._timeouts.quit)
            self._end('the session is closed', stale=True)

    def abandon(self) -> None:
        """See IMailSession."""
        self._wire.close()
        self._end('the session is closed', stale=True)

    def _transact(
        self, mail: MailTransaction, source: EnvelopeSource, before_final_dot: Sealing | None
    ) -> None:
        """Run one mail transaction and add its verdicts."""
        try:
            self._open(mail)
            self._converse(mail)
            mail.opened = False
            if mail.accepted:
                self._transfer(mail, source, before_final_dot)
            self._carried = self._carried or not (mail.todo or mail.opened)
        except ConnectionLost as lost:
            self._bear(mail, lost)

    def _bear(self, mail: MailTransaction, lost: ConnectionLost) -> None:
        """The line was lost while the mail was talked about, and before its end has left."""
        self._wire.lost = True  # nobody knows what QUIT would be taken for
        reason = f'the connection was lost: {lost}'
        if self._untouched(mail) and (self._carried or not mail.answered):
            self._unavailable(reason, stale=self._carried)
        self._lose(mail, reason)

    def _open(self, mail: MailTransaction, *, data: bool = True, reset: bool = False) -> None:
        """Have the commands of the next mail transaction ready to be said: with DATA, and with
        RSET where it is needed or wanted."""
        if not mail.opened:
            mail.opened = True
            mail.asked, mail.todo = (
                mail.todo[: self._max_recipients],
                mail.todo[self._max_recipients :],
            )
            if self._begun or reset:
                # The relay still holds a mail that ended before its text.
                self._unsaid.append(Command('RSET', b'RSET\r\n'))
            self._unsaid.append(Command('MAIL', self._extensions.mail(mail.envelope, mail.asked)))
            for recipient in mail.asked:
                self._unsaid.append(Command('RCPT', self._extensions.rcpt(recipient), recipient))
            if data:
                self._unsaid.append(_DATA)

    def _group(self, mail: MailTransaction) -> bytes:
        """The lines that may leave now."""
        unsaid, said = self._unsaid, self._said
        if unsaid and unsaid[0].verb == 'DATA' and not (said or mail.accepted):
            unsaid.clear()  # there is nobody to get it (RFC 5321, 4.1.1.4)
        room = self._window - len(said)
        group = [unsaid.popleft() for _ in range(min(room, len(unsaid)))]
        said.extend(group)
        return b''.join([command.line for command in group])

    def _converse(self, mail: MailTransaction) -> None:
        """Say what there is to say up to DATA, and hear the answers."""
        unsaid, said = self._unsaid, self._said
        self._expect_silence()
        while True:
            if unsaid and len(said) <= self._window // 2:
                group = self._group(mail)
                if group:
                    self._wire.write(group)
            if not said:
                return
            command = said.popleft()
            if mail.decided:
                self._disregard(command)
                self._expect_silence()
            else:
                self._heed(mail, command, self._answer(mail, command))

    def _answer(self, mail: MailTransaction, command: Command) -> Reply:
        """The answer to a command: of the first digit that it asks for, or a refusal.

        Raises ConnectionLost, or MailerUnavailable where the answer closes the road.
        """
        data = command.verb == 'DATA'
        reply = self._wire.reply(self._timeouts.data if data else self._timeouts.command)
        if reply.code // 100 == (3 if data else 2):
            self._expect_silence(text=data)
            return reply
        if closes(reply):
            reason, stale = f'{command.verb} was answered {reply}', reply.code == 421
            self._wire.lost = stale or bool(self._said)
            if self._untouched(mail):
                self._unavailable(reason, stale=stale)
            self._end(reason, stale=stale)
            raise ConnectionLost(reason)
        if command.verb == 'MAIL' and reply.code == 452 and is_crowded(reply) and self._carried:
            # The session has had its share of mail, as some relays say.
            self._wire.lost = bool(self._said)
            self._unavailable(f'MAIL was answered {reply}', stale=True)
        if reply.code < 400:
            raise ConnectionLost(f'the relay answered {command.verb} with {reply}')
        self._expect_silence()
        return reply

    def _expect_silence(self, *, text: bool = False) -> None:
        """What a relay says unasked would be taken for the answer to what is asked next: to the
        whole message, where it says yes to DATA and once more. But 421 may come at any time (RFC
        5321, 3.8), and a refusal before the ``text`` it is about."""
        if self._said or not (unread := self._wire.unread) or unread == b'421':
            return
        if not (text and unread[:1] in (b'4', b'5')):
            raise ConnectionLost('the relay has said more than it was asked')

    def _untouched(self, mail: MailTransaction) -> bool:
        """Whether the mail may be sent once more as if nothing had been.

        On a connection of its own it is not, once somebody was refused: relays hang up on whoever
        names too many strangers, and would do so for ever.
        """
        return not mail.ambiguous and (self._carried or not mail.refused)

    def _heed(self, mail: MailTransaction, command: Command, reply: Reply) -> None:
        positive = reply.code < 400
        if command.verb == 'RSET':
            if not positive:
                raise ConnectionLost(f'the relay answered RSET with {reply}')
            self._begun = False
        elif command.verb == 'MAIL':
            mail.answered = True
            self._begun = positive
            if not positive:
                self._unsaid.clear()
                mail.give(mail.asked, refusal(reply))
        elif command.verb == 'RCPT':
            if positive:
                mail.accepted.append(command.recipient)
            elif is_crowded(reply) and mail.accepted:
                mail.asked.remove(command.recipient)
                mail.todo.append(command.recipient)
            else:
                # Behind a crowd, 552 still says that there were too many.
                crowded = is_crowded(reply) and mail.ambiguous
                mail.verdicts[command.recipient] = refusal(reply, crowded=crowded)
        elif not positive:
            mail.give(mail.accepted, refusal(reply))
            mail.accepted = []

    def _disregard(self, command: Command) -> None:
        """Hear an answer that changes nothing for the mail; it may for the connection."""
        try:
            reply = self._wire.reply(self._timeouts.command)
            if reply.code == 421:
                raise ConnectionLost(f'{command.verb} was answered {reply}')
            if command.verb == 'DATA' and reply.code // 100 == 3:
                # It waits for a text that is for nobody (RFC 2920, 3.1).
                if self._lmtp:
                    raise ConnectionLost('the relay takes a text for nobody')
                self._begun = True
                self._wire.write(b'.\r\n')
                self._wire.reply(self._timeouts.final)
        except ConnectionLost as lost:
            self._break(f'the connection was lost: {lost}')

    def _transfer(
        self, mail: MailTransaction, source: EnvelopeSource, before_final_dot: Sealing | None
    ) -> None:
        """Send the text and, in the same write, what may follow the final dot."""
        recipients, mail.accepted = tuple(mail.accepted), []
        pieces = stuffed(mail.envelope.blocks())
        end = 0
        trouble = None
        try:
            text = next(pieces)
            for piece in pieces:
                self._wire.write(text)
                text = piece
            # The end leaves with the last of the text: one packet for a small mail.
            last = max(len(text) - BLOCK, 0)
            if last:
                self._wire.write(memoryview(text)[:last])
            follower = self._follower(mail, source)
            if before_final_dot is not None:
                before_final_dot(mail.envelope, recipients)
            # Somebody has written down that it may have left.
            mail.ambiguous = True
            self._begun = False
            following = b''
            if follower is not None and follower.todo:
                self._open(follower)
                following = self._group(follower)
            end = _END + len(following)
            self._wire.write(b''.join((text[last:], following)))
        except ConnectionLost as lost:
            trouble = lost
            if lost.unsent >= end:
                words = self._last_words()
                if words is None:
                    raise
                mail.give(recipients, words)
                self._lose(mail, f'the connection was lost: {lost}')
                return
        self._conclude(mail, recipients, trouble)

    def _follower(self, mail: MailTransaction, source: EnvelopeSource) -> MailTransaction | None:
        """The mail whose commands may leave with the text of this one."""
        # A service that answered LMTP too sparingly would have its answers to what follows
        # taken for the recipients'.
        if self._window > 1 and not self._lmtp:
            return mail if mail.todo else source.peek()
        return None

    def _last_words(self) -> Verdict | None:
        """What the relay has said against the text before it stopped taking it."""
        try:
            reply = self._wire.reply(self._timeouts.quit)
        except ConnectionLost:
            return None
        return None if reply.code < 400 or reply.code == 421 else refusal(reply)

    def _conclude(
        self, mail: MailTransaction, recipients: tuple[str, ...], trouble: ConnectionLost | None
    ) -> None:
        """Hear the answer to the final dot: one, or by LMTP one for each recipient.

        ``trouble``: the end of the text has left only in part, perhaps.
        """
        timeout = self._timeouts.final if trouble is None else self._timeouts.quit
        open_ended = list(recipients)
        closing = trouble
        try:
            while open_ended:
                reply = self._wire.reply(timeout)
                positive = reply.code // 100 == 2
                if reply.code // 100 == 3 or (positive and trouble is not None):
                    raise ConnectionLost(f'the relay answered the final dot with {reply}')
                if reply.code == 421:
                    closing = closing or ConnectionLost(f'the relay has said {reply}')
                answered = [open_ended.pop(0)] if self._lmtp else open_ended
                mail.give(answered, Verdict('delivered', reply) if positive else refusal(reply))
                if not self._lmtp:
                    break
        except ConnectionLost as lost:
            reason = f'{self.name}: no answer to the whole message: {trouble or lost}'
            mail.give(open_ended, Verdict('ambiguous', None, reason))
            closing = lost
        if closing is not None:
            self._lose(mail, f'the connection was lost: {closing}')

    def _lose(self, mail: MailTransaction, reason: str) -> None:
        """Whoever has no answer yet is to be tried again, on another connection."""
        verdict = Verdict('deferred', None, f'{self.name}: {reason}')
        for recipient in mail.envelope.recipients:
            mail.verdicts.setdefault(recipient, verdict)
        mail.todo, mail.opened = [], False
        self._break(reason)

    def _unavailable(self, reason: str, *, stale: bool) -> NoReturn:
        stale = stale and self._carried
        self._end(reason, stale=stale)
        raise MailerUnavailable(f'{self.name}: {reason}', stale=stale)

    def _break(self, reason: str) -> None:
        """This mail is answered; the next one needs another connection."""
        self._wire.close()
        self._end(reason, stale=True)

    def _end(self, reason: str, *, stale: bool) -> None:
        self._over = self._over or (reason, stale)
        self._said.clear()
        self._unsaid.clear()
