"""The table of goals and the pictures in docs/explanation/performance.rst, made of
docs/benchmarks.json: ``python -m tests.benchmarks.readme``.
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from tests.benchmarks.processes import ROOT
from tests.benchmarks.report import as_data, measured_text, write
from tests.benchmarks.rounds import Results, Row

__all__ = ['FIGURES', 'PAGE', 'PICTURES', 'goals_table', 'judged', 'with_figures']

PAGE = ROOT / 'docs' / 'explanation' / 'performance.rst'
FIGURES = ROOT / 'docs' / 'benchmarks.json'
PICTURES = ('request', 'drain', 'far')

BEGIN, END = '.. figures begin\n', '.. figures end\n'


def goals_table(data: dict[str, Any]) -> str:
    """Return what was measured on which machine, and a line for each goal."""
    about = ', '.join(
        f'{data["machine"][name]}' for name in ('date', 'processors', 'system', 'file system')
    )
    versions = ', '.join(f'{name} {version}' for name, version in data['peers'].items())
    rounds = min(len(row['rounds']) for row in data['rows'])
    words = (
        f'Measured on {about}, CPython {data["machine"]["python"]}; medians of {rounds} rounds, '
        f'load {data["machine"]["load"]} before they began. '
        f'{versions}.'
    )
    lines = [*textwrap.wrap(words, 100, break_long_words=False, break_on_hyphens=False), '']
    lines += ['.. list-table::', '   :header-rows: 1', '   :widths: 40 40 20', '']
    rows = [('work', 'goal', 'measured')]
    for row in data['rows']:
        for number, goal in enumerate(row['goals']):
            measured = measured_text(goal['measured'], goal['unit'], goal['met'])
            rows.append(('' if number else row['title'], goal['goal'], measured))
    for cells in rows:
        for number, cell in enumerate(cells):
            first = '     - ' if number else '   * - '
            lines += [
                line.rstrip()
                for line in textwrap.wrap(
                    cell,
                    100,
                    initial_indent=first,
                    subsequent_indent=' ' * 7,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                or [first]
            ]
    return '\n'.join(lines) + '\n'


def with_figures(page: str, data: dict[str, Any]) -> str:
    """Return the text of the page with the table that belongs there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    return f'{before}{BEGIN}\n{goals_table(data)}\n{END}{after}'


def judged(data: dict[str, Any]) -> dict[str, Any]:
    """Return the same samples, judged by the goals of today."""
    from tests.benchmarks.__main__ import ROWS

    goals = {row.name: row.goals for row in ROWS}
    rows = []
    for found in data['rows']:
        row = Row(found['name'], found['title'], (), goals[found['name']], found['note'])
        results = Results(row, found['rounds'], found['absent'], found['failures'])
        rows.append(as_data(results))
    return {**data, 'rows': rows}


def main() -> int:
    """Write the table and draw the pictures."""
    from tests.benchmarks.pictures import draw

    data = judged(json.loads(FIGURES.read_text(encoding='utf-8')))
    write(FIGURES, data)
    text = with_figures(PAGE.read_text(encoding='utf-8'), data)
    PAGE.write_text(text, encoding='utf-8')
    draw(data, PAGE.parent)
    return 0


if __name__ == '__main__':
    sys.exit(main())
