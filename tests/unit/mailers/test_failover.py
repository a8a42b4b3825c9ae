"""Several mailers in order of preference."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.support.doubles import RecordingMailer
from tests.support.queues import forked, reap
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
        self.failover = FailoverMailer(self.mailers, retry_interval=60, monotonic=lambda: self.now)

    def close(self, *numbers: int) -> None:
        for number, mailer in enumerate(self.mailers):
            mailer.unavailable = 'closed' if number in numbers else None

    def connect(self) -> str:
        """Return the name of the mailer that has connected."""
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


def test_the_first_is_preferred(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """While the first can connect, no other is tried and nothing is logged."""
    assert [world.connect() for _ in range(3)] == ['first:'] * 3
    assert world.connections() == [3, 0, 0]
    assert (world.failover.connections, world.failover.fallbacks) == (3, 0)
    assert not caplog.records


def test_falls_back_and_returns(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A mailer that cannot connect is skipped for a while and then preferred again; each switch
    is one log line, and the connections are counted."""
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
    assert fallback.getMessage() == 'switched from first: to second:: first:: closed'
    assert (fallback.mailer, fallback.instead_of) == ('second:', 'first:')  # type: ignore[attr-defined]
    assert fallback.reason == 'first:: closed'  # type: ignore[attr-defined]
    assert back.levelname == 'INFO'
    assert back.getMessage() == 'switched back from second: to first:'


def test_down_to_the_last(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Fallbacks are used in their order, and the better ones again as soon as they connect."""
    world.close(0, 1)
    assert world.connect() == 'third:'
    world.close(0)
    world.now += 60
    assert world.connect() == 'second:'
    world.close()
    world.now += 60
    assert world.connect() == 'first:'
    assert [record.getMessage() for record in caplog.records] == [
        'switched from first: to third:: first:: closed',
        'switched back from third: to second:',
        'switched back from second: to first:',
    ]


def test_none_can_connect(world: World) -> None:
    """The error names each mailer with its reason; none is skipped while all fail."""
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
    """Any other exception is raised, and the mailer is not skipped."""

    def broken() -> Any:
        raise ValueError('a defect')

    world.mailers[0].connect = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match='a defect'):
        world.failover.connect()
    assert world.connections() == [0, 0, 0]
    del world.mailers[0].connect
    assert world.connect() == 'first:'


def test_one_thread_tries_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """When the first is due again, one thread tries it and the others use the second; after its
    success all use the first."""
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


def test_reason_of_another_thread(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The log line has the reason even if the thread that logs it has not met the failure."""
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
    """If many threads meet the failure at once, the switch is one log line."""
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
    """A session of the fallback completes its batch after the first is back; the next session is
    the first's."""
    world.close(0)
    connection = RelayConnection(world.failover, batch=3)
    connection.session()
    world.close()
    world.now += 60
    names = []
    for _ in range(4):
        names.append(connection.session().name)
        connection.record_answer()
        if connection.is_used_up():
            connection.close()
    connection.close()
    assert names == ['second:'] * 3 + ['first:']


def test_late_arrival_is_no_switch(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A thread that chose the second before another came back to the first logs no switch."""
    world.close(0)
    assert world.connect() == 'second:'
    world.now += 60
    world.close()
    trying, go_on = threading.Event(), threading.Event()
    connect_first, connect_second = world.mailers[0].connect, world.mailers[1].connect

    def probe() -> Any:
        trying.set()
        assert go_on.wait(10)
        return connect_first()

    def late() -> Any:
        go_on.set()
        thread.join(10)
        return connect_second()

    world.mailers[0].connect = probe  # type: ignore[method-assign]
    world.mailers[1].connect = late  # type: ignore[method-assign]
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(world.connect()))
    thread.start()
    assert trying.wait(10)
    assert world.connect() == 'second:'
    assert names == ['first:']
    assert world.connect() == 'first:'
    assert len(caplog.records) == 2


def test_needs_two() -> None:
    """A single mailer is refused: it has no fallback."""
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
def test_a_relay_that_is_unavailable(
    tls_authority: TLSAuthority, verb: str, action: Action
) -> None:
    """Whatever fails while connecting to the first, the mail is sent by the second."""
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
    """A mail that the first has answered is not offered to the second, so none arrives twice."""
    with ScriptedSMTPServer() as first, ScriptedSMTPServer() as second:
        first.always(verb, action)
        session = relays(first, second).connect()
        assert statuses(send(session, envelope(A))[0]) == {A: status}
        session.close()
        idle(first)
        assert second.connections == 0


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_fork_while_another_thread_connects(world: World) -> None:
    """A lock that this thread holds at that moment does not stop the child."""

    def work() -> None:
        signal.alarm(20)  # ends a child that waits for ever
        assert world.connect() == 'first:'

    with world.failover._lock:
        pid = forked(work)
    assert reap(pid) == 0
