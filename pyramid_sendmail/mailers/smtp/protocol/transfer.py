"""Mail after mail on a connection that is past EHLO and AUTH (RFC 5321, 3.3; RFC 2033; RFC 3030).

What a reply means for the mail's recipients and for the session:

=============================  =============================================================
reply                          outcome
=============================  =============================================================
421, 530, 534, 535, 538,       the session ends, and the mail is untouched; after a refused
454 4.7.x, up to DATA          recipient on a fresh connection: deferred
452 to MAIL                    the session has sent as much as the relay allows: a stale
                               connection, if it has answered for a mail before; else deferred
500, 502, 503, 504 to MAIL,    about the command and not about a recipient: the session ends,
or to every RCPT               and the mail is untouched; deferred if others are accepted
503 to a command behind a      the relay wants to be waited for: the same mail once more, and
final dot                      no command behind a final dot from then on
lost before MAIL's reply       the session ends, and the mail is untouched
lost before the final dot      untouched on a connection that has answered for a mail before,
                               which was stale; else deferred
lost after the final dot       ambiguous for the accepted recipients
4xx, 5xx to MAIL               deferred, failed: every recipient
4xx, 5xx to RCPT               deferred, failed: this recipient
4xx, 5xx to DATA, final dot    deferred, failed: the accepted recipients
2xx to the final dot           delivered: the accepted recipients
=============================  =============================================================

Only the first digit of other codes counts (RFC 5321, 4.2.1). A time-out, a line that is no reply,
a reply that makes no sense in its place and one without a command count as a lost connection. By
LMTP each accepted recipient has a reply of its own to the final dot.

Which command may leave is a matter of three policies; what a reply means is not:

=================  ===============================================================================
lock-step          a command leaves when the one before has its reply
PIPELINING         commands leave in groups (RFC 2920), and the next mail's together with the final
                   dot, so that a mail costs one round trip
CHUNKING, window   BDAT announces the length of a text, so that MAIL, RCPT, BDAT and text leave for
                   one mail after the other without waiting
=================  ===============================================================================

With a window the first mail waits for the replies to its RCPTs before its text leaves: if the
connection has died unnoticed, no mail is in doubt. RSET stands in front of each MAIL: a relay that
refused a transaction reads the text that comes anyway, and refuses it as well. Large mail, and mail
to many recipients, goes by DATA while nothing is in flight. If the connection is lost, a mail whose
text may have left whole is ambiguous, and so are those behind it; a mail whose text has not left,
or behind which the relay announced by 421 that it closes, is untouched.

A mail to more recipients than the relay takes at once needs several mail transactions. From the
second on it is not untouched any more: a lost connection or a session failure defers the recipients
that are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from ....envelope import BLOCK_SIZE, Envelope, Outcome, Reply, Verdict
from ...session import BeforeFinalDot
from ..options import SessionOptions, Timeouts
from .dot_stuffing import stuffed
from .extensions import (
    Extensions,
    final_verdict,
    is_command_error,
    is_sequence_error,
    is_session_failure,
    is_session_full,
    is_too_many_recipients,
    names_recipient_limit,
    refusal,
    session_failure_reason,
)
from .relay_memory import RelayMemory
from .replies import ReplyReader
from .transaction import Command, MailTransaction

__all__ = ['MAX_BYTES_IN_FLIGHT', 'MAX_PIPELINED_COMMANDS', 'MailTransfer', 'SessionEnd']

MAX_PIPELINED_COMMANDS = 64
"""Commands that may wait for a reply. Their replies, of 512 bytes each, must fit into the buffers
of a connection, or both sides would wait for the other to read (RFC 2920, 3.1)."""

MAX_BYTES_IN_FLIGHT = 4 * BLOCK_SIZE
"""Bytes of text in flight at most: what becomes ambiguous if the connection is lost."""

MAX_BYTES_BEHIND_DOT = 2_048
"""Bytes of commands that leave with a final dot. Haraka 3.3.4 hangs up over more than 8,192, and
keeps the mail in front of them."""

LAST_BYTES = 16_384
"""The final dot leaves with so many bytes of the text: one packet for a small mail."""

_END_BYTES = 5  # CRLF.CRLF

_COMMANDS_BESIDE_RCPT = 3  # RSET, MAIL, BDAT

_NO_REPLY_ASKED = 'the relay sent more replies than it got commands'


class SessionEnd(NamedTuple):
    """Why nothing more can be sent. Mails without an outcome are untouched.

    ``stale``: the connection was of an earlier time, and another one may do. ``error``: what
    ``before_final_dot`` raised.
    """

    reason: str
    stale: bool
    error: BaseException | None = None


class MailTransfer:
    """Sends mails, one after the other; see the module.

    ``reader``: cuts what the relay sends into replies. ``secure``: the connection is encrypted.
    ``lmtp``: the relay replies to the final dot for each accepted recipient (RFC 2033, 4.2).

    ``outcomes``: what became of the mails, in their order; take them out. ``end``: why nothing
    more can be sent, or None. ``may_quit``: whether QUIT may be sent at the end: not on a lost
    connection, for example. ``before_final_dot``: see IMailSession.send.
    """

    def __init__(
        self,
        name: str,
        extensions: Extensions,
        reader: ReplyReader,
        *,
        timeouts: Timeouts,
        options: SessionOptions,
        memory: RelayMemory,
        secure: bool = False,
        lmtp: bool = False,
    ) -> None:
        self.name = name
        self.outcomes: deque[Outcome] = deque()
        self.end: SessionEnd | None = None
        self.may_quit = True
        self.before_final_dot: BeforeFinalDot | None = None
        self._extensions = extensions
        self._reader = reader
        self._timeouts = timeouts
        self._options = options
        self._memory = memory
        self._secure = secure
        self._lmtp = lmtp
        self._max_pipelined = MAX_PIPELINED_COMMANDS if extensions.pipelining else 1
        self._pipelines = extensions.pipelining and not lmtp
        self._window = options.window if extensions.chunking and self._pipelines else 1
        self._mails: deque[MailTransaction] = deque()
        """Mails without an outcome, in their order."""
        self._at: MailTransaction | None = None
        """The mail whose commands or text leave now."""
        self._unsent: deque[Command] = deque()
        self._awaiting: deque[Command] = deque()
        """Commands that have left, and whose reply has not come."""
        self._urgent = b''
        self._text: Iterator[bytes] | None = None
        self._piece = b''
        """The part of the text that leaves next."""
        self._next_piece: bytes | None = None
        self._in_transaction = False  # the relay holds a mail transaction
        self._has_answered = False  # the relay has answered for a mail
        self._dot_bytes = inf
        """How many bytes of the last output stand from the end of the text on; inf: none."""
        self._cut = ''
        """Why the last write failed: nothing more leaves, and replies may still come."""
        self._closing = ''
        """The 421 by which the relay announced that it closes."""
        self._flight_complete = False  # no more mail joins those that are in flight
        self._flight_error: tuple[MailTransaction | None, BaseException] | None = None
        """The mail that could not join, if there is one, and why."""
        self._flight_ends: list[tuple[MailTransaction, int]] = []
        """The mails in the last output, and how many bytes of it stand behind each."""

    # What the driver asks and says

    @property
    def wants_mail(self) -> bool:
        """Whether another mail may be handed to ``send`` now."""
        if self.end is not None or self._cut or self._flight_error is not None:
            return False
        mails = self._mails
        if not mails:
            return True
        if self._window > 1:
            return self._flight_has_room()
        last = mails[-1]
        # The last of the text is about to leave, and the next mail's commands with it.
        return (
            last.stage == 'text'
            and self._next_piece is None
            and not last.todo
            and self._pipelines
            and self._memory.pipelines_behind_dot
        )

    @property
    def idle(self) -> bool:
        """Whether no mail waits for its outcome."""
        return not self._mails

    @property
    def awaiting_reply(self) -> bool:
        """Whether a reply is to come."""
        return bool(self._awaiting)

    @property
    def in_text(self) -> bool:
        """Whether the relay waits for text by DATA, or for the rest of it."""
        return self._at is not None and self._at.stage == 'text'

    @property
    def timeout(self) -> float:
        """Seconds in which the next reply must come."""
        timeouts = self._timeouts
        if self._cut or (self._closing and self._in_flight):
            return timeouts.quit
        verb = self._awaiting[0].verb if self._awaiting else ''
        if verb in ('.', 'BDAT'):
            return timeouts.final
        return timeouts.data if verb == 'DATA' else timeouts.command

    def send(self, envelope: Envelope) -> None:
        """Take a mail, where ``wants_mail`` is true."""
        verdicts = self._extensions.rejected_before_sending(envelope)
        todo = [each for each in envelope.recipients if each not in verdicts]
        mail = MailTransaction(envelope, verdicts, todo)
        self._mails.append(mail)
        if not todo:
            mail.stage = 'sent'
            self._finish_mails()

    def source_failed(self, error: BaseException) -> bool:
        """See SMTPClient."""
        if self._in_flight:
            self._flight_error, self._flight_complete = (None, error), True
        return self._in_flight

    def data_to_send(self) -> bytes:
        """Return bytes that may leave now, b'' if there are none; ask again when they have left.

        Raises what reading the text raises: the session cannot be used any more then.
        """
        if self.end is not None or self._cut:
            return b''
        if self._urgent:
            data, self._urgent = self._urgent, b''
            return data
        if self._at is None and self._in_flight:
            # First the replies that have come.
            joins = self._next_to_join() is not None and not self._reader.unread
            return self._fill(None) if joins else b''
        mail = self._at or self._begin_next()
        if mail is None:
            return b''
        if mail.stage == 'text':
            return self._next_text(mail)
        if mail.stage == 'ready':
            return self._fill(mail)
        if self._unsent and len(self._awaiting) <= self._max_pipelined // 2:
            self._dot_bytes = inf
            return self._next_group(mail)
        return b''

    def on_reply(self, reply: Reply) -> None:
        """Take the reply to the first command without one."""
        command = self._awaiting.popleft()
        mail = command.mail
        mail.replies_due -= 1
        if command.verb == '.':
            self._on_final_reply(command, reply)
        elif command.verb == 'refusal':
            self._on_early_reply(command, reply)
        elif mail.chunked:
            self._on_chunked_reply(command, reply)
        elif mail.discarding:
            self._on_discarded_reply(command, reply)
        else:
            self._on_command_reply(command, reply)
        if self.end is None:
            self._go_on()

    def write_failed(self, reason: str, unsent: int) -> None:
        """The last output could not be sent; ``unsent``: how many bytes of it certainly were not.

        Replies that the relay sent before may still come.
        """
        if self.end is not None or self._cut:
            return
        self.may_quit = False
        mail, finals = self._at, [each for each in self._awaiting if each.verb == '.']
        if self._in_flight:
            self._cut, self._flight_complete = reason, True
            for each, behind in self._flight_ends:
                each.may_have_left = unsent <= behind
        elif finals and unsent < self._dot_bytes:
            self._cut = reason
            self._awaiting = deque(finals)
            finals[0].mail.replies_due = len(finals)
        elif finals or (mail is not None and mail.stage == 'text'):
            # The final dot has not left. A relay that stopped reading may have said why.
            mail = mail if mail is not None and mail.stage == 'text' else finals[0].mail
            recipients = [to for each in finals for to in each.recipients] or mail.accepted
            self._cut = reason
            self._awaiting = deque([Command('refusal', b'', mail, recipients=tuple(recipients))])
            mail.replies_due = 1
        else:
            self.connection_lost(reason)

    def connection_lost(self, reason: str, *, hung_up: bool = False) -> None:
        """Nothing more will come: give each mail its outcome, except those that are untouched.

        ``hung_up``: the relay closed the connection.
        """
        if self.end is not None:
            return
        self.may_quit = False
        finals = [each for each in self._awaiting if each.verb == '.' and each.recipients]
        if self._awaiting and self._awaiting[0].verb == 'refusal':
            reason = self._cut
        text = f'the connection was lost: {reason}'
        mail = self._mails[0] if self._mails else None
        if self._in_flight:
            self._land(lost=reason, hung_up=hung_up)
        elif finals:
            problem = f'{self.name}: no answer to the whole message: {self._cut or reason}'
            for each in finals:
                each.mail.set_verdict(each.recipients, Verdict('ambiguous', None, problem))
            self._drop(finals[0].mail, text)
        elif mail is None or (
            not (mail.discarding and not mail.todo)
            and mail.is_untouched(self._has_answered)
            and (self._has_answered or not mail.answered)
        ):
            self._end(text, stale=self._has_answered)
        else:
            self._drop(mail, text)

    def close(self, reason: str) -> None:
        """Send nothing more. A mail whose text may have left has its outcome, as after a lost
        connection; the others stay without one."""
        if any(each.verb in ('.', 'BDAT') for each in self._awaiting):
            self.connection_lost(reason)
        self._end(reason, stale=True)

    # Commands

    def _begin_next(self) -> MailTransaction | None:
        """Begin the next transaction, if one may begin now."""
        mail = self._mails[0] if self._mails else None
        if mail is None:
            return None
        if mail.stage != 'waiting' or self._awaiting:
            return None
        unread = self._reader.unread
        if unread and not b'421'.startswith(unread):
            self.connection_lost(_NO_REPLY_ASKED)
            return None
        self._open(mail, data=not (self._window > 1 and self._may_share(mail)))
        return mail

    def _open(self, mail: MailTransaction, *, data: bool, reset: bool = False) -> None:
        """Make the commands of the mail's next transaction.

        ``data``: DATA as well. ``reset``: RSET even if it is not needed.
        """
        limit = self._recipient_limit
        mail.asked, mail.todo = mail.todo[:limit], mail.todo[limit:]
        mail.stage, mail.surplus, mail.behind_dot = 'commands', 0, False
        if self._in_transaction or reset:
            # The relay still holds a mail that ended before its text.
            self._unsent.append(Command('RSET', b'RSET\r\n', mail))
        self._unsent.append(Command('MAIL', self._extensions.mail(mail.envelope, mail.asked), mail))
        for recipient in mail.asked:
            self._unsent.append(Command('RCPT', self._extensions.rcpt(recipient), mail, recipient))
        if data:
            self._unsent.append(Command('DATA', b'DATA\r\n', mail))
        self._at = mail

    @property
    def _recipient_limit(self) -> int:
        learned = self._memory.max_recipients
        limit = self._options.max_recipients
        return limit if learned is None else min(limit, learned)

    def _next_group(self, mail: MailTransaction, *, behind_dot: bool = False) -> bytes:
        """Return the command lines that may leave now."""
        unsent = self._unsent
        room = self._max_pipelined - len(self._awaiting)
        group = [unsent.popleft() for _ in range(min(room, len(unsent)))]
        if behind_dot:
            size = 0
            for number, command in enumerate(group):
                size += len(command.line)
                if size > MAX_BYTES_BEHIND_DOT:
                    unsent.extendleft(reversed(group[number:]))
                    del group[number:]
                    break
        self._awaiting.extend(group)
        mail.replies_due += len(group)
        return b''.join([command.line for command in group])

    # The text, by DATA

    def _start_text(self, mail: MailTransaction) -> None:
        mail.stage = 'text'
        self._text = stuffed(mail.envelope.blocks())
        self._piece = next(self._text)
        self._look_ahead()

    def _look_ahead(self) -> None:
        assert self._text is not None
        self._next_piece = next(self._text, None)
        if self._next_piece is None and len(self._piece) > LAST_BYTES:
            self._piece, self._next_piece = self._piece[:-LAST_BYTES], self._piece[-LAST_BYTES:]
            self._text = iter(())

    def _next_text(self, mail: MailTransaction) -> bytes:
        """Return the next part of the text: the last one ends with the final dot."""
        piece = self._piece
        if self._next_piece is not None:
            self._piece = self._next_piece
            self._look_ahead()
            return piece
        recipients = tuple(mail.accepted)
        try:
            if self.before_final_dot is not None:
                self.before_final_dot(mail.envelope, recipients)
        except BaseException as error:  # noqa: BLE001 - the driver raises it
            self._abort(error)
            return b''
        # From here on the queue knows that the mail may have left.
        mail.accepted, mail.ambiguous, mail.stage = [], True, 'sent'
        self._text, self._piece = None, b''
        self._in_transaction = False
        if self._lmtp:
            finals = [Command('.', b'', mail, recipients=(each,)) for each in recipients]
        else:
            finals = [Command('.', b'', mail, recipients=recipients)]
        self._awaiting.extend(finals)
        mail.replies_due += len(finals)
        self._at = None
        following = self._following(mail)
        self._dot_bytes = _END_BYTES + len(following)
        return piece + following

    def _following(self, mail: MailTransaction) -> bytes:
        """Return the commands that may leave with the final dot of this mail."""
        # If an LMTP service sent too few replies to the text, the replies to the commands behind
        # it would be taken for those of recipients.
        if not (self._pipelines and self._memory.pipelines_behind_dot):
            return b''
        follower = mail if mail.todo else self._mails[-1]
        if not follower.todo or (follower is not mail and follower.stage != 'waiting'):
            return b''
        self._open(follower, data=True)
        follower.behind_dot = True
        return self._next_group(follower, behind_dot=True)

    def _abort(self, error: BaseException) -> None:
        """The mail must not leave: the transfer stops in the middle of its text."""
        self.may_quit = False
        self._end('the session is closed', stale=True, error=error)

    # Replies

    def _on_command_reply(self, command: Command, reply: Reply) -> None:
        """The reply to a command that is up to DATA."""
        verb, mail = command.verb, command.mail
        if verb == 'DATA' and not mail.accepted:
            self._on_discarded_reply(command, reply)
            return
        if reply.code // 100 == (3 if verb == 'DATA' else 2):
            if self._has_unread(text_follows=verb == 'DATA'):
                self.connection_lost(_NO_REPLY_ASKED)
            elif verb == 'DATA':
                self._start_text(mail)
            else:
                self._accepted(command)
        elif is_session_failure(reply):
            closing = reply.code == 421
            reason = session_failure_reason(verb, reply, secure=self._secure)
            self._end_session(mail, reason, stale=closing, closing=closing)
        elif verb == 'MAIL' and self._has_answered and is_session_full(reply):
            self._end_session(mail, f'MAIL was answered {reply}', stale=True)
        elif reply.code < 400:
            self.connection_lost(f'the relay answered {verb} with {reply}')
        elif self._has_unread():
            self.connection_lost(_NO_REPLY_ASKED)
        elif mail.behind_dot and is_command_error(reply):
            self._memory.refused_behind_dot(self.name)
            self._ask_again(command)
        elif verb == 'RSET':
            self.connection_lost(f'the relay answered RSET with {reply}')
        else:
            self._refused(command, reply)

    def _accepted(self, command: Command) -> None:
        mail = command.mail
        if command.verb == 'RCPT':
            mail.accepted.append(command.recipient)
            self._memory.accepted()
        elif command.verb == 'MAIL':
            mail.answered = self._in_transaction = True
        else:
            self._in_transaction = False

    def _ask_again(self, command: Command) -> None:
        """Have another transaction ask for the recipients of a command that came too early."""
        verb, mail = command.verb, command.mail
        if verb == 'RCPT':
            again = [command.recipient]
        else:
            again = list(mail.accepted if verb == 'DATA' else mail.asked)
            mail.accepted, mail.discarding = [], verb != 'DATA'
            self._unsent.clear()
            # The relay may hold the mail that it did not want now.
            self._in_transaction = True
        mail.asked = [each for each in mail.asked if each not in again]
        mail.todo = again + mail.todo

    def _refused(self, command: Command, reply: Reply) -> None:
        """The relay refused MAIL, RCPT or DATA with a 4xx or 5xx."""
        verb, mail = command.verb, command.mail
        if verb == 'MAIL':
            mail.answered, self._in_transaction = True, False
            if not mail.chunked:
                self._unsent.clear()
                mail.discarding = True
            mail.set_verdict(mail.asked, refusal(reply))
        elif verb == 'DATA':
            mail.set_verdict(mail.accepted, refusal(reply))
            mail.accepted = []
        elif is_too_many_recipients(reply) and mail.accepted:
            mail.asked.remove(command.recipient)
            mail.todo.append(command.recipient)
            mail.surplus += 1
            if names_recipient_limit(reply) or mail.surplus > 1:
                self._memory.too_many_recipients(len(mail.accepted))
        else:
            # In a later transaction of this mail 552 still means too many recipients.
            too_many = is_too_many_recipients(reply) and mail.ambiguous
            mail.verdicts[command.recipient] = refusal(reply, too_many=too_many)

    def _end_session(
        self, mail: MailTransaction, reason: str, *, stale: bool, closing: bool = False
    ) -> None:
        """The relay takes no more mail in this session. ``stale``: in another one it may.
        ``closing``: it closes the connection."""
        self.may_quit = not (closing or self._awaiting)
        if mail.is_untouched(self._has_answered):
            self._end(reason, stale=stale and self._has_answered)
        else:
            self.may_quit = False
            self._defer_rest(mail, f'the connection was lost: {reason}')
            self._end(reason, stale=stale)

    def _on_discarded_reply(self, command: Command, reply: Reply) -> None:
        """A reply that changes nothing for the mail, though it may end the session."""
        verb, mail = command.verb, command.mail
        if reply.code == 421:
            self.connection_lost(f'{verb} was answered {reply}')
        elif verb == 'RCPT' and reply.code // 100 == 2:
            # To which mail? The relay has refused MAIL.
            mail.misplaced = True
        elif verb == 'DATA' and reply.code // 100 == 3:
            # The relay waits for a text without recipients: send an empty one (RFC 2920, 3.1).
            if self._lmtp or mail.misplaced:
                self.connection_lost('the relay accepted DATA without a recipient')
                return
            mail.discarding = self._in_transaction = True
            self._urgent = b'.\r\n'
            self._awaiting.append(Command('.', b'', mail))
            mail.replies_due += 1
        elif self._has_unread():
            # Then what the replies before were about is not certain either.
            mail.discarding = False
            self.connection_lost(_NO_REPLY_ASKED)

    def _on_final_reply(self, command: Command, reply: Reply) -> None:
        mail = command.mail
        if not command.recipients:
            return  # to an empty text
        if reply.code // 100 == 3 or (reply.code // 100 == 2 and self._cut):
            self._awaiting.appendleft(command)
            mail.replies_due += 1
            self.connection_lost(f'the relay answered the final dot with {reply}')
            return
        if reply.code == 421:
            self._closing = self._closing or f'the relay answered {reply}'
        mail.set_verdict(command.recipients, final_verdict(reply))
        if not (self._awaiting and self._awaiting[0].verb == '.'):
            if closing := self._cut or self._closing:
                self._drop(mail, f'the connection was lost: {closing}')
            elif mail.todo and mail.stage == 'sent':
                mail.stage = 'waiting'

    def _on_early_reply(self, command: Command, reply: Reply) -> None:
        """The relay's last words about a text that it stopped reading."""
        mail = command.mail
        if reply.code < 400 or reply.code == 421:
            self.connection_lost(self._cut)
            return
        mail.set_verdict(command.recipients, refusal(reply))
        self._drop(mail, f'the connection was lost: {self._cut}')

    def _has_unread(self, *, text_follows: bool = False) -> bool:
        """Return whether the relay sent a reply too many: it would be taken for the reply to the
        next command. Allowed are 421, at any time (RFC 5321, 3.8), and a refusal where
        ``text_follows``."""
        if self._awaiting:
            return False
        unread = self._reader.unread
        if not unread or unread == b'421':
            return False
        return not (text_follows and unread[:1] in (b'4', b'5'))

    def _go_on(self) -> None:
        """After a reply: end the transaction that is over, and hand out the outcomes."""
        mail = self._at
        if mail is not None and mail.stage == 'commands':
            unsent = self._unsent
            if unsent and unsent[0].verb == 'DATA' and not (self._awaiting or mail.accepted):
                unsent.clear()  # no recipient was accepted (RFC 5321, 4.1.1.4)
            if not unsent and not mail.replies_due:
                self._end_commands(mail)
        if self._in_flight and not self._awaiting and self._at is None:
            self._land()
        self._finish_mails()

    def _end_commands(self, mail: MailTransaction) -> None:
        """All commands of a transaction have their replies, and no text follows by DATA."""
        if mail.accepted:
            mail.stage = 'ready'  # for BDAT
        else:
            self._at = None
            reply = _command_error(mail)
            if reply is None or self._is_mails_fault(mail, reply):
                mail.discarding = False
                mail.stage = 'waiting' if mail.todo else 'sent'

    def _is_mails_fault(self, mail: MailTransaction, reply: Reply) -> bool:
        """Decide whether commands that were all refused as such are the mail's fault; if not, end
        the session."""
        if self._memory.blames_mail(mail.envelope.id):
            return True
        verb = 'RCPT' if self._in_transaction else 'MAIL'
        reason = session_failure_reason(verb, reply, secure=self._secure)
        if mail.ambiguous:
            self._defer_rest(mail, reason)
        self._end(reason, stale=False)
        return False

    def _finish_mails(self) -> None:
        """Hand out the outcomes of the mails that are complete, in order."""
        mails = self._mails
        while mails and mails[0].complete:
            mail = mails.popleft()
            self._has_answered = self._has_answered or mail.answered
            self.outcomes.append(mail.outcome)
        if not (self._in_flight or self._awaiting):
            self._flight_complete = False
            if (
                self._flight_error is not None
                and (mails[0] if mails else None) is (self._flight_error[0])
            ):
                self._end('the session is closed', stale=True, error=self._flight_error[1])

    def _defer_rest(self, mail: MailTransaction, reason: str) -> None:
        """Defer the recipients without a verdict."""
        verdict = Verdict('deferred', None, f'{self.name}: {reason}')
        mail.set_missing_verdicts(mail.envelope.recipients, verdict)
        mail.todo, mail.asked, mail.accepted = [], [], []
        mail.replies_due, mail.session_failure, mail.stage = 0, None, 'sent'

    def _drop(self, mail: MailTransaction, reason: str) -> None:
        """The connection is lost, and this attempt counts for a mail."""
        self.may_quit = False
        self._defer_rest(mail, reason)
        self._end(reason, stale=True)

    def _end(self, reason: str, *, stale: bool, error: BaseException | None = None) -> None:
        """Send nothing more. The first reason counts."""
        self._awaiting.clear()
        self._unsent.clear()
        self._text, self._at = None, None
        if self.end is None:
            self.end = SessionEnd(reason, stale, error)
            for mail in self._mails:
                if mail.ambiguous and not mail.complete:
                    # Some recipients have their replies: these count.
                    self._defer_rest(mail, reason if error is None else str(error))
            self._finish_mails()

    # CHUNKING: several mails in flight

    @property
    def _in_flight(self) -> bool:
        return self._window > 1 and bool(self._mails) and self._mails[0].chunked

    def _may_share(self, mail: MailTransaction) -> bool:
        """Return whether the mail is small enough to be in flight with others."""
        recipients = len(mail.todo)
        return (
            mail.envelope.size <= BLOCK_SIZE
            and recipients <= self._recipient_limit
            and recipients + _COMMANDS_BESIDE_RCPT <= MAX_PIPELINED_COMMANDS
        )

    def _flight_has_room(self) -> bool:
        """Return whether a small mail may join those in flight."""
        if self._flight_complete or not self._memory.pipelines_behind_dot:
            return False
        leads = self._at is not None and self._at.stage == 'ready'
        if not (leads or self._in_flight):
            return False
        if self._reader.unread:
            return False  # first the replies that have come
        waiting = [each for each in self._mails if each.stage == 'waiting']
        commands = sum(len(each.todo) + _COMMANDS_BESIDE_RCPT for each in waiting)
        size = sum(each.envelope.size for each in waiting)
        return (
            all(map(self._may_share, waiting))
            and len(self._mails) < self._window
            and len(self._awaiting) + commands + _COMMANDS_BESIDE_RCPT < MAX_PIPELINED_COMMANDS
            and self._bytes_in_flight + size < MAX_BYTES_IN_FLIGHT
        )

    @property
    def _bytes_in_flight(self) -> int:
        return sum(each.envelope.size for each in self._mails if each.chunked and each.replies_due)

    def _next_to_join(self) -> MailTransaction | None:
        """Return the mail that may join those in flight now."""
        if self._flight_complete or self._flight_error is not None:
            return None
        mail = next((each for each in self._mails if each.stage == 'waiting'), None)
        if (
            mail is not None
            and self._may_share(mail)
            and len(self._awaiting) + len(mail.todo) + _COMMANDS_BESIDE_RCPT
            <= MAX_PIPELINED_COMMANDS
            and self._bytes_in_flight + mail.envelope.size <= MAX_BYTES_IN_FLIGHT
        ):
            return mail
        return None

    def _fill(self, leader: MailTransaction | None) -> bytes:
        """Return the text of the mail that leads the flight, if it is to leave now, and as many
        mails as there is room for."""
        group: list[bytes] = []
        joined: list[tuple[MailTransaction, int]] = []
        length = 0
        mail = leader or self._next_to_join()
        while mail is not None:
            try:
                text = self._join(mail)
            except BaseException as error:  # noqa: BLE001 - the driver raises it
                if mail is leader:
                    self._abort(error)
                    return b''
                self._flight_error, self._flight_complete = (mail, error), True
                break
            group.append(text)
            length += len(text)
            joined.append((mail, length))
            mail = self._next_to_join()
        self._at = None
        self._flight_ends = [(each, length - end) for each, end in joined]
        if self._flight_error is not None:
            self._finish_mails()
        return b''.join(group)

    def _join(self, mail: MailTransaction) -> bytes:
        """Add a mail to the flight and return its commands and text."""
        recipients = tuple(mail.accepted or mail.todo)
        if self.before_final_dot is not None:
            self.before_final_dot(mail.envelope, recipients)
        if not mail.accepted:
            self._open(mail, data=False, reset=True)
        raw = mail.envelope.raw
        self._unsent.append(Command('BDAT', b'BDAT %d LAST\r\n' % len(raw), mail))
        mail.chunked, mail.stage = True, 'sent'
        mail.replies_due += len(self._unsent)
        lines = [command.line for command in self._unsent]
        self._awaiting.extend(self._unsent)
        self._unsent.clear()
        return b''.join((*lines, raw))

    def _on_chunked_reply(self, command: Command, reply: Reply) -> None:
        verb, mail = command.verb, command.mail
        if reply.code // 100 not in (2, 4, 5) or self._has_unread():
            mail.replies_due += 1
            known = reply.code // 100 in (2, 4, 5)
            self.connection_lost(
                _NO_REPLY_ASKED if known else f'the relay answered {verb} with {reply}'
            )
            return
        if reply.code == 421:
            self._closing = self._closing or f'{verb} was answered {reply}'
            self._flight_complete = True
        if verb == 'BDAT':
            self._has_answered, self._in_transaction = True, reply.code >= 400
            recipients, mail.accepted = mail.accepted, []
            if recipients:
                mail.ambiguous = True
                mail.set_verdict(recipients, final_verdict(reply))
        elif verb == 'RCPT' and not self._in_transaction:
            return  # MAIL was refused, and so is RCPT
        elif reply.code < 400:
            self._accepted(command)
        elif verb == 'RSET' and not is_session_failure(reply):
            mail.replies_due += 1
            self.connection_lost(f'the relay answered RSET with {reply}')
        elif (
            is_session_failure(reply)
            or is_sequence_error(reply)
            or (verb == 'MAIL' and is_session_full(reply))
        ):
            if is_sequence_error(reply):
                self._memory.refused_behind_dot(self.name)
            mail.session_failure = mail.session_failure or (
                session_failure_reason(verb, reply, secure=self._secure),
                reply.code in (421, 452, 503),
            )
            self._in_transaction = self._in_transaction and verb == 'RCPT'
            self._flight_complete = True
        else:
            self._refused(command, reply)
            self._flight_complete = self._flight_complete or bool(mail.todo)

    def _land(self, *, lost: str = '', hung_up: bool = False) -> None:
        """No more replies will come for the mails in flight: give each a verdict, except the
        untouched ones at the end. Mails with recipients left go on by DATA."""
        flight = [each for each in self._mails if each.chunked]
        lost = self._cut or lost
        reason = f'the connection was lost: {lost}'
        for each in flight:
            if each.replies_due and not each.decided:
                self._lost_in_flight(each, lost, hung_up=hung_up)
            each.replies_due = 0
        failure = next((each.session_failure for each in flight if each.session_failure), None)
        untouched: list[MailTransaction] = []
        for each in reversed(flight):
            if each.session_failure is None or not each.is_untouched(self._has_answered):
                break
            untouched.append(each)
        for each in flight:
            if each.session_failure and each not in untouched:
                self._defer_rest(each, each.session_failure[0])
            elif each.session_failure is None:
                each.stage = 'waiting' if each.todo else 'sent'
                each.chunked = not each.todo
        if not (lost or self._closing or failure):
            return
        for each in flight:
            if each.todo and each not in untouched:
                self._defer_rest(each, reason if lost else (failure or (self._closing,))[0])
        self.may_quit = not (lost or self._closing)
        if untouched:
            end_reason, stale = untouched[0].session_failure or (reason, True)
            self._end(end_reason, stale=stale and self._has_answered)
        elif lost:
            self._end(reason, stale=True)
        else:
            end_reason, stale = failure or (self._closing, True)
            self._end(end_reason, stale=stale)

    def _lost_in_flight(self, mail: MailTransaction, lost: str, *, hung_up: bool) -> None:
        """The connection was lost before a mail had its last reply."""
        if not mail.may_have_left:
            reason = f'the connection was lost: {lost}'
            mail.session_failure = mail.session_failure or (reason, True)
        elif self._closing and hung_up:
            mail.session_failure = mail.session_failure or (self._closing, True)
        else:
            mail.session_failure = None
            problem = f'{self.name}: no answer to the whole message: {lost}'
            mail.set_missing_verdicts(mail.asked, Verdict('ambiguous', None, problem))


def _command_error(mail: MailTransaction) -> Reply | None:
    """Return a reply by which all of these recipients were refused because of the command."""
    replies = [mail.verdicts[each].reply for each in mail.asked if each in mail.verdicts]
    if not replies or len(replies) < len(mail.asked):
        return None
    if all(reply is not None and is_command_error(reply) for reply in replies):
        return replies[0]
    return None
