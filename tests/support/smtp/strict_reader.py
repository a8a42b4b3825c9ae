"""A strict reader of messages: finds what RFC 5322, 2047, 2045 and 8058 forbid.

It shares no code with the package.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

__all__ = ['faults', 'fields']

_ONCE = ('date', 'from')

_ONCE_AT_MOST = frozenset(
    {
        *('sender', 'reply-to', 'to', 'cc', 'message-id', 'in-reply-to', 'references', 'subject'),
        *('mime-version', 'content-type', 'content-transfer-encoding', 'auto-submitted'),
        *('list-unsubscribe', 'list-unsubscribe-post'),
    }
)

_ADDRESSES = frozenset({'from', 'sender', 'reply-to', 'to', 'cc'})

_WORD = re.compile(r'=\?[^?\s]*\?[^?\s]*\?[^?]*\?=')

_WHOLE_WORD = re.compile(r'=\?utf-8\?(?:b\?[A-Za-z0-9+/]*=*|q\?[^ ?\t]*)\?=', re.IGNORECASE)


def fields(raw: bytes) -> list[tuple[str, str]]:
    """Return the header fields, unfolded, in order."""
    head = raw.partition(b'\r\n\r\n')[0].decode('utf-8')
    return [
        (name.lower(), value.lstrip(' '))
        for name, _, value in (
            line.partition(':') for line in re.sub(r'\r\n(?=[ \t])', '', head).split('\r\n')
        )
    ]


def faults(raw: bytes, *, domain: str, wide: bool = False) -> list[str]:
    """Return the faults of a message.

    ``domain``: the right side of its Message-ID. ``wide``: its headers may hold UTF-8 (RFC 6532).
    """
    return [*_faults_of_lines(raw, wide), *_faults_of_fields(raw, domain), *_faults_of_words(raw)]


def _faults_of_lines(raw: bytes, wide: bool) -> Iterator[str]:
    if not re.fullmatch(rb'(?:[^\r\n\0]*\r\n)*', raw):
        yield 'a bare CR or LF, a NUL, or no CRLF at the end'
    if max(map(len, raw.split(b'\r\n'))) > 998:
        yield 'a line of more than 998 bytes'
    head, blank, body = raw.partition(b'\r\n\r\n')
    if not blank:
        yield 'no empty line behind the headers'
    if not body.isascii() or not (wide or head.isascii()):
        yield 'a byte above 127'
    for line in head.split(b'\r\n'):
        if not re.match(rb'[!-9;-~]+:|[ \t]+[^ \t]', line):
            yield f'no header: {line!r}'
        if len(line) > 76 and _WORD.search(line.decode()):
            yield f'a line of more than 76 characters with an encoded word: {line!r}'


def _faults_of_fields(raw: bytes, domain: str) -> Iterator[str]:
    found = fields(raw)
    counts = Counter(name for name, _ in found)
    values = dict(found)
    for name in _ONCE:
        if counts[name] != 1:
            yield f'{counts[name]} fields {name}'
    for name in _ONCE_AT_MOST:
        if counts[name] > 1:
            yield f'{counts[name]} fields {name}'
    for name in ('bcc', 'resent-bcc', 'return-path'):
        if name in counts:
            yield f'a field {name}'
    if counts['to'] + counts['cc'] == 0:
        yield 'neither To nor Cc'
    if len(_mailboxes(values['from'])) > 1 and 'sender' not in counts:
        yield 'several addresses in From and no Sender'
    if not re.fullmatch(rf'<[!-;=?-~]+@{re.escape(domain)}>', values.get('message-id', '')):
        yield f'no Message-ID of {domain}: {values.get("message-id")!r}'
    if parsedate_to_datetime(values['date']).tzinfo is None:
        yield 'no zone in Date'


def _faults_of_words(raw: bytes) -> Iterator[str]:
    for name, value in fields(raw):
        words = _WORD.findall(value)
        for word in words:
            if len(word) > 75:
                yield f'{name}: an encoded word of {len(word)} characters'
            if not _WHOLE_WORD.fullmatch(word):
                yield f'{name}: no encoded word: {word!r}'
        # List-Id begins with a name for people (RFC 2919, 3).
        plain = value.partition('<')[2] if name == 'list-id' else value
        if _WORD.search(plain) and (name == 'message-id' or name.startswith('list-')):
            yield f'{name}: an encoded word'
        if words and name in _ADDRESSES:
            for inner in re.findall(r'<[^>]*>|"(?:[^"\\]|\\.)*"', value):
                if _WORD.search(inner):
                    yield f'{name}: an encoded word within {inner!r}'


def _mailboxes(value: str) -> list[str]:
    plain = re.sub(r'"(?:[^"\\]|\\.)*"', 'x', value)
    return [each for each in plain.split(',') if each.strip()]
