"""The fixed lines of an envelope block: id, Message-ID, sender, and the options as JSON.

A release that gives a mail an option that others must know writes it among the options. A process
of an older release leaves such a mail where it is, for those of the new one: see NewerFormat.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ...envelope import Envelope, ReadOnlyDict
from ..history import printable
from ..ticket import PRIORITY_DIGITS

__all__ = [
    'CONTROL',
    'OPTIONS',
    'RESERVED',
    'VERSION',
    'NewerFormat',
    'Unreadable',
    'fixed_part',
    'read_fixed',
    'require_version',
]

VERSION = b'2'
"""Of the files that this release writes. It reads version 1, too: see first_line."""

OPTIONS = frozenset(
    ('queued_at', 'due', 'expires', 'priority', 'subject', 'tag', 'metadata', 'depth')
)
"""What this release writes and reads."""

RESERVED = frozenset(('key', 'replaces', 'mailer', 'trace'))
"""Names of options that later releases will write."""

_CONTROLS = '\x00-\x1f\x7f-\x9f\u2028\u2029'

CONTROL = re.compile(f'[{_CONTROLS}]')
"""What ends a line or moves a terminal's cursor: no address and no id of ours has one, and in the
log it could pretend to be another line."""

_TEXT = f'[^{_CONTROLS}]*'
_FIXED = re.compile(
    'X-Envelope-Id: ([0-9a-f]{32})\r\n'
    f'X-Envelope-Message-Id: ({_TEXT})\r\n'
    f'X-Envelope-From: ({_TEXT})\r\n'
    'X-Envelope-Options: ((?s:.*?))\r\n'
    '(?:X-Envelope-Padding: *\r\n)*'
)
_NEWER = re.compile(rb'X-Envelope: ([0-9]{1,4}) ')
_LATEST = 1e12
"""Epoch seconds that no clock and no user has meant."""

_read_json = json.JSONDecoder().raw_decode


class Unreadable(ValueError):
    """The bytes are not a whole and undamaged mail of ours; the text says why, and is printable."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class NewerFormat(Unreadable):
    """The mail was written by a newer release, whose processes know what to do with it."""


def require_version(data: bytes) -> None:
    """Raise NewerFormat if the first bytes of a file are those of a newer version than ours."""
    found = _NEWER.match(data)
    if found is not None and int(found[1]) > int(VERSION):
        raise NewerFormat(f'its format, version {int(found[1])}, is unknown to this release')


def fixed_part(envelope: Envelope) -> bytes:
    """Return the lines."""
    return (
        f'X-Envelope-Id: {envelope.id}\r\n'
        f'X-Envelope-Message-Id: {envelope.message_id}\r\n'
        f'X-Envelope-From: {envelope.sender}\r\n'
        f'X-Envelope-Options: {_folded(_options(envelope))}\r\n'
    ).encode()


def _options(envelope: Envelope) -> str:
    """Return the options as JSON, built by hand: ``json.dumps`` would take as long as the rest of
    the block."""
    tag, metadata, expires = envelope.tag, envelope.metadata, envelope.expires
    queued_at = due = repr(envelope.queued_at)
    if envelope.due != envelope.queued_at:
        due = repr(envelope.due)
    return (
        f'{{"queued_at": {queued_at}, "due": {due}, '
        f'"expires": {"null" if expires is None else repr(expires)}, '
        f'"priority": {_json(envelope.priority)}, '
        f'"subject": {_json(envelope.subject)}, "tag": {"null" if tag is None else _json(tag)}, '
        f'"metadata": {json.dumps(dict(metadata)) if metadata else "{}"}, '
        f'"depth": {envelope.depth}}}'
    )


_json = json.encoder.encode_basestring_ascii


def _folded(text: str) -> str:
    """Fold at blanks, so that any mail program accepts the line (RFC 5322, 2.1.1)."""
    return text if len(text) <= 800 else re.sub(r'(.{800,}?) (?=[^ ])', '\\1\r\n ', text)


def read_fixed(fixed: bytes) -> tuple[str, str, str, dict[str, Any]]:
    """Return what the lines say: id, message_id, sender and the options. Raises Unreadable, and
    ValueError, KeyError or TypeError."""
    lines = _FIXED.fullmatch(fixed.decode())
    if lines is None:
        raise Unreadable('its envelope is damaged')
    id, message_id, sender, json_text = lines.groups()
    # JSON has no line breaks: the folding put them there, in front of a blank.
    json_text = json_text.replace('\r\n', '')
    options, end = _read_json(json_text)
    if end != len(json_text):
        raise Unreadable('its envelope is damaged')
    if options.keys() != OPTIONS and not options.keys() <= OPTIONS:
        unknown = ', '.join(sorted(options.keys() - OPTIONS))
        raise NewerFormat(f'this release does not know its option {unknown}')
    _check(options)
    options['metadata'] = ReadOnlyDict(options['metadata'])
    return id, message_id, sender, options


def _check(options: dict[str, Any]) -> None:
    """Raise Unreadable, KeyError or TypeError for options of a wrong type."""
    queued_at, due, expires = options['queued_at'], options['due'], options['expires']
    # No comparison holds for NaN, and infinity is too late.
    if not (
        -_LATEST < queued_at < _LATEST
        and -_LATEST < due < _LATEST
        and (expires is None or -_LATEST < expires < _LATEST)
        and options['priority'] in PRIORITY_DIGITS
    ):
        raise Unreadable('its options are damaged')
