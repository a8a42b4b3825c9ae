"""Parameters of MIME headers: read from any text in linear time, and written so that readers find
them (RFC 2045, 5.1, and RFC 2231).

The standard library's reader takes minutes for a megabyte of quotes and semicolons, and its folding
never ends for a parameter name of 80 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

from ..exceptions import MessageError
from .encoded_words import LINE_WIDTH, needs_no_encoding
from .headers import LINE_LIMIT, check_text, excerpt, preserved_line, unfold

__all__ = ['content_line', 'parameter', 'set_parameter', 'split_parameters', 'with_parameters']

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+")

_PARAMETER = re.compile(r';[ \t]*([^ \t=;"]*)[ \t]*(?:=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)[^;]*)?')
"""A parameter, its name and its value. It always matches at a semicolon, and only the last quote of
a text can be without its end, so that reading a whole text takes linear time."""


def split_parameters(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the value of an unfolded header and its parameters, their names in lower case and
    their values as they are written, quotes included."""
    value, semicolon, _ = text.partition(';')
    found = []
    position = len(value) if semicolon else -1
    while position >= 0 and (match := _PARAMETER.match(text, position)):
        if match[1]:
            found.append((match[1].lower(), (match[2] or '').strip(' \t')))
        position = match.end() if match.end() < len(text) else -1
    return value.strip(' \t'), found


def parameter(text: str, key: str) -> str | None:
    """Return a parameter of an unfolded header without its quotes, or None if it has none.

    Sections and escapes (RFC 2231) are joined and decoded.
    """
    sections: list[tuple[str, str]] = []
    for name, value in split_parameters(text)[1]:
        if name == key:
            return _unquoted(value)
        if name.startswith(f'{key}*'):
            sections.append((name, _unquoted(value)))
    sections.sort(key=lambda each: int(_SECTION.findall(each[0])[0] or 0))
    found = ''
    for name, value in sections:
        found += unquote(value.split("'", 2)[-1]) if name.endswith('*') else value
    return found or None


def set_parameter(text: str, key: str, value: str) -> str:
    """Return an unfolded header with this parameter, which replaces those of the same name."""
    first, found = split_parameters(text)
    kept = [f'{name}={old}' for name, old in found if name.partition('*')[0] != key]
    return '; '.join([first, *kept, f'{key}="{value}"'])


def content_line(name: str, source: str) -> bytes:
    """Return a MIME header that another program has written: never folded inside quotes.

    What does not fit on a line, or is not ASCII, is written anew by :func:`with_parameters`.
    Raises MessageError.
    """
    text = unfold(source)
    value, found = split_parameters(text)
    fits = max(map(len, (value, *(each for _, each in found)))) < LINE_LIMIT - 100
    if name.lower() not in _WITH_PARAMETERS or (text.isascii() and fits):
        return preserved_line(name, source)
    if not value.isascii():
        return preserved_line(name, text)
    check_text(text, name)
    # The parts of a value that RFC 2231 has split are short, and stay as they are.
    simple = [(key, _unquoted(each)) for key, each in found if '*' not in key]
    extended = [f'{key}={each}' for key, each in found if '*' in key]
    written = with_parameters(name, value, simple)
    return preserved_line(name, ';\r\n '.join([written, *extended]))


def with_parameters(name: str, value: str, parameters: Iterable[tuple[str, str]]) -> str:
    """Return ``value`` and its parameters, folded, for the header ``name`` (RFC 2045, 5.1).

    Text that is not ASCII, and a long file name, is written by RFC 2231 in sections that fit on a
    line and hold whole characters.
    """
    pieces = [value]
    for key, text in parameters:
        check_text(text, f'{name}, {key}')
        if not _TOKEN.fullmatch(key):
            raise MessageError(f'{name}: {excerpt(key)} is not a parameter name (RFC 2045)')
        long = 64 if key in ('filename', 'name') else 900
        if needs_no_encoding(text) and '  ' not in text and len(text) <= long:
            escaped = text.replace('\\', '\\\\').replace('"', '\\"')
            pieces.append(f'{key}="{escaped}"')
        else:
            pieces.extend(_parameter_sections(key, text))
    line, *rest = [f'{piece};' for piece in pieces[:-1]] + pieces[-1:]
    lines = [line]
    for piece in rest:
        room = LINE_WIDTH - 1 if len(lines) > 1 else LINE_WIDTH - len(name) - 3
        if len(lines[-1]) + len(piece) <= room:
            lines[-1] += f' {piece}'
        else:
            lines.append(f' {piece}')
    return '\r\n'.join(lines)


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r'\\(.)', r'\1', value[1:-1])
    return value


def _parameter_sections(key: str, text: str) -> list[str]:
    """Return a parameter as RFC 2231 writes it: ``key*0*=...``, ``key*1*=...``."""
    # A long name leaves no room on a line of the usual width.
    room = max(LINE_WIDTH - len(key) - 8, 24)
    sections: list[str] = []
    pieces, size = ["utf-8''"], 7
    for character in text:
        # Letters, digits and _.-~ are never quoted.
        piece = quote(character, safe='!#$&+^`{|}')
        if size + len(piece) > room:
            sections.append(''.join(pieces))
            pieces, size = [], 0
        pieces.append(piece)
        size += len(piece)
    sections.append(''.join(pieces))
    if len(sections) == 1:
        return [f'{key}*={sections[0]}']
    return [f'{key}*{index}*={section}' for index, section in enumerate(sections)]


_SECTION = re.compile('(?<=[*])[0-9]{0,9}')

_WITH_PARAMETERS = frozenset({'content-type', 'content-disposition'})
