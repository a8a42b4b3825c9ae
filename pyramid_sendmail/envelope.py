"""The values that the layers hand to each other: the envelope, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

__all__ = [
    'BLOCK',
    'Draft',
    'Envelope',
    'Outcome',
    'PendingEvent',
    'Priority',
    'Reply',
    'Report',
    'Status',
    'StoredEnvelope',
    'Text',
    'Verdict',
    'is_crlf',
]

BLOCK = 64 * 1024
"""Octets of a text that are held at a time, where it is taken in blocks."""

Priority = Literal['high', 'normal', 'low']

Status = Literal['delivered', 'deferred', 'failed', 'ambiguous']


_SHORT = 8 * 1024
"""Octets of a text that is counted rather than measured."""

_BARE_CR = re.compile(rb'\r(?!\n)')


def is_crlf(text: bytes) -> bool:
    """Whether all line ends of a text are CRLF."""
    if len(text) < _SHORT:
        return text.count(b'\r\n') == text.count(b'\n') == text.count(b'\r')
    # Taking an octet out is twice as fast as counting it, for lines of the common length.
    feeds = len(text) - len(text.replace(b'\n', b''))
    returns = len(text) - len(text.replace(b'\r', b''))
    if feeds != returns:
        return False
    # As many of each. Lines of one length, as encoded attachments have them, are seen at a glance.
    first = text.find(b'\n')
    width = text.find(b'\n', first + 1) - first
    if first > 0 and width > 1:
        ends, before = text[first::width], text[first - 1 : -1 : width]
        if len(ends) == ends.count(b'\n') == before.count(b'\r') == feeds:
            return True
    return _BARE_CR.search(text) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A mail as it leaves: who from, who to, the exact bytes, and what a queue needs to know.

    Everything is fixed by ``send``; a retry sends the same bytes under the same
    ``message_id``. Times are epoch seconds.
    """

    id: str
    """32 hexadecimal digits, random for each ``send``; the queue's own name for the mail."""
    message_id: str
    """The value of the ``Message-ID`` header, angle brackets included."""
    sender: str
    """The reverse-path (RFC 5321, 4.1.1.2): a bare address, or '' for the null sender."""
    recipients: tuple[str, ...]
    """The forward-paths: bare addresses, each once, in the order of RCPT."""
    raw: bytes = field(repr=False)
    """Headers and body with CRLF line ends, as the relay will receive them."""
    queued_at: float
    due: float = 0.0
    expires: float | None = None
    priority: Priority = 'normal'
    subject: str = field(default='', repr=False)
    tag: str | None = None
    metadata: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, hash=False
    )
    depth: int = 0
    """How many reports of trouble led to this mail: 1 for a mail that a subscriber of an error
    event sends."""

    @property
    def not_before(self) -> float:
        """The time that the user has asked for, or 0: ``due`` is then that of ``send``, by a clock
        that may have been wrong."""
        return self.due if self.due > self.queued_at else 0.0

    @property
    def size(self) -> int:
        """How many octets ``raw`` has."""
        return len(self.raw)

    @property
    def is_ascii(self) -> bool:
        return self.raw.isascii()

    @property
    def has_ascii_head(self) -> bool:
        """Whether the headers are ASCII."""
        raw = self.raw
        return raw.isascii() or raw.partition(b'\r\n\r\n')[0].isascii()

    @property
    def has_crlf(self) -> bool:
        """Whether all line ends are CRLF."""
        return is_crlf(self.raw)

    def blocks(self) -> Iterator[bytes]:
        """The octets of ``raw``, in blocks; one where they are few."""
        raw = self.raw
        for at in range(0, len(raw), BLOCK):
            yield raw[at : at + BLOCK]


_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True, kw_only=True)
class Draft:
    """An Envelope in the making: its fields, in its order, still to be changed.

    A frozen dataclass fills each of its fields by a call, which takes longer than all else about
    them, and there are thirteen.
    """

    id: str
    message_id: str
    sender: str = ''
    recipients: tuple[str, ...] = ()
    raw: bytes = b''
    queued_at: float
    due: float
    expires: float | None = None
    priority: Priority = 'normal'
    subject: str = ''
    tag: str | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    depth: int = 0

    def fixed(self) -> Envelope:
        """This very object, which from now on is an Envelope: classes with the same slots may take
        each other's place."""
        made: Any = self
        made.__class__ = Envelope
        envelope: Envelope = made
        return envelope


class Text(Protocol):
    """A text that stays where it is stored; what an Envelope tells of its own, this tells of it.
    ``read`` and ``blocks`` raise OSError where it is not to be had any more."""

    size: int
    is_ascii: bool
    has_ascii_head: bool
    has_crlf: bool

    def blocks(self) -> Iterator[bytes]: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEnvelope(Envelope):
    """An envelope whose text is too large to be held: ``raw`` reads it anew each time, and raises
    OSError once the claim that it came with is released."""

    text: Text = field(repr=False, compare=False)
    raw: bytes = field(init=False, repr=False, compare=False)

    def __getattr__(self, name: str) -> bytes:
        # Called for what has no value of its own.
        if name != 'raw':
            raise AttributeError(name)
        return self.text.read()

    @property
    def size(self) -> int:
        return self.text.size

    @property
    def is_ascii(self) -> bool:
        return self.text.is_ascii

    @property
    def has_ascii_head(self) -> bool:
        return self.text.has_ascii_head

    @property
    def has_crlf(self) -> bool:
        return self.text.has_crlf

    def blocks(self) -> Iterator[bytes]:
        return self.text.blocks()


@dataclass(frozen=True, slots=True)
class Reply:
    """A relay's answer: the three digits and the text, lines joined by a blank (RFC 5321, 4.2)."""

    code: int
    text: str

    def __str__(self) -> str:
        return f'{self.code} {self.text}'.rstrip()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attempt came to for one recipient.

    ``delivered``: the next hop is responsible now. ``deferred``: try again later.
    ``failed``: never again. ``ambiguous``: everything was sent and no answer came.
    """

    status: Status
    reply: Reply | None = None
    reason: str = ''

    def __str__(self) -> str:
        return self.reason or str(self.reply or self.status)


Outcome = Mapping[str, Verdict]
"""A verdict for every recipient of the envelope that was sent."""


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """Recipients of one mail that share an answer, to be told to subscribers in one event.

    ``id`` stays the same however often the event is reported.
    """

    id: str
    kind: Literal['sent', 'deferred', 'error']
    recipients: tuple[str, ...]
    attempt: int
    mailer: str
    reply: Reply | None = None
    reason: str = ''
    permanent: bool = True
    retry_at: float | None = None
    tries: int = 0
    """How often subscribers have failed to take it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What ``send_now`` returns: ``accepted`` recipients, and ``refused`` ones with the reply.

    ``reply`` is the relay's last word: to the whole message, or to the last refused recipient.
    """

    message_id: str
    accepted: tuple[str, ...]
    refused: Mapping[str, Reply | None]
    reply: Reply | None
