"""Files that are no mail of ours: they forge no line of the log, and cost neither memory nor time,
whatever their names and sizes."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.format import decode, encode
from tests.support.folders import folder as tmp_path
from tests.support.queues import NOW, Clock, claimed, files, make_envelope

__all__ = ['tmp_path']

FORGED = 'x\n2026-12-01 CRITICAL all mail was lost\x1b[2J\u2028y'


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    return queue


class Pread:
    """Counts the bytes that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self._real = os.pread
        monkeypatch.setattr(os, 'pread', self)

    def __call__(self, descriptor: int, size: int, at: int) -> bytes:
        self.most = max(self.most, at + size)
        return self._real(descriptor, size, at)


def test_a_name_forges_no_line(queue: MaildirQueue, caplog: pytest.LogCaptureFixture) -> None:
    """Line breaks and escapes of a file's name are not in the log."""
    Path(queue.path, 'new', FORGED).write_text('?')
    with pytest.raises(DamagedMail):
        claimed(queue)
    assert caplog.records
    for record in caplog.records:
        assert record.getMessage().isprintable()


@pytest.mark.parametrize('text', ['a\nb', 'a\x1b[2Jb', 'a\x85b', 'a\u2028b', 'a\rb'])
@pytest.mark.parametrize('place', ['sender', 'message_id', 'recipient', 'id'])
def test_a_file_forges_no_line(queue: MaildirQueue, place: str, text: str) -> None:
    """A file with a correct checksum, but with such an address or id, is damaged; so is an id that
    would name another folder."""
    envelope = make_envelope()
    if place == 'recipient':
        envelope = replace(envelope, recipients=(f'{text}@example.org',))
    elif place == 'id':
        envelope = replace(envelope, id=f'../../../{text}')
    else:
        envelope = replace(envelope, **{place: f'{text}@example.org'})
    with pytest.raises(ValueError, match=r'damaged|recipient|checksum') as caught:
        decode(encode(envelope, 'C'))
    assert str(caught.value).isprintable()
    Path(queue.path, 'new', 'x').write_bytes(encode(envelope, 'C'))
    with pytest.raises(DamagedMail) as damaged:
        claimed(queue)
    assert damaged.value.reason.isprintable()


def test_a_path_out_of_the_queue_is_no_id(queue: MaildirQueue) -> None:
    """The id names the file, and that of its history."""
    envelope = make_envelope()
    data = encode(envelope, 'C').replace(envelope.id.encode(), b'../../../evil')
    with pytest.raises(ValueError, match=r'damaged|bytes'):
        decode(data)
    with pytest.raises(ValueError, match='damaged'):
        decode(encode(replace(envelope, id='../../evil'), 'C'))


@pytest.mark.parametrize(
    'begin',
    [
        b'',
        b'X-Envelope: nothing\r\n',
        b'X-Envelope: 1 00001301 000000000420 \r\n',
        b'A: b\r\n\r\n',
    ],
)
def test_a_huge_foreign_file_is_not_read(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    """Its first line, or its head, decides; the event has only the begin of it, and the page of an
    administrator reads no more."""
    path = Path(queue.path, 'new', 'huge')
    path.write_bytes(begin)
    os.truncate(path, 1024**3)
    read = Pread(monkeypatch)
    (info,) = queue.mails()
    details = queue.get(info.id)
    assert details is not None
    assert details.damaged
    with pytest.raises(DamagedMail) as caught:
        claimed(queue)
    assert len(caught.value.raw) == read.most == 1024 * 1024
    assert files(queue) == ['failed/huge']


def test_a_block_longer_than_its_file_is_not_read(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first line that says 99 MB is believed only if the lengths are those of the file."""
    path = Path(queue.path, 'new', 'huge')
    path.write_bytes(b'X-Envelope: 1 99999999 000000000420 ' + b'0' * 64 + b'\r\n')
    os.truncate(path, 1024**3)
    read = Pread(monkeypatch)
    with pytest.raises(DamagedMail, match='but its first line says'):
        claimed(queue)
    assert read.most == 1024 * 1024


def test_a_fifo_for_later_stops_no_scan(queue: MaildirQueue) -> None:
    """A FIFO or a link under the name of a mail for later is not waited for, and not followed."""
    later = f'5-{int((NOW + 60) * 1000):015d}-0000-'
    os.mkfifo(Path(queue.path, 'new', later + '0' * 32))
    Path(queue.path, 'new', later + '1' * 32).symlink_to('/dev/zero')
    assert queue.scan(NOW) == ([], NOW + 60)


@pytest.mark.parametrize('length', [250, 252, 254, 255])
@pytest.mark.parametrize('letter', ['x', 'é'])
def test_a_long_name_is_put_aside(queue: MaildirQueue, length: int, letter: str) -> None:
    """Again and again, though failed/ has that name: shortened, with its reason beside it."""
    name = (letter * 255).encode()[:length]
    for n in range(3):
        os.close(os.open(os.fsencode(queue.path) + b'/new/' + name, os.O_CREAT | os.O_WRONLY))
        with pytest.raises(DamagedMail):
            claimed(queue)
        assert len(os.listdir(f'{queue.path}/failed')) == n + 1
    reasons = {text.removesuffix('.txt') for text in os.listdir(f'{queue.path}/reasons')}
    assert reasons == set(os.listdir(f'{queue.path}/failed'))


def test_what_cannot_be_put_aside_is_logged_once(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with each scan."""
    Path(queue.path, 'new', 'foreign').write_text('?')

    def rename(*args: Any, **folders: int) -> None:
        raise OSError(errno.EBUSY, 'Device or resource busy')

    monkeypatch.setattr(os, 'rename', rename)
    for _ in range(3):
        assert [queue.claim(ticket) for ticket in queue.scan(NOW)[0]] == [None]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
