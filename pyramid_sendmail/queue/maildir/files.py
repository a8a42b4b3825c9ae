"""Files, folders and locks: the few operations on the file system that the queue needs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import threading
from contextlib import suppress
from math import inf

from ...exceptions import QueueError
from ...threads import after_fork
from .permissions import Permissions, user_name

__all__ = ['FOLDERS', 'QueueFiles']

log = logging.getLogger(__name__)

FOLDERS = ('tmp', 'new', 'cur', 'done', 'failed')
_REASONS = 'reasons'

_PROBE = re.compile(r'(?:lock-)?probe-[0-9]+-[0-9]+|making-[0-9a-f.-]+')

_LOGGED_NAMES = 1_000
"""Files that only another user can read, at most, of which each is logged once."""

_REMEDIES = {
    errno.ENOSPC: 'make room on the disk',
    errno.EDQUOT: 'raise the quota of this user',
    errno.EROFS: 'mount it read-write, or set mail.queue_path to another disk',
    errno.EACCES: 'give this user the right to write there',
    errno.EMFILE: 'raise the limit of open files (ulimit -n)',
}

_CAN_ADVISE = hasattr(os, 'posix_fadvise')

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_NOT_PLAIN = (errno.ELOOP, errno.ENXIO, errno.EISDIR)
"""What ``open`` answers for a link, a socket, a folder."""


class QueueFiles:
    """The five folders below ``root``, and the files that are open in them.

    ``sync``: False leaves out every fsync. ``group``: see Permissions. A lock (flock) belongs to an
    open file, which a forked child shares: so the child closes what it inherited, and the parent
    unlocks a file before it closes it.
    """

    def __init__(self, root: str, *, sync: bool = True, group: bool = False) -> None:
        self.root = root
        self.sync = sync
        self.permissions = Permissions(group)
        self._open: dict[int, int] = {}
        """Sizes of open files; they never change."""
        self._logged: set[str] = set()
        self._owner: int | None = None
        after_fork(self.close_inherited)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.root!r})'

    def path(self, folder: str, name: str) -> str:
        return f'{self.root}/{folder}/{name}'

    def ready(self) -> None:
        """Prepare the folders, once for each user of the process. Raises QueueError."""
        if self._owner != os.geteuid():
            self.prepare()

    def prepare(self) -> None:
        """Make the folders that are missing, and check their permissions. Raises QueueError."""
        folders = [f'{self.root}/{name}' for name in FOLDERS]
        try:
            self.permissions.prepare(self.root, folders, besides=f'{self.root}/{_REASONS}')
        except QueueError:
            raise
        except OSError as error:
            raise self.error('cannot be created', error) from error
        self._owner = os.geteuid()

    def prove_locks(self) -> None:
        """Prove that a second open of a locked file is refused its lock."""
        path = f'{self.root}/lock-probe-{os.getpid()}-{threading.get_ident()}'
        descriptors: list[int] = []
        try:
            while True:
                descriptors.append(os.open(path, _FLAGS | os.O_CREAT, 0o600))
                # The second open must not create the file: two files would not exclude each other.
                with suppress(FileNotFoundError):  # another process's sweep has removed it
                    descriptors.append(os.open(path, _FLAGS))
                    break
                os.close(descriptors.pop())
            fcntl.flock(descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(descriptors[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            raise QueueError(
                errno.ENOLCK,
                f'queue {self.root}: locks (flock) have no effect on this file system, so mail '
                'could be sent twice; set mail.queue_path to a local disk',
                self.root,
            )
        except QueueError:
            raise
        except OSError as error:
            raise self.error('cannot lock its files', error) from error
        finally:
            with suppress(OSError):
                os.unlink(path)
            for descriptor in descriptors:
                with suppress(OSError):
                    os.close(descriptor)

    def prove_writable(self) -> None:
        """Prove, on a probe beside the folders, that a file can be made, written and removed."""
        path = f'{self.root}/probe-{os.getpid()}-{threading.get_ident()}'
        try:
            descriptor = os.open(path, _FLAGS | os.O_CREAT, 0o600)
            try:
                try:
                    _write(descriptor, b' ' * 4096)
                finally:
                    os.close(descriptor)
            finally:
                with suppress(FileNotFoundError):  # another process's sweep has removed it
                    os.unlink(path)
            for folder in FOLDERS:
                path = f'{self.root}/{folder}'
                if not os.path.isdir(path):
                    self.prepare()
                if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, f'{folder}/ is not writable')
        except QueueError:
            raise
        except OSError as error:
            raise self.error('cannot record the outcome of its mail', error) from error

    def sweep(self) -> None:
        """Remove the probes that dead processes left. Removing one that is in use does no harm."""
        with suppress(OSError):
            for name in os.listdir(self.root):
                if _PROBE.fullmatch(name):
                    with suppress(FileNotFoundError):
                        os.unlink(f'{self.root}/{name}')

    def rename(self, folder: str, name: str, to: str, new_name: str) -> bool:
        """Move a file; return False if it is gone. Make the folder if it was removed."""
        source = self.path(folder, name)
        try:
            os.rename(source, self.path(to, new_name))
        except FileNotFoundError:
            if not os.path.lexists(source):
                return False
            self.prepare()
            os.rename(source, self.path(to, new_name))
        return True

    def create(self, path: str) -> int | None:
        """Create a file and lock it; return None if another process locked it first.

        Raises FileExistsError and other OSErrors.
        """
        if self.permissions.group:
            descriptor = self._create_shared(path)
        else:
            descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            self._open[descriptor] = 0
        try:
            return None if self._locked(descriptor, path) is None else descriptor
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise

    def _create_shared(self, path: str) -> int:
        """Create a file that gets its mode before its name, so that the other user of a shared
        queue never finds one that is unreadable. ``sweep`` removes what a dead process leaves."""
        making = f'{self.root}/making-{os.path.basename(path)}'
        while True:
            descriptor = os.open(making, _FLAGS | os.O_CREAT | os.O_EXCL, self.permissions.file)
            self._open[descriptor] = 0
            try:
                os.fchmod(descriptor, self.permissions.file)
                if os.path.lexists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                os.rename(making, path)
            except BaseException as error:
                self.close(descriptor)
                try:
                    os.unlink(making)
                except FileNotFoundError:
                    if isinstance(error, FileNotFoundError):
                        continue  # another process's sweep has removed it
                raise
            return descriptor

    def open(self, path: str) -> int | None:
        """Open and lock an existing file; return None if it is gone or locked by another process.

        Raises ValueError for something that cannot be used as a mail. In a shared queue a file
        that only another user can read is left to the processes of that user: returns None.
        """
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise ValueError('it is not a plain file') from error
            if error.errno in (errno.EACCES, errno.EPERM):
                reason = f'it may not be read and written by user {user_name(os.geteuid())}'
                if not self.permissions.group:
                    raise ValueError(reason) from error
                self._log_left(path, reason)
                return None
            raise
        self._open[descriptor] = 0
        size = self._locked(descriptor, path)
        if size is None:
            return None
        self._open[descriptor] = size
        return descriptor

    def _log_left(self, path: str, reason: str) -> None:
        if path not in self._logged and len(self._logged) < _LOGGED_NAMES:
            self._logged.add(path)
            log.error(
                '%s stays where it is: %s; chmod 660 it, and set mail.queue_mode = group for every '
                'process that puts mail there',
                path,
                reason,
            )

    def open_reason(self, name: str, flags: int) -> int:
        """Open a file of ``reasons/`` for writing; create it and the folder if needed."""
        path = f'{self.root}/{_REASONS}/{name}'
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags, self.permissions.file)
        except FileNotFoundError:
            self.permissions.make(os.path.dirname(path))
            descriptor = os.open(path, flags, self.permissions.file)
        self.permissions.opened(descriptor)
        return descriptor

    def _locked(self, descriptor: int, path: str) -> int | None:
        """Lock an open file; return its size in bytes, or close it and return None.

        After the lock the path must still name this file: between the open and the lock another
        process may have removed it, or moved it after settling the mail.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.fstat(descriptor)
            if not stat.S_ISREG(here.st_mode):
                raise ValueError('it is not a plain file')
            there = os.stat(path, follow_symlinks=False)
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

    def close(self, descriptor: int) -> None:
        """Unlock and close. Never raises."""
        if self._open.pop(descriptor, None) is None:
            return  # inherited by a fork, and closed after it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            # The close below unlocks as well, unless a forked child has the file open.
            log.debug('%s: a file could not be unlocked: %s', self.root, error)
        try:
            os.close(descriptor)
        except OSError as error:
            log.debug('%s: a file could not be closed: %s', self.root, error)

    def read_unlocked(self, path: str, limit: int = -1) -> bytes:
        """Read a file, or its first ``limit`` bytes, without a lock; never wait for a FIFO.

        Raises ValueError if it is not a plain file, and OSError.
        """
        try:
            descriptor = os.open(path, _READ_FLAGS)
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

    def begin_read(self, path: str, size: int) -> None:
        """Have the system start to read the first ``size`` bytes of a file. A hint; never raises
        an OSError."""
        if _CAN_ADVISE:
            with suppress(OSError):
                descriptor = os.open(path, _READ_FLAGS)
                try:
                    os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def sync_file(self, descriptor: int) -> None:
        if self.sync:
            os.fsync(descriptor)

    def sync_folder(self, folder: str) -> None:
        """Make the folder's entries survive a power cut."""
        if not self.sync:
            return
        descriptor = os.open(f'{self.root}/{folder}', os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def error(self, what: str, error: OSError) -> QueueError:
        """Return a QueueError that says what the queue cannot do, why, and the remedy."""
        reason = error.strerror or str(error)
        if error.errno == errno.EROFS:
            reason = 'the file system is read-only'
        remedy = _REMEDIES.get(error.errno or 0, 'see mail.queue_path')
        return QueueError(error.errno, f'queue {self.root} {what}: {reason}; {remedy}', self.root)

    def close_inherited(self) -> None:
        """Close what the parent of this process has open. Called in a forked child."""
        for descriptor in self._open:
            with suppress(OSError):
                os.close(descriptor)
        self._open.clear()


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
