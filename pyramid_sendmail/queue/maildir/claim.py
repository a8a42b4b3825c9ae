"""A claimed mail: its letters, written in place, and the folder it goes to next."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from zope.interface import implementer

from ...envelope import Envelope, PendingEvent
from ...interfaces import IMailClaim
from .filename import schedule_of
from .files import Store
from .format import LETTERS, STATE_AT, Block
from .history import append, forget, lines_of
from .large_text import StoredText

__all__ = ['MaildirClaim']

log = logging.getLogger(__name__)


@implementer(IMailClaim)
class MaildirClaim:
    """See IMailClaim. Made by ``MaildirQueue.claim`` for a file that is open and locked.

    An attempt writes ``S``; what it came to is one write, which takes the ``S`` back, before the
    file is renamed. Whoever finds a file between the two finds all that he needs in it.
    """

    todo: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    interrupted = ''
    _before = ''
    _settled = False
    _history = b''

    def __init__(
        self,
        store: Store,
        descriptor: int,
        block: Block,
        folder: str,
        name: str,
        *,
        attempt: int,
        now: float,
        hold: bool = False,
        text: StoredText | None = None,
    ) -> None:
        self._store = store
        self._descriptor: int | None = descriptor
        self._block = block
        self._folder = folder
        self._name = name
        self._hold = hold
        self._text = text
        self._now = now
        self.attempt = attempt
        if folder in ('new', 'cur') and block.retry_at <= now:
            self.todo = _marked(block, 'T?')
        if '?' in block.letters:
            self.interrupted = 'ambiguous'
            if self.todo:
                self.ambiguous = _marked(block, '?')
        elif block.state == 'S':
            self.interrupted = 'sending'

    @property
    def envelope(self) -> Envelope:
        return self._block.envelope

    @property
    def since(self) -> float:
        return self._block.since

    @property
    def pending_events(self) -> list[PendingEvent]:
        return self._block.pending_events()

    def has(self, descriptor: int) -> bool:
        """Whether it is the claim of this open file."""
        return self._descriptor == descriptor

    def begin(self) -> None:
        """Write ``S``: from now on a crash counts as an attempt. Raises OSError."""
        self._write(b'S', STATE_AT)
        self._before, self._block.state = self._block.state, 'S'

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        letters = self._block.letters.copy()
        try:
            self._block.mark(recipients, '?')
            self._write(self._block.recipient_lines(), self._block.letters_at)
            if self._hold:
                self._sync()
        except OSError as error:
            self._block.letters = letters
            # Written and not synced, perhaps: the dot will not leave, and nobody shall think so.
            with suppress(OSError):
                self._write(self._block.recipient_lines(), self._block.letters_at)
            raise self._store.error('cannot record that a mail is leaving', error) from error

    def clear_ambiguous(self) -> None:
        letters = self._block.letters.copy()
        self._block.letters = ['T' if letter == '?' else letter for letter in letters]
        try:
            self._write(self._block.recipient_lines(), self._block.letters_at)
        except OSError:
            self._block.letters = letters

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        block = self._block
        if not self._settled:
            self._settled, self._before = True, ''
            self.attempt += 1
            block.settle(events, report=report)
            block.retry_at = retry_at or 0.0
            # In tmp/ the letter is that of the record: it stays until the mail is out of there, so
            # that whatever is written of this leaves it in doubt.
            if self._folder != 'tmp':
                block.state = 'C'
                self._history = lines_of(events, at=self._now, interrupted=self.interrupted)
        self._rest()

    def acknowledge(self, events: Iterable[PendingEvent]) -> None:
        self._block.state = 'C'
        for fate in events:
            if fate.kind != 'deferred':
                self._block.mark(fate.recipients, LETTERS[fate.kind].upper())
        self._rest()

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        self._block.retry_events(events)
        try:
            folder, _ = self._place()
            self._record(folder, min(due, self._block.retry_at) if folder == 'cur' else due)
        except OSError as error:
            raise self._store.error('cannot record what became of an event', error) from error
        finally:
            self.release()

    def _rest(self) -> None:
        """Write down what is known and move the file to where it waits next."""
        folder, due = self._place()
        try:
            self._record(folder, due)
        except OSError as error:
            raise self._store.error('cannot record what became of a mail', error) from error
        if not (folder and self._telling):
            self.release()

    @property
    def _telling(self) -> bool:
        """Whether there are events that subscribers have not yet taken."""
        return not set(self._block.letters).isdisjoint('df')

    def _place(self) -> tuple[str, float]:
        """The folder for a mail with these letters, and the time in its name; no folder for a
        mail with which everything is done."""
        block = self._block
        letters = set(block.letters)
        telling = not letters.isdisjoint('df')
        if not letters.isdisjoint('T?'):
            # Should nobody come to tell the events, they are found before the retry.
            return 'cur', block.envelope.queued_at if telling else block.retry_at
        if telling:
            return 'done', block.envelope.queued_at
        if 'F' in letters:
            return 'failed', block.since
        return '', 0.0

    def _record(self, folder: str, due: float) -> None:
        if not folder:
            self._remove()
            return
        self._write(self._block.changing(), STATE_AT)
        if folder == 'cur' and not set(self._block.letters).isdisjoint('dD'):
            self._sync()
        if self._history:
            # After the outcome, which shall not wait for it, and while nobody else has the mail.
            lines, self._history = self._history, b''
            append(self._store, self.envelope.id, lines)
        self.rename(folder, schedule_of(self.envelope, due=due, attempt=self.attempt).name)

    def _remove(self) -> None:
        self._held()
        try:
            os.unlink(self._store.path(self._folder, self._name))
        except OSError as error:
            # Here, or where a person has put it, it will be found; it shall not be sent again.
            self._write(self._block.changing(), STATE_AT)
            if not isinstance(error, FileNotFoundError):
                raise
        if self._has_history():
            forget(self._store, self.envelope)

    def _has_history(self) -> bool:
        """Whether there may be one: the first attempt delivers most mail, and shall cost no more.
        Mail that a person moved back has begun anew, later than it was queued."""
        # Files tell milliseconds.
        return self.attempt > 1 or abs(self._block.since - self.envelope.queued_at) > 0.002

    def rename(self, folder: str, name: str) -> None:
        """Move the file, which stays claimed; a person may have been quicker."""
        if (folder, name) == (self._folder, self._name):
            return
        if not self._store.rename(self._folder, self._name, folder, name):
            log.warning(
                '%s: somebody has taken its file out of %s/ while it was claimed',
                self.envelope.message_id,
                self._folder,
            )
        self._folder, self._name = folder, name

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if self._text is not None:
            self._text.close()
        if self._before and '?' not in self._block.letters:
            # Where this fails ``S`` stays, and counts as an attempt; what was sealed stays so.
            with suppress(OSError):
                self._store.write(descriptor, self._before.encode(), STATE_AT)
        self._store.close(descriptor)

    def _write(self, data: bytes, at: int) -> None:
        self._store.write(self._descriptor, data, at)

    def _sync(self) -> None:
        self._store.sync_file(self._held())

    def _held(self) -> int:
        if self._descriptor is None:
            raise OSError(errno.EBADF, 'the claim has been released')
        return self._descriptor


def _marked(block: Block, letters: str) -> tuple[str, ...]:
    """The recipients with one of these letters."""
    if set(letters).issuperset(block.letters):
        return block.envelope.recipients
    pairs = zip(block.envelope.recipients, block.letters, strict=True)
    return tuple([to for to, letter in pairs if letter in letters])
