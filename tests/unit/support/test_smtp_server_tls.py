"""The scripted server supports TLS, valid and invalid, and authentication."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, Literal

import pytest

from tests.support.smtp.client import MAIL, connected, handshake
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    TLSAuthority,
    drop,
    hold,
    raw,
    reply,
    reply_then_drop,
    reset,
)

Start = Callable[..., ScriptedSMTPServer]


@pytest.mark.parametrize('mode', ['starttls', 'implicit'])
def test_tls(
    start_smtp_server: Start, tls_authority: TLSAuthority, mode: Literal['starttls', 'implicit']
) -> None:
    """Both kinds of TLS verify against the authority, and the logs are decrypted."""
    server = start_smtp_server(
        tls=mode, context=tls_authority.context(), tls_extensions=['8BITMIME', 'SIZE 99']
    )
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    assert server.url.startswith('smtps:' if mode == 'implicit' else 'smtp:')
    client: smtplib.SMTP
    if mode == 'implicit':
        client = smtplib.SMTP_SSL('127.0.0.1', server.port, context=trusting, timeout=5)
    else:
        client = smtplib.SMTP('127.0.0.1', server.port, timeout=5)
        client.ehlo('plain')
        assert client.has_extn('starttls')
        assert client.has_extn('pipelining')
        client.starttls(context=trusting)
    with client:
        client.ehlo('secret')
        assert not client.has_extn('starttls')
        assert not client.has_extn('pipelining')
        assert client.esmtp_features['size'] == '99'
        client.sendmail('a@x', 'b@x', MAIL)
    (message,) = server.messages
    assert (message.tls, message.helo) == (True, 'secret')
    assert b'ehlo secret\r\n' in server.raw(1)
    assert MAIL + b'.\r\n' in server.raw(1)
    assert (server.violations, server.tls_errors) == ([], [])


@pytest.mark.parametrize('kind', ['wrong_host', 'expired', 'untrusted'])
def test_bad_certificates(start_smtp_server: Start, tls_authority: TLSAuthority, kind: str) -> None:
    """A client that verifies refuses each bad certificate for its own reason."""
    context: ssl.SSLContext = getattr(tls_authority, kind)()
    server = start_smtp_server(tls='implicit', context=context)
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    reason = {'wrong_host': 'IP address mismatch', 'expired': 'expired'}.get(kind, 'unable to get')
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        smtplib.SMTP_SSL('127.0.0.1', server.port, context=trusting, timeout=5)
    server.wait_for(lambda server: server.tls_errors)
    assert server.commands == []


def test_client_certificates(start_smtp_server: Start, tls_authority: TLSAuthority) -> None:
    """A demanding server refuses a client without a certificate, and takes one with it."""
    server = start_smtp_server(tls='implicit', context=tls_authority.demanding())
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    with pytest.raises((ssl.SSLError, smtplib.SMTPServerDisconnected)):
        smtplib.SMTP_SSL('127.0.0.1', server.port, context=trusting, timeout=5)
    trusting.load_cert_chain(tls_authority.client_certificate())
    with smtplib.SMTP_SSL('127.0.0.1', server.port, context=trusting, timeout=5) as client:
        assert client.noop()[0] == 250


@pytest.mark.parametrize('mode', ['starttls', 'implicit'])
@pytest.mark.parametrize('action', [drop(), reset(), raw(b'500 no TLS here\r\n')])
def test_failing_handshakes(
    start_smtp_server: Start,
    tls_authority: TLSAuthority,
    mode: Literal['starttls', 'implicit'],
    action: Action,
) -> None:
    """The moment before a handshake can be scripted like a verb."""
    server = start_smtp_server(tls=mode, context=tls_authority.context())
    answered = threading.Event()
    server.script('TLS', hold(answered, action))
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    with connected(server.port, greeted=mode == 'starttls') as client:
        if mode == 'starttls':
            assert client.ask(b'STARTTLS').startswith(b'220')
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            # Not before: the client must not read it together with the reply.
            handshake(client, trusting, before=answered.set)
    server.wait_for(lambda server: server.open_connections == 0)
    assert not any(message.tls for message in server.messages)


def test_starttls_response_injection(start_smtp_server: Start, tls_authority: TLSAuthority) -> None:
    """Bytes in plain text after 220 come in its segment, and a careless client trusts them."""
    server = start_smtp_server(tls='starttls', context=tls_authority.context())
    server.script('STARTTLS', raw(b'220 ready\r\n250-FAKE\r\n250 AUTH PLAIN\r\n'))
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    with connected(server.port) as client:
        client.write(b'STARTTLS\r\n')
        assert client.socket.recv(65536) == b'220 ready\r\n250-FAKE\r\n250 AUTH PLAIN\r\n'
        wrapped = handshake(client, trusting)
        assert b'FAKE' not in wrapped.ask(b'EHLO me')
        wrapped.close()


def test_commands_injected_before_tls_are_forgotten(
    start_smtp_server: Start, tls_authority: TLSAuthority
) -> None:
    """What a client sends behind STARTTLS is a violation, and is not executed inside TLS."""
    server = start_smtp_server(tls='starttls', context=tls_authority.context())
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    with connected(server.port) as client:
        assert client.ask(b'STARTTLS\r\nRSET').startswith(b'220')
        wrapped = handshake(client, trusting)
        assert wrapped.ask(b'MAIL FROM:<a@x>').startswith(b'503')
        assert wrapped.ask(b'EHLO me').startswith(b'250')
        wrapped.close()
    assert 'RSET' not in server.verbs()
    assert 'before the reply to STARTTLS' in server.violations[0]


@pytest.mark.parametrize(('polite', 'action'), [(True, None), (False, reply_then_drop(221, 'bye'))])
def test_close_notify(
    start_smtp_server: Start, tls_authority: TLSAuthority, polite: bool, action: Action | None
) -> None:
    """QUIT ends TLS properly, drop() truncates it."""
    server = start_smtp_server(tls='implicit', context=tls_authority.context())
    if action is not None:
        server.script('QUIT', action)
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    with socket.create_connection(('127.0.0.1', server.port), timeout=5) as plain:
        options: dict[str, Any] = {'suppress_ragged_eofs': False}
        with trusting.wrap_socket(plain, server_hostname='127.0.0.1', **options) as client:
            client.sendall(b'QUIT\r\n')
            with client.makefile('rb') as replies:
                assert replies.readline().startswith(b'220')
                assert replies.readline().startswith(b'221')
                if polite:
                    assert replies.readline() == b''
                else:
                    with pytest.raises(ssl.SSLEOFError):
                        replies.readline()


def test_tls_needs_a_context(tls_authority: TLSAuthority) -> None:
    """TLS without a certificate, or a certificate without TLS, is an error."""
    with pytest.raises(ValueError, match='need each other'):
        ScriptedSMTPServer(tls='implicit')
    with pytest.raises(ValueError, match='need each other'):
        ScriptedSMTPServer(context=tls_authority.context())


def plain(user: str, password: str) -> bytes:
    """Encode a response of PLAIN."""
    return b64encode(f'\0{user}\0{password}'.encode())


def test_auth(start_smtp_server: Start) -> None:
    """PLAIN and LOGIN, with and without initial response, in UTF-8."""
    server = start_smtp_server(auth={'zoë': 'pässword'}, auth_required=True)
    user, password = (b64encode(text.encode()) for text in ('zoë', 'pässword'))
    conversations = [
        [b'AUTH PLAIN ' + plain('zoë', 'pässword')],
        [b'AUTH PLAIN', plain('zoë', 'pässword')],
        [b'AUTH LOGIN', user, password],
        [b'AUTH LOGIN ' + user, password],
    ]
    for lines in conversations:
        with connected(server.port) as client:
            assert client.ask(b'MAIL FROM:<a@x>').startswith(b'530')
            codes = [client.ask(line)[:3] for line in lines]
            assert codes == [*[b'334'] * (len(lines) - 1), b'235']
            assert client.ask(b'AUTH PLAIN').startswith(b'503')
            assert client.transaction().startswith(b'250')
    assert [message.authenticated_as for message in server.messages] == ['zoë'] * 4
    assert server.verbs(3)[:5] == ['EHLO', 'MAIL', 'AUTH', 'response', 'response']
    assert server.violations == []


@pytest.mark.parametrize(
    ('lines', 'code'),
    [
        ([b'AUTH PLAIN ' + plain('user', 'wrong')], b'535'),
        ([b'AUTH PLAIN ' + plain('nobody', 'password')], b'535'),
        ([b'AUTH PLAIN', b'*'], b'501'),
        ([b'AUTH PLAIN', b'no base64!'], b'501'),
        ([b'AUTH PLAIN ='], b'501'),
        ([b'AUTH'], b'501'),
        ([b'AUTH CRAM-MD5'], b'504'),
    ],
)
def test_refused_auth(start_smtp_server: Start, lines: list[bytes], code: bytes) -> None:
    """Wrong passwords, cancelled exchanges and unknown mechanisms are refused."""
    server = start_smtp_server(
        auth={'user': 'password'}, auth_mechanisms=['CRAM-MD5', 'PLAIN', 'LOGIN']
    )
    with connected(server.port) as client:
        assert [client.ask(line)[:3] for line in lines][-1] == code
        assert client.transaction().startswith(b'250')
    assert server.messages[0].authenticated_as is None


def test_auth_is_advertised_inside_tls_only(
    start_smtp_server: Start, tls_authority: TLSAuthority
) -> None:
    """AUTH can be hidden and refused outside of TLS, or hidden altogether."""
    server = start_smtp_server(
        tls='starttls',
        context=tls_authority.context(),
        auth={'user': 'password'},
        auth_advertised='tls',
    )
    trusting = ssl.create_default_context(cafile=str(tls_authority.path))
    with smtplib.SMTP('127.0.0.1', server.port, timeout=5) as client:
        client.ehlo('me')
        assert not client.has_extn('auth')
        assert client.docmd('AUTH', 'PLAIN')[0] == 538
        client.starttls(context=trusting)
        client.ehlo('me')
        assert client.esmtp_features['auth'].split() == ['PLAIN', 'LOGIN']
        assert client.login('user', 'password')[0] == 235
    server.auth_advertised = 'never'
    with connected(server.port) as by_hand:
        assert b'AUTH' not in by_hand.ask(b'EHLO me')


def test_scripted_auth(start_smtp_server: Start) -> None:
    """A scripted challenge is followed by what is scripted next."""
    server = start_smtp_server(auth={}, auth_mechanisms=['XOAUTH2'])
    server.script('AUTH', reply(334, 'eyJzdGF0dXMiOiI0MDAifQ=='), reply(535, '5.7.8 expired'))
    server.script('AUTH', reply(454, '4.7.0 later'), reply(235, 'welcome'))
    with connected(server.port) as client:
        assert client.ask(b'AUTH XOAUTH2 eA==') == b'334 eyJzdGF0dXMiOiI0MDAifQ==\r\n'
        assert client.ask(b'') == b'535 5.7.8 expired\r\n'
        assert client.ask(b'AUTH XOAUTH2 eA==').startswith(b'454')
        assert client.ask(b'AUTH XOAUTH2 eA==').startswith(b'235')
        assert client.transaction().startswith(b'250')
    assert server.messages[0].authenticated_as == 'scripted'


def bearer(user: str, token: str) -> bytes:
    """Encode a response of XOAUTH2."""
    return b64encode(f'user={user}\1auth=Bearer {token}\1\1'.encode())


def test_xoauth2(start_smtp_server: Start) -> None:
    """A valid token is accepted, with and without initial response; an invalid one gets the
    challenge with the reason, and 535 after an empty line."""
    server = start_smtp_server(auth={'ann': 't0ken'}, auth_mechanisms=['XOAUTH2'])
    for lines in (
        [b'AUTH XOAUTH2 ' + bearer('ann', 't0ken')],
        [b'AUTH XOAUTH2', bearer('ann', 't0ken')],
    ):
        with connected(server.port) as client:
            assert [client.ask(line)[:3] for line in lines][-1] == b'235'
            assert client.transaction().startswith(b'250')
    with connected(server.port) as client:
        challenge = client.ask(b'AUTH XOAUTH2 ' + bearer('ann', '0ld'))
        assert challenge.startswith(b'334 ')
        assert b'"status":"400"' in b64decode(challenge[4:])
        assert client.ask(b'').startswith(b'535')
        assert client.ask(b'AUTH XOAUTH2 no-base64!').startswith(b'501')
    assert [message.authenticated_as for message in server.messages] == ['ann', 'ann']
    assert server.violations == []


@pytest.mark.parametrize(
    ('lines', 'violation'),
    [
        ([b'AUTH XOAUTH2 ' + b64encode(b'ann t0ken')], 'no XOAUTH2'),
        ([b'AUTH XOAUTH2 ' + bearer('ann', '0ld'), b'*'], 'more than an empty line'),
    ],
)
def test_xoauth2_done_badly(start_smtp_server: Start, lines: list[bytes], violation: str) -> None:
    """Violations in the exchange are logged."""
    server = start_smtp_server(auth={'ann': 't0ken'}, auth_mechanisms=['XOAUTH2'])
    with connected(server.port) as client:
        assert [client.ask(line)[:1] for line in lines][-1] == b'5'
    assert violation in server.violations[0]
