"""Mail that is too large to be held in memory: claimed by its envelope, sent block by block."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.envelope import BLOCK_SIZE, Envelope, StoredEnvelope, Tally, is_crlf
from pyramid_sendmail.exceptions import DamagedMail
from pyramid_sendmail.mailers.smtp.options import SessionOptions
from pyramid_sendmail.mailers.smtp.protocol.dot_stuffing import stuffed
from pyramid_sendmail.mailers.smtp.protocol.extensions import Extensions
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.large_text import LARGE_FILE, FileText
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.attempt import attempt
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.support.processors import RecordingDispatcher
from tests.support.queues import (
    NOW,
    Clock,
    claimed,
    deferred,
    failed,
    files,
    forked,
    make_envelope,
    reap,
    sent,
    the_file,
)
from tests.support.sessions import SMTPMailer, idle
from tests.support.smtp.server import ScriptedSMTPServer

LINE = '.' + 'x' * 69 + '\r\n'
BODY = LINE * (2 * LARGE_FILE // len(LINE))


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    queue.prepare()
    return queue


def _large(*recipients: str, body: str = BODY, **options: Any) -> Envelope:
    return make_envelope(*recipients, body=body, **options)


def _recorder(*kinds: str) -> OutcomeRecorder:
    return OutcomeRecorder(RetryPolicy(jitter=0.0), RecordingDispatcher(*kinds), clock=Clock())


LINES = st.lists(st.sampled_from([b'x\r\n', b'x\r\n', b'\r', b'\n', b'x', b'\n\r']), max_size=8)


@given(lines=LINES)
@example(lines=[b'x\r\n', b'x\r\n', b'x\r\n'])
@example(lines=[b'xx\n', b'xx\n\r\r'])
@example(lines=[b'\nx\r'])
@example(lines=[b'x\r\nx\r\n\rx\n'])
def test_line_ends_other_than_crlf_are_found(lines: list[bytes]) -> None:
    """However long the lines are: a lone CR or LF could hide a second mail in this one."""
    text = b''.join(lines)
    pairs = text.count(b'\r\n')
    assert is_crlf(text) == (pairs == text.count(b'\r') == text.count(b'\n'))


def _mailer(server: ScriptedSMTPServer) -> SMTPMailer:
    return SMTPMailer(server.host, server.port, hostname='web.example.org')


def test_a_large_mail_has_the_same_attributes_as_a_small_one(queue: MaildirQueue) -> None:
    """Size, blocks and bytes do not depend on where the text is."""
    envelope = _large()
    queue.put([envelope]).publish()
    claim = claimed(queue)
    stored = claim.envelope
    assert isinstance(stored, StoredEnvelope)
    assert stored.size == envelope.size == len(envelope.raw)
    assert b''.join(stored.blocks()) == stored.raw == envelope.raw
    assert list(envelope.blocks()) == [
        envelope.raw[at : at + BLOCK_SIZE] for at in range(0, envelope.size, BLOCK_SIZE)
    ]
    for name in ('id', 'message_id', 'sender', 'recipients', 'subject', 'due', 'not_before'):
        assert getattr(stored, name) == getattr(envelope, name)
    assert not hasattr(stored, 'colour')
    claim.release()


@pytest.mark.parametrize('more', [-1, 0, 1])
def test_from_a_size_on_the_text_stays_in_the_file(queue: MaildirQueue, more: int) -> None:
    """The limit is the file's: what is read at once is bounded whatever the envelope holds."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    length = the_file(queue, 'new').stat().st_size
    claim = claimed(queue)
    claim.settle([sent(envelope)], report=False)
    envelope = make_envelope(body='Hello.' + 'x' * (LARGE_FILE - length + more))
    queue.put([envelope]).publish()
    assert the_file(queue, 'new').stat().st_size == LARGE_FILE + more
    claim = claimed(queue)
    assert isinstance(claim.envelope, StoredEnvelope) == (more >= 0)
    assert claim.envelope.raw == envelope.raw
    claim.release()


def test_an_envelope_longer_than_all_that(queue: MaildirQueue) -> None:
    """A mail to thousands of recipients is claimed, too."""
    recipients = [f'a-rather-long-name-{number:05d}@example.org' for number in range(8_000)]
    envelope = make_envelope(*recipients)
    queue.put([envelope]).publish()
    claim = claimed(queue)
    assert claim.todo == envelope.recipients
    assert claim.envelope.raw == envelope.raw
    claim.release()


TEXTS = st.lists(
    st.sampled_from([b'\r\n', b'\r', b'\n', b'.', b'x', 'é'.encode(), b'\r\n\r\n']), max_size=12
).map(b''.join)


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> QueueFiles:
    store = QueueFiles(str(tmp_path_factory.mktemp('store')), sync=False)
    store.folders.prepare()
    return store


@given(text=TEXTS, size=st.integers(1, 5), before=st.integers(0, 3))
def test_a_survey_sees_across_the_borders_of_blocks(
    store: QueueFiles, text: bytes, size: int, before: int
) -> None:
    """Line ends, 8-bit bytes and where the headers end are found wherever a block ends."""
    path = store.path('tmp', 'text')
    Path(path).write_bytes(b'#' * before + text)
    descriptor = store.open('tmp', 'text')
    assert descriptor is not None
    stored = FileText(store, descriptor, at=before, end=before + len(text), block=size)
    seen: list[bytes] = []
    try:
        stored.survey(seen.append)
        assert stored.read() == text
    finally:
        store.close(descriptor)
    known = make_envelope()
    object.__setattr__(known, 'raw', text)
    assert (stored.size, stored.traits) == (known.size, known.traits)
    assert b''.join(seen) == text
    assert all(len(block) <= size for block in seen)


@pytest.mark.parametrize(
    ('body', 'offered', 'words'),
    [
        (BODY + '\n', {'8BITMIME': ''}, 'line ends'),
        (BODY + 'é', {}, '8BITMIME'),
        (BODY, {'SIZE': str(LARGE_FILE)}, 'SIZE'),
        (BODY, {'SIZE': str(3 * LARGE_FILE)}, ''),
    ],
)
def test_what_a_relay_cannot_take_is_known_before(
    queue: MaildirQueue, body: str, offered: dict[str, str], words: str
) -> None:
    """A large mail that the relay would refuse is not offered to it."""
    queue.put([_large(body=body)]).publish()
    claim = claimed(queue)
    verdicts = Extensions(offered, SessionOptions()).rejected_before_sending(claim.envelope)
    assert [words in verdict.reason for verdict in verdicts.values()] == [True] * bool(words)
    claim.release()


def test_memory_is_bounded_by_blocks(queue: MaildirQueue) -> None:
    """A mail is claimed, surveyed and stuffed without its text ever being held."""
    queue.put([_large(body=LINE * (64 * LARGE_FILE // len(LINE)))]).publish()
    tracemalloc.start()
    try:
        claim = claimed(queue)
        length = sum(len(piece) for piece in stuffed(claim.envelope.blocks()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length > 64 * LARGE_FILE
    assert peak < 3 * LARGE_FILE
    claim.release()


@pytest.mark.parametrize('at', [-1, -BLOCK_SIZE, 0])
def test_a_torn_file_is_never_sent(queue: MaildirQueue, at: int) -> None:
    """A file that is too short or too long is detected at the claim, and moved to failed/ whole."""
    queue.put([_large()]).publish()
    path = the_file(queue, 'new')
    data = path.read_bytes()
    data = data[:at] if at else data + b'\r\n'
    path.write_bytes(data)
    (ticket,), _ = queue.scan(NOW)
    with pytest.raises(DamagedMail, match='but its first line says') as caught:
        queue.claim(ticket)
    assert caught.value.raw == data
    assert files(queue) == [f'failed/{path.name}']


@pytest.mark.parametrize('back', [2, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * LARGE_FILE])
def test_a_changed_file_is_never_sent(queue: MaildirQueue, back: int) -> None:
    """One byte is enough, wherever it stands."""
    queue.put([_large()]).publish()
    path = the_file(queue, 'new')
    data = bytearray(path.read_bytes())
    data[-back] ^= 1
    path.write_bytes(data)
    (ticket,), _ = queue.scan(NOW)
    with pytest.raises(DamagedMail, match='checksum'):
        queue.claim(ticket)


def test_a_foreign_file_that_is_large(queue: MaildirQueue) -> None:
    """A foreign file is recognised by its first bytes, and moved to failed/ whole."""
    path = Path(queue.path) / 'new' / 'something'
    path.write_bytes(b'x' * 2 * LARGE_FILE)
    (ticket,), _ = queue.scan(NOW)
    with pytest.raises(DamagedMail, match='not a file of this queue') as caught:
        queue.claim(ticket)
    assert len(caught.value.raw) == 2 * LARGE_FILE


def test_after_the_release_nothing_is_read(queue: MaildirQueue) -> None:
    """The number of the file may be another mail's by then: its text is not taken for this one."""
    queue.put([_large('a@example.org', body=BODY)]).publish()
    claim = claimed(queue)
    envelope = claim.envelope
    blocks = envelope.blocks()
    assert len(next(blocks)) == BLOCK_SIZE
    claim.release()
    other = claimed(queue)
    for read in (lambda: envelope.raw, lambda: next(blocks)):
        with pytest.raises(OSError, match='released'):
            read()
    assert other.envelope.raw
    other.release()


def test_a_child_does_not_read_its_parents_mail(queue: MaildirQueue) -> None:
    """A forked child has closed what it inherited."""
    queue.put([_large()]).publish()
    claim = claimed(queue)

    def child() -> None:
        try:
            _ = claim.envelope.raw
        except OSError as error:
            os._exit(3 if error.errno == errno.EBADF else 4)

    assert reap(forked(child)) == 3
    assert claim.envelope.raw
    claim.release()


def test_a_large_mail_arrives_byte_for_byte(queue: MaildirQueue) -> None:
    """Dots at every place of a block's border, and recipients that have it already left out."""
    shift = ''.join('x' * (number % 7) + '\r\n.' for number in range(LARGE_FILE))
    envelope = _large('a@example.org', 'b@example.org', body=shift)
    queue.put([envelope]).publish()
    claim = claimed(queue)
    events = [deferred(envelope, 'a@example.org', until=NOW), sent(envelope, 'b@example.org')]
    claim.settle(events, retry_at=NOW, report=False)
    queue.put([_large('c@example.org')]).publish()
    with ScriptedSMTPServer(extensions=('PIPELINING', 'SIZE')) as server:
        tally = Tally()
        connection = RelayConnection(_mailer(server))
        tickets, _ = queue.scan(NOW)
        attempt((queue.claim(ticket) for ticket in tickets), connection, _recorder(), tally)
        connection.close()
        idle(server)
        messages = sorted(server.messages, key=lambda message: message.recipients)
    assert tally == Tally(delivered=2)
    assert [message.recipients for message in messages] == [('a@example.org',), ('c@example.org',)]
    assert messages[0].data == envelope.raw
    assert not server.violations
    assert files(queue) == []


def test_an_error_event_has_the_bytes(queue: MaildirQueue) -> None:
    """A caller that reads the bytes while the mail is claimed gets them: nothing is lost."""
    envelope = _large()
    queue.put([envelope]).publish()
    claim = claimed(queue)
    claim.settle([failed(envelope)])
    assert claim.envelope.raw == envelope.raw
    claim.acknowledge(claim.pending_events)
    with pytest.raises(OSError, match='released'):
        _ = claim.envelope.raw
    assert files(queue) == [f'failed/{the_file(queue, "failed").name}']


def test_a_file_that_becomes_shorter_while_it_is_sent(queue: MaildirQueue) -> None:
    """A file that is cut after it was claimed: the final dot never leaves, and the mail is
    deferred. The next claim finds it damaged. The mail behind it is sent."""
    queue.put([_large('a@example.org', due=NOW - 1)]).publish()
    (first,), _ = queue.scan(NOW)
    path = the_file(queue, 'new')
    queue.put([make_envelope('b@example.org')]).publish()
    (_, second), _ = queue.scan(NOW)
    claims = [queue.claim(first), queue.claim(second)]
    os.truncate(path, path.stat().st_size - 2 * BLOCK_SIZE)
    with ScriptedSMTPServer(extensions=('PIPELINING',)) as server:
        connection, tally, recorder = RelayConnection(_mailer(server)), Tally(), _recorder()
        left = iter(claims)
        attempt(left, connection, recorder, tally)
        attempt(left, connection, recorder, tally)
        connection.close()
        idle(server)
        assert [message.recipients for message in server.messages] == [('b@example.org',)]
    assert tally == Tally(delivered=1, deferred=1)
    (ticket,), _ = queue.scan(NOW + 1e6)
    with pytest.raises(DamagedMail, match='but its first line says'):
        queue.claim(ticket)
