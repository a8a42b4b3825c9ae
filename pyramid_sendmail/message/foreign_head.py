"""The head of a message of another library: its lines as they leave, and what they say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.message import Message as AnyMessage

from ..exceptions import MessageError
from .address import Mailbox, mailboxes
from .foreign import (
    ascii_line,
    header_entries,
    header_line,
    header_text,
    mended_line,
    mended_text,
)
from .headers import ADDRESS_HEADERS, check_name
from .verbatim import VerbatimWriter, signed_headers

__all__ = ['Head', 'read_head']


@dataclass(slots=True)
class Head:
    """The headers of a message but those of its content, which a signed message has among them."""

    lines: list[tuple[str, bytes]] = field(default_factory=list)
    """Name and line of each header that leaves."""
    texts: dict[str, str] = field(default_factory=dict)
    """Each header as a reader would see it, by its name in lower case."""
    addresses: dict[str, list[Mailbox]] = field(default_factory=dict)
    """The mailboxes of each address header that has some, by its name in lower case."""


def read_head(
    message: AnyMessage,
    *,
    lenient: bool = False,
    ascii_only: bool = False,
    verbatim: VerbatimWriter | None = None,
) -> Head:
    """Return the head of a message. Raises MessageError.

    ``lenient``: for a message that is sent on, with an envelope of its own. A header that cannot
    leave is mended or left out, and of several that may be there once, the first is taken.
    ``ascii_only``: no header of such a message makes a relay with SMTPUTF8 necessary.
    ``verbatim``: writes each header as it is.
    """
    head = Head()
    signed = signed_headers(message) or frozenset()
    mended = ascii_line if ascii_only else mended_line
    for name, value in message.raw_items():
        if lenient and not re.fullmatch('[!-9;-~]+', name):
            continue
        key = check_name(name, 'message').lower()
        if key.startswith('content-') and verbatim is None:
            # Those of the content are written with it.
            continue
        if key in _SINGLE_HEADERS and key in head.texts:
            if lenient:
                continue
            raise MessageError(f'{name}: the message has more than one (RFC 5322, 3.6)')
        says_something = _read(head, name, value, lenient)
        if verbatim is not None:
            if key in _DROPPED - {'mime-version'}:
                if key in signed:
                    raise MessageError(
                        f'{name}: it is covered by the DKIM signature, and never leaves; sign the '
                        'message without it'
                    )
            else:
                head.lines.append((name, verbatim.line(name, value)))
        elif says_something and key not in _DROPPED:
            line = mended(name, value) if lenient else header_line(name, value)
            if line:
                head.lines.append((name, line))
    return head


def _read(head: Head, name: str, value: object, lenient: bool) -> bool:
    """Add what a header says. Return False for one of addresses that does not leave: an empty
    one, and an empty group as a sender."""
    key = name.lower()
    try:
        head.texts[key] = header_text(name, value)
        if key in ADDRESS_HEADERS:
            empty = not head.texts[key].strip()
            found = [] if empty else mailboxes(header_entries(name, value))
            if found:
                head.addresses.setdefault(key, []).extend(found)
            return bool(found) or not (empty or key in ('from', 'sender'))
    except MessageError:
        if not lenient:
            raise
        head.texts[key] = mended_text(name, value)
    return True


_SINGLE_HEADERS = frozenset(
    {
        *('from', 'sender', 'reply-to', 'to', 'cc', 'subject', 'date', 'message-id'),
        *('in-reply-to', 'references', 'mime-version'),
    }
)

_DROPPED = frozenset({'bcc', 'resent-bcc', 'return-path', 'mime-version'})
"""Headers that do not leave: blind copies; Return-Path, which the last relay writes (RFC 5321,
4.4); MIME-Version, which is written anew."""
