"""The parts of one URL of ``mail.url``, and the errors about them."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from pyramid.exceptions import ConfigurationError

from ..domains import ascii_domain
from ..settings import converters
from ..settings.nearest import nearest

__all__ = ['EXAMPLE_URL', 'Converters', 'MailURL', 'Options', 'parse_url', 'refuse']

EXAMPLE_URL = 'smtp://relay.example.org:25'

_OPTION_NAMES = (
    *('tls', 'ca_file', 'client_cert', 'client_key', 'timeout', 'pipelining'),
    *('window', 'max_recipients', 'notify', 'ret', 'token_file', 'token'),
)
"""The options of all schemes."""

_URL = re.compile(
    r'(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)'
    r'(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?',
    re.DOTALL,
)
"""RFC 3986, appendix B. The standard library's urlsplit drops tabs and line breaks, and quotes
the password in some of its errors."""

_BLANK = re.compile(r'[\s\x00-\x1f\x7f]')

_STRAY_PERCENT = re.compile('%(?![0-9A-Fa-f]{2})')

_HOST_AND_PORT = re.compile(
    r'(?:\[(?P<literal>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>.*))?', re.DOTALL
)

_LABEL = '[A-Za-z0-9_-]{1,63}'

_ZONE = re.compile(r'[A-Za-z0-9._~-]+')
"""RFC 6874, 2: the characters of a zone that need no encoding."""

_HOST_NAME = re.compile(rf'(?!-){_LABEL}(?:\.{_LABEL})*(?<!-)\.?')


Options = dict[str, Any]
"""The options of a URL with their values."""

Converters = Mapping[str, Callable[[str], object]]
"""What makes the value of an option's text, or raises ValueError saying what to write."""


class MailURL(NamedTuple):
    """One URL, split into its parts. Only the options are decoded.

    Each method raises ConfigurationError if the part that it is about is wrong.
    """

    scheme: str
    authority: str | None
    path: str
    options: Mapping[str, str]

    @property
    def has_credentials(self) -> bool:
        return '@' in (self.authority or '')

    @property
    def has_token(self) -> bool:
        return 'token' in self.options or 'token_file' in self.options

    def credentials(self) -> tuple[str, str]:
        """Return the user name and the password, '' for a missing one."""
        userinfo, _, _ = (self.authority or '').rpartition('@')
        user, _, secret = userinfo.partition(':')
        return _decoded(user, 'the user name'), _decoded(secret, 'the password')

    def host_and_port(self, default: int) -> tuple[str, int]:
        """Return the host and the port; refuse a path."""
        # No text of the URL is shown: it may be the rest of a password that has a slash in it.
        if self.authority is not None and '@' in self.path:
            refuse('has a / before the @', '/ in a user name or a password as %2F')
        place = (self.authority or '').rpartition('@')[2]
        host, port = _host_and_port(place, default, self.scheme)
        if self.path not in ('', '/'):
            refuse(
                'has a path after the host',
                f'{self.scheme}://HOST:PORT, and / in a password as %2F',
            )
        return host, port

    def absolute_path(self, example: str) -> str:
        """Return the decoded path, which must be absolute and on this host."""
        path = _decoded(self.path, 'the path')
        if self.authority not in (None, '', 'localhost') or not os.path.isabs(path):
            refuse(f'has a {self.scheme}: path that is not absolute', example)
        if '\0' in path:
            refuse('has a NUL character in the path', example)
        return path

    def converted_options(self, convert: Converters) -> Options:
        """Return the value of each option that is given; refuse those without a converter."""
        values: Options = {}
        for name, text in self.options.items():
            if name not in convert:
                self._refuse_option(name, convert)
            try:
                values[name] = convert[name](text)
            except ValueError as error:
                refuse(f'has a bad option {name}=', str(error).removeprefix('write '), error)
        return values

    def _refuse_option(self, name: str, known: Collection[str]) -> NoReturn:
        if not known:
            refuse(f'has options, and {self.scheme}: takes none', 'it without ?...')
        near = nearest(name.lower(), known)
        hint = f'{near}= perhaps, or ' if near else ''
        names = ', '.join(f'{each}=' for each in known)
        refuse(f'has the unknown option {_shown(name)}=', f'{hint}{names}; & in a secret as %26')

    def refuse_credentials(self) -> None:
        """Refuse a user name and a password, which the scheme does not take."""
        if self.has_credentials:
            refuse(
                f'is {self.scheme}:, which takes no credentials',
                'it without mail.username and mail.password',
            )


def parse_url(url: str) -> MailURL:
    """Split a URL into its parts. Raises ConfigurationError."""
    if not url:
        refuse('is empty', f'one URL or more, such as {EXAMPLE_URL}')
    if url[0] in '"\'':
        refuse(
            'begins with a quotation mark', 'the URL without quotes; a Docker env file keeps them'
        )
    if _BLANK.search(url):
        refuse(
            'has a blank that does not separate two URLs',
            'a blank as %20, and a scheme before each host',
        )
    match = _URL.fullmatch(url)
    assert match is not None
    if match['fragment']:
        refuse('has a # in it', '# as %23')
    query = match['query'] or ''
    if '@' in query:
        # It may be the rest of a password with a question mark in it.
        refuse('has an @ after the ?', '@ as %40, and ? in a password as %3F')
    scheme = (match['scheme'] or '').lower()
    return MailURL(scheme, match['authority'], match['path'], _options(query))


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split('&')):
        name, _, value = item.partition('=')
        if name in options:
            refuse(f'has the option {_shown(name)}= twice', 'it once')
        if not value:
            shown = _shown(name)
            refuse(f'has the option {shown} without a value', f'{shown}=VALUE, or leave it out')
        options[name] = _decoded(value, f'the option {name}=')
    return options


def _shown(name: str) -> str:
    """Return the name of an option if it is nearly a known one.

    Anything else may be a piece of a secret that has an & in it: return ``***`` for it.
    """
    return name if nearest(name.lower(), _OPTION_NAMES, cutoff=0.9) else '***'


def _decoded(text: str, where: str) -> str:
    if _STRAY_PERCENT.search(text):
        refuse(f'has a stray % in {where}', '% as %25')
    try:
        return unquote(text, errors='strict')
    except UnicodeDecodeError:
        refuse(f'has {where} in an encoding other than UTF-8', 'it percent-encoded from UTF-8')


def _host_and_port(place: str, default: int, scheme: str) -> tuple[str, int]:
    match = _HOST_AND_PORT.fullmatch(place)
    if match is None:
        refuse('has a bad host', f'a name, or an IPv6 address in brackets: {EXAMPLE_URL}')
    port = default
    if match['port'] is not None:
        try:
            port = converters.port(match['port'])
        except ValueError:
            # The error is not chained: the port may be a piece of a password.
            port = 0
        if not port:
            refuse('has a bad port', 'a number from 1 to 65535 after the host')
    if match['literal'] is not None:
        return _ipv6_address(match['literal'], f'{scheme}://[2001:db8::25]:{default}'), port
    name = match['name']
    if not name:
        refuse('names no host', f'{scheme}://relay.example.org:{default}')
    try:
        name = ascii_domain(name)
    except UnicodeError:
        # The error is not chained: it quotes the host, which may be a piece of a password.
        name = ''
    if not name:
        refuse('has a host without a certain ASCII form (IDNA 2008)', 'it as xn--...')
    if not _HOST_NAME.fullmatch(name):
        refuse('has a bad host', f'a name of letters, digits, hyphens and dots: {EXAMPLE_URL}')
    return name, port


def _ipv6_address(text: str, example: str) -> str:
    """Return the address in brackets; behind it may stand a zone, ``%25eth0`` (RFC 6874).

    A bare ``%eth0`` is read as well, as people write it.
    """
    address, percent, zone = text.partition('%')
    zone = unquote(zone.removeprefix('25'))
    if percent and not _ZONE.fullmatch(zone):
        refuse('has a bad zone in the brackets', 'the name of an interface: [fe80::1%25eth0]')
    try:
        return f'{ipaddress.IPv6Address(address)}{percent}{zone}'
    except ValueError:
        refuse('has no IPv6 address in the brackets', example)


def refuse(problem: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    """Raise ConfigurationError about ``mail.url``.

    Neither text may quote the URL: after a mistake any part of it may belong to the password.
    """
    raise ConfigurationError(f'mail.url {problem}: write {remedy}') from cause
