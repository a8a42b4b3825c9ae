"""MIME parts of our own as they leave: header lines and octets, joined once and never parsed."""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Iterable, Iterator
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from .headers import parameters, source

__all__ = ['Part', 'base64_leaf', 'base64_lines', 'container', 'encoded_text', 'leaf', 'text_leaf']


class Part(NamedTuple):
    """``pieces``: the lines of the headers, an empty line and the body, CRLF at the end of each
    line; ``seen``: what of these holds anything that is not ours, and has to be looked at again;
    ``names`` of the headers there."""

    pieces: tuple[bytes, ...]
    seen: bytes = b''
    names: tuple[str, ...] = ()


def text_leaf(subtype: str, data: bytes) -> Part:
    """A part with a text in UTF-8."""
    encoding, body = encoded_text(data)
    return Part((_head(f'text/{subtype}; charset="utf-8"', encoding, ())[1], body))


def leaf(content_type: str, encoding: str, body: bytes, *more: tuple[str, str]) -> Part:
    """A part with a body that is encoded already; ``more`` of its headers."""
    names, head = _head(content_type, encoding, more)
    return Part((head, body), head + body, names)


def base64_leaf(content_type: str, data: bytes, *more: tuple[str, str]) -> Part:
    """A part with a file; ``more`` of its headers."""
    names, head = _head(content_type, 'base64', more)
    return Part((head, *_base64_pieces(data)), head, names)


@lru_cache(maxsize=64)
def _head(
    content_type: str, encoding: str, more: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, ...], bytes]:
    headers = (
        ('Content-Type', content_type),
        ('Content-Transfer-Encoding', encoding),
        *more,
    )
    lines = [source(name, value) for name, value in headers]
    return tuple(name for name, _ in headers), b''.join([*lines, b'\r\n'])


def container(subtype: str, parts: Iterable[Part], *given: tuple[str, str]) -> Part:
    """A multipart (RFC 2046, 5.1.1)."""
    # '=_' stands in no quoted-printable nor base64 (RFC 2045, 6.7); nobody guesses the rest.
    boundary = f'=_{secrets.token_hex(16)}'
    value = parameters('Content-Type', f'multipart/{subtype}', [*given, ('boundary', boundary)])
    delimiter = f'\r\n--{boundary}'.encode('ascii')
    # The CRLF before the first delimiter is the end of the headers.
    pieces = [source('Content-Type', value)]
    seen = pieces[:]
    for part in parts:
        pieces += (delimiter, b'\r\n', *part.pieces)
        seen += (delimiter, b'\r\n', part.seen)
    pieces += (delimiter, b'--\r\n')
    return Part(tuple(pieces), b''.join(seen), ('Content-Type',))


def encoded_text(data: bytes) -> tuple[str, bytes]:
    """How a text, of whatever line ends, is written in lines of 7 bits: encoding and octets."""
    if b'\r' in data:
        data = data.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    if data.translate(_SHOWN) == data:
        lines = data.split(b'\n')
        if max(map(len, lines)) <= 78:
            return '7bit', b'\r\n'.join(lines)
    # Up to there it can still be read, by a person and by a filter that looks at the source.
    if len(data.translate(None, _READABLE)) * 2 <= len(data):
        printable = binascii.b2a_qp(data)
        if len(printable) <= len(data) * 2:
            return 'quoted-printable', printable.replace(b'\n', b'\r\n')
    return 'base64', base64_lines(data.replace(b'\n', b'\r\n'))


def base64_lines(data: bytes) -> bytes:
    """Base64 in lines of 76 characters (RFC 2045, 6.8)."""
    return b''.join(_base64_pieces(data))


def _base64_pieces(data: bytes) -> Iterator[bytes]:
    """The same in blocks, for whoever joins them with more."""
    for at in range(0, len(data), _BLOCK):
        block = binascii.b2a_base64(data[at : at + _BLOCK], newline=False)
        if len(block) == _LINES.size:
            lines: Iterable[bytes] = _LINES.unpack(block)
        else:
            lines = [block[start : start + 76] for start in range(0, len(block), 76)]
        yield b'\r\n'.join((*lines, b''))


_LINES = Struct('76s' * 512)
"""Takes apart what is as long as this faster than slices do."""

_BLOCK = 512 * 57

_READABLE = bytes([*b'\t\n', *range(0x20, 0x7F)])

_SHOWN = bytes(octet if octet in _READABLE else ord('?') for octet in range(256))
"""What is as before afterwards can be read."""
