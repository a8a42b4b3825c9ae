"""What stopped processes left in ``tmp/``, brought to its end.

A transaction's files stay there together until its record, moved last, has gone; who finds the
record unlocked has a dead process before him, and its letter says what to do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress

from ..envelope import Fate
from .claim import MaildirClaim
from .format import HEAD, STATE_AT, Unreadable, decode
from .names import parse, record_of
from .store import Store

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
        done |= _recover(store, record, members, publish_doubtful, clock)
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
    except ValueError:
        return False
    if descriptor is None:
        # Busy; or moved a moment ago, and its followers before it; or taken away by hand.
        if os.path.lexists(path):
            return False
        names = [name for name in names if os.path.lexists(store.path('tmp', name))]
        state = 'V'
    else:
        head = os.pread(descriptor, HEAD, 0)
        state = chr(head[STATE_AT]) if len(head) == HEAD else 'W'
    try:
        # The listing may be older than the lock: what the record's owner made since counts too.
        followers = {name for name in names if name != record}
        if descriptor is not None:
            followers |= {
                name for name in os.listdir(f'{store.root}/tmp') if name.endswith(f'.{record}')
            }
        order = [*sorted(followers), *([record] if descriptor is not None else [])]
        if state == 'V' and not publish_doubtful:
            for name in order:
                _hold(store, name, descriptor if name == record else None, clock)
        elif state in 'VC':
            for name in order:
                own = name.partition('.')[0]
                with suppress(FileNotFoundError):
                    os.rename(store.path('tmp', name), store.path('new', own))
                log.warning('%s: published after its process stopped', own)
            store.sync_folder('new')
        else:
            for name in order:
                with suppress(FileNotFoundError):
                    os.unlink(store.path('tmp', name))
        return bool(order)
    finally:
        if descriptor is not None:
            store.close(descriptor)


def _hold(store: Store, name: str, descriptor: int | None, clock: Callable[[], float]) -> None:
    """Move a mail that is in doubt out of the way, with an error event to be reported."""
    own = descriptor if descriptor is not None else store.open(store.path('tmp', name))
    if own is None:
        return
    try:
        block = decode(store.read(own))
        envelope = block.envelope
        claim = MaildirClaim(store, own, block, 'tmp', name, attempt=0, now=clock(), hold=False)
        log.critical(
            'in doubt: %s (%s): the process stopped between vote and finish of its transaction; '
            'held in failed/; if it did commit, move the file from failed/ into new/',
            envelope.message_id,
            envelope.id,
        )
        claim.settle(
            [
                Fate(
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
        set_aside(store, 'tmp', name, str(error))
    finally:
        if descriptor is None:
            store.close(own)


def set_aside(store: Store, folder: str, name: str, reason: str) -> str:
    """Move what is no mail of ours to ``failed/``, its reason into ``reasons/``; its name there."""
    target = name
    for number in range(1, 1000):
        if not os.path.lexists(store.path('failed', target)):
            break
        target = f'{name}.{number}'
    os.rename(store.path(folder, name), store.path('failed', target))
    with suppress(OSError):
        os.makedirs(f'{store.root}/reasons', 0o700, exist_ok=True)
        path = f'{store.root}/reasons/{target}.txt'
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, 'w', encoding='utf-8') as file:
            file.write(f'{reason}\n')
    kind = 'mail' if parse(name) else 'foreign file'
    log.error('%s/%s: damaged or foreign %s moved to failed/: %s', folder, name, kind, reason)
    return target
