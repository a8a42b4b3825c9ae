"""What a request pays: from the message to the end of the commit."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.processes import contender, ours, peer, run
from tests.benchmarks.rounds import OURS, Contender, Goal, Place, Row, Sample, ratio, times

__all__ = ['ROWS']

UNSYNCED = 'pyramid_sendmail, queue_sync = off'
BARE = 'bare write, fsync, rename, fsync'
COMMITTED = 'bare files when a transaction commits'
ONE_THREAD = 'pyramid_sendmail, one thread'
COMMITTED_UNSYNCED = 'bare files when a transaction commits, no fsync'


def _measured(
    name: str,
    steps: int,
    kind: str,
    *,
    threads: int = 1,
    repeated: int = 1,
    options: tuple[str, ...] = (),
    who: str = '',
) -> Callable[[Place], Sample]:
    """A module of contenders, in a fresh folder and a fresh process; so many times the steps."""

    def measure(place: Place) -> Sample:
        with place.fresh() as folder:
            before = [who] if who else []
            arguments = [
                *before,
                folder / 'queue',
                kind,
                repeated * place.mails(steps),
                threads,
                *options,
            ]
            return run(contender(name, *arguments, by=peer if who else ours)).figures

    return measure


def _contenders(kind: str, steps: int, threads: int, *, whole: bool = False) -> list[Contender]:
    """``steps``: the mails of each thread."""

    def ours_with(name: str, *options: str) -> Contender:
        return Contender(name, _measured('request', steps, kind, threads=threads, options=options))

    peers = ('zope', 'repoze', 'pyramid_mailer')
    names = ('zope.sendmail', 'repoze.sendmail', 'pyramid_mailer')

    def bare(name: str, *options: str) -> Contender:
        return Contender(name, _measured('bare', steps, kind, threads=threads, options=options))

    return [
        bare(BARE),
        bare(COMMITTED, 'committed'),
        bare(COMMITTED_UNSYNCED, 'committed', 'unsynced'),
        ours_with(OURS),
        ours_with(UNSYNCED, 'mail.queue_sync=off'),
        *([ours_with('pyramid_sendmail, whole request', 'whole=yes')] if whole else []),
        *(
            Contender(name, _measured('peer_request', steps, kind, threads=threads, who=who))
            for name, who in zip(names, peers, strict=True)
        ),
    ]


def _above_bare(milliseconds: float) -> Goal:
    """A ratio to the bare loop would measure the disk."""
    return Goal(
        f'a median at most {milliseconds:g} ms above bare write and sync',
        lambda samples: (samples[OURS]['median'] - samples[BARE]['median']) * 1000,
        milliseconds,
        False,
        'ms',
    )


_LATENCY = (('median ms', 'median', 1000.0), ('worst ms', 'worst', 1000.0))

_NOTE = 'no peer syncs anything: what they have taken, a power cut can take back'


_SETTINGS = (
    'a fresh request for each send of pyramid_sendmail; the defaults, but where it says otherwise'
)

ROWS = (
    Row(
        'request',
        'send and commit, 2 KB, one thread',
        _contenders('2k', 1_000, 1, whole=True),
        (
            times(0.95, BARE),
            _above_bare(0.15),
            times(1, 'zope.sendmail'),
            times(15, 'zope.sendmail', who=UNSYNCED),
            ratio(
                f'at most 2.5 times the CPU of {COMMITTED_UNSYNCED}',
                'cpu',
                UNSYNCED,
                COMMITTED_UNSYNCED,
                2.5,
                at_least=False,
            ),
        ),
        _SETTINGS,
        _NOTE,
        _LATENCY,
    ),
    Row(
        'request-8',
        'send and commit, 2 KB, eight threads',
        [
            *_contenders('2k', 150, 8),
            Contender(ONE_THREAD, _measured('request', 150, '2k', repeated=8)),
        ],
        (
            times(0.95, BARE),
            times(4.5, 'zope.sendmail'),
            times(4.5, 'pyramid_mailer'),
            ratio(
                'at most 1.6 times the CPU of one thread',
                'cpu',
                OURS,
                ONE_THREAD,
                1.6,
                at_least=False,
            ),
        ),
        _SETTINGS,
        _NOTE,
        _LATENCY,
    ),
    Row(
        'request-50k',
        'send and commit, 50 KB of text and html in UTF-8',
        _contenders('50k', 150, 1),
        (times(3, 'zope.sendmail'),),
        _SETTINGS,
        _NOTE,
        _LATENCY,
    ),
    Row(
        'request-5m',
        'send and commit, an attachment of 5 MB',
        _contenders('5m', 8, 1),
        (times(5, 'zope.sendmail'),),
        _SETTINGS,
        _NOTE,
        _LATENCY,
    ),
    Row(
        'ten',
        'ten mails of 2 KB in one transaction',
        [
            Contender('a transaction each', _measured('request', 20, '2k', repeated=10)),
            Contender(OURS, _measured('request', 20, '2k', options=('mails=10',))),
        ],
        (times(3, 'a transaction each'),),
        _SETTINGS,
        '',
        _LATENCY,
    ),
)
