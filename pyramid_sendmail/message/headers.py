"""Header lines: what a header may hold, how text is encoded for it, and how it is folded.

Each function that writes a header takes its name and its text, and returns the bytes of its line
or lines, CRLF included; it raises MessageError for text that cannot be written. The standard
library's folding is not used: releases still in use let an encoded line break through
(CVE-2024-6923), and encode identifiers and commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache

from ..exceptions import MessageError
from .encoded_words import LINE_WIDTH, decode_words, encoded_words, looks_encoded, needs_no_encoding
from .text import plain_text

__all__ = [
    'ADDRESS_HEADERS',
    'LINE_LIMIT',
    'check_date',
    'check_header_size',
    'check_message_id',
    'check_name',
    'check_text',
    'date_line',
    'excerpt',
    'fold',
    'holds_identifiers',
    'preserved_line',
    'structured_line',
    'unfold',
    'unstructured_line',
]

LINE_LIMIT = 998
"""Bytes of a line without its CRLF (RFC 5322, 2.1.1)."""

HEADER_SIZE = 100_000
"""Characters of a header. Many relays keep no more of one (Postfix: header_size_limit)."""

ADDRESS_HEADER_SIZE = 1_000_000
"""Characters of a header with addresses."""

_CONTROL = re.compile('[\0-\x08\n-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')

_NAME = re.compile('[!-9;-~]+')

_MESSAGE_ID = re.compile(r'<[!-;=?A-~]+@(?:[!-;=?A-Z^-~]+|\[[!-Z^-~]*\])>')

_DATE = re.compile(
    r'(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), *)?[0-9]{1,2} '
    r'(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [0-9]{4} '
    r'[0-9]{2}:[0-9]{2}(?::[0-9]{2})? (?:[+-][0-9]{4}|UT|GMT|[ECMP][SD]T)(?: *\([ -~]*\))?'
)

_BREAKS = re.compile(r'\\.|"|[ \t]+|[\r\n]+|,|>(?=<)')

_IDENTIFIERS = frozenset(
    {
        *('message-id', 'in-reply-to', 'references', 'resent-message-id', 'date', 'resent-date'),
        *('mime-version', 'auto-submitted', 'return-path', 'received', 'dkim-signature'),
        *('authentication-results', 'precedence', 'importance', 'x-priority'),
    }
)

ADDRESS_HEADERS = frozenset(
    {
        *('from', 'sender', 'reply-to', 'to', 'cc', 'bcc', 'resent-from', 'resent-sender'),
        *('resent-to', 'resent-cc', 'resent-bcc', 'resent-reply-to', 'errors-to'),
        *('disposition-notification-to', 'return-receipt-to', 'mail-followup-to', 'mail-reply-to'),
    }
)
"""Headers that hold addresses, in lower case."""


def unstructured_line(name: str, text: str) -> bytes:
    """Return a header of free text, such as Subject, as a reader will decode it: exactly ``text``.

    Words that are not ASCII, or look encoded, become encoded words of whole characters (RFC 2047).
    Raises MessageError for a line break or another control character.
    """
    if needs_no_encoding(text):
        if len(name) + len(text) + 2 <= LINE_WIDTH:
            return f'{name}: {text}\r\n'.encode('ascii')
        if max(map(len, text.split(' '))) + len(name) < LINE_LIMIT - 1:
            return fold(name, re.findall(' +[^ ]+', f' {text}'))
    text = check_text(text, name)
    tokens = re.findall(' *[^ ]+', text)
    has_encoded_word = looks_encoded(text)
    to_encode = [
        index
        for index, token in enumerate(tokens)
        if not token.isascii()
        or '\t' in token
        or (has_encoded_word and '=?' in token)
        or len(token) + len(name) >= LINE_LIMIT - 1
    ]
    first = 0 if not to_encode or text.startswith(' ') else to_encode[0]
    last = len(tokens) if not to_encode or text.endswith(' ') else to_encode[-1] + 1
    before, after = tokens[:first], tokens[last:]
    middle = text[len(''.join(before)) : len(text) - len(''.join(after))]
    if not before:
        words = encoded_words(middle, LINE_WIDTH - len(name) - 2)
        return fold(name, [f' {word}' for word in words] + after)
    words = encoded_words(middle.lstrip(' '), LINE_WIDTH - 1)
    blank = ' ' * (len(middle) - len(middle.lstrip(' ')))
    before[0] = f' {before[0]}'
    return fold(name, [*before, blank + words[0], *(f' {word}' for word in words[1:]), *after])


def structured_line(name: str, text: str) -> bytes:
    """Return a header of identifiers or tokens: never encoded, folded at blanks outside of quotes,
    behind the commas of addresses, and between two that are in angle brackets.

    Raises MessageError for text that is not ASCII, and for more bytes without a blank than a line
    can hold.
    """
    text = check_text(text, name)
    if not text.isascii():
        remedy = 'write the ASCII form (percent-encoded in a URL)'
        if name.lower().startswith('content-'):
            remedy = 'write ASCII, or give its parameters to add_header(), which encodes them'
        raise MessageError(
            f'{name}: {excerpt(text)} is not ASCII, and this header cannot be encoded; {remedy}'
        )
    if len(name) + len(text) + 2 <= LINE_WIDTH:
        return f'{name}: {text}\r\n'.encode('ascii')
    return fold(name, _tokens(text, name.lower()))


def preserved_line(name: str, value: str) -> bytes:
    """Return a header that another program has written, and perhaps folded and encoded.

    ASCII stays as it is, folded anew only if a line is too long or ends inside quotes. Other
    characters are read as text, raw bytes as UTF-8, and encoded; so is text that cannot be folded.
    """
    if value.isascii() and value.isprintable() and len(name) + len(value) + 2 <= LINE_WIDTH:
        return f'{name}: {value}\r\n'.encode('ascii')
    text = unfold(value)
    check_text(text, name)
    key = name.lower()
    is_structured = holds_identifiers(name) or key.startswith('content-')
    if not text.isascii():
        if is_structured:
            return structured_line(name, text)
        return unstructured_line(name, decode_words(text))
    lines = re.split('\r\n|\r|\n', f'{name}: {value}'.rstrip('\r\n'))
    fits = all(line.strip() and len(line) <= LINE_WIDTH + 2 for line in lines)
    if fits and (len(lines) == 1 or '"' not in value or not _breaks_in_quotes(value)):
        return ''.join(f'{line}\r\n' for line in lines).encode('ascii')
    try:
        return structured_line(name, text)
    except MessageError:
        if is_structured or key in ADDRESS_HEADERS:
            raise
        return unstructured_line(name, decode_words(text))


def fold(name: str, tokens: Iterable[str]) -> bytes:
    """Return a header folded between ``tokens``, each of which has its leading blanks.

    A line holds as many tokens as fit into LINE_WIDTH characters. No break follows the colon: some
    readers expect the value on the first line.
    """
    lines: list[str] = []
    line = f'{name}:'
    started = False
    for token in tokens:
        if started and len(line) + len(token) > LINE_WIDTH:
            lines.append(line)
            line = token
        else:
            line += token
        started = True
    lines.append(line)
    encoded = [line.encode('utf-8') for line in lines]
    for each in encoded:
        if len(each) > LINE_LIMIT:
            raise MessageError(
                f'{name}: {len(each)} bytes without a blank cannot be folded, and a line holds '
                f'{LINE_LIMIT} (RFC 5322, 2.1.1); shorten the value'
            )
    return b''.join(each + b'\r\n' for each in encoded)


def unfold(value: str) -> str:
    """Return the text of a folded header (RFC 5322, 2.2.3), raw bytes of a parser read as UTF-8.

    Line breaks that do not fold stay, and :func:`check_text` refuses them.
    """
    if '\n' in value or '\r' in value:
        value = re.sub('(?:\r\n|\r|\n)(?=[ \t])', '', value.rstrip('\r\n'))
    if not value.isascii():
        try:
            return value.encode('utf-8', 'surrogateescape').decode('utf-8')
        except UnicodeError:
            return value
    return value


def holds_identifiers(name: str) -> bool:
    """Return whether the header ``name`` holds identifiers or tokens, which are never encoded."""
    name = name.lower()
    return name in _IDENTIFIERS or (name.startswith('list-') and name != 'list-id')


def check_name(name: object, where: str = 'headers') -> str:
    """Return ``name`` if it can name a header (RFC 5322, 3.6.8: ftext)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MessageError(
            f'{where}: {excerpt(name)} is not a header name; write printable ASCII without blanks '
            'and colons'
        )
    return str.__str__(name)


def check_text(text: object, where: str) -> str:
    """Return ``text`` if it is a string without line breaks and other control characters."""
    if type(text) is str and text.isascii() and text.isprintable():
        return text
    text = plain_text(text, where, excerpt(text))
    found = None if text.isascii() and text.isprintable() else _CONTROL.search(text)
    if found:
        character = ord(found[0])
        what = f'the control character U+{character:04X}'
        if found[0] in '\r\n\u2028\u2029\x85':
            what = 'a line break'
        elif character >= 0xD800:
            what = 'a lone surrogate or a byte that is not UTF-8'
        raise MessageError(f'{where}: {excerpt(text)} has {what}; take it out')
    return text


def check_header_size(name: str, text: str) -> str:
    """Return ``text`` if it is not longer than a header may be, so that no text keeps ``send``
    busy."""
    limit = ADDRESS_HEADER_SIZE if name.lower() in ADDRESS_HEADERS else HEADER_SIZE
    if len(text) > limit:
        raise MessageError(
            f'{name}: {len(text)} characters are more than a header can have, {limit}; shorten it, '
            'or move it into the text or an attachment'
        )
    return text


def check_message_id(value: str, where: str) -> str:
    """Return ``value`` if it is exactly one message id (RFC 5322, 3.6.4)."""
    if not value.isascii() or not _MESSAGE_ID.fullmatch(value):
        raise MessageError(
            f'{where}: {excerpt(value)} is not a message id; write <unique@example.org>, '
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
        f'{where}: {excerpt(value)} is not a date; write email.utils.format_datetime(moment), or '
        'leave the header out'
    )


def date_line(moment: float) -> bytes:
    """Return the header ``Date`` for a time in epoch seconds, in UTC."""
    return _date_line(int(moment // 1))


# Mail of the same second has the same line: 0.3 against 6.4 us.
@lru_cache(maxsize=4)
def _date_line(second: int) -> bytes:
    return structured_line('Date', format_datetime(datetime.fromtimestamp(second, UTC)))


def excerpt(value: object, limit: int = 60) -> str:
    """Return ``value`` for an error's text: escaped, and its first ``limit`` characters at most."""
    text = repr(value[:limit] if isinstance(value, str | bytes) else value)
    if len(text) > limit + 2 or (isinstance(value, str | bytes) and len(value) > limit):
        return text[:limit].rstrip('\'"') + '...'
    return text


def _tokens(text: str, key: str) -> list[str]:
    """Return the tokens of a header between which it may be folded, each with its leading blanks.

    A quoted string is never split: many readers do not find a boundary or a file name again that
    was folded. ``key``: the header's name in lower case; a token of an address header ends behind
    a comma, too, and one of a list of identifiers or URLs in angle brackets behind its bracket.
    """
    is_list = key in ('references', 'in-reply-to') or key.startswith('list-')
    before = '<' if is_list else ''
    tokens: list[str] = []
    start = 0
    for found in _outside_quotes(text):
        at = found.start()
        if found[0] in (',', '>'):
            at = found.end()
            # A blank behind a comma begins the next token by itself.
            if text[at : at + 1] in ('', ' ', '\t'):
                continue
            if key not in ADDRESS_HEADERS and text[at] != before:
                continue
        if at > start:
            tokens.append(text[start:at])
            start = at
    if text[start:].strip(' \t'):
        tokens.append(text[start:])
    return [token if token[0] in ' \t' else f' {token}' for token in tokens if token.strip(' \t')]


def _outside_quotes(text: str) -> Iterator[re.Match[str]]:
    """Yield each run of blanks, each line break and each comma that no quotes are around."""
    inside: list[re.Match[str]] | None = None
    for found in _BREAKS.finditer(text):
        if found[0] == '"':
            inside = [] if inside is None else None
        elif found[0][0] != '\\':
            if inside is None:
                yield found
            else:
                inside.append(found)
    # A last quote without its end is an ordinary character.
    yield from inside or ()


def _breaks_in_quotes(value: str) -> bool:
    """Return whether a folded header has a line break inside quotes."""
    breaks = len(re.findall('[\r\n]+', value))
    return breaks > sum(found[0][0] in '\r\n' for found in _outside_quotes(value))
