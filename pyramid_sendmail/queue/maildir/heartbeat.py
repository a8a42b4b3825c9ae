"""The file by which a queue processor shows that it runs: ``processor``, beside the folders.

Its time of change is that of the last renewal. Its lines name the process that renewed it last: of
several processors each writes its own. It stays when they end, so that a cron job each minute
counts as a processor too.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache

from .files import FLAGS, QueueFiles
from .recognition import PROCESSOR_FILE

__all__ = ['HeartbeatFile']

log = logging.getLogger(__name__)


class HeartbeatFile:
    """See the module, and IMonitoredQueue. ``clock``: epoch seconds."""

    def __init__(self, files: QueueFiles, clock: Callable[[], float]) -> None:
        self._files = files
        self._path = f'{files.root}/{PROCESSOR_FILE}'
        self._clock = clock
        self._failed = False

    def renew(self, since: float) -> None:
        """See IMonitoredQueue."""
        try:
            self._replace(self._text(since))
        except FileNotFoundError:
            pass  # the queue's folder was removed, or another process's sweep was here: next time
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning(
                    '%s cannot be written (%s): applications will warn that no queue processor '
                    'runs; give this user the right to write there',
                    self._path,
                    error.strerror or error,
                )
        else:
            self._failed = False

    def last(self) -> float | None:
        """See IMonitoredQueue."""
        try:
            found = os.lstat(self._path)
        except OSError:
            return None
        return found.st_mtime if stat.S_ISREG(found.st_mode) else None

    def _replace(self, text: str) -> None:
        """Write the file anew: its owner may be another user of a shared queue, and a link in its
        place is not followed. ``sweep`` removes what a dead process leaves."""
        permissions = self._files.permissions
        root, making = self._files.folders.directory(''), f'making-{secrets.token_hex(8)}'
        descriptor = root.open(making, FLAGS | os.O_CREAT | os.O_EXCL, permissions.file)
        try:
            try:
                permissions.opened(descriptor)
                os.write(descriptor, text.encode())
                # By the clock that ``last`` is compared with, not by that of the file system.
                now = self._clock()
                os.utime(descriptor, (now, now))
            finally:
                os.close(descriptor)
            root.rename(making, root, PROCESSOR_FILE)
        except BaseException:
            with suppress(OSError):
                root.unlink(making)
            raise

    @staticmethod
    def _text(since: float) -> str:
        return (
            f'pid: {os.getpid()}\n'
            f'host: {os.uname().nodename}\n'
            f'version: {_version()}\n'
            f'since: {_time_text(since)}\n'
        )


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec='seconds')


@cache
def _version() -> str:
    # Only a processor needs it, and it takes as long as a tenth of our modules.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version('pyramid_sendmail')
    except PackageNotFoundError:
        return 'unknown'
