"""The figures as a table of text, and as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.rounds import Results, Verdict

__all__ = ['NO_JOURNAL', 'as_data', 'machine', 'measured_text', 'table', 'write']


NO_JOURNAL = 'ext4 without a journal'


def machine(folder: Path) -> dict[str, Any]:
    """What the figures were taken on."""
    release = platform.release().partition('-')[0]
    return {
        'date': time.strftime('%Y-%m-%d'),
        'pyramid_sendmail': version('pyramid_sendmail'),
        'python': platform.python_version(),
        'system': f'{platform.system()} {release} {platform.machine()}',
        'processors': f'{len(os.sched_getaffinity(0))} x {_processor()}',
        'load': round(os.getloadavg()[0], 1),
        'file system': _file_system(folder),
    }


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, and whether an ext4 has a journal: without
    one, a file made soon after many were removed costs a millisecond of the processor."""
    try:
        mounts = [line.split() for line in Path('/proc/self/mounts').read_text().splitlines()]
    except OSError:
        return 'unknown'
    found = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    device, _, kind = max(found, key=lambda mount: len(mount[1]))[:3]
    if kind != 'ext4':
        return kind
    journals = [path.name.partition('-')[0] for path in Path('/proc/fs/jbd2').glob('*')]
    return kind if Path(device).name in journals else NO_JOURNAL


def table(results: Results) -> str:
    """One row's contenders, and its goals."""
    row = results.row
    lines = [f'{row.name}: {row.title} ({len(results.samples)} rounds)']
    if results.present:
        headings = ['mails/s', 'ratio', 'CPU us', 'MB', *(shown[0] for shown in row.shown)]
        lines.append(_line('', headings))
    lines += [_line(name, _figures(results, name)) for name in results.present]
    lines += [f'  {name}: skipped: {reason}' for name, reason in results.absent.items()]
    lines += [f'  FAILED: {failure}' for failure in results.failures]
    lines += [f'  goal: {_verdict(verdict)}' for verdict in results.verdicts()]
    if row.note:
        lines.append(f'  note: {row.note}')
    return '\n'.join(lines)


def _line(name: str, cells: Iterable[str]) -> str:
    return f'  {name:38}' + ''.join(f'{cell:>12}' for cell in cells)


def _figures(results: Results, name: str) -> list[str]:
    rate = results.median(name, 'rate')
    ratio = results.ratio(name, results.present[0])
    cpu = results.median(name, 'cpu')
    shown = [
        _number(value * by if (value := results.median(name, figure)) is not None else None)
        for _, figure, by in results.row.shown
    ]
    return [
        _number(rate),
        _number(ratio),
        _number(None if cpu is None else cpu * 1e6),
        _number(results.median(name, 'memory')),
        *shown,
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ''
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _verdict(verdict: Verdict) -> str:
    return f'{verdict.goal.text}: {measured_text(verdict.measured, verdict.goal.unit, verdict.met)}'


def measured_text(measured: float | None, unit: str, met: bool | None) -> str:
    """What was measured, in words; a goal that is missed says so."""
    if measured is None:
        return 'not measured'
    return f'{_number(measured)}{f" {unit}" if unit else ""}{"" if met else " (NOT MET)"}'


def as_data(results: Results) -> dict[str, Any]:
    """One row as JSON has it: every sample, so that nothing has to be believed."""
    row = results.row
    return {
        'name': row.name,
        'title': row.title,
        'note': row.note,
        'absent': results.absent,
        'failures': results.failures,
        'rounds': [
            {
                name: {key: _rounded(value) for key, value in each.items()}
                for name, each in samples.items()
            }
            for samples in results.samples
        ],
        'goals': [
            {
                'goal': verdict.goal.text,
                'limit': verdict.goal.limit,
                'unit': verdict.goal.unit,
                'measured': _rounded(verdict.measured),
                'met': verdict.met,
            }
            for verdict in results.verdicts()
        ],
    }


def write(path: Path, data: Mapping[str, Any]) -> None:
    """As JSON, a line for each sample and each goal."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    lines = re.sub(r'\{[^{}]*\}', lambda found: re.sub(r'\s*\n\s*', ' ', found[0]), text)
    path.write_text(lines + '\n', encoding='utf-8')


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f'{value:.4g}')
