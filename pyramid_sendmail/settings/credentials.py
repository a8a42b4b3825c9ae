"""The relays that the settings name: one URL or more, and the credentials beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pyramid.exceptions import ConfigurationError

__all__ = ['SCHEMES', 'begins', 'mask_url', 'relay', 'separate', 'takes_credentials']

_WITH_CREDENTIALS = ('smtp', 'smtps', 'smtp+insecure', 'lmtp')

SCHEMES = (*_WITH_CREDENTIALS, 'lmtp+unix', 'sendmail', 'file', 'null')
"""What ``mail.url`` may begin with."""

_BEGIN = rf'(?:(?i:{"|".join(map(re.escape, SCHEMES))}):|[A-Za-z][A-Za-z0-9+.-]*://)'

_BETWEEN = rf'([ \t\r\n]+(?={_BEGIN}))'

_CREDENTIALS = r'(?P<user>[A-Za-z][A-Za-z0-9+.-]*://[^/?#:]*)(?P<password>:[^/?#]*)?(?=@)'
"""As the mailers have it: what stands before the last @ of the authority. The standard library's
urlsplit quotes passwords in its errors."""

_TOKEN = r'[?&]token(?:_file)?='


def separate(text: str) -> list[str]:
    """Return the URLs of a text, which blanks separate: those alone that a scheme follows, so that
    a blank in a password is found, and not shown as the beginning of a URL."""
    return _with_between(text.strip())[::2]


def _with_between(text: str) -> list[str]:
    """The URLs, and what stands between them. Most settings are one URL without a blank."""
    return re.split(_BETWEEN, text) if any(blank in text for blank in ' \t\r\n') else [text]


def begins(what: str, text: str) -> bool:
    """Whether a URL begins somewhere behind ``what``, a regular expression."""
    return re.search(f'{what}{_BEGIN}', text) is not None


def takes_credentials(url: str) -> bool:
    """Whether a user name and a password can stand in it, or beside it."""
    scheme = url.partition(':')[0].lower()
    return scheme in _WITH_CREDENTIALS or scheme not in SCHEMES


def mask_url(text: str) -> str:
    """Return one URL or more with ``***`` for each password, even if it is not encoded as it
    should be."""
    return ''.join(map(_masked, _with_between(text)))


def _masked(url: str) -> str:
    if '@' in url:
        pattern, mask = r'\A(\s*(?>(?:[A-Za-z][A-Za-z0-9+.-]*://)?)[^:]*:).*@', r'\1***@'
    elif _is_place(url):
        return url
    else:
        # What is no port may be a password that a blank has cut off.
        pattern, mask = (
            r'\A(\s*[A-Za-z][A-Za-z0-9+.-]*://[^/?#:[]*:)(?![0-9]*(?:[/?#]|\Z)).*',
            r'\1***',
        )
    return re.sub(pattern, mask, url, flags=re.DOTALL)


def _is_place(url: str) -> bool:
    """Whether a URL ends with a host or its port."""
    port = url.partition('://')[2].partition(':')[2]
    return not port or (port.isascii() and port.isdigit())


def relay(
    values: Mapping[str, Any], given: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, str | None]:
    """The URLs, who has written them, and the credentials that stand beside them.

    ``values``: the parsed settings; ``given``: their text, '' where there is none. Raises
    ConfigurationError where they contradict each other.
    """
    url, source = _url(values, given)
    username, password, file = (values[key] for key in ('username', 'password', 'password_file'))
    if password and file:
        raise ConfigurationError('mail.password and mail.password_file: keep one of them')
    theirs = environ.get('MAIL_PASSWORD')
    if environ.get('MAIL_URL'):
        url, source = environ['MAIL_URL'], 'MAIL_URL'
    takers = [each for each in separate(url) if takes_credentials(each)]
    if source == 'MAIL_URL' and all(re.match(_CREDENTIALS, each) for each in takers):
        username = password = file = None
    if theirs and takers and all(re.search(_TOKEN, each) for each in takers):
        raise ConfigurationError(
            f'MAIL_PASSWORD in the environment, and a token in {source}: keep one of them'
        )
    if not takers:
        theirs = None
    elif theirs and not (username or password or file):
        filled = _with_password(separate(url), theirs, source)
        if filled:
            url, theirs = ' '.join(filled), None
    if theirs:
        password = theirs
    elif file:
        password = _first_line(file)
    return {'url': url, 'url_source': source, 'username': username, 'password': password}


def _with_password(urls: list[str], password: str, source: str) -> list[str] | None:
    """The URLs with the password of the environment: in those that name a user and neither a
    password nor a token, or else in place of the only password. None if no user is named."""
    named = {
        at: found
        for at, url in enumerate(urls)
        if (found := re.match(_CREDENTIALS, url)) and not re.search(_TOKEN, url)
    }
    if not named:
        return None
    chosen = {at: found for at, found in named.items() if not found['password']}
    if not chosen:
        if source == 'MAIL_URL':
            raise ConfigurationError(
                'MAIL_URL and MAIL_PASSWORD in the environment both have a password: keep one '
                'of them'
            )
        if len(named) > 1:
            raise ConfigurationError(
                f'MAIL_PASSWORD in the environment, and {len(named)} passwords in {source}: take '
                f'out those that it is to replace'
            )
        chosen = named
    secret = quote(password, safe='')
    return [
        f'{chosen[at]["user"]}:{secret}{url[chosen[at].end() :]}' if at in chosen else url
        for at, url in enumerate(urls)
    ]


def _url(values: Mapping[str, Any], given: Mapping[str, str]) -> tuple[str, str]:
    """The URL that the settings give, in whichever spelling, and the name of the spelling."""
    spelled = [f'mail.{key}' for key in ('host', 'port', 'tls', 'ssl') if values[key] is not None]
    if given['mail.url'] and spelled:
        raise ConfigurationError(
            f'mail.url and {", ".join(spelled)} say the same twice: keep mail.url, with '
            f'smtps: or ?tls=required where TLS is demanded'
        )
    if values['tls'] and values['ssl']:
        raise ConfigurationError(
            'mail.tls and mail.ssl exclude each other: keep mail.ssl for TLS from the first byte '
            '(port 465), or mail.tls for STARTTLS (port 587)'
        )
    if not spelled:
        return values['url'], 'mail.url'
    scheme = 'smtps' if values['ssl'] else 'smtp'
    number = values['port'] or (465 if values['ssl'] else 25)
    query = '?tls=required' if values['tls'] else ''
    return f'{scheme}://{values["host"] or "localhost"}:{number}{query}', 'mail.host'


def _first_line(path: str) -> str:
    try:
        with open(path, encoding='utf-8') as file:
            line = file.readline().rstrip('\r\n')
    except OSError as error:
        raise ConfigurationError(
            f'mail.password_file = {path} cannot be read ({error.strerror}): give this user the '
            f'right to read it, or write mail.password'
        ) from error
    except UnicodeDecodeError:
        # Its text would quote what it has read.
        raise ConfigurationError(
            f'mail.password_file = {path} is not UTF-8: write the password in its first line'
        ) from None
    if not line:
        raise ConfigurationError(
            f'mail.password_file = {path} has an empty first line: write the password there'
        )
    return line
