"""Who may use a queue: its owner alone, or every member of its folder's group.

Whoever could put a file into a queue could send mail in the application's name, so that a folder
that others may write to is refused, and so is a link, which others may point elsewhere. What lies
above the queue is the administrator's: there a link is as good as a folder.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from contextlib import suppress

from ...exceptions import QueueError

__all__ = ['Permissions']

_SHARED, _SHARED_OF = stat.S_ISGID | stat.S_IRWXG, stat.S_ISGID | stat.S_IRWXG | stat.S_ISVTX
"""What a shared folder has, of the bits that matter: in a sticky one nobody could move or remove
what the other user has made."""

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Permissions:
    """``group``: whether the members of the group of the queue's folder share it."""

    __slots__ = ('group',)

    def __init__(self, group: bool = False) -> None:
        self.group = group

    @property
    def file(self) -> int:
        return 0o660 if self.group else 0o600

    @property
    def folder(self) -> int:
        """With the setgid bit what is made in a folder has the folder's group."""
        return 0o2770 if self.group else 0o700

    def make(self, path: str) -> os.stat_result:
        """Make a folder if nothing is there, with its mode whatever the umask; return what is
        there, which may be a link. Raises OSError."""
        with suppress(FileNotFoundError):
            return os.lstat(path)
        with suppress(FileExistsError):  # somebody else was quicker
            os.makedirs(path, 0o700)
            os.chmod(path, self.folder)
        return os.lstat(path)

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
        # With a slash at its end a link is what it leads to.
        path = root.rstrip('/') or '/'
        found = self.make(path)
        _see_safe(root, path, found)
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
        self._see_group(root, path, found, found.st_gid)
        for folder in folders:
            self._see_folder(root, folder, self.make(folder), found.st_gid)
        with suppress(FileNotFoundError):
            beside = os.lstat(besides)
            if not stat.S_ISREG(beside.st_mode):  # in which nothing can be written: no harm
                self._see_folder(root, besides, beside, found.st_gid)

    def _see_folder(self, root: str, path: str, found: os.stat_result, group: int) -> None:
        _see_safe(root, path, found)
        self._see_group(root, path, found, group)

    def _see_group(self, root: str, path: str, found: os.stat_result, group: int) -> None:
        """See that a folder is its owner's alone; or that it is the group's, which its owner sees
        to."""
        if not self.group:
            if found.st_mode & stat.S_IWGRP:
                # Files that are made here would be their maker's alone, and no other user's.
                raise QueueError(
                    errno.EPERM,
                    f'the group {_group(found.st_gid)} may write to {path}: set mail.queue_mode = '
                    f'group if another user shares the queue; else chmod g-w {root} {root}/*',
                    root,
                )
            return
        if found.st_gid != group:
            raise QueueError(
                errno.EPERM,
                f'{path} belongs to group {_group(found.st_gid)}, the queue to '
                f'{_group(group)}: chgrp -R {_group(group)} {root}',
                root,
            )
        if found.st_mode & _SHARED_OF == _SHARED:
            return
        if os.geteuid() in (0, found.st_uid):
            # Before the folder: who stops in between does it once more.
            self._share_files(path, group)
            os.chmod(path, self.folder)
        if os.lstat(path).st_mode & _SHARED_OF != _SHARED:
            raise QueueError(
                errno.EPERM,
                f'the group {_group(group)} cannot share {path}: chmod {self.folder:o} {path}, or '
                f'start the process of user {_user(found.st_uid)} first, which does so',
                root,
            )

    def _share_files(self, folder: str, group: int) -> None:
        """Let the group have what was made while the folder was private: mail, and the trigger."""
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):  # it is gone, or a folder; or it stays its maker's
                    descriptor = os.open(entry.path, _FLAGS)
                    try:
                        if os.fstat(descriptor).st_gid == group:
                            os.fchmod(descriptor, self.file)
                    finally:
                        os.close(descriptor)


def _see_safe(root: str, path: str, found: os.stat_result) -> None:
    """See that it is a folder, and that not everybody may write to it."""
    if stat.S_ISLNK(found.st_mode):
        remedy = f'set mail.queue_path to {os.path.realpath(path)}'
        if path.startswith(f'{root}/'):
            remedy = f'remove {path}: a folder takes its place'
        raise QueueError(errno.EPERM, f'{path} is a symbolic link; {remedy}', root)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f'{path} is not a folder')
    if found.st_mode & stat.S_IWOTH:
        raise QueueError(
            errno.EPERM,
            f'every user may write to {path}, and so send mail: chmod o-w {path}',
            root,
        )


def _see_member(root: str, found: os.stat_result) -> None:
    """The owner has to be one too: the system takes the setgid bit off whatever folder he makes
    for a group that is not his."""
    user = os.geteuid()
    if user == 0 or found.st_gid in (os.getegid(), *os.getgroups()):
        return
    group, name = _group(found.st_gid), _user(user)
    remedy = f'usermod -aG {group} {name}, and start it again'
    if found.st_gid == 0:
        # Made by root, for want of anything better; who joins that group gets more than mail.
        remedy = f'give it a group of which both users are members: chgrp -R GROUP {root}'
    raise QueueError(
        errno.EPERM,
        f'the queue belongs to group {group}, of which this process, user {name}, is no member: '
        f'{remedy}',
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
