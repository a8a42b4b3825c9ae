"""The values that the layers exchange: the envelope, and the outcome of sending it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self

__all__ = [
    'BLOCK_SIZE',
    'Envelope',
    'Outcome',
    'PendingEvent',
    'Priority',
    'ReadOnlyDict',
    'Reply',
    'Report',
    'Status',
    'StoredEnvelope',
    'Tally',
    'Text',
    'TextTraits',
    'Verdict',
    'is_crlf',
    'traits_of',
]

BLOCK_SIZE = 64 * 1024
"""Bytes of a large text that are in memory at a time."""

Priority = Literal['high', 'normal', 'low']

Status = Literal['delivered', 'deferred', 'failed', 'ambiguous']


def is_crlf(text: bytes) -> bool:
    """Return whether all line ends of a text are CRLF."""
    if len(text) < _SMALL_SIZE:
        return text.count(b'\r\n') == text.count(b'\n') == text.count(b'\r')
    # Removing a byte takes half as long as counting it, for lines of usual length.
    feeds = len(text) - len(text.replace(b'\n', b''))
    returns = len(text) - len(text.replace(b'\r', b''))
    if feeds != returns:
        return False
    # There are as many CR as LF. Lines of one length, as in base64, are checked by two slices: 1 MB
    # takes 0.5 ms instead of 2.0 ms.
    first = text.find(b'\n')
    width = text.find(b'\n', first + 1) - first
    if first > 0 and width > 1:
        ends, before = text[first::width], text[first - 1 : -1 : width]
        if len(ends) == ends.count(b'\n') == before.count(b'\r') == feeds:
            return True
    return _BARE_CR.search(text) is None


_SMALL_SIZE = 8 * 1024
"""Bytes of a text below which counting is fast enough."""

_BARE_CR = re.compile(rb'\r(?!\n)')


class TextTraits(NamedTuple):
    """What has to be known of a text before it is sent."""

    has_crlf: bool
    """All line ends are CRLF."""
    has_dots: bool
    """A line begins with a dot."""
    is_ascii: bool
    has_ascii_head: bool
    """The headers are ASCII."""


def traits_of(text: bytes) -> TextTraits:
    """Find out what a whole text is like."""
    is_ascii = text.isascii()
    return TextTraits(
        is_crlf(text),
        text.startswith(b'.') or b'\r\n.' in text,
        is_ascii,
        is_ascii or text.partition(b'\r\n\r\n')[0].isascii(),
    )


class ReadOnlyDict(dict[str, Any]):
    """A dict that refuses changes. It can be pickled and copied, as ``MappingProxyType`` cannot."""

    __slots__ = ()

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        raise TypeError('this dict cannot be changed; make another by dict()')

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[ReadOnlyDict], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


class _Traits:
    """Room for what is known of an envelope's text. It is no field: an envelope is the same with it
    and without it."""

    __slots__ = ('_traits',)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope(_Traits):
    """A mail as it leaves: sender, recipients, the exact bytes, and the options for a queue.

    ``send`` fixes all of it; a retry sends the same bytes under the same ``message_id``. Times
    are epoch seconds.
    """

    id: str
    """32 hexadecimal digits, random for each ``send``; names the mail in a queue."""
    message_id: str
    """The value of the ``Message-ID`` header, angle brackets included."""
    sender: str
    """The reverse-path (RFC 5321, 4.1.1.2): a bare address, or '' for the null sender."""
    recipients: tuple[str, ...]
    """The forward-paths: bare addresses, each once, in the order of RCPT."""
    raw: bytes = field(repr=False)
    """Headers and body with CRLF line ends, as the relay will receive them."""
    queued_at: float
    """When ``send`` was called."""
    due: float = 0.0
    """Not sent before this time."""
    expires: float | None = None
    """Not sent after this time."""
    priority: Priority = 'normal'
    subject: str = field(default='', repr=False)
    tag: str | None = None
    metadata: Mapping[str, str] = field(default_factory=ReadOnlyDict, repr=False, hash=False)
    depth: int = 0
    """How many events led to this mail: the units count failures (1 for a failure notice, which a
    subscriber of an error or deferred event sends; RFC 5321, 6.3), the tens mails that were sent.
    See events/loop_guard.py."""

    @property
    def not_before(self) -> float:
        """The option ``due`` of ``send``, or 0 without it: the field ``due`` is then the time of
        ``send``, by a clock that may have been wrong."""
        return self.due if self.due > self.queued_at else 0.0

    @property
    def size(self) -> int:
        """The length of ``raw`` in bytes."""
        return len(self.raw)

    def know(self, traits: TextTraits | None) -> Self:
        """Remember what ``raw`` is like, and return the envelope. A copy by ``replace``, which may
        have another text, does not know it."""
        object.__setattr__(self, '_traits', traits)
        return self

    @property
    def traits(self) -> TextTraits:
        """What ``raw`` is like; found out each time, if it is not known."""
        return getattr(self, '_traits', None) or traits_of(self.raw)

    @property
    def is_ascii(self) -> bool:
        """Whether ``raw`` is ASCII."""
        return self.traits.is_ascii

    @property
    def has_ascii_head(self) -> bool:
        """Whether the headers are ASCII."""
        return self.traits.has_ascii_head

    @property
    def has_crlf(self) -> bool:
        """Whether all line ends are CRLF."""
        return self.traits.has_crlf

    @property
    def has_dots(self) -> bool:
        """Whether a line begins with a dot."""
        return self.traits.has_dots

    def blocks(self) -> Iterator[bytes]:
        """Yield ``raw`` in blocks of at most BLOCK_SIZE bytes."""
        raw = self.raw
        for at in range(0, len(raw), BLOCK_SIZE):
            yield raw[at : at + BLOCK_SIZE]


class Text(Protocol):
    """The bytes of a large mail that stay in the queue's file.

    The members mean what those of Envelope mean. ``read`` and ``blocks`` raise OSError once the
    file is closed.
    """

    size: int
    traits: TextTraits

    def blocks(self) -> Iterator[bytes]: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEnvelope(Envelope):
    """An envelope whose bytes are too large to be kept in memory.

    ``raw`` reads them anew each time; it raises OSError once the claim on the mail is released.
    """

    text: Text = field(repr=False, compare=False)
    raw: bytes = field(init=False, repr=False, compare=False)

    def __getattr__(self, name: str) -> bytes:
        # Python calls this for attributes without a value: the slot of raw is never filled.
        if name != 'raw':
            raise AttributeError(name)
        return self.text.read()

    @property
    def size(self) -> int:
        return self.text.size

    @property
    def traits(self) -> TextTraits:
        return self.text.traits

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
    """The result of an attempt for one recipient.

    ``delivered``: the next hop is responsible now. ``deferred``: to be tried again later.
    ``failed``: final. ``ambiguous``: the whole mail was sent, and no reply came.
    """

    status: Status
    reply: Reply | None = None
    reason: str = ''

    def __str__(self) -> str:
        return self.reason or str(self.reply or self.status)


Outcome = Mapping[str, Verdict]
"""The result of an attempt: a verdict for each recipient of the envelope."""


class PendingEvent(NamedTuple):
    """An event that no subscriber has committed yet: recipients of one mail with the same result.

    The queue keeps it, so that it can be dispatched again, each time under the same ``id``.
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
    """How often a subscriber has failed."""


@dataclass(frozen=True, slots=True)
class Report:
    """What ``send_now`` returns: ``accepted`` recipients, and ``refused`` ones with their replies.

    ``reply`` is the relay's last reply: to the whole message, or to the last refused recipient.
    """

    message_id: str
    accepted: tuple[str, ...]
    refused: Mapping[str, Reply | None]
    reply: Reply | None


@dataclass(slots=True)
class Tally:
    """Counts of mails: ``delivered`` to every recipient, ``deferred`` for some, ``failed`` for
    some and deferred for none."""

    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.delivered + self.deferred + self.failed

    def add(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.delivered += other.delivered
        self.deferred += other.deferred
        self.failed += other.failed
        self.total += other.total

    def count(self, events: Iterable[PendingEvent]) -> None:
        """Add one mail, by the events of its attempt."""
        kinds = [event.kind for event in events]
        if 'deferred' in kinds:
            self.deferred += 1
        elif 'error' in kinds:
            self.failed += 1
        else:
            self.delivered += 1
        self.total += 1
