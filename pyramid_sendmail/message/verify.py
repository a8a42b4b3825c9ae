"""The last check of a message's bytes: short lines of 7 bits, and no header that was not meant."""

from __future__ import annotations

import re

from ..envelope import is_crlf
from ..exceptions import MessageError
from .headers import LINE_LIMIT

__all__ = ['is_sendable', 'split_lines', 'verify']


def verify(raw: bytes, names: list[str], *, eight_bit: bool = False) -> None:
    """Raise MessageError unless ``raw`` has exactly the headers ``names``, in this order, and its
    body is ASCII in lines of at most LINE_LIMIT bytes, each ended by CRLF. ``eight_bit``: the body
    may hold other bytes."""
    head, _, body = raw.partition(b'\r\n\r\n')
    found = _HEADER_STARTS.findall('\r\n' + head.decode('latin-1'))
    if found != names or head.startswith((b' ', b'\t')):
        raise MessageError(
            'headers: the headers to be sent are not those that were given; nothing is sent'
        )
    ascii_body = eight_bit or raw.isascii() or body.isascii()
    if b'\0' in raw or not is_crlf(raw) or not ascii_body or not _has_short_lines(raw):
        raise MessageError('message: its content cannot be sent in short lines of 7 bits')


def is_sendable(text: str) -> bool:
    """Return whether a text has no NUL and no line of more than LINE_LIMIT characters."""
    return '\0' not in text and max(map(len, split_lines(text))) <= LINE_LIMIT


def split_lines(text: str) -> list[str]:
    """Return the lines of a text, which end with CRLF, CR or LF."""
    return re.split('\r\n|\r|\n', text)


def _has_short_lines(raw: bytes) -> bool:
    """Return whether no line is longer than LINE_LIMIT.

    Each step looks for the last CRLF within reach, which skips the lines before it: 0.3 ms for 1 MB
    of base64, where splitting takes 1.7 ms.
    """
    at = 0
    while at < len(raw):
        found = raw.rfind(b'\r\n', at, at + LINE_LIMIT + 2)
        if found < 0:
            return False
        at = found + 2
    return True


_HEADER_STARTS = re.compile('\r\n(?![ \t])(?:([^:\r]*):)?')
"""The start of a header, up to its colon; the group is empty where there is none. The literal CRLF
at its beginning makes it a third faster than ``^``."""
