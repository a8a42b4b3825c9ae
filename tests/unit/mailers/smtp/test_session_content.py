"""The bytes of a mail by SMTP: dot stuffing, addresses, and the parameters of extensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Verdict
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.mailers.smtp.protocol.dot_stuffing import stuffed
from tests.support.sessions import (
    RAW,
    TINY,
    A,
    B,
    connect,
    envelope,
    send,
    statuses,
)
from tests.support.smtp.server import (
    ScriptedSMTPServer,
    hang,
    lax_messages,
    reply,
    reset,
    strict_messages,
)

# The bytes


@pytest.mark.slow
@pytest.mark.finding(8)
def test_large_message_over_a_slow_connection(
    start_smtp_server: Callable[..., ScriptedSMTPServer],
) -> None:
    """The time-out is for a block that does not move, not for the whole message."""
    # More than the buffers of both sides hold, and slower than the time-out as a whole.
    server = start_smtp_server(
        extensions=(), read_pause=0.01, read_size=65_536, socket_buffer=16_384
    )
    body = b'x' * 76 + b'\r\n'
    large = envelope(raw=RAW + body * 150_000)
    session = connect(server, Timeouts(block=0.5, final=10))
    [outcome] = send(session, large)
    session.close()
    assert statuses(outcome) == {A: 'delivered'}
    assert server.messages[0].data == large.raw


def test_stall_in_the_middle_of_the_data(server: ScriptedSMTPServer) -> None:
    """If the text stalls before its end, the mail is deferred and not ambiguous, and
    before_final_dot was not called."""
    server.script('DATA', reply(354, 'go on', then=hang(reading=False)))
    ambiguous: list[object] = []
    session = connect(server, TINY)
    large = envelope(raw=RAW + (b'x' * 76 + b'\r\n') * 100_000)
    [outcome] = session.send([large], before_final_dot=lambda *seen: ambiguous.append(seen))
    assert statuses(outcome) == {A: 'deferred'}
    assert 'while sending: timed out' in str(outcome[A])
    assert not ambiguous
    session.close()


def test_drop_in_the_middle_of_the_data(server: ScriptedSMTPServer) -> None:
    """So if the connection is lost there."""
    server.script('DATA', reply(354, 'go on', then=reset()))
    session = connect(server)
    large = envelope(raw=RAW + (b'x' * 76 + b'\r\n') * 100_000)
    [outcome] = send(session, large)
    assert statuses(outcome) == {A: 'deferred'}
    session.close()


LINES = st.lists(
    st.one_of(
        st.sampled_from([b'', b'.', b'..', b'...', b'.x', b'x.', b'.\t', b' .', b'\0', b'QUIT']),
        st.binary(max_size=90).map(lambda line: line.translate(None, b'\r\n')),
    ),
    max_size=30,
)


@pytest.mark.finding(35, 113)
@given(lines=LINES, ended=st.booleans())
def test_stuffing_is_undone_by_every_receiver(lines: list[bytes], ended: bool) -> None:
    """A strict and a lax receiver see one message, and the same one."""
    text = b'\r\n'.join(lines) + (b'\r\n' if ended else b'')
    wire = b''.join(stuffed([text] if text else []))
    expected = text if text.endswith(b'\r\n') or not text else text + b'\r\n'
    assert strict_messages(wire) == [expected]
    assert lax_messages(wire) == [expected]
    assert wire.endswith(b'\r\n.\r\n') or wire == b'.\r\n'
    for size in range(1, 5):
        # Wherever a block ends.
        blocks = [text[at : at + size] for at in range(0, len(text), size)]
        pieces = list(stuffed(blocks))
        assert b''.join(pieces) == wire
        assert len(pieces) == max(len(blocks), 1)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=LINES)
def test_bytes_arrive_as_they_were_frozen(server: ScriptedSMTPServer, lines: list[bytes]) -> None:
    """The relay receives envelope.raw, byte for byte, and SIZE counts it."""
    mail = envelope(raw=b'Subject: x\r\n\r\n' + b''.join(line + b'\r\n' for line in lines))
    server.reset_script()
    session = connect(server)
    send(session, mail)
    session.close()
    message = server.messages[-1]
    assert message.data == mail.raw
    assert f'SIZE={len(mail.raw)}' in message.mail_arguments.split()
    assert ('BODY=8BITMIME' in message.mail_arguments) is not mail.raw.isascii()
    server.violations[:] = [each for each in server.violations if 'NUL' not in each.upper()]


def test_dots_at_the_edges_of_blocks(server: ScriptedSMTPServer) -> None:
    """A dot at a line start is doubled wherever the message is cut into blocks."""
    session = connect(server)
    head = b'Subject: x\r\n\r\n'
    lengths = range(16_384 - 8 - len(head), 16_384 + 4 - len(head))
    for length in lengths:
        filler = (b'x' * 70 + b'\r\n') * (length // 72) + b'x' * (length % 72)
        send(session, envelope(raw=head + filler + b'\r\n.\r\n..\r\nend\r\n'))
        assert server.messages[-1].data == head + filler + b'\r\n.\r\n..\r\nend\r\n'
    session.close()
    assert len(server.messages) == len(lengths)


@pytest.mark.finding(34, 35)
@pytest.mark.parametrize(
    'body',
    [b'a\nb\r\n', b'a\rb\r\n', b'a\n.\nb\r\n', b'a\n.\r\nb\r\n', b'a\r.\r\r\n', b'a\r\n\n.\r\n'],
)
def test_smuggling(server: ScriptedSMTPServer, body: bytes) -> None:
    """A message with a bare CR or LF is not sent."""
    session = connect(server)
    bad, good = send(session, envelope(raw=b'Subject: x\r\n\r\n' + body), envelope())
    session.close()
    assert bad == {A: Verdict('failed', None, 'the message has line ends other than CRLF')}
    assert statuses(good) == {A: 'delivered'}
    assert server.verbs() == ['EHLO', 'MAIL', 'RCPT', 'DATA', 'dot', 'QUIT']


BAD_PATHS = [
    'a@b\r\nRCPT TO:<x@y>',
    'a@b\nDATA',
    'a@b\0',
    'a@b> NOTIFY=NEVER',
    '<a@b>',
    'a b@c',
    'a@b c',
    'a,b@c',
    '"a@b',
    '"a\n"@b',
    'a@\x7fb',
    'a@\udc80b',
    '@b',
    '',
]


@pytest.mark.finding(36)
@pytest.mark.parametrize('path', BAD_PATHS)
def test_command_injection(server: ScriptedSMTPServer, path: str) -> None:
    """What is no address is not sent in a command; the other recipients get their mail."""
    session = connect(server)
    outcome = send(session, envelope(path, B))[0]
    assert statuses(outcome) == {path: 'failed', B: 'delivered'}
    if path:
        outcome = send(session, envelope(A, B, sender=path))[0]
        assert statuses(outcome) == {A: 'failed', B: 'failed'}
        assert 'sender' in str(outcome[A])
    session.close()
    assert [message.recipients for message in server.messages] == [(B,)]


@pytest.mark.parametrize(
    'path', ['"a b"@example.org', r'"a\"b"@example.org', '"a,b>"@example.org', 'a@[192.0.2.1]',
             'a@[IPv6:2001:db8::1]', 'Postmaster', "o'neil+tag@example.org", 'a=b@example.org']
)  # fmt: skip
def test_unusual_addresses(server: ScriptedSMTPServer, path: str) -> None:
    """Addresses that RFC 5321 allows are sent as they are."""
    session = connect(server)
    [outcome] = send(session, envelope(path))
    session.close()
    assert statuses(outcome) == {path: 'delivered'}
    assert f'RCPT TO:<{path}>' in [line for _, _, line in server.commands]


# The extensions


@pytest.mark.parametrize(
    ('size', 'limit', 'sent'),
    [(len(RAW), len(RAW), True), (len(RAW), len(RAW) - 1, False), (len(RAW), 0, True)],
)
def test_size_is_known_before(
    start_smtp_server: Callable[..., ScriptedSMTPServer], size: int, limit: int, sent: bool
) -> None:
    """Over the advertised limit nothing is sent (RFC 1870), and the text names both sizes."""
    server = start_smtp_server(extensions=(f'SIZE {limit}',))
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    assert statuses(outcome) == {A: 'delivered' if sent else 'failed'}
    if not sent:
        assert str(size) in str(outcome[A])
        assert str(limit) in str(outcome[A])
        assert 'MAIL' not in server.verbs()


@pytest.mark.parametrize('extension', ['SIZE', 'SIZE many'])
def test_size_without_a_number(
    start_smtp_server: Callable[..., ScriptedSMTPServer], extension: str
) -> None:
    """An offer of SIZE that names no limit sets none."""
    server = start_smtp_server(extensions=(extension,))
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    assert statuses(outcome) == {A: 'delivered'}
    assert server.messages[0].mail_arguments == f'SIZE={len(RAW)}'


def test_no_parameter_that_was_not_offered(
    start_smtp_server: Callable[..., ScriptedSMTPServer],
) -> None:
    """A relay without extensions gets no parameter, and no byte above 127."""
    server = start_smtp_server(extensions=())
    session = connect(server)
    plain, eight_bit = send(session, envelope(), envelope(raw=RAW + 'grüße\r\n'.encode()))
    session.close()
    assert statuses(plain) == {A: 'delivered'}
    assert statuses(eight_bit) == {A: 'failed'}
    assert '8BITMIME' in str(eight_bit[A])
    assert 'sign content that is quoted-printable or base64' in str(eight_bit[A])
    assert server.raw(1).isascii()
    assert [message.mail_arguments for message in server.messages] == ['']
    assert not server.violations


UTF8 = 'Subject: grüße\r\n\r\nhello\r\n'.encode()


@pytest.mark.parametrize(
    ('changes', 'utf8', 'without'),
    [
        ({}, False, 'delivered delivered'),
        ({'raw': RAW + 'grüße\r\n'.encode()}, False, 'delivered delivered'),
        ({'raw': UTF8}, True, 'failed failed'),
        ({'sender': 'jürgen@example.org'}, True, 'failed failed'),
        ({'recipients': ('jürgen@example.org', B)}, True, 'failed delivered'),
    ],
    ids=['ASCII', 'body', 'header', 'sender', 'recipient'],
)
def test_smtputf8(
    start_smtp_server: Callable[..., ScriptedSMTPServer],
    changes: dict[str, Any],
    utf8: bool,
    without: str,
) -> None:
    """SMTPUTF8 (RFC 6531) is asked for where addresses or headers need it, for each mail; without
    it these mails fail for good, saying why."""
    mail = envelope(**({'recipients': (A, B)} | changes))
    able = start_smtp_server(extensions=('8BITMIME', 'SMTPUTF8'))
    session = connect(able)
    outcome, after = send(session, mail, envelope())
    session.close()
    assert set(statuses(outcome).values()) == set(statuses(after).values()) == {'delivered'}
    assert ('SMTPUTF8' in able.messages[0].mail_arguments) is utf8
    assert able.messages[1].mail_arguments == ''
    assert not able.violations
    unable = start_smtp_server(extensions=('8BITMIME',))
    session = connect(unable)
    [outcome] = send(session, mail)
    session.close()
    assert ' '.join(statuses(outcome).values()) == without
    assert all(
        'SMTPUTF8' in str(verdict) for verdict in outcome.values() if verdict.status == 'failed'
    )
    assert not unable.violations
