"""Saying who we are (RFC 4954): one mechanism, one attempt."""

from __future__ import annotations

from base64 import b64encode

from ..envelope import Reply
from .wire import Wire

__all__ = ['MECHANISMS', 'Credentials', 'mechanism']

MECHANISMS = ('PLAIN', 'LOGIN')
"""What we speak, the preferred one first. Both show the password: never without TLS."""

_COMMAND_LIMIT = 510
"""Octets of a command without its line end (RFC 5321, 4.5.3.1.4)."""


def mechanism(offered: str) -> str | None:
    """Choose among the mechanisms that the relay's EHLO names."""
    names = offered.upper().split()
    return next((name for name in MECHANISMS if name in names), None)


class Credentials:
    """A user name and a password, which shows neither."""

    __slots__ = ('_password', '_username')

    def __init__(self, username: str, password: str) -> None:
        if '\0' in username + password:
            raise ValueError('mail.username and mail.password cannot hold a NUL character')
        self._username = username
        self._password = password

    def __repr__(self) -> str:
        return 'Credentials(...)'

    def present(self, wire: Wire, mechanism: str, timeout: float) -> Reply:
        """Run the exchange and return the relay's last word. Raises LineLost."""
        responses = self._responses(mechanism)
        command = f'AUTH {mechanism}'
        if mechanism == 'PLAIN' and len(command) + 1 + len(responses[0]) <= _COMMAND_LIMIT:
            command += f' {responses.pop(0)}'
        reply = _ask(wire, command, timeout)
        # '*' cancels an exchange that asks for more than there is to say.
        for response in (*responses, '*'):
            if reply.code // 100 != 3:
                break
            reply = _ask(wire, response, timeout)
        return reply

    def hide(self, text: str) -> str:
        """Return a relay's text without the secrets that it may echo."""
        secrets = {self._password, *self._responses('PLAIN'), *self._responses('LOGIN')}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, '***')
        return text

    def _responses(self, mechanism: str) -> list[str]:
        user, password = self._username.encode(), self._password.encode()
        raw = [b'\0' + user + b'\0' + password] if mechanism == 'PLAIN' else [user, password]
        return [b64encode(response).decode('ascii') for response in raw]


def _ask(wire: Wire, line: str, timeout: float) -> Reply:
    wire.write(line.encode('ascii') + b'\r\n')
    return wire.reply(timeout)
