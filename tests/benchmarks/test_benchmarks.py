"""The frame of the benchmarks: turns, medians, verdicts, and what docs/ shows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import readme
from tests.benchmarks.counts import _phases
from tests.benchmarks.processes import Absent
from tests.benchmarks.report import as_data, table
from tests.benchmarks.rounds import Contender, Place, Results, Row, Sample, at_most, ratio, times

ALL = ('bare', 'pyramid_sendmail', 'peer')


def measure(calls: list[str], name: str, *rates: float) -> Contender:
    """A contender with one rate for each round; it records its turns."""
    each = iter(rates)

    def rate(place: Place) -> Sample:
        calls.append(name)
        return {'rate': next(each), 'cpu': 0.001, 'memory': 20.0}

    return Contender(name, rate)


def absent(place: Place) -> Sample:
    raise Absent('make bench-peers')


def played(row: Row, path: Path, rounds: int = 3) -> Results:
    results = Results(row)
    for _ in range(rounds):
        results.play(Place(path))
    return results


def row(*contenders: Contender, goals: tuple[object, ...] = ()) -> Row:
    return Row('drain', 'a queue', contenders, goals)  # type: ignore[arg-type]


def test_turns(tmp_path: Path) -> None:
    """Each round begins with the next contender, so that none always follows the same one."""
    calls: list[str] = []
    played(row(*(measure(calls, name, 1, 1, 1) for name in ALL)), tmp_path)
    bare, ours, peer = ALL
    assert calls == [bare, ours, peer, ours, peer, bare, peer, bare, ours]


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    """The median of the ratios is not the ratio of the medians: a round in which the whole machine
    was slow counts like any other."""
    bare, ours = measure([], 'bare', 100, 10, 40), measure([], 'pyramid_sendmail', 200, 30, 20)
    results = played(row(bare, ours, goals=(times(1.9, 'bare'), times(2.1, 'bare'))), tmp_path)
    assert results.median('bare', 'rate') == 40
    assert results.ratio('pyramid_sendmail', 'bare') == 2
    assert [(each.measured, each.met) for each in results.verdicts()] == [(2, True), (2, False)]


def test_absent(tmp_path: Path) -> None:
    """A contender that is missing is skipped, with the reason; its goal is neither met nor
    missed."""
    ours = measure([], 'pyramid_sendmail', 1, 2, 3)
    goals = (times(2, 'peer'), at_most('20 MB', 'memory', 20, 'MB'))
    results = played(row(Contender('peer', absent), ours, goals=goals), tmp_path)
    assert results.present == ['pyramid_sendmail']
    assert [each.met for each in results.verdicts()] == [None, True]
    text = table(results)
    assert '  peer: skipped: make bench-peers' in text
    assert '2 times peer: not measured' in text
    assert '20 MB: 20 MB\n' in f'{text}\n'


def test_failures(tmp_path: Path) -> None:
    """Who fails in a round has no figures of that round, and it is said; the others go on, and a
    goal is judged by the rounds that have both."""
    fails = iter((False, True, False))

    def sometimes(place: Place) -> Sample:
        if next(fails):
            raise RuntimeError('the sink has 9 mails, of 10')
        return {'rate': 10.0}

    ours = measure([], 'pyramid_sendmail', 10, 20, 30)
    results = played(row(Contender('peer', sometimes), ours, goals=(times(2, 'peer'),)), tmp_path)
    assert results.failures == ['peer: the sink has 9 mails, of 10']
    assert [each.measured for each in results.verdicts()] == [2.0]
    assert 'FAILED: peer: the sink has 9' in table(results)


def test_missed_goals_are_said(tmp_path: Path) -> None:
    """A missed goal says so, in the table and in the data."""
    ours = measure([], 'pyramid_sendmail', 1, 1, 1)
    goal = ratio('half the CPU', 'cpu', 'pyramid_sendmail', 'pyramid_sendmail', 0.5, at_least=False)
    results = played(row(ours, goals=(goal,)), tmp_path)
    assert 'half the CPU: 1 (NOT MET)' in table(results)
    [found] = as_data(results)['goals']
    assert (found['measured'], found['limit'], found['met']) == (1, 0.5, False)
    assert len(as_data(results)['rounds']) == 3


@pytest.mark.parametrize(('scale', 'mails'), [(1, 400), (0.5, 200), (0.001, 5)])
def test_scale(tmp_path: Path, scale: float, mails: int) -> None:
    """Fewer mails, but never next to none."""
    assert Place(tmp_path, scale).mails(400) == mails


def test_phases_of_a_trace() -> None:
    """Calls count between the marks; those that only wait do not, nor do the ends of calls."""
    trace = """7 openat(AT_FDCWD, "x") = 3
7 getpriority(PRIO_PROCESS, 0) = 20
7 getpriority(PRIO_PROCESS, 0) = 20
9 read(3) = 0
7 getpriority(PRIO_PROCESS, 0) = 20
7 fsync(3 <unfinished ...>
8 futex(0x1, FUTEX_WAIT) = 0
7 <... fsync resumed>) = 0
7 getpriority(PRIO_PROCESS, 0) = 20
8 unlink("x") = 0
7 getpriority(PRIO_PROCESS, 0) = 20
"""
    assert _phases(trace) == {
        'reference': {},
        'build': {'read': 1},
        'send': {'fsync': 1},
        'drain': {'unlink': 1},
    }


def test_page_has_the_figures() -> None:
    """docs/explanation/performance.rst says what docs/benchmarks.json does, and each picture is
    there. To write both anew: ``python -m tests.benchmarks.readme``."""
    data = json.loads(readme.FIGURES.read_text(encoding='utf-8'))
    source = readme.PAGE.read_text(encoding='utf-8')
    assert source == readme.with_figures(source, data)
    for name in readme.PICTURES:
        assert f'.. image:: {name}.svg' in source
        assert (readme.PAGE.parent / f'{name}.svg').exists()


def test_page_has_all_goals() -> None:
    """Every row was run, with the peers, and is judged by the goals that it has today."""
    from tests.benchmarks.__main__ import ROWS

    data = json.loads(readme.FIGURES.read_text(encoding='utf-8'))
    assert [each['name'] for each in data['rows']] == [each.name for each in ROWS]
    assert readme.judged(data) == data
    assert data['peers'].keys() >= {'zope.sendmail', 'repoze.sendmail', 'pyramid_mailer'}
