"""The table of settings: each row, unknown keys, wrong values, secrets."""

from __future__ import annotations

import copy
import socket
from dataclasses import asdict
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.settings.table import (
    TABLE,
    MailSettings,
    Setting,
    parse_settings,
    table_rows,
)
from tests.support.configuration import SECRET, parse, refusal

HOUR, DAY = 3600.0, 86400.0


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting, everything has the value that the table promises."""
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
        base_url=None,
        workers=4,
        processes=1,
        batch=100,
        event_batch=1,
        rate=None,
        retry=(60.0, 300.0, 900.0, 1800.0, HOUR, 2 * HOUR),
        give_up_after=3 * DAY,
        keep_failed=None,
        max_size=25 * 1024 * 1024,
        queue_sync='always',
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
    ('base_url', 'https://shop.example.org', 'https://shop.example.org'),
    ('base_url', 'http://localhost:6543/shop/', 'http://localhost:6543/shop'),
    ('hostname', 'mail.example.org', 'mail.example.org'),
    ('hostname', 'mail.example.org.', 'mail.example.org'),
    ('hostname', '[192.0.2.1]', '[192.0.2.1]'),
    ('hostname', '[ipv6:2001:DB8::1]', '[IPv6:2001:db8::1]'),
    ('workers', '1', 1),
    ('workers', 8, 8),
    ('processes', '3', 3),
    ('processes', 8, 8),
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
    ('queue_sync', 'always', 'always'),
    ('queue_sync', 'vote', 'vote'),
    ('queue_sync', 'Off', 'off'),
    ('queue_sync', 'false', 'off'),
    ('queue_sync', False, 'off'),
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
    """An empty setting counts as not set."""
    for nothing in ('', None) if row.name == 'mail.password' else ('', '  ', None):
        assert parse_settings({row.name: nothing}, {}) == parse()


def test_every_row_has_a_value_in_the_tests() -> None:
    """Each row of the table has a value in these tests."""
    tried = {f'mail.{name}' for name, _, _ in VALUES}
    elsewhere = {f'mail.{name}' for name in ('host', 'port', 'tls', 'ssl', 'ignore')}
    elsewhere |= {'mail.password', 'mail.password_file'}
    assert {row.name for row in TABLE} == tried | elsewhere


def test_foreign_settings() -> None:
    """Settings that do not begin with ``mail.`` are ignored."""
    assert parse_settings({'mailer.url': 'x', 'mail': 'x', 'email.x': b'', 3: 4}, {}) == parse()  # type: ignore[dict-item]


def test_settings_are_not_changed() -> None:
    """The application's dictionary is not changed."""
    given = {'mail.retry': ['1m'], 'mail.ignore': 'x', 'mail.x': object(), 'mail.port': 25}
    before = copy.copy(given)
    parse_settings(given, {})
    assert given == before


def test_no_secret_in_the_repr() -> None:
    """The repr shows neither the password nor the URL."""
    settings = parse(url=f'smtp://ann:{SECRET}@relay')
    assert SECRET not in repr(settings)
    assert 'relay' not in repr(settings)
    assert SECRET not in repr(parse(username='ann', password=SECRET))
    assert SECRET not in str(parse({'MAIL_PASSWORD': SECRET}, username='ann'))


def test_secret_rows() -> None:
    """Each row that can hold a password is marked secret."""
    assert {row.name for row in TABLE if row.secret} == {'mail.url', 'mail.password'}


def test_unknown_setting_names_the_nearest() -> None:
    """An unknown key is an error that names the nearest known one."""
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


@pytest.mark.parametrize(
    ('wrong', 'meant'),
    [
        ('sender', 'default_sender'),
        ('maildir', 'queue_path'),
        ('user', 'username'),
        ('queue-dir', 'queue_path'),
        ('smtp_servr', 'host'),
        ('passwd', 'password'),
        ('timeout', 'direct_timeout'),
        ('defualt_sender', 'default_sender'),
        ('prot', 'port'),
        ('worker', 'workers'),
    ],
)
def test_synonyms(wrong: str, meant: str) -> None:
    """What a setting is called elsewhere, or nearly, leads to it."""
    assert f'Did you mean mail.{meant}?' in refusal(**{wrong: 'x'})


@pytest.mark.parametrize(
    'wrong', ['region', 'footer', 'logo', 'hidden', 'support', 'team', 'preview', 'x', 'templates']
)
def test_nothing_far_fetched(wrong: str) -> None:
    """A name of the application's own is no misspelt setting of ours."""
    assert refusal(**{wrong: 'x'}) == (
        f'unknown setting mail.{wrong}. If your application owns it, add mail.ignore = {wrong}'
    )


def test_all_mistakes_at_once() -> None:
    """One error names every setting that is wrong, each with its remedy, and no secret."""
    text = refusal(
        {'MAIL_PASSWORD': f'"{SECRET}"'},
        queue='/srv/mail',
        colour='red',
        keyfile='x',
        workers='0',
        port=True,
        batch='many',
        ignore='rate',
        url='smtp://ann@relay',
        password=SECRET.encode(),
    )
    assert text.splitlines() == [
        '8 settings are wrong:',
        '- mail.ignore: mail.rate is a setting of pyramid_sendmail and is always checked; rename '
        'the one of your application',
        '- unknown setting mail.queue. Did you mean mail.queue_path? If your application owns it, '
        'add mail.ignore = queue',
        '- unknown setting mail.colour. If your application owns it, add mail.ignore = colour',
        '- mail.keyfile is a setting of pyramid_mailer: write mail.url = '
        'smtps://HOST?client_cert=FILE&client_key=FILE',
        '- mail.port is of the type bool: give it as a str',
        '- mail.password is of the type bytes: give it as a str',
        '- mail.workers = 0: write a number from 1 to 99999',
        '- mail.batch = many: write a number from 1 to 99999',
    ]
    both = refusal(url='smtp://a', host='a', workers='0')
    assert 'mail.url and mail.host both name the relay' in both
    assert 'mail.workers = 0' in both


def test_a_password_in_the_wrong_place_is_not_shown() -> None:
    """A setting that may hold a password, or a piece of one, is not shown by its error."""
    for name, wrong in (
        ('host', f'ann:{SECRET}@relay'),
        ('host', f'ann:{SECRET}'),
        ('host', f'{SECRET}@relay:25'),
        ('port', f'{SECRET}@relay:25'),
        ('hostname', f'ann:{SECRET}@relay'),
        ('password_file', SECRET),
        ('password_file', f'etc/{SECRET}'),
    ):
        text = refusal(**{name: wrong})
        assert text.startswith(f'mail.{name}: write ')
        assert SECRET not in text


class Word(str, Enum):  # noqa: UP042 - a StrEnum's str() is its value
    """Settings that Python code names."""

    URL = 'smtp://relay'
    PASSWORD = 's3kr1t'


def test_enum() -> None:
    """A member of a (str, Enum) class is its value; a byte order mark is no part of a text."""
    settings = parse(url=[Word.URL], password=Word.PASSWORD, username='\ufeffann')
    assert (settings.url, settings.password) == ('smtp://relay', 's3kr1t')
    assert type(settings.password) is str
    assert settings.username == 'ann'


def test_ignored_settings() -> None:
    """The keys in mail.ignore are the application's own and may have any value."""
    for ignore in (
        'region backend',
        'region, backend',
        ['region', 'backend'],
        'mail.region backend',
    ):
        assert parse(ignore=ignore, region='eu', backend=object()) == parse()
    assert 'unknown setting mail.backend' in refusal(ignore='region', region='eu', backend='x')


def test_our_settings_cannot_be_ignored() -> None:
    """Our own settings, and those of later releases, cannot be ignored."""
    for name in ('workers', 'redirect_to'):
        text = refusal(ignore=name, **{name: 'x'})
        assert f'mail.{name}' in text
        assert 'rename' in text


@pytest.mark.parametrize('name', ['redirect_to', 'allow'])
def test_settings_of_later_releases(name: str) -> None:
    """A setting of a later release is refused: ignored, it would let mail of a staging machine
    out."""
    text = refusal(**{name: 'x'})
    assert f'mail.{name} is not supported yet' in text
    assert 'mail.ignore' not in text


@pytest.mark.parametrize(
    'name', ['keyfile', 'certfile', 'debug', 'debug_smtp', 'sendmail_app', 'sendmail_template']
)
def test_settings_of_pyramid_mailer_that_are_gone(name: str) -> None:
    """Settings of pyramid_mailer that are gone name their replacement."""
    text = refusal(**{name: 'x'})
    assert f'mail.{name} is a setting of pyramid_mailer' in text
    assert 'mail.url' in text or 'logging' in text


@pytest.mark.parametrize('value', [b's3kr1t', object(), {'a': 1}, Decimal(3)])
def test_values_of_wrong_types(value: Any) -> None:
    """Values that are no text are refused, and not shown."""
    text = refusal(username='ann', password=value)
    assert 'mail.password is of the type' in text
    assert SECRET not in text
    assert 'mail.workers' in refusal(workers=value)
    assert 'mail.ignore' in refusal(ignore=value)


@pytest.mark.parametrize('name', ['password', 'queue_path', 'host', 'username', 'url', 'workers'])
def test_booleans_instead_of_text(name: str) -> None:
    """A boolean is refused where text is expected, as from ``os.environ.get(..., False)``."""
    for value in (True, False):
        assert f'mail.{name} is of the type bool' in refusal(**{name: value})


def test_url_in_the_wrong_place_is_not_shown() -> None:
    """A whole URL written as another setting is not shown: it may have a password."""
    for name in ('host', 'queue_path', 'hostname', 'delivery'):
        text = refusal(**{name: f'smtp://ann:{SECRET}@relay'})
        assert text.startswith(f'mail.{name}: write')
        assert SECRET not in text


def test_long_values_are_cut() -> None:
    """An error shows at most the beginning of a long value."""
    assert len(refusal(give_up_after='9' * 10_000)) < 200


def test_own_hostname(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's name is used if a relay would accept it, and is never resolved."""
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
def test_wrong_rates(wrong: str) -> None:
    """A rate is a number of mails and a unit of time."""
    text = refusal(rate=wrong)
    assert text.startswith(f'mail.rate = {wrong}: write ')
    assert '20/s' in text


def test_table_rows_and_help() -> None:
    """Each row has a default and a meaning, on one line."""
    rows = list(table_rows())
    assert [name for name, _, _ in rows] == [row.name for row in TABLE]
    for name, default, meaning in rows:
        assert default not in ('', '````'), name
        assert meaning
        assert '\n' not in meaning


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
