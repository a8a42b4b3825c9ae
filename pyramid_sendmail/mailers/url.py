"""The text of ``mail.url``: which mailer, and how."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import unquote

from pyramid.exceptions import ConfigurationError

from ..interfaces import IMailer
from ..settings import duration
from .wire import TIMEOUTS

__all__ = ['mailer_from_url', 'mask_url']

# RFC 3986, appendix B. The standard library's urlsplit drops tabs and line breaks, and
# quotes the password in some of its errors.
_URL = re.compile(
    r'(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?'
    r'(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?',
    re.DOTALL,
)
_PLACE = re.compile(r'(?:\[(?P<literal>[^\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>.*))?', re.DOTALL)
_HOST = re.compile(r'[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?')
_STRAY = re.compile(r'%(?![0-9A-Fa-f]{2})')

_EXAMPLE = 'smtp://relay.example.org:25'


@dataclass(frozen=True, slots=True)
class _Parts:
    scheme: str
    authority: str | None
    path: str
    options: dict[str, str]


def mailer_from_url(
    url: str, *, hostname: str, username: str | None = None, password: str | None = None
) -> IMailer:
    """Return the mailer that the text of ``mail.url`` describes.

    ``smtp://[USER:PASSWORD@]HOST[:PORT]`` (port 25), ``smtps:`` (465), ``smtp+insecure:`` (25)
    with the options ``tls=required``, ``ca_file=``, ``client_cert=``, ``client_key=`` and
    ``timeout=10s`` (no phase waits longer) in the query; ``file:///absolute/folder``; ``null:``.
    What a URL cannot hold as it is, is percent-encoded: ``@`` as ``%40``.

    ``hostname``: our own name. ``username``, ``password``: from their own settings, for a URL
    without. Raises ConfigurationError naming mail.url and what to write, never the password.
    """
    parts = _split(url)
    build = _SCHEMES.get(parts.scheme)
    if build is None:
        _refuse_scheme(url, parts)
    return build(parts, hostname, username or None, password or None)


def mask_url(url: str) -> str:
    """Return the URL with ``***`` for the password, even if it is not encoded as it should be."""
    return re.sub(
        r'\A(\s*(?>(?:[A-Za-z][A-Za-z0-9+.-]*://)?)[^:]*:).*@', r'\1***@', url, flags=re.DOTALL
    )


def _split(url: str) -> _Parts:
    url = url.strip()
    if re.search(r'[\s,](?:[A-Za-z][A-Za-z0-9+.-]*://|file:|null:|sendmail:)', url):
        _refuse('has several URLs, and failover is not here yet', f'one: {_EXAMPLE}')
    if not url or re.search(r'[\s\x00-\x1f\x7f]', url):
        _refuse('is empty or has blanks in it', f'one URL such as {_EXAMPLE}, a blank as %20')
    match = _URL.fullmatch(url)
    assert match is not None  # the pattern takes any text
    if match['fragment'] is not None:
        _refuse('has a # in it', '# as %23')
    query = match['query'] or ''
    if '@' in query:
        # It may be the rest of a password with a question mark in it.
        _refuse('has an @ behind the ?', '@ as %40, and ? in a password as %3F')
    return _Parts(
        (match['scheme'] or '').lower(), match['authority'], match['path'], _options(query)
    )


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split('&')):
        name, _, value = item.partition('=')
        if name in options:
            _refuse(f'has the option {name}= twice', 'it once')
        if not value:
            _refuse(f'has the option {name} without a value', f'{name}=VALUE, or leave it out')
        options[name] = _decoded(value, f'the option {name}=')
    return options


def _decoded(text: str, where: str) -> str:
    if _STRAY.search(text):
        _refuse(f'has a stray % in {where}', '% as %25')
    try:
        return unquote(text, errors='strict')
    except UnicodeDecodeError:
        _refuse(f'has {where} in an encoding other than UTF-8', 'it percent-encoded from UTF-8')


# The builders, one a scheme.


def _smtp(parts: _Parts, hostname: str, username: str | None, password: str | None) -> IMailer:
    from .smtp import Security, SMTPMailer

    userinfo, at, place = (parts.authority or '').rpartition('@')
    host, port = _place(place, 465 if parts.scheme == 'smtps' else 25)
    if parts.path not in ('', '/'):
        # The text may be the rest of a password with a slash in it: it is not shown.
        _refuse(
            'has a path behind the host', f'{parts.scheme}://HOST:PORT, and / in a password as %2F'
        )
    if at:
        if username or password:
            _refuse(
                'has credentials, and so have mail.username or mail.password', 'them in one place'
            )
        user, _, secret = userinfo.partition(':')
        username = _decoded(user, 'the user name')
        password = _decoded(secret, 'the password')
    if bool(username) != bool(password):
        there, missing = ('user name', 'password') if username else ('password', 'user name')
        _refuse(
            f'has a {there} without a {missing}',
            f'{parts.scheme}://USER:PASSWORD@{host}, or mail.username and mail.password',
        )
    options = _known(parts, ('tls', 'ca_file', 'client_cert', 'client_key', 'timeout'))
    timeouts = TIMEOUTS
    if 'timeout' in options:
        try:
            seconds = duration(options.pop('timeout'))
        except ValueError as error:
            _refuse('has a bad option timeout=', str(error).removeprefix('write '))
        if not seconds:
            _refuse('has the option timeout=0', 'more than 0s')
        timeouts = timeouts.capped(seconds)
    demanded = options.pop('tls', None)
    if demanded not in (None, 'required'):
        _refuse('has an option tls= other than tls=required', 'that, smtps: or smtp+insecure:')
    insecure = parts.scheme == 'smtp+insecure'
    if insecure and (demanded or options):
        unused = ', '.join(f'{name}=' for name in (*(['tls'] if demanded else []), *options))
        _refuse(f'has {unused} for smtp+insecure:, which never speaks TLS', 'smtp: or smtps:')
    tls: Security = 'auto'
    if parts.scheme == 'smtps':
        tls = 'implicit'
    elif insecure:
        tls = 'none'
    elif demanded:
        tls = 'starttls'
    try:
        return SMTPMailer(
            host,
            port,
            hostname=hostname,
            tls=tls,
            username=username,
            password=password,
            insecure=insecure,
            timeouts=timeouts,
            **options,
        )
    except ValueError as error:
        raise ConfigurationError(f'mail.url: {error}') from error


def _file(parts: _Parts, hostname: str, username: str | None, password: str | None) -> IMailer:
    from .file import FileMailer

    _no_credentials(parts, username, password)
    _known(parts, ())
    path = _decoded(parts.path, 'the path')
    if parts.authority not in (None, '', 'localhost') or not os.path.isabs(path):
        _refuse('has a file: path that is not absolute', 'file:///absolute/folder')
    if '\0' in path:
        _refuse('has a NUL character in the path', 'file:///absolute/folder')
    return FileMailer(path)


def _null(parts: _Parts, hostname: str, username: str | None, password: str | None) -> IMailer:
    from .null import NullMailer

    _no_credentials(parts, username, password)
    _known(parts, ())
    if parts.authority or parts.path not in ('', '/'):
        _refuse('has more than null:', 'null: alone')
    return NullMailer()


_SCHEMES: dict[str, Callable[[_Parts, str, str | None, str | None], IMailer]] = {
    'smtp': _smtp,
    'smtps': _smtp,
    'smtp+insecure': _smtp,
    'file': _file,
    'null': _null,
}


def _place(place: str, default: int) -> tuple[str, int]:
    match = _PLACE.fullmatch(place)
    if match is None:
        _refuse('has a bad host', f'a name, or an IPv6 address in brackets: {_EXAMPLE}')
    text = match['port']
    port = default
    if text is not None:
        # int() alone would take ' 25', '+25' and '2_5'.
        port = int(text) if re.fullmatch('[0-9]{1,5}', text) else 0
        if not 0 < port < 65536:
            _refuse('has a bad port', 'a number from 1 to 65535 behind the host')
    if match['literal'] is not None:
        try:
            return str(ipaddress.IPv6Address(match['literal'])), port
        except ValueError:
            _refuse('has no IPv6 address in the brackets', 'smtp://[2001:db8::25]:25')
    host = match['host']
    if not host:
        _refuse('names no host', _EXAMPLE)
    try:
        host = host.encode('idna').decode('ascii')
    except UnicodeError:
        host = ''
    if not _HOST.fullmatch(host):
        _refuse('has a bad host', f'a name of letters, digits, hyphens and dots: {_EXAMPLE}')
    return host, port


def _known(parts: _Parts, names: Collection[str]) -> dict[str, str]:
    for name in parts.options:
        if name not in names:
            if not names:
                _refuse(f'has options, and {parts.scheme}: takes none', 'it without ?...')
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            _refuse(f'has the unknown option {name}=', f'{near}= perhaps, or {_all(names)}')
    return dict(parts.options)


def _no_credentials(parts: _Parts, username: str | None, password: str | None) -> None:
    if username or password or '@' in (parts.authority or ''):
        _refuse(
            f'is {parts.scheme}:, which takes no credentials',
            'it without mail.username and mail.password',
        )


def _refuse_scheme(url: str, parts: _Parts) -> NoReturn:
    if parts.scheme in ('lmtp', 'lmtp+unix', 'sendmail'):
        _refuse(f'is {parts.scheme}:, which is not here yet', f'an SMTP relay: {_EXAMPLE}')
    if parts.scheme and not parts.path.split('?')[0].isdigit():
        near = difflib.get_close_matches(parts.scheme, _SCHEMES, n=1, cutoff=0.5)
        hint = f'{near[0]}: perhaps, or ' if near else ''
        _refuse(f'begins with {parts.scheme}:, which is unknown', f'{hint}{_EXAMPLE}')
    _refuse('does not say how mail leaves', f'smtp: before the host, as in {_EXAMPLE}')


def _all(names: Collection[str]) -> str:
    return ', '.join(f'{name}=' for name in names)


def _refuse(problem: str, remedy: str) -> NoReturn:
    """Never with the text of the URL: a mistake may leave any part of it in the password."""
    raise ConfigurationError(f'mail.url {problem}: write {remedy}') from None
