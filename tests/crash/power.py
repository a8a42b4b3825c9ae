"""A power cut, played from the recorded calls of a commit: what was not synced may be lost.

The disk is that of a file system with a journal (ext4, XFS): entries of folders reach it in their
order, and each sync of a file or folder takes all earlier ones along. Bytes of a file reach it in
any order, and are certain only when that file was synced. So a cut leaves

* a prefix of the changes to folders, at least those before the last sync;
* of each file what it had when it was synced, and any of the writes after that, the last one whole
  or in half.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

from tests.crash.syscalls import Call

__all__ = ['Recording', 'State']

Entry = tuple[str, str]


@dataclass(frozen=True, slots=True)
class State:
    """What a cut left: ``marks``, what the process had said before it; the files."""

    marks: tuple[str, ...]
    files: dict[Entry, bytes]

    def lay(self, root: Path) -> None:
        """Make it the content of a queue's folders."""
        for folder in ('tmp', 'new', 'cur', 'done', 'failed', 'reasons'):
            (root / folder).mkdir(parents=True, mode=0o700)
        for (folder, name), data in self.files.items():
            path = root / folder / name
            path.write_bytes(data)
            path.chmod(0o600)


@dataclass(slots=True)
class Recording:
    """What a process did to the disk: a policy for Watch."""

    steps: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, call: Call) -> Any:
        arguments, options = call._arguments, call._options
        if call.name == 'pwrite':
            descriptor, data, at = arguments
            self.steps.append(('write', os.fstat(descriptor).st_ino, bytes(data), at))
        elif call.name in ('fsync', 'fdatasync'):
            here = os.fstat(arguments[0])
            self.steps.append(('sync', here.st_ino if stat.S_ISREG(here.st_mode) else None))
        elif call.name == 'rename':
            source, target = options['src_dir_fd'], options['dst_dir_fd']
            before, after = _entry(arguments[0], source), _entry(arguments[1], target)
            self.steps.append(('rename', before, after))
        elif call.name == 'unlink':
            self.steps.append(('unlink', _entry(arguments[0], options['dir_fd'])))
        result = call.perform()
        if call.name == 'open' and arguments[1] & os.O_CREAT:
            entry = _entry(arguments[0], options['dir_fd'])
            self.steps.append(('create', entry, os.fstat(result).st_ino))
        return result

    def mark(self, word: str) -> None:
        """Say how far the process is."""
        self.steps.append(('mark', word))

    def cuts(self, rng: random.Random, most: int) -> Iterator[State]:
        """Yield what cuts may leave: every one behind each step, or ``most`` of them by chance."""
        for end in range(len(self.steps) + 1):
            done = self.steps[:end]
            marks = tuple(step[1] for step in done if step[0] == 'mark')
            states = [
                State(marks, {entry: dict(contents)[file] for entry, file in entries.items()})
                for entries, *contents in product(_folders(done), *_contents(done))
            ]
            yield from states if len(states) <= most else rng.sample(states, most)


def _entry(name: str, folder: int) -> Entry:
    return os.path.basename(os.readlink(f'/proc/self/fd/{folder}')), name


def _folders(steps: list[tuple[Any, ...]]) -> list[dict[Entry, int]]:
    """Return what the folders may have: after each step since the last sync."""
    found: list[dict[Entry, int]] = [{}]
    for kind, *words in steps:
        entries = dict(found[-1])
        if kind == 'create':
            entries[words[0]] = words[1]
        elif kind == 'rename':
            entries[words[1]] = entries.pop(words[0])
        elif kind == 'unlink':
            del entries[words[0]]
        elif kind == 'sync':
            found = []
        else:
            continue
        found.append(entries)
    return found


def _contents(steps: list[tuple[Any, ...]]) -> list[list[tuple[int, bytes]]]:
    """Return for each file what it may have."""
    files = [words[1] for kind, *words in steps if kind == 'create']
    return [[(file, data) for data in _versions(file, steps)] for file in files]


def _versions(file: int, steps: list[tuple[Any, ...]]) -> set[bytes]:
    certain, later = b'', []
    for kind, *words in steps:
        if kind == 'write' and words[0] == file:
            later.append((words[1], words[2]))
        elif kind == 'sync' and words[0] == file:
            for data, at in later:
                certain = _written(certain, data, at)
            later = []
    found = set()
    subsets = chain.from_iterable(combinations(later, n) for n in range(len(later) + 1))
    for chosen in subsets:
        text = certain
        for number, (data, at) in enumerate(chosen, 1):
            if number == len(chosen):
                found.add(_written(text, data[: len(data) // 2], at))
                # The length may reach the disk before the bytes.
                found.add(_written(text, bytes(len(data)), at) if len(data) > 1 else text)
            text = _written(text, data, at)
        found.add(text)
    return found


def _written(text: bytes, data: bytes, at: int) -> bytes:
    return text[:at].ljust(at, b'\0') + data + text[at + len(data) :]
