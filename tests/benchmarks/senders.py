"""The contenders of a drain: ours, the queue processors of others, and programs without a queue.

A Drain is what all contenders of one row share: kind and number of mails, and the relay. So none
sends more than another.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.application import recorded
from tests.benchmarks.drains import (
    drained,
    emptied,
    files,
    has_processes,
    psendmail_qp,
    queue,
    ready,
    untouched,
)
from tests.benchmarks.processes import Absent, contender, ours, peer, postfix, run
from tests.benchmarks.rounds import OURS, Contender, Place, Sample
from tests.benchmarks.sinks import Sink, far, sink
from tests.benchmarks.work import RECIPIENT_ADDRESS, SENDER_ADDRESS, wire

__all__ = [
    'AIOSMTPLIB',
    'DEFAULT_CONNECTIONS',
    'FLAT',
    'ONE',
    'REPOZE',
    'SMTPLIB',
    'TEN',
    'ZOPE',
    'Drain',
    'Relay',
    'far_away',
    'instructions',
    'on_loopback',
]

DEFAULT_CONNECTIONS = 4
"""``mail.workers`` as it comes."""

ZOPE = 'zope.sendmail'
REPOZE = 'repoze.sendmail, pyramid_mailer'
SMTPLIB = 'smtplib, one connection'
AIOSMTPLIB = 'aiosmtplib, 10 connections'
ONE = 'smtp-source, 1 session'
TEN = 'smtp-source, 10 sessions'
FLAT = 'a flat loop, 4 connections'

Relay = Callable[[Path], AbstractContextManager[Sink]]
"""Runs a relay whose files, if it has any, lie in a folder."""


@contextmanager
def on_loopback(folder: Path) -> Iterator[Sink]:
    """Run smtp-sink."""
    with sink() as to:
        yield to


@contextmanager
def far_away(folder: Path) -> Iterator[Sink]:
    """Run smtp-sink behind a network of 20 ms each way."""
    with sink() as near, far(near) as to:
        yield to


@dataclass(frozen=True, slots=True)
class Drain:
    """One row's work. ``part``: ``early`` is the rate until this part of the mails was answered."""

    kind: str
    mails: int
    relay: Relay = on_loopback
    part: float = 1.0

    def ours(
        self,
        name: str = OURS,
        *,
        settings: Mapping[str, object] | None = None,
        url: str = '',
        processes: int = 1,
        log: bool = False,
        settled: tuple[str, ...] = (),
    ) -> Contender:
        """``psendmail-qp --once``.

        ``processes``: so many, each with the connections of one. ``log``: at INFO into a file.
        ``settled``: the folders that are empty at the end, if not all are.
        """

        def measure(place: Place) -> Sample:
            count = place.mails(self.mails)
            with place.fresh() as folder, self.relay(folder) as to:
                maildir = queue(place, folder, self.kind, count)
                file = folder / 'log' if log else None
                words: list[object] = ['--once']
                commands = 1
                if processes > 1 and has_processes():
                    # They share what --workers says.
                    words += ['--processes', processes]
                    words += ['--workers', processes * DEFAULT_CONNECTIONS]
                else:
                    commands = processes
                command = psendmail_qp(folder, settings or {}, *words, to=to, url=url, log=file)
                sample = self._drained(to, count, *[command] * commands, maildir=(maildir, settled))
                if file and file.read_text().count('INFO') < count:
                    raise RuntimeError('the log has not a line for each mail')
                return sample

        return Contender(name, measure)

    def subscribed(self, name: str, journal: str, **settings: object) -> Contender:
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
                sample = self.ours(settings=given).measure(place)
                if recorded(database) != sample['mails']:
                    raise RuntimeError(f'{recorded(database)} events, of {sample["mails"]} mails')
                return sample

        return Contender(name, measure)

    def commits(self, name: str, journal: str) -> Contender:
        """The same rows and commits with no mail at all."""

        def measure(place: Place) -> Sample:
            with place.fresh() as folder:
                words = (folder / 'database', journal, place.mails(self.mails))
                return run(contender('database', *words)).figures

        return Contender(name, measure)

    def flat(self) -> Contender:
        """A queue of ours, sent by contenders/flat.py."""

        def measure(place: Place) -> Sample:
            count = place.mails(self.mails)
            with place.fresh() as folder, self.relay(folder) as to:
                maildir = queue(place, folder, self.kind, count)
                command = contender('flat', maildir, to.port)
                return self._drained(to, count, command, maildir=(maildir, ()))

        return Contender(FLAT, measure)

    def zope(self, *, refused: bool = False) -> Contender:
        """zope.sendmail's processor: a connection a mail. ``refused``: mails stay behind."""

        def command(maildir: Path, to: Sink) -> list[str]:
            login = to.login
            how = (
                ('--username', login.user, '--password', login.password, '--force-tls')
                if login
                else ('--no-tls',)
            )
            return peer(
                'zope-sendmail', '--hostname', '127.0.0.1', '--port', to.port, *how, maildir
            )

        headers = ('X-Zope-From: {sender}', 'X-Zope-To: {recipient}')
        return Contender(ZOPE, self._of_files(command, *headers, refused=refused))

    def repoze(self) -> Contender:
        """repoze.sendmail's processor, which is pyramid_mailer's too: a connection a mail."""

        def command(maildir: Path, to: Sink) -> list[str]:
            return peer('qp', '--hostname', '127.0.0.1', '--port', to.port, maildir)

        headers = ('X-Actually-From: {sender}', 'X-Actually-To: {recipient}')
        return Contender(REPOZE, self._of_files(command, *headers))

    def smtplib(self) -> Contender:
        """The plain loop that a script would have: one connection, which is kept."""
        command = functools.partial(_reused, 'smtplib', 1)
        return Contender(SMTPLIB, self._of_files(command, by=ours))

    def aiosmtplib(self, connections: int = 10) -> Contender:
        """The same by asyncio, over several connections."""
        return Contender(
            f'aiosmtplib, {connections} connections',
            self._of_files(functools.partial(_reused, 'aiosmtplib', connections)),
        )

    def source(self, sessions: int) -> Contender:
        """smtp-source: a C program that sends one message from memory, over kept connections,
        without PIPELINING."""

        def measure(place: Place) -> Sample:
            count = place.mails(self.mails)
            postfix('smtp-source')
            with place.fresh() as folder, self.relay(folder) as to:
                text = folder / 'message'
                text.write_bytes(wire(self.kind).replace(b'\r\n', b'\n'))
                command = postfix(
                    *('smtp-source', '-d', '-s', sessions, '-m', count, '-F', text),
                    *('-f', SENDER_ADDRESS, '-t', RECIPIENT_ADDRESS, f'127.0.0.1:{to.port}'),
                )
                return self._drained(to, count, command)

        return Contender(ONE if sessions == 1 else TEN, measure)

    def django(self, name: str, application: str) -> Contender:
        """A queue of Django's, in SQLite as it comes."""

        def measure(place: Place) -> Sample:
            count = place.mails(self.mails)
            with place.fresh() as folder, self.relay(folder) as to:

                def command(verb: str) -> list[str]:
                    words = ('django_queue', verb, application, folder, self.kind, count, to.port)
                    return contender(*words, by=peer)

                run(command('fill'))
                ready(folder)
                return self._drained(to, count, command('send'))

        return Contender(name, measure)

    def _of_files(
        self,
        command: Callable[[Path, Sink], list[str]],
        *headers: str,
        by: Callable[..., list[str]] = peer,
        refused: bool = False,
    ) -> Callable[[Place], Sample]:
        def measure(place: Place) -> Sample:
            count = place.mails(self.mails)
            by('-c', '')  # it is absent before its files are written
            with place.fresh() as folder, self.relay(folder) as to:
                maildir = files(folder, self.kind, count, *headers)
                where = None if refused else (maildir, ())
                return self._drained(to, count, command(maildir, to), maildir=where)

        return measure

    def _drained(
        self,
        to: Sink,
        count: int,
        *commands: list[str],
        maildir: tuple[Path, tuple[str, ...]] | None = None,
    ) -> Sample:
        settled = emptied(maildir[0], *maildir[1]) if maildir else untouched
        return drained(to, count, *commands, settled=settled, part=self.part)


def _reused(library: str, connections: int, maildir: Path, to: Sink) -> list[str]:
    login = (to.login.user, to.login.password, to.login.ca_file) if to.login else ()
    by = peer if library == 'aiosmtplib' else ours
    return contender('reused', library, maildir / 'new', to.port, connections, *login, by=by)


_FEWEST = 50
"""Mails of the shorter of two runs under valgrind, whose difference counts."""


def instructions(mails: int) -> list[Contender]:
    """Instructions a mail, as valgrind's callgrind counts them.

    Those of a run with more mails, less those of a run with fewer: start and end cancel out."""

    def of_ours(place: Place, folder: Path, count: int, to: Sink) -> list[str]:
        queue(place, folder, '2k', count)
        return psendmail_qp(folder, {}, '--once', to=to)

    def of_flat(place: Place, folder: Path, count: int, to: Sink) -> list[str]:
        return contender('flat', queue(place, folder, '2k', count), to.port)

    def of_smtplib(place: Place, folder: Path, count: int, to: Sink) -> list[str]:
        return _reused('smtplib', 1, files(folder, '2k', count), to)

    def counted(
        command: Callable[[Place, Path, int, Sink], list[str]],
    ) -> Callable[[Place], Sample]:
        def measure(place: Place) -> Sample:
            if shutil.which('valgrind') is None:
                raise Absent('valgrind is not installed')
            more = place.mails(mails)
            # First without valgrind: a module that changed is compiled then, and not in a run that
            # counts.
            with place.fresh() as folder, sink() as to:
                run(command(place, folder, _FEWEST, to))
            totals = []
            for count in (_FEWEST, _FEWEST + more):
                with place.fresh() as folder, sink() as to:
                    totals.append(_total(folder, command(place, folder, count, to)))
                    if to.taken() != count:
                        raise RuntimeError(f'the sink has {to.taken()} mails, of {count}')
            return {'mails': more, 'instructions': (totals[1] - totals[0]) / more}

        return measure

    senders = {SMTPLIB: of_smtplib, FLAT: of_flat, OURS: of_ours}
    return [Contender(name, counted(command)) for name, command in senders.items()]


def _total(folder: Path, command: list[str]) -> int:
    output = folder / 'callgrind'
    run(
        [
            *('env', 'PYTHONHASHSEED=0', 'valgrind', '--tool=callgrind'),
            f'--callgrind-out-file={output}',
            *command,
        ]
    )
    found = re.search(r'^(?:totals|summary): (\d+)', output.read_text(), re.MULTILINE)
    assert found
    return int(found[1])
