"""The active queue: which mail is next, and which worker takes it."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from pyramid_sendmail.processor.active_queue import CONTENTION_BLOCK, ActiveQueue
from pyramid_sendmail.queue.ticket import Ticket
from pyramid_sendmail.sending.rate_limiter import RateLimiter
from tests.support.processors import WorkerThread
from tests.support.queues import Clock, until


def fresh(name: str) -> Ticket:
    return Ticket('new', name, name)


def retried(name: str) -> Ticket:
    return Ticket('deferred', name, name)


def taken(active: ActiveQueue) -> list[str]:
    names = []
    while (ticket := active.pop('ann')) is not None:
        names.append(ticket.order)
    return names


def test_fresh_and_retried_mail_in_turn() -> None:
    """New and deferred mail do not delay each other; each kind keeps its order."""
    active = ActiveQueue()
    active.add([retried(f'5-r{n}') for n in range(4)])
    active.add([fresh('5-f1'), fresh('5-f2')], fresh=True)
    active.add([fresh('1-f')], fresh=True)
    assert taken(active) == ['1-f', '5-r0', '5-f1', '5-r1', '5-f2', '5-r2', '5-r3']


def test_throttled_mail_in_turn_with_the_rest() -> None:
    """A mail that is put back each time because it is throttled holds up no other one, whatever its
    priority, and is not held up itself; the others that were throttled have their turn too."""
    active = ActiveQueue()
    active.add([fresh(f'{priority}-f') for priority in range(1, 7)])
    active.add([retried('5-r')])
    order = []
    for _ in range(12):
        ticket = active.pop('ann')
        assert ticket is not None
        order.append(ticket.order)
        if ticket.order in ('1-f', '2-f'):
            active.put_back(ticket, throttled=True)
    first, second = order[0::2], order[1::2]
    assert first == ['1-f', '1-f', '1-f', '2-f', '1-f', '2-f']
    assert second == ['5-r', '2-f', '3-f', '4-f', '5-f', '6-f']
    assert len(active) == 2
    active.put_back(fresh('3-f'))
    assert active.backlog(0.0)[0] == 3


def test_random_order_after_a_contention() -> None:
    """After a contention the next block is taken in random order, each mail once; the block after
    it has an order again."""
    names = [f'5-{number:03d}' for number in range(2 * CONTENTION_BLOCK + 9)]
    blocks = []
    for _ in range(2):
        active = ActiveQueue()
        active.add([fresh(name) for name in names])
        active.note_contention(active.pop('ann'))
        blocks.append([active.pop('ann').order for _ in range(CONTENTION_BLOCK)])
        assert sorted(blocks[-1]) == names[1 : CONTENTION_BLOCK + 1]
        assert len(active) == CONTENTION_BLOCK + 8
        assert taken(active) == names[CONTENTION_BLOCK + 1 :]
    assert blocks[0] != blocks[1]


def test_urgent_mail_first_after_a_contention() -> None:
    """A block has one priority, and a mail more urgent than the block is taken before it."""
    active = ActiveQueue()
    urgent = [f'1-{number:02d}' for number in range(10)]
    active.add([fresh(name) for name in urgent])
    active.add([fresh(f'5-{number:02d}') for number in range(10)])
    active.note_contention(fresh('1'))
    assert all(active.pop('ann').order in urgent for _ in range(5))
    active.add([fresh('0')], fresh=True)
    assert active.pop('ann') == fresh('0')
    assert all(active.pop('ann').order in urgent for _ in range(5))
    assert len(active.not_yet_examined()) == 10
    assert taken(active) == [f'5-{number:02d}' for number in range(10)]


def test_a_refund_wakes_workers_with_a_rate_only() -> None:
    """A refund wakes the waiting workers if it frees a permit, not without a rate."""
    woken = []

    class Counting(threading.Condition):
        def notify_all(self) -> None:
            woken.append(1)
            super().notify_all()

    for rate, count in ((None, 0), ((1, 10), 1)):
        active = ActiveQueue(RateLimiter(rate))
        active.add([fresh('a')])
        ticket = active.pop('ann')
        active._changed = Counting()
        active.refund(ticket)
        assert len(woken) == count


def test_nothing_twice() -> None:
    """A ticket that is here or being worked on is not added again; afterwards it may be."""
    active = ActiveQueue()
    for _ in range(2):
        active.add([fresh('a'), fresh('b')])
    assert len(active) == 2
    assert active.pop('ann') == fresh('a')
    active.add([fresh('a'), fresh('b')])
    assert taken(active) == ['b']
    active.task_done('ann')
    active.add([fresh('a')])
    assert taken(active) == ['a']


def test_a_cut_scan_is_repeated() -> None:
    """After a cut full scan the queue is exhausted once all is taken; a scan of new mail in between
    does not change that."""
    active = ActiveQueue()
    active.add([retried('a')], more=True)
    assert not active.exhausted
    active.add([fresh('b')], fresh=True)
    taken(active)
    assert active.exhausted
    active.add([])
    assert not active.exhausted


def test_a_refill_is_requested_in_time() -> None:
    """A refill is requested once, while an eighth is left, so that no worker has to wait."""
    active = ActiveQueue()
    assert not active.should_request_refill()
    active.add([fresh(f'{number:02d}') for number in range(16)], more=True)
    for _ in range(13):
        active.pop('ann')
        assert not active.exhausted
        assert not active.should_request_refill()
    active.pop('ann')
    assert len(active) == 2
    assert active.running_low
    assert [active.should_request_refill(), active.should_request_refill()] == [True, False]
    # The first page of an unfinished scan, or new mail.
    active.add([fresh('a')], fresh=True)
    assert not active.exhausted
    active.pop('ann')
    assert [active.should_request_refill(), active.should_request_refill()] == [True, False]
    active.add([])
    assert not active.exhausted
    assert not active.should_request_refill()


def test_a_released_mail_is_requested_again_behind_new_mail() -> None:
    """A refill for released mail that found new mail first is requested again."""
    active = ActiveQueue()
    active.add([retried('a')])
    active.pop('ann')
    active.task_done('ann', retry=True)
    assert active.should_request_refill()
    active.add([fresh('b')], fresh=True)
    assert not active.exhausted
    active.pop('ann')
    active.task_done('ann')
    assert active.should_request_refill()


def test_known_tickets() -> None:
    """A ticket is known from the scan that found it until its work is done."""
    active = ActiveQueue()
    assert not active.knows(fresh('a'))
    active.add([fresh('a')])
    assert active.knows(fresh('a'))
    active.pop('ann')
    assert active.knows(fresh('a'))
    active.task_done('ann')
    assert not active.knows(fresh('a'))


def test_a_released_mail_is_requested() -> None:
    """Mail that was taken and released is found again without waiting for the poll."""
    active = ActiveQueue()
    active.add([fresh('a')])
    active.pop('ann')
    active.task_done('ann', retry=True)
    assert active.exhausted


def test_one_mail_starts_one_worker(workers: list[WorkerThread]) -> None:
    """No more workers start than there are tickets."""
    active = ActiveQueue()

    def work(worker: WorkerThread) -> Any:
        return active.wait_for_work(worker, lambda: 0.0, on_idle=lambda: None)

    for worker in workers:
        worker.begin(partial(work, worker))
    active.add([fresh('a')])
    until(lambda: active.working == 1)
    active.add([fresh('a')])
    assert active.working == 1
    active.add([fresh('b')])
    until(lambda: active.working == 2)
    active.close()
    assert sorted(worker.result() for worker in workers) == [False, True, True]


def test_the_last_worker_starts_first(workers: list[WorkerThread]) -> None:
    """Mail after mail goes to the same worker, which has a session; another one starts only while
    it is busy."""
    active = ActiveQueue()

    def work(worker: WorkerThread) -> Any:
        return active.wait_for_work(worker, lambda: 0.0, on_idle=lambda: None)

    for number, worker in enumerate(workers, 1):
        worker.begin(partial(work, worker))
        until(lambda number=number: active.waiting == number)  # type: ignore[misc]
    last = workers[-1]
    for name in 'abc':
        active.add([fresh(name)])
        assert last.result() is True
        assert active.pop(last) == fresh(name)
        assert active.waiting == 2
        if name == 'c':
            break
        active.task_done(last)
        last.begin(partial(work, last))
        until(lambda: active.waiting == 3)
    active.add([fresh('d')])
    assert workers[1].result() is True
    active.close()
    assert workers[0].result() is False


def test_a_waiting_worker_asks_again(workers: list[WorkerThread]) -> None:
    """A worker that has to wait asks again when it is notified."""
    active = ActiveQueue()
    active.add([fresh('a')])
    answers = [0.0, 3600.0]
    worker = workers[0]
    worker.begin(lambda: active.wait_for_work('ann', answers.pop, on_idle=lambda: None))
    until(lambda: len(answers) == 1)
    active.notify_waiters()
    assert worker.result() is True


def test_an_idle_worker_is_notified(workers: list[WorkerThread]) -> None:
    """After the idle time-out ``on_idle`` is called, without a lock."""
    active = ActiveQueue(idle_timeout=0.01)
    idle = threading.Event()
    workers[0].begin(lambda: active.wait_for_work('ann', lambda: 0.0, on_idle=idle.set))
    assert idle.wait(10)
    active.close()
    assert workers[0].result() is False


def test_idle_by_the_clock(workers: list[WorkerThread]) -> None:
    """The idle time-out goes by the clock that is given."""
    clock, idle = Clock(0.0), threading.Event()
    active = ActiveQueue(idle_timeout=60, monotonic=clock)
    workers[0].begin(lambda: active.wait_for_work('ann', lambda: 0.0, on_idle=idle.set))
    until(lambda: active.waiting == 1)
    assert not idle.is_set()
    clock.now += 60
    active.notify_waiters()
    assert idle.wait(10)
    active.close()
    assert workers[0].result() is False


def test_two_workers_of_one_thread() -> None:
    """A worker is named by its caller: what one has finished, another may still be working on."""
    active = ActiveQueue()
    active.add([fresh('a'), fresh('b')])
    assert [active.pop('ann'), active.pop('bob')] == [fresh('a'), fresh('b')]
    active.task_done('ann')
    assert [active.knows(fresh('a')), active.knows(fresh('b'))] == [False, True]


def test_sleep_and_join(workers: list[WorkerThread]) -> None:
    """``sleep`` ends when the queue is closed; ``join`` then, or when nothing is left."""
    active = ActiveQueue()
    workers[0].begin(lambda: active.sleep(3600))
    workers[1].begin(lambda: active.join(3600))
    assert workers[1].result() is True, 'nothing is left'
    active.add([fresh('a')])
    assert active.join(0.001) is False
    workers[1].begin(lambda: active.join(3600))
    active.close()
    assert workers[0].result() is None
    assert workers[1].result() is True
    assert active.pop('ann') is None
    assert active.closed


def test_join_waits_for_no_worker_that_connects() -> None:
    """What has taken a ticket is waited for until it is done; what only connects, never."""
    active = ActiveQueue()
    active.add([fresh('a'), fresh('b')])
    assert active.start('stalls')
    assert active.start('sends')
    assert active.join(0.001) is False, 'tickets are left'
    while active.pop('sends'):
        assert active.join(0.001) is False, 'not done'
    active.task_done('sends')
    assert active.join(0.001) is True
    assert active.working == 1


def test_the_backlog() -> None:
    """How many tickets wait, and for how long the oldest."""
    active = ActiveQueue()
    assert active.backlog(100.0) == (0, 0.0)
    active.add([fresh('a')._replace(due=40.0), retried('b')._replace(due=70.0)])
    assert active.backlog(100.0) == (2, 60.0)
    assert active.backlog(30.0) == (2, 0.0)


def test_examined_once() -> None:
    """Each ticket is returned once by ``not_yet_examined``."""
    active = ActiveQueue()
    active.add([fresh('b'), retried('a')])
    assert active.not_yet_examined() == [retried('a'), fresh('b')]
    assert active.not_yet_examined() == []
    active.add([fresh('c')])
    assert active.not_yet_examined() == [fresh('c')]


def with_rate(mails: int, seconds: int = 1, **options: Any) -> tuple[ActiveQueue, Clock]:
    """Return an active queue with a rate, and its clock."""
    clock = Clock(0.0)
    return ActiveQueue(RateLimiter((mails, seconds), monotonic=clock), **options), clock


def test_no_ticket_without_a_permit() -> None:
    """Without a permit the ticket stays; a permit counts after its mail was sent."""
    active, clock = with_rate(2)
    active.add([fresh(name) for name in 'abcd'])
    assert taken(active) == ['a', 'b']
    assert len(active) == 2
    active.task_done('ann')
    assert taken(active) == []
    clock.now += 1
    assert taken(active) == ['c', 'd']


def test_a_refunded_permit_is_used_again() -> None:
    """The permit of a mail that was not sent is given to another mail, once."""
    active, _ = with_rate(1)
    active.add([fresh('a'), fresh('b'), fresh('c')])
    assert active.pop('ann') == fresh('a')
    for _ in range(2):
        active.refund(fresh('a'))
    assert taken(active) == ['b']
    active.refund(fresh('c'))
    assert taken(active) == []
    active.task_done('ann')
    active.refund(fresh('b'))
    assert taken(active) == [], 'another mail has it now'


def test_one_permit_starts_one_worker(workers: list[WorkerThread]) -> None:
    """No more workers start than there are permits, so that no connection is opened in vain."""
    active, clock = with_rate(2)

    def work(worker: WorkerThread) -> Any:
        return active.wait_for_work(worker, lambda: 0.0, on_idle=lambda: None)

    active.add([fresh(name) for name in 'abc'])
    for worker in workers:
        worker.begin(partial(work, worker))
    until(lambda: (active.working, active.waiting) == (2, 1))
    active.notify_waiters()
    clock.now += 0.5
    assert (active.working, active.waiting) == (2, 1)
    active.close()
    assert sorted(worker.result() for worker in workers) == [False, True, True]


def test_a_worker_that_waits_for_a_permit_gets_it(workers: list[WorkerThread]) -> None:
    """A worker starts when a permit is due, without being woken, or when one is refunded."""
    active = ActiveQueue(RateLimiter((20, 1)))
    active.add([fresh(f'{number:02}') for number in range(30)])
    assert len(taken(active)) == 20
    workers[0].begin(lambda: active.wait_for_work('ann', lambda: 0.0, on_idle=lambda: None))
    assert workers[0].result() is True
    active, _ = with_rate(1, 3600)
    active.add([fresh('a'), fresh('b')])
    active.pop('ann')
    workers[1].begin(lambda: active.wait_for_work('bob', lambda: 0.0, on_idle=lambda: None))
    until(lambda: active.waiting == 1)
    active.refund(fresh('a'))
    assert workers[1].result() is True


def test_a_worker_that_waits_long_for_a_permit_is_idle(workers: list[WorkerThread]) -> None:
    """At one mail an hour ``on_idle`` is called in between; ``close`` ends the wait at once."""
    active, _ = with_rate(1, 3600, idle_timeout=0.01)
    active.add([fresh('a'), fresh('b')])
    active.pop('ann')
    idle = threading.Event()
    workers[0].begin(lambda: active.wait_for_work('ann', lambda: 0.0, on_idle=idle.set))
    assert idle.wait(10)
    active.close()
    assert workers[0].result() is False


def test_a_ticket_that_was_put_back_is_taken_again() -> None:
    """It keeps its place in the order, and its permit is free again."""
    active, _ = with_rate(1)
    active.add([fresh('a'), fresh('b')])
    assert active.pop('ann') == fresh('a')
    active.put_back(fresh('a'))
    assert len(active) == 2
    assert taken(active) == ['a']


def test_nothing_is_put_back_after_the_end() -> None:
    """A closed queue keeps no ticket."""
    active = ActiveQueue()
    active.add([fresh('a')])
    active.pop('ann')
    active.close()
    active.put_back(fresh('a'))
    assert len(active) == 0
