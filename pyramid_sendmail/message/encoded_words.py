"""Encoded words (RFC 2047): how a header that is ASCII carries any text."""

from __future__ import annotations

import base64
import binascii
import re
import string

__all__ = ['LINE_WIDTH', 'decode_words', 'encoded_words', 'looks_encoded', 'needs_no_encoding']

LINE_WIDTH = 76
"""Characters of a line that may hold an encoded word (RFC 2047, 2); kept for every line."""


def encoded_words(text: str, first: int = LINE_WIDTH - 1) -> list[str]:
    """Return ``text`` in encoded words of at most 75 characters, ``first`` for the first one.

    Uses the shorter of the two encodings and splits no character (RFC 2047, 5); the words may
    stand in a display name.
    """
    data = text.encode('utf-8')
    base64_is_shorter = sum(len(_Q_ESCAPES[byte]) for byte in data) > (len(data) + 2) // 3 * 4
    words: list[str] = []
    word: list[str] = []
    size = 0
    # =?utf-8?q? and ?= take 12 characters.
    room = max(min(first, 75), 32) - 12
    for character in text:
        data = character.encode('utf-8')
        cost = len(data) if base64_is_shorter else sum(len(_Q_ESCAPES[byte]) for byte in data)
        if size + cost > (room // 4 * 3 if base64_is_shorter else room):
            words.append(_encoded_word(''.join(word), base64_is_shorter))
            word, size, room = [], 0, 75 - 12
        word.append(character)
        size += cost
    return [*words, _encoded_word(''.join(word), base64_is_shorter)]


def decode_words(text: str) -> str:
    """Return ``text`` with its encoded words decoded (RFC 2047, 6); invalid ones stay."""
    if '=?' not in text:
        return text
    parts: list[str] = []
    charset, pending, end = '', b'', 0
    for match in _ENCODED.finditer(text):
        between = text[end : match.start()]
        data = _word_bytes(match[1], match[2], match[3])
        if data is None:
            continue
        if pending and not between.strip() and match[1].lower() == charset:
            # Some programs split a character between two words: decode them together.
            pending += data
        else:
            parts.append(pending.decode(charset or 'ascii', 'replace'))
            # Blanks between two encoded words only separate them.
            parts.append(between if between.strip() or not pending else '')
            charset, pending = match[1].lower(), data
        end = match.end()
    parts.append(pending.decode(charset or 'ascii', 'replace'))
    return ''.join(parts) + text[end:]


def needs_no_encoding(text: str) -> bool:
    """Return whether any reader reads ``text`` back exactly if it is not encoded."""
    return (
        text.isascii()
        and text.isprintable()
        and text == text.strip(' ')
        and not ('=?' in text and looks_encoded(text))
    )


def looks_encoded(text: str) -> bool:
    """Return whether ``text`` holds the beginning of an encoded word."""
    return bool(_LOOKS_ENCODED.search(text))


def _encoded_word(text: str, in_base64: bool) -> str:
    data = text.encode('utf-8')
    if in_base64:
        return f'=?utf-8?b?{base64.b64encode(data).decode("ascii")}?='
    return f'=?utf-8?q?{"".join(_Q_ESCAPES[byte] for byte in data)}?='


def _word_bytes(charset: str, encoding: str, payload: str) -> bytes | None:
    """Return the bytes of an encoded word, or None if it is invalid."""
    try:
        if encoding in 'bB':
            data = base64.b64decode(payload + '=' * (-len(payload) % 4), validate=True)
        else:
            data = binascii.a2b_qp(payload, header=True)
        data.decode(charset, 'replace')
    except (LookupError, ValueError):
        return None
    return data


_LOOKS_ENCODED = re.compile(r'=\?[^?]*\?[bBqQ]\?')

_ENCODED = re.compile(r'=\?([^?*\s]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=')

_Q_UNESCAPED = frozenset(f'{string.ascii_letters}{string.digits}!*+/-')

_Q_ESCAPES = [
    '_' if byte == 0x20 else chr(byte) if chr(byte) in _Q_UNESCAPED else f'={byte:02X}'
    for byte in range(256)
]
"""How the Q encoding writes each byte in a phrase (RFC 2047, 5)."""
