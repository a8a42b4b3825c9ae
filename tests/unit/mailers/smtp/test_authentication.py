"""Access tokens in place of passwords (XOAUTH2)."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.mailers.smtp.authentication import Credentials, TokenFile
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts, TLSOptions
from tests.support.sessions import deliver, make_mailer, refused
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    TLSAuthority,
    drop,
    hang,
    raw,
    reply,
)

USER, TOKEN = 'ann@example.org', 'ya29.a0Af_H6-SMB/x+y=='


@pytest.fixture
def relay(
    start_smtp_server: Callable[..., ScriptedSMTPServer], tls_authority: TLSAuthority
) -> ScriptedSMTPServer:
    return start_smtp_server(
        tls='starttls',
        context=tls_authority.context(),
        auth={USER: TOKEN},
        auth_mechanisms=('LOGIN', 'PLAIN', 'XOAUTH2'),
    )


@pytest.fixture
def mailer(
    relay: ScriptedSMTPServer, tls_authority: TLSAuthority
) -> Callable[[Callable[[], str]], SMTPMailer]:
    return lambda token: make_mailer(
        relay.host,
        relay.port,
        hostname='web.example.org',
        username=USER,
        token=token,
        ca_file=str(tls_authority.path),
        timeouts=Timeouts().capped(5),
    )


Mailer = Callable[[Callable[[], str]], SMTPMailer]


def test_token(relay: ScriptedSMTPServer, mailer: Mailer) -> None:
    """With a token only XOAUTH2 is used, inside TLS."""
    deliver(mailer(lambda: TOKEN))
    assert relay.messages[0].authenticated_as == USER
    assert relay.messages[0].tls
    [line] = [line for _, verb, line in relay.commands if verb == 'AUTH']
    assert line.startswith('AUTH XOAUTH2 ')
    assert not relay.violations


def test_long_token(relay: ScriptedSMTPServer, mailer: Mailer) -> None:
    """A token that makes the command too long follows in a line of its own (RFC 4954, 4)."""
    relay.auth = {USER: 'x' * 2_000}
    deliver(mailer(lambda: 'x' * 2_000))
    assert [line for _, verb, line in relay.commands if verb == 'AUTH'] == ['AUTH XOAUTH2']
    assert not relay.violations


def test_expired_token(relay: ScriptedSMTPServer, mailer: Mailer) -> None:
    """The challenge gets an empty line and its reason is in the error; one attempt for each
    connection; the next connection uses the new token."""
    tokens = ['0ld', TOKEN]
    sender = mailer(lambda: tokens.pop(0))
    text = refused(sender)
    assert 'AUTH XOAUTH2: the relay answered 535' in text
    assert '(status 400)' in text
    assert 'token_file= or token= in mail.url' in text
    assert relay.verbs() == ['EHLO', 'STARTTLS', 'EHLO', 'AUTH', 'response', 'QUIT']
    deliver(sender)
    assert tokens == []
    assert not relay.violations


def test_token_file(relay: ScriptedSMTPServer, mailer: Mailer, tmp_path: Path) -> None:
    """A token that another program renews in a file is read for each connection."""
    path = tmp_path / 'token'
    path.write_text('0ld\n', encoding='ascii')
    sender = mailer(TokenFile(path))
    assert '535' in refused(sender)
    path.write_text(f'{TOKEN}\nand more\n', encoding='ascii')
    deliver(sender)
    path.unlink()
    assert f'there is no token: token_file={path}: No such file' in refused(sender)
    path.write_bytes(b'\n')
    assert 'has an empty first line' in refused(sender)
    path.write_bytes(b'\xff\xfe\n')
    assert 'is not ASCII' in refused(sender)
    assert repr(TokenFile(path)) == f'TokenFile({str(path)!r})'
    with pytest.raises(ValueError, match='token_file=token is not absolute'):
        TokenFile('token')


@pytest.mark.finding(41, 116)
@pytest.mark.parametrize('code', [421, 432, 454, 500, 501, 503, 504, 530, 534, 535, 538, 550])
@pytest.mark.parametrize('challenged', [False, True])
def test_one_attempt(
    relay: ScriptedSMTPServer, mailer: Mailer, code: int, challenged: bool
) -> None:
    """Any refusal is final for this connection, whatever its code, with or without a challenge
    before it."""
    relay.script('AUTH', *([reply(334, 'eyJ9')] if challenged else []), reply(code, 'no'))
    text = refused(mailer(lambda: TOKEN))
    assert f'AUTH XOAUTH2: the relay answered {code} no' in text
    assert ('did not say why' in text) is challenged
    assert relay.verbs().count('AUTH') == 1
    assert 'MAIL' not in relay.verbs()


@pytest.mark.parametrize(
    'challenge', ['', '!', 'e30=', 'W10=', base64.b64encode(b'{"status": "a\\nb"}').decode()]
)
def test_challenge_that_says_nothing(
    relay: ScriptedSMTPServer, mailer: Mailer, challenge: str
) -> None:
    """A challenge that cannot be read is no error of its own."""
    relay.script('AUTH', reply(334, challenge), reply(535, 'no'))
    assert 'answered 535 no (the relay did not say why)' in refused(mailer(lambda: TOKEN))


def test_challenges_without_end(relay: ScriptedSMTPServer, mailer: Mailer) -> None:
    """A relay that sends one challenge after the other gets a cancellation."""
    relay.script('AUTH', *[reply(334, 'e30=')] * 3, reply(501, 'cancelled'))
    text = refused(mailer(lambda: TOKEN))
    assert 'the relay answered 334' in text or '501' in text
    assert [line for _, verb, line in relay.commands if verb == 'response'][:2] == ['', '*']


@pytest.mark.parametrize('action', [drop(), raw(b'junk\r\n'), hang()])
def test_lost_meanwhile(
    relay: ScriptedSMTPServer, tls_authority: TLSAuthority, action: Action
) -> None:
    """A connection that is lost during AUTH makes the relay unavailable."""
    relay.script('AUTH', reply(334, 'e30='), action)
    sender = make_mailer(
        relay.host,
        relay.port,
        hostname='web.example.org',
        username=USER,
        token=lambda: TOKEN,
        ca_file=str(tls_authority.path),
        timeouts=Timeouts(command=0.5, quit=0.2),
    )
    assert 'AUTH: ' in refused(sender)


@pytest.mark.parametrize('token', ['', 'two words', 'a\nb', 'ü', 'a\x01b', None, b'bytes', '='])
def test_no_token(relay: ScriptedSMTPServer, mailer: Mailer, token: Any) -> None:
    """A value that cannot be a token (RFC 6750, 2.1) is neither sent nor shown."""
    text = refused(mailer(lambda: token))
    assert 'what it returned is no access token' in text
    assert 'AUTH' not in relay.verbs()


def test_function_that_raises(relay: ScriptedSMTPServer, mailer: Mailer) -> None:
    """A token service that is down makes the relay unavailable; no attempt is counted."""

    def token() -> str:
        raise OSError('the token service is down')

    assert 'there is no token: the token service is down' in refused(mailer(token))
    assert relay.verbs() == ['EHLO', 'STARTTLS', 'EHLO', 'QUIT']


def test_not_offered(relay: ScriptedSMTPServer, mailer: Mailer) -> None:
    """A token is not sent by another mechanism."""
    relay.auth_mechanisms = ('PLAIN', 'LOGIN')
    assert 'the relay offers PLAIN LOGIN, and not XOAUTH2' in refused(mailer(lambda: TOKEN))
    assert 'AUTH' not in relay.verbs()


def test_never_in_clear(smtp_server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    """A token is as secret as a password: it needs TLS, except with smtp+insecure:."""
    smtp_server.auth, smtp_server.auth_mechanisms = {USER: TOKEN}, ('XOAUTH2',)
    options: dict[str, Any] = {'hostname': 'x', 'username': USER, 'token': lambda: TOKEN}
    where = (smtp_server.host, smtp_server.port)
    assert 'STARTTLS: the relay does not offer it' in refused(make_mailer(*where, **options))
    assert 'AUTH' not in smtp_server.verbs()
    with pytest.raises(ValueError, match='a token is not sent in clear'):
        make_mailer(*where, tls='none', **options)
    deliver(make_mailer(*where, tls='none', insecure=True, **options))
    assert 'plain text' in caplog.text


@pytest.mark.parametrize(
    'options', [{'password': 'x', 'username': 'ann'}, {}, {'username': ''}], ids=str
)
def test_token_goes_with_a_user_alone(options: dict[str, Any]) -> None:
    """A token with a password, or without a user name, is an error."""
    with pytest.raises(ValueError, match='a token goes with a user name, and without a password'):
        make_mailer('relay', hostname='x', token=lambda: TOKEN, **options)


def test_control_characters_in_the_name() -> None:
    """A user name with control characters is an error: they would be fields of the response."""
    with pytest.raises(ValueError, match='cannot hold control characters'):
        make_mailer('relay', hostname='x', username='ann\1auth=', token=lambda: TOKEN)


@pytest.mark.finding(40)
def test_secrets_are_nowhere(
    relay: ScriptedSMTPServer, mailer: Mailer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither logs nor repr nor errors show the token or its base64, even if the relay repeats
    them."""
    caplog.set_level(logging.DEBUG)
    sender = mailer(lambda: TOKEN)
    deliver(sender)
    whole = base64.b64encode(f'user={USER}\1auth=Bearer {TOKEN}\1\1'.encode()).decode()
    alone = base64.b64encode(TOKEN.encode()).decode()
    relay.script('AUTH', reply(535, f'do not know {TOKEN} {whole} {alone}'))
    text = refused(sender)
    assert 'do not know *** *** ***' in text
    seen = f'{text} {sender!r} {sender.name} {sender.__dict__!r} {caplog.text}'
    for secret in (TOKEN, whole, alone):
        assert secret not in seen


@pytest.mark.parametrize(
    'spelled_out',
    [
        {'tls': 'none', 'insecure': True, 'username': 'ann', 'password': 'pässword'},
        {
            'tls': TLSOptions('none', insecure=True),
            'identity': Credentials('ann', 'pässword'),
        },
    ],
)
def test_arguments_one_by_one(spelled_out: dict[str, Any]) -> None:
    """A mailer that is built by hand takes its arguments one by one, or grouped."""
    for kind in (SMTPMailer, LMTPMailer):
        mailer = kind('relay', 2525, hostname='web.example.org', **spelled_out)
        assert mailer._identity == Credentials('ann', 'pässword')
        assert mailer._tls == TLSOptions('none', insecure=True)


def test_arguments_in_two_ways() -> None:
    """An argument that is given one by one and in a group is an error, which names it."""
    with pytest.raises(ValueError, match='identity: leave out username, password and token'):
        SMTPMailer('relay', hostname='x', identity=Credentials('ann', 'x'), username='bob')
    with pytest.raises(ValueError, match='tls: leave out insecure and the files'):
        SMTPMailer('relay', hostname='x', tls=TLSOptions('starttls'), ca_file='/etc/ca.pem')


@pytest.mark.parametrize('misspelt', ['tsl', 'ca_fle', 'user_name'])
def test_a_misspelt_argument(misspelt: str) -> None:
    """An argument that is unknown is an error, as for any function: TLS must not be left out for
    a slip of the pen."""
    for kind in (SMTPMailer, LMTPMailer):
        with pytest.raises(TypeError, match=f'unknown argument {misspelt}'):
            kind('relay', 2525, hostname='x', **{misspelt: 'starttls'})


def test_a_file_without_a_mode(tmp_path: Path) -> None:
    """The mode is 'auto' where only a file of TLS is given."""
    with pytest.raises(ValueError, match='ca_file='):
        SMTPMailer('relay', hostname='x', ca_file=str(tmp_path / 'missing.pem'))


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    """An editor may have put it before the token."""
    file = tmp_path / 'token'
    file.write_text('\ufefft0ken\r\n', encoding='utf-8')
    assert TokenFile(file)() == 't0ken'
