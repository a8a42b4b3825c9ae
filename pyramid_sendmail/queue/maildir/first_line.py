"""The first line of a queued file: version, lengths, checksums, and what its text is like.

``X-Envelope: 2 00001565 000000000420 message=1a2b3c4d rest=5e6f7081 crlf no-dots ascii``

=====================  ==========================================================================
lengths                of the envelope block and of the message, in bytes
``message``            CRC-32 of the message
``rest``               CRC-32 of all else that does not change in place: what stands before it in
                       this line, the traits, the fixed lines, and the recipients
traits                 see TextTraits: they need not be found out again when the mail is sent
=====================  ==========================================================================

The line is filled up with blanks, to the length that it had in version 1.

A CRC-32 finds what happens to files: one cut short, zeros in place of a block, changed bits. A
person who may write to the queue can change a mail under any checksum without a key. Version 1,
whose files are still read, has a SHA-256 in this place: 67,000 of the 487,000 instructions for
sending a mail of 2 KB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from itertools import product
from typing import Protocol
from zlib import crc32

from ...envelope import Text, TextTraits
from ...exceptions import MessageError
from .options import VERSION, Unreadable, require_version

__all__ = [
    'FIRST',
    'FIRST_LENGTH',
    'LINE',
    'TRAITS',
    'LargeText',
    'check_length',
    'first_line',
    'lengths_of',
    'lengths_text',
    'rest_sum',
    'verify',
]

FIRST = b'X-Envelope: '

_END = b'\r\n'
_OLD_VERSION = b'1'
_LENGTHS_AT = len(FIRST)
_SUMS_AT = _LENGTHS_AT + len(b'1 00000000 000000000000 ')
_SUMS_END = _SUMS_AT + 64
_LONGEST_BLOCK, _LONGEST_MESSAGE = 10**8 - 1, 10**12 - 1
_TRAITS_WIDTH = _SUMS_END - _SUMS_AT - len(b'message=00000000 rest=00000000 ')

FIRST_LENGTH = _SUMS_END + len(_END)
"""Bytes of the line."""

LINE = re.compile(
    b'%b(%b [0-9]{8} [0-9]{12} message=([0-9a-f]{8})) rest=([0-9a-f]{8}) (.{%d})\r\n'
    % (FIRST, VERSION, _TRAITS_WIDTH)
)
"""The groups: what stands before ``rest``, both checksums, and the traits."""


def _text_of(traits: TextTraits) -> bytes:
    words = (
        b'crlf' if traits.has_crlf else b'no-crlf',
        b'dots' if traits.has_dots else b'no-dots',
        b'ascii' if traits.is_ascii else b'ascii-head' if traits.has_ascii_head else b'8bit',
    )
    return b' '.join(words).ljust(_TRAITS_WIDTH)


TRAITS = {
    _text_of(traits): traits
    for traits in map(TextTraits._make, product((False, True), repeat=4))
    if traits.has_ascii_head or not traits.is_ascii
}
"""What may stand at the end of the line."""

_TEXTS = {traits: text for text, traits in TRAITS.items()}


class LargeText(Text, Protocol):
    """The text of a message that stays in its file."""

    def survey(self, update: Callable[[bytes], object]) -> None:
        """Read the text once, call ``update`` with each block, and find out what the text is
        like."""


def first_line(
    block_length: int, fixed: bytes, recipients: bytes, raw: bytes, traits: TextTraits
) -> bytes:
    """Return the line of a new mail, with its line end.

    ``fixed``: the fixed lines. ``recipients``: joined by line feeds. ``traits``: of ``raw``. Raises
    MessageError for a mail that is too long.
    """
    start = b'%bmessage=%08x' % (lengths_text(block_length, len(raw)), crc32(raw))
    text = _TEXTS[traits]
    return b'%b%b rest=%08x %b\r\n' % (FIRST, start, rest_sum(start, text, fixed, recipients), text)


def rest_sum(start: bytes, traits: bytes, fixed: bytes, recipients: bytes) -> int:
    """Return the CRC-32 called ``rest``. ``start`` and ``traits``: of the line, what stands before
    and behind that checksum."""
    return crc32(b''.join((start, traits, fixed, recipients)))


def lengths_text(block_length: int, message_length: int) -> bytes:
    """Return what the line says before the checksums."""
    if block_length > _LONGEST_BLOCK or message_length > _LONGEST_MESSAGE:
        # Eight and twelve digits: a longer number would make the file unreadable after the commit.
        raise MessageError(
            f'recipients: with {block_length} bytes of recipients and options, and a message of '
            f'{message_length} bytes, the mail is too large for the queue; send it to fewer '
            'recipients at once'
        )
    return b'%b %08d %012d ' % (VERSION, block_length, message_length)


def lengths_of(data: bytes) -> tuple[int, int]:
    """Return the lengths of the envelope block and of the message, in bytes, from the first line of
    a file. Raises Unreadable."""
    if not data.startswith(FIRST):
        raise Unreadable('it is not a file of this queue' if data else 'it is empty')
    require_version(data)
    try:
        version, block_length, message_length = data[_LENGTHS_AT:_SUMS_AT].split()
        size, rest = int(block_length), int(message_length)
    except ValueError:
        raise Unreadable('its first line is damaged') from None
    if version not in (VERSION, _OLD_VERSION):
        raise Unreadable('its first line is damaged')
    return size, rest


def check_length(length: int, size: int, rest: int) -> None:
    """Raise Unreadable unless a file has the length that its first line says."""
    if length != size + rest:
        raise Unreadable(f'it has {length} bytes, but its first line says {size + rest}')


def verify(
    data: bytes, fixed: bytes, recipients: Iterable[str], text: bytes | LargeText
) -> TextTraits | None:
    """Verify the checksums of a file that begins with ``data``. Raises Unreadable.

    ``text``: the message. Returns what it is like, if the line says so; a LargeText remembers it.
    """
    joined = '\n'.join(recipients).encode()
    if data.startswith(_OLD_VERSION, _LENGTHS_AT):
        _verify_old(data, fixed + joined, text)
        return None
    line = LINE.match(data)
    if line is None:
        raise Unreadable('its first line is damaged')
    start, message, rest, traits_text = line.groups()
    traits = TRAITS.get(traits_text)
    if traits is None or int(rest, 16) != rest_sum(start, traits_text, fixed, joined):
        raise Unreadable(_CHANGED)
    if isinstance(text, bytes):
        found = crc32(text)
    else:
        found, text.traits = 0, traits
        for block in text.blocks():
            found = crc32(block, found)
    if int(message, 16) != found:
        raise Unreadable(_CHANGED)
    return traits


_CHANGED = 'its checksum does not match: it was damaged or changed'


def _verify_old(data: bytes, rest: bytes, text: bytes | LargeText) -> None:
    """Verify a file of version 1."""
    digest = sha256(data[_LENGTHS_AT:_SUMS_AT] + rest)
    if isinstance(text, bytes):
        digest.update(text)
    else:
        text.survey(digest.update)
    if data[_SUMS_AT:FIRST_LENGTH] != digest.hexdigest().encode() + _END:
        raise Unreadable(_CHANGED)
