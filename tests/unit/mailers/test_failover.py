"""Several mailers in order of preference."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.sending.connection import RelayConnection
from tests.support.doubles import RecordingMailer
from tests.support.sessions import A, envelope, idle, make_mailer, send, statuses
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    TLSAuthority,
    drop,
    reply,
    reply_then_drop,
)


class World:
    """Three mailers and a clock."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.mailers = [RecordingMailer(name) for name in ('first:', 'second:', 'third:')]
        self.failover = FailoverMailer(self.mailers, again=60, monotonic=lambda: self.now)

    def close(self, *numbers: int) -> None:
        for number, mailer in enumerate(self.mailers):
            mailer.unavailable = 'closed' if number in numbers else None

    def connect(self) -> str:
        """Where it leads to."""
        session = self.failover.connect()
        session.close()
        name: str = session.name
        return name

    def connections(self) -> list[int]:
        return [mailer.connections for mailer in self.mailers]


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level(logging.INFO)
    return World()


def test_the_first_that_is_there(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """As long as the first is there nobody else is asked, and nothing is said."""
    assert [world.connect() for _ in range(3)] == ['first:'] * 3
    assert world.connections() == [3, 0, 0]
    assert (world.failover.connections, world.failover.fallbacks) == (3, 0)
    assert not caplog.records


def test_falls_back_and_returns(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One that cannot connect is passed over for a while and then tried first again; each change
    is one line in the log, and counted."""
    world.close(0)
    assert [world.connect() for _ in range(5)] == ['second:'] * 5
    assert world.connections() == [1, 5, 0]
    world.now += 60
    assert world.connect() == 'second:'
    assert world.connections() == [2, 6, 0]
    world.close()
    assert world.connect() == 'second:'
    world.now += 60
    assert [world.connect() for _ in range(2)] == ['first:'] * 2
    assert world.failover.connections == 9
    assert world.failover.fallbacks == 7
    fallback, back = caplog.records
    assert fallback.levelname == 'WARNING'
    assert fallback.getMessage() == 'mail goes by second: now: first:: closed'
    assert (fallback.mailer, fallback.instead_of) == ('second:', 'first:')  # type: ignore[attr-defined]
    assert fallback.reason == 'first:: closed'  # type: ignore[attr-defined]
    assert back.levelname == 'INFO'
    assert back.getMessage() == 'mail goes by first: again'


def test_down_to_the_last(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The way goes down the list, and up again by whoever is there."""
    world.close(0, 1)
    assert world.connect() == 'third:'
    world.close(0)
    world.now += 60
    assert world.connect() == 'second:'
    world.close()
    world.now += 60
    assert world.connect() == 'first:'
    assert [record.getMessage().partition(':')[0] for record in caplog.records] == [
        'mail goes by third',
        'mail goes by second',
        'mail goes by first',
    ]


def test_nobody_is_there(world: World) -> None:
    """Then each is named with its reason; and each is tried every time, since there is nobody to
    pass it over for."""
    world.close(0, 1, 2)
    for number in (1, 2):
        with pytest.raises(MailerUnavailable) as caught:
            world.failover.connect()
        assert str(caught.value) == 'first:: closed | second:: closed | third:: closed'
        assert not caught.value.stale
        assert world.connections() == [number] * 3
    world.close(1, 2)
    assert world.connect() == 'first:'


def test_only_what_connect_raises_moves_on(world: World) -> None:
    """A defect is no closed road: it comes through, and the mailer is not passed over."""

    def broken() -> Any:
        raise ValueError('a defect')

    world.mailers[0].connect = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match='a defect'):
        world.failover.connect()
    assert world.connections() == [0, 0, 0]
    del world.mailers[0].connect
    assert world.connect() == 'first:'


def test_one_thread_finds_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """When the first is due again, one thread waits for it and the others go on by the second;
    whoever comes later finds the first there."""
    world.close(0)
    assert world.connect() == 'second:'
    world.now += 60
    world.close()
    trying, go_on = threading.Event(), threading.Event()
    connect = world.mailers[0].connect

    def slow() -> Any:
        trying.set()
        assert go_on.wait(10)
        return connect()

    world.mailers[0].connect = slow  # type: ignore[method-assign]
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(world.connect()))
    thread.start()
    assert trying.wait(10)
    assert [world.connect() for _ in range(3)] == ['second:'] * 3
    go_on.set()
    thread.join(10)
    assert names == ['first:']
    assert world.connect() == 'first:'
    assert len(caplog.records) == 2


def test_reason_is_told_by_whoever_arrives(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the reason also where it is written for a thread that has not met it itself."""
    world.close(0)
    connect = world.mailers[1].connect

    def overtaken() -> Any:
        world.mailers[1].connect = connect  # type: ignore[method-assign]
        assert world.connect() == 'second:'
        return connect()

    world.mailers[1].connect = overtaken  # type: ignore[method-assign]
    assert world.connect() == 'second:'
    [fallback] = caplog.records
    assert fallback.reason == 'first:: closed'  # type: ignore[attr-defined]


def test_many_threads_fall_back_at_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """However many threads meet it together, the change is one line."""
    world.close(0)
    together = threading.Barrier(8, timeout=10)
    connect = world.mailers[0].connect

    def meet() -> Any:
        together.wait()
        return connect()

    world.mailers[0].connect = meet  # type: ignore[method-assign]
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(world.connect())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert names == ['second:'] * 8
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert world.failover.fallbacks == 8


def test_a_batch_ends_where_it_began(world: World) -> None:
    """A session on the fallback carries its batch to the end, though the first is back; the next
    session is the first's."""
    world.close(0)
    road = RelayConnection(world.failover, batch=3)
    road.session()
    world.close()
    world.now += 60
    names = []
    for _ in range(4):
        names.append(road.session().name)
        road.record_answer()
        if road.is_used_up():
            road.close()
    road.close()
    assert names == ['second:'] * 3 + ['first:']


def test_late_arrival_is_no_news(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A thread that had chosen the second before the first came back does not tell of a change."""
    world.close(0)
    assert world.connect() == 'second:'
    world.now += 60
    world.close()
    connect = world.mailers[1].connect
    world.failover._places[0].trying = True

    def late() -> Any:
        world.failover._places[0].trying = False
        assert world.connect() == 'first:'
        return connect()

    world.mailers[1].connect = late  # type: ignore[method-assign]
    assert world.connect() == 'second:'
    assert world.connect() == 'first:'
    assert len(caplog.records) == 2


def test_needs_two() -> None:
    """One has nothing to fall back to."""
    with pytest.raises(ValueError, match='two mailers or more'):
        FailoverMailer([RecordingMailer()])


# Over SMTP


def relays(first: ScriptedSMTPServer, second: ScriptedSMTPServer, **options: Any) -> FailoverMailer:
    values: dict[str, Any] = {'hostname': 'web.example.org', 'timeouts': Timeouts().capped(5)}
    return FailoverMailer(
        [
            make_mailer(first.host, first.port, **(values | options)),
            SMTPMailer(second.host, second.port, **values),
        ]
    )


@pytest.mark.parametrize(
    ('verb', 'action'),
    [
        ('connect', reply_then_drop(554, 'no')),
        ('connect', reply_then_drop(421, 'busy')),
        ('connect', drop()),
        ('EHLO', reply(550, 'no')),
        ('AUTH', reply(535, 'no')),
        ('STARTTLS', reply(454, 'no')),
        ('TLS', drop()),
    ],
)
def test_a_closed_relay(tls_authority: TLSAuthority, verb: str, action: Action) -> None:
    """Whatever is wrong on the way to the first, the mail goes by the second, and says so."""
    secure: dict[str, Any] = {
        'tls': 'starttls',
        'context': tls_authority.context(),
        'auth': {'ann': 'secret'},
    }
    with ScriptedSMTPServer(**secure) as first, ScriptedSMTPServer() as second:
        first.always(verb, action)
        mailer = relays(
            first, second, username='ann', password='secret', ca_file=str(tls_authority.path)
        )
        session = mailer.connect()
        assert session.name == f'smtp://{second.host}:{second.port}'
        assert statuses(send(session, envelope(A))[0]) == {A: 'delivered'}
        session.close()
        assert first.messages == []
        assert second.accepted(A) == 1


@pytest.mark.parametrize(
    ('verb', 'action', 'status'),
    [
        ('MAIL', reply(550, 'no'), 'failed'),
        ('RCPT', reply(450, 'later'), 'deferred'),
        ('DATA', reply(554, 'no'), 'failed'),
        ('dot', reply(451, 'later'), 'deferred'),
        ('dot', drop(), 'ambiguous'),
    ],
)
def test_an_answer_is_an_answer(verb: str, action: Action, status: str) -> None:
    """What the first says of a mail is not asked of the second: nobody gets it twice."""
    with ScriptedSMTPServer() as first, ScriptedSMTPServer() as second:
        first.always(verb, action)
        session = relays(first, second).connect()
        assert statuses(send(session, envelope(A))[0]) == {A: status}
        session.close()
        idle(first)
        assert second.connections == 0
