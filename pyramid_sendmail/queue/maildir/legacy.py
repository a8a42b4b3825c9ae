"""Mail that zope.sendmail or repoze.sendmail queued, taken over as it is found.

Their files are the message with two header lines more, ``X-Zope-From:`` and ``X-Zope-To:`` at the
beginning or ``X-Actually-From:`` and ``X-Actually-To:`` at the end of the headers, the latter
encoded by RFC 2047, perhaps; the recipients are separated by commas.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from email import message_from_bytes
from email.errors import MessageError
from email.header import decode_header, make_header
from email.utils import getaddresses, make_msgid

from ...envelope import Envelope
from ..ticket import Ticket
from .filename import FOLDER_OF, schedule_of, ticket_of
from .files import Store
from .format import STATE_AT, encode

__all__ = ['adopt']

_ENVELOPE = re.compile(rb'(?im)^X-(?:Zope|Actually)-(From|To):(.*\r\n(?:[ \t].*\r\n)*)')
_LINE_END = re.compile(rb'\r\n|\r|\n')
_MESSAGE_ID = re.compile(r'<[!-;=?-~]+>')


def adopt(store: Store, ticket: Ticket, data: bytes, now: float) -> Ticket | None:
    """Turn an ancestor's file, which is locked, into one of ours; None if it is none.

    The new file takes the old one's place in one rename, under its old name, and its own name
    after that: a crash in between leaves one mail in either form. Until then it is, in ``tmp/``,
    a transaction that never voted.
    """
    envelope = _envelope(data, now)
    if envelope is None:
        return None
    name = schedule_of(envelope, due=now, attempt=0).name
    folder = FOLDER_OF[ticket.state]
    temporary = store.path('tmp', name)
    descriptor = store.create(temporary)
    if descriptor is None:
        return ticket
    try:
        store.write(descriptor, encode(envelope, 'W'))
        store.sync_file(descriptor)
        store.rename('tmp', name, folder, ticket.order)
        store.write(descriptor, b'C', STATE_AT)
        store.rename(folder, ticket.order, 'new', name)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        store.close(descriptor)
    return ticket_of('new', name)


def _envelope(data: bytes, now: float) -> Envelope | None:
    head, blank, body = _LINE_END.sub(b'\r\n', data).partition(b'\r\n\r\n')
    head += b'\r\n'
    found = {name.lower(): _text(value) for name, value in reversed(_ENVELOPE.findall(head))}
    if found.keys() != {b'from', b'to'}:
        return None
    head = _ENVELOPE.sub(b'', head)
    sender = next((address for _, address in getaddresses([found[b'from']])), '')
    recipients = tuple(dict.fromkeys(to for _, to in getaddresses([found[b'to']]) if to))
    if not recipients or not all(to.isprintable() for to in (sender, *recipients)):
        return None
    headers = message_from_bytes(head)
    given = _MESSAGE_ID.search(str(headers.get('Message-ID', '')))
    message_id = given[0] if given else make_msgid(domain='localhost')
    if 'Message-ID' not in headers:
        head = f'Message-ID: {message_id}\r\n'.encode() + head
    return Envelope(
        id=secrets.token_hex(16),
        message_id=message_id,
        sender=sender,
        recipients=recipients,
        raw=head + blank[2:] + body,
        queued_at=now,
        due=now,
        subject=_text(str(headers.get('Subject', '')).encode('utf-8', 'replace')),
    )


def _text(value: bytes) -> str:
    """A header's value, unfolded, and decoded if it can be."""
    text = ' '.join(value.decode('utf-8', 'replace').split())
    with suppress(ValueError, LookupError, MessageError):
        return str(make_header(decode_header(text)))
    return text
