"""The race of attempts to connect, with sockets and a clock that only look like ones."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.mailers.smtp.connect_race import (
    ATTEMPT_DELAY,
    BACKLOG_RETRY_DELAY,
    AddressInfo,
    AddressMemory,
    ConnectRace,
    interleaved,
)

TIMEOUT = 1.0


@dataclass(frozen=True)
class Answer:
    """What an address answers: an error number, 0 for success, so many seconds after an attempt
    began. ``inf``: it never answers."""

    code: int = 0
    after: float = inf


SILENCE = Answer()


class Network:
    """Addresses that answer as given, the sockets that were opened to them, and the time."""

    def __init__(self, answers: Iterable[Answer | BaseException], family: int = socket.AF_INET):
        self.answers = list(answers)
        self.family = family
        self.now = 100.0
        self.sockets: list[FakeSocket] = []
        self.watched: set[FakeSocket] = set()
        self.backlog_is_full = False

    def addresses(self) -> list[AddressInfo]:
        if self.family == socket.AF_UNIX:
            return [(self.family, socket.SOCK_STREAM, 0, '', '/0')]
        return [
            (self.family, socket.SOCK_STREAM, 6, '', (f'192.0.2.{number}', 25))
            for number in range(len(self.answers))
        ]

    def race(self, **options: Any) -> ConnectRace:
        return ConnectRace(
            self.addresses(),
            **({'timeout': TIMEOUT} | options),
            watch=self.watch,
            unwatch=self.unwatch,
            make_socket=lambda *_kind: FakeSocket(self),
        )

    def watch(self, connection: Any) -> None:
        assert connection not in self.watched
        assert not connection.closed
        self.watched.add(connection)

    def unwatch(self, connection: Any) -> None:
        self.watched.remove(connection)
        assert not connection.closed, 'a selector must drop it before'

    def writable(self) -> list[FakeSocket]:
        return [each for each in self.sockets if each in self.watched and each.at <= self.now]

    def run(self, race: ConnectRace) -> Any:
        """Drive the race to its end, and return the socket."""
        race.advance(self.now)
        while not race.ended:
            assert race.wake_at > self.now
            self.now = min([race.wake_at, *(each.at for each in self.watched)])
            race.advance(self.now, self.writable())
        return race.take()

    def open(self) -> list[FakeSocket]:
        return [each for each in self.sockets if not each.closed]


class FakeSocket:
    """A socket to the address that is next."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.closed = False
        self.blocking = True
        self.began = network.now
        self.connects: list[float] = []
        self.options: dict[int, int] = {}
        network.sockets.append(self)

    def connect_ex(self, address: Any) -> int:
        assert not self.blocking
        network = self.network
        self.connects.append(network.now)
        self.address = address
        self.number = int((address if isinstance(address, str) else address[0])[-1:])
        if network.backlog_is_full:
            return errno.EAGAIN
        answer = network.answers[self.number]
        if isinstance(answer, BaseException):
            raise answer
        self.code = answer.code
        self.at = network.now + answer.after
        return errno.EINPROGRESS if answer.after else answer.code

    def setblocking(self, flag: bool) -> None:
        self.blocking = flag

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        assert self.at <= self.network.now
        return self.code

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert level == socket.IPPROTO_TCP
        self.options[option] = value

    def close(self) -> None:
        self.closed = True


def began(network: Network) -> list[float]:
    """Return the seconds after which each attempt began."""
    return [pytest.approx(each.began - 100.0) for each in network.sockets]


REFUSED = Answer(errno.ECONNREFUSED, 0.01)


def test_the_first_address_answers() -> None:
    """One socket is opened, non-blocking and without Nagle's algorithm; nothing else is tried."""
    network = Network([Answer(after=0.1), SILENCE])
    with network.race() as race:
        connection = network.run(race)
    assert network.sockets == [connection]
    assert network.open() == [connection]
    assert not connection.blocking
    assert connection.options == {socket.TCP_NODELAY: 1}
    assert not network.watched
    assert race.wake_at == inf


def test_a_connect_that_succeeds_at_once() -> None:
    """There is nothing to wait for."""
    network = Network([Answer(after=0)])
    race = network.race()
    race.advance(network.now)
    assert race.ended
    assert race.take() is network.sockets[0]


@pytest.mark.parametrize('after', [0, 0.01])
def test_a_refusal_begins_the_next_attempt(after: float) -> None:
    """An address that refuses, at once or a little later, does not cost the delay."""
    network = Network([Answer(errno.ECONNREFUSED, after), Answer(after=0.1)])
    with network.race() as race:
        connection = network.run(race)
    assert began(network) == [0, after]
    assert network.open() == [connection]
    assert connection.number == 1


def test_silence_begins_the_next_attempt_beside_it() -> None:
    """An address that does not answer gets company after a quarter of a second, and may win."""
    network = Network([Answer(after=0.4), SILENCE, SILENCE])
    with network.race() as race:
        connection = network.run(race)
    assert began(network) == [0, 0.25]
    assert network.open() == [connection]
    assert connection.number == 0
    assert ATTEMPT_DELAY == 0.25


def test_time_outs_run_side_by_side() -> None:
    """Each address has its whole time-out, and the error names each."""
    network = Network([SILENCE] * 3)
    with network.race() as race, pytest.raises(OSError, match='timed out') as caught:
        network.run(race)
    assert str(caught.value) == '; '.join(
        f'192.0.2.{number}: timed out after 1 s' for number in range(3)
    )
    assert network.now - 100 == pytest.approx(TIMEOUT + 2 * ATTEMPT_DELAY)
    assert not network.open()


def test_a_time_out_shorter_than_the_delay() -> None:
    """The next attempt begins when the one before is given up."""
    network = Network([SILENCE, SILENCE])
    with network.race(timeout=0.1) as race, pytest.raises(OSError, match=r'after 0\.1 s; .*'):
        network.run(race)
    assert began(network) == [0, 0.1]
    assert network.now - 100 == pytest.approx(0.2)


def test_the_error_has_the_order_of_the_attempts() -> None:
    """Not in the order in which they failed."""
    network = Network([Answer(errno.EHOSTUNREACH, 0.5), REFUSED])
    with network.race() as race, pytest.raises(OSError, match='refused') as caught:
        network.run(race)
    assert str(caught.value) == '192.0.2.0: No route to host; 192.0.2.1: Connection refused'


def test_no_address() -> None:
    """A host without addresses ends the race at once."""
    network = Network([])
    with network.race() as race, pytest.raises(OSError, match=r'^the host has no address$'):
        network.run(race)


def test_a_socket_that_cannot_be_opened() -> None:
    """A family that the system lacks, or no file descriptor left: the next address is tried."""
    network = Network([Answer(after=0.1)] * 2)
    problems = [OSError(errno.EAFNOSUPPORT, 'Address family not supported by protocol')]

    def make_socket(*_kind: int) -> Any:
        if problems:
            raise problems.pop()
        return FakeSocket(network)

    race = ConnectRace(
        network.addresses(),
        timeout=TIMEOUT,
        watch=network.watch,
        unwatch=network.unwatch,
        make_socket=make_socket,
    )
    assert network.run(race).number == 1
    assert began(network) == [0]


def test_several_connect_at_the_same_moment() -> None:
    """The one that was tried first wins, and the other is closed."""
    network = Network([Answer(after=0.5), Answer(after=0.25)])
    with network.race() as race:
        race.advance(network.now)
        network.now += ATTEMPT_DELAY
        race.advance(network.now)
        network.now += ATTEMPT_DELAY
        race.advance(network.now, network.writable()[::-1])
        connection: Any = race.take()
    assert len(network.sockets) == 2
    assert network.open() == [connection]
    assert connection.number == 0


def test_an_answer_that_is_noticed_late() -> None:
    """A socket that has connected wins, even if its time-out is over when the caller looks."""
    network = Network([Answer(after=0.5)])
    with network.race() as race:
        race.advance(network.now)
        network.now += 2 * TIMEOUT
        race.advance(network.now, network.writable())
        assert race.take() is network.sockets[0]


def test_unknown_sockets_and_calls_after_the_end() -> None:
    """A late event, about a socket that was closed, does nothing."""
    network = Network([SILENCE, Answer(after=0.1), SILENCE])
    with network.race() as race:
        race.advance(network.now, [object()])
        network.run(race)
        race.advance(network.now + 1, network.sockets)
    assert len(network.sockets) == 2


def test_closing_ends_the_race() -> None:
    """Leaving the ``with`` block closes what was not taken: attempts, and the one that has won."""
    network = Network([SILENCE, SILENCE])
    with network.race() as race:
        race.advance(network.now)
        network.now += ATTEMPT_DELAY
        race.advance(network.now)
        assert len(network.open()) == 2
    assert not network.open()
    assert not network.watched
    assert (race.ended, race.wake_at) == (True, inf)
    network = Network([Answer(after=0)])
    with network.race() as race:
        race.advance(network.now)
        assert len(network.open()) == 1
    assert not network.open()


@pytest.mark.parametrize('error', [OverflowError('port'), KeyboardInterrupt()])
def test_an_error_of_another_kind(error: BaseException) -> None:
    """Ctrl-C, or a port that is none, closes all sockets without leaving a ``with`` block."""
    network = Network([SILENCE, error])
    race = network.race()
    with pytest.raises(type(error)):
        network.run(race)
    assert len(network.sockets) == 2
    assert not network.open()
    assert not network.watched


def test_a_caller_that_cannot_watch() -> None:
    """A selector that raises leaves no socket open."""
    network = Network([SILENCE])

    def watch(connection: Any) -> None:
        raise ZeroDivisionError

    race = ConnectRace(
        network.addresses(),
        timeout=TIMEOUT,
        watch=watch,
        unwatch=network.unwatch,
        make_socket=lambda *_kind: FakeSocket(network),
    )
    with pytest.raises(ZeroDivisionError):
        race.advance(network.now)
    assert len(network.sockets) == 1
    assert not network.open()


def test_a_connection_that_is_reset_at_once() -> None:
    """If the options of a connected socket cannot be set, the next address is tried."""
    network = Network([Answer(after=0.1), Answer(after=0.1)])

    def setsockopt(*_option: int) -> None:
        raise OSError(errno.EINVAL, 'Invalid argument')

    race = network.race()
    race.advance(network.now)
    network.sockets[0].setsockopt = setsockopt  # type: ignore[method-assign]
    assert network.run(race).number == 1
    assert len(network.open()) == 1


# Unix sockets


def test_a_unix_socket() -> None:
    """It connects at once, and TCP's options are not set."""
    network = Network([Answer(after=0)], socket.AF_UNIX)
    with network.race() as race:
        assert network.run(race).options == {}


def test_a_unix_socket_that_is_missing() -> None:
    """The error has no path, which the caller knows."""
    network = Network([Answer(errno.ENOENT, 0)], socket.AF_UNIX)
    with network.race() as race, pytest.raises(OSError, match=r'^No such file or directory$'):
        network.run(race)


def test_a_unix_socket_whose_backlog_is_full() -> None:
    """The same socket tries again until there is room, and nothing is watched meanwhile."""
    network = Network([Answer(after=0)], socket.AF_UNIX)
    network.backlog_is_full = True
    with network.race() as race:
        race.advance(network.now)
        for _ in range(3):
            assert race.wake_at - network.now == pytest.approx(BACKLOG_RETRY_DELAY)
            race.advance(network.now)
            network.now = race.wake_at
            race.advance(network.now)
        assert not network.watched
        network.backlog_is_full = False
        connection = network.run(race)
    assert len(connection.connects) == 5
    assert len(network.sockets) == 1


def test_a_unix_socket_whose_backlog_stays_full() -> None:
    """The time-out ends it."""
    network = Network([Answer(after=0)], socket.AF_UNIX)
    network.backlog_is_full = True
    with network.race() as race, pytest.raises(OSError, match=r'^timed out after 1 s$'):
        network.run(race)
    assert network.now - 100 == pytest.approx(TIMEOUT, abs=BACKLOG_RETRY_DELAY)
    assert not network.open()


def test_eagain_of_tcp_is_a_failure() -> None:
    """Only a Unix socket says so of a full backlog."""
    network = Network([Answer(errno.EAGAIN, 0), Answer(after=0.1)])
    with network.race() as race:
        assert network.run(race).number == 1
    assert began(network) == [0, 0]


# Which address comes first


def info(family: int, address: str) -> AddressInfo:
    return (family, socket.SOCK_STREAM, 6, '', (address, 25))


SIX = [info(socket.AF_INET6, each) for each in ('2001:db8::1', '2001:db8::2', '2001:db8::3')]
FOUR = [info(socket.AF_INET, each) for each in ('192.0.2.1', '192.0.2.2')]


def test_families_take_turns() -> None:
    """RFC 8305, 4: the family that the system prefers comes first, then they alternate."""
    assert interleaved([*SIX, *FOUR]) == [SIX[0], FOUR[0], SIX[1], FOUR[1], SIX[2]]
    assert interleaved([*FOUR, *SIX]) == [FOUR[0], SIX[0], FOUR[1], SIX[1], SIX[2]]
    assert interleaved(FOUR) == FOUR
    assert interleaved([]) == []


def test_the_remembered_address_comes_first() -> None:
    """It is followed by the other family; one that the host has no more is ignored."""
    addresses = [*SIX, *FOUR]
    assert interleaved(addresses, first=FOUR[1][4]) == [FOUR[1], SIX[0], FOUR[0], SIX[1], SIX[2]]
    assert interleaved(addresses, first=('192.0.2.9', 25)) == interleaved(addresses)


def test_the_winner_is_remembered() -> None:
    """The next connection tries the address that worked first, and opens one socket."""
    memory = AddressMemory()
    network = Network([SILENCE, Answer(after=0.1)])
    for sockets in (2, 3):
        with network.race(memory=memory) as race:
            assert network.run(race).number == 1
        assert len(network.sockets) == sockets
    assert memory.address == ('192.0.2.1', 25)


def test_a_remembered_address_that_goes_away() -> None:
    """The others are tried: at once if it refuses, after the delay if it is silent."""
    memory = AddressMemory()
    network = Network([Answer(after=0.1), SILENCE, Answer(after=0.1)])
    for before, answer, delay in ((1, REFUSED, 0.01), (1, SILENCE, 0.25)):
        memory.address = (f'192.0.2.{before}', 25)
        network.answers[before] = answer
        start = network.now
        with network.race(memory=memory) as race:
            assert network.run(race).number == 0
        assert network.now - start == pytest.approx(delay + 0.1)
        # The first of the list works: the list decides again.
        assert memory.address is None


def test_a_remembered_address_that_fails_is_forgotten() -> None:
    """If all fail, nothing is remembered; what another thread has remembered since is kept."""
    memory = AddressMemory()
    memory.address = ('192.0.2.1', 25)
    network = Network([REFUSED, REFUSED])
    with network.race(memory=memory) as race, pytest.raises(OSError, match='refused'):
        network.run(race)
    assert [each.number for each in network.sockets] == [1, 0]
    assert memory.address is None
    race = network.race(memory=memory)
    race.advance(network.now)
    memory.address = ('192.0.2.7', 25)
    with pytest.raises(OSError, match='refused'):
        network.run(race)
    assert memory.address == ('192.0.2.7', 25)


# Any order of answers

answers = st.builds(
    Answer,
    st.sampled_from([0, 0, errno.ECONNREFUSED, errno.ENETUNREACH, errno.ETIMEDOUT]),
    st.sampled_from([0, 0.01, 0.1, 0.25, 0.26, 0.5, 0.99, 1.0, 1.01, inf]),
)


def ends_at(attempt: FakeSocket, timeout: float) -> float:
    return min(attempt.at, attempt.began + timeout)


@given(
    st.lists(answers, max_size=6),
    st.lists(st.floats(0, 1), max_size=30),
    st.sampled_from([0.05, 0.25, 1.0]),
    st.none() | st.integers(0, 6),
)
def test_any_order_of_answers(
    given_answers: list[Answer], early: list[float], timeout: float, remembered: int | None
) -> None:
    """One socket at most is left, no attempt begins before or after its time, and the error names
    each address; however often the caller wakes up early."""
    network = Network(given_answers)
    memory = AddressMemory()
    memory.address = None if remembered is None else (f'192.0.2.{remembered}', 25)
    race = network.race(timeout=timeout, memory=memory)
    race.advance(network.now)
    while not race.ended:
        assert race.wake_at > network.now
        due = min([race.wake_at, *(each.at for each in network.watched)])
        network.now = due if not early else network.now + (due - network.now) * early.pop()
        race.advance(network.now, network.writable())
    end = network.now
    assert not network.watched
    for before, after in zip(network.sockets, network.sockets[1:], strict=False):
        earlier = network.sockets[: network.sockets.index(after)]
        failures = [ends_at(each, timeout) for each in earlier]
        latest = min([before.began + ATTEMPT_DELAY, *(t for t in failures if t > before.began)])
        soonest = min([before.began + ATTEMPT_DELAY, *(t for t in failures if t >= before.began)])
        assert soonest <= after.began <= latest
    tried = [each.address for each in network.sockets]
    if not network.open():
        with pytest.raises(OSError, match=r'timed out|refused|unreachable|no address') as caught:
            race.take()
        named = [each.partition(':')[0] for each in str(caught.value).split('; ')]
        assert named == ([host for host, _ in tried] or ['the host has no address'])
        assert len(tried) == len(given_answers)
        assert memory.address not in tried
        return
    connection: Any = race.take()
    assert network.open() == [connection]
    first = connection.address == ('192.0.2.0', 25)
    assert memory.address == (None if first else connection.address)
    in_time = [each for each in network.sockets if each.at == ends_at(each, timeout)]
    assert end == connection.at == min(each.at for each in in_time if not each.code)
    assert not connection.code
