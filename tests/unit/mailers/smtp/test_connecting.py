"""From the connection to the session: greeting, EHLO, TLS and credentials."""

from __future__ import annotations

import base64
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Reply
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.address import TCPAddress, open_socket
from pyramid_sendmail.mailers.smtp.authentication import Credentials, choose_mechanisms
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.mailers.smtp.protocol.opening import Opening
from pyramid_sendmail.mailers.smtp.tls import client_context, remedy
from tests.support.sessions import deliver, make_mailer, refused
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    TLSAuthority,
    drop,
    hang,
    raw,
    reply,
    reply_then_drop,
    reset,
    stream_forever,
)

USER, PASSWORD = 'ann', 'gehe1m: Zwölf%#;@ ☃'

Start = Callable[..., ScriptedSMTPServer]

SHORT = Timeouts().capped(0.15)

MAIL = Envelope(
    id='0' * 32,
    message_id='<0@example.org>',
    sender='from@example.org',
    recipients=('to@example.org',),
    raw=b'Subject: hello\r\n\r\nhello\r\n',
    queued_at=0.0,
)


def mailer(server: ScriptedSMTPServer, **options: Any) -> SMTPMailer:
    return make_mailer(options.pop('host', server.host), server.port, **options)


@pytest.fixture
def relay(start_checked_server: Start, tls_authority: TLSAuthority) -> Start:
    """Start a server that offers STARTTLS and AUTH."""

    def start(**options: Any) -> ScriptedSMTPServer:
        if options.setdefault('tls', 'starttls') != 'none':
            options.setdefault('context', tls_authority.context())
        return start_checked_server(**({'auth': {USER: PASSWORD}} | options))

    return start


# Connecting and the greeting


def test_connection_refused() -> None:
    """A refused connection names host, port and the setting."""
    with socket.create_server(('127.0.0.1', 0)) as listening:
        port = listening.getsockname()[1]
    text = refused(SMTPMailer('127.0.0.1', port, hostname='x'))
    assert 'connecting: 127.0.0.1: Connection refused' in text
    assert 'mail.url' in text


@pytest.mark.parametrize('host', ['nowhere.invalid', 'a..b', 'x' * 70])
def test_host_cannot_be_found(host: str) -> None:
    """A name that does not resolve, or is none, makes the relay unavailable."""
    assert 'connecting' in refused(SMTPMailer(host, 25, hostname='x'))


def test_each_address_of_the_host_is_tried(smtp_server: ScriptedSMTPServer) -> None:
    """The second address is used if the first one refuses or cannot be used."""

    def resolve(host: str, port: int, **_options: Any) -> list[Any]:
        return [
            (9999, socket.SOCK_STREAM, 0, '', ('192.0.2.1', port)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, '', ('127.0.0.1', 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, '', ('127.0.0.1', port)),
        ]

    connection = open_socket('relay', smtp_server.port, 5, resolve=resolve)
    assert connection.getpeername() == ('127.0.0.1', smtp_server.port)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connection.close()
    with pytest.raises(OSError, match=r'192\.0\.2\.1: .*; 127\.0\.0\.1: Connection refused'):
        open_socket('relay', 1, 5, resolve=resolve)
    with pytest.raises(OSError, match='no address'):
        open_socket('relay', 1, 5, resolve=lambda *_names, **_options: [])
    with pytest.raises(OverflowError):
        open_socket('127.0.0.1', 65_536, 5, resolve=resolve)


@pytest.mark.finding(1, 108)
@pytest.mark.parametrize('code', [421, 450, 521, 554, 221, 354])
def test_greeting_other_than_220(smtp_server: ScriptedSMTPServer, code: int) -> None:
    """Another greeting makes the relay unavailable; only QUIT is sent."""
    smtp_server.script('connect', reply(code, 'not', 'today'))
    text = refused(mailer(smtp_server))
    assert f'the greeting: the relay answered {code} not today' in text
    smtp_server.wait_for(lambda server: 'QUIT' in server.verbs())
    assert smtp_server.verbs() == ['QUIT']


@pytest.mark.parametrize(
    'action',
    [
        drop(),
        reset(),
        reply_then_drop(421, 'x'),
        raw(b'SSH-2.0-x\r\n'),
        stream_forever(b'220-\r\n'),
    ],
)
def test_no_greeting(smtp_server: ScriptedSMTPServer, action: Action) -> None:
    """A closed connection, or another protocol, makes the relay unavailable."""
    smtp_server.script('connect', action)
    text = refused(mailer(smtp_server))
    # A reset may come before the connection is there.
    assert 'the greeting' in text or (action == reset() and 'connecting' in text)


@pytest.mark.finding(7)
def test_silent_relay(smtp_server: ScriptedSMTPServer) -> None:
    """A server that sends no greeting is given up after the time-out of the greeting, and nothing
    was sent to it."""
    smtp_server.script('connect', hang())
    assert 'the greeting: while waiting for a reply: timed out after 0.15 s' in refused(
        mailer(smtp_server, timeouts=SHORT)
    )
    assert smtp_server.raw(1) == b''
    assert not smtp_server.violations


def test_interrupted_while_connecting(
    smtp_server: ScriptedSMTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two replies leaves no open socket and sends nothing more."""

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Opening, '_hello', interrupt)
    with pytest.raises(KeyboardInterrupt):
        mailer(smtp_server).connect()
    smtp_server.stop()
    assert smtp_server.raw(1) == b''


@pytest.mark.parametrize(('tls', 'remedy'), [('auto', True), ('implicit', False)])
def test_port_465_needs_tls(
    relay: Start, tls_authority: TLSAuthority, tls: str, remedy: bool
) -> None:
    """A time-out at the greeting of port 465 says to write smtps:."""

    class Submissions(TCPAddress):
        def open(self, timeout: float) -> socket.socket:
            return open_socket(server.host, server.port, timeout)

    server = relay(tls='implicit' if tls == 'implicit' else 'none')
    server.script('connect', hang())
    mailer = make_mailer(
        Submissions('127.0.0.1', 465), tls=tls, ca_file=str(tls_authority.path), timeouts=SHORT
    )
    text = refused(mailer)
    assert 'the greeting: ' in text
    assert ('write smtps: in mail.url' in text) is remedy


@pytest.mark.parametrize('verb', ['EHLO', 'STARTTLS', 'AUTH'])
@pytest.mark.parametrize(
    'action',
    [reply(421, 'x'), drop(), reset(), raw(b'what\r\n'), stream_forever(), reply(550, 'x'),
     reply(454, 'x'), hang()],
)  # fmt: skip
def test_anything_wrong_before_mail(
    relay: Start, tls_authority: TLSAuthority, verb: str, action: Action
) -> None:
    """Whatever goes wrong before the first mail is MailerUnavailable and names its phase."""
    server = relay()
    server.script(verb, action)
    silent = action == hang()
    text = refused(
        mailer(
            server,
            ca_file=str(tls_authority.path),
            username=USER,
            password=PASSWORD,
            timeouts=Timeouts(command=0.3, quit=0.3) if silent else Timeouts().capped(10),
        )
    )
    assert verb in text
    assert 'MAIL' not in server.verbs()


@pytest.mark.parametrize('code', [500, 501, 502, 504])
def test_helo_for_an_old_relay(smtp_server: ScriptedSMTPServer, code: int) -> None:
    """HELO follows only four codes, and offers no extension."""
    smtp_server.script('EHLO', reply(code, 'what'))
    deliver(mailer(smtp_server))
    assert smtp_server.verbs()[:3] == ['EHLO', 'HELO', 'MAIL']
    assert smtp_server.messages[0].mail_arguments == ''
    assert not smtp_server.violations


def test_helo_refused(smtp_server: ScriptedSMTPServer) -> None:
    """If HELO is refused as well, the relay is unavailable."""
    smtp_server.script('EHLO', reply(502, 'what'))
    smtp_server.script('HELO', reply(550, 'who'))
    assert 'HELO: the relay answered 550 who' in refused(mailer(smtp_server))


def test_our_name_is_refused(smtp_server: ScriptedSMTPServer) -> None:
    """If EHLO and HELO are refused for their argument, the error names mail.hostname."""
    smtp_server.script('EHLO', reply(501, 'bad name'))
    smtp_server.script('HELO', reply(501, 'bad name'))
    text = refused(mailer(smtp_server))
    assert 'it does not accept our name web.example.org: see mail.hostname' in text
    assert 'lmtp:' not in text


def test_a_resolver_that_an_application_replaces(
    smtp_server: ScriptedSMTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``socket.getaddrinfo`` is looked up at each connection: monkey patches of it take effect."""
    place = (smtp_server.host, smtp_server.port)
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', place)]
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_arguments, **_options: found)
    SMTPMailer('relay.invalid', hostname='web.example.org').connect().close()
    assert smtp_server.verbs()[:1] == ['EHLO']


@pytest.mark.parametrize('code', [421, 503, 550, 554])
def test_ehlo_refused_otherwise(smtp_server: ScriptedSMTPServer, code: int) -> None:
    """HELO does not follow other refusals."""
    smtp_server.script('EHLO', reply(code, 'go', 'away'))
    text = refused(mailer(smtp_server))
    assert f'EHLO: the relay answered {code} go away' in text
    assert 'mail.hostname' in text
    assert 'HELO' not in smtp_server.verbs()


@pytest.mark.parametrize('hostname', ['web.example.org', 'localhost', '[192.0.2.1]', '[IPv6:::1]'])
def test_ehlo_name(smtp_server: ScriptedSMTPServer, hostname: str) -> None:
    """EHLO gives mail.hostname."""
    deliver(mailer(smtp_server, hostname=hostname))
    assert smtp_server.messages[0].helo == hostname


# TLS


@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
def test_private_authority(relay: Start, tls_authority: TLSAuthority, tls: Any) -> None:
    """With ca_file= of the relay's authority the session uses TLS."""
    server = relay(tls=tls)
    deliver(mailer(server, tls=tls, ca_file=str(tls_authority.path)))
    [message] = server.messages
    assert message.tls
    if tls == 'starttls':
        assert server.verbs()[:3] == ['EHLO', 'STARTTLS', 'EHLO']


@pytest.mark.finding(31, 115)
@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
@pytest.mark.parametrize('certificate', ['wrong_host', 'expired', 'untrusted', 'system'])
def test_bad_certificate(
    relay: Start, tls_authority: TLSAuthority, tls: Any, certificate: str
) -> None:
    """A bad certificate ends the attempt by default, with a remedy; plain text is never tried."""
    context = getattr(tls_authority, certificate)() if certificate != 'system' else None
    server = relay(tls=tls, **({'context': context} if context else {}))
    text = refused(
        mailer(
            server,
            tls='auto' if tls == 'starttls' else tls,
            ca_file=None if certificate == 'system' else str(tls_authority.path),
            username=USER,
            password=PASSWORD,
        )
    )
    assert 'certificate verify failed' in text
    advice = {'wrong_host': 'the name that its certificate', 'expired': 'renewed'}
    assert advice.get(certificate, '?ca_file=') in text
    server.wait_for(lambda server: server.tls_errors)
    assert set(server.verbs()) <= {'EHLO', 'STARTTLS'}
    assert server.connections == 1
    assert PASSWORD not in text


@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
def test_a_common_name_alone(relay: Start, tls_authority: TLSAuthority, tls: Any) -> None:
    """The right name as common name is no name (RFC 9525, 2), and the error says so."""
    server = relay(tls=tls, context=tls_authority.common_name())
    options = {'tls': tls, 'ca_file': str(tls_authority.path)}
    text = refused(mailer(server, host='localhost', **options))
    assert 'certificate verify failed' in text
    assert 'a common name alone does not count' in text


def test_old_tls_is_refused(relay: Start, tls_authority: TLSAuthority) -> None:
    """TLS 1.1 and older is refused."""
    assert client_context().minimum_version == ssl.TLSVersion.TLSv1_2
    context = tls_authority.context()
    with pytest.warns(DeprecationWarning, match='TLSv1_1'):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    server = relay(tls='implicit', context=context)
    assert 'TLS handshake' in refused(
        mailer(server, tls='implicit', ca_file=str(tls_authority.path))
    )


def test_client_certificate(relay: Start, tls_authority: TLSAuthority) -> None:
    """A relay that asks for our certificate gets it."""
    server = relay(tls='implicit', context=tls_authority.demanding())
    certificate = str(tls_authority.client_certificate())
    options = {'tls': 'implicit', 'ca_file': str(tls_authority.path)}
    deliver(mailer(server, **options, client_cert=certificate))
    deliver(mailer(server, **options, client_cert=certificate, client_key=certificate))
    with pytest.raises(MailerUnavailable):
        mailer(server, **options).connect()


@pytest.mark.finding(32)
def test_stripped_starttls(relay: Start) -> None:
    """If STARTTLS is not offered and there is a password, neither AUTH nor MAIL is sent."""
    server = relay(tls='none', context=None)
    text = refused(mailer(server, username=USER, password=PASSWORD))
    assert 'STARTTLS: the relay does not offer it' in text
    assert 'smtps:' in text
    assert 'smtp+insecure:' in text
    server.wait_for(lambda server: 'QUIT' in server.verbs())
    assert server.verbs() == ['EHLO', 'QUIT']


def test_demanded_starttls(relay: Start) -> None:
    """So with ?tls=required and no password."""
    server = relay(tls='none', context=None)
    assert 'STARTTLS' in refused(mailer(server, tls='starttls'))
    assert 'MAIL' not in server.verbs()


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost'])
def test_loopback_stays_plain(relay: Start, host: str) -> None:
    """STARTTLS is not used on a loopback address: its certificate protects nothing."""
    server = relay()
    deliver(mailer(server, host=host))
    assert not server.messages[0].tls
    assert 'STARTTLS' not in server.verbs()


def test_starttls_is_used_elsewhere(relay: Start, tls_authority: TLSAuthority) -> None:
    """STARTTLS is used where it is offered, on a host other than loopback."""

    class Elsewhere(TCPAddress):
        is_loopback = False

    server = relay()
    address = Elsewhere(server.host, server.port)
    deliver(make_mailer(address, ca_file=str(tls_authority.path)))
    assert server.messages[0].tls
    plain = relay(tls='none', context=None)
    deliver(make_mailer(Elsewhere(plain.host, plain.port)))
    assert not plain.messages[0].tls


@pytest.mark.finding(33)
def test_injected_behind_starttls(relay: Start, tls_authority: TLSAuthority) -> None:
    """Bytes that come with the 220 end the attempt; they are never taken for replies inside TLS."""
    server = relay()
    server.script('STARTTLS', raw(b'220 go\r\n250-relay\r\n250 AUTH PLAIN\r\n'))
    text = refused(
        mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    )
    assert 'more than its reply' in text
    assert server.verbs() == ['EHLO', 'STARTTLS']


def test_what_was_offered_before_tls_is_forgotten(
    relay: Start, tls_authority: TLSAuthority
) -> None:
    """Only the extensions offered inside TLS count."""
    server = relay(
        extensions=('SIZE 1', 'SMTPUTF8', '8BITMIME', 'AUTH PLAIN'),
        tls_extensions=(),
        auth_advertised='never',
    )
    options = {'ca_file': str(tls_authority.path), 'tls': 'starttls'}
    deliver(mailer(server, **options))
    assert server.messages[0].mail_arguments == ''
    text = refused(mailer(server, **options, username=USER, password=PASSWORD))
    assert 'AUTH: the relay does not offer it' in text
    assert 'mail.username' in text


def test_implicit_tls_to_a_plain_port(smtp_server: ScriptedSMTPServer) -> None:
    """smtps: to a port that greets in plain text says what to write instead."""
    text = refused(mailer(smtp_server, tls='implicit'))
    assert 'TLS handshake' in text
    assert 'write smtp: (STARTTLS)' in text


def test_silent_handshake(relay: Start) -> None:
    """A handshake that hangs is given up after its time-out."""
    server = relay(tls='implicit')
    server.script('TLS', hang())
    assert 'timed out after 0.15 s' in refused(mailer(server, tls='implicit', timeouts=SHORT))


def test_handshake_that_ends(relay: Start) -> None:
    """A relay that closes during the handshake is unavailable."""
    server = relay(tls='implicit')
    server.script('TLS', drop())
    text = refused(mailer(server, tls='implicit'))
    assert 'TLS handshake' in text


def test_remedies() -> None:
    """An error of another kind has no remedy."""
    assert remedy(OSError('x')) == ''
    assert remedy(ssl.SSLError(1, 'x')) == ''


@pytest.mark.parametrize(
    ('host', 'loopback'),
    [
        ('127.0.0.1', True),
        ('127.9.9.9', True),
        ('::1', True),
        ('LocalHost.', True),
        ('192.0.2.1', False),
        ('localhost.example.org', False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Loopback is an address or the name localhost; no name is resolved."""
    assert TCPAddress(host, 25).is_loopback is loopback


# Credentials


@pytest.mark.finding(41)
@pytest.mark.parametrize('mechanisms', ['PLAIN LOGIN', 'CRAM-MD5 LOGIN PLAIN', 'LOGIN'])
def test_credentials(relay: Start, tls_authority: TLSAuthority, mechanisms: str) -> None:
    """PLAIN, else LOGIN, in UTF-8, inside TLS only, whatever else is offered."""
    server = relay(auth_mechanisms=tuple(mechanisms.split()), auth_required=True)
    deliver(mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD))
    assert server.messages[0].authenticated_as == USER
    [command] = [line for _, verb, line in server.commands if verb == 'AUTH']
    assert command.split()[1] == ('PLAIN' if 'PLAIN' in mechanisms else 'LOGIN')


def test_long_password(relay: Start, tls_authority: TLSAuthority) -> None:
    """A response that is too long for the command follows the challenge."""
    token = 'x' * 2000
    server = relay(auth={USER: token}, auth_mechanisms=('PLAIN',))
    deliver(mailer(server, ca_file=str(tls_authority.path), username=USER, password=token))
    assert [line for _, verb, line in server.commands if verb == 'AUTH'] == ['AUTH PLAIN']


@pytest.mark.finding(41)
@pytest.mark.parametrize('code', [501, 503, 530, 534, 535, 538, 432, 454])
@pytest.mark.parametrize('mechanisms', [('PLAIN', 'LOGIN'), ('LOGIN',)])
def test_one_attempt(
    relay: Start, tls_authority: TLSAuthority, code: int, mechanisms: tuple[str, ...]
) -> None:
    """A refusal is final for this connection; no other mechanism is tried."""
    server = relay(auth_mechanisms=mechanisms)
    server.script('AUTH', reply(code, 'no', 'thanks'))
    text = refused(
        mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    )
    assert f'AUTH {mechanisms[0]}: the relay answered {code} no thanks' in text
    assert ('mail.username and mail.password' in text) is (code >= 500)
    assert server.verbs().count('AUTH') == 1
    assert 'MAIL' not in server.verbs()


@pytest.mark.parametrize('code', [500, 502, 504])
def test_an_unknown_mechanism(relay: Start, tls_authority: TLSAuthority, code: int) -> None:
    """A relay that lists a mechanism and does not know it is asked by the next one: no password
    was guessed. If there is no other, the refusal is final."""
    server = relay(auth_mechanisms=('PLAIN', 'LOGIN'))
    server.always('AUTH', reply(code, '5.5.4 unknown'), match='AUTH PLAIN')
    deliver(mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD))
    assert server.verbs().count('AUTH') == 2
    server = relay(auth_mechanisms=('LOGIN',))
    server.script('AUTH', reply(code, '5.5.4 unknown'))
    text = refused(
        mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    )
    assert f'AUTH LOGIN: the relay answered {code} 5.5.4 unknown' in text
    assert server.verbs().count('AUTH') == 1


def test_asked_again(relay: Start, tls_authority: TLSAuthority) -> None:
    """A relay that asks for what stood behind AUTH PLAIN gets it."""
    server = relay(auth_mechanisms=('PLAIN',))
    server.script('AUTH', reply(334, ''))
    text = refused(
        mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    )
    lines = server.raw(1).split(b'\r\n')
    response = next(line for line in lines if line.startswith(b'AUTH PLAIN ')).split()[2]
    assert lines[lines.index(b'AUTH PLAIN ' + response) + 1] == response
    assert response.decode() not in text


def test_wrong_password(relay: Start, tls_authority: TLSAuthority) -> None:
    """A wrong password names the two settings and shows neither value."""
    server = relay()
    text = refused(mailer(server, ca_file=str(tls_authority.path), username=USER, password='wr0ng'))
    assert '535' in text
    assert 'see mail.username and mail.password' in text
    assert 'wr0ng' not in text


def test_nothing_in_common(relay: Start, tls_authority: TLSAuthority) -> None:
    """A relay with other mechanisms only is named with them."""
    server = relay(auth_mechanisms=('CRAM-MD5', 'GSSAPI'))
    text = refused(
        mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    )
    assert 'offers CRAM-MD5 GSSAPI, and not PLAIN or LOGIN' in text
    assert 'AUTH' not in server.verbs()


def test_auth_without_a_mechanism(relay: Start, tls_authority: TLSAuthority) -> None:
    """A relay that lists AUTH with no mechanism is said to offer none."""
    server = relay(tls_extensions=('AUTH',), auth_advertised='never')
    text = refused(
        mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    )
    assert 'the relay offers no mechanism, and not PLAIN or LOGIN' in text


def test_starttls_is_demanded_at_auth(relay: Start) -> None:
    """A relay that demands STARTTLS of smtp+insecure: is no reason to look at the password."""
    server = relay(tls='none', context=None)
    server.script('AUTH', reply(530, '5.7.0 Must issue a STARTTLS command first'))
    text = refused(mailer(server, tls='none', insecure=True, username=USER, password=PASSWORD))
    assert 'the relay demands TLS: add ?tls=required to mail.url' in text
    assert 'mail.username' not in text


def test_old_spelling_of_auth(relay: Start, tls_authority: TLSAuthority) -> None:
    """AUTH=LOGIN, beside AUTH or instead, is understood."""
    server = relay(tls_extensions=('AUTH=LOGIN', 'AUTH CRAM-MD5'), auth_advertised='never')
    server.script('AUTH', reply(334, 'VXNlcm5hbWU6', then=drop()))
    text = refused(
        mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    )
    assert 'closed' in text
    assert [line for _, verb, line in server.commands if verb == 'AUTH'] == ['AUTH LOGIN']


def test_endless_challenges() -> None:
    """A relay that sends one challenge after the other gets one cancellation."""
    exchange = Credentials('ann', 'secret').exchange('LOGIN')
    written = [next(exchange)]
    challenge = Reply(334, '')
    written += [exchange.send(challenge) for _ in range(3)]
    with pytest.raises(StopIteration) as end:
        exchange.send(challenge)
    assert end.value.value == challenge
    assert written == ['AUTH LOGIN', 'YW5u', 'c2VjcmV0', '*']


def test_mechanisms() -> None:
    """The supported mechanisms that the relay offers are chosen, in our order."""
    spoken = Credentials.mechanisms
    assert choose_mechanisms('LOGIN PLAIN', spoken) == ['PLAIN', 'LOGIN']
    assert choose_mechanisms('xoauth2 login', spoken) == ['LOGIN']
    assert choose_mechanisms('XOAUTH2', spoken) == []
    assert choose_mechanisms('', spoken) == []


def secrets() -> list[str]:
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    return [PASSWORD, encoded(PASSWORD), encoded(f'\0{USER}\0{PASSWORD}')]


@pytest.mark.finding(40)
@pytest.mark.parametrize('mechanisms', [('PLAIN',), ('LOGIN',)])
def test_secrets_are_nowhere(
    relay: Start,
    tls_authority: TLSAuthority,
    mechanisms: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither logs nor repr nor errors show the password or its base64, even if the relay repeats
    them."""
    caplog.set_level(logging.DEBUG)
    server = relay(auth_mechanisms=mechanisms)
    sender = mailer(server, ca_file=str(tls_authority.path), username=USER, password=PASSWORD)
    deliver(sender)
    server.script('AUTH', reply(535, f'do not know {" ".join(secrets())}'))
    with pytest.raises(MailerUnavailable) as caught:
        sender.connect()
    seen = f'{caught.value!r} {caught.value} {sender!r} {sender.name} {caplog.text}'
    seen += repr(Credentials(USER, PASSWORD))
    assert 'do not know *** *** ***' in seen
    for secret in secrets():
        assert secret not in seen


def test_insecure_by_name_only(relay: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A password is sent in plain text only with smtp+insecure:, which logs a warning."""
    server = relay(auth_required=True)
    insecure = mailer(server, tls='none', insecure=True, username=USER, password=PASSWORD)
    assert 'plain text' in caplog.text
    assert 'mail and password are sent in plain text' in caplog.text
    assert len(caplog.records) == 1
    assert insecure.name.startswith('smtp+insecure://')
    deliver(insecure)
    assert not server.messages[0].tls
    assert server.messages[0].authenticated_as == USER
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'hostname': 'a b'}, 'mail.hostname'),
        ({'hostname': 'a\r\nQUIT'}, 'mail.hostname'),
        ({'username': 'ann'}, 'mail.password'),
        ({'password': 'x'}, 'mail.username'),
        ({'username': 'a\0b', 'password': 's3cret'}, 'NUL'),
        ({'username': 'ann', 'password': 's3cret', 'tls': 'none'}, r'smtp\+insecure:'),
        ({'insecure': True}, 'insecure'),
        ({'ca_file': '/nowhere/ca.pem'}, r'ca_file=/nowhere/ca\.pem cannot be used: No such file'),
        ({'ca_file': __file__}, 'ca_file=.* cannot be used: no PEM file'),
        ({'client_cert': '/nowhere.pem'}, r'client_cert=/nowhere\.pem cannot be used'),
        ({'client_cert': __file__}, 'client_cert=.* no PEM file'),
        ({'client_cert': __file__, 'client_key': '/k'}, 'client_key=/k cannot be used'),
        ({'client_key': '/k'}, 'client_key= needs client_cert='),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], text: str) -> None:
    """Contradictions and missing files are errors at once, by the name of the setting."""
    with pytest.raises(ValueError, match=text) as caught:
        make_mailer('relay', 25, **({'hostname': 'x'} | options))
    assert 's3cret' not in str(caught.value)


def test_encrypted_key(tmp_path: Path, tls_authority: TLSAuthority) -> None:
    """A key with a pass phrase is an error; no prompt appears at the terminal."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b'pass phrase'),
    )
    path = tmp_path / 'key.pem'
    path.write_bytes(key)
    with pytest.raises(ValueError, match='without a pass phrase'):
        client_context(client_cert=str(tls_authority.client_certificate()), client_key=str(path))


@pytest.mark.parametrize(
    ('host', 'options', 'name'),
    [
        ('relay.example.org', {}, 'smtp://relay.example.org:25'),
        ('relay.example.org', {'tls': 'implicit', 'port': 465}, 'smtps://relay.example.org:465'),
        ('2001:db8::25', {}, 'smtp://[2001:db8::25]:25'),
        ('relay', {'username': 'ann', 'password': 's3cret'}, 'smtp://relay:25'),
    ],
)
def test_names(host: str, options: dict[str, Any], name: str) -> None:
    """A mailer's name is its URL, without credentials."""
    made = make_mailer(host, hostname='x', **options)
    assert made.name == name
    assert repr(made) == f'<SMTPMailer {name}>'
