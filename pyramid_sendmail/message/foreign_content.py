"""The content of messages of other libraries, in lines of 7 bits: re-encoded where necessary, and
mended where a part says an encoding that it does not have."""

from __future__ import annotations

import re
from collections.abc import Callable
from email.message import Message as AnyMessage

from ..exceptions import MessageError
from .encoded_words import looks_encoded
from .foreign import ascii_line, content_type, header_line
from .foreign_leaf import leaf_body
from .foreign_parser import parse_message
from .headers import check_name
from .mime import new_boundary
from .parameters import parameter, set_parameter
from .text import plain_text
from .verbatim import VerbatimWriter
from .verify import is_sendable, split_lines

__all__ = ['ContentWriter']


class ContentWriter:
    """Writes the content of a message in pieces, and counts them.

    ``max_size`` limits their bytes; ``lenient``: headers of parts that cannot leave are mended or
    left out, and signed content of 8 bits leaves as it is. Raises MessageError.
    """

    def __init__(self, max_size: int, too_large: str, *, lenient: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.eight_bit = False
        """Whether signed content was written that is not ASCII."""
        self._room = max_size
        self._too_large = too_large
        self._line: Callable[[str, object], bytes] = ascii_line if lenient else header_line
        self._lenient = lenient
        self._parts = 0

    def add(self, piece: bytes) -> None:
        self._room -= len(piece)
        if self._room < 0:
            raise MessageError(self._too_large)
        self.pieces.append(piece)

    def write(
        self, part: AnyMessage, *, root: bool = False, is_block: bool = False, depth: int = 0
    ) -> list[str]:
        """Write a part, and return the names of its headers.

        ``root``: without the headers of the message, but for those of its content. ``is_block``:
        without the empty line behind the headers if no body follows. ``depth``: how many parts this
        one is inside.
        """
        self._parts += 1
        if depth > MAX_DEPTH or self._parts > MAX_PARTS:
            raise MessageError(
                f'message: its parts are nested more than {MAX_DEPTH} deep, or more than '
                f'{MAX_PARTS}; attach it as a file'
            )
        kind, source = content_type(part)
        lines = self._headers(part, root=root)
        encodings = [
            str(value).strip().lower()
            for name, value in part.raw_items()
            if name.lower() == 'content-transfer-encoding'
        ]
        # get_payload() decodes; this is what the message holds.
        payload: object = getattr(part, '_payload', None)
        if isinstance(payload, str):
            payload = plain_text(payload, 'message', 'the content of a part')
        if isinstance(payload, str) and kind.startswith(('multipart/', 'message/')):
            payload = self._composite(part, kind, source, payload)
            if payload is None:
                kind, payload = 'text/plain', part._payload  # type: ignore[attr-defined]
                lines['content-type'] = ('Content-Type', b'Content-Type: text/plain\r\n')
        if isinstance(payload, list):
            self._check_children(kind, payload)
            self._write_composite(part, kind, source, payload, lines, encodings, depth)
        elif payload is None or isinstance(payload, str):
            body = leaf_body(kind, source, encodings, payload or '')
            if body.content_type is not None:
                line = self._line('Content-Type', body.content_type)
                lines['content-type'] = ('Content-Type', line)
            if body.encoding is not None:
                _set_encoding(lines, body.encoding)
            self._write_headers(lines, blank=not is_block or bool(body.data))
            self.add(body.data)
        else:
            raise MessageError(
                f'message: the content of a part is a {type(payload).__name__}; use set_content()'
            )
        return [name for name, line in lines.values() if line]

    def _headers(self, part: AnyMessage, *, root: bool) -> dict[str, tuple[str, bytes]]:
        """Return the name and line of each header, each MIME header once: the first, which is what
        readers go by."""
        lines: dict[str, tuple[str, bytes]] = {}
        for number, (name, value) in enumerate(part.raw_items()):
            if self._lenient and not re.fullmatch('[!-9;-~]+', name):
                continue
            key = check_name(name, 'message').lower()
            if key.startswith('content-'):
                if key not in lines:
                    lines[key] = (name, self._line(name, value))
            elif not root:
                lines[f'{number}:{key}'] = (name, self._line(name, value))
        return lines

    def _write_headers(self, lines: dict[str, tuple[str, bytes]], *, blank: bool = True) -> None:
        self.add(b''.join([*(line for _, line in lines.values()), b'\r\n' if blank else b'']))

    def _composite(
        self, part: AnyMessage, kind: str, source: str, payload: str
    ) -> str | list[AnyMessage] | None:
        """Return a composite part that was not parsed: as it is, or parsed if it has to be encoded;
        None if it is to leave as text."""
        if payload.isascii() and is_sendable(payload):
            return payload
        try:
            data = payload.encode('ascii', 'surrogateescape')
            head = f'Content-Type: {source}\r\n\r\n'.encode('ascii')
            found: object = getattr(parse_message(head + data), '_payload', None)
        except (UnicodeError, MessageError):
            found = None
        if isinstance(found, list):
            return found
        if self._lenient and kind.startswith('multipart/'):
            return None
        raise MessageError(
            f'message: the content of a {kind} part is not in lines of 7 bits; parse it, so that '
            'its parts can be encoded'
        )

    def _check_children(self, kind: str, children: list[object]) -> None:
        for child in children:
            if not isinstance(child, AnyMessage):
                raise MessageError(f'message: a part is a {type(child).__name__}; give a message')
        if kind.startswith('message/') and kind != _STATUS and len(children) != 1:
            raise MessageError(
                f'message: a {kind} part holds {len(children)} messages; give each a part of its '
                'own'
            )

    def _write_composite(
        self,
        part: AnyMessage,
        kind: str,
        source: str,
        children: list[AnyMessage],
        lines: dict[str, tuple[str, bytes]],
        encodings: list[str],
        depth: int,
    ) -> None:
        # The head comes first, and depends on what follows.
        before, self.eight_bit = self.eight_bit, False
        at = len(self.pieces)
        self.pieces.append(b'')
        if kind.startswith('message/'):
            for number, child in enumerate(children):
                # The blocks of message/delivery-status have an empty line between two of them.
                self.add(b'\r\n' if number else b'')
                self.write(child, depth=depth + 1, is_block=kind == _STATUS)
            is_wrong = encodings[:1] in (['8bit'], ['binary'])
        else:
            if not kind.startswith('multipart/'):
                kind = source = 'multipart/mixed'
            given = parameter(source, 'boundary')
            boundary = _usable_boundary(given, is_signed=kind == 'multipart/signed')
            if boundary != given or not _is_well_written(source, boundary):
                line = self._line('Content-Type', set_parameter(source, 'boundary', boundary))
                lines['content-type'] = ('Content-Type', line)
            if kind == 'multipart/signed':
                self._write_signed(part, boundary, depth)
            else:
                self._write_children(part, children, boundary, depth)
            is_wrong = bool(encodings) and encodings[0] != '7bit'
        # The parts of a multipart are encoded, never the whole (RFC 2045, 6.4).
        if self.eight_bit:
            _set_encoding(lines, '8bit')
        elif is_wrong:
            _set_encoding(lines, '7bit')
        self.eight_bit = self.eight_bit or before
        self._write_headers(lines)
        self.pieces[at] = self.pieces.pop()

    def _write_signed(self, part: AnyMessage, boundary: str, depth: int) -> None:
        at = len(self.pieces)
        VerbatimWriter(
            self.add,
            part.policy,
            what='message: multipart/signed',
            remedy='sign parts that are quoted-printable or base64',
            eight_bit=self._lenient,
        ).body(part, boundary=boundary, depth=depth)
        self.eight_bit = not all(map(bytes.isascii, self.pieces[at:]))

    def _write_children(
        self, part: AnyMessage, children: list[AnyMessage], boundary: str, depth: int
    ) -> None:
        if (preamble := _clean(part.preamble)) is not None:
            self.add(preamble + b'\r\n')
        for number, child in enumerate(children):
            self.add((b'\r\n' if number else b'') + f'--{boundary}\r\n'.encode('ascii'))
            self.write(child, depth=depth + 1)
        self.add(f'\r\n--{boundary}--\r\n'.encode('ascii'))
        if (epilogue := _clean(part.epilogue)) is not None:
            self.add(epilogue)


def _usable_boundary(given: str | None, *, is_signed: bool) -> str:
    """Return the boundary that a multipart has, or another one if readers could not use it."""
    if given is None:
        return new_boundary()
    # Some readers decode what looks encoded, and take off single quotes.
    is_usable = _BOUNDARY.fullmatch(given) and not looks_encoded(given) and given[0] != "'"
    return given if is_usable or is_signed else new_boundary()


def _is_well_written(source: str, boundary: str) -> bool:
    """Whether a boundary is a token or in quotes in its header (RFC 2045, 5.1)."""
    if _TOKEN.fullmatch(boundary) or f'"{boundary}"' in source:
        return True
    # What cannot be written better stays.
    return not _BOUNDARY.fullmatch(boundary)


def _set_encoding(lines: dict[str, tuple[str, bytes]], encoding: str) -> None:
    name = 'Content-Transfer-Encoding'
    lines[name.lower()] = (name, f'{name}: {encoding}\r\n'.encode('ascii'))


def _clean(text: str | None) -> bytes | None:
    """Return a preamble or an epilogue as it leaves, None if it cannot."""
    if text is None or not text.isascii() or not is_sendable(text):
        return None
    return '\r\n'.join(split_lines(text)).encode('ascii')


MAX_DEPTH = 50
"""Parts within parts."""

MAX_PARTS = 20_000

_STATUS = 'message/delivery-status'

_TOKEN = re.compile("[!#$%&'*+.0-9A-Z^_`a-z{|}~-]+")

_BOUNDARY = re.compile("[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")
"""A boundary as it is written (RFC 2046, 5.1.1), of more than 70 characters, too."""
