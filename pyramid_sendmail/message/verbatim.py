"""What a signature covers leaves byte for byte, or not at all: multipart/signed (RFC 1847, 2.1),
and messages that the application has signed by DKIM (RFC 6376)."""

from __future__ import annotations

import re
from collections.abc import Callable
from email import errors
from email.header import Header
from email.headerregistry import BaseHeader
from email.message import Message as AnyMessage
from email.policy import EmailPolicy
from typing import Any

from ..exceptions import MessageError
from .foreign import content_type, header_line, header_source
from .headers import LINE_LIMIT, check_name
from .parameters import parameter
from .verify import split_lines

__all__ = ['VerbatimWriter', 'signed_headers']


class VerbatimWriter:
    """Writes what a message holds as the standard library's generator would, which the signer has
    used: without a line folded, encoded or mended.

    ``add``: gets each piece. ``policy``: of the message. ``remedy``: the end of an error's text.
    ``eight_bit``: bytes that a parser has kept leave as they are, although they are not ASCII.
    Raises MessageError for what cannot leave as it is.
    """

    def __init__(
        self,
        add: Callable[[bytes], None],
        policy: Any,
        *,
        what: str,
        remedy: str,
        eight_bit: bool = False,
    ) -> None:
        self._add = add
        self._eight_bit = eight_bit
        self._folds = not isinstance(policy, EmailPolicy)
        self._policy = policy if isinstance(policy, EmailPolicy) else EmailPolicy()
        self._what = what
        self._remedy = remedy

    def line(self, name: str, value: object, *, width: int | None = None) -> bytes:
        """Return a header. ``width``: of a line, if it is not that of the policy; 0 for any."""
        check_name(name, 'message')
        width = self._policy.max_line_length or 0 if width is None else width
        if isinstance(value, BaseHeader) and name.lower() == 'dkim-signature':
            # The standard library encodes what is too long for its lines.
            return header_line(name, value)
        if isinstance(value, BaseHeader):
            text = self._folded(name, value, width)
        elif isinstance(value, Header):
            header_source(name, value)
            text = f'{name}: {value.encode(maxlinelen=width)}'
        else:
            source = header_source(name, value)
            text = f'{name}: {source}'
            # The older classes fold what a program has set; a parser keeps folded lines.
            if self._folds and 0 < width < len(text) and len(source.splitlines()) < 2:
                source = Header(source, header_name=name).encode(maxlinelen=width)
            text = text if name.lower() == 'dkim-signature' else f'{name}: {source}'
        first, *others = split_lines(text.rstrip('\r\n'))
        if any(not line.strip(' \t') or line[0] not in ' \t' for line in others):
            raise MessageError(f'{name}: its value has a line break; take it out')
        return self._encoded('\r\n'.join((first, *others))) + b'\r\n'

    def body(
        self,
        part: AnyMessage,
        *,
        boundary: str | None = None,
        width: int | None = None,
        depth: int = 0,
    ) -> None:
        """Write the body of a part. ``boundary``: of a multipart that has none itself; ``width``:
        of a line of a header; ``depth``: how many parts this one is inside."""
        if depth > _MAX_DEPTH:
            raise self._refused(f'parts that are nested more than {_MAX_DEPTH} deep')
        # get_payload() decodes; this is what the message holds.
        payload: object = getattr(part, '_payload', None)
        if payload is None:
            return
        if isinstance(payload, str):
            self._add(self._encoded('\r\n'.join(split_lines(payload))))
            return
        if not isinstance(payload, list) or not all(isinstance(i, AnyMessage) for i in payload):
            raise self._refused('a part that is not a message')
        kind, source = content_type(part)
        if kind.startswith('message/'):
            for number, child in enumerate(payload):
                # The blocks of message/delivery-status have an empty line between two of them.
                self._add(b'\r\n' if number else b'')
                self._part(child, width, depth + 1, is_block=kind == _STATUS)
            return
        # The generator folds nothing inside a multipart/signed.
        width = 0 if kind == 'multipart/signed' else width
        boundary = parameter(source, 'boundary') or boundary
        if boundary is None:
            raise self._refused('a multipart without a boundary')
        if part.preamble is not None:
            self._add(self._encoded('\r\n'.join(split_lines(part.preamble))) + b'\r\n')
        for number, child in enumerate(payload):
            self._add(self._encoded(f'{_CRLF if number else ""}--{boundary}\r\n'))
            self._part(child, width, depth + 1)
        self._add(self._encoded(f'\r\n--{boundary}--\r\n'))
        if part.epilogue is not None:
            self._add(self._encoded('\r\n'.join(split_lines(part.epilogue))))

    def _part(
        self, part: AnyMessage, width: int | None, depth: int, *, is_block: bool = False
    ) -> None:
        for name, value in part.raw_items():
            self._add(self.line(name, value, width=width))
        if not is_block or getattr(part, '_payload', None):
            self._add(b'\r\n')
        self.body(part, width=width, depth=depth)

    def _folded(self, name: str, value: Any, width: int) -> str:
        """Return a header as the standard library folds it, where that is known to end."""
        parameters = getattr(value, 'params', {})
        too_long = len(value) > _MAX_FOLDED or any(len(key) > 40 for key in parameters)
        if too_long or 0 < width < 60:
            raise self._refused(f'a header {name} that is too long to be folded as it was signed')
        try:
            return str(value.fold(policy=self._policy.clone(max_line_length=width, linesep=_CRLF)))
        except _STDLIB_ERRORS as error:
            raise self._refused(f'a header {name} that cannot be folded ({error})') from error

    def _encoded(self, text: str) -> bytes:
        if '\0' in text or not (text.isascii() or self._eight_bit):
            raise self._refused('bytes that are not ASCII')
        if max(map(len, text.split(_CRLF))) > LINE_LIMIT:
            raise self._refused(f'lines of more than {LINE_LIMIT} bytes')
        try:
            return text.encode('ascii', 'surrogateescape')
        except UnicodeEncodeError as error:
            raise self._refused('text that was not encoded before it was signed') from error

    def _refused(self, found: str) -> MessageError:
        return MessageError(
            f'{self._what} has {found}, and to change that would break the signature; '
            f'{self._remedy}'
        )


def signed_headers(message: AnyMessage) -> frozenset[str] | None:
    """Return the names of the headers that the DKIM signatures of a message cover, in lower case;
    None if it has no signature."""
    found = None
    for name, value in message.raw_items():
        if name.lower() == 'dkim-signature':
            text = str(value) if isinstance(value, BaseHeader) else header_source(name, value)
            tags = _SIGNED.findall(re.sub('[ \t\r\n]+', '', text))
            names = {each.lower() for tag in tags for each in tag.split(':')}
            found = (found or frozenset()) | names
    return found


_CRLF = '\r\n'

_SIGNED = re.compile('(?:^|;)h=([^;]*)')

_STATUS = 'message/delivery-status'

_MAX_DEPTH = 50

_MAX_FOLDED = 20_000
"""Characters of a header that the standard library folds."""

_STDLIB_ERRORS = (errors.MessageError, ValueError, TypeError, LookupError, AttributeError)
"""What the standard library raises for headers that it cannot write."""
