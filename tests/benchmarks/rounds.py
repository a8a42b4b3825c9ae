"""Rounds: contenders take turns, and what counts is the median over the rounds.

Machines are noisy, and slow down as a whole: a ratio is taken within one round, between contenders
that ran one after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks.processes import Absent

__all__ = [
    'OURS',
    'Contender',
    'Goal',
    'Place',
    'Results',
    'Row',
    'Verdict',
    'Yardstick',
    'at_most',
    'ratio',
    'times',
]

OURS = 'pyramid_sendmail'
"""The contender that most goals are about."""

Sample = Mapping[str, float]
"""What one contender did in one round: ``rate``, mails a second; ``cpu``, seconds of the processor
a mail; ``memory``, MB at its peak; and whatever else a row is about."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a round is run. ``scale``: the part of the ordinary number of mails that is sent;
    ``queued``: how many files the row about many files has."""

    folder: Path
    scale: float = 1.0
    queued: int = 50_000

    def mails(self, ordinary: int, *, least: int = 5) -> int:
        """How many mails, where an ordinary run has so many."""
        return max(round(ordinary * self.scale), least)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """A new folder."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            # The sink, for one, does not run as us.
            Path(folder).chmod(0o755)
            yield Path(folder)


@dataclass(frozen=True, slots=True)
class Contender:
    """A contender; ``measure`` raises Absent if it is not on this machine."""

    name: str
    measure: Callable[[Place], Sample]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row should show. ``value`` is taken in each round; ``unit`` is what it is counted in:
    nothing, where it is a ratio."""

    text: str
    value: Callable[[Mapping[str, Sample]], float]
    limit: float
    at_least: bool = True
    unit: str = ''


@dataclass(frozen=True, slots=True)
class Yardstick:
    """A figure that is computed from those of the same round; nothing is run for it."""

    name: str
    compute: Callable[[Mapping[str, Sample]], Sample]


@dataclass(frozen=True, slots=True)
class Row:
    """Contenders for the same work; the others are printed beside the first."""

    name: str
    title: str
    contenders: Sequence[Contender]
    goals: Sequence[Goal] = ()
    settings: str = ''
    """Every setting that is not the default, and whatever else a reader has to know to run it."""
    note: str = ''
    shown: Sequence[tuple[str, str, float]] = ()
    """More columns: heading, figure, and by how much to multiply it."""
    yardsticks: Sequence[Yardstick] = ()
    once: bool = False
    """Whether one round is enough: the figures are the same each time."""


def times(factor: float, other: str, *, who: str = OURS) -> Goal:
    """To be so many times as fast as another."""
    return ratio(f'{factor:g} times {other}', 'rate', who, other, factor)


def ratio(
    text: str, figure: str, one: str, other: str, limit: float, *, at_least: bool = True
) -> Goal:
    """To have a figure that is so many times another's."""
    subject = '' if one == OURS else f'{one}: '
    return Goal(
        f'{subject}{text}',
        lambda samples: samples[one][figure] / samples[other][figure],
        limit,
        at_least,
    )


def at_most(
    text: str, figure: str, limit: float, unit: str, *, by: float = 1, who: str = OURS
) -> Goal:
    """To have a figure, so many times the unit, that is no larger."""
    return Goal(text, lambda samples: samples[who][figure] * by, limit, False, unit)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, and what was measured; ``measured`` is None where a contender is absent."""

    goal: Goal
    measured: float | None

    @property
    def met(self) -> bool | None:
        """Whether it is; None where that is not known."""
        if self.measured is None:
            return None
        if self.goal.at_least:
            return self.measured >= self.goal.limit
        return self.measured <= self.goal.limit


@dataclass(slots=True)
class Results:
    """What the rounds of one row have shown."""

    row: Row
    samples: list[dict[str, Sample]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """What went wrong: the contender has no figures of that round."""
    before: Mapping[str, float] = field(default_factory=dict)
    """What the machine did before the row, while nothing of ours ran."""

    def play(self, place: Place) -> None:
        """One more round."""
        if self.row.once and self.samples:
            return
        samples: dict[str, Sample] = {}
        # No contender always follows the same one.
        shift = len(self.samples) % max(len(self.row.contenders), 1)
        for contender in [*self.row.contenders[shift:], *self.row.contenders[:shift]]:
            if contender.name in self.absent:
                continue
            try:
                samples[contender.name] = contender.measure(place)
            except Absent as reason:
                self.absent[contender.name] = str(reason)
            except RuntimeError as error:
                self.failures.append(f'{contender.name}: {error}')
        self._compare_counts(samples)
        for yardstick in self.row.yardsticks:
            with suppress(KeyError):
                samples[yardstick.name] = yardstick.compute(samples)
        self.samples.append(samples)

    def _compare_counts(self, samples: Mapping[str, Sample]) -> None:
        """Record a failure where contenders sent different numbers of mails: a start, an end and a
        slow first second weigh more the fewer mails there are."""
        counts = {name: each['mails'] for name, each in samples.items() if 'mails' in each}
        if len(set(counts.values())) > 1:
            said = ', '.join(f'{name}: {count:.0f}' for name, count in counts.items())
            self.failures.append(f'the mail counts differ: {said}')

    @property
    def present(self) -> list[str]:
        """The names of the contenders that took part, in their order, then the yardsticks."""
        names = [contender.name for contender in self.row.contenders]
        names += [each.name for each in self.row.yardsticks if self.values(each.name, 'rate')]
        return [name for name in names if name not in self.absent]

    @property
    def mails(self) -> float | None:
        """How many mails each contender sent in a round; None where they are not compared so."""
        counts = {each['mails'] for one in self.samples for each in one.values() if 'mails' in each}
        return counts.pop() if len(counts) == 1 else None

    def values(self, name: str, figure: str) -> list[float]:
        """A figure of each round."""
        return [each[name][figure] for each in self.samples if figure in each.get(name, {})]

    def median(self, name: str, figure: str) -> float | None:
        """A figure's median over the rounds; None where there is none."""
        values = self.values(name, figure)
        return median(values) if values else None

    def ratio(self, name: str, other: str) -> float | None:
        """The median of the ratios of two rates, each taken within a round."""
        ratios = [
            each[name]['rate'] / each[other]['rate']
            for each in self.samples
            if 'rate' in each.get(name, {}) and 'rate' in each.get(other, {})
        ]
        return median(ratios) if ratios else None

    def verdicts(self) -> list[Verdict]:
        """The goals, and whether they are met."""
        return [Verdict(goal, self._measured(goal)) for goal in self.row.goals]

    def _measured(self, goal: Goal) -> float | None:
        values = []
        for each in self.samples:
            with suppress(KeyError):
                values.append(goal.value(each))
        return median(values) if values else None
