"""Messages of other libraries: what leaves, what is refused, and that they stay as they were."""

from __future__ import annotations

import copy
import email
import email.policy
import pickle
import re
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.message import Message as LegacyMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message import EnvelopeFactory
from tests.support.messages import (
    PNG,
    assert_refused,
    email_message,
    factory,
    freeze,
    legacy_message,
    parsed,
    read,
    shape,
)


def test_email_message() -> None:
    """An EmailMessage leaves with its own headers and content, and gets a missing Message-ID."""
    message = email_message(Cc='c@x', Bcc='b@x', Subject='Grüße')
    message.add_alternative('<p>é</p>', subtype='html')
    message.add_attachment(PNG, maintype='image', subtype='png', filename='Übersicht.png')
    before = copy.deepcopy(message)

    envelope = freeze(message)

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

    freeze(message)

    assert pickle.dumps(message) == before
    assert message.get_boundary() is None


def test_default_sender_for_email_message() -> None:
    """A message without From gets the default sender."""
    message = EmailMessage()
    message['To'] = 'a@x'
    message.set_content('x')

    envelope = freeze(message)

    assert envelope.sender == 'shop@example.org'
    assert read(envelope)['From'] == 'Shop <shop@example.org>'


def test_own_identity_is_kept() -> None:
    """A valid Message-ID and Date stay, folded or not."""
    message = parsed(
        'Date: Mon, 01 Jan 2024 00:00:00 -0000\nMessage-ID:\n <mine@x>\nTo: a@x\n\nx\n'
    )

    envelope = freeze(message)

    assert envelope.message_id == '<mine@x>'
    assert b'\r\nDate: Mon, 01 Jan 2024 00:00:00 -0000\r\n' in b'\r\n' + envelope.raw
    assert freeze(email_message(Message_ID='<mine@x>')).message_id == '<mine@x>'


def test_recipients_of_many_headers() -> None:
    """Bcc, even several times, and Resent-Bcc hold recipients; these headers do not leave."""
    envelope = freeze(
        parsed('To: a@x\nBcc: b@x\nResent-Bcc: c@x\nBcc: d@x\nCc:\nReturn-Path: <r@x>\n\nx\n')
    )

    assert envelope.recipients == ('a@x', 'b@x', 'd@x', 'c@x')
    assert not re.search(rb'(?i)bcc|return-path|b@x|c@x|d@x', envelope.raw)


def test_resent_needs_the_option() -> None:
    """A resent message needs the option ``recipients``: its headers may name older recipients."""
    message = parsed('From: o@x\nTo: a@x\nResent-From: m@x\nResent-To: b@x\n\nx\n')

    with pytest.raises(MessageError, match=r'option recipients .*Resent-To'):
        freeze(message)
    envelope = freeze(message, sender='m@x', recipients='b@x')
    assert (envelope.sender, envelope.recipients) == ('m@x', ('b@x',))


def test_folded_and_encoded_source() -> None:
    """Headers that another program folded and encoded leave unchanged, and are read."""
    source = (
        b'From: =?utf-8?q?J=C3=BCrgen?=\r\n <j@x>\r\n'
        b'To: "Doe, John" <d@x>,\r\n\tg: "a b"@x;\r\n'
        b'Subject: =?utf-8?q?=C3=A9?=\r\n =?utf-8?q?=C3=A8?=\r\n'
        b'References: <1@x>\r\n <2@x>\r\n'
    )
    message = email.message_from_bytes(source + b'\r\nx\r\n', policy=email.policy.default)

    envelope = freeze(message)

    assert envelope.raw.startswith(source)
    assert envelope.recipients == ('d@x', '"a b"@x')
    assert envelope.subject == 'éè'


def test_harmless_defects() -> None:
    """Obsolete syntax in a header is accepted."""
    envelope = freeze(email_message(To='a@x, , jörg@x'))

    assert envelope.recipients == ('a@x', 'jörg@x')


def test_raw_utf8_headers() -> None:
    """Headers of raw UTF-8 are encoded, except local parts, which cannot be."""
    envelope = freeze(parsed('From: Jürgen <jürgen@bücher.example>\nTo: a@x\nSubject: é\n\nx\n'))

    assert envelope.sender == 'jürgen@xn--bcher-kva.example'
    assert envelope.subject == 'é'
    assert (
        'From: =?utf-8?q?J=C3=BCrgen?= <jürgen@xn--bcher-kva.example>\r\n'.encode() in envelope.raw
    )
    assert b'Subject: =?utf-8?b?w6k=?=\r\n' in envelope.raw


def test_legacy_message() -> None:
    """Messages of the older classes leave, too, with their Header objects."""
    message = MIMEMultipart()
    message['From'] = 'a@x'
    message['To'] = 'b@x'
    message['Subject'] = Header('Grüße ' * 20, 'utf-8')  # type: ignore[assignment]
    message.attach(MIMEText('Grüße'))
    file = MIMEApplication(PNG)
    file.add_header('Content-Disposition', 'attachment', filename='Übersicht.png')
    message.attach(file)

    again = read(freeze(message))

    assert again['Subject'] == 'Grüße ' * 20
    (part,) = again.iter_attachments()
    assert (part.get_filename(), part.get_content()) == ('Übersicht.png', PNG)


@pytest.mark.parametrize(
    ('message', 'named'),
    [
        (email_message(To='x'), "To: 'x' has no @"),
        (email_message(Bcc='a@x b@y'), "Bcc: 'a@x' is only the part of its addresses.*commas"),
        (email_message(Reply_To='x'), "Reply-To: 'x'"),
        (email_message(To=''), 'to: the message has no recipient'),
        (email_message(Message_ID='mine'), "Message-ID: 'mine' is not a message id"),
        (email_message(Subject='=?utf-8?Q?=0A?=Bcc: x'), 'Subject: .*line break'),
        (email_message(Sender='a@x, b@x'), 'Sender: it holds several addresses; give one'),
        (email_message(From='a@x, b@x'), 'sender: several addresses in From'),
        (parsed('To: a@x\nDate: today\n\nx'), "Date: 'today' is not a date"),
        (parsed('To: a@x\nFrom: a@x\nFrom: b@x\n\nx'), 'From: the message has more than one'),
        (parsed(b'To: a@x\nX-A: \xff\n\nx'), 'X-A: .*UTF-8'),
        (parsed('To: =?utf-8?q?A=0AB?= <a@x>\n\nx'), 'To: .*line break'),
        (parsed('To: =?utf-8?q?=C3=B6?=@x\n\nx'), 'To: .*encoded word'),
    ],
)
def test_bad_email_message(message: Any, named: str) -> None:
    """A message of another library is verified as our own are."""
    with pytest.raises(MessageError) as caught:
        factory.envelope(message)

    assert_refused(caught.value, named)


@pytest.mark.parametrize(
    ('message', 'named'),
    [
        (legacy_message(('X-A\r\nBcc', 'b@x')), r"message: 'X-A\\r\\nBcc' is not a header name"),
        (legacy_message(('X-A', 'a\r\nBcc: b@x')), 'X-A: .*line break'),
        (legacy_message(('Subject', 'a\nBcc: b@x')), 'Subject: .*line break'),
        (legacy_message(('Content-Type', 'text/plain\nBcc: b@x')), 'Content-Type: .*line break'),
        (legacy_message(('X-A', 5)), 'X-A: 5 is not a string; give a str'),
        (legacy_message(('X-A', Header('a\nBcc: b@x', 'ascii'))), 'X-A: it cannot be encoded'),
        (
            legacy_message(payload='a\ud800'),
            r'text/plain part cannot be encoded in None; use set_content\(\)',
        ),
        (legacy_message(payload='é\udcff'), 'text/plain part cannot be encoded'),
        (legacy_message(('Content-Type', 'text/plain; charset=ascii'), payload='é'), "in 'ascii'"),
        (legacy_message(payload=5), r'content of a part is a int; use set_content\(\)'),
        (legacy_message(payload=['x']), 'message: a part is a str; give a message'),
        (
            legacy_message(('Content-Type', 'multipart/mixed'), payload='é'),
            'multipart/mixed .*parse it',
        ),
        (
            legacy_message(('Content-Type', 'multipart/mixé; boundary="b"'), payload=[]),
            'Content-Type: .*not ASCII',
        ),
    ],
)
def test_bad_legacy_message(message: Any, named: str) -> None:
    """The older classes accept values that must not leave; they are refused here."""
    with pytest.raises(MessageError) as caught:
        factory.envelope(message)

    assert_refused(caught.value, named)


def test_nested_too_deep() -> None:
    """A message that contains itself is refused by MessageError, not by RecursionError."""
    message = MIMEMultipart()
    message['To'] = 'a@x'
    message.attach(message)

    with pytest.raises(MessageError, match='nested more than 50 deep'):
        freeze(message)


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
    """Parts of 8 bits or with long lines are encoded; the caller's message is unchanged."""
    message = parsed(b'To: a@x\nMIME-Version: 1.0\n' + source + b'\n\n' + content)
    before = message.as_bytes()

    again = read(freeze(message))

    found = again.get_payload(decode=True)
    assert isinstance(found, bytes)
    assert found.rstrip(b'\r\n') == content
    assert again['Content-Transfer-Encoding'] in ('7bit', 'quoted-printable', 'base64')
    assert message.as_bytes() == before


def test_long_base64_line() -> None:
    """Base64 in one long line is written in short lines."""
    data = email.message_from_bytes(
        b'To: a@x\nContent-Type: application/x\nContent-Transfer-Encoding: base64\n\n'
        + b'QUJD' * 500
    )

    assert read(freeze(data)).get_content() == b'ABC' * 500


def test_eight_bits_in_quoted_printable() -> None:
    """A part declared as quoted-printable is decoded as such even if it holds 8-bit bytes."""
    message = parsed(b'To: a@x\nContent-Transfer-Encoding: quoted-printable\n\n=41\xc3\xa9')
    message.set_param('charset', 'utf-8')

    assert read(freeze(message)).get_content() == 'Aé'


def test_unicode_payload() -> None:
    """A payload of characters is encoded in the charset of its type, or in UTF-8."""
    assert read(freeze(legacy_message(payload='é €'))).get_content() == 'é €\n'.rstrip('\n')
    given_ = legacy_message(('Content-Type', 'text/plain; charset=latin-1'), payload='é')
    assert read(freeze(given_)).get_payload(decode=True) == b'\xe9'


def test_no_payload() -> None:
    """A message without a body gets an empty one."""
    message = EmailMessage()
    message['To'] = 'a@x'

    assert freeze(message).raw.endswith(b'MIME-Version: 1.0\r\n\r\n')


def test_attached_email_message() -> None:
    """An attached message is encoded, too; its headers stay, even Bcc."""
    inner = email_message(Subject='Innen é', Bcc='b@x')
    inner.set_content('é' * 100, cte='8bit')
    outer = email_message()
    outer.add_attachment(inner)

    (part,) = read(freeze(outer)).iter_attachments()

    assert part['Content-Transfer-Encoding'] == '7bit'
    assert part.get_content()['Subject'] == 'Innen é'
    assert part.get_content().get_content() == 'é' * 100 + '\r\n'


def test_preamble() -> None:
    """Preamble and epilogue are kept if they are sendable."""
    text = 'To: a@x\nContent-Type: multipart/mixed; boundary=b\n\n%s\n--b\n\nx\n--b--\n'

    assert b'\r\n\r\nHello\r\n--b' in freeze(parsed(text % 'Hello')).raw
    assert b'\r\n\r\n--b' in freeze(parsed(text % 'é')).raw


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
    """A signed message leaves byte for byte."""
    envelope = freeze(parsed(SIGNED, policy))

    signed = SIGNED.replace(b'\n', b'\r\n').partition(b'\r\n\r\n')[2]
    assert envelope.raw.endswith(signed)


def test_signed_by_program() -> None:
    """A message that a program signed leaves as the generator serialises it."""
    inner = EmailMessage()
    inner['X-Long'] = 'word ' * 40
    inner.set_content('Hello')
    message = MIMEMultipart('signed', protocol='application/pgp-signature')
    message['To'] = 'a@x'
    message.attach(inner)
    message.attach(MIMEApplication(b'x', 'pgp-signature'))
    boundary_before = message.get_boundary()

    envelope = freeze(message)

    assert shape(read(envelope)) == {
        'multipart/signed': ['text/plain', 'application/pgp-signature']
    }
    assert message.get_boundary() is boundary_before is None


@pytest.mark.parametrize('content', ['é'.encode(), b'x' * 1000, b'\0'])
def test_signed_cannot_be_encoded(content: bytes) -> None:
    """A signed part that needs encoding is refused: encoding would break its signature."""
    with pytest.raises(MessageError, match=r'multipart/signed .*quoted-printable or base64'):
        freeze(parsed(SIGNED.replace(b'=C3=A9', content)))


def test_signed_that_cannot_be_written() -> None:
    """A signed part that is not bytes of ASCII is refused."""
    message = MIMEMultipart('signed')
    message['To'] = 'a@x'
    message.attach(legacy_message(('Content-Type', 'text/plain'), payload='é'))

    with pytest.raises(MessageError, match='multipart/signed has bytes that are not ASCII'):
        freeze(message)


def test_a_status_as_text() -> None:
    """A part of a composite type whose content was never parsed leaves as it is."""
    message = legacy_message(('Content-Type', 'message/delivery-status'), payload='X: y')

    assert freeze(message).raw.endswith(b'\r\n\r\nX: y\r\n')


class Mailerish:
    """Like pyramid_mailer's Message: only send_to has the bcc recipients."""

    send_to = frozenset({'z@x', 'a@x', 'B <b@x>', 'c@x'})

    def to_message(self) -> LegacyMessage:
        message = MIMEText('é')
        message['To'] = 'b@x, other@x'
        message['Cc'] = 'a@x'
        return message


def test_to_message() -> None:
    """An object with to_message() is accepted; its send_to, if it has one, has the recipients."""
    envelope = freeze(Mailerish())

    assert envelope.recipients == ('b@x', 'a@x', 'c@x', 'z@x')

    class Plain:
        def to_message(self) -> EmailMessage:
            return email_message(Bcc='b@x')

    assert freeze(Plain()).recipients == ('ann@x', 'b@x')


def test_to_message_without_a_sender() -> None:
    """A message of pyramid_mailer raises without a sender, so a copy with mail.default_sender is
    converted; the message is unchanged."""

    class Senderless:
        sender: str | None = None

        def to_message(self) -> EmailMessage:
            message = email_message()
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
    """Headers that are objects of the standard library are written by our own functions."""
    message = email_message()
    del message['To']
    message['To'] = [
        Address('Doe, John ' * 11 + 'Doe, John', 'a b', 'example.org'),
        Address('é', 'c', 'x'),
    ]
    message['Errors-To'] = 'e@x'
    message['List-Unsubscribe'] = '<https://example.org/' + 'x' * 200 + '>'
    message['X-Text'] = 'é ' * 100

    envelope = freeze(message)

    assert envelope.recipients == ('"a b"@example.org', 'c@x')
    assert b'List-Unsubscribe: <https://example.org/' + b'x' * 200 + b'>\r\n' in envelope.raw
    again = read(envelope)
    assert again['To'].addresses[0].display_name == 'Doe, John ' * 11 + 'Doe, John'
    assert again['X-Text'] == 'é ' * 100


@pytest.mark.parametrize('name', ['From', 'Sender'])
def test_empty_group_as_a_sender(name: str) -> None:
    """A sender that is an empty group is none: the default sender alone leaves in From."""
    message = legacy_message((name, 'team:;'))

    envelope = freeze(message)

    assert read(envelope).get_all('From') == ['Shop <shop@example.org>']
    assert read(envelope)['Sender'] is None
    assert envelope.sender == 'shop@example.org'
    with pytest.raises(MessageError, match=r'From: the message has none; .*mail\.default_sender'):
        EnvelopeFactory().envelope(message)
