"""An attempt in a test: scripted sessions, and a queue with everything that an attempt needs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from zope.interface import implementer

from pyramid_sendmail.envelope import Envelope, Outcome, Reply, Tally, Verdict
from pyramid_sendmail.interfaces import IMailer, IMailSession
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.attempt import attempt
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.support.processors import RecordingDispatcher
from tests.support.queues import Clock

__all__ = [
    'DELIVERED',
    'LATER',
    'NO_ANSWER',
    'POLICY',
    'REFUSED',
    'Script',
    'Session',
    'Sessions',
    'World',
    'answers',
    'died',
    'disk',
    'lines',
    'raises',
]

DELIVERED = Verdict('delivered', Reply(250, '2.0.0 queued'))

REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))

LATER = Verdict('deferred', Reply(450, '4.2.0 greylisted'))

NO_ANSWER = Verdict('ambiguous', None, 'no answer to the whole message')

POLICY = RetryPolicy(delays=(60.0, 600.0), give_up_after=86_400.0, jitter=0.0)

Script = Callable[..., Iterator[Outcome]]


@implementer(IMailer)
class Sessions:
    """A mailer whose sessions each follow a script; ``left`` must be used up.

    A script is a generator function of (envelopes, before_final_dot), or what ``connect`` raises.
    """

    name = 'smtp://relay.example.org:25'

    def __init__(self, *scripts: Script | Exception) -> None:
        self.left = deque(scripts)
        self.sent: list[tuple[str, tuple[str, ...]]] = []
        self.log: list[str] = []

    def connect(self) -> Session:
        self.log.append('connect')
        script = self.left.popleft()
        if isinstance(script, Exception):
            raise script
        return Session(self, script)


@implementer(IMailSession)
class Session:
    def __init__(self, mailer: Sessions, script: Script) -> None:
        self.name = mailer.name
        self._mailer = mailer
        self._script = script

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: Any = None
    ) -> Iterator[Outcome]:
        return self._script(self._noted(envelopes), before_final_dot)

    def _noted(self, envelopes: Iterable[Envelope]) -> Iterator[Envelope]:
        for envelope in envelopes:
            self._mailer.sent.append((envelope.message_id, envelope.recipients))
            yield envelope

    def close(self) -> None:
        self._mailer.log.append('close')

    def abandon(self) -> None:
        self._mailer.log.append('abandon')


def answers(*outcomes: Verdict | dict[str, Verdict]) -> Script:
    """A session that marks and answers mail after mail; without an outcome it answers
    'delivered'."""
    queued = deque(outcomes)

    def script(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        for envelope in envelopes:
            outcome = queued.popleft() if queued else DELIVERED
            if isinstance(outcome, Verdict):
                outcome = dict.fromkeys(envelope.recipients, outcome)
            before_final_dot(
                envelope, tuple(to for to, v in outcome.items() if v.status == 'delivered')
            )
            yield outcome

    return script


def raises(error: Exception, *, after: int = 0, ambiguous: bool = False) -> Script:
    """A session that answers ``after`` mails, pulls one more, and raises."""

    def script(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        for number, envelope in enumerate(envelopes):
            if number < after:
                yield dict.fromkeys(envelope.recipients, DELIVERED)
                continue
            if ambiguous:
                before_final_dot(envelope, envelope.recipients)
            raise error

    return script


class World:
    """A queue with a clock, and everything that an attempt needs."""

    def __init__(self, queue: Any, clock: Clock) -> None:
        self.queue = queue
        self.clock = clock
        self.dispatcher = RecordingDispatcher()
        self.attempts = OutcomeRecorder(POLICY, self.dispatcher, clock=clock)
        self.tally = Tally()
        self.connections: list[RelayConnection] = []

    def put(self, *envelopes: Envelope) -> None:
        put = self.queue.put(envelopes)
        put.publish()

    def tickets(self) -> list[Any]:
        tickets: list[Any] = self.queue.scan(self.clock())[0]
        return tickets

    def claims(self) -> Iterator[Any]:
        for ticket in self.tickets():
            claim = self.queue.claim(ticket)
            if claim is not None:
                yield claim

    def connection(self, *scripts: Script | Exception, **options: Any) -> RelayConnection:
        connection = RelayConnection(Sessions(*scripts), **options)
        self.connections.append(connection)
        return connection

    def attempt(self, *scripts: Script | Exception) -> Sessions:
        """Attempt all that is due over sessions with these scripts."""
        connection = self.connection(*scripts)
        try:
            attempt(self.claims(), connection, self.attempts, self.tally)
        finally:
            connection.close()
        assert isinstance(connection.mailer, Sessions)
        return connection.mailer

    def claimable(self) -> int:
        """Return how many mails that are due could be claimed; nothing is changed."""
        claims = list(self.claims())
        for claim in claims:
            claim.release()
        return len(claims)


def disk(tmp_path: Path, clock: Clock) -> World:
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, longest=POLICY.longest, clock=clock)
    queue.prepare()
    queue.close()
    return World(queue, clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f'{record.levelname} {record.getMessage()}' for record in caplog.records]


def died(world: World, *, ambiguous: Sequence[str] = ()) -> None:
    """Claim the mail, and stop as kill -9 does: the lock is gone, everything written stays."""
    [ticket] = world.tickets()
    claim = world.queue.claim(ticket)
    if ambiguous:
        claim.mark_ambiguous(tuple(ambiguous))
    os.close(claim._descriptor)
    claim._descriptor = None
