"""Parts of messages of other libraries: mended where they say what they are not, and otherwise as
they were."""

from __future__ import annotations

import base64
import email
import email.policy
import random
import re
from collections.abc import Iterator
from contextlib import suppress
from email import encoders
from email.header import Header
from email.message import EmailMessage
from email.message import Message as LegacyMessage
from email.mime.application import MIMEApplication
from email.mime.base import MIMEBase
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import getaddresses
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message import Attachment, EnvelopeFactory
from tests.support.messages import (
    assert_wire,
    email_message,
    factory,
    freeze,
    legacy_message,
    parsed,
    plain,
    read,
    shape,
)

BASE64 = 'Content-Transfer-Encoding: base64'
PRINTABLE = 'Content-Transfer-Encoding: quoted-printable'


def leaf(raw: bytes) -> Any:
    *_, last = (part for part in email.message_from_bytes(raw).walk() if not part.is_multipart())
    return last


def set_charset_first() -> LegacyMessage:
    message = legacy_message(payload=None)
    message['Content-Type'] = 'text/plain'
    message.set_charset('utf-8')
    message.set_payload('Hello, plain words.')
    return message


def set_payload_twice(text: str = 'Hello, plain words.') -> LegacyMessage:
    message = MIMEText('é', 'plain', 'utf-8')
    message['To'] = 'a@x'
    message.set_payload(text)
    return message


def file_without_its_encoding() -> LegacyMessage:
    message = MIMEBase('application', 'x')
    message['To'] = 'a@x'
    message.set_payload('Hello, plain words.')
    message['Content-Transfer-Encoding'] = 'base64'
    return message


@pytest.mark.parametrize(
    ('message', 'content'),
    [
        (set_charset_first(), b'Hello, plain words.'),
        (set_payload_twice(), b'Hello, plain words.'),
        (set_payload_twice('Grüße'), 'Grüße'.encode()),
        (set_payload_twice('Hello'), b'Hello'),
        (file_without_its_encoding(), b'Hello, plain words.'),
        (parsed(f'To: a@x\n{BASE64}\n\nplain words, é'), 'plain words, é'.encode()),
        (parsed(f'To: a@x\n{PRINTABLE}\n\na=b costs 5 = 5'), b'a=b costs 5 = 5'),
        (parsed(f'To: a@x\n{PRINTABLE}\n\nüa=b costs'), 'üa=b costs'.encode()),
        (
            parsed(f'To: a@x\n{PRINTABLE}\n\nhttps://x/?a=1&b=22&c=x <p class="y">'),
            b'https://x/?a=1&b=22&c=x <p class="y">',
        ),
        # What says the truth stays, even if it is not exact.
        (parsed(f'To: a@x\n{BASE64}\n\nSGVsbG8=\n'), b'Hello'),
        (parsed(f'To: a@x\n{BASE64}\n\n'), b''),
        (parsed(f'To: a@x\n{PRINTABLE}\n\na=3Db = c'), b'a=b = c'),
        (parsed(f'To: a@x\n{PRINTABLE}\n\nno sign'), b'no sign'),
    ],
)
def test_an_encoding_that_is_none(message: Any, content: bytes) -> None:
    """A part that says base64 or quoted-printable, and is plain text, is encoded."""
    found = leaf(freeze(message).raw)

    assert len(found.get_all('Content-Transfer-Encoding')) == 1
    if found['Content-Transfer-Encoding'] == 'base64':
        base64.b64decode(''.join(found.get_payload().split()), validate=True)
    assert found.get_payload(decode=True).rstrip(b'\r\n') == content


def test_base64_with_something_behind_it() -> None:
    """A mailing list adds its footer to what is encoded: nothing is hidden by encoding it anew."""
    encoded = base64.encodebytes(b'x' * 100).decode()

    raw = freeze(parsed(f'To: a@x\n{BASE64}\n\n{encoded}____\nthe list\n')).raw

    assert encoded.replace('\n', '\r\n').encode() in raw


@pytest.mark.parametrize('kind', ['application/x', 'text/plain'])
def test_doubled_mime_headers(kind: str) -> None:
    """Of two equal or different headers the true one leaves, in the message and in its parts."""
    inner = MIMEBase(*kind.split('/'))
    inner.set_payload(b'\xff\0')
    inner['Content-Transfer-Encoding'] = '7bit'
    inner['Content-Type'] = 'text/html'
    encoders.encode_base64(inner)
    outer = MIMEMultipart()
    outer['To'] = 'a@x'
    outer.attach(inner)
    inner.add_header('Content-Transfer-Encoding', 'base64')
    message = parsed(f'To: a@x\n{BASE64}\n{BASE64}\n\n/wA=')
    for given in (outer, message):
        found = leaf(freeze(given).raw)

        assert found.get_all('Content-Transfer-Encoding') == ['base64']
        assert found.get_all('Content-Type', [kind]) == [kind]
        assert found.get_payload(decode=True) == b'\xff\0'


@pytest.mark.parametrize('kind', ['application/octet-stream', 'text/csv'])
@pytest.mark.parametrize(
    'data',
    [b'one\ntwo\n', b'one\rtwo\r', b'one\r\ntwo\n', b'one\r\ntwo\r\n', b'\0one\n', b'\xff\n'],
)
def test_binary_content_is_exact(kind: str, data: bytes) -> None:
    """Bytes that are declared binary arrive as they were, ASCII or not."""
    message = email_message()
    main, _, sub = kind.partition('/')
    message.add_attachment(data, maintype=main, subtype=sub, cte='binary', filename='sums')

    assert leaf(freeze(message).raw).get_payload(decode=True) == data


def test_a_bare_carriage_return_in_a_file() -> None:
    """It is content, and no end of a line, where no text is."""
    message = legacy_message(('Content-Type', 'application/x'), payload='a\rb\r\nc')

    assert leaf(freeze(message).raw).get_payload(decode=True) == b'a\rb\r\nc'


def test_text_of_two_bytes_a_character() -> None:
    """UTF-16 has bytes like those of line ends where it has none."""
    data = '\u0a0d\u0d0a\u4e0a'.encode('utf-16-le')
    source = b'To: a@x\nContent-Type: text/plain; charset=utf-16-le\n\n'

    message = email.message_from_bytes(source)
    message.set_payload(data.decode('ascii', 'surrogateescape'))

    assert leaf(freeze(message).raw).get_payload(decode=True) == data


BOUNDARY = '=_alternative 0123456789ABCDEF_='
PARTS = (
    f'--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nhello\r\n--{BOUNDARY}\r\n'
    f'Content-Type: text/html\r\n\r\n<p>hello\r\n--{BOUNDARY}--\r\n'
)


@pytest.mark.parametrize('policy', [email.policy.compat32, email.policy.default])
@pytest.mark.parametrize('depth', [0, 1])
@pytest.mark.parametrize(
    'header',
    [
        f'multipart/alternative; boundary="{BOUNDARY}"',
        f'multipart/alternative; x="{"word " * 12}"; boundary="{BOUNDARY}"',
        f'multipart/alternative;\r\n boundary="{BOUNDARY}"',
        'multipart/alternative; boundary="=_alternative\r\n 0123456789ABCDEF_="',
    ],
)
def test_boundaries_with_a_blank(policy: Any, depth: int, header: str) -> None:
    """No header is folded inside quotes, and one that others folded there is unfolded: readers do
    not find the parts otherwise."""
    text = f'Content-Type: {header}\r\n\r\n{PARTS}'
    if depth:
        text = f'Content-Type: multipart/mixed; boundary=outer\r\n\r\n--outer\r\n{text}--outer--'
    text = f'From: a@x\r\nTo: b@x\r\nMIME-Version: 1.0\r\n{text}'

    raw = freeze(email.message_from_bytes(text.encode(), policy=policy)).raw

    for reader in (email.policy.compat32, email.policy.default):
        kinds = [
            part.get_content_type() for part in email.message_from_bytes(raw, policy=reader).walk()
        ]
        assert kinds[-2:] == ['text/plain', 'text/html']


def test_a_part_that_was_not_parsed() -> None:
    """A multipart of 8 bits whose boundary others have folded is parsed again, to be encoded."""
    folded = 'multipart/alternative; boundary="=_alternative\r\n 0123456789ABCDEF_="'
    text = f'To: b@x\r\nContent-Type: {folded}\r\n\r\n{PARTS.replace("<p>hello", "<p>é")}'

    raw = freeze(email.message_from_bytes(text.encode(), policy=email.policy.compat32)).raw

    assert leaf(raw).get_payload(decode=True) == '<p>é'.encode()


def test_a_long_file_name_of_others() -> None:
    """A file name that does not fit on a line, or of raw bytes, is written by RFC 2231."""
    for name in ('word ' * 300 + 'end.pdf', 'Grüße.pdf'):
        text = f'To: a@x\nContent-Disposition: attachment; filename="{name}"\n\nx'
        message = parsed(text.encode(), email.policy.compat32)
        assert leaf(freeze(message).raw).get_filename() == name


def test_a_file_name_written_by_hand() -> None:
    """A header of characters, not of bytes, is no MIME header: add_header() makes one."""
    message = parsed('To: a@x\n\nx', email.policy.compat32)
    message['Content-Disposition'] = 'attachment; filename="Gr\xfc\xdfe.pdf"'
    with pytest.raises(MessageError, match=r'give its parameters to add_header\(\)'):
        freeze(message)


@pytest.mark.parametrize('name', ['To', 'Cc', 'Reply-To', 'Mail-Followup-To'])
@pytest.mark.parametrize('form', ['{0}', '"Member,{1}"<{0}>', 'Member {1} <{0}>'])
def test_addresses_without_blanks(name: str, form: str) -> None:
    """A list of addresses can be folded behind each comma, but for those inside quotes."""
    addresses = [f'm{number}@lists.example.org' for number in range(80)]
    message = MIMEText('x')
    message[name] = ','.join(form.format(each, n) for n, each in enumerate(addresses))

    envelope = freeze(message, recipients=None if name in ('To', 'Cc') else 'b@x')

    assert max(map(len, envelope.raw.split(b'\r\n'))) <= 78
    found = getaddresses([str(read(envelope)[name])])
    assert [address for _, address in found] == addresses
    if name in ('To', 'Cc'):
        assert list(envelope.recipients) == addresses


SIGNATURE = (
    'v=1; a=rsa-sha256; d=example.org; s=x; c=simple/simple; h=from:to:subject; b=' + 'A' * 300
)


def dkim_messages() -> Iterator[Any]:
    modern = email_message(
        Subject='Grüße to all, and many more words than a line has room for, in the middle'
    )
    modern.set_content('Grüße, ' * 30, cte='quoted-printable')
    modern.add_alternative('<p>Hello', subtype='html')
    modern.add_attachment(b'\0', maintype='image', subtype='png', filename='Übersicht.png')
    modern['Content-Language'] = 'de'
    yield modern
    legacy = MIMEMultipart()
    legacy['From'], legacy['To'] = 'a@x', 'b@x'
    legacy['Subject'] = Header('Grüße ' * 20, 'utf-8')  # type: ignore[assignment]
    legacy['X-Long'] = 'word ' * 40 + 'end'
    legacy.attach(MIMEText('Grüße', 'plain', 'utf-8'))
    legacy.attach(MIMEMessage(email_message(Subject='x')))
    yield legacy
    for policy in (email.policy.compat32, email.policy.default):
        yield parsed(
            'From:   "A"   <a@x>\nMIME-Version: 1.0 (odd)\nTo: b@x\nX-Odd:  a\n\tb\n'
            'Subject: '
            + 'word ' * 9
            + 'end'
            + '\n and more\nContent-Type:   text/plain;  charset=us-ascii\n\nx \n \n',
            policy,
        )


@pytest.mark.parametrize('message', [*dkim_messages()])
def test_a_signature_of_the_application(message: Any) -> None:
    """A message with a DKIM-Signature leaves as the standard library writes it, to the byte."""
    data = message.as_bytes(policy=message.policy.clone(linesep='\r\n'))
    message['DKIM-Signature'] = SIGNATURE
    before, _, after = data.partition(b'\r\n\r\n')

    envelope = freeze(message)

    head, _, body = envelope.raw.partition(b'\r\n\r\n')
    assert (head + b'\r\n').startswith(before + b'\r\n')
    assert body == after
    added = head[len(before) :].decode()
    names = [line.partition(':')[0] for line in added.split('\r\n')[1:] if line[0] != ' ']
    assert names[0] == 'DKIM-Signature'
    assert set(names[1:]) <= {'Date', 'Message-ID', 'MIME-Version'}
    assert ''.join(added.split()).count('A' * 300) == 1


def test_a_signature_that_would_break() -> None:
    """Content that has to be encoded is refused with its signature; sent on, it leaves."""
    message = parsed(
        f'From: a@x\nTo: b@x\nContent-Type: text/plain; charset=utf-8\n'
        f'DKIM-Signature: {SIGNATURE}\n\né\n'
    )

    with pytest.raises(MessageError, match=r'DKIM-Signature: .*not ASCII.*let the relay sign'):
        freeze(message)
    assert read(freeze(message, sender='s@x', recipients='r@x')).get_content() == 'é\r\n'


def test_signed_content_of_a_program() -> None:
    """The content of multipart/signed is what the standard library's generator writes."""
    inner = email_message(Subject='Innen')
    inner.add_attachment(email_message(X_Long='word ' * 40), filename='x.eml')
    inner.as_bytes()
    outer = MIMEMultipart('signed', boundary='b', protocol='application/pgp-signature')
    outer['To'] = 'a@x'
    outer.attach(inner)
    outer.attach(
        parsed(
            'Content-Type: multipart/report; boundary=c\n\npre\n--c\n'
            'Content-Type: message/delivery-status\n\nA: b\n\nC: d\n\n--c--\nepi\n'
        )
    )
    outer.attach(MIMEApplication(b'x', 'pgp-signature'))

    raw = freeze(outer).raw

    data = outer.as_bytes(policy=email.policy.SMTP)
    assert raw.partition(b'\r\n\r\n')[2] == data.partition(b'\r\n\r\n')[2]


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        (b'From: J\xfcrgen <j@x>', b'From: '),
        (b'From: a@x\nFrom: b@x', b'From: a@x\r\n'),
        (b'From: no address at all', b'From: no address at all\r\n'),
        (b'From: a@x\nSubject: a\nSubject: b', b'Subject: a\r\n'),
        (b'From: a@x\nSubject: Gr\xfc\xdfe', b'Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n'),
        (b'From: a@x\nDate: yesterday', b'Date: yesterday\r\n'),
        (b'From: a@x\nMessage-ID: <no id>', b'Message-ID: <'),
        (b'From: a@x\nMessage-ID: none', b'Message-ID: <'),
        (b'From: a@x\nReferences: \xff', b''),
        (b'From: a@x, b@x', b'From: a@x, b@x\r\n'),
        (b'From: ' + b'n' * 2_000 + b' <a@x>', b'From: a@x\r\n'),
        (b'From: a@x\nSender: b@x, c@x', b'Sender: b@x, c@x\r\n'),
        (b'From: a@x\nX-N\xe4me: y\nX-B: z', b'X-B: z\r\n'),
        (b'From: a@x\nReferences: ' + b'x' * 2000, b''),
        (b'From: a@x\nX-A: a\0b', b'X-A: a b\r\n'),
        (b'From: a@x\nContent-Type: text/plain; name="\xfc.txt"', b"name*=utf-8''%C3%BC.txt"),
        (b'From: a@x\nContent-Type: multipart/mixed\n\n\xff', b'text/plain'),
        (b'To: x', b'From: '),
        (b'From: J\xfcrgen <a@x>', b'From: =?utf-8?q?J=C3=BCrgen?= <a@x>\r\n'),
        ('From: ü@x\nCc: Ü <ü@x>, b@x'.encode(), b'Cc: =?utf-8?b?w5wgw7xAeA==?=:;, b@x\r\n'),
        ('From: a@x\nCc: Us: ü@x, b@x;'.encode(), b'Cc: Us: b@x;, =?utf-8?b?w7xAeA==?=:;\r\n'),
        ('From: a@x\nCc: ü@'.encode(), b'Cc: =?utf-8?b?w7xA?=\r\n'),
    ],
)
@pytest.mark.parametrize('policy', [email.policy.compat32, email.policy.default])
def test_a_message_that_is_sent_on(text: bytes, found: bytes, policy: Any) -> None:
    """With an envelope of its own, what does not hurt delivery is passed on or mended."""
    message = parsed(text + b'\nX-End: 1\n\nx\n', policy)

    envelope = freeze(message, sender='s@x', recipients='r@x')

    assert (envelope.sender, envelope.recipients) == ('s@x', ('r@x',))
    assert found in envelope.raw
    assert envelope.message_id.encode() in envelope.raw
    if b'multipart' not in text and b'=\xc3\xbc' not in text:
        for other in ({}, {'sender': 's@x'}, {'recipients': 'r@x'}):
            with suppress(MessageError):
                assert_wire(factory.envelope(message, **other).raw)  # type: ignore[arg-type]


def test_a_null_sender_of_a_message_without_from() -> None:
    """The message needs a From from somewhere."""
    ours = EnvelopeFactory()
    message = parsed('To: x\n\ny')
    assert b'From: s@x\r\n' in ours.envelope(message, sender='s@x', recipients='r@x').raw
    with pytest.raises(MessageError, match=r'set mail\.default_sender'):
        ours.envelope(message, sender='', recipients='r@x')


def seeds() -> list[bytes]:
    messages = [*dkim_messages(), set_charset_first(), email_message(Cc='b@x, "C, D" <c@x>')]
    return [
        *(each.as_bytes() for each in messages),
        f'To: b@x\nContent-Type: multipart/mixed; boundary="{BOUNDARY}"\n\n{PARTS}'.encode(),
        b'To: a@x\nContent-Type: multipart/signed; boundary=q\n\n--q\n\nx\n--q\n\ny\n--q--\n',
        b'To: a@x\nContent-Type: message/rfc822\n\nSubject: \xc3\xa9\nContent-Type: a/b\n\n\xff',
        b'To: a@x\nContent-Type: multipart/report; boundary=b\n\n--b\n'
        b'Content-Type: message/delivery-status\n\nA: b\n\nC: d\n\n--b--\n',
    ]


PIECES = [
    *(b'\n', b'\r', b'\r\n', b'\n\n', b'\n ', b'\0', b'\xff', b'\xc3\xa9', b'"', b'\\', b';', b'='),
    *(b':', b',', b'<', b'>', b'(', b'--', b'=?utf-8?q?', b'?=', b'Bcc: x@y\n', b'; boundary=b'),
    *(b'Content-Type: multipart/mixed\n', b'Content-Transfer-Encoding: base64\n', b'\t', b'%00'),
    *(b'Content-Type: message/rfc822\n\n', b'x' * 1000, b'*0*=', b'DKIM-Signature: h=from\n'),
]


def mutated(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.randint(1, 8)):
        at, end = sorted(chance.choices(range(len(data) + 1), k=2))
        end = min(end, at + 60)
        data = chance.choice(
            [
                data[:at] + chance.choice(PIECES) + data[at:],
                data[:at] + data[end:],
                data[:end] + data[at:end] * chance.randint(1, 50) + data[end:],
                data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :],
            ]
        )
    return data


def check_mutated(seed: int) -> None:
    chance = random.Random(seed)
    data = mutated(chance, chance.choice(seeds()))
    message = email.message_from_bytes(data, policy=email.policy.compat32)
    modern = EmailMessage()
    modern._headers, modern._payload = message._headers, message._payload  # type: ignore[attr-defined]
    attachment = Attachment('a.eml', data, content_type='message/rfc822')
    for given, options in (
        (message, {}),
        (modern, {'recipients': 'r@x'}),
        (message, {'sender': 's@x', 'recipients': 'r@x'}),
        (plain(attachments=[attachment]), {}),
    ):
        with suppress(MessageError):
            raw = factory.envelope(given, **options).raw
            assert_wire(raw, sent_on='sender' in options)


@pytest.mark.timeout(300)
@pytest.mark.parametrize('first', range(0, 400, 100))
def test_mutated_messages(first: int) -> None:
    """Whatever a message holds, it leaves in good lines or is refused by MessageError, soon."""
    for seed in range(first, first + 100):
        check_mutated(seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_mutated_messages() -> None:
    """The same, of more messages."""
    for seed in range(1000, 4000):
        check_mutated(seed)


def test_shapes_stay() -> None:
    """A message of other libraries keeps its parts."""
    for message in dkim_messages():
        assert shape(read(freeze(message))) == shape(message)


def test_composite_parts_have_no_encoding() -> None:
    """A multipart without a type gets one, and an encoding that only its parts can have is taken
    back."""
    inner = legacy_message(('Content-Type', 'text/plain'), payload='é')
    outer = legacy_message(('Content-Transfer-Encoding', 'base64'), payload=[inner])
    mail = 'To: a@x\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nX-A: b\n\nx'

    assert shape(read(freeze(outer))) == {'multipart/mixed': ['text/plain']}
    for given in (outer, parsed(mail)):
        assert read(freeze(given))['Content-Transfer-Encoding'] == '7bit'


def test_a_boundary_in_sections() -> None:
    """A boundary that RFC 2231 has split is read."""
    text = "To: a@x\nContent-Type: multipart/mixed; boundary*1=c; boundary*0*=us-ascii''a%62\n\n"

    message = parsed(f'{text}--abc\n\nx\n--abc--\n', email.policy.compat32)

    assert b'--abc--\r\n' in freeze(message).raw


def test_a_name_that_is_none_in_a_part() -> None:
    """A header whose name cannot leave is left out of a part of a message that is sent on."""
    inner = legacy_message(('X ä', 'y'), ('X-B', 'z'))
    outer = legacy_message(('Content-Type', 'multipart/mixed; boundary=b'), payload=[inner])

    raw = freeze(outer, sender='s@x', recipients='r@x').raw

    assert b'--b\r\nTo: a@x\r\nX-B: z\r\n\r\nx\r\n--b--' in raw


SIGNED = b"""Content-Type: multipart/signed; boundary=q; micalg=pgp-sha256;
 protocol="application/pgp-signature"

preamble
--q
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit
X-Raw: \xfc \xc3\xbc

Gr\xc3\xbc\xc3\x9fe, \xff
--q
Content-Type: application/pgp-signature

signature
--q--
"""


@pytest.mark.parametrize('policy', [email.policy.compat32, email.policy.default])
@pytest.mark.parametrize('place', ['alone', 'in a multipart', 'attached', 'not parsed', 'declared'])
def test_signed_content_of_8_bits_that_is_sent_on(place: str, policy: Any) -> None:
    """It leaves byte for byte, and each part around it says so (RFC 1847, 2.1; RFC 2045, 6.4);
    parts beside it are encoded."""
    head = b'From: a@x\nTo: b@x\n'
    if place == 'in a multipart':
        head += b'Content-Type: multipart/mixed; boundary=z\n\n--z\n'
        text = head + SIGNED + b'\n--z\nContent-Type: text/plain; charset=latin1\n\n\xe4\n--z--\n'
    elif place == 'attached':
        text = head + b'Content-Type: message/rfc822\n\n' + head + SIGNED
    elif place == 'declared':
        text = head + b'Content-Transfer-Encoding: 8bit\n' + SIGNED
    else:
        text = head + SIGNED
    message = parsed(text, policy)
    if place == 'not parsed':
        message.set_payload(SIGNED.partition(b'\n\n')[2].decode('ascii', 'surrogateescape'))

    envelope = freeze(message, sender='s@x', recipients='r@x')

    assert SIGNED.replace(b'\n', b'\r\n').partition(b'\r\n\r\n')[2].rstrip() in envelope.raw
    assert envelope.has_ascii_head
    around = 1 + (place in ('in a multipart', 'attached'))
    said = re.findall('(?m)^Content-Transfer-Encoding: (.*?)\r$', envelope.raw.decode('latin-1'))
    assert said[: around + 1] == ['8bit'] * (around + 1)
    again = email.message_from_bytes(envelope.raw, policy=policy)
    assert not [defect for part in again.walk() for defect in part.defects]
    if place == 'in a multipart':
        *_, beside = again.walk()
        assert (said[-1], beside.get_payload(decode=True)) == ('base64', b'\xe4')
    for other in ({}, {'sender': 's@x'}, {'recipients': 'r@x'}):
        with pytest.raises(MessageError, match='sign parts that are quoted-printable or base64'):
            factory.envelope(message, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('content', 'what'),
    [(b'\0', 'not ASCII'), (b'\xfc' * 999, 'lines of more than 998 bytes')],
)
def test_signed_content_that_no_relay_takes(content: bytes, what: str) -> None:
    """It is refused although it is sent on."""
    message = parsed(b'From: a@x\n' + SIGNED.replace(b'\xff', content), email.policy.compat32)

    with pytest.raises(MessageError, match=f'multipart/signed has .*{what}.*; sign parts'):
        freeze(message, sender='s@x', recipients='r@x')


def test_signed_text_of_a_program_that_is_sent_on() -> None:
    """Characters that were never bytes cannot have been signed."""
    message = parsed(b'From: a@x\n' + SIGNED, email.policy.compat32)
    message.get_payload()[0]._payload = 'ü'

    with pytest.raises(MessageError, match='text that was not encoded before it was signed'):
        freeze(message, sender='s@x', recipients='r@x')


def test_an_attached_mail_with_an_address_that_is_not_ascii() -> None:
    """Its head is content of 7 bits, whatever the relay takes: the address leaves as the name of an
    empty group (RFC 6857, 3.1.8) if the message is sent on, and is refused otherwise."""
    text = 'From: a@x\nTo: b@x\nContent-Type: message/rfc822\n\nFrom: Ü <ü@x>\nSubject: ü\n\nx\n'
    message = parsed(text.encode(), email.policy.compat32)

    raw = freeze(message, sender='s@x', recipients='r@x').raw

    assert b'\r\n\r\nFrom: =?utf-8?b?w5wgw7xAeA==?=:;\r\nSubject: =?utf-8?b?w7w=?=\r\n' in raw
    with pytest.raises(MessageError, match=r'an address .* is not ASCII; attach that mail'):
        freeze(message)


def test_addresses_of_those_who_need_smtputf8() -> None:
    """They stay in the headers where the envelope needs it as well."""
    text = 'From: ü@x\nTo: ä@x\n\nx\n'.encode()
    for recipients, keeps in [(['ä@x', 'b@x'], True), (['b@x'], False)]:
        message = parsed(text, email.policy.compat32)
        raw = freeze(message, sender='s@x', recipients=recipients).raw
        assert (text.partition(b'\n')[0] in raw) is keeps


@pytest.mark.parametrize('kind', ['mixed', 'signed'])
@pytest.mark.parametrize(
    ('written', 'boundary'),
    [
        ('a b', 'a b'),
        ('a=b', 'a=b'),
        ("'a'", "'a'"),
        ('"=?utf-8?q?a?="', '=?utf-8?q?a?='),
        ('"a:b"', 'a:b'),
        ('"a\\"b"', 'a"b'),
    ],
)
def test_boundaries_that_some_readers_do_not_find(kind: str, written: str, boundary: str) -> None:
    """One that is not in quotes gets some, and one that readers change is replaced; what is signed
    keeps its own."""
    text = (
        f'From: a@x\nTo: b@x\nContent-Type: multipart/{kind}; boundary={written}; x=y\n\n'
        f'--{boundary}\n\none\n--{boundary}\n\ntwo\n--{boundary}--\n'
    )
    message = parsed(text.encode(), email.policy.compat32)

    raw = freeze(message).raw

    again = email.message_from_bytes(raw, policy=email.policy.compat32)
    assert [part.get_payload() for part in again.get_payload()] == ['one', 'two']
    if kind == 'signed':
        assert f'\r\n--{boundary}--\r\n'.encode() in raw
    else:
        modern: Any = email.message_from_bytes(raw, policy=email.policy.default)
        assert [part.get_payload() for part in modern.iter_parts()] == ['one', 'two']
        assert not modern.defects
        assert modern['Content-Type'].params['x'] == 'y'
