"""The two-phase put: all mail of one transaction into ``tmp/``, and then into ``new/``.

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
import os
import time
from collections.abc import Sequence
from contextlib import suppress

from zope.interface import implementer

from ...envelope import Envelope
from ...exceptions import QueueError
from ...interfaces import IStagedMail
from ..ticket import Ticket
from .filename import fresh_name, ticket_of
from .files import Store
from .format import STATE_AT, block_of
from .wakeup import Trigger

__all__ = ['StagedMail']

log = logging.getLogger(__name__)

_TOGETHER = 50
"""Files of a transaction that are open at once, at most."""


_LARGE = 256 * 1024
"""Octets from which on a copy costs more than a call of the system."""


@implementer(IStagedMail)
class StagedMail:
    """See IStagedMail. ``write`` is the first phase."""

    def __init__(self, store: Store, trigger: Trigger, envelopes: Sequence[Envelope]) -> None:
        self._store = store
        self._trigger = trigger
        self._envelopes = envelopes
        self._record: int | None = None
        self._outcome = ''
        names = [fresh_name(envelope) for envelope in envelopes]
        # The record comes last here: it is the first file to be made and the last to move.
        self._moves = [(f'{name}.{names[0]}', name) for name in names[1:]] + [(names[0], names[0])]

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        return tuple([ticket_of('new', fresh_name(envelope)) for envelope in self._envelopes])

    def write(self) -> None:
        """Write and sync every file. Raises QueueError, and leaves nothing then."""
        try:
            self._store.ready()
            self._write()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError) and not isinstance(error, QueueError):
                raise self._store.error(
                    'cannot take the mail of this transaction', error
                ) from error
            raise

    def _write(self) -> None:
        first, *others = self._envelopes
        try:
            record = self._create(self._moves[-1][0])
        except FileNotFoundError:
            self._store.prepare()
            record = self._create(self._moves[-1][0])
        self._record = record
        for _, name in self._moves:
            # A rename would replace it.
            path = self._store.path('new', name)
            try:
                os.lstat(path)
            except FileNotFoundError:
                continue
            raise FileExistsError(errno.EEXIST, 'a mail of the same name is waiting', path)
        self._fill(record, first, 'W')
        if others:
            self._write_others(others)
        self._store.write(record, b'V', STATE_AT)
        self._store.sync_file(record)

    def _write_others(self, envelopes: Sequence[Envelope]) -> None:
        """Written all, then synced all, which by then are on their way to the disk."""
        names = [temporary for temporary, _ in self._moves]
        for at in range(0, len(envelopes), _TOGETHER):
            descriptors: list[int] = []
            try:
                for name, envelope in zip(names[at:], envelopes[at : at + _TOGETHER], strict=False):
                    descriptors.append(self._create(name))
                    self._fill(descriptors[-1], envelope, 'C')
                for descriptor in descriptors:
                    self._store.begin_sync(descriptor)
                for descriptor in descriptors:
                    self._store.sync_file(descriptor)
            finally:
                for descriptor in descriptors:
                    self._store.close(descriptor)

    def _fill(self, descriptor: int, envelope: Envelope, letter: str) -> None:
        """Write a mail: in one piece, or a large one without a copy of it."""
        block, raw = block_of(envelope, letter), envelope.raw
        if len(raw) < _LARGE:
            self._store.write(descriptor, block + raw)
        else:
            self._store.write(descriptor, block)
            self._store.write(descriptor, raw, len(block))

    def _create(self, name: str) -> int:
        """A recovering processor may take the new file for an old one before it is locked, and
        removes it then: the name is free again a moment later."""
        path = self._store.path('tmp', name)
        for _ in range(1000):
            try:
                descriptor = self._store.create(path)
            except FileExistsError:
                time.sleep(0.001)
            else:
                if descriptor is not None:
                    return descriptor
        raise FileExistsError(errno.EEXIST, 'somebody else keeps this file', path)

    def publish(self) -> None:
        self._end('published')

    def discard(self) -> None:
        self._end('discarded')

    def keep_in_doubt(self) -> None:
        self._end('doubted')

    def _end(self, outcome: str) -> None:
        """What was called first decides; whatever is called later completes it where an interrupt
        has cut it short."""
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
                'in doubt: another resource failed to finish its commit, and nobody can tell '
                'whether the transaction of %s took place; see mail.in_doubt',
                ', '.join(f'{envelope.message_id} ({envelope.id})' for envelope in self._envelopes),
            )
        self._record = None
        self._store.close(record)
        if self._outcome == 'published':
            self._trigger.pull()

    def _publish(self, record: int) -> None:
        try:
            with suppress(OSError):
                # Where this fails, the moves may do without it.
                self._store.write(record, b'C', STATE_AT)
            while self._moves:
                temporary, name = self._moves[0]
                # Gone: moved before an interrupt, and delivered, perhaps.
                self._store.rename('tmp', temporary, 'new', name)
                del self._moves[0]
            self._sync()
        except Exception:
            log.critical(
                'mail that was committed could not be moved from tmp/ to new/ in %s; '
                'a queue processor will try again: %s',
                self._store.root,
                ', '.join(envelope.message_id for envelope in self._envelopes),
                exc_info=True,
            )

    def _sync(self) -> None:
        try:
            self._store.sync_folder('new')
        except OSError:
            log.critical(
                'mail that was committed is in new/ of %s, and might not survive a power cut: %s',
                self._store.root,
                ', '.join(envelope.message_id for envelope in self._envelopes),
                exc_info=True,
            )

    def _discard(self, record: int) -> None:
        try:
            # The record goes last: what is left with it is removed by recovery.
            with suppress(OSError):
                self._store.write(record, b'W', STATE_AT)
            for temporary, _ in self._moves:
                with suppress(FileNotFoundError):
                    os.unlink(self._store.path('tmp', temporary))
        except Exception:
            log.exception('mail of an aborted transaction was left in tmp/ of %s', self._store.root)
