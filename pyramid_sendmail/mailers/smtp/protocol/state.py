"""The state of a session's mail transactions, and the steps that all policies share."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, TypedDict, Unpack

from ....envelope import Outcome, Reply, Verdict
from ...session import BeforeFinalDot
from ..options import SessionOptions, Timeouts
from .extensions import (
    Extensions,
    is_too_many_recipients,
    names_recipient_limit,
    refusal,
    session_failure_reason,
)
from .relay_memory import RelayMemory
from .replies import ReplyReader
from .transaction import Command, MailTransaction

__all__ = [
    'MAX_PIPELINED_COMMANDS',
    'UNASKED_REPLY',
    'SessionEnd',
    'TransferChoices',
    'TransferState',
]

MAX_PIPELINED_COMMANDS = 64
"""Commands that may wait for a reply. Their replies, of 512 bytes each, must fit into the buffers
of a connection, or both sides would wait for the other to read (RFC 2920, 3.1)."""

MAX_BYTES_BEHIND_DOT = 2_048
"""Bytes of commands that leave with a final dot. Haraka 3.3.4 hangs up over more than 8,192, and
keeps the mail in front of them."""

UNASKED_REPLY = 'the relay sent more replies than it got commands'


class SessionEnd(NamedTuple):
    """Why nothing more can be sent. Mails without an outcome are untouched.

    ``stale``: the connection was of an earlier time, and another one may do. ``error``: what
    ``before_final_dot`` raised. ``reply``: that by which the relay ended the session, if it did.
    """

    reason: str
    stale: bool
    error: BaseException | None = None
    reply: Reply | None = None


class TransferChoices(TypedDict):
    """``secure``: the connection is encrypted. ``lmtp``: the relay replies to the final dot for
    each accepted recipient (RFC 2033, 4.2)."""

    timeouts: Timeouts
    options: SessionOptions
    memory: RelayMemory
    secure: bool
    lmtp: bool


class TransferState:
    """See the module. The arguments and public attributes are those of MailTransfer, and

    ================== ====================================================================
    ``mails``          the mails without an outcome, in their order
    ``at``             the mail whose commands or text leave now
    ``unsent``         commands that may leave later
    ``awaiting``       commands that have left, and whose reply has not come
    ``in_transaction`` the relay holds a mail transaction
    ``has_answered``   the relay has answered for a mail
    ``cut``            why the last write failed: nothing more leaves, replies may still come
    ``closing``        the 421 by which the relay announced that it closes
    ``ended_by``       the reply by which the relay ended the session
    ``window``         how many mails may be in flight by BDAT
    ================== ====================================================================
    """

    def __init__(
        self,
        name: str,
        extensions: Extensions,
        reader: ReplyReader,
        **choices: Unpack[TransferChoices],
    ) -> None:
        self.name = name
        self.outcomes: deque[Outcome] = deque()
        self.end: SessionEnd | None = None
        self.may_quit = True
        self.before_final_dot: BeforeFinalDot | None = None
        self.extensions = extensions
        self.reader = reader
        self.timeouts = choices['timeouts']
        self.options = choices['options']
        self.memory = choices['memory']
        self.secure = choices['secure']
        self.lmtp = choices['lmtp']
        self.max_pipelined = MAX_PIPELINED_COMMANDS if extensions.pipelining else 1
        self.window = self.options.window if extensions.chunking and self.pipelines else 1
        self.mails: deque[MailTransaction] = deque()
        self.at: MailTransaction | None = None
        self.unsent: deque[Command] = deque()
        self.awaiting: deque[Command] = deque()
        self.in_transaction = False
        self.has_answered = False
        self.cut = ''
        self.closing = ''
        self.ended_by: Reply | None = None

    @property
    def pipelines(self) -> bool:
        """Whether a mail's commands may leave before the mail in front of it has its reply."""
        # If an LMTP service sent too few replies to the text, the replies to the commands behind
        # it would be taken for those of recipients.
        return self.extensions.pipelining and not self.lmtp

    def open_transaction(self, mail: MailTransaction, *, data: bool, reset: bool = False) -> None:
        """Make the commands of the mail's next transaction.

        ``data``: DATA as well. ``reset``: RSET even if it is not needed.
        """
        limit = self.recipient_limit
        mail.asked, mail.todo = mail.todo[:limit], mail.todo[limit:]
        mail.stage, mail.surplus, mail.behind_dot = 'commands', 0, False
        if self.in_transaction or reset:
            # The relay still holds a mail that ended before its text.
            self.unsent.append(Command('RSET', b'RSET\r\n', mail))
        self.unsent.append(Command('MAIL', self.extensions.mail(mail.envelope, mail.asked), mail))
        for recipient in mail.asked:
            self.unsent.append(Command('RCPT', self.extensions.rcpt(recipient), mail, recipient))
        if data:
            self.unsent.append(Command('DATA', b'DATA\r\n', mail))
        self.at = mail

    @property
    def in_text(self) -> bool:
        """Whether the relay waits for text by DATA, or for the rest of it."""
        return self.at is not None and self.at.stage == 'text'

    @property
    def recipient_limit(self) -> int:
        """How many recipients a mail transaction has, at most."""
        learned = self.memory.max_recipients
        limit = self.options.max_recipients
        return limit if learned is None else min(limit, learned)

    def next_group(self, mail: MailTransaction, *, behind_dot: bool = False) -> bytes:
        """Return the command lines that may leave now."""
        unsent = self.unsent
        room = self.max_pipelined - len(self.awaiting)
        group = [unsent.popleft() for _ in range(min(room, len(unsent)))]
        if behind_dot:
            size = 0
            for number, command in enumerate(group):
                size += len(command.line)
                if size > MAX_BYTES_BEHIND_DOT:
                    unsent.extendleft(reversed(group[number:]))
                    del group[number:]
                    break
        self.awaiting.extend(group)
        mail.replies_due += len(group)
        return b''.join([command.line for command in group])

    def abort(self, error: BaseException) -> None:
        """The mail must not leave: the transfer stops in the middle of its text."""
        self.may_quit = False
        self.stop('the session is closed', stale=True, error=error)

    def accept(self, command: Command) -> None:
        """The relay accepted RSET, MAIL or RCPT."""
        mail = command.mail
        if command.verb == 'RCPT':
            mail.accepted.append(command.recipient)
            self.memory.accepted()
        elif command.verb == 'MAIL':
            mail.answered = self.in_transaction = True
        else:
            self.in_transaction = False

    def refuse(self, command: Command, reply: Reply) -> None:
        """The relay refused MAIL, RCPT or DATA with a 4xx or 5xx."""
        verb, mail = command.verb, command.mail
        if verb == 'MAIL':
            mail.answered, self.in_transaction = True, False
            if not mail.chunked:
                self.unsent.clear()
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
                self.memory.too_many_recipients(len(mail.accepted))
        else:
            # In a later transaction of this mail 552 still means too many recipients.
            too_many = is_too_many_recipients(reply) and mail.ambiguous
            mail.verdicts[command.recipient] = refusal(reply, too_many=too_many)

    def has_unread(self, *, text_follows: bool = False) -> bool:
        """Return whether the relay sent a reply too many: it would be taken for the reply to the
        next command. Allowed are 421, at any time (RFC 5321, 3.8), and a refusal where
        ``text_follows``."""
        if self.awaiting:
            return False
        unread = self.reader.unread
        if not unread or unread == b'421':
            return False
        return not (text_follows and unread[:1] in (b'4', b'5'))

    def defer_rest(self, mail: MailTransaction, reason: str) -> None:
        """Defer the recipients without a verdict."""
        verdict = Verdict('deferred', self.ended_by, f'{self.name}: {reason}')
        mail.set_missing_verdicts(mail.envelope.recipients, verdict)
        mail.todo, mail.asked, mail.accepted = [], [], []
        mail.replies_due, mail.session_failure, mail.stage = 0, None, 'sent'

    def drop(self, mail: MailTransaction, reason: str) -> None:
        """The connection is lost, and this attempt counts for a mail."""
        self.may_quit = False
        self.defer_rest(mail, reason)
        self.stop(reason, stale=True)

    def stop(self, reason: str, *, stale: bool, error: BaseException | None = None) -> None:
        """Send nothing more. The first reason counts."""
        self.awaiting.clear()
        self.unsent.clear()
        self.at = None
        if self.end is None:
            self.end = SessionEnd(reason, stale, error, self.ended_by)
            for mail in self.mails:
                if mail.ambiguous and not mail.complete:
                    # Some recipients have their replies: these count.
                    self.defer_rest(mail, reason if error is None else str(error))
            self.finish_mails()

    def finish_mails(self) -> None:
        """Hand out the outcomes of the mails that are complete, in order."""
        mails = self.mails
        while mails and mails[0].complete:
            mail = mails.popleft()
            self.has_answered = self.has_answered or mail.answered
            self.outcomes.append(mail.outcome)

    def announce_closing(self, reply: Reply, reason: str) -> None:
        """The relay has announced by 421 that it closes the connection (RFC 5321, 3.8)."""
        self.closing = self.closing or reason
        self.ended_by = self.ended_by or reply

    def end_session(
        self,
        mail: MailTransaction,
        reply: Reply | None,
        reason: str,
        *,
        stale: bool,
        closing: bool = False,
    ) -> None:
        """The relay takes no more mail in this session. ``reply``: that by which it refuses more,
        unless it has had enough of this session alone. ``stale``: in another one it may.
        ``closing``: it closes the connection."""
        self.ended_by = reply
        self.may_quit = not (closing or self.awaiting)
        if mail.is_untouched(self.has_answered):
            self.stop(reason, stale=stale and self.has_answered)
        else:
            self.may_quit = False
            self.defer_rest(mail, f'the connection was lost: {reason}')
            self.stop(reason, stale=stale)

    def ask_again(self, command: Command) -> None:
        """Have another transaction ask for the recipients of a command that came too early."""
        verb, mail = command.verb, command.mail
        if verb == 'RCPT':
            again = [command.recipient]
        else:
            again = list(mail.accepted if verb == 'DATA' else mail.asked)
            mail.accepted, mail.discarding = [], verb != 'DATA'
            self.unsent.clear()
            # The relay may hold the mail that it did not want now.
            self.in_transaction = True
        mail.asked = [each for each in mail.asked if each not in again]
        mail.todo = again + mail.todo

    def is_mails_fault(self, mail: MailTransaction, reply: Reply) -> bool:
        """Decide whether commands that were all refused as such are the mail's fault; if not, end
        the session."""
        if self.memory.blames_mail(mail.envelope.id):
            return True
        verb = 'RCPT' if self.in_transaction else 'MAIL'
        reason = session_failure_reason(verb, reply, secure=self.secure)
        if mail.ambiguous:
            self.defer_rest(mail, reason)
        self.stop(reason, stale=False)
        return False
