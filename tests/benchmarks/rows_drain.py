"""How fast a queue drains into a sink on the same machine: what the processor itself costs.

Where the relay is real or far away, see rows_relay.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.rounds import OURS, Contender, Goal, Row, Sample, Yardstick, ratio, times
from tests.benchmarks.senders import ONE, SMTPLIB, TEN, ZOPE, Drain, Relay, instructions
from tests.benchmarks.sinks import Sink, relay

__all__ = ['ROWS']

TWO = 'pyramid_sendmail, two processes'
COUNTS = 'pyramid_sendmail, a subscriber counts'
INFO = 'pyramid_sendmail, INFO into a file'
EACH = 'pyramid_sendmail, a commit an event'
BATCHES = 'pyramid_sendmail, a commit a batch'
COMMITS = 'the commits alone, no mail'
SERIES = 'drain and commits in series'
SMALL = 'pyramid_sendmail, 2 KB mails'
DEFERRED = 'pyramid_sendmail, every second deferred'
ALL_DEFERRED = 'pyramid_sendmail, all deferred'

BATCH = 100
"""Events in one transaction, where they come in batches."""

_PLAIN = 'pyramid_sendmail with the defaults'


def _series(samples: Mapping[str, Sample]) -> Sample:
    """Return what the drain and the commits take if neither gains from the other: one interpreter
    does both."""
    parts = [samples[name] for name in (OURS, COMMITS)]
    return {
        'mails': parts[0]['mails'],
        'rate': 1 / sum(1 / part['rate'] for part in parts),
        'cpu': sum(part['cpu'] for part in parts),
    }


def _defers(every: int) -> Relay:
    """A relay that defers one in so many mails; none, for 0."""

    @contextmanager
    def run(folder: Path) -> Iterator[Sink]:
        with relay(refused=every) as to:
            yield to

    return run


def _memory() -> Goal:
    """A few blocks a connection: far less than the messages under way."""
    return Goal(
        'at most 8 MB more memory than with 2 KB mails',
        lambda samples: samples[OURS]['memory'] - samples[SMALL]['memory'],
        8,
        False,
        'MB',
    )


def _drain(mails: int) -> Row:
    work = Drain('2k', mails)
    return Row(
        'drain',
        'a queue of 2 KB mails, into a sink on loopback',
        [
            work.source(1),
            work.source(10),
            work.zope(),
            work.repoze(),
            work.django('django-post_office', 'post_office'),
            work.django('django-mailer', 'mailer'),
            work.smtplib(),
            work.aiosmtplib(),
            work.flat(),
            work.ours(),
            work.ours(COUNTS, settings={'benchmarks.subscriber': 'counts'}),
            work.ours(INFO, log=True),
        ],
        (times(6, ZOPE), times(2.5, SMTPLIB), times(0.45, TEN)),
        settings=f'{_PLAIN}; it logs warnings alone, but where it says INFO',
        note='smtp-source and the libraries keep no queue; no peer syncs anything',
    )


def _processes(mails: int) -> Row:
    work = Drain('2k', mails)
    return Row(
        'processes',
        'a queue of 2 KB mails, into a sink on loopback, by one process and by two',
        [
            work.source(10),
            work.zope(),
            work.flat(),
            work.ours(),
            work.ours(TWO, processes=2),
        ],
        (times(10, ZOPE, who=TWO), times(0.75, TEN, who=TWO)),
        settings=f'{_PLAIN}; two processes are psendmail-qp --processes 2 --workers 8 or, in a '
        'version without them, psendmail-qp twice: 4 connections each',
        note='the sink uses the same processors; CPU and memory are those of both together',
    )


def _events(name: str, title: str, mails: int, journal: str, how: str) -> Row:
    work = Drain('2k', mails)
    return Row(
        name,
        title,
        [
            work.ours(),
            work.commits(COMMITS, journal),
            work.subscribed(EACH, journal),
            work.subscribed(BATCHES, journal, **{'mail.event_batch': BATCH}),
        ],
        (ratio(f'0.85 of {SERIES}', 'rate', EACH, SERIES, 0.85),),
        settings=f'{how}; mail.event_batch = {BATCH} for a batch, the defaults else',
        note='no peer has events',
        yardsticks=(Yardstick(SERIES, _series),),
    )


def _deferred(mails: int) -> Row:
    none, half, every = (Drain('2k', mails, _defers(count)) for count in (0, 2, 1))
    fresh = ('new', 'done')
    return Row(
        'deferred',
        'a queue of which the relay defers every second mail, by 450',
        [
            half.zope(refused=True),
            none.ours(),
            half.ours(DEFERRED, settled=fresh),
            every.ours(ALL_DEFERRED, settled=fresh),
        ],
        settings=f'{_PLAIN}; the relay is tests/benchmarks/relay.py',
        note='mails a second that the relay has answered; each deferred one is recorded with its '
        'reason and its next time, and stays; zope.sendmail records neither',
    )


def _large(name: str, title: str, kind: str, mails: int, goal: Goal, *more: Contender) -> Row:
    work = Drain(kind, mails)
    return Row(
        name,
        title,
        [
            work.source(1),
            work.source(10),
            work.zope(),
            work.repoze(),
            work.smtplib(),
            work.aiosmtplib(),
            work.flat(),
            work.ours(),
            *more,
        ],
        (goal,) if not more else (goal, _memory()),
        settings=_PLAIN,
    )


ROWS = (
    Row(
        'instructions',
        'user instructions for a mail of 2 KB that leaves the queue',
        instructions(300),
        (ratio(f'0.55 of {SMTPLIB}', 'instructions', OURS, SMTPLIB, 0.55, at_least=False),),
        settings=f"{_PLAIN}; valgrind's callgrind, PYTHONHASHSEED=0",
        note='the same on any machine with the same CPython; the kernel is not counted',
        shown=(('user instr.', 'instructions', 1.0),),
        once=True,
    ),
    _drain(3_000),
    _processes(6_000),
    _events(
        'events',
        'a drain with a MailSentEvent subscriber that commits to SQLite with a write-ahead log',
        1_500,
        'wal',
        'SQLite does not sync each commit',
    ),
    _events(
        'events-synced',
        'a drain with a MailSentEvent subscriber that commits to SQLite as it comes',
        200,
        'delete',
        'SQLite syncs each commit',
    ),
    _deferred(1_500),
    _large('drain-50k', 'a queue of 50 KB mails', '50k', 1_000, times(2.5, ONE)),
    _large(
        'drain-5m',
        'a queue of 5 MB mails',
        '5m',
        30,
        times(1, ONE),
        Drain('2k', 30).ours(SMALL),
    ),
)
