"""The benchmarks: turns, medians, verdicts, what docs/ shows of them, and that each row runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pyramid.request import Request

from tests.benchmarks import readme, steady
from tests.benchmarks.__main__ import ROWS
from tests.benchmarks.contenders import flat
from tests.benchmarks.contenders.request import application
from tests.benchmarks.counts import _phases
from tests.benchmarks.pictures import TITLES
from tests.benchmarks.processes import ROOT, Absent
from tests.benchmarks.report import as_data, table
from tests.benchmarks.rounds import (
    Contender,
    Goal,
    Place,
    Results,
    Row,
    Sample,
    Yardstick,
    at_most,
    ratio,
    times,
)
from tests.benchmarks.senders import DEFAULT_CONNECTIONS, FLAT, SMTPLIB
from tests.benchmarks.work import mail_of

pytestmark = pytest.mark.slow

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


def row(*contenders: Contender, goals: tuple[Goal, ...] = ()) -> Row:
    return Row('drain', 'a queue', contenders, goals)


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


def test_mail_counts_are_the_same(tmp_path: Path) -> None:
    """A round in which a contender sent fewer mails than another is a failure, and says so."""

    def sends(name: str, mails: int) -> Contender:
        return Contender(name, lambda place: {'rate': 1.0, 'mails': mails})

    fair = played(row(sends('bare', 5), sends('peer', 5)), tmp_path)
    assert not fair.failures
    assert fair.mails == 5
    unfair = played(row(sends('bare', 5), sends('peer', 6)), tmp_path, rounds=1)
    assert unfair.failures == ['the mail counts differ: bare: 5, peer: 6']
    assert unfair.mails is None


def test_yardsticks(tmp_path: Path) -> None:
    """A yardstick is computed within each round, and goals can be about it; where a contender is
    missing there is none."""
    half = Yardstick('half', lambda samples: {'rate': samples['bare']['rate'] / 2})
    ours = measure([], 'pyramid_sendmail', 10, 20)
    goals = (times(1, 'half'),)
    bare = measure([], 'bare', 20, 20)
    with_bare = replace(row(bare, ours, goals=goals), yardsticks=(half,))
    results = played(with_bare, tmp_path, rounds=2)
    assert results.present == ['bare', 'pyramid_sendmail', 'half']
    assert [each.measured for each in results.verdicts()] == [1.5]
    ours = measure([], 'pyramid_sendmail', 10, 20)
    alone = replace(row(ours, goals=goals), yardsticks=(half,))
    assert played(alone, tmp_path, rounds=2).present == ['pyramid_sendmail']


def test_rows_of_one_round(tmp_path: Path) -> None:
    """A row whose figures are the same each time is played once."""
    calls: list[str] = []
    results = played(replace(row(measure(calls, 'bare', 1)), once=True), tmp_path)
    assert calls == ['bare']
    assert len(results.samples) == 1


def data_of(*goals: tuple[str, float | None, bool | None]) -> dict[str, Any]:
    """The figures of one row with these goals."""
    found = {
        'name': 'drain',
        'title': 'a queue',
        'settings': '5 mails each; the defaults',
        'note': '',
        'before': {'used': 0.02, 'stolen': 0.0, 'load': 0.1},
        'shown': [],
        'absent': {'peer': 'make bench-peers'},
        'failures': [],
        'rounds': [{'pyramid_sendmail': {'rate': 100.0, 'cpu': 0.0001}}],
        'goals': [
            {'goal': goal, 'measured': measured, 'unit': '', 'met': met}
            for goal, measured, met in goals
        ],
    }
    about = ('date', 'processors', 'system', 'file system', 'python', 'load')
    return {'machine': dict.fromkeys(about, 'x'), 'peers': {}, 'rows': [found]}


def page_of(*goals: tuple[str, float | None, bool | None]) -> str:
    """The sections for one row with these goals."""
    return readme.sections(data_of(*goals))


def test_sections() -> None:
    """What is met comes first, then a list of what is missed, then what was not measured; each row
    says its settings."""
    text = page_of(
        ('2 times bare', 2.5, True), ('3 times bare', 2.5, False), ('4 times', None, None)
    )
    headings = re.findall(r'^(.+)\n-+$', text, re.MULTILINE)
    assert headings == ['What is true', 'What is missed', 'What was not measured', 'Every row']
    true, missed, unknown = (
        text.partition(f'{one}\n')[2].partition(f'{other}\n')[0]
        for one, other in pairwise(headings)
    )
    assert '2 times bare\n     - 2.5' in true
    assert '* a queue: 3 times bare, measured 2.5\n' in missed
    assert '* a queue: 4 times\n* a queue: peer: make bench-peers\n' in unknown
    assert '5 mails each; the defaults' in text
    assert '   * - pyramid_sendmail\n     - 100\n     - 100\n' in text
    assert 'Nothing.' in page_of(('2 times bare', 2.5, True))


def test_earlier_figures_are_replaced() -> None:
    """The figures of an earlier run leave the page when there are new ones."""
    page = f'{readme.BEGIN}old\n{readme.END}{readme.EARLIER_BEGIN}older\n{readme.EARLIER_END}end'
    assert 'older' in readme.with_figures(page, {'rows': []})
    replaced = readme.with_figures(page, data_of())
    assert 'old' not in replaced
    assert replaced.endswith('end')


def test_page_has_the_figures() -> None:
    """docs/explanation/performance.rst says what docs/benchmarks.json does, and each picture is
    there. To write both anew: ``python -m tests.benchmarks.readme``."""
    data = json.loads(readme.FIGURES.read_text(encoding='utf-8'))
    source = readme.PAGE.read_text(encoding='utf-8')
    assert source == readme.with_figures(source, data)
    for name in re.findall(r'\.\. image:: (\w+\.svg)', source):
        assert (readme.PAGE.parent / name).exists()
    assert readme.PICTURES.keys() == TITLES.keys() <= {each.name for each in ROWS}


def test_page_has_all_goals() -> None:
    """Either no row was run yet, or every row was, with the peers, and is judged by the goals that
    it has today."""
    data = json.loads(readme.FIGURES.read_text(encoding='utf-8'))
    if not data['rows']:
        return
    assert [each['name'] for each in data['rows']] == [each.name for each in ROWS]
    assert readme.judged(data) == data
    assert data['peers'].keys() >= {'zope.sendmail', 'repoze.sendmail', 'pyramid_mailer'}


def test_default_connections() -> None:
    """The number of connections that a goal is about is the default of ``mail.workers``."""
    settings = (ROOT / 'docs/reference/settings.rst').read_text()
    [default] = re.findall(r'confval:: mail\.workers\n   :default: ``(\d+)``', settings)
    assert int(default) == DEFAULT_CONNECTIONS


RUN = {
    'drain': ['pyramid_sendmail, INFO into a file', 'a flat loop, 4 connections'],
    'processes': ['pyramid_sendmail, two processes'],
    'events': ['pyramid_sendmail, a commit an event'],
    'events-synced': ['the commits alone, no mail'],
    'deferred': ['pyramid_sendmail, every second deferred'],
    'connections': ['pyramid_sendmail, 50 connections, some bad'],
    'build-2k': ['EmailMessage, policy.SMTP'],
    'queued': ['pyramid_sendmail, many files'],
    'start': ['psendmail-qp, to its first delivery'],
}
"""What is tried of a row: its contenders are much alike. Of the others, pyramid_sendmail."""


@pytest.fixture
def queued(tmp_path: Path) -> Path:
    """A queue with one mail; returns its path."""
    app = application({'mail.queue_path': str(tmp_path / 'mail')}, mail_of('2k'), 1)
    assert Request.blank('/send').get_response(app).status_code == 200
    return tmp_path / 'mail'


def test_flat_loop_claims(queued: Path) -> None:
    """The flat loop locks a mail and marks it as being sent; it can send what the file holds."""
    [path] = (queued / 'new').iterdir()
    claimed = flat.claimed(str(path.parent), path.name)
    assert re.search(rb'^X-Envelope-State: S ', path.read_bytes(), re.MULTILINE)
    assert path.read_bytes().endswith(claimed.text)
    assert claimed.commands.startswith(b'MAIL FROM:<shop@example.org> SIZE=')
    with pytest.raises(BlockingIOError):
        flat.claimed(str(path.parent), path.name)
    flat.settle(claimed)
    assert not path.exists()


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (b'A benchmark', b'A BENCHMARK'),
        (b'X-Envelope-State: C', b'X-Envelope-State: S'),
        (b' T00000T ', b' ?00000? '),
    ],
    ids=['damaged', 'started', 'in-doubt'],
)
def test_flat_loop_leaves_what_is_unusual(queued: Path, old: bytes, new: bytes) -> None:
    """The flat loop touches no mail that is damaged, or that another has begun to send."""
    [path] = (queued / 'new').iterdir()
    changed = path.read_bytes().replace(old, new)
    path.write_bytes(changed)
    with pytest.raises(flat.Unusual):
        flat.claimed(str(path.parent), path.name)
    assert path.read_bytes() == changed


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all rows: they share the queues that are filled there."""
    path = tmp_path_factory.mktemp('benchmarks')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    'row', [each for each in ROWS if not each.once], ids=lambda each: each.name
)
def test_row_runs(row: Row, folder: Path) -> None:
    """Each row can be run, with a few mails."""
    names = RUN.get(row.name, ['pyramid_sendmail'])
    contenders = [each for each in row.contenders if each.name in names]
    assert len(contenders) == len(names)
    results = Results(replace(row, contenders=contenders))
    results.play(Place(folder, scale=0.001, queued=40))
    assert not results.failures
    if results.absent:
        pytest.skip(str(results.absent))
    assert all(results.samples[0][name] for name in names)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('row', [each for each in ROWS if each.once], ids=lambda each: each.name)
def test_counted_row_runs(row: Row, tmp_path: Path) -> None:
    """Instructions are counted: the flat loop takes fewer than a loop of smtplib's."""
    tmp_path.chmod(0o755)
    results = Results(row)
    results.play(Place(tmp_path, scale=0.001))
    if results.absent:
        pytest.skip(str(results.absent))
    assert not results.failures
    figures = results.samples[0]
    flat, loop = (figures[name]['instructions'] for name in (FLAT, SMTPLIB))
    assert flat < loop


def test_steady(tmp_path: Path) -> None:
    """The steady run counts mails and events, and says how memory grew."""
    tmp_path.chmod(0o755)
    try:
        found = steady.measure(tmp_path, minutes=0.06, rate=50)
    except Absent as reason:
        pytest.skip(str(reason))
    assert found['mails'] > 0
    assert 'goal: flat' in steady.text(found)
