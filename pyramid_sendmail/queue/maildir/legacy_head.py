"""The head of a mail of an old queue, written as any relay takes it.

zope.sendmail and repoze.sendmail queued raw bytes and addresses as they got them. A relay without
SMTPUTF8 (RFC 6531) refuses a head that is not ASCII for good.
"""

from __future__ import annotations

import re

from ...domains import ascii_domain
from ...exceptions import MessageError
from ...message.foreign import ascii_line, mended_line
from ...message.headers import date_line

__all__ = ['ascii_address', 'mended_head']

_FIELD = re.compile(rb'[^\n]*\n(?:[ \t][^\n]*\n)*')

_NAME = re.compile(rb'([!-9;-~]+)[ \t]*:')

_DATE = re.compile(rb'(?im)^Date[ \t]*:')

_IDENTITY = (b'date', b'message-id')
"""Headers that cannot be encoded: one that is not ASCII is left out, and made anew."""

_BLIND = (b'bcc', b'resent-bcc')


def ascii_address(address: str) -> str:
    """Return an address with A-labels for a domain that is not ASCII, if they are certain."""
    local, at, domain = address.rpartition('@')
    try:
        return f'{local}{at}{ascii_domain(domain)}'
    except UnicodeError:
        return address


def mended_head(head: bytes, *, now: float, keep_unicode: bool) -> tuple[bytes, bytes]:
    """Return the head in ASCII and with a Date, and the bytes of it that belong to the body.

    ``head``: header lines that end with CRLF. A header that is ASCII stays as it is. One that is
    not is encoded (RFC 2047 and 2231), its domains as A-labels. Blind copies do not leave. A line
    that is no header and not ASCII ends the head, as for parsers and relays. ``keep_unicode``: the
    envelope needs SMTPUTF8 anyway, so addresses with a local part that is not ASCII stay.
    """
    fields: list[bytes] = []
    end = len(head)
    for found in _FIELD.finditer(head):
        field = found[0]
        name = _NAME.match(field)
        key = name[1].lower() if name else b''
        if key in _BLIND or (key in _IDENTITY and not field.isascii()):
            continue
        if not field.isascii():
            if name is None:
                end = found.start()
                break
            field = _mended(field, name, keep_unicode=keep_unicode)
        fields.append(field)
    lines = b''.join(fields)
    if not _DATE.search(lines):
        lines = date_line(now) + lines
    return lines, head[end:]


def _mended(field: bytes, name: re.Match[bytes], *, keep_unicode: bool) -> bytes:
    value = field[name.end() :].decode('ascii', 'surrogateescape').strip()
    line = mended_line if keep_unicode else ascii_line
    try:
        return line(name[1].decode('ascii'), value)
    except MessageError:  # too long to be read
        return field
