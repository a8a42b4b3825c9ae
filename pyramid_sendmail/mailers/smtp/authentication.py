"""Authentication with AUTH (RFC 4954): one mechanism and one attempt for each connection."""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar

from ...envelope import Reply

__all__ = [
    'Bearer',
    'Credentials',
    'Identity',
    'Proof',
    'Token',
    'TokenFile',
    'choose_mechanisms',
    'describe_no_token',
    'make_identity',
    'obtain_proof',
]

Token = Callable[[], str]
"""Returns an access token that is valid now."""

Exchange = Generator[str, Reply, Reply]
"""Yields the lines of an AUTH exchange, takes the replies, and returns the last one."""

_MAX_COMMAND_BYTES = 510
"""Bytes of a command without its line end (RFC 5321, 4.5.3.1.4)."""

_MAX_STATUS_CHARACTERS = 20

_TOKEN = re.compile(r'[A-Za-z0-9._~+/-]+=*')  # RFC 6750, 2.1


def make_identity(
    username: str | None, password: str | None = None, token: Token | None = None
) -> Identity | None:
    """Return the identity for a user name with a password or a token; None without a user name.

    Raises ValueError if they do not go together.
    """
    if token is not None and (password or not username):
        raise ValueError('a token goes with a user name, and without a password')
    if token is None and bool(username) != bool(password):
        raise ValueError('mail.username and mail.password need each other')
    if not username:
        return None
    return Bearer(username, token) if token else Credentials(username, password or '')


def choose_mechanisms(offered: str, supported: tuple[str, ...]) -> list[str]:
    """Return those of the ``supported`` mechanisms that the relay offers, in our order."""
    names = offered.upper().split()
    return [name for name in supported if name in names]


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user name and a password; the repr shows neither."""

    username: str
    password: str

    secret_name: ClassVar[str] = 'password'

    mechanisms: ClassVar[tuple[str, ...]] = ('PLAIN', 'LOGIN')
    """The preferred one first. Both send the password in plain text: never without TLS."""

    options: ClassVar[str] = 'mail.username and mail.password'
    """Where the user sets them."""

    def __post_init__(self) -> None:
        if '\0' in self.username + self.password:
            raise ValueError('mail.username and mail.password cannot hold a NUL character')

    def __repr__(self) -> str:
        return 'Credentials(...)'

    def proof(self) -> Credentials:
        """Return what to present on one connection: the credentials themselves."""
        return self

    def exchange(self, mechanism: str) -> Exchange:
        """Yield the lines of the AUTH exchange, take the replies, and return the last one."""
        responses = self._responses(mechanism)
        reply = yield _first_line(mechanism, responses)
        if mechanism == 'PLAIN' and not responses:
            # A relay that asks again for what stood behind AUTH gets it.
            responses = self._responses(mechanism)
        # '*' cancels an exchange in which the relay asks for more.
        for response in (*responses, '*'):
            if reply.code // 100 != 3:
                break
            reply = yield response
        return reply

    def hide(self, text: str) -> str:
        """Return a relay's text with the secrets masked that it may echo."""
        return _masked(text, self.secrets)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The strings to mask, the longest first."""
        # Replies are stripped, so the password may come back without its outer blanks.
        passwords = {self.password, self.password.strip()} - {''}
        return _longest_first({*passwords, *self._responses('PLAIN'), *self._responses('LOGIN')})

    def _responses(self, mechanism: str) -> list[str]:
        user, password = self.username.encode(), self.password.encode()
        raw = [b'\0' + user + b'\0' + password] if mechanism == 'PLAIN' else [user, password]
        return [_base64(response) for response in raw]


@dataclass(frozen=True, slots=True, repr=False)
class Bearer:
    """A user name and a function that returns an access token; by XOAUTH2."""

    username: str
    token: Token

    secret_name: ClassVar[str] = 'token'

    mechanisms: ClassVar[tuple[str, ...]] = ('XOAUTH2',)
    """The large providers offer it; OAUTHBEARER (RFC 7628) is rare."""

    options: ClassVar[str] = 'the user name, and token_file= or token= in mail.url'
    """Where the user sets them."""

    def __post_init__(self) -> None:
        if re.search(r'[\x00-\x1f\x7f]', self.username):
            raise ValueError('the user name beside a token cannot hold control characters')

    def __repr__(self) -> str:
        return 'Bearer(...)'

    def proof(self) -> BearerProof:
        """Return what to present on one connection, with a token that is valid now.

        Raises ValueError if the function returned no token, and whatever it raises.
        """
        token = self.token()
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError('what it returned is no access token (RFC 6750, 2.1)')
        return BearerProof(self.username, token)


class BearerProof:
    """A user name and an access token, for one connection; the repr shows neither."""

    __slots__ = ('_response', '_token')

    secret_name: ClassVar[str] = Bearer.secret_name

    mechanisms: ClassVar[tuple[str, ...]] = Bearer.mechanisms

    options: ClassVar[str] = Bearer.options

    def __init__(self, username: str, token: str) -> None:
        self._token = token
        self._response = _base64(f'user={username}\1auth=Bearer {token}\1\1'.encode())

    def __repr__(self) -> str:
        return 'BearerProof(...)'

    def proof(self) -> BearerProof:
        """See Credentials."""
        return self

    def exchange(self, mechanism: str) -> Exchange:
        """See Credentials."""
        responses = [self._response]
        reply = yield _first_line(mechanism, responses)
        if responses and reply.code // 100 == 3:
            reply = yield responses.pop()
        if reply.code // 100 != 3:
            return reply
        # The challenge says what is wrong; after an empty line the relay refuses.
        status = self.hide(_status(reply.text))[:_MAX_STATUS_CHARACTERS]
        problem = f'status {status}' if status else 'the relay did not say why'
        reply = yield ''
        if reply.code // 100 == 3:
            reply = yield '*'
        return Reply(reply.code, f'{reply.text} ({problem})')

    def hide(self, text: str) -> str:
        """See Credentials."""
        return _masked(text, self.secrets)

    @property
    def secrets(self) -> tuple[str, ...]:
        """See Credentials."""
        return _longest_first({self._token, self._response, _base64(self._token.encode())})


Identity = Credentials | Bearer | BearerProof

Proof = Credentials | BearerProof


def obtain_proof(identity: Identity) -> Proof | str:
    """Return what to present on one connection, or in words why there is nothing."""
    try:
        return identity.proof()
    except Exception as error:  # noqa: BLE001 - whatever the application's function raises
        return describe_no_token(error)


def describe_no_token(error: BaseException) -> str:
    """Return in words what the function for an access token has raised."""
    return ' '.join(f'there is no token: {error} ({type(error).__name__})'.split())


class TokenFile:
    """Returns the access token in a file, which another program renews (RFC 6749, 1.4).

    ``path``: absolute. Each call reads the first line. Raises ValueError, naming the file, if it
    cannot be read or the line is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        if not os.path.isabs(self._path):
            raise ValueError(f'token_file={self._path} is not absolute')

    def __repr__(self) -> str:
        return f'TokenFile({self._path!r})'

    def __call__(self) -> str:
        try:
            with open(self._path, encoding='ascii') as file:
                token = file.readline().strip()
        except OSError as error:
            raise ValueError(f'token_file={self._path}: {error.strerror}') from error
        except UnicodeDecodeError:
            # The error quotes what was read: do not chain it.
            raise ValueError(f'token_file={self._path} is not ASCII') from None
        if not token:
            raise ValueError(f'token_file={self._path} has an empty first line')
        return token


def _status(challenge: str) -> str:
    """Return the status in the JSON of a challenge, or ''."""
    try:
        status = str(json.loads(b64decode(challenge, validate=True))['status'])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ''
    return status if status.isprintable() else ''


def _longest_first(secrets: set[str]) -> tuple[str, ...]:
    return tuple(sorted(secrets, key=len, reverse=True))


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, '***')
    return text


def _base64(response: bytes) -> str:
    return b64encode(response).decode('ascii')


def _first_line(mechanism: str, responses: list[str]) -> str:
    """Return AUTH, with the first response if the line has room for it."""
    command = f'AUTH {mechanism}'
    if mechanism != 'LOGIN' and len(command) + 1 + len(responses[0]) <= _MAX_COMMAND_BYTES:
        command += f' {responses.pop(0)}'
    return command
