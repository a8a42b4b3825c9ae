"""Saying who we are (RFC 4954): one mechanism, one attempt."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable

from ...envelope import Reply
from .connection import SMTPConnection

__all__ = ['Bearer', 'Credentials', 'Identity', 'Token', 'mechanism']

Token = Callable[[], str]
"""Returns an access token that is good now."""

_COMMAND_LIMIT = 510
"""Octets of a command without its line end (RFC 5321, 4.5.3.1.4)."""

_STATUS_LIMIT = 20

_TOKEN = re.compile(r'[A-Za-z0-9._~+/-]+=*')  # RFC 6750, 2.1


def mechanism(offered: str, spoken: tuple[str, ...]) -> str | None:
    """Choose among the mechanisms that the relay's EHLO names, by the order of ours."""
    names = offered.upper().split()
    return next((name for name in spoken if name in names), None)


class Credentials:
    """A user name and a password, which shows neither."""

    __slots__ = ('_password', '_username')

    mechanisms = ('PLAIN', 'LOGIN')
    """The preferred one first. Both show the password: never without TLS."""

    options = 'mail.username and mail.password'

    def __init__(self, username: str, password: str) -> None:
        if '\0' in username + password:
            raise ValueError('mail.username and mail.password cannot hold a NUL character')
        self._username = username
        self._password = password

    def __repr__(self) -> str:
        return 'Credentials(...)'

    def proof(self) -> Credentials:
        """They are their own."""
        return self

    def present(self, connection: SMTPConnection, mechanism: str, timeout: float) -> Reply:
        """Run the exchange and return the relay's last word. Raises ConnectionLost."""
        responses = self._responses(mechanism)
        reply = _begin(connection, mechanism, responses, timeout)
        # '*' cancels an exchange that asks for more than there is to say.
        for response in (*responses, '*'):
            if reply.code // 100 != 3:
                break
            reply = _ask(connection, response, timeout)
        return reply

    def hide(self, text: str) -> str:
        """Return a relay's text without the secrets that it may echo."""
        return _hidden(text, self.secrets)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown, the longest first."""
        # What was read has no blanks at its ends.
        passwords = {self._password, self._password.strip()} - {''}
        return _longest_first({*passwords, *self._responses('PLAIN'), *self._responses('LOGIN')})

    def _responses(self, mechanism: str) -> list[str]:
        user, password = self._username.encode(), self._password.encode()
        raw = [b'\0' + user + b'\0' + password] if mechanism == 'PLAIN' else [user, password]
        return [_encoded(response) for response in raw]


class Bearer:
    """A user name, and what gives an access token; by XOAUTH2, which large providers speak."""

    __slots__ = ('_token', '_username')

    mechanisms = ('XOAUTH2',)

    options = 'the user name, and token_file= or token= in mail.url'

    def __init__(self, username: str, token: Token) -> None:
        if re.search(r'[\x00-\x1f\x7f]', username):
            raise ValueError('the user name beside a token cannot hold control characters')
        self._username = username
        self._token = token

    def __repr__(self) -> str:
        return 'Bearer(...)'

    def proof(self) -> BearerProof:
        """Ask for the token of now. Raises ValueError for what is none, and what it raises."""
        token = self._token()
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError('what it gave is no access token (RFC 6750, 2.1)')
        return BearerProof(self._username, token)


class BearerProof:
    """A user name and an access token, which shows neither."""

    __slots__ = ('_response', '_token')

    def __init__(self, username: str, token: str) -> None:
        self._token = token
        self._response = _encoded(f'user={username}\1auth=Bearer {token}\1\1'.encode())

    def __repr__(self) -> str:
        return 'BearerProof(...)'

    def present(self, connection: SMTPConnection, mechanism: str, timeout: float) -> Reply:
        """See Credentials."""
        responses = [self._response]
        reply = _begin(connection, mechanism, responses, timeout)
        if responses and reply.code // 100 == 3:
            reply = _ask(connection, responses.pop(), timeout)
        if reply.code // 100 != 3:
            return reply
        # The challenge tells what is wrong; an empty line has the relay refuse.
        status = self.hide(_status(reply.text))[:_STATUS_LIMIT]
        problem = f'status {status}' if status else 'the relay did not say why'
        reply = _ask(connection, '', timeout)
        if reply.code // 100 == 3:
            reply = _ask(connection, '*', timeout)
        return Reply(reply.code, f'{reply.text} ({problem})')

    def hide(self, text: str) -> str:
        """See Credentials."""
        return _hidden(text, self.secrets)

    @property
    def secrets(self) -> tuple[str, ...]:
        """See Credentials."""
        return _longest_first({self._token, self._response, _encoded(self._token.encode())})


Identity = Credentials | Bearer


def _status(challenge: str) -> str:
    """What the relay's JSON says is the status of a token, or ''."""
    try:
        status = str(json.loads(b64decode(challenge, validate=True))['status'])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ''
    return status if status.isprintable() else ''


def _longest_first(secrets: set[str]) -> tuple[str, ...]:
    return tuple(sorted(secrets, key=len, reverse=True))


def _hidden(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, '***')
    return text


def _encoded(response: bytes) -> str:
    return b64encode(response).decode('ascii')


def _begin(
    connection: SMTPConnection, mechanism: str, responses: list[str], timeout: float
) -> Reply:
    """Say AUTH, with the first response if there is room for it."""
    command = f'AUTH {mechanism}'
    if mechanism != 'LOGIN' and len(command) + 1 + len(responses[0]) <= _COMMAND_LIMIT:
        command += f' {responses.pop(0)}'
    return _ask(connection, command, timeout)


def _ask(connection: SMTPConnection, line: str, timeout: float) -> Reply:
    connection.write(line.encode('ascii') + b'\r\n')
    return connection.reply(timeout)
