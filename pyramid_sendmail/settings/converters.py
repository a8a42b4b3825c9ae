"""What the text of a setting may be: each function returns its value, or raises ValueError saying
what to write instead."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

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
    'port',
    'rate',
    'size',
    'text',
]

LONGEST = 3650 * 86400.0
"""Seconds; far beyond any use, and not yet where arithmetic ends."""

_UNITS = {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}


def text(value: str) -> str:
    return value


def boolean(value: str) -> bool:
    if value.lower() in truthy:
        return True
    if value.lower() in falsey:
        return False
    raise ValueError('write true or false')


def choice(*words: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        word = value.lower()
        if word in falsey and 'off' in words:
            word = 'off'
        if word in words:
            return word
        raise ValueError(f'write {" or ".join(words)}')

    return convert


def delivery(value: str) -> str:
    """``direct`` or ``queue``, or a dotted name, which is looked up later."""
    if value.lower() in ('direct', 'queue'):
        return value.lower()
    if re.fullmatch(r'\.{0,9}[^\W\d]\w*(?:[.:][^\W\d]\w*)*', value):
        return value
    raise ValueError('write direct, queue, or the dotted name of an IMailDelivery')


def count(value: str) -> int:
    # int() alone would take ' 4', '+4' and '1_0'.
    if _digits(value, 5) and int(value):
        return int(value)
    raise ValueError('write a number from 1 to 99999')


def port(value: str) -> int:
    if _digits(value, 5) and 0 < int(value) < 65536:
        return int(value)
    raise ValueError('write a number from 1 to 65535')


def size(value: str) -> int:
    """Octets of ``500K``, ``25M``, ``1G`` or a bare number."""
    number = value.lower().removesuffix('b')
    power = 'kmg'.find(number[-1:]) + 1 if number else 0
    number = (number[:-1] if power else number).rstrip(' ')
    if not _digits(number, 15) or not int(number):
        raise ValueError('write a number of octets, or 500K, 25M, 1G')
    factor: int = 1024**power
    return int(number) * factor


def duration(value: str) -> float:
    """Seconds of ``90s``, ``5m``, ``2h`` or ``3d``."""
    text = value.strip()
    number, unit = text[:-1].rstrip(' '), text[-1:]
    whole, point, part = number.partition('.')
    if unit not in _UNITS or not _digits(whole, 9) or (point and not _digits(part, 9)):
        raise ValueError('write a number and a unit: 90s, 5m, 2h, 3d')
    seconds = float(number) * _UNITS[unit]
    if seconds > LONGEST:
        raise ValueError('write at most 3650d')
    return seconds


def pause(value: str) -> float:
    """A duration that is not nothing."""
    seconds = duration(value)
    if not seconds:
        raise ValueError('write more than 0s')
    return seconds


def durations(value: str) -> tuple[float, ...]:
    """One or more pauses, separated by blanks or commas."""
    words = value.replace(',', ' ').split()
    if not words:
        raise ValueError('write one pause or more: 1m 5m 15m')
    return tuple(pause(word) for word in words)


def rate(value: str) -> tuple[int, int] | None:
    """``(mails, seconds)`` of ``20/s``, ``600/m`` or ``2000/d``; None of ``off``."""
    if value.lower() in falsey and value != '0':
        return None
    match = re.fullmatch(r'([0-9]{1,6}) */ *([smhd])', value.lower())
    if match is None or not int(match[1]):
        raise ValueError('write a number of mails and a unit of time: 20/s, 600/m, 2000/d; or off')
    return int(match[1]), _UNITS[match[2]]


def absolute_path(value: str) -> str:
    if not value.isprintable():
        raise ValueError('write a path of printable characters')
    if os.path.isabs(value):
        return os.path.normpath(value)
    # Only what is plainly a file's name is worth repeating; a URL would show its password.
    name = os.path.basename(value)
    if not re.fullmatch(r'[\w.-]+', name):
        name = 'mail'
    raise ValueError(
        f'write an absolute path, such as %(here)s/{name}: '
        f'the web process and psendmail-qp may stand in different folders'
    )


def hostname(value: str) -> str:
    """A name for EHLO and for the right side of message ids (RFC 5321, 4.1.2 and 4.1.3)."""
    name = value.removesuffix('.')
    if name.startswith('[') and name.endswith(']'):
        import ipaddress

        literal = name[1:-1]
        version_6 = literal[:5].lower() == 'ipv6:'
        try:
            if version_6:
                return f'[IPv6:{ipaddress.IPv6Address(literal[5:])}]'
            return f'[{ipaddress.IPv4Address(literal)}]'
        except ValueError as error:
            raise ValueError('write [192.0.2.1] or [IPv6:2001:db8::1]') from error
    if len(name) <= 253 and all(map(_is_label, name.split('.'))):
        return name
    raise ValueError('write a host name of letters, digits, hyphens and dots')


def host(value: str) -> str:
    """The name or address of a relay, as it stands in a URL."""
    if '/' in value or '@' in value:
        raise ValueError('write the name of the host alone, or mail.url in place of mail.host')
    if value.count(':') == 1:
        raise ValueError('write the name of the host alone, and its port as mail.port')
    if ':' in value:
        import ipaddress

        try:
            return f'[{ipaddress.IPv6Address(value.removeprefix("[").removesuffix("]"))}]'
        except ValueError as error:
            raise ValueError('write a host name, or an IPv6 address') from error
    if re.fullmatch(r'\w(?:[\w.-]*\w)?\.?', value):
        return value
    raise ValueError('write a host name of letters, digits, hyphens and dots')


# Without regular expressions: what nobody has set is converted as well, at each start, and Python
# compiles a pattern for longer than all of that takes.


def _digits(text: str, most: int) -> bool:
    """Whether a text is a number of ASCII digits, at most so many."""
    return text.isascii() and text.isdigit() and len(text) <= most


def _is_label(text: str) -> bool:
    """Whether a text can stand between the dots of a host name."""
    return (
        len(text) <= 63
        and text.isascii()
        and text.replace('-', '').isalnum()
        and not text.startswith('-')
        and not text.endswith('-')
    )
