"""The relay: spellings of its URL, credentials, the environment, masked passwords."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import strategies as st
from pyramid.exceptions import ConfigurationError

from pyramid_sendmail.settings.credentials import mask_url
from pyramid_sendmail.settings.table import (
    parse_settings,
)
from tests.support.configuration import SECRET, parse, refusal


def relay(environ: dict[str, str] | None = None, **given: Any) -> tuple[Any, ...]:
    settings = parse(environ, **given)
    return settings.url, settings.username, settings.password


@pytest.mark.parametrize(
    ('given', 'url'),
    [
        ({'host': 'relay'}, 'smtp://relay:25'),
        ({'host': 'relay', 'port': 587}, 'smtp://relay:587'),
        ({'port': '2525'}, 'smtp://localhost:2525'),
        ({'host': 'relay', 'tls': True}, 'smtp://relay:25?tls=required'),
        ({'host': 'relay', 'ssl': 'true'}, 'smtps://relay:465'),
        ({'host': 'relay', 'ssl': True, 'tls': False, 'port': 4650}, 'smtps://relay:4650'),
        ({'tls': False}, 'smtp://localhost:25'),
        ({'host': '2001:DB8::25'}, 'smtp://[2001:db8::25]:25'),
        ({'host': '[::1]', 'port': 2525}, 'smtp://[::1]:2525'),
        ({'host': 'bücher.example'}, 'smtp://bücher.example:25'),
        ({'host': 'mail_relay.'}, 'smtp://mail_relay.:25'),
    ],
)
def test_spelling_of_pyramid_mailer(given: dict[str, Any], url: str) -> None:
    """Host, port, tls and ssl give the URL that one would write today."""
    settings = parse(**given)
    assert settings.url == url
    assert settings.url_source == 'mail.host'


def test_whole_configuration_of_pyramid_mailer(tmp_path: Path) -> None:
    """An ini file written for pyramid_mailer works unchanged."""
    settings = parse(
        host='relay.example.org',
        port='587',
        tls='true',
        ssl='false',
        username='ann',
        password=SECRET,
        default_sender='shop@example.org',
        queue_path=str(tmp_path),
    )
    assert settings.url == 'smtp://relay.example.org:587?tls=required'
    assert (settings.username, settings.password) == ('ann', SECRET)
    assert settings.queue_path == str(tmp_path)


ENV = {'MAIL_URL': 'smtp://other'}


@pytest.mark.parametrize(
    ('environ', 'given', 'expected'),
    [
        ({}, {'username': 'ann', 'password': 'old'}, ('smtp://localhost:25', 'ann', 'old')),
        # An empty variable, as compose files leave it, counts as not set.
        ({'MAIL_URL': '', 'MAIL_PASSWORD': ''}, {'url': 'null:'}, ('null:', None, None)),
        (ENV, {'url': 'smtp://relay'}, ('smtp://other', None, None)),
        (ENV, {'host': 'relay', 'tls': True}, ('smtp://other', None, None)),
        # The credentials of the settings go with either URL, if it has none.
        (ENV, {'username': 'ann', 'password': 'old'}, ('smtp://other', 'ann', 'old')),
        (
            {'MAIL_URL': 'smtp://bob:new@other'},
            {'username': 'ann', 'password': 'old'},
            ('smtp://bob:new@other', None, None),
        ),
        (
            {'MAIL_URL': 'smtp://bob:new@other'},
            {'username': 'ann', 'password_file': '/does/not/exist'},
            ('smtp://bob:new@other', None, None),
        ),
        ({'MAIL_URL': 'null:'}, {'username': 'ann', 'password': 'old'}, ('null:', None, None)),
        (
            {'MAIL_URL': ' FILE:///tmp/x'},
            {'username': 'ann', 'password': 'old'},
            (' FILE:///tmp/x', None, None),
        ),
        # The password of the environment wins over every other one.
        (
            {'MAIL_PASSWORD': 'new'},
            {'username': 'ann', 'password': 'old'},
            ('smtp://localhost:25', 'ann', 'new'),
        ),
        (
            {'MAIL_PASSWORD': 'new'},
            {'username': 'ann', 'password_file': '/does/not/exist'},
            ('smtp://localhost:25', 'ann', 'new'),
        ),
        (
            {'MAIL_PASSWORD': 'n/e@w'},
            {'url': 'smtp://ann:old@relay:587?tls=required'},
            ('smtp://ann:n%2Fe%40w@relay:587?tls=required', None, None),
        ),
        (
            {'MAIL_PASSWORD': 'new'},
            {'url': 'smtp://ann@relay'},
            ('smtp://ann:new@relay', None, None),
        ),
        (
            {'MAIL_PASSWORD': 'new'},
            {'url': 'smtp://ann@example.org:old@relay'},
            ('smtp://ann@example.org:new@relay', None, None),
        ),
        (
            {'MAIL_URL': 'smtp://bob@other', 'MAIL_PASSWORD': 'new'},
            {'username': 'ann', 'password': 'old'},
            ('smtp://bob:new@other', None, None),
        ),
        (
            {**ENV, 'MAIL_PASSWORD': 'new'},
            {'username': 'ann', 'password': 'old'},
            ('smtp://other', 'ann', 'new'),
        ),
        # A password in the environment does no harm if no URL takes one.
        ({'MAIL_PASSWORD': 'new'}, {'url': 'null:'}, ('null:', None, None)),
        ({'MAIL_PASSWORD': 'new'}, {'url': 'file:///x'}, ('file:///x', None, None)),
        ({'MAIL_PASSWORD': 'new'}, {'url': 'sendmail:'}, ('sendmail:', None, None)),
        (
            {'MAIL_PASSWORD': 'new'},
            {'url': 'lmtp+unix:/x null:'},
            ('lmtp+unix:/x null:', None, None),
        ),
        # Of several URLs, those with a user and no password get it, else the only one with a
        # password; a URL with a token gets none.
        (
            {'MAIL_PASSWORD': 'n/w'},
            {'url': 'smtp://ann:old@a\n smtps://bob@b null: smtp://eve@c'},
            ('smtp://ann:old@a smtps://bob:n%2Fw@b null: smtp://eve:n%2Fw@c', None, None),
        ),
        (
            {'MAIL_PASSWORD': 'new'},
            {'url': 'smtp://a smtp://ann:old@b smtp://bob@c?token=x.y'},
            ('smtp://a smtp://ann:new@b smtp://bob@c?token=x.y', None, None),
        ),
        (
            {'MAIL_PASSWORD': 'new'},
            {'url': 'smtp://a smtp://b', 'username': 'ann'},
            ('smtp://a smtp://b', 'ann', 'new'),
        ),
        # The credentials of the settings go with the URLs of MAIL_URL that have none.
        (
            {'MAIL_URL': 'smtp://bob:new@a smtp://b'},
            {'username': 'ann', 'password': 'old'},
            ('smtp://bob:new@a smtp://b', 'ann', 'old'),
        ),
        (
            {'MAIL_URL': 'smtp://bob:new@a null:'},
            {'username': 'ann', 'password': 'old'},
            ('smtp://bob:new@a null:', None, None),
        ),
    ],
)
def test_environment_wins(
    environ: dict[str, str], given: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """MAIL_URL and MAIL_PASSWORD override the settings and the credentials that they replace."""
    assert relay(environ, **given) == expected


def test_environment_that_contradicts_the_url() -> None:
    """A password of the environment that no URL or several could take is an error, and is not
    shown."""
    for environ, url, problem in (
        ({}, 'smtp://ann@a?token_file=/x', 'a token in mail.url'),
        ({'MAIL_URL': 'smtp://a?token=x.y null:'}, 'null:', 'a token in MAIL_URL'),
        ({}, 'smtp://ann:one@a smtp://bob:two@b', '2 passwords in mail.url'),
        ({'MAIL_URL': 'smtp://ann:one@a smtp://b'}, 'null:', 'both have a password'),
    ):
        text = refusal({'MAIL_PASSWORD': SECRET, **environ}, url=url)
        assert 'MAIL_PASSWORD' in text
        assert problem in text
        for secret in (SECRET, 'one', 'two'):
            assert secret not in text.replace('one of them', '')


def test_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the process's environment counts."""
    monkeypatch.setenv('MAIL_URL', 'smtp://other')
    settings = parse_settings({})
    assert (settings.url, settings.url_source) == ('smtp://other', 'MAIL_URL')


def test_contradictions_are_errors_even_if_the_environment_wins() -> None:
    """Contradictions in the settings are errors even if the environment overrides them."""
    assert 'mail.port' in refusal(ENV, url='smtp://a', port=25)
    assert 'mail.ssl' in refusal(ENV, tls=True, ssl=True)
    assert 'mail.password_file' in refusal({'MAIL_PASSWORD': 'x'}, password='x', password_file='/x')


def test_regression_a_broken_url_is_not_quoted() -> None:
    """Once MAIL_URL went through urlsplit, whose ValueError quoted the password."""
    for url in (f'smtp://ann:{SECRET}[@relay', f'smtp://ann:{SECRET}\u2100@relay'):
        assert relay({'MAIL_URL': url})[0] == url  # the mailer refuses it


def test_password_file(tmp_path: Path) -> None:
    """The first line of the file is the password, with its blanks."""
    file = tmp_path / 'password'
    file.write_text(f' {SECRET} \r\nanother line\n', encoding='utf-8', newline='')
    assert parse(username='ann', password_file=file).password == f' {SECRET} '
    file.write_text('Zwölf', encoding='utf-8')
    assert parse(username='ann', password_file=str(file)).password == 'Zwölf'


def test_password_file_that_cannot_be_used(tmp_path: Path) -> None:
    """The error names the file and what to do, and quotes nothing of the file."""
    file = tmp_path / 'password'
    for text, remedy in (
        (refusal(password_file=file), 'give this user the right'),
        (refusal(password_file=tmp_path), 'give this user the right'),
    ):
        assert f'mail.password_file = {file.parent}' in text
        assert remedy in text
    file.write_bytes(b'')
    assert 'empty first line' in refusal(password_file=file)
    file.write_bytes(SECRET.encode() + b'\xff\n')
    with pytest.raises(ConfigurationError) as caught:
        parse(password_file=file)
    shown = ''.join(traceback.format_exception(caught.value))
    assert 'is not UTF-8' in shown
    assert SECRET not in shown
    assert '0xff' not in shown


def test_password_given_in_python_keeps_its_blanks() -> None:
    """Blanks around a password from Python code are part of it."""
    assert parse(username='ann', password=' s ').password == ' s '
    assert parse(username='ann', password=1234).password == '1234'


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
    """A masked URL shows no password, however wrong the URL is."""
    assert mask_url(url) == masked


@hypothesis.given(password=st.text(min_size=1).map(lambda text: f'<{text}>'))
def test_no_password_survives_the_mask(password: str) -> None:
    """A password is masked whether or not it is encoded."""
    for written in (password, quote(password, safe='')):
        assert mask_url(f'smtp://ann:{written}@relay:25') == 'smtp://ann:***@relay:25'


@hypothesis.given(
    host=st.text('a.-_é', max_size=5) | st.just('[::1]'),
    port=st.text('0123456789', max_size=6),
    rest=st.sampled_from(['', '/', '/x', '?x=y:z']),
)
def test_a_host_and_its_port_are_shown(host: str, port: str, rest: str) -> None:
    """A number after the host is a port, and not masked."""
    for url in (f'smtp://{host}:{port}{rest}', f'smtp://{host}{rest}'):
        assert mask_url(url) == url


@pytest.mark.parametrize('around', ['{}\n', '{}\r\n', '\ufeff{}', '\ufeff{}\n\n'])
def test_what_is_not_seen_is_no_part_of_a_secret(around: str, tmp_path: Path) -> None:
    """A line break behind a secret, and a byte order mark before it, were not meant."""
    secret, file = around.format(SECRET), tmp_path / 'password'
    file.write_text(secret, encoding='utf-8')

    assert relay({'MAIL_PASSWORD': secret}, username='ann')[2] == SECRET
    assert (
        relay({'MAIL_PASSWORD': secret}, url='smtp://ann@relay')[0] == f'smtp://ann:{SECRET}@relay'
    )
    assert relay(username='ann', password=secret)[2] == SECRET
    assert relay(username='ann', password_file=file)[2] == SECRET
    url = around.format('smtp://relay')
    assert relay({'MAIL_URL': url})[0].strip() == relay(url=url)[0].strip() == 'smtp://relay'


def test_blanks_of_a_secret_are_meant() -> None:
    """Nothing else is taken from a secret; a quotation mark alone is a part of it."""
    for secret in (' s3kr1t ', '"s3kr1t', "s3'kr1t'", '"', '\u200bs3kr1t'):
        assert relay({'MAIL_PASSWORD': secret}, username='ann')[2] == secret


PRODUCTION = {'username': 'ann', 'password': SECRET, 'host': 'relay', 'port': '587', 'tls': 'true'}


@pytest.mark.parametrize(
    ('overrides', 'environ', 'expected'),
    [
        ({'url': 'null:'}, {}, ('null:', None, None)),
        (
            {'url': 'null:'},
            {'MAIL_URL': 'smtp://real', 'MAIL_PASSWORD': 'x'},
            ('null:', None, None),
        ),
        ({'url': 'smtp://test'}, {}, ('smtp://test', 'ann', SECRET)),
        ({'url': 'smtp://a:b@test'}, {}, ('smtp://a:b@test', None, None)),
        ({'password': 'new'}, {'MAIL_PASSWORD': 'x'}, (None, 'ann', 'new')),
        ({'username': 'bob'}, {'MAIL_PASSWORD': 'x'}, (None, 'bob', 'x')),
        ({'port': '26', 'tls': 'no'}, {}, ('smtp://relay:26', 'ann', SECRET)),
    ],
)
def test_overrides(overrides: dict[str, str], environ: dict[str, str], expected: Any) -> None:
    """Settings of a command line win over those of the file and of the environment."""
    settings = parse_settings(
        {f'mail.{name}': value for name, value in PRODUCTION.items()},
        environ,
        {f'mail.{name}': value for name, value in overrides.items()},
    )
    url, *credentials = expected
    assert settings.url == (url or 'smtp://relay:587?tls=required')
    assert [settings.username, settings.password] == credentials
    assert settings.url_source == ('--set mail.url' if 'url' in overrides else 'mail.host')
