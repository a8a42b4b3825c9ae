"""MIME parts of our own as they leave: header lines and octets, joined once and never parsed."""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Iterable
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from .headers import parameters, source

__all__ = ['Base64', 'Part', 'base64_lines', 'container', 'encoded_text', 'leaf']


class Part(NamedTuple):
    """``names`` of the headers; ``pieces``: their lines, an empty line and the body, CRLF at the
    end of each line."""

    names: tuple[str, ...]
    pieces: tuple[bytes, ...]


def leaf(content_type: str, encoding: str, body: bytes, *more: tuple[str, str]) -> Part:
    """A part with a body that is encoded already; ``more`` of its headers."""
    names, head = _head(content_type, encoding, more)
    return Part(names, (head, body))


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
    for part in parts:
        pieces += (delimiter, b'\r\n', *part.pieces)
    pieces += (delimiter, b'--\r\n')
    return Part(('Content-Type',), tuple(pieces))


def encoded_text(data: bytes) -> tuple[str, bytes]:
    """How a text, of whatever line ends, is written in lines of 7 bits: encoding and octets."""
    if b'\r' in data:
        data = data.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    lines = data.split(b'\n')
    # What is left when every octet that may stand there has been taken out.
    left = data.translate(None, _READABLE)
    if not left and max(map(len, lines)) <= 78:
        return '7bit', b'\r\n'.join(lines)
    # Up to there it can still be read, by a person and by a filter that looks at the source.
    if len(left) * 2 <= len(data):
        printable = binascii.b2a_qp(data)
        if len(printable) <= len(data) * 2:
            return 'quoted-printable', printable.replace(b'\n', b'\r\n')
    return 'base64', base64_lines(data.replace(b'\n', b'\r\n'))


class Base64(bytes):
    """Lines that base64_lines has made, and nobody has to look at again."""


def base64_lines(data: bytes) -> Base64:
    """Base64 in lines of 76 characters (RFC 2045, 6.8)."""
    pieces = []
    for at in range(0, len(data), _BLOCK):
        block = binascii.b2a_base64(data[at : at + _BLOCK], newline=False)
        if len(block) == _LINES.size:
            pieces.append(b'\r\n'.join(_LINES.unpack(block)))
        else:
            pieces += [block[start : start + 76] for start in range(0, len(block), 76)]
    return Base64(b'\r\n'.join([*pieces, b'']))


_LINES = Struct('76s' * 512)
"""Takes apart what is as long as this faster than slices do."""

_BLOCK = 512 * 57

_READABLE = bytes([*b'\t\n', *range(0x20, 0x7F)])
