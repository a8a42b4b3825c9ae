"""The FIFO that wakes a sleeping processor (as qmail's and nullmailer's do).

What is written into it is a line with the name of each new file, so that the processor need not
look for them; or a zero byte, for whatever else it should look at.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import stat
from collections.abc import Sequence
from contextlib import suppress

from .files import QueueFiles

__all__ = ['WakeUp']

log = logging.getLogger(__name__)

_NAME = 'trigger'

_LOOK = b'\0'

_MOST_BYTES = 4096
"""So many bytes are written in one piece, or not at all (POSIX, PIPE_BUF)."""

_READ_BYTES = 65536

_HAS_SIZE = hasattr(fcntl, 'F_GETPIPE_SZ')

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


class WakeUp:
    """A named pipe beside the folders. If it fails, mail is sent later, never lost."""

    def __init__(self, files: QueueFiles) -> None:
        self._fifo: int | None = None
        self._own: tuple[int, int] | None = None
        self._folders = files.folders
        self._path = f'{files.root}/{_NAME}'
        self._mode = files.permissions.file
        self._pid = 0
        self._woken = False
        self._names: list[str] | None = None
        self._room = 0
        """Bytes in the FIFO below which every write has found room: each may begin a new page,
        because it is in one piece, so half of the pages may be empty."""

    def __del__(self) -> None:
        # A queue that is dropped, as by each test of an application, leaves no pipe open.
        self.close()

    def notify(self, names: Sequence[str] = ()) -> None:
        """Wake a processor, if one waits, in whatever process. Never raises, never blocks.

        ``names``: those of new files, if nothing else has changed.
        """
        lines = ''.join([f'{name}\n' for name in names]).encode()
        try:
            root = self._folders.directory('')
            descriptor = root.open(_NAME, os.O_WRONLY | _FLAGS)
        except OSError:
            return
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, lines if 0 < len(lines) <= _MOST_BYTES else _LOOK)
        except OSError:
            pass
        finally:
            with suppress(OSError):
                os.close(descriptor)

    def wait(self, timeout: float) -> bool:
        """Sleep until ``notify`` or ``wake``; return False after ``timeout`` seconds."""
        self.listen()
        # What came meanwhile made no noise: the caller scans again.
        self._woken = self._reopened() or self._woken
        assert self._own is not None
        poll = select.poll()
        descriptors = [self._own[0]]
        if self._fifo is not None:
            descriptors.append(self._fifo)
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        ready = poll.poll(0 if self._woken else max(timeout, 0.0) * 1000)
        named, data = not self._woken, b''
        woken, self._woken = self._woken or bool(ready), False
        for descriptor, _ in ready:
            with suppress(BlockingIOError):
                data += os.read(descriptor, _READ_BYTES)
        self._names = None
        if named and data.endswith(b'\n') and _LOOK not in data and len(data) < self._room:
            self._names = data.decode('ascii', 'replace').splitlines()
        return woken

    def take_names(self) -> list[str] | None:
        """Return, once, the names of the new files that have ended the last wait; None if more than
        they may be new."""
        names, self._names = self._names, None
        return names

    def wake(self) -> None:
        """End the wait of this process, now or next. Safe in a signal handler."""
        self._woken = True
        if self._own is not None and self._pid == os.getpid():
            with suppress(OSError):
                os.write(self._own[1], b'\0')

    def listen(self) -> None:
        """Open the pipes; from then on no call of ``notify`` is missed. Raises OSError."""
        if self._own is not None and self._pid == os.getpid():
            return
        self.close()
        self._own, self._pid = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC), os.getpid()
        self._listen()
        if self._fifo is None:
            log.warning(
                '%s cannot be used as a wake-up FIFO: new mail is only noticed by the regular scan',
                self._path,
            )

    def _listen(self) -> None:
        """Make the FIFO if it is missing, and open it if possible."""
        with suppress(OSError):
            root = self._folders.directory('')
            with suppress(FileExistsError):
                root.mkfifo(_NAME, self._mode)
            # Open for reading and writing: the pipe never reports an end when writers come and go.
            fifo = root.open(_NAME, os.O_RDWR | _FLAGS)
            mode = os.fstat(fifo).st_mode
            if stat.S_ISFIFO(mode):
                self._fifo = fifo
                self._room = fcntl.fcntl(fifo, fcntl.F_GETPIPE_SZ) // 2 if _HAS_SIZE else 0
                if stat.S_IMODE(mode) != self._mode:
                    os.fchmod(fifo, self._mode)  # only its owner succeeds
            else:
                os.close(fifo)

    def _reopened(self) -> bool:
        """Open the FIFO again if it was removed or replaced; return whether that was so. Never
        raises an OSError."""
        fifo = self._fifo
        try:
            root = self._folders.directory('')
            there = root.lstat(_NAME)
            if fifo is not None and os.path.samestat(there, os.fstat(fifo)):
                return False
        except OSError:
            pass  # it was removed
        self._fifo = None
        self._listen()
        if fifo is not None:
            os.close(fifo)
            log.warning(
                '%s was removed or replaced while this process was using it; %s',
                self._path,
                'new mail is only noticed by the regular scan'
                if self._fifo is None
                else 'it was opened again, and made if it was missing',
            )
        return self._fifo is not None

    def close(self) -> None:
        descriptors = [*(self._own or ()), self._fifo]
        self._own = self._fifo = None
        for descriptor in descriptors:
            if descriptor is not None:
                with suppress(OSError):
                    os.close(descriptor)
