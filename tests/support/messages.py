"""Messages for tests, what an EnvelopeFactory makes of them, and how it is read back."""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime
from email.message import EmailMessage
from email.message import Message as LegacyMessage
from typing import Any

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import SendmailError
from pyramid_sendmail.message import EnvelopeFactory, Message

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


PNG = b'\x89PNG\r\n\x1a\n' + bytes(range(256))


factory = EnvelopeFactory(
    default_sender='Shop <shop@example.org>', hostname='mail.example.org', clock=lambda: NOW
)


def plain(**given: Any) -> Message:
    return Message(**{'to': 'ann@example.org', 'subject': 'Hi', 'text': 'Hello', **given})


def freeze(message: object = None, **options: Any) -> Envelope:
    envelope = factory.envelope(plain() if message is None else message, **options)
    assert_wire(envelope.raw, sent_on='sender' in options and 'recipients' in options)
    return envelope


def assert_wire(raw: bytes, *, sent_on: bool = False) -> None:
    """The invariants of what leaves (RFC 5321, 2.3.8; RFC 5322, 2.1.1)."""
    assert re.fullmatch(rb'(?:[^\r\n\0]*\r\n)*', raw)
    assert max(map(len, raw.split(b'\r\n'))) <= 998
    # Signed content that is sent on is not changed.
    may_be_signed = sent_on and b'multipart/signed' in raw.lower()
    assert raw.partition(b'\r\n\r\n')[2].isascii() or may_be_signed
    head = raw.partition(b'\r\n\r\n')[0]
    assert not re.search(rb'(?im)^(resent-)?bcc:', head)
    for name in (b'From', b'Date', b'Message-ID', b'MIME-Version'):
        assert len(re.findall(rb'(?im)^' + name + rb':', head)) == 1


def read(envelope: Envelope) -> EmailMessage:
    message = email.message_from_bytes(envelope.raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects
    return message


def shape(part: Any) -> Any:
    kind = part.get_content_type()
    return {kind: [shape(child) for child in part.get_payload()]} if part.is_multipart() else kind


def email_message(**headers: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in {'From': 'a@x', 'To': 'ann@x', 'Subject': 'Hi', **headers}.items():
        message[name.replace('_', '-')] = value
    message.set_content('Hello')
    return message


def parsed(text: str | bytes, policy: Any = email.policy.default) -> Any:
    data = text.encode() if isinstance(text, str) else text
    return email.message_from_bytes(data.replace(b'\n', b'\r\n'), policy=policy)


def legacy_message(*headers: tuple[str, Any], payload: Any = 'x') -> LegacyMessage:
    message = LegacyMessage()
    for name, value in (('To', 'a@x'), *headers):
        message[name] = value
    message.set_payload(payload)
    return message


def assert_refused(error: Exception, named: str) -> None:
    assert re.search(named, str(error)), str(error)
    assert isinstance(error, ValueError)
    assert isinstance(error, SendmailError)
    assert len(str(error)) < 400
    assert str(error).isprintable()
