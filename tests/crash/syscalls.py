"""The system calls of the queue: counted, stopped at, torn, or made to fail, one by one.

The package calls the system by the names that the modules os and fcntl have for it. ``Watch`` puts
a function of its own in place of each of them, and calls a policy for every call that concerns one
folder; all other calls are made as before. ``test_strace`` proves that it sees every call.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ['NAMES', 'STOPPED', 'WRITES', 'Call', 'Policy', 'Watch', 'stopping']

STOPPED = 77
"""The exit status of a process that was stopped at a call."""

WRITES = ('write', 'pwrite')

_BY_PATH = (
    *('open', 'rename', 'replace', 'unlink', 'remove', 'link', 'symlink', 'mkdir', 'rmdir'),
    *('stat', 'lstat', 'access', 'chmod', 'chown', 'utime', 'truncate', 'listdir', 'mkfifo'),
)
_BY_DESCRIPTOR = (
    *('close', 'read', 'pread', 'readv', 'preadv', 'write', 'pwrite', 'writev', 'pwritev'),
    *('fsync', 'fdatasync', 'fstat', 'ftruncate', 'fchmod', 'lseek', 'dup'),
    *('posix_fadvise', 'posix_fallocate'),
)
_ELSEWHERE = ('scandir', 'pipe2', 'pipe', 'flock', 'lockf', 'fcntl')

NAMES = frozenset((*_BY_PATH, *_BY_DESCRIPTOR, *_ELSEWHERE))
"""What is watched, used by the queue today or not."""

Policy = Callable[['Call'], Any]


@dataclass(slots=True)
class Call:
    """A system call about to be made.

    ``number``: 1 is the first of the watch. ``place``: the folder that the file lies in or was
    opened in, the name of what lies beside the folders, or a folder's own name and a slash.
    ``key``: tells one open file from the next that has its number.
    """

    number: int
    name: str
    place: str
    phase: str
    descriptor: int | None
    key: int
    _function: Callable[..., Any]
    _arguments: tuple[Any, ...]
    _options: dict[str, Any]

    def perform(self) -> Any:
        return self._function(*self._arguments, **self._options)

    def perform_half(self) -> None:
        """Write the first half of what was to be written."""
        assert self.name in WRITES
        descriptor, data, *at = self._arguments
        self._function(descriptor, bytes(data)[: len(data) // 2], *at)

    @property
    def span(self) -> range:
        """The bytes of the file that a pwrite is about to write."""
        _, data, at = self._arguments
        return range(at, at + len(data))

    @property
    def step(self) -> str:
        return f'{self.name} {self.place}'


class Watch:
    """While it is entered, each call that concerns ``root`` goes through ``policy``.

    ``phase``: a word that each call is given, for the tables of the tests.
    """

    def __init__(self, root: str | Path, policy: Policy) -> None:
        self.phase = ''
        self._root = str(root)
        self._policy = policy
        self._number = 0
        self._lock = threading.Lock()
        self._places: dict[int, tuple[str, int]] = {}
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Watch:
        self._adopt()
        for name in (*_BY_PATH, *_BY_DESCRIPTOR):
            self._replace(os, name, self._watched(name, getattr(os, name)))
        self._replace(os, 'scandir', self._scandir(os.scandir))
        for name in ('pipe', 'pipe2'):
            self._replace(os, name, self._pipe(name, getattr(os, name)))
        for name in ('flock', 'lockf', 'fcntl'):
            self._replace(fcntl, name, self._watched(name, getattr(fcntl, name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._before:
            module, name, function = self._before.pop()
            setattr(module, name, function)

    def mark(self, function: Callable[[], Any]) -> Any:
        """Make something a step of the watch that is no system call of the queue's."""
        return self._ask('mark', 'ledger', None, 0, function, (), {})

    def _adopt(self) -> None:
        """Watch what was opened before."""
        for name in os.listdir('/proc/self/fd'):
            with suppress(OSError):
                place = self._place(os.readlink(f'/proc/self/fd/{name}'))
                if place is not None:
                    self._places[int(name)] = (place, -int(name))

    def _replace(self, module: Any, name: str, function: Any) -> None:
        self._before.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def _ask(
        self,
        name: str,
        place: str,
        descriptor: int | None,
        key: int,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        with self._lock:
            self._number += 1
            number = self._number
        return self._policy(
            Call(number, name, place, self.phase, descriptor, key, function, arguments, options)
        )

    def _place(self, path: Any) -> str | None:
        """What a path concerns, or None."""
        if not isinstance(path, str | os.PathLike):
            return None
        text = str(os.fspath(path)).removesuffix('/.')
        if text.startswith('/proc/self/fd/'):
            text = os.readlink(text)
        if text == self._root:
            return '/'
        if not text.startswith(f'{self._root}/'):
            return None
        first, slash, _ = text[len(self._root) + 1 :].partition('/')
        if slash:
            return first
        named = first.rstrip('-0123456789')
        return named if named in ('probe', 'lock-probe', 'trigger') else f'{first}/'

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            target = arguments[0] if arguments else None
            if isinstance(target, int):
                place, key = self._places.get(target, (None, 0))
            else:
                place, key = self._place(_path(target, options)), 0
            if place is None:
                return function(*arguments, **options)
            descriptor = target if isinstance(target, int) else None
            if name == 'close':
                self._places.pop(target, None)
            result = self._ask(name, place, descriptor, key, function, arguments, options)
            if name == 'open':
                self._places[result] = (place, self._number)
            return result

        return watched

    def _pipe(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            pair = self._ask(name, 'pipe', None, 0, function, arguments, {})
            for descriptor in pair:
                self._places[descriptor] = ('pipe', self._number)
            return pair

        return watched

    def _scandir(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any = '.') -> Any:
            if isinstance(path, int):
                place, _ = self._places.get(path, (None, 0))
            else:
                place = self._place(path)
            if place is None:
                return function(path)
            entries = self._ask('scandir', place, None, 0, function, (path,), {})
            return _Entries(self, place, entries)

        return watched

    def entry(self, place: str, function: Callable[[], Any]) -> Any:
        return self._ask('readdir', place, None, 0, function, (), {})


def _path(target: Any, options: dict[str, Any]) -> Any:
    """The path of a file that a call names in an open folder."""
    folder = options.get('dir_fd')
    if folder is None:
        folder = options.get('src_dir_fd')
    if folder is None:
        return target
    return f'{os.readlink(f"/proc/self/fd/{folder}")}/{target}'


class _Entries:
    """What scandir returns, each step of it watched."""

    def __init__(self, watch: Watch, place: str, entries: Any) -> None:
        self._watch = watch
        self._place = place
        self._entries = entries

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *error: object) -> None:
        self._entries.close()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._watch.entry(self._place, lambda: next(self._entries))


def stopping(number: int, *, torn: bool = False) -> Policy:
    """Return a policy: the process exits in place of that call; ``torn``: after half of a write.

    To stop after a call is to stop before the next one: a process changes nothing between them
    that others can see, since a line in the ledger is a call as well.
    """

    def policy(call: Call) -> Any:
        if call.number == number:
            if torn and call.name in WRITES:
                call.perform_half()
            os._exit(STOPPED)
        return call.perform()

    return policy
