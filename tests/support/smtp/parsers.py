"""Reading the bytes after DATA: strictly, and as lax servers do (SMTP smuggling)."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ['data_violations', 'lax_messages', 'message_id', 'strict_messages', 'unstuffed']

MAX_LINE_BYTES = 1_000
"""Octets of a line of text with its CRLF, and without a stuffed dot (RFC 5321, 4.5.3.1.6)."""

_BARE_CR = re.compile(rb'\r(?!\n)')
_BARE_LF = re.compile(rb'(?<!\r)\n')
_LONE_DOT = re.compile(rb'(?:\A|\r\n)\.(?!\.)')
_MESSAGE_ID = re.compile(
    rb'^message-id:[ \t]*(?:\r\n[ \t]+)?([^\r\n]*)', re.IGNORECASE | re.MULTILINE
)


def unstuffed(data: bytes) -> bytes:
    """Remove the dot that begins a line, where lines end with CRLF (RFC 5321, 4.5.2)."""
    return data.removeprefix(b'.').replace(b'\r\n.', b'\r\n')


def strict_messages(stream: bytes) -> list[bytes]:
    """Read messages from what followed 354: only CRLF.CRLF ends one, only CRLF ends a line.

    Returns them without stuffed dots. Raises ValueError for bytes after the last end of data.
    """
    messages = []
    while stream:
        if stream.startswith(b'.\r\n'):
            message, stream = b'', stream[3:]
        else:
            message, end, stream = stream.partition(b'\r\n.\r\n')
            if not end:
                raise ValueError(f'no end of data after {message[-60:]!r}')
            message += b'\r\n'
        messages.append(unstuffed(message))
    return messages


def lax_messages(stream: bytes) -> list[bytes]:
    """Read messages as a server for which CR, LF and CRLF all end a line.

    Returns them with CRLF and without stuffed dots. Raises ValueError for bytes after the last
    end of data.
    """
    *lines, rest = re.split(rb'\r\n|\r|\n', stream)
    messages, message = [], bytearray()
    ended = True
    for line in lines:
        ended = line == b'.'
        if ended:
            messages.append(bytes(message))
            message.clear()
        else:
            message += line.removeprefix(b'.') + b'\r\n'
    if rest or not ended:
        raise ValueError(f'no end of data after {bytes(message[-60:]) + rest!r}')
    return messages


def data_violations(stuffed: bytes, data: bytes, *, eight_bit: bool) -> Iterator[str]:
    """Yield the violations in a message, given with stuffed dots and without.

    ``eight_bit``: the client declared bytes above 127.
    """
    if data.count(b'\r') != data.count(b'\r\n') or data.count(b'\n') != data.count(b'\r\n'):
        if _BARE_CR.search(data):
            yield 'bare CR in the data'
        if _BARE_LF.search(data):
            yield 'bare LF in the data'
    if b'\0' in data:
        yield 'NUL in the data'
    if b'.' in stuffed and _LONE_DOT.search(stuffed):
        yield 'line that begins with one dot in the data'
    if not eight_bit and not data.isascii():
        yield 'byte above 127 in the data without BODY=8BITMIME'
    longest = max(map(len, data.split(b'\r\n'))) + 2
    if longest > MAX_LINE_BYTES:
        yield f'line of {longest} bytes in the data'


def message_id(data: bytes) -> str:
    """Return the value of the Message-ID field, or ''."""
    end = data.find(b'\r\n\r\n')
    found = _MESSAGE_ID.search(data, 0, end if end >= 0 else len(data))
    return found[1].strip().decode('utf-8', 'replace') if found else ''
