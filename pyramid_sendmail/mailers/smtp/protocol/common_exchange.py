"""The common path: a mail for one recipient behind another, and a relay that accepts each.

So nearly all mail leaves once a session is under way: with the final dot of a mail leave MAIL, RCPT
and DATA of the next one, and the four replies to them come in one piece.

============ ========================================= =========================================
             ``first``                                 ``second``
============ ========================================= =========================================
``sending``  its text may leave: DATA has its 354      handed out, or None
``waiting``  its final dot has left                    its commands have left, behind that dot
============ ========================================= =========================================

The straight code does what MailTransfer does, and handles nothing else. Whatever is unusual is left
to MailTransfer: ``leave`` puts it into the state that it would be in if it had done all itself.
tests/unit/mailers/smtp/protocol/test_common_exchange.py compares the two.
"""

from __future__ import annotations

import re

from ....envelope import Envelope, Verdict
from .dot_stuffing import stuffed_text
from .state import MAX_BYTES_BEHIND_DOT
from .text import LAST_BYTES, OutgoingText
from .transaction import Command, MailTransaction
from .transfer import END_BYTES, MailTransfer

__all__ = ['REPLIES', 'CommonExchange']

REPLIES = 4
"""Replies in one piece: to the final dot, MAIL, RCPT and DATA."""

_USUAL_REPLIES = re.compile(
    rb'(2[0-9]{2} [ -~]{0,500}\r)\n'
    rb'2[0-9]{2} [ -~]{0,500}\r\n'
    rb'2[0-9]{2} [ -~]{0,500}\r\n'
    rb'3[0-9]{2} [ -~]{0,500}\r\n'
).fullmatch


class CommonExchange:
    """See the module. ``transfer``: the general code. ``active``: whether the straight code is in
    charge."""

    def __init__(self, transfer: MailTransfer) -> None:
        self.transfer = transfer
        self.active = False
        self.waiting = False
        self._possible = transfer.pipelines and transfer.window == 1
        self._first: Envelope
        self._second: Envelope | None = None
        self._commands = b''
        """Those of the second mail."""

    @property
    def wants_mail(self) -> bool:
        """See MailTransfer; while it is active."""
        return (
            not self.waiting and self._second is None and self.transfer.memory.pipelines_behind_dot
        )

    def enter(self) -> None:
        """Take over, if the text of a mail for one recipient is all that is under way."""
        transfer = self.transfer
        mail = transfer.at
        if (
            self._possible
            and mail is not None
            and mail.stage == 'text'
            and _is_common(mail.envelope)
            and len(transfer.mails) == 1
            and not transfer.reader.unread
        ):
            transfer.mails.clear()
            transfer.at = transfer.text = None
            self._first, self._second = mail.envelope, None
            self.active, self.waiting = True, False

    def send(self, envelope: Envelope) -> None:
        """See MailTransfer; while it is active."""
        extensions = self.transfer.extensions
        if _is_common(envelope) and not extensions.rejected_before_sending(envelope):
            [recipient] = envelope.recipients
            mail, rcpt = extensions.mail(envelope, (recipient,)), extensions.rcpt(recipient)
            commands = b'%b%bDATA\r\n' % (mail, rcpt)
            if len(commands) <= MAX_BYTES_BEHIND_DOT:
                self._second, self._commands = envelope, commands
                return
        self.leave()
        self.transfer.send(envelope)

    def data_to_send(self) -> bytes:
        """See MailTransfer; while it is active."""
        if self.waiting:
            return b''
        transfer, first = self.transfer, self._first
        if self._second is None or not transfer.memory.pipelines_behind_dot:
            self.leave()
            return transfer.data_to_send()
        text = stuffed_text(first)
        try:
            if transfer.before_final_dot is not None:
                transfer.before_final_dot(first, first.recipients)
        except BaseException as error:  # noqa: BLE001 - the driver raises it
            self.leave()
            transfer.abort(error)
            return b''
        self.waiting = True
        return text + self._commands

    def receive(self, data: bytes) -> bool:
        """Take the usual replies; return False for anything else, and have taken nothing."""
        found = _USUAL_REPLIES(data)
        if found is None:
            return False
        assert self._second is not None
        transfer = self.transfer
        verdict = Verdict('delivered', transfer.reader.reply_of_line(found[1]))
        transfer.outcomes.append({self._first.recipients[0]: verdict})
        transfer.has_answered = True
        transfer.memory.accepted()
        self._first, self._second = self._second, None
        self.waiting = False
        return True

    def leave(self) -> None:
        """Leave everything to the general code."""
        waiting, self.waiting, self.active = self.waiting, False, False
        transfer, first, second = self.transfer, self._first, self._second
        mail = MailTransaction(first, {}, [], answered=True)
        transfer.mails.append(mail)
        follower = None
        if second is not None:
            follower = MailTransaction(second, {}, list(second.recipients))
            transfer.mails.append(follower)
        if not waiting:
            mail.stage, mail.accepted = 'text', list(first.recipients)
            transfer.at, transfer.text = mail, OutgoingText(first)
            return
        mail.stage, mail.ambiguous, mail.replies_due = 'sent', True, 1
        transfer.in_transaction = False
        transfer.awaiting.append(Command('.', b'', mail, recipients=first.recipients))
        transfer.dot_bytes = END_BYTES + len(self._commands)
        assert follower is not None
        transfer.open_transaction(follower, data=True)
        follower.behind_dot = True
        transfer.next_group(follower, behind_dot=True)


def _is_common(envelope: Envelope) -> bool:
    """Return whether the mail has one recipient, and its text leaves in one part."""
    return len(envelope.recipients) == 1 and envelope.size <= LAST_BYTES
