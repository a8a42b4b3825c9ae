"""Mail for real relays, and what has become of it there."""

from __future__ import annotations

import re
import secrets

from pyramid_sendmail.envelope import Envelope, Outcome

__all__ = ['BODIES', 'fronted', 'make_mail', 'statuses']

BODIES = {
    'plain': b'Hello.\r\n',
    'empty': b'',
    'no end of line': b'Hello.',
    'dots': b'.\r\n..\r\n...\r\n.x\r\n..x\r\nx.\r\n',
    'a dot at the end': b'Hello.\r\n.',
    'empty lines': b'\r\n\r\n\r\nHello.\r\n\r\n\r\n',
    'blanks': b' \r\n\t\r\nHello. \t \r\n',
    'a mailbox line': b'From someone Mon Nov 23 00:00:00 2026\r\n>From\r\n',
    'a mail in the mail': (
        b'.\r\nMAIL FROM:<eve@example.org>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\n'
        b'Subject: smuggled\r\n\r\nHello.\r\n.\r\nQUIT\r\n'
    ),
    'long lines': b'\r\n'.join((b'a' * 998, b'.' * 998, b'.' + b'b' * 997, b'\xc3\xa4' * 499, b'')),
    '8 bit': 'Grüße, žluťoučký kůň, 猫\r\n'.encode(),
    'no text': bytes(range(1, 10)) + b'\x0b\x0c' + bytes(range(14, 32)) + b'\x7f\xff\xfe\r\n',
    'as large as a block': (b'x' * 62 + b'\r\n') * 256,
    'larger than buffers': (b'.' * 62 + b'\r\n') * 2_500,
}
"""Bodies that a relay, or what we say to it, might spoil."""

_TRACE = re.compile(
    rb'((Received|Return-Path|Delivered-To|Content-Disposition|Authentication-Results):.*\r\n'
    rb'([ \t].*\r\n)*)*',
    re.IGNORECASE,
)
"""Header fields that a relay may put in front (RFC 5321, 4.4). Content-Disposition is what
OpenSMTPD's program says of long lines, Authentication-Results what Haraka says of a password."""


def make_mail(
    sender: str, *recipients: str, body: bytes = b'Hello.\r\n', queued_at: float = 0.0
) -> Envelope:
    """A mail of ours, which has every header field that a relay might add."""
    id = secrets.token_hex(16)
    message_id = f'<{id}@web.example.org>'
    head = (
        f'Message-ID: {message_id}\r\nDate: Mon, 23 Nov 2026 00:00:00 +0000\r\n'
        'From: shop@example.org\r\nTo: ann@example.org\r\nSubject: Welcome\r\n'
        'MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n'
        'Content-Transfer-Encoding: 8bit\r\n\r\n'
    )
    return Envelope(
        id=id,
        message_id=message_id,
        sender=sender,
        recipients=recipients or ('ann@example.org',),
        raw=head.encode() + body,
        queued_at=queued_at,
    )


def fronted(content: bytes, raw: bytes) -> bool:
    """Whether a relay has what it was sent, byte for byte, below headers of its own, if it has any.

    A last line without an end has one there, since SMTP knows lines only.
    """
    if not raw.endswith(b'\r\n'):
        raw += b'\r\n'
    front = content.removesuffix(raw)
    return content.endswith(raw) and _TRACE.fullmatch(front) is not None


def statuses(outcome: Outcome) -> dict[str, str]:
    return {recipient: verdict.status for recipient, verdict in outcome.items()}
