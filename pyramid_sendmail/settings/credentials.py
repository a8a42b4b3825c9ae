"""The relays that the settings name: their URLs, and the credentials set beside the URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from pyramid.exceptions import ConfigurationError

__all__ = [
    'RELAY_NAMES',
    'SCHEMES',
    'RelaySettings',
    'accepts_credentials',
    'has_comma_between_urls',
    'mask_url',
    'relay_settings',
    'split_urls',
]

_SCHEMES_WITH_CREDENTIALS = ('smtp', 'smtps', 'smtp+insecure', 'lmtp')

SCHEMES = (*_SCHEMES_WITH_CREDENTIALS, 'lmtp+unix', 'sendmail', 'file', 'null')
"""The schemes of ``mail.url``."""

_ANY_SCHEME = r'[A-Za-z][A-Za-z0-9+.-]*://'

_URL_START = rf'(?:(?i:{"|".join(map(re.escape, SCHEMES))}):|{_ANY_SCHEME})'

_SEPARATOR = re.compile(rf'([ \t\r\n]+(?={_URL_START}))')

_COMMA = re.compile(rf',\s*{_URL_START}')

_USERINFO = re.compile(rf'(?P<user>{_ANY_SCHEME}[^/?#:]*)(?P<password>:[^/?#]*)?(?=@)')
"""The user and password, up to the last @ of the authority, as the mailers read a URL. The
standard library's urlsplit quotes passwords in its errors."""

_TOKEN = re.compile(r'[?&]token(?:_file)?=')

_PASSWORD = re.compile(rf'\A(\s*(?>(?:{_ANY_SCHEME})?)[^:]*:).*@', re.DOTALL)
"""In a URL with an @, everything between the user name and the last @."""

_NOT_A_PORT = re.compile(
    rf'\A(\s*{_ANY_SCHEME}[^/?#:[]*:)(?![0-9]*(?:[/?#]|\Z)).*',
    re.DOTALL,
)
"""In a URL without an @, what follows the host and is not a port: it may be a password that a
blank has cut off."""


_BYTE_ORDER_MARK = '\ufeff'

Values = dict[str, Any]
"""The parsed settings, by their names without ``mail.``."""


RELAY_NAMES = ('url', 'host', 'port', 'tls', 'ssl', 'username', 'password', 'password_file')
"""What ``relay_settings`` needs of the settings."""


class RelaySettings(NamedTuple):
    """Where mail goes to, and as whom. ``url`` may hold several URLs; ``url_source`` is where the
    reader has written it: 'mail.url', 'mail.host', 'MAIL_URL' or '--set mail.url'."""

    url: str
    url_source: str
    username: str | None
    password: str | None


def split_urls(text: str) -> list[str]:
    """Return the URLs of a text, which blanks separate.

    Only a blank before a scheme separates URLs. Any other blank stays where it is, so that one
    inside a password is reported, and the rest of the password is not shown as a URL.
    """
    return _SEPARATOR.split(text.strip())[::2]


def has_comma_between_urls(text: str) -> bool:
    """True if a comma separates two URLs, which a blank has to do."""
    return _COMMA.search(text) is not None


def accepts_credentials(url: str) -> bool:
    """True if the URL's scheme takes a user name and a password, or is unknown."""
    scheme = url.partition(':')[0].lower()
    return scheme in _SCHEMES_WITH_CREDENTIALS or scheme not in SCHEMES


def mask_url(text: str) -> str:
    """Return one or more URLs with ``***`` for each password, even a badly encoded one."""
    return ''.join(map(_mask_one, _SEPARATOR.split(text)))


def _mask_one(url: str) -> str:
    if '@' in url:
        return _PASSWORD.sub(r'\1***@', url)
    return _NOT_A_PORT.sub(r'\1***', url)


def relay_settings(
    values: Values,
    given: Mapping[str, str],
    environ: Mapping[str, str],
    overrides: Mapping[str, str],
) -> RelaySettings:
    """Combine ``mail.url`` or its older spellings, the credentials and the environment.

    ``given``: the text of each setting, '' if it is not set. ``overrides``: those that win over
    the environment. Raises ConfigurationError if they contradict each other.
    """
    url, source = _written_url(values, given)
    username, password, file = (values[key] for key in ('username', 'password', 'password_file'))
    if password and file:
        raise ConfigurationError('mail.password and mail.password_file: keep one of them')
    if password:
        password = _checked_secret(password, 'mail.password')
    for name, text in (
        ('--set mail.url', overrides.get('mail.url')),
        ('MAIL_URL', environ.get('MAIL_URL')),
    ):
        if text:
            url, source = text.removeprefix(_BYTE_ORDER_MARK), name
            break
    replaced = source in ('MAIL_URL', '--set mail.url')
    accepting = [each for each in split_urls(url) if accepts_credentials(each)]
    if replaced and all(map(_USERINFO.match, accepting)):
        # Such a URL brings its own credentials.
        username = password = file = None
    override = environ.get('MAIL_PASSWORD')
    if overrides.get('mail.password') or overrides.get('mail.password_file'):
        override = None
    if override and accepting and all(map(_TOKEN.search, accepting)):
        raise ConfigurationError(
            f'MAIL_PASSWORD in the environment, and a token in {source}: keep one of them'
        )
    if not accepting:
        override = None
    if override:
        override = _checked_secret(override, 'MAIL_PASSWORD in the environment')
    if override and not (username or password or file):
        filled = _with_password(split_urls(url), override, source)
        if filled:
            url, override = ' '.join(filled), None
    if override:
        password = override
    elif file:
        password = _first_line(file)
    return RelaySettings(url, source, username, password)


def _checked_secret(text: str, where: str) -> str:
    """Return a secret without what is not seen, and was not meant: a byte order mark before it, the
    line break behind it that ``echo secret | base64`` leaves in a Kubernetes secret.

    Raises ConfigurationError for a line break inside, and for quotation marks around it.
    """
    secret = text.removeprefix(_BYTE_ORDER_MARK).rstrip('\r\n')
    if '\n' in secret or '\r' in secret:
        raise ConfigurationError(f'{where} has a line break in it: write the password on one line')
    if len(secret) > 1 and secret[0] == secret[-1] and secret[0] in '"\'':
        raise ConfigurationError(
            f'{where} stands in quotation marks, which an ini file or a Docker env file keeps: '
            f'remove them; if they belong to the password, write it to a mail.password_file'
        )
    return secret


def _with_password(urls: Sequence[str], password: str, source: str) -> list[str] | None:
    """Return the URLs with the password of the environment, or None if no URL names a user.

    The password goes to each URL that has a user name and neither a password nor a token. If no
    URL lacks a password and exactly one has one, replace that.
    """
    with_user = {
        number: match
        for number, url in enumerate(urls)
        if (match := _USERINFO.match(url)) and not _TOKEN.search(url)
    }
    if not with_user:
        return None
    chosen = {number: match for number, match in with_user.items() if not match['password']}
    if not chosen:
        if source in ('MAIL_URL', '--set mail.url'):
            raise ConfigurationError(
                f'{source} and MAIL_PASSWORD in the environment both have a password: keep one '
                'of them'
            )
        if len(with_user) > 1:
            raise ConfigurationError(
                f'MAIL_PASSWORD in the environment, and {len(with_user)} passwords in {source}: '
                f'remove those that it replaces'
            )
        chosen = with_user
    secret = quote(password, safe='')
    return [
        f'{chosen[number]["user"]}:{secret}{url[chosen[number].end() :]}'
        if number in chosen
        else url
        for number, url in enumerate(urls)
    ]


def _written_url(values: Values, given: Mapping[str, str]) -> tuple[str, str]:
    """Return the URL of the settings, and the name of the setting that gave it."""
    spelled = [f'mail.{key}' for key in ('host', 'port', 'tls', 'ssl') if values[key] is not None]
    if given['mail.url'] and spelled:
        raise ConfigurationError(
            f'mail.url and {", ".join(spelled)} both name the relay: keep mail.url, with '
            f'smtps: or ?tls=required to require TLS'
        )
    if values['tls'] and values['ssl']:
        raise ConfigurationError(
            'mail.tls and mail.ssl exclude each other: keep mail.ssl for TLS from the first byte '
            '(port 465), or mail.tls for STARTTLS (port 587)'
        )
    if not spelled:
        return values['url'], 'mail.url'
    scheme = 'smtps' if values['ssl'] else 'smtp'
    port = values['port'] or (465 if values['ssl'] else 25)
    query = '?tls=required' if values['tls'] else ''
    return f'{scheme}://{values["host"] or "localhost"}:{port}{query}', 'mail.host'


def _first_line(path: str) -> str:
    try:
        # utf-8-sig: an editor may have put a byte order mark before the password.
        with open(path, encoding='utf-8-sig') as file:
            line = file.readline().rstrip('\r\n')
    except OSError as error:
        raise ConfigurationError(
            f'mail.password_file = {path} cannot be read ({error.strerror}): give this user the '
            f'right to read it, or write mail.password'
        ) from error
    except UnicodeDecodeError:
        # The text of the error would quote what was read.
        raise ConfigurationError(
            f'mail.password_file = {path} is not UTF-8: write the password in its first line'
        ) from None
    if not line:
        raise ConfigurationError(
            f'mail.password_file = {path} has an empty first line: write the password there'
        )
    return line
