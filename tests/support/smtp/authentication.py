"""AUTH of a scripted server: PLAIN, LOGIN and XOAUTH2 work; other mechanisms by script."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from typing import TYPE_CHECKING

from .actions import Reply
from .dialogue import Dialogue
from .replies import (
    AUTH_FAILED,
    AUTHENTICATED,
    BAD_SEQUENCE,
    BAD_SYNTAX,
    ENCRYPTION_REQUIRED,
    NOT_IMPLEMENTED,
    UNKNOWN_MECHANISM,
)

if TYPE_CHECKING:
    from .session import Session

__all__ = ['authenticate']

# Octets with CRLF (RFC 4954, 4)
_MAX_RESPONSE_BYTES = 12_288


def authenticate(session: Session, dialogue: Dialogue) -> str | None:
    """Answer an AUTH command (RFC 4954), and return the user that is authenticated then.

    After a scripted 334 the next scripted action for AUTH follows, which may match the client's
    response; by default 535. After a scripted 235 the user is 'scripted'.
    """
    user = session.authenticated_as

    def exchange(_session: Session) -> Reply:
        nonlocal user
        refusal, user = _exchange(session, dialogue)
        return refusal or AUTHENTICATED

    code = dialogue.perform('AUTH', session.line, exchange)
    while code == 334:
        code = dialogue.perform('AUTH', _response(session, dialogue), AUTH_FAILED)
    return user or 'scripted' if code == 235 else session.authenticated_as


def _exchange(session: Session, dialogue: Dialogue) -> tuple[Reply | None, str | None]:
    words = session.line.split()[1:]
    if refusal := _refusal(session, words):
        return refusal, None
    initial = words[1] if len(words) == 2 else None
    try:
        if words[0].upper() == 'XOAUTH2':
            return _bearer(session, dialogue, initial)
        if words[0].upper() == 'PLAIN':
            _identity, user, password = _ask(session, dialogue, '', initial).split('\0')
        else:
            user = _ask(session, dialogue, 'Username:', initial)
            password = _ask(session, dialogue, 'Password:')
    except (BadBase64, ValueError):
        return BAD_SYNTAX, None
    assert session.server.auth is not None
    if session.server.auth.get(user) != password:
        return AUTH_FAILED, None
    return None, user


def _bearer(
    session: Session, dialogue: Dialogue, initial: str | None
) -> tuple[Reply | None, str | None]:
    """Check XOAUTH2: a bad token gets a challenge with the reason, then a refusal."""
    assert session.server.auth is not None
    match = re.fullmatch(
        r'user=([^\x01]+)\x01auth=Bearer ([^\x01]+)\x01\x01', _ask(session, dialogue, '', initial)
    )
    if match is None:
        dialogue.violation('a response that is no XOAUTH2')
        return BAD_SYNTAX, None
    if session.server.auth.get(match[1]) == match[2]:
        return None, match[1]
    problem = b64encode(b'{"status":"400","schemes":"Bearer","scope":"https://mail.example.org/"}')
    dialogue.write(b'334 ' + problem + b'\r\n')
    if _response(session, dialogue):
        dialogue.violation('more than an empty line after the challenge of XOAUTH2')
    return AUTH_FAILED, None


def _refusal(session: Session, words: list[str]) -> Reply | None:
    server = session.server
    if server.auth is None:
        return NOT_IMPLEMENTED
    if not session.tls and server.auth_advertised == 'tls':
        return ENCRYPTION_REQUIRED
    if not session.helo or session.authenticated_as is not None or session.sender is not None:
        return BAD_SEQUENCE
    if not 1 <= len(words) <= 2:
        return BAD_SYNTAX
    spoken = {'PLAIN', 'LOGIN', 'XOAUTH2'}.intersection(server.auth_mechanisms)
    return None if words[0].upper() in spoken else UNKNOWN_MECHANISM


def _ask(session: Session, dialogue: Dialogue, challenge: str, initial: str | None = None) -> str:
    """Send a challenge and return the response. Raises ValueError if it is not base64."""
    if initial is None:
        dialogue.write(b'334 ' + b64encode(challenge.encode()) + b'\r\n')
        initial = _response(session, dialogue)
    elif initial == '=':
        initial = ''
    return b64decode(initial, validate=True).decode()


def _response(session: Session, dialogue: Dialogue) -> str:
    received = dialogue.read_line('response')
    line = received.decode('utf-8', 'surrogateescape')
    session.server.note_command(session.connection, 'response', line)
    if len(received) + 2 > _MAX_RESPONSE_BYTES or not line.isprintable() or not line.isascii():
        dialogue.violation('a response to a challenge is too long or no base64')
    dialogue.reply_due = 'the reply to a response'
    return line
