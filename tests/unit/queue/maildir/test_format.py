"""The file of a queued mail."""

from __future__ import annotations

import email
import json
import mailbox
import os
import pty
import shutil
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace
from email.policy import SMTP
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Envelope, Reply, traits_of
from pyramid_sendmail.exceptions import DamagedMail, MessageError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.first_line import lengths_text
from pyramid_sendmail.queue.maildir.format import (
    STATE_AT,
    EnvelopeBlock,
    Unreadable,
    decode,
    encode,
)
from pyramid_sendmail.queue.ticket import milliseconds
from tests.support.formats import version_1, with_checksums
from tests.support.queues import NOW, Clock, claimed, failed, files, make_envelope, sent, the_file

ID = '0123456789abcdef0123456789abcdef'


def _small() -> Envelope:
    return make_envelope('ann@example.org', 'bob@example.org', id=ID, tag='welcome')


def _encoded(envelope: Envelope, state: str) -> tuple[EnvelopeBlock, bytes]:
    data = encode(envelope, state)
    return decode(data), data


def test_the_bytes_of_a_file_are_fixed() -> None:
    """Both versions of the format, to the byte: files of an old version must stay readable."""
    raw = _small().raw
    after_first_line = (
        b'X-Envelope-State: V 001700000000000 000000000000000\r\n'
        b'X-Envelope-Outcome: [[]]' + b' ' * 972 + b'\r\n'
        b'X-Envelope-Id: 0123456789abcdef0123456789abcdef\r\n'
        b'X-Envelope-Message-Id: <0123456789abcdef0123456789abcdef@web.example.org>\r\n'
        b'X-Envelope-From: bounces@example.org\r\n'
        b'X-Envelope-Options: {"queued_at": 1700000000.0, "due": 1700000000.0, "expires": null, '
        b'"priority": "normal", "subject": "", "tag": "welcome", "metadata": {}, "depth": 0}\r\n'
        b'X-Envelope-To: T00000T ann@example.org\r\n'
        b'X-Envelope-To: T00000T bob@example.org\r\n' + raw
    )
    assert encode(_small(), 'V') == (
        b'X-Envelope: 2 00001565 000000000137 '
        b'message=3933e41c rest=4b60547a crlf no-dots ascii               \r\n' + after_first_line
    )
    old = (
        b'X-Envelope: 1 00001565 000000000137 '
        b'e1aa0f84896ae94e1d1c591dd963d3ea4a5b0bf4474662b8bfdeed7fc136f2a0\r\n' + after_first_line
    )
    assert decode(old).envelope == _small()
    assert old == version_1(encode(_small(), 'V'))


def test_options_are_the_json_that_the_library_writes() -> None:
    """Whatever an envelope holds, its line of options is what json.dumps makes of it."""
    envelope = replace(
        make_envelope(),
        due=1700000000.125,
        expires=1700000001.5,
        priority='high',
        subject='Größe "1" \\ \u2028 \U0001f600',
        tag=None,
        metadata=MappingProxyType({'é"': '\x7f', 'b': ''}),
        depth=1,
    )
    options = {
        'queued_at': envelope.queued_at,
        'due': envelope.due,
        'expires': envelope.expires,
        'priority': envelope.priority,
        'subject': envelope.subject,
        'tag': None,
        'metadata': dict(envelope.metadata),
        'depth': 1,
    }
    line = f'X-Envelope-Options: {json.dumps(options)}\r\n'
    assert line.encode() in encode(envelope, 'C')
    assert decode(encode(envelope, 'C')).envelope == envelope


def test_the_letter_of_a_mail_stands_at_its_place() -> None:
    """STATE_AT is where the letter is, whatever the mail."""
    for envelope in (_small(), make_envelope(*(f'r{n}@example.org' for n in range(100)))):
        for letter in 'WVCS':
            assert encode(envelope, letter)[STATE_AT : STATE_AT + 1] == letter.encode()


def test_a_queued_file_is_a_message() -> None:
    """Python's parser reads the file as the message, without a defect, no line too long."""
    envelope = replace(
        make_envelope(*(f'r{n}@example.org' for n in range(30))),
        subject='word ' * 2000,
        metadata=MappingProxyType({'note': 'some words ' * 500}),
    )
    block, data = _encoded(envelope, 'C')
    block.settle(
        [
            failed(envelope, to, group=n, text='no such user here ' * 99)
            for n, to in enumerate(envelope.recipients)
        ]
    )
    data = data[:STATE_AT] + block.mutable_part() + envelope.raw
    assert decode(data).envelope == envelope
    message = email.message_from_bytes(data, policy=SMTP)
    assert message['Subject'] == 'Welcome'
    assert message.get_content() == 'Hello.\r\n'
    assert not message.defects
    assert max(len(line) for line in data.split(b'\r\n')) <= 998


TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=300)


@settings(max_examples=100, deadline=None)
@given(
    subject=TEXT,
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
    raw=st.binary(max_size=200),
    count=st.integers(1, 20),
    expires=st.none() | st.floats(0, 2e9),
)
def test_every_envelope_survives(
    subject: str, metadata: dict[str, str], raw: bytes, count: int, expires: float | None
) -> None:
    """What is encoded is decoded to the same."""
    envelope = replace(
        make_envelope(*(f'r{n}@exämple.org' for n in range(count))),
        subject=subject,
        metadata=MappingProxyType(metadata),
        raw=raw,
        expires=expires,
    )
    block = decode(encode(envelope, 'C'))
    assert block.envelope == envelope
    assert block.envelope.metadata == metadata


@pytest.mark.parametrize('version', [1, 2])
def test_every_flipped_bit_is_found_or_harmless(version: int) -> None:
    """No single bit makes a mail another mail, or one that is done with."""
    envelope = _small()
    data = encode(envelope, 'C')
    data = version_1(data) if version == 1 else data
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            try:
                block = decode(bytes(damaged))
            except Unreadable:
                continue
            assert block.envelope == envelope
            assert block.letters == ['T', 'T']
            assert at < data.index(b'X-Envelope-Id') or data[at : at + 1] == b'0'


def test_every_flipped_byte_of_a_recorded_outcome_is_found_or_harmless() -> None:
    """Damage among the letters never turns a recipient into one that is settled otherwise."""
    envelope = _small()
    block, data = _encoded(envelope, 'C')
    block.settle([sent(envelope, 'ann@example.org'), failed(envelope, 'bob@example.org', group=1)])
    block.mark(['bob@example.org'], 'F')
    data = data[:STATE_AT] + block.mutable_part() + envelope.raw
    for at in range(len(data)):
        for flip in (0x01, 0x02, 0x10, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= flip
            try:
                found = decode(bytes(damaged))
            except Unreadable:
                continue
            assert found.letters == ['d', 'F']
            assert found.envelope == envelope
            (event,) = found.pending_events()
            assert (event.kind, event.recipients) == ('sent', ('ann@example.org',))
            found.mutable_part()


def test_every_truncation_is_found() -> None:
    """A file that ends too early, wherever, is never sent; nor is one that goes on."""
    data = encode(_small(), 'C')
    for length in range(len(data)):
        with pytest.raises(Unreadable):
            decode(data[:length])
    with pytest.raises(Unreadable, match='bytes, but'):
        decode(data + b'\n')


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        (b'X-Envelope: 2', b'X-Envelope: 3', 'version 3'),
        (b'X-Envelope: 2', b'X-Envelope: 1', 'checksum'),
        (b'X-Envelope: 2', b'X-Envelope: 0', 'first line'),
        (b'X-Envelope: 2 0', b'X-Envelope: 2 x', 'first line'),
        (b' message=', b' massage=', 'first line'),
        (b' no-dots', b'    dots', 'checksum'),
        (b'X-Envelope: 2', b'From: x', 'not a file of this queue'),
        (b'-To: T00000T ann', b'-To: D00000T ann', 'recipient'),
        (b'-To: T00000T ann', b'-To: T00002T ann', 'recipient'),
        (b'-To: T00000T ann', b'-To: x00000x ann', 'recipient'),
        (b'-To: T00000T ann', b'-To: T00000T bnn', 'checksum'),
        (b'X-Envelope-To: ', b'X-Envelope-Tu: ', 'no recipient'),
        (b'X-Envelope-State: C', b'X-Envelope-State: X', 'state line'),
        (b'X-Envelope-State: C', b'X-Envelope-Stata: C', 'state line'),
        (b'X-Envelope-State: C 0', b'X-Envelope-State: C x', 'damaged'),
        (b'Hello', b'Hullo', 'checksum'),
    ],
)
def test_damage_is_named(old: bytes, new: bytes, words: str) -> None:
    """What is wrong with a file is said in words, for the reason in failed/."""
    data = encode(_small(), 'C')
    assert old in data
    with pytest.raises(Unreadable, match=words):
        decode(data.replace(old, new))


def test_an_unknown_option_is_damage() -> None:
    """A file of a later minor version, with an option that we do not know, is not guessed at."""
    data = encode(make_envelope(), 'C')
    with pytest.raises(Unreadable, match='width'):
        decode(with_checksums(data.replace(b'"depth"', b'"width"')))


def test_padding_means_nothing() -> None:
    """Lines of blanks behind the options, so that a file can have the length of another one."""
    envelope = make_envelope(metadata={'note': 'word ' * 400})
    data = encode(envelope, 'C')
    padding = (b'X-Envelope-Padding: ' + b' ' * 900 + b'\r\n') * 4
    padded = with_checksums(data.replace(b'X-Envelope-To', padding + b'X-Envelope-To', 1))
    assert len(padded) == len(data) + len(padding)
    assert decode(padded).envelope == envelope
    with pytest.raises(Unreadable, match='damaged'):
        decode(with_checksums(padded.replace(b'Padding:  ', b'Padding: x')))


@pytest.mark.parametrize(
    ('raw', 'words'),
    [
        (b'A: b\r\n\r\nHello.\r\n', 'crlf no-dots ascii'),
        (b'A: b\r\n\r\n.\r\n', 'crlf dots ascii'),
        (b'.', 'crlf dots ascii'),
        (b'A: b\n\nHello\n.\n', 'no-crlf no-dots ascii'),
        ('A: b\r\n\r\nGrüße.\r\n'.encode(), 'crlf no-dots ascii-head'),
        ('Ä: b\r\n\r\n.Grüße\r'.encode(), 'no-crlf dots 8bit'),
    ],
)
def test_what_the_message_is_like(raw: bytes, words: str) -> None:
    """It stands in the first line, and nothing looks through the message again."""
    envelope = replace(make_envelope(), raw=raw)
    data = encode(envelope, 'C')
    assert data.split(b'\r\n')[0].endswith(f' {words}'.ljust(34).encode())
    found = decode(data).envelope
    assert found._traits == envelope.traits
    assert replace(found, raw=b'.').traits == traits_of(b'.')
    assert decode(version_1(data)).envelope.traits == envelope.traits


def test_forty_different_replies_are_kept_apart() -> None:
    """Relays answer each recipient in its own words: each event keeps its id, its recipient and as
    many of its words as the slot has room for."""
    recipients = [f'r{n}@example.org' for n in range(40)]
    envelope = make_envelope(*recipients)
    block, data = _encoded(envelope, 'C')
    events = [
        failed(envelope, to, group=n, text=f'5.1.1 <{to}>: user unknown')
        for n, to in enumerate(recipients)
    ]
    block.settle(events)
    found = decode(data[:STATE_AT] + block.mutable_part() + envelope.raw)
    assert found.pending_events() == events


def test_long_replies_are_cut_to_fit() -> None:
    """A reply that has no room is cut; whose it is, and which event, stays."""
    envelope = make_envelope('ann@example.org', 'bob@example.org')
    block, data = _encoded(envelope, 'C')
    events = [
        failed(envelope, to, group=n, text='ünïcode ' * 500)
        for n, to in enumerate(envelope.recipients)
    ]
    block.settle([event._replace(mailer='relay ' * 100) for event in events])
    found = decode(data[:STATE_AT] + block.mutable_part() + envelope.raw).pending_events()
    assert [(event.id, event.recipients) for event in found] == [
        (event.id, event.recipients) for event in events
    ]
    for event in found:
        assert event.reply is not None
        assert event.reply.code == 550
        assert 16 <= len(event.reply.text) < 1000


def test_what_is_settled_again_takes_no_more_room() -> None:
    """A process died between the letters and the rename of a mail in doubt, and the next one puts
    the same down once more: there are never more replies than recipients."""
    envelope = make_envelope()
    block, data = _encoded(envelope, 'V')
    for _ in range(3):
        block.settle([failed(envelope)])
        block = decode(data[:STATE_AT] + block.mutable_part() + envelope.raw)
        assert len(block.entries) == 1
    assert block.pending_events() == [failed(envelope)]


def test_marks_without_recipients_take_no_room() -> None:
    """An event for no recipient of this mail changes nothing."""
    envelope = make_envelope()
    block, _ = _encoded(envelope, 'C')
    block.settle([sent(envelope, 'dan@example.org')])
    assert block.entries == []
    assert block.letters == ['T']


@pytest.mark.parametrize(
    'slot',
    [b'', b'[', b'[]', b'17', b'[["m"],[1]]', b'[["m"],[1,0,7,250,"ok",null,1,0]]', b'\xff'],
)
def test_a_torn_slot_costs_words_not_mail(slot: bytes) -> None:
    """If the replies are lost, the letters still say which recipients are settled."""
    envelope = make_envelope('a@example.org', 'b@example.org', 'c@example.org')
    block, data = _encoded(envelope, 'C')
    block.settle([sent(envelope, 'a@example.org'), failed(envelope, 'b@example.org', group=1)])
    data = data[:STATE_AT] + block.mutable_part() + envelope.raw
    at = data.index(b'X-Envelope-Outcome: ') + len(b'X-Envelope-Outcome: ')
    found = decode(data[:at] + slot.ljust(976) + data[at + 976 :])
    assert found.letters == ['d', 'f', 'T']
    assert [(event.kind, event.recipients) for event in found.pending_events()] == [
        ('sent', ('a@example.org',)),
        ('error', ('b@example.org',)),
    ]
    assert len({event.id for event in found.pending_events()}) == 2
    # And it can be written again, with what a next attempt brings.
    found.settle([sent(envelope, 'c@example.org', attempt=2)])
    again = decode(data[:STATE_AT] + found.mutable_part() + envelope.raw)
    assert again.pending_events() == found.pending_events()
    assert again.pending_events()[2] == sent(envelope, 'c@example.org', attempt=2)


def test_reasons_are_kept_exactly() -> None:
    """A reason of its own, one that is the reply, and none: each comes back as it was."""
    envelope = make_envelope('a@example.org', 'b@example.org', 'c@example.org')
    block, data = _encoded(envelope, 'C')
    reply = Reply(550, 'no')
    events = [
        failed(envelope, 'a@example.org', group=0)._replace(reply=reply, reason='550 no'),
        failed(envelope, 'b@example.org', group=1)._replace(reply=reply, reason='given up: 550 no'),
        failed(envelope, 'c@example.org', group=2)._replace(reply=reply, reason=''),
    ]
    block.settle(events)
    assert decode(data[:STATE_AT] + block.mutable_part() + envelope.raw).pending_events() == events


# The same through a queue


def test_a_flipped_byte_in_the_queue_ends_in_failed(tmp_path: Path) -> None:
    """Each byte of a queued file in its turn: it ends in failed/ with a reason, or can still be
    sent to all recipients."""
    queue = MaildirQueue(str(tmp_path), sync=False, clock=Clock())
    queue.prepare()
    queue.put([_small()]).publish()
    path = the_file(queue, 'new')
    data = path.read_bytes()
    damaged = harmless = 0
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        path.write_bytes(flipped)
        (ticket,), _ = queue.scan(NOW)
        try:
            claim = queue.claim(ticket)
        except DamagedMail as caught:
            error: DamagedMail | None = caught
        else:
            error = None
        if error is not None:
            assert error.raw == flipped
            assert files(queue) == [f'failed/{path.name}']
            reason = tmp_path / 'reasons' / f'{error.name}.txt'
            assert reason.read_text('utf-8').strip() == error.reason
            (tmp_path / 'failed' / error.name).unlink()
            damaged += 1
        else:
            assert claim is not None
            assert claim.todo == _small().recipients
            assert claim.envelope == _small()
            claim.release()
            path.unlink()
            harmless += 1
    assert damaged > harmless - 976 > 0


def test_the_queue_opens_in_a_mail_program(tmp_path: Path) -> None:
    """The standard library's Maildir reads new/ and cur/ as the mail it is."""
    queue = MaildirQueue(str(tmp_path), clock=Clock())
    envelopes = [make_envelope(body='Grüße.'), make_envelope(body='Hello.')]
    queue.put(envelopes).publish()
    box = mailbox.Maildir(str(tmp_path), create=False)
    assert sorted(message['Message-ID'] for message in box) == sorted(
        envelope.message_id for envelope in envelopes
    )
    for message in box:
        assert message['Subject'] == 'Welcome'
        body = message.get_payload(decode=True)
        assert isinstance(body, bytes)
        assert body.decode() in ('Grüße.\n', 'Hello.\n')


@pytest.mark.skipif(shutil.which('mutt') is None, reason='mutt: apt-get install mutt')
def test_mutt_opens_the_queue(tmp_path: Path) -> None:  # pragma: no cover
    """mutt -f shows the mail, and leaves it in the queue under a name that still works."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    envelope = make_envelope()
    queue.put([envelope]).publish()
    (tmp_path / 'Mail').mkdir()  # or it asks for it
    terminal, slave = pty.openpty()
    screen: list[bytes] = []

    def draw() -> None:
        with suppress(OSError):
            while seen := os.read(terminal, 65536):
                screen.append(seen)

    thread = threading.Thread(target=draw)
    thread.start()
    command = ['mutt', '-n', '-F', '/dev/null', '-e', 'set quit=yes', '-e', "push '<quit>'"]
    try:
        result = subprocess.run(
            [*command, '-f', queue.path],
            env={'TERM': 'xterm', 'HOME': str(tmp_path), 'PATH': os.environ['PATH']},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            timeout=20,
        )
    finally:
        os.close(slave)
        thread.join()
        os.close(terminal)
    assert result.returncode == 0
    assert b'shop@example.or' in b''.join(screen)
    assert b'Welcome' in b''.join(screen)
    claim = claimed(queue)
    assert claim.todo == envelope.recipients
    claim.release()


@pytest.mark.parametrize('now', [1795395396.6615, 1795395396.661999, 1795395396.0, 0.0])
def test_a_time_in_a_file_is_never_later_than_it_is(now: float) -> None:
    """Mail that is due now is due for a scan now; written again, the time stays."""
    written = milliseconds(now) / 1000
    assert now - 0.001 < written <= now
    assert milliseconds(written) / 1000 == written


class Reads(str):
    """A recipient that counts how often it is compared or hashed."""

    __slots__ = ()
    count = 0

    def __hash__(self) -> int:
        Reads.count += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


def _work(recipients: int) -> int:
    """Settle a mail with a reply of its own for each recipient; return the work that took."""
    names = tuple(Reads(f'a{n}@example.org') for n in range(recipients))
    envelope = replace(make_envelope(), recipients=names)
    block = replace(decode(encode(envelope, 'C')), envelope=envelope)
    events = [failed(envelope, to, group=n) for n, to in enumerate(names)]
    Reads.count = 0
    block.settle(events)
    for event in events:
        block.mark(event.recipients, 'F')
    return Reads.count


def test_as_many_replies_as_recipients_are_linear_work() -> None:
    """Twice the recipients are twice the work, not four times."""
    assert _work(400) < 2.5 * _work(200)


def test_marks_of_a_part_write_that_part() -> None:
    """A mail in transactions of a hundred writes a hundred lines for each, at their place."""
    envelope = make_envelope(*(f'{"é" * (n % 7)}a{n}@example.org' for n in range(1000)))
    data = encode(envelope, 'C')
    block = decode(data)
    written = 0
    for at in range(0, 1000, 100):
        part = envelope.recipients[at : at + 100]
        block.mark(part, '?')
        lines, place = block.lines_of(part)
        data = data[:place] + lines + data[place + len(lines) :]
        written += len(lines)
    assert decode(data).letters == ['?'] * 1000
    assert written == len(block.recipient_lines())
    assert block.lines_of(()) == (b'', block.recipients_at)


def test_what_does_not_fit_its_field_is_refused_before_the_commit() -> None:
    """The length of the block has eight digits, the message's twelve."""
    assert lengths_text(10**8 - 1, 10**12 - 1)
    for block, message in ((10**8, 1), (1, 10**12)):
        with pytest.raises(MessageError, match='send it to fewer'):
            lengths_text(block, message)


def test_more_replies_than_a_pointer_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones share a reply, each recipient keeps its outcome, and the file stays whole."""
    monkeypatch.setattr('pyramid_sendmail.queue.maildir.format._LAST_POINTER', 3)
    envelope = make_envelope(*(f'a{n}@example.org' for n in range(8)))
    data = encode(envelope, 'C')
    block = decode(data)
    block.settle([failed(envelope, to, group=n) for n, to in enumerate(envelope.recipients)])
    data = data[:STATE_AT] + block.mutable_part() + envelope.raw
    read = decode(data)
    assert read.letters == ['f'] * 8
    assert read.pointers == [0, 1, 2, 3, 3, 3, 3, 3]
    assert [len(event.recipients) for event in read.pending_events()] == [1, 1, 1, 5]
    assert read.pending_events()[-1].reason == 'the reply was lost'
