"""The ``mail.*`` settings: one table gives the parser, the README's table and ``--help``."""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from pyramid.exceptions import ConfigurationError
from pyramid.settings import falsey, truthy
from zope.interface import implementer

from .interfaces import IMailSettings
from .retry import RetryPolicy

__all__ = ['TABLE', 'MailSettings', 'Setting', 'duration', 'parse_settings', 'table_rows']


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: ``convert`` makes the value of the text, or raises ValueError saying what to
    write; ``default`` is written as the reader would write it."""

    name: str
    convert: Callable[[str], Any]
    default: str
    help: str
    shown: str = ''
    """The default in words, where it is not a value."""
    secret: bool = False


def _text(value: str) -> str:
    return value


def _boolean(value: str) -> bool:
    if value.lower() in truthy:
        return True
    if value.lower() in falsey or value.lower() == 'off':
        return False
    raise ValueError('write true or false')


def _port(value: str) -> int:
    if value.isascii() and value.isdigit() and 0 < int(value) < 65536:
        return int(value)
    raise ValueError('write a port number between 1 and 65535')


def _count(value: str) -> int:
    if value.isascii() and value.isdigit() and int(value) > 0:
        return int(value)
    raise ValueError('write a number, 1 or more')


def _choice(*words: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        if value in words:
            return value
        raise ValueError(f'write {" or ".join(words)}')

    return convert


def _absolute_path(value: str) -> str:
    if os.path.isabs(value):
        return os.path.normpath(value)
    raise ValueError(
        f'write an absolute path, such as %(here)s/{value}: '
        f'the web process and psendmail-qp may stand in different folders'
    )


_UNITS = {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}


def duration(value: str) -> float:
    """Seconds of ``90s``, ``5m``, ``2h`` or ``3d``."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?) *([smhd])', value.strip(), re.ASCII)
    if match is None:
        raise ValueError('write a number and a unit: 90s, 5m, 2h, 3d')
    return float(match[1]) * _UNITS[match[2]]


def _durations(value: str) -> tuple[float, ...]:
    delays = tuple(duration(word) for word in value.replace(',', ' ').split())
    if not delays or min(delays) <= 0:
        raise ValueError('write one or more delays: 1m 5m 15m')
    return delays


def _size(value: str) -> int:
    match = re.fullmatch(r'(\d+) *([kmg]?)b?', value.strip().lower(), re.ASCII)
    if match is None or not int(match[1]):
        raise ValueError('write a number of octets, or 500K, 25M, 1G')
    return int(match[1]) * 1024 ** ' kmg'.index(match[2] or ' ')


def _hostname(value: str) -> str:
    if len(value) <= 253 and re.fullmatch(
        r'(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.?)+|\[[0-9a-fA-F:.IPv]+\]', value
    ):
        return value
    raise ValueError('write a host name of letters, digits, hyphens and dots')


TABLE: tuple[Setting, ...] = (
    Setting(
        'mail.delivery',
        _text,
        '',
        '``direct``, ``queue``, or the dotted name of an IMailDelivery',
        '``queue`` when ``mail.queue_path`` is set, else ``direct``',
    ),
    Setting(
        'mail.url',
        _text,
        'smtp://localhost:25',
        'how mail leaves: ``smtp:``, ``smtps:``, ``smtp+insecure:``, ``file:`` or ``null:``; '
        '``MAIL_URL`` in the environment wins',
        secret=True,
    ),
    Setting('mail.host', _text, '', "the relay, in pyramid_mailer's spelling", '``localhost``'),
    Setting('mail.port', _port, '', 'its port, beside ``mail.host``', '25'),
    Setting('mail.tls', _boolean, '', 'demand STARTTLS, beside ``mail.host``', 'off'),
    Setting('mail.ssl', _boolean, '', 'TLS from the first byte, beside ``mail.host``', 'off'),
    Setting('mail.username', _text, '', 'credentials, where ``mail.url`` has none', 'none'),
    Setting(
        'mail.password',
        _text,
        '',
        'the password; ``MAIL_PASSWORD`` in the environment wins',
        'none',
        secret=True,
    ),
    Setting(
        'mail.password_file',
        _absolute_path,
        '',
        'a file whose first line is the password',
        'none',
    ),
    Setting(
        'mail.queue_path',
        _absolute_path,
        '',
        'the Maildir in which mail waits: an absolute path, ``%(here)s/mail``',
        'no queue',
    ),
    Setting('mail.default_sender', _text, '', '``From:`` of a message that has none', 'none'),
    Setting(
        'mail.envelope_sender',
        _text,
        '',
        '``MAIL FROM``: where bounces go',
        'the address of ``From:``',
    ),
    Setting(
        'mail.hostname',
        _hostname,
        '',
        'the name said in EHLO, and the right side of message ids; never resolved',
        "the host's name",
    ),
    Setting('mail.workers', _count, '4', 'connections that the queue processor keeps'),
    Setting('mail.batch', _count, '100', 'mails per connection before it is opened anew'),
    Setting(
        'mail.retry',
        _durations,
        '1m 5m 15m 30m 1h 2h',
        'pauses after a temporary failure; the last one repeats; a fifth more or less by chance',
    ),
    Setting(
        'mail.give_up_after', duration, '3d', 'the age at which a temporary failure is final'
    ),
    Setting('mail.max_size', _size, '25M', 'larger messages are refused by ``send``'),
    Setting(
        'mail.queue_sync',
        _choice('always', 'off'),
        'always',
        '``off`` leaves out every fsync: for tests and development',
    ),
    Setting(
        'mail.in_doubt',
        _choice('hold', 'send'),
        'hold',
        'mail of which nobody knows whether its transaction committed: held in ``failed/``, '
        'or sent',
    ),
    Setting(
        'mail.ambiguous',
        _choice('resend', 'hold'),
        'resend',
        "mail whose acceptance the relay's last word did not confirm: sent again with the same "
        'Message-ID, or held in ``failed/``',
    ),
    Setting(
        'mail.processor',
        _choice('thread', 'off'),
        'off',
        '``thread`` drains the queue inside the web process',
    ),
    Setting(
        'mail.direct_wait',
        _boolean,
        'true',
        'direct delivery: the commit waits until the relay has answered',
    ),
    Setting(
        'mail.direct_timeout', duration, '30s', 'direct delivery: how long it waits at most'
    ),
    Setting(
        'mail.ignore',
        _text,
        '',
        'last parts of ``mail.`` keys that the application keeps for itself: ``region backend``',
        'none',
    ),
)

_GONE = {
    'mail.keyfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.certfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.debug': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.debug_smtp': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.sendmail_app': 'the local mail server listens at mail.url = smtp://localhost:25',
    'mail.sendmail_template': 'the local mail server listens at mail.url = smtp://localhost:25',
}


@implementer(IMailSettings)
@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """The parsed settings. Durations in seconds, sizes in octets."""

    delivery: str
    url: str
    username: str | None
    password: str | None
    queue_path: str | None
    default_sender: str | None
    envelope_sender: str | None
    hostname: str
    workers: int
    batch: int
    retry: tuple[float, ...]
    give_up_after: float
    max_size: int
    queue_sync: bool
    in_doubt: str
    ambiguous: str
    processor: str
    direct_wait: bool
    direct_timeout: float

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy(delays=self.retry, give_up_after=self.give_up_after)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.delivery}>'


def parse_settings(
    settings: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> MailSettings:
    """Read the table's settings. Raises ConfigurationError, naming the setting and the remedy."""
    environ = os.environ if environ is None else environ
    given = {
        key: value if isinstance(value, str) else str(value)
        for key, value in settings.items()
        if key.startswith('mail.') and value is not None
    }
    given = {key: value.strip() for key, value in given.items()}
    _refuse_unknown(given)
    values: dict[str, Any] = {}
    for row in TABLE:
        text = given.get(row.name) or row.default
        try:
            values[row.name.removeprefix('mail.')] = row.convert(text) if text else None
        except ValueError as error:
            shown = '' if row.secret else f' = {text}'
            raise ConfigurationError(f'{row.name}{shown}: {error}') from error
    url, username, password = _road(values, given, environ)
    values.update(url=url, username=username, password=password)
    for spelling in ('host', 'port', 'tls', 'ssl', 'password_file', 'ignore'):
        del values[spelling]
    values['delivery'] = values['delivery'] or ('queue' if values['queue_path'] else 'direct')
    values['hostname'] = values['hostname'] or _own_hostname()
    values['queue_sync'] = values['queue_sync'] == 'always'
    for key, word in (('delivery', 'queue'), ('processor', 'thread')):
        if values[key] == word and not values['queue_path']:
            raise ConfigurationError(
                f'mail.{key} = {word} needs a queue: write mail.queue_path = %(here)s/mail'
            )
    return MailSettings(**values)


def _refuse_unknown(given: Mapping[str, str]) -> None:
    known = [row.name for row in TABLE]
    ignored = {f'mail.{word}' for word in given.get('mail.ignore', '').replace(',', ' ').split()}
    for key in given:
        if key in known or key in ignored:
            continue
        if key in _GONE:
            raise ConfigurationError(f'{key} is a setting of pyramid_mailer: {_GONE[key]}')
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f'did you mean {nearest[0]}? ' if nearest else ''
        raise ConfigurationError(
            f'{key} is no setting of pyramid_sendmail: {hint}'
            f'(mail.ignore = {key.removeprefix("mail.")} keeps it for the application)'
        )


def _road(
    values: Mapping[str, Any], given: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[str, str | None, str | None]:
    """The URL, and the credentials that stand beside it."""
    username, password = values['username'], values['password']
    spelled = [f'mail.{key}' for key in ('host', 'port', 'tls', 'ssl') if values[key] is not None]
    if given.get('mail.url') and spelled:
        raise ConfigurationError(
            f'mail.url and {", ".join(spelled)} say the same twice: keep mail.url'
        )
    if password and values['password_file']:
        raise ConfigurationError('mail.password and mail.password_file: keep one of them')
    if environ.get('MAIL_PASSWORD'):
        password = environ['MAIL_PASSWORD']
    elif values['password_file']:
        password = _first_line(values['password_file'])
    if environ.get('MAIL_URL'):
        url = environ['MAIL_URL']
        if '@' in urlsplit(url).netloc:
            username = password = None
        return url, username, password
    if not spelled:
        return values['url'], username, password
    host = values['host'] or 'localhost'
    if ':' in host and not host.startswith('['):
        host = f'[{host}]'
    if values['tls'] and values['ssl']:
        raise ConfigurationError(
            'mail.tls and mail.ssl exclude each other: mail.ssl is TLS from the first byte '
            '(port 465), mail.tls is STARTTLS (port 587)'
        )
    port = values['port'] or (465 if values['ssl'] else 25)
    scheme, query = ('smtps', '') if values['ssl'] else ('smtp', '')
    if values['tls']:
        query = '?tls=required'
    return f'{scheme}://{quote(host, safe="[]:.")}:{port}{query}', username, password


def _first_line(path: str) -> str:
    try:
        with open(path, encoding='utf-8') as file:
            line = file.readline().rstrip('\r\n')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f'mail.password_file = {path} cannot be read: {error}') from error
    if not line:
        raise ConfigurationError(f'mail.password_file = {path}: its first line is empty')
    return line


def _own_hostname() -> str:
    try:
        return _hostname(socket.gethostname())
    except ValueError:
        return 'localhost'


def table_rows() -> Iterator[tuple[str, str, str]]:
    """``(setting, default, meaning)`` of each row, as the README and ``--help`` print them."""
    for row in TABLE:
        yield row.name, row.shown or f'``{row.default}``', row.help
