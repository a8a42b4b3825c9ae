"""Mail after mail on a connection that is past EHLO and AUTH (RFC 5321, 3.3; RFC 2033; RFC 3030).

The package says what a reply means, and by which policies commands leave.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Unpack

from ....envelope import Envelope, Reply, Verdict
from .extensions import (
    Extensions,
    final_verdict,
    is_command_error,
    is_session_failure,
    is_session_full,
    refusal,
    session_failure_reason,
)
from .flight import Flight
from .replies import ReplyReader
from .state import UNASKED_REPLY, TransferChoices, TransferState
from .text import OutgoingText
from .transaction import Command, MailTransaction

__all__ = ['END_BYTES', 'MailTransfer']

END_BYTES = 5  # CRLF.CRLF


class MailTransfer(TransferState):
    """Sends mails, one after the other; see the module.

    ``reader``: cuts what the relay sends into replies.

    ``outcomes``: what became of the mails, in their order; take them out. ``end``: why nothing
    more can be sent, or None. ``may_quit``: whether QUIT may be sent at the end: not on a lost
    connection, for example. ``before_final_dot``: see IMailSession.send.
    """

    def __init__(
        self,
        name: str,
        extensions: Extensions,
        reader: ReplyReader,
        **choices: Unpack[TransferChoices],
    ) -> None:
        super().__init__(name, extensions, reader, **choices)
        self._flight = Flight(self) if self.window > 1 else None
        self._urgent = b''
        self.text: OutgoingText | None = None  # the rest of that of ``at``
        self.dot_bytes = inf
        """How many bytes of the last output stand from the end of the text on; inf: none."""

    # What the driver asks and says

    @property
    def wants_mail(self) -> bool:
        """Whether another mail may be handed to ``send`` now."""
        if self.end is not None or self.cut:
            return False
        mails = self.mails
        if not mails:
            return True
        if self._flight is not None:
            return self._flight.has_room()
        last = mails[-1]
        # The last of the text is about to leave, and the next mail's commands with it.
        return (
            self.text is not None
            and self.text.at_end
            and not last.todo
            and self.pipelines
            and self.memory.pipelines_behind_dot
        )

    @property
    def idle(self) -> bool:
        """Whether no mail waits for its outcome."""
        return not self.mails

    @property
    def awaiting_reply(self) -> bool:
        """Whether a reply is to come."""
        return bool(self.awaiting)

    @property
    def timeout(self) -> float:
        """Seconds in which the next reply must come."""
        timeouts = self.timeouts
        if self.cut or (self.closing and self._flight is not None and self._flight.active):
            return timeouts.quit
        verb = self.awaiting[0].verb if self.awaiting else ''
        if verb in ('.', 'BDAT'):
            return timeouts.final
        return timeouts.data if verb == 'DATA' else timeouts.command

    def send(self, envelope: Envelope) -> None:
        """Take a mail, where ``wants_mail`` is true."""
        verdicts = self.extensions.rejected_before_sending(envelope)
        todo = [each for each in envelope.recipients if each not in verdicts]
        mail = MailTransaction(envelope, verdicts, todo)
        self.mails.append(mail)
        if not todo:
            mail.stage = 'sent'
            self.finish_mails()

    def source_failed(self, error: BaseException) -> bool:
        """See SMTPClient."""
        flight = self._flight
        if flight is not None and flight.active:
            flight.error, flight.complete = (None, error), True
            return True
        return False

    def data_to_send(self) -> bytes:
        """Return bytes that may leave now, b'' if there are none; ask again when they have left.

        Raises what reading the text raises: the session cannot be used any more then.
        """
        if self.end is not None or self.cut:
            return b''
        if self._urgent:
            data, self._urgent = self._urgent, b''
            return data
        flight = self._flight
        if flight is not None and self.at is None and flight.active:
            # First the replies that have come.
            return b'' if self.reader.unread else flight.fill(flight.next_to_join())
        mail = self.at or self._begin_next()
        if mail is None:
            return b''
        if self.text is not None:
            return self._next_text(mail, self.text)
        if flight is not None and mail.stage == 'ready':
            return flight.fill(mail)
        if self.unsent and len(self.awaiting) <= self.max_pipelined // 2:
            self.dot_bytes = inf
            return self.next_group(mail)
        return b''

    def on_reply(self, reply: Reply) -> None:
        """Take the reply to the first command without one."""
        command = self.awaiting.popleft()
        mail = command.mail
        mail.replies_due -= 1
        usual = self.awaiting and 200 <= reply.code < 300 and command.verb in ('MAIL', 'RCPT')
        if usual and not (mail.discarding or mail.chunked):
            # Others are to come: there is nothing else to do.
            self.accept(command)
            return
        if command.verb == '.':
            self._on_final_reply(command, reply)
        elif command.verb == 'refusal':
            self._on_early_reply(command, reply)
        elif mail.chunked:
            self._on_reply_in_flight(command, reply)
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
        if self.end is not None or self.cut:
            return
        self.may_quit = False
        mail, finals = self.at, [each for each in self.awaiting if each.verb == '.']
        if self._flight is not None and self._flight.active:
            self.cut = reason
            self._flight.cut_short(unsent)
        elif finals and unsent < self.dot_bytes:
            self.cut = reason
            self.awaiting = deque(finals)
            finals[0].mail.replies_due = len(finals)
        elif finals or (mail is not None and mail.stage == 'text'):
            # The final dot has not left. A relay that stopped reading may have said why.
            mail = mail if mail is not None and mail.stage == 'text' else finals[0].mail
            recipients = [to for each in finals for to in each.recipients] or mail.accepted
            self.cut = reason
            self.awaiting = deque([Command('refusal', b'', mail, recipients=tuple(recipients))])
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
        finals = [each for each in self.awaiting if each.verb == '.' and each.recipients]
        if self.awaiting and self.awaiting[0].verb == 'refusal':
            reason = self.cut
        text = f'the connection was lost: {reason}'
        mail = self.mails[0] if self.mails else None
        if self._flight is not None and self._flight.active:
            self._flight.land(lost=reason, hung_up=hung_up)
        elif finals:
            problem = f'{self.name}: no answer to the whole message: {self.cut or reason}'
            for each in finals:
                each.mail.set_verdict(each.recipients, Verdict('ambiguous', None, problem))
            self.drop(finals[0].mail, text)
        elif mail is None or (
            not (mail.discarding and not mail.todo)
            and mail.is_untouched(self.has_answered)
            and (self.has_answered or not mail.answered)
        ):
            self.stop(text, stale=self.has_answered)
        else:
            self.drop(mail, text)

    def close(self, reason: str) -> None:
        """Send nothing more. A mail whose text may have left has its outcome, as after a lost
        connection; the others stay without one."""
        if any(each.verb in ('.', 'BDAT') for each in self.awaiting):
            self.connection_lost(reason)
        self.stop(reason, stale=True)

    # Commands

    def _begin_next(self) -> MailTransaction | None:
        """Begin the next transaction, if one may begin now."""
        mail = self.mails[0] if self.mails else None
        if mail is None or mail.stage != 'waiting' or self.awaiting:
            return None
        if not b'421'.startswith(self.reader.unread):
            self.connection_lost(UNASKED_REPLY)
            return None
        self.open_transaction(mail, data=self._flight is None or not self._flight.may_share(mail))
        return mail

    # The text, by DATA

    def _next_text(self, mail: MailTransaction, text: OutgoingText) -> bytes:
        """Return the next part of the text: the last one ends with the final dot."""
        if not text.at_end:
            return text.next_part()
        recipients = tuple(mail.accepted)
        try:
            if self.before_final_dot is not None:
                self.before_final_dot(mail.envelope, recipients)
        except BaseException as error:  # noqa: BLE001 - the driver raises it
            self.abort(error)
            return b''
        # From here on the queue knows that the mail may have left.
        mail.accepted, mail.ambiguous, mail.stage = [], True, 'sent'
        self.text = None
        self.in_transaction = False
        groups = [(each,) for each in recipients] if self.lmtp else [recipients]
        self.awaiting.extend([Command('.', b'', mail, recipients=group) for group in groups])
        mail.replies_due += len(groups)
        self.at = None
        following = self._following(mail)
        self.dot_bytes = END_BYTES + len(following)
        return text.next_part() + following

    def _following(self, mail: MailTransaction) -> bytes:
        """Return the commands that may leave with the final dot of this mail."""
        if not (self.pipelines and self.memory.pipelines_behind_dot):
            return b''
        follower = mail if mail.todo else self.mails[-1]
        if not follower.todo or (follower is not mail and follower.stage != 'waiting'):
            return b''
        self.open_transaction(follower, data=True)
        follower.behind_dot = True
        return self.next_group(follower, behind_dot=True)

    # Replies

    def _on_command_reply(self, command: Command, reply: Reply) -> None:
        """The reply to a command that is up to DATA."""
        verb, mail = command.verb, command.mail
        if verb == 'DATA' and not mail.accepted:
            self._on_discarded_reply(command, reply)
            return
        if reply.code // 100 == (3 if verb == 'DATA' else 2):
            if self.has_unread(text_follows=verb == 'DATA'):
                self.connection_lost(UNASKED_REPLY)
            elif verb == 'DATA':
                mail.stage, self.text = 'text', OutgoingText(mail.envelope)
            else:
                self.accept(command)
        elif is_session_failure(reply):
            closing = reply.code == 421
            reason = session_failure_reason(verb, reply, secure=self.secure)
            self.end_session(mail, reply, reason, stale=closing, closing=closing)
        elif verb == 'MAIL' and self.has_answered and is_session_full(reply):
            self.end_session(mail, None, f'MAIL was answered {reply}', stale=True)
        elif reply.code < 400:
            self.connection_lost(f'the relay answered {verb} with {reply}')
        elif self.has_unread():
            self.connection_lost(UNASKED_REPLY)
        elif mail.behind_dot and is_command_error(reply):
            self.memory.refused_behind_dot(self.name)
            self.ask_again(command)
        elif verb == 'RSET':
            self.connection_lost(f'the relay answered RSET with {reply}')
        else:
            self.refuse(command, reply)

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
            if self.lmtp or mail.misplaced:
                self.connection_lost('the relay accepted DATA without a recipient')
                return
            mail.discarding = self.in_transaction = True
            self._urgent = b'.\r\n'
            self.awaiting.append(Command('.', b'', mail))
            mail.replies_due += 1
        elif self.has_unread():
            # Then what the replies before were about is not certain either.
            mail.discarding = False
            self.connection_lost(UNASKED_REPLY)

    def _on_final_reply(self, command: Command, reply: Reply) -> None:
        mail = command.mail
        if not command.recipients:
            return  # to an empty text
        if reply.code // 100 == 3 or (reply.code // 100 == 2 and self.cut):
            self.awaiting.appendleft(command)
            mail.replies_due += 1
            self.connection_lost(f'the relay answered the final dot with {reply}')
            return
        if reply.code == 421:
            self.announce_closing(reply, f'the relay answered {reply}')
        mail.set_verdict(command.recipients, final_verdict(reply))
        if not (self.awaiting and self.awaiting[0].verb == '.'):
            if closing := self.cut or self.closing:
                self.drop(mail, f'the connection was lost: {closing}')
            elif mail.todo and mail.stage == 'sent':
                mail.stage = 'waiting'

    def _on_early_reply(self, command: Command, reply: Reply) -> None:
        """The relay's last words about a text that it stopped reading."""
        mail = command.mail
        if reply.code < 400 or reply.code == 421:
            self.connection_lost(self.cut)
            return
        mail.set_verdict(command.recipients, refusal(reply))
        self.drop(mail, f'the connection was lost: {self.cut}')

    def _go_on(self) -> None:
        """After a reply: end the transaction that is over, and hand out the outcomes."""
        mail = self.at
        if mail is not None and mail.stage == 'commands':
            unsent = self.unsent
            if unsent and unsent[0].verb == 'DATA' and not (self.awaiting or mail.accepted):
                unsent.clear()  # no recipient was accepted (RFC 5321, 4.1.1.4)
            if not unsent and not mail.replies_due:
                self._end_commands(mail)
        flight = self._flight
        if flight is not None and flight.active and not self.awaiting and self.at is None:
            flight.land()
        self.finish_mails()

    def _end_commands(self, mail: MailTransaction) -> None:
        """All commands of a transaction have their replies, and no text follows by DATA."""
        if mail.accepted:
            mail.stage = 'ready'  # for BDAT
        else:
            self.at = None
            reply = mail.command_error
            if reply is None or self.is_mails_fault(mail, reply):
                mail.discarding = False
                mail.stage = 'waiting' if mail.todo else 'sent'

    def finish_mails(self) -> None:
        """See TransferState."""
        super().finish_mails()
        if self._flight is not None and not (self._flight.active or self.awaiting):
            self._flight.finish()

    def stop(self, reason: str, *, stale: bool, error: BaseException | None = None) -> None:
        """See TransferState."""
        self.text = None
        super().stop(reason, stale=stale, error=error)

    def _on_reply_in_flight(self, command: Command, reply: Reply) -> None:
        assert self._flight is not None
        lost = self._flight.on_reply(command, reply)
        if lost:
            self.connection_lost(lost)
