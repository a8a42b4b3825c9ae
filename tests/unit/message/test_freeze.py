"""The EnvelopeFactory: what it refuses, what leaves, and what the envelope holds."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from email.headerregistry import Address
from enum import Enum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message import Attachment, EnvelopeFactory
from tests.support.messages import (
    NOW,
    assert_refused,
    email_message,
    factory,
    freeze,
    legacy_message,
    plain,
    read,
)


# What is refused: the input, and what the text must name (the argument, and the remedy).
class Template:
    """Like a template of Chameleon, Mako or Jinja2."""

    def render(self) -> str:
        return 'Hello'


BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({'to': ()}, 'to: .*no recipient; give to, cc, bcc or the option recipients'),
    ({'to': ''}, 'to: an empty address'),
    (
        {'to': 'ann'},
        r"to: 'ann' has no @; write name@example.org.*Address\('Ann', addr_spec='ann@example",
    ),
    ({'to': ['a@x', 'b@@x']}, "to: 'b@@x'"),
    ({'to': 5}, 'to: 5 holds no addresses; give a str'),
    ({'to': None}, 'to: None holds no addresses'),
    ({'to': b'a@x'}, 'to: .*give a str'),
    ({'to': {'a@x': 'Ann'}}, 'to: .*give a str'),
    ({'to': 'a@x\nBcc: b@x'}, 'to: .*line break; take it out'),
    ({'to': 'x' * 500 + '@x'}, r"to: 'x+\.\.\. is not.*64 bytes"),
    ({'cc': 'x'}, "cc: 'x' has no @"),
    ({'bcc': 'x'}, "bcc: 'x'"),
    ({'reply_to': 'x'}, "reply_to: 'x'"),
    ({'sender': 'x'}, "sender: 'x'"),
    ({'sender': ''}, 'sender: an empty address'),
    ({'sender': []}, 'sender: .* is not an address or a list'),
    ({'sender': 'g: a@x;'}, 'sender: .*g: a@x;.* is not one address'),
    ({'sender': 'g:;'}, 'sender: .*g:;.* is not an address or a list'),
    ({'sender': ['a@x', 'b@x']}, "sender: several .*headers={'Sender'"),
    ({'sender': ['a@x', 'b@x'], 'headers': {'Sender': 'a@x, b@x'}}, 'Sender: .*exactly one'),
    ({'sender': ['a@x', 'b@x'], 'headers': {'Sender': ['a@x', 'b@x']}}, 'Sender: .*exactly one'),
    ({'subject': 'a\nb'}, 'subject: .*line break; take it out'),
    ({'subject': 'a\rBcc: b@x'}, 'subject: .*line break'),
    ({'subject': 'a\0b'}, r'subject: .*U\+0000'),
    ({'subject': 'a\ud800b'}, 'subject: .*lone surrogate'),
    ({'subject': None}, 'subject: None is not a string; give a str'),
    ({'text': None}, 'text: .*give text, html or both'),
    ({'text': b'x'}, 'text: a bytes is not a string; give a str'),
    ({'html': 5}, 'html: a int is not a string; give a str'),
    ({'text': Template()}, r'text: a Template is not a string; call its render\(\)'),
    ({'text': 'a\ud800'}, "text: character 1 is a lone surrogate.*errors='replace'"),
    ({'html': '\udcff'}, 'html: character 0'),
    (
        {'html': '<img src="cid:logo">'},
        r"html: .*cid:logo.*Attachment\(\.\.\., content_id='logo'\)",
    ),
    ({'headers': 5}, 'headers: 5 is not a dict'),
    ({'headers': [('X-A', 'b')]}, 'headers: .*is not a dict'),
    ({'headers': {'X A': 'b'}}, "headers: 'X A' is not a header name"),
    ({'headers': {'X-A\r\nBcc': 'b@x'}}, r"headers: 'X-A\\r\\nBcc' is not a header name"),
    ({'headers': {'': 'b'}}, "headers: '' is not a header name"),
    ({'headers': {5: 'b'}}, 'headers: 5 is not a header name'),
    ({'headers': {'X-A': 'a\nBcc: b@x'}}, 'headers, X-A: .*line break; take it out'),
    ({'headers': {'X-A': 'a\x01'}}, r'headers, X-A: .*U\+0001'),
    ({'headers': {'X-A': 5}}, 'headers, X-A: 5 is not a string'),
    ({'headers': {'X-A': ['a']}}, r'headers, X-A: .* is not a string'),
    ({'headers': {'Errors-To': 'a@x, b@x'}}, 'Errors-To: .* is not one address'),
    ({'headers': {'Errors-To': 5}}, 'Errors-To: 5 holds no addresses'),
    ({'headers': {'X-A': '1', 'x-a': '2'}}, 'headers: x-a is given twice; leave one out'),
    ({'headers': {'From': 'a@x'}}, 'headers: From cannot be given here; use sender'),
    ({'headers': {'to': 'a@x'}}, 'headers: to cannot be given here; use to'),
    ({'headers': {'CC': 'a@x'}}, 'use cc'),
    ({'headers': {'Bcc': 'a@x'}}, 'use bcc'),
    ({'headers': {'Resent-Bcc': 'a@x'}}, 'use bcc'),
    ({'headers': {'Reply-To': 'a@x'}}, 'use reply_to'),
    ({'headers': {'Subject': 'x'}}, 'use subject'),
    ({'headers': {'Return-Path': '<a@x>'}}, 'Return-Path .*use the option sender of send'),
    ({'headers': {'MIME-Version': '1.0'}}, 'use text, html and attachments'),
    ({'headers': {'Content-Type': 'text/html'}}, 'Content-Type .*use attachments, text and html'),
    ({'headers': {'dkim-signature': 'v=1'}}, 'use a signed message of the standard library'),
    ({'headers': {'Sender': 'x'}}, "Sender: 'x' has no @"),
    ({'headers': {'Errors-To': 'x'}}, "Errors-To: 'x' has no @"),
    ({'headers': {'Message-ID': 'x'}}, "Message-ID: 'x' is not a message id; .*leave the header"),
    ({'headers': {'Date': 'today'}}, "Date: 'today' is not a date; .*leave the header out"),
    ({'headers': {'References': '<' + 'a' * 999 + '@x>'}}, 'References: .*998'),
    ({'headers': {'List-Unsubscribe': '<https://é>'}}, 'List-Unsubscribe: .*percent-encoded'),
    ({'tag': 5}, 'tag: 5 is not a string'),
    ({'tag': ''}, 'tag: .*1 to 200 characters'),
    ({'tag': 'x' * 201}, 'tag: .*1 to 200 characters'),
    ({'tag': 'a\nb'}, 'tag: .*line break'),
    ({'attachments': 'x'}, 'attachments: str is not a list; give a list of Attachment'),
    ({'attachments': Attachment('a', b'')}, 'attachments: Attachment is not a list'),
    (
        {'attachments': [('a.txt', b'x')]},
        'attachments: tuple is not an Attachment; give Attachment',
    ),
]


@pytest.mark.parametrize(('given_', 'named'), BAD_MESSAGES)
def test_bad_message(given_: dict[str, Any], named: str) -> None:
    """A message that cannot be sent is refused; the text names the argument and the remedy."""
    message = plain(**given_)

    with pytest.raises(MessageError) as caught:
        factory.envelope(message)

    assert_refused(caught.value, named)


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        ({'default_sender': 'x'}, "mail.default_sender: 'x' has no @"),
        ({'default_sender': 'a@x, b@x'}, 'mail.default_sender: .*exactly one'),
        ({'envelope_sender': 'x'}, "mail.envelope_sender: 'x'"),
        ({'default_sender': 'smtp://u:secret@x'}, 'mail.default_sender: it is a URL; write'),
        ({'envelope_sender': 'smtps://u:secret@x'}, 'mail.envelope_sender: it is a URL; write'),
        (
            {'envelope_sender': '<>'},
            "mail.envelope_sender: .*null sender; give the option sender=''",
        ),
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
    """Without any sender the text names mail.default_sender."""
    for message in (plain(), email_message(From='')):
        with pytest.raises(MessageError, match=r'set mail\.default_sender'):
            EnvelopeFactory().envelope(message)


class Bodiless:
    def to_message(self) -> object:
        return 'text'


@pytest.mark.parametrize(
    ('message', 'named'),
    [
        (None, 'message: NoneType is not a message; pass a pyramid_sendmail.Message'),
        ('text', 'message: str is not a message'),
        (b'From: a@x', 'message: bytes is not a message'),
        (Bodiless, 'message: type is not a message'),
        (Bodiless(), r'message: to_message\(\) of Bodiless gave a str'),
    ],
)
def test_no_message(message: object, named: str) -> None:
    """A value that is not a message is refused; the text names its type and what to pass."""
    with pytest.raises(MessageError) as caught:
        factory.envelope(message)

    assert_refused(caught.value, named)


def test_never_the_body() -> None:
    """No error, and no repr, shows the content of a message."""
    for message in (
        plain(text='s3cret\ud800'),
        plain(attachments=[Attachment('a', 's3cret\ud800')]),
        plain(text='s3cret', to='x'),
    ):
        with pytest.raises(MessageError) as caught:
            factory.envelope(message)
        assert 's3cret' not in str(caught.value)
    assert 's3cret' not in repr(plain(text='s3cret', attachments=[Attachment('a', 's3cret')]))
    assert 's3cret' not in repr(freeze(plain(text='s3cret')))


def test_the_common_message() -> None:
    """A plain message has these headers, in this order, and its text as it was given."""
    envelope = freeze(plain(sender='Ann <a@x>', reply_to='r@x', cc='c@x', text='Hello\nWorld'))

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

    first, second = freeze(message), freeze(message)

    assert first.message_id != second.message_id
    assert first.id != second.id


def test_recipients() -> None:
    """To, cc, bcc in this order, each address once; bcc nowhere in the bytes."""
    envelope = freeze(
        plain(
            to=['B <b@x.org>', '"Doe, J" <j@x.org>', 'b@X.ORG'],
            cc=[Address('C', 'c', 'x.org'), 'j@x.org'],
            bcc=['secret@x.org', 'b@x.org', 'B@x.org'],
        )
    )

    assert envelope.recipients == ('b@x.org', 'j@x.org', 'c@x.org', 'secret@x.org', 'B@x.org')
    assert b'secret' not in envelope.raw
    assert [a.addr_spec for a in read(envelope)['To'].addresses] == [
        'b@x.org',
        'j@x.org',
        'b@X.ORG',
    ]


EVIL = 'evil@example.net, Ann <ann@example.org>'


@pytest.mark.parametrize('field', ['to', 'cc', 'bcc', 'reply_to', 'sender'])
def test_a_string_is_one_address(field: str) -> None:
    """No name from a form adds a recipient, a sender or an address for replies."""
    with pytest.raises(MessageError, match=f'^{field}: .* is not one address; .* give a list'):
        factory.envelope(plain(**{field: EVIL}))

    name, address = EVIL.split(' <')[0], 'ann@example.org'
    envelope = freeze(plain(**{'to': [], field: [(name, address)]}), recipients=['b@x'])
    assert b'"evil@example.net, Ann" <ann@example.org>' in envelope.raw or field == 'bcc'


def test_an_option_is_one_address() -> None:
    """Nor do the options of send, and the recipients of other libraries' messages."""
    for options in ({'recipients': EVIL}, {'sender': EVIL}, {'recipients': [EVIL]}):
        with pytest.raises(MessageError, match=r'^option .* one address'):
            factory.envelope(plain(), **options)

    assert freeze(recipients=[('Miller, Ann', 'a@x'), 'b@x']).recipients == ('a@x', 'b@x')


def test_address_headers() -> None:
    """A header of addresses takes what ``to`` takes: a list for several."""
    followup = ['list@x', ('Miller, Ann', 'a@x'), Address('B', 'b', 'x')]
    envelope = freeze(plain(headers={'Mail-Followup-To': followup, 'Sender': [('S', 's@x')]}))

    assert read(envelope)['Mail-Followup-To'] == 'list@x, "Miller, Ann" <a@x>, B <b@x>'
    assert read(envelope)['Sender'] == 'S <s@x>'
    assert envelope.recipients == ('ann@example.org',)


@pytest.mark.parametrize('name', ['cc', 'bcc', 'reply_to', 'headers', 'attachments'])
def test_none_is_not_given(name: str) -> None:
    """None for an argument that may be left out is as good as nothing."""
    message = plain(**{name: None})

    assert message == plain()
    head = freeze(message).raw.partition(b'Message-ID')[0]
    assert head == freeze(plain()).raw.partition(b'Message-ID')[0]


def test_only_bcc() -> None:
    """Without to and cc, To is an empty group; with a cc alone there is no To."""
    assert read(freeze(plain(to=(), bcc='b@x')))['To'] == 'undisclosed-recipients:;'
    assert read(freeze(plain(to=()), recipients='b@x'))['To'] == 'undisclosed-recipients:;'
    assert read(freeze(plain(to=(), cc='b@x')))['To'] is None


def test_senders() -> None:
    """The sender is the address of From, the setting or the option; '' is the null sender."""
    assert freeze().sender == 'shop@example.org'
    assert freeze(plain(sender=Address('Ann', 'a', 'x'))).sender == 'a@x'
    assert freeze(sender='Ann <bounce@x>').sender == 'bounce@x'
    assert freeze(sender='').sender == ''
    bounces = EnvelopeFactory(default_sender='a@x', envelope_sender='Bounces <bounce@x>')
    assert bounces.envelope(plain()).sender == 'bounce@x'
    assert bounces.envelope(plain(), sender='').sender == ''


def test_several_senders() -> None:
    """Several authors need a Sender, which gets the bounces (RFC 5322, 3.6.2)."""
    envelope = freeze(plain(sender=['a@x', 'b@x'], headers={'Sender': 'Bob <b@x>'}))

    assert envelope.sender == 'b@x'
    assert read(envelope)['From'] == 'a@x, b@x'
    assert read(envelope)['Sender'] == 'Bob <b@x>'


def test_given_headers() -> None:
    """Other headers are kept, even Message-ID and Date; Auto-Submitted can be overridden."""
    url = '<https://example.org/u?' + 'x' * 300 + '>'
    envelope = freeze(
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
    """A domain leaves as A-labels; a local part in UTF-8 leaves as it is."""
    envelope = freeze(plain(to=['Jürgen <j@bücher.example>', 'jörg@x']))

    assert envelope.recipients == ('j@xn--bcher-kva.example', 'jörg@x')
    assert (
        'To: =?utf-8?q?J=C3=BCrgen?= <j@xn--bcher-kva.example>, jörg@x\r\n'.encode() in envelope.raw
    )


def test_max_size() -> None:
    """The limit applies to the bytes that leave, to the byte."""
    size = len(freeze(plain(headers={'Message-ID': '<a@b>'})).raw)
    message = plain(headers={'Message-ID': '<a@b>'})

    exact = EnvelopeFactory(
        default_sender='Shop <shop@example.org>', max_size=size, clock=lambda: NOW
    )
    assert len(exact.envelope(message).raw) == size
    less = EnvelopeFactory(
        default_sender='Shop <shop@example.org>', max_size=size - 1, clock=lambda: NOW
    )
    with pytest.raises(MessageError, match=rf'{size} bytes .*mail\.max_size = {size - 1}'):
        less.envelope(message)


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
    """Any subject arrives exactly, and adds no header."""
    envelope = freeze(plain(subject=subject))

    assert envelope.subject == subject
    assert read(envelope)['Subject'] == subject
    assert len(read(envelope).keys()) == 9


class Markup(str):
    """Like markupsafe.Markup: it changes strings that it is joined with."""

    __slots__ = ()

    def __add__(self, other: str) -> str:
        return Markup(str(self) + other.upper())

    def __radd__(self, other: str) -> str:
        return Markup(other.upper() + str(self))

    def __format__(self, spec: str) -> str:
        return str(self).upper()

    def join(self, parts: Any) -> str:
        return Markup(str(self).join(part.upper() for part in parts))


class Word(str, Enum):  # noqa: UP042 - a StrEnum's str() is its value
    """What a program writes for its kinds of mail."""

    TEXT = 'Welcome'
    ADDRESS = 'word@example.org'
    FILE = 'terms.txt'
    TYPE = 'text/csv'
    ID = 'logo'
    NAME = 'X-Kind'
    PRIORITY = 'high'


def test_enum() -> None:
    """A member of a (str, Enum) class is its value, wherever text is given."""
    picture = Attachment(Word.FILE, Word.TEXT, content_type=Word.TYPE, content_id=Word.ID)
    envelope = freeze(
        plain(
            subject=Word.TEXT,
            to=[Word.ADDRESS, (Word.TEXT, 'b@x')],
            cc=Word.ADDRESS,
            sender=Word.ADDRESS,
            text=Word.TEXT,
            html=Word.TEXT,
            headers={Word.NAME: Word.TEXT},
            tag=Word.TEXT,
            attachments=[picture],
        ),
        metadata={Word.NAME: Word.TEXT},
        priority=Word.PRIORITY,
    )

    assert b'Word' not in envelope.raw
    message = read(envelope)
    assert message['Subject'] == message['X-Kind'] == envelope.subject == envelope.tag == 'Welcome'
    assert message['To'] == 'word@example.org, Welcome <b@x>'
    assert envelope.recipients == ('word@example.org', 'b@x')
    assert envelope.sender == 'word@example.org'
    (file,) = message.iter_attachments()
    assert file.get_filename() == 'terms.txt'
    assert file.get_content_type() == 'text/csv'
    assert file['Content-ID'] == '<logo>'
    assert file.get_content().strip() == 'Welcome'
    for value in (
        *(envelope.subject, envelope.tag, envelope.sender, *envelope.recipients),
        *(*envelope.metadata, *envelope.metadata.values(), envelope.priority),
    ):
        assert type(value) is str


def test_enum_in_another_message() -> None:
    """So it is in a message of the standard library, old or new."""
    for message in (legacy_message(('X-Kind', Word.TEXT), payload=Word.TEXT), email_message()):
        if message['X-Kind'] is None:
            message['X-Kind'] = Word.TEXT
            message.set_content(Word.TEXT)
        envelope = freeze(message)
        assert b'Word' not in envelope.raw
        assert read(envelope)['X-Kind'] == 'Welcome'
        assert read(envelope).get_content().strip() == 'Welcome'


def test_enum_as_a_header_of_a_part() -> None:
    """So are the headers of the parts of such a message."""
    part = legacy_message(('Content-Type', Word.TYPE), payload='a,b')
    whole = legacy_message(('Content-Type', 'multipart/mixed; boundary=x'), payload=[part])

    (found,) = read(freeze(whole)).iter_parts()
    assert found.get_content_type() == 'text/csv'


class Translation(str):
    """Like the strings of translationstring and of zope.i18nmessageid: an id."""

    __slots__ = ('default', 'domain', 'mapping')

    def __new__(cls, text: str) -> Translation:
        self = super().__new__(cls, text)
        self.domain, self.default, self.mapping = 'shop', 'Welcome', None
        return self


class LazyText(str):
    """A lazy string that is a str: its own text is empty."""

    __slots__ = ()

    def __str__(self) -> str:
        return 'Welcome'


class Lazy:
    """A lazy string that is none."""

    def __str__(self) -> str:
        return 'Welcome'


@pytest.mark.parametrize(
    ('value', 'named'),
    [
        (Translation('title'), 'is a translation string.*request.localizer.translate'),
        (LazyText(''), r'is a LazyText whose str\(\) is another text; give str\(\) of it'),
        (Lazy(), r'is not a string; give str\(\) of it'),
    ],
)
@pytest.mark.parametrize(
    ('where', 'given_'),
    [
        ('subject', lambda value: {'subject': value}),
        ('text', lambda value: {'text': value}),
        ('html', lambda value: {'html': value}),
        ('to', lambda value: {'to': [(value, 'a@x')]}),
        ('to', lambda value: {'to': [('Ann', value)]}),
        ('headers, X-A', lambda value: {'headers': {'X-A': value}}),
        ('tag', lambda value: {'tag': value}),
        ('attachments, filename', lambda value: {'attachments': [Attachment(value, b'')]}),
    ],
)
def test_not_its_own_text(value: Any, named: str, where: str, given_: Any) -> None:
    """What is no text of its own is refused: it would leave as an id, or empty."""
    with pytest.raises(MessageError, match=f'^{where}: .*{named}'):
        factory.envelope(plain(**given_(value)))


def test_not_its_own_text_in_other_places() -> None:
    """So it is in the data of an attachment, in metadata, and in another library's message."""
    for value in (Translation('title'), LazyText('')):
        for message, options in (
            (plain(attachments=[Attachment('a', value)]), {}),
            (plain(), {'metadata': {'a': value}}),
            (legacy_message(('X-A', value)), {}),
            (legacy_message(payload=value), {}),
        ):
            with pytest.raises(MessageError, match=r'translation string|another text'):
                factory.envelope(message, **options)  # type: ignore[arg-type]


def test_markup() -> None:
    """A str subclass that escapes other strings is used as plain text."""
    markup = Markup('a <b> & "c" é')

    envelope = freeze(plain(subject=markup, html=markup, headers={'X-A': markup}))

    assert envelope.subject == read(envelope)['Subject'] == read(envelope)['X-A'] == str(markup)
    assert type(envelope.subject) is str
    assert type(freeze(plain(to=Markup('"A & B" <a@x>'))).recipients[0]) is str


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
    """No text from a visitor takes more than linear time."""
    before = time.process_time()
    with suppress(MessageError):
        factory.envelope(plain(**given_))

    assert time.process_time() - before < 2
