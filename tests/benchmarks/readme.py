"""The figures and pictures in docs/explanation/performance.rst, made of docs/benchmarks.json:
``python -m tests.benchmarks.readme``.

What is met comes first, then one list of what is missed, then each row with its settings and all
contenders. No figure is written by hand.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from tests.benchmarks import steady
from tests.benchmarks.processes import ROOT
from tests.benchmarks.report import as_data, before_text, measured_text, number, write
from tests.benchmarks.rounds import Results, Row

__all__ = [
    'EARLIER_BEGIN',
    'EARLIER_END',
    'FIGURES',
    'PAGE',
    'PICTURES',
    'judged',
    'sections',
    'with_figures',
]

PAGE = ROOT / 'docs' / 'explanation' / 'performance.rst'
FIGURES = ROOT / 'docs' / 'benchmarks.json'
PICTURES = {
    'postfix': 'Mails a second into a real Postfix, in plain text and with TLS, beside others',
    'drain': 'Mails a second into a sink on the same machine, beside others',
    'far': 'Mails a second where the relay is 20 ms away, beside others',
    'request': 'Mails a second that one thread sends and commits, beside others',
}
"""Each shows the row of its name."""

EARLIER_BEGIN, EARLIER_END = '.. earlier begin\n', '.. earlier end\n'
"""Figures of an earlier run, which stand there until there are new ones."""

BEGIN, END = '.. figures begin\n', '.. figures end\n'

NONE = """\
There are no figures of these rows yet: ``make bench`` measures them and writes them here.
"""


def sections(data: dict[str, Any]) -> str:
    """Return the sections that are made of the figures."""
    if not data['rows']:
        return NONE
    measured = [
        (row['title'], goal['goal'], goal, text)
        for row in data['rows']
        for goal in row['goals']
        for text in [measured_text(goal['measured'], goal['unit'], True)]
    ]
    met = [(work, goal, text) for work, goal, each, text in measured if each['met']]
    missed = [
        f'{work}: {goal}, measured {text}'
        for work, goal, each, text in measured
        if each['met'] is False
    ]
    if 'steady' in data and not steady.is_flat(data['steady']):
        missed.append(f'a steady run of {steady.text(data["steady"])}')
    unknown = [f'{work}: {goal}' for work, goal, each, _ in measured if each['met'] is None]
    unknown += [
        f'{row["title"]}: {name}: {why}'
        for row in data['rows']
        for name, why in row['absent'].items()
    ]
    unknown += [f'{row["title"]}: {what}' for row in data['rows'] for what in row['failures']]
    parts = [_machine(data), _heading('What is true'), _table(('work', 'goal', 'measured'), met)]
    if 'steady' in data and steady.is_flat(data['steady']):
        parts.append(_wrapped(f'A steady run of {steady.text(data["steady"])}.'))
    there = {row['name'] for row in data['rows']}
    parts += [
        f'.. image:: {name}.svg\n   :alt: {alt}' for name, alt in PICTURES.items() if name in there
    ]
    parts += [_heading('What is missed'), _list(missed) or 'Nothing.']
    if unknown:
        parts += [_heading('What was not measured'), _list(unknown)]
    parts += [_heading('Every row'), *(_row(row) for row in data['rows'])]
    return '\n\n'.join(parts) + '\n'


def _machine(data: dict[str, Any]) -> str:
    about = data['machine']
    where = ', '.join(about[name] for name in ('date', 'processors', 'system', 'file system'))
    versions = ', '.join(f'{name} {version}' for name, version in data['peers'].items())
    rounds = max(len(row['rounds']) for row in data['rows'])
    used = median(row['before']['used'] for row in data['rows'])
    return _wrapped(
        f'Measured on {where}, CPython {about["python"]}; medians of {rounds} rounds, in which all '
        f'took turns; load {about["load"]} before they began, {used:.0%} of the processors used by '
        f'others between the rows (median). {versions}.'
    )


def _row(row: dict[str, Any]) -> str:
    """One row: what it is about, its settings, and the medians of each contender."""
    names = list(dict.fromkeys(name for samples in row['rounds'] for name in samples))
    columns = (
        ('mails/s', 'rate', 1.0),
        ('CPU us', 'cpu', 1e6),
        ('MB', 'memory', 1.0),
        *((heading, figure, by) for heading, figure, by in row['shown']),
    )
    values = {
        (name, figure): [
            each[name][figure] for each in row['rounds'] if figure in each.get(name, {})
        ]
        for name in names
        for _, figure, _ in columns
    }
    used = [each for each in columns if any(values[name, each[1]] for name in names)]
    lines = [
        (
            name,
            *(
                number(median(found) * by) if (found := values[name, figure]) else ''
                for _, figure, by in used
            ),
        )
        for name in names
    ]
    words = [f'**{row["title"]}** (``{row["name"]}``)', row['settings'], row['note']]
    before = f'Before it: {before_text(row["before"])}'
    text = _wrapped('. '.join(each for each in [*words, before] if each) + '.')
    return f'{text}\n\n{_table(("contender", *(heading for heading, _, _ in used)), lines)}'


def _heading(text: str) -> str:
    return f'{text}\n{"-" * len(text)}'


def _wrapped(text: str, first: str = '', other: str = '') -> str:
    lines = textwrap.wrap(
        text,
        100,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return '\n'.join(line.rstrip() for line in lines or [first])


def _list(items: Iterable[str]) -> str:
    return '\n'.join(_wrapped(item, '* ', '  ') for item in items)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ['.. list-table::', '   :header-rows: 1', '']
    for cells in (headings, *rows):
        lines += [
            _wrapped(cell, '     - ' if position else '   * - ', ' ' * 7)
            for position, cell in enumerate(cells)
        ]
    return '\n'.join(lines)


def with_figures(page: str, data: dict[str, Any]) -> str:
    """Return the text of the page with the figures that belong there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    if data['rows']:
        kept, _, earlier = after.partition(EARLIER_BEGIN)
        after = kept + earlier.partition(EARLIER_END)[2]
    return f'{before}{BEGIN}\n{sections(data)}\n{END}{after}'


def judged(data: dict[str, Any]) -> dict[str, Any]:
    """Return the same samples, judged by the goals of today."""
    from tests.benchmarks.__main__ import ROWS

    goals = {row.name: row.goals for row in ROWS}
    rows = []
    for found in data['rows']:
        row = Row(found['name'], found['title'], (), goals[found['name']])
        results = Results(row, found['rounds'], found['absent'], found['failures'])
        rows.append({**found, 'goals': as_data(results)['goals']})
    return {**data, 'rows': rows}


def main() -> int:
    """Write the figures and draw the pictures."""
    from tests.benchmarks.pictures import draw

    data = judged(json.loads(FIGURES.read_text(encoding='utf-8')))
    write(FIGURES, data)
    text = with_figures(PAGE.read_text(encoding='utf-8'), data)
    PAGE.write_text(text, encoding='utf-8')
    draw(data, PAGE.parent)
    return 0


if __name__ == '__main__':
    sys.exit(main())
