"""The watch misses no call: strace sees the same calls, and no others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bench import Bench
from tests.crash.counts import Count
from tests.crash.operations import OPERATIONS
from tests.crash.syscalls import Call, Watch

KINDS = {
    'openat': 'open',
    'fadvise64': 'posix_fadvise',
    'pread64': 'pread',
    'utimensat': 'utime',
    'pwrite64': 'pwrite',
    'newfstatat': 'stat',
    'statx': 'stat',
    'lstat': 'stat',
    'fstat': 'stat',
    'faccessat': 'access',
    'faccessat2': 'access',
    'unlinkat': 'unlink',
    'renameat': 'rename',
    'renameat2': 'rename',
    'mkdirat': 'mkdir',
    'fchmodat': 'chmod',
    'mknodat': 'mkfifo',
    'mknod': 'mkfifo',
    'pipe2': 'pipe2',
}
"""What the kernel calls it, and what the os module does, as far as they differ."""

BEGIN, END = '/watch-begins', '/watch-ends'


def main(folder: str, name: str) -> None:
    """Play an operation, and write down what the watch has seen."""
    (operation,) = (each for each in OPERATIONS if each.name == name)
    bench = Bench(Path(folder) / 'bench', operation, operation.variants[0])
    place = bench.lay()
    seen: Counter[str] = Counter()

    def policy(call: Call) -> Any:
        if call.name in ('scandir', 'listdir'):
            # opendir(3): open, fstat, getdents64 until it is empty, close.
            seen.update(['open', 'stat', 'close'])
        elif call.name not in ('mark', 'readdir') and call.place != 'pipe':
            seen[KINDS.get(call.name, call.name)] += 1
        return call.perform()

    steps = operation.steps(place)
    next(steps)
    with Watch(place.path, policy):
        for path in (BEGIN, END):
            with suppress(FileNotFoundError):
                os.stat(path)
            for _ in steps:
                pass
    Path(folder, 'seen').write_text(json.dumps(seen))


def traced(lines: list[str], root: str) -> Counter[str]:
    """The calls that concern ``root``, as strace has them between the two marks."""
    found: Counter[str] = Counter()
    watching = False
    for line in lines:
        call = re.match(r'\d+ +([a-z0-9_]+)\(', line)
        if call is None:
            continue  # resumed, or a signal
        if f'"{BEGIN}"' in line:
            watching = True
        elif f'"{END}"' in line:
            watching = False
        elif watching and root in line and call[1] not in ('getdents64', 'poll'):
            found[KINDS.get(call[1], call[1])] += 1
    return found


@pytest.mark.parametrize(
    'name',
    [
        'enqueue three',
        'discard three',
        'settle mixed',
        'run once',
        'hold',
        'release',
        'retry failed',
        'retry deferred',
        'drop',
        'set aside',
        'adopt',
        'prepare',
        'wake',
    ],
)
def test_the_watch_misses_no_call(tmp_path: Path, name: str, count: Count) -> None:
    """strace, outside the process, counts as many calls of each kind as the watch inside it."""
    strace = shutil.which('strace')
    if strace is None:
        pytest.skip('needs strace (Debian: apt-get install strace)')
    for attempt in range(3):
        # Where a thread is in the middle of a call at the last mark, one of the two counts it.
        seen, made = _seen_and_made(strace, tmp_path / str(attempt), name)
        if seen == made:
            break
    assert made == seen
    assert seen.total() > 3
    count('system calls compared with strace', name, seen.total())


def _seen_and_made(strace: str, folder: Path, name: str) -> tuple[Counter[str], Counter[str]]:
    """Play an operation under strace; return what the watch has seen, and what strace has."""
    folder.mkdir()
    output = folder / 'strace'
    code = f'from tests.crash.test_strace import main; main({str(folder)!r}, {name!r})'
    command = [strace, '-f', '-y', '-qq', '-s', '9', '-e', 'trace=%file,%desc', '-o', str(output)]
    done = subprocess.run(
        [*command, sys.executable, '-W', 'ignore', '-c', code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if 'ptrace' in done.stderr.lower():
        pytest.skip(f'strace is not allowed here: {done.stderr.strip()}')
    assert done.returncode == 0, done.stderr
    seen = Counter(json.loads((folder / 'seen').read_text()))
    lines = output.read_text(errors='replace').splitlines()
    return seen, traced(lines, str(folder / 'bench' / 'queue'))
