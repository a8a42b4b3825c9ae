"""Whether the queue of the settings can be used, as far as a look can tell."""

from __future__ import annotations

import errno
import os

from ..exceptions import QueueError
from ..queue.maildir.directory import Directory
from ..queue.maildir.permissions import check_owner, check_safe
from ..queue.maildir.recognition import require_queue
from ..queue.maildir.users import user_name

__all__ = ['check_queue_folder']


def check_queue_folder(path: str, *, group: bool) -> None:
    """Raise QueueError, with a remedy, for a folder that this process could not use as its queue.

    Nothing is made or changed: the first use does that, and checks everything again. Root may still
    become the user of the queue, after a server has loaded the application, and is not asked for
    the owner. ``group``: the members of the folder's group share the queue.
    """
    path = path.rstrip('/') or '/'
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        _check_can_be_made(path)
        return
    except NotADirectoryError:
        raise _error(errno.ENOTDIR, path, f'{_existing(path)} is not a folder') from None
    except OSError as error:
        raise _unreachable(path, error) from error
    try:
        check_safe(path, path, found)
    except NotADirectoryError:
        raise _error(errno.ENOTDIR, path, f'{path} is not a folder') from None
    if os.geteuid() != 0:
        _check_owner(path, found, group)
    _check_contents(path)


def _check_owner(path: str, found: os.stat_result, group: bool) -> None:
    if not group:
        check_owner(path, found)
    own = user_name(os.geteuid())
    if not _is_usable(path):
        remedy = f'chmod u+rwx {path}' if found.st_uid == os.geteuid() else 'see mail.queue_mode'
        raise QueueError(
            errno.EACCES, f'user {own} may not write to the queue {path}; {remedy}', path
        )


def _check_contents(path: str) -> None:
    """Check that the folder is not that of something else: of the application, for example."""
    try:
        require_queue(path, Directory(path))
    except QueueError:
        raise
    except OSError:
        pass  # the first use says why


def _check_can_be_made(path: str) -> None:
    above = _existing(path)
    if not os.path.isdir(above):
        raise _error(errno.ENOTDIR, path, f'{above} is not a folder')
    if not _is_usable(above):
        own = user_name(os.geteuid())
        raise _error(errno.EACCES, path, f'user {own} may not write to {above}')


def _existing(path: str) -> str:
    """Return the nearest path above that is there."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _is_usable(path: str) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective)


def _unreachable(path: str, error: OSError) -> QueueError:
    return QueueError(
        error.errno or errno.EACCES,
        f'queue {path} cannot be reached: {error.strerror}; give user {user_name(os.geteuid())} '
        f'the right to enter the folders above it, or set mail.queue_path to another',
        path,
    )


def _error(number: int, path: str, why: str) -> QueueError:
    return QueueError(
        number,
        f'queue {path} cannot be created: {why}; make the folder for user '
        f'{user_name(os.geteuid())}, or set mail.queue_path to another',
        path,
    )
