"""Scans of large folders: they find the right names, keep few of them, and return none late."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir import scan as scan_module
from pyramid_sendmail.queue.maildir.filename import parse, ticket_of
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.scan import FolderScan, ScanLimits
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.queues import NOW, Clock, claimed, deferred, forked, make_envelope, reap

LONGEST = 3600.0


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MaildirQueue]:
    """A queue that hands out the first page at once."""
    queue = a_queue(tmp_path, ScanLimits(first_page_after=0.0))
    yield queue
    queue.close()


def a_queue(tmp_path: Path, limits: ScanLimits) -> MaildirQueue:
    queue = MaildirQueue(
        str(tmp_path / 'queue'), sync=False, longest=LONGEST, limits=limits, clock=Clock()
    )
    queue.prepare()
    return queue


def no_pause() -> None:
    """Do nothing between the blocks of a scan."""


def a_name(chance: random.Random, *, folder: str) -> str:
    """A name of ours, as a mail program or a person may have changed it, or a foreign one."""
    due = int((NOW + chance.choice([-1.0, 0.0, 0.001, 1.0, LONGEST, LONGEST + 1.5])) * 1000)
    tried = chance.choice([0, 1, 9999]) if folder != 'new' else chance.choice([1, 9999])
    name = f'{chance.choice("159")}-{due:015d}-{tried:04d}-{chance.getrandbits(128):032x}'
    ours = [name, name, name, f'{name}:2,S', f'{name}:2,']
    foreign = [f'.{name}', name[:-1], name.upper(), f'3{name[1:]}', f'{name}:1', 'README', '~']
    return chance.choice([*ours, *ours, *ours, *foreign])


@pytest.mark.parametrize('limit', [1, 7, 100, 1_000])
@pytest.mark.parametrize('folder', ['new', 'cur', 'done'])
def test_a_folder_scan_agrees_with_parsing_each_name(
    tmp_path: Path, folder: str, limit: int
) -> None:
    """Whatever the names are: a scan finds the first ones that are due, in order, and the time of
    the next one."""
    (tmp_path / folder).mkdir()
    chance = random.Random(f'{folder}{limit}')
    for _ in range(600):
        (tmp_path / folder / a_name(chance, folder=folder)).touch()
    latest_retry = NOW + LONGEST + 1

    scan = FolderScan(QueueFiles(str(tmp_path)), folder, limit=limit)
    assert not scan
    scan.read(NOW, latest_retry=latest_retry, pause=no_pause)

    due, later = [], []
    for path in (tmp_path / folder).iterdir():
        schedule = parse(path.name)
        if schedule is None and path.name.startswith('.'):
            continue
        if (
            schedule
            and schedule.due > NOW
            and not ((schedule.attempt or folder == 'done') and schedule.due > latest_retry)
        ):
            later.append(schedule.due)
        else:
            due.append(path.name)
    assert scan
    assert list(scan) == [ticket_of(folder, name) for name in sorted(due)[:limit]]
    assert scan.next_due == min(later)


def test_few_names_are_kept(tmp_path: Path) -> None:
    """However many mails are due, a scan keeps at most a quarter more than were asked for."""
    scan = FolderScan(QueueFiles(str(tmp_path)), 'new', limit=100)
    names = [f'{number:05d}' for number in random.Random(1).sample(range(20_000), 20_000)]
    for name in names:
        scan.add_due(name)
        assert len(scan._names) <= 126
    assert [ticket.order for ticket in scan] == sorted(names)[:100]


def test_a_long_scan_hands_out_its_first_page(queue: MaildirQueue) -> None:
    """Mail does not wait until a million others are listed: a long scan hands out its first mails,
    new and deferred ones in turn, once, and returns them again at its end."""
    for folder, number in (('new', 1), ('new', 2), ('new', 3), ('cur', 4), ('cur', 5)):
        due = int((NOW - number) * 1000)
        Path(queue.path, folder, f'5-{due:015d}-{folder == "cur":04d}-{number:032x}').touch()
    found: list[list[Ticket]] = []
    tickets, _ = queue.scan(NOW, on_first_page=found.append)
    # This queue hands out the first page after its first folder.
    assert found == [[ticket for ticket in tickets if ticket.state == 'new']]
    assert [ticket.state for ticket in tickets] == ['new', 'deferred', 'new', 'deferred', 'new']
    assert (
        queue.scan(NOW, limit=2, fresh=True, on_first_page=found.append)[0]
        == found[1]
        == found[0][:2]
    )


def test_a_short_scan_has_no_first_page(tmp_path: Path) -> None:
    """A short scan does not call ``on_first_page``, nor does one that finds nothing."""
    found: list[Any] = []
    hasty = a_queue(tmp_path, ScanLimits(first_page_after=0.0))
    hasty.put([make_envelope(due=NOW + 60, queued_at=NOW)]).publish()
    assert hasty.scan(NOW, on_first_page=found.append) == ([], NOW + 60)
    patient = a_queue(tmp_path, ScanLimits(first_page_after=60.0))
    patient.put([make_envelope()]).publish()
    assert len(patient.scan(NOW, on_first_page=found.append)[0]) == 1
    assert found == []
    hasty.close()
    patient.close()


def test_the_next_page_needs_no_scan(queue: MaildirQueue) -> None:
    """A full scan keeps more than it returns, in order, for ``next_page``; a scan of fresh mail
    does not change that, and a full one begins anew."""
    envelopes = [make_envelope(due=NOW - 20 + n) for n in range(10)]
    queue.put(envelopes).publish()
    assert queue.next_page(5) == []
    in_order, _ = queue.scan(NOW)
    assert queue.next_page(5) == []
    assert queue.scan(NOW, limit=4)[0] == in_order[:4]
    assert queue.scan(NOW, limit=1, fresh=True)[0] == in_order[:1]
    assert queue.next_page(3) == in_order[4:7]
    assert queue.next_page(5) == in_order[7:]
    assert queue.next_page(5) == []
    queue.scan(NOW, limit=9)
    assert queue.next_page(5) == in_order[9:]


def test_a_scan_keeps_a_limited_number_of_names(tmp_path: Path) -> None:
    """The next scan finds the mails beyond the limit."""
    queue = a_queue(tmp_path, ScanLimits(names=6))
    queue.put([make_envelope(due=NOW - 20 + n) for n in range(10)]).publish()
    in_order, _ = queue.scan(NOW, limit=10)
    assert queue.scan(NOW, limit=4)[0] == in_order[:4]
    assert queue.next_page(9) == in_order[4:6]


def test_mail_for_later_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newsletter for tomorrow: each scan opens some of its mails, to see whether a clock was
    wrong, and none of them twice; the next scan is due at once until all are verified."""
    queue = a_queue(tmp_path, ScanLimits(opened=4, verified=6))
    opened: list[bytes] = []

    def decode(data: bytes) -> Any:
        opened.append(data)
        return whole(data)

    whole = scan_module.decode
    monkeypatch.setattr(scan_module, 'decode', decode)
    later = NOW + 86_400.0
    queue.put([make_envelope(queued_at=NOW, due=later + n) for n in range(6)]).publish()
    assert queue.scan(NOW) == ([], NOW)
    assert len(opened) == 4
    assert queue.scan(NOW) == ([], later)
    assert queue.scan(NOW) == ([], later)
    assert len(opened) == len(set(opened)) == 6
    unasked = make_envelope(queued_at=later, due=later)
    queue.put([unasked]).publish()
    assert queue.scan(NOW)[0] == [], 'beyond the limit the names are believed'


def test_unreadable_mail_for_later_waits(queue: MaildirQueue) -> None:
    """Damaged mail for later is due when its name says so."""
    later = NOW + 86_400.0
    name = f'5-{int(later * 1000):015d}-0000-{1:032x}'
    path = Path(queue.path, 'new', name)
    path.write_bytes(b'X-Envelope: no')
    assert queue.scan(NOW) == ([], later)
    assert [ticket.order for ticket in queue.scan(later)[0]] == [name]


def test_a_scan_for_a_time_in_the_past(queue: MaildirQueue) -> None:
    """A scan for the start of a run takes no mail for one of a wrong clock: mail that was queued or
    deferred since then is for later."""
    queue._clock.now = NOW + 100  # type: ignore[attr-defined]
    fresh = make_envelope(queued_at=NOW + 50, due=NOW + 50)
    envelope = make_envelope(due=NOW)
    queue.put([envelope]).publish()
    claimed(queue).settle([deferred(envelope)], retry_at=NOW + 99 + LONGEST, report=False)
    queue.put([fresh]).publish()
    assert queue.scan(NOW) == ([], NOW + 50)


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_fork_while_another_thread_scans(queue: MaildirQueue) -> None:
    """A lock that this thread holds at that moment does not stop the processor of the child."""
    queue.put([make_envelope()]).publish()

    def work() -> None:
        signal.alarm(20)  # ends a child that waits for ever
        assert len(queue.scan(NOW)[0]) == 1

    with queue._scanner._lock:
        pid = forked(work)
    assert reap(pid) == 0
