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

__all__ = [
    'NO_JOURNAL',
    'as_data',
    'before_text',
    'busy',
    'machine',
    'measured_text',
    'number',
    'table',
    'write',
]


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


def busy(seconds: float) -> dict[str, float]:
    """Return what the machine does for so long, while nothing of ours runs: the share of its
    processors that others use, the share that the host keeps for itself, and the load."""
    first = _jiffies()
    time.sleep(seconds)
    spent = [after - before for before, after in zip(first, _jiffies(), strict=True)]
    total = max(sum(spent), 1)
    # user nice system idle iowait irq softirq steal
    return {
        'used': round((sum(spent[:3]) + sum(spent[5:7])) / total, 3),
        'stolen': round(spent[7] / total, 3),
        'load': round(os.getloadavg()[0], 1),
    }


def _jiffies() -> list[int]:
    try:
        line = Path('/proc/stat').read_text().splitlines()[0]
    except OSError:
        return [0] * 8
    return [int(word) for word in line.split()[1:9]]


def table(results: Results) -> str:
    """One row's contenders, and its goals."""
    row = results.row
    lines = [f'{row.name}: {row.title} ({len(results.samples)} rounds)']
    if results.present:
        headings = ['mails/s', 'ratio', 'CPU us', 'MB', *(shown[0] for shown in row.shown)]
        lines.append(_line('', headings))
    lines += [_line(name, _figures(results, name)) for name in results.present]
    if results.before:
        lines.append(f'  before: {before_text(results.before)}')
    if settings := settings_text(results):
        lines.append(f'  settings: {settings}')
    lines += [f'  {name}: skipped: {reason}' for name, reason in results.absent.items()]
    lines += [f'  FAILED: {failure}' for failure in results.failures]
    lines += [f'  goal: {_verdict(verdict)}' for verdict in results.verdicts()]
    if row.note:
        lines.append(f'  note: {row.note}')
    return '\n'.join(lines)


def settings_text(results: Results) -> str:
    """How many mails each contender sent, and the settings."""
    count = [f'{results.mails:,.0f} mails each'] if results.mails else []
    return '; '.join([*count, *([results.row.settings] if results.row.settings else [])])


def before_text(before: Mapping[str, float]) -> str:
    """What the machine did before a row, in words."""
    return (
        f'{before["used"]:.0%} of the processors in use by others, {before["stolen"]:.0%} kept by '
        f'the host, load {before["load"]}'
    )


def _line(name: str, cells: Iterable[str]) -> str:
    return f'  {name:38}' + ''.join(f'{cell:>12}' for cell in cells)


def _figures(results: Results, name: str) -> list[str]:
    rate = results.median(name, 'rate')
    ratio = results.ratio(name, results.present[0])
    cpu = results.median(name, 'cpu')
    shown = [
        number(value * by if (value := results.median(name, figure)) is not None else None)
        for _, figure, by in results.row.shown
    ]
    return [
        number(rate),
        number(ratio),
        number(None if cpu is None else cpu * 1e6),
        number(results.median(name, 'memory')),
        *shown,
    ]


def number(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return ''
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _verdict(verdict: Verdict) -> str:
    return f'{verdict.goal.text}: {measured_text(verdict.measured, verdict.goal.unit, verdict.met)}'


def measured_text(measured: float | None, unit: str, met: bool | None) -> str:
    """What was measured, in words; a goal that is missed says so."""
    if measured is None:
        return 'not measured'
    return f'{number(measured)}{f" {unit}" if unit else ""}{"" if met else " (NOT MET)"}'


def as_data(results: Results) -> dict[str, Any]:
    """One row as JSON has it: every sample, so that nothing has to be believed."""
    row = results.row
    return {
        'name': row.name,
        'title': row.title,
        'settings': settings_text(results),
        'note': row.note,
        'before': dict(results.before),
        'shown': [list(each) for each in row.shown],
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
