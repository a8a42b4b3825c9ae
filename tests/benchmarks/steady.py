"""A steady hour, or a shorter one: ``python -m tests.benchmarks.steady [--minutes N]``.

Two threads of an application send and commit, with fsync, so many mails a second; psendmail-qp
delivers to a sink; a subscriber commits a row for each mail. The memory and the open files of both
processes are read every second. The first quarter warms up; after that nothing may grow. At the end
the sink must have each mail once, the subscriber must have recorded each, and the queue must be
empty.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.application import recorded
from tests.benchmarks.drains import emptied, psendmail_qp
from tests.benchmarks.processes import contender, cpu_time, finish, run, start, until
from tests.benchmarks.report import machine, write
from tests.benchmarks.sinks import sink

__all__ = ['GROWTH', 'is_flat', 'main', 'measure', 'text']

GROWTH = 1.0
"""MB that a process may grow after the first quarter, and still count as flat."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the processes have at one moment: memory in MB, and open files."""

    web: float
    processor: float
    files: int


def measure(folder: Path, minutes: float, rate: float) -> dict[str, Any]:
    """Run for so long; return the figures. Raises RuntimeError where a mail or an event is
    missing."""
    with sink() as to:
        settings = {
            'benchmarks.subscriber': 'commits',
            'benchmarks.database': folder / 'database',
            'benchmarks.journal': 'wal',
        }
        command = psendmail_qp(folder, settings, to=to)
        output, stop = folder / 'web', folder / 'stop'
        ini = folder / 'production.ini'
        # Once alone: it makes the database.
        run(contender('loading', ini))
        web = start(contender('sending', ini, stop, rate), output=output)
        processor = start(command)
        looks: list[Look] = []
        try:
            until(lambda: to.taken() or web.poll() is not None, seconds=60.0)
            end = time.monotonic() + minutes * 60
            while time.monotonic() < end:
                time.sleep(min(1.0, max(end - time.monotonic(), 0.0)))
                if web.poll() is not None or processor.poll() is not None:
                    raise RuntimeError(f'a process has ended: {output.read_text()}')
                looks.append(_look(web.pid, processor.pid))
            cpu = cpu_time(processor.pid)
            stop.touch()
            web.wait(60)
            sent = json.loads(output.read_text().splitlines()[-1])['mails']
            until(emptied(folder / 'mail'), seconds=60.0)
        finally:
            finish(web)
            finish(processor)
        counts = {'the sink': to.taken(), 'the subscriber': recorded(folder / 'database')}
        for who, count in counts.items():
            if count != sent:
                raise RuntimeError(f'{who} has {count} mails, of {sent}')
    warm = looks[len(looks) // 4 :]
    third = max(len(warm) // 3, 1)
    return {
        'minutes': minutes,
        'mails': sent,
        'rate': round(sent / (minutes * 60), 1),
        'cpu': float(f'{cpu / sent:.4g}'),
        **_grown('web', [look.web for look in warm], third),
        **_grown('processor', [look.processor for look in warm], third),
        'files': _growth([look.files for look in warm], third),
    }


def _grown(who: str, sizes: Sequence[float], third: int) -> dict[str, float]:
    return {f'{who} MB': round(sizes[-1], 1), f'{who} growth': _growth(sizes, third)}


def _growth(values: Sequence[float], third: int) -> float:
    """Medians: a garbage collection that comes a second later is no growth."""
    return round(median(values[-third:]) - median(values[:third]), 2)


def _look(web: int, processor: int) -> Look:
    files = sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in (web, processor))
    return Look(_resident(web), _resident(processor), files)


def _resident(pid: int) -> float:
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def is_flat(found: dict[str, Any]) -> bool:
    """Return whether neither process grew."""
    return max(found['web growth'], found['processor growth']) <= GROWTH


def text(found: dict[str, Any]) -> str:
    """The figures, in words."""
    return (
        f'{found["minutes"]:g} minutes, {found["mails"]:,} mails ({found["rate"]:g} a second), '
        f'each delivered and reported once: after the first quarter psendmail-qp has grown by '
        f'{found["processor growth"]:g} MB, to {found["processor MB"]:g} MB, and the web process '
        f'by {found["web growth"]:g} MB, to {found["web MB"]:g} MB; goal: flat, at most '
        f'{GROWTH:g} MB'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and print what was found."""
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix='steady-') as name:
        folder = Path(name)
        about = machine(folder)
        print(', '.join(f'{name}: {value}' for name, value in about.items()), flush=True)
        found = measure(folder, arguments.minutes, arguments.rate)
    print(text(found) + ('' if is_flat(found) else ' (NOT MET)'))
    if arguments.json:
        path = arguments.json
        data = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {'rows': []}
        write(arguments.json, {**data, 'steady': {'machine': about, **found}})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m tests.benchmarks.steady',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--minutes', type=float, default=3.0, metavar='N', help='how long (3)')
    parser.add_argument(
        '--rate', type=float, default=100.0, metavar='N', help='mails a second at most (100)'
    )
    parser.add_argument('--directory', type=Path, metavar='PATH', help='where the queue is')
    parser.add_argument(
        '--json', type=Path, metavar='FILE', help='add the figures to what the rows wrote there'
    )
    return parser


if __name__ == '__main__':
    sys.exit(main())
