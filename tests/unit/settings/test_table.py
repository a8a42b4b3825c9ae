"""The table of settings: every row, contradictions, spellings, the environment, and secrets."""

from __future__ import annotations

import copy
import re
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.exceptions import ConfigurationError

from pyramid_sendmail.message.attachment import size_text
from pyramid_sendmail.settings import converters
from pyramid_sendmail.settings.table import (
    TABLE,
    MailSettings,
    Setting,
    parse_settings,
    table_rows,
)

SECRET = 's3kr1t'

HOUR, DAY = 3600.0, 86400.0


def parse(environ: dict[str, str] | None = None, **given: Any) -> MailSettings:
    """Settings without their ``mail.``, and an environment without surprises."""
    return parse_settings({f'mail.{name}': value for name, value in given.items()}, environ or {})


def relay(environ: dict[str, str] | None = None, **given: Any) -> tuple[Any, ...]:
    settings = parse(environ, **given)
    return settings.url, settings.username, settings.password


def refusal(environ: dict[str, str] | None = None, **given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(environ, **given)
    return str(caught.value)


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a single setting everything has the value that the table promises."""
    monkeypatch.setattr(socket, 'gethostname', lambda: 'web.example.org')
    settings = parse()
    assert settings == MailSettings(
        delivery=None,
        url='smtp://localhost:25',
        url_source='mail.url',
        username=None,
        password=None,
        queue_path=None,
        default_sender=None,
        envelope_sender=None,
        hostname='web.example.org',
        workers=4,
        batch=100,
        event_batch=1,
        rate=None,
        retry=(60.0, 300.0, 900.0, 1800.0, HOUR, 2 * HOUR),
        give_up_after=3 * DAY,
        keep_failed=None,
        max_size=25 * 1024 * 1024,
        queue_sync=True,
        queue_mode='private',
        in_doubt='hold',
        ambiguous='resend',
        processor='off',
        direct_wait=True,
        direct_timeout=30.0,
    )
    assert settings.retry_policy.delays == settings.retry
    assert settings.retry_policy.give_up_after == settings.give_up_after


VALUES = [
    ('delivery', 'direct', 'direct'),
    ('delivery', 'Queue', 'queue'),
    ('delivery', 'myapp.mail.Delivery', 'myapp.mail.Delivery'),
    ('delivery', 'myapp.mail:delivery', 'myapp.mail:delivery'),
    ('delivery', '.mail.delivery', '.mail.delivery'),
    ('url', ' null: ', 'null:'),
    ('url', ['smtp://a', 'null:'], 'smtp://a null:'),
    ('url', '\n smtp://a\n smtp://b', 'smtp://a\n smtp://b'),
    ('username', ' ann ', 'ann'),
    ('queue_path', '/srv/app/./mail/', '/srv/app/mail'),
    ('queue_path', Path('/srv/mail'), '/srv/mail'),
    ('default_sender', 'Shop <shop@example.org>', 'Shop <shop@example.org>'),
    ('envelope_sender', 'bounces@example.org', 'bounces@example.org'),
    ('envelope_sender', ' ', None),
    ('hostname', 'mail.example.org', 'mail.example.org'),
    ('hostname', 'mail.example.org.', 'mail.example.org'),
    ('hostname', '[192.0.2.1]', '[192.0.2.1]'),
    ('hostname', '[ipv6:2001:DB8::1]', '[IPv6:2001:db8::1]'),
    ('workers', '1', 1),
    ('workers', 8, 8),
    ('batch', '99999', 99999),
    ('event_batch', '50', 50),
    ('rate', '20/s', (20, 1)),
    ('rate', '600 / m', (600, 60)),
    ('rate', '90/h', (90, 3600)),
    ('rate', '2000/d', (2000, 86400)),
    ('rate', 'off', None),
    ('rate', 'Off', None),
    ('rate', False, None),
    ('retry', '90s', (90.0,)),
    ('retry', '1m, 5m,1h', (60.0, 300.0, HOUR)),
    ('retry', '\n 1m\n 1.5h\n', (60.0, 1.5 * HOUR)),
    ('retry', ['1m', '2h'], (60.0, 2 * HOUR)),
    ('give_up_after', '2 d', 2 * DAY),
    ('give_up_after', '0s', 0.0),
    ('keep_failed', '30d', 30 * DAY),
    ('keep_failed', 'Off', None),
    ('keep_failed', False, None),
    ('max_size', '500K', 500 * 1024),
    ('max_size', '10 mb', 10 * 1024**2),
    ('max_size', '1G', 1024**3),
    ('max_size', 1000, 1000),
    ('queue_sync', 'always', True),
    ('queue_sync', 'Off', False),
    ('queue_sync', 'false', False),
    ('queue_sync', False, False),
    ('queue_mode', 'Group', 'group'),
    ('in_doubt', 'send', 'send'),
    ('ambiguous', 'hold', 'hold'),
    ('processor', 'thread', 'thread'),
    ('processor', False, 'off'),
    ('direct_wait', 'no', False),
    ('direct_wait', 'off', False),
    ('direct_wait', 'YES', True),
    ('direct_wait', False, False),
    ('direct_wait', 1, True),
    ('direct_timeout', '500s', 500.0),
]


@pytest.mark.parametrize(('name', 'given', 'value'), VALUES)
def test_values(name: str, given: Any, value: Any) -> None:
    """Text from an ini file and values from Python code mean the same."""
    assert getattr(parse(**{name: given}), name) == value


@pytest.mark.parametrize('row', TABLE, ids=lambda row: row.name)
def test_nothing_given(row: Setting) -> None:
    """An empty setting is as good as none, whichever it is."""
    for nothing in ('', None) if row.name == 'mail.password' else ('', '  ', None):
        assert parse_settings({row.name: nothing}, {}) == parse()


def test_every_row_has_a_value_in_the_tests() -> None:
    """A new row of the table has to say here what it takes."""
    tried = {f'mail.{name}' for name, _, _ in VALUES}
    elsewhere = {f'mail.{name}' for name in ('host', 'port', 'tls', 'ssl', 'ignore')}
    elsewhere |= {'mail.password', 'mail.password_file'}
    assert {row.name for row in TABLE} == tried | elsewhere


def test_foreign_settings() -> None:
    """What does not begin with ``mail.`` is none of our business, whatever it is."""
    assert parse_settings({'mailer.url': 'x', 'mail': 'x', 'email.x': b'', 3: 4}, {}) == parse()  # type: ignore[dict-item]


def test_settings_are_not_changed() -> None:
    """The application's own dictionary stays as it was."""
    given = {'mail.retry': ['1m'], 'mail.ignore': 'x', 'mail.x': object(), 'mail.port': 25}
    before = copy.copy(given)
    parse_settings(given, {})
    assert given == before


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
    """Host, port, tls and ssl give the same URL that one would write today."""
    settings = parse(**given)
    assert settings.url == url
    assert settings.url_source == 'mail.host'


def test_whole_configuration_of_pyramid_mailer(tmp_path: Path) -> None:
    """An ini file written for pyramid_mailer works as it is."""
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
        # An empty variable, as compose files leave them, is none.
        ({'MAIL_URL': '', 'MAIL_PASSWORD': ''}, {'url': 'null:'}, ('null:', None, None)),
        (ENV, {'url': 'smtp://relay'}, ('smtp://other', None, None)),
        (ENV, {'host': 'relay', 'tls': True}, ('smtp://other', None, None)),
        # Credentials stand beside either URL, if it has none.
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
        # A password lies about in the environment of a test run that sends nothing.
        ({'MAIL_PASSWORD': 'new'}, {'url': 'null:'}, ('null:', None, None)),
        ({'MAIL_PASSWORD': 'new'}, {'url': 'file:///x'}, ('file:///x', None, None)),
        ({'MAIL_PASSWORD': 'new'}, {'url': 'sendmail:'}, ('sendmail:', None, None)),
        (
            {'MAIL_PASSWORD': 'new'},
            {'url': 'lmtp+unix:/x null:'},
            ('lmtp+unix:/x null:', None, None),
        ),
        # Of several URLs, those that name a user and no password get it, or the only one that has
        # a password; a token needs none.
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
        # Credentials stand beside those of MAIL_URL's that have none.
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
    """MAIL_URL and MAIL_PASSWORD win over the settings, and take the right ones away with them."""
    assert relay(environ, **given) == expected


def test_environment_that_contradicts_the_url() -> None:
    """A password that nobody takes, or that several might, is told, and shown to nobody."""
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
    """Unless told otherwise the process's own environment counts."""
    monkeypatch.setenv('MAIL_URL', 'smtp://other')
    settings = parse_settings({})
    assert (settings.url, settings.url_source) == ('smtp://other', 'MAIL_URL')


def test_contradictions_are_told_even_where_the_environment_wins() -> None:
    """A wrong file is wrong on every machine."""
    assert 'mail.port' in refusal(ENV, url='smtp://a', port=25)
    assert 'mail.ssl' in refusal(ENV, tls=True, ssl=True)
    assert 'mail.password_file' in refusal({'MAIL_PASSWORD': 'x'}, password='x', password_file='/x')


def test_regression_a_broken_url_is_not_quoted() -> None:
    """MAIL_URL went through urlsplit, which raised a bare ValueError, the password in its text."""
    for url in (f'smtp://ann:{SECRET}[@relay', f'smtp://ann:{SECRET}\u2100@relay'):
        assert relay({'MAIL_URL': url})[0] == url  # the mailer refuses it, and knows how


def test_password_file(tmp_path: Path) -> None:
    """The first line is the password, blanks and all."""
    file = tmp_path / 'password'
    file.write_text(f' {SECRET} \r\nanother line\n', encoding='utf-8', newline='')
    assert parse(username='ann', password_file=file).password == f' {SECRET} '
    file.write_text('Zwölf', encoding='utf-8')
    assert parse(username='ann', password_file=str(file)).password == 'Zwölf'


def test_password_file_that_cannot_be_used(tmp_path: Path) -> None:
    """The error names the file and what to do, and nothing that was read."""
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
    """An ini file has stripped it already; Python code means what it says."""
    assert parse(username='ann', password=' s ').password == ' s '
    assert parse(username='ann', password=1234).password == '1234'


def test_no_secret_in_the_repr() -> None:
    """Not the password, and not the URL that may have one."""
    settings = parse(url=f'smtp://ann:{SECRET}@relay')
    assert SECRET not in repr(settings)
    assert 'relay' not in repr(settings)
    assert SECRET not in repr(parse(username='ann', password=SECRET))
    assert SECRET not in str(parse({'MAIL_PASSWORD': SECRET}, username='ann'))


def test_secret_rows() -> None:
    """Whatever can hold a password is marked, so that no error and no listing shows it."""
    assert {row.name for row in TABLE if row.secret} == {'mail.url', 'mail.password'}


@given(octets=st.one_of(st.integers(1, 2**40), st.sampled_from([1023, 1024, 25 * 2**20, 2**30])))
def test_a_size_is_said_as_it_is_written(octets: int) -> None:
    """An error says a size in the words of the setting, and none but that size."""
    assert converters.size(size_text(octets)) == octets
    assert [size_text(each) for each in (1024, 25 * 2**20, 2**30, 1025)] == [
        '1K',
        '25M',
        '1G',
        '1025',
    ]


def test_unknown_setting_names_the_nearest() -> None:
    """A misspelled key is never ignored."""
    for wrong, nearest in (
        ('queue_pathh', 'mail.queue_path'),
        ('queue-path', 'mail.queue_path'),
        ('Host', 'mail.host'),
        ('senders', 'mail.default_sender'),
        ('retries', 'mail.retry'),
        ('queue', 'mail.queue_path'),
        ('path', 'mail.queue_path'),
        ('server', 'mail.host'),
        ('from', 'mail.default_sender'),
    ):
        text = refusal(**{wrong: SECRET})
        assert text == (
            f'unknown setting mail.{wrong}. Did you mean {nearest}? If your application owns it, '
            f'add mail.ignore = {wrong}'
        )
        assert SECRET not in text
    for unlike in ('xyz', 'colour', ''):
        text = refusal(**{unlike: SECRET})
        assert text == (
            f'unknown setting mail.{unlike}. If your application owns it, add mail.ignore = '
            f'{unlike}'
        )


def test_ignored_settings() -> None:
    """The application keeps keys for itself, whatever their values are."""
    for ignore in (
        'region backend',
        'region, backend',
        ['region', 'backend'],
        'mail.region backend',
    ):
        assert parse(ignore=ignore, region='eu', backend=object()) == parse()
    assert 'unknown setting mail.backend' in refusal(ignore='region', region='eu', backend='x')


def test_ignoring_what_is_ours() -> None:
    """Our own settings, those of versions to come included, cannot be silenced."""
    for name in ('workers', 'redirect_to'):
        text = refusal(ignore=name, **{name: 'x'})
        assert f'mail.{name}' in text
        assert 'rename' in text


@pytest.mark.parametrize('name', ['redirect_to', 'allow'])
def test_settings_of_versions_to_come(name: str) -> None:
    """A staging machine whose mail.redirect_to were ignored would write to everybody."""
    text = refusal(**{name: 'x'})
    assert f'mail.{name} is not supported yet' in text
    assert 'mail.ignore' not in text


@pytest.mark.parametrize(
    'name', ['keyfile', 'certfile', 'debug', 'debug_smtp', 'sendmail_app', 'sendmail_template']
)
def test_settings_of_pyramid_mailer_that_are_gone(name: str) -> None:
    """They name their replacement."""
    text = refusal(**{name: 'x'})
    assert f'mail.{name} is a setting of pyramid_mailer' in text
    assert 'mail.url' in text or 'logging' in text


@pytest.mark.parametrize('value', [b's3kr1t', object(), {'a': 1}, Decimal(3)])
def test_values_that_are_no_text(value: Any) -> None:
    """Their repr would be taken for the text, or shown."""
    text = refusal(username='ann', password=value)
    assert 'mail.password is of the type' in text
    assert SECRET not in text
    assert 'mail.workers' in refusal(workers=value)
    assert 'mail.ignore' in refusal(ignore=value)


@pytest.mark.parametrize('name', ['password', 'queue_path', 'host', 'username', 'url', 'workers'])
def test_booleans_where_none_belong(name: str) -> None:
    """``os.environ.get(..., False)`` is no password."""
    for value in (True, False):
        assert f'mail.{name} is of the type bool' in refusal(**{name: value})


def test_url_in_the_wrong_place_is_not_shown() -> None:
    """Somebody who writes the whole URL as mail.host must not find its password in a log."""
    for name in ('host', 'queue_path', 'hostname', 'delivery'):
        text = refusal(**{name: f'smtp://ann:{SECRET}@relay'})
        assert text.startswith(f'mail.{name}: write')
        assert SECRET not in text


def test_long_values_are_cut() -> None:
    """An error stays readable."""
    assert len(refusal(give_up_after='9' * 10_000)) < 200


@pytest.mark.parametrize(
    'convert',
    [
        *('hostname', 'host', 'delivery', 'duration', 'size', 'rate'),
        *('absolute_path', 'durations'),
    ],
)
def test_regression_converters_take_no_time(convert: str) -> None:
    """A host name of forty characters and an underscore kept the application from starting."""
    for tail in ('_', '!', ' ', '-', '.', ':', '_.'):
        for text in ('a' * 250 + tail, 'a.' * 100 + tail, 'a-' * 100 + tail, '1' * 250 + tail):
            start = time.process_time()
            with suppress(ValueError):
                getattr(converters, convert)(text)
            assert time.process_time() - start < 0.5


def test_own_hostname(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's name is used if a relay would take it, and never resolved."""
    for own, used in (
        ('web1', 'web1'),
        ('build_server_of_the_department_number_12', 'localhost'),
        ('', 'localhost'),
        ('bücher', 'localhost'),
    ):
        monkeypatch.setattr(socket, 'gethostname', lambda own=own: own)
        assert parse().hostname == used


@pytest.mark.parametrize(
    'wrong',
    ['20', '0/s', '-1/s', '1.5/s', '20/', '/s', '20 per second', '20/10s', '٣/s', '1e3/s'],
)
def test_rates_that_are_none(wrong: str) -> None:
    """A number of mails and a unit of time, and nothing else."""
    text = refusal(rate=wrong)
    assert text.startswith(f'mail.rate = {wrong}: write ')
    assert '20/s' in text


@pytest.mark.parametrize(
    'wrong',
    ['', '90', 's', '5 x', '-5m', '+5m', '5m 5m', '1e3s', '٣d', '5M', '0x5s', '1_0s', '3651d'],
)
def test_durations_that_are_none(wrong: str) -> None:
    """A number and a unit, and nothing else."""
    with pytest.raises(ValueError, match='write'):
        converters.duration(wrong)


def test_table_rows_and_help() -> None:
    """Each row says its default and its meaning, in a line."""
    rows = list(table_rows())
    assert [name for name, _, _ in rows] == [row.name for row in TABLE]
    for name, default, meaning in rows:
        assert default not in ('', '````'), name
        assert meaning
        assert '\n' not in meaning


_LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?'


def takes(convert: Callable[[str], Any], text: str) -> bool:
    try:
        convert(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ('convert', 'pattern', 'letters'),
    [
        (converters.count, '0*[1-9][0-9]*(?<![0-9]{6})', '019.٣ '),
        (
            converters.size,
            '(?=[0-9]*[1-9])[0-9]{1,15} *[kmgKMG\u212a]?[bB]?',
            '019kKMmgGbBs. \u212a٣',
        ),
        (converters.duration, r'\s*[0-9]{1,4}(?:\.[0-9]{1,9})? *[smhd]\s*', '019.smhdSk٣ \n'),
        (converters.hostname, rf'{_LABEL}(?:\.{_LABEL})*\.?', 'aZ09.-_é٣ \n'),
    ],
)
@given(data=st.data())
def test_converters_take_what_their_pattern_says(
    convert: Callable[[str], Any], pattern: str, letters: str, data: st.DataObject
) -> None:
    """They compile none at each start: it is written here."""
    text = data.draw(st.text(letters, max_size=5))
    assert takes(convert, text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    ('convert', 'text', 'taken'),
    [
        (converters.size, '1' * 15, True),
        (converters.size, '1' * 16, False),
        (converters.size, '25 mb', True),
        (converters.size, '25m b', False),
        (converters.duration, '000000001.123456789s', True),
        (converters.duration, '0000000001s', False),
        (converters.duration, '1.1234567890s', False),
        (converters.hostname, 'a' * 63, True),
        (converters.hostname, 'a' * 64, False),
        (converters.hostname, '.'.join(['a' * 63] * 3 + ['a' * 61]), True),
        (converters.hostname, '.'.join(['a' * 63] * 3 + ['a' * 62]), False),
    ],
)
def test_how_long_a_value_may_be(convert: Callable[[str], Any], text: str, taken: bool) -> None:
    """Digits, labels and names."""
    assert takes(convert, text) is taken


def test_settings_are_frozen() -> None:
    """The parsed settings cannot be changed; equal ones have the same hash."""
    settings = parse()
    for change in (lambda: setattr(settings, 'url', 'null:'), lambda: delattr(settings, 'url')):
        with pytest.raises(AttributeError, match='url'):
            change()
    assert hash(settings) == hash(parse())
    assert settings != parse(url='null:')
    assert settings != asdict(settings)
    with pytest.raises(TypeError, match='delivery'):
        MailSettings(url='null:')  # type: ignore[call-arg]
