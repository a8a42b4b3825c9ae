"""The text of mail.url: what it may say, and what is said about mistakes."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
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
from pyramid_sendmail.mailers.smtp.authentication import Bearer
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import SessionOptions
from pyramid_sendmail.mailers.url import _is_ascii_name, _place, split
from pyramid_sendmail.settings.credentials import mask_url
from pyramid_sendmail.standin import real
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
    """Each scheme gives its mailer, whose name is free of secrets."""
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
    ('stmp://relay', 'begins with stmp:', 'smtp: perhaps'),
    ('http://relay', 'begins with http:', 'smtp://relay.example.org:25'),
    ('qqq:x', 'begins with qqq:', 'smtp://relay.example.org:25'),
    ('smtp://a, null:', 'a comma before a URL', 'a blank or a line break'),
    ('smtp://a,smtps://b', 'a comma before a URL', 'a blank or a line break'),
    (f'smtp://ann:{SECRET},null:@relay', 'a comma before a URL', '%2C'),
    ('smtp://a,\n  x://b', 'a comma before a URL', 'a blank or a line break'),
    ('smtp://a b', 'blanks', '%20'),
    ('smtp://a localhost:25', 'blanks', 'a scheme before a host'),
    (f'smtp://ann:my {SECRET}@relay', 'blanks', '%20'),
    (f'smtp://ann:my {SECRET}://@relay', '(the second) begins with an unknown scheme', '%20'),
    (f'smtp://ann:my null:{SECRET}@relay', '(the first) has a bad port', 'from 1 to 65535'),
    ('smtp://a stmp://b', '(the second) begins with an unknown scheme', 'smtp: perhaps'),
    ('smtp://a smtp://', '(the second) names no host', 'smtp://relay'),
    ('smtp://a?tls smtp://b', '(the first) has the option tls', 'tls=VALUE'),
    ('null: null: smtp://a?ca_file=/x', '(the third): ca_file=/x', 'No such file'),
    (f'{"null: " * 9}null:x', '(number 10) has more', 'null: alone'),
    ('smtp://re\x00lay', 'blanks', '%20'),
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
    ('smtp://relay/path', 'path behind the host', '%2F'),
    (f'smtp://ann:{SECRET}#x@relay', 'a #', '%23'),
    (f'smtp://ann:{SECRET}/x@relay', 'bad port', 'from 1 to 65535'),
    (f'smtp://ann:p@{SECRET}/x@relay', 'path behind the host', '%2F'),
    (f'smtp://ann:12?{SECRET}=x@relay', '@ behind the ?', '%3F'),
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
    ('lmtp://relay/socket', 'path behind the host', 'lmtp://HOST:PORT'),
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
    ('smtp+insecure://relay?tls=required', 'never speaks TLS', 'smtps:'),
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
    """A mistake names mail.url, what is wrong and what to write, never the password: not in the
    traceback either."""
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
            'has a token, and there is a password',
        ),
    ],
)
def test_contradictions(url: str, options: dict[str, Any], problem: str) -> None:
    """Settings beside the URL that contradict it are named too."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        mailer_from_url(url, **({'hostname': 'x'} | options))
    assert SECRET not in str(caught.value)


def test_empty_credentials_are_none() -> None:
    """An empty setting is one that is not there."""
    assert make('null:', username='', password='').name == 'null:'
    assert make(f'smtp://ann:{SECRET}@relay', username='', password=None).port == 25


@pytest.mark.parametrize('beside', [False, True])
@pytest.mark.parametrize(
    'password', ['%', '50%25', '#x', 'a;b', '@', ' a b ', ':', '/?&=+', 'Zwölf☃', '"\'\\$!']
)
def test_any_password(
    start_smtp_server: Any, tls_authority: TLSAuthority, password: str, beside: bool
) -> None:
    """RELIABILITY 40: whatever a password holds arrives, percent-encoded in the URL or beside."""
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


def test_timeout_caps_every_phase() -> None:
    """?timeout= is the longest that any phase may take."""
    seen = [given(f'smtp://relay?timeout={each}')['timeouts'] for each in ('20s', '1h')]
    assert (seen[0].connect, seen[0].final, seen[0].quit) == (20, 20, 5)
    assert (seen[1].connect, seen[1].final) == (30, 600)


def given(url: str, **options: Any) -> dict[str, Any]:
    """What SMTPMailer is made with."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'pyramid_sendmail.mailers.smtp.mailer.SMTPMailer.__init__',
            lambda _self, *_place, **options: seen.append(options),
        )
        make(url, **options)
    made: dict[str, Any] = seen[0]
    return made


@pytest.mark.parametrize(
    ('query', 'options'),
    [
        ('', SessionOptions()),
        ('pipelining=on', SessionOptions()),
        ('pipelining=off', SessionOptions(pipelining=False)),
        ('pipelining=False', SessionOptions(pipelining=False)),
        ('max_recipients=1', SessionOptions(max_recipients=1)),
        ('window=8', SessionOptions(window=8)),
        ('notify=never', SessionOptions(notify=('never',))),
        (
            'notify=Failure,delay&ret=headers',
            SessionOptions(notify=('failure', 'delay'), ret='headers'),
        ),
        ('notify=success%2Cfailure', SessionOptions(notify=('success', 'failure'))),
    ],
)
def test_options_of_the_session(query: str, options: SessionOptions) -> None:
    """They reach the mailer."""
    assert given(f'smtp://relay?{query}')['options'] == options


def test_token_of_a_function() -> None:
    """A dotted name, beside a user name in the URL or in its own setting."""
    for token in (
        'tests.unit.mailers.test_url.access_token',
        'tests.unit.mailers.test_url:access_token',
    ):
        options = given(f'smtps://ann@relay?token={token}')
        assert options['identity'] == Bearer('ann', access_token)
        assert given(f'smtps://relay?token={token}', username='bob')['identity'].username == 'bob'


def access_token() -> str:
    return SECRET


def test_token_of_a_file(tmp_path: Path) -> None:
    """Read each time, so that another process may renew it."""
    path = tmp_path / 'my token'
    token = given(f'smtps://ann@relay?token_file={quote(str(path))}')['identity'].token
    for written in ('one', 'two'):
        path.write_text(written, encoding='utf-8')
        assert token() == written


def test_several_in_their_order() -> None:
    """Blanks or line breaks separate them, as an ini file has them; the mailers keep the order."""
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
    """Each that takes them and has none of its own gets those of the other settings."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SMTPMailer, '__init__', lambda _self, *_place, **given: seen.append(given))
        patch.setattr(SMTPMailer, 'name', 'smtp:', raising=False)
        make(url, username='eve', password='x')
    found = [each['identity'] for each in seen]
    assert [(each.username, getattr(each, 'password', None)) for each in found] == credentials


def test_insecure_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """smtp+insecure: is told when the mailer is made, without the password."""
    make(f'smtp+insecure://ann:{SECRET}@relay')
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == 'pyramid_sendmail.mailers.smtp.mailer'
    assert 'smtp+insecure://relay:25' in record.getMessage()
    assert SECRET not in record.getMessage()


@pytest.mark.parametrize(
    ('url', 'masked'),
    [
        ('smtp://relay:25', 'smtp://relay:25'),
        ('smtp://ann@relay:25', 'smtp://ann@relay:25'),
        ('null:', 'null:'),
        ('file:///var/mail', 'file:///var/mail'),
        ('smtp://ann:s3kr1t@relay:25?tls=required', 'smtp://ann:***@relay:25?tls=required'),
        ('smtp://ann@example.org:s3kr1t@relay', 'smtp://ann@example.org:***@relay'),
        ('smtp://ann:s3k@r1t/s3kr1t?s3kr1t#s3kr1t@relay', 'smtp://ann:***@relay'),
        ('smtp://ann:s3k\nr1t@relay', 'smtp://ann:***@relay'),
        (' smtp://ann:s3kr1t@relay', ' smtp://ann:***@relay'),
        ('smtp://ann:s3kr1t@a smtp://bob:s3kr1t@b', 'smtp://ann:***@a smtp://bob:***@b'),
        ('smtp://a\n  smtps://ann:s3kr1t@b null:', 'smtp://a\n  smtps://ann:***@b null:'),
        ('smtp://ann:s3kr1t@a,smtp://bob:s3kr1t@b', 'smtp://ann:***@b'),
        ('smtp://ann:s3kr1t smtp://bob:s3kr1t@b', 'smtp://ann:*** smtp://bob:***@b'),
        ('smtp://ann:s3kr1t', 'smtp://ann:***'),
        ('smtp://[::1]:25/ smtp://a:25?x', 'smtp://[::1]:25/ smtp://a:25?x'),
        ('lmtp+unix:/a:b sendmail:/c:d', 'lmtp+unix:/a:b sendmail:/c:d'),
        ('smtp:ann:s3kr1t@relay', 'smtp:***@relay'),
        ('ann:s3kr1t@relay:25', 'ann:***@relay:25'),
        ('smtp://:s3kr1t@relay', 'smtp://:***@relay'),
        ('', ''),
    ],
)
def test_masked(url: str, masked: str) -> None:
    """What is shown of a URL has no password, however wrong the URL is."""
    assert mask_url(url) == masked


@hypothesis.given(password=st.text(min_size=1).map(lambda text: f'<{text}>'))
def test_no_password_survives_the_mask(password: str) -> None:
    """Neither encoded nor as it is."""
    for written in (password, quote(password, safe='')):
        assert mask_url(f'smtp://ann:{written}@relay:25') == 'smtp://ann:***@relay:25'


@hypothesis.given(text=st.text())
def test_any_text_is_understood_or_refused(text: str) -> None:
    """Nothing but ConfigurationError comes of whatever stands there."""
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
    """A secret that was not encoded falls apart, and no part of it is told."""
    with pytest.raises(ConfigurationError) as caught:
        mailer_from_url(url, hostname='web.example.org')
    error: BaseException | None = caught.value
    while error is not None:
        assert 'CRET' not in str(error)
        error = error.__cause__


@hypothesis.given(st.text('a:/@[]?#19 \n.é٣', max_size=12))
def test_a_host_and_its_port_are_shown(rest: str) -> None:
    """Without a look at them by a regular expression, which would not change them."""
    pattern = r'\A(\s*[A-Za-z][A-Za-z0-9+.-]*://[^/?#:[]*:)(?![0-9]*(?:[/?#]|\Z)).*'
    url = f'smtp://{rest}'
    if '@' not in url and not re.search(r'[ \t\r\n]', url):
        assert mask_url(url) == re.sub(pattern, r'\1***', url, flags=re.DOTALL)


@hypothesis.given(st.text('aZ.9-é', max_size=70))
@hypothesis.example('a' * 63)
@hypothesis.example('a' * 64)
@hypothesis.example('a..b')
@hypothesis.example('.a')
@hypothesis.example('')
def test_ascii_names_need_no_codec(host: str) -> None:
    """What IDNA would leave as it is."""
    try:
        encoded = host.encode('idna').decode('ascii')
    except UnicodeError:
        encoded = None
    if _is_ascii_name(host):
        assert encoded == host
    else:
        assert encoded != host


@pytest.mark.parametrize(
    ('url', 'waits'),
    [
        ('smtp://relay', True),
        ('smtps://ann:secret@relay', True),
        ('smtp://relay?tls=required', True),
        ('lmtp+unix:/run/lmtp', True),
        ('sendmail:', True),
        ('sendmail:/usr/bin/msmtp', True),
        ('file:///var/tmp/mail', True),
        ('null:', True),
        ('smtp://relay?window=8', False),
        ('smtp+insecure://relay', False),
        ('lmtp://store', False),
    ],
)
def test_a_mailer_is_made_later_where_that_cannot_fail(url: str, waits: bool) -> None:
    """It is the same mailer then."""
    mailer = make(url, later=True)
    assert (real(mailer) is not mailer) is waits
    assert type(real(mailer)) is type(make(url))
    assert mailer.name == make(url).name


@pytest.mark.parametrize(
    'url', ['lmtp://store:25', 'smtps://ann:a%00b@relay', 'smtps://relay?ca_file=/no/such/file']
)
def test_a_mailer_that_cannot_be_made_is_none_later(url: str) -> None:
    """What its class has against the arguments is said at once, in the same words."""
    with pytest.raises(ConfigurationError) as at_once:
        make(url)
    with pytest.raises(ConfigurationError) as caught:
        make(url, later=True)
    assert str(caught.value) == str(at_once.value)


def test_each_of_several_mailers_may_wait() -> None:
    """The first that can connect is asked alone."""
    mailer = make('smtp://one lmtp://two', later=True)
    assert type(mailer) is FailoverMailer
    first, second = (place.mailer for place in mailer._places)
    assert real(first) is not first
    assert real(second) is second


_URL = re.compile(
    r'(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?'
    r'(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?',
    re.DOTALL,
)
"""RFC 3986, appendix B."""


@hypothesis.given(st.text('aZ1+.-_:/?[]é%', max_size=12))
@hypothesis.example('smtp://relay')
def test_a_url_is_taken_apart_as_the_rfc_has_it(url: str) -> None:
    """By its own regular expression, which is not compiled at each start."""
    match = _URL.fullmatch(url)
    assert match is not None
    with suppress(ConfigurationError):
        parts = split(url)
        assert parts.scheme == (match['scheme'] or '').lower()
        assert parts.authority == match['authority']
        assert parts.path == match['path']


_PLACE = re.compile(r'(?:\[(?P<literal>[^\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>.*))?', re.DOTALL)
_HOST = re.compile(r'[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?')


@hypothesis.given(st.text('aZ19._-:[]é', max_size=8) | st.just('[::1]:25') | st.just('relay:25'))
def test_a_host_is_taken_apart_as_its_pattern_has_it(place: str) -> None:
    """The name, and the port behind it."""
    match = _PLACE.fullmatch(place)
    try:
        host, port = _place(place, 25, 'smtp')
    except ConfigurationError:
        host, port = '', 0
    if match is None:
        assert not host
    elif match['host'] and match['host'].isascii():
        number = match['port'] or ('25' if match['port'] is None else '')
        good = bool(re.fullmatch('[0-9]{1,5}', number)) and 0 < int(number) < 65536
        assert bool(host) == (
            bool(_HOST.fullmatch(match['host'])) and good and _is_ascii_name(match['host'])
        )
        assert not host or (host, port) == (match['host'], int(number))
