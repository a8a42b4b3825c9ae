"""Old queues of zope.sendmail and repoze.sendmail."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from email import message_from_bytes
from email.header import Header
from email.message import Message
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.legacy import ADOPTED_SIZE, _envelope
from tests.support.folders import folder as tmp_path
from tests.support.growth import grows_linearly
from tests.support.queues import NOW, Clock, claimed, crashes, files, sent

__all__ = ['tmp_path']

OLD = '1700000000.4711.web.12345'
MAIL = (
    b'Message-ID: <4711@web.example.org>\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n'
    b'Date: Tue, 14 Nov 2023 22:13:20 +0000\nFrom: Shop <shop@example.org>\nTo: ann@example.org\n'
    b'\nHello.\nBye.\n'
)
ZOPE = b'X-Zope-From: bounces@example.org\nX-Zope-To: ann@example.org, bob@example.org\n' + MAIL


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    """A Maildir as the ancestors make it: three folders, readable by the group."""
    for folder in ('tmp', 'new', 'cur'):
        (tmp_path / 'queue' / folder).mkdir(parents=True)
    return MaildirQueue(str(tmp_path / 'queue'), clock=Clock())


def _lay(queue: MaildirQueue, data: bytes, folder: str = 'new') -> None:
    queue.prepare()
    Path(queue.path, folder, OLD).write_bytes(data)


def _repoze(sender: str, recipients: list[str], *, encoded: bool) -> bytes:
    """As repoze.sendmail writes it: the envelope's headers after the message's own."""
    message: Any = message_from_bytes(MAIL)
    assert isinstance(message, Message)
    charset = 'utf-8' if encoded else 'us-ascii'
    message['X-Actually-From'] = Header(sender, charset)
    message['X-Actually-To'] = Header(','.join(recipients), charset)
    return bytes(message.as_string(maxheaderlen=78), 'ascii')


def test_an_adopted_mail_leaves_no_file_open(queue: MaildirQueue) -> None:
    """Old queues may hold more mails than a process may open files."""
    for _ in range(3):
        _lay(queue, ZOPE)
        (ticket,), _ = queue.scan(NOW)
        claim = queue.claim(ticket)
        assert claim is not None
        assert len(queue._files._open) == 1
        claim.settle([sent(claim.envelope)], report=False)
    assert queue._files._open == {}


@pytest.mark.parametrize('folder', ['new', 'cur'])
def test_zope_mail_is_adopted(queue: MaildirQueue, folder: str) -> None:
    """The first claim gives the mail as one of ours: recipients, id, and the bytes with CRLF."""
    _lay(queue, ZOPE, folder)
    claim = claimed(queue)
    envelope = claim.envelope
    assert envelope.sender == 'bounces@example.org'
    assert claim.todo == envelope.recipients == ('ann@example.org', 'bob@example.org')
    assert envelope.message_id == '<4711@web.example.org>'
    assert envelope.subject == 'Grüße'
    assert envelope.raw == MAIL.replace(b'\n', b'\r\n')
    assert (envelope.queued_at, claim.attempt) == (NOW, 0)
    assert [file.partition('/')[0] for file in files(queue)] == ['new']
    claim.settle([sent(envelope)], report=False)
    assert files(queue) == []


@pytest.mark.parametrize('encoded', [True, False])
@pytest.mark.parametrize('count', [1, 30])
def test_repoze_mail_is_adopted(queue: MaildirQueue, encoded: bool, count: int) -> None:
    """repoze.sendmail puts its headers last, folded and encoded: read all the same."""
    recipients = [f'recipient{n}@example.org' for n in range(count)]
    _lay(queue, _repoze('bounces@example.org', recipients, encoded=encoded))
    claim = claimed(queue)
    assert claim.envelope.sender == 'bounces@example.org'
    assert claim.todo == tuple(recipients)
    assert claim.envelope.raw == MAIL.replace(b'\n', b'\r\n')
    claim.release()


@pytest.mark.parametrize('end', [b'\n', b'\r\n', b'\r'])
def test_line_ends_become_those_of_smtp(queue: MaildirQueue, end: bytes) -> None:
    """Whatever line ends the file has, the relay gets CRLF."""
    _lay(queue, ZOPE.replace(b'\n', end))
    claim = claimed(queue)
    assert claim.envelope.raw == MAIL.replace(b'\n', b'\r\n')
    claim.release()


def test_a_mail_without_an_id_gets_one(queue: MaildirQueue) -> None:
    """Retries need a Message-ID that stays: it is in the envelope and in the message."""
    _lay(queue, b'X-Zope-From: \nX-Zope-To: ann@example.org\nSubject: Hello\n\nHello.')
    claim = claimed(queue)
    envelope = claim.envelope
    assert envelope.sender == ''
    message = message_from_bytes(envelope.raw, policy=SMTP)
    assert message['Message-ID'] == envelope.message_id
    assert message['Subject'] == 'Hello'
    assert envelope.raw.endswith(b'\r\n\r\nHello.')
    claim.release()


@pytest.mark.parametrize(
    'head',
    [
        b'Message-ID: nonsense\n',
        b'Message-ID: <\n',
        b'Message-ID: <a b@c>\n',
        b'Subject: =?utf-8?b?x?=\n',
        b'Subject: =?no-such-charset?q?x?=\n',
        b'no header\n',
        b'',
    ],
)
def test_bad_headers_stop_no_other_mail(queue: MaildirQueue, head: bytes) -> None:
    """The ancestors checked little: what they queued is sent as it is, under an id of its own
    where theirs is none."""
    _lay(queue, b'X-Zope-From: a@example.org\nX-Zope-To: b@example.org\n' + head + b'\nHello.\n')
    claim = claimed(queue)
    assert claim.todo == ('b@example.org',)
    assert claim.envelope.message_id.isascii()
    assert head.replace(b'\n', b'\r\n') + b'\r\nHello.\r\n' in claim.envelope.raw
    claim.release()
    claimed(queue).release()


@pytest.mark.parametrize(
    ('given', 'sent_as'),
    [
        ('Subject: Grüße', 'Subject: =?utf-8?b?R3LDvMOfZQ==?='),
        (b'Subject: Gr\xfc\xdfe', 'Subject: =?utf-8?b?R3LDvMOfZQ==?='),
        ('To: Jürgen <j@bücher.example>', 'To: =?utf-8?q?J=C3=BCrgen?= <j@xn--bcher-kva.example>'),
        (b'From: J\xfcrgen <j@x.example>', 'From: =?utf-8?q?J=C3=BCrgen?= <j@x.example>'),
        (b'From: =?utf-8?q?a=2C?= J\xfc <j@x.example>', '<j@x.example>'),
        ('Cc: a@faß.de,\n\tb@x.example', 'Cc: a@xn--fa-hia.de, b@x.example'),
        ('Cc: A <ü@x.example>', 'Cc: =?utf-8?b?QSDDvEB4LmV4YW1wbGU=?=:;'),
        ('Cc: Us: ü@x.example, b@x.example;', 'Cc: Us: b@x.example;,'),
        ('Reply-To: Jürgen, Shop <j@x.example>', 'Reply-To: =?utf-8?b?SsO8cmdlbiw=?= Shop <'),
        ('Cc: ü@', 'Cc: =?utf-8?b?w7xA?='),
        ('X-Tag: ü\n über', 'X-Tag: =?utf-8?b?w7wgw7xiZXI=?='),
        ('X-Tag : ü', 'X-Tag: =?utf-8?b?w7w=?='),
        ('List-Id: Käse <k.x.example>', 'List-Id: =?utf-8?b?S8Okc2U=?= <k.x.example>'),
        ('Received: from ü by x', 'Received: from =?utf-8?b?w7w=?= by x'),
        ('Content-Type: text/plain; name="ü.txt"', "name*=utf-8''%C3%BC.txt"),
    ],
)
def test_a_head_that_is_not_ascii(queue: MaildirQueue, given: str | bytes, sent_as: str) -> None:
    """Raw bytes would fail for good at a relay without SMTPUTF8: they leave encoded, the headers
    beside them as they are, and the body byte for byte."""
    line = given if isinstance(given, bytes) else given.encode()
    others, body = b'Mime-version:1.0\nX-Folded: a,\n  b\n', b'8 bits: \xc3\xa4 \xff\r\n'
    _lay(queue, ZOPE.partition(b'Mess')[0] + line + b'\n' + others + b'\n' + body)
    claim = claimed(queue)
    head, _, found = claim.envelope.raw.partition(b'\r\n\r\n')
    assert claim.envelope.has_ascii_head
    assert sent_as.encode() in head
    assert others.replace(b'\n', b'\r\n').rstrip() in head
    assert found == body
    claim.release()


@pytest.mark.parametrize('kind', ['zope', 'repoze', 'repoze, encoded'])
def test_domains_of_the_envelope(queue: MaildirQueue, kind: str) -> None:
    """Domains that are not ASCII become A-labels, each recipient once; a label without a certain
    one stays, and is refused alone."""
    sender, recipients = 'shop@straße.example', ['ann@Bücher.example', 'ann@xn--bcher-kva.example']
    recipients += ['bob@\uff11.example']
    if kind == 'zope':
        begin = f'X-Zope-From: {sender}\nX-Zope-To: {", ".join(recipients)}\n'
        _lay(queue, begin.encode() + MAIL)
    elif kind == 'repoze':
        end = f'X-Actually-From: {sender}\nX-Actually-To: {",".join(recipients)}\n\n'
        _lay(queue, MAIL.replace(b'\n\n', b'\n' + end.encode(), 1))
    else:
        _lay(queue, _repoze(sender, recipients, encoded=True))
    claim = claimed(queue)
    assert claim.envelope.sender == 'shop@xn--strae-oqa.example'
    assert claim.todo == ('ann@xn--bcher-kva.example', 'bob@\uff11.example')
    claim.release()


def test_a_local_part_that_is_not_ascii(queue: MaildirQueue) -> None:
    """A recipient who needs SMTPUTF8 gets the address in the headers as it is."""
    head = 'X-Zope-From: a@x.example\nX-Zope-To: jürgen@x.example\nTo: jürgen@x.example\n'
    _lay(queue, head.encode() + b'\nx\n')
    claim = claimed(queue)
    assert claim.todo == ('jürgen@x.example',)
    assert 'To: jürgen@x.example\r\n'.encode() in claim.envelope.raw
    claim.release()


@pytest.mark.parametrize(
    'line', [b'Message-ID: \xff<\xfe@x>\n', b'Date: \xff\n', b'Bcc: c@x\n', b'resent-bcc: c@x\n']
)
def test_headers_that_are_left_out(queue: MaildirQueue, line: bytes) -> None:
    """An id or a date that cannot be encoded is made anew; blind copies do not leave."""
    _lay(queue, b'X-Zope-From: a@example.org\nX-Zope-To: b@example.org\n' + line + b'\nHello.\n')
    claim = claimed(queue)
    assert line.rstrip() not in claim.envelope.raw
    message = message_from_bytes(claim.envelope.raw, policy=SMTP)
    assert message.keys() == ['Message-ID', 'Date']
    assert message['Message-ID'] == claim.envelope.message_id
    claim.release()


@pytest.mark.parametrize('line', [b'\xff\xfe\n', b' \xff\n', b'X \xff: a\n'])
@pytest.mark.parametrize('blank', [b'\n', b''])
def test_a_line_that_is_no_header(queue: MaildirQueue, line: bytes, blank: bytes) -> None:
    """It ends the head where it is not ASCII, as relays have it, and nothing of it is lost."""
    begin = b'X-Zope-From: a@example.org\nX-Zope-To: b@example.org\n'
    if line[:1] == b' ':
        begin += b'X-A b: c\n' if blank else b'Subject\n'
    _lay(queue, begin + line + b'X-B: c\n' + blank + (blank and b'Hello.\n'))
    claim = claimed(queue)
    head, _, body = claim.envelope.raw.partition(b'\r\n\r\n')
    assert head.isascii()
    assert body.count(b'\xff') == 1
    assert body.endswith(b'X-B: c\r\n\r\n' + (b'Hello.\r\n' if blank else b''))
    claim.release()


@pytest.mark.parametrize('given', [b'', b'date: Tue, 14 Nov 2023 22:13:20 +0000\n', b'DATE : x\n'])
def test_a_date(queue: MaildirQueue, given: bytes) -> None:
    """A mail without a Date gets the time when it was adopted; a Date that it has stays."""
    _lay(queue, b'X-Zope-From: a@example.org\nX-Zope-To: b@example.org\n' + given + b'\nHello.\n')
    claim = claimed(queue)
    dates = re.findall(rb'(?im)^date *:.*\n', claim.envelope.raw)
    ours = b'Date: Tue, 14 Nov 2023 22:13:20 +0000\n'
    assert [each.replace(b'\r', b'') for each in dates] == [given or ours]
    claim.release()


def test_a_header_that_is_too_long_to_be_encoded(queue: MaildirQueue) -> None:
    """It stays as it is, and stops no other mail."""
    line = b'X-Long: ' + b'\xc3\xa4' * 100_001
    _lay(queue, ZOPE.partition(b'Mess')[0] + line + b'\n\nx\n')
    claim = claimed(queue)
    assert line in claim.envelope.raw
    claim.release()


@pytest.mark.parametrize(
    'data',
    [
        b'X-Zope-From: a@example.org\nX-Zope-To: \n\nHello.\n',
        b'X-Zope-From: a@example.org\nSubject: x\n\nHello.\n',
        b'X-Zope-To: a@example.org\n\nHello.\n',
        b'Subject: x\n\nX-Zope-From: a@example.org\nX-Zope-To: a@example.org\n\n',
        b'X-Zope-From: a@example.org\nX-Zope-To: a\0b@example.org\n\nHello.\n',
    ],
    ids=['neither', 'no To', 'no From', 'in the body', 'control'],
)
def test_what_names_no_envelope_is_foreign(queue: MaildirQueue, data: bytes) -> None:
    """A message without an envelope is moved to failed/ whole; no recipient is guessed."""
    _lay(queue, data)
    with pytest.raises(DamagedMail) as caught:
        claimed(queue)
    assert caught.value.raw == data
    assert files(queue) == [f'failed/{OLD}']


@pytest.mark.parametrize(
    'head',
    [
        'Content-Type: multipart/mixed; a="{";"*n}',
        'Content-Type: multipart/signed; boundary=q; {"x"*80}=y{"; a=b"*n}',
        'Subject: {"=?utf-8?q?"*n}',
        'Subject: {"=?utf-8?q?=C3=A9?= "*n}',
        'Message-ID: {"<"*n}',
        'X-Zope-To: {"=?utf-8?q?=C3=A9?= "*n}',
        'X-Zope-To: {"("*n}',
        'X-Zope-To: {"a:"*n}',
        'X-Zope-To: {"<"*n}',
        'X-Zope-To: {", "*n}',
        'X-Zope-To: {"a b"*n}',
        'X-Zope-From: {"("*n}{")"*n}',
    ],
)
def test_headers_that_keep_a_parser_busy(head: str) -> None:
    """Twice as long a header takes at most three times as long to adopt, and raises nothing."""

    def adopted(size: int) -> None:
        text = re.sub('{(.*?)\\*(.*?)}', lambda found: _repeated(found, size), head)
        _envelope(f'{text}\n'.encode() + ZOPE, NOW)

    assert grows_linearly(adopted, 30_000)


def _repeated(found: re.Match[str], size: int) -> str:
    return found[1].strip('"') * (size if found[2] == 'n' else int(found[2]))


@pytest.mark.parametrize(
    'text',
    [
        '{},' * 30_000,
        '{}, ' * 30_000,
        'Ann B <{}>, ' * 30_000,
    ],
)
def test_many_recipients_of_an_old_mail(text: str) -> None:
    """A long list is read whole."""
    recipients = [f'a{number}@example.org' for number in range(30_000)]
    data = f'X-Zope-From: a@x\nX-Zope-To: {text.format(*recipients)}\n\nx'

    envelope = _envelope(data.encode(), NOW)

    assert envelope is not None
    assert list(envelope.recipients) == recipients


@pytest.mark.parametrize('text', ['(' * 10_000, 'a:' * 9_000, '"a, b" <a@x>, ' * 5_000])
def test_recipients_that_cannot_be_read(queue: MaildirQueue, text: str) -> None:
    """A list that the parser gives up on makes the mail a damaged one; the others are sent."""
    _lay(queue, f'X-Zope-From: a@x\nX-Zope-To: {text}\n\nx'.encode())

    with pytest.raises(DamagedMail):
        claimed(queue)


@pytest.mark.slow
@pytest.mark.parametrize('folder', ['new', 'cur'])
def test_a_crash_while_adopting_leaves_one_mail(queue: MaildirQueue, folder: str) -> None:
    """The process stopped after each system call: one mail is left, in either form, and nothing in
    tmp/ for ever."""
    _lay(queue, ZOPE, folder)

    def check() -> None:
        claim = claimed(MaildirQueue(queue.path, clock=Clock()))
        assert claim.todo == ('ann@example.org', 'bob@example.org')
        assert len(files(queue)) == 1
        shutil.rmtree(queue.path)
        _lay(queue, ZOPE, folder)

    def work() -> None:
        claimed(MaildirQueue(queue.path, clock=Clock()))

    assert crashes(work, check) > 12


def test_a_disk_that_is_full_leaves_the_old_mail(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written anew stays what it was, and nothing is left beside it."""
    _lay(queue, ZOPE)
    (ticket,), _ = queue.scan(NOW)

    def full(*args: Any) -> int:
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'pwrite', full)
        with pytest.raises(QueueError, match='make room'):
            queue.claim(ticket)
    assert files(queue) == [f'new/{OLD}']
    claimed(queue).release()


def test_the_locks_of_an_ancestor_are_left_alone(queue: MaildirQueue) -> None:
    """.sending- and .rejected- files are no mail to be sent."""
    queue.prepare()
    for name in (f'.sending-{OLD}', f'.rejected-{OLD}'):
        Path(queue.path, 'new', name).write_bytes(ZOPE)
    assert queue.scan(NOW) == ([], None)


def test_a_copy_taken_for_a_dead_one_costs_a_second_try(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another processor's recovery may remove the new file before it is locked: the old mail is
    there still, and adopted by the next claim."""
    _lay(queue, ZOPE)
    (ticket,), _ = queue.scan(NOW)
    other = MaildirQueue(queue.path, clock=Clock())
    flock = fcntl.flock
    raced: list[int] = []

    def racing(descriptor: int, operation: int) -> None:
        if '/tmp/5-' in os.readlink(f'/proc/self/fd/{descriptor}') and not raced:
            raced.append(descriptor)
            other.scan(NOW)
        flock(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, 'flock', racing)
        assert queue.claim(ticket) is None
    assert raced
    claimed(queue).release()
    assert len(files(queue)) == 1


def test_two_processors_adopt_a_mail_once(queue: MaildirQueue) -> None:
    """The old file is locked while it is adopted, as any claim is."""
    _lay(queue, ZOPE)
    (ticket,), _ = queue.scan(NOW)
    claim = queue.claim(ticket)
    assert claim is not None
    other = MaildirQueue(queue.path, clock=Clock())
    assert other.claim(ticket) is None
    assert [other.claim(each) for each in other.scan(NOW)[0]] == [None]
    claim.release()


@pytest.mark.parametrize('age', [0, 60, 2 * 3600, -60])
def test_a_fresh_lock_of_theirs_is_left_alone(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture, age: float
) -> None:
    """A process of the ancestors that still runs is sending the mail: it stays, one line says why,
    and it is taken when the lock is old. Then nothing is left of the lock."""
    _lay(queue, ZOPE)
    path, lock = Path(queue.path, 'new', OLD), Path(queue.path, 'new', f'.sending-{OLD}')
    os.link(path, lock)
    os.utime(path, (NOW - age, NOW - age))
    for _ in range(2):
        assert [queue.claim(ticket) for ticket in queue.scan(NOW)[0]] == [None]
    assert path.read_bytes() == ZOPE
    assert lock.exists()
    assert len(caplog.records) == 1
    os.utime(path, (NOW - 4 * 3600, NOW - 4 * 3600))
    claim = claimed(queue)
    assert not lock.exists()
    claim.settle([sent(claim.envelope)], report=False)
    assert files(queue) == []


def test_a_lock_of_the_year_3000_keeps_no_mail(queue: MaildirQueue) -> None:
    """A clock that was wrong when they locked the mail does not stop it for ever."""
    _lay(queue, ZOPE)
    path = Path(queue.path, 'new', OLD)
    os.link(path, path.with_name(f'.sending-{OLD}'))
    os.utime(path, (NOW + 10**9, NOW + 10**9))
    claimed(queue).release()


@pytest.mark.parametrize('kind', ['zope', 'repoze'])
def test_lines_of_the_message_name_no_recipient(queue: MaildirQueue, kind: str) -> None:
    """A message with such lines of its own goes to those of its envelope, and keeps its lines."""
    own = b'X-Actually-From: evil@example.net\nX-Actually-To: evil@example.net\n'
    own += b'X-Zope-From: evil@example.net\nX-Zope-To: evil@example.net\n'
    head, blank, body = MAIL.partition(b'\n\n')
    if kind == 'zope':
        begin, end = b'X-Zope-From: shop@example.org\nX-Zope-To: ann@example.org\n', b''
    else:
        begin, end = b'', b'X-Actually-From: shop@example.org\nX-Actually-To: ann@example.org\n'
    _lay(queue, begin + own + head + b'\n' + end + blank[1:] + body)
    claim = claimed(queue)
    assert (claim.envelope.sender, claim.todo) == ('shop@example.org', ('ann@example.org',))
    assert claim.envelope.raw == (own + MAIL).replace(b'\n', b'\r\n')
    claim.release()


def test_two_envelopes(queue: MaildirQueue) -> None:
    """Where the lines of both ancestors stand in their places, one pair is the message's own: no
    recipient is guessed."""
    begin = b'X-Zope-From: shop@example.org\nX-Zope-To: ann@example.org\n'
    end = b'X-Actually-From: shop@example.org\nX-Actually-To: evil@example.net\n\n'
    data = begin + MAIL.replace(b'\n\n', b'\n' + end, 1)
    _lay(queue, data)
    with pytest.raises(DamagedMail):
        claimed(queue)
    assert files(queue) == [f'failed/{OLD}']


def test_mail_that_the_relay_of_an_ancestor_has_refused(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says how much mail stays, and how it is sent; it is not repeated."""
    queue.prepare()
    assert queue.scan(NOW) == ([], None)
    assert not caplog.records
    for folder, number in [('new', 1), ('new', 2), ('cur', 3)]:
        Path(queue.path, folder, f'.rejected-{number}').write_bytes(ZOPE)
    queue.scan(NOW, fresh=True)
    for _ in range(3):
        assert queue.scan(NOW) == ([], None)
    [record] = caplog.records
    assert record.levelname == 'WARNING'
    assert '3 mails' in record.getMessage()
    assert queue.path in record.getMessage()
    assert 'rename .rejected-* without .rejected-' in record.getMessage()
    assert len(files(queue)) == 3


def test_an_old_mail_of_any_size(queue: MaildirQueue) -> None:
    """What no relay takes is moved to failed/, without being read whole."""
    _lay(queue, ZOPE)
    os.truncate(Path(queue.path, 'new', OLD), ADOPTED_SIZE + 1)
    with pytest.raises(DamagedMail, match='more than those of an old mail that is sent') as caught:
        claimed(queue)
    assert len(caught.value.raw) == 1024 * 1024
    assert files(queue) == [f'failed/{OLD}']
