"""The schemes of ``mail.url``: a builder for each makes the mailer of one URL.

A new scheme is a function here, a row of BUILDERS and a name in ``settings.credentials.SCHEMES``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pyramid.path import DottedNameResolver

from ..interfaces import IMailer
from ..settings.converters import choice, count, pause, text
from .file import FileMailer
from .null import NullMailer
from .sendmail import SendmailMailer
from .smtp.authentication import Identity, TokenFile, make_identity
from .smtp.lmtp import LMTPMailer
from .smtp.mailer import SMTPMailer
from .smtp.options import DEFAULT_TIMEOUTS, SessionOptions, TLSMode, TLSOptions
from .url import Converters, MailURL, Options, refuse

__all__ = ['BUILDERS', 'RELAY_OPTIONS', 'Builder', 'Defaults']


class Defaults(NamedTuple):
    """What a URL does not say: our own name, and the credentials that are set beside it."""

    hostname: str
    username: str | None
    password: str | None


Builder = Callable[[MailURL, Defaults], IMailer]
"""Raises ConfigurationError; the constructor of a mailer may raise ValueError."""

_DOTTED_NAME = re.compile(r'[^\W\d]\w*(?:[.:][^\W\d]\w*)+')

_WRITE_A_FUNCTION = 'write the dotted name of a function that returns the access token'


def _words(value: str) -> tuple[str, ...]:
    return tuple(value.lower().split(','))


def _on(value: str) -> bool:
    return choice('on', 'off')(value) == 'on'


def _token_file(value: str) -> TokenFile:
    if not os.path.isabs(value) or '\0' in value:
        raise ValueError('write the absolute path of a file')
    return TokenFile(value)


def _token(value: str) -> Callable[[], str]:
    if not _DOTTED_NAME.fullmatch(value):
        raise ValueError(_WRITE_A_FUNCTION)
    try:
        token: Callable[[], str] = DottedNameResolver().resolve(value)
    except (ImportError, ValueError):
        # The text of the error would quote what may be a token.
        raise ValueError('write what can be imported from here, not a token itself') from None
    if not callable(token):
        raise ValueError(_WRITE_A_FUNCTION)
    return token


_TIMEOUT: Converters = {'timeout': pause}

_SESSION: Converters = {
    'pipelining': _on,
    'max_recipients': count,
    'notify': _words,
    'ret': text,
}
"""Fields of SessionOptions, for SMTP and LMTP."""

_WINDOW: Converters = {'window': count}
"""A field of SessionOptions, for SMTP alone."""

_CERTIFICATES: Converters = {'ca_file': text, 'client_cert': text, 'client_key': text}

_TOKENS: Converters = {'token_file': _token_file, 'token': _token}

_LMTP_OPTIONS: Converters = {
    'tls': text,
    **_CERTIFICATES,
    **_TIMEOUT,
    **_SESSION,
    **_TOKENS,
}

RELAY_OPTIONS: Converters = {**_LMTP_OPTIONS, **_WINDOW}
"""The options of ``smtp:``, ``smtps:`` and ``smtp+insecure:``."""


def _smtp(url: MailURL, defaults: Defaults) -> IMailer:
    host, port = url.host_and_port(465 if url.scheme == 'smtps' else 25)
    options = url.converted_options(RELAY_OPTIONS)
    return SMTPMailer(host, port, **_relay_arguments(url, defaults, options, host))


def _lmtp(url: MailURL, defaults: Defaults) -> IMailer:
    host, port = url.host_and_port(24)
    options = url.converted_options(_LMTP_OPTIONS)
    return LMTPMailer(host, port, **_relay_arguments(url, defaults, options, host))


def _lmtp_unix(url: MailURL, defaults: Defaults) -> IMailer:
    url.refuse_credentials()
    options = url.converted_options({**_TIMEOUT, **_SESSION})
    path = url.absolute_path('lmtp+unix:/absolute/socket')
    return LMTPMailer.unix(path, hostname=defaults.hostname, **_session_arguments(options))


def _sendmail(url: MailURL, defaults: Defaults) -> IMailer:
    url.refuse_credentials()
    arguments = url.converted_options(_TIMEOUT)
    if url.path or url.authority:
        arguments['path'] = url.absolute_path('sendmail:/absolute/program')
    return SendmailMailer(**arguments)


def _file(url: MailURL, defaults: Defaults) -> IMailer:
    url.refuse_credentials()
    url.converted_options({})
    return FileMailer(url.absolute_path('file:///absolute/folder'))


def _null(url: MailURL, defaults: Defaults) -> IMailer:
    url.refuse_credentials()
    url.converted_options({})
    if url.authority or url.path not in ('', '/'):
        refuse('has more than null:', 'null: alone')
    return NullMailer()


BUILDERS: Mapping[str, Builder] = {
    'smtp': _smtp,
    'smtps': _smtp,
    'smtp+insecure': _smtp,
    'lmtp': _lmtp,
    'lmtp+unix': _lmtp_unix,
    'sendmail': _sendmail,
    'file': _file,
    'null': _null,
}


def _relay_arguments(url: MailURL, defaults: Defaults, options: Options, host: str) -> Options:
    """Return the arguments that an SMTPMailer and an LMTPMailer share."""
    return {
        'hostname': defaults.hostname,
        'tls': TLSOptions(
            _tls_mode(url.scheme, options),
            insecure=url.scheme == 'smtp+insecure',
            **_among(options, _CERTIFICATES),
        ),
        'identity': _identity(url, defaults, options, host),
        **_session_arguments(options),
    }


def _tls_mode(scheme: str, options: Options) -> TLSMode:
    required = options.get('tls')
    if required not in (None, 'required'):
        refuse('has an option tls= other than tls=required', 'that, smtps: or smtp+insecure:')
    if scheme == 'smtp+insecure':
        unused = [f'{name}=' for name in ('tls', *_CERTIFICATES) if name in options]
        if unused:
            refuse(
                f'has {", ".join(unused)} for smtp+insecure:, which never uses TLS',
                'smtp: or smtps:',
            )
        return 'none'
    if scheme == 'smtps':
        return 'implicit'
    return 'starttls' if required else 'auto'


def _identity(url: MailURL, defaults: Defaults, options: Options, host: str) -> Identity | None:
    """Return the user name with a password or a token, of the URL or else of the settings."""
    username, password = defaults.username, defaults.password
    if url.has_credentials:
        username, password = url.credentials()
    elif url.has_token:
        password = None
    if not url.has_token:
        if bool(username) != bool(password):
            given, missing = 'user name', 'password'
            if password:
                given, missing = missing, given
            refuse(
                f'has a {given} without a {missing}',
                f'{url.scheme}://USER:PASSWORD@{host}, or mail.username and mail.password',
            )
        return make_identity(username, password)
    tokens = list(_among(options, _TOKENS).values())
    if len(tokens) > 1:
        refuse('has token= and token_file=', 'one of them')
    if password:
        refuse('has a password and a token', 'one of them')
    if not username:
        refuse('has a token without a user name', f'{url.scheme}://USER@{host}, or mail.username')
    return make_identity(username, token=tokens[0])


def _session_arguments(options: Options) -> Options:
    """Return the arguments for time-outs and commands. Raises ValueError naming the option."""
    timeouts = DEFAULT_TIMEOUTS
    if 'timeout' in options:
        timeouts = timeouts.capped(options['timeout'])
    return {
        'timeouts': timeouts,
        'options': SessionOptions(**_among(options, {**_SESSION, **_WINDOW})),
    }


def _among(options: Options, names: Mapping[str, object]) -> Options:
    return {name: value for name, value in options.items() if name in names}
