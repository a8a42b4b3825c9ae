"""Messages: what is refused, what leaves, and that the caller's object stays as it was."""

from __future__ import annotations

import base64
import copy
import email
import email.policy
import os
import pickle
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.message import Message as LegacyMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mailparser  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import MessageError, SendmailError
from pyramid_sendmail.message import Attachment, EnvelopeFactory, Message

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()

PNG = b'\x89PNG\r\n\x1a\n' + bytes(range(256))

composer = EnvelopeFactory(
    default_sender='Shop <shop@example.org>', hostname='mail.example.org', clock=lambda: NOW
)


def plain(**given: Any) -> Message:
    return Message(**{'to': 'ann@example.org', 'subject': 'Hi', 'text': 'Hello', **given})


def send(message: object = None, **options: Any) -> Envelope:
    envelope = composer.envelope(plain() if message is None else message, **options)
    assert_wire(envelope.raw)
    return envelope


def assert_wire(raw: bytes) -> None:
    """The invariants of what leaves (RFC 5321, 2.3.8; RFC 5322, 2.1.1)."""
    assert re.fullmatch(rb'(?:[^\r\n\0]*\r\n)*', raw)
    assert max(map(len, raw.split(b'\r\n'))) <= 998
    assert raw.partition(b'\r\n\r\n')[2].isascii()
    head = raw.partition(b'\r\n\r\n')[0]
    assert not re.search(rb'(?im)^(resent-)?bcc:', head)
    for name in (b'From', b'Date', b'Message-ID', b'MIME-Version'):
        assert len(re.findall(rb'(?im)^' + name + rb':', head)) == 1


def read(envelope: Envelope) -> EmailMessage:
    message = email.message_from_bytes(envelope.raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects
    return message


def shape(part: Any) -> Any:
    kind = part.get_content_type()
    return {kind: [shape(child) for child in part.get_payload()]} if part.is_multipart() else kind


def stdlib(**headers: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in {'From': 'a@x', 'To': 'ann@x', 'Subject': 'Hi', **headers}.items():
        message[name.replace('_', '-')] = value
    message.set_content('Hello')
    return message


def parsed(text: str | bytes, policy: Any = email.policy.default) -> Any:
    data = text.encode() if isinstance(text, str) else text
    return email.message_from_bytes(data.replace(b'\n', b'\r\n'), policy=policy)


# What is refused: the input, and what the text must name (the argument, and the remedy).
BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({'to': ()}, 'to: .*no recipient; give to, cc, bcc or the option recipients'),
    ({'to': ''}, 'to: an empty address'),
    ({'to': 'ann'}, "to: 'ann' is not a mail address: it has no @.*write name@example.org"),
    ({'to': ['a@x', 'b@@x']}, "to: 'b@@x'"),
    ({'to': 5}, 'to: 5 holds no addresses; give a str'),
    ({'to': None}, 'to: None holds no addresses'),
    ({'to': b'a@x'}, 'to: .*give a str'),
    ({'to': {'a@x': 'Ann'}}, 'to: .*give a str'),
    ({'to': 'a@x\nBcc: b@x'}, 'to: .*line break; take it out'),
    ({'to': 'x' * 500 + '@x'}, r"to: 'x+\.\.\. is not.*64 octets"),
    ({'cc': 'x'}, "cc: 'x'"),
    ({'bcc': 'x'}, "bcc: 'x'"),
    ({'reply_to': 'x'}, "reply_to: 'x'"),
    ({'sender': 'x'}, "sender: 'x'"),
    ({'sender': ''}, 'sender: an empty address'),
    ({'sender': []}, 'sender: .* is not an address'),
    ({'sender': 'g: a@x;'}, 'sender: .*g: a@x;.* is not an address'),
    ({'sender': 'a@x, b@x'}, "sender: several .*headers={'Sender'"),
    ({'sender': 'a@x, b@x', 'headers': {'Sender': 'a@x, b@x'}}, 'Sender: .*exactly one'),
    ({'subject': 'a\nb'}, 'subject: .*line break; take it out'),
    ({'subject': 'a\rBcc: b@x'}, 'subject: .*line break'),
    ({'subject': 'a\0b'}, r'subject: .*U\+0000'),
    ({'subject': 'a\ud800b'}, 'subject: .*lone surrogate'),
    ({'subject': None}, 'subject: None is not a string; give a str'),
    ({'text': None}, 'text: .*give text, html or both'),
    ({'text': b'x'}, 'text: a bytes is not a string'),
    ({'html': 5}, 'html: a int is not a string'),
    ({'text': 'a\ud800'}, "text: character 1 is a lone surrogate.*errors='replace'"),
    ({'html': '\udcff'}, 'html: character 0'),
    (
        {'html': '<img src="cid:logo">'},
        r"html: .*cid:logo.*Attachment\(\.\.\., content_id='logo'\)",
    ),
    ({'headers': 5}, 'headers: 5 is not a dict'),
    ({'headers': [('X-A', 'b')]}, 'headers: .*is not a dict'),
    ({'headers': {'X A': 'b'}}, "headers: 'X A' is not the name of a header"),
    ({'headers': {'X-A\r\nBcc': 'b@x'}}, r"headers: 'X-A\\r\\nBcc' is not the name"),
    ({'headers': {'': 'b'}}, "headers: '' is not the name"),
    ({'headers': {5: 'b'}}, 'headers: 5 is not the name'),
    ({'headers': {'X-A': 'a\nBcc: b@x'}}, 'headers, X-A: .*line break; take it out'),
    ({'headers': {'X-A': 'a\x01'}}, r'headers, X-A: .*U\+0001'),
    ({'headers': {'X-A': 5}}, 'headers, X-A: 5 is not a string'),
    ({'headers': {'X-A': '1', 'x-a': '2'}}, 'headers: x-a is given twice; leave one out'),
    ({'headers': {'From': 'a@x'}}, 'headers: From is not given here; use sender'),
    ({'headers': {'to': 'a@x'}}, 'headers: to is not given here; use to'),
    ({'headers': {'CC': 'a@x'}}, 'use cc'),
    ({'headers': {'Bcc': 'a@x'}}, 'use bcc'),
    ({'headers': {'Resent-Bcc': 'a@x'}}, 'use bcc'),
    ({'headers': {'Reply-To': 'a@x'}}, 'use reply_to'),
    ({'headers': {'Subject': 'x'}}, 'use subject'),
    ({'headers': {'Return-Path': '<a@x>'}}, 'Return-Path .*use the option sender of send'),
    ({'headers': {'MIME-Version': '1.0'}}, 'use text, html and attachments'),
    ({'headers': {'Content-Type': 'text/html'}}, 'Content-Type .*use attachments, text and html'),
    ({'headers': {'Sender': 'x'}}, "Sender: 'x' is not a mail address"),
    ({'headers': {'Errors-To': 'x'}}, "Errors-To: 'x' is not a mail address"),
    ({'headers': {'Message-ID': 'x'}}, "Message-ID: 'x' is not a message id; .*leave the header"),
    ({'headers': {'Date': 'today'}}, "Date: 'today' is not a date; .*leave the header out"),
    ({'headers': {'References': '<' + 'a' * 999 + '@x>'}}, 'References: .*998'),
    ({'headers': {'List-Unsubscribe': '<https://é>'}}, 'List-Unsubscribe: .*percent-encoded'),
    ({'tag': 5}, 'tag: 5 is not a string'),
    ({'tag': ''}, 'tag: .*1 to 200 characters'),
    ({'tag': 'x' * 201}, 'tag: .*1 to 200 characters'),
    ({'tag': 'a\nb'}, 'tag: .*line break'),
    ({'attachments': 'x'}, 'attachments: str is no list; give a list of Attachment'),
    ({'attachments': Attachment('a', b'')}, 'attachments: Attachment is no list'),
    ({'attachments': [('a.txt', b'x')]}, 'attachments: tuple is no Attachment; give Attachment'),
]

BAD_ATTACHMENTS: list[tuple[Attachment, str]] = [
    (Attachment('a.txt'), "attachment 'a.txt': give data or path"),
    (Attachment('a.txt', b'x', path='y'), "attachment 'a.txt': give data or path, and not both"),
    (Attachment(None, b'x'), 'attachments: .*neither a filename nor a path; give a name'),
    (Attachment('', b'x'), "attachments, filename: '' is no file name"),
    (Attachment('a/..', b'x'), r"attachments, filename: 'a/\.\.' is no file name"),
    (Attachment('a\r\nb', b'x'), 'attachments, filename: .*line break'),
    (Attachment('a\tb', b'x'), 'attachments, filename: .*no file name'),
    (Attachment('a\ud800', b'x'), 'attachments, filename: .*lone surrogate'),
    (Attachment(5, b'x'), 'attachments, filename: 5 is not a string'),  # type: ignore[arg-type]
    (Attachment('a', 5), "attachment 'a': data is a int; give bytes or a str"),  # type: ignore[arg-type]
    (Attachment('a', path=5), 'attachments, path: 5 is no path'),  # type: ignore[arg-type]
    (Attachment('a', 'x\ud800'), "attachment 'a': its data cannot be encoded in 'utf-8'"),
    (Attachment('a', 'é', content_type='text/plain; charset=ascii'), "encoded in 'ascii'; give b"),
    (Attachment('a', 'é', content_type='text/plain; charset=nix'), "encoded in 'nix'"),
    (Attachment('a', path='/no/such/file'), "'a': '/no/such/file' cannot be read: .*No such file"),
    (Attachment('a', path='/no\0such'), "'a': '/no.x00such' cannot be read: .*null byte"),
    (Attachment(None, path='/tmp'), "attachment 'tmp': '/tmp' is no regular file"),
    (Attachment('a', b'x', content_type='x'), "'a': 'x' is not a content_type; write 'appl"),
    (Attachment('a', b'x', content_type='text/plain\r\nBcc: b@x'), "'a': .* is not a content_type"),
    (Attachment('a', b'x', content_type='text/plain; charset="a\r\nb"'), 'Content-Type, charset'),
    (Attachment('a', b'x', content_type=5), "'a': 5 is not a content_type"),  # type: ignore[arg-type]
    (Attachment('a', b'x', content_type='multipart/mixed'), "'a': multipart/mixed cannot .*rfc822"),
    (Attachment('a', b'x', content_type='message/partial'), "'a': message/partial cannot be att"),
    (Attachment('a', b'x', content_id=''), "'a': the content_id '' .*write content_id='logo'"),
    (Attachment('a', b'x', content_id='a b'), "'a': the content_id 'a b'"),
    (Attachment('a', b'x', content_id='a\r\nb'), "'a': the content_id"),
    (Attachment('a', b'x', content_id='<a'), "'a': the content_id '<a'"),
    (Attachment('a', b'x', content_id=5), "'a': the content_id 5"),  # type: ignore[arg-type]
    (Attachment('a.eml', b'X: \xff\n\n'), "attachment 'a.eml': X: .*application/octet-stream"),
    (Attachment('a.eml', b'Content-Type: multipart/mixed\n\n\xff'), "'a.eml': .*7 bits"),
]

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({'sender': 'x'}, "option sender: 'x' is not a mail address"),
    ({'sender': 5}, 'option sender: 5 holds no addresses'),
    ({'sender': 'a@x, b@x'}, 'option sender: .*exactly one'),
    ({'sender': 'a@x\nb'}, 'option sender: .*line break'),
    ({'recipients': []}, 'no recipient'),
    ({'recipients': 'x'}, "option recipients: 'x'"),
    ({'recipients': 5}, 'option recipients: 5'),
    ({'due': 5}, 'due: 5 is no moment; give an aware datetime or a timedelta'),
    ({'due': True}, 'due: True is no moment'),
    ({'due': datetime(2027, 1, 1)}, r'due: 2027-01-01.* no time zone.*datetime\.now'),  # noqa: DTZ001
    ({'due': timedelta(seconds=-1)}, 'due: .*past; give a positive timedelta'),
    ({'due': timedelta(days=99999999)}, 'due: .*year 9998'),
    ({'expires': 'x'}, "expires: 'x' is no moment"),
    ({'expires': timedelta()}, 'expires: .*not after the mail is due; give a later'),
    ({'expires': timedelta(hours=1), 'due': timedelta(hours=2)}, 'expires: .*not after'),
    ({'expires': datetime(2020, 1, 1, tzinfo=UTC)}, 'expires: .*not after'),
    ({'priority': 'urgent'}, "priority: 'urgent'; write 'high', 'normal' or 'low'"),
    ({'priority': 1}, 'priority: 1; write'),
    ({'metadata': 5}, 'metadata: 5 is not a dict; give a dict of strings'),
    ({'metadata': {'a': 1}}, r"metadata: 'a' or its value is not a string; use str\(\)"),
    ({'metadata': {1: 'a'}}, 'metadata: 1 or its value'),
    ({'metadata': {'a': 'x' * 4096}}, 'metadata: 4105 octets .*4096'),
    ({'metadata': {'a': '\ud800'}}, 'metadata: .*lone surrogate'),
]


def assert_refused(error: Exception, named: str) -> None:
    assert re.search(named, str(error)), str(error)
    assert isinstance(error, ValueError)
    assert isinstance(error, SendmailError)
    assert len(str(error)) < 400
    assert str(error).isprintable()


@pytest.mark.parametrize(('given_', 'named'), BAD_MESSAGES)
def test_bad_message(given_: dict[str, Any], named: str) -> None:
    """A message that cannot be sent is refused by send, with the argument and the remedy."""
    message = plain(**given_)

    with pytest.raises(MessageError) as caught:
        composer.envelope(message)

    assert_refused(caught.value, named)


@pytest.mark.parametrize(('attachment', 'named'), BAD_ATTACHMENTS)
def test_bad_attachment(attachment: Attachment, named: str) -> None:
    """So is one whose attachment cannot be sent; the text names the file."""
    with pytest.raises(MessageError) as caught:
        send(plain(attachments=[attachment]))

    assert_refused(caught.value, named)


@pytest.mark.parametrize(('options', 'named'), BAD_OPTIONS)
def test_bad_option(options: dict[str, Any], named: str) -> None:
    """So are the options of send."""
    with pytest.raises(MessageError) as caught:
        send(**options)

    assert_refused(caught.value, named)


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        ({'default_sender': 'x'}, "mail.default_sender: 'x' is not a mail address"),
        ({'default_sender': 'a@x, b@x'}, 'mail.default_sender: .*exactly one'),
        ({'envelope_sender': 'x'}, "mail.envelope_sender: 'x'"),
        ({'hostname': 'a b'}, 'mail.hostname'),
        ({'hostname': 'a\r\nb'}, 'mail.hostname'),
    ],
)
def test_bad_settings(settings: dict[str, Any], named: str) -> None:
    """Settings that cannot be used are refused when the application starts."""
    with pytest.raises(MessageError) as caught:
        EnvelopeFactory(**settings)

    assert_refused(caught.value, named)


def test_no_sender_at_all() -> None:
    """Without a sender the text names the setting."""
    for message in (plain(), stdlib(From='')):
        with pytest.raises(MessageError, match=r'set mail\.default_sender'):
            EnvelopeFactory().envelope(message)


class Bodiless:
    def to_message(self) -> object:
        return 'text'


@pytest.mark.parametrize(
    ('message', 'named'),
    [
        (None, 'message: NoneType is no message; pass a pyramid_sendmail.Message'),
        ('text', 'message: str is no message'),
        (b'From: a@x', 'message: bytes is no message'),
        (Bodiless, 'message: type is no message'),
        (Bodiless(), r'message: to_message\(\) of Bodiless gave a str'),
    ],
)
def test_no_message(message: object, named: str) -> None:
    """What is no message is refused by its type, with what to pass."""
    with pytest.raises(MessageError) as caught:
        composer.envelope(message)

    assert_refused(caught.value, named)


def test_never_the_body() -> None:
    """No error shows what the message says."""
    for message in (
        plain(text='s3cret\ud800'),
        plain(attachments=[Attachment('a', 's3cret\ud800')]),
        plain(text='s3cret', to='x'),
    ):
        with pytest.raises(MessageError) as caught:
            composer.envelope(message)
        assert 's3cret' not in str(caught.value)
    assert 's3cret' not in repr(plain(text='s3cret', attachments=[Attachment('a', 's3cret')]))
    assert 's3cret' not in repr(send(plain(text='s3cret')))


def test_the_common_message() -> None:
    """The headers in order, and the body as it was written."""
    envelope = send(plain(sender='Ann <a@x>', reply_to='r@x', cc='c@x', text='Hello\nWorld'))

    head, _, body = envelope.raw.decode('ascii').partition('\r\n\r\n')
    assert head.split('\r\n') == [
        'From: Ann <a@x>',
        'Reply-To: r@x',
        'To: ann@example.org',
        'Cc: c@x',
        'Subject: Hi',
        'Date: Mon, 23 Nov 2026 12:00:00 +0000',
        f'Message-ID: {envelope.message_id}',
        'Auto-Submitted: auto-generated',
        'MIME-Version: 1.0',
        'Content-Type: text/plain; charset="utf-8"',
        'Content-Transfer-Encoding: 7bit',
    ]
    assert body == 'Hello\r\nWorld\r\n'
    assert envelope.sender == 'a@x'
    assert envelope.recipients == ('ann@example.org', 'c@x')
    assert re.fullmatch('[0-9a-f]{32}', envelope.id)
    assert re.fullmatch(r'<[0-9a-f]{24}\.[0-9a-f]+@mail\.example\.org>', envelope.message_id)
    assert envelope.queued_at == envelope.due == NOW
    assert envelope.expires is None
    assert (envelope.priority, envelope.subject, envelope.tag) == ('normal', 'Hi', None)
    assert (envelope.metadata, envelope.depth) == ({}, 0)


def test_two_sends() -> None:
    """One message sent twice is two mails."""
    message = plain(html='x')

    first, second = send(message), send(message)

    assert first.message_id != second.message_id
    assert first.id != second.id


def test_recipients() -> None:
    """To, cc, bcc in this order, each address once; bcc nowhere in the bytes."""
    envelope = send(
        plain(
            to=['B <b@x.org>', '"Doe, J" <j@x.org>', 'b@X.ORG'],
            cc=[Address('C', 'c', 'x.org'), 'j@x.org'],
            bcc='secret@x.org, b@x.org, B@x.org',
        )
    )

    assert envelope.recipients == ('b@x.org', 'j@x.org', 'c@x.org', 'secret@x.org', 'B@x.org')
    assert b'secret' not in envelope.raw
    assert [a.addr_spec for a in read(envelope)['To'].addresses] == [
        'b@x.org',
        'j@x.org',
        'b@X.ORG',
    ]


def test_only_bcc() -> None:
    """With nobody to show, To says so; with a cc there is no To."""
    assert read(send(plain(to=(), bcc='b@x')))['To'] == 'undisclosed-recipients:;'
    assert read(send(plain(to=()), recipients='b@x'))['To'] == 'undisclosed-recipients:;'
    assert read(send(plain(to=(), cc='b@x')))['To'] is None


def test_senders() -> None:
    """The reverse path is From's address, or the setting, or the option; '' is the null sender."""
    assert send().sender == 'shop@example.org'
    assert send(plain(sender=Address('Ann', 'a', 'x'))).sender == 'a@x'
    assert send(sender='Ann <bounce@x>').sender == 'bounce@x'
    assert send(sender='').sender == ''
    bounces = EnvelopeFactory(default_sender='a@x', envelope_sender='Bounces <bounce@x>')
    assert bounces.envelope(plain()).sender == 'bounce@x'
    assert bounces.envelope(plain(), sender='').sender == ''


def test_several_senders() -> None:
    """Several authors need a Sender, where bounces go then (RFC 5322, 3.6.2)."""
    envelope = send(plain(sender=['a@x', 'b@x'], headers={'Sender': 'Bob <b@x>'}))

    assert envelope.sender == 'b@x'
    assert read(envelope)['From'] == 'a@x, b@x'
    assert read(envelope)['Sender'] == 'Bob <b@x>'


def test_given_headers() -> None:
    """Any other header is kept, Message-ID and Date as well; Auto-Submitted can be overridden."""
    url = '<https://example.org/u?' + 'x' * 300 + '>'
    envelope = send(
        plain(
            headers={
                'X-Grüße'.replace('ü', 'ue').replace('ß', 'ss'): 'é',
                'List-Unsubscribe': url,
                'Message-ID': '<mine@example.org>',
                'Date': 'Mon, 1 Jan 2024 00:00:00 +0100',
                'auto-submitted': 'no',
                'Disposition-Notification-To': 'Jürgen <j@x>',
                'References': ' '.join(['<a@example.org>'] * 10),
                'List-Id': 'Müllers Liste <list.example.org>',
            }
        )
    )

    message = read(envelope)
    assert envelope.message_id == message['Message-ID'] == '<mine@example.org>'
    assert message['Date'] == 'Mon, 01 Jan 2024 00:00:00 +0100'
    assert message.get_all('Auto-Submitted') == ['no']
    assert message['X-Gruesse'] == 'é'
    assert message['Disposition-Notification-To'] == 'Jürgen <j@x>'
    assert message['References'] == ' '.join(['<a@example.org>'] * 10)
    assert message['List-Id'] == 'Müllers Liste <list.example.org>'
    assert f'\r\nList-Unsubscribe: {url}\r\n'.encode() in envelope.raw


def test_addresses_of_many_kinds() -> None:
    """A domain goes out as A-labels; a local part in UTF-8 stays, and so does its header."""
    envelope = send(plain(to=['Jürgen <j@bücher.example>', 'jörg@x']))

    assert envelope.recipients == ('j@xn--bcher-kva.example', 'jörg@x')
    assert (
        'To: =?utf-8?q?J=C3=BCrgen?= <j@xn--bcher-kva.example>, jörg@x\r\n'.encode() in envelope.raw
    )


def test_options() -> None:
    """What the queue needs to know; a moment in the past means now."""
    later = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=2)
    envelope = send(
        plain(tag='welcome'),
        due=timedelta(hours=1),
        expires=later,
        priority='low',
        metadata={'user': '5'},
        depth=1,
    )

    assert (envelope.due, envelope.expires) == (NOW + 3600, NOW + 7200)
    assert (envelope.priority, envelope.tag, envelope.depth) == ('low', 'welcome', 1)
    assert envelope.metadata == {'user': '5'}
    assert isinstance(envelope.metadata, MappingProxyType)
    assert send(due=datetime(2020, 1, 1, tzinfo=UTC)).due == NOW
    assert send(recipients=['Z <z@x>', 'z@X']).recipients == ('z@x',)


def test_max_size() -> None:
    """The limit is counted in the octets that leave, to the octet."""
    size = len(send(plain(headers={'Message-ID': '<a@b>'})).raw)
    message = plain(headers={'Message-ID': '<a@b>'})

    exact = EnvelopeFactory(
        default_sender='Shop <shop@example.org>', max_size=size, clock=lambda: NOW
    )
    assert len(exact.envelope(message).raw) == size
    less = EnvelopeFactory(
        default_sender='Shop <shop@example.org>', max_size=size - 1, clock=lambda: NOW
    )
    with pytest.raises(MessageError, match=rf'{size} octets .*mail\.max_size = {size - 1}'):
        less.envelope(message)


def test_large_file(tmp_path: Path) -> None:
    """A file that is too large is not even read."""
    path = tmp_path / 'large'
    path.write_bytes(b'x' * 2000)

    with pytest.raises(MessageError, match=r'large.*mail\.max_size = 1000'):
        EnvelopeFactory(default_sender='a@x', max_size=1000).envelope(
            plain(attachments=[Attachment(None, path=path)])
        )


def full() -> Message:
    return plain(
        text='Grüße an alle',
        html='<p>Grüße <img src="cid:logo"></p>',
        attachments=[
            Attachment('logo.png', PNG, content_id='logo'),
            Attachment('Übersicht.csv', 'a;b\nc;d\r\n'),
        ],
    )


def test_full_structure() -> None:
    """Mixed over alternative over related, as Python's parser reads it."""
    message = read(send(full()))

    assert shape(message) == {
        'multipart/mixed': [
            {
                'multipart/alternative': [
                    'text/plain',
                    {'multipart/related': ['text/html', 'image/png']},
                ]
            },
            'text/csv',
        ]
    }
    text = message.get_body(('plain',))
    html = message.get_body(('html',))
    assert text is not None
    assert html is not None
    assert text.get_content() == 'Grüße an alle\r\n'
    assert html.get_content() == '<p>Grüße <img src="cid:logo"></p>\r\n'
    (csv,) = message.iter_attachments()
    assert csv.get_filename() == 'Übersicht.csv'
    assert csv.get_payload(decode=True) == b'a;b\nc;d\r\n'
    assert csv.get_content_charset() == 'utf-8'
    picture = next(part for part in message.walk() if part.get_content_type() == 'image/png')
    assert picture.get_content() == PNG
    assert picture['Content-ID'] == '<logo>'
    assert picture.get_content_disposition() == 'inline'


def test_full_structure_read_by_another() -> None:
    """The same by mail-parser."""
    mail = mailparser.parse_from_bytes(send(full()).raw)

    assert mail.subject == 'Hi'
    assert mail.from_ == [('Shop', 'shop@example.org')]
    assert mail.to == [('', 'ann@example.org')]
    assert mail.text_plain == ['Grüße an alle\r\n']
    assert mail.text_html == ['<p>Grüße <img src="cid:logo"></p>\r\n']
    assert {file['filename']: file['mail_content_type'] for file in mail.attachments} == {
        'logo.png': 'image/png',
        'Übersicht.csv': 'text/csv',
    }
    assert not mail.defects


@pytest.mark.parametrize(
    ('given_', 'expected'),
    [
        ({}, 'text/plain'),
        ({'text': None, 'html': 'x'}, 'text/html'),
        ({'html': 'x'}, {'multipart/alternative': ['text/plain', 'text/html']}),
        (
            {'attachments': [Attachment('a.pdf', b'x')]},
            {'multipart/mixed': ['text/plain', 'application/pdf']},
        ),
        (
            {
                'text': None,
                'html': '<i style="background: URL( cid:a%40b )">',
                'attachments': [Attachment('a.gif', b'x', content_id='<a@b>')],
            },
            {'multipart/related': ['text/html', 'image/gif']},
        ),
        (
            {'html': 'x', 'attachments': [Attachment('a.gif', b'x', content_id='unused')]},
            {
                'multipart/mixed': [
                    {'multipart/alternative': ['text/plain', 'text/html']},
                    'image/gif',
                ]
            },
        ),
        (
            {'attachments': [Attachment('a.gif', b'x', content_id='unused')]},
            {'multipart/mixed': ['text/plain', 'image/gif']},
        ),
    ],
)
def test_structures(given_: dict[str, Any], expected: Any) -> None:
    """No part more than is needed; a picture that html does not show is an attachment."""
    message = read(send(plain(**given_)))

    assert shape(message) == expected
    for part in message.walk():
        if part.get_content_maintype() == 'image':
            inline = shape(message).keys() == {'multipart/related'}
            assert part.get_content_disposition() == ('inline' if inline else 'attachment')


def test_words_are_no_references() -> None:
    """Prose about cid: is not a picture."""
    send(plain(html='<p>Write cid:logo, or (cid:x)</p>'))


def test_duplicate_content_id() -> None:
    """Two pictures of one name are refused."""
    files = [Attachment('a.gif', b'x', content_id='a'), Attachment('b.gif', b'y', content_id='<a>')]

    with pytest.raises(MessageError, match=r"content_id 'a' is given twice; each needs its own"):
        send(plain(attachments=files))


def test_empty_text() -> None:
    """'' is a text, and no text is invented for it."""
    assert send(plain(text='')).raw.endswith(b'7bit\r\n\r\n')


@pytest.mark.parametrize(
    ('attachment', 'kind', 'name'),
    [
        (Attachment('a.pdf', b'x'), 'application/pdf', 'a.pdf'),
        (Attachment('a', b''), 'application/octet-stream', 'a'),
        (Attachment('a.tar.gz', b'x'), 'application/octet-stream', 'a.tar.gz'),
        (Attachment('a.xyz', b'x', content_type='Text/X-Y'), 'text/x-y', 'a.xyz'),
        (Attachment('.htaccess', b'x'), 'application/octet-stream', '.htaccess'),
        (Attachment('/etc/a.txt', b'x'), 'text/plain', 'a.txt'),
        (Attachment('C:\\x\\a.txt', b'x'), 'text/plain', 'a.txt'),
        (Attachment('a "b".txt', b'x'), 'text/plain', 'a "b".txt'),
        (Attachment('日本.txt', bytearray(b'x')), 'text/plain', '日本.txt'),  # type: ignore[arg-type]
        (Attachment('日本', 'x'), 'application/octet-stream', '日本'),
    ],
)
def test_attachment_names(attachment: Attachment, kind: str, name: str) -> None:
    """The type follows from the name, which has no folder."""
    (part,) = read(send(plain(attachments=[attachment]))).iter_attachments()

    assert (part.get_content_type(), part.get_filename()) == (kind, name)


def test_attachment_from_path(tmp_path: Path) -> None:
    """A file is read by send, and named after its path."""
    path = tmp_path / 'Grüße.bin'
    attachment = Attachment(None, path=os.fspath(path))
    path.write_bytes(PNG)

    (part,) = read(send(plain(attachments=[attachment]))).iter_attachments()

    assert part.get_filename() == 'Grüße.bin'
    assert part.get_content() == PNG


def test_attachment_charset() -> None:
    """A str is written in the character set that its content_type names."""
    attachment = Attachment('a.txt', 'é', content_type='text/plain; charset="latin-1"; x=y')

    (part,) = read(send(plain(attachments=[attachment]))).iter_attachments()

    assert part.get_payload(decode=True) == b'\xe9'
    assert part.get_content() == 'é'
    assert part['Content-Type'].params['x'] == 'y'


def test_text_attachment_is_exact() -> None:
    """Line ends and all of a text file arrive as they are."""
    data = b'a\rb\nc\r\nd\0 \n.\n' + b'x' * 2000

    (part,) = read(send(plain(attachments=[Attachment('a.txt', data)]))).iter_attachments()

    assert part.get_payload(decode=True) == data


@pytest.mark.parametrize(
    'mail',
    [
        b'Subject: x\nTo: a@x\n\nHello\n',
        'Subject: Grüße\n\nGrüße\n'.encode(),
        b'Subject: x\n\n' + b'x' * 2000,
        b'Subject: x\nContent-Type: text/plain; charset=latin-1\n\n\xe9\n',
    ],
)
def test_attached_mail(mail: bytes) -> None:
    """A mail is attached as a mail, in lines of 7 bits (RFC 2046, 5.2.1)."""
    (part,) = read(send(plain(attachments=[Attachment('a.eml', mail)]))).iter_attachments()
    expected = email.message_from_bytes(mail, policy=email.policy.default)
    inner = part.get_content()

    assert part.get_content_type() == 'message/rfc822'
    assert part['Content-Transfer-Encoding'] == '7bit'
    assert inner['Subject'] == expected['Subject']
    if expected.get_content_charset() == 'iso-8859-1':
        assert inner.get_content() == 'é\n'
    else:
        assert inner.get_payload(decode=True).strip() == expected.get_payload(decode=True).strip()  # type: ignore[union-attr]


TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=['Cs']), st.sampled_from('\r\n.\0 \t=é👩\u200d🔬e\u0301')
    ),
    max_size=300,
)


def canonical(text: str) -> str:
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    return text if not text or text.endswith('\n') else f'{text}\n'


@given(TEXT, TEXT)
@example('\n.\n', '\r.\r')
@example('\r\n.\r', '.')
@example('x' * 5000, 'é' * 5000)
@example('From here\n\nFrom there', '\0' * 100)
@example('a ' * 40 + '\n\t', ' ')
def test_any_text(text: str, html: str) -> None:
    """Any text and html arrive as they are, line ends aside, in lines that a relay takes."""
    message = read(send(plain(text=text, html=html)))

    parts = [part.get_payload(decode=True) for part in message.iter_parts()]
    found = [part.decode() for part in parts if isinstance(part, bytes)]
    expected = [canonical(text).replace('\n', '\r\n'), canonical(html).replace('\n', '\r\n')]
    # What is not encoded ends where the boundary's own line break begins.
    assert [part.replace('\r\n', '\n') for part in found] == [
        part.replace('\r\n', '\n') for part in expected
    ]


@given(
    st.text(
        st.one_of(
            st.characters(exclude_categories=('Cs', 'Cc', 'Zl', 'Zp')),
            st.sampled_from('"\\=?_ é👩\u200d🔬'),
        ),
        max_size=80,
    )
)
@example('=?utf-8?Q?=0A?=Bcc: x')
def test_any_subject(subject: str) -> None:
    """Any subject arrives as it is, and adds no header."""
    envelope = send(plain(subject=subject))

    assert envelope.subject == subject
    assert read(envelope)['Subject'] == subject
    assert len(read(envelope).keys()) == 9


@given(st.binary(max_size=500))
def test_any_data(data: bytes) -> None:
    """Any attachment arrives to the octet."""
    (part,) = read(send(plain(attachments=[Attachment('a.bin', data)]))).iter_attachments()

    assert part.get_content() == data


def test_readable_encodings() -> None:
    """Mostly ASCII is quoted-printable, mostly not is base64."""
    assert b'Encoding: quoted-printable' in send(plain(text='Grüße aus Köln')).raw
    assert b'Encoding: quoted-printable' in send(plain(text='x' * 79)).raw
    assert b'Encoding: base64' in send(plain(text='Привет')).raw


def test_copied_at_construction() -> None:
    """Lists and dicts that the caller changes later change nothing."""
    to, headers, data = ['a@x'], {'X-A': '1'}, bytearray(b'one')
    attachments = [Attachment('a', data)]  # type: ignore[arg-type]
    message = plain(to=to, headers=headers, attachments=attachments)

    to.append('b@x')
    headers['X-A'] = '2'
    attachments.clear()
    data[:] = b'two'

    assert send(message).recipients == ('a@x',)
    assert read(send(message))['X-A'] == '1'
    assert len(list(read(send(message)).iter_attachments())) == 1
    assert message.attachments == (Attachment('a', b'one'),)
    assert hash(message) == hash(plain(to=('a@x',), headers={}, attachments=message.attachments))
    with pytest.raises(AttributeError):
        message.subject = 'x'  # type: ignore[misc]


class Markup(str):
    """Like markupsafe.Markup: it changes what it is joined with."""

    __slots__ = ()

    def __add__(self, other: str) -> str:
        return Markup(str(self) + other.upper())

    def __radd__(self, other: str) -> str:
        return Markup(other.upper() + str(self))

    def __format__(self, spec: str) -> str:
        return str(self).upper()

    def join(self, parts: Any) -> str:
        return Markup(str(self).join(part.upper() for part in parts))


def test_markup() -> None:
    """Text that escapes what it is joined with is only text here."""
    markup = Markup('a <b> & "c" é')

    envelope = send(plain(subject=markup, html=markup, headers={'X-A': markup}))

    assert envelope.subject == read(envelope)['Subject'] == read(envelope)['X-A'] == str(markup)
    assert type(envelope.subject) is str
    assert type(send(plain(to=Markup('"A & B" <a@x>'))).recipients[0]) is str


@pytest.mark.parametrize(
    'given_',
    [
        {'subject': '=?a?q?' * 20_000},
        {'subject': '=?' * 50_000},
        {'html': '=' + ' ' * 100_000 + 'cid:'},
        {'html': 'url(' * 50_000 + 'cid:'},
        {'attachments': [Attachment('a', b'', content_type='a/b' + ' ' * 50_000 + 'x')]},
        {'attachments': [Attachment('a', b'', content_type='a/b' + ';a=b' * 20_000 + 'é')]},
        {'to': '"' + '\\' * 50_000},
        {'to': '"' + '\\' * 50_000 + '"@x'},
        {'to': '(' * 100_000},
        {'to': 'a.' * 50_000 + '@x'},
    ],
)
def test_no_slow_text(given_: dict[str, Any]) -> None:
    """No text that a visitor can make up takes more than linear time."""
    before = time.process_time()
    with suppress(MessageError):
        composer.envelope(plain(**given_))

    assert time.process_time() - before < 2


def test_generators_can_be_sent_twice() -> None:
    """What can be read once only is read at construction."""
    message = plain(to=(address for address in ('a@x', 'b@x')))

    assert send(message).recipients == send(message).recipients == ('a@x', 'b@x')


# Messages of others.


def test_email_message() -> None:
    """The standard library's message leaves with what it says, and with what it lacks."""
    message = stdlib(Cc='c@x', Bcc='b@x', Subject='Grüße')
    message.add_alternative('<p>é</p>', subtype='html')
    message.add_attachment(PNG, maintype='image', subtype='png', filename='Übersicht.png')
    before = copy.deepcopy(message)

    envelope = send(message)

    assert envelope.sender == 'a@x'
    assert envelope.recipients == ('ann@x', 'c@x', 'b@x')
    assert envelope.subject == 'Grüße'
    assert envelope.tag is None
    again = read(envelope)
    assert again['Subject'] == 'Grüße'
    assert again['Bcc'] is None
    assert again['Message-ID'] == envelope.message_id
    assert again['Auto-Submitted'] is None
    assert shape(again) == shape(before)
    (part,) = again.iter_attachments()
    assert (part.get_filename(), part.get_content()) == ('Übersicht.png', PNG)
    assert message.items() == before.items()
    assert message.as_bytes().replace(b'\n', b'') != b''
    assert message['Message-ID'] is None


def test_caller_keeps_the_object() -> None:
    """Nothing of the caller's message changes, not even a boundary that it lacks."""
    message = MIMEMultipart()
    message['To'] = 'a@x'
    message.attach(MIMEText('é'))
    before = pickle.dumps(message)

    send(message)

    assert pickle.dumps(message) == before
    assert message.get_boundary() is None


def test_default_sender_for_email_message() -> None:
    """A message without From gets the default one."""
    message = EmailMessage()
    message['To'] = 'a@x'
    message.set_content('x')

    envelope = send(message)

    assert envelope.sender == 'shop@example.org'
    assert read(envelope)['From'] == 'Shop <shop@example.org>'


def test_own_identity_is_kept() -> None:
    """A valid Message-ID and Date stay, folded or not."""
    message = parsed(
        'Date: Mon, 01 Jan 2024 00:00:00 -0000\nMessage-ID:\n <mine@x>\nTo: a@x\n\nx\n'
    )

    envelope = send(message)

    assert envelope.message_id == '<mine@x>'
    assert b'\r\nDate: Mon, 01 Jan 2024 00:00:00 -0000\r\n' in b'\r\n' + envelope.raw
    assert send(stdlib(Message_ID='<mine@x>')).message_id == '<mine@x>'


def test_recipients_of_many_headers() -> None:
    """Bcc, more than one if need be, and Resent-Bcc are recipients, and do not leave."""
    envelope = send(
        parsed('To: a@x\nBcc: b@x\nResent-Bcc: c@x\nBcc: d@x\nCc:\nReturn-Path: <r@x>\n\nx\n')
    )

    assert envelope.recipients == ('a@x', 'b@x', 'd@x', 'c@x')
    assert not re.search(rb'(?i)bcc|return-path|b@x|c@x|d@x', envelope.raw)


def test_resent_needs_the_option() -> None:
    """Who gets a mail that is sent on, its sender has to say."""
    message = parsed('From: o@x\nTo: a@x\nResent-From: m@x\nResent-To: b@x\n\nx\n')

    with pytest.raises(MessageError, match=r'option recipients .*Resent-To'):
        send(message)
    envelope = send(message, sender='m@x', recipients='b@x')
    assert (envelope.sender, envelope.recipients) == ('m@x', ('b@x',))


def test_folded_and_encoded_source() -> None:
    """What was folded and encoded elsewhere stays, and is read for the recipients."""
    source = (
        b'From: =?utf-8?q?J=C3=BCrgen?=\r\n <j@x>\r\n'
        b'To: "Doe, John" <d@x>,\r\n\tg: "a b"@x;\r\n'
        b'Subject: =?utf-8?q?=C3=A9?=\r\n =?utf-8?q?=C3=A8?=\r\n'
        b'References: <1@x>\r\n <2@x>\r\n'
    )
    message = email.message_from_bytes(source + b'\r\nx\r\n', policy=email.policy.default)

    envelope = send(message)

    assert envelope.raw.startswith(source)
    assert envelope.recipients == ('d@x', '"a b"@x')
    assert envelope.subject == 'éè'


def test_harmless_defects() -> None:
    """What is only old-fashioned in a header is no error."""
    envelope = send(stdlib(To='a@x, , jörg@x'))

    assert envelope.recipients == ('a@x', 'jörg@x')


def test_raw_utf8_headers() -> None:
    """Headers of raw UTF-8 are encoded, but for addresses, whose local part cannot be."""
    envelope = send(parsed('From: Jürgen <jürgen@bücher.example>\nTo: a@x\nSubject: é\n\nx\n'))

    assert envelope.sender == 'jürgen@xn--bcher-kva.example'
    assert envelope.subject == 'é'
    assert (
        'From: =?utf-8?q?J=C3=BCrgen?= <jürgen@xn--bcher-kva.example>\r\n'.encode() in envelope.raw
    )
    assert b'Subject: =?utf-8?b?w6k=?=\r\n' in envelope.raw


def test_legacy_message() -> None:
    """So do the older classes, with their Header objects."""
    message = MIMEMultipart()
    message['From'] = 'a@x'
    message['To'] = 'b@x'
    message['Subject'] = Header('Grüße ' * 20, 'utf-8')  # type: ignore[assignment]
    message.attach(MIMEText('Grüße'))
    file = MIMEApplication(PNG)
    file.add_header('Content-Disposition', 'attachment', filename='Übersicht.png')
    message.attach(file)

    again = read(send(message))

    assert again['Subject'] == 'Grüße ' * 20
    (part,) = again.iter_attachments()
    assert (part.get_filename(), part.get_content()) == ('Übersicht.png', PNG)


@pytest.mark.parametrize(
    ('message', 'named'),
    [
        (stdlib(To='x'), "To: 'x' is not a mail address"),
        (stdlib(Bcc='a@x b@y'), "Bcc: 'a@x' is what was understood.*commas"),
        (stdlib(Reply_To='x'), "Reply-To: 'x'"),
        (stdlib(To=''), 'to: the message has no recipient'),
        (stdlib(Message_ID='mine'), "Message-ID: 'mine' is not a message id"),
        (stdlib(Subject='=?utf-8?Q?=0A?=Bcc: x'), 'Subject: .*line break'),
        (stdlib(Sender='a@x, b@x'), 'Sender: it holds several addresses; give one'),
        (stdlib(From='a@x, b@x'), 'sender: several addresses in From'),
        (parsed('To: a@x\nDate: today\n\nx'), "Date: 'today' is not a date"),
        (parsed('To: a@x\nFrom: a@x\nFrom: b@x\n\nx'), 'From: the message has more than one'),
        (parsed(b'To: a@x\nX-A: \xff\n\nx'), 'X-A: .*UTF-8'),
        (parsed('To: =?utf-8?q?A=0AB?= <a@x>\n\nx'), 'To: .*line break'),
        (parsed('To: =?utf-8?q?=C3=B6?=@x\n\nx'), 'To: .*encoded word'),
    ],
)
def test_bad_email_message(message: Any, named: str) -> None:
    """A message of others is verified as ours are."""
    with pytest.raises(MessageError) as caught:
        composer.envelope(message)

    assert_refused(caught.value, named)


def legacy(*headers: tuple[str, Any], payload: Any = 'x') -> LegacyMessage:
    message = LegacyMessage()
    for name, value in (('To', 'a@x'), *headers):
        message[name] = value
    message.set_payload(payload)
    return message


@pytest.mark.parametrize(
    ('message', 'named'),
    [
        (legacy(('X-A\r\nBcc', 'b@x')), r"message: 'X-A\\r\\nBcc' is not the name of a header"),
        (legacy(('X-A', 'a\r\nBcc: b@x')), 'X-A: .*line break'),
        (legacy(('Subject', 'a\nBcc: b@x')), 'Subject: .*line break'),
        (legacy(('Content-Type', 'text/plain\nBcc: b@x')), 'Content-Type: .*line break'),
        (legacy(('X-A', 5)), 'X-A: 5 is not a string; give a str'),
        (legacy(('X-A', Header('a\nBcc: b@x', 'ascii'))), 'X-A: it cannot be encoded'),
        (
            legacy(payload='a\ud800'),
            r'text/plain part cannot be encoded in None; use set_content\(\)',
        ),
        (legacy(payload='é\udcff'), 'text/plain part cannot be encoded'),
        (legacy(('Content-Type', 'text/plain; charset=ascii'), payload='é'), "in 'ascii'"),
        (legacy(payload=5), r'content of a part is a int; use set_content\(\)'),
        (legacy(payload=['x']), 'message: a part is a str; give a message'),
        (legacy(('Content-Type', 'multipart/mixed'), payload='é'), 'multipart/mixed .*parse it'),
        (
            legacy(('Content-Type', 'multipart/mixed; boundary="é"'), payload=[]),
            'message: it cannot be serialised',
        ),
    ],
)
def test_bad_legacy_message(message: Any, named: str) -> None:
    """The older classes let pass what must not leave."""
    with pytest.raises(MessageError) as caught:
        composer.envelope(message)

    assert_refused(caught.value, named)


def test_nested_too_deep() -> None:
    """A message that holds itself ends in an error, not in the interpreter's."""
    message = MIMEMultipart()
    message['To'] = 'a@x'
    message.attach(message)

    with pytest.raises(MessageError, match='nested more than 50 deep'):
        send(message)


@pytest.mark.parametrize(
    ('source', 'content'),
    [
        (b'Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit', 'é'.encode()),
        (b'Content-Type: text/plain; charset=latin-1', b'\xe9'),
        (b'Content-Type: text/plain', b'x' * 2000),
        (b'Content-Transfer-Encoding: quoted-printable', b'x' * 2000),
        (b'Content-Type: text/plain', b'a\0b'),
        (b'Content-Type: application/x\nContent-Transfer-Encoding: binary', b'\xff' * 2000),
        (b'Content-Type: text/plain; charset=utf-16', 'é'.encode('utf-16')),
        (b'Content-Type: text/plain\nContent-Transfer-Encoding: 8bit', b'ascii'),
    ],
)
def test_eight_bits_are_encoded(source: bytes, content: bytes) -> None:
    """Parts of 8 bits or of long lines are encoded, on our copy only."""
    message = parsed(b'To: a@x\nMIME-Version: 1.0\n' + source + b'\n\n' + content)
    before = message.as_bytes()

    again = read(send(message))

    found = again.get_payload(decode=True)
    assert isinstance(found, bytes)
    assert found.rstrip(b'\r\n') == content
    assert again['Content-Transfer-Encoding'] in ('7bit', 'quoted-printable', 'base64')
    assert message.as_bytes() == before


def test_long_base64_line() -> None:
    """Base64 in one line is written in short ones."""
    data = email.message_from_bytes(
        b'To: a@x\nContent-Type: application/x\nContent-Transfer-Encoding: base64\n\n'
        + b'QUJD' * 500
    )

    assert read(send(data)).get_content() == b'ABC' * 500


def test_eight_bits_in_quoted_printable() -> None:
    """What says it is quoted-printable, and is not quite, is read as such."""
    message = parsed(b'To: a@x\nContent-Transfer-Encoding: quoted-printable\n\n=41\xc3\xa9')
    message.set_param('charset', 'utf-8')

    assert read(send(message)).get_content() == 'Aé'


def test_unicode_payload() -> None:
    """A payload of characters is encoded as its type says, or in UTF-8."""
    assert read(send(legacy(payload='é €'))).get_content() == 'é €\n'.rstrip('\n')
    given_ = legacy(('Content-Type', 'text/plain; charset=latin-1'), payload='é')
    assert read(send(given_)).get_payload(decode=True) == b'\xe9'


def test_no_payload() -> None:
    """A message without a body has an empty one."""
    message = EmailMessage()
    message['To'] = 'a@x'

    assert send(message).raw.endswith(b'MIME-Version: 1.0\r\n\r\n')


def test_attached_email_message() -> None:
    """A message within a message is treated alike; headers of the inner one stay."""
    inner = stdlib(Subject='Innen é', Bcc='b@x')
    inner.set_content('é' * 100, cte='8bit')
    outer = stdlib()
    outer.add_attachment(inner)

    (part,) = read(send(outer)).iter_attachments()

    assert part['Content-Transfer-Encoding'] == '7bit'
    assert part.get_content()['Subject'] == 'Innen é'
    assert part.get_content().get_content() == 'é' * 100 + '\r\n'


def test_preamble() -> None:
    """What stands before and after the parts is kept where it can be."""
    text = 'To: a@x\nContent-Type: multipart/mixed; boundary=b\n\n%s\n--b\n\nx\n--b--\n'

    assert b'\r\n\r\nHello\r\n--b' in send(parsed(text % 'Hello')).raw
    assert b'\r\n\r\n--b' in send(parsed(text % 'é')).raw


SIGNED = b"""From: a@x
To: b@x
MIME-Version: 1.0
Content-Type: multipart/signed; protocol="application/pgp-signature";
 micalg=pgp-sha256; boundary="sig"

--sig
Content-Type: text/plain;  charset=utf-8
X-Odd: a   b
Content-Transfer-Encoding: quoted-printable

From here: =C3=A9 =20

--sig
Content-Type: application/pgp-signature

x
--sig--
"""


@pytest.mark.parametrize('policy', [email.policy.default, email.policy.compat32])
def test_signed_is_exact(policy: Any) -> None:
    """What is signed leaves octet by octet."""
    envelope = send(parsed(SIGNED, policy))

    signed = SIGNED.replace(b'\n', b'\r\n').partition(b'\r\n\r\n')[2]
    assert envelope.raw.endswith(signed)


def test_signed_by_program() -> None:
    """What a program signed leaves as its own flattening had it."""
    inner = EmailMessage()
    inner['X-Long'] = 'word ' * 40
    inner.set_content('Hello')
    message = MIMEMultipart('signed', protocol='application/pgp-signature')
    message['To'] = 'a@x'
    message.attach(inner)
    message.attach(MIMEApplication(b'x', 'pgp-signature'))
    boundary_before = message.get_boundary()

    envelope = send(message)

    assert shape(read(envelope)) == {
        'multipart/signed': ['text/plain', 'application/pgp-signature']
    }
    assert message.get_boundary() is boundary_before is None


@pytest.mark.parametrize('content', ['é'.encode(), b'x' * 1000, b'\0'])
def test_signed_cannot_be_encoded(content: bytes) -> None:
    """What would have to be encoded would lose its signature, and is refused."""
    with pytest.raises(MessageError, match=r'multipart/signed .*quoted-printable or base64'):
        send(parsed(SIGNED.replace(b'=C3=A9', content)))


def test_signed_that_cannot_be_written() -> None:
    """Whatever the standard library raises is our error."""
    message = MIMEMultipart('signed')
    message['To'] = 'a@x'
    message.attach(legacy(('Content-Type', 'text/plain'), payload='é'))

    with pytest.raises(MessageError, match='multipart/signed cannot be serialised'):
        send(message)


def test_generator_error() -> None:
    """Whatever the generator raises is our error."""
    message = legacy(('Content-Type', 'message/delivery-status'), payload='x')

    with pytest.raises(MessageError, match='message: it cannot be serialised'):
        send(message)


class Mailerish:
    """As pyramid_mailer's Message: bcc is told by send_to alone."""

    send_to = frozenset({'z@x', 'a@x', 'B <b@x>', 'c@x'})

    def to_message(self) -> LegacyMessage:
        message = MIMEText('é')
        message['To'] = 'b@x, other@x'
        message['Cc'] = 'a@x'
        return message


def test_to_message() -> None:
    """An object with to_message() is taken; its send_to, if any, says who gets it."""
    envelope = send(Mailerish())

    assert envelope.recipients == ('b@x', 'a@x', 'c@x', 'z@x')

    class Plain:
        def to_message(self) -> EmailMessage:
            return stdlib(Bcc='b@x')

    assert send(Plain()).recipients == ('ann@x', 'b@x')


def test_to_message_without_a_sender() -> None:
    """pyramid_mailer's message raises without one; it is asked as if it had mail.default_sender,
    and stays as it was."""

    class Senderless:
        sender: str | None = None

        def to_message(self) -> EmailMessage:
            message = stdlib()
            del message['From']
            message['From'] = self.sender
            return message

    given = Senderless()
    ours = EnvelopeFactory(default_sender='shop@x')
    assert ours.envelope(given).sender == 'shop@x'
    assert given.sender is None
    given.sender = 'bob@x'
    assert ours.envelope(given).sender == 'bob@x'


def test_registry_objects() -> None:
    """Addresses and groups of the standard library's headers are written by us."""
    message = stdlib()
    del message['To']
    message['To'] = [
        Address('Doe, John ' * 11 + 'Doe, John', 'a b', 'example.org'),
        Address('é', 'c', 'x'),
    ]
    message['Errors-To'] = 'e@x'
    message['List-Unsubscribe'] = '<https://example.org/' + 'x' * 200 + '>'
    message['X-Text'] = 'é ' * 100

    envelope = send(message)

    assert envelope.recipients == ('"a b"@example.org', 'c@x')
    assert b'List-Unsubscribe: <https://example.org/' + b'x' * 200 + b'>\r\n' in envelope.raw
    again = read(envelope)
    assert again['To'].addresses[0].display_name == 'Doe, John ' * 11 + 'Doe, John'
    assert again['X-Text'] == 'é ' * 100


def test_nothing_but_what_was_given() -> None:
    """The last look finds a header that should not be there, and a line that is too long."""
    from pyramid_sendmail.message.verify import verify

    good = b'A: b\r\nC: d\r\n\r\nx\r\n'
    verify(good, ['A', 'C'])
    with pytest.raises(MessageError, match='not what was given'):
        verify(good, ['A'])
    for bad in (b'\0', b'\r', b'\n', b'\xe9', b'x' * 999):
        with pytest.raises(MessageError, match='7 bits'):
            verify(good + bad, ['A', 'C'])


def test_mapping_stays_read_only() -> None:
    """Headers of a message cannot be changed in place."""
    headers: Mapping[str, str] = plain(headers={'X-A': '1'}).headers

    with pytest.raises(TypeError):
        headers['X-A'] = '2'  # type: ignore[index]


@pytest.mark.parametrize(
    'raw',
    [
        b'',
        b'\r\nA: b\r\n\r\nbody\r\n',
        b' A: b\r\n\r\nbody\r\n',
        b'A: b\r\nC\r\n\r\nbody\r\n',
        b'A: b\nC: d\r\n\r\nbody\r\n',
        b'A: b\r\nB: c\r\nC: d\r\n\r\nbody\r\n',
        b'A: b\r\nC: d\rX: e\r\n\r\nbody\r\n',
        b'A: b\r\nC: d\r\n\r\nbo\rdy\n\r\n',
        b'A: b\r\nC: d\r\n\r\nbo\r\r\ndy\n\r\n',
        b'A: b\r\nC: d\r\n\r\nbody',
    ],
)
def test_the_last_look_finds_what_was_not_meant(raw: bytes) -> None:
    """A header that is hidden, empty, without a name or smuggled in, a line that has no end or
    half of one: none of these leaves."""
    from pyramid_sendmail.message.verify import verify

    with pytest.raises(MessageError):
        verify(raw, ['A', 'C'])


@pytest.mark.parametrize('length', [1, 997, 998, 999, 1000, 1998, 5000])
def test_the_longest_line_is_found_wherever_it_stands(length: int) -> None:
    """998 octets are a line, and 999 are not (RFC 5322, 2.1.1)."""
    from pyramid_sendmail.message.verify import verify

    for before in (0, 1, 500, 996, 997, 998):
        raw = b'A: b\r\n\r\n' + b'x' * before + b'\r\n' + b'y' * length + b'\r\nz\r\n'
        if length <= 998:
            verify(raw, ['A'])
        else:
            with pytest.raises(MessageError):
                verify(raw, ['A'])


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b'word ', b'x' * 78, b'\xe9', b'\n'])))
@example(b'\r\0\r\n')
@example(b'x' * 5000 + b'\r')
@example(b'\xe9x' * 100)
def test_lines_that_nobody_looks_at_again(data: bytes | list[bytes]) -> None:
    """What an encoded text or file is written in, the last look would have let through."""
    from pyramid_sendmail.message.mime import base64_lines, encoded_text
    from pyramid_sendmail.message.verify import verify

    data = data if isinstance(data, bytes) else b''.join(data)
    for octets in (encoded_text(data)[1], base64_lines(data)):
        verify(b'A: b\r\n\r\n' + octets + b'\r\n', ['A'])


@pytest.mark.parametrize('length', [0, 1, 56, 57, 58, 29183, 29184, 29185, 29241, 90000])
def test_base64_is_cut_into_lines_of_76(length: int) -> None:
    """As the standard library's, with the line ends of mail, however long the data is."""
    from pyramid_sendmail.message.mime import base64_lines

    data = bytes(n * n % 251 for n in range(length))
    assert base64_lines(data) == base64.encodebytes(data).replace(b'\n', b'\r\n')
