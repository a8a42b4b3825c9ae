"""Mail that zope.sendmail or repoze.sendmail queued, taken over as it is found.

Their files begin with two lines, ``X-Zope-From:`` and ``X-Zope-To:`` (``X-Actually-...``), the
recipients separated by commas, and go on with the message.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from email import message_from_bytes
from email.policy import SMTP
from email.utils import getaddresses, make_msgid

from ..envelope import Envelope
from .format import encode
from .names import Ticket, schedule_of
from .store import Store

__all__ = ['adopt']

_ANCESTOR = re.compile(
    rb'X-(?:Zope|Actually)-From: *([^\r\n]*)\r?\nX-(?:Zope|Actually)-To: *([^\r\n]*)\r?\n'
)
_LINE_END = re.compile(rb'\r\n|\r|\n')


def adopt(store: Store, ticket: Ticket, data: bytes, now: float) -> bool:
    """Turn an ancestor's file, which is locked, into one of ours; False if it is none.

    The new file takes the old one's place in one rename, under its old name, and its own name
    after that: a crash in between leaves one mail in either form.
    """
    envelope = _envelope(data, now)
    if envelope is None or ticket.folder == 'tmp':
        return False
    schedule = schedule_of(envelope, due=now, attempt=0)
    temporary = store.path('tmp', f'{schedule.name}.adopted')
    old = store.path(ticket.folder, ticket.name)
    descriptor = store.create(temporary)
    if descriptor is None:
        return True
    try:
        store.write(descriptor, encode(envelope, 'C')[1])
        store.sync_file(descriptor)
        os.rename(temporary, old)
        os.rename(old, store.path('new', schedule.name))
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        store.close(descriptor)
    return True


def _envelope(data: bytes, now: float) -> Envelope | None:
    match = _ANCESTOR.match(data)
    if match is None:
        return None
    sender, to = (part.decode('utf-8', 'surrogateescape').strip() for part in match.groups())
    recipients = tuple(dict.fromkeys(address for _, address in getaddresses([to]) if address))
    if not recipients or any(c < ' ' or '\ud800' <= c <= '\udfff' for c in sender + to):
        return None
    raw = _LINE_END.sub(b'\r\n', data[match.end() :])
    head = message_from_bytes(raw.partition(b'\r\n\r\n')[0] + b'\r\n\r\n', policy=SMTP)
    message_id = str(head.get('Message-ID', '')).strip()
    if not message_id:
        message_id = make_msgid(domain='localhost')
        raw = f'Message-ID: {message_id}\r\n'.encode() + raw
    return Envelope(
        id=secrets.token_hex(16),
        message_id=message_id,
        sender=getaddresses([sender])[0][1] if sender else '',
        recipients=recipients,
        raw=raw,
        queued_at=now,
        due=now,
        subject=str(head.get('Subject', '')),
    )
