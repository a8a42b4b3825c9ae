"""Files, folders and locks: the few operations on the file system that the queue needs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf

from ...exceptions import QueueError
from ...threads import after_fork
from ..history import printable
from .directory import Directory
from .folders import QueueFolders
from .permissions import Permissions
from .users import user_name

__all__ = ['FLAGS', 'QueueFiles']

log = logging.getLogger(__name__)

_LOGGED_NAMES = 1_000
"""Files, at most, of which each is logged once: those that only another user can read, and the
like."""

_CAN_ADVISE = hasattr(os, 'posix_fadvise')

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""How a file is opened that is read and written: a link is refused, a FIFO not waited for."""

_NOT_PLAIN = (errno.ELOOP, errno.ENXIO, errno.EISDIR)
"""What ``open`` answers for a link, a socket, a folder."""


class QueueFiles:
    """The five folders below ``root``, and the files that are open in them.

    ``sync``: False leaves out every fsync. ``group``: see Permissions. A lock (flock) belongs to an
    open file, which a forked child shares: so the child closes what it inherited, and the parent
    unlocks a file before it closes it.

    Files are reached through open folders: see Directory. A method that takes a folder takes its
    name, or one that is open, which may be another one by now than that of the name.
    """

    def __init__(
        self,
        root: str,
        *,
        sync: bool = True,
        group: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.sync = sync
        self.has_failed = False
        """Whether something went wrong since this was set to False."""
        self.permissions = Permissions(group)
        self.folders = QueueFolders(root, self.permissions, clock)
        self._open: dict[int, int] = {}
        """Sizes of open files; they never change."""
        self._logged: set[str] = set()
        after_fork(self.close_inherited)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.root!r})'

    def path(self, folder: str, name: str) -> str:
        """Return the path of a file, for texts."""
        return f'{self.root}/{folder}/{name}'

    def rename(
        self, folder: str | Directory, name: str, to: str | Directory, new_name: str
    ) -> bool:
        """Move a file; return False if it is gone. Make the folder if it was removed."""
        source, target = self._directory(folder), self._directory(to)
        try:
            source.rename(name, target, new_name)
        except FileNotFoundError:
            if not source.holds(name):
                return False
            if not isinstance(to, str):
                raise
            self.folders.prepare()
            source, target = self._directory(folder), self._directory(to)
            source.rename(name, target, new_name)
        return True

    def _directory(self, folder: str | Directory) -> Directory:
        return self.folders.directory(folder) if isinstance(folder, str) else folder

    def unlink(self, folder: str | Directory, name: str) -> None:
        directory = self._directory(folder)
        directory.unlink(name)

    def lstat(self, folder: str, name: str) -> os.stat_result:
        directory = self.folders.directory(folder)
        return directory.lstat(name)

    def holds(self, folder: str, name: str) -> bool:
        """Whether a folder holds something of that name. Never raises an OSError."""
        try:
            self.lstat(folder, name)
        except (OSError, ValueError):
            return False
        return True

    @contextmanager
    def entries(self, folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """List a folder. Raises FileNotFoundError if it is missing, and other OSErrors."""
        directory = self.folders.directory(folder)
        with directory.entries() as entries:
            yield entries

    def names(self, folder: str) -> list[str]:
        """Return the names of all that lies in a folder. Raises as ``entries`` does."""
        directory = self.folders.directory(folder)
        return directory.names()

    def create(self, folder: str | Directory, name: str) -> int | None:
        """Create a file and lock it; return None if another process locked it first.

        Raises FileExistsError and other OSErrors.
        """
        directory = self._directory(folder)
        if self.permissions.group:
            descriptor = self._create_shared(directory, name)
        else:
            descriptor = directory.open(name, FLAGS | os.O_CREAT | os.O_EXCL)
            self._open[descriptor] = 0
        try:
            return None if self._locked(descriptor, directory, name) is None else descriptor
        except BaseException:
            with suppress(OSError):
                directory.unlink(name)
            raise

    def _create_shared(self, directory: Directory, name: str) -> int:
        """Create a file that gets its mode before its name, so that the other user of a shared
        queue never finds one that is unreadable. ``sweep`` removes what a dead process leaves."""
        root, making = self.folders.directory(''), f'making-{name}'
        while True:
            descriptor = root.open(making, FLAGS | os.O_CREAT | os.O_EXCL, self.permissions.file)
            self._open[descriptor] = 0
            try:
                os.fchmod(descriptor, self.permissions.file)
                if directory.holds(name):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
                root.rename(making, directory, name)
            except BaseException as error:
                self.close(descriptor)
                try:
                    root.unlink(making)
                except FileNotFoundError:
                    if isinstance(error, FileNotFoundError):
                        continue  # another process's sweep has removed it
                raise
            return descriptor

    def open(self, folder: str, name: str) -> int | None:
        """Open and lock an existing file; return None if it is gone or locked by another process.

        Raises ValueError for something that cannot be used as a mail. In a shared queue a file
        that only another user can read is left to the processes of that user: returns None.
        """
        directory = self.folders.directory(folder)
        try:
            descriptor = directory.open(name, FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise ValueError('it is not a plain file') from error
            if error.errno in (errno.EACCES, errno.EPERM):
                reason = f'it may not be read and written by user {user_name(os.geteuid())}'
                if not self.permissions.group:
                    raise ValueError(reason) from error
                self._log_left(self.path(folder, name), reason)
                return None
            raise
        self._open[descriptor] = 0
        size = self._locked(descriptor, directory, name)
        if size is None:
            return None
        self._open[descriptor] = size
        return descriptor

    def _log_left(self, path: str, reason: str) -> None:
        if self.first_time(path):
            log.error(
                '%s stays where it is: %s; chmod 660 it, and set mail.queue_mode = group for every '
                'process that puts mail there',
                printable(path),
                reason,
            )

    def first_time(self, name: str) -> bool:
        """Whether a file has not been logged yet, by this name; False once very many were."""
        if name in self._logged or len(self._logged) >= _LOGGED_NAMES:
            return False
        self._logged.add(name)
        return True

    def open_reason(self, name: str, flags: int) -> int:
        """Open a file of ``reasons/`` for writing; create it and the folder if needed."""
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            directory = self.folders.directory('reasons')
            descriptor = directory.open(name, flags, self.permissions.file)
        except FileNotFoundError:
            directory = self.folders.make_reasons()
            descriptor = directory.open(name, flags, self.permissions.file)
        self.permissions.opened(descriptor)
        return descriptor

    def _locked(self, descriptor: int, directory: Directory, name: str) -> int | None:
        """Lock an open file; return its size in bytes, or close it and return None.

        After the lock the name must still be this file's: between the open and the lock another
        process may have removed it, or moved it after settling the mail.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.fstat(descriptor)
            if not stat.S_ISREG(here.st_mode):
                raise ValueError('it is not a plain file')
            there = directory.lstat(name)
        except (BlockingIOError, FileNotFoundError):
            self.close(descriptor)
            return None
        except BaseException:
            self.close(descriptor)
            raise
        if here.st_ino != there.st_ino or here.st_dev != there.st_dev:
            self.close(descriptor)
            return None
        return here.st_size

    def unlock(self, descriptor: int) -> None:
        """Unlock an open file, which may be unlocked already. Never raises an OSError."""
        if descriptor not in self._open:
            return  # inherited by a fork, and closed after it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            # The close unlocks as well, unless a forked child has the file open.
            log.debug('%s: a file could not be unlocked: %s', self.root, error)

    def close(self, descriptor: int, *, locked: bool = True) -> None:
        """Unlock and close. Never raises an OSError. ``locked``: False after ``unlock``."""
        # In this order: an interrupt between the two leaves no file locked.
        if locked:
            self.unlock(descriptor)
        if self._open.pop(descriptor, None) is None:
            return
        try:
            os.close(descriptor)
        except OSError as error:
            log.debug('%s: a file could not be closed: %s', self.root, error)

    def read_unlocked(self, folder: str, name: str, limit: int = -1) -> bytes:
        """Read a file, or its first ``limit`` bytes, without a lock; never wait for a FIFO.

        Raises ValueError if it is not a plain file, and OSError.
        """
        directory = self.folders.directory(folder)
        try:
            descriptor = directory.open(name, _READ_FLAGS)
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise ValueError('it is not a plain file') from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError('it is not a plain file')
            with open(descriptor, 'rb', closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(descriptor)

    def read(self, descriptor: int, limit: float = inf) -> bytes:
        """Read an open file, or its first ``limit`` bytes."""
        size = int(min(self._open[descriptor], limit))
        data = os.pread(descriptor, size, 0)
        while len(data) < size and (part := os.pread(descriptor, size - len(data), len(data))):
            data += part
        return data

    def size(self, descriptor: int) -> int:
        """Return the bytes of an open file."""
        return self._open[descriptor]

    def read_at(self, descriptor: int, size: int, at: int) -> bytes:
        """Read ``size`` bytes from a place on, or fewer at the end of the file."""
        if descriptor not in self._open:
            raise OSError(errno.EBADF, 'the file was opened before a fork')
        return os.pread(descriptor, size, at)

    def write(self, descriptor: int | None, data: bytes, at: int = 0) -> None:
        """Write all of the data in place. Raises OSError, also for a released claim."""
        if descriptor is None or descriptor not in self._open:
            raise OSError(errno.EBADF, 'the file was released, or opened before a fork')
        written = os.pwrite(descriptor, data, at)
        while written < len(data):
            data, at = data[written:], at + written
            written = os.pwrite(descriptor, data, at)

    def begin_sync(self, descriptor: int) -> None:
        """Have the system start to write the file to the disk, without waiting for it.

        Of several files the later ``sync_file`` calls then do not wait one after the other. A hint;
        never raises an OSError.
        """
        if self.sync and _CAN_ADVISE:
            with suppress(OSError):
                # For data that is not yet on the disk, this only starts the write-back.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def begin_read(self, folder: str, name: str, size: int) -> None:
        """Have the system start to read the first ``size`` bytes of a file. A hint; never raises
        an OSError."""
        if _CAN_ADVISE:
            with suppress(OSError):
                directory = self.folders.directory(folder)
                descriptor = directory.open(name, _READ_FLAGS)
                try:
                    os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def sync_file(self, descriptor: int) -> None:
        if self.sync:
            os.fsync(descriptor)

    def sync_folder(self, folder: str | Directory) -> None:
        """Make the folder's entries survive a power cut."""
        if self.sync:
            directory = self._directory(folder)
            directory.sync()

    def error(self, what: str, error: OSError) -> QueueError:
        """See QueueFolders.error."""
        self.has_failed = True
        return self.folders.error(what, error)

    def close_inherited(self) -> None:
        """Close what the parent of this process has open. Called in a forked child."""
        for descriptor in self._open:
            with suppress(OSError):
                os.close(descriptor)
        self._open.clear()
        # A child that becomes a daemon closes all descriptors: it opens its own.
        self.folders.close()
