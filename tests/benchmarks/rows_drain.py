"""How fast a queue drains: beside the processors of others, and beside programs that keep none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.benchmarks.application import recorded
from tests.benchmarks.drains import drained, files, psendmail_qp, queue, ready
from tests.benchmarks.processes import contender, ours, peer, postfix, run
from tests.benchmarks.rounds import OURS, Contender, Goal, Place, Row, Sample, times
from tests.benchmarks.sinks import Sink, chunking_sink, far, sink
from tests.benchmarks.work import RECIPIENT_ADDRESS, SENDER_ADDRESS, wire

__all__ = ['ROWS', 'zope']

BOTH = 'pyramid_sendmail, two processors'
EACH = 'pyramid_sendmail, a commit an event'
BATCHES = 'pyramid_sendmail, a commit a batch of events'
ZOPE = 'zope.sendmail'
REPOZE = 'repoze.sendmail, pyramid_mailer'
SMTPLIB = 'smtplib, one connection'
FLOOR = "a queue's steps in bare Python"
AIOSMTPLIB = 'aiosmtplib, 10 connections'
ONE = 'smtp-source, 1 session'
TEN = 'smtp-source, 10 sessions'

SMALL = 'pyramid_sendmail, 2 KB mails'

BATCH = 100
"""Events in one transaction, where they come in batches."""

_FAR = {'mail.workers': 10, 'mail.batch': 1_000}
"""Connections that are kept, as the others keep theirs."""

Measure = Callable[[Place], Sample]


def qp(
    kind: str,
    mails: int,
    *,
    settings: dict[str, Any] | None = None,
    url: str = '',
    processes: int = 1,
    sink: Callable[[], Any] = sink,
    away: bool = False,
) -> Measure:
    """Ours: ``psendmail-qp --once``, so many times at once."""

    def measure(place: Place) -> Sample:
        count = place.mails(mails)
        with place.fresh() as folder, sink() as near:
            queue(place, folder, kind, count)

            def drain(to: Sink) -> Sample:
                command = psendmail_qp(folder, settings or {}, '--once', to=to, url=url)
                return drained(to, count, *[command] * processes)

            return _away(drain, near) if away else drain(near)

    return measure


def _away(drain: Callable[[Sink], Sample], near: Sink) -> Sample:
    with far(near) as to:
        return drain(to)


def of_files(
    kind: str,
    mails: int,
    command: Callable[..., list[str]],
    *headers: str,
    sink: Callable[[], Any] = sink,
    away: bool = False,
) -> Measure:
    """A peer: ``command(maildir, port)`` is the process that sends a Maildir's files."""

    def measure(place: Place) -> Sample:
        count = place.mails(mails)
        command('', 0)  # it is absent before its files are written
        with place.fresh() as folder, sink() as near:
            maildir = files(folder, kind, count, *headers)

            def drain(to: Sink) -> Sample:
                return drained(to, count, command(maildir, to.port))

            return _away(drain, near) if away else drain(near)

    return measure


def zope(kind: str, mails: int, **options: Any) -> Contender:
    """zope.sendmail's processor."""

    def command(maildir: object, port: int) -> list[str]:
        return peer('zope-sendmail', '--hostname', '127.0.0.1', '--port', port, maildir)

    headers = ('X-Zope-From: {sender}', 'X-Zope-To: {recipient}')
    return Contender(ZOPE, of_files(kind, mails, command, *headers, **options))


def repoze(kind: str, mails: int) -> Contender:
    """repoze.sendmail's processor, which is pyramid_mailer's too."""

    def command(maildir: object, port: int) -> list[str]:
        return peer('qp', '--hostname', '127.0.0.1', '--port', port, maildir)

    headers = ('X-Actually-From: {sender}', 'X-Actually-To: {recipient}')
    return Contender(REPOZE, of_files(kind, mails, command, *headers))


def reused(library: str, kind: str, mails: int, **options: Any) -> Measure:
    """A library alone."""

    def command(maildir: object, port: int) -> list[str]:
        where = (f'{maildir}/new', port, 10)
        return contender('reused', library, *where, by=peer if library == 'aiosmtplib' else ours)

    return of_files(kind, mails, command, **options)


def floor(kind: str, mails: int) -> Measure:
    """What no queue processor in Python can leave out: the limit on this machine."""

    def command(maildir: object, port: int) -> list[str]:
        return contender('floor', f'{maildir}/new', port)

    return of_files(kind, mails, command)


def source(kind: str, mails: int, sessions: int, *, away: bool = False) -> Measure:
    """smtp-source: a C program that sends one message from memory, over kept connections."""

    def measure(place: Place) -> Sample:
        count = place.mails(mails)
        postfix('smtp-source')
        with place.fresh() as folder, sink() as near:
            text = folder / 'message'
            text.write_bytes(wire(kind).replace(b'\r\n', b'\n'))

            def drain(to: Sink) -> Sample:
                command = postfix(
                    *('smtp-source', '-d', '-s', sessions, '-m', count, '-F', text),
                    *('-f', SENDER_ADDRESS, '-t', RECIPIENT_ADDRESS, f'127.0.0.1:{to.port}'),
                )
                return drained(to, count, command)

            return _away(drain, near) if away else drain(near)

    return measure


def django(application: str, kind: str, mails: int) -> Measure:
    """A queue of Django's, in SQLite as it comes."""

    def measure(place: Place) -> Sample:
        count = place.mails(mails)
        with place.fresh() as folder, sink() as to:

            def command(verb: str) -> list[str]:
                words = ('django_queue', verb, application, folder, kind, count, to.port)
                return contender(*words, by=peer)

            run(command('fill'))
            ready(folder)
            return drained(to, count, command('send'))

    return measure


def subscribed(mails: int, journal: str, **settings: Any) -> Measure:
    """Ours, with a subscriber that commits a row to SQLite for each mail that was sent."""

    def measure(place: Place) -> Sample:
        with place.fresh() as folder:
            database = folder / 'database'
            given = {
                'benchmarks.subscriber': 'commits',
                'benchmarks.database': database,
                'benchmarks.journal': journal,
                **settings,
            }
            sample = qp('2k', mails, settings=given)(place)
            if recorded(database) != sample['mails']:
                raise RuntimeError(f'{recorded(database)} events, of {sample["mails"]} mails')
            return sample

    return measure


def database_alone(steps: int, journal: str) -> Measure:
    """The same rows and commits with no mail at all: what the database takes."""

    def measure(place: Place) -> Sample:
        with place.fresh() as folder:
            words = (folder / 'database', journal, place.mails(steps))
            return run(contender('database', *words)).figures

    return measure


def _memory() -> Goal:
    """A few blocks a connection: far less than the four messages under way."""
    return Goal(
        'at most 8 MB more memory than with 2 KB mails',
        lambda samples: samples[OURS]['memory'] - samples[SMALL]['memory'],
        8,
        False,
        'MB',
    )


ROWS = (
    Row(
        'drain',
        'a queue of 2 KB mails, into a sink on loopback',
        [
            Contender(ONE, source('2k', 2_000, 1)),
            Contender(TEN, source('2k', 10_000, 10)),
            zope('2k', 600),
            repoze('2k', 500),
            Contender('django-post_office', django('post_office', '2k', 300)),
            Contender('django-mailer', django('mailer', '2k', 60)),
            Contender(SMTPLIB, reused('smtplib', '2k', 1_500)),
            Contender(AIOSMTPLIB, reused('aiosmtplib', '2k', 1_500)),
            Contender(FLOOR, floor('2k', 4_000)),
            Contender(OURS, qp('2k', 4_000)),
            Contender(
                'pyramid_sendmail, a subscriber counts',
                qp('2k', 4_000, settings={'benchmarks.subscriber': 'counts'}),
            ),
            Contender(BOTH, qp('2k', 8_000, processes=2)),
        ],
        (
            times(12, ZOPE),
            times(12, REPOZE),
            times(4, SMTPLIB),
            times(0.5, TEN),
            times(20, ZOPE, who=BOTH),
            times(1, TEN, who=BOTH),
        ),
    ),
    Row(
        'drain-events',
        'the same with a MailSentEvent subscriber that commits to SQLite',
        [
            zope('2k', 600),
            Contender(EACH, subscribed(1_000, 'wal')),
            Contender(BATCHES, subscribed(3_000, 'wal', **{'mail.event_batch': BATCH})),
            Contender('the commits alone, no mail', database_alone(1_000, 'wal')),
            Contender(
                'pyramid_sendmail, a commit an event, SQLite as it comes', subscribed(150, 'delete')
            ),
            Contender(
                'pyramid_sendmail, a commit a batch, SQLite as it comes',
                subscribed(1_000, 'delete', **{'mail.event_batch': BATCH}),
            ),
            Contender('the commits alone, SQLite as it comes', database_alone(150, 'delete')),
        ],
        (times(3, ZOPE, who=EACH), times(6, ZOPE, who=BATCHES)),
        'zope.sendmail has no events; SQLite with a write-ahead log, but where it says otherwise',
    ),
    Row(
        'drain-50k',
        'a queue of 50 KB mails',
        [
            Contender(ONE, source('50k', 1_000, 1)),
            Contender(TEN, source('50k', 3_000, 10)),
            zope('50k', 300),
            repoze('50k', 100),
            Contender('django-post_office', django('post_office', '50k', 150)),
            Contender('django-mailer', django('mailer', '50k', 100)),
            Contender(SMTPLIB, reused('smtplib', '50k', 500)),
            Contender(AIOSMTPLIB, reused('aiosmtplib', '50k', 500)),
            Contender(FLOOR, floor('50k', 2_000)),
            Contender(OURS, qp('50k', 2_000)),
        ],
        (times(2.5, ONE),),
    ),
    Row(
        'drain-5m',
        'a queue of 5 MB mails',
        [
            Contender(ONE, source('5m', 40, 1)),
            Contender(TEN, source('5m', 40, 10)),
            zope('5m', 10),
            repoze('5m', 5),
            Contender(SMTPLIB, reused('smtplib', '5m', 15)),
            Contender(AIOSMTPLIB, reused('aiosmtplib', '5m', 15)),
            Contender(FLOOR, floor('5m', 40)),
            Contender(OURS, qp('5m', 40)),
            Contender(SMALL, qp('2k', 1_000)),
        ],
        (times(1, ONE), _memory()),
    ),
    Row(
        'far',
        'a queue of 2 KB mails, 20 ms away',
        [
            zope('2k', 8, away=True),
            Contender(AIOSMTPLIB, reused('aiosmtplib', '2k', 150, away=True)),
            Contender(TEN, source('2k', 150, 10, away=True)),
            Contender(OURS, qp('2k', 2_000, settings=_FAR, away=True)),
        ],
        (times(70, ZOPE), times(3.5, AIOSMTPLIB)),
    ),
    Row(
        'far-chunking',
        'the same where the relay offers CHUNKING, a window of 8 mails',
        [
            zope('2k', 8, sink=chunking_sink, away=True),
            Contender(
                'pyramid_sendmail, no window',
                qp(
                    *('2k', 1_000),
                    settings=_FAR,
                    sink=chunking_sink,
                    away=True,
                ),
            ),
            Contender(
                OURS,
                qp(
                    '2k',
                    5_000,
                    settings=_FAR,
                    url='?window=8',
                    sink=chunking_sink,
                    away=True,
                ),
            ),
        ],
        (times(400, ZOPE),),
    ),
)
