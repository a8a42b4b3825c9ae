"""Who may use a queue: its owner alone, or every member of its folder's group.

Every user that can put a file into a queue can send mail in the application's name. So a folder
that others may write to is refused, and so is a link, because others may point it elsewhere.
``parents`` looks at the folders above the queue.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from ...exceptions import QueueError
from ...folders import make_parents
from .directory import Directory
from .parents import Parent, check_parents, suspicious_parents
from .users import group_name, user_name

__all__ = ['Permissions', 'check_owner', 'check_safe']

log = logging.getLogger(__name__)

_SHARED, _SHARED_OF = stat.S_ISGID | stat.S_IRWXG, stat.S_ISGID | stat.S_IRWXG | stat.S_ISVTX
"""The bits that a shared folder must have, and those that are compared. In a sticky folder a user
could not move or remove the files of the other."""

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Permissions:
    """The modes of files and folders. ``group``: the members of the group of the queue's folder
    share the queue."""

    __slots__ = ('_warned', 'group')

    def __init__(self, group: bool = False) -> None:
        self.group = group
        self._warned: set[str] = set()

    @property
    def file(self) -> int:
        return 0o660 if self.group else 0o600

    @property
    def folder(self) -> int:
        """Includes the setgid bit: files that are made in a folder get the folder's group."""
        return 0o2770 if self.group else 0o700

    def opened(self, descriptor: int) -> None:
        """Set the mode of a new file, whatever the umask. Another user's file has it already."""
        if self.group:
            with suppress(PermissionError):
                os.fchmod(descriptor, self.file)

    def open_root(self, root: str) -> Directory:
        """Open the queue's folder; make it, and the folders above it, if it is missing.

        Checks that this user may use the queue. Raises QueueError, with a remedy, and other
        OSErrors.
        """
        # With a slash at the end, a link would be followed.
        path, made = root.rstrip('/') or '/', False
        try:
            directory = _opened(root, path)
        except PermissionError:
            found = os.lstat(path)
            self._check_user(root, found)
            self._check_group(root, path, None, found, found.st_gid)
            raise
        except FileNotFoundError:
            make_parents(path)
            with suppress(FileExistsError):  # another process was quicker
                os.mkdir(path, 0o700)
                made = True
            directory = _opened(root, path)
        if made:
            directory.chmod(self.folder)
        found = directory.found
        check_safe(root, path, found)
        self._check_user(root, found)
        self._check_group(root, path, directory, found, found.st_gid)
        return directory

    def check_parents(
        self, root: str, parents: Sequence[Parent], *, group: int | None = None
    ) -> None:
        """Check that not every user can replace the queue; log once who else can.

        ``group``: that of the queue; None if there is none yet. Raises QueueError, with a remedy.
        """
        check_parents(root, parents)
        if group is None:
            return
        for text in suspicious_parents(root, parents, group=group):
            if text not in self._warned:
                self._warned.add(text)
                log.warning('%s', text)

    def open_folder(self, root: str, top: Directory, name: str, *, make: bool = True) -> Directory:
        """Open a folder of the queue, and check it as ``open_root`` does; ``make`` it if it is
        missing. Raises QueueError and other OSErrors."""
        path, made = f'{root}/{name}', False
        try:
            directory = _opened(root, path, name, top)
        except PermissionError as error:
            self._check_group(root, path, None, top.lstat(name), top.found.st_gid)
            raise PermissionError(errno.EACCES, f'{name}/ is not writable') from error
        except FileNotFoundError:
            if not make:
                raise
            with suppress(FileExistsError):
                top.mkdir(name, 0o700)
                made = True
            directory = _opened(root, path, name, top)
        if made:
            directory.chmod(self.folder)
        found = directory.found
        check_safe(root, path, found)
        self._check_group(root, path, directory, found, top.found.st_gid)
        return directory

    def _check_user(self, root: str, found: os.stat_result) -> None:
        """Check that this user may use the queue."""
        if self.group:
            _check_member(root, found)
        else:
            check_owner(root, found)

    def _check_group(
        self, root: str, path: str, directory: Directory | None, found: os.stat_result, group: int
    ) -> None:
        """Check that only the owner may write to a folder; or share it with the group, if this
        process runs as its owner, and check that. ``directory``: None if it cannot be opened."""
        if not self.group:
            if found.st_mode & stat.S_IWGRP:
                # Files made by this process would be readable by its own user alone.
                raise QueueError(
                    errno.EPERM,
                    f'the group {group_name(found.st_gid)} may write to {path}; set '
                    f'mail.queue_mode = group if another user shares the queue, else chmod g-w '
                    f'{root} {root}/*',
                    root,
                )
            return
        if found.st_gid != group:
            raise QueueError(
                errno.EPERM,
                f'{path} belongs to group {group_name(found.st_gid)}, but the queue to group '
                f'{group_name(group)}; chgrp -R {group_name(group)} {root}',
                root,
            )
        if found.st_mode & _SHARED_OF == _SHARED:
            return
        if directory is not None and os.geteuid() in (0, found.st_uid):
            # The files before the folder: after a crash the next start repeats it.
            self._share_files(directory, group)
            directory.chmod(self.folder)
            found = directory.found
        if found.st_mode & _SHARED_OF != _SHARED:
            raise QueueError(
                errno.EPERM,
                f'the group {group_name(group)} cannot share {path}; chmod {self.folder:o} '
                f'{path}, or start the process of user {user_name(found.st_uid)} first, which does '
                'so',
                root,
            )

    def _share_files(self, directory: Directory, group: int) -> None:
        """Give the group the files that were made while the folder was private: mail, and the
        wake-up FIFO."""
        with directory.entries() as entries:
            for entry in entries:
                with suppress(OSError):  # it is gone, a folder, or another user's
                    descriptor = directory.open(entry.name, _FLAGS)
                    try:
                        if os.fstat(descriptor).st_gid == group:
                            os.fchmod(descriptor, self.file)
                    finally:
                        os.close(descriptor)


def _opened(
    root: str, path: str, name: str | None = None, inside: Directory | None = None
) -> Directory:
    """Open a folder. Raises QueueError for a link, and OSError."""
    try:
        return Directory(path if name is None else name, inside=inside)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            found = os.lstat(path) if name is None or inside is None else inside.lstat(name)
            check_safe(root, path, found)
        raise


def check_owner(root: str, found: os.stat_result) -> None:
    """Check that the queue belongs to this user."""
    if found.st_uid != os.geteuid():
        raise QueueError(
            errno.EPERM,
            f'queue {root} belongs to user {user_name(found.st_uid)}, but this process runs as '
            f'user {user_name(os.geteuid())}; run both the application and psendmail-qp as '
            f'user {user_name(found.st_uid)}, or set mail.queue_mode = group for both',
            root,
        )


def check_safe(root: str, path: str, found: os.stat_result) -> None:
    """Check that a path is a folder that only its owner and group may write to."""
    if stat.S_ISLNK(found.st_mode):
        remedy = f'set mail.queue_path to {os.path.realpath(path)}'
        if path.startswith(f'{root}/'):
            remedy = f'remove {path}: a folder takes its place'
        raise QueueError(errno.EPERM, f'{path} is a symbolic link; {remedy}', root)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f'{path} is not a folder')
    if found.st_mode & stat.S_IWOTH:
        remedy = f'chmod o-w {path}, or set mail.queue_path to a folder below it'
        if found.st_mode & stat.S_ISVTX:
            # /tmp, for example, is shared on purpose: chmod would break the machine.
            remedy = (
                f'set mail.queue_path to a folder below it or, if it is a queue already, '
                f'chmod o-w {path}'
            )
        text = f'every user may write to {path}, and so send mail; {remedy}'
        raise QueueError(errno.EPERM, text, root)


def _check_member(root: str, found: os.stat_result) -> None:
    """Check that this user is a member of the queue's group. The owner must be one too: otherwise
    the system removes the setgid bit from every folder that the owner makes."""
    user = os.geteuid()
    if user == 0 or found.st_gid in (os.getegid(), *os.getgroups()):
        return
    group, name = group_name(found.st_gid), user_name(user)
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
