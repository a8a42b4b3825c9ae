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
from .parents import parents_of, state_of
from .permissions import Permissions
from .recognition import FOLDERS, require_queue

__all__ = ['QueueFolders']

log = logging.getLogger(__name__)

_REASONS = 'reasons'

_CHECK_INTERVAL = 1.0
"""Seconds after which a put or a claim looks again at all folders. More often would cost each mail
six system calls."""

_PARENTS_INTERVAL = 30.0
"""Seconds after which a process looks again at the folders above the queue."""

_State = tuple[int, int, int, int, int]

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
        self._paths = [self._path, *[f'{self._path}/{name}' for name in FOLDERS]]
        self._state: list[_State] = []
        """What ``check`` compares: identity, owner and mode of the folders at ``_paths``."""
        self._above: list[tuple[int | str, ...]] = []
        """The same of the folders above the queue."""
        self._new: tuple[int, int] | None = None
        """Device and inode of ``new/``, once the queue is prepared."""
        self._checked_at = self._parents_checked_at = 0.0

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
        replaced, or are open to others now. Raises QueueError and other OSErrors.

        Two system calls, save every _CHECK_INTERVAL seconds.
        """
        if self._owner != os.geteuid():
            self.prepare()
        elif self._is_due(self._checked_at, _CHECK_INTERVAL):
            self.check()
        elif self._new != _identity(f'{self._root}/new'):
            self._mend()

    def look(self) -> None:
        """Do as ``check`` does before a claim, at most every _CHECK_INTERVAL seconds.

        The errno is ESTALE: EACCES and EPERM would say that a processor should try the next file.
        """
        if self._is_due(self._checked_at, _CHECK_INTERVAL):
            try:
                self.check()
            except OSError as error:
                found = self.error('cannot be claimed from', error)
                raise QueueError(errno.ESTALE, found.strerror, self._root) from error

    def check(self) -> None:
        """Look at owner and mode of each folder, and now and then of those above the queue; prepare
        the queue anew if anything has changed. Raises QueueError and other OSErrors."""
        if self._owner != os.geteuid():
            self.prepare()
            return
        state: list[_State] = []
        above, now = self._above, self._clock()
        is_parents_due = self._is_due(self._parents_checked_at, _PARENTS_INTERVAL)
        with suppress(OSError):
            state = [_state_of(os.lstat(path)) for path in self._paths]
            if is_parents_due:
                above = state_of(parents_of(self._path))
        if state == self._state and above == self._above:
            reasons = self._open.get(_REASONS)
            if reasons is not None and not self.is_there(_REASONS, reasons):
                self._open.pop(_REASONS, None)  # another thread may have been here
        elif [each[:2] for each in state] == [each[:2] for each in self._state]:
            self.prepare()
        else:
            self._mend()
        self._checked_at = now
        if is_parents_due:
            self._parents_checked_at = now

    def _is_due(self, at: float, interval: float) -> bool:
        # The clock may be set back.
        return abs(self._clock() - at) >= interval

    def _mend(self) -> None:
        self.prepare()
        log.warning(
            'queue %s: a folder was removed or replaced while this process was using it; the '
            'folders were opened again, and made where they were missing',
            self._root,
        )

    def prepare(self) -> None:
        """Make the folders that are missing, and check their permissions.

        Raises QueueError; for a queue that was prepared before, other OSErrors as well: the caller
        knows what it cannot do.
        """
        permissions, root = self._permissions, self._root
        self._owner = None
        try:
            parents = parents_of(self._path)
            permissions.check_parents(root, parents)
            top = permissions.open_root(root)
            if not parents or parents[-1].entry != self._path:
                parents = parents_of(self._path)
            permissions.check_parents(root, parents, group=top.found.st_gid)
            if not self._state:  # a queue in use may have lost its folders
                require_queue(root, top)
            found = {name: permissions.open_folder(root, top, name) for name in FOLDERS}
            self._above = state_of(parents)
            self._state = [_state_of(each.found) for each in (top, *found.values())]
            with suppress(FileNotFoundError, NotADirectoryError):  # nothing is written to a file
                found[_REASONS] = permissions.open_folder(root, top, _REASONS, make=False)
        except QueueError:
            raise
        except OSError as error:
            if self._state:
                raise
            raise self.error('cannot be created', error) from error
        self._open = {'': top, **found}
        self._new = _key(found['new'])
        self._owner = os.geteuid()
        self._checked_at = self._parents_checked_at = self._clock()

    def is_there(self, folder: str, directory: Directory) -> bool:
        """Whether an open folder is the one that has its path now. One system call."""
        return _identity(f'{self._path}/{folder}') == _key(directory)

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
        """Return a QueueError that says what the queue cannot do, why, and the remedy.

        A QueueError that the folders have raised says more: its text is kept.
        """
        if isinstance(error, QueueError):
            return QueueError(error.errno, error.strerror, self._root)
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
    return directory.found.st_dev, directory.found.st_ino


def _state_of(found: os.stat_result) -> _State:
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_gid
