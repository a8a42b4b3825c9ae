"""What is kept of a mail's past: the history of its attempts, and dead letters until they are old.

The history is text for a person's eye, ``reasons/<id>.txt`` beside the folders. Nothing is decided
by it, nothing waits for it, and an error over it is no error of the mail.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from ...envelope import Envelope, PendingEvent
from .filename import parse
from .files import Store
from .format import Block
from .large_text import load
from .reply_slot import Entry

__all__ = ['DeadLetters', 'append', 'doubtful', 'forget', 'lines_of', 'read_history']

log = logging.getLogger(__name__)

LINE = 1000
"""Octets of a line at most, its end included."""

HISTORY = 64 * 1024
"""Octets of a mail's history at most."""

ADDRESSES = 300
"""Characters of the recipients in a line, so that the reason has its place."""

_KEPT = 50_000
"""Names of files that stay, remembered so that they are not opened each time."""

_WORDS = {'sent': 'delivered', 'deferred': 'deferred', 'error': 'failed'}
_AMBIGUOUS = ('ambiguous', 'given up: ambiguous')


def lines_of(events: Sequence[PendingEvent], *, at: float, interrupted: str = '') -> bytes:
    """The lines for an attempt, one a fate; none where all were delivered.

    ``at``: when the attempt began, in epoch seconds. ``interrupted``: what IMailClaim says.
    """
    if all(fate.kind == 'sent' for fate in events):
        return b''
    try:
        time = datetime.fromtimestamp(at, UTC).strftime('%Y-%m-%dT%H:%M:%SZ')
    except (ValueError, OverflowError, OSError):
        time = '(no time)'
    return b''.join(_line(time, fate, interrupted) for fate in events)


def append(store: Store, id: str, lines: bytes) -> None:
    """Add lines to the history of the mail with that id; none beyond HISTORY. Never raises an
    OSError."""
    with suppress(OSError):
        descriptor = store.open_reason(f'{id}.txt', os.O_APPEND)
        try:
            room = HISTORY - os.fstat(descriptor).st_size
            if room < len(lines):
                # Whole lines only.
                lines = lines[: lines.rfind(b'\n', 0, max(room, 0)) + 1]
            if lines:
                os.write(descriptor, lines)
        finally:
            os.close(descriptor)


def read_history(store: Store, id: str) -> tuple[str, ...]:
    """Return the lines of the history with that id; none if there is none, or it is unreadable."""
    with suppress(OSError), open(f'{store.root}/reasons/{id}.txt', 'rb') as file:
        return tuple(file.read(HISTORY).decode('utf-8', 'replace').splitlines())
    return ()


def forget(store: Store, envelope: Envelope) -> None:
    """Remove the history of a mail that has gone, if there is one. Never raises an OSError."""
    with suppress(OSError):
        os.unlink(_path(store, envelope.id))


def doubtful(answer: Entry | PendingEvent) -> bool:
    """Whether a recipient that failed with this may have got the mail, or was never to get it, so
    that only a person can tell; also where the reason was lost or cut short."""
    if not answer.attempt:
        return True
    if answer.reason is None:
        return answer.reply is None
    return any(
        answer.reason.startswith(word) or word.startswith(answer.reason) for word in _AMBIGUOUS
    )


class DeadLetters:
    """The folder ``failed/`` of a store, with an end to it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: set[str] = set()

    def purge_failed(self, before: float, limit: int) -> int:
        """See IMailQueue. ``limit``: how many files are opened at most. Raises OSError, over one
        file that is passed over from then on."""
        opened = removed = 0
        try:
            entries = os.scandir(f'{self._store.root}/failed')
        except FileNotFoundError:
            return 0
        with entries:
            for entry in entries:
                name = entry.name
                if name in self._kept or parse(name) is None:
                    continue
                with suppress(FileNotFoundError):
                    if not _old(entry.stat(follow_symlinks=False), before):
                        continue
                    opened += 1
                    removed += self._expire(name, before)
                if opened >= limit:
                    break
        return removed

    def _expire(self, name: str, before: float) -> bool:
        try:
            return self._remove(name, before)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            self._keep(name)
            if isinstance(error, OSError):
                raise
            return False

    def _remove(self, name: str, before: float) -> bool:
        """Remove it, if nobody else has it and no person has to decide. Raises ValueError for what
        is no mail of ours, and OSError."""
        path = self._store.path('failed', name)
        descriptor = self._store.open(path)
        if descriptor is None:
            return False
        try:
            # A person may have tried it again meanwhile.
            if not _old(os.fstat(descriptor), before):
                return False
            block, _ = load(self._store, descriptor)
            reasons = _settled(block)
            if not reasons:
                self._keep(name)
                return False
            os.unlink(path)
            forget(self._store, block.envelope)
        finally:
            self._store.close(descriptor)
        log.info(
            '%s: removed from failed/, older than mail.keep_failed: %s',
            block.envelope.message_id,
            reasons,
        )
        return True

    def _keep(self, name: str) -> None:
        if len(self._kept) < _KEPT:
            self._kept.add(name)


def _settled(block: Block) -> str:
    """Why its recipients have failed; '' for a mail that is not over, or that is in doubt."""
    if not set(block.letters) <= {'D', 'F'}:
        return ''
    used = {
        pointer
        for pointer, letter in zip(block.pointers, block.letters, strict=True)
        if letter == 'F'
    }
    answers = [block.entries[pointer] for pointer in sorted(used)]
    if any(map(doubtful, answers)):
        return ''
    words = dict.fromkeys(
        str(answer.reply) if answer.reason is None else answer.reason for answer in answers
    )
    return _harmless('; '.join(words))


def _old(found: os.stat_result, before: float) -> bool:
    """Whether a file has not been touched since: the rename to failed/ counts, and a time to come
    is not old."""
    return stat.S_ISREG(found.st_mode) and max(found.st_ctime, found.st_mtime) < before


def _line(time: str, fate: PendingEvent, interrupted: str) -> bytes:
    word = _WORDS[fate.kind]
    if fate.reason and fate.reason.startswith(_AMBIGUOUS):
        word = 'ambiguous'
    elif interrupted:
        word = 'interrupted'
    to = ', '.join(fate.recipients)
    if len(to) > ADDRESSES:
        to = f'{to[:ADDRESSES]}... ({len(fate.recipients)} recipients)'
    text = _harmless(
        f'{time} attempt {fate.attempt}: {word} for {to} ({fate.mailer or "not sent"}): '
        f'{fate.reason or fate.reply or ""}'
    )
    return text.encode()[: LINE - 1].decode(errors='ignore').encode() + b'\n'


def _harmless(text: str) -> str:
    """The text without what would move a terminal's cursor or end the line."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text)


def _path(store: Store, id: str) -> str:
    return f'{store.root}/reasons/{id}.txt'
