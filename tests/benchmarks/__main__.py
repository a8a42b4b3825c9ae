"""Prints figures, and asserts nothing: ``python -m tests.benchmarks [ROW ...]``, or ``make bench``.

Each row is a piece of work that contenders take turns at, in processes of their own; --list names
them. A contender that is not on the machine is skipped, and the reason is printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import rows_drain, rows_relay, rows_request, rows_scale
from tests.benchmarks.processes import versions
from tests.benchmarks.report import NO_JOURNAL, as_data, busy, machine, table, write
from tests.benchmarks.rounds import Place, Results, Row

__all__ = ['main']

ROWS = (*rows_drain.ROWS, *rows_relay.ROWS, *rows_request.ROWS, *rows_scale.ROWS)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table a row."""
    arguments = _parser().parse_args(argv)
    known = {row.name: row for row in ROWS}
    if arguments.list:
        for row in ROWS:
            title = row.title.format(queued=arguments.queued)
            print(f'{row.name:16} {title}')
        return 0
    unknown = [name for name in arguments.rows if name not in known]
    if unknown:
        print(f'{unknown[0]!r} is no row: write some of {", ".join(known)}', file=sys.stderr)
        return 2
    rows = [known[name] for name in arguments.rows or known]
    if arguments.only:
        rows = [_only(row, arguments.only) for row in rows]
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix='benchmarks-') as folder:
        Path(folder).chmod(0o755)
        place = Place(
            Path(folder),
            scale=0.02 if arguments.quick else arguments.scale,
            queued=1_000 if arguments.quick else arguments.queued,
        )
        about = machine(place.folder)
        print(', '.join(f'{name}: {value}' for name, value in about.items()))
        if about['file system'] == NO_JOURNAL:
            print(
                f'warning: {NO_JOURNAL} is slow at what a queue does: give a --directory elsewhere'
            )
        print()
        found = []
        failed = False
        peers = versions()
        for row in rows:
            began = time.monotonic()
            before = busy(0.1 if arguments.quick else 1.0)
            titled = replace(row, title=row.title.format(queued=place.queued))
            results = Results(titled, before=before)
            for number in range(rounds):
                _tell(f'{row.name}: round {number + 1} of {rounds}')
                results.play(place)
            _tell('')
            print(f'{table(results)}\n  took {time.monotonic() - began:.0f} s\n', flush=True)
            failed = failed or bool(results.failures)
            found.append(as_data(results))
            if arguments.json:
                data = {'machine': about, 'peers': peers, 'rows': found}
                write(arguments.json, data)
    return int(failed)


def _only(row: Row, words: Sequence[str]) -> Row:
    names = [each for each in row.contenders if any(word in each.name for word in words)]
    return replace(row, contenders=names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks', description=__doc__)
    parser.add_argument('rows', nargs='*', metavar='ROW', help='the rows to run; all')
    parser.add_argument('--list', action='store_true', help='name the rows, and end')
    parser.add_argument(
        '--only',
        action='append',
        metavar='TEXT',
        help='contenders in whose names this is; may be given several times',
    )
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='rounds a row (5)')
    parser.add_argument(
        '--directory',
        type=Path,
        metavar='PATH',
        help='where queues are: on the disk that is meant; the folder for temporary files',
    )
    parser.add_argument(
        '--scale', type=float, default=1.0, metavar='X', help='times the mails a round (1)'
    )
    parser.add_argument(
        '--queued', type=int, default=50_000, metavar='N', help='files for "queued" (50000)'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write every figure there too')
    parser.add_argument('--quick', action='store_true', help='few mails, one round: does it run?')
    return parser


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
