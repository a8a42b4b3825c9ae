"""From the greeting to the first mail: replies and TLS handshakes."""

from __future__ import annotations

import pytest

from pyramid_sendmail.mailers.smtp.options import Timeouts
from tests.support.smtp.drains import make_mailer

TIMEOUTS = Timeouts(connect=1, greeting=2, command=3, data=4, block=5, final=6, quit=7)

SECRETS = {'username': 'ann', 'password': 'gehe1m', 'tls': 'starttls'}


def test_timeouts_of_handshakes() -> None:
    """The wait for a handshake has the time-out of its phase."""
    for mode, seconds in (('implicit', TIMEOUTS.greeting), ('starttls', TIMEOUTS.command)):
        client = make_mailer('PIPELINING', tls=mode, timeouts=TIMEOUTS).client()
        if mode == 'starttls':
            for reply in (b'220 a\r\n', b'250-a\r\n250 STARTTLS\r\n', b'220 b\r\n'):
                client.receive_data(reply)
        assert client.handshake is not None
        assert client.handshake.timeout == seconds
        assert client.timeout == seconds
        client.timed_out()
        assert f'timed out after {seconds} s' in str(client.error)


@pytest.mark.parametrize(
    'more', [b'2', b'250 early\r\n', b'250-relay\r\n250 AUTH PLAIN\r\n', b'\n']
)
@pytest.mark.parametrize('apart', [False, True])
def test_bytes_before_the_handshake(more: bytes, apart: bool) -> None:
    """Bytes behind the reply to STARTTLS are an attacker's (CVE-2011-0411): no handshake, and no
    secret is sent."""
    client = make_mailer('PIPELINING', **SECRETS).client()
    client.receive_data(b'220 a\r\n')
    client.data_to_send()
    client.receive_data(b'250-a\r\n250 STARTTLS\r\n')
    assert client.data_to_send() == b'STARTTLS\r\n'
    for data in (b'220 go ahead\r\n', more) if apart else (b'220 go ahead\r\n' + more,):
        client.receive_data(data)
    assert client.handshake is None
    assert 'more than its reply before the TLS handshake' in str(client.error)
    assert client.data_to_send() == b''
    assert not client.may_quit


def test_nothing_of_before_the_handshake_counts() -> None:
    """After the handshake the relay says anew what it offers (RFC 3207, 4.2)."""
    client = make_mailer('PIPELINING', **SECRETS).client()
    for reply in (b'220 a\r\n', b'250-a\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n', b'220 go\r\n'):
        client.receive_data(reply)
        client.data_to_send()
    client.tls_started('TLSv1.3')
    assert client.data_to_send() == b'EHLO web.example.org\r\n'
    client.receive_data(b'250 a\r\n')
    assert 'AUTH: the relay does not offer it' in str(client.error)


@pytest.mark.parametrize('second', [b'220 again\r\n', b'250 ok\r\n', b'250-PIPELINING\r\n', b'3'])
def test_replies_before_their_commands(second: bytes) -> None:
    """A reply that comes before its command counts as a lost connection: each later reply would be
    taken for that to the command before."""
    client = make_mailer('PIPELINING').client()
    client.receive_data(b'220 hello\r\n' + second)
    assert 'the greeting' not in str(client.error)
    assert 'EHLO: the relay sent more replies than it got commands' in str(client.error)
    assert client.data_to_send() == b''
    assert not client.may_quit


def test_refusal_before_its_command() -> None:
    """A relay may say at any time that it closes (RFC 5321, 3.8), and that is the error."""
    client = make_mailer('PIPELINING').client()
    client.receive_data(b'220 hello\r\n421 4.3.2 shutting down\r\n')
    assert 'EHLO: the relay answered 421 4.3.2 shutting down' in str(client.error)
