"""The EnvelopeFactory: it verifies a message and the options of ``send``, and makes the envelope.

Whatever can be wrong with a message is found here, before anything is queued.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.headerregistry import Address
from email.message import Message as AnyMessage
from typing import Any

from ..envelope import Envelope, Priority, ReadOnlyDict
from ..exceptions import MessageError
from .address import (
    Addresses,
    Group,
    Mailbox,
    check_senders,
    mailboxes,
    parse_address,
    parse_addresses,
)
from .address_header import address_line
from .attachment import size_text
from .frozen import MIME_VERSION, Frozen, unique_addresses
from .headers import (
    ADDRESS_HEADERS,
    check_date,
    check_header_size,
    check_message_id,
    check_name,
    check_text,
    date_line,
    excerpt,
    holds_identifiers,
    structured_line,
    unstructured_line,
)
from .message import Message
from .options import checked_metadata, checked_priority, checked_tag, checked_time
from .structure import content_tree
from .verify import verify

__all__ = ['EnvelopeFactory']


@dataclass(frozen=True, slots=True)
class EnvelopeFactory:
    """Makes envelopes of messages. Raises MessageError for settings that cannot be used."""

    default_sender: str | None = None
    """``From:`` if the message has none."""
    envelope_sender: str | None = None
    """``MAIL FROM`` if it is not the address of ``From:``."""
    hostname: str = 'localhost'
    """Right side of message ids; never resolved."""
    max_size: int = 25 * 1024 * 1024
    """Bytes of a message, headers included."""
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        check_senders(self.default_sender, self.envelope_sender)
        check_message_id(f'<1@{self.hostname}>', 'mail.hostname')

    def envelope(
        self,
        message: object,
        *,
        sender: str | Address | None = None,
        recipients: Addresses | None = None,
        due: datetime | timedelta | None = None,
        expires: datetime | timedelta | None = None,
        priority: Priority | None = None,
        metadata: Mapping[str, str] | None = None,
        depth: int = 0,
    ) -> Envelope:
        """Verify a message and the options of IMailDelivery.send, and return the envelope.

        The message is not changed. Raises MessageError, whose text names the argument, the header
        or the recipient, and the remedy.
        """
        now = self.clock()
        # One system call for both ids; neither reveals anything about the other.
        digits = os.urandom(28).hex()
        message_id = f'<{digits[32:]}.{int(now * 1000):x}@{self.hostname}>'
        reverse_path = None
        if sender is not None:
            reverse_path = parse_address(sender, 'option sender') if sender != '' else ''
        forward_paths: tuple[str, ...] = ()
        sent_on: tuple[str, ...] | None = None
        if recipients is not None:
            given = parse_addresses(recipients, 'option recipients')
            forward_paths = unique_addresses(mailboxes(given))
            if reverse_path is not None:
                sent_on = (reverse_path, *forward_paths)
        frozen = self._freeze(message, message_id, now, sent_on)
        if recipients is None:
            forward_paths = frozen.recipients
        if not forward_paths:
            raise MessageError(
                'to: the message has no recipient; give to, cc, bcc or the option recipients (which'
                ' a message with Resent-To or Resent-Cc needs)'
            )
        due_at = now if due is None else max(now, checked_time(due, 'due', now))
        expires_at = None if expires is None else checked_time(expires, 'expires', now)
        if expires_at is not None and expires_at <= due_at:
            raise MessageError(
                f'expires: {excerpt(expires)} is not after the mail is due; give a later moment'
            )
        self._check_bytes(frozen)
        return Envelope(
            id=digits[:32],
            message_id=frozen.message_id,
            sender=frozen.sender if reverse_path is None else reverse_path,
            recipients=forward_paths,
            raw=frozen.raw,
            queued_at=now,
            due=due_at,
            expires=expires_at,
            priority='normal' if priority is None else checked_priority(priority),
            subject=frozen.subject,
            tag=frozen.tag,
            metadata=_NO_METADATA if metadata is None else checked_metadata(metadata),
            depth=depth,
        )

    def _freeze(
        self, message: object, message_id: str, now: float, sent_on: tuple[str, ...] | None
    ) -> Frozen:
        """Return a message of any kind as bytes; ``message_id`` is used if it has none.

        ``sent_on``: sender and recipients of an envelope that is given apart from the message.
        """
        if isinstance(message, Message):
            return self._freeze_own(message, message_id, now)
        if isinstance(message, AnyMessage):
            return self._freeze_foreign(message, None, message_id, now, sent_on)
        to_message = getattr(message, 'to_message', None)
        if not isinstance(message, type) and callable(to_message):
            given = self._converted(message)
            if isinstance(given, AnyMessage):
                send_to = getattr(message, 'send_to', None)
                return self._freeze_foreign(given, send_to, message_id, now, sent_on)
            raise MessageError(
                f'message: to_message() of {type(message).__name__} gave a '
                f'{type(given).__name__}; it has to give an email.message.EmailMessage'
            )
        raise MessageError(
            f'message: {type(message).__name__} is not a message; pass a pyramid_sendmail.Message, '
            'an email.message.EmailMessage, or an object with to_message()'
        )

    def _converted(self, message: Any) -> object:
        """Return what ``to_message()`` gives.

        pyramid_mailer's raises without a sender, so a copy with the default sender is asked.
        """
        if self.default_sender and getattr(message, 'sender', '') is None:
            message = copy(message)
            message.sender = self.default_sender
        converted: object = message.to_message()
        return converted

    def _freeze_own(self, message: Message, message_id: str, now: float) -> Frozen:
        to = parse_addresses(message.to, 'to')
        cc = parse_addresses(message.cc, 'cc')
        bcc = parse_addresses(message.bcc, 'bcc')
        reply_to = parse_addresses(message.reply_to, 'reply_to')
        given = _checked_headers(message.headers)
        senders = self._senders(message.sender, 'sender')
        head = {'From': address_line('From', senders)}
        if reply_to:
            head['Reply-To'] = address_line('Reply-To', reply_to)
        if to or not cc:
            head['To'] = address_line('To', to or (Group('undisclosed-recipients'),))
        if cc:
            head['Cc'] = address_line('Cc', cc)
        subject = check_header_size('subject', check_text(message.subject, 'subject'))
        head['Subject'] = unstructured_line('Subject', subject)
        for name, value in given.values():
            head[name] = _given_line(name, value)
        if 'message-id' in given:
            message_id = check_message_id(given['message-id'][1], 'Message-ID')
        content = content_tree(message.text, message.html, message.attachments, self.max_size)
        pieces = [*head.values()]
        unverified = b''.join([*pieces, content.unverified, b'\r\n'])
        # The remaining headers contain no application data.
        if 'date' not in given:
            pieces.append(date_line(now))
        if 'message-id' not in given:
            pieces.append(f'Message-ID: {message_id}\r\n'.encode('ascii'))
        if 'auto-submitted' not in given:
            pieces.append(b'Auto-Submitted: auto-generated\r\n')
        raw = b''.join([*pieces, MIME_VERSION, *content.pieces])
        sender = self._reverse_path(senders, given.get('sender', (None, None))[1])
        recipients = unique_addresses(mailboxes([*to, *cc, *bcc]))
        tag = None if message.tag is None else checked_tag(message.tag)
        names = [*head, *content.names]
        return Frozen(raw, message_id, sender, recipients, subject, tag, unverified, names)

    def _freeze_foreign(
        self,
        message: AnyMessage,
        send_to: Any,
        message_id: str,
        now: float,
        sent_on: tuple[str, ...] | None,
    ) -> Frozen:
        """Return a message of another library as bytes. See ForeignFreezer."""
        # Most applications send no such message, and each start would take 4 ms more.
        from .foreign_freeze import ForeignFreezer

        return ForeignFreezer(
            message,
            send_to,
            message_id,
            now,
            self.max_size,
            f'message: its content has more bytes than mail.max_size = {size_text(self.max_size)}; '
            'send less, or raise the setting',
            sent_on,
            self._senders,
            self._reverse_path,
        ).freeze()

    def _senders(self, given: Addresses | None, where: str) -> list[Mailbox]:
        if given is None:
            if not self.default_sender:
                raise MessageError(
                    f'{where}: the message has none; give it one, or set mail.default_sender'
                )
            given, where = self.default_sender, 'mail.default_sender'
        found = parse_addresses(given, where)
        if not found or Group in map(type, found):
            raise MessageError(
                f'{where}: {excerpt(given)} is not an address or a list of addresses'
            )
        return mailboxes(found)

    def _reverse_path(self, senders: Iterable[Mailbox], sender: object) -> str:
        """Return the envelope's sender; ``sender`` is the address of the header Sender."""
        first, *others = senders
        if others and sender is None:
            raise MessageError(
                "sender: several addresses in From need a Sender as well; give headers={'Sender': "
                'one of them} (RFC 5322, 3.6.2)'
            )
        if self.envelope_sender:
            return parse_address(self.envelope_sender, 'mail.envelope_sender')
        return parse_address(sender, 'Sender') if others else first.address

    def _check_bytes(self, frozen: Frozen) -> None:
        size = len(frozen.raw)
        if size > self.max_size:
            raise MessageError(
                f'message: its {size} bytes are more than mail.max_size = '
                f'{size_text(self.max_size)}; send less, or raise the setting'
            )
        verify(frozen.unverified, frozen.names, eight_bit=frozen.eight_bit)


def _checked_headers(headers: object) -> dict[str, tuple[str, Any]]:
    """Return the name and value of each given header, by its name in lower case."""
    if type(headers) is not ReadOnlyDict and not isinstance(headers, Mapping):
        raise MessageError(f'headers: {excerpt(headers)} is not a dict; give a dict of strings')
    given: dict[str, tuple[str, Any]] = {}
    for written, value in headers.items():
        name = check_name(written)
        key = name.lower()
        is_content = key.startswith('content-')
        instead = 'attachments, text and html' if is_content else _ARGUMENTS.get(key)
        if instead:
            raise MessageError(f'headers: {name} cannot be given here; use {instead}')
        if key in given:
            raise MessageError(f'headers: {name} is given twice; leave one out')
        are_addresses = key in ADDRESS_HEADERS and not isinstance(value, str)
        given[key] = (
            name,
            value
            if are_addresses
            else check_header_size(name, check_text(value, f'headers, {name}')),
        )
    return given


def _given_line(name: str, value: Any) -> bytes:
    key = name.lower()
    if key in ADDRESS_HEADERS:
        if key == 'sender':
            parse_address(value, name)
        return address_line(name, parse_addresses(value, name))
    if key == 'date':
        check_date(value, name)
    if holds_identifiers(name):
        return structured_line(name, value)
    return unstructured_line(name, value)


_NO_METADATA: Mapping[str, str] = ReadOnlyDict()

_ARGUMENTS = {
    'from': 'sender',
    'to': 'to',
    'cc': 'cc',
    'bcc': 'bcc',
    'resent-bcc': 'bcc',
    'reply-to': 'reply_to',
    'subject': 'subject',
    'return-path': 'the option sender of send',
    'mime-version': 'text, html and attachments',
    'dkim-signature': 'a signed message of the standard library, or let the relay sign',
}
"""What to use in place of headers that a Message makes of its arguments, and of a signature of
bytes that are not made yet."""
