"""Adopt mail that zope.sendmail or repoze.sendmail queued.

Their files are the message with two more header lines: ``X-Zope-From:`` and ``X-Zope-To:`` at the
beginning, or ``X-Actually-From:`` and ``X-Actually-To:`` at the end of the headers, which may be
encoded by RFC 2047. The recipients are separated by commas.

Whatever the headers hold, they are read in linear time, and no mail stops the others. The head is
written anew where a relay could refuse it (see ``legacy_head``); the body stays as it is.
"""

from __future__ import annotations

import errno
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

__all__ = ['ADOPTED_SIZE', 'InUse', 'adopt', 'is_theirs']

ADOPTED_SIZE = 150 * 1024 * 1024
"""Bytes of a mail of theirs at most: its conversion needs memory for three of it, and no relay
takes more."""

_ENVELOPE = re.compile(rb'(?im)^X-(Zope|Actually)-(From|To):(.*\r\n(?:[ \t].*\r\n)*)')
_TO = re.compile(rb'(?im)^X-(?:Zope|Actually)-To:')
_HEADERS = re.compile(rb'(?im)^(Message-ID|Subject):(.*\r\n(?:[ \t].*\r\n)*)')
_WORD = re.compile(r'=\?([^?*\s]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=')
_ADDRESS = re.compile(r'([^\s"<>():;\\]+)|[^"<>():;\\@]*<([^\s"<>():;\\]+)>')
_PARSED = 20_000
"""Characters of a list of addresses that the standard library parses, in more than linear time."""
_LINE_END = re.compile(rb'\r\n|\r|\n')
_SENDING_TIME = 3 * 3600.0
"""Seconds for which their lock counts (their MAX_SEND_TIME)."""

_MESSAGE_ID = re.compile(r'<[!-;=?-~]+>')


class InUse(OSError):
    """A process of zope.sendmail or repoze.sendmail may be sending a mail at this moment."""


def is_theirs(head: bytes) -> bool:
    """Whether a file that begins so may be a mail of theirs. The lines are among its headers."""
    return _TO.search(_LINE_END.sub(b'\n', head).partition(b'\n\n')[0]) is not None


def adopt(files: QueueFiles, ticket: Ticket, data: bytes, now: float) -> Ticket | None:
    """Convert a locked file of theirs into one of ours; return its ticket, or None if the file is
    not one of theirs. Raises InUse if one of their processes may be sending it.

    The new file replaces the old one by one rename, under the old name, and is then renamed to its
    own: after a crash there is one mail, in one form or the other. Until the first rename the new
    file is a transaction in ``tmp/`` that never voted.
    """
    envelope = _envelope(data, now)
    if envelope is None:
        return None
    name = file_name(envelope, due=now, attempt=0).text
    folder = FOLDER_OF[ticket.state]
    lock = f'.sending-{ticket.order}'
    is_locked = _require_free(files, folder, lock, now)
    descriptor = files.create('tmp', name)
    if descriptor is None:
        return ticket
    try:
        files.write(descriptor, encode(envelope, 'W'))
        files.sync_file(descriptor)
        files.rename('tmp', name, folder, ticket.order)
        files.write(descriptor, b'C', STATE_AT)
        files.rename(folder, ticket.order, 'new', name)
        if is_locked:
            # It has a copy of the mail.
            with suppress(FileNotFoundError):
                files.unlink(folder, lock)
    except BaseException:
        with suppress(FileNotFoundError):
            files.unlink('tmp', name)
        raise
    finally:
        files.close(descriptor)
    return ticket_of('new', name)


def _require_free(files: QueueFiles, folder: str, lock: str, now: float) -> bool:
    """Raise InUse if a file is locked as they do: by a second name, which counts for three hours of
    the file's time of change. Return whether an old lock is there. Raises OSError."""
    try:
        locked_at = files.lstat(folder, lock).st_mtime
    except FileNotFoundError:
        return False
    # After a clock was set back, a time to come must not keep the mail for longer.
    if abs(now - locked_at) < _SENDING_TIME:
        raise InUse(errno.EBUSY, 'a process of zope.sendmail or repoze.sendmail is sending it')
    return True


def _envelope(data: bytes, now: float) -> Envelope | None:
    head, blank, body = _LINE_END.sub(b'\r\n', data).partition(b'\r\n\r\n')
    head += b'\r\n'
    # zope.sendmail puts its lines before the headers, repoze.sendmail behind them. Lines of the
    # same names elsewhere are the message's own.
    lines = list(_ENVELOPE.finditer(head))
    if lines and lines[0].start() == 0 and lines[0][1].lower() == b'zope':
        if lines[-1].end() == len(head) and lines[-1][1].lower() == b'actually':
            # Either may be the message's own: a person has to say which.
            return None
        lines = [line for line in lines[:2] if line[1].lower() == b'zope']
    else:
        lines = [line for line in lines if line[1].lower() == b'actually'][-2:]
    found = {line[2].lower(): _text(line[3]) for line in lines}
    if found.keys() != {b'from', b'to'}:
        return None
    for line in reversed(lines):
        head = head[: line.start()] + head[line.end() :]
    # Only old mail needs what reads and writes foreign headers.
    from .legacy_head import ascii_address, mended_head

    sender = next(iter(map(ascii_address, _addresses(found[b'from']))), '')
    recipients = tuple(dict.fromkeys(map(ascii_address, _addresses(found[b'to']))))
    if not recipients or not all(to.isprintable() for to in (sender, *recipients)):
        return None
    keep_unicode = not ''.join((sender, *recipients)).isascii()
    head, rest = mended_head(head, now=now, keep_unicode=keep_unicode)
    headers = {name.lower(): value for name, value in reversed(_HEADERS.findall(head))}
    given = _MESSAGE_ID.search(headers.get(b'message-id', b'').decode('ascii', 'replace'))
    message_id = given[0] if given else make_msgid(domain='localhost')
    if b'message-id' not in headers:
        head = f'Message-ID: {message_id}\r\n'.encode() + head
    if rest:
        body = rest + blank[2:] + body
        blank = b'\r\n\r\n'
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
