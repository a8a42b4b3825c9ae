"""Readahead: which files are read ahead, and that no error of it matters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir import scan as scan_module
from pyramid_sendmail.queue.maildir.scan import _READAHEAD_FILES as FILES
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.queues import NOW, Clock, make_envelope

MANY = 3 * FILES


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    queue.prepare()
    yield queue
    queue.close()


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read ahead, while every read counts as slow."""
    names: list[str] = []
    real = os.posix_fadvise

    def advise(descriptor: int, at: int, size: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            assert (at, size) == (0, 256 * 1024)
            names.append(os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')))
        real(descriptor, at, size, advice)

    monkeypatch.setattr(os, 'posix_fadvise', advise)
    monkeypatch.setattr(scan_module, '_DISK_READ_TIME', 0.0)
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


def test_what_comes_next_is_read_ahead_once(queue: MaildirQueue, requested: list[str]) -> None:
    """A file that had to be waited for has those behind it read, so many at a time, in order."""
    tickets = _tickets(queue, MANY)
    names = [ticket.order for ticket in tickets]
    _take(queue, tickets[:1])
    assert requested == names[1 : 1 + FILES]
    _take(queue, tickets[1:FILES])
    assert requested == names[1 : 1 + FILES], 'they have been asked for'
    _take(queue, tickets[FILES:])
    assert requested == names[1 : 1 + 2 * FILES], 'fewer than that are not worth it'


def test_what_is_in_memory_is_not_read_ahead(
    queue: MaildirQueue, requested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no read was slow, no file is read ahead."""
    monkeypatch.setattr(scan_module, '_DISK_READ_TIME', 60.0)
    _take(queue, _tickets(queue, MANY))
    assert requested == []


def test_few_files_are_not_read_ahead(queue: MaildirQueue, requested: list[str]) -> None:
    """What was put a moment ago is in memory."""
    _take(queue, _tickets(queue, FILES))
    assert requested == []


def test_each_scan_begins_anew(queue: MaildirQueue, requested: list[str]) -> None:
    """Files that were read ahead before a scan may have left the memory."""
    tickets = _tickets(queue, MANY)
    _take(queue, tickets[:1])
    queue.scan(NOW)
    _take(queue, tickets[1:2])
    assert len(requested) == 2 * FILES


def test_files_that_have_gone(queue: MaildirQueue, requested: list[str]) -> None:
    """Files that are gone, and others that are not mail, are skipped."""
    tickets = _tickets(queue, MANY)
    for ticket in tickets[1:20]:
        os.unlink(f'{queue.path}/new/{ticket.order}')
    os.mkfifo(f'{queue.path}/new/{tickets[1].order}')
    os.symlink('nowhere', f'{queue.path}/new/{tickets[2].order}')
    os.mkdir(f'{queue.path}/new/{tickets[3].order}')
    _take(queue, tickets[:1])
    names = [ticket.order for ticket in tickets]
    assert requested[-len(names[20 : 1 + FILES]) :] == names[20 : 1 + FILES]
    assert queue._files._open == {}


def test_without_a_word_for_it(
    queue: MaildirQueue, requested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system without posix_fadvise reads no file ahead."""
    from pyramid_sendmail.queue.maildir import files as store

    monkeypatch.setattr(store, '_CAN_ADVISE', False)
    _take(queue, _tickets(queue, MANY))
    assert requested == []
