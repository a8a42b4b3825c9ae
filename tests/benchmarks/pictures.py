"""The pictures in docs/explanation/performance.rst: bars, medians over the rounds, the range as a
thin line.

Each name stands above its bar, so that a picture is readable on a phone. Grey on nothing is
readable on a light page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ['draw']

OURS, OTHERS, INK = '#2f81f7', '#9198a1', '#7d8590'

TITLES = {
    'postfix': 'Into a real Postfix: 2 KB',
    'drain': 'Into a sink on the same machine: 2 KB',
    'far': 'The relay is 20 ms away: 2 KB',
    'request': 'A request: send and commit, 2 KB',
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A contender: its name as the picture has it, and mails a second in each round."""

    name: str
    rates: Sequence[float]

    @property
    def height(self) -> float:
        return median(self.rates)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Write one SVG for each picture whose row was measured."""
    rows = {row['name']: row for row in data['rows']}
    if not rows:
        return
    about = f'{data["machine"]["date"]}, {data["machine"]["processors"]}'
    for name, title in TITLES.items():
        if name not in rows:
            continue
        bars = _bars(rows[name])
        if name == 'postfix' and 'postfix-tls' in rows:
            bars += _bars(rows['postfix-tls'], suffix=', TLS and AUTH')
        _picture(folder / f'{name}.svg', title, bars, about)


def _bars(row: dict[str, Any], *, suffix: str = '') -> list[Bar]:
    rates: dict[str, list[float]] = {}
    for samples in row['rounds']:
        for name, figures in samples.items():
            if 'rate' in figures:
                rates.setdefault(f'{name}{suffix}', []).append(figures['rate'])
    return [Bar(name, each) for name, each in rates.items()]


def _picture(path: Path, title: str, bars: Sequence[Bar], note: str) -> None:
    # Only here: measuring does not need it.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ordered = sorted(bars, key=lambda bar: bar.height)
    style = {
        # The same input gives the same file.
        'svg.hashsalt': path.stem,
        'svg.fonttype': 'none',
        'font.family': 'sans-serif',
        'text.color': INK,
        'axes.labelcolor': INK,
        'xtick.color': INK,
        'ytick.color': INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2, 1.2 + 0.5 * len(ordered)), layout='constrained')
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for position, bar in enumerate(ordered):
            ours = bar.name.startswith('pyramid_sendmail')
            axes.barh(position, bar.height, color=OURS if ours else OTHERS, height=0.4)
            axes.plot([min(bar.rates), max(bar.rates)], [position] * 2, color=INK, linewidth=1)
            axes.annotate(
                f'{bar.height:,.0f}' if bar.height >= 10 else f'{bar.height:.2g}',
                (max(bar.rates), position),
                xytext=(4, 0),
                textcoords='offset points',
                va='center',
            )
            axes.annotate(
                bar.name,
                (0, position + 0.24),
                xytext=(2, 1),
                textcoords='offset points',
                va='bottom',
                weight='bold' if ours else 'normal',
            )
        axes.set_yticks([])
        axes.set_xlabel(f'mails a second\n{note}')
        axes.set_title(title, loc='left', weight='bold')
        axes.margins(x=0.14)
        axes.set_ylim(-0.4, len(ordered) - 0.1)
        axes.spines[['top', 'right', 'left']].set_visible(False)
        axes.spines['bottom'].set_color(INK)
        axes.grid(axis='x', color=INK, alpha=0.25)
        axes.set_axisbelow(True)
        figure.savefig(path, format='svg', transparent=True, metadata={'Date': None})
