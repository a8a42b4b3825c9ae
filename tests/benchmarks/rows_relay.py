"""How fast a queue drains into a relay as users have it: a real one, one far away, a slow one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.benchmarks.rounds import OURS, Contender, Goal, Row, times
from tests.benchmarks.senders import (
    AIOSMTPLIB,
    DEFAULT_CONNECTIONS,
    SMTPLIB,
    TEN,
    ZOPE,
    Drain,
    Relay,
    far_away,
)
from tests.benchmarks.sinks import ONE_WAY, Sink, far, postfix_relay, relay

__all__ = ['ROWS']

ROUND_TRIP = 2 * ONE_WAY

_PLAIN = 'pyramid_sendmail with the defaults'

_UNLIKE = (
    'zope.sendmail does not verify the certificate, the others do; smtp-source and the flat loop '
    'know no TLS'
)


def _real(name: str, title: str, *, tls: bool, mails: int) -> Row:
    work = Drain('2k', mails, partial(postfix_relay, tls=tls))
    contenders = [work.zope(), work.smtplib(), work.aiosmtplib()]
    if not tls:
        contenders = [work.source(10), *contenders, work.flat()]
    goals = (times(4, ZOPE), times(2, SMTPLIB)) if tls else (times(0.85, TEN),)
    how = 'STARTTLS and AUTH' if tls else 'plain text'
    return Row(
        name,
        title,
        [*contenders, work.ours()],
        goals,
        settings=f'{how}; {_PLAIN}; Postfix on the same machine and disk, '
        'which syncs each mail and holds it',
        note=_UNLIKE if tls else '',
    )


def _round_trips(who: str, connections: int) -> Goal:
    """One round trip a mail and connection is what SMTP with PIPELINING takes."""
    plural = 's' if connections > 1 else ''
    subject = '' if who == OURS else f'{who}: '
    return Goal(
        f'{subject}0.85 of {connections} connection{plural} / round trip',
        lambda samples: samples[who]['rate'] * ROUND_TRIP / connections,
        0.85,
    )


def _far(mails: int) -> Row:
    work = Drain('2k', mails, far_away)
    ten = f'{OURS}, 10 connections'
    return Row(
        'far',
        'a queue of 2 KB mails, the relay 20 ms away',
        [
            work.zope(),
            work.smtplib(),
            work.aiosmtplib(),
            work.source(10),
            work.ours(),
            work.ours(ten, settings={'mail.workers': 10}),
        ],
        (_round_trips(OURS, DEFAULT_CONNECTIONS), times(1.44, AIOSMTPLIB)),
        settings=f'{_PLAIN}, which are 4 connections; mail.workers = 10 for 10 connections',
        note='20 ms each way; neither congestion windows nor losses are imitated',
    )


@contextmanager
def _far_chunking(folder: Path) -> Iterator[Sink]:
    with relay() as near, far(near) as to:
        yield to


def _chunking(mails: int) -> Row:
    work = Drain('2k', mails, _far_chunking)
    settings = {'mail.workers': 10}
    return Row(
        'far-chunking',
        'a queue of 2 KB mails, the relay 20 ms away: it offers CHUNKING',
        [
            work.aiosmtplib(),
            work.ours(f'{OURS}, no window', settings=settings),
            work.ours(settings=settings, url='?window=8'),
        ],
        settings='mail.workers = 10; window=8 in mail.url, but where it '
        'says no window; the relay is tests/benchmarks/relay.py',
    )


def _connections(mails: int) -> Row:
    def behind(**options: float) -> Relay:
        @contextmanager
        def run(folder: Path) -> Iterator[Sink]:
            with relay(round_trip=ROUND_TRIP, **options) as to:
                yield to

        return run

    healthy = Drain('2k', mails, behind(), part=0.9)
    mixed = Drain('2k', mails, behind(slow=4, slower=0.4, stalled=10, stall=2.0), part=0.9)

    def ours(work: Drain, connections: int, suffix: str = '') -> Contender:
        plural = 's' if connections > 1 else ''
        name = f'{OURS}, {connections} connection{plural}{suffix}'
        return work.ours(name, settings={'mail.workers': connections})

    def aiosmtplib(work: Drain, connections: int, suffix: str) -> Contender:
        each = work.aiosmtplib(connections)
        return Contender(f'{each.name}{suffix}', each.measure)

    return Row(
        'connections',
        '1, 4 and 50 connections, healthy, and with slow and stalled ones among them',
        [
            ours(healthy, 1),
            ours(healthy, 4),
            ours(healthy, 50),
            aiosmtplib(healthy, 50, ''),
            ours(mixed, 4, ', some bad'),
            ours(mixed, 50, ', some bad'),
            aiosmtplib(mixed, 4, ', some bad'),
            aiosmtplib(mixed, 50, ', some bad'),
        ],
        settings='mail.workers = 1, 4, 50; a round trip of 40 ms; of the '
        'bad ones every fourth connection answers 0.4 s later, and the first of ten stalls once '
        'for 2 s; the relay is tests/benchmarks/relay.py',
        note='to 9/10: mails a second until nine tenths were answered, which the last mail on a '
        'slow connection does not delay',
        shown=(('to 9/10', 'early', 1.0),),
    )


ROWS = (
    _real('postfix', 'a queue of 2 KB mails, into a real Postfix', tls=False, mails=1_000),
    _real(
        'postfix-tls',
        'a queue of 2 KB mails, into a real Postfix, with STARTTLS and AUTH',
        tls=True,
        mails=1_000,
    ),
    _far(150),
    _chunking(1_500),
    _connections(600),
)
