"""Finish what dead processes left in ``tmp/``.

A transaction's files stay there together until its record, which moves last, is gone. An unlocked
record means that its process died; the record's letter says what to do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress

from ..in_doubt import in_doubt_event
from .claim import ClaimedFile, MaildirClaim
from .filename import parse, record_of
from .files import QueueFiles
from .format import STATE_AT
from .large_text import load
from .options import NewerFormat, Unreadable, require_version

__all__ = ['recover', 'set_aside']

log = logging.getLogger(__name__)

_NAME_SIZE = 255
"""Bytes of a file's name at most, on every usual file system."""


def recover(files: QueueFiles, *, send_in_doubt: bool, clock: Callable[[], float]) -> bool:
    """Scan ``tmp/`` once; return whether anything was done.

    ``send_in_doubt``: publish mail that is in doubt, instead of holding it. Never raises an
    OSError over a single transaction.
    """
    try:
        names = [name for name in files.names('tmp') if not name.startswith('.')]
    except FileNotFoundError:
        return False
    groups: dict[str, list[str]] = {}
    for name in names:
        record = record_of(name)
        if record is not None:
            groups.setdefault(record, []).append(name)
    done = False
    for record, members in groups.items():
        try:
            done |= _recover(files, record, members, send_in_doubt, clock)
        except OSError as error:
            log.error('%s: files of a dead process stay in tmp/ for now: %s', record, error)
    return done


def _recover(
    files: QueueFiles,
    record: str,
    names: list[str],
    send_in_doubt: bool,
    clock: Callable[[], float],
) -> bool:
    try:
        descriptor = files.open('tmp', record)
    except ValueError as error:
        log.error('%s in tmp/ cannot be recovered: %s', record, error)
        return False
    try:
        if descriptor is not None:
            begin = os.pread(descriptor, STATE_AT + 1, 0)
            require_version(begin)
            state = begin[STATE_AT:] or b'W'
            # List again under the lock: more files may have been made.
            names = [name for name in files.names('tmp') if record_of(name) == record]
        elif files.holds('tmp', record):
            return False  # its process is alive
        else:
            # Moved a moment ago, after the other files; or removed by a person.
            state = b'?'
            names = [name for name in names if files.holds('tmp', name)]
        # The record last: if this process dies, the next recovery finds it.
        for name in sorted(names, key=lambda name: (name == record, name)):
            own = name.partition('.')[0]
            if state == b'W':
                with suppress(FileNotFoundError):
                    files.unlink('tmp', name)
            elif state == b'C' or send_in_doubt:
                files.rename('tmp', name, 'new', own)
                log.warning('%s: its process died during the commit; published now', own)
            else:
                _hold(files, name, descriptor if name == record else None, clock)
        if names and state != b'W':
            files.sync_folder('new')
        return bool(names)
    except NewerFormat as error:
        _leave(files, record, str(error))
        return False
    finally:
        if descriptor is not None:
            files.close(descriptor)


def _hold(files: QueueFiles, name: str, descriptor: int | None, clock: Callable[[], float]) -> None:
    """Move a mail that is in doubt out of ``tmp/``, with a pending error event."""
    id = name.partition('.')[0].rpartition('-')[2]
    try:
        own = descriptor if descriptor is not None else files.open('tmp', name)
    except ValueError as error:
        set_aside(files, 'tmp', name, str(error))
        return
    if own is None:
        return
    try:
        block, text = load(files, own)
        envelope = block.envelope
        log.critical(
            'in doubt: %s (%s): its commit was cut short between vote and finish; '
            'held in failed/; if the transaction committed, move the file from failed/ to new/',
            envelope.message_id,
            id,
        )
        claimed = ClaimedFile(own, 'tmp', name, block, text)
        claim = MaildirClaim(files, claimed, attempt=0, now=clock())
        claim.settle([in_doubt_event(envelope, 'its commit was cut short between vote and finish')])
    except NewerFormat as error:
        _leave(files, name, str(error))
    except Unreadable as error:
        log.critical('in doubt: a damaged mail (%s), held in failed/: %s', id, error)
        set_aside(files, 'tmp', name, str(error))
    finally:
        if descriptor is None:
            files.close(own)


def _leave(files: QueueFiles, name: str, reason: str) -> None:
    if files.first_time(name):
        log.critical(
            '%s stays in tmp/ for a queue processor of a newer release, which has written it: %s',
            name,
            reason,
        )


def set_aside(files: QueueFiles, folder: str, name: str, reason: str) -> str | None:
    """Move a damaged mail or a foreign file to ``failed/``, and write the reason to ``reasons/``.

    Return its name there, or None if it is gone or cannot be moved. Never raises an OSError.
    """
    target, number = _shortened(name, ''), 0
    while files.holds('failed', target):
        number += 1
        target = _shortened(name, f'.{number}')
    # The reason first: after a crash the next process writes it again.
    with suppress(OSError):
        _note(files, target, reason)
    try:
        moved = files.rename(folder, name, 'failed', target)
    except OSError as error:
        if files.first_time(name):
            log.error('%r in %s/ (%s) cannot be moved to failed/: %s', name, folder, reason, error)
        moved = False
    if not moved:
        with suppress(OSError):
            files.unlink('reasons', f'{target}.txt')
        return None
    kind = 'damaged mail' if parse(name) else 'foreign file'
    log.error('%r is a %s, moved from %s/ to failed/: %s', name, kind, folder, reason)
    return target


def _shortened(name: str, end: str) -> str:
    """Return a name with this end that leaves room for that of the reason, ``.txt``."""
    room, data = _NAME_SIZE - len(f'{end}.txt'), os.fsencode(name)
    return (name if len(data) <= room else os.fsdecode(data[:room])) + end


def _note(files: QueueFiles, name: str, reason: str) -> None:
    descriptor = files.open_reason(f'{name}.txt', os.O_TRUNC)
    try:
        os.write(descriptor, f'{reason}\n'.encode())
    finally:
        os.close(descriptor)
