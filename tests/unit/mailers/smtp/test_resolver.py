"""Resolving names in a helper thread."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.mailers.smtp.address import TCPAddress, UnixAddress
from pyramid_sendmail.mailers.smtp.resolver import IDLE_TIME, Resolver
from pyramid_sendmail.threads import BackgroundThread
from tests.support.queues import forked, reap, until

ADDRESS = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('192.0.2.1', 25))]


class NameServer:
    """Stands in for ``socket.getaddrinfo``."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.going_on = threading.Event()
        self.going_on.set()

    def __call__(self, host: str, port: int, **options: Any) -> Any:
        assert options == {'type': socket.SOCK_STREAM}
        self.asked.append((host, port, threading.current_thread()))
        assert self.going_on.wait(10)
        if self.error is not None:
            raise self.error
        return ADDRESS

    @property
    def hosts(self) -> list[str]:
        return [host for host, _, _ in self.asked]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    name_server = NameServer()
    monkeypatch.setattr(socket, 'getaddrinfo', name_server)
    return name_server


@pytest.fixture
def resolver(name_server: NameServer) -> Iterator[Resolver]:
    """A resolver whose thread ends soon."""
    yield Resolver(idle=0.05)
    name_server.going_on.set()
    until(lambda: not threads())


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == 'pyramid_sendmail resolver']


class Mailbox(queue.Queue[Any]):
    """Keeps what was delivered."""

    def deliver(self, resolved: Any) -> None:
        self.put((resolved, threading.current_thread()))


def resolve(resolver: Resolver, host: str = 'relay') -> Any:
    mailbox = Mailbox()
    resolver.resolve(TCPAddress(host, 25), mailbox.deliver)
    return mailbox.get(timeout=10)


def test_a_name(resolver: Resolver, name_server: NameServer) -> None:
    """A name is resolved, and its addresses delivered, in a daemon thread of this package."""
    resolved, thread = resolve(resolver)
    assert resolved == ADDRESS
    assert isinstance(thread, BackgroundThread)
    assert thread.daemon
    assert name_server.asked == [('relay', 25, thread)]


def test_nothing_to_wait_for(resolver: Resolver, name_server: NameServer, tmp_path: Path) -> None:
    """An IP address or a Unix socket starts no thread; the caller has the address at once."""
    here = threading.current_thread()
    assert resolve(resolver, '192.0.2.1') == (ADDRESS, here)
    mailbox = Mailbox()
    resolver.resolve(UnixAddress(str(tmp_path)), mailbox.deliver)
    addresses, thread = mailbox.get_nowait()
    assert addresses == [(socket.AF_UNIX, socket.SOCK_STREAM, 0, '', str(tmp_path))]
    assert thread is here
    assert not threads()


def test_names_wait_for_each_other(resolver: Resolver, name_server: NameServer) -> None:
    """One thread resolves them in order; requests for one address share a look-up."""
    name_server.going_on.clear()
    mailbox = Mailbox()
    for host in ('a', 'b', 'a', 'c', 'b'):
        resolver.resolve(TCPAddress(host, 25), mailbox.deliver)
    until(lambda: name_server.asked)
    assert len(threads()) == 1
    assert mailbox.empty()
    name_server.going_on.set()
    for _ in range(5):
        assert mailbox.get(timeout=10)[0] == ADDRESS
    assert name_server.hosts == ['a', 'b', 'c']


def test_the_thread_ends(resolver: Resolver, name_server: NameServer) -> None:
    """It ends when it is idle, and the next name starts another; nothing is lost in between."""
    _, first = resolve(resolver)
    first.join(10)
    assert not first.is_alive()
    _, second = resolve(resolver)
    assert second is not first
    assert IDLE_TIME == 60
    hasty = Resolver(idle=0)
    for _ in range(200):
        assert resolve(hasty)[0] == ADDRESS


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (socket.gaierror(-2, 'Name or service not known'), 'Name or service not known'),
        (UnicodeError('label empty or too long'), 'label empty or too long'),
        (OSError(12, 'Cannot allocate memory'), 'Cannot allocate memory'),
    ],
)
def test_errors(
    resolver: Resolver,
    name_server: NameServer,
    error: Exception,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are delivered as an OSError, with the words of a connection in a thread."""
    name_server.error = error
    for host in ('relay', '192.0.2.1'):
        resolved, _ = resolve(resolver, host)
        assert isinstance(resolved, OSError)
        assert text in str(resolved)
        assert error in (resolved, resolved.__cause__)
    assert caplog.text == ''
    name_server.error = None
    assert resolve(resolver)[0] == ADDRESS


def test_an_error_of_another_kind(
    resolver: Resolver, name_server: NameServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What an application's own resolver raises is delivered too, and logged with traceback."""
    name_server.error = ZeroDivisionError('mine')
    resolved, _ = resolve(resolver)
    assert isinstance(resolved, OSError)
    assert str(resolved) == 'mine'
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    name_server.error = None
    assert resolve(resolver)[0] == ADDRESS


def test_a_callback_that_raises(
    resolver: Resolver, name_server: NameServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The others, and later names, are served; the log has the traceback."""
    name_server.going_on.clear()
    mailbox = Mailbox()

    def deliver(resolved: Any) -> None:
        raise ZeroDivisionError

    resolver.resolve(TCPAddress('relay', 25), deliver)
    resolver.resolve(TCPAddress('relay', 25), mailbox.deliver)
    name_server.going_on.set()
    assert mailbox.get(timeout=10)[0] == ADDRESS
    assert resolve(resolver)[0] == ADDRESS
    assert 'ZeroDivisionError' in caplog.text


def test_no_thread_can_be_started(
    resolver: Resolver, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is an OSError as well, delivered at once; the next name tries again."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundThread, 'start', start)
        resolved, thread = resolve(resolver)
    assert isinstance(resolved, OSError)
    assert "can't start new thread" in str(resolved)
    assert thread is threading.current_thread()
    assert resolve(resolver)[0] == ADDRESS
    assert name_server.hosts == ['relay']


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child(resolver: Resolver, name_server: NameServer) -> None:
    """A child has a thread of its own; what its parent waits for is delivered in the parent
    alone."""
    name_server.going_on.clear()
    mailbox = Mailbox()
    resolver.resolve(TCPAddress('parent', 25), mailbox.deliver)
    until(lambda: name_server.asked)

    def work() -> None:
        name_server.asked.clear()
        name_server.going_on = threading.Event()
        name_server.going_on.set()
        assert resolve(resolver, 'child')[0] == ADDRESS
        assert name_server.hosts == ['child']
        assert mailbox.empty()

    assert reap(forked(work)) == 0
    name_server.going_on.set()
    assert mailbox.get(timeout=10)[0] == ADDRESS


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_thread_that_waits(name_server: NameServer) -> None:
    """A name wakes the thread that waits for one."""

    def work() -> None:
        resolver = Resolver()
        assert [resolve(resolver)[1] for _ in range(3)] == 3 * threads()

    assert reap(forked(work)) == 0


def test_a_thread_that_is_being_started(
    resolver: Resolver, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that come before it runs start no other."""
    starting: list[BackgroundThread] = []
    mailbox = Mailbox()

    def start(thread: BackgroundThread) -> None:
        starting.append(thread)

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundThread, 'start', start)
        for host in ('a', 'b'):
            resolver.resolve(TCPAddress(host, 25), mailbox.deliver)
    [thread] = starting
    thread.start()
    assert [mailbox.get(timeout=10) for _ in range(2)] == [(ADDRESS, thread)] * 2


def test_many_callers(resolver: Resolver, name_server: NameServer) -> None:
    """Several threads may ask at once: each is answered, by one helper at a time."""
    together = threading.Barrier(8)
    answered: list[Any] = []

    def work() -> None:
        together.wait(10)
        answered.extend(resolve(resolver, f'host{number}')[0] for number in range(20))

    callers = [threading.Thread(target=work) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    assert answered == [ADDRESS] * 160
