"""Copies of other people's messages, re-encoded where a relay would not take them."""

from __future__ import annotations

import copy
import re
from email.generator import BytesGenerator
from email.message import EmailMessage
from email.message import Message as AnyMessage
from io import BytesIO

from ..exceptions import MessageError
from .foreign import ODD, WIRE
from .headers import check_name, shown
from .mime import base64_lines, encoded_text
from .verify import fits, lines

__all__ = ['copied']


def copied(part: AnyMessage, *, root: bool = False, depth: int = 0) -> EmailMessage:
    """A copy that is ours, in lines of 7 bits; ``root``: without the headers of the message."""
    if depth > 50:
        raise MessageError('message: its parts are nested more than 50 deep; attach it as a file')
    shell = EmailMessage(policy=WIRE)
    shell.set_default_type(part.get_default_type())
    for name, value in part.raw_items():
        key = check_name(name, 'message').lower()
        if root and not key.startswith('content-'):
            continue
        wide = key == 'content-transfer-encoding' and str(value).strip().lower() in _WIDE
        shell[name] = '7bit' if wide else value
    if shell.get_content_type() == 'multipart/signed':
        _keep_signed(shell, part)
        return shell
    payload = getattr(part, '_payload', None)
    if isinstance(payload, list):
        for child in payload:
            if not isinstance(child, AnyMessage):
                raise MessageError(f'message: a part is a {type(child).__name__}; give a message')
        shell.set_payload([copied(child, depth=depth + 1) for child in payload])
        shell.preamble, shell.epilogue = (
            text if text is not None and text.isascii() and fits(text) else None
            for text in (part.preamble, part.epilogue)
        )
    elif isinstance(payload, str) and not (payload.isascii() and fits(payload)):
        _encode_again(shell, part, payload)
    elif payload is None or isinstance(payload, str):
        shell.set_payload(payload or '')
    else:
        raise MessageError(
            f'message: the content of a part is a {type(payload).__name__}; use set_content()'
        )
    return shell


def _encode_again(shell: EmailMessage, part: AnyMessage, payload: str) -> None:
    """Write what is not in short lines of 7 bits so that it is."""
    kind = shell.get_content_type()
    if kind.startswith(('multipart/', 'message/')):
        raise MessageError(
            f'message: the content of a {kind} part is not in lines of 7 bits; parse it, so that '
            'its parts can be encoded'
        )
    charset = shell.get_content_charset()
    try:
        if payload.isascii() or re.search('[\udc80-\udcff]', payload):
            # Octets, as a parser keeps them; nothing else may stand among them.
            payload.encode('ascii', 'surrogateescape')
            data = part.get_payload(decode=True)
        else:
            data = payload.encode(charset or 'utf-8')
            if charset is None:
                shell.set_param('charset', 'utf-8')
    except (ValueError, LookupError) as error:
        raise MessageError(
            f'message: the content of a {kind} part cannot be encoded in {shown(charset)}; use '
            'set_content()'
        ) from error
    del shell['Content-Transfer-Encoding']
    if isinstance(data, bytes) and kind.startswith('text/') and b'\0' not in data:
        encoding, octets = encoded_text(data)
    else:
        encoding, octets = 'base64', base64_lines(bytes(data))
    shell['Content-Transfer-Encoding'] = encoding
    shell.set_payload(octets.decode('ascii'))


def _keep_signed(shell: EmailMessage, part: AnyMessage) -> None:
    """Give ``shell`` a multipart/signed body, octet by octet as the generator has it."""
    buffer = BytesIO()
    policy = part.policy.clone(linesep='\r\n', cte_type='8bit')
    # The generator may set a boundary: not on the caller's object.
    mine = copy.deepcopy(part)
    try:
        BytesGenerator(buffer, mangle_from_=False, policy=policy).flatten(mine)
    except ODD as error:
        raise MessageError(f'message: multipart/signed cannot be serialised: {error}') from error
    body = buffer.getvalue().partition(b'\r\n\r\n')[2]
    text = body.decode('ascii', 'replace')
    if not text.isascii() or not fits(text) or text != '\r\n'.join(lines(text)):
        raise MessageError(
            'message: multipart/signed has lines that are too long or not ASCII, and encoding them '
            'would break the signature; sign parts that are quoted-printable or base64'
        )
    shell.set_boundary(str(mine.get_boundary()))
    shell.set_payload(text)


_WIDE = ('8bit', 'binary')
