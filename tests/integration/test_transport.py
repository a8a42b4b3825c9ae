"""What goes over the wire, whatever an application sends and whatever a relay replies: from
``send`` to the bytes that the server received."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTPUTF8, default
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import transaction
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError

from pyramid_sendmail import Attachment, MailAmbiguous, MailerUnavailable, MailRefused, MessageError
from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.interfaces import IMailDelivery, IMailErrorEvent, IMailQueue, IMailSentEvent
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from tests.support.children import Place
from tests.support.queues import until
from tests.support.smtp.server import (
    Action,
    CuttingProxy,
    ScriptedSMTPServer,
    accept_then,
    drop,
    hold,
    lax_messages,
    raw,
    reply,
    reply_then_drop,
    stream_forever,
    strict_messages,
)
from tests.support.world import MINUTE, World, welcome

MakeWorld = Callable[..., World]
Start = Callable[..., ScriptedSMTPServer]

ANN, BOB = 'ann@example.org', 'bob@example.org'

LINES = re.compile(rb'(?:[^\r\n]*\r\n)*')

many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def received(world: World) -> Any:
    """Return the last message, as the standard library reads it."""
    return BytesParser(policy=default).parsebytes(world.server.messages[-1].data)


# 34, 35 and 113. Line ends and dots


NASTY = [
    *(
        '\r',
        '\n',
        '\r\n',
        '.',
        '..',
        '\n.\n',
        '\r.\r',
        '\r\n.\r',
        '\r\n.\r\n',
        '\n.\r\n',
        '\r\n.\n',
    ),
    *(
        '\0',
        '\x0b',
        '\x0c',
        '\x1a',
        '\x85',
        '\u2028',
        'é',
        '𝄞',
        'x' * 77,
        'x' * 1000,
        ' ',
        '\t',
        '=',
    ),
    *('MAIL FROM:<x@example.org>', 'From here', 'QUIT', '--=_', 'a'),
]

BODIES = st.lists(st.sampled_from(NASTY), max_size=12).map(''.join)


@pytest.mark.finding(34, 35, 113)
@many
@given(text=BODIES, html=BODIES, data=BODIES)
@example(text='.\n.\r\n.\r.', html='\n.\n', data='\r\n.\r\nMAIL FROM:<x@example.org>\r\n')
@example(text='\n.\n' * 6000, html='', data='.')
def test_one_message_for_any_receiver(world: World, text: str, html: str, data: str) -> None:
    """Whatever a body holds, all lines to the relay end with CRLF, a strict and a lax receiver see
    one message, and it is the one that was sent."""
    taken = len(world.server.messages)
    world.send(
        welcome(
            text=text, html=html, attachments=[Attachment('a.txt', data), Attachment('b', data)]
        )
    )

    assert world.run() == Tally(delivered=1)

    (message,) = world.server.messages[taken:]
    assert LINES.fullmatch(world.server.raw(message.connection))
    assert strict_messages(message.wire) == lax_messages(message.wire) == [message.data]
    assert message.wire.count(b'\r\n.\r\n') == 1
    parts = [part for part in received(world).walk() if not part.is_multipart()]
    plain, marked_up, first, second = [part.get_payload(decode=True) for part in parts]
    assert lines_of(plain) == lines_of(text.encode())
    assert lines_of(marked_up) == lines_of(html.encode())
    assert first == second == data.encode()
    assert world.server.violations == []


def lines_of(text: bytes) -> list[bytes]:
    """Return the lines without an empty last one."""
    return re.split(b'\r\n|\r|\n', re.sub(b'(\r\n|\r|\n)\\Z', b'', text))


@pytest.mark.finding(34, 35)
@many
@given(text=BODIES, eight_bit=st.booleans())
def test_one_message_of_the_standard_library(world: World, text: str, eight_bit: bool) -> None:
    """A message made by other code, with whatever line ends, brings no bare CR or LF, no second
    message, and no byte above 127."""
    message = EmailMessage()
    message['From'], message['To'], message['Subject'] = ANN, BOB, 'x'
    message['Content-Type'] = 'text/plain; charset=utf-8'
    message['Content-Transfer-Encoding'] = '8bit' if eight_bit else '7bit'
    message.set_payload(text.encode().decode('ascii', 'surrogateescape'))
    taken = len(world.server.messages)
    world.send(message)

    assert world.run() == Tally(delivered=1)

    (arrived,) = world.server.messages[taken:]
    assert LINES.fullmatch(arrived.wire)
    assert strict_messages(arrived.wire) == lax_messages(arrived.wire) == [arrived.data]
    assert arrived.data.isascii()
    assert b'\0' not in arrived.data
    assert world.server.violations == []


@pytest.mark.finding(35)
def test_dots_at_each_place_of_a_block(world: World) -> None:
    """A line that begins with a dot arrives, at each byte around the end of a block that is handed
    to the socket."""
    head = len(world.delivery.freeze(welcome(text='')).raw)
    for before in range(16_384 - head - 8, 16_384 - head + 8):
        filler = ('x' * 62 + '\n') * 400
        text = filler[: before - before // 64 - 2] + '\n.\n..\n' + filler
        world.send(welcome(text=text))
        world.run()
        message = world.server.messages[-1]
        assert strict_messages(message.wire) == lax_messages(message.wire) == [message.data]
        assert lines_of(received(world).get_payload(decode=True)) == lines_of(text.encode())


# 36. Control characters

CONTROLS = [chr(number) for number in (*range(32), 127)]

ADDRESSES: dict[str, Callable[[str], tuple[dict[str, Any], dict[str, Any]]]] = {
    'to': lambda text: ({'to': [text]}, {}),
    'cc': lambda text: ({'cc': text}, {}),
    'bcc': lambda text: ({'bcc': [text]}, {}),
    'sender': lambda text: ({'sender': text}, {}),
    'reply_to': lambda text: ({'reply_to': [text]}, {}),
    'option sender': lambda text: ({}, {'sender': text}),
    'option recipients': lambda text: ({}, {'recipients': [text]}),
    'header Sender': lambda text: ({'headers': {'Sender': text}}, {}),
}

TEXTS: dict[str, Callable[[str], dict[str, Any]]] = {
    'subject': lambda text: {'subject': text},
    'header value': lambda text: {'headers': {'X-Order': text}},
    'header name': lambda text: {'headers': {text: 'x'}},
    'List-Unsubscribe': lambda text: {'headers': {'List-Unsubscribe': f'<https://x/{text}>'}},
    'Message-ID': lambda text: {'headers': {'Message-ID': f'<{text}@example.org>'}},
    'tag': lambda text: {'tag': text},
    'file name': lambda text: {'attachments': [Attachment(text, b'x')]},
    'content type': lambda text: {'attachments': [Attachment('a', b'x', content_type=text)]},
    'content id': lambda text: {'attachments': [Attachment('a', b'x', content_id=text)]},
}


@pytest.mark.finding(36)
@pytest.mark.parametrize('where', ADDRESSES)
def test_no_control_character_in_an_address(world: World, where: str) -> None:
    """``send`` refuses each control character in every part of an address: local part, quoted local
    part, domain and name. Nothing is queued, and no connection is opened."""
    for character in CONTROLS:
        for text in (
            f'a{character}b@example.org',
            f'"a{character}b"@example.org',
            f'a@exam{character}ple.org',
            f'a@example.org>{character}RCPT TO:<x@example.org',
            f'"Ann{character}B" <a@example.org>',
        ):
            if character == '\t' and text.startswith('"Ann'):
                continue  # blank space there
            message, options = ADDRESSES[where](text)
            with pytest.raises(MessageError):
                world.send(welcome(**message), **options)
    assert world.files() == {}
    assert world.server.connections == 0


@pytest.mark.finding(36)
@pytest.mark.parametrize('where', TEXTS)
def test_no_control_character_in_a_header(world: World, where: str) -> None:
    """``send`` refuses it in everything else that becomes a header; only a tab is white space, and
    adds no header."""
    for character in CONTROLS:
        try:
            world.send(welcome(**TEXTS[where](f'a{character}b')))
        except MessageError:
            assert world.files() == {}
        else:
            assert character == '\t'
            world.run()
            assert b'\n\tb' not in world.server.messages[-1].data
            assert world.files() == {}


@pytest.mark.finding(36)
@pytest.mark.parametrize('character', CONTROLS)
def test_no_control_character_in_the_name_of_the_host(character: str) -> None:
    """It is refused at start-up in the name for EHLO."""
    name = f'web{character}.example.org'
    with pytest.raises(ValueError, match=r'mail\.hostname'):
        SMTPMailer('127.0.0.1', 25, hostname=name)
    with (
        pytest.raises(ConfigurationError, match=r'mail\.hostname'),
        Configurator(settings={'mail.hostname': name}) as config,
    ):
        config.include('pyramid_sendmail')


# 37. Addresses, from the application to RCPT


LOCAL = st.text(
    st.one_of(
        st.sampled_from('"\\,;:<>()@[] .=?_-+/é日👩'),
        st.characters(codec='utf-8', exclude_categories=('Cc', 'Cs', 'Zl', 'Zp')),
    ),
    min_size=1,
    max_size=20,
).filter(lambda text: len(text.encode()) <= 60 and text.isprintable())


def quoted(local: str) -> str:
    escaped = re.sub(r'(["\\])', r'\\\1', local)
    return f'"{escaped}"@example.org'


def unquoted(path: str) -> str:
    local, _, domain = path.rpartition('@')
    assert domain == 'example.org'
    if local.startswith('"'):
        return re.sub(r'\\(.)', r'\1', local[1:-1])
    return local


@pytest.mark.finding(37)
@many
@given(locals_=st.lists(LOCAL, min_size=1, max_size=5, unique=True), sender=LOCAL)
@example(locals_=['Doe, John', 'a,b', 'a b c', '<x@example.org>'], sender='x y')
@example(locals_=['\\', '"', '" <x@example.org>, "', '@'], sender='"')
def test_any_local_part_arrives(world: World, locals_: list[str], sender: str) -> None:
    """``send`` parses an address once; its local part, whatever it holds, stands in MAIL and RCPT
    after the queue, with no other recipients, no more and no fewer."""
    assume(not any(each.startswith('-') for each in (*locals_, sender)))
    assume(not any(each.startswith('=?') and each.endswith('?=') for each in (*locals_, sender)))
    world.server.extensions = ('PIPELINING', '8BITMIME', 'SMTPUTF8')
    world.send(welcome(to=[quoted(each) for each in locals_]), sender=quoted(sender))

    assert world.run() == Tally(delivered=1)

    message = world.server.messages[-1]
    assert [unquoted(each) for each in message.recipients] == locals_
    assert unquoted(message.sender) == sender
    shown = BytesParser(policy=SMTPUTF8).parsebytes(message.data)['To'].addresses
    if all(each.isascii() for each in locals_):
        assert [address.username for address in shown] == locals_
    assert world.server.violations == []


# 39. Bcc


def library_message(**headers: str) -> EmailMessage:
    message = EmailMessage()
    message['From'], message['To'], message['Subject'] = 'shop@example.org', ANN, 'Welcome'
    for name, value in headers.items():
        message[name.replace('_', '-')] = value
    message.set_content('A line of text.')
    return message


HIDDEN: dict[str, Callable[[], Any]] = {
    'Message': lambda: welcome(bcc=['Hidden <hidden@example.org>']),
    'EmailMessage': lambda: library_message(Bcc='Hidden <hidden@example.org>'),
    'lower case': lambda: library_message(bcc='hidden@example.org'),
    'Resent-Bcc': lambda: library_message(Resent_Bcc='Hidden <hidden@example.org>'),
}


@pytest.mark.finding(39)
@pytest.mark.parametrize('kind', HIDDEN)
def test_bcc_is_nowhere_to_be_read(
    world: World, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A hidden recipient gets the mail and stands neither in it, on the wire or in the queue, nor
    in the log as hidden; the caller's object still has the header."""
    caplog.set_level(logging.DEBUG)
    message = HIDDEN[kind]()
    before = HIDDEN[kind]()
    message_id = world.send(message)
    ((_, data),) = world.files().items()
    mail = data[data.index(b'\r\nFrom: ') :]

    assert world.run() == Tally(delivered=1)

    assert world.server.accepted('hidden@example.org') == world.server.accepted(ANN) == 1
    arrived = world.server.messages[-1]
    for text in (mail, arrived.data):
        assert not re.search(rb'(?i)\bbcc\b|hidden', text)
    assert not re.search(r'(?i)\bbcc\b', caplog.text)
    assert message_id in caplog.text
    if isinstance(message, EmailMessage):
        assert (message.items(), message.as_bytes()) == (before.items(), before.as_bytes())
    else:
        assert message == before


# 40. Passwords


PASSWORD = 'p%a%%b#c;d e\'f"g$(h)\\i&j=é'


@pytest.mark.finding(40)
@pytest.mark.parametrize('way', ['ini', 'file', 'environment', 'environment, within the URL'])
def test_any_password_reaches_the_relay(
    tmp_path: Path,
    make_place: Callable[[ScriptedSMTPServer], Place],
    start_smtp_server: Start,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Percent signs, comment signs, blanks, quotes and letters of all kinds reach the relay, from
    wherever the password comes, and no output of the processor shows it."""
    server = start_smtp_server(auth={'shop': PASSWORD}, auth_required=True)
    place = make_place(server)
    given: dict[str, object] = {'mail_url': f'smtp+insecure://127.0.0.1:{server.port}'}
    if way == 'environment, within the URL':
        given['mail_url'] = f'smtp+insecure://shop@127.0.0.1:{server.port}'
        monkeypatch.setenv('MAIL_PASSWORD', PASSWORD)
    else:
        given['mail_username'] = 'shop'
    if way == 'environment':
        monkeypatch.setenv('MAIL_PASSWORD', PASSWORD)
    elif way == 'ini':
        given['mail_password'] = PASSWORD
    elif way == 'file':
        (tmp_path / 'password').write_text(f'{PASSWORD}\n', encoding='utf-8')
        given['mail_password_file'] = tmp_path / 'password'
    place.put()

    child = place.once(place.ini(**given))

    assert child.process.returncode == 0, child.text
    assert [message.authenticated_as for message in server.messages] == ['shop']
    assert PASSWORD not in child.text


# 42. Only the first digit counts


@pytest.mark.finding(42)
@pytest.mark.parametrize('code', [250, 251, 252, 299])
def test_any_2xx_is_delivered_once(either: World, code: int) -> None:
    """Any 2xx to the final dot is an acceptance; the mail is not sent again."""
    either.server.script('dot', reply(code, '2.0.0 queued'))
    either.send()

    assert either.run() == Tally(delivered=1)
    either.clock.now += 24 * 60 * MINUTE
    assert either.run() == Tally()

    assert either.server.accepted(ANN) == 1
    assert either.events_of('sent')[0].reply.code == code


# 43. Extensions


@pytest.mark.finding(43)
def test_too_large_for_the_relay(world: World) -> None:
    """A mail over the advertised SIZE is an error event before any command for it is sent, and the
    mail behind it is delivered over the same connection."""
    world.server.extensions = ('PIPELINING', 'SIZE 2000')
    large = world.send(welcome(text='x' * 4000))
    small = world.send()

    assert world.run() == Tally(delivered=1, failed=1)

    (event,) = world.events_of('error')
    assert (event.message_id, event.permanent) == (large, True)
    assert 'SIZE' in event.reason
    assert world.server.pairs() == {(small, ANN): 1}
    assert world.server.verbs().count('MAIL') == 1
    assert world.server.connections == 1


@pytest.mark.finding(43)
def test_utf8_for_one_mail_only(either: World) -> None:
    """SMTPUTF8 stands in the MAIL of the mail that needs it, and not in the next one on the same
    connection."""
    either.server.extensions = (*either.server.extensions, '8BITMIME', 'SMTPUTF8')
    either.send(welcome(to=['jörg@example.org']))
    either.send(priority='low')

    assert either.run() == Tally(delivered=2)

    first, second = either.server.messages
    assert 'SMTPUTF8' in first.mail_arguments.split()
    assert second.mail_arguments == f'SIZE={len(second.data)}'
    assert first.connection == second.connection


# 45. Names and resolvers


@pytest.mark.finding(45)
def test_no_name_is_resolved(
    smtp_server: ScriptedSMTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With resolvers that would hang, the application starts, sends and sends EHLO: its own name
    comes from the system, once, and never from DNS."""

    def hang(*_args: object, **_options: object) -> None:
        raise AssertionError('a resolver was asked')

    asked: list[str] = []
    numeric = socket.getaddrinfo

    def only_numbers(host: Any, *args: Any, **options: Any) -> Any:
        assert host == '127.0.0.1', 'a resolver was asked'
        return numeric(host, *args, **options)

    monkeypatch.setattr(
        socket, 'gethostname', lambda: asked.append('web-7.example.org') or asked[-1]
    )
    for name in ('getfqdn', 'gethostbyname', 'gethostbyname_ex', 'gethostbyaddr', 'getnameinfo'):
        monkeypatch.setattr(socket, name, hang)
    monkeypatch.setattr(socket, 'getaddrinfo', only_numbers)
    with Configurator(settings={'mail.url': smtp_server.url}) as config:
        config.include('pyramid_sendmail')
    delivery = config.registry.getUtility(IMailDelivery)

    reports = [delivery.send_now(welcome()) for _ in range(3)]

    assert {message.helo for message in smtp_server.messages} == {'web-7.example.org'}
    assert all(report.message_id.endswith('@web-7.example.org>') for report in reports)
    assert len(asked) == 1


# 46. Nothing is swallowed


FAILURES: dict[str, tuple[str, Action]] = {
    'greeting': ('connect', reply(554, '5.7.1 blocked')),
    'closed at MAIL': ('MAIL', drop()),
    'closed at DATA': ('DATA', drop()),
    'refused': ('RCPT', reply(550, '5.1.1 no such user')),
    'deferred': ('RCPT', reply(450, '4.2.0 greylisted')),
    'text refused': ('dot', reply(554, '5.7.1 spam')),
    'no last word': ('dot', accept_then(drop())),
    'nonsense': ('MAIL', raw(b'HTTP/1.1 200 OK\r\n')),
}


@pytest.mark.finding(46)
@pytest.mark.parametrize('failure', FAILURES)
def test_direct_delivery_reports_every_failure(
    smtp_server: ScriptedSMTPServer, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a queue each failure is one error event and a line in the log, and ``send_now``
    raises."""
    events: list[Any] = []
    with Configurator(settings={'mail.url': smtp_server.url}) as config:
        config.include('pyramid_sendmail')
        config.add_subscriber(events.append, IMailErrorEvent)
        config.add_subscriber(events.append, IMailSentEvent)
    delivery = config.registry.getUtility(IMailDelivery)
    smtp_server.always(*FAILURES[failure])
    transaction.begin()
    message_id = delivery.send(welcome())
    transaction.commit()
    until(lambda: events)

    (event,) = events
    assert IMailErrorEvent.providedBy(event)
    assert event.message_id == message_id
    assert event.reason
    logged = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert any(message_id in each.getMessage() for each in logged)
    with pytest.raises((MailerUnavailable, MailRefused, MailAmbiguous)):
        delivery.send_now(welcome())
    delivery.flush(10)


@pytest.mark.finding(46)
@pytest.mark.parametrize('interrupt', [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_swallowed(
    world: World, interrupt: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during ``send_now`` ends it."""

    def connect() -> Any:
        raise interrupt

    monkeypatch.setattr(world.mailer, 'connect', connect)
    with pytest.raises(interrupt):
        world.delivery.send_now(welcome())


# 47. Replies without end


@pytest.mark.finding(47)
@pytest.mark.parametrize('verb', ['connect', 'EHLO', 'MAIL', 'RCPT', 'DATA', 'dot', 'QUIT'])
def test_a_reply_without_end(either: World, verb: str) -> None:
    """Wherever a relay never stops replying the connection is given up, and the mail arrives later,
    or was delivered before."""
    either.server.script(verb, stream_forever(b'250-and so on\r\n'))
    message_id = either.send()

    outcome = either.attempt()
    if verb in ('connect', 'EHLO', 'MAIL'):
        assert 'more than 256 lines' in str(outcome)
    else:
        assert outcome in (Tally(deferred=1), Tally(delivered=1))
    until(lambda: not either.server.open_connections)
    assert either.events_of('error') == []
    either.clock.now += MINUTE
    either.run()

    assert either.server.pairs() == {(message_id, ANN): 1}
    assert either.files() == {}


# 107. The matrix of replies


STATUS = {2: 'sent', 4: 'deferred', 5: 'error'}

CODES = [200, 250, 251, 259, 299, 400, 432, 450, 452, 471, 499, 501, 550, 552, 571, 599]


@pytest.mark.finding(107)
@pytest.mark.parametrize('code', CODES)
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
def test_the_first_digit_decides(either: World, verb: str, code: int) -> None:
    """At each verb, for known codes and unknown ones: 2 accepts, 4 defers, 5 fails; 2xx to DATA
    makes no sense and defers."""
    either.server.script(verb, reply(code, 'so'))
    either.send()
    either.run()

    status = STATUS[code // 100]
    if verb == 'DATA' and status == 'sent':
        status = 'deferred'
    assert [type(event).__name__ for event in either.events_of(status)] == [
        f'Mail{status.title()}Event'
    ]
    assert len(either.events) == 1
    if status != 'sent' and code >= 400:
        assert f'{code} so' in either.events[0].reason


@pytest.mark.parametrize('code', [500, 502, 503, 504])
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT'])
def test_a_refused_command_is_not_the_mails_fault(either: World, verb: str, code: int) -> None:
    """A relay that refuses the command as such is unavailable: no attempt is counted, and the mail
    is sent when it has been mended."""
    either.server.script(verb, reply(code, '5.5.2 Helo command rejected'))
    either.send()
    with pytest.raises(MailerUnavailable, match=f'{verb} was answered {code} .*mail.hostname'):
        either.run()
    assert not either.events
    assert [name.partition('/')[0] for name in either.files()] == ['new']
    either.run()
    assert [type(event).__name__ for event in either.events] == ['MailSentEvent']


@pytest.mark.parametrize('code', [500, 503])
def test_a_refused_data_command_defers(either: World, code: int) -> None:
    """DATA that is refused as a command, with recipients accepted, defers."""
    either.server.script('DATA', reply(code, 'so'))
    either.send()
    either.run()
    [event] = either.events
    assert type(event).__name__ == 'MailDeferredEvent'
    assert f'{code} so' in event.reason


NONSENSE: dict[str, bytes] = {
    'changes its mind': b'250-yes\r\n550 no\r\n',
    'two digits': b'25 OK\r\n',
    'no space': b'250OK\r\n',
    'no code': b'OK\r\n',
    'out of range': b'650 what\r\n',
    'nothing': b'\r\n',
    'a web server': b'HTTP/1.1 400 Bad Request\r\n\r\n',
    'binary': b'\x15\x03\x01\x00\x02\x02\x0a\r\n',
    'a line of a megabyte': b'250 ' + b'x' * 2**20 + b'\r\n',
}


@pytest.mark.finding(107)
@pytest.mark.parametrize('case', NONSENSE)
@pytest.mark.parametrize('verb', ['connect', 'EHLO', 'MAIL', 'RCPT', 'DATA', 'dot'])
def test_what_is_no_reply_is_for_later(either: World, verb: str, case: str) -> None:
    """Bytes that are no reply, or change the code in the middle, neither accept nor refuse: the
    connection is closed, and the mail is tried again."""
    either.server.script(verb, raw(NONSENSE[case]))
    message_id = either.send()
    outcome = either.attempt()
    if verb in ('connect', 'EHLO', 'MAIL'):
        assert isinstance(outcome, str)
    else:
        assert outcome == Tally(deferred=1)
    until(lambda: not either.server.open_connections)
    assert 'QUIT' not in either.server.verbs()
    assert either.events_of('error') == either.events_of('sent') == []
    either.clock.now += MINUTE

    assert either.run() == Tally(delivered=1)

    # Whether the relay accepted the mail is unknown after such a reply.
    doubtful = verb == 'dot' and NONSENSE[case].startswith(b'2')
    assert either.server.pairs() == {(message_id, ANN): 2 if doubtful else 1}
    if verb == 'dot':
        assert either.events_of('deferred')[0].reason.startswith('ambiguous: ')


# 108 and 109. The beginning and the end


@pytest.mark.finding(109)
@pytest.mark.parametrize('verb', ['connect', 'EHLO', 'MAIL', 'RCPT', 'DATA', 'dot', 'QUIT'])
@pytest.mark.parametrize('mail', [1, 2])
def test_421_after_each_verb(either: World, verb: str, mail: int) -> None:
    """421 at any place of the first or second mail of a connection only defers: nothing fails, and
    in the end each mail has arrived once."""
    if mail == 2 and verb in ('MAIL', 'RCPT', 'DATA', 'dot'):
        either.server.script(verb, reply(354 if verb == 'DATA' else 250, 'ok'))
    either.server.script(verb, reply_then_drop(421, '4.3.2 shutting down'))
    for _ in range(3):
        either.send()
    for _ in range(3):
        outcome = either.attempt()
        assert isinstance(outcome, Tally) or '421' in outcome
        either.clock.now += MINUTE

    copies = either.server.pairs()
    assert len(copies) == 3
    assert set(copies.values()) == {1}
    assert either.events_of('error') == []
    assert either.files() == {}


@pytest.mark.finding(109)
@pytest.mark.slow
@pytest.mark.parametrize('side', ['client', 'server'])
def test_reset_at_each_byte_between_queue_and_relay(
    make_world: MakeWorld,
    smtp_server: ScriptedSMTPServer,
    cutting_proxy: Callable[..., CuttingProxy],
    side: Any,
) -> None:
    """With a RST at any byte of the session a mail in the queue is untouched, deferred, ambiguous
    or delivered; it always arrives, and twice only if it was reported as ambiguous."""
    proxy = cutting_proxy(smtp_server.port, after=None, side=side)
    world = make_world(url=f'smtp://127.0.0.1:{proxy.port}?timeout=10s')
    world.send()
    world.run()
    size = len(smtp_server.raw(1) if side == 'client' else smtp_server.sent(1))
    seen = set()
    for after in range(size):
        proxy.after, proxy.times = after, 1
        world.events.clear()
        message_id = world.send()
        before = world.files()
        if isinstance(world.attempt(), str):
            assert world.files() == before
            state = 'untouched'
        else:
            (event,) = world.events_of('deferred') or world.events_of('sent')
            state = 'delivered' if world.files() == {} else event.reason.partition(':')[0]
        until(lambda: not smtp_server.open_connections)
        copies = smtp_server.pairs()[message_id, ANN]
        state = state if state in ('untouched', 'delivered', 'ambiguous') else 'deferred'
        seen.add(state)
        assert copies in {'delivered': (1,), 'ambiguous': (0, 1)}.get(state, (0,)), after
        world.clock.now += MINUTE
        world.run()
        assert world.files() == {}, after
        again = smtp_server.pairs()[message_id, ANN]
        assert again == copies + (state != 'delivered'), after
        assert world.events_of('error') == []
    assert seen >= {'untouched', 'ambiguous', 'delivered'}


# 111. Time-outs


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """Return a port whose backlog is full: a connection to it waits."""
    with socket.create_server(('127.0.0.1', 0), backlog=0) as listening:
        crowd = [socket.socket() for _ in range(4)]
        for each in crowd:
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
        for each in crowd:
            each.close()


@pytest.mark.finding(111)
def test_connecting_has_its_time(deaf_port: int) -> None:
    """A host that does not accept the connection is given up after the time-out ``connect``."""
    mailer = SMTPMailer(
        '127.0.0.1', deaf_port, hostname='x', timeouts=Timeouts(connect=0.3, quit=0.3)
    )
    with pytest.raises(MailerUnavailable, match=r'connecting: .*timed out after 0\.3 s'):
        mailer.connect()


@pytest.mark.finding(111)
def test_the_times_are_those_of_the_rfc() -> None:
    """Except for the connection, no time-out is shorter than RFC 5321, 4.5.3.2 asks for."""
    times = Timeouts()
    assert (times.connect, times.greeting, times.command) == (30, 300, 300)
    assert (times.data, times.block, times.final) == (120, 180, 600)


@pytest.mark.finding(111)
def test_a_commit_that_waits_no_longer(smtp_server: ScriptedSMTPServer, tmp_path: Path) -> None:
    """The shorter time-out of direct delivery ends the wait of the commit, not the mail, which the
    relay still gets, once."""
    go_on = Event()
    smtp_server.script('DATA', hold(go_on))
    with Configurator(
        settings={
            'mail.url': smtp_server.url,
            'mail.queue_path': str(tmp_path / 'mail'),
            'mail.delivery': 'direct',
            'mail.direct_timeout': '0.2s',
        }
    ) as config:
        config.include('pyramid_sendmail')
    delivery = config.registry.getUtility(IMailDelivery)
    transaction.begin()
    delivery.send(welcome())
    transaction.commit()
    assert smtp_server.messages == []
    go_on.set()
    smtp_server.wait_for(1)
    delivery.flush(10)
    config.registry.getUtility(IMailQueue).close()
    assert smtp_server.accepted(ANN) == 1
