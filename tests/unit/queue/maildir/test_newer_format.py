"""Mail that a newer release has written stays where it is, for the processes of that release."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.format import decode, encode
from pyramid_sendmail.queue.maildir.options import OPTIONS, RESERVED, read_fixed
from tests.support.folders import folder as tmp_path
from tests.support.formats import with_checksums
from tests.support.queues import NOW, Clock, claimed, files, make_envelope

__all__ = ['tmp_path']


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    return queue


def newer(kind: str, id: str, state: str = 'C') -> bytes:
    """Return a file as a newer release may write it."""
    envelope = make_envelope(id=id)
    data = encode(envelope, state)
    if kind == 'version':
        return data.replace(b'X-Envelope: 2 ', b'X-Envelope: 3 sizes: ')
    block = decode(data)
    fixed = block.fixed.replace(b'"depth": 0}', f'"depth": 0, "{kind}": "x"}}'.encode())
    return with_checksums(data.replace(block.fixed, fixed))


def name(id: str) -> str:
    return f'5-{int(NOW * 1000):015d}-0000-{id}'


KINDS = ('version', 'novelty', *sorted(RESERVED))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('folder', ['new', 'cur', 'done'])
def test_it_stays_where_it_is(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture, kind: str, folder: str
) -> None:
    """No event, no dead letter, one line in the log; other mail is sent, and a new process, of
    whatever release, looks at it anew."""
    path = Path(queue.path, folder, name('0' * 32))
    data = newer(kind, '0' * 32)
    path.write_bytes(data)
    queue.put([make_envelope()]).publish()
    for _ in range(3):
        tickets, _ = queue.scan(NOW)
        found = [queue.claim(ticket) for ticket in tickets]
        assert sum(claim is not None for claim in found) == 1
        for claim in filter(None, found):
            claim.release()
    assert path.read_bytes() == data
    (record,) = caplog.records
    assert record.levelname == 'WARNING'
    assert 'newer release' in record.getMessage()
    assert kind == 'version' or kind in record.getMessage()
    assert any(ticket.key == '0' * 32 for ticket in MaildirQueue(queue.path).scan(NOW)[0])


def test_very_many_hold_up_no_other(queue: MaildirQueue) -> None:
    """A scan of a few names finds the mail of this release behind those of a newer one."""
    for n in range(8):
        Path(queue.path, 'new', name(f'{n:032x}')).write_bytes(newer('key', f'{n:032x}'))
    envelope = make_envelope(priority='low')
    queue.put([envelope]).publish()
    for _ in range(5):
        tickets, _ = queue.scan(NOW, limit=2)
        found = [claim for claim in map(queue.claim, tickets) if claim is not None]
        if found:
            break
    assert [claim.envelope.id for claim in found] == [envelope.id]


@pytest.mark.parametrize('kind', ['version', 'key'])
@pytest.mark.parametrize('state', ['V', 'W'])
def test_a_transaction_of_a_newer_release_stays_in_tmp(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture, kind: str, state: str
) -> None:
    """Its letter may stand elsewhere, and its process knows what in doubt means for it: it is not
    removed and not held. An option alone moves no letter."""
    if (kind, state) == ('key', 'W'):
        pytest.skip('removed, as a mail that was not voted is')
    path = Path(queue.path, 'tmp', name('0' * 32))
    path.write_bytes(newer(kind, '0' * 32, state))
    queue.scan(NOW)
    queue.scan(NOW)
    assert path.exists()
    logged = [record for record in caplog.records if 'stays in tmp/' in record.getMessage()]
    assert len(logged) == 1


def test_a_person_sees_why(queue: MaildirQueue) -> None:
    """A listing shows it, with the reason, and it cannot be changed by this release."""
    Path(queue.path, 'new', name('0' * 32)).write_bytes(newer('replaces', '0' * 32))
    (info,) = queue.mails()
    details = queue.get(info.id)
    assert details is not None
    assert details.damaged == 'this release does not know its option replaces'
    assert not queue.hold(info)
    assert len(files(queue)) == 1


def test_this_release_writes_no_reserved_option() -> None:
    """The names are free for the releases that will use them."""
    assert not OPTIONS & RESERVED
    *_, options = read_fixed(decode(encode(make_envelope(), 'C')).fixed)
    assert options.keys() == OPTIONS


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '1e999', '"x"', 'null', '[]'])
@pytest.mark.parametrize('option', ['queued_at', 'due', 'priority'])
def test_an_option_of_a_wrong_type_is_damage(queue: MaildirQueue, option: str, value: str) -> None:
    """Not an error that comes again with each scan."""
    envelope = make_envelope()
    data = encode(envelope, 'C')
    block = decode(data)
    begin = block.fixed.index(f'"{option}": '.encode())
    end = block.fixed.index(b', "', begin)
    fixed = block.fixed[:begin] + f'"{option}": {value}'.encode() + block.fixed[end:]
    data = with_checksums(data.replace(block.fixed, fixed))
    Path(queue.path, 'new', name(envelope.id)).write_bytes(data)
    with pytest.raises(ValueError, match='damaged'):
        claimed(queue)
    assert os.listdir(f'{queue.path}/failed') == [name(envelope.id)]
