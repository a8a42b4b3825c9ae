"""Proofs that a queue can be used: locks have an effect, and an outcome can be recorded.

They are made on files beside the folders, so that no scan finds one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import suppress

from ...exceptions import QueueError
from .files import FLAGS, QueueFiles
from .recognition import FOLDERS, is_probe

__all__ = ['prove_locks', 'prove_writable', 'sweep']


def prove_locks(files: QueueFiles) -> None:
    """Prove that a second open of a locked file is refused its lock. Raises QueueError."""
    name = f'lock-probe-{os.getpid()}-{threading.get_ident()}'
    descriptors: list[int] = []
    try:
        root = files.folders.directory('')
        while True:
            descriptors.append(root.open(name, FLAGS | os.O_CREAT))
            # The second open must not create the file: two files would not exclude each other.
            with suppress(FileNotFoundError):  # another process's sweep has removed it
                descriptors.append(root.open(name, FLAGS))
                break
            os.close(descriptors.pop())
        fcntl.flock(descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(descriptors[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise QueueError(
            errno.ENOLCK,
            f'queue {files.root}: locks (flock) have no effect on this file system, so mail could '
            'be sent twice; set mail.queue_path to a local disk',
            files.root,
        )
    except QueueError:
        raise
    except OSError as error:
        raise files.error('cannot lock its files', error) from error
    finally:
        with suppress(OSError):
            files.folders.directory('').unlink(name)
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


def prove_writable(files: QueueFiles) -> None:
    """Prove that a file can be made, written and removed, and that the folders are there. Raises
    QueueError."""
    name = f'probe-{os.getpid()}-{threading.get_ident()}'
    try:
        try:
            root = files.folders.directory('')
            descriptor = root.open(name, FLAGS | os.O_CREAT)
        except FileNotFoundError:  # the queue's folder was removed
            files.folders.prepare()
            root = files.folders.directory('')
            descriptor = root.open(name, FLAGS | os.O_CREAT)
        try:
            try:
                _write(descriptor, b' ' * 4096)
            finally:
                os.close(descriptor)
        finally:
            with suppress(FileNotFoundError):  # another process's sweep has removed it
                root.unlink(name)
        for folder in FOLDERS:
            if root.may_write(folder):
                continue
            files.folders.prepare()
            root = files.folders.directory('')
            if not root.may_write(folder):
                raise PermissionError(errno.EACCES, f'{folder}/ is not writable')
    except QueueError:
        raise
    except OSError as error:
        raise files.error('cannot record the outcome of its mail', error) from error


def sweep(files: QueueFiles) -> None:
    """Remove the probes that dead processes left. Removing one that is in use does no harm."""
    with suppress(OSError):
        root = files.folders.directory('')
        for name in root.names():
            if is_probe(name):
                with suppress(FileNotFoundError):
                    root.unlink(name)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
