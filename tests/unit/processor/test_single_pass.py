"""The scan of ``run_once``: what it returns, and what it has to remember."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyramid_sendmail.processor.active_queue import ActiveQueue
from pyramid_sendmail.processor.single_pass import SinglePassScan
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import FOLDER_OF
from pyramid_sendmail.queue.maildir.scan import ScanLimits
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.queues import NOW, Clock, files, make_envelope


class Place:
    """A queue, its clock, and a single pass in steps of ten."""

    def __init__(self, path: Path, first_page_after: float) -> None:
        self.clock = Clock()
        limits = ScanLimits(first_page_after=first_page_after)
        self.queue = MaildirQueue(str(path), sync=False, limits=limits, clock=self.clock)
        self.queue.prepare()
        self.active_queue = ActiveQueue()
        self.taken: list[str] = []
        self.tried: list[str] = []
        self.stuck: set[str] = set()

    def put(self, count: int) -> None:
        self.queue.put([make_envelope(queued_at=self.clock.now) for _ in range(count)]).publish()

    def single_pass(self) -> SinglePassScan:
        return SinglePassScan(self.queue, self.active_queue, self.clock)

    def work(self, tickets: list[Ticket], *, more: bool) -> None:
        """Send what is due, and remove it unless it is stuck."""
        self.active_queue.add(tickets, more=more)
        while (ticket := self.active_queue.pop('ann')) is not None:
            self.tried.append(ticket.order)
            path = Path(self.queue.path, FOLDER_OF[ticket.state], ticket.order)
            if path.exists() and ticket.order not in self.stuck:
                path.unlink()
                self.taken.append(ticket.order)
        self.active_queue.task_done('ann')


@pytest.fixture(params=[0.0, 60.0])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """With scans that return a first page before they end, and with scans that do not."""
    place = Place(tmp_path / 'queue', request.param)
    yield place
    place.queue.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / 'queue', 60.0)
    yield place
    place.queue.close()


def test_all_due_mail_and_then_new_mail(either: Place) -> None:
    """Each mail is returned once, and new mail after what was due at the start."""
    either.put(35)
    single_pass = either.single_pass()
    either.clock.now += 1
    either.put(12)
    fresh = []
    for _ in range(12):
        tickets = single_pass.scan(10)
        fresh.append(single_pass.fresh)
        either.work(tickets, more=single_pass.more)
    assert len(either.taken) == len(set(either.taken)) == 47
    assert files(either.queue) == []
    assert fresh == sorted(fresh)
    assert single_pass.fresh
    assert not single_pass.more


def test_the_memory_does_not_grow(either: Place) -> None:
    """Mail that was sent is forgotten."""
    single_pass = either.single_pass()
    for _ in range(20):
        either.put(20)
        either.clock.now += 1
        either.work(single_pass.scan(10), more=single_pass.more)
    assert len(either.taken) >= 190
    assert len(single_pass._found) <= 40


def test_a_stuck_file_is_not_tried_for_ever(either: Place) -> None:
    """Files that cannot be claimed do not keep a run from ending, and hide no other mail."""
    either.stuck = {f'0-{number:02d}' for number in range(30)}
    for name in either.stuck:
        Path(either.queue.path, 'new', name).touch()
    either.put(25)
    single_pass = either.single_pass()
    for _ in range(20):
        either.work(single_pass.scan(10), more=single_pass.more)
    assert len(either.taken) == 25
    assert not single_pass.more
    tried = len(either.tried)
    either.work(single_pass.scan(10), more=single_pass.more)
    assert len(either.tried) == tried
    assert max(Counter(either.tried).values()) <= 4


def test_mail_in_flight_is_not_returned_again(place: Place) -> None:
    """A scan while mail is in flight returns new mail only."""
    place.put(10)
    single_pass = place.single_pass()
    first = single_pass.scan(10)
    place.active_queue.add(first)
    while place.active_queue.pop('ann'):
        pass
    place.put(5)
    assert single_pass.more
    again = single_pass.scan(20)
    assert len(again) == 5
    assert not set(again) & set(first)


def test_a_clock_that_jumps_back(place: Place) -> None:
    """The start moves back with it: mail deferred since then is not due."""
    place.put(1)
    single_pass = place.single_pass()
    place.clock.now = NOW - 1_000
    single_pass.check_clock()
    place.clock.now = NOW + 1_000
    assert single_pass.scan(10) == []
    assert len(single_pass.scan(10)) == 1
    assert single_pass.fresh
