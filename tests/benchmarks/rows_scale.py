"""How soon, how many, how large: latency, long queues, start-up, direct delivery, building."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from pyramid_sendmail.queue.maildir.wakeup import WakeUp
from tests.benchmarks.application import write_ini
from tests.benchmarks.drains import ended, memory, psendmail_qp, queue, ready
from tests.benchmarks.processes import Absent, contender, finish, ours, peer, run, start, until
from tests.benchmarks.rounds import OURS, Contender, Goal, Place, Row, Sample, at_most, ratio, times
from tests.benchmarks.sinks import Sink, sink

__all__ = ['ROWS']

EMAIL = 'EmailMessage, policy.SMTP'
MANY = 'pyramid_sendmail, many files'
FEW = 'pyramid_sendmail, 1,000 files'
LOOK = 'a look at what is not due, under strace'
MAILER = 'pyramid_mailer, in a web process'
PACKAGE = 'pyramid_sendmail, in a web process'
SCRIPT = 'psendmail-qp, to its first delivery'
ALONE = 'the application alone'

_WINDOW = 60_000
"""Mails whose delivery is timed where many files wait: more than the names that a processor and its
queue keep, so that it has to look again."""

_LOOKS = 3


def _build(who: str, kind: str, steps: int) -> Callable[[Place], Sample]:
    return lambda place: run(contender('build', who, kind, place.mails(steps))).figures


def _less_cpu(factor: float) -> Goal:
    goal = ratio('', 'cpu', EMAIL, OURS, factor)
    return replace(goal, text=f'{factor:g} times less CPU than {EMAIL}')


def _direct(name: str, *options: str, steps: int) -> Callable[[Place], Sample]:
    def measure(place: Place) -> Sample:
        by, before = (peer, ['zope-direct']) if name == 'peer_request' else (ours, [])
        by('-c', '')
        with place.fresh() as folder, sink() as to:
            after = [option.format(port=to.port) for option in options]
            words = (*before, folder / 'queue', '2k', place.mails(steps), 1, *after)
            return run(contender(name, *words, by=by)).figures

    return measure


def _latency(place: Place) -> Sample:
    with place.fresh() as folder:
        mails, seconds = place.mails(200), 5.0 if place.scale >= 1 else 2.0
        return run(contender('latency', folder, mails, seconds)).figures


@contextmanager
def _processor(folder: Path, to: Sink, *arguments: str) -> Any:
    child = start(psendmail_qp(folder, {}, *arguments, to=to))
    try:
        yield child
    finally:
        finish(child)


def _first_and_rate(child: Any, to: Sink, *, before: int, window: int) -> Sample:
    """Seconds to the first delivery from now, and how fast the next ``window`` mails went."""
    began = time.perf_counter()
    first = until(lambda: to.taken() > before, seconds=120.0)
    behind = to.taken()
    last = until(lambda: to.taken() >= behind + window or ended(child), seconds=240.0)
    rate = (to.taken() - behind) / (last - first)
    return {'first': first - began, 'rate': rate, 'memory': memory(child.pid)}


def _few(place: Place) -> Sample:
    samples = []
    for _ in range(3):
        with place.fresh() as folder, sink() as to:
            queue(place, folder, '2k', 1_000)
            with _processor(folder, to) as child:
                samples.append(_first_and_rate(child, to, before=0, window=950))
    return {figure: median(each[figure] for each in samples) for figure in samples[0]}


def _many(place: Place) -> Sample:
    """The same queue in each round, with as many files put back as have left it."""
    folder = place.folder / f'many-{place.queued}'
    folder.mkdir(exist_ok=True)
    settings = {
        'mail.queue_path': folder / 'mail',
        'mail.queue_sync': 'off',
        'mail.hostname': 'web.example.org',
    }
    there = _count(folder / 'mail')
    if there < place.queued:
        run(contender('fill', write_ini(folder, settings), '2k', place.queued - there, 'once'))
    ready(folder)
    with sink() as to, _processor(folder, to) as child:
        window = min(_WINDOW, place.queued // 2)
        return _first_and_rate(child, to, before=0, window=window)


def _count(mail: Path) -> int:
    if not mail.exists():
        return 0
    return sum(len(os.listdir(mail / name)) for name in ('new', 'cur'))


def _stats(place: Place) -> Sample:
    """Calls of stat and its like a file, in looks at files that are not due: the first, and later
    ones."""
    if shutil.which('strace') is None:
        raise Absent('strace is not installed')
    files = place.mails(2_000)
    first, later = _calls(place, files)
    first_of_none, later_of_none = _calls(place, 0)
    return {'first look': (first - first_of_none) / files, 'stats': (later - later_of_none) / files}


def _calls(place: Place, files: int) -> tuple[int, float]:
    """Until it is idle, and in each scan that it is woken for then."""
    with place.fresh() as folder, sink() as to:
        command = psendmail_qp(folder, {}, to=to)
        run(contender('fill', folder / 'production.ini', '2k', files, 86_400))
        trace = folder / 'trace'
        child = start(['strace', '-f', '-q', '-e', 'trace=%%stat', '-o', str(trace), *command])
        try:
            first = _quiet(trace)
            for _ in range(_LOOKS):
                WakeUp(f'{folder}/mail/trigger').notify()
                after = _quiet(trace)
        finally:
            _stop(child)
        assert to.taken() == 0
        return first, (after - first) / _LOOKS


def _stop(strace: Any) -> None:
    """strace itself gets no signal while its child runs."""
    children = Path(f'/proc/{strace.pid}/task/{strace.pid}/children').read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGTERM)
    strace.wait(30)


def _quiet(trace: Path) -> int:
    """The calls so far, when no more have come for a while."""
    before = -1
    end = time.perf_counter() + 120
    while (now := _lines(trace)) != before or not now:
        if time.perf_counter() > end:
            raise RuntimeError('the processor does not come to rest')
        before = now
        time.sleep(0.5)
    return now


def _lines(trace: Path) -> int:
    if not trace.exists():
        return 0
    with trace.open() as lines:
        return sum('stat' in line for line in lines)


def _importing(package: str, by: Callable[..., list[str]]) -> Callable[[Place], Sample]:
    def measure(place: Place) -> Sample:
        runs = [run(contender('importing', package, by=by)).figures for _ in range(3)]
        return {figure: median(each[figure] for each in runs) for figure in runs[0]}

    return measure


def _alone(place: Place) -> Sample:
    with place.fresh() as folder:
        ini = write_ini(folder, {'benchmarks.mail': 'no'})
        found = []
        for _ in range(3):
            began = time.perf_counter()
            found.append(run(contender('loading', ini)).figures['loaded'] - began)
        return {'seconds': median(found)}


def _script(place: Place) -> Sample:
    found = []
    for _ in range(3):
        with place.fresh() as folder, sink() as to:
            queue(place, folder, '2k', 1)
            began = time.perf_counter()
            with _processor(folder, to):
                found.append(until(lambda to=to: to.taken(), seconds=20.0) - began)  # type: ignore[misc]
    return {'seconds': median(found)}


def _start() -> Goal:
    """Up to the first delivery, the application's own import apart."""
    return Goal(
        'psendmail-qp: the first delivery within 0.3 s, the application apart',
        lambda samples: samples[SCRIPT]['seconds'] - samples[ALONE]['seconds'],
        0.3,
        False,
        's',
    )


def _under(text: str, figure: str) -> Goal:
    goal = ratio(text, figure, PACKAGE, MAILER, 1, at_least=False)
    return replace(goal, text=text)


def _share(figure: str, one: str, other: str) -> Callable[[Mapping[str, Sample]], float]:
    return lambda samples: samples[one][figure] / samples[other][figure]


ROWS = (
    Row(
        'build-2k',
        'a Message made into bytes, 2 KB',
        [
            Contender(EMAIL, _build('email', '2k', 500)),
            Contender(OURS, _build('ours', '2k', 5_000)),
        ],
        (_less_cpu(30),),
        'the same in meaning: read back by two parsers',
    ),
    Row(
        'build-50k',
        'a Message made into bytes, 50 KB of text and html in UTF-8',
        [
            Contender(EMAIL, _build('email', '50k', 200)),
            Contender(OURS, _build('ours', '50k', 500)),
        ],
        (_less_cpu(3),),
        'the same in meaning: read back by two parsers',
    ),
    Row(
        'direct',
        'direct delivery, a mail of 2 KB a commit',
        [
            Contender('zope.sendmail', _direct('peer_request', '{port}', steps=300)),
            Contender(
                OURS,
                _direct(
                    *('request', 'mail.delivery=direct', 'mail.url=smtp://127.0.0.1:{port}'),
                    steps=500,
                ),
            ),
        ],
        (times(2, 'zope.sendmail'),),
        '',
        (('median ms', 'median', 1000.0), ('worst ms', 'worst', 1000.0)),
    ),
    Row(
        'latency',
        "from the commit to the relay's 250, psendmail-qp idle",
        [Contender(OURS, _latency)],
        (
            at_most('a median under 3 ms', 'median', 3, 'ms', by=1000),
            at_most('the worst of 200 under 50 ms', 'worst', 50, 'ms', by=1000),
            at_most('no CPU when idle', 'idle', 10, 'ms a minute', by=1000),
        ),
        '',
        (
            ('median ms', 'median', 1000.0),
            ('worst ms', 'worst', 1000.0),
            ('commit ms', 'commit', 1000.0),
            ('idle ms/min', 'idle', 1000.0),
        ),
    ),
    Row(
        'queued',
        'a queue of {queued:,} files',
        [Contender(FEW, _few), Contender(MANY, _many), Contender(LOOK, _stats)],
        (
            at_most('the first delivery under 1.2 s', 'first', 1.2, 's', who=MANY),
            Goal('0.8 of the throughput at 1,000 files', _share('rate', MANY, FEW), 0.8),
            at_most('memory under 60 MB', 'memory', 60, 'MB', who=MANY),
            at_most('no stat a file in an idle scan', 'stats', 0.01, 'calls', who=LOOK),
        ),
        '',
        (
            ('first ms', 'first', 1000.0),
            ('stats/file', 'stats', 1.0),
            ('first look', 'first look', 1.0),
        ),
    ),
    Row(
        'start',
        'what a start costs',
        [
            Contender(MAILER, _importing('pyramid_mailer', peer)),
            Contender(PACKAGE, _importing('pyramid_sendmail', ours)),
            Contender(ALONE, _alone),
            Contender(SCRIPT, _script),
        ],
        (
            _under("import, under pyramid_mailer's", 'seconds'),
            _under("import and include, under pyramid_mailer's", 'included'),
            _start(),
        ),
        '',
        (
            ('ms', 'seconds', 1000.0),
            ('included ms', 'included', 1000.0),
            ('modules', 'modules', 1.0),
        ),
    ),
)
