"""The mails that all contenders send, as plain data: imported in every environment."""

from __future__ import annotations

import random
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import EmailPolicy, default

__all__ = [
    'KINDS',
    'RECIPIENT',
    'RECIPIENT_ADDRESS',
    'SENDER',
    'SENDER_ADDRESS',
    'Mail',
    'email_message',
    'mail_of',
    'wire',
]

SENDER = 'The Shop <shop@example.org>'
RECIPIENT = 'Ann <ann@example.org>'
SENDER_ADDRESS = 'shop@example.org'
RECIPIENT_ADDRESS = 'ann@example.org'

KINDS = ('2k', '50k', '5m')
"""By their size on the wire: plain ASCII text; text and html in UTF-8; a binary attachment."""

_LINE = 'A line of an ordinary mail, about as long as such lines are.\n'
_ACCENTS = "Ein für Größe gewöhnlicher Satz, où l'été est déjà passé, à peu près."


@dataclass(frozen=True, slots=True)
class Mail:
    """What an application has to say."""

    subject: str
    text: str
    html: str | None = None
    attachment: bytes | None = None


def mail_of(kind: str) -> Mail:
    """The mail of one of KINDS."""
    if kind == '2k':
        return Mail('A benchmark', _LINE * 28)
    if kind == '50k':
        text = f'{_ACCENTS}\n' * 220
        html = f'<html><body>\n{f"<p>{_ACCENTS}</p>{chr(10)}" * 260}</body></html>\n'
        return Mail('Über einen Versuch', text, html)
    if kind == '5m':
        return Mail('The file', _LINE, attachment=random.Random(5).randbytes(3_700_000))
    raise ValueError(f'{kind!r}: write one of {", ".join(KINDS)}')


def email_message(mail: Mail, policy: EmailPolicy = default) -> EmailMessage:
    """The mail by the standard library, as its documentation would make it."""
    message = EmailMessage(policy)
    message['From'] = SENDER
    message['To'] = RECIPIENT
    message['Subject'] = mail.subject
    message.set_content(mail.text)
    if mail.html is not None:
        message.add_alternative(mail.html, subtype='html')
    if mail.attachment is not None:
        message.add_attachment(
            mail.attachment, maintype='application', subtype='octet-stream', filename='file.bin'
        )
    return message


def wire(kind: str) -> bytes:
    """The mail as bytes, made once, for contenders that only move bytes."""
    return email_message(mail_of(kind)).as_bytes().replace(b'\r\n', b'\n').replace(b'\n', b'\r\n')
