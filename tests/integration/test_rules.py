"""Findings 44 and 114 to 128: the rules that a careful client follows, in what the relay has
received."""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
from collections.abc import Callable
from email.header import decode_header, make_header
from email.headerregistry import Address
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from email.utils import getaddresses
from pathlib import Path
from typing import Any
from unicodedata import normalize

import mailparser
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyramid_sendmail import Attachment, MessageError
from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.mailers.factory import mailer_from_url
from tests.support.smtp.server import ScriptedSMTPServer, TLSAuthority, reply
from tests.support.smtp.strict_reader import faults, fields
from tests.support.world import MINUTE, World, welcome

MakeWorld = Callable[..., World]
Start = Callable[..., ScriptedSMTPServer]

ANN, BOB = 'ann@example.org', 'bob@example.org'

PNG = b'\x89PNG\r\n\x1a\n' + bytes(range(256))

WEEK = 7 * 24 * 60 * MINUTE

many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def deliver(world: World, message: Any = None, **options: Any) -> Any:
    """Send a mail; return what the relay has received."""
    taken = len(world.server.messages)
    world.send(message, **options)
    assert world.run() == Tally(delivered=1)
    (arrived,) = world.server.messages[taken:]
    return arrived


def read(arrived: Any) -> Any:
    """Parse a mail with the standard library."""
    return BytesParser(policy=default).parsebytes(arrived.data)


# 44 and 119. Addresses that are not ASCII


@pytest.mark.finding(44)
def test_an_international_domain(world: World) -> None:
    """An international domain is written in ASCII, in the envelope and in the headers; the relay
    needs no extension for it."""
    arrived = deliver(
        world, welcome(to=['Jörg <jorg@bücher.example>'], sender='shop@bücher.example')
    )

    assert arrived.recipients == ('jorg@xn--bcher-kva.example',)
    assert arrived.sender == 'shop@xn--bcher-kva.example'
    assert 'SMTPUTF8' not in arrived.mail_arguments
    assert arrived.data.isascii()
    assert read(arrived)['To'].addresses[0].addr_spec == 'jorg@xn--bcher-kva.example'
    assert read(arrived)['To'].addresses[0].display_name == 'Jörg'


@pytest.mark.finding(44, 119)
@pytest.mark.parametrize('able', [False, True])
@pytest.mark.parametrize('domain', ['example.org', 'bücher.example'])
@pytest.mark.parametrize('local', ['ann', 'jörg'])
@pytest.mark.parametrize('place', ['to', 'sender'])
def test_four_combinations(
    make_world: MakeWorld, place: str, local: str, domain: str, able: bool
) -> None:
    """An ASCII local part can always be sent. Another one is sent unencoded by SMTPUTF8, or fails
    permanently if the relay does not offer it. It is never encoded."""
    world = make_world()
    world.server.extensions = ('8BITMIME', 'SMTPUTF8', 'PIPELINING') if able else ('8BITMIME',)
    message = welcome(**{place: f'{local}@{domain}'})
    ascii_domain = domain.replace('bücher', 'xn--bcher-kva')
    world.send(message)

    tally = world.run()

    said = world.server.raw(1)
    assert b'=?' not in said
    if local == 'jörg' and not able:
        assert tally == Tally(failed=1)
        (event,) = world.events_of('error')
        assert event.permanent
        assert 'SMTPUTF8' in event.reason
        assert said.isascii()
        assert world.server.messages == []
    else:
        assert tally == Tally(delivered=1)
        (arrived,) = world.server.messages
        paths = {'to': arrived.recipients[0], 'sender': arrived.sender}
        assert paths[place] == f'{local}@{ascii_domain}'
        assert ('SMTPUTF8' in arrived.mail_arguments) is (local == 'jörg')
        assert f'{local}@{ascii_domain}'.encode() in arrived.data


@pytest.mark.finding(44, 119)
@pytest.mark.parametrize('able', [False, True])
def test_a_recipient_that_is_not_ascii_harms_no_other(make_world: MakeWorld, able: bool) -> None:
    """A recipient that is not ASCII fails alone, beside others of the mail."""
    world = make_world()
    world.server.extensions = ('8BITMIME', 'SMTPUTF8') if able else ('8BITMIME',)
    world.send(recipients=[ANN, 'jörg@example.org'])
    world.run()

    assert world.server.accepted(ANN) == 1
    assert world.server.accepted('jörg@example.org') == able
    assert len(world.events_of('error')) == (not able)


# 114. The null sender, and Auto-Submitted


@pytest.mark.finding(114)
def test_the_null_sender(world: World) -> None:
    """``sender=''`` is MAIL FROM:<>, and From: stays."""
    arrived = deliver(world, sender='')

    assert arrived.sender == ''
    (line,) = [line for _, verb, line in world.server.commands if verb == 'MAIL']
    assert line.startswith('MAIL FROM:<>')
    assert read(arrived)['From'] == 'Shop <shop@example.org>'


@pytest.mark.finding(114)
@pytest.mark.parametrize('given_', [None, 'no', 'auto-replied'])
def test_auto_submitted(world: World, given_: str | None) -> None:
    """Auto-Submitted stands once, with the value that the application gave."""
    headers = {} if given_ is None else {'auto-submitted': given_}

    arrived = deliver(world, welcome(headers=headers))

    assert read(arrived).get_all('Auto-Submitted') == [given_ or 'auto-generated']


# 117 and 118. SIZE and 8BITMIME


@pytest.mark.finding(117)
@pytest.mark.parametrize('beyond', [-1, 0, 1])
def test_the_size_at_the_limit(make_world: MakeWorld, beyond: int) -> None:
    """SIZE= is the number of bytes without dot stuffing. A mail of one byte over the limit fails
    before MAIL; one at the limit is sent."""
    world = make_world()
    message = welcome(text='.\n..\n.x\n' * 50)
    size = len(world.delivery.freeze(message).raw)
    world.server.extensions = (f'SIZE {size - beyond}',)
    world.send(message)

    tally = world.run()

    if beyond > 0:
        assert tally == Tally(failed=1)
        assert 'MAIL' not in world.server.verbs()
        assert world.events_of('error')[0].permanent
    else:
        assert tally == Tally(delivered=1)
        (arrived,) = world.server.messages
        assert arrived.mail_arguments == f'SIZE={len(arrived.data)}'
        assert len(arrived.data) == size
        assert len(arrived.wire) == size + 150 + len('.\r\n')


@pytest.mark.finding(117)
@pytest.mark.parametrize('limit', ['SIZE', 'SIZE 0'])
def test_no_limit(make_world: MakeWorld, limit: str) -> None:
    """SIZE without a number, and with 0, sets no limit."""
    world = make_world()
    world.server.extensions = (limit,)
    arrived = deliver(world, welcome(text='x' * 100_000))
    assert arrived.mail_arguments == f'SIZE={len(arrived.data)}'


@pytest.mark.finding(117)
@pytest.mark.parametrize(
    ('verb', 'code', 'kind'),
    [
        ('MAIL', 552, 'error'),
        ('MAIL', 452, 'deferred'),
        ('dot', 552, 'error'),
        ('dot', 554, 'error'),
        ('dot', 452, 'deferred'),
    ],
)
def test_size_is_refused(make_world: MakeWorld, verb: str, code: int, kind: str) -> None:
    """552 and 554 are permanent, 452 is temporary."""
    world = make_world()
    world.server.script(verb, reply(code, '5.3.4 too big' if code > 500 else '4.3.1 no room'))
    world.send()
    world.run()
    assert len(world.events_of(kind)) == len(world.events) == 1


def eight_bits() -> EmailMessage:
    message = EmailMessage()
    message['From'], message['To'], message['Subject'] = 'shop@example.org', ANN, 'Grüße'
    message.set_content('Grüße aus Köln\n', cte='8bit')
    message.add_alternative('<p>Grüße</p>', subtype='html', cte='8bit')
    message.add_attachment(PNG, maintype='image', subtype='png', filename='Übersicht.png')
    return message


EVERYTHING: dict[str, Callable[[], Any]] = {
    'EmailMessage': eight_bits,
    'Message': lambda: welcome(
        subject='Grüße',
        sender='Jürgen <shop@example.org>',
        text='Grüße aus Köln',
        html='<p>Привет</p>',
        headers={'X-Order': 'Übersicht'},
        attachments=[Attachment('Übersicht.png', PNG), Attachment('a.txt', 'é'.encode('latin-1'))],
    ),
}


@pytest.mark.finding(118)
@pytest.mark.parametrize('offered', [(), ('8BITMIME',), ('SIZE 10000000', 'PIPELINING')])
@pytest.mark.parametrize('kind', EVERYTHING)
def test_seven_bits(make_world: MakeWorld, kind: str, offered: tuple[str, ...]) -> None:
    """No byte above 127 is sent, whatever a message holds, and BODY= is not needed."""
    world = make_world()
    world.server.extensions = offered

    arrived = deliver(world, EVERYTHING[kind]())

    assert world.server.raw(arrived.connection).isascii()
    assert 'BODY' not in arrived.mail_arguments
    assert read(arrived)['Subject'] == 'Grüße'


# 121. CHUNKING


@pytest.mark.finding(121)
def test_chunking_is_not_used_by_default(world: World) -> None:
    """Without window= in the URL, BDAT is not used, even if the relay offers it; with it, see
    tests/unit/mailers/smtp/test_chunking.py."""
    world.server.extensions = ('CHUNKING', 'BINARYMIME', '8BITMIME', 'PIPELINING')
    deliver(world)
    assert world.server.verbs() == ['EHLO', 'MAIL', 'RCPT', 'DATA', 'dot', 'QUIT']


# 123 and 124. Headers and bodies

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=('Cc', 'Cs', 'Zl', 'Zp')),
        st.sampled_from('"\\,;:<>()@[]=?_ .é👩\u200d🔬e\u0301日ж'),
    ),
    max_size=90,
)

NAMES = TEXT.filter(lambda text: text == ' '.join(text.split()) and text != '')


def is_file_name(text: str) -> bool:
    return re.split(r'[/\\]', text)[-1].strip().strip('.') != ''


FAMILY = '👩\u200d👩\u200d👧\u200d👦'


@pytest.mark.finding(123, 124)
@many
@given(
    subject=TEXT,
    names=st.lists(NAMES, min_size=1, max_size=4),
    bodies=st.tuples(TEXT, st.none() | TEXT),
    order=TEXT,
    hidden=st.booleans(),
    files=st.lists(TEXT.filter(is_file_name), max_size=2),
)
@example('', ['0', '00¡¡¡¡¡¡¡𐀀𐀀𐀀', '0'], ('', None), '', False, [])
@example('=?utf-8?q?x?=', ['=?utf-8?q?x?='], ('', ''), '=?utf-8?q?x?=', True, ['=?utf-8?q?x?='])
@example(FAMILY * 12, [FAMILY * 12], ('', None), 'e\u0301' * 60, False, ['e\u0301' * 80])
@example('x' * 80, ['x' * 80, '"' * 80, 'Doe, John'], ('x' * 90, None), 'x ' * 44, False, [])
def test_every_message_is_strictly_valid(
    world: World,
    subject: str,
    names: list[str],
    bodies: tuple[str, str | None],
    order: str,
    hidden: bool,
    files: list[str],
) -> None:
    """Each header field stands as often as RFC 5322 allows, in short lines of whole encoded words,
    and two other parsers read the values that were given."""
    to = [Address(name, f'user{number}', 'example.org') for number, name in enumerate(names)]
    arrived = deliver(
        world,
        welcome(
            subject=subject,
            **({'to': (), 'bcc': to} if hidden else {'to': to[:1], 'cc': to[1:]}),
            text=bodies[0],
            html=bodies[1],
            headers={'X-Order': order},
            attachments=[Attachment(name, b'x') for name in files],
        ),
    )

    assert faults(arrived.data, domain='web.example.org') == []
    message = read(arrived)
    assert message['Subject'] == subject
    assert message['X-Order'] == order
    if hidden:
        assert str(message['To']) == 'undisclosed-recipients:;'
    else:
        shown = getaddresses(
            [value for name, value in fields(arrived.data) if name in ('to', 'cc')]
        )
        assert [str(make_header(decode_header(name))) for name, _ in shown] == names
        assert [address for _, address in shown] == [each.addr_spec for each in to]
    assert world.server.violations == []


@pytest.mark.finding(124)
@pytest.mark.parametrize(
    'text',
    [
        'Grüße aus Köln',
        FAMILY * 10,
        'e\u0301' * 100,
        '日本語' * 40,
        'Ünïcödé and ASCII, "quoted" <x>: ' * 5 + 'end',
    ],
)
def test_another_parser_of_encoded_words(world: World, text: str) -> None:
    """Mail-parser reads the same subject, from encoded words that begin and end with whole
    characters."""
    arrived = deliver(world, welcome(subject=text))

    found = mailparser.parse_from_bytes(arrived.data).subject
    assert normalize('NFC', found) == normalize('NFC', text)
    (line,) = [value for name, value in fields(arrived.data) if name == 'subject']
    for charset, encoding, payload in re.findall(r'=\?([^?]*)\?([bq])\?([^?]*)\?=', line):
        assert charset == 'utf-8'
        _decoded(encoding, payload).decode('utf-8')


def _decoded(encoding: str, payload: str) -> bytes:
    import base64
    import quopri

    if encoding == 'b':
        return base64.b64decode(payload, validate=True)
    return quopri.decodestring(payload.replace('_', ' '))


# 125. Names of files

FILE_NAMES: dict[str, tuple[str, str]] = {
    'quotes': ('a "b" \\c.txt', 'c.txt'),
    'double quotes': ('say "hello".txt', 'say "hello".txt'),
    'semicolons': ('a;b=c.txt', 'a;b=c.txt'),
    'right to left': ('invoice\u202efdp.exe', 'invoice\u202efdp.exe'),
    '300 characters': ('ü' * 296 + '.txt', 'ü' * 296 + '.txt'),
    '300 plain characters': ('u' * 296 + '.txt', 'u' * 296 + '.txt'),
    'leading dots': ('..hidden.txt', '..hidden.txt'),
    'a path': ('../../etc/passwd', 'passwd'),
    'a path of Windows': ('C:\\Users\\ann\\a.txt', 'a.txt'),
    'emoji': (f'{FAMILY}.png', f'{FAMILY}.png'),
    'encoded word': ('=?utf-8?q?x?=.txt', '=?utf-8?q?x?=.txt'),
    'percent': ("utf-8''%41.txt", "utf-8''%41.txt"),
}


@pytest.mark.finding(125)
@pytest.mark.parametrize('case', FILE_NAMES)
def test_names_of_files(world: World, case: str) -> None:
    """A file's name arrives unchanged, without its folder, in short lines, encoded by RFC 2231 if
    necessary, with a fallback in ASCII."""
    given_, expected = FILE_NAMES[case]

    arrived = deliver(world, welcome(attachments=[Attachment(given_, b'x')]))

    (part,) = read(arrived).iter_attachments()
    assert part.get_filename() == expected
    assert faults(arrived.data, domain='web.example.org') == []
    assert max(map(len, arrived.data.split(b'\r\n'))) <= 78
    fallback = re.search(rb'\bname(?:\*0)?="?([^"\r\n;]*)', arrived.data)
    assert fallback is not None
    assert fallback[1].isascii()
    assert part.get_content_disposition() == 'attachment'


@pytest.mark.finding(125)
@pytest.mark.parametrize('name', ['a\r\nBcc: x@example.org', 'a\0.txt', 'a\x1b[31m.txt', '/', '..'])
def test_names_that_are_refused(world: World, name: str) -> None:
    """Names with line breaks or other control characters are refused, and so are names of
    folders."""
    with pytest.raises(MessageError):
        world.send(welcome(attachments=[Attachment(name, b'x')]))
    assert world.files() == {}


# 126. Unsubscribing


@pytest.mark.finding(126)
def test_list_unsubscribe(world: World) -> None:
    """After a queue and a retry, a URL of 300 characters is one line of the bytes that were given,
    and so is the line that makes it one-click."""
    url = '<https://example.org/unsubscribe?' + 'token=a1%2Bb2%3D=?utf-8?q?&' * 9
    url += 'x' * (299 - len(url)) + '>'
    assert len(url) == 300
    headers = {'List-Unsubscribe': url, 'List-Unsubscribe-Post': 'List-Unsubscribe=One-Click'}
    world.server.script('RCPT', reply(450, '4.2.0 greylisted'))
    world.send(welcome(headers=headers))
    world.run()
    world.clock.now += MINUTE
    world.run()

    (arrived,) = world.server.messages
    lines = arrived.data.split(b'\r\n')
    assert f'List-Unsubscribe: {url}'.encode() in lines
    assert b'List-Unsubscribe-Post: List-Unsubscribe=One-Click' in lines


# 127. Nothing changes the bytes afterwards


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.finding(127)
@pytest.mark.parametrize('kind', EVERYTHING)
def test_the_bytes_a_week_later(make_world: MakeWorld, kind: str) -> None:
    """The relay receives the bytes that ``send`` has frozen, after retries, new processors and a
    week."""
    world = make_world()
    message = EVERYTHING[kind]()
    world.server.script('RCPT', reply(450, '4.2.0 greylisted'))
    world.server.script('dot', reply(451, '4.3.0 later'))
    world.send(message, sender='bounces@example.org')
    ((_, data),) = world.files().items()
    frozen = data[data.index(b'\r\nFrom: ') + 2 :]
    expected = digest(frozen)

    for _ in range(2):
        assert world.run() == Tally(deferred=1)
        ((_, data),) = world.files().items()
        assert data.endswith(frozen)
        world.clock.now += MINUTE
    world.clock.now += WEEK
    assert world.run() == Tally(delivered=1)

    (arrived,) = world.server.messages
    assert digest(arrived.data) == expected


@pytest.mark.finding(127)
@pytest.mark.parametrize('kind', EVERYTHING)
def test_the_bytes_do_not_depend_on_the_relay(make_world: MakeWorld, kind: str) -> None:
    """The same bytes are sent, whatever extensions a relay offers."""
    world = make_world()
    envelope = world.delivery.freeze(EVERYTHING[kind]())
    for offered in ((), ('PIPELINING',), ('SIZE 0', '8BITMIME', 'SMTPUTF8', 'PIPELINING')):
        world.server.extensions = offered
        session = world.mailer.connect()
        ((_, verdict),) = next(iter(session.send([envelope]))).items()
        session.close()
        assert verdict.status == 'delivered'
    assert {digest(each.data) for each in world.server.messages} == {digest(envelope.raw)}


@pytest.mark.finding(127)
def test_a_signature_of_the_application(world: World) -> None:
    """A DKIM-Signature of the application is sent unchanged, folding included, and so are the lines
    that it signs."""
    signed = (
        b'DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=example.org; s=x;\r\n'
        b'\th=From:To:Subject:Date:Message-ID;\r\n'
        b'\tbh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\r\n'
        b'\tb=dzdVyOfAKCdLXdJOc9G2q8LoXSlEniSbav+yuU4zGeeruD00lszZ\r\n'
        b'From: Shop  <shop@example.org>\r\n'
        b'To: "Doe, John" <ann@example.org>,\r\n  bob@example.org\r\n'
        b'Subject: Welcome   =?utf-8?q?J=C3=B6rg?=\r\n'
        b'Date: Mon, 01 Jan 2024 00:00:00 +0000\r\n'
        b'Message-ID: <1@web.example.org>\r\n'
    )
    body = b'Line one \r\n.\r\n\r\nLine two\t\r\n'
    arrived = deliver(world, BytesParser(policy=default).parsebytes(signed + b'\r\n' + body))

    assert signed in arrived.data
    assert arrived.data.endswith(b'\r\n\r\n' + body)


# 128. Which relay has accepted a mail


@pytest.mark.finding(128)
def test_the_log_and_the_event_have_the_reply(
    either: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Each acceptance has one log line with our Message-ID and the relay's reply, and a sent event
    with code, text, attempt and relay."""
    caplog.set_level(logging.INFO)
    either.server.script('RCPT', reply(450, '4.2.0 greylisted'))
    either.server.script('dot', reply(250, '2.0.0 Ok: queued as 4B7C91F3'))
    message_id = either.send()
    either.run()
    either.clock.now += MINUTE
    either.run()

    (event,) = either.events_of('sent')
    assert (event.reply.code, event.reply.text) == (250, '2.0.0 Ok: queued as 4B7C91F3')
    assert event.attempt == 2
    assert event.mailer == f'smtp://127.0.0.1:{either.server.port}'
    lines = [each.getMessage() for each in caplog.records if message_id in each.getMessage()]
    (line,) = [each for each in lines if 'queued as 4B7C91F3' in each]
    assert event.mailer in line
    assert 'attempt 2' in line
    assert ANN in line


@pytest.mark.finding(128)
@pytest.mark.parametrize('version', ['TLSv1.2', 'TLSv1.3'])
@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
def test_the_log_and_the_event_have_the_version_of_tls(
    make_world: MakeWorld,
    start_smtp_server: Start,
    tls_authority: TLSAuthority,
    caplog: pytest.LogCaptureFixture,
    tls: Any,
    version: str,
) -> None:
    """The log and the events have the version of TLS, so that one can prove that a mail was
    encrypted; without a version it went in plain text."""
    caplog.set_level(logging.INFO)
    context = tls_authority.context()
    context.maximum_version = ssl.TLSVersion[version.replace('.', '_')]
    server = start_smtp_server(tls=tls, context=context)
    url = f'{server.url}?ca_file={tls_authority.path}&tls=required'
    world = make_world(server, url=url)
    server.script('RCPT', reply(550, '5.1.1 no such user'), match=BOB)
    message_id = world.send(welcome(to=[ANN, BOB]))

    world.run()

    (sent,), (failed,) = world.events_of('sent'), world.events_of('error')
    assert sent.mailer == failed.mailer == f'{server.url} ({version})'
    lines = [each.getMessage() for each in caplog.records if message_id in each.getMessage()]
    assert [f'(attempt 1, {server.url} ({version}))' in line for line in lines] == [True, True]


@pytest.mark.finding(128)
def test_the_mail_is_recorded_before_it_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the sent event is committed the mail is on disk, marked as delivered: no crash in
    between sends it again, or loses its event."""
    seen: list[tuple[list[str], bool]] = []
    world.config.add_subscriber(
        lambda event: seen.append((world.folders(), b'queued as 4B7C' in _only(world))),
        'pyramid_sendmail.interfaces.IMailSentEvent',
    )
    world.config.commit()
    world.server.script('dot', reply(250, '2.0.0 queued as 4B7C'))
    deliver(world)
    assert [recorded for _, recorded in seen] == [True]
    assert world.files() == {}


def _only(world: World) -> bytes:
    ((_, data),) = world.files().items()
    return data


# 116 and 40, seen from the queue: the name of a mailer


@pytest.mark.finding(40, 128)
def test_the_event_shows_no_secret(
    make_world: MakeWorld, start_smtp_server: Start, tmp_path: Path
) -> None:
    """The event names the relay without the password."""
    server = start_smtp_server(auth={'shop': 'hunter2'}, auth_required=True)
    url = f'smtp+insecure://shop:hunter2@127.0.0.1:{server.port}'
    world = make_world(server, url=url)
    world.send()
    assert world.run() == Tally(delivered=1)
    (event,) = world.events_of('sent')
    assert 'hunter2' not in f'{event!r} {event.mailer} {world.mailer!r}'
    assert 'hunter2' not in repr(mailer_from_url(url, hostname='x'))
    assert all(
        b'hunter2' not in path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()
    )
