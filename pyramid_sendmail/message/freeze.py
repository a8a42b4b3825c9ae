"""The EnvelopeFactory, which makes an envelope of a message.

Everything that can be wrong with a message is found here, before anything is queued.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from email.message import Message as AnyMessage
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

from ..envelope import Draft, Envelope, Priority
from ..exceptions import MessageError
from .address import (
    Addresses,
    Group,
    Mailbox,
    address_line,
    check_senders,
    mailboxes,
    parse_address,
    parse_addresses,
    same,
)
from .attachment import size_text
from .headers import (
    ADDRESSES,
    check_date,
    check_message_id,
    check_name,
    check_text,
    date_line,
    is_identifier,
    shown,
    structured,
    unstructured,
)
from .message import Message
from .options import checked_metadata, checked_tag, moment
from .structure import content_tree
from .verify import verify

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from email.headerregistry import Address

__all__ = ['EnvelopeFactory']

_Look = tuple[bytes, list[str]]
"""What of a message has to be looked at once more, and the names of the headers there."""


@dataclass(frozen=True, slots=True)
class EnvelopeFactory:
    """Makes envelopes of messages. Raises MessageError for settings that cannot be used."""

    default_sender: str | None = None
    """``From:`` when the message has none."""
    envelope_sender: str | None = None
    """``MAIL FROM``; without it, the address of ``From:``."""
    hostname: str = 'localhost'
    """Right side of message ids; never resolved."""
    max_size: int = 25 * 1024 * 1024
    """Octets of a message, headers included."""
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
        """Verify a message and the options of IMailDelivery.send, and freeze them.

        The message itself is never changed. Raises MessageError, whose text names the argument,
        the header or the recipient, and the remedy.
        """
        now = self.clock()
        # One call of the system for both; neither tells anything about the other.
        digits = os.urandom(28).hex()
        draft = Draft(
            id=digits[:32],
            message_id=f'<{digits[32:]}.{int(now * 1000):x}@{self.hostname}>',
            queued_at=now,
            due=now,
            depth=depth,
        )
        look = self._write(draft, message)
        if sender is not None:
            draft.sender = parse_address(sender, 'option sender') if sender != '' else ''
        if recipients is not None:
            given = parse_addresses(recipients, 'option recipients')
            draft.recipients = _each_once(mailboxes(given))
        if not draft.recipients:
            raise MessageError(
                'to: the message has no recipient; give to, cc, bcc or the option recipients (which'
                ' a message with Resent-To or Resent-Cc needs)'
            )
        if due is not None:
            draft.due = max(now, moment(due, 'due', now))
        if expires is not None:
            draft.expires = moment(expires, 'expires', now)
            if draft.expires <= draft.due:
                raise MessageError(
                    f'expires: {shown(expires)} is not after the mail is due; give a later moment'
                )
        if priority is not None:
            if priority not in get_args(Priority):
                raise MessageError(f"priority: {shown(priority)}; write 'high', 'normal' or 'low'")
            draft.priority = priority
        self._look(draft.raw, *look)
        if metadata is not None:
            draft.metadata = checked_metadata(metadata)
        return draft.fixed()

    def _write(self, draft: Draft, message: object) -> _Look:
        """Fill the draft with a message. Returns what ``verify`` has to look at."""
        if isinstance(message, Message):
            return self._compose(draft, message)
        if isinstance(message, AnyMessage):
            return self._adopt(draft, message, None)
        to_message = getattr(message, 'to_message', None)
        if not isinstance(message, type) and callable(to_message):
            given = self._converted(message)
            if isinstance(given, AnyMessage):
                return self._adopt(draft, given, getattr(message, 'send_to', None))
            raise MessageError(
                f'message: to_message() of {type(message).__name__} gave a '
                f'{type(given).__name__}; it has to give an email.message.EmailMessage'
            )
        raise MessageError(
            f'message: {type(message).__name__} is no message; pass a pyramid_sendmail.Message, an '
            'email.message.EmailMessage, or an object with to_message()'
        )

    def _converted(self, message: Any) -> object:
        """What ``to_message()`` gives; a message that has a sender, and none yet, is asked as if it
        had ours: pyramid_mailer's own raises without one."""
        if self.default_sender and getattr(message, 'sender', '') is None:
            message = copy(message)
            message.sender = self.default_sender
        return message.to_message()

    def _compose(self, draft: Draft, message: Message) -> _Look:
        to = parse_addresses(message.to, 'to')
        cc = parse_addresses(message.cc, 'cc')
        bcc = parse_addresses(message.bcc, 'bcc')
        reply_to = parse_addresses(message.reply_to, 'reply_to')
        given = _given_headers(message.headers)
        senders = self._senders(message.sender, 'sender')
        head = {'From': address_line('From', senders)}
        if reply_to:
            head['Reply-To'] = address_line('Reply-To', reply_to)
        if to or not cc:
            head['To'] = address_line('To', to or (Group('undisclosed-recipients'),))
        if cc:
            head['Cc'] = address_line('Cc', cc)
        draft.subject = check_text(message.subject, 'subject')
        head['Subject'] = unstructured('Subject', draft.subject)
        for name, value in given.values():
            head[name] = _given_line(name, value)
        if 'message-id' in given:
            draft.message_id = check_message_id(given['message-id'][1], 'Message-ID')
        content = content_tree(message.text, message.html, message.attachments, self.max_size)
        pieces = [*head.values()]
        seen = b''.join([*pieces, content.seen, b'\r\n'])
        # From here on everything is ours.
        if 'date' not in given:
            pieces.append(date_line(draft.queued_at))
        if 'message-id' not in given:
            pieces.append(f'Message-ID: {draft.message_id}\r\n'.encode('ascii'))
        if 'auto-submitted' not in given:
            pieces.append(b'Auto-Submitted: auto-generated\r\n')
        draft.raw = b''.join([*pieces, _MIME, *content.pieces])
        draft.sender = self._reverse_path(senders, given.get('sender', (None, None))[1])
        draft.recipients = _each_once(mailboxes([*to, *cc, *bcc]))
        if message.tag is not None:
            draft.tag = checked_tag(message.tag)
        return seen, [*head, *content.names]

    def _adopt(self, draft: Draft, message: AnyMessage, send_to: Any) -> _Look:
        """A message that is not ours; ``send_to``: its recipients, if it told them."""
        # They import most of the email package, which no message of ours needs.
        from .copies import copied
        from .foreign import entries_of, line_of, serialised, text_of

        lines: list[tuple[str, bytes]] = []
        texts: dict[str, str] = {}
        addresses: dict[str, list[Mailbox]] = {}
        for name, value in message.raw_items():
            key = check_name(name, 'message').lower()
            if key in _SINGLE and key in texts:
                raise MessageError(f'{name}: the message has more than one (RFC 5322, 3.6)')
            texts[key] = text_of(name, value)
            if key in ADDRESSES:
                if not texts[key].strip():
                    continue
                addresses.setdefault(key, []).extend(mailboxes(entries_of(name, value)))
            if key not in _DROPPED and not key.startswith('content-'):
                lines.append((name, line_of(name, value)))
        if not addresses.get('from'):
            addresses['from'] = self._senders(None, 'From')
            lines.insert(0, ('From', address_line('From', addresses['from'])))
        if 'date' not in texts:
            lines.append(('Date', date_line(draft.queued_at)))
        else:
            check_date(texts['date'], 'Date')
        message_id = texts.get('message-id')
        if message_id is None:
            message_id = draft.message_id
            lines.append(('Message-ID', structured('Message-ID', message_id)))
        # Whom a mail goes to that is sent on, only its sender knows: it may have been before.
        resent = 'resent-to' in addresses or 'resent-cc' in addresses
        keys = () if resent else ('to', 'cc', 'bcc', 'resent-bcc')
        listed = [mailbox for key in keys for mailbox in addresses.get(key, ())]
        sender = addresses.get('sender', ())
        if len(sender) > 1:
            raise MessageError('Sender: it holds several addresses; give one (RFC 5322, 3.6.2)')
        tree = copied(message, root=True)
        names, written = zip(*lines, strict=True)
        raw = b''.join([*written, _MIME, serialised(tree)])
        if not raw.endswith(b'\r\n'):
            raw += b'\r\n'
        draft.raw = raw
        draft.sender = self._reverse_path(addresses['from'], sender[0].address if sender else None)
        draft.recipients = _each_once(listed) if send_to is None else _chosen(listed, send_to)
        draft.subject = check_text(texts.get('subject', ''), 'Subject')
        draft.message_id = check_message_id(message_id, 'Message-ID')
        return raw, [*names, 'MIME-Version', *tree.keys()]

    def _senders(self, given: Addresses | None, where: str) -> list[Mailbox]:
        if given is None:
            if not self.default_sender:
                raise MessageError(
                    f'{where}: the message has none; give it one, or set mail.default_sender'
                )
            given, where = self.default_sender, 'mail.default_sender'
        found = parse_addresses(given, where)
        if not found or Group in map(type, found):
            raise MessageError(f'{where}: {shown(given)} is not an address, nor a list of them')
        return mailboxes(found)

    def _reverse_path(self, senders: Iterable[Mailbox], sender: str | None) -> str:
        first, *others = senders
        if others and sender is None:
            raise MessageError(
                "sender: several addresses in From need a Sender as well; give headers={'Sender': "
                'one of them} (RFC 5322, 3.6.2)'
            )
        if self.envelope_sender:
            return parse_address(self.envelope_sender, 'mail.envelope_sender')
        return parse_address(sender, 'Sender') if others else first.address

    def _look(self, raw: bytes, seen: bytes, names: list[str]) -> None:
        if len(raw) > self.max_size:
            raise MessageError(
                f'message: its {len(raw)} octets are more than mail.max_size = '
                f'{size_text(self.max_size)}; '
                'send less, or raise the setting'
            )
        verify(seen, names)


def _each_once(found: Sequence[Mailbox]) -> tuple[str, ...]:
    if len(found) == 1:
        return (found[0].address,)
    addresses: dict[str, str] = {}
    for mailbox in found:
        addresses.setdefault(same(mailbox.address), mailbox.address)
    return tuple(addresses.values())


def _chosen(listed: Sequence[Mailbox], send_to: Any) -> tuple[str, ...]:
    """The recipients that a message told itself, in the order of its headers where they stand."""
    chosen = _each_once(mailboxes(parse_addresses(send_to, 'send_to')))
    order = {same(address): number for number, address in enumerate(_each_once(listed))}
    known = [address for address in chosen if same(address) in order]
    known.sort(key=lambda address: order[same(address)])
    # What it holds may be a set, whose order is accident.
    return (*known, *sorted(address for address in chosen if same(address) not in order))


def _given_headers(headers: object) -> dict[str, tuple[str, str]]:
    if type(headers) is not MappingProxyType and not isinstance(headers, Mapping):
        raise MessageError(f'headers: {shown(headers)} is not a dict; give a dict of strings')
    given: dict[str, tuple[str, str]] = {}
    for name, value in headers.items():
        key = check_name(name).lower()
        instead = 'attachments, text and html' if key.startswith('content-') else _OURS.get(key)
        if instead:
            raise MessageError(f'headers: {name} is not given here; use {instead}')
        if key in given:
            raise MessageError(f'headers: {name} is given twice; leave one out')
        given[key] = (name, check_text(value, f'headers, {name}'))
    return given


def _given_line(name: str, value: str) -> bytes:
    key = name.lower()
    if key in ADDRESSES:
        if key == 'sender':
            parse_address(value, name)
        return address_line(name, parse_addresses(value, name))
    if key == 'date':
        check_date(value, name)
    return structured(name, value) if is_identifier(name) else unstructured(name, value)


_MIME = b'MIME-Version: 1.0\r\n'


_SINGLE = frozenset(
    {
        *('from', 'sender', 'reply-to', 'to', 'cc', 'subject', 'date', 'message-id'),
        *('in-reply-to', 'references', 'mime-version', 'content-type', 'content-disposition'),
        *('content-transfer-encoding', 'content-id'),
    }
)


_DROPPED = frozenset({'bcc', 'resent-bcc', 'return-path', 'mime-version'})
"""Headers of other people's messages that do not leave: blind copies; what the last relay writes
(RFC 5321, 4.4); what is written again."""


_OURS = {
    'from': 'sender',
    'to': 'to',
    'cc': 'cc',
    'bcc': 'bcc',
    'resent-bcc': 'bcc',
    'reply-to': 'reply_to',
    'subject': 'subject',
    'return-path': 'the option sender of send',
    'mime-version': 'text, html and attachments',
}
