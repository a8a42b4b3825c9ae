"""What a relay offers, the commands that it understands, and what its refusals mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ....envelope import Envelope, Reply, Verdict
from ...path_syntax import is_valid_path
from ..options import SessionOptions

__all__ = [
    'Extensions',
    'final_verdict',
    'is_command_error',
    'is_sequence_error',
    'is_session_failure',
    'is_session_full',
    'is_too_many_recipients',
    'names_recipient_limit',
    'refusal',
    'session_failure_reason',
    'starttls_remedy',
    'xtext',
]

_RET = {'full': 'FULL', 'headers': 'HDRS'}

_ENHANCED_CODE = re.compile(r'[245]\.([0-9]{1,3}\.[0-9]{1,3})(?![0-9.])')

_TOO_MANY_RECIPIENTS = '5.3'  # RFC 3463, 3.6

_SESSION_FAILURES = frozenset({421, 530, 534, 535, 538})

_COMMAND_ERRORS = frozenset({500, 502, 503, 504})


class Extensions:
    """Puts a mail into commands that this relay understands (RFC 5321, 2.2).

    ``offered``: the keywords of the reply to EHLO, with their parameters.
    """

    def __init__(self, offered: Mapping[str, str], options: SessionOptions) -> None:
        limit = offered.get('SIZE', '')
        self.pipelining = options.pipelining and 'PIPELINING' in offered
        self.chunking = 'CHUNKING' in offered
        self._max_size = int(limit) if limit.isascii() and limit.isdigit() else 0
        self._size = 'SIZE' in offered
        self._eight_bit = '8BITMIME' in offered
        self._unicode = 'SMTPUTF8' in offered
        self._reports = 'DSN' in offered and bool(options.notify or options.ret)
        self._notify = ','.join(options.notify).upper()
        self._ret = _RET.get(options.ret, '')

    def rejected_before_sending(self, envelope: Envelope) -> dict[str, Verdict]:
        """Return verdicts for the recipients that are rejected before sending: the relay does not
        offer what they need."""
        unicode_path = 'the relay takes no non-ASCII addresses (SMTPUTF8)'
        reason = ''
        if envelope.sender and not is_valid_path(envelope.sender):
            reason = f'the sender {envelope.sender!r} is no address'
        elif not envelope.has_crlf:
            reason = 'the message has line ends other than CRLF'
        elif self._max_size and envelope.size > self._max_size:
            reason = (
                f'the message has {envelope.size} bytes, '
                f'and the relay takes {self._max_size} (SIZE)'
            )
        elif not self._eight_bit and not envelope.is_ascii:
            reason = (
                'the message is not ASCII, and the relay takes nothing else (8BITMIME); it is not '
                'encoded anew, which would break a signature: use a relay that takes it, or sign '
                'content that is quoted-printable or base64'
            )
        elif not self._unicode:
            if not envelope.sender.isascii():
                reason = unicode_path
            elif not envelope.has_ascii_head:
                reason = 'the message has non-ASCII headers, and the relay takes none (SMTPUTF8)'
        verdicts = {}
        for recipient in envelope.recipients:
            if reason:
                verdicts[recipient] = Verdict('failed', None, reason)
            elif not is_valid_path(recipient):
                verdicts[recipient] = Verdict('failed', None, f'{recipient!r} is no address')
            elif not recipient.isascii() and not self._unicode:
                verdicts[recipient] = Verdict('failed', None, unicode_path)
        return verdicts

    def mail(self, envelope: Envelope, recipients: Iterable[str]) -> bytes:
        """Return MAIL for a mail to these (RFC 1870, 3; 6152, 3; 6531, 3.4; 3461, 4)."""
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
        """Return RCPT for a recipient (RFC 3461, 4.1 and 4.2)."""
        command = f'RCPT TO:<{recipient}>'
        if self._reports:
            if self._notify:
                command += f' NOTIFY={self._notify}'
            # A non-ASCII address would need another type (RFC 6533); ORCPT is optional.
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


def is_session_failure(reply: Reply) -> bool:
    """Return whether a reply, before the text, is about the session and not about the mail."""
    return reply.code in _SESSION_FAILURES or (reply.code == 454 and reply.text.startswith('4.7.'))


def is_session_full(reply: Reply) -> bool:
    """Return whether a reply to MAIL may mean that the session has sent as many mails as it may."""
    return reply.code == 452 and is_too_many_recipients(reply)


def is_command_error(reply: Reply) -> bool:
    """Return whether a refusal of MAIL or RCPT is about the command or the session (RFC 5321,
    4.2.4), and not about a sender or recipient."""
    return reply.code in _COMMAND_ERRORS


def is_sequence_error(reply: Reply) -> bool:
    """Return whether a command was refused because of its place among the others."""
    return reply.code == 503


def session_failure_reason(verb: str, reply: Reply, *, secure: bool) -> str:
    """Return why a reply to a command ended the session, with what to do about it.

    ``secure``: the connection is encrypted.
    """
    remedy = starttls_remedy(reply, secure=secure)
    text = reply.text.upper()
    if not remedy and (reply.code == 530 or (is_command_error(reply) and 'AUTH' in text)):
        remedy = 'see mail.username and mail.password'
    elif is_command_error(reply) and ('HELO' in text or 'EHLO' in text or 'LHLO' in text):
        remedy = 'it does not accept our name: see mail.hostname'
    return f'{verb} was answered {reply}' + (f'; {remedy}' if remedy else '')


def starttls_remedy(reply: Reply, *, secure: bool) -> str:
    """Return what to do if the relay demands TLS on a connection without it, or ''."""
    if reply.code == 530 and not secure and 'STARTTLS' in reply.text.upper():
        return (
            'the relay demands TLS: add ?tls=required to mail.url, without +insecure in its scheme'
        )
    return ''


def is_too_many_recipients(reply: Reply) -> bool:
    """Return whether a refused recipient may be one too many for one mail transaction.

    452 says so, and so does 552 from relays older than RFC 5321 (4.5.3.1.10). An enhanced code
    beside it must be X.5.3 (RFC 3463, 3.6): a full mailbox is 452 as well.
    """
    enhanced = _ENHANCED_CODE.match(reply.text)
    return reply.code in (452, 552) and (
        enhanced is None or enhanced.group(1) == _TOO_MANY_RECIPIENTS
    )


def names_recipient_limit(reply: Reply) -> bool:
    """Return whether a refused recipient is certainly one too many: by its enhanced code."""
    enhanced = _ENHANCED_CODE.match(reply.text)
    return enhanced is not None and enhanced.group(1) == _TOO_MANY_RECIPIENTS


def refusal(reply: Reply, *, too_many: bool = False) -> Verdict:
    """Return the verdict for a refused recipient: deferred for 4xx, failed for 5xx.

    ``too_many``: the relay took as many recipients as it can; 552 is temporary then (RFC 5321,
    4.5.3.1.10). A refusal of the command as such is not about the recipient, and temporary.
    """
    temporary = (
        reply.code // 100 == 4 or (too_many and reply.code == 552) or is_command_error(reply)
    )
    return Verdict('deferred' if temporary else 'failed', reply)


def final_verdict(reply: Reply) -> Verdict:
    """Return the verdict for a reply to the whole message."""
    if reply.code < 400:
        return Verdict('delivered', reply)
    return Verdict('deferred' if reply.code // 100 == 4 else 'failed', reply)
