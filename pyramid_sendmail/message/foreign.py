"""MIME parts in short lines of 7 bits, and headers of other people's messages as they leave."""

from __future__ import annotations

from email import errors
from email.generator import BytesGenerator
from email.header import Header
from email.headerregistry import BaseHeader, ContentDispositionHeader, ContentTypeHeader
from email.message import EmailMessage
from email.policy import Policy
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..exceptions import MessageError
from .address import Group, Mailbox, address_line, parse_list
from .headers import (
    ADDRESSES,
    check_name,
    check_text,
    decoded,
    is_identifier,
    parameters,
    shown,
    source,
    structured,
    unfolded,
    unstructured,
)

__all__ = ['ODD', 'WIRE', 'entries_of', 'line_of', 'serialised', 'text_of']


def text_of(name: str, value: Any) -> str:
    """The text of a header as a reader would see it."""
    if isinstance(value, BaseHeader):
        return check_text(str(value), name)
    text = unfolded(_source_of(name, value)).strip()
    return check_text(text if is_identifier(name) else decoded(text), name)


def entries_of(name: str, value: Any) -> tuple[Mailbox | Group, ...]:
    if isinstance(value, BaseHeader):
        entries = parse_list(str(value), name, encoded=False)
        # Such a header has already forgotten what it did not understand: 'a@x b@y' is 'a@x'.
        for defect in value.defects:
            if not isinstance(defect, _HARMLESS):
                raise MessageError(
                    f'{name}: {shown(str(value))} is what was understood of its addresses '
                    f'({defect}); separate them by commas, or set email.headerregistry.Address'
                )
        return entries
    return parse_list(unfolded(_source_of(name, value)), name)


def line_of(name: str, value: Any) -> bytes:
    """A header as it leaves: encoded and folded by us, unless it is already."""
    check_name(name, 'message')
    if isinstance(value, ContentTypeHeader):
        return source(name, parameters(name, value.content_type, value.params.items()))
    if isinstance(value, ContentDispositionHeader) and value.content_disposition:
        return source(name, parameters(name, value.content_disposition, value.params.items()))
    if not isinstance(value, BaseHeader):
        text = _source_of(name, value)
        if name.lower() in ADDRESSES and not text.isascii():
            return address_line(name, entries_of(name, value))
        return source(name, text)
    if name.lower() in ADDRESSES and value.strip():
        return address_line(name, entries_of(name, value))
    if is_identifier(name) or name.lower().startswith('content-'):
        return structured(name, str(value))
    return unstructured(name, str(value))


def serialised(tree: EmailMessage) -> bytes:
    buffer = BytesIO()
    try:
        BytesGenerator(buffer, mangle_from_=False, policy=WIRE).flatten(tree)
    except MessageError:
        raise
    except ODD as error:
        raise MessageError(f'message: it cannot be serialised: {error}') from error
    return buffer.getvalue()


def _source_of(name: str, value: Any) -> str:
    if isinstance(value, Header):
        try:
            return value.encode()
        except (errors.MessageError, ValueError, LookupError) as error:
            raise MessageError(f'{name}: it cannot be encoded: {error}') from error
    if not isinstance(value, str):
        raise MessageError(f'{name}: {shown(value)} is not a string; give a str')
    return value


if TYPE_CHECKING:
    _AnyPolicy = Policy[Any]
else:
    _AnyPolicy = Policy


class _WirePolicy(_AnyPolicy):
    """Keeps headers as they are given, and folds them by our own functions."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        raise AssertionError('nothing is parsed by this policy')

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        return name, value

    def header_fetch_parse(self, name: str, value: Any) -> str:
        return str(value)

    def fold(self, name: str, value: Any) -> str:
        raise AssertionError('text is not asked for')

    def fold_binary(self, name: str, value: Any) -> bytes:
        return line_of(name, value)


WIRE = _WirePolicy(linesep='\r\n')


ODD = (errors.MessageError, ValueError, TypeError, LookupError, AttributeError)
"""What the standard library raises for messages that it cannot write."""


_HARMLESS = (errors.ObsoleteHeaderDefect, errors.NonASCIILocalPartDefect)
