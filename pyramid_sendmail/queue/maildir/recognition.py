"""Recognize a folder that is no queue, before anything in it is moved.

A processor moves each foreign file out of ``new/``, ``cur/`` and ``done/``. If ``mail.queue_path``
is wrong, those may be files of the application. So a folder is used only if it has all folders of a
queue, or if nothing in it contradicts that it is one: it is new or empty, half made, or an old
queue of zope.sendmail or repoze.sendmail.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from ...exceptions import QueueError
from ..history import printable
from .directory import Directory
from .filename import record_of

__all__ = ['FOLDERS', 'PROCESSOR_FILE', 'is_probe', 'require_queue']

FOLDERS = ('tmp', 'new', 'cur', 'done', 'failed')

PROCESSOR_FILE = 'processor'
"""The file that queue processors renew: see ``heartbeat``."""

_BESIDE = ('reasons', 'trigger', PROCESSOR_FILE, 'lost+found')
"""What else may lie in the queue's folder."""

is_probe = re.compile(r'(?:lock-)?probe-[0-9]+-[0-9]+|making-[0-9a-f.-]+').fullmatch
"""Return a match for the name of a probe, or of a file that is being made, else None."""

_THEIRS = re.compile(rb'(?im)^X-(?:Zope|Actually)-To:')

_HEAD = 64 * 1024
"""Bytes of a foreign file that are read."""

_LOOKED_AT = 1_000
"""Files of a folder that are looked at, at most."""

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def require_queue(root: str, top: Directory) -> None:
    """Raise QueueError if a folder, open as ``top``, is no queue. Raises OSError as well."""
    names = {name for name in top.names() if not name.startswith('.')}
    missing = [name for name in FOLDERS if name not in names]
    if not missing:
        return
    foreign = sorted(name for name in names if name not in (*FOLDERS, *_BESIDE))
    foreign = [name for name in foreign if not is_probe(name)]
    for folder in ('new', 'cur', 'done', 'tmp', 'failed'):
        for directory, name in _files(top, folder):
            if record_of(name.partition(':')[0]) or _is_theirs(directory, name):
                return
            if folder in ('new', 'cur', 'done'):
                foreign.insert(0, f'{folder}/{name}')
    if foreign:
        raise QueueError(
            errno.ENOTEMPTY,
            f'{root} is no mail queue: it holds {printable(foreign[0])}; set mail.queue_path '
            f'to a folder of its own, such as {root}/mail. If it is the queue, make the folders '
            f'that are missing: {", ".join(missing)}',
            root,
        )


def _files(top: Directory, folder: str) -> Iterator[tuple[Directory, str]]:
    """Iterate over the first files of a folder, if it is there, with the folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        directory = Directory(folder, inside=top)
        with directory.entries() as entries:
            names = [entry.name for entry in islice(entries, _LOOKED_AT)]
        yield from ((directory, name) for name in names if not name.startswith('.'))


def _is_theirs(directory: Directory, name: str) -> bool:
    """Whether a file is a mail that zope.sendmail or repoze.sendmail has queued."""
    with suppress(OSError):
        descriptor = directory.open(name, _FLAGS)
        try:
            head = os.pread(descriptor, _HEAD, 0)
        finally:
            os.close(descriptor)
        return _THEIRS.search(head) is not None
    return False
