"""What a run to the end takes, and what it has to remember of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyramid_sendmail.processor.active_queue import ActiveQueue
from pyramid_sendmail.processor.single_pass import SinglePassScan
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import FOLDER_OF
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.queues import NOW, Clock, files, make_envelope


class Place:
    """A queue, its clock, and a harvest in steps of ten."""

    def __init__(self, path: Path, patience: float) -> None:
        self.clock = Clock()
        self.queue = MaildirQueue(str(path), sync=False, patience=patience, clock=self.clock)
        self.queue.prepare()
        self.pending = ActiveQueue()
        self.taken: list[str] = []
        self.tried: list[str] = []
        self.stuck: set[str] = set()

    def put(self, count: int) -> None:
        self.queue.put([make_envelope(queued_at=self.clock.now) for _ in range(count)]).publish()

    def harvest(self) -> SinglePassScan:
        return SinglePassScan(self.queue, self.pending, self.clock)

    def work(self, tickets: list[Ticket], *, more: bool) -> None:
        """What is pending is sent, and goes, unless it is stuck."""
        self.pending.fill(tickets, more=more)
        while (ticket := self.pending.take()) is not None:
            self.tried.append(ticket.order)
            path = Path(self.queue.path, FOLDER_OF[ticket.state], ticket.order)
            if path.exists() and ticket.order not in self.stuck:
                path.unlink()
                self.taken.append(ticket.order)
        self.pending.worked()


@pytest.fixture(params=[0.0, 60.0])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """With looks that hand out mail before they end, and with looks that do not."""
    place = Place(tmp_path / 'queue', request.param)
    yield place
    place.queue.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / 'queue', 60.0)
    yield place
    place.queue.close()


def test_all_that_was_due_and_then_fresh_mail(either: Place) -> None:
    """In steps; each mail once; fresh mail after what was there."""
    either.put(35)
    harvest = either.harvest()
    either.clock.now += 1
    either.put(12)
    fresh = []
    for _ in range(12):
        tickets = harvest.scan(10)
        fresh.append(harvest.fresh)
        either.work(tickets, more=harvest.more)
    assert len(either.taken) == len(set(either.taken)) == 47
    assert files(either.queue) == []
    assert fresh == sorted(fresh)
    assert harvest.fresh
    assert not harvest.more


def test_the_memory_does_not_grow(either: Place) -> None:
    """Of ten thousand mails sent none is remembered."""
    harvest = either.harvest()
    for _ in range(20):
        either.put(20)
        either.clock.now += 1
        either.work(harvest.scan(10), more=harvest.more)
    assert len(either.taken) >= 190
    assert len(harvest._seen) <= 40


def test_what_stays_is_not_tried_for_ever(either: Place) -> None:
    """Files that nobody can claim end no run, are found again by few looks, and hide nothing."""
    either.stuck = {f'0-{number:02d}' for number in range(30)}
    for name in either.stuck:
        Path(either.queue.path, 'new', name).touch()
    either.put(25)
    harvest = either.harvest()
    for _ in range(20):
        either.work(harvest.scan(10), more=harvest.more)
    assert len(either.taken) == 25
    assert not harvest.more
    tried = len(either.tried)
    either.work(harvest.scan(10), more=harvest.more)
    assert len(either.tried) == tried
    assert max(Counter(either.tried).values()) <= 4


def test_what_is_pending_is_not_returned_again(place: Place) -> None:
    """A look while mail is in work finds it once more, and returns what is new."""
    place.put(10)
    harvest = place.harvest()
    first = harvest.scan(10)
    place.pending.fill(first)
    while place.pending.take():
        pass
    place.put(5)
    assert harvest.more
    again = harvest.scan(20)
    assert len(again) == 5
    assert not set(again) & set(first)


def test_a_clock_that_jumps_back(place: Place) -> None:
    """The start goes with it: what was deferred by the new time is not due by the old."""
    place.put(1)
    harvest = place.harvest()
    place.clock.now = NOW - 1_000
    harvest.tick()
    place.clock.now = NOW + 1_000
    assert harvest.scan(10) == []
    assert len(harvest.scan(10)) == 1
    assert harvest.fresh
