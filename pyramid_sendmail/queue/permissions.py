"""Who may use a queue: its owner alone, or every member of its folder's group.

Whoever could put a file into a queue could send mail in the application's name, so that a folder
that others may write to is refused, and so is a link, which others may point elsewhere.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from contextlib import suppress
from dataclasses import dataclass

from ..exceptions import QueueError

__all__ = ['Permissions']


@dataclass(frozen=True, slots=True)
class Permissions:
    """``group``: whether the members of the group of the queue's folder share it."""

    group: bool = False

    @property
    def file(self) -> int:
        return 0o660 if self.group else 0o600

    @property
    def folder(self) -> int:
        """With the setgid bit what is made in a folder has the folder's group."""
        return 0o2770 if self.group else 0o700

    def make(self, path: str) -> None:
        """Make a folder that is not there, with its mode whatever the umask. Raises OSError."""
        try:
            os.makedirs(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        else:
            os.chmod(path, self.folder)

    def opened(self, descriptor: int) -> None:
        """Give a file that was made its mode, whatever the umask; one that was there before has
        it."""
        if self.group:
            with suppress(PermissionError):
                os.fchmod(descriptor, self.file)

    def prepare(self, root: str, folders: list[str], *, besides: str) -> None:
        """Make what is missing, and see that this user may use it, and nobody else who must not.
        ``besides``: a folder that need not be there. Raises QueueError, with a remedy, and other
        OSErrors."""
        self.make(root)
        group = self._see_user(root)
        self._see_folder(root, root, group)
        for path in folders:
            self.make(path)
            self._see_folder(root, path, group)
        with suppress(FileNotFoundError):
            self._see_folder(root, besides, group)

    def _see_user(self, root: str) -> int:
        """See that the queue is this user's, or his group's; return its group."""
        found = _safe(root, root)
        if self.group:
            _see_member(root, found)
        elif found.st_uid != os.geteuid():
            raise QueueError(
                errno.EPERM,
                f'the queue belongs to user {found.st_uid}, this process runs as user '
                f'{os.geteuid()}: run both the application and psendmail-qp as the same user, or '
                f'set mail.queue_mode = group for both',
                root,
            )
        return found.st_gid

    def _see_folder(self, root: str, path: str, group: int) -> None:
        """See that a folder is nobody else's; where it is a group's, its owner puts its mode
        right."""
        found = _safe(root, path)
        if not self.group:
            return
        if found.st_gid != group:
            raise QueueError(
                errno.EPERM,
                f'{path} belongs to group {_group(found.st_gid)}, the queue to '
                f'{_group(group)}: chgrp -R {_group(group)} {root}',
                root,
            )
        if stat.S_IMODE(found.st_mode) == self.folder:
            return
        with suppress(PermissionError):
            os.chmod(path, self.folder)
        if stat.S_IMODE(os.lstat(path).st_mode) != self.folder:
            raise QueueError(
                errno.EPERM,
                f'the group {_group(group)} cannot share {path}: chmod {self.folder:o} {path}',
                root,
            )


def _safe(root: str, path: str) -> os.stat_result:
    """See that nobody can put mail there, or have it moved elsewhere."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        remedy = f'remove {path}: a folder takes its place'
        if path == root:
            remedy = f'set mail.queue_path to {os.path.realpath(root)}'
        raise QueueError(errno.EPERM, f'{path} is a symbolic link; {remedy}', root)
    if found.st_mode & stat.S_IWOTH:
        raise QueueError(
            errno.EPERM, f'every user may write to {path}, and so send mail: chmod o-w {path}', root
        )
    return found


def _see_member(root: str, found: os.stat_result) -> None:
    user = os.geteuid()
    if user in (0, found.st_uid) or found.st_gid in (os.getegid(), *os.getgroups()):
        return
    group, name = _group(found.st_gid), _user(user)
    raise QueueError(
        errno.EPERM,
        f'the queue belongs to group {group}, of which this process, user {name}, is no member: '
        f'usermod -aG {group} {name}, and start it again',
        root,
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
