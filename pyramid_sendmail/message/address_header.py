"""Headers that hold addresses, as they leave."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from .address import ATOM, CACHED_LENGTH, Group, Mailbox, escape_quotes
from .encoded_words import LINE_WIDTH, encoded_words, needs_no_encoding
from .headers import fold

__all__ = ['address_line']


def address_line(name: str, entries: Iterable[Mailbox | Group]) -> bytes:
    """Return the header ``name`` with these addresses.

    Names are quoted or encoded where necessary. Addresses are never encoded: a local part that is
    not ASCII makes a line of UTF-8 (RFC 6532).
    """
    entries = tuple(entries)
    if len(entries) == 1:
        (entry,) = entries
        # A long name, and a group of any size, would stay in memory.
        if isinstance(entry, Mailbox) and len(entry.name) <= CACHED_LENGTH:
            return _cached_line(name, entries)
    return _address_line(name, entries)


def _address_line(name: str, entries: tuple[Mailbox | Group, ...]) -> bytes:
    tokens: list[str] = []
    for index, entry in enumerate(entries):
        words = _words_of(entry)
        if index < len(entries) - 1:
            words[-1] += ','
        whole = ' ' + ' '.join(words)
        # The first entry follows the header's name on its line.
        room = LINE_WIDTH - (0 if index else len(name) + 1)
        # Fold between two entries; within one only if it does not fit on a line.
        tokens.extend([whole] if len(whole) <= room else [f' {word}' for word in words])
    return fold(name, tokens)


# See _cached_parse in address.py for what this saves.
_cached_line = lru_cache(maxsize=256)(_address_line)


def _words_of(entry: Mailbox | Group) -> list[str]:
    """Return an entry as words that may each begin a line, with a blank between two of them."""
    if isinstance(entry, Mailbox):
        if not entry.name:
            return [entry.address]
        return [*_words_of_name(entry.name), f'<{entry.address}>']
    words = _words_of_name(entry.name)
    if len(words[-1]) < LINE_WIDTH - 1:
        words[-1] += ':'
    else:
        words.append(':')
    for index, member in enumerate(entry.members):
        words_of_member = _words_of(member)
        words_of_member[-1] += ',' if index < len(entry.members) - 1 else ''
        words.extend(words_of_member)
    words[-1] += ';'
    return words


def _words_of_name(name: str) -> list[str]:
    if _ATOMS.fullmatch(name) and needs_no_encoding(name):
        return name.split(' ')
    # Folding at two blanks could leave a line of blanks alone, so encode them.
    if needs_no_encoding(name) and '  ' not in name and max(map(len, name.split(' '))) < 900:
        return f'"{escape_quotes(name)}"'.split(' ')
    return encoded_words(name, LINE_WIDTH - 20)


_ATOMS = re.compile(rf'{ATOM}(?: {ATOM})*')
