"""The mailer that ``mail.url`` describes, and the errors about mistakes in it."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import strategies as st
from pyramid.exceptions import ConfigurationError

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.file import FileMailer
from pyramid_sendmail.mailers.null import NullMailer
from pyramid_sendmail.mailers.sendmail import SendmailMailer
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from tests.support.smtp.server import ScriptedSMTPServer, TLSAuthority

SECRET = 's3kr1t'


def make(url: str, **options: Any) -> Any:
    return mailer_from_url(url, hostname='web.example.org', **options)


@pytest.mark.parametrize(
    ('url', 'kind', 'name'),
    [
        ('smtp://relay.example.org', SMTPMailer, 'smtp://relay.example.org:25'),
        ('SMTP://relay.example.org/', SMTPMailer, 'smtp://relay.example.org:25'),
        ('  smtp://localhost:2525\n', SMTPMailer, 'smtp://localhost:2525'),
        ('smtps://relay', SMTPMailer, 'smtps://relay:465'),
        ('smtps://relay:4650?tls=required', SMTPMailer, 'smtps://relay:4650'),
        ('smtp://relay?tls=required&timeout=10s', SMTPMailer, 'smtp://relay:25'),
        ('smtp+insecure://relay', SMTPMailer, 'smtp+insecure://relay:25'),
        (f'smtp://ann:{SECRET}@relay:587', SMTPMailer, 'smtp://relay:587'),
        (f'smtp://ann@example.org:{SECRET}@relay', SMTPMailer, 'smtp://relay:25'),
        ('smtp://[2001:DB8::25]', SMTPMailer, 'smtp://[2001:db8::25]:25'),
        ('smtp://[::1]:2525', SMTPMailer, 'smtp://[::1]:2525'),
        ('smtp://127.0.0.1', SMTPMailer, 'smtp://127.0.0.1:25'),
        ('smtp://bücher.example', SMTPMailer, 'smtp://xn--bcher-kva.example:25'),
        ('smtp://mail_relay', SMTPMailer, 'smtp://mail_relay:25'),
        ('file:///var/spool/mail%20box', FileMailer, 'file:/var/spool/mail box'),
        ('file:/var/mail', FileMailer, 'file:/var/mail'),
        ('file://localhost/var/mail', FileMailer, 'file:/var/mail'),
        ('null:', NullMailer, 'null:'),
        ('null://', NullMailer, 'null:'),
        ('lmtp://dovecot.example.org', LMTPMailer, 'lmtp://dovecot.example.org:24'),
        ('lmtp://[::1]:2424?max_recipients=1', LMTPMailer, 'lmtp://[::1]:2424'),
        ('lmtp+unix:/run/dovecot/lmtp', LMTPMailer, 'lmtp+unix:/run/dovecot/lmtp'),
        ('lmtp+unix:///run/my%20lmtp?timeout=9s', LMTPMailer, 'lmtp+unix:/run/my lmtp'),
        ('sendmail:', SendmailMailer, 'sendmail:/usr/sbin/sendmail'),
        (f'sendmail:{sys.executable}?timeout=10s', SendmailMailer, f'sendmail:{sys.executable}'),
    ],
)
def test_mailers(url: str, kind: Any, name: str) -> None:
    """Each scheme gives its mailer, whose name shows no secret."""
    mailer = make(url)
    assert type(mailer) is kind
    assert mailer.name == name
    assert SECRET not in repr(mailer)


MISTAKES = [
    ('', 'is empty', 'smtp://relay.example.org:25'),
    ('   ', 'is empty', 'smtp://relay.example.org:25'),
    ('relay.example.org', 'does not say how', 'smtp: before the host'),
    ('relay.example.org:25', 'does not say how', 'smtp: before the host'),
    ('localhost', 'does not say how', 'smtp: before the host'),
    ('//relay', 'does not say how', 'smtp: before the host'),
    ('"smtp://relay"', 'a quotation mark', 'without quotes'),
    ("'null:'", 'a quotation mark', 'without quotes'),
    (f'smtp://a "smtp://ann:{SECRET}@b"', 'a blank', '%20'),
    ('stmp://relay', 'begins with stmp:', 'smtp: perhaps'),
    ('http://relay', 'begins with http:', 'smtp://relay.example.org:25'),
    ('qqq:x', 'begins with qqq:', 'smtp://relay.example.org:25'),
    ('smtp://a, null:', 'a comma before a URL', 'a blank or a line break'),
    ('smtp://a,smtps://b', 'a comma before a URL', 'a blank or a line break'),
    (f'smtp://ann:{SECRET},null:@relay', 'a comma before a URL', '%2C'),
    ('smtp://a,\n  x://b', 'a comma before a URL', 'a blank or a line break'),
    ('smtp://a b', 'a blank', '%20'),
    ('smtp://a localhost:25', 'a blank', 'a scheme before each host'),
    (f'smtp://ann:my {SECRET}@relay', 'a blank', '%20'),
    (f'smtp://ann:my {SECRET}://@relay', '(the second) begins with an unknown scheme', '%20'),
    (f'smtp://ann:my null:{SECRET}@relay', '(the first) has a bad port', 'from 1 to 65535'),
    ('smtp://a stmp://b', '(the second) begins with an unknown scheme', 'smtp: perhaps'),
    ('smtp://a smtp://', '(the second) names no host', 'smtp://relay'),
    ('smtp://a?tls smtp://b', '(the first) has the option tls', 'tls=VALUE'),
    ('null: null: smtp://a?ca_file=/x', '(the third): ca_file=/x', 'No such file'),
    (f'{"null: " * 9}null:x', '(number 10) has more', 'null: alone'),
    ('smtp://re\x00lay', 'a blank', '%20'),
    ('smtp:', 'names no host', 'smtp://relay'),
    ('smtp:relay', 'names no host', 'smtp://relay'),
    ('smtp://', 'names no host', 'smtp://relay'),
    ('smtp://:25', 'names no host', 'smtp://relay'),
    ('smtp://relay:', 'bad port', 'from 1 to 65535'),
    ('smtp://relay:0', 'bad port', 'from 1 to 65535'),
    ('smtp://relay:65536', 'bad port', 'from 1 to 65535'),
    ('smtp://relay:smtp', 'bad port', 'from 1 to 65535'),
    ('smtp://relay:+25', 'bad port', 'from 1 to 65535'),
    ('smtp://relay:\uff12\uff15', 'bad port', 'from 1 to 65535'),
    ('smtp://-relay', 'bad host', 'letters, digits'),
    ('smtp://re..lay', 'bad host', 'letters, digits'),
    ('smtp://relay;x', 'bad host', 'letters, digits'),
    ('smtp://::1', 'bad port', 'from 1 to 65535'),
    ('smtp://a[b', 'bad host', 'in brackets'),
    ('smtp://[relay]', 'no IPv6 address', '[2001:db8::25]'),
    ('smtp://relay/path', 'path after the host', '%2F'),
    (f'smtp://ann:{SECRET}#x@relay', 'a #', '%23'),
    (f'smtp://ann:{SECRET}/x@relay', 'a / before the @', '%2F'),
    (f'smtp://ann:p@{SECRET}/x@relay', 'a / before the @', '%2F'),
    (f'smtp://ann:12?{SECRET}=x@relay', '@ after the ?', '%3F'),
    (f'smtp://ann:%{SECRET}@relay', 'stray % in the password', '%25'),
    (f'smtp://%zz:{SECRET}@relay', 'stray % in the user name', '%25'),
    (f'smtp://ann:%FF{SECRET}@relay', 'other than UTF-8', 'percent-encoded'),
    (f'smtp://ann%00:{SECRET}@relay', 'NUL', ''),
    ('smtp://ann@relay', 'user name without a password', 'USER:PASSWORD@relay'),
    ('smtp://ann:@relay', 'user name without a password', 'USER:PASSWORD@relay'),
    (f'smtp://:{SECRET}@relay', 'password without a user name', 'USER:PASSWORD@relay'),
    ('smtp://relay?cafile=/x', 'unknown option cafile=', 'ca_file= perhaps'),
    ('smtp://relay?TLS=required', 'unknown option TLS=', 'tls='),
    ('smtp://relay?qqq=1', 'unknown option ***=', 'timeout='),
    ('smtp://relay?tls', 'without a value', 'tls=VALUE'),
    ('smtp://relay?tls=required&tls=required', 'twice', 'once'),
    ('smtp://relay?tls=optional', 'other than tls=required', 'smtp+insecure:'),
    ('smtp://relay?timeout=10', 'bad option timeout=', '90s, 5m'),
    ('smtp://relay?timeout=0s', 'bad option timeout=', 'more than 0s'),
    ('smtp://relay?pipelining=slow', 'bad option pipelining=', 'write on or off'),
    ('smtp://relay?max_recipients=0', 'bad option max_recipients=', 'from 1'),
    ('smtp://relay?max_recipients=all', 'bad option max_recipients=', 'from 1'),
    ('smtp://relay?window=0', 'bad option window=', 'from 1'),
    ('lmtp://relay?window=8', 'unknown option window=', 'max_recipients='),
    ('smtp://relay?notify=sometimes', 'notify=sometimes', 'write never'),
    ('smtp://relay?notify=never,delay', 'notify=never,delay', 'write never'),
    ('smtp://relay?ret=half', 'ret=half', 'full or headers'),
    ('smtp://ann@relay?token_file=token', 'bad option token_file=', 'the absolute path'),
    ('smtp://ann@relay?token=no.such.thing', 'bad option token=', 'can be imported'),
    ('smtp://ann@relay?token=os', 'bad option token=', 'a function that returns'),
    ('smtp://ann@relay?token=os.sep', 'bad option token=', 'a function that returns'),
    ('smtp://ann@relay?token=.here', 'bad option token=', 'a function that returns'),
    ('smtp://relay?token=os.getcwd', 'a token without a user name', 'smtp://USER@relay'),
    (f'smtp://ann:{SECRET}@relay?token=os.getcwd', 'a password and a token', 'one of them'),
    ('smtp://a@b?token=os.getcwd&token_file=/x', 'token= and token_file=', 'one of them'),
    ('lmtp://', 'names no host', 'lmtp://relay.example.org:24'),
    ('lmtp://relay/socket', 'path after the host', 'lmtp://HOST:PORT'),
    ('lmtp://[x]', 'no IPv6 address', 'lmtp://[2001:db8::25]:24'),
    ('lmtp+unix:socket', 'lmtp+unix: path that is not absolute', 'lmtp+unix:/absolute/socket'),
    ('lmtp+unix://host/socket', 'not absolute', 'lmtp+unix:/absolute/socket'),
    ('lmtp+unix:/s?tls=required', 'unknown option tls=', 'pipelining='),
    (f'lmtp+unix://ann:{SECRET}@localhost/s', 'takes no credentials', 'mail.username'),
    ('sendmail:program', 'not absolute', 'sendmail:/absolute/program'),
    ('sendmail://host/x', 'not absolute', 'sendmail:/absolute/program'),
    ('sendmail:?from=x', 'unknown option ***=', 'timeout='),
    ('sendmail:?timeout=0s', 'bad option timeout=', 'more than 0s'),
    ('smtp://relay?ca_file=/nowhere.pem', 'ca_file=/nowhere.pem', 'No such file'),
    (f'smtp://relay?ca_file={__file__}', f'ca_file={__file__}', 'no PEM file'),
    ('smtp://relay?ca_file=%zz', 'stray % in the option ca_file=', '%25'),
    ('smtp://relay?client_key=/k', 'client_key=', 'client_cert='),
    ('smtp+insecure://relay?tls=required', 'never uses TLS', 'smtps:'),
    ('smtp+insecure://relay?ca_file=/x', 'has ca_file=', 'smtps:'),
    ('file:mail', 'not absolute', 'file:///absolute/folder'),
    ('file:', 'not absolute', 'file:///absolute/folder'),
    ('file://mail', 'not absolute', 'file:///absolute/folder'),
    ('file:///x%00y', 'NUL', 'file:///absolute/folder'),
    ('file:///x?sync=off', 'takes none', 'without ?'),
    (f'file://ann:{SECRET}@localhost/x', 'takes no credentials', 'mail.username'),
    ('null:x', 'more than null:', 'null: alone'),
    ('null://x', 'more than null:', 'null: alone'),
    ('null:?x=y', 'takes none', 'without ?'),
]


@pytest.mark.parametrize(('url', 'problem', 'advice'), MISTAKES)
def test_mistakes(url: str, problem: str, advice: str) -> None:
    """An error names mail.url, what is wrong and what to write; no part of its traceback shows the
    password."""
    with pytest.raises(ConfigurationError) as caught:
        make(url)
    text = str(caught.value)
    assert text.startswith('mail.url')
    assert problem in text
    assert advice in text
    assert SECRET not in ''.join(traceback.format_exception_only(caught.value))
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    ('url', 'options', 'problem'),
    [
        (f'smtp://ann:{SECRET}@relay', {'username': 'bob', 'password': 'x'}, 'in one place'),
        (f'smtp://ann:{SECRET}@relay', {'password': SECRET}, 'in one place'),
        ('smtp://relay', {'username': 'ann'}, 'user name without a password'),
        ('smtp://relay', {'password': SECRET}, 'password without a user name'),
        ('null:', {'username': 'ann', 'password': SECRET}, 'takes no credentials'),
        ('file:///x', {'username': 'ann', 'password': SECRET}, 'takes no credentials'),
        ('smtp://relay', {'hostname': 'a b'}, 'mail.hostname'),
        ('sendmail:', {'username': 'ann'}, 'is sendmail:, which takes no credentials'),
        ('lmtp+unix:/s', {'username': 'ann', 'password': SECRET}, 'takes no credentials'),
        ('null: file:///x', {'username': 'ann', 'password': SECRET}, 'no URL that takes'),
        (
            f'smtp://ann:{SECRET}@a null: smtps://bob:{SECRET}@b',
            {'username': 'ann', 'password': SECRET},
            'in one place',
        ),
        ('smtp://a null:', {'username': 'ann'}, r'\(the first\) has a user name without'),
        (
            'smtp://relay?token=os.getcwd',
            {'username': 'ann', 'password': SECRET},
            'has a token, and mail.password is set too',
        ),
    ],
)
def test_contradictions(url: str, options: dict[str, Any], problem: str) -> None:
    """An error names settings beside the URL that contradict it."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        mailer_from_url(url, **({'hostname': 'x'} | options))
    assert SECRET not in str(caught.value)


def test_empty_credentials_are_none() -> None:
    """Empty credentials count as not set."""
    assert make('null:', username='', password='').name == 'null:'
    assert make(f'smtp://ann:{SECRET}@relay', username='', password=None).port == 25


@pytest.mark.parametrize('beside', [False, True])
@pytest.mark.parametrize(
    'password', ['%', '50%25', '#x', 'a;b', '@', ' a b ', ':', '/?&=+', 'Zwölf☃', '"\'\\$!']
)
def test_any_password(
    start_smtp_server: Any, tls_authority: TLSAuthority, password: str, beside: bool
) -> None:
    """A password with any characters arrives, percent-encoded in the URL or in its own setting."""
    server: ScriptedSMTPServer = start_smtp_server(
        tls='implicit', context=tls_authority.context(), auth={'ann@x': password}
    )
    place = f'{server.host}:{server.port}?ca_file={quote(str(tls_authority.path))}'
    if beside:
        mailer = make(f'smtps://{place}', username='ann@x', password=password)
    else:
        mailer = make(f'smtps://ann%40x:{quote(password, safe="")}@{place}')
    session = mailer.connect()
    mail = Envelope(
        id='0' * 32,
        message_id='<0@example.org>',
        sender='',
        recipients=('to@example.org',),
        raw=b'Subject: x\r\n\r\n',
        queued_at=0.0,
    )
    list(session.send([mail]))
    session.close()
    assert server.messages[0].authenticated_as == 'ann@x'


def test_several_in_their_order() -> None:
    """Blanks or line breaks separate URLs, and the mailers keep their order."""
    mailer = make('\n  smtp://first\r\n\tsmtps://ann:s3kr1t@second?tls=required  SMTP://third\n')
    assert type(mailer) is FailoverMailer
    names = ['smtp://first:25', 'smtps://second:465', 'smtp://third:25']
    places = [mailer.name.index(name) for name in names]
    assert places == sorted(places)
    assert SECRET not in repr(mailer)


@pytest.mark.parametrize(
    ('url', 'credentials'),
    [
        ('smtp://a smtps://b', [('eve', 'x'), ('eve', 'x')]),
        (f'smtp://ann:{SECRET}@a null: smtps://b', [('ann', SECRET), ('eve', 'x')]),
        ('smtp://ann@a?token=os.getcwd smtps://b', [('ann', None), ('eve', 'x')]),
        ('smtp://a?token=os.getcwd smtps://b', [('eve', None), ('eve', 'x')]),
    ],
)
def test_credentials_beside_several(url: str, credentials: list[tuple[str, str | None]]) -> None:
    """Each URL that accepts credentials and has none gets those of the settings."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SMTPMailer, '__init__', lambda _self, *_place, **given: seen.append(given))
        patch.setattr(SMTPMailer, 'name', 'smtp:', raising=False)
        make(url, username='eve', password='x')
    found = [each['identity'] for each in seen]
    assert [(each.username, getattr(each, 'password', None)) for each in found] == credentials


def test_insecure_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """smtp+insecure: logs a warning when the mailer is made, without the password."""
    make(f'smtp+insecure://ann:{SECRET}@relay')
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == 'pyramid_sendmail.mailers.smtp.mailer'
    assert 'smtp+insecure://relay:25' in record.getMessage()
    assert SECRET not in record.getMessage()


@hypothesis.given(text=st.text())
def test_any_text_is_understood_or_refused(text: str) -> None:
    """Any text gives a mailer or a ConfigurationError."""
    for url in (text, f'smtp://{text}', f'null:{text}', f'smtp://relay?{text}', f'null: {text}'):
        with suppress(ConfigurationError):
            assert make(url).name


@pytest.mark.parametrize(
    'url',
    [
        'smtp://ann@relay?token=SE&CRET',
        'smtp://ann@relay?token=SE&CRET=1',
        'smtp://ann@relay?token=os.SECRET',
        'smtp://ann@relay?token=SECRET.eyJ9.x',
        'smtp://ann:SE?CRET',
        'smtp://ann:SE?CR&CRET=2',
    ],
)
def test_pieces_of_a_secret_are_not_shown(url: str) -> None:
    """If a secret is not encoded, no piece of it is shown."""
    with pytest.raises(ConfigurationError) as caught:
        mailer_from_url(url, hostname='web.example.org')
    error: BaseException | None = caught.value
    while error is not None:
        assert 'CRET' not in str(error)
        error = error.__cause__
