"""Messages of other libraries: what their headers say, and their content in lines of 7 bits.

A message of the standard library's ``email`` package, or one that it parsed, may hold headers that
must not leave and parts that a relay would not take. Nothing here changes the caller's object.
"""

from __future__ import annotations

import copy
import re
from email import errors
from email.generator import BytesGenerator
from email.header import Header
from email.headerregistry import BaseHeader, ContentDispositionHeader, ContentTypeHeader
from email.message import EmailMessage
from email.message import Message as AnyMessage
from email.policy import Policy
from io import BytesIO
from typing import Any

from ..exceptions import MessageError
from .address import Group, Mailbox, parse_list
from .address_header import address_line
from .encoded_words import decode_words
from .headers import (
    ADDRESS_HEADERS,
    check_name,
    check_text,
    excerpt,
    holds_identifiers,
    preserved_line,
    structured_line,
    unfold,
    unstructured_line,
    with_parameters,
)
from .mime import base64_lines, encoded_text
from .text import plain_text
from .verify import is_sendable, split_lines

__all__ = ['copy_content', 'header_entries', 'header_line', 'header_text', 'serialise']


def header_text(name: str, value: object) -> str:
    """Return the text of a header as a reader would see it."""
    if isinstance(value, BaseHeader):
        return check_text(str(value), name)
    text = unfold(_header_source(name, value)).strip()
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
    return parse_list(unfold(_header_source(name, value)), name)


def header_line(name: str, value: object) -> bytes:
    """Return a header as it leaves, encoded and folded by our own functions unless it is already.

    Raises MessageError.
    """
    check_name(name, 'message')
    is_address = name.lower() in ADDRESS_HEADERS
    if isinstance(value, ContentTypeHeader):
        return preserved_line(name, with_parameters(name, value.content_type, value.params.items()))
    if isinstance(value, ContentDispositionHeader) and value.content_disposition:
        return preserved_line(
            name, with_parameters(name, value.content_disposition, value.params.items())
        )
    if not isinstance(value, BaseHeader):
        source = _header_source(name, value)
        if is_address and not source.isascii():
            return address_line(name, header_entries(name, value))
        return preserved_line(name, source)
    text = str(value)
    if is_address and text.strip():
        return address_line(name, header_entries(name, value))
    if holds_identifiers(name) or name.lower().startswith('content-'):
        return structured_line(name, text)
    return unstructured_line(name, text)


def copy_content(part: AnyMessage, *, root: bool = False, depth: int = 0) -> EmailMessage:
    """Return a copy of a message that is in lines of 7 bits, re-encoded where necessary.

    ``root``: without the headers of the message, but for those of its content. ``depth``: how
    many parts this one is inside.
    """
    if depth > _MAX_DEPTH:
        raise MessageError(
            f'message: its parts are nested more than {_MAX_DEPTH} deep; attach it as a file'
        )
    copied = EmailMessage(policy=_OUR_FOLDING)
    copied.set_default_type(part.get_default_type())
    for name, value in part.raw_items():
        key = check_name(name, 'message').lower()
        if root and not key.startswith('content-'):
            continue
        is_8bit = key == 'content-transfer-encoding' and str(value).strip().lower() in _8BIT
        copied[name] = '7bit' if is_8bit else value
    if copied.get_content_type() == 'multipart/signed':
        _copy_signed(copied, part)
        return copied
    # get_payload() decodes; this is what the message holds.
    payload: object = getattr(part, '_payload', None)
    if isinstance(payload, str):
        payload = plain_text(payload, 'message', 'the content of a part')
    if isinstance(payload, list):
        for child in payload:
            if not isinstance(child, AnyMessage):
                raise MessageError(f'message: a part is a {type(child).__name__}; give a message')
        copied.set_payload([copy_content(child, depth=depth + 1) for child in payload])
        copied.preamble, copied.epilogue = (
            text if text is not None and text.isascii() and is_sendable(text) else None
            for text in (part.preamble, part.epilogue)
        )
    elif isinstance(payload, str) and not (payload.isascii() and is_sendable(payload)):
        _encode_payload(copied, part, payload)
    elif payload is None or isinstance(payload, str):
        copied.set_payload(payload or '')
    else:
        raise MessageError(
            f'message: the content of a part is a {type(payload).__name__}; use set_content()'
        )
    return copied


def serialise(message: EmailMessage) -> bytes:
    """Return the bytes of a message that :func:`copy_content` returned."""
    buffer = BytesIO()
    try:
        BytesGenerator(buffer, mangle_from_=False, policy=_OUR_FOLDING).flatten(message)
    except MessageError:
        raise
    except _STDLIB_ERRORS as error:
        raise MessageError(f'message: it cannot be serialised: {error}') from error
    return buffer.getvalue()


def _encode_payload(copied: EmailMessage, part: AnyMessage, payload: str) -> None:
    """Give ``copied`` the payload of ``part``, encoded in short lines of 7 bits."""
    kind = copied.get_content_type()
    if kind.startswith(('multipart/', 'message/')):
        raise MessageError(
            f'message: the content of a {kind} part is not in lines of 7 bits; parse it, so that '
            'its parts can be encoded'
        )
    charset = copied.get_content_charset()
    try:
        if payload.isascii() or re.search('[\udc80-\udcff]', payload):
            # Bytes as a parser keeps them: no other character may stand among the surrogates.
            payload.encode('ascii', 'surrogateescape')
            data = part.get_payload(decode=True)
        else:
            data = payload.encode(charset or 'utf-8')
            if charset is None:
                copied.set_param('charset', 'utf-8')
    except (ValueError, LookupError) as error:
        raise MessageError(
            f'message: the content of a {kind} part cannot be encoded in {excerpt(charset)}; use '
            'set_content()'
        ) from error
    del copied['Content-Transfer-Encoding']
    if isinstance(data, bytes) and kind.startswith('text/') and b'\0' not in data:
        encoding, encoded = encoded_text(data)
    else:
        encoding, encoded = 'base64', base64_lines(bytes(data))
    copied['Content-Transfer-Encoding'] = encoding
    copied.set_payload(encoded.decode('ascii'))


def _copy_signed(copied: EmailMessage, part: AnyMessage) -> None:
    """Give ``copied`` the body of a multipart/signed, byte for byte as the generator writes it."""
    buffer = BytesIO()
    policy = part.policy.clone(linesep='\r\n', cte_type='8bit')
    # The generator sets a missing boundary: not on the caller's object.
    own = copy.deepcopy(part)
    try:
        BytesGenerator(buffer, mangle_from_=False, policy=policy).flatten(own)
    except _STDLIB_ERRORS as error:
        raise MessageError(f'message: multipart/signed cannot be serialised: {error}') from error
    body = buffer.getvalue().partition(b'\r\n\r\n')[2]
    text = body.decode('ascii', 'replace')
    if not text.isascii() or not is_sendable(text) or text != '\r\n'.join(split_lines(text)):
        raise MessageError(
            'message: multipart/signed has lines that are too long or not ASCII, and encoding them '
            'would break the signature; sign parts that are quoted-printable or base64'
        )
    copied.set_boundary(str(own.get_boundary()))
    copied.set_payload(text)


def _header_source(name: str, value: object) -> str:
    if isinstance(value, Header):
        try:
            return value.encode()
        except (errors.MessageError, ValueError, LookupError) as error:
            raise MessageError(f'{name}: it cannot be encoded: {error}') from error
    return plain_text(value, name, excerpt(value))


class _OurFolding(Policy):
    """Keeps headers as they were given, and folds them by :func:`header_line`."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        raise AssertionError('this policy parses nothing')

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        return name, value

    def header_fetch_parse(self, name: str, value: object) -> str:
        return str(value)

    def fold(self, name: str, value: object) -> str:
        raise AssertionError('this policy writes bytes only')

    def fold_binary(self, name: str, value: object) -> bytes:
        return header_line(name, value)


_OUR_FOLDING = _OurFolding(linesep='\r\n')

_MAX_DEPTH = 50
"""Parts within parts."""

_8BIT = ('8bit', 'binary')

_STDLIB_ERRORS = (errors.MessageError, ValueError, TypeError, LookupError, AttributeError)
"""What the standard library raises for messages that it cannot write."""

_HARMLESS_DEFECTS = (errors.ObsoleteHeaderDefect, errors.NonASCIILocalPartDefect)
