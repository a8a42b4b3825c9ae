"""Freezes messages of other libraries: the whole message as bytes, and what it says about its
envelope."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message as AnyMessage
from typing import Any

from ..exceptions import MessageError
from .address import Addresses, Mailbox, comparison_key, mailboxes, parse_addresses
from .address_header import address_line
from .foreign_content import ContentWriter
from .foreign_head import Head, read_head
from .frozen import MIME_VERSION, Frozen, unique_addresses
from .headers import check_date, check_message_id, check_text, date_line, structured_line
from .verbatim import VerbatimWriter, signed_headers

__all__ = ['ForeignFreezer']


@dataclass(frozen=True, slots=True)
class ForeignFreezer:
    """Freezes one message of another library."""

    message: AnyMessage
    send_to: Any
    """The recipients, if the message names them apart from its headers."""
    message_id: str
    """For a message that has none."""
    now: float
    max_size: int
    too_large: str
    """Text of the error if there are more bytes than ``max_size``."""
    sent_on: tuple[str, ...] | None
    """Sender and recipients of an envelope of its own, with which a message is sent on; None if the
    envelope is that of the message. What is wrong with a message that is sent on, and does not hurt
    its delivery, is mended or left."""
    senders: Callable[[Addresses | None, str], list[Mailbox]]
    reverse_path: Callable[[Iterable[Mailbox], str | None], str]

    def freeze(self) -> Frozen:
        """Return the message as bytes. Raises MessageError."""
        signed = signed_headers(self.message)
        if signed is not None:
            try:
                return self._freeze_signed(signed)
            except MessageError:
                # A signature that does not verify is as good as none (RFC 6376, 6.1).
                if self.sent_on is None:
                    raise
        lenient = self.sent_on is not None
        head = read_head(
            self.message,
            lenient=lenient,
            # Addresses in headers do not make a relay necessary that has SMTPUTF8.
            ascii_only=''.join(self.sent_on or ()).isascii(),
        )
        if not head.addresses.get('from') or not _has_line(head, 'from'):
            self._add_sender(head)
        if 'date' not in head.texts:
            head.lines.append(('Date', date_line(self.now)))
        elif not lenient:
            check_date(head.texts['date'], 'Date')
        message_id = self._message_id(head)
        writer = ContentWriter(self.max_size, self.too_large, lenient=lenient)
        names = ['MIME-Version', *writer.write(self.message, root=True)]
        if not lenient and not all(map(bytes.isascii, writer.pieces)):
            raise MessageError(
                'message: an address in the headers of a part is not ASCII; attach that mail as '
                'application/octet-stream'
            )
        frozen = self._frozen(head, message_id, names, [MIME_VERSION, *writer.pieces])
        frozen.eight_bit = writer.eight_bit
        return frozen

    def _freeze_signed(self, signed: frozenset[str]) -> Frozen:
        """Freeze a message that the application has signed by DKIM, byte for byte.

        ``signed``: the headers that its signatures cover.
        """
        writer = ContentWriter(self.max_size, self.too_large)
        verbatim = VerbatimWriter(
            writer.add,
            self.message.policy,
            what='DKIM-Signature: the message',
            remedy='sign content that is quoted-printable or base64 (cte=), or let the relay sign',
        )
        head = read_head(self.message, verbatim=verbatim)
        if not head.addresses.get('from'):
            raise MessageError('DKIM-Signature: the message has no From; set it before signing')
        missing = {
            'Date': date_line(self.now),
            'Message-ID': structured_line('Message-ID', self.message_id),
        }
        for name, line in missing.items():
            if name.lower() in head.texts:
                continue
            if name.lower() in signed:
                raise MessageError(
                    f'DKIM-Signature: it covers {name}, which the message does not have; set '
                    f'{name} before signing'
                )
            head.lines.append((name, line))
        if 'mime-version' not in head.texts and 'mime-version' not in signed:
            head.lines.append(('MIME-Version', MIME_VERSION))
        message_id = head.texts.get('message-id', self.message_id)
        verbatim.body(self.message)
        return self._frozen(
            head, check_message_id(message_id, 'Message-ID'), [], [b'\r\n', *writer.pieces]
        )

    def _add_sender(self, head: Head) -> None:
        """Add a From to a message without one."""
        if self.sent_on is not None and _has_line(head, 'from'):
            # It could not be read, and stays.
            return
        # A From that was read and left out has names that no line can hold.
        found = [Mailbox('', each.address) for each in head.addresses.get('from', ())]
        try:
            found = found or self.senders(None, 'From')
        except MessageError:
            if not self.sent_on or not self.sent_on[0]:
                raise
            found = [Mailbox('', self.sent_on[0])]
        head.addresses['from'] = found
        head.lines.insert(0, ('From', address_line('From', found)))

    def _message_id(self, head: Head) -> str:
        """Return the message's id, and add it if there is none."""
        given = head.texts.get('message-id')
        if given is not None and self.sent_on is None:
            return check_message_id(given, 'Message-ID')
        found = re.search('<[!-;=?-~]{1,900}>', given or '')
        if found:
            return found[0]
        head.lines = [each for each in head.lines if each[0].lower() != 'message-id']
        head.lines.append(('Message-ID', structured_line('Message-ID', self.message_id)))
        return self.message_id

    def _frozen(
        self, head: Head, message_id: str, names: list[str], content: list[bytes]
    ) -> Frozen:
        raw = b''.join([*(line for _, line in head.lines), *content])
        if not raw.endswith(b'\r\n'):
            raw += b'\r\n'
        if self.sent_on is not None:
            sender = self.sent_on[0]
        else:
            given = head.addresses.get('sender', ())
            if len(given) > 1:
                raise MessageError('Sender: it holds several addresses; give one (RFC 5322, 3.6.2)')
            sender = self.reverse_path(head.addresses['from'], given[0].address if given else None)
        listed = _listed_recipients(head.addresses)
        return Frozen(
            raw,
            message_id,
            sender,
            unique_addresses(listed)
            if self.send_to is None
            else _chosen_recipients(listed, self.send_to),
            check_text(head.texts.get('subject', ''), 'Subject'),
            None,
            raw,
            [*(name for name, _ in head.lines), *names],
        )


def _has_line(head: Head, key: str) -> bool:
    return any(name.lower() == key for name, _ in head.lines)


def _listed_recipients(addresses: Mapping[str, Sequence[Mailbox]]) -> list[Mailbox]:
    # A resent message may carry older recipients: the option recipients has to name the new ones.
    if 'resent-to' in addresses or 'resent-cc' in addresses:
        return []
    keys = ('to', 'cc', 'bcc', 'resent-bcc')
    return [mailbox for key in keys for mailbox in addresses.get(key, ())]


def _chosen_recipients(listed: Sequence[Mailbox], send_to: Any) -> tuple[str, ...]:
    """Return the recipients that ``send_to`` names: first those in the headers, in their order."""
    chosen = unique_addresses(mailboxes(parse_addresses(send_to, 'send_to')))
    order = {comparison_key(each): number for number, each in enumerate(unique_addresses(listed))}
    known = [address for address in chosen if comparison_key(address) in order]
    known.sort(key=lambda address: order[comparison_key(address)])
    # send_to may be a set, whose order is accidental: sort the others.
    return (*known, *sorted(each for each in chosen if comparison_key(each) not in order))
