"""Adopt mail that zope.sendmail or repoze.sendmail queued.

Their files are the message with two more header lines: ``X-Zope-From:`` and ``X-Zope-To:`` at the
beginning, or ``X-Actually-From:`` and ``X-Actually-To:`` at the end of the headers, which may be
encoded by RFC 2047. The recipients are separated by commas.

Whatever the headers hold, they are read in linear time, and no mail stops the others.
"""

from __future__ import annotations

import os
import re
import secrets
from binascii import a2b_base64, a2b_qp
from contextlib import suppress
from email.utils import getaddresses, make_msgid

from ...envelope import Envelope
from ..ticket import Ticket
from .filename import FOLDER_OF, file_name, ticket_of
from .files import QueueFiles
from .format import STATE_AT, encode

__all__ = ['adopt']

_ENVELOPE = re.compile(rb'(?im)^X-(?:Zope|Actually)-(From|To):(.*\r\n(?:[ \t].*\r\n)*)')
_HEADERS = re.compile(rb'(?im)^(Message-ID|Subject):(.*\r\n(?:[ \t].*\r\n)*)')
_WORD = re.compile(r'=\?([^?*\s]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=')
_ADDRESS = re.compile(r'([^\s"<>():;\\]+)|[^"<>():;\\@]*<([^\s"<>():;\\]+)>')
_PARSED = 20_000
"""Characters of a list of addresses that the standard library parses, in more than linear time."""
_LINE_END = re.compile(rb'\r\n|\r|\n')
_MESSAGE_ID = re.compile(r'<[!-;=?-~]+>')


def adopt(files: QueueFiles, ticket: Ticket, data: bytes, now: float) -> Ticket | None:
    """Convert a locked file of theirs into one of ours; return its ticket, or None if the file is
    not one of theirs.

    The new file replaces the old one by one rename, under the old name, and is then renamed to its
    own: after a crash there is one mail, in one form or the other. Until the first rename the new
    file is a transaction in ``tmp/`` that never voted.
    """
    envelope = _envelope(data, now)
    if envelope is None:
        return None
    name = file_name(envelope, due=now, attempt=0).text
    folder = FOLDER_OF[ticket.state]
    temporary = files.path('tmp', name)
    descriptor = files.create(temporary)
    if descriptor is None:
        return ticket
    try:
        files.write(descriptor, encode(envelope, 'W'))
        files.sync_file(descriptor)
        files.rename('tmp', name, folder, ticket.order)
        files.write(descriptor, b'C', STATE_AT)
        files.rename(folder, ticket.order, 'new', name)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        files.close(descriptor)
    return ticket_of('new', name)


def _envelope(data: bytes, now: float) -> Envelope | None:
    head, blank, body = _LINE_END.sub(b'\r\n', data).partition(b'\r\n\r\n')
    head += b'\r\n'
    found = {name.lower(): _text(value) for name, value in reversed(_ENVELOPE.findall(head))}
    if found.keys() != {b'from', b'to'}:
        return None
    head = _ENVELOPE.sub(b'', head)
    sender = next(iter(_addresses(found[b'from'])), '')
    recipients = tuple(dict.fromkeys(_addresses(found[b'to'])))
    if not recipients or not all(to.isprintable() for to in (sender, *recipients)):
        return None
    headers = {name.lower(): value for name, value in reversed(_HEADERS.findall(head))}
    given = _MESSAGE_ID.search(headers.get(b'message-id', b'').decode('ascii', 'replace'))
    message_id = given[0] if given else make_msgid(domain='localhost')
    if b'message-id' not in headers:
        head = f'Message-ID: {message_id}\r\n'.encode() + head
    return Envelope(
        id=secrets.token_hex(16),
        message_id=message_id,
        sender=sender,
        recipients=recipients,
        raw=head + blank[2:] + body,
        queued_at=now,
        due=now,
        subject=_text(headers.get(b'subject', b'')),
    )


def _text(value: bytes) -> str:
    """Return a header's value, unfolded, and decoded if possible."""
    text = ' '.join(value.decode('utf-8', 'replace').split())
    return _WORD.sub(_decoded, text.replace('?= =?', '?==?'))


def _decoded(word: re.Match[str]) -> str:
    charset, encoding, payload = word.groups()
    try:
        data = a2b_base64(payload) if encoding in 'bB' else a2b_qp(payload, header=True)
        return data.decode(charset, 'replace')
    except (ValueError, LookupError):
        return word[0]


def _addresses(text: str) -> list[str]:
    """Return the addresses of a list; none of a list that cannot be read."""
    found = [_ADDRESS.fullmatch(each.strip()) for each in text.split(',') if each.strip()]
    if None not in found:
        return [each[1] or each[2] for each in found if each]
    if len(text) > _PARSED:
        return []
    try:
        return [address for _, address in getaddresses([text]) if address]
    except RecursionError:
        return []
