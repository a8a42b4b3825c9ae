"""How soon and how many: building, direct delivery, latency, long queues, the start."""

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

from tests.benchmarks.application import write_ini
from tests.benchmarks.drains import ended, psendmail_qp, queue, ready
from tests.benchmarks.processes import (
    Absent,
    contender,
    finish,
    memory,
    ours,
    peer,
    run,
    start,
    until,
)
from tests.benchmarks.rounds import OURS, Contender, Goal, Place, Row, Sample, at_most, ratio, times
from tests.benchmarks.sinks import Sink, relay, sink

__all__ = ['ROWS']

EMAIL = 'EmailMessage, policy.SMTP'
MANY = 'pyramid_sendmail, many files'
FEW = 'pyramid_sendmail, 1,000 files'
LOOK = 'a look at what is not due, under strace'
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
    half = place.queued // 2
    if not (folder / 'mail').exists():
        _put(folder, half)
        _defer(folder, half)
    there = _count(folder / 'mail')
    _put(folder, place.queued - there)
    ready(folder)
    with sink() as to, _processor(folder, to) as child:
        return _first_and_rate(child, to, before=0, window=min(_WINDOW, half // 2))


def _put(folder: Path, count: int) -> None:
    settings = {
        'mail.queue_path': folder / 'mail',
        'mail.queue_sync': 'off',
        'mail.hostname': 'web.example.org',
    }
    run(contender('fill', write_ini(folder, settings), '2k', count, 'once'))


def _defer(folder: Path, count: int) -> None:
    """Have a relay defer all that is there, for longer than the benchmarks run."""
    with relay(refused=1) as to:
        run(psendmail_qp(folder, {'mail.retry': '3d', 'mail.queue_sync': 'off'}, '--once', to=to))
        if to.answered() != count or os.listdir(folder / 'mail/new'):
            raise RuntimeError(f'{to.answered()} mails were deferred, of {count}')


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
        fifo = folder / 'mail/trigger'
        try:
            until(fifo.exists, seconds=60.0)
            first = _quiet(trace)
            for _ in range(_LOOKS):
                _wake(fifo)
                after = _quiet(trace)
        finally:
            _stop(child)
        assert to.taken() == 0
        return first, (after - first) / _LOOKS


def _wake(fifo: Path) -> None:
    """Write into the wake-up FIFO, as a commit does."""
    file = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.write(file, b'x')
    os.close(file)


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


def _share(figure: str, one: str, other: str) -> Callable[[Mapping[str, Sample]], float]:
    return lambda samples: samples[one][figure] / samples[other][figure]


ROWS = (
    Row(
        'build-2k',
        'a Message made into bytes, 2 KB',
        [
            Contender(EMAIL, _build('email', '2k', 2_000)),
            Contender(OURS, _build('ours', '2k', 2_000)),
        ],
        (_less_cpu(30),),
        '',
        'the same in meaning: read back by two parsers',
    ),
    Row(
        'build-50k',
        'a Message made into bytes, 50 KB of text and html in UTF-8',
        [
            Contender(EMAIL, _build('email', '50k', 300)),
            Contender(OURS, _build('ours', '50k', 300)),
        ],
        (_less_cpu(3),),
        '',
        'the same in meaning: read back by two parsers',
    ),
    Row(
        'direct',
        'direct delivery, a mail of 2 KB a commit',
        [
            Contender('zope.sendmail', _direct('peer_request', '{port}', steps=400)),
            Contender(
                OURS,
                _direct(
                    *('request', 'mail.delivery=direct', 'mail.url=smtp://127.0.0.1:{port}'),
                    steps=400,
                ),
            ),
        ],
        (times(2, 'zope.sendmail'),),
        'mail.delivery = direct, the defaults else; a sink on loopback',
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
        '200 mails, one at a time; all settings at their defaults',
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
        'a queue of {queued:,} files, half of them deferred',
        [Contender(FEW, _few), Contender(MANY, _many), Contender(LOOK, _stats)],
        (
            at_most('the first delivery within 0.5 s', 'first', 0.5, 's', who=MANY),
            Goal('0.8 of the throughput at 1,000 files', _share('rate', MANY, FEW), 0.8),
            at_most('memory under 60 MB', 'memory', 60, 'MB', who=MANY),
            at_most('no stat a file in an idle scan', 'stats', 0.01, 'calls', who=LOOK),
        ),
        'the defaults; mail.retry = 3d where the half is deferred, by a relay that answers 450',
        'the rate is that of the first 60,000 mails; the page cache is warm',
        (
            ('first ms', 'first', 1000.0),
            ('stats/file', 'stats', 1.0),
            ('first look', 'first look', 1.0),
        ),
    ),
    Row(
        'start',
        'psendmail-qp, from its start to its first delivery',
        [Contender(ALONE, _alone), Contender(SCRIPT, _script)],
        (_start(),),
        settings='one mail in the queue; the defaults',
        shown=(('ms', 'seconds', 1000.0),),
    ),
)
