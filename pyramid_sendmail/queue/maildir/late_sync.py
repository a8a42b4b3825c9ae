"""Syncs of ``new/`` that no commit waits for: those of ``mail.queue_sync = vote``.

The vote has synced the file, so a power cut loses no mail. What has not reached the disk yet is the
move to ``new/``: after a power cut the mail of the last LATE_SYNC seconds may be in ``tmp/``, voted
and in doubt. A process that is killed loses nothing: the system keeps what it did.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ...threads import BackgroundThreads
from .directory import Directory

__all__ = ['LATE_SYNC', 'LateSync']

log = logging.getLogger(__name__)

LATE_SYNC = 0.05
"""Seconds from a commit to the sync of its mail, beside the time that the disk takes."""

_GATHER_TIME = 0.4 * LATE_SYNC
"""Seconds for which a commit waits for others, to be synced with them."""

IDLE_TIME = 5.0
"""Seconds without a commit after which the thread ends; the next commit starts another one."""

THREAD = 'pyramid_sendmail late sync'


class LateSync:
    """Syncs folders soon, in a thread of its own. ``sync(folder)`` raises OSError; ``root`` is for
    the log."""

    def __init__(self, sync: Callable[[Directory], object], root: str) -> None:
        self._sync = sync
        self._root = root
        self._threads = BackgroundThreads(self._reset, self._finish)
        self._reset()

    def _reset(self) -> None:
        """After a fork: the parent syncs what it published."""
        self._changed = threading.Condition()
        self._syncing = threading.Lock()
        self._wanted: list[Directory] = []
        """Several where the queue was replaced: what was published is in the folder of then."""

    def request(self, folder: Directory) -> None:
        """Have a folder synced within LATE_SYNC seconds. Never raises an OSError."""
        with self._changed:
            if folder not in self._wanted:
                self._wanted.append(folder)
            self._changed.notify()
        try:
            self._threads.start(THREAD, self._run)
        except RuntimeError:
            self._sync_now()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._wanted), IDLE_TIME):
                    # Within the lock: the next commit must not count on this thread.
                    self._threads.forget(THREAD)
                    return
            # One sync for all commits of this time.
            time.sleep(_GATHER_TIME)
            self._sync_now()

    def _sync_now(self) -> None:
        with self._syncing:
            with self._changed:
                folders, self._wanted = self._wanted, []
            for folder in folders:
                try:
                    self._sync(folder)
                except OSError as error:
                    log.critical(
                        '%s: new/ could not be synced: committed mail is there, but after a power '
                        'cut it may be in doubt: %s',
                        self._root,
                        error,
                    )

    def _finish(self, seconds: float) -> None:
        """The process exits."""
        if self._wanted:
            self._sync_now()
