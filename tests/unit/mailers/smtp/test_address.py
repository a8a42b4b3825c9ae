"""Opening sockets to real listeners: the first address that answers is used."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.mailers.smtp.address import TCPAddress, UnixAddress, open_socket
from pyramid_sendmail.mailers.smtp.connect_race import (
    ATTEMPT_DELAY,
    AddressInfo,
    AddressMemory,
    ConnectRace,
)
from tests.support.queues import forked, open_files, reap, until

SLACK = 4.0
"""Seconds for which a busy machine may be late. What waits for a time-out takes longer still."""


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """Each test closes every socket that was opened."""
    before = open_files()
    yield
    assert open_files() - before == set()


@pytest.fixture
def stack(no_leak: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def listening(stack: ExitStack) -> Callable[..., Any]:
    """Open a listener, and return its address."""

    def listen(host: str = '127.0.0.1', family: int = socket.AF_INET) -> Any:
        server = stack.enter_context(socket.create_server((host, 0), family=family))
        return server.getsockname()

    return listen


@pytest.fixture
def silent(stack: ExitStack) -> Callable[..., Any]:
    """Open a listener whose backlog is full, so that it never answers; return its address."""

    def listen(host: str = '127.0.0.2', family: int = socket.AF_INET) -> Any:
        server = stack.enter_context(socket.socket(family))
        server.bind(host if family == socket.AF_UNIX else (host, 0))
        server.listen(0)
        fill(server.getsockname(), family, stack)
        return server.getsockname()

    return listen


def fill(address: Any, family: int, stack: ExitStack) -> None:
    for _ in range(4):
        waiting = stack.enter_context(socket.socket(family))
        waiting.setblocking(False)
        waiting.connect_ex(address)


@pytest.fixture
def refusing(listening: Callable[..., Any], stack: ExitStack) -> Callable[..., Any]:
    """Return an address at which nothing listens, and nothing will."""

    def bind(host: str = '127.0.0.3') -> Any:
        bound = stack.enter_context(socket.socket())
        bound.bind((host, 0))
        return bound.getsockname()

    return bind


def found(*addresses: Any) -> list[AddressInfo]:
    return [
        (
            socket.AF_INET6 if ':' in address[0] else socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            '',
            address,
        )
        for address in addresses
    ]


def connect(*addresses: Any, timeout: float = 5, memory: AddressMemory | None = None) -> Any:
    """Return the address that was connected to, and the seconds that it took."""
    began = time.monotonic()
    with open_socket(
        'relay', 25, timeout, resolve=lambda *_name, **_options: found(*addresses), memory=memory
    ) as connection:
        return connection.getpeername(), time.monotonic() - began


def failure(*addresses: Any, timeout: float = 5, memory: AddressMemory | None = None) -> Any:
    began = time.monotonic()
    with pytest.raises(OSError, match=r'127') as caught:
        connect(*addresses, timeout=timeout, memory=memory)
    return str(caught.value), time.monotonic() - began


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was given to ``socket.socket``, one for each socket."""
    made = []
    real = socket.socket

    class Counted(real):  # type: ignore[valid-type, misc]
        def __init__(self, *kind: Any, **options: Any) -> None:
            made.append(kind)
            super().__init__(*kind, **options)

    monkeypatch.setattr(socket, 'socket', Counted)
    return made


# One address


def test_one_address(listening: Callable[..., Any], opened: list[Any]) -> None:
    """One socket is opened; it has the time-out, and does not wait for acknowledgements."""
    address = listening()
    before = len(opened)
    with open_socket(*address, 7) as connection:
        assert connection.gettimeout() == 7
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getpeername() == address
    assert len(opened) == before + 1


def test_no_address(opened: list[Any]) -> None:
    """A host without addresses is an error; no socket is opened."""
    with pytest.raises(OSError, match=r'^the host has no address$'):
        connect()
    assert opened == []


@pytest.mark.parametrize('error', [socket.gaierror(-2, 'unknown'), UnicodeError('no name')])
def test_a_name_that_cannot_be_resolved(error: Exception, opened: list[Any]) -> None:
    """The resolver's error reaches the caller; no socket is opened."""

    def resolve(*_name: object, **_options: object) -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        open_socket('relay', 25, 5, resolve=resolve)
    assert caught.value is error
    assert opened == []


# Several addresses


def test_the_first_refuses(
    listening: Callable[..., Any], refusing: Callable[..., Any], opened: list[Any]
) -> None:
    """The next one is tried at once."""
    dead, alive, other = refusing(), listening(), listening()
    before = len(opened)
    assert connect(dead, alive, other)[0] == alive
    assert len(opened) == before + 2


def test_the_first_never_answers(listening: Callable[..., Any], silent: Callable[..., Any]) -> None:
    """The next one is tried after a quarter of a second, not after the time-out."""
    alive = listening()
    address, seconds = connect(silent(), alive)
    assert address == alive
    assert ATTEMPT_DELAY <= seconds < ATTEMPT_DELAY + SLACK


def test_none_answers(silent: Callable[..., Any]) -> None:
    """The time-outs run side by side, and the error names each address."""
    text, seconds = failure(silent('127.0.0.2'), silent('127.0.0.3'), timeout=1.5)
    assert text == '127.0.0.2: timed out after 1.5 s; 127.0.0.3: timed out after 1.5 s'
    assert 1.75 <= seconds < 3, 'not one after the other'


def test_a_time_out_shorter_than_the_delay(
    listening: Callable[..., Any], silent: Callable[..., Any]
) -> None:
    """The next address does not wait for longer than the time-out."""
    alive = listening()
    address, seconds = connect(silent(), alive, timeout=0.05)
    assert address == alive
    assert 0.05 <= seconds < 0.05 + SLACK


def test_families_take_turns(listening: Callable[..., Any], silent: Callable[..., Any]) -> None:
    """After an IPv6 address that never answers an IPv4 address is next (RFC 8305, 4)."""
    try:
        six = [silent('::1', socket.AF_INET6) for _ in range(3)]
    except OSError:
        pytest.skip('this machine has no IPv6')
    alive = listening()
    address, seconds = connect(*six, alive)
    assert address == alive
    assert seconds < ATTEMPT_DELAY + SLACK


def test_a_family_that_the_system_lacks(
    listening: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without IPv6 the IPv4 addresses are tried; the error says so if none of them works."""
    real = socket.socket

    def make_socket(family: int, *kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *kind)

    alive = listening()
    monkeypatch.setattr(socket, 'socket', make_socket)
    assert connect(('2001:db8::1', 25, 0, 0), alive)[0] == alive
    text, _ = failure(('2001:db8::1', 25, 0, 0), ('127.0.0.1', 1))
    assert text == (
        '2001:db8::1: Address family not supported by protocol; 127.0.0.1: Connection refused'
    )


def test_two_connect_at_the_same_moment(listening: Callable[..., Any]) -> None:
    """A loop that sees both at once has one of them; the other is closed."""
    addresses = [listening(), listening()]
    with (
        selectors.DefaultSelector() as selector,
        ConnectRace(
            found(*addresses),
            timeout=5,
            delay=0,
            watch=partial(selector.register, events=selectors.EVENT_WRITE),
            unwatch=selector.unregister,
        ) as race,
    ):
        race.advance(time.monotonic())
        until(lambda: len(selector.select(0)) == 2)
        race.advance(time.monotonic(), [key.fileobj for key, _ in selector.select(0)])
        assert race.ended
        assert not selector.get_map()
        with race.take() as connection:
            assert connection.getpeername() == addresses[0]


def test_interrupted(silent: Callable[..., Any]) -> None:
    """Ctrl-C while two attempts wait leaves no socket open."""

    def interrupt(*_signal: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, ATTEMPT_DELAY + 0.1)
        with pytest.raises(KeyboardInterrupt):
            connect(silent('127.0.0.2'), silent('127.0.0.3'))
    finally:
        signal.signal(signal.SIGALRM, before)


# What is remembered


def test_the_address_that_worked_is_remembered(
    listening: Callable[..., Any], silent: Callable[..., Any], opened: list[Any]
) -> None:
    """The next connection tries it first; when it goes away the others are tried again."""
    memory = AddressMemory()
    dead, other = silent(), listening('127.0.0.4')

    def tried() -> int:
        """Connect, and return the number of attempts that it took."""
        before = len(opened)
        reached, _ = connect(dead, alive, other, memory=memory)
        assert memory.address == reached
        return len(opened) - before

    with socket.create_server(('127.0.0.1', 0)) as server:
        alive = server.getsockname()
        assert (tried(), memory.address) == (2, alive)
        assert (tried(), memory.address) == (1, alive)
    assert (tried(), memory.address) == (3, other)
    assert (tried(), memory.address) == (1, other)


def test_an_address_that_failed_is_forgotten(refusing: Callable[..., Any]) -> None:
    """If all addresses fail, none is remembered."""
    memory = AddressMemory()
    memory.address = refusing()
    text, _ = failure(refusing('127.0.0.4'), memory.address, memory=memory)
    assert text == '127.0.0.3: Connection refused; 127.0.0.4: Connection refused'
    assert memory.address is None


def test_a_relay_remembers(
    listening: Callable[..., Any],
    silent: Callable[..., Any],
    opened: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address of a mailer remembers for its connections, and for those of a forked child."""
    addresses = found(silent(), listening())
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_name, **_options: addresses)
    address = TCPAddress('relay', 25)

    def tried() -> int:
        before = len(opened)
        address.open(5).close()
        return len(opened) - before

    def work() -> None:
        assert tried() == 1

    assert (tried(), tried()) == (2, 1)
    assert reap(forked(work)) == 0


def test_a_memory_is_no_part_of_an_address() -> None:
    """Equality, hash and text are those of host and port; a copy has the memory."""
    address, other = TCPAddress('relay', 25), TCPAddress('relay', 25)
    address.memory.address = ('192.0.2.1', 25)
    assert other.memory.address is None
    assert address == other
    assert hash(address) == hash(other)
    assert repr(address) == "TCPAddress(host='relay', port=25)"
    for copied in (copy.deepcopy(address), pickle.loads(pickle.dumps(address))):
        assert copied == address
        assert copied.memory.address == ('192.0.2.1', 25)


@pytest.mark.parametrize(
    ('host', 'at_once'),
    [('192.0.2.1', True), ('::1', True), ('fe80::1%eth0', True), ('localhost', False)],
)
def test_which_hosts_need_no_resolver(host: str, at_once: bool) -> None:
    """IP addresses do not; a name does, even one that a file has."""
    assert TCPAddress(host, 25).resolves_at_once is at_once


# Unix sockets


def test_a_unix_socket(stack: ExitStack, tmp_path: Path) -> None:
    """It is opened with the time-out as its own."""
    server = stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(str(tmp_path / 'lmtp'))
    server.listen()
    address = UnixAddress(str(tmp_path / 'lmtp'))
    assert address.resolves_at_once
    with address.open(5) as connection:
        assert connection.gettimeout() == 5
        assert connection.getpeername() == address.path


def test_a_unix_socket_that_is_missing(tmp_path: Path) -> None:
    """The error says so."""
    with pytest.raises(OSError, match=r'^No such file or directory$'):
        UnixAddress(str(tmp_path / 'lmtp')).open(5)


def test_a_unix_socket_whose_backlog_is_full(stack: ExitStack, tmp_path: Path) -> None:
    """The connection waits for room, until the time-out."""
    path = str(tmp_path / 'lmtp')
    server = stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(path)
    server.listen(0)
    fill(path, socket.AF_UNIX, stack)
    began = time.monotonic()
    with pytest.raises(OSError, match=r'^timed out after 0\.2 s$'):
        UnixAddress(path).open(0.2)
    assert 0.2 <= time.monotonic() - began < 0.2 + SLACK

    def accept() -> None:
        for _ in range(2):
            server.accept()[0].close()

    timer = threading.Timer(0.1, accept)
    timer.start()
    with closing(UnixAddress(path).open(5)) as connection:
        assert connection.getpeername() == path
    timer.join()
    assert 0.3 <= time.monotonic() - began < 0.3 + SLACK


def test_several_threads(listening: Callable[..., Any], silent: Callable[..., Any]) -> None:
    """Connections at the same moment share a memory."""
    dead, alive, memory = silent(), listening(), AddressMemory()
    reached: list[Any] = []

    def work() -> None:
        reached.extend(connect(dead, alive, memory=memory)[0] for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert reached == [alive] * 24
    assert memory.address == alive
