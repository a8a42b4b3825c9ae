"""What stopped processes left in tmp/, brought to its end."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.format import STATE_AT
from tests.support.folders import folder as tmp_path
from tests.support.queues import NOW, Clock, child, crashes, files, forked, make_envelope, reap

__all__ = ['tmp_path']

ENVELOPES = [make_envelope(f'r{n}@example.org') for n in range(3)]
IDS = sorted(envelope.id for envelope in ENVELOPES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / 'queue'
    MaildirQueue(str(path)).prepare()
    return path


def _queue(path: Path, **options: Any) -> MaildirQueue:
    return MaildirQueue(str(path), clock=Clock(), **options)


def _left_behind(path: Path, letter: str) -> None:
    """What a process that died in the given state leaves of a transaction of three mails."""

    def work() -> None:
        put = _queue(path).put(ENVELOPES)
        with open(path / 'tmp' / put.tickets[0].order, 'r+b') as file:
            file.seek(STATE_AT)
            file.write(letter.encode())

    assert reap(forked(work)) == 0
    assert len(files(_queue(path))) == 3


def _ids(path: Path, folder: str) -> list[str]:
    return sorted(file.name.rpartition('-')[2] for file in (path / folder).iterdir())


def test_what_was_not_voted_is_removed(path: Path) -> None:
    """W, unlocked: all mails of the transaction are removed."""
    _left_behind(path, 'W')
    assert _queue(path).scan(NOW) == ([], None)
    assert files(_queue(path)) == []


def test_what_was_voted_is_held(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """V, unlocked: all are held with an error event, and each is a CRITICAL line with its id."""
    _left_behind(path, 'V')
    queue = _queue(path)
    tickets, _ = queue.scan(NOW)
    critical = [record.getMessage() for record in caplog.records if record.levelname == 'CRITICAL']
    for envelope in ENVELOPES:
        assert sum('in doubt' in line and envelope.id in line for line in critical) == 1
        assert sum(envelope.message_id in line for line in critical) == 1
    for ticket in tickets:
        claim = queue.claim(ticket)
        assert claim is not None
        assert claim.todo == ()
        (event,) = claim.pending_events
        assert (event.kind, event.permanent) == ('error', False)
        assert 'in doubt' in event.reason
        claim.acknowledge([event])
    assert _ids(path, 'failed') == IDS
    caplog.clear()
    assert queue.scan(NOW) == ([], None)
    assert not caplog.records, 'said once'


def test_held_mail_moved_by_hand_is_sent(path: Path) -> None:
    """A person who knows that the transaction committed moves it from failed/ into new/."""
    _left_behind(path, 'V')
    queue = _queue(path)
    for ticket in queue.scan(NOW)[0]:
        claim = queue.claim(ticket)
        assert claim is not None
        claim.acknowledge(claim.pending_events)
    for file in (path / 'failed').iterdir():
        file.rename(path / 'new' / file.name)
    claims = [queue.claim(ticket) for ticket in queue.scan(NOW)[0]]
    assert [claim.todo for claim in claims if claim] == [
        claim.envelope.recipients for claim in claims if claim
    ]
    assert [(claim.attempt, claim.pending_events) for claim in claims if claim] == [(0, [])] * 3


def test_what_was_voted_is_sent_if_so_set(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """mail.in_doubt = send publishes it."""
    _left_behind(path, 'V')
    assert len(_queue(path, in_doubt='send').scan(NOW)[0]) == 3
    assert _ids(path, 'new') == IDS
    assert 'published now' in caplog.text


def test_what_was_being_finished_is_published(path: Path) -> None:
    """C, unlocked: the rest is published."""
    _left_behind(path, 'C')
    follower = next(file for file in (path / 'tmp').iterdir() if '.' in file.name)
    follower.rename(path / 'new' / follower.name.partition('.')[0])
    assert len(_queue(path).scan(NOW)[0]) == 3
    assert _ids(path, 'new') == IDS


@pytest.mark.slow
@pytest.mark.parametrize('in_doubt', ['hold', 'send'])
@pytest.mark.parametrize('letter', ['W', 'V', 'C'])
def test_a_crash_of_recovery_is_recovered_from(path: Path, letter: str, in_doubt: str) -> None:
    """If a recovery dies after any system call, the next one finishes it: all mails have the same
    outcome, and there is one of each."""
    _left_behind(path, letter)

    def check() -> None:
        queue = _queue(path, in_doubt=in_doubt)
        claims: list[Any] = [queue.claim(ticket) for ticket in queue.scan(NOW)[0]]
        assert sorted(claim.envelope.id for claim in claims) == (IDS if letter != 'W' else [])
        held = letter == 'V' and in_doubt == 'hold'
        assert len(files(queue)) == len(claims)
        for claim in claims:
            assert claim.todo == (() if held else claim.envelope.recipients)
            assert [event.permanent for event in claim.pending_events] == [False] * held
            claim.release()
        shutil.rmtree(path)
        queue.prepare()
        _left_behind(path, letter)

    assert crashes(lambda: _queue(path, in_doubt=in_doubt).scan(NOW), check) >= 8


def test_a_locked_record_is_left_alone(path: Path) -> None:
    """The transaction's process lives: nothing of it is touched, whatever its letter."""

    kept: list[Any] = []

    def work() -> None:
        kept.append(_queue(path).put(ENVELOPES))

    with child(work):
        before = files(_queue(path))
        for in_doubt in ('hold', 'send'):
            assert _queue(path, in_doubt=in_doubt).scan(NOW) == ([], None)
        assert files(_queue(path)) == before
        assert len(before) == 3
    assert len(_queue(path).scan(NOW)[0]) == 3, 'until it is dead'


def test_followers_without_their_record_are_in_doubt(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If a person removed the record, the other files are in doubt, so they are held."""
    _left_behind(path, 'C')
    (record,) = (file for file in (path / 'tmp').iterdir() if '.' not in file.name)
    record.unlink()
    assert {ticket.state for ticket in _queue(path).scan(NOW)[0]} == {'done'}
    assert len(files(_queue(path))) == 2
    assert caplog.text.count('in doubt') == 2


@pytest.mark.parametrize('letter', ['\0', 'v', 'S'])
def test_an_unknown_letter_is_in_doubt(
    path: Path, caplog: pytest.LogCaptureFixture, letter: str
) -> None:
    """A damaged record is no reason to remove mail: all is kept for a person to decide."""
    _left_behind(path, letter)
    _queue(path).scan(NOW)
    assert len(files(_queue(path))) == 3
    assert {file.partition('/')[0] for file in files(_queue(path))} <= {'done', 'failed'}
    assert 'in doubt' in caplog.text


def test_a_torn_mail_in_doubt_is_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be read, so there is no event for it; the CRITICAL line has its id."""
    _left_behind(path, 'V')
    (record,) = (file for file in (path / 'tmp').iterdir() if '.' not in file.name)
    os.truncate(record, record.stat().st_size - 1)
    id = record.name.rpartition('-')[2]
    _queue(path).scan(NOW)
    assert _ids(path, 'failed') == [id]
    assert len(_ids(path, 'done')) == 2
    critical = [record.getMessage() for record in caplog.records if record.levelname == 'CRITICAL']
    assert any('in doubt' in line and id in line for line in critical)


def test_a_record_that_never_got_its_letter_was_never_voted(path: Path) -> None:
    """The process died before the first byte of its record was written."""
    name = f'5-{round(NOW * 1000):015d}-0000-{"a" * 32}'
    (path / 'tmp' / name).write_bytes(b'X-Env')
    _queue(path).scan(NOW)
    assert files(_queue(path)) == []


def test_foreign_files_in_tmp_are_left_alone(path: Path) -> None:
    """Other programs write into tmp/ of a Maildir before they publish."""
    (path / 'tmp' / '123.45.host').write_text('half a mail')
    (path / 'tmp' / '.hidden').write_text('')
    _queue(path).scan(NOW)
    assert files(_queue(path)) == ['tmp/.hidden', 'tmp/123.45.host']


def test_a_folder_in_tmp_stops_no_recovery(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder with a record's name is logged and stays; one with a follower's name is moved to
    failed/."""
    _left_behind(path, 'V')
    (record,) = (file for file in (path / 'tmp').iterdir() if '.' not in file.name)
    (follower, _) = (file for file in (path / 'tmp').iterdir() if '.' in file.name)
    follower.unlink()
    follower.mkdir()
    other = record.with_name(f'{record.name[:-32]}{"a" * 32}')
    other.mkdir()
    assert len(_queue(path).scan(NOW)[0]) == 2
    assert 'cannot be recovered' in caplog.text
    assert [file for file in files(_queue(path)) if file.startswith('failed/')] == [
        f'failed/{follower.name}'
    ]


def test_an_error_in_one_transaction_stops_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be recovered now is logged, and everything else goes on."""
    _left_behind(path, 'C')
    rename = os.rename

    def failing(source: str, target: str, **folders: int) -> None:
        if ENVELOPES[1].id in source:
            raise OSError(errno.EIO, 'Input/output error')
        rename(source, target, **folders)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'rename', failing)
        other = make_envelope()
        queue = _queue(path)
        queue.put([other]).publish()
        assert other.id in str(queue.scan(NOW)[0])
    assert 'stay in tmp/' in caplog.text
    assert len(_queue(path).scan(NOW)[0]) == 4


@pytest.mark.parametrize('in_doubt', ['hold', 'send'])
def test_a_transaction_that_ends_during_a_recovery_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, in_doubt: str
) -> None:
    """Listed while it was voted, published before its record could be locked: nothing is done."""
    queue = _queue(path, in_doubt=in_doubt)
    put = queue.put(ENVELOPES)
    opened = os.open
    record = put.tickets[0].order

    def racing(name: str, *args: Any, **options: Any) -> int:
        if name == record:
            monkeypatch.setattr(os, 'open', opened)
            put.publish()
        return opened(name, *args, **options)

    monkeypatch.setattr(os, 'open', racing)
    assert {ticket.state for ticket in queue.scan(NOW)[0]} == {'new'}
    assert _ids(path, 'new') == IDS


def test_a_locked_follower_is_left_for_later(path: Path) -> None:
    """If another program has locked a file of a transaction in doubt, the next scan holds it."""
    _left_behind(path, 'V')
    (follower, _) = (file for file in (path / 'tmp').iterdir() if '.' in file.name)
    queue = _queue(path)
    descriptor = queue._files.open('tmp', follower.name)
    assert descriptor is not None
    assert len(_queue(path).scan(NOW)[0]) == 2
    queue._files.close(descriptor)
    assert len(_queue(path).scan(NOW)[0]) == 3


def test_no_folder_is_nothing_to_recover(path: Path) -> None:
    """A missing tmp/ is made by the next put, not by recovery."""
    (path / 'tmp').rmdir()
    assert _queue(path).scan(NOW) == ([], None)
