"""The common path: a new mail for one recipient, with nothing unusual about it.

Almost every mail is one: it is due, was never tried, and nothing about it waits to be reported. It
is claimed, delivered and removed by the straight code of this module, with 90,000 instructions less
than by the general code.

The straight code does what the general code does, with the same system calls in the same order. It
handles nothing else: ``read_common`` returns None for a file that is unusual or damaged, and a
CommonClaim to which something unusual happens makes the block of its mail, on which the general
code works from then on. tests/unit/queue/maildir/test_common_path.py compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple
from zlib import crc32

from ...envelope import Envelope, PendingEvent, TextTraits
from .claim import MaildirClaim
from .filename import NAME_LENGTH, match_name
from .files import QueueFiles
from .first_line import LINE, TRAITS, lengths_text, rest_sum
from .format import (
    END,
    SLOT_AT,
    STATE,
    STATE_AT,
    TO,
    EnvelopeBlock,
    recipient_line,
)
from .large_text import LARGE_FILE
from .options import CONTROL, OPTIONS, read_fixed
from .reply_slot import write_slot

__all__ = ['CommonClaim', 'CommonMail', 'is_due_and_untried', 'read_common']

_FIRST_LINES = re.compile(LINE.pattern + STATE + b'C ([0-9]{15}) 000000000000000' + END)
"""The lines before the slot; their length does not vary."""

_NO_REPLIES = write_slot((), 1)

_FIXED_AT = SLOT_AT + len(_NO_REPLIES)

_LAST_LINES = re.compile(
    b'(.*\r\n.*\r\n.*\r\n.*\r\n(?:X-Envelope-Padding:.*\r\n)*)' + TO + b'T00000T (.+)' + END
)
"""The lines after the slot: the four fixed ones, none of them folded, and a recipient."""


class CommonMail(NamedTuple):
    """A file that was read and verified. ``options``: those of OPTIONS."""

    recipient: str
    raw: bytes
    traits: TextTraits
    fixed: bytes
    id: str
    message_id: str
    sender: str
    options: dict[str, Any]
    since: float

    def envelope(self) -> Envelope:
        options = self.options
        return Envelope(
            id=self.id,
            message_id=self.message_id,
            sender=self.sender,
            recipients=(self.recipient,),
            raw=self.raw,
            queued_at=options['queued_at'],
            due=options['due'],
            expires=options['expires'],
            priority=options['priority'],
            subject=options['subject'],
            tag=options['tag'],
            metadata=options['metadata'],
            depth=options['depth'],
        ).know(self.traits)


def is_due_and_untried(name: str, now: float) -> bool:
    """Whether the name of a file in ``new/`` says so, and is exactly ours."""
    match = match_name(name)
    return (
        match is not None
        and match[3] == '0000'
        and int(match[2]) / 1000 <= now
        and len(name) == NAME_LENGTH
    )


def read_common(data: bytes) -> CommonMail | None:
    """Read and verify a file; return None if it is damaged, or not that of a common mail.

    ``data``: the file, or of a large one its first LARGE_FILE bytes.
    """
    first = _FIRST_LINES.match(data)
    last = _LAST_LINES.match(data, _FIXED_AT)
    if first is None or last is None or not data.startswith(_NO_REPLIES, SLOT_AT):
        return None
    start, message_sum, rest, text, since = first.groups()
    fixed, to = last.groups()
    size = last.end()
    raw = data[size:]
    if (
        not start.startswith(lengths_text(size, len(raw)))
        or len(data) >= LARGE_FILE
        or int(message_sum, 16) != crc32(raw)
        or int(rest, 16) != rest_sum(start, text, fixed, to)
    ):
        return None
    try:
        recipient = to.decode()
        id, message_id, sender, options = read_fixed(fixed)
    except (ValueError, KeyError, TypeError):
        return None
    traits = TRAITS.get(text)
    if traits is None or options.keys() != OPTIONS or CONTROL.search(recipient):
        return None
    return CommonMail(
        recipient, raw, traits, fixed, id, message_id, sender, options, int(since) / 1000
    )


class CommonClaim(MaildirClaim):
    """See IMailClaim. The claim of a common mail, and of one that was common when it was claimed.

    ``name``: that of its file, in ``new/``. The rest is as for MaildirClaim.
    """

    attempt = 0
    _folder = 'new'
    _text = None
    _letter = 'T'
    _is_common = True
    _envelope: Envelope | None = None

    def __init__(
        self,
        files: QueueFiles,
        descriptor: int,
        name: str,
        mail: CommonMail,
        *,
        now: float,
        sync_ambiguous: bool = False,
    ) -> None:
        # Not that of MaildirClaim, which reads the block.
        self._files = files
        self._descriptor = descriptor
        self._name = name
        self._mail = mail
        self._now = now
        self._sync_ambiguous = sync_ambiguous
        self._queued_at = mail.options['queued_at']
        self.since = min(mail.since, now)
        self.todo = (mail.recipient,)

    @property
    def envelope(self) -> Envelope:
        # Made when it is asked for: that takes 25,000 instructions.
        if self._envelope is None:
            self._envelope = self._mail.envelope()
        return self._envelope

    @property
    def pending_events(self) -> list[PendingEvent]:
        return [] if self._is_common else super().pending_events

    @cached_property
    def _block(self) -> EnvelopeBlock:  # type: ignore[override]  # it is writable
        """The block as the straight code left it. What asks for it is the general code, which
        changes it: there is no way back."""
        self._is_common = False
        return EnvelopeBlock(
            self.envelope,
            self._mail.fixed,
            state='C' if self._settled else 'S',
            since=self.since,
            letters=[self._letter],
            pointers=[0],
        )

    def begin(self) -> None:
        self._write(b'S', STATE_AT)
        self._before = 'C'

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        if not self._is_common or recipients != self.todo:
            super().mark_ambiguous(recipients)
            return
        mail = self._mail
        try:
            self._write(recipient_line('?', 0, mail.recipient), _FIXED_AT + len(mail.fixed))
            if self._sync_ambiguous:
                self._sync()
        except OSError as error:
            raise self._not_marked(error) from error
        self._letter = '?'

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        if (
            report
            or retry_at is not None
            or not self._is_common
            or [(event.kind, event.recipients) for event in events] != [('sent', self.todo)]
        ):
            super().settle(events, retry_at=retry_at, report=report)
            return
        self._settled, self._before, self._letter = True, '', 'D'
        self.attempt = 1
        self._save()

    def _destination(self) -> tuple[str, float]:
        return ('', 0.0) if self._is_common else super()._destination()
