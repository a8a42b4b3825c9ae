"""Passwords and tokens: what they may hold, when they are sent, and where they must not be
shown."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.authentication import Bearer, Credentials
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from tests.support.sessions import deliver, make_mailer, refused
from tests.support.smtp.server import ScriptedSMTPServer, TLSAuthority, reply, reply_then_drop

Start = Callable[..., ScriptedSMTPServer]

USER, PASSWORD, TOKEN = 'ann@example.org', 'gehe1m', 'ya29.a0Af_H6'

BEFORE = ['EHLO', 'STARTTLS', 'EHLO', 'AUTH']

NEVER_ENDING = b64encode(b'[' * 3_000).decode()


@pytest.fixture
def relay(start_checked_server: Start, tls_authority: TLSAuthority) -> Start:
    """Start a server that offers STARTTLS and demands AUTH."""
    return partial(
        start_checked_server,
        tls='starttls',
        context=tls_authority.context(),
        auth={USER: PASSWORD},
        auth_required=True,
    )


@pytest.fixture
def mailer(tls_authority: TLSAuthority) -> Callable[..., SMTPMailer]:
    """Make a mailer that authenticates."""

    def make(server: ScriptedSMTPServer, **options: Any) -> SMTPMailer:
        if 'token' not in options:
            options.setdefault('password', PASSWORD)
        return make_mailer(
            server.host,
            server.port,
            ca_file=str(tls_authority.path),
            **{'username': USER, **options},
        )

    return make


Make = Callable[..., SMTPMailer]


# What they may hold


@pytest.mark.finding(40, 41)
@pytest.mark.parametrize('mechanism', ['PLAIN', 'LOGIN'])
@pytest.mark.parametrize(
    'password',
    [
        ' before',
        'behind ',
        'in the middle',
        '100%',
        '%s%(here)s%40',
        '#;=:/?@',
        '"quoted"\\',
        'Zwölf Boxkämpfer ☃',
        '𝄞',
        'a\tb\r\nQUIT',
        '*',
        '=',
    ],
)
def test_any_password(relay: Start, mailer: Make, mechanism: str, password: str) -> None:
    """Any password arrives as it was given, and so does the user name (RFC 4616, 2)."""
    user = f'zoë {password}'
    server = relay(auth={user: password}, auth_mechanisms=(mechanism,))
    deliver(mailer(server, username=user, password=password))
    assert server.messages[0].authenticated_as == user


@pytest.mark.parametrize('length', [50, 337, 338, 355, 356, 2_000, 9_000])
def test_any_length(relay: Start, mailer: Make, length: int) -> None:
    """A response that has no room in a command of 512 bytes follows in a line of its own (RFC 4954,
    4), to the byte."""
    secret = 'x' * length
    server = relay(auth={USER: secret}, auth_mechanisms=('PLAIN', 'XOAUTH2'))
    deliver(mailer(server, password=secret))
    deliver(mailer(server, token=lambda: secret))
    sent = [line for _, verb, line in server.commands if verb == 'AUTH']
    plain = b64encode(f'\0{USER}\0{secret}'.encode()).decode()
    plain = f'AUTH PLAIN {plain}'
    bearer = b64encode(f'user={USER}\1auth=Bearer {secret}\1\1'.encode()).decode()
    bearer = f'AUTH XOAUTH2 {bearer}'
    assert sent == [
        plain if len(plain) <= 510 else 'AUTH PLAIN',
        bearer if len(bearer) <= 510 else 'AUTH XOAUTH2',
    ]
    assert (len(plain) <= 510) is (length <= 355)
    assert (len(bearer) <= 510) is (length <= 337)


# When they are sent


@pytest.mark.finding(116)
@pytest.mark.parametrize(
    'offers',
    [
        ('AUTH=LOGIN PLAIN', 'AUTH LOGIN PLAIN'),
        ('AUTH LOGIN', 'AUTH=PLAIN'),
        ('AUTH CRAM-MD5', 'AUTH LOGIN PLAIN'),
        ('auth=login plain',),
        ('Auth login',),
    ],
    ids=str,
)
def test_offered_twice(relay: Start, mailer: Make, offers: tuple[str, ...]) -> None:
    """Mechanisms count that are offered in two lines, or in the old spelling."""
    server = relay(tls_extensions=offers, auth_advertised='never')
    deliver(mailer(server))
    [command] = [line for _, verb, line in server.commands if verb == 'AUTH']
    wanted = 'PLAIN' if any('plain' in offer.lower() for offer in offers) else 'LOGIN'
    assert command.split()[1] == wanted


@pytest.mark.finding(41, 116)
@pytest.mark.parametrize('code', [432, 454, 500, 503, 504, 530, 534, 535, 538])
@pytest.mark.parametrize('mechanism', ['PLAIN', 'LOGIN', 'XOAUTH2'])
def test_codes(relay: Start, mailer: Make, code: int, mechanism: str) -> None:
    """Any refusal, 503 among them, ends the attempt with one AUTH and QUIT; a permanent one names
    the settings."""
    server = relay(auth_mechanisms=(mechanism, 'GSSAPI'))
    server.script('AUTH', reply(code, '5.7.0 no'))
    secret = {'token': lambda: TOKEN} if mechanism == 'XOAUTH2' else {'password': PASSWORD}
    text = refused(mailer(server, **secret))
    assert f'AUTH {mechanism}: the relay answered {code} 5.7.0 no' in text
    names = 'token_file= or token=' if mechanism == 'XOAUTH2' else 'mail.username and mail.password'
    assert (names in text) is (code >= 500)
    server.wait_for(lambda server: not server.open_connections)
    assert server.verbs() == [*BEFORE, 'QUIT']
    assert server.connections == 1


@pytest.mark.finding(109)
def test_421_is_the_end(relay: Start, mailer: Make) -> None:
    """A relay that closes at AUTH gets no second attempt."""
    server = relay()
    server.script('AUTH', reply_then_drop(421, '4.3.2 closing'))
    assert 'AUTH PLAIN: the relay answered 421' in refused(mailer(server))
    server.wait_for(lambda server: not server.open_connections)
    assert set(server.verbs()) <= {*BEFORE, 'QUIT'}
    assert server.connections == 1


def test_the_second_line_is_refused(relay: Start, mailer: Make) -> None:
    """LOGIN: if the user name is refused, the password is not sent."""
    server = relay(auth_mechanisms=('LOGIN',))
    server.script('AUTH', reply(334, 'VXNlcm5hbWU6'), reply(535, '5.7.8 who?'))
    assert 'AUTH LOGIN: the relay answered 535 5.7.8 who?' in refused(mailer(server))
    responses = [line for _, verb, line in server.commands if verb == 'response']
    assert responses == [b64encode(USER.encode()).decode()]


def test_token_is_not_asked_for_in_vain(relay: Start, mailer: Make) -> None:
    """No token is fetched for a relay without XOAUTH2 or AUTH; the error names the options of
    tokens."""

    def token() -> str:
        raise AssertionError('the token must not be fetched')

    server = relay()
    assert 'offers PLAIN LOGIN, and not XOAUTH2' in refused(mailer(server, token=token))
    server.auth_advertised = 'never'
    text = refused(mailer(server, token=token))
    assert 'AUTH: the relay does not offer it' in text
    assert 'leave out the user name, and token_file= or token=' in text
    assert 'mail.password' not in text


@pytest.mark.parametrize('error', [KeyError('access_token'), RuntimeError(), ValueError('a\nb')])
def test_function_that_raises(relay: Start, mailer: Make, error: Exception) -> None:
    """The error of a token function is in one line, by type and text, with what to look at."""

    def token() -> str:
        raise error

    server = relay(auth_mechanisms=('XOAUTH2',))
    text = refused(mailer(server, token=token))
    assert 'AUTH: there is no token: ' in text
    assert f'({type(error).__name__}); see the user name, and token_file=' in text
    assert '\n' not in text
    server.wait_for(lambda server: not server.open_connections)
    assert server.verbs() == [*BEFORE[:-1], 'QUIT']


# Who gets to see them


@pytest.mark.finding(40)
@pytest.mark.parametrize(
    'challenge',
    [
        {'status': TOKEN + 'x'},
        {'status': 'x' * 15 + TOKEN},
        {'status': b64encode(TOKEN.encode()).decode()},
    ],
    ids=str,
)
def test_token_in_the_challenge(relay: Start, mailer: Make, challenge: Any) -> None:
    """A relay that repeats the token in its challenge, or a part that would be cut, does not bring
    it into the error."""
    server = relay(auth_mechanisms=('XOAUTH2',))
    encoded = b64encode(json.dumps(challenge).encode()).decode()
    server.script('AUTH', reply(334, encoded), reply(535, 'no'))
    text = refused(mailer(server, token=lambda: TOKEN))
    assert '***' in text
    assert TOKEN[:5] not in text
    assert b64encode(TOKEN.encode()).decode()[:5] not in text


def test_challenge_of_nested_json(relay: Start, mailer: Make) -> None:
    """A challenge of deeply nested JSON gives no reason, and the relay is unavailable as after any
    refusal."""
    server = relay(auth_mechanisms=('XOAUTH2',))
    server.script('AUTH', reply(334, NEVER_ENDING), reply(535, 'no'))
    assert 'the relay did not say why' in refused(mailer(server, token=lambda: TOKEN))


@pytest.mark.finding(40)
@pytest.mark.parametrize('password', [' gehe1m ', 'gehe1m\t', 'gehe1m'])
@pytest.mark.parametrize('mechanism', ['PLAIN', 'LOGIN'])
def test_password_is_echoed(
    relay: Start,
    mailer: Make,
    password: str,
    mechanism: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the error nor a log shows the password that a relay repeats, nor its base64, nor the
    password without its outer blanks."""
    caplog.set_level(logging.DEBUG)
    server = relay(auth={}, auth_mechanisms=(mechanism,))
    sender = mailer(server, password=password)
    whole = b64encode(f'\0{USER}\0{password}'.encode()).decode()
    alone = b64encode(password.encode()).decode()
    server.script('AUTH', reply(535, f'not {whole}', f'nor {alone}', f'nor {password}'))
    text = refused(sender)
    assert 'not *** nor *** nor ***' in ' '.join(text.split())
    assert PASSWORD not in f'{text} {sender!r} {vars(sender)!r} {caplog.text}'


@pytest.mark.parametrize(
    'made', [Credentials(USER, PASSWORD), Bearer(USER, lambda: TOKEN), Bearer(USER, str).proof]
)
def test_values_show_nothing(made: object) -> None:
    """The repr of a value that holds a secret does not show it."""
    text = repr(made)
    assert PASSWORD not in text
    assert TOKEN not in text


def test_proof_shows_nothing() -> None:
    """Nor does the repr of what was made for one connection."""
    assert repr(Bearer(USER, lambda: TOKEN).proof()) == 'BearerProof(...)'
    assert repr(Credentials(USER, PASSWORD).proof()) == 'Credentials(...)'


def test_warning_names_what_is_in_clear(caplog: pytest.LogCaptureFixture) -> None:
    """The warning of smtp+insecure: says whether a password or a token is sent in plain text."""
    options: dict[str, Any] = {'hostname': 'x', 'tls': 'none', 'insecure': True, 'username': USER}
    make_mailer('relay', **options, password=PASSWORD)
    make_mailer('relay', **options, token=lambda: TOKEN)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith('mail and password are sent in plain text')
    assert second.endswith('mail and token are sent in plain text')
    assert PASSWORD not in first


# Whatever else goes wrong on the way


@pytest.mark.parametrize(
    'mailer',
    [
        SMTPMailer('127.0.0.1', 70_000, hostname='x'),
        SMTPMailer('a\0b', hostname='x'),
        SMTPMailer('', 0, hostname='x'),
    ],
)
def test_what_is_no_address(mailer: SMTPMailer) -> None:
    """A host or port that the system refuses makes the relay unavailable (IMailer)."""
    with pytest.raises(MailerUnavailable, match='connecting: '):
        mailer.connect()


def test_the_other_protocol(start_smtp_server: Start) -> None:
    """If EHLO and HELO are unknown, the error proposes lmtp:."""
    server = start_smtp_server(lmtp=True)
    server.script('EHLO', reply(500, 'what?'))
    server.script('HELO', reply(500, 'what?'))
    with pytest.raises(MailerUnavailable, match='it may speak another protocol: lmtp:'):
        SMTPMailer(server.host, server.port, hostname='x').connect()
