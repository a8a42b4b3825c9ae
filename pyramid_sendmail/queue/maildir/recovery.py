"""What stopped processes left in ``tmp/``, brought to its end.

A transaction's files stay there together until its record, moved last, has gone; who finds the
record unlocked has a dead process before him, and its letter says what to do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress

from ...envelope import PendingEvent
from .claim import MaildirClaim
from .filename import parse, record_of
from .files import Store
from .format import STATE_AT, Unreadable
from .large_text import load

__all__ = ['recover', 'set_aside']

log = logging.getLogger(__name__)

IN_DOUBT = (
    'in doubt: the process stopped between vote and finish of its transaction, and nobody can '
    'tell whether it committed'
)


def recover(store: Store, *, publish_doubtful: bool, clock: Callable[[], float]) -> bool:
    """Look through ``tmp/`` once; tell whether anything was done.

    ``publish_doubtful``: send mail that is in doubt, rather than hold it.
    """
    try:
        with os.scandir(f'{store.root}/tmp') as entries:
            names = [entry.name for entry in entries if not entry.name.startswith('.')]
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
            done |= _recover(store, record, members, publish_doubtful, clock)
        except OSError as error:
            log.error('%s: what a stopped process left in tmp/ stays there: %s', record, error)
    return done


def _recover(
    store: Store,
    record: str,
    names: list[str],
    publish_doubtful: bool,
    clock: Callable[[], float],
) -> bool:
    path = store.path('tmp', record)
    try:
        descriptor = store.open(path)
    except ValueError as error:
        log.error('%s in tmp/ cannot be recovered: %s', record, error)
        return False
    try:
        if descriptor is not None:
            state = os.pread(descriptor, 1, STATE_AT) or b'W'
            # The listing may be older than the lock: what the owner made since then counts too.
            names = [name for name in os.listdir(f'{store.root}/tmp') if record_of(name) == record]
        elif os.path.lexists(path):
            return False  # busy
        else:
            # Moved a moment ago, and its followers before it; or taken away by hand.
            state = b'?'
            names = [name for name in names if os.path.lexists(store.path('tmp', name))]
        # The record last, so that whoever has to finish this finds it.
        for name in sorted(names, key=lambda name: (name == record, name)):
            own = name.partition('.')[0]
            if state == b'W':
                with suppress(FileNotFoundError):
                    os.unlink(store.path('tmp', name))
            elif state == b'C' or publish_doubtful:
                store.rename('tmp', name, 'new', own)
                log.warning('%s: published after its process stopped', own)
            else:
                _hold(store, name, descriptor if name == record else None, clock)
        if names and state != b'W':
            store.sync_folder('new')
        return bool(names)
    finally:
        if descriptor is not None:
            store.close(descriptor)


def _hold(store: Store, name: str, descriptor: int | None, clock: Callable[[], float]) -> None:
    """Move a mail that is in doubt out of the way, with an error event to be reported."""
    id = name.partition('.')[0].rpartition('-')[2]
    try:
        own = descriptor if descriptor is not None else store.open(store.path('tmp', name))
    except ValueError as error:
        set_aside(store, 'tmp', name, str(error))
        return
    if own is None:
        return
    try:
        block, text = load(store, own)
        envelope = block.envelope
        log.critical(
            'in doubt: %s (%s): the process stopped between vote and finish of its transaction; '
            'held in failed/; if it did commit, move the file from failed/ into new/',
            envelope.message_id,
            id,
        )
        MaildirClaim(store, own, block, 'tmp', name, attempt=0, now=clock(), text=text).settle(
            [
                PendingEvent(
                    id=f'{envelope.id}-0-error-0',
                    kind='error',
                    recipients=envelope.recipients,
                    attempt=0,
                    mailer='',
                    reason=IN_DOUBT,
                    permanent=False,
                )
            ]
        )
    except Unreadable as error:
        log.critical('in doubt: a damaged mail (%s), held in failed/: %s', id, error)
        set_aside(store, 'tmp', name, str(error))
    finally:
        if descriptor is None:
            store.close(own)


def set_aside(store: Store, folder: str, name: str, reason: str) -> str | None:
    """Move what is no mail of ours to ``failed/``, its reason into ``reasons/``.

    Returns its name there, or None if it is gone or cannot be moved, which stops nobody else.
    """
    target, number = name, 0
    while os.path.lexists(store.path('failed', target)):
        number += 1
        target = f'{name}.{number}'
    # First: who stops in between writes the same once more.
    with suppress(OSError):
        _note(store, target, reason)
    try:
        moved = store.rename(folder, name, 'failed', target)
    except OSError as error:
        log.error('%r in %s/ (%s) cannot be moved to failed/: %s', name, folder, reason, error)
        moved = False
    if not moved:
        with suppress(OSError):
            os.unlink(store.path('reasons', f'{target}.txt'))
        return None
    kind = 'damaged mail' if parse(name) else 'foreign file'
    log.error('%r: a %s, moved from %s/ to failed/: %s', name, kind, folder, reason)
    return target


def _note(store: Store, name: str, reason: str) -> None:
    descriptor = store.open_reason(f'{name}.txt', os.O_TRUNC)
    try:
        os.write(descriptor, f'{reason}\n'.encode())
    finally:
        os.close(descriptor)
