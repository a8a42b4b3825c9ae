"""``RelayConnection``: how long a session is used, and when another one is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Outcome, Tally
from pyramid_sendmail.sending.attempt import attempt
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.support.attempts import (
    DELIVERED,
    REFUSED,
    Script,
    Session,
    Sessions,
    World,
    answers,
    raises,
)
from tests.support.queues import make_envelope


def test_one_connection_for_many_mails(world: World) -> None:
    """A session stays open from attempt to attempt."""
    connection = world.connection(answers())
    for _ in range(3):
        world.put(make_envelope())
        attempt(world.claims(), connection, world.attempts, world.tally)
    assert connection.mailer.log == ['connect']  # type: ignore[attr-defined]
    assert (connection.mails_total, connection.mails_on_session) == (3, 3)
    connection.close()
    connection.close()
    assert connection.mailer.log == ['connect', 'close']  # type: ignore[attr-defined]


def test_a_used_up_session_is_closed(world: World) -> None:
    """After a batch of mails the session is closed, and the rest goes over another one."""
    world.put(*(make_envelope() for _ in range(5)))
    connection = world.connection(answers(), answers(), answers(), batch=2)
    for sent in (2, 4, 5):
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert len(connection.mailer.sent) == sent  # type: ignore[attr-defined]
    assert connection.mailer.log == ['connect', 'close'] * 2 + ['connect']  # type: ignore[attr-defined]
    connection.close()


def test_a_session_that_pulls_ahead_gets_one_batch(world: World) -> None:
    """A mail that is pulled while the one before waits for its answer counts for the batch."""

    def ahead(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        source = iter(envelopes)
        mail = next(source, None)
        while mail is not None:
            follower = next(source, None)
            yield dict.fromkeys(mail.recipients, DELIVERED)
            mail = follower

    world.put(*(make_envelope() for _ in range(5)))
    connection = world.connection(ahead, ahead, ahead, batch=2)
    for sent in (2, 4, 5):
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert len(connection.mailer.sent) == sent  # type: ignore[attr-defined]
    assert world.tally == Tally(delivered=5)
    connection.close()


@pytest.mark.parametrize('script', [answers(*[REFUSED] * 9), raises(ValueError('oops'))])
def test_outcomes_name_the_relay_of_the_session(world: World, script: Script) -> None:
    """A mailer may have several relays: events name the session's. For a session without a name
    they name the mailer."""
    world.dispatcher.kinds = ('error', 'deferred')
    for name, expected in {
        'smtp://second': 'smtp://second',
        None: 'smtp://relay.example.org:25',
    }.items():
        connection = world.connection(script)
        session = connection.session()
        del session.name
        if name is not None:
            session.name = name
        world.put(make_envelope())
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert [event.mailer for event in world.dispatcher.pending_events] == [expected]
        world.dispatcher.pending_events.clear()
        connection.close()


def test_an_idle_session_is_replaced(world: World) -> None:
    """A session that was not used for ``idle`` seconds is replaced before the next mail."""
    now = [0.0]
    connection = world.connection(answers(), answers(), idle=60, monotonic=lambda: now[0])
    for pause, log in ((0, 1), (60, 1), (61, 3)):
        now[0] += pause
        world.put(make_envelope())
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert len(connection.mailer.log) == log  # type: ignore[attr-defined]
    connection.close()


def test_an_inherited_session_is_abandoned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child abandons its parent's session: it sends nothing on it."""
    connection = world.connection(answers(), answers())
    connection.session()
    monkeypatch.setattr(os, 'getpid', lambda: -1)
    connection.session()
    assert connection.mailer.log == ['connect', 'abandon', 'connect']  # type: ignore[attr-defined]
    monkeypatch.setattr('os.getpid', lambda: -2)
    connection.close()
    assert connection.mailer.log[-1] == 'abandon'  # type: ignore[attr-defined]
    connection.close()


def test_connecting_is_shown(world: World) -> None:
    """``connecting`` is True while a connection is opened, unless its thread holds mail."""
    seen = []

    class Watched(Sessions):
        def connect(self) -> Session:
            seen.append(connection.connecting)
            return super().connect()

    connection = RelayConnection(Watched(answers(), answers()))
    connection.session()
    connection.close()
    connection.session(holding=True)
    assert seen == [True, False]
    assert connection.connecting is False
    connection.close()
