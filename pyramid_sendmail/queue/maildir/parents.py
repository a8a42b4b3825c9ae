"""The folders above the queue: a user that may write to one of them can replace the queue.

There links are accepted, and what they name is looked at in turn: these folders are the
administrator's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from ...exceptions import QueueError
from .users import group_name, user_name

__all__ = [
    'Parent',
    'check_parents',
    'parents_of',
    'state_of',
    'suspicious_parents',
]

_LINKS = 40
"""Symbolic links that are followed at most, as by the system."""


class Parent(NamedTuple):
    """A folder above the queue."""

    path: str
    folder: os.stat_result
    entry: str
    """A path in it, on the way to the queue: another folder, a link, or the queue's folder."""
    found: os.stat_result | None
    """What ``entry`` is; None if nothing is there yet."""


def parents_of(path: str) -> list[Parent]:
    """Return the folders that lead to a path, as far as they are there. Raises OSError."""
    here, folder = '/', os.lstat('/')
    names, links, parents = path.split('/')[::-1], 0, []
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
            parents.append(Parent(here, folder, entry, None))
            break
        parents.append(Parent(here, folder, entry, found))
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
    return parents


def state_of(parents: Sequence[Parent]) -> list[tuple[int | str, ...]]:
    """Return identity, owner and mode of the folders, to compare with a later call."""
    return [
        (path, folder.st_dev, folder.st_ino, folder.st_mode, folder.st_uid, folder.st_gid)
        for path, folder, _, _ in parents
    ]


def check_parents(root: str, parents: Sequence[Parent]) -> None:
    """Check that not every user can replace the queue, or a folder or link that leads to it.

    Raises QueueError, with a remedy.
    """
    trusted = _trusted(parents)
    for above, folder, entry, found in parents:
        if not folder.st_mode & stat.S_IWOTH:
            continue
        if not folder.st_mode & stat.S_ISVTX:
            raise QueueError(
                errno.EPERM,
                f'every user may write to {above}, and so replace the queue {root}; '
                f'chmod o-w {above}, or set mail.queue_path to another folder',
                root,
            )
        if found is not None and found.st_uid not in trusted:
            raise QueueError(
                errno.EPERM,
                f'{entry}, which leads to the queue {root}, belongs to user '
                f'{user_name(found.st_uid)}, who can replace it, because every user may write to '
                f'{above}; set mail.queue_path to another folder',
                root,
            )


def suspicious_parents(root: str, parents: Sequence[Parent], *, group: int) -> list[str]:
    """Return a text for each folder above the queue in which another user or group may replace what
    leads to it. ``group``: that of the queue."""
    trusted, own, texts = _trusted(parents), {0, group, os.getegid()}, []
    for above, folder, _, _ in parents:
        shared = folder.st_mode & (stat.S_IWGRP | stat.S_ISVTX) == stat.S_IWGRP
        if shared and folder.st_gid not in own:
            who, remedy = f'the group {group_name(folder.st_gid)}', f'chmod g-w {above}'
        elif folder.st_uid not in trusted:
            who = f'user {user_name(folder.st_uid)}, to whom it belongs,'
            remedy = f'chown {user_name(os.geteuid())} {above}'
        else:
            continue
        texts.append(
            f'{who} may write to {above}, and so replace the queue {root}; {remedy}, or set '
            'mail.queue_path to another folder'
        )
    return texts


def _trusted(parents: Sequence[Parent]) -> set[int]:
    """Return the users that may own a folder above the queue: root, this user, and the one to whom
    the queue belongs."""
    # In a container the folder / may belong to the user that stands for root.
    trusted = {0, os.geteuid(), *[each.folder.st_uid for each in parents[:1]]}
    trusted.update([each.found.st_uid for each in parents[-1:] if each.found is not None])
    return trusted
