"""The scripted server accepts mail by default, follows its script, and stops and starts."""

from __future__ import annotations

import re
import smtplib
import threading
import time
from collections.abc import Callable

import pytest

from tests.support.smtp.client import MAIL, Client, connected, send
from tests.support.smtp.server import (
    EXTENSIONS,
    Action,
    ScriptedSMTPServer,
    Session,
    delay,
    half_close,
    hang,
    hold,
    lax_messages,
    raw,
    reply,
    reply_then_drop,
    stream_forever,
    strict_messages,
)

Start = Callable[..., ScriptedSMTPServer]


def test_a_message_arrives_byte_for_byte(smtp_server: ScriptedSMTPServer) -> None:
    """By default the server stores the exact message, its envelope and no violation."""
    data = MAIL + b'.\r\n..two\r\n\r\n.end\r\n'
    assert send(smtp_server, 'b@x', 'c@x', data=data) == {}
    (message,) = smtp_server.messages
    assert message.data == data
    assert (message.sender, message.recipients) == ('a@x', ('b@x', 'c@x'))
    assert message.mail_arguments == f'size={len(data)}'
    assert (message.helo, message.connection, message.tls) == ('me', 1, False)
    assert (message.reply_code, message.acknowledged) == (250, True)
    assert message.authenticated_as is None
    assert strict_messages(message.wire) == lax_messages(message.wire) == [data]
    assert smtp_server.accepted('b@x') == smtp_server.accepted('c@x') == 1
    assert smtp_server.accepted('a@x') == 0
    assert smtp_server.pairs() == {('<1@x>', 'b@x'): 1, ('<1@x>', 'c@x'): 1}
    assert smtp_server.verbs(1) == ['EHLO', 'MAIL', 'RCPT', 'RCPT', 'DATA', 'dot', 'QUIT']
    assert (1, 'RCPT', 'rcpt TO:<c@x>') in smtp_server.commands
    assert smtp_server.raw(1).startswith(b'ehlo me\r\nmail FROM:<a@x> size=')
    assert smtp_server.sent(1).startswith(b'220 relay.example.org')
    assert smtp_server.violations == []
    smtp_server.wait_for(lambda server: server.open_connections == 0)
    assert smtp_server.connections == 1


def test_pipelined_groups_are_answered_in_order(smtp_server: ScriptedSMTPServer) -> None:
    """A group in one segment gets one reply for each command, and is no violation."""
    smtp_server.script('RCPT', reply(550, '5.1.1 no such user'), match='nobody@x')
    with connected(smtp_server.port) as client:
        group = [b'RCPT TO:<%d@x>' % number for number in range(300)]
        lines = [b'MAIL FROM:<a@x>', b'RCPT TO:<nobody@x>', *group, b'DATA', b'']
        client.write(b'\r\n'.join(lines))
        codes = [client.reply()[:3] for _ in range(303)]
        assert codes == [b'250', b'550', *[b'250'] * 300, b'354']
        client.write(MAIL + b'.\r\n' + b'MAIL FROM:<c@x>\r\nRSET\r\nQUIT\r\n')
        assert [client.reply()[:3] for _ in range(4)] == [b'250', b'250', b'250', b'221']
        assert client.rest() == b''
    assert smtp_server.violations == []
    assert len(smtp_server.messages[0].recipients) == 300


def test_it_is_fast(smtp_server: ScriptedSMTPServer) -> None:
    """It takes several hundred messages a second at least, even on a busy machine."""
    group = b'MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n'
    with connected(smtp_server.port) as client:
        started = time.perf_counter()
        for _ in range(500):
            client.write(group)
            assert [client.reply()[:1] for _ in range(3)] == [b'2', b'2', b'3']
            assert client.ask(MAIL + b'.').startswith(b'250')
        assert time.perf_counter() - started < 2
    assert smtp_server.pairs()['<1@x>', 'b@x'] == 500


def test_a_big_message(smtp_server: ScriptedSMTPServer) -> None:
    """Reading is not quadratic, wherever segments end."""
    data = MAIL + (b'x' * 70 + b'\r\n') * 130_000
    send(smtp_server, data=data)
    assert smtp_server.messages[0].data == data


def test_transaction_order_is_enforced(smtp_server: ScriptedSMTPServer) -> None:
    """Commands out of order are refused, and RSET and EHLO end a transaction."""
    with connected(smtp_server.port, greeted=False) as client:
        client.reply()
        assert client.ask(b'MAIL FROM:<a@x>').startswith(b'503')
        assert client.ask(b'EHLO').startswith(b'501')
        assert client.ask(b'HELO me').startswith(b'250')
        assert client.ask(b'RCPT TO:<b@x>').startswith(b'503')
        assert client.ask(b'DATA').startswith(b'503')
        assert client.ask(b'MAIL FROM:<a@x> SIZE=9').startswith(b'555')
        assert client.ask(b'MAIL FROM:<>').startswith(b'250')
        assert client.ask(b'MAIL FROM:<>').startswith(b'503')
        assert client.ask(b'DATA').startswith(b'554')
        assert client.ask(b'RSET').startswith(b'250')
        assert client.ask(b'RCPT TO:<b@x>').startswith(b'503')
        assert client.ask(b'EHLO me').count(b'\r\n') == 1 + len(EXTENSIONS)
        assert client.ask(b'MAIL FROM:<"a> b"@x> SIZE=9 BODY=8BITMIME').startswith(b'250')
        assert client.ask(b'EHLO me').startswith(b'250')
        assert client.ask(b'RCPT TO:<b@x>').startswith(b'503')
        assert client.ask(b'VRFY b').startswith(b'502')
        assert client.ask(b'AUTH PLAIN =').startswith(b'502')
        assert client.ask(b'STARTTLS').startswith(b'502')
    assert smtp_server.violations == []


@pytest.mark.parametrize(('limit', 'code'), [(100, b'250'), (99, b'552')])
def test_size_limit(start_smtp_server: Start, limit: int, code: bytes) -> None:
    """The advertised limit holds for the declared size and for the true one."""
    server = start_smtp_server(extensions=[f'SIZE {limit}'])
    with connected(server.port) as client:
        assert client.ask(b'MAIL FROM:<a@x> SIZE=100').startswith(code)
        client.ask(b'RSET')
        assert client.transaction(data=b'x' * 98 + b'\r\n').startswith(code)
    assert len(server.messages) == (code == b'250')


def test_scripted_replies_are_used_up(smtp_server: ScriptedSMTPServer) -> None:
    """Queued replies come one by one, lasting ones after them, then default ones."""
    smtp_server.script('RCPT', reply(451, '4.7.1 greylisted'), reply(452))
    smtp_server.always('RCPT', reply(550, '5.1.1 no', '5.1.1 user'), match='b@x')
    assert smtp_server.script_left() == {'RCPT': 2}
    with connected(smtp_server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        assert client.ask(b'RCPT TO:<b@x>') == b'451 4.7.1 greylisted\r\n'
        assert client.ask(b'RCPT TO:<c@x>') == b'452\r\n'
        assert client.ask(b'RCPT TO:<b@x>') == b'550-5.1.1 no\r\n550 5.1.1 user\r\n'
        assert client.ask(b'RCPT TO:<c@x>').startswith(b'250')
        assert smtp_server.script_left() == {}
        smtp_server.reset_script()
        assert client.ask(b'RCPT TO:<b@x>').startswith(b'250')


def test_matches(smtp_server: ScriptedSMTPServer) -> None:
    """Text, bytes and patterns choose by command line, and by the message for 'dot'."""
    smtp_server.always('MAIL', reply(550), match=re.compile('<evil@', re.IGNORECASE))
    smtp_server.script('dot', reply(451), match='Subject: later')
    smtp_server.always('dot', reply(554), match=b'Subject: \xc3\xa9vil')
    with connected(smtp_server.port) as client:
        assert client.ask(b'MAIL FROM:<EVIL@x>').startswith(b'550')
        assert client.transaction(data=b'Subject: \xc3\xa9vil\r\n').startswith(b'554')
        assert client.transaction(data=b'Subject: later\r\n').startswith(b'451')
        assert client.transaction(data=b'Subject: later\r\n').startswith(b'250')
    assert [message.data for message in smtp_server.messages] == [b'Subject: later\r\n']


def test_unknown_verbs_cannot_be_scripted(smtp_server: ScriptedSMTPServer) -> None:
    """A misspelt verb is an error."""
    with pytest.raises(ValueError, match="'rcpt' cannot be scripted"):
        smtp_server.script('rcpt', reply(550))


@pytest.mark.parametrize('code', [251, 299])
def test_any_positive_reply_accepts(smtp_server: ScriptedSMTPServer, code: int) -> None:
    """A message counts as accepted by the first digit of the reply that is sent."""
    smtp_server.script('dot', reply(code, 'fine'))
    with connected(smtp_server.port) as client:
        assert client.transaction() == b'%d fine\r\n' % code
    assert smtp_server.messages[0].reply_code == code


@pytest.mark.parametrize('code', [421, 451, 552])
def test_refused_messages_are_not_accepted(smtp_server: ScriptedSMTPServer, code: int) -> None:
    """A negative reply to the final dot leaves no message, and ends the transaction."""
    smtp_server.script('dot', reply(code))
    with connected(smtp_server.port) as client:
        assert client.transaction() == b'%d\r\n' % code
        assert client.ask(b'RCPT TO:<b@x>').startswith(b'503')
        assert client.transaction().startswith(b'250')
    assert smtp_server.accepted('b@x') == 1


@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot', 'RSET', 'NOOP', 'QUIT', 'EHLO'])
def test_421_after_each_verb(smtp_server: ScriptedSMTPServer, verb: str) -> None:
    """Any command can be answered 421 and the connection dropped after it."""
    smtp_server.script(verb, reply_then_drop(421, '4.3.2 shutting down'), match=None)
    lines = {'MAIL': b'MAIL FROM:<a@x>', 'RCPT': b'RCPT TO:<b@x>', 'EHLO': b'EHLO me'}
    with connected(smtp_server.port, greeted=False) as client:
        client.reply()
        verbs = ['EHLO', 'NOOP', 'RSET', 'MAIL', 'RCPT', 'DATA', 'dot', 'QUIT']
        for each in verbs[: verbs.index(verb)]:
            assert client.ask(b'.' if each == 'dot' else lines.get(each, each.encode()))
        last = b'.' if verb == 'dot' else lines.get(verb, verb.encode())
        assert client.ask(last) == b'421 4.3.2 shutting down\r\n'
        assert client.rest() == b''


def test_bad_greeting(smtp_server: ScriptedSMTPServer) -> None:
    """After a negative greeting only QUIT has a positive reply."""
    smtp_server.script('connect', reply(554, 'no SMTP service here'))
    with connected(smtp_server.port, greeted=False) as client:
        assert client.reply() == b'554 no SMTP service here\r\n'
        assert client.ask(b'EHLO me').startswith(b'503')
        assert client.ask(b'QUIT').startswith(b'221')


def test_raw_bytes_in_pieces(smtp_server: ScriptedSMTPServer) -> None:
    """A reply may be malformed, or come in pieces, and still count by its code."""
    smtp_server.script('MAIL', raw(b'25', then=delay(0.02, raw(b'0 fine\r\n'))))
    smtp_server.script('NOOP', raw(b'250-a\r\n550 b\n'), raw(b'hello\r\n'))
    with connected(smtp_server.port) as client:
        assert client.ask(b'MAIL FROM:<a@x>') == b'250 fine\r\n'
        assert client.ask(b'RCPT TO:<b@x>').startswith(b'250')
        assert client.ask(b'NOOP') == b'250-a\r\n550 b\n'
        assert client.ask(b'NOOP') == b'hello\r\n'


def test_callables_see_the_session(smtp_server: ScriptedSMTPServer) -> None:
    """A callable decides by the state of the session; None is the default reply."""

    def at_most_two(session: Session) -> Action | None:
        return reply(452, '4.5.3 too many') if len(session.recipients) == 2 else None

    def by_size(session: Session) -> Action | None:
        return delay(0, lambda session: reply(552) if len(session.data) > 99 else None)

    smtp_server.always('RCPT', at_most_two)
    smtp_server.always('dot', by_size)
    refused = send(smtp_server, 'b@x', 'c@x', 'd@x')
    assert refused == {'d@x': (452, b'4.5.3 too many')}
    with pytest.raises(smtplib.SMTPDataError):
        send(smtp_server, data=b'x' * 99)
    assert [message.recipients for message in smtp_server.messages] == [('b@x', 'c@x')]


def test_data_without_recipients(smtp_server: ScriptedSMTPServer) -> None:
    """A server may reply 354 though it refused every recipient: a lone dot is no message then."""
    smtp_server.script('DATA', reply(354, 'go on'))
    with connected(smtp_server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        assert client.ask(b'DATA').startswith(b'354')
        assert client.ask(b'.').startswith(b'554')
    assert smtp_server.messages == []
    assert smtp_server.violations == []


@pytest.mark.parametrize(
    'action',
    [
        delay(60),
        hold(threading.Event()),
        hang(),
        hang(reading=False),
        stream_forever(),
        half_close(),
    ],
)
def test_stop_interrupts_everything(action: Action) -> None:
    """Stopping is quick, whatever happens, and ends the connections."""
    with ScriptedSMTPServer() as server, connected(server.port) as client, connected(server.port):
        server.script('NOOP', action)
        client.write(b'NOOP\r\n')
        server.wait_for(lambda server: 'NOOP' in server.verbs(1))
        started = time.perf_counter()
        server.stop()
        assert time.perf_counter() - started < 1
        while client.socket.recv(65536):
            pass
        assert server.open_connections == 0


def test_stop_and_start_on_the_same_port(smtp_server: ScriptedSMTPServer) -> None:
    """A server can be stopped and started again on its port; its logs go on."""
    for _ in range(3):
        send(smtp_server)
        port = smtp_server.port
        smtp_server.stop()
        with pytest.raises(ConnectionRefusedError):
            Client(port)
        smtp_server.start()
        assert smtp_server.port == port
    send(smtp_server)
    assert [message.connection for message in smtp_server.messages] == [1, 2, 3, 4]
    with pytest.raises(RuntimeError):
        smtp_server.start()


def test_stop_while_a_reply_is_due(smtp_server: ScriptedSMTPServer) -> None:
    """A server that stops before its 250 has accepted without acknowledging."""
    smtp_server.script('dot', delay(60))
    with connected(smtp_server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        client.ask(b'RCPT TO:<b@x>')
        client.ask(b'DATA')
        client.write(MAIL + b'.\r\n')
        smtp_server.wait_for(1)
        smtp_server.stop()
        assert client.rest() == b''
    assert [message.acknowledged for message in smtp_server.messages] == [False]


def test_many_clients_at_once(smtp_server: ScriptedSMTPServer) -> None:
    """Concurrent connections are kept apart and lose nothing."""

    def work(number: int) -> None:
        with connected(smtp_server.port) as client:
            for turn in range(20):
                data = b'Message-ID: <%d.%d>\r\n\r\nx\r\n' % (number, turn)
                assert client.transaction(data=data).startswith(b'250')

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    smtp_server.wait_for(160)
    for thread in threads:
        thread.join()
    assert set(smtp_server.pairs().values()) == {1}
    assert len(smtp_server.pairs()) == 160
    assert smtp_server.violations == []


def test_wait_for_says_what_happened_instead(smtp_server: ScriptedSMTPServer) -> None:
    """A wait in vain ends with the logs."""
    send(smtp_server)
    smtp_server.script('NOOP', reply(250))
    with pytest.raises(AssertionError, match='2 messages not seen') as caught:
        smtp_server.wait_for(2, timeout=0.05)
    assert "script left: {'NOOP': 1}" in str(caught.value)
    assert '1 RCPT: rcpt TO:<b@x>' in str(caught.value)
    assert '<1@x> from <a@x> to b@x: 250' in str(caught.value)
    with pytest.raises(AssertionError, match='the condition not seen'):
        smtp_server.wait_for(lambda server: False, timeout=0.01)


@pytest.mark.parametrize(
    ('stream', 'strict', 'lax'),
    [
        (b'.\r\n', [b''], [b'']),
        (b'a\r\n.\r\n', [b'a\r\n'], [b'a\r\n']),
        (b'..\r\n...\r\n.\r\n', [b'.\r\n..\r\n'], [b'.\r\n..\r\n']),
        (b'a\r\n.\r\nb\r\n.\r\n', [b'a\r\n', b'b\r\n'], [b'a\r\n', b'b\r\n']),
        (b'a\n.\nb\r\n.\r\n', [b'a\n.\nb\r\n'], [b'a\r\n', b'b\r\n']),
        (b'a\r.\rb\r\n.\r\n', [b'a\r.\rb\r\n'], [b'a\r\n', b'b\r\n']),
        (b'a\r\n.\rb\r\n.\r\n', [b'a\r\n\rb\r\n'], [b'a\r\n', b'b\r\n']),
        (b'a\n.\r\nb\r\n.\r\n', [b'a\n.\r\nb\r\n'], [b'a\r\n', b'b\r\n']),
        (b'a\r\n..\r\n.\r\n', [b'a\r\n.\r\n'], [b'a\r\n.\r\n']),
        (b'', [], []),
    ],
)
def test_parsers(stream: bytes, strict: list[bytes], lax: list[bytes]) -> None:
    """The strict parser accepts one end of data; the lax one accepts every end that a server is
    known to accept."""
    assert strict_messages(stream) == strict
    assert lax_messages(stream) == lax


@pytest.mark.parametrize('stream', [b'a', b'a\r\n', b'a\r\n.', b'.', b'a\r\n.\r\nQUIT\r\n'])
def test_parsers_refuse_what_does_not_end(stream: bytes) -> None:
    """Bytes after the last end of data are an error, not a message."""
    with pytest.raises(ValueError, match='no end of data'):
        strict_messages(stream)
    with pytest.raises(ValueError, match='no end of data'):
        lax_messages(stream)
