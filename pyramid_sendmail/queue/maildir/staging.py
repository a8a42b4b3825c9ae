"""The two-phase put: write all mail of a transaction to ``tmp/``, then move it to ``new/``.

The transaction's first file is its record. It alone is locked from its creation to the end of the
second phase, its letter alone counts, and it is the last to move:

====== ============ ===================================== ============================
letter written      means, while the record is locked     found unlocked by recovery
====== ============ ===================================== ============================
``W``  at creation  files are being written               all are removed
``V``  before the   the transaction may commit            in doubt, all are kept
       last fsync
``C``  in publish   the transaction has committed         all are published
====== ============ ===================================== ============================
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from zope.interface import implementer

from ...envelope import Envelope
from ...exceptions import QueueError
from ...interfaces import IStagedMail
from ..ticket import Ticket
from .filename import name_of_new, ticket_of
from .files import QueueFiles
from .format import STATE_AT, new_block
from .late_sync import LateSync
from .wakeup import WakeUp

__all__ = ['StagedMail']

log = logging.getLogger(__name__)

_OPEN_FILES = 50
"""Files of a transaction that are open at once, at most."""

_SEPARATE_WRITE_SIZE = 256 * 1024
"""Bytes of a message from which on copying it costs more than a second system call."""


@implementer(IStagedMail)
class StagedMail:
    """See IStagedMail. ``write`` is the first phase. ``late_sync``: syncs what was published, in
    place of ``publish``."""

    def __init__(
        self,
        files: QueueFiles,
        wake_up: WakeUp,
        envelopes: Sequence[Envelope],
        late_sync: LateSync | None = None,
    ) -> None:
        self._files = files
        self._late_sync = late_sync
        self._wake_up = wake_up
        self._envelopes = envelopes
        self._record: int | None = None
        self._outcome = ''
        names = [name_of_new(envelope) for envelope in envelopes]
        # The record comes last in this list: it is the first file to be made and the last to move.
        self._moves = [(f'{name}.{names[0]}', name) for name in names[1:]] + [(names[0], names[0])]

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        return tuple([ticket_of('new', name_of_new(envelope)) for envelope in self._envelopes])

    def write(self) -> None:
        """Write and sync every file. Raises QueueError and leaves no file then."""
        try:
            self._files.folders.ready()
            self._write()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError) and not isinstance(error, QueueError):
                raise self._files.error(
                    'cannot take the mail of this transaction', error
                ) from error
            raise

    def _write(self) -> None:
        first, *others = self._envelopes
        try:
            record = self._create(self._moves[-1][0])
        except FileNotFoundError:
            self._files.folders.prepare()
            record = self._create(self._moves[-1][0])
        self._record = record
        for _, name in self._moves:
            # A rename would silently replace a mail of the same name.
            try:
                self._files.lstat('new', name)
            except FileNotFoundError:
                continue
            raise FileExistsError(errno.EEXIST, 'a mail of the same name is queued', name)
        self._fill(record, first, 'W')
        if others:
            self._write_others(others)
        self._files.write(record, b'V', STATE_AT)
        self._files.sync_file(record)

    def _write_others(self, envelopes: Sequence[Envelope]) -> None:
        """Write all files, then sync all, when the system has begun to write them to the disk."""
        names = [temporary for temporary, _ in self._moves]
        for at in range(0, len(envelopes), _OPEN_FILES):
            descriptors: list[int] = []
            try:
                for name, envelope in zip(
                    names[at:], envelopes[at : at + _OPEN_FILES], strict=False
                ):
                    descriptors.append(self._create(name))
                    self._fill(descriptors[-1], envelope, 'C')
                for descriptor in descriptors:
                    self._files.begin_sync(descriptor)
                for descriptor in descriptors:
                    self._files.sync_file(descriptor)
            finally:
                for descriptor in descriptors:
                    self._files.close(descriptor)

    def _fill(self, descriptor: int, envelope: Envelope, letter: str) -> None:
        """Write a mail: in one piece, but a large message without copying it."""
        block, raw = new_block(envelope, letter), envelope.raw
        if len(raw) < _SEPARATE_WRITE_SIZE:
            self._files.write(descriptor, block + raw)
        else:
            self._files.write(descriptor, block)
            self._files.write(descriptor, raw, len(block))

    def _create(self, name: str) -> int:
        """Create a file in ``tmp/`` and lock it.

        A recovery in another process may lock the new file first, take it for an old one and
        remove it: the name is free again a moment later, so try again.
        """
        for _ in range(1000):
            try:
                descriptor = self._files.create('tmp', name)
            except FileExistsError:
                time.sleep(0.001)
            else:
                if descriptor is not None:
                    return descriptor
        raise FileExistsError(errno.EEXIST, 'another process keeps this file', name)

    def publish(self) -> None:
        self._end('published')

    def discard(self) -> None:
        self._end('discarded')

    def keep_in_doubt(self) -> None:
        self._end('kept in doubt')

    def _end(self, outcome: str) -> None:
        """The first call decides the outcome. A later one completes it, if an interrupt has cut the
        first one short."""
        self._outcome = self._outcome or outcome
        record = self._record
        if record is None:
            return
        if self._outcome == 'published':
            self._publish(record)
        elif self._outcome == 'discarded':
            self._discard(record)
        else:
            log.critical(
                'in doubt: another resource failed to finish its commit, so it is unknown whether '
                'the transaction of %s committed; the mail is kept, see mail.in_doubt',
                ', '.join(f'{envelope.message_id} ({envelope.id})' for envelope in self._envelopes),
            )
        # The record is forgotten when it is unlocked: until then a call after an interrupt
        # unlocks it. A file that stayed locked could not be claimed while this process lives.
        self._files.unlock(record)
        if self._outcome == 'published':
            self._wake_up.notify()
        self._record = None
        self._files.close(record, locked=False)

    def _publish(self, record: int) -> None:
        try:
            with suppress(OSError):
                # If this fails, the moves may still succeed.
                self._files.write(record, b'C', STATE_AT)
            while self._moves:
                temporary, name = self._moves[0]
                # A missing file was moved before an interrupt.
                self._files.rename('tmp', temporary, 'new', name)
                del self._moves[0]
            self._sync()
        except Exception:
            log.critical(
                'committed mail could not be moved from tmp/ to new/ in %s; '
                'a queue processor tries again: %s',
                self._files.root,
                ', '.join(envelope.message_id for envelope in self._envelopes),
                exc_info=True,
            )

    def _sync(self) -> None:
        if self._late_sync is not None:
            self._late_sync.request()
            return
        try:
            self._files.sync_folder('new')
        except OSError:
            log.critical(
                'committed mail is in new/ of %s, but might not survive a power cut: %s',
                self._files.root,
                ', '.join(envelope.message_id for envelope in self._envelopes),
                exc_info=True,
            )

    def _discard(self, record: int) -> None:
        try:
            # The record goes last: recovery removes the files that are left beside it.
            with suppress(OSError):
                self._files.write(record, b'W', STATE_AT)
            for temporary, _ in self._moves:
                with suppress(FileNotFoundError):
                    self._files.unlink('tmp', temporary)
        except Exception:
            log.exception(
                'aborted mail is left in tmp/ of %s; the next queue processor removes it',
                self._files.root,
            )
