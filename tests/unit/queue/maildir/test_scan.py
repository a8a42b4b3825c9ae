"""What a look finds in large folders: the right names, few of them kept, none handed out late."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir import queue as maildir
from pyramid_sendmail.queue.maildir.filename import parse, ticket_of
from pyramid_sendmail.queue.maildir.scan import Listing
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.queues import NOW, Clock, claimed, deferred, make_envelope

LONGEST = 3600.0


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MaildirQueue]:
    """One without patience."""
    queue = MaildirQueue(
        str(tmp_path / 'queue'), sync=False, longest=LONGEST, patience=0.0, clock=Clock()
    )
    queue.prepare()
    yield queue
    queue.close()


def nobody() -> None:
    """No pause."""


def a_name(chance: random.Random, *, folder: str) -> str:
    """One of ours, or what a person or a mail program has made of it."""
    due = int((NOW + chance.choice([-1.0, 0.0, 0.001, 1.0, LONGEST, LONGEST + 1.5])) * 1000)
    tried = chance.choice([0, 1, 9999]) if folder != 'new' else chance.choice([1, 9999])
    name = f'{chance.choice("159")}-{due:015d}-{tried:04d}-{chance.getrandbits(128):032x}'
    ours = [name, name, name, f'{name}:2,S', f'{name}:2,']
    foreign = [f'.{name}', name[:-1], name.upper(), f'3{name[1:]}', f'{name}:1', 'README', '~']
    return chance.choice([*ours, *ours, *ours, *foreign])


@pytest.mark.parametrize('limit', [1, 7, 100, 1_000])
@pytest.mark.parametrize('folder', ['new', 'cur', 'done'])
def test_the_same_as_one_by_one(tmp_path: Path, folder: str, limit: int) -> None:
    """Whatever the names are: those that are due, the first of them in order, and the next time."""
    (tmp_path / folder).mkdir()
    chance = random.Random(f'{folder}{limit}')
    for _ in range(600):
        (tmp_path / folder / a_name(chance, folder=folder)).touch()
    wrong = NOW + LONGEST + 1

    listing = Listing(str(tmp_path), folder, limit=limit)
    assert not listing
    listing.read(NOW, wrong=wrong, pause=nobody)

    due, later = [], []
    for path in (tmp_path / folder).iterdir():
        schedule = parse(path.name)
        if schedule is None and path.name.startswith('.'):
            continue
        if schedule and schedule.due > NOW and not (schedule.attempt and schedule.due > wrong):
            later.append(schedule.due)
        else:
            due.append(path.name)
    assert listing
    assert list(listing) == [ticket_of(folder, name) for name in sorted(due)[:limit]]
    assert listing.next_due == min(later)


def test_few_names_are_kept(tmp_path: Path) -> None:
    """RELIABILITY 100: however many are due, a quarter more than were asked for are kept."""
    listing = Listing(str(tmp_path), 'new', limit=100)
    names = [f'{number:05d}' for number in random.Random(1).sample(range(20_000), 20_000)]
    for name in names:
        listing.add(name)
        assert len(listing._names) <= 126
    assert [ticket.order for ticket in listing] == sorted(names)[:100]


def test_a_long_look_hands_out_what_it_has_found(queue: MaildirQueue) -> None:
    """Mail does not wait until a million others are listed: some leaves before, fresh mail and
    retried mail in turn; once, and by the end of the look all is told."""
    for folder, number in (('new', 1), ('new', 2), ('new', 3), ('cur', 4), ('cur', 5)):
        due = int((NOW - number) * 1000)
        Path(queue.path, folder, f'5-{due:015d}-{folder == "cur":04d}-{number:032x}').touch()
    found: list[list[Ticket]] = []
    tickets, _ = queue.scan(NOW, on_first_page=found.append)
    # This queue has no patience, and tells after the first folder.
    assert found == [[ticket for ticket in tickets if ticket.state == 'new']]
    assert [ticket.state for ticket in tickets] == ['new', 'deferred', 'new', 'deferred', 'new']
    assert (
        queue.scan(NOW, limit=2, fresh=True, on_first_page=found.append)[0]
        == found[1]
        == found[0][:2]
    )


def test_a_look_with_patience_says_it_once(tmp_path: Path) -> None:
    """A look that takes no time calls nobody, nor does one that finds nothing."""
    found: list[Any] = []
    hasty = MaildirQueue(str(tmp_path / 'queue'), sync=False, patience=0.0, clock=Clock())
    hasty.prepare()
    hasty.put([make_envelope(due=NOW + 60, queued_at=NOW)]).publish()
    assert hasty.scan(NOW, on_first_page=found.append) == ([], NOW + 60)
    patient = MaildirQueue(str(tmp_path / 'queue'), sync=False, patience=60.0, clock=Clock())
    patient.put([make_envelope()]).publish()
    assert len(patient.scan(NOW, on_first_page=found.append)[0]) == 1
    assert found == []
    hasty.close()
    patient.close()


def test_what_was_found_beyond_the_limit(queue: MaildirQueue) -> None:
    """A look keeps more than it returns, in order, so that the next few cost no listing; a look at
    fresh mail leaves that as it is, a full one begins anew."""
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


def test_a_look_keeps_so_much(queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond that is found by the next look."""
    monkeypatch.setattr(maildir, '_KEPT', 6)
    queue.put([make_envelope(due=NOW - 20 + n) for n in range(10)]).publish()
    in_order, _ = queue.scan(NOW, limit=10)
    assert queue.scan(NOW, limit=4)[0] == in_order[:4]
    assert queue.next_page(9) == in_order[4:6]


def test_mail_for_later_is_opened_once(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newsletter for tomorrow: each look opens some of its mails, to see that a clock was not
    wrong, and none of them twice; the next look comes at once until all are known."""
    opened: list[bytes] = []

    def decode(data: bytes) -> Any:
        opened.append(data)
        return whole(data)

    whole = maildir.decode
    monkeypatch.setattr(maildir, 'decode', decode)
    monkeypatch.setattr(maildir, '_OPENED', 4)
    later = NOW + 86_400.0
    queue.put([make_envelope(queued_at=NOW, due=later + n) for n in range(6)]).publish()
    assert queue.scan(NOW) == ([], NOW)
    assert len(opened) == 4
    assert queue.scan(NOW) == ([], later)
    assert queue.scan(NOW) == ([], later)
    assert len(opened) == len(set(opened)) == 6
    monkeypatch.setattr(maildir, '_SCHEDULED', 6)
    unasked = make_envelope(queued_at=later, due=later)
    queue.put([unasked]).publish()
    assert queue.scan(NOW)[0] == [], 'of more than that the names are believed'


def test_what_cannot_be_read_waits(queue: MaildirQueue) -> None:
    """A damaged mail for later, and one that goes meanwhile, are due when their names say so."""
    later = NOW + 86_400.0
    name = f'5-{int(later * 1000):015d}-0000-{1:032x}'
    path = Path(queue.path, 'new', name)
    path.write_bytes(b'X-Envelope: no')
    assert queue.scan(NOW) == ([], later)
    assert [ticket.order for ticket in queue.scan(later)[0]] == [name]


def test_a_look_by_a_time_that_has_passed(queue: MaildirQueue) -> None:
    """A run that takes what was due at its start finds nothing wrong with mail of its own time:
    what was queued or deferred since is simply later."""
    queue._clock.now = NOW + 100  # type: ignore[attr-defined]
    fresh = make_envelope(queued_at=NOW + 50, due=NOW + 50)
    envelope = make_envelope(due=NOW)
    queue.put([envelope]).publish()
    claimed(queue).settle([deferred(envelope)], retry_at=NOW + 99 + LONGEST, report=False)
    queue.put([fresh]).publish()
    assert queue.scan(NOW) == ([], NOW + 50)
