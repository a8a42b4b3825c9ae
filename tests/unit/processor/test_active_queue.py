"""What the workers share: which mail is next, and whether it is worth while to try."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.processor.active_queue import BLOCK, ActiveQueue
from pyramid_sendmail.processor.circuit_breaker import (
    CROWDED_PAUSE,
    HELP,
    LONGEST_PAUSE,
    CircuitBreaker,
    ConcurrencyController,
)
from pyramid_sendmail.processor.rate_limiter import RateLimiter
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.queues import Clock, until

REFUSED = MailerUnavailable('smtp://relay.example.org:25: connecting: Connection refused')


class Worker(threading.Thread):
    """A thread that does one thing at a time, for a test that plays several workers."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._jobs: list[Callable[[], Any]] = []
        self._changed = threading.Condition()
        self._results: list[Any] = []
        self.start()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs.pop()
            result = job()
            with self._changed:
                self._results.append(result)
                self._changed.notify_all()
            if job == self.end:
                return

    def begin(self, job: Callable[[], Any]) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def result(self) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: self._results, 10)
            return self._results.pop()

    def do(self, job: Callable[[], Any]) -> Any:
        self.begin(job)
        return self.result()

    def end(self) -> None:
        """The last job."""


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    crew = [Worker() for _ in range(3)]
    yield crew
    for worker in crew:
        worker.begin(worker.end)
        worker.join(10)


def fresh(name: str) -> Ticket:
    return Ticket('new', name, name)


def retried(name: str) -> Ticket:
    return Ticket('deferred', name, name)


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


# The gate


def test_one_worker_tries_while_nobody_knows(workers: list[Worker]) -> None:
    """At first, too: a closed road costs one connect, however many workers there are."""
    gate = CircuitBreaker(Clock(0.0))
    ann, bob, eve = workers
    assert ann.do(gate.admit) == 0
    assert bob.do(gate.admit) > 0
    ann.do(gate.enter)
    assert bob.do(gate.admit) == 0
    assert eve.do(gate.admit) == 0, 'whoever comes, for somebody has a session'
    for worker in (ann, bob):
        worker.do(gate.enter)
        worker.do(gate.leave)
    assert bob.do(gate.admit) == 0
    assert ann.do(gate.admit) > 0, 'everybody had left'


def test_a_worker_that_leaves_without_a_session_lets_another_try(workers: list[Worker]) -> None:
    """Nobody waits for ever for somebody who has failed over something else."""
    gate = CircuitBreaker(Clock(0.0))
    ann, bob, _ = workers
    ann.do(gate.admit)
    bob.do(gate.leave)
    assert bob.do(gate.admit) > 0
    ann.do(gate.leave)
    assert bob.do(gate.admit) == 0


def test_the_pause_grows(caplog: pytest.LogCaptureFixture) -> None:
    """1, 2, 4 ... seconds, five minutes at most, a fifth by chance; one line in the log."""
    caplog.set_level(logging.INFO)
    clock = Clock(0.0)
    gate = CircuitBreaker(clock)
    for step in range(12):
        assert gate.admit() == 0
        assert gate.failed(REFUSED) == 0
        pause = min(2.0**step, LONGEST_PAUSE)
        assert 0.8 * pause <= gate.closed_for() <= 1.2 * pause
        assert gate.admit() == gate.closed_for()
        clock.now += gate.closed_for()
    assert gate.closed_for() == 0
    assert levels(caplog) == ['ERROR']
    assert 'Connection refused' in caplog.text
    gate.admit()
    gate.enter()
    gate.answered()
    gate.answered()
    assert levels(caplog) == ['ERROR', 'WARNING']
    assert 'after 12 failures' in caplog.text
    gate.failed(REFUSED)
    assert gate.closed_for() <= 1.2, 'it starts over'
    assert levels(caplog) == ['ERROR', 'WARNING', 'ERROR']


def test_a_new_reason_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The relay is up again, but the password is wrong now: the log says so."""
    caplog.set_level(logging.INFO)
    clock = Clock(0.0)
    gate = CircuitBreaker(clock)
    for error in (REFUSED, REFUSED, MailerUnavailable('535; see mail.password'), REFUSED):
        gate.admit()
        gate.failed(error)
        clock.now += 1000
    assert levels(caplog) == ['ERROR'] * 3
    assert 'see mail.password' in caplog.text


@pytest.mark.parametrize('chance', [0.0, 0.5, 1.0])
def test_chance_spreads_the_pauses(chance: float) -> None:
    """A fifth less or more, at every step, also at the longest one."""
    clock = Clock(0.0)
    gate = CircuitBreaker(clock, chance=lambda: chance)
    for step in range(40):
        gate.admit()
        gate.failed(REFUSED)
        pause = min(2.0**step, LONGEST_PAUSE)
        assert gate.closed_for() == pytest.approx(pause * (0.8 + 0.4 * chance))
        clock.now += gate.closed_for() + 1e-6


SAME = (
    (
        '421 4.7.0 try again later. (EHLO) 5b1f17b1804b1-4318c0d05bcsm1234 - gsmtp',
        '421 4.7.0 try again later. (EHLO) ffacd0b85a97d-3823ad47b3csm9 - gsmtp',
    ),
    (
        'smtp://relay.example.org:25: connecting: 192.0.2.1: timed out after 30 s',
        'smtp://relay.example.org:25: connecting: 192.0.2.2: timed out after 30 s',
    ),
    (
        '554 5.7.1 no [DB3.example.com 2026-11-23T08:50:06.123Z 08DC]',
        '554 5.7.1 no [AM6.example.com 2026-11-23T08:51:07.001Z 09AB]',
    ),
)

OTHERS = (
    ('the relay answered 421 busy', 'the relay answered 451 busy'),
    ('the relay answered 454 4.7.0 no', 'the relay answered 454 4.7.8 no'),
    (
        'AUTH: the relay answered 535; see mail.username',
        'AUTH: the relay answered 534; see mail.username',
    ),
    ('the greeting: the relay answered 421', 'EHLO: the relay answered 421'),
)


@pytest.mark.parametrize(
    ('first', 'second', 'lines'), [(*each, 1) for each in SAME] + [(*each, 2) for each in OTHERS]
)
def test_what_counts_as_a_new_reason(
    first: str, second: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the time nor the number of a session, which relays write into each of their
    refusals; another code or another phase does."""
    caplog.set_level(logging.DEBUG)
    clock = Clock(0.0)
    gate = CircuitBreaker(clock)
    for text in (first, second, second):
        gate.admit()
        gate.failed(MailerUnavailable(text))
        clock.now += 1000
    assert levels(caplog) == ['ERROR'] * lines + ['DEBUG'] * (3 - lines)
    assert first in caplog.text
    assert second in caplog.text, 'whole, for whoever debugs'


def test_a_session_alone_proves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Connected, and 530 at MAIL, again and again: the pause grows, and the log has one line."""
    clock = Clock(0.0)
    gate = CircuitBreaker(clock)
    for step in range(5):
        assert gate.admit() == 0
        gate.enter()
        gate.failed(MailerUnavailable('530'))
        assert gate.closed_for() >= 0.8 * 2.0**step
        clock.now += 100
    assert levels(caplog) == ['ERROR']


def test_many_workers_are_told_the_same(
    workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    """Those who fail together count once, and have one line, whatever words each was told."""
    caplog.set_level(logging.DEBUG)
    gate = CircuitBreaker(Clock(0.0))
    ann, bob, _ = workers
    ann.do(gate.admit)
    ann.do(gate.enter)
    bob.do(gate.admit)
    ann.do(lambda: gate.failed(REFUSED))
    bob.do(lambda: gate.failed(MailerUnavailable('421 4.3.2 closing')))
    assert gate.closed_for() <= 1.2
    assert levels(caplog) == ['ERROR', 'DEBUG']


def test_a_crowd_is_no_closed_road(workers: list[Worker], caplog: pytest.LogCaptureFixture) -> None:
    """A relay that takes two connections, and four workers: who finds no way in rests, the others
    go on, and nobody says that nothing can be sent."""
    caplog.set_level(logging.INFO)
    gate = CircuitBreaker(Clock(0.0))
    ann, bob, eve = workers
    ann.do(gate.admit)
    ann.do(gate.enter)
    bob.do(gate.admit)
    assert bob.do(lambda: gate.failed(MailerUnavailable('421 too many'))) == CROWDED_PAUSE
    assert gate.closed_for() == 0
    assert ann.do(lambda: gate.passable)
    assert eve.do(gate.admit) == 0
    assert levels(caplog) == ['INFO']


def test_a_queue_that_cannot_be_used_stops_everybody(
    workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is sending takes no further mail; his next answer does not open the gate again."""
    gate = CircuitBreaker(Clock(0.0))
    ann, bob, _ = workers
    for worker in (ann, bob):
        worker.do(gate.admit)
        worker.do(gate.enter)
    assert ann.do(lambda: gate.failed(QueueError(errno.ENOSPC, 'full'))) == 0
    assert not bob.do(lambda: gate.passable)
    bob.do(gate.answered)
    assert gate.closed_for() > 0
    assert bob.do(gate.admit) > 0
    assert levels(caplog) == ['ERROR']


# What is pending


def taken(pending: ActiveQueue) -> list[str]:
    names = []
    while (ticket := pending.take()) is not None:
        names.append(ticket.order)
    return names


def test_fresh_and_retried_mail_in_turn() -> None:
    """20,000 deferred mails do not keep a fresh one waiting, and the other way round; each kind in
    the order of its names, whenever it came."""
    pending = ActiveQueue()
    pending.fill([retried(f'5-r{n}') for n in range(4)])
    pending.fill([fresh('5-f1'), fresh('5-f2')], fresh=True)
    pending.fill([fresh('1-f')], fresh=True)
    assert taken(pending) == ['1-f', '5-r0', '5-f1', '5-r1', '5-f2', '5-r2', '5-r3']


def test_no_order_where_another_processor_works() -> None:
    """Two processors that take the same mails in the same order would take each in vain once. After
    a mail that somebody else has, the next block has no order; after a block in which nobody had
    any, there is order again. Each mail is there once."""
    names = [f'5-{number:03d}' for number in range(2 * BLOCK + 9)]
    blocks = []
    for _ in range(2):
        pending = ActiveQueue()
        pending.fill([fresh(name) for name in names])
        pending.missed(pending.take())
        blocks.append([pending.take().order for _ in range(BLOCK)])
        assert sorted(blocks[-1]) == names[1 : BLOCK + 1]
        assert len(pending) == BLOCK + 8
        assert taken(pending) == names[BLOCK + 1 :]
    assert blocks[0] != blocks[1]


def test_urgent_mail_goes_first_where_another_processor_works() -> None:
    """A block is of one priority, and what is more urgent than all of it does not wait for it."""
    pending = ActiveQueue()
    urgent = [f'1-{number:02d}' for number in range(10)]
    pending.fill([fresh(name) for name in urgent])
    pending.fill([fresh(f'5-{number:02d}') for number in range(10)])
    pending.missed(fresh('1'))
    assert all(pending.take().order in urgent for _ in range(5))
    pending.fill([fresh('0')], fresh=True)
    assert pending.take() == fresh('0')
    assert all(pending.take().order in urgent for _ in range(5))
    assert len(pending.unexamined()) == 10
    assert taken(pending) == [f'5-{number:02d}' for number in range(10)]


def test_nobody_wakes_for_a_mail_that_was_not_to_be_had() -> None:
    """Where no rate keeps them from it, those who wait have had their chance."""
    woken = []

    class Heard(threading.Condition):
        def notify_all(self) -> None:
            woken.append(1)
            super().notify_all()

    for rate, count in ((None, 0), ((1, 10), 1)):
        pending = ActiveQueue(RateLimiter(rate))
        pending.fill([fresh('a')])
        ticket = pending.take()
        pending._changed = Heard()
        pending.unsent(ticket)
        assert len(woken) == count


def test_nothing_twice() -> None:
    """What is pending, or being worked on, is not added again; afterwards it may be."""
    pending = ActiveQueue()
    for _ in range(2):
        pending.fill([fresh('a'), fresh('b')])
    assert len(pending) == 2
    assert pending.take() == fresh('a')
    pending.fill([fresh('a'), fresh('b')])
    assert taken(pending) == ['b']
    pending.worked()
    pending.fill([fresh('a')])
    assert taken(pending) == ['a']


def test_more_than_can_be_kept() -> None:
    """A full look that was cut short asks for another when all has gone; a look at fresh mail in
    between changes nothing about that."""
    pending = ActiveQueue()
    pending.fill([retried('a')], more=True)
    assert not pending.exhausted
    pending.fill([fresh('b')], fresh=True)
    taken(pending)
    assert pending.exhausted
    pending.fill([])
    assert not pending.exhausted


def test_more_is_looked_for_in_time() -> None:
    """While an eighth is still there, so that nobody waits for the look; and one worker is told to
    ask for it, once until it has come."""
    pending = ActiveQueue()
    assert not pending.tell()
    pending.fill([fresh(f'{number:02d}') for number in range(16)], more=True)
    for _ in range(13):
        pending.take()
        assert not pending.exhausted
        assert not pending.tell()
    pending.take()
    assert len(pending) == 2
    assert pending.running_low
    assert [pending.tell(), pending.tell()] == [True, False]
    # The first of a look that goes on, and what came meanwhile.
    pending.fill([fresh('a')], fresh=True)
    assert not pending.exhausted
    pending.take()
    assert [pending.tell(), pending.tell()] == [True, False]
    pending.fill([])
    assert not pending.exhausted
    assert not pending.tell()


def test_what_was_given_back_is_told_again_behind_fresh_mail() -> None:
    """Whoever was told of it found fresh mail there, and saw nothing to do."""
    pending = ActiveQueue()
    pending.fill([retried('a')])
    pending.take()
    pending.worked(again=True)
    assert pending.tell()
    pending.fill([fresh('b')], fresh=True)
    assert not pending.exhausted
    pending.take()
    pending.worked()
    assert pending.tell()


def test_what_is_here_is_known() -> None:
    """From the look that found it until its work is done."""
    pending = ActiveQueue()
    assert not pending.knows(fresh('a'))
    pending.fill([fresh('a')])
    assert pending.knows(fresh('a'))
    pending.take()
    assert pending.knows(fresh('a'))
    pending.worked()
    assert not pending.knows(fresh('a'))


def test_what_was_given_back_is_looked_for() -> None:
    """Mail that was taken and released by a closed road is found without waiting for the poll."""
    pending = ActiveQueue()
    pending.fill([fresh('a')])
    pending.take()
    pending.worked(again=True)
    assert pending.exhausted


def test_one_mail_admits_one_worker(workers: list[Worker]) -> None:
    """No more workers pass than there are tickets."""
    pending = ActiveQueue()

    def work() -> Any:
        return pending.await_work(lambda: 0.0, idle=lambda: None)

    for worker in workers:
        worker.begin(work)
    pending.fill([fresh('a')])
    until(lambda: pending.working == 1)
    pending.fill([fresh('a')])
    assert pending.working == 1
    pending.fill([fresh('b')])
    until(lambda: pending.working == 2)
    pending.close()
    assert sorted(worker.result() for worker in workers) == [False, True, True]


def test_who_worked_last_comes_first(workers: list[Worker]) -> None:
    """Mail after mail goes to the same worker, who has a session; another one takes over only while
    that one is busy."""
    pending = ActiveQueue()

    def work() -> Any:
        return pending.await_work(lambda: 0.0, idle=lambda: None)

    for number, worker in enumerate(workers, 1):
        worker.begin(work)
        until(lambda number=number: pending.waiting == number)  # type: ignore[misc]
    last = workers[-1]
    for name in 'abc':
        pending.fill([fresh(name)])
        assert last.result() is True
        assert last.do(pending.take) == fresh(name)
        assert pending.waiting == 2
        if name == 'c':
            break
        last.do(pending.worked)
        last.begin(work)
        until(lambda: pending.waiting == 3)
    pending.fill([fresh('d')])
    assert workers[1].result() is True
    pending.close()
    assert workers[0].result() is False


def test_who_waits_for_admission_is_nudged(workers: list[Worker]) -> None:
    """Whoever was told to wait asks again as soon as another one has found the road open."""
    pending = ActiveQueue()
    pending.fill([fresh('a')])
    answers = [0.0, 3600.0]
    worker = workers[0]
    worker.begin(lambda: pending.await_work(answers.pop, idle=lambda: None))
    until(lambda: len(answers) == 1)
    pending.nudge()
    assert worker.result() is True


def test_who_has_nothing_to_do_gives_its_session_up(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute without work ``idle`` is called, without any lock held."""
    monkeypatch.setattr('pyramid_sendmail.processor.active_queue.IDLE', 0.01)
    pending = ActiveQueue()
    idle = threading.Event()
    workers[0].begin(lambda: pending.await_work(lambda: 0.0, idle=idle.set))
    assert idle.wait(10)
    pending.close()
    assert workers[0].result() is False


def test_rest(workers: list[Worker]) -> None:
    """A pause ends with the end; the wait for the rest, when nothing is left or at the end."""
    pending = ActiveQueue()
    workers[0].begin(lambda: pending.rest(3600))
    workers[1].begin(lambda: pending.await_rest(3600))
    assert workers[1].result() is True, 'there is nothing'
    pending.fill([fresh('a')])
    assert pending.await_rest(0.001) is False
    workers[1].begin(lambda: pending.await_rest(3600))
    pending.close()
    assert workers[0].result() is None
    assert workers[1].result() is True
    assert pending.take() is None
    assert pending.closed


def test_examined_once() -> None:
    """While the road is closed each mail is looked into once, not at every step."""
    pending = ActiveQueue()
    pending.fill([fresh('b'), retried('a')])
    assert pending.unexamined() == [retried('a'), fresh('b')]
    assert pending.unexamined() == []
    pending.fill([fresh('c')])
    assert pending.unexamined() == [fresh('c')]


# At a pace


def paced(mails: int, seconds: int = 1) -> tuple[ActiveQueue, Clock]:
    """What is pending at a pace, and its clock."""
    clock = Clock(0.0)
    return ActiveQueue(RateLimiter((mails, seconds), monotonic=clock)), clock


def test_no_ticket_without_a_place() -> None:
    """It never waits, and the ticket stays; what was sent is forgotten, its place is not."""
    pending, clock = paced(2)
    pending.fill([fresh(name) for name in 'abcd'])
    assert taken(pending) == ['a', 'b']
    assert len(pending) == 2
    pending.worked()
    assert taken(pending) == []
    clock.now += 1
    assert taken(pending) == ['c', 'd']


def test_a_place_of_what_does_not_leave_is_another_ones() -> None:
    """Claimed by somebody else, expired, or given back by a closed road; once."""
    pending, _ = paced(1)
    pending.fill([fresh('a'), fresh('b'), fresh('c')])
    assert pending.take() == fresh('a')
    for _ in range(2):
        pending.unsent(fresh('a'))
    assert taken(pending) == ['b']
    pending.unsent(fresh('c'))
    assert taken(pending) == []
    pending.worked()
    pending.unsent(fresh('b'))
    assert taken(pending) == [], 'somebody else has it now'


def test_one_place_admits_one_worker(workers: list[Worker]) -> None:
    """No more workers pass than there are places, so that no connection is opened in vain."""
    pending, clock = paced(2)

    def work() -> Any:
        return pending.await_work(lambda: 0.0, idle=lambda: None)

    pending.fill([fresh(name) for name in 'abc'])
    for worker in workers:
        worker.begin(work)
    until(lambda: (pending.working, pending.waiting) == (2, 1))
    pending.nudge()
    clock.now += 0.5
    assert (pending.working, pending.waiting) == (2, 1)
    pending.close()
    assert sorted(worker.result() for worker in workers) == [False, True, True]


def test_who_waits_for_a_place_gets_it(workers: list[Worker]) -> None:
    """When its time has come, without being woken; or at once, when one is given back."""
    pending = ActiveQueue(RateLimiter((20, 1)))
    pending.fill([fresh(f'{number:02}') for number in range(30)])
    assert len(taken(pending)) == 20
    workers[0].begin(lambda: pending.await_work(lambda: 0.0, idle=lambda: None))
    assert workers[0].result() is True
    pending, _ = paced(1, 3600)
    pending.fill([fresh('a'), fresh('b')])
    pending.take()
    workers[1].begin(lambda: pending.await_work(lambda: 0.0, idle=lambda: None))
    until(lambda: pending.waiting == 1)
    pending.unsent(fresh('a'))
    assert workers[1].result() is True


def test_who_waits_long_for_a_place_gives_its_session_up(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mail an hour needs no connection in between; and the end ends the wait at once."""
    monkeypatch.setattr('pyramid_sendmail.processor.active_queue.IDLE', 0.01)
    pending, _ = paced(1, 3600)
    pending.fill([fresh('a'), fresh('b')])
    pending.take()
    idle = threading.Event()
    workers[0].begin(lambda: pending.await_work(lambda: 0.0, idle=idle.set))
    assert idle.wait(10)
    pending.close()
    assert workers[0].result() is False


# Whether one more worker is of any help


class Held:
    """A turn whose time only a test knows."""

    def __init__(self) -> None:
        self.worked = 0.0


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def help(held: Any, clock: Clock) -> ConcurrencyController:
    return ConcurrencyController(held, monotonic=clock)


def test_the_first_worker_is_always_of_help(help: ConcurrencyController, held: Held) -> None:
    """Mail that comes to an idle processor waits for nothing."""
    held.worked = 500.0
    assert help.wait(0) == 0


def test_nobody_joins_one_who_always_works(
    help: ConcurrencyController, held: Held, clock: Clock
) -> None:
    """A relay on the same machine is served by one worker."""
    assert help.wait(0) == 0
    held.worked = 0.001
    assert 0 < help.wait(1) <= HELP
    for _ in range(5):
        clock.now += 1.01 * HELP
        held.worked += HELP * 0.9
        assert help.wait(1) == HELP


def test_as_many_more_join_those_who_wait(
    help: ConcurrencyController, held: Held, clock: Clock
) -> None:
    """A relay far away is served by all, who have joined after a few looks."""
    assert help.wait(0) == 0
    held.worked = 0.001
    working = 1
    for joining in (1, 2, 4):
        assert 0 < help.wait(working) <= HELP
        clock.now += 1.01 * HELP
        held.worked += HELP * 0.1
        for _ in range(joining):
            assert help.wait(working) == 0
            working += 1
    assert 0 < help.wait(working) <= HELP


def test_all_join_where_nobody_takes_turns(help: ConcurrencyController) -> None:
    """A session that does not say when it waits may wait all the time."""
    assert [help.wait(working) for working in range(4)] == [0, 0, 0, 0]
