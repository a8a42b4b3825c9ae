"""The parts of a URL in ``mail.url``, and what is said about a mistake in one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from pyramid.exceptions import ConfigurationError

__all__ = ['EXAMPLE', 'MailURL', 'refuse', 'split']


_OPTIONS = (
    *('tls', 'ca_file', 'client_cert', 'client_key', 'timeout', 'pipelining'),
    *('window', 'max_recipients', 'notify', 'ret', 'token_file', 'token'),
)
"""What is an option of one mailer or another."""

EXAMPLE = 'smtp://relay.example.org:25'


class MailURL(NamedTuple):
    """A URL, taken apart; only the options are decoded. The methods raise ConfigurationError for
    what cannot be."""

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
        """The user name and the password, '' where there is none."""
        userinfo, _, _ = (self.authority or '').rpartition('@')
        user, _, secret = userinfo.partition(':')
        return _decoded(user, 'the user name'), _decoded(secret, 'the password')

    def place(self, default: int) -> tuple[str, int]:
        """The host and the port, or the default one; no path."""
        place = _place((self.authority or '').rpartition('@')[2], default, self.scheme)
        if self.path not in ('', '/'):
            # The text may be the rest of a password with a slash in it: it is not shown.
            refuse(
                'has a path behind the host',
                f'{self.scheme}://HOST:PORT, and / in a password as %2F',
            )
        return place

    def absolute_path(self, example: str) -> str:
        """The decoded path, of this host."""
        path = _decoded(self.path, 'the path')
        if self.authority not in (None, '', 'localhost') or not os.path.isabs(path):
            refuse(f'has a {self.scheme}: path that is not absolute', example)
        if '\0' in path:
            refuse('has a NUL character in the path', example)
        return path

    def known_options(self, converters: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """The value of each option; a converter raises ValueError saying what to write."""
        values = {}
        for name, text in self.options.items():
            if name not in converters:
                self._refuse_option(name, converters)
            try:
                values[name] = converters[name](text)
            except ValueError as error:
                refuse(f'has a bad option {name}=', str(error).removeprefix('write '), error)
        return values

    def _refuse_option(self, name: str, known: Collection[str]) -> NoReturn:
        if not known:
            refuse(f'has options, and {self.scheme}: takes none', 'it without ?...')
        import difflib

        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f'{near[0]}= perhaps, or ' if near else ''
        names = ', '.join(f'{each}=' for each in known)
        refuse(f'has the unknown option {_shown(name)}=', f'{hint}{names}; & in a secret as %26')

    def no_credentials(self) -> None:
        if self.has_credentials:
            refuse(
                f'is {self.scheme}:, which takes no credentials',
                'it without mail.username and mail.password',
            )


def split(url: str) -> MailURL:
    """Take a URL apart."""
    if not url:
        refuse('is empty', f'one URL or more, such as {EXAMPLE}')
    if not (url.isprintable() and ' ' not in url) and re.search(r'[\s\x00-\x1f\x7f]', url):
        refuse('has blanks in it that no URL follows', 'a blank as %20, and a scheme before a host')
    # RFC 3986, appendix B. The standard library's urlsplit drops tabs and line breaks, and quotes
    # the password in some of its errors.
    if '#' in url:
        refuse('has a # in it', '# as %23')
    hierarchy, _, query = url.partition('?')
    scheme, _, rest = hierarchy.partition(':')
    if '@' in query:
        # It may be the rest of a password with a question mark in it.
        refuse('has an @ behind the ?', '@ as %40, and ? in a password as %3F')
    if ':' not in hierarchy or not _is_scheme(scheme):
        scheme, rest = '', hierarchy
    authority, path = None, rest
    if rest.startswith('//'):
        authority, slash, path = rest[2:].partition('/')
        path = slash + path
    return MailURL(scheme.lower(), authority, path, _options(query))


def _is_scheme(text: str) -> bool:
    letters = text.translate(dict.fromkeys(map(ord, '+.-')))
    return text.isascii() and text[:1].isalpha() and letters.isalnum()


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
    """The name of an option, or of what is nearly one: else it may be a piece of a secret that has
    an & in it."""
    import difflib

    near = difflib.get_close_matches(name.lower(), _OPTIONS, n=1, cutoff=0.9)
    return name if near else '***'


def _decoded(text: str, where: str) -> str:
    if '%' in text and re.search('%(?![0-9A-Fa-f]{2})', text):
        refuse(f'has a stray % in {where}', '% as %25')
    try:
        return unquote(text, errors='strict')
    except UnicodeDecodeError:
        refuse(f'has {where} in an encoding other than UTF-8', 'it percent-encoded from UTF-8')


def _place(place: str, default: int, scheme: str) -> tuple[str, int]:
    is_literal = place.startswith('[')
    if is_literal:
        host, bracket, rest = place[1:].partition(']')
        is_bad = not bracket or rest[:1] not in ('', ':')
    else:
        host, colon, rest = place.partition(':')
        rest = colon + rest
        is_bad = '[' in host or ']' in host
    if is_bad:
        refuse('has a bad host', f'a name, or an IPv6 address in brackets: {EXAMPLE}')
    port = default
    if rest:
        text = rest[1:]
        # int() alone would take ' 25', '+25' and '2_5'.
        port = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
        if not 0 < port < 65536:
            refuse('has a bad port', 'a number from 1 to 65535 behind the host')
    if is_literal:
        import ipaddress

        try:
            return str(ipaddress.IPv6Address(host)), port
        except ValueError:
            refuse('has no IPv6 address in the brackets', f'{scheme}://[2001:db8::25]:{default}')
    if not host:
        refuse('names no host', f'{scheme}://relay.example.org:{default}')
    try:
        host = host if _is_ascii_name(host) else host.encode('idna').decode('ascii')
    except UnicodeError:
        host = ''
    if not _is_host(host):
        refuse('has a bad host', f'a name of letters, digits, hyphens and dots: {EXAMPLE}')
    return host, port


def _is_host(host: str) -> bool:
    name = host.removesuffix('.')
    letters = name.translate(dict.fromkeys(map(ord, '._-')))
    return (
        name.isascii()
        and (letters.isalnum() or not letters)
        and name[:1] not in ('', '.', '-')
        and name[-1] not in '.-'
    )


def _is_ascii_name(host: str) -> bool:
    """Whether the codec would leave a name as it is. Its tables are not loaded for most."""
    *labels, last = host.split('.')
    return host.isascii() and all(0 < len(label) < 64 for label in labels) and len(last) < 64


def refuse(problem: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    """Never with the text of the URL: a mistake may leave any part of it in the password."""
    raise ConfigurationError(f'mail.url {problem}: write {remedy}') from cause
