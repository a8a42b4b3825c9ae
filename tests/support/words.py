"""Words that nothing in this project uses, and what to write instead.

``found_in(text)`` is for prose; ``found_in_python(source)`` reads the docstrings, comments, strings
and names of a module.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ['NAMES', 'WORDS', 'Found', 'found_in', 'found_in_python']

WORDS: dict[str, str] = {
    # Persons, where a thread, a process or a function is meant.
    r'whoever|whomever': 'the thing itself: "a thread that ...", "the caller"',
    # Not the account 'nobody', nor an address that begins with it.
    r"nobody(?![\w.]*@)(?!(?<=['\"<]nobody)['\">])": (
        'none, nothing, or the thing itself: "no process"'
    ),
    r'(?:some|any)body': 'the thing itself: "another process", "a subscriber"',
    r'he|him|his|himself': 'the thing itself, or it',
    r'(?:the|an) askers?|askers?': 'the caller, the calling worker',
    # The private words of the first version.
    r'roads?': 'relay, relay connection, or the relay that is used',
    r'crews?': 'worker pool',
    r'gates?': 'circuit breaker',
    r'fates?': 'pending event',
    r'harvests?': 'single-pass scan',
    r'seal(?:s|ed|ing)?|unseal(?:s|ed)?': 'mark ambiguous (before the final dot)',
    r'told|untold': 'delivered, dispatched, logged, or shown',
    r'heard|unheard|hears?': 'was notified, received, dispatched',
    r'not to be had': 'not available, or: the claim failed',
    r'(?:what|which|nothing) (?:comes?|came) of it': 'the outcome, the result',
    r'(?:puts?|putting) aside': 'move to failed/',
    r'postpon(?:e|es|ed|ing)': 'retry later, events to retry',
    r'settles? with': 'ends with, or records the outcome',
    r'says? good-?bye': 'send QUIT',
    r'octets?(?!-)': 'bytes (octets only where an RFC is quoted, which is then named)',
    r'(?:full|idle|last|next|further|another|each) looks?': 'scan',
}
"""A regular expression of whole words, whatever the case, and the remedy."""

NAMES: dict[str, str] = {
    'asker': 'caller',
    'crew': 'pool',
    'fate': 'pending_event, event',
    'fates': 'pending_events, events',
    'gate': 'breaker',
    'harvest': 'scan',
    'heard': 'notified',
    'nobody': 'none',
    'postpone': 'retry_events',
    'postponed': 'to_retry',
    'road': 'connection',
    'roads': 'connections',
    'seal': 'mark_ambiguous',
    'sealed': 'ambiguous',
    'sealing': 'before_final_dot',
    'telling': 'pending',
    'told': 'delivered, dispatched',
    'unheard': 'first_time',
    'unseal': 'before_final_dot',
    'unsealed': 'not_ambiguous',
    'untold': 'rejected',
}
"""Parts of names, between underscores or capitals."""

_WORDS = {
    re.compile(r'\b(?:' + pattern.replace(' ', r'\s+(?:#:?\s+)?') + r')\b', re.IGNORECASE): remedy
    for pattern, remedy in WORDS.items()
}
_RFC = re.compile(r'\bRFC\b')
_PART = re.compile(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])')


class Found(NamedTuple):
    """A word, the line that it stands in, counted from 1, and what to write instead."""

    line: int
    word: str
    remedy: str

    def __str__(self) -> str:
        return f'{self.line}: "{self.word}": write {self.remedy}'


def found_in(text: str, first_line: int = 1) -> Iterator[Found]:
    """What stands in a text, in the order of the list."""
    for pattern, remedy in _WORDS.items():
        for match in pattern.finditer(text):
            if match[0].lower().startswith('octet') and _RFC.search(_paragraph(text, match)):
                continue
            line = first_line + text.count('\n', 0, match.start())
            yield Found(line, ' '.join(match[0].split()), remedy)


def _paragraph(text: str, match: re.Match[str]) -> str:
    start = text.rfind('\n\n', 0, match.start()) + 1
    end = text.find('\n\n', match.end())
    return text[start : end if end >= 0 else None]


def found_in_python(source: str) -> list[Found]:
    """What stands in a module, in the order of its lines."""
    found: list[Found] = []
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            # Comments of successive lines are one text.
            if comments and comments[-1][0] + comments[-1][1].count('\n') + 1 == token.start[0]:
                comments[-1] = (comments[-1][0], f'{comments[-1][1]}\n{token.string}')
            else:
                comments.append((token.start[0], token.string))
        elif token.type == tokenize.NAME:
            found += [
                Found(token.start[0], token.string, NAMES[part.lower()])
                for part in _PART.findall(token.string)
                if part.lower() in NAMES
            ]
        elif tokenize.tok_name[token.type] in ('STRING', 'FSTRING_MIDDLE'):
            found += found_in(token.string, token.start[0])
    for line, text in comments:
        found += found_in(text, line)
    return sorted(found)
