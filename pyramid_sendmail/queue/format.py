"""The file of a queued mail: an envelope block of ``X-Envelope`` header lines, then the message.

The file is a plain ``.eml``. Its first line carries the format's version, the lengths of block and
message in octets, and a SHA-256 over all but what changes in place:

=====================  ==========================================================================
state line             the mail's letter; when its retry policy began to count; when it is due
                       again if an attempt was recorded (both in milliseconds since the epoch)
slot                   replies, mailer and reasons of the last attempt, as JSON, 976 octets
two of each recipient  its letter, and which reply in the slot is its own
=====================  ==========================================================================

Letters of a mail: ``W`` being written, ``V`` voted, ``C`` finish has begun (and waiting, after
that), ``S`` an attempt has started. Letters of a recipient: ``T`` to do, ``?`` sent and awaiting
the last word, ``d`` and ``f`` delivered and failed with an event to report, ``D`` and ``F`` the
same, settled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Literal

from ..envelope import Envelope, Fate, Reply

__all__ = ['HEAD', 'STATE_AT', 'Block', 'Unreadable', 'decode', 'encode']

VERSION = b'1'
SLOT = 976
ENTRIES = 24
_DIGITS = '0123456789abcdefghijklmnopqrstuvwxyz'

_FIRST = b'X-Envelope: '
_STATE = b'X-Envelope-State: '
_SLOT = b'X-Envelope-Outcome: '
_TO = b'X-Envelope-To: '

_LENGTHS_AT = len(_FIRST)
_SUM_AT = _LENGTHS_AT + len(b'1 00000000 000000000000 ')
_FIRST_END = _SUM_AT + 64 + 2
STATE_AT = _FIRST_END + len(_STATE)
_STATE_LENGTH = 1 + 1 + 15 + 1 + 15
_STATE_END = STATE_AT + _STATE_LENGTH + 2
_SLOT_AT = _STATE_END + len(_SLOT)
_SLOT_END = _SLOT_AT + SLOT + 2
HEAD = _SLOT_END


class Unreadable(ValueError):
    """The bytes are not a whole and undamaged mail of ours; the text says why."""


@dataclass(slots=True)
class Entry:
    """One reply in the slot; recipients point to it."""

    attempt: int
    group: int
    reply: Reply | None
    reason: str
    permanent: bool
    tries: int = 0


@dataclass(slots=True)
class Block:
    """The envelope block in memory: what is fixed, and what changes in place."""

    envelope: Envelope
    fixed: bytes
    """The lines after the slot and before the recipients."""
    checksum: bytes
    state: str = 'W'
    since: float = 0.0
    retry_at: float = 0.0
    """0 as long as no outcome of the current attempt has been recorded."""
    mailer: str = ''
    letters: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    pointers: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.letters_at + sum(
            len(_TO) + 3 + len(to.encode()) + 2 for to in self.envelope.recipients
        )

    @property
    def letters_at(self) -> int:
        """Where the recipients' lines begin."""
        return HEAD + len(self.fixed)

    def state_line(self) -> bytes:
        """The bytes at STATE_AT."""
        return (
            f'{self.state} {round(self.since * 1000):015d} {round(self.retry_at * 1000):015d}'
        ).encode()

    def recipient_lines(self) -> bytes:
        """The bytes at ``letters_at``."""
        return b''.join(
            b'%s%s%s %s\r\n' % (_TO, letter.encode(), _DIGITS[pointer].encode(), to.encode())
            for letter, pointer, to in zip(
                self.letters, self.pointers, self.envelope.recipients, strict=True
            )
        )

    def changing(self) -> bytes:
        """All from STATE_AT to the end of the block: one write records an outcome."""
        return b''.join(
            (
                self.state_line(),
                b'\r\n',
                _SLOT,
                self._slot(),
                b'\r\n',
                self.fixed,
                self.recipient_lines(),
            )
        )

    def _slot(self) -> bytes:
        for width in (SLOT, 512, 256, 128, 64, 32, 16, 8, 0):
            entries = [
                [
                    entry.attempt,
                    entry.group,
                    entry.reply.code if entry.reply else 0,
                    entry.reply.text[:width] if entry.reply else '',
                    entry.reason[:width],
                    int(entry.permanent),
                    entry.tries,
                ]
                for entry in self.entries
            ]
            text = json.dumps([self.mailer[:width], *entries], separators=(',', ':'))
            if len(text) <= SLOT:
                return text.encode().ljust(SLOT)
        raise AssertionError('the entries are bounded')

    def mark(self, fate: Fate, letter: str) -> None:
        """Give the fate's recipients a letter and an entry for its reply."""
        reason = fate.reason if fate.reason != str(fate.reply) else ''
        entry = Entry(
            fate.attempt, int(fate.id.rpartition('-')[2]), fate.reply, reason, fate.permanent
        )
        if len(self.entries) < ENTRIES:
            self.entries.append(entry)
        else:
            self.entries[-1] = entry
        slot = len(self.entries) - 1
        self.mailer = fate.mailer
        for n, to in enumerate(self.envelope.recipients):
            if to in fate.recipients:
                self.letters[n] = letter
                self.pointers[n] = slot

    def forget(self) -> None:
        """Drop the replies that no unreported recipient needs, before a new attempt's come."""
        kept = sorted(
            {p for p, old in zip(self.pointers, self.letters, strict=True) if old in 'dfF'}
        )
        places = {old: new for new, old in enumerate(kept)}
        self.entries = [self.entries[p] for p in kept if p < len(self.entries)]
        self.pointers = [places.get(p, 0) for p in self.pointers]

    def fates(self) -> list[Fate]:
        """What subscribers have not taken yet."""
        groups: dict[tuple[str, int], list[str]] = {}
        for to, letter, pointer in zip(
            self.envelope.recipients, self.letters, self.pointers, strict=True
        ):
            if letter in 'df':
                groups.setdefault((letter, pointer), []).append(to)
        fates = []
        for (letter, pointer), recipients in groups.items():
            entry = self.entries[pointer] if pointer < len(self.entries) else _LOST
            kind: Literal['sent', 'error'] = 'sent' if letter == 'd' else 'error'
            fates.append(
                Fate(
                    id=f'{self.envelope.id}-{entry.attempt}-{kind}-{entry.group}',
                    kind=kind,
                    recipients=tuple(recipients),
                    attempt=entry.attempt,
                    mailer=self.mailer,
                    reply=entry.reply,
                    reason=entry.reason or (str(entry.reply) if kind == 'error' else ''),
                    permanent=entry.permanent,
                    tries=entry.tries,
                )
            )
        return fates


_LOST = Entry(0, 0, None, 'the reply was lost', False)


def encode(envelope: Envelope, state: str) -> tuple[Block, bytes]:
    """Return the block of a new mail, and the whole file's bytes."""
    options = {
        'queued_at': envelope.queued_at,
        'due': envelope.due,
        'expires': envelope.expires,
        'priority': envelope.priority,
        'subject': envelope.subject,
        'tag': envelope.tag,
        'metadata': dict(envelope.metadata),
        'depth': envelope.depth,
    }
    fixed = (
        f'X-Envelope-Id: {envelope.id}\r\n'
        f'X-Envelope-Message-Id: {envelope.message_id}\r\n'
        f'X-Envelope-From: {envelope.sender}\r\n'
        f'X-Envelope-Options: {_folded(json.dumps(options))}\r\n'
    ).encode()
    count = len(envelope.recipients)
    block = Block(
        envelope,
        fixed,
        b'',
        state=state,
        since=envelope.queued_at,
        letters=['T'] * count,
        pointers=[0] * count,
    )
    lines = block.recipient_lines()
    lengths = b'1 %08d %012d ' % (HEAD + len(fixed) + len(lines), len(envelope.raw))
    block.checksum = _checksum(lengths, fixed, envelope.recipients, envelope.raw)
    head = b''.join((_FIRST, lengths, block.checksum, b'\r\n', _STATE))
    return block, b''.join((head, block.changing(), envelope.raw))


def decode(data: bytes) -> Block:
    """Read a file's bytes. Raises Unreadable."""
    if not data.startswith(_FIRST):
        raise Unreadable('it is not a file of this queue' if data else 'it is empty')
    lengths = data[_LENGTHS_AT:_SUM_AT]
    try:
        version, block_length, message_length = lengths.split()
        size, rest = int(block_length), int(message_length)
    except ValueError:
        raise Unreadable('its first line is damaged') from None
    if version != VERSION:
        raise Unreadable(f'its format, version {version.decode("ascii", "replace")}, is unknown')
    if len(data) != size + rest:
        raise Unreadable(f'it has {len(data)} octets where its first line says {size + rest}')
    try:
        return _decode(data, size, lengths)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f'its envelope is damaged ({error})') from None


def _decode(data: bytes, size: int, lengths: bytes) -> Block:
    to_at = data.find(b'\r\n' + _TO, HEAD - 2, size)
    if to_at < 0:
        raise Unreadable('its envelope names no recipient')
    fixed = data[HEAD : to_at + 2]
    letters, pointers, recipients = [], [], []
    for line in data[to_at + 2 : size].decode().removesuffix('\r\n').split('\r\n'):
        if not line.startswith(_TO.decode()):
            raise Unreadable('a recipient is damaged')
        content = line[len(_TO) :]
        letters.append(content[0])
        pointers.append(max(_DIGITS.find(content[1]), 0))
        recipients.append(content[3:])
    raw = data[size:]
    checksum = data[_SUM_AT : _SUM_AT + 64]
    if checksum != _checksum(lengths, fixed, recipients, raw):
        raise Unreadable('its checksum does not match: it was damaged or changed')
    fields: dict[str, str] = {}
    for line in fixed.decode().replace('\r\n ', ' ').split('\r\n')[:-1]:
        name, _, value = line.partition(': ')
        fields[name] = value
    options = json.loads(fields['X-Envelope-Options'])
    options['metadata'] = MappingProxyType(options['metadata'])
    envelope = Envelope(
        id=fields['X-Envelope-Id'],
        message_id=fields['X-Envelope-Message-Id'],
        sender=fields['X-Envelope-From'],
        recipients=tuple(recipients),
        raw=raw,
        **options,
    )
    state, since, retry_at = data[STATE_AT : STATE_AT + _STATE_LENGTH].decode('latin-1').split(' ')
    mailer, entries = _read_slot(data[_SLOT_AT : _SLOT_AT + SLOT])
    return Block(
        envelope,
        fixed,
        checksum,
        state=state,
        since=int(since) / 1000,
        retry_at=int(retry_at) / 1000,
        mailer=mailer,
        # What is no letter was torn: not done, then, as far as anybody can tell.
        letters=[letter if letter in 'T?dfDF' else 'T' for letter in letters],
        entries=entries,
        pointers=pointers,
    )


def _read_slot(slot: bytes) -> tuple[str, list[Entry]]:
    """The slot is outside the checksum: a torn one costs the words of an event, not the mail."""
    try:
        mailer, *rows = json.loads(slot.strip() or b'[""]')
        return str(mailer), [_entry(*row) for row in rows]
    except (ValueError, TypeError):
        return '', []


def _entry(
    attempt: int, group: int, code: int, text: str, reason: str, permanent: int, tries: int
) -> Entry:
    reply = Reply(code, text) if code else None
    return Entry(attempt, group, reply, reason, bool(permanent), tries)


def _checksum(lengths: bytes, fixed: bytes, recipients: Iterable[str], raw: bytes) -> bytes:
    digest = sha256(lengths)
    digest.update(fixed)
    digest.update('\n'.join(recipients).encode())
    digest.update(raw)
    return digest.hexdigest().encode()


def _folded(text: str) -> str:
    """Fold at blanks, so that any mail program takes the line (RFC 5322, 2.1.1)."""
    lines, line = [], ''
    for word in text.split(' '):
        if line and len(line) + len(word) > 900:
            lines.append(line)
            line = word
        else:
            line = f'{line} {word}' if line else word
    return '\r\n '.join([*lines, line])
