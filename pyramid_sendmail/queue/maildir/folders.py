"""The folders of a queue: opened, checked, and checked again while they are in use."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress

from ...exceptions import QueueError
from .directory import Directory
from .parents import parents_text
from .permissions import Permissions

__all__ = ['FOLDERS', 'QueueFolders']

log = logging.getLogger(__name__)

FOLDERS = ('tmp', 'new', 'cur', 'done', 'failed')
_REASONS = 'reasons'

_CHECK_INTERVAL = 30.0
"""Seconds after which a process that puts mail looks again at who may write to the folders."""

_REMEDIES = {
    errno.ENOSPC: 'make room on the disk',
    errno.EDQUOT: 'raise the quota of this user',
    errno.EROFS: 'mount it read-write, or set mail.queue_path to another disk',
    errno.EACCES: 'give this user the right to write there',
    errno.EMFILE: 'raise the limit of open files (ulimit -n)',
}


class QueueFolders:
    """The folders below ``root``, and ``root`` itself. They stay open: see Directory."""

    def __init__(
        self, root: str, permissions: Permissions, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._path = root.rstrip('/') or '/'
        self._permissions = permissions
        self._clock = clock
        self._open: dict[str, Directory] = {}
        self._owner: int | None = None
        """The user for whom the queue was prepared."""
        self._state: tuple[tuple[tuple[int, ...], ...], str] = ((), '')
        """What ``check`` compares: identity, owner and mode of all that leads to a file."""
        self._new: tuple[int, int] | None = None
        """Device and inode of ``new/``, once the queue is prepared."""
        self._checked_at = 0.0

    def directory(self, folder: str) -> Directory:
        """Return an open folder; '' is that of the queue. Raises OSError."""
        # Keep it in a variable while it is used: see Directory.
        found = self._open.get(folder)
        if found is not None:
            return found
        found = Directory(folder, inside=self.directory('')) if folder else Directory(self._path)
        return self._open.setdefault(folder, found)

    def ready(self) -> None:
        """Prepare the folders, once for each user of the process; later on notice if they were
        replaced, or are open to others now. Raises QueueError.

        One system call, save every _CHECK_INTERVAL seconds.
        """
        if self._owner != os.geteuid():
            self.prepare()
        elif abs(self._clock() - self._checked_at) >= _CHECK_INTERVAL:
            self.check()
        elif self._new != _identity(f'{self._root}/new'):
            self._mend()

    def check(self) -> None:
        """Look at owner and mode of each folder, and of those above the queue; prepare the queue
        anew if anything has changed. Raises QueueError."""
        if self._owner != os.geteuid():
            self.prepare()
            return
        try:
            found = [os.lstat(f'{self._path}/{name}') for name in FOLDERS]
            state = _state_of([os.lstat(self._path), *found]), parents_text(self._path)
        except OSError:
            state = (), ''
        if state == self._state:
            reasons = self._open.get(_REASONS)
            if reasons is not None and _identity(f'{self._path}/{_REASONS}') != _key(reasons):
                del self._open[_REASONS]
            self._checked_at = self._clock()
        elif [each[:2] for each in state[0]] == [each[:2] for each in self._state[0]]:
            self.prepare()
        else:
            self._mend()

    def _mend(self) -> None:
        self.prepare()
        log.warning(
            'queue %s: a folder was removed or replaced while this process was using it; the '
            'folders were opened again, and made where they were missing',
            self._root,
        )

    def prepare(self) -> None:
        """Make the folders that are missing, and check their permissions. Raises QueueError."""
        permissions, root = self._permissions, self._root
        self._owner = None
        try:
            top = permissions.open_root(root)
            found = {name: permissions.open_folder(root, top, name) for name in FOLDERS}
            states = [each.stat() for each in (top, *found.values())]
            with suppress(FileNotFoundError, NotADirectoryError):  # nothing is written to a file
                found[_REASONS] = permissions.open_folder(root, top, _REASONS, make=False)
            self._state = _state_of(states), parents_text(self._path)
        except QueueError:
            raise
        except OSError as error:
            raise self.error('cannot be created', error) from error
        self._open = {'': top, **found}
        self._new = _key(found['new'])
        self._owner, self._checked_at = os.geteuid(), self._clock()

    def make_reasons(self) -> Directory:
        """Make ``reasons/``, which was missing or was removed. Raises OSError."""
        top = self.directory('')
        made = self._open[_REASONS] = self._permissions.open_folder(self._root, top, _REASONS)
        return made

    def refresh(self) -> None:
        """Close the folders if one was removed or replaced; make none. Raises OSError."""
        for name, directory in list(self._open.items()):
            path = f'{self._path}/{name}' if name else self._path
            if _identity(path) != _key(directory):
                self.close()
                return

    def close(self) -> None:
        """Close the folders. They are opened again when they are used again."""
        self._open, self._owner = {}, None

    def error(self, what: str, error: OSError) -> QueueError:
        """Return a QueueError that says what the queue cannot do, why, and the remedy."""
        reason = error.strerror or str(error)
        if error.errno == errno.EROFS:
            reason = 'the file system is read-only'
        remedy = _REMEDIES.get(error.errno or 0, 'see mail.queue_path')
        return QueueError(error.errno, f'queue {self._root} {what}: {reason}; {remedy}', self._root)


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of what is there; None if nothing can be seen there."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _key(directory: Directory) -> tuple[int, int]:
    found = directory.stat()
    return found.st_dev, found.st_ino


def _state_of(found: list[os.stat_result]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        [(each.st_dev, each.st_ino, each.st_mode, each.st_uid, each.st_gid) for each in found]
    )
