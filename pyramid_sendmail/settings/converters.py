"""Converters from the text of a setting to its value.

Each returns the value, or raises ValueError with a text that says what to write instead.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from pyramid.settings import falsey, truthy

__all__ = [
    'absolute_path',
    'boolean',
    'choice',
    'count',
    'delivery',
    'duration',
    'durations',
    'host',
    'hostname',
    'pause',
    'pause_or_off',
    'port',
    'processes',
    'rate',
    'secret_path',
    'size',
    'text',
]

LONGEST_DURATION = 3650 * 86400.0
"""Seconds. Longer than anyone needs, and short enough to add to any time without an overflow."""

_UNITS = {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}

_DOTTED_NAME = re.compile(r'\.{0,9}[^\W\d]\w*(?:[.:][^\W\d]\w*)*')

_AFFINITY = hasattr(os, 'sched_getaffinity')
"""Whether the system can limit a process to some of the cores. macOS cannot."""

_NUMBER = re.compile(r'[0-9]{1,5}')
"""A whole number. int() alone would also take ' 4', '+4', '1_0' and digits of other scripts."""

_SIZE = re.compile(r'([0-9]{1,15}) *([kmg]?)b?')

_FACTORS = {'': 1, 'k': 1024, 'm': 1024**2, 'g': 1024**3}

_DURATION = re.compile(r'([0-9]{1,9}(?:\.[0-9]{1,9})?) *([smhd])')

_RATE = re.compile(r'([0-9]{1,6}) */ *([smhd])')

_FILE_NAME = re.compile(r'[\w.-]+')

_LABEL = '(?!-)[A-Za-z0-9-]{1,63}(?<!-)'

_HOSTNAME = re.compile(rf'(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*')

_CHARACTER = r'[^\x00-/:-@\[-\^`{-\x7f]'
"""Of a host name in any script. mail.url has the exact check."""

_RELAY_HOST = re.compile(rf'{_CHARACTER}(?:(?:{_CHARACTER}|[.-])*{_CHARACTER})?\.?')


def text(value: str) -> str:
    """Return the text as it is."""
    return value


def boolean(value: str) -> bool:
    """Return the truth value of Pyramid's words for it, such as ``true``, ``no`` and ``off``."""
    if value.lower() in truthy:
        return True
    if value.lower() in falsey:
        return False
    raise ValueError('write true or false')


def choice(*words: str) -> Callable[[str], str]:
    """Return a converter that takes one of these words; ``false`` is taken for ``off``."""

    def convert(value: str) -> str:
        word = value.lower()
        if word in falsey and 'off' in words:
            word = 'off'
        if word in words:
            return word
        raise ValueError(f'write {", ".join(words[:-1])} or {words[-1]}')

    return convert


def delivery(value: str) -> str:
    """Return ``direct``, ``queue``, or a dotted name, which is resolved later."""
    if value.lower() in ('direct', 'queue'):
        return value.lower()
    if _DOTTED_NAME.fullmatch(value):
        return value
    raise ValueError('write direct, queue, or the dotted name of an IMailDelivery')


def count(value: str) -> int:
    """Return a whole number from 1 to 99999."""
    if _NUMBER.fullmatch(value) and int(value):
        return int(value)
    raise ValueError('write a number from 1 to 99999')


def processes(value: str) -> int:
    """Return a whole number from 1 to 999; for ``auto`` that of the cores that this process may
    use."""
    if value.lower() == 'auto':
        return len(os.sched_getaffinity(0)) if _AFFINITY else os.cpu_count() or 1
    if _NUMBER.fullmatch(value) and 0 < int(value) < 1000:
        return int(value)
    raise ValueError('write a number from 1 to 999, or auto')


def port(value: str) -> int:
    """Return a TCP port."""
    if _NUMBER.fullmatch(value) and 0 < int(value) < 65536:
        return int(value)
    raise ValueError('write a number from 1 to 65535')


def size(value: str) -> int:
    """Return the bytes of ``500K``, ``25M``, ``1G`` or a bare number."""
    match = _SIZE.fullmatch(value.lower())
    if match is None or not int(match[1]):
        raise ValueError('write a number of bytes, or 500K, 25M, 1G')
    return int(match[1]) * _FACTORS[match[2]]


def duration(value: str) -> float:
    """Return the seconds of ``90s``, ``5m``, ``2h`` or ``3d``."""
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError('write a number and a unit: 90s, 5m, 2h, 3d')
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > LONGEST_DURATION:
        raise ValueError('write at most 3650d')
    return seconds


def pause(value: str) -> float:
    """Return the seconds of a duration greater than zero."""
    seconds = duration(value)
    if not seconds:
        raise ValueError('write more than 0s')
    return seconds


def pause_or_off(value: str) -> float | None:
    """Return the seconds of a duration greater than zero, or None for ``off``."""
    if _is_off(value):
        return None
    try:
        return pause(value)
    except ValueError as error:
        raise ValueError(f'{error}; or off') from error


def durations(value: str) -> tuple[float, ...]:
    """Return the seconds of one or more pauses, separated by blanks or commas."""
    words = value.replace(',', ' ').split()
    if not words:
        raise ValueError('write one pause or more: 1m 5m 15m')
    return tuple(pause(word) for word in words)


def rate(value: str) -> tuple[int, int] | None:
    """Return ``(mails, seconds)`` of ``20/s``, ``600/m`` or ``2000/d``, or None for ``off``."""
    if _is_off(value):
        return None
    match = _RATE.fullmatch(value.lower())
    if match is None or not int(match[1]):
        raise ValueError('write a number of mails and a unit of time: 20/s, 600/m, 2000/d; or off')
    return int(match[1]), _UNITS[match[2]]


def _is_off(value: str) -> bool:
    """True for Pyramid's words for false, but not for a bare 0, which has no unit."""
    return value.lower() in falsey and value != '0'


def absolute_path(value: str) -> str:
    """Return the normalised absolute path."""
    if not value.isprintable():
        raise ValueError('write a path of printable characters')
    if os.path.isabs(value):
        return os.path.normpath(value)
    # Repeat only what is clearly a file name: a URL would show its password.
    name = os.path.basename(value)
    if not _FILE_NAME.fullmatch(name):
        name = 'mail'
    raise ValueError(
        f'write an absolute path, such as %(here)s/{name}: '
        f'the web process and psendmail-qp may run in different folders'
    )


def secret_path(value: str) -> str:
    """Return the normalised absolute path of a file with a secret in it.

    Another text is not repeated: it may be the secret itself.
    """
    if not os.path.isabs(value):
        raise ValueError(
            'write the absolute path of a file, such as %(here)s/mail-password; the password '
            'itself is mail.password'
        )
    return absolute_path(value)


def hostname(value: str) -> str:
    """Return our own name, for EHLO and for message ids (RFC 5321, 4.1.2 and 4.1.3)."""
    name = value.removesuffix('.')
    if name.startswith('[') and name.endswith(']'):
        return _address_literal(name[1:-1])
    if _HOSTNAME.fullmatch(name):
        return name
    raise ValueError('write a host name of letters, digits, hyphens and dots')


def base_url(value: str) -> str:
    """Return the URL of the application's root, without a slash at its end."""
    parts = _parts_of(value)
    if parts is None or not (parts.scheme in ('http', 'https') and parts.hostname):
        raise ValueError(
            "write the URL of the application's root, as people open it: https://shop.example.org"
        )
    if parts.query or parts.fragment or '@' in parts.netloc:
        raise ValueError('write scheme, host and path alone: https://shop.example.org/app')
    return value.rstrip('/')


def _parts_of(url: str) -> SplitResult | None:
    """Return the parts of a URL, or None if it is none."""
    if not url.isprintable() or ' ' in url or not url.isascii():
        return None
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError
    except ValueError:
        return None
    return parts


def _address_literal(literal: str) -> str:
    """Return the IP address in brackets, as EHLO has it."""
    try:
        if literal[:5].lower() == 'ipv6:' and '%' not in literal:
            return f'[IPv6:{ipaddress.IPv6Address(literal[5:])}]'
        return f'[{ipaddress.IPv4Address(literal)}]'
    except ValueError as error:
        raise ValueError('write [192.0.2.1] or [IPv6:2001:db8::1]') from error


def host(value: str) -> str:
    """Return the name or address of a relay, as a URL has it."""
    if '/' in value or '@' in value:
        raise ValueError('write the name of the host alone, or mail.url instead of mail.host')
    if value.count(':') == 1:
        raise ValueError('write the name of the host alone, and its port as mail.port')
    if ':' in value:
        try:
            address = ipaddress.IPv6Address(value.removeprefix('[').removesuffix(']'))
            # In a URL the % before a zone is written %25 (RFC 6874).
            return f'[{str(address).replace("%", "%25")}]'
        except ValueError as error:
            raise ValueError('write a host name, or an IPv6 address') from error
    if _RELAY_HOST.fullmatch(value):
        return value
    raise ValueError('write a host name of letters, digits, hyphens and dots')
