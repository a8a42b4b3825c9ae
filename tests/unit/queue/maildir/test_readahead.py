"""Reading ahead: which files are asked for, and that nothing hangs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue, ahead
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.queues import NOW, Clock, make_envelope

MANY = 3 * ahead._FILES


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    queue.prepare()
    yield queue
    queue.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that the system was asked to read, while each read is a slow one."""
    names: list[str] = []
    real = os.posix_fadvise

    def advise(descriptor: int, at: int, octets: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            assert (at, octets) == (0, 256 * 1024)
            names.append(os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')))
        real(descriptor, at, octets, advice)

    monkeypatch.setattr(os, 'posix_fadvise', advise)
    monkeypatch.setattr(ahead, '_SLOW', 0.0)
    return names


def _tickets(queue: MaildirQueue, count: int) -> list[Ticket]:
    queue.put([make_envelope() for _ in range(count)]).publish()
    tickets, _ = queue.scan(NOW)
    assert len(tickets) == count
    return tickets


def _take(queue: MaildirQueue, tickets: list[Ticket]) -> None:
    for ticket in tickets:
        claim: Any = queue.claim(ticket)
        claim.release()


def test_what_comes_next_is_asked_for_once(queue: MaildirQueue, asked: list[str]) -> None:
    """A file that had to be waited for has those behind it read, so many at a time, in order."""
    tickets = _tickets(queue, MANY)
    names = [ticket.order for ticket in tickets]
    _take(queue, tickets[:1])
    assert asked == names[1 : 1 + ahead._FILES]
    _take(queue, tickets[1 : ahead._FILES])
    assert asked == names[1 : 1 + ahead._FILES], 'they have been asked for'
    _take(queue, tickets[ahead._FILES :])
    assert asked == names[1 : 1 + 2 * ahead._FILES], 'fewer than that are not worth it'


def test_what_is_in_memory_is_not_asked_for(
    queue: MaildirQueue, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing had to be waited for: nothing is asked for."""
    monkeypatch.setattr(ahead, '_SLOW', 60.0)
    _take(queue, _tickets(queue, MANY))
    assert asked == []


def test_few_files_are_not_asked_for(queue: MaildirQueue, asked: list[str]) -> None:
    """What was put a moment ago is in memory."""
    _take(queue, _tickets(queue, ahead._FILES))
    assert asked == []


def test_each_look_begins_anew(queue: MaildirQueue, asked: list[str]) -> None:
    """What was asked for before a look may have left the memory, or been another's."""
    tickets = _tickets(queue, MANY)
    _take(queue, tickets[:1])
    queue.scan(NOW)
    _take(queue, tickets[1:2])
    assert len(asked) == 2 * ahead._FILES


def test_files_that_have_gone(queue: MaildirQueue, asked: list[str]) -> None:
    """Other processors take some of them, and what is no file of ours stands there."""
    tickets = _tickets(queue, MANY)
    for ticket in tickets[1:20]:
        os.unlink(f'{queue.path}/new/{ticket.order}')
    os.mkfifo(f'{queue.path}/new/{tickets[1].order}')
    os.symlink('nowhere', f'{queue.path}/new/{tickets[2].order}')
    os.mkdir(f'{queue.path}/new/{tickets[3].order}')
    _take(queue, tickets[:1])
    names = [ticket.order for ticket in tickets]
    assert asked[-len(names[20 : 1 + ahead._FILES]) :] == names[20 : 1 + ahead._FILES]
    assert queue._store._open == {}


def test_without_a_word_for_it(
    queue: MaildirQueue, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that takes no advice is asked for nothing."""
    from pyramid_sendmail.queue.maildir import files as store

    monkeypatch.setattr(store, '_CAN_ADVISE', False)
    _take(queue, _tickets(queue, MANY))
    assert asked == []
