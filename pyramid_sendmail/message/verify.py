"""The octets of a message: short lines of 7 bits, and no header that was not meant."""

from __future__ import annotations

import re

from ..envelope import is_crlf
from ..exceptions import MessageError
from .headers import LIMIT

__all__ = ['fits', 'lines', 'verify']


def verify(raw: bytes, names: list[str]) -> None:
    """The last look: nothing but the headers that were meant, in short lines of 7 bits."""
    head, _, body = raw.partition(b'\r\n\r\n')
    begins = _NAMES.findall('\r\n' + head.decode('latin-1'))
    if begins != names or head.startswith((b' ', b'\t')):
        raise MessageError('headers: what would leave is not what was given; nothing is sent')
    if b'\0' in raw or not is_crlf(raw) or not (raw.isascii() or body.isascii()) or not _short(raw):
        raise MessageError('message: its content cannot be sent in short lines of 7 bits')


def _short(raw: bytes) -> bool:
    """Whether no line is longer than LIMIT. Between two breaks that are no further from each other
    than that, nobody has to count."""
    at = 0
    while at < len(raw):
        found = raw.rfind(b'\r\n', at, at + LIMIT + 2)
        if found < 0:
            return False
        at = found + 2
    return True


_NAMES = re.compile('\r\n(?![ \t])(?:([^:\r]*):)?')
"""Whatever begins a header, up to its colon; nothing where there is none. That it begins with a
text, the break before the header, is what makes it fast."""


def lines(text: str) -> list[str]:
    return re.split('\r\n|\r|\n', text)


def fits(text: str) -> bool:
    return '\0' not in text and max(map(len, lines(text))) <= LIMIT
