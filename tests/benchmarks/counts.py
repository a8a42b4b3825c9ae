"""What a mail costs in instructions of the processor, steps of the interpreter and system calls:
figures that are the same on a busy machine.

``python -m tests.benchmarks.counts`` prints them; tests/test_cost.py holds them to limits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.benchmarks.contenders.counted import PHASES
from tests.benchmarks.processes import ROOT, Absent, contender
from tests.benchmarks.sinks import Sink, relay

__all__ = ['MAILS', 'instructions', 'steps', 'system_calls']

MAILS = {'valgrind': 50, 'strace': 60, 'steps': 200}
"""Mails in each phase: valgrind takes its time."""

_MARK = 'getpriority'

_WAITING = frozenset(
    ('futex', 'sched_yield', 'clock_nanosleep', 'poll', 'ppoll', 'select', 'epoll_wait')
)
"""Calls whose number depends on who waits for whom."""


def instructions() -> dict[str, float]:
    """Instructions a mail in each phase of contenders/counted.py, by valgrind's callgrind."""
    valgrind = _program('valgrind')
    with tempfile.TemporaryDirectory() as folder, relay() as sink:
        dumps = Path(folder) / 'callgrind.out'
        words = ('--tool=callgrind', f'--dump-before={_MARK}', f'--callgrind-out-file={dumps}')
        _run([valgrind, *words, *_command(folder, sink, MAILS['valgrind'])])
        # Each dump is about what came before it: the first about the start and the warm-up, the
        # file without a number about the end.
        numbered = [Path(f'{dumps}.{number + 2}') for number in range(len(PHASES))]
        return {
            phase: _total(path.read_text()) / MAILS['valgrind']
            for phase, path in zip(PHASES, numbered, strict=True)
        }


def steps() -> dict[str, float]:
    """Steps of the interpreter (opcodes) a mail in each phase."""
    with tempfile.TemporaryDirectory() as folder, relay() as sink:
        found: dict[str, float] = json.loads(
            _run([*_command(folder, sink, MAILS['steps']), 'steps'])
        )
    return found


def _total(dump: str) -> int:
    found = re.search(r'^(?:totals|summary): (\d+)', dump, re.MULTILINE)
    assert found, dump[-500:]
    return int(found[1])


def system_calls() -> dict[str, dict[str, float]]:
    """System calls a mail in each phase, by strace; those that only wait are left out."""
    strace = _program('strace')
    with tempfile.TemporaryDirectory() as folder, relay() as sink:
        trace = Path(folder) / 'trace'
        _run([strace, '-f', '-q', '-o', str(trace), *_command(folder, sink, MAILS['strace'])])
        phases = _phases(trace.read_text())
    return {
        phase: {name: count / MAILS['strace'] for name, count in calls.items()}
        for phase, calls in phases.items()
    }


def _phases(trace: str) -> dict[str, Counter[str]]:
    found: list[Counter[str]] = []
    for line in trace.splitlines():
        # What is resumed was counted when it was unfinished.
        call = re.match(r'\d+ +([a-z_0-9]+)\(', line)
        if call is None:
            continue
        if call[1] == _MARK:
            found.append(Counter())
        elif found and call[1] not in _WAITING:
            found[-1][call[1]] += 1
    return dict(zip(PHASES, found, strict=False))


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Absent(f'{name} is not installed')
    return path


def _command(folder: str, sink: Sink, mails: int) -> list[str]:
    return contender('counted', folder, sink.port, mails)


def _run(command: list[str]) -> bytes:
    """Return what it prints."""
    own = {'PYTHONHASHSEED': '0', 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f'{command} ended with {done.returncode}: {done.stderr[-2000:]!r}')
    return done.stdout


def main() -> int:
    """Print what there is to see."""
    try:
        found = instructions()
        for phase, count in found.items():
            share = count / found['reference']
            print(f'{phase:10} {count:12,.0f} instructions a mail {share:8.3f} of the reference')
        for phase, count in steps().items():
            print(f'{phase:10} {count:12,.0f} steps of the interpreter a mail')
        for phase, calls in system_calls().items():
            each = ', '.join(
                f'{calls[name]:.2f} {name}'
                for name in sorted(calls, key=calls.__getitem__, reverse=True)[:12]
            )
            print(f'{phase:10} {sum(calls.values()):.2f} system calls a mail: {each}')
    except Absent as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
