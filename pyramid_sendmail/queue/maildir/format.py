"""The file of a queued mail: an envelope block of ``X-Envelope`` header lines, then the message.

The file is a plain ``.eml``. Its first line has the format's version, the lengths of block and
message, and checksums over everything except what changes in place (see first_line):

=====================  ==========================================================================
state line             the mail's letter; when its retry policy began to count; when it is due
                       again (both in milliseconds since the epoch)
slot                   replies, mailers and reasons of pending events, as JSON: 976 bytes for each
                       eight recipients
mark of a recipient    its letter, the number of its reply in the slot, and its letter again
=====================  ==========================================================================

Letters of a mail: ``W`` being written, ``V`` voted, ``C`` committed: finish has begun, or the
mail waits, ``S`` an attempt has started. Letters of a recipient: ``T`` to be tried, ``?`` sent and
waiting for the relay's final reply, ``d`` and ``f`` delivered and failed with an event pending,
``D`` and ``F`` the same without one. They stand twice because a single flipped bit turns ``T``
into ``D``, which would lose the mail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from ...envelope import Envelope, PendingEvent, StoredEnvelope, TextTraits
from ..ticket import milliseconds
from .first_line import (
    FIRST_LENGTH,
    LargeText,
    check_length,
    first_line,
    lengths_of,
    verify,
)
from .options import CONTROL, Unreadable, fixed_part, read_fixed
from .reply_slot import ReplyEntry, lost_reply, read_slot, slot_length, write_slot

__all__ = [
    'END',
    'LETTERS',
    'SLOT_AT',
    'STATE',
    'STATE_AT',
    'TO',
    'EnvelopeBlock',
    'Unreadable',
    'decode',
    'encode',
    'new_block',
    'recipient_line',
]

LETTERS = {'sent': 'd', 'error': 'f', 'deferred': 'T'}

STATE = b'X-Envelope-State: '
TO = b'X-Envelope-To: '
END = b'\r\n'

STATE_AT = FIRST_LENGTH + len(STATE)
_STATE_END = STATE_AT + 1 + 1 + 15 + 1 + 15
SLOT_AT = _STATE_END + len(END)

_LAST_POINTER = 10**5 - 1
"""Replies beyond this one share it."""

_MARKS = re.compile(r'X-Envelope-To: ([T?dfDF])([0-9]{5})\1 (.+)\r\n')
_MARK_LENGTH = len('X-Envelope-To: T00000T \r\n')


@dataclass(slots=True)
class EnvelopeBlock:
    """The envelope block in memory: the fixed part, and the part that changes in place."""

    envelope: Envelope
    fixed: bytes
    """The lines after the slot and before the recipients."""
    state: str = 'W'
    since: float = 0.0
    retry_at: float = 0.0
    letters: list[str] = field(default_factory=list)
    entries: list[ReplyEntry] = field(default_factory=list)
    pointers: list[int] = field(default_factory=list)
    numbers: dict[str, int] | None = None
    """Where each recipient stands, once that was asked for."""
    ends: list[int] | None = None
    """Where the line of each recipient begins, counted from the first, once that was asked for."""

    @property
    def recipients_at(self) -> int:
        """Where the recipients' lines begin in the file."""
        return SLOT_AT + slot_length(len(self.letters)) + len(self.fixed)

    def recipient_lines(self) -> bytes:
        """Return the bytes at ``recipients_at``."""
        return b''.join(map(recipient_line, self.letters, self.pointers, self.envelope.recipients))

    def mutable_part(self) -> bytes:
        """Return everything from STATE_AT to the end of the block: one write records an outcome."""
        state = _state_line(self.state, self.since, self.retry_at)
        slot = write_slot(self.entries, len(self.letters))
        return b''.join((state, slot, self.fixed, self.recipient_lines()))

    def settle(self, events: Sequence[PendingEvent], *, report: bool = True) -> None:
        """Replace what these recipients had by the outcome of an attempt.

        ``report``: whether the events are dispatched to subscribers; without it they are finished.
        """
        if self.entries:
            for event in events:
                self.mark(event.recipients, 'T')
            self._drop_entries()
        for event in events:
            if report or event.kind != 'sent':
                self._add(event)
            else:
                # No event needs the reply.
                self.mark(event.recipients, 'D')
        if not report and ('d' in self.letters or 'f' in self.letters):
            self.letters = [letter.upper() if letter in 'df' else letter for letter in self.letters]

    def mark(self, recipients: Iterable[str], letter: str) -> None:
        """Set the letter of these recipients."""
        if recipients == self.envelope.recipients:
            self.letters = [letter] * len(self.letters)
            return
        for n in self._places(recipients):
            self.letters[n] = letter

    def _places(self, recipients: Iterable[str]) -> list[int]:
        """Return where recipients stand in the envelope. Takes time for these alone: a mail for
        20,000 with as many replies settles 20,000 times."""
        if self.numbers is None:
            self.numbers = {to: n for n, to in enumerate(self.envelope.recipients)}
        return [self.numbers[to] for to in recipients if to in self.numbers]

    def lines_of(self, recipients: Iterable[str]) -> tuple[bytes, int]:
        """Return the lines of recipients, with those between them, and where they stand in the
        file. A mail for 40,000 in transactions of 100 would write all lines 400 times."""
        changed = self._places(recipients)
        if not changed:
            return b'', self.recipients_at
        first, last = min(changed), max(changed)
        if self.ends is None:
            # A line has the same length whatever its letter.
            lines = map(recipient_line, self.letters, self.pointers, self.envelope.recipients)
            self.ends = [0, *accumulate(map(len, lines))]
        part = slice(first, last + 1)
        lines = map(
            recipient_line,
            self.letters[part],
            self.pointers[part],
            self.envelope.recipients[part],
        )
        return b''.join(lines), self.recipients_at + self.ends[first]

    def _add(self, event: PendingEvent) -> None:
        """Set the letter of the event's recipients, and add an entry for its reply."""
        chosen = self._places(event.recipients)
        for n in chosen:
            self.letters[n] = LETTERS[event.kind]
            self.pointers[n] = min(len(self.entries), _LAST_POINTER)
        if len(self.entries) > _LAST_POINTER:
            # A pointer has five digits.
            self.entries[_LAST_POINTER] = lost_reply(_LAST_POINTER)
        elif chosen:
            same = event.reply is not None and event.reason == str(event.reply)
            self.entries.append(
                ReplyEntry(
                    event.attempt,
                    int(event.id.rpartition('-')[2]),
                    event.mailer,
                    event.reply,
                    None if same else event.reason,
                    event.permanent,
                    event.tries,
                    _period(event.id),
                )
            )

    def _drop_entries(self) -> None:
        """Drop the replies that no finished recipient needs, before those of a new attempt."""
        if not self.entries:
            return
        marks = zip(self.pointers, self.letters, strict=True)
        kept = sorted({pointer for pointer, letter in marks if letter in 'dfF'})
        places = {old: new for new, old in enumerate(kept)}
        self.entries = [self.entries[pointer] for pointer in kept]
        self.pointers = [places.get(pointer, 0) for pointer in self.pointers]

    def start_over(self, now: float) -> None:
        """Have the recipients that failed tried again, as if the mail had been queued now."""
        self.letters = ['T' if letter in 'fF?' else letter for letter in self.letters]
        self._drop_entries()
        self.state, self.since, self.retry_at = 'C', now, 0.0

    def retry_events(self, events: Iterable[PendingEvent]) -> None:
        """Count one more failure of subscribers to handle these events."""
        tries = {
            (event.attempt, _period(event.id), int(event.id.rpartition('-')[2])): event.tries
            for event in events
        }
        for entry in self.entries:
            key = (entry.attempt, entry.period, entry.group)
            if key in tries:
                entry.tries = tries[key] + 1

    def pending_events(self) -> list[PendingEvent]:
        """Return the events that subscribers have not handled yet, in the order of the replies."""
        if 'd' not in self.letters and 'f' not in self.letters:
            return []
        groups: dict[tuple[int, str], list[str]] = {}
        for to, letter, pointer in zip(
            self.envelope.recipients, self.letters, self.pointers, strict=True
        ):
            if letter in 'df':
                groups.setdefault((pointer, letter), []).append(to)
        events = []
        for (pointer, letter), recipients in sorted(groups.items()):
            entry = self.entries[pointer]
            kind: Literal['sent', 'error'] = 'sent' if letter == 'd' else 'error'
            events.append(
                PendingEvent(
                    id=f'{self.envelope.id}-{entry.attempt}{entry.period}-{kind}-{entry.group}',
                    kind=kind,
                    recipients=tuple(recipients),
                    attempt=entry.attempt,
                    mailer=entry.mailer,
                    reply=entry.reply,
                    reason=str(entry.reply) if entry.reason is None else entry.reason,
                    permanent=entry.permanent,
                    tries=entry.tries,
                )
            )
        return events


def _period(event_id: str) -> str:
    """Return what stands behind the attempt in the id of an event: a dot and a time, or ''."""
    attempt = event_id.rsplit('-', 3)[1]
    return attempt[attempt.index('.') :] if '.' in attempt else ''


def encode(envelope: Envelope, state: str) -> bytes:
    """Return the file of a new mail."""
    return new_block(envelope, state) + envelope.raw


def new_block(envelope: Envelope, state: str) -> bytes:
    """Return the envelope block of a new mail; the message follows it in the file."""
    recipients, raw = envelope.recipients, envelope.raw
    fixed = fixed_part(envelope)
    lines = ''.join([f'X-Envelope-To: T00000T {to}\r\n' for to in recipients]).encode()
    slot = write_slot((), len(recipients))
    first = first_line(
        SLOT_AT + len(slot) + len(fixed) + len(lines),
        fixed,
        '\n'.join(recipients).encode(),
        raw,
        envelope.traits,
    )
    mutable_part = _state_line(state, envelope.queued_at, 0.0)
    return b''.join((first, STATE, mutable_part, slot, fixed, lines))


def _state_line(state: str, since: float, retry_at: float) -> bytes:
    return f'{state} {milliseconds(since):015d} {milliseconds(retry_at):015d}\r\n'.encode()


def recipient_line(letter: str, pointer: int, to: str) -> bytes:
    return f'X-Envelope-To: {letter}{pointer:05d}{letter} {to}\r\n'.encode()


def decode(data: bytes, text: LargeText | None = None) -> EnvelopeBlock:
    """Read and verify the bytes of a file. Raises Unreadable.

    ``text``: the message, if it stays in the file; ``data`` is the envelope block then.
    """
    size, rest = lengths_of(data)
    check_length(len(data) if text is None else len(data) + text.size, size, rest)
    try:
        return _decode(data, size, text)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f'its envelope is damaged ({error})') from None


def _decode(data: bytes, size: int, text: LargeText | None) -> EnvelopeBlock:
    entries, at = read_slot(data, SLOT_AT)
    to_at = data.find(END + TO, at, size) + len(END)
    if to_at < at:
        raise Unreadable('its envelope names no recipient')
    fixed = data[at:to_at]
    letters, pointers, recipients = _read_recipients(data[to_at:size])
    message = data[size:] if text is None else text
    traits = verify(data, fixed, recipients, message)
    # The checksums do not cover these names and line ends.
    if data[FIRST_LENGTH:STATE_AT] != STATE or data[_STATE_END:SLOT_AT] != END:
        raise Unreadable('its state line is damaged')
    state, since, retry_at = data[STATE_AT:_STATE_END].decode().split(' ')
    if state not in ('W', 'V', 'C', 'S'):
        raise Unreadable('its state line is damaged')
    if letters.count('T') < len(letters):
        settled = [n for n, letter in zip(pointers, letters, strict=True) if letter in 'dfF']
        entries += [
            lost_reply(group) for group in range(len(entries), max(settled, default=-1) + 1)
        ]
    return EnvelopeBlock(
        _envelope(fixed, recipients, message, traits),
        fixed,
        state=state,
        since=int(since) / 1000,
        retry_at=int(retry_at) / 1000,
        letters=letters,
        entries=entries,
        pointers=pointers,
    )


def _read_recipients(lines: bytes) -> tuple[list[str], list[int], list[str]]:
    text = lines.decode()
    marks = _MARKS.findall(text)
    letters = [letter for letter, _, _ in marks]
    pointers = [int(pointer) for _, pointer, _ in marks]
    recipients = [recipient for _, _, recipient in marks]
    # There must be nothing else between them.
    length = _MARK_LENGTH * len(marks) + sum(map(len, recipients))
    whole = length == len(text) and max(pointers) < len(marks)
    if not whole or CONTROL.search(''.join(recipients)):
        raise Unreadable('the line of a recipient is damaged')
    return letters, pointers, recipients


def _envelope(
    fixed: bytes, recipients: Iterable[str], text: bytes | LargeText, traits: TextTraits | None
) -> Envelope:
    id, message_id, sender, options = read_fixed(fixed)
    options.update(id=id, message_id=message_id, sender=sender, recipients=tuple(recipients))
    if isinstance(text, bytes):
        return Envelope(raw=text, **options).know(traits)
    return StoredEnvelope(text=text, **options)
