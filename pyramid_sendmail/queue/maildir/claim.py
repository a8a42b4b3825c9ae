"""A claimed mail: its letters are written in place, and its file moves from folder to folder."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from zope.interface import implementer

from ...envelope import Envelope, PendingEvent
from ...exceptions import QueueError
from ...interfaces import IMailClaim
from ..history import attempt_lines
from ..ticket import at_once
from .filename import file_name
from .files import QueueFiles
from .format import LETTERS, STATE_AT, EnvelopeBlock
from .history import append_history, remove_history
from .large_text import FileText

__all__ = ['ClaimedFile', 'MaildirClaim']

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ClaimedFile:
    """A file that is open and locked: where it lies, and what was read from it."""

    descriptor: int
    folder: str
    name: str
    block: EnvelopeBlock
    text: FileText | None
    """The message, if the envelope does not hold it."""


@implementer(IMailClaim)
class MaildirClaim:
    """See IMailClaim. Made by ``MaildirQueue.claim``.

    ``attempt``: the attempts counted so far. ``now``: the time of the claim, in epoch seconds.
    ``sync_ambiguous``: sync the mark that the final dot is about to be sent.

    An attempt writes ``S``. Its outcome is one write, which replaces the ``S``, before the file is
    renamed: so a process that finds the file between the two finds the outcome in it.
    """

    todo: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    interrupted = ''
    _before = ''
    _settled = False
    _history: Sequence[str] = ()

    def __init__(
        self,
        files: QueueFiles,
        claimed: ClaimedFile,
        *,
        attempt: int,
        now: float,
        sync_ambiguous: bool = False,
    ) -> None:
        block, folder = claimed.block, claimed.folder
        self._files = files
        self._descriptor: int | None = claimed.descriptor
        self._block = block
        self._folder = folder
        self._name = claimed.name
        self._text = claimed.text
        self._sync_ambiguous = sync_ambiguous
        self._now = now
        self._queued_at = block.envelope.queued_at
        self.attempt = attempt
        self.since = block.since
        if folder in ('new', 'cur') and block.retry_at <= now:
            self.todo = _recipients(block, 'T?')
        if '?' in block.letters:
            self.interrupted = 'ambiguous'
            if self.todo:
                self.ambiguous = _recipients(block, '?')
        elif block.state == 'S':
            self.interrupted = 'sending'

    @property
    def envelope(self) -> Envelope:
        return self._block.envelope

    @property
    def pending_events(self) -> list[PendingEvent]:
        return self._block.pending_events()

    def has(self, descriptor: int) -> bool:
        """Whether this is the claim of an open file."""
        return self._descriptor == descriptor

    def begin(self) -> None:
        """Write ``S``: from now on a crash counts as an attempt. Raises OSError."""
        self._write(b'S', STATE_AT)
        self._before, self._block.state = self._block.state, 'S'

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        letters = self._block.letters.copy()
        try:
            self._block.mark(recipients, '?')
            self._write(*self._block.lines_of(recipients))
            if self._sync_ambiguous:
                self._sync()
        except OSError as error:
            self._block.letters = letters
            raise self._not_marked(error) from error

    def _not_marked(self, error: OSError) -> QueueError:
        """Take back the mark, which may be on disk although the dot is not sent; return the
        error to raise."""
        with suppress(OSError):
            self._write(self._block.recipient_lines(), self._block.recipients_at)
        return self._files.error('cannot record that a mail is about to be sent', error)

    def clear_ambiguous(self) -> None:
        letters = self._block.letters.copy()
        marked = _recipients(self._block, '?')
        self._block.mark(marked, 'T')
        try:
            self._write(*self._block.lines_of(marked))
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
            # In tmp/ the letter is the record's: change it only after the move, so that a partial
            # write leaves the mail in doubt.
            if self._folder != 'tmp':
                block.state = 'C'
                self._history = attempt_lines(events, at=self._now, interrupted=self.interrupted)
        self._save()

    def acknowledge(self, events: Iterable[PendingEvent]) -> None:
        if self._block.state != 'S':
            # Of an attempt that was interrupted it still has to be known.
            self._block.state = 'C'
        for event in events:
            if event.kind != 'deferred':
                self._block.mark(event.recipients, LETTERS[event.kind].upper())
        self._save()

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        self._block.retry_events(events)
        try:
            folder, _ = self._destination()
            self._record(folder, min(due, self._block.retry_at) if folder == 'cur' else due)
        except OSError as error:
            raise self._files.error('cannot record the outcome of an event', error) from error
        finally:
            self.release()

    def _save(self) -> None:
        """Record the letters and move the file to its next folder; release the claim unless events
        are pending. Raises QueueError."""
        folder, due = self._destination()
        try:
            self._record(folder, due)
        except OSError as error:
            raise self._files.error('cannot record the outcome of a mail', error) from error
        if not folder or set(self._block.letters).isdisjoint('df'):
            self.release()

    def _destination(self) -> tuple[str, float]:
        """Return the folder for a mail with these letters, and the time in its name. The folder is
        '' for a mail that is finished."""
        block = self._block
        letters = set(block.letters)
        pending = not letters.isdisjoint('df')
        if not letters.isdisjoint('T?'):
            # If this process dies, a scan finds the pending events before the retry is due.
            return 'cur', at_once(self._queued_at, self._now) if pending else block.retry_at
        if pending:
            # Mail in doubt comes from tmp/ within a scan, whose time may be a little earlier.
            is_in_doubt = self._folder == 'tmp'
            return 'done', 0.0 if is_in_doubt else at_once(self._queued_at, self._now)
        if 'F' in letters:
            return 'failed', block.since
        return '', 0.0

    def _record(self, folder: str, due: float) -> None:
        if not folder:
            self._remove()
            return
        self._write(self._block.mutable_part(), STATE_AT)
        if folder == 'cur' and not set(self._block.letters).isdisjoint('dD'):
            self._sync()
        if self._history:
            # Write the history after the outcome and before the lock is released.
            lines, self._history = self._history, ()
            append_history(self._files, self.envelope.id, lines)
        self.rename(folder, file_name(self.envelope, due=due, attempt=self.attempt).text)

    def _remove(self) -> None:
        self._open_descriptor()
        try:
            self._files.unlink(self._folder, self._name)
        except OSError as error:
            # The file is found again, here or where a person has put it: it must say that the mail
            # is not to be sent again.
            self._write(self._block.mutable_part(), STATE_AT)
            if not isinstance(error, FileNotFoundError):
                raise
        if self._has_history():
            remove_history(self._files, self.envelope)

    def _has_history(self) -> bool:
        """Whether the mail may have a history. Most mail is delivered at its first attempt, which
        must not cost a system call for it. Mail that a person moved back has started over later
        than it was queued."""
        # Files have milliseconds.
        return self.attempt > 1 or abs(self.since - self._queued_at) > 0.002

    def rename(self, folder: str, name: str) -> None:
        """Move the file, which stays claimed. A person may have moved it already."""
        if (folder, name) == (self._folder, self._name):
            return
        if not self._files.rename(self._folder, self._name, folder, name):
            log.warning(
                '%s: its file was moved out of %s/ while the mail was claimed',
                self.envelope.message_id,
                self._folder,
            )
        self._folder, self._name = folder, name

    def release(self) -> None:
        descriptor = self._descriptor
        if descriptor is None:
            return
        if self._text is not None:
            self._text.close()
        if self._before and '?' not in self._block.letters:
            # If this fails, ``S`` stays and counts as an attempt. Ambiguous mail stays ambiguous.
            with suppress(OSError):
                self._files.write(descriptor, self._before.encode(), STATE_AT)
        # As in StagedMail: an interrupt leaves the file unlocked, or the next call unlocks it.
        self._files.unlock(descriptor)
        self._descriptor = None
        self._files.close(descriptor, locked=False)

    def _write(self, data: bytes, at: int) -> None:
        self._files.write(self._descriptor, data, at)

    def _sync(self) -> None:
        self._files.sync_file(self._open_descriptor())

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise OSError(errno.EBADF, 'the claim has been released')
        return self._descriptor


def _recipients(block: EnvelopeBlock, letters: str) -> tuple[str, ...]:
    """Return the recipients with one of these letters."""
    if set(letters).issuperset(block.letters):
        return block.envelope.recipients
    pairs = zip(block.envelope.recipients, block.letters, strict=True)
    return tuple([to for to, letter in pairs if letter in letters])
