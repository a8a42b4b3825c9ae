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

The queue may be replaced between the two phases, and another thread may have opened the new one
already. The files are in the folders that were there at the vote, which are kept for that.
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
from .directory import Directory
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

    _tmp: Directory
    _new: Directory
    _is_rewritten = False

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
        self._gone: list[str] = []
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
        self._keep_folders()
        try:
            record = self._create(self._moves[-1][0])
        except FileNotFoundError:
            self._files.folders.prepare()
            self._keep_folders()
            record = self._create(self._moves[-1][0])
        self._record = record
        for _, name in self._moves:
            # A rename would silently replace a mail of the same name.
            try:
                self._new.lstat(name)
            except FileNotFoundError:
                continue
            raise FileExistsError(errno.EEXIST, 'a mail of the same name is queued', name)
        self._fill(record, first, 'W')
        if others:
            self._write_others(others)
        self._files.write(record, b'V', STATE_AT)
        self._files.sync_file(record)

    def _keep_folders(self) -> None:
        folders = self._files.folders
        self._tmp, self._new = folders.directory('tmp'), folders.directory('new')

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
                descriptor = self._files.create(self._tmp, name)
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
        resumed = bool(self._outcome)
        self._outcome = self._outcome or outcome
        record = self._record
        if record is None:
            return
        if self._outcome == 'published':
            self._publish(record, resumed)
        elif self._outcome == 'discarded':
            self._discard(record)
        else:
            log.critical(
                'in doubt: another resource failed to finish its commit, so it is unknown whether '
                'the transaction of %s committed; the mail is kept%s, see mail.in_doubt',
                ', '.join(f'{envelope.message_id} ({envelope.id})' for envelope in self._envelopes),
                self._elsewhere(),
            )
        # The record is forgotten when it is unlocked: until then a call after an interrupt
        # unlocks it. A file that stayed locked could not be claimed while this process lives.
        self._files.unlock(record)
        if self._outcome == 'published':
            self._wake_up.notify([name_of_new(envelope) for envelope in self._envelopes])
        self._record = None
        self._files.close(record, locked=False)

    def _elsewhere(self) -> str:
        if self._files.folders.is_there('tmp', self._tmp):
            return ''
        return f' in {self._tmp.path()}, as the queue was replaced'

    def _publish(self, record: int, resumed: bool) -> None:
        """``resumed``: an interrupt has cut a call short."""
        try:
            with suppress(OSError):
                # If this fails, the moves may still succeed.
                self._files.write(record, b'C', STATE_AT)
            new = self._destination()
            while self._moves:
                temporary, name = self._moves[0]
                if not self._move(temporary, new, name) and not resumed:
                    self._gone.append(name)
                # The interrupted call may have moved a file, but no more than this one.
                resumed = False
                del self._moves[0]
            self._sync(new)
            if self._gone:
                self._write_again()
        except Exception:
            log.critical(
                'committed mail could not be moved from tmp/ to new/ in %s; '
                'a queue processor tries again: %s',
                self._files.root,
                self._ids(),
                exc_info=True,
            )

    def _move(self, temporary: str, new: Directory, name: str) -> bool:
        """Move a file; return False if it is gone."""
        try:
            return self._files.rename(self._tmp, temporary, new, name)
        except FileNotFoundError:
            # The folder has been removed a moment ago.
            new = self._destination()
            moved = self._files.rename(self._tmp, temporary, new, name)
            if moved:
                self._sync(new)
            return moved

    def _destination(self) -> Directory:
        """Return the folder for the committed mail: new/ of the queue, even if that was replaced
        since the vote, unless the mail could be lost or sent twice on its way."""
        folders, new = self._files.folders, self._new
        if folders.is_there('new', new):
            return new
        try:
            folders.ready()
            there, tmp = folders.directory('new'), folders.directory('tmp')
        except OSError as error:
            reason = f'cannot be used: {error}'
        else:
            if there.found.st_dev != self._tmp.found.st_dev:
                reason = 'is on another file system'
            elif not tmp.is_same(self._tmp) and tmp.holds(self._moves[-1][0]):
                reason = 'has a copy of it in tmp/'
            else:
                log.warning(
                    'queue %s was replaced while a transaction was committed; its mail goes '
                    'into the new one: %s',
                    self._files.root,
                    self._ids(),
                )
                return there
        log.critical(
            'queue %s was replaced while a transaction was committed, and the new one %s; the mail '
            'of the transaction is in %s, move it into new/ of the new one: %s',
            self._files.root,
            reason,
            new.path(),
            self._ids(),
        )
        return new

    def _write_again(self) -> None:
        """Write mail whose file was removed from tmp/ by something else, once, and publish it."""
        gone = [each for each in self._envelopes if name_of_new(each) in self._gone]
        again = StagedMail(self._files, self._wake_up, gone, self._late_sync)
        again._is_rewritten = True
        outcome, reason = 'was written again', ''
        try:
            if self._is_rewritten:
                raise OSError(errno.ENOENT, 'it was removed a second time')
            again.write()
        except OSError as error:
            outcome, reason = 'is lost', f' ({error})'
        log.critical(
            'queue %s: committed mail was removed from tmp/ before it could be moved to new/, and '
            '%s%s: %s',
            self._files.root,
            outcome,
            reason,
            again._ids(),
        )
        again.publish()

    def _ids(self) -> str:
        return ', '.join(envelope.message_id for envelope in self._envelopes)

    def _sync(self, new: Directory) -> None:
        if self._late_sync is not None:
            self._late_sync.request(new)
            return
        try:
            self._files.sync_folder(new)
        except OSError:
            log.critical(
                'committed mail is in new/ of %s, but might not survive a power cut: %s',
                self._files.root,
                self._ids(),
                exc_info=True,
            )

    def _discard(self, record: int) -> None:
        try:
            # The record goes last: recovery removes the files that are left beside it.
            with suppress(OSError):
                self._files.write(record, b'W', STATE_AT)
            for temporary, _ in self._moves:
                with suppress(FileNotFoundError):
                    self._files.unlink(self._tmp, temporary)
        except Exception:
            log.exception(
                'aborted mail is left in tmp/ of %s; the next queue processor removes it',
                self._files.root,
            )
