"""An open folder: what lies in it is reached by its descriptor, never by its path.

Another user who shares the queue can put a symbolic link in the place of a folder at any time. A
path would follow it, into a folder of this user's; a descriptor stays with the folder that was
checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ['Directory']

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """A folder, open until the object is gone.

    So a thread that works in a folder does not lose it when another thread finds the queue's folder
    replaced and opens the new one. ``inside``: the folder that it lies in; without it ``name`` is a
    path. Raises OSError, also for a symbolic link.
    """

    __slots__ = ('_descriptor', '_sync_failed', 'found')

    def __init__(self, name: str, *, inside: Directory | None = None) -> None:
        self._descriptor = -1
        self._sync_failed = False
        if inside is None:
            self._descriptor = os.open(name, _FLAGS)
        else:
            self._descriptor = os.open(name, _FLAGS, dir_fd=inside._descriptor)
        self.found = os.fstat(self._descriptor)
        """What the folder was when it was opened, or when ``chmod`` had changed it."""

    def __del__(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)

    def is_same(self, other: Directory) -> bool:
        return os.path.samestat(self.found, other.found)

    def path(self) -> str:
        """Return where the folder is now, for texts; '' if that cannot be found out."""
        try:
            return os.readlink(f'/proc/self/fd/{self._descriptor}')
        except OSError:
            return ''

    def chmod(self, mode: int) -> None:
        os.fchmod(self._descriptor, mode)
        self.found = os.fstat(self._descriptor)

    def sync(self) -> None:
        """Make the folder's entries survive a power cut."""
        if self._sync_failed:
            # The system may report an error only once for an open file.
            anew = Directory('.', inside=self)
            anew.sync()
            return
        try:
            os.fsync(self._descriptor)
        except OSError:
            self._sync_failed = True
            raise

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        return os.open(name, flags, mode, dir_fd=self._descriptor)

    def lstat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)

    def holds(self, name: str) -> bool:
        """Whether there is a file, a folder or a link of that name."""
        try:
            self.lstat(name)
        except (OSError, ValueError):
            return False
        return True

    def may_write(self, name: str) -> bool:
        """Whether this user may list the folder of that name, and change what is in it."""
        return os.access(name, os.R_OK | os.W_OK | os.X_OK, dir_fd=self._descriptor)

    def mkdir(self, name: str, mode: int) -> None:
        os.mkdir(name, mode, dir_fd=self._descriptor)

    def mkfifo(self, name: str, mode: int) -> None:
        os.mkfifo(name, mode, dir_fd=self._descriptor)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._descriptor)

    def rename(self, name: str, to: Directory, new_name: str) -> None:
        os.rename(name, new_name, src_dir_fd=self._descriptor, dst_dir_fd=to._descriptor)

    @contextmanager
    def entries(self) -> Iterator[Iterator[os.DirEntry[str]]]:
        """List the folder. The entries can be used until the end of the context."""
        # Opened anew: two listings that share an open folder, in two threads or in a forked child
        # as well, would share its position.
        descriptor = -1
        try:
            # The link leads to the open folder, whatever has become of its path. It saves five
            # system calls a listing: 1.1 for each mail of a queue of sixty.
            listing = os.scandir(f'/proc/self/fd/{self._descriptor}')
        except OSError:  # no /proc here
            descriptor = os.open('.', _FLAGS, dir_fd=self._descriptor)
            listing = os.scandir(descriptor)
        try:
            with listing as entries:
                yield entries
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def names(self) -> list[str]:
        """Return the names of all that lies in the folder."""
        with self.entries() as entries:
            return [entry.name for entry in entries]
