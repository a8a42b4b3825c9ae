"""TLS to a relay: which certificates are trusted, and that nothing is sent in plain text after a
failure."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.address import TCPAddress, open_socket
from pyramid_sendmail.mailers.smtp.connection import SMTPConnection
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import TLSOptions
from pyramid_sendmail.mailers.smtp.tls import ReloadingContext, client_context, remedy
from tests.support.sessions import deliver, make_mailer, refused
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    Session,
    TLSAuthority,
    drop,
    raw,
    reply,
    reset,
)

Start = Callable[..., ScriptedSMTPServer]

HELLO = b'EHLO web.example.org\r\n'

ALERT, HANDSHAKE = b'\x15', b'\x16'  # how a record of TLS begins (RFC 8446, 5.1)

INJECTED = b'220 2.0.0 ready\r\n250-relay.example.org\r\n250 AUTH PLAIN\r\n'


class NearbyAddress(TCPAddress):
    """Connects to 127.0.0.1, whatever its host is."""

    def open(self, timeout: float) -> socket.socket:
        return open_socket('127.0.0.1', self.port, 5)


def nearby(
    server: ScriptedSMTPServer, host: str = 'relay.example.org', **options: Any
) -> SMTPMailer:
    """Make a mailer to a server of this machine under another host name."""
    return make_mailer(NearbyAddress(host, server.port), **options)


@pytest.fixture
def relay(start_checked_server: Start, tls_authority: TLSAuthority) -> Start:
    """Start a server with STARTTLS, for relay.example.org and 127.0.0.1."""
    context = tls_authority.context('relay.example.org', '127.0.0.1')
    return partial(start_checked_server, tls='starttls', context=context)


# No way back to plain text


def answer_in_clear(session: Session) -> Action:
    """Reply in plain text after the client has begun its handshake."""
    session.channel.fill()
    return raw(b'454 no TLS today\r\n')


@pytest.mark.finding(115)
@pytest.mark.parametrize('tls', ['starttls', 'implicit', 'auto'])
@pytest.mark.parametrize('failure', ['untrusted', drop(), reset(), answer_in_clear])
def test_no_fallback_after_a_failed_handshake(
    relay: Start, tls_authority: TLSAuthority, tls: Any, failure: str | Action
) -> None:
    """After a failed handshake the attempt is over: no second connection and no more plain text,
    even if TLS was optional."""
    options: dict[str, Any] = {'tls': 'implicit' if tls == 'implicit' else 'starttls'}
    if failure == 'untrusted':
        options['context'] = tls_authority.untrusted()
    server = relay(**options)
    if not isinstance(failure, str):
        server.script('TLS', failure)
    text = refused(nearby(server, tls=tls, ca_file=str(tls_authority.path)))
    # A reset may come before the connection is there.
    assert 'STARTTLS' in text if tls != 'implicit' else 'handshake' in text or 'connecting' in text
    assert 'instead of smtps:' not in text or tls == 'implicit'
    server.wait_for(lambda server: not server.open_connections)
    assert server.connections == 1
    received = server.raw(1)
    if tls != 'implicit':
        assert received.startswith(HELLO + b'STARTTLS\r\n')
        received = received.removeprefix(HELLO + b'STARTTLS\r\n')
    assert received[:1] in (b'', ALERT, HANDSHAKE)


@pytest.mark.finding(33)
def test_injected_in_every_split(relay: Start, tls_authority: TLSAuthority) -> None:
    """Replies injected after the 220 are never taken for the relay's, wherever their segments end:
    no session, and no more bytes."""
    server = relay(auth={'ann': 'secret'})
    mailer = nearby(server, ca_file=str(tls_authority.path), username='ann', password='secret')
    for place in range(1, len(INJECTED)):
        server.script('STARTTLS', raw(INJECTED[:place], then=raw(INJECTED[place:])))
        assert 'STARTTLS: ' in refused(mailer)
    server.wait_for(lambda server: not server.open_connections)
    for number in range(1, len(INJECTED)):
        assert server.raw(number) == HELLO + b'STARTTLS\r\n'
    server.reset_script()
    deliver(mailer)


@pytest.mark.finding(115, 116)
def test_offers_inside_tls_count(relay: Start, tls_authority: TLSAuthority) -> None:
    """Only what is offered after the handshake is used."""
    server = relay(
        extensions=(),
        tls_extensions=('SIZE 99999',),
        auth={'ann': 'secret'},
        auth_advertised='tls',
        auth_required=True,
    )
    deliver(nearby(server, ca_file=str(tls_authority.path), username='ann', password='secret'))
    [message] = server.messages
    assert message.mail_arguments.startswith('SIZE=')
    assert message.authenticated_as == 'ann'


@pytest.mark.parametrize('code', [421, 454, 501, 502, 550])
def test_starttls_refused(relay: Start, tls_authority: TLSAuthority, code: int) -> None:
    """A relay that offers STARTTLS and then refuses it gets no mail, even if TLS was optional (RFC
    3207, 4)."""
    server = relay()
    server.script('STARTTLS', reply(code, 'not now'))
    text = refused(nearby(server, ca_file=str(tls_authority.path)))
    assert f'STARTTLS: the relay answered {code} not now' in text
    server.wait_for(lambda server: not server.open_connections)
    assert server.raw(1) == HELLO + b'STARTTLS\r\nQUIT\r\n'


def test_reset_before_the_handshake(tls_authority: TLSAuthority) -> None:
    """A connection that was reset before the handshake is closed and reported; it does not go on
    without TLS."""
    with socket.create_server(('127.0.0.1', 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        theirs.close()
    connection = SMTPConnection(ours, block_timeout=1)
    context = client_context(ca_file=str(tls_authority.path))
    with pytest.raises(ConnectionResetError, match='Connection reset by peer'):
        connection.start_tls(context, 'relay.example.org', 1)
    assert connection.lost
    assert not connection.secure
    connection.close()
    gc.collect()


# Who is at the other end


@pytest.mark.finding(115)
@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
@pytest.mark.parametrize(
    ('host', 'asked'),
    [
        ('relay.example.org', 'relay.example.org'),
        ('relay.example.org.', 'relay.example.org'),
        ('xn--bcher-kva.example', 'xn--bcher-kva.example'),
        ('bücher.example', 'xn--bcher-kva.example'),
        ('192.0.2.25', None),
        ('2001:db8::25', None),
    ],
)
def test_name_of_the_relay(
    relay: Start, tls_authority: TLSAuthority, tls: Any, host: str, asked: str | None
) -> None:
    """The certificate must be for the host of mail.url, be it a name, an international one or an
    address; a name is sent as SNI, an address is not (RFC 6066, 3)."""
    seen: list[str | None] = []
    context = tls_authority.context(asked or host)
    context.sni_callback = lambda _tls, name, _context: seen.append(name)
    server = relay(tls=tls, context=context)
    deliver(nearby(server, host, tls=tls, ca_file=str(tls_authority.path)))
    assert seen == [asked]
    server.context = tls_authority.context(
        '192.0.2.26', '2001:db8::26', 'example.org', 'xn--bcher-kva.example.net'
    )
    text = refused(nearby(server, host, tls=tls, ca_file=str(tls_authority.path)))
    assert 'write the name that its certificate carries' in text


@pytest.mark.finding(115)
@pytest.mark.parametrize('version', ['TLSv1', 'TLSv1_1'])
@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
def test_old_tls(relay: Start, tls_authority: TLSAuthority, tls: Any, version: str) -> None:
    """TLS 1.0 and 1.1 are refused, with a relay that supports nothing else."""
    context = tls_authority.context('relay.example.org', '127.0.0.1')
    old(context, version)
    server = relay(tls=tls, context=context)
    text = refused(nearby(server, tls=tls, ca_file=str(tls_authority.path)))
    assert 'it must speak TLS 1.2 or newer' in text
    server.wait_for(lambda server: len(server.tls_errors) == 1)
    if tls == 'implicit':
        careless = client_context(ca_file=str(tls_authority.path))
        old(careless, version)
        with (
            socket.create_connection((server.host, server.port), timeout=5) as plain,
            careless.wrap_socket(plain, server_hostname='relay.example.org') as secure,
        ):
            assert secure.version() == version.replace('_', '.')


def old(context: ssl.SSLContext, version: str) -> None:
    """Make a context support this version only."""
    context.set_ciphers('ALL:@SECLEVEL=0')
    with pytest.warns(DeprecationWarning, match=version):
        context.minimum_version = ssl.TLSVersion[version]
    with pytest.warns(DeprecationWarning, match=version):
        context.maximum_version = ssl.TLSVersion[version]


# Who we are


@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize('certificate', ['none', 'of others'])
def test_wrong_client_certificate(
    relay: Start,
    tls_authority: TLSAuthority,
    tmp_path: Path,
    tls: Any,
    version: ssl.TLSVersion,
    certificate: str,
) -> None:
    """A relay that refuses our certificate does so in the handshake, or by TLS 1.3 after it; both
    times it is unavailable, and the option is named."""
    context = tls_authority.demanding()
    context.maximum_version = version
    server = relay(tls=tls, context=context)
    options: dict[str, Any] = {'ca_file': str(tls_authority.path)}
    if certificate == 'of others':
        options['client_cert'] = str(TLSAuthority(tmp_path).client_certificate())
    text = refused(nearby(server, '127.0.0.1', tls=tls, **options))
    assert 'see client_cert= in mail.url' in text
    assert not server.messages


def seen_certificates(server: ScriptedSMTPServer) -> list[str]:
    """Return the names in the certificates of the clients that send EHLO inside TLS."""
    seen: list[str] = []

    def scan(session: Session) -> None:
        tls = session.channel._tls
        certificate = tls.getpeercert() if tls is not None else None
        seen.append(dict(certificate['subjectAltName'])['DNS'] if certificate else '')

    server.always('EHLO', scan)
    return seen


def renew(path: Path, source: Path) -> None:
    """Replace a file by rename, as renewal programs do."""
    shutil.copy(source, f'{path}.new')
    os.replace(f'{path}.new', path)


def test_client_certificate_is_renewed(
    relay: Start, tls_authority: TLSAuthority, tmp_path: Path
) -> None:
    """The next connection uses files that were replaced, without a restart: our certificate, and
    the authorities."""
    certificate, authorities = tmp_path / 'client.pem', tmp_path / 'ca.pem'
    renew(certificate, tls_authority.client_certificate('first.example.org'))
    renew(authorities, tls_authority.path)
    server = relay(tls='implicit', context=tls_authority.demanding())
    seen = seen_certificates(server)
    mailer = nearby(
        server,
        '127.0.0.1',
        tls='implicit',
        ca_file=str(authorities),
        client_cert=str(certificate),
    )
    deliver(mailer)
    renew(certificate, tls_authority.client_certificate('second.example.org'))
    deliver(mailer)
    deliver(mailer)
    assert seen == ['first.example.org', 'second.example.org', 'second.example.org']
    (tmp_path / 'elsewhere').mkdir()
    renew(authorities, TLSAuthority(tmp_path / 'elsewhere').path)
    assert 'certificate verify failed' in refused(mailer)


def test_half_renewed(
    relay: Start, tls_authority: TLSAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate without its new key, or a missing file, is warned of once; the former files are
    used until it is complete."""
    certificate, key = tmp_path / 'client.pem', tmp_path / 'key.pem'
    first = tls_authority.client_certificate('first.example.org')
    second = tls_authority.client_certificate('second.example.org')
    renew(certificate, first)
    renew(key, first)
    server = relay(tls='implicit', context=tls_authority.demanding())
    seen = seen_certificates(server)
    mailer = nearby(
        server,
        '127.0.0.1',
        tls='implicit',
        ca_file=str(tls_authority.path),
        client_cert=str(certificate),
        client_key=str(key),
    )
    renew(certificate, second)
    deliver(mailer)
    deliver(mailer)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f'client_cert={certificate}, client_key={key} cannot be used' in record.getMessage()
    renew(key, second)
    deliver(mailer)
    key.unlink()
    deliver(mailer)
    assert 'No such file' in caplog.records[1].getMessage()
    assert len(caplog.records) == 2
    assert seen == ['first.example.org'] * 2 + ['second.example.org'] * 2


def test_nothing_new_costs_nothing(tls_authority: TLSAuthority, tmp_path: Path) -> None:
    """A context is made once, as long as its files are the same."""
    authorities = tmp_path / 'ca.pem'
    renew(authorities, tls_authority.path)
    trust = ReloadingContext(TLSOptions(ca_file=str(authorities), client_cert=None))
    before = trust.context()
    assert trust.context() is before
    renew(authorities, tls_authority.path)
    after = trust.context()
    assert after is not before
    assert trust.context() is after


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Run as another user than root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_key_that_we_may_not_read(tls_authority: TLSAuthority, tmp_path: Path) -> None:
    """A key that cannot be read is an error at start-up, with the option and the file."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    certificate, key = tmp_path / 'client.pem', tmp_path / 'key.pem'
    for path in (certificate, key):
        renew(path, tls_authority.client_certificate())
    certificate.chmod(0o644)
    key.chmod(0)
    with (
        ordinary_user(),
        pytest.raises(ValueError, match=f'client_key={key} cannot be used: Permission denied'),
    ):
        client_context(client_cert=str(certificate), client_key=str(key))


# What to do about it


@pytest.mark.parametrize(
    ('reason', 'words'),
    [
        ('WRONG_VERSION_NUMBER', 'write smtp: (STARTTLS) instead of smtps:'),
        ('RECORD_LAYER_FAILURE', 'write smtp: (STARTTLS) instead of smtps:'),
        ('TLSV1_ALERT_PROTOCOL_VERSION', 'TLS 1.2 or newer'),
        ('TLSV13_ALERT_CERTIFICATE_REQUIRED', 'client_cert='),
        ('SSLV3_ALERT_CERTIFICATE_EXPIRED', 'client_cert='),
        ('TLSV1_ALERT_UNKNOWN_CA', 'client_cert='),
        ('TLSV1_ALERT_INTERNAL_ERROR', ''),
    ],
)
def test_remedies(reason: str, words: str) -> None:
    """Each of OpenSSL's names for an error has its remedy; another scheme is none for a relay that
    has shown TLS."""
    error = ssl.SSLError(1, 'x')
    error.reason = reason
    assert words in remedy(error)
    assert bool(remedy(error)) is bool(words)
    assert 'smtps:' not in remedy(error, speaks_tls=True)


def test_lmtp_has_no_smtps(start_smtp_server: Start) -> None:
    """The remedy for a password without TLS names what LMTP has."""
    server = start_smtp_server(lmtp=True)
    with pytest.raises(MailerUnavailable) as caught:
        make_mailer(
            server.host, server.port, kind=LMTPMailer, username='ann', password='s3cret'
        ).connect()
    assert 'have it offer STARTTLS, or use lmtp+unix:' in str(caught.value)
    assert 'smtp' not in str(caught.value)
    assert 'AUTH' not in server.verbs()
