"""The folders above the queue: a user that may write to one of them can replace the queue.

There links are accepted, and what they name is looked at in turn: these folders are the
administrator's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ...exceptions import QueueError
from .users import group_name, primary_group, user_name

__all__ = ['check_parents', 'make_parents', 'parents_text', 'suspicious_parents']

_LINKS = 40
"""Symbolic links that are followed at most, as by the system."""

_Entry = tuple[os.stat_result, str, os.stat_result]
"""The folder; a path in it on the way to the queue; and what that is: a folder or a link."""


def make_parents(path: str) -> None:
    """Make the missing folders above a path: 0755, or less by the umask. Raises OSError."""
    parent = os.path.dirname(path)
    try:
        os.mkdir(parent, 0o755)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_parents(parent)
        try:
            os.mkdir(parent, 0o755)
        except FileExistsError:  # another process was quicker
            return


def _entries(path: str) -> Iterator[_Entry]:
    """Iterate over what leads to a path, and over the path itself as far as it is there."""
    here, folder = '/', os.lstat('/')
    names, links = path.split('/')[::-1], 0
    while names:
        name = names.pop()
        if name in ('', '.'):
            continue
        if name == '..':
            here = os.path.dirname(here)
            folder = os.lstat(here)
            continue
        entry = os.path.join(here, name)
        try:
            found = os.lstat(entry)
        except FileNotFoundError:
            # It is made in this folder.
            yield folder, entry, folder
            return
        yield folder, entry, found
        if names and stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(entry)
            if target.startswith('/'):
                here, folder = '/', os.lstat('/')
            names.extend(target.split('/')[::-1])
        else:
            here, folder = entry, found


def parents_text(path: str) -> str:
    """Return owner and mode of all that leads to a path, to compare with a later call."""
    return ' '.join(
        f'{folder.st_dev}.{folder.st_ino}.{folder.st_mode:o}.{folder.st_uid}.{folder.st_gid}'
        f'.{found.st_uid}'
        for folder, _, found in _entries(path)
    )


def check_parents(root: str, path: str, *, owner: int | None) -> None:
    """Check that not every user can replace the queue, or a folder or link that leads to it.

    ``owner``: the user that the queue belongs to, if there is one yet. Raises QueueError with a
    remedy, and other OSErrors.
    """
    trusted = {0, os.geteuid(), os.lstat('/').st_uid, owner}
    for folder, entry, found in _entries(path):
        if not folder.st_mode & stat.S_IWOTH:
            continue
        above = os.path.dirname(entry)
        if not folder.st_mode & stat.S_ISVTX:
            raise QueueError(
                errno.EPERM,
                f'every user may write to {above}, and so replace the queue {root}; '
                f'chmod o-w {above}, or set mail.queue_path to another folder',
                root,
            )
        if found.st_uid not in trusted and entry != path:
            raise QueueError(
                errno.EPERM,
                f'{entry}, which leads to the queue {root}, belongs to user '
                f'{user_name(found.st_uid)}, who can replace it, because every user may write to '
                f'{above}; set mail.queue_path to another folder',
                root,
            )


def suspicious_parents(root: str, path: str, *, group: int) -> list[str]:
    """Return a text for each folder above the queue in which another user or group may replace what
    leads to it. ``group``: that of the queue. Raises OSError."""
    user, own = os.geteuid(), {0, group, primary_group()}
    trusted = {0, user, os.lstat('/').st_uid}
    texts = []
    for folder, entry, _ in _entries(path):
        above = os.path.dirname(entry)
        shared = folder.st_mode & (stat.S_IWGRP | stat.S_ISVTX) == stat.S_IWGRP
        if shared and folder.st_gid not in own:
            who, remedy = f'the group {group_name(folder.st_gid)}', f'chmod g-w {above}'
        elif folder.st_uid not in trusted:
            owner = user_name(folder.st_uid)
            who, remedy = f'user {owner}, to whom it belongs,', f'chown {user_name(user)} {above}'
        else:
            continue
        texts.append(
            f'{who} may write to {above}, and so replace the queue {root}; {remedy}, or set '
            'mail.queue_path to another folder'
        )
    return list(dict.fromkeys(texts))
