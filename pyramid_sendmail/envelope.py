"""The values that the layers hand to each other: the envelope, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

__all__ = ['Envelope', 'Fate', 'Outcome', 'Priority', 'Reply', 'Report', 'Status', 'Verdict']

Priority = Literal['high', 'normal', 'low']

Status = Literal['delivered', 'deferred', 'failed', 'ambiguous']


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
class Fate:
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
