"""What makes a mailer of a URL's parts, one function a scheme.

Each verifies the parts and returns what makes the mailer, whose module is imported only then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.path import DottedNameResolver

from ..interfaces import IMailer
from ..settings.converters import choice, count, pause
from .url import MailURL, refuse

if TYPE_CHECKING:
    from .smtp.options import TLSMode

__all__ = ['BUILDERS', 'RELAY_OPTIONS', 'Defaults']


class Defaults(NamedTuple):
    """What other settings say."""

    hostname: str
    username: str | None
    password: str | None


Maker = Callable[[], IMailer]


def _text(value: str) -> str:
    return value


def _words(value: str) -> tuple[str, ...]:
    return tuple(value.lower().split(','))


def _on(value: str) -> bool:
    return choice('on', 'off')(value) == 'on'


def _token_file(value: str) -> Callable[[], str]:
    from .smtp.authentication import TokenFile

    if not os.path.isabs(value) or '\0' in value:
        raise ValueError('write the absolute path of a file')
    return TokenFile(value)


def _token(value: str) -> Callable[[], str]:
    found: Any = None
    if re.fullmatch(r'[^\W\d]\w*(?:[.:][^\W\d]\w*)+', value):
        try:
            found = DottedNameResolver().resolve(value)
        except (ImportError, ValueError):
            # Its text would quote what may be a token.
            raise ValueError('write what can be imported from here, not a token itself') from None
    if callable(found):
        token: Callable[[], str] = found
        return token
    raise ValueError('write the dotted name of a function that returns the access token')


_TIMEOUT = {'timeout': pause}

_SESSION = {'pipelining': _on, 'max_recipients': count, 'notify': _words, 'ret': _text}
"""The options of SessionOptions that are for SMTP and LMTP."""

_WINDOW = {'window': count}
"""What is for SMTP alone."""

_TRUST = {'ca_file': _text, 'client_cert': _text, 'client_key': _text}

_TOKENS = {'token_file': _token_file, 'token': _token}

_LMTP_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    'tls': _text,
    **_TRUST,
    **_TIMEOUT,
    **_SESSION,
    **_TOKENS,
}

RELAY_OPTIONS: Mapping[str, Callable[[str], Any]] = {**_LMTP_OPTIONS, **_WINDOW}


def _smtp(parts: MailURL, defaults: Defaults) -> Maker:
    def mailer(*place: Any, **arguments: Any) -> IMailer:
        from .smtp.mailer import SMTPMailer

        return SMTPMailer(*place, **arguments)

    port = 465 if parts.scheme == 'smtps' else 25
    insecure = parts.scheme == 'smtp+insecure'
    return _to_host(mailer, parts, defaults, port, RELAY_OPTIONS, insecure=insecure)


def _lmtp(parts: MailURL, defaults: Defaults) -> Maker:
    def mailer(*place: Any, **arguments: Any) -> IMailer:
        from .smtp.lmtp import LMTPMailer

        return LMTPMailer(*place, **arguments)

    return _to_host(mailer, parts, defaults, 24, _LMTP_OPTIONS)


def _to_host(
    mailer: Callable[..., IMailer],
    parts: MailURL,
    defaults: Defaults,
    port: int,
    options: Mapping[str, Callable[[str], Any]],
    *,
    insecure: bool = False,
) -> Maker:
    """A mailer to a host, at this port where the URL has none."""
    host, port = parts.place(port)
    given = parts.known_options(options)
    from .smtp.authentication import make_identity
    from .smtp.options import TLSOptions

    mode = _security(parts.scheme, given)
    arguments: dict[str, Any] = {
        'hostname': defaults.hostname,
        'tls': TLSOptions(mode, insecure=insecure, **_among(given, _TRUST)),
        'identity': make_identity(**_credentials(parts, defaults, given, host)),
    }
    return lambda: mailer(host, port, **arguments, **_conversation(given))


def _lmtp_unix(parts: MailURL, defaults: Defaults) -> Maker:
    parts.no_credentials()
    given = parts.known_options({**_TIMEOUT, **_SESSION})
    path = parts.absolute_path('lmtp+unix:/absolute/socket')

    def make() -> IMailer:
        from .smtp.lmtp import LMTPMailer

        return LMTPMailer.unix(path, hostname=defaults.hostname, **_conversation(given))

    return make


def _sendmail(parts: MailURL, defaults: Defaults) -> Maker:
    parts.no_credentials()
    given: dict[str, Any] = parts.known_options(_TIMEOUT)
    if parts.path or parts.authority:
        given['path'] = parts.absolute_path('sendmail:/absolute/program')

    def make() -> IMailer:
        from .sendmail import SendmailMailer

        return SendmailMailer(**given)

    return make


def _file(parts: MailURL, defaults: Defaults) -> Maker:
    parts.no_credentials()
    parts.known_options({})
    path = parts.absolute_path('file:///absolute/folder')

    def make() -> IMailer:
        from .file import FileMailer

        return FileMailer(path)

    return make


def _null(parts: MailURL, defaults: Defaults) -> Maker:
    parts.no_credentials()
    parts.known_options({})
    if parts.authority or parts.path not in ('', '/'):
        refuse('has more than null:', 'null: alone')

    def make() -> IMailer:
        from .null import NullMailer

        return NullMailer()

    return make


BUILDERS: Mapping[str, Callable[[MailURL, Defaults], Maker]] = {
    'smtp': _smtp,
    'smtps': _smtp,
    'smtp+insecure': _smtp,
    'lmtp': _lmtp,
    'lmtp+unix': _lmtp_unix,
    'sendmail': _sendmail,
    'file': _file,
    'null': _null,
}
"""Each raises ConfigurationError; what it returns, perhaps a mailer's own ValueError."""


def _security(scheme: str, given: Mapping[str, Any]) -> TLSMode:
    demanded = given.get('tls')
    if demanded not in (None, 'required'):
        refuse('has an option tls= other than tls=required', 'that, smtps: or smtp+insecure:')
    if scheme == 'smtp+insecure':
        unused = [f'{name}=' for name in ('tls', *_TRUST) if name in given]
        if unused:
            refuse(
                f'has {", ".join(unused)} for smtp+insecure:, which never speaks TLS',
                'smtp: or smtps:',
            )
        return 'none'
    if scheme == 'smtps':
        return 'implicit'
    return 'starttls' if demanded else 'auto'


def _credentials(
    parts: MailURL, defaults: Defaults, given: Mapping[str, Any], host: str
) -> dict[str, Any]:
    """The user name, and either the password or the token: the URL's own, or those beside it."""
    username, password = defaults.username, defaults.password
    if parts.has_credentials:
        username, password = parts.credentials()
    elif parts.has_token:
        password = None
    if not parts.has_token:
        if bool(username) != bool(password):
            there, missing = 'user name', 'password'
            if password:
                there, missing = missing, there
            refuse(
                f'has a {there} without a {missing}',
                f'{parts.scheme}://USER:PASSWORD@{host}, or mail.username and mail.password',
            )
        return {'username': username, 'password': password}
    if len(_among(given, _TOKENS)) > 1:
        refuse('has token= and token_file=', 'one of them')
    if password:
        refuse('has a password and a token', 'one of them')
    if not username:
        refuse('has a token without a user name', f'{parts.scheme}://USER@{host}, or mail.username')
    (token,) = _among(given, _TOKENS).values()
    return {'username': username, 'token': token}


def _conversation(given: Mapping[str, Any]) -> dict[str, Any]:
    """How long to wait, and how to speak. Raises ValueError naming the option."""
    from .smtp.options import DEFAULT_TIMEOUTS as TIMEOUTS
    from .smtp.options import SessionOptions

    timeouts = TIMEOUTS.capped(given['timeout']) if 'timeout' in given else TIMEOUTS
    return {
        'timeouts': timeouts,
        'options': SessionOptions(**_among(given, {**_SESSION, **_WINDOW})),
    }


def _among(given: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}
