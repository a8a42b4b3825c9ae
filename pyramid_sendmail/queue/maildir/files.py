"""Files, folders and locks: the few operations on the file system that the queue is made of."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import threading
import weakref
from contextlib import suppress
from math import inf

from ...exceptions import QueueError
from ...threads import blocking
from .permissions import Permissions

__all__ = ['FOLDERS', 'Store']

log = logging.getLogger(__name__)

FOLDERS = ('tmp', 'new', 'cur', 'done', 'failed')
_REASONS = 'reasons'

_PROBE = re.compile(r'(?:lock-)?probe-[0-9]+-[0-9]+|making-[0-9a-f.-]+')

_LEFT = 1_000
"""Files that only another user can read, each said once."""

_CAN_ADVISE = hasattr(os, 'posix_fadvise')

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Store:
    """The five folders below ``root``, with everything opened there kept track of.

    ``group``: see Permissions. A lock (flock) belongs to an open file, which a forked child shares:
    the child closes what it inherited, and the parent unlocks before it closes.
    """

    def __init__(self, root: str, *, sync: bool = True, group: bool = False) -> None:
        self.root = root
        self.sync = sync
        self.permissions = Permissions(group)
        self._open: dict[int, int] = {}
        """How large each file was when it was opened; it is locked, and changes in place alone."""
        self._left: set[str] = set()
        self._owner: int | None = None
        reference = weakref.ref(self)

        def forget() -> None:
            store = reference()
            if store is not None:
                store._forget()

        os.register_at_fork(after_in_child=forget)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.root!r})'

    def path(self, folder: str, name: str) -> str:
        return f'{self.root}/{folder}/{name}'

    def ready(self) -> None:
        """Prepare it once, or again for another user. Raises QueueError."""
        if self._owner != os.geteuid():
            self.prepare()

    def prepare(self) -> None:
        """Make the folders that are missing; check who may use them. Raises QueueError."""
        folders = [f'{self.root}/{name}' for name in FOLDERS]
        try:
            self.permissions.prepare(self.root, folders, besides=f'{self.root}/{_REASONS}')
        except QueueError:
            raise
        except OSError as error:
            raise self.error('cannot be made', error) from error
        self._owner = os.geteuid()

    def prove_locks(self) -> None:
        """Prove that a second open of a locked file is refused its lock."""
        path = f'{self.root}/lock-probe-{os.getpid()}-{threading.get_ident()}'
        descriptors: list[int] = []
        try:
            while True:
                descriptors.append(os.open(path, _FLAGS | os.O_CREAT, 0o600))
                # Not made a second time: two files would not exclude each other.
                with suppress(FileNotFoundError):  # swept away
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
                'locks (flock) do not exclude anybody on this file system, so that mail could be '
                'sent twice: set mail.queue_path to a local disk',
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
                with suppress(FileNotFoundError):  # swept away
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
            raise self.error('cannot record what becomes of its mail', error) from error

    def sweep(self) -> None:
        """Remove the probes of processes that stopped over them. It does no harm to one that
        is in use."""
        with suppress(OSError):
            for name in os.listdir(self.root):
                if _PROBE.fullmatch(name):
                    with suppress(FileNotFoundError):
                        os.unlink(f'{self.root}/{name}')

    def rename(self, folder: str, name: str, to: str, new_name: str) -> bool:
        """Move a file, making the folder if somebody has removed it; False if the file is gone."""
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
        """Make a new file, locked; None if somebody else has it already."""
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
        """A new file that has its mode before it has its name: never does the other user find one
        that he cannot read. What a stopped process leaves of it, beside the folders, is swept."""
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
                        continue  # swept away
                raise
            return descriptor

    def open(self, path: str) -> int | None:
        """Open an existing file for us alone; None if it is gone or somebody else has it.

        Raises ValueError for what is no file that could be used. What only another user of a
        shared queue can read is his to use: it stays.
        """
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise ValueError('it is not a plain file') from error
            if error.errno in (errno.EACCES, errno.EPERM):
                reason = f'it may not be read and written by user {os.geteuid()}'
                if not self.permissions.group:
                    raise ValueError(reason) from error
                self._leave(path, reason)
                return None
            raise
        self._open[descriptor] = 0
        size = self._locked(descriptor, path)
        if size is None:
            return None
        self._open[descriptor] = size
        return descriptor

    def _leave(self, path: str, reason: str) -> None:
        if path not in self._left and len(self._left) < _LEFT:
            self._left.add(path)
            log.error(
                '%s stays where it is: %s: chmod 660 it, and set mail.queue_mode = group for every '
                'process that puts mail there',
                path,
                reason,
            )

    def open_reason(self, name: str, flags: int) -> int:
        """Open a file of ``reasons/`` for writing, making what is not there."""
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
        """Lock, then see that the path still names this file: it may have been removed, or moved
        and settled, between the open and the lock. Return its size; close it and return None where
        it is not to be had."""
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
            return  # inherited from before a fork, and closed there
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            # Closing unlocks, but in a forked child.
            log.debug('%s: a file could not be unlocked: %s', self.root, error)
        try:
            os.close(descriptor)
        except OSError as error:
            log.debug('%s: a file could not be closed: %s', self.root, error)

    def read(self, descriptor: int, limit: float = inf) -> bytes:
        """The whole of a file that was opened, or the first octets of a longer one."""
        size = int(min(self._open[descriptor], limit))
        data = os.pread(descriptor, size, 0)
        while len(data) < size and (part := os.pread(descriptor, size - len(data), len(data))):
            data += part
        return data

    def read_at(self, descriptor: int, octets: int, at: int) -> bytes:
        """So many octets, or those up to the file's end."""
        if descriptor not in self._open:
            raise OSError(errno.EBADF, 'it was opened before a fork')
        return os.pread(descriptor, octets, at)

    def write(self, descriptor: int | None, data: bytes, at: int = 0) -> None:
        """Write all of it, in place."""
        if descriptor is None or descriptor not in self._open:
            raise OSError(errno.EBADF, 'it was released, or opened before a fork')
        written = os.pwrite(descriptor, data, at)
        while written < len(data):
            data, at = data[written:], at + written
            written = os.pwrite(descriptor, data, at)

    def begin_sync(self, descriptor: int) -> None:
        """Have the system write the file while we do something else: of several files that are
        synced then, each does not wait for the one before. A hint; never raises an OSError."""
        if self.sync and _CAN_ADVISE:
            with suppress(OSError):
                # Of what is not yet on disk, all that this does is to begin with it.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def begin_read(self, path: str, octets: int) -> None:
        """Have the system read the first octets of a file while we do something else. A hint;
        never raises an OSError."""
        if _CAN_ADVISE:
            with suppress(OSError):
                descriptor = os.open(path, _READ_FLAGS)
                try:
                    os.posix_fadvise(descriptor, 0, octets, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def sync_file(self, descriptor: int) -> None:
        if self.sync:
            with blocking():
                os.fsync(descriptor)

    def sync_folder(self, folder: str) -> None:
        """Make the folder's entries survive a power cut."""
        if not self.sync:
            return
        descriptor = os.open(f'{self.root}/{folder}', os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            with blocking():
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def error(self, what: str, error: OSError) -> QueueError:
        """The same error with the queue's name and a remedy."""
        remedy = {
            errno.ENOSPC: 'make room on the disk',
            errno.EDQUOT: 'raise the quota of this user',
            errno.EROFS: 'the file system is read-only',
            errno.EACCES: 'give this user the right to write there',
            errno.EMFILE: 'raise the limit of open files (ulimit -n)',
        }.get(error.errno or 0, 'see mail.queue_path')
        return QueueError(
            error.errno, f'the queue {what}: {error.strerror or error}; {remedy}', self.root
        )

    def _forget(self) -> None:
        for descriptor in self._open:
            with suppress(OSError):
                os.close(descriptor)
        self._open.clear()


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
