"""The pictures in docs/explanation/performance.rst: bars, medians over the rounds, the range as a
thin line.

Grey on nothing is readable on a light page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ['draw']

OURS, OTHERS, INK = '#2f81f7', '#9198a1', '#7d8590'


@dataclass(frozen=True, slots=True)
class Bar:
    """A contender: its name as the picture has it, and mails a second in each round."""

    name: str
    rates: Sequence[float]

    @property
    def height(self) -> float:
        return median(self.rates)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Write one SVG for each picture."""
    rows = {row['name']: row for row in data['rows']}
    about = f'{data["machine"]["date"]}, {data["machine"]["processors"]}'
    _picture(
        folder / 'request.svg',
        'A request: send and commit, 2 KB',
        'mails a second, one thread',
        _bars(rows['request']),
        f'{about}. Ours and the bare loop fsync each mail, but where it says otherwise; '
        'the peers never do.',
    )
    _picture(
        folder / 'drain.svg',
        'The queue drains: 2 KB, loopback',
        'mails a second',
        [
            *_bars(rows['drain']),
            *_bars(rows['drain-events'], only=('a commit an event', 'a commit a batch')),
        ],
        about,
    )
    _picture(
        folder / 'far.svg',
        'The relay is 20 ms away: 2 KB',
        'mails a second, 10 connections (zope.sendmail: one a mail)',
        [*_bars(rows['far']), *_bars(rows['far-chunking'], rename=' with CHUNKING')],
        about,
    )


def _bars(row: dict[str, Any], *, only: Sequence[str] = (), rename: str = '') -> list[Bar]:
    rates: dict[str, list[float]] = {}
    for samples in row['rounds']:
        for name, figures in samples.items():
            if 'rate' in figures and (not only or any(word in name for word in only)):
                rates.setdefault(name, []).append(figures['rate'])
    if rename:
        rates = {f'{name},{rename}': each for name, each in rates.items() if 'pyramid' in name}
    return [Bar(name, each) for name, each in rates.items()]


def _ours(name: str) -> bool:
    return name.startswith('pyramid_sendmail')


def _picture(path: Path, title: str, unit: str, bars: Sequence[Bar], note: str) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ordered = sorted(bars, key=lambda bar: bar.height)
    style = {
        'svg.hashsalt': path.stem,
        'svg.fonttype': 'none',
        'font.family': 'sans-serif',
        'text.color': INK,
        'axes.labelcolor': INK,
        'xtick.color': INK,
        'ytick.color': INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 1.3 + 0.36 * len(ordered)), layout='constrained')
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        positions = range(len(ordered))
        axes.barh(
            positions,
            [bar.height for bar in ordered],
            color=[OURS if _ours(bar.name) else OTHERS for bar in ordered],
            height=0.62,
        )
        for position, bar in zip(positions, ordered, strict=True):
            axes.plot([min(bar.rates), max(bar.rates)], [position] * 2, color=INK, linewidth=1)
            axes.annotate(
                f'{bar.height:,.0f}' if bar.height >= 10 else f'{bar.height:.2g}',
                (max(bar.rates), position),
                xytext=(4, 0),
                textcoords='offset points',
                va='center',
            )
        axes.set_yticks(positions, [bar.name for bar in ordered])
        axes.set_xlabel(unit)
        axes.set_title(title, loc='left', weight='bold')
        axes.margins(x=0.12, y=0.02)
        axes.spines[['top', 'right', 'left']].set_visible(False)
        axes.spines['bottom'].set_color(INK)
        axes.tick_params(left=False)
        axes.grid(axis='x', color=INK, alpha=0.25)
        axes.set_axisbelow(True)
        figure.supxlabel(note, fontsize='x-small', x=0.01, ha='left')
        figure.savefig(path, format='svg', transparent=True, metadata={'Date': None})
