"""The body of a part of another library's message, in lines of 7 bits."""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple

from ..exceptions import MessageError
from .headers import excerpt
from .mime import base64_lines, encoded_text
from .parameters import parameter, set_parameter
from .verify import is_sendable, split_lines

__all__ = ['Leaf', 'leaf_body']


class Leaf(NamedTuple):
    """A body as it leaves."""

    data: bytes
    encoding: str | None = None
    """The new Content-Transfer-Encoding; None if it stays."""
    content_type: str | None = None
    """The new Content-Type; None if it stays."""


def leaf_body(kind: str, content_type: str, encodings: list[str], payload: str) -> Leaf:
    """Return the body of a part that holds no other parts.

    ``encodings``: what the part says about its encoding, in lower case; a program that sets the
    content a second time leaves an encoding that the content does not have, or two. ``payload``:
    the body as a message holds it, bytes that are not ASCII as surrogates. Raises MessageError.
    """
    charset = parameter(content_type, 'charset')
    try:
        if not payload.isascii() and not re.search('[\udc80-\udcff]', payload):
            data = payload.encode(charset or 'utf-8')
            if charset is not None:
                return _encoded(kind, charset, data)
            utf8 = set_parameter(content_type or kind, 'charset', 'utf-8')
            return _encoded(kind, 'utf-8', data)._replace(content_type=utf8)
        # Bytes as a parser keeps them: no other character may stand among the surrogates.
        data = payload.encode('ascii', 'surrogateescape')
    except (ValueError, LookupError) as error:
        raise MessageError(
            f'message: the content of a {kind} part cannot be encoded in {excerpt(charset)}; use '
            'set_content()'
        ) from error
    stays = payload.isascii() and is_sendable(payload)
    if 'base64' in encodings and payload.isascii() and _is_base64(payload):
        if stays:
            return Leaf(_crlf(payload), 'base64' if encodings != ['base64'] else None)
        return Leaf(base64_lines(binascii.a2b_base64(data + b'===')), 'base64')
    if 'quoted-printable' in encodings and _is_quoted_printable(payload):
        if stays:
            changed = encodings != ['quoted-printable']
            return Leaf(_crlf(payload), 'quoted-printable' if changed else None)
        return _encoded(kind, charset, binascii.a2b_qp(data))
    wrong = 'base64' in encodings or 'quoted-printable' in encodings
    is_text = kind.startswith('text/')
    if encodings[:1] == ['binary']:
        exact = _BARE_LINE_ENDS.search(payload) is not None
    else:
        # Lines of other kinds than text have a bare CR only where it is content.
        bare = re.search('\r(?!\n)', payload) is not None
        exact = _is_wide(charset) or (not is_text and (wrong or bare))
    if exact:
        return Leaf(base64_lines(data), 'base64')
    if stays:
        changed = wrong or len(encodings) > 1 or encodings[:1] in (['8bit'], ['binary'])
        return Leaf(_crlf(payload), '7bit' if changed else None)
    return _encoded(kind, charset, data)


def _encoded(kind: str, charset: str | None, data: bytes) -> Leaf:
    if kind.startswith('text/') and b'\0' not in data and not _is_wide(charset):
        encoding, body = encoded_text(data)
        return Leaf(body, encoding)
    return Leaf(base64_lines(data), 'base64')


def _is_wide(charset: str | None) -> bool:
    """Return whether the line ends of a charset are other bytes than those of ASCII."""
    return (charset or '').lower().startswith(('utf-16', 'utf-32', 'utf16', 'utf32', 'ucs', 'u16'))


def _is_base64(payload: str) -> bool:
    """Return whether a payload is base64, perhaps with something added behind it, as mailing lists
    do."""
    letters = re.sub('[ \t\r\n]+', '', payload)
    if len(letters) % 4 == 0 and re.fullmatch('[A-Za-z0-9+/]*={0,2}', letters):
        return True
    return re.match('[A-Za-z0-9+/]{60}', payload.lstrip()) is not None


def _is_quoted_printable(payload: str) -> bool:
    """Return whether a payload is quoted-printable: at least half of its equals signs are escapes,
    as those of a URL or of HTML are not, or it has none."""
    begin = payload[:_LOOKED_AT]
    return 2 * sum(1 for _ in _ESCAPE.finditer(begin)) >= begin.count('=')


def _crlf(text: str) -> bytes:
    return '\r\n'.join(split_lines(text)).encode('ascii')


_LOOKED_AT = 100_000
"""Characters of a payload by which its encoding is found out."""

_ESCAPE = re.compile('=(?:[0-9A-Fa-f]{2}|[ \t]*(?:[\r\n]|\\Z))')

_BARE_LINE_ENDS = re.compile('(?<!\r)\n|\r(?!\n)')
