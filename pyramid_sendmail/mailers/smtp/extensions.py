"""What a relay offers, what we want of it, and the commands that follow (RFC 5321, 2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...envelope import Envelope, Reply, Verdict
from ..path_syntax import is_path

__all__ = ['Extensions', 'SessionOptions', 'closes', 'is_crowded', 'refusal', 'xtext']

_NOTIFY = ('success', 'failure', 'delay')

_RET = {'full': 'FULL', 'headers': 'HDRS'}

_ENHANCED = re.compile(r'[245]\.([0-9]{1,3}\.[0-9]{1,3})(?![0-9.])')

_TOO_MANY_RECIPIENTS = '5.3'

_CLOSED = frozenset({421, 530, 534, 535, 538})


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How we speak to a relay. Raises ValueError naming the option.

    ``pipelining``: whether to make use of it where it is offered (RFC 2920). ``window``: how many
    mails are under way on a connection at once, where PIPELINING and CHUNKING are offered (RFC
    3030); 1 is no more than the next one's commands. ``max_recipients``: a mail to more of them
    is sent in several mail transactions; RFC 5321, 4.5.3.1.8 has every relay take 100.
    ``notify``, ``ret``: which reports the envelope sender wants from relays that offer DSN, and
    what they hold (RFC 3461, 4.1 and 4.3): 'never', or any of 'success', 'failure' and 'delay';
    'full' or 'headers'.
    """

    pipelining: bool = True
    window: int = 1
    max_recipients: int = 100
    notify: tuple[str, ...] = ()
    ret: str = ''

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f'window={self.window}: write 1 or more')
        if self.max_recipients < 1:
            raise ValueError(f'max_recipients={self.max_recipients}: write 1 or more')
        if self.notify != ('never',) and (
            len(set(self.notify)) != len(self.notify) or not set(self.notify) <= set(_NOTIFY)
        ):
            raise ValueError(
                f'notify={",".join(self.notify)}: write never, or some of {", ".join(_NOTIFY)} '
                'with commas between them'
            )
        if self.ret and self.ret not in _RET:
            raise ValueError(f'ret={self.ret}: write {" or ".join(_RET)}')


class Extensions:
    """Puts a mail into the commands that this relay understands.

    ``offered``: EHLO's keywords, with their parameters.
    """

    def __init__(self, offered: Mapping[str, str], options: SessionOptions) -> None:
        limit = offered.get('SIZE', '')
        self.pipelining = options.pipelining and 'PIPELINING' in offered
        self._max_size = int(limit) if limit.isascii() and limit.isdigit() else 0
        self._size = 'SIZE' in offered
        self._eight_bit = '8BITMIME' in offered
        self._unicode = 'SMTPUTF8' in offered
        self._reports = 'DSN' in offered and bool(options.notify or options.ret)
        self._notify = ','.join(options.notify).upper()
        self._ret = _RET.get(options.ret, '')

    def unfit(self, envelope: Envelope) -> dict[str, Verdict]:
        """Verdicts for the recipients that this relay cannot be asked about."""
        unicode_path = 'the relay takes no non-ASCII addresses (SMTPUTF8)'
        reason = ''
        if envelope.sender and not is_path(envelope.sender):
            reason = f'the sender {envelope.sender!r} is no address'
        elif not envelope.has_crlf:
            reason = 'the message has line ends other than CRLF'
        elif self._max_size and envelope.size > self._max_size:
            reason = (
                f'the message has {envelope.size} octets, '
                f'and the relay takes {self._max_size} (SIZE)'
            )
        elif not self._eight_bit and not envelope.is_ascii:
            reason = 'the message is not ASCII, and the relay takes nothing else (8BITMIME)'
        elif not self._unicode:
            if not envelope.sender.isascii():
                reason = unicode_path
            elif not envelope.has_ascii_head:
                reason = 'the message has non-ASCII headers, and the relay takes none (SMTPUTF8)'
        verdicts = {}
        for recipient in envelope.recipients:
            if reason:
                verdicts[recipient] = Verdict('failed', None, reason)
            elif not is_path(recipient):
                verdicts[recipient] = Verdict('failed', None, f'{recipient!r} is no address')
            elif not recipient.isascii() and not self._unicode:
                verdicts[recipient] = Verdict('failed', None, unicode_path)
        return verdicts

    def mail(self, envelope: Envelope, recipients: Iterable[str]) -> bytes:
        """The MAIL command for a mail to these (RFC 1870, 3; 6152, 3; 6531, 3.4; 3461, 4)."""
        command = f'MAIL FROM:<{envelope.sender}>'
        if self._size:
            command += f' SIZE={envelope.size}'
        unicode = not (envelope.sender.isascii() and ''.join(recipients).isascii())
        if not envelope.is_ascii:
            command += ' BODY=8BITMIME'
            unicode = unicode or not envelope.has_ascii_head
        if unicode:
            command += ' SMTPUTF8'
        if self._reports:
            if self._ret:
                command += f' RET={self._ret}'
            command += f' ENVID={xtext(envelope.id)}'
        return command.encode() + b'\r\n'

    def rcpt(self, recipient: str) -> bytes:
        """The RCPT command (RFC 3461, 4.1 and 4.2)."""
        command = f'RCPT TO:<{recipient}>'
        if self._reports:
            if self._notify:
                command += f' NOTIFY={self._notify}'
            # A non-ASCII address needs a type of its own there (RFC 6533), and may go without.
            if recipient.isascii():
                command += f' ORCPT=rfc822;{xtext(recipient)}'
        return command.encode() + b'\r\n'


def xtext(text: str) -> str:
    """Return ASCII text as a parameter's value (RFC 3461, 4). Raises ValueError for other text."""
    if not text.isascii():
        raise ValueError(f'{text!r} is not ASCII')
    return ''.join(
        letter if '!' <= letter <= '~' and letter not in '+=' else f'+{ord(letter):02X}'
        for letter in text
    )


def closes(reply: Reply) -> bool:
    """Whether an answer, up to DATA, closes the road."""
    return reply.code in _CLOSED or (reply.code == 454 and reply.text.startswith('4.7.'))


def refusal(reply: Reply, *, crowded: bool = False) -> Verdict:
    """What a refusal means for a recipient. ``crowded``: 552 then says that there are too many
    recipients, for now (RFC 5321, 4.5.3.1.10)."""
    passing = reply.code // 100 == 4 or (crowded and reply.code == 552)
    return Verdict('deferred' if passing else 'failed', reply)


def is_crowded(reply: Reply) -> bool:
    """Whether a refused recipient may be one too many for one mail transaction.

    452 says so, and 552 for relays of before RFC 5321 (4.5.3.1.10); where there is an enhanced
    code as well, it must be X.5.3 (RFC 3463, 3.6), since a full mailbox has the same 452.
    """
    enhanced = _ENHANCED.match(reply.text)
    return reply.code in (452, 552) and (
        enhanced is None or enhanced.group(1) == _TOO_MANY_RECIPIENTS
    )
