"""Headers of messages of other libraries: what they say, and their lines as they leave.

A message of the standard library's ``email`` package, or one that it parsed, may hold headers that
must not leave. Nothing here changes the caller's object, and nothing is parsed or folded by the
standard library, which needs more than linear time for some headers and never ends for others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from email import errors
from email.header import Header
from email.headerregistry import BaseHeader, ContentDispositionHeader, ContentTypeHeader
from email.message import Message as AnyMessage

from ..exceptions import MessageError
from .address import Group, Mailbox, parse_list
from .address_header import address_line
from .encoded_words import decode_words
from .headers import (
    ADDRESS_HEADERS,
    check_header_size,
    check_name,
    check_text,
    excerpt,
    holds_identifiers,
    preserved_line,
    structured_line,
    unfold,
    unstructured_line,
)
from .parameters import content_line, with_parameters
from .text import plain_text

__all__ = [
    'ascii_line',
    'content_type',
    'header_entries',
    'header_line',
    'header_source',
    'header_text',
    'mended_entries',
    'mended_line',
    'mended_text',
]


def header_text(name: str, value: object) -> str:
    """Return the text of a header as a reader would see it."""
    if isinstance(value, BaseHeader):
        return check_text(check_header_size(name, str(value)), name)
    text = unfold(header_source(name, value)).strip()
    return check_text(text if holds_identifiers(name) else decode_words(text), name)


def header_entries(name: str, value: object) -> tuple[Mailbox | Group, ...]:
    """Return the mailboxes and groups of an address header."""
    if isinstance(value, BaseHeader):
        entries = parse_list(str(value), name, encoded=False)
        # Such a header has already dropped what it did not understand: 'a@x b@y' became 'a@x'.
        for defect in value.defects:
            if not isinstance(defect, _HARMLESS_DEFECTS):
                raise MessageError(
                    f'{name}: {excerpt(str(value))} is only the part of its addresses that could '
                    f'be read ({defect}); separate them by commas, or set '
                    'email.headerregistry.Address'
                )
        return entries
    return parse_list(unfold(header_source(name, value)), name)


def header_line(name: str, value: object) -> bytes:
    """Return a header as it leaves, encoded and folded by our own functions unless it is already.

    Raises MessageError.
    """
    check_name(name, 'message')
    key = name.lower()
    is_address = key in ADDRESS_HEADERS
    if isinstance(value, ContentTypeHeader):
        check_header_size(name, str(value))
        return preserved_line(name, with_parameters(name, value.content_type, value.params.items()))
    if isinstance(value, ContentDispositionHeader) and value.content_disposition:
        check_header_size(name, str(value))
        return preserved_line(
            name, with_parameters(name, value.content_disposition, value.params.items())
        )
    if not isinstance(value, BaseHeader):
        source = header_source(name, value)
        if is_address and not source.isascii():
            return address_line(name, header_entries(name, value))
        # What a parser keeps of raw bytes is written anew; what was written by hand is refused.
        if key in _MIME and not _WRITTEN_BY_HAND.search(source):
            return content_line(name, source)
        return preserved_line(name, source)
    text = check_header_size(name, str(value))
    if is_address and text.strip():
        return address_line(name, header_entries(name, value))
    if holds_identifiers(name) or key.startswith('content-'):
        return structured_line(name, text)
    return unstructured_line(name, text)


def mended_text(name: str, value: object) -> str:
    """Return the text of a header that :func:`header_text` refuses, without what cannot leave:
    bytes that are not UTF-8 are read as Windows-1252, control characters become blanks."""
    return _CONTROL.sub(' ', decode_words(_readable(name, value))).strip()


def mended_entries(name: str, value: object) -> tuple[Mailbox | Group, ...]:
    """Return what :func:`header_entries` does, of a header with the faults that
    :func:`mended_text` mends as well. Raises MessageError."""
    try:
        return header_entries(name, value)
    except MessageError:
        # Encoded words stay: a comma in one is no end of an address.
        return parse_list(_CONTROL.sub(' ', _readable(name, value)).strip(), name)


def mended_line(name: str, value: object) -> bytes:
    """Return a header as it leaves, even one that :func:`header_line` refuses; b'' if it cannot.

    For messages that are sent on: what is wrong with their headers does not stop the delivery.
    """
    try:
        return header_line(name, value)
    except MessageError:
        text = mended_text(name, value)
    if name.lower() in ADDRESS_HEADERS:
        with suppress(MessageError):
            return address_line(name, mended_entries(name, value))
    try:
        if name.lower() in _MIME:
            return content_line(name, text)
        if text.isascii() and (holds_identifiers(name) or name.lower() in ADDRESS_HEADERS):
            return structured_line(name, text)
        return unstructured_line(name, text)
    except MessageError:
        return b''


def ascii_line(name: str, value: object) -> bytes:
    """Return what :func:`mended_line` does, in ASCII.

    A relay without SMTPUTF8 takes no other header. An address whose local part is not ASCII becomes
    an empty group of its text (RFC 6857, 3.1.8).
    """
    line = mended_line(name, value)
    if line.isascii():
        return line
    try:
        entries = [each for found in mended_entries(name, value) for each in _downgraded(found)]
        return address_line(name, entries)
    except MessageError:
        return unstructured_line(name, mended_text(name, value))


def _downgraded(entry: Mailbox | Group) -> Iterator[Mailbox | Group]:
    if isinstance(entry, Group):
        kept = tuple(each for each in entry.members if each.address.isascii())
        yield entry._replace(members=kept)
        others = [each for each in entry.members if each not in kept]
    else:
        others = [entry]
    for each in others:
        ascii_only = each.address.isascii()
        yield each if ascii_only else Group(f'{each.name} {each.address}'.lstrip())


def _readable(name: str, value: object) -> str:
    source = str(value) if isinstance(value, BaseHeader) else header_source(name, value)
    text = re.sub('[\r\n]+[ \t]*', ' ', source)
    if not text.isascii():
        data = text.encode('utf-8', 'surrogateescape')
        try:
            text = data.decode('utf-8')
        except UnicodeError:
            text = data.decode('cp1252', 'replace')
    return text


def content_type(part: AnyMessage) -> tuple[str, str]:
    """Return a part's type in lower case, and its header Content-Type, unfolded; '' if it has
    none."""
    for name, value in part.raw_items():
        if name.lower() == 'content-type':
            if isinstance(value, ContentTypeHeader):
                check_header_size(name, str(value))
                source = with_parameters(name, value.content_type, value.params.items())
            else:
                source = str(value) if isinstance(value, BaseHeader) else header_source(name, value)
            text = unfold(source).strip()
            kind = text.partition(';')[0].strip().lower()
            return kind if kind.count('/') == 1 else 'text/plain', text
    return part.get_default_type(), ''


def header_source(name: str, value: object) -> str:
    """Return a header as its message holds it, of a length that a header may have."""
    if isinstance(value, Header):
        try:
            check_header_size(name, str(value))
            return value.encode()
        except (errors.MessageError, ValueError, LookupError) as error:
            if isinstance(error, MessageError):
                raise
            raise MessageError(f'{name}: it cannot be encoded: {error}') from error
    return check_header_size(name, plain_text(value, name, excerpt(value)))


_WRITTEN_BY_HAND = re.compile('[^\0-\x7f\udc80-\udcff]')

_MIME = ('content-type', 'content-disposition')

_CONTROL = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+')

_HARMLESS_DEFECTS = (errors.ObsoleteHeaderDefect, errors.NonASCIILocalPartDefect)
