"""Header lines: what may stand in one, how text is encoded for it, and how it is folded.

Each function that writes a header takes its name and its text and returns the bytes of the line
or lines, CRLF included. The standard library's own folding is not used: releases that are in use
let an encoded line break through (CVE-2024-6923), and encode identifiers and commas.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache

from ..exceptions import MessageError

__all__ = [
    'ADDRESSES',
    'check_date',
    'check_message_id',
    'check_name',
    'check_text',
    'date_line',
    'decoded',
    'encoded_words',
    'fold',
    'is_identifier',
    'parameters',
    'readable',
    'shown',
    'source',
    'structured',
    'unfolded',
    'unstructured',
]

WIDTH = 76
"""Characters of a line that may hold an encoded word (RFC 2047, 2); kept for every line."""

LIMIT = 998
"""Octets of a line without its CRLF (RFC 5322, 2.1.1)."""

_CONTROL = re.compile('[\0-\x08\n-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')

_NAME = re.compile('[!-9;-~]+')

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+")

_LOOKS_ENCODED = re.compile(r'=\?[^?]*\?[bBqQ]\?')

_ENCODED = re.compile(r'=\?([^?*\s]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=')

_MESSAGE_ID = re.compile(r'<[!-;=?A-~]+@(?:[!-;=?A-Z^-~]+|\[[!-Z^-~]*\])>')

_DATE = re.compile(
    r'(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), *)?[0-9]{1,2} '
    r'(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [0-9]{4} '
    r'[0-9]{2}:[0-9]{2}(?::[0-9]{2})? (?:[+-][0-9]{4}|UT|GMT|[ECMP][SD]T)(?: *\([ -~]*\))?'
)

_IDENTIFIERS = frozenset(
    {
        *('message-id', 'in-reply-to', 'references', 'resent-message-id', 'date', 'resent-date'),
        *('mime-version', 'auto-submitted', 'return-path', 'received', 'dkim-signature'),
        *('authentication-results', 'precedence', 'importance', 'x-priority'),
    }
)

ADDRESSES = frozenset(
    {
        *('from', 'sender', 'reply-to', 'to', 'cc', 'bcc', 'resent-from', 'resent-sender'),
        *('resent-to', 'resent-cc', 'resent-bcc', 'resent-reply-to', 'errors-to'),
        *('disposition-notification-to', 'return-receipt-to', 'mail-followup-to', 'mail-reply-to'),
    }
)
"""Headers that hold addresses."""

_LETTERS = string.ascii_letters + string.digits


def _table(escape: str, plain: str) -> list[str]:
    """How each octet is written: as it is, or in hexadecimal."""
    letters = map(chr, range(256))
    return [each if each in plain else f'{escape}{ord(each):02X}' for each in letters]


_Q = _table('=', f'{_LETTERS}!*+/-')
_Q[0x20] = '_'

_ATTRIBUTE = _table('%', f'{_LETTERS}!#$&+.^_`{{|}}~-')


def unstructured(name: str, text: str) -> bytes:
    """A header of plain text: what is not ASCII, or looks encoded, becomes encoded words.

    A reader that decodes the line gets exactly ``text`` (RFC 2047; whole characters only).
    Raises MessageError for a line break or another control character.
    """
    if readable(text):
        if len(name) + len(text) + 2 <= WIDTH:
            return f'{name}: {text}\r\n'.encode('ascii')
        if max(map(len, text.split(' '))) + len(name) < LIMIT - 1:
            return fold(name, re.findall(' +[^ ]+', f' {text}'))
    text = check_text(text, name)
    tokens = re.findall(' *[^ ]+', text)
    looks = bool(_LOOKS_ENCODED.search(text))
    marked = [
        index
        for index, token in enumerate(tokens)
        if not token.isascii()
        or '\t' in token
        or (looks and '=?' in token)
        or len(token) + len(name) >= LIMIT - 1
    ]
    first = 0 if not marked or text.startswith(' ') else marked[0]
    last = len(tokens) if not marked or text.endswith(' ') else marked[-1] + 1
    before, after = tokens[:first], tokens[last:]
    middle = text[len(''.join(before)) : len(text) - len(''.join(after))]
    if not before:
        words = encoded_words(middle, WIDTH - len(name) - 2)
        return fold(name, [f' {word}' for word in words] + after)
    words = encoded_words(middle.lstrip(' '), WIDTH - 1)
    blank = ' ' * (len(middle) - len(middle.lstrip(' ')))
    before[0] = f' {before[0]}'
    return fold(name, [*before, blank + words[0], *(f' {word}' for word in words[1:]), *after])


def structured(name: str, text: str) -> bytes:
    """A header of identifiers, addresses or tokens: never encoded, folded at blanks only.

    Raises MessageError for what is not ASCII, and for more octets without a blank than a line
    can hold.
    """
    text = check_text(text, name)
    if not text.isascii():
        raise MessageError(
            f'{name}: {shown(text)} is not ASCII, and such a header cannot be encoded; write'
            ' the ASCII form (percent-encoded in a URL)'
        )
    if len(name) + len(text) + 2 <= WIDTH:
        return f'{name}: {text}\r\n'.encode('ascii')
    return fold(name, re.findall('[ \t]+[^ \t]+', f' {text}'))


def source(name: str, value: str) -> bytes:
    """A header as a program or a parser left it: perhaps folded, perhaps encoded.

    ASCII stays as it is. Anything else is taken for text, its octets for UTF-8.
    """
    if value.isascii() and value.isprintable() and len(name) + len(value) + 2 <= WIDTH:
        return f'{name}: {value}\r\n'.encode('ascii')
    text = unfolded(value)
    check_text(text, name)
    if not text.isascii():
        if is_identifier(name) or name.lower().startswith('content-'):
            return structured(name, text)
        return unstructured(name, decoded(text))
    lines = re.split('\r\n|\r|\n', f'{name}: {value}'.rstrip('\r\n'))
    if all(line.strip() and len(line) <= WIDTH + 2 for line in lines):
        return ''.join(f'{line}\r\n' for line in lines).encode('ascii')
    return structured(name, text)


def fold(name: str, tokens: Iterable[str]) -> bytes:
    """The lines of a header: ``tokens``, each with its leading blanks, as many as fit on a line.

    Nothing is broken right after the colon, where some readers look for the value.
    """
    lines: list[str] = []
    line = f'{name}:'
    started = False
    for token in tokens:
        if started and len(line) + len(token) > WIDTH:
            lines.append(line)
            line = token
        else:
            line += token
        started = True
    lines.append(line)
    octets = [line.encode('utf-8') for line in lines]
    for line_octets in octets:
        if len(line_octets) > LIMIT:
            raise MessageError(
                f'{name}: {len(line_octets)} octets without a blank cannot be folded, and a line '
                f'holds {LIMIT} (RFC 5322, 2.1.1); shorten the value'
            )
    return b''.join(line_octets + b'\r\n' for line_octets in octets)


def encoded_words(text: str, first: int = WIDTH - 1) -> list[str]:
    """``text`` in encoded words of at most 75 characters, of ``first`` for the first (RFC 2047).

    Whichever encoding is shorter; no character is split. ``text`` may be used in a phrase.
    """
    data = text.encode('utf-8')
    base = sum(len(_Q[octet]) for octet in data) > (len(data) + 2) // 3 * 4
    words: list[str] = []
    word: list[str] = []
    size = 0
    # 12 characters are for =?utf-8?q? and ?=.
    room = max(min(first, 75), 32) - 12
    for character in text:
        octets = character.encode('utf-8')
        cost = len(octets) if base else sum(len(_Q[octet]) for octet in octets)
        if size + cost > (room // 4 * 3 if base else room):
            words.append(_word(''.join(word), base))
            word, size, room = [], 0, 75 - 12
        word.append(character)
        size += cost
    return [*words, _word(''.join(word), base)]


def decoded(text: str) -> str:
    """``text`` with its encoded words read (RFC 2047, 6); those that make no sense stay."""
    if '=?' not in text:
        return text
    parts: list[str] = []
    charset, octets, end = '', b'', 0
    for match in _ENCODED.finditer(text):
        between = text[end : match.start()]
        found = _decoded_octets(match[1], match[2], match[3])
        if found is None:
            continue
        if octets and not between.strip() and match[1].lower() == charset:
            octets += found
        else:
            parts.append(octets.decode(charset or 'ascii', 'replace'))
            # Between two encoded words blanks are only there to separate them.
            parts.append(between if between.strip() or not octets else '')
            charset, octets = match[1].lower(), found
        end = match.end()
    parts.append(octets.decode(charset or 'ascii', 'replace'))
    return ''.join(parts) + text[end:]


def unfolded(value: str) -> str:
    """The text of a folded header (RFC 5322, 2.2.3), raw octets of a parser read as UTF-8.

    Line breaks that are no folding stay, for :func:`check_text` to refuse.
    """
    if '\n' in value or '\r' in value:
        value = re.sub('(?:\r\n|\r|\n)(?=[ \t])', '', value.rstrip('\r\n'))
    if not value.isascii():
        try:
            return value.encode('utf-8', 'surrogateescape').decode('utf-8')
        except UnicodeError:
            return value
    return value


def parameters(name: str, value: str, given: Iterable[tuple[str, str]]) -> str:
    """``value`` and its parameters, folded, for the header ``name`` (RFC 2045, 5.1).

    What is not ASCII, and a long file name, is written as RFC 2231 has it, in pieces that fit on
    a line and hold whole characters.
    """
    pieces = [value]
    for key, text in given:
        check_text(text, f'{name}, {key}')
        if not _TOKEN.fullmatch(key):
            raise MessageError(f'{name}: {shown(key)} is not the name of a parameter (RFC 2045)')
        long = 64 if key in ('filename', 'name') else 900
        if readable(text) and '  ' not in text and len(text) <= long:
            escaped = text.replace('\\', '\\\\').replace('"', '\\"')
            pieces.append(f'{key}="{escaped}"')
        else:
            pieces.extend(_extended(key, text))
    line, *rest = [f'{piece};' for piece in pieces[:-1]] + pieces[-1:]
    for piece in rest:
        room = WIDTH - 1 if '\n' in line else WIDTH - len(name) - 3
        short = len(line.rpartition('\n')[2]) + len(piece) <= room
        line += (' ' if short else '\r\n ') + piece
    return line


def readable(text: str) -> bool:
    """Whether a reader finds ``text`` again where it stands unencoded: ASCII, nothing odd."""
    return (
        text.isascii()
        and text.isprintable()
        and text == text.strip(' ')
        and not ('=?' in text and _LOOKS_ENCODED.search(text))
    )


def is_identifier(name: str) -> bool:
    """Whether the header ``name`` holds identifiers or tokens, in which nothing may be encoded."""
    name = name.lower()
    return name in _IDENTIFIERS or (name.startswith('list-') and name != 'list-id')


def check_name(name: object, where: str = 'headers') -> str:
    """Return ``name`` if it can name a header (RFC 5322, 3.6.8: ftext)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MessageError(
            f'{where}: {shown(name)} is not the name of a header; write printable ASCII without'
            ' blanks and colons'
        )
    return name


def check_text(text: object, where: str) -> str:
    """Return ``text`` if it is a string without line breaks and other control characters."""
    if type(text) is str and text.isascii() and text.isprintable():
        return text
    if not isinstance(text, str):
        raise MessageError(f'{where}: {shown(text)} is not a string; give a str')
    found = None if text.isascii() and text.isprintable() else _CONTROL.search(text)
    if found:
        character = ord(found[0])
        what = f'the control character U+{character:04X}'
        if found[0] in '\r\n\u2028\u2029\x85':
            what = 'a line break'
        elif character >= 0xD800:
            what = 'a lone surrogate or an octet that is not UTF-8'
        raise MessageError(f'{where}: {shown(text)} has {what}; take it out')
    # Of a subclass such as markupsafe.Markup, whose methods differ, only the text is wanted.
    return text if type(text) is str else str(text)


def check_message_id(value: str, where: str) -> str:
    """Return ``value`` if it is one message id (RFC 5322, 3.6.4)."""
    if not value.isascii() or not _MESSAGE_ID.fullmatch(value):
        raise MessageError(
            f'{where}: {shown(value)} is not a message id; write <unique@example.org>, '
            'or leave the header out'
        )
    return value


def check_date(value: str, where: str) -> str:
    """Return ``value`` if it is a date and time (RFC 5322, 3.3)."""
    try:
        if _DATE.fullmatch(value):
            parsedate_to_datetime(value)
            return value
    except (ValueError, TypeError):
        pass
    raise MessageError(
        f'{where}: {shown(value)} is not a date; write email.utils.format_datetime(moment), or '
        'leave the header out'
    )


def date_line(moment: float) -> bytes:
    """The header ``Date`` with epoch seconds, in UTC."""
    return _date_line(int(moment // 1))


@lru_cache(maxsize=4)
def _date_line(second: int) -> bytes:
    return structured('Date', format_datetime(datetime.fromtimestamp(second, UTC)))


def shown(value: object, limit: int = 60) -> str:
    """``value`` for an error's text: escaped, and not longer than a reader wants."""
    text = repr(value[:limit] if isinstance(value, str | bytes) else value)
    if len(text) > limit + 2 or (isinstance(value, str | bytes) and len(value) > limit):
        return text[:limit].rstrip('\'"') + '...'
    return text


def _word(text: str, base: bool) -> str:
    data = text.encode('utf-8')
    if base:
        return f'=?utf-8?b?{base64.b64encode(data).decode("ascii")}?='
    return f'=?utf-8?q?{"".join(_Q[octet] for octet in data)}?='


def _decoded_octets(charset: str, encoding: str, payload: str) -> bytes | None:
    try:
        if encoding in 'bB':
            octets = base64.b64decode(payload + '=' * (-len(payload) % 4), validate=True)
        else:
            octets = binascii.a2b_qp(payload, header=True)
        octets.decode(charset, 'replace')
    except (LookupError, ValueError):
        return None
    return octets


def _extended(key: str, text: str) -> list[str]:
    sections = ["utf-8''"]
    for character in text:
        octets = character.encode('utf-8')
        piece = ''.join(_ATTRIBUTE[octet] for octet in octets)
        if len(sections[-1]) + len(piece) > WIDTH - len(key) - 8:
            sections.append('')
        sections[-1] += piece
    if len(sections) == 1:
        return [f'{key}*={sections[0]}']
    return [f'{key}*{index}*={section}' for index, section in enumerate(sections)]
