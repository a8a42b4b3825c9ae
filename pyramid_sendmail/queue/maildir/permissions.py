"""Who may use a queue: its owner alone, or every member of its folder's group.

Every user that can put a file into a queue can send mail in the application's name. So a folder
that others may write to is refused, and so is a link, because others may point it elsewhere. The
folders above the queue are the administrator's: there a link is accepted.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from contextlib import suppress

from ...exceptions import QueueError

__all__ = ['Permissions', 'user_name']

_SHARED, _SHARED_OF = stat.S_ISGID | stat.S_IRWXG, stat.S_ISGID | stat.S_IRWXG | stat.S_ISVTX
"""The bits that a shared folder must have, and those that are compared. In a sticky folder a user
could not move or remove the files of the other."""

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Permissions:
    """The modes of files and folders. ``group``: the members of the group of the queue's folder
    share the queue."""

    __slots__ = ('group',)

    def __init__(self, group: bool = False) -> None:
        self.group = group

    @property
    def file(self) -> int:
        return 0o660 if self.group else 0o600

    @property
    def folder(self) -> int:
        """Includes the setgid bit: files that are made in a folder get the folder's group."""
        return 0o2770 if self.group else 0o700

    def make(self, path: str) -> os.stat_result:
        """Make a folder if nothing is there, with its mode whatever the umask.

        Return the lstat of what is there, which may be a link. Raises OSError.
        """
        with suppress(FileNotFoundError):
            return os.lstat(path)
        with suppress(FileExistsError):  # another process was quicker
            os.makedirs(path, 0o700)
            os.chmod(path, self.folder)
        return os.lstat(path)

    def opened(self, descriptor: int) -> None:
        """Set the mode of a new file, whatever the umask. Another user's file has it already."""
        if self.group:
            with suppress(PermissionError):
                os.fchmod(descriptor, self.file)

    def prepare(self, root: str, folders: list[str], *, besides: str) -> None:
        """Make what is missing; check that this user may use the queue and no other user may.

        ``besides``: a folder that need not exist. Raises QueueError, with a remedy, and other
        OSErrors.
        """
        # With a slash at the end, lstat would follow a link.
        path = root.rstrip('/') or '/'
        found = self.make(path)
        _check_safe(root, path, found)
        if self.group:
            _check_member(root, found)
        elif found.st_uid != os.geteuid():
            raise QueueError(
                errno.EPERM,
                f'queue {root} belongs to user {user_name(found.st_uid)}, but this process runs as '
                f'user {user_name(os.geteuid())}; run both the application and psendmail-qp as '
                f'user {user_name(found.st_uid)}, or set mail.queue_mode = group for both',
                root,
            )
        self._check_group(root, path, found, found.st_gid)
        for folder in folders:
            self._check_folder(root, folder, self.make(folder), found.st_gid)
        with suppress(FileNotFoundError):
            beside = os.lstat(besides)
            if not stat.S_ISREG(beside.st_mode):  # in a file nothing can be written: no harm
                self._check_folder(root, besides, beside, found.st_gid)

    def _check_folder(self, root: str, path: str, found: os.stat_result, group: int) -> None:
        _check_safe(root, path, found)
        self._check_group(root, path, found, group)

    def _check_group(self, root: str, path: str, found: os.stat_result, group: int) -> None:
        """Check that only the owner may write to a folder; or share it with the group, if this
        process runs as its owner, and check that."""
        if not self.group:
            if found.st_mode & stat.S_IWGRP:
                # Files made by this process would be readable by its own user alone.
                raise QueueError(
                    errno.EPERM,
                    f'the group {_group_name(found.st_gid)} may write to {path}; set '
                    f'mail.queue_mode = group if another user shares the queue, else chmod g-w '
                    f'{root} {root}/*',
                    root,
                )
            return
        if found.st_gid != group:
            raise QueueError(
                errno.EPERM,
                f'{path} belongs to group {_group_name(found.st_gid)}, but the queue to group '
                f'{_group_name(group)}; chgrp -R {_group_name(group)} {root}',
                root,
            )
        if found.st_mode & _SHARED_OF == _SHARED:
            return
        if os.geteuid() in (0, found.st_uid):
            # The files before the folder: after a crash the next start repeats it.
            self._share_files(path, group)
            os.chmod(path, self.folder)
        if os.lstat(path).st_mode & _SHARED_OF != _SHARED:
            raise QueueError(
                errno.EPERM,
                f'the group {_group_name(group)} cannot share {path}; chmod {self.folder:o} '
                f'{path}, or start the process of user {user_name(found.st_uid)} first, which does '
                'so',
                root,
            )

    def _share_files(self, folder: str, group: int) -> None:
        """Give the group the files that were made while the folder was private: mail, and the
        wake-up FIFO."""
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):  # it is gone, a folder, or another user's
                    descriptor = os.open(entry.path, _FLAGS)
                    try:
                        if os.fstat(descriptor).st_gid == group:
                            os.fchmod(descriptor, self.file)
                    finally:
                        os.close(descriptor)


def _check_safe(root: str, path: str, found: os.stat_result) -> None:
    """Check that a path is a folder that only its owner and group may write to."""
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
            f'every user may write to {path}, and so send mail; chmod o-w {path}, or set '
            f'mail.queue_path to a folder below it',
            root,
        )


def _check_member(root: str, found: os.stat_result) -> None:
    """Check that this user is a member of the queue's group. The owner must be one too: otherwise
    the system removes the setgid bit from every folder that the owner makes."""
    user = os.geteuid()
    if user == 0 or found.st_gid in (os.getegid(), *os.getgroups()):
        return
    group, name = _group_name(found.st_gid), user_name(user)
    remedy = f'usermod -aG {group} {name}, and start it again'
    if found.st_gid == 0:
        # The group of root, by default; a user that joined it would get more rights than mail.
        remedy = f'give it a group of which both users are members: chgrp -R GROUP {root}'
    raise QueueError(
        errno.EPERM,
        f'queue {root} belongs to group {group}, and user {name} of this process is not a member; '
        f'{remedy}',
        root,
    )


def user_name(number: int) -> str:
    """Return the name of a user, or the number if there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
