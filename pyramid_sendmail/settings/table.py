"""The table of the ``mail.*`` settings, and the parser that reads them by it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyramid.exceptions import ConfigurationError

from ..retry import RetryPolicy
from . import converters
from .converters import boolean, choice, count, duration, durations, hostname, pause, port, text
from .credentials import Values, relay_settings
from .nearest import nearest

__all__ = ['DEFAULT_URL', 'TABLE', 'MailSettings', 'Setting', 'parse_settings', 'table_rows']


class Setting(NamedTuple):
    """One row of the table.

    ``convert`` returns the value of a text, or raises ValueError saying what to write. ``default``
    is the text that stands for a missing one. ``help`` is one line. ``shown`` is the default in
    words, if it is not a value. ``secret``: the value is never shown.
    """

    name: str
    convert: Callable[[str], object]
    default: str
    help: str
    shown: str = ''
    secret: bool = False


DEFAULT_URL = 'smtp://localhost:25'
"""``mail.url`` if it is not set."""

TABLE: tuple[Setting, ...] = (
    Setting(
        'mail.delivery',
        converters.delivery,
        '',
        '``direct``, ``queue``, or the dotted name of an IMailDelivery',
        '``queue`` when ``mail.queue_path`` is set, else ``direct``',
    ),
    Setting(
        'mail.url',
        text,
        DEFAULT_URL,
        'how mail leaves: ``smtp:``, ``smtps:``, ``smtp+insecure:``, ``lmtp:``, ``lmtp+unix:``, '
        '``sendmail:``, ``file:`` or ``null:``; several URLs are tried in their order; '
        '``MAIL_URL`` in the environment wins',
        secret=True,
    ),
    Setting(
        'mail.host',
        converters.host,
        '',
        'host of the relay, as in pyramid_mailer; ``mail.url`` replaces it',
        '``localhost``',
    ),
    Setting('mail.port', port, '', 'port of ``mail.host``', '25; 465 with ``mail.ssl``'),
    Setting('mail.tls', boolean, '', 'require STARTTLS of ``mail.host``', '``false``'),
    Setting('mail.ssl', boolean, '', 'TLS from the first byte to ``mail.host``', '``false``'),
    Setting('mail.username', text, '', 'user name for the relay, if ``mail.url`` has none', 'none'),
    Setting(
        'mail.password',
        text,
        '',
        'password for the relay, if ``mail.url`` has none; ``MAIL_PASSWORD`` in the environment '
        'wins',
        'none',
        secret=True,
    ),
    Setting(
        'mail.password_file',
        converters.absolute_path,
        '',
        'file whose first line is the password',
        'none',
    ),
    Setting(
        'mail.queue_path',
        converters.absolute_path,
        '',
        'folder of the Maildir queue: an absolute path, ``%(here)s/mail``',
        'no queue',
    ),
    Setting('mail.default_sender', text, '', '``From:`` of a message that has none', 'none'),
    Setting(
        'mail.envelope_sender',
        text,
        '',
        'address in ``MAIL FROM``, to which bounces are sent',
        'the address of ``From:``',
    ),
    Setting(
        'mail.hostname',
        hostname,
        '',
        'our name in EHLO and in message ids; never resolved. Set it if the name of the host has '
        'no domain: some relays refuse such a name, and some spam filters count it against a mail',
        "the host's name",
    ),
    Setting(
        'mail.base_url',
        converters.base_url,
        '',
        'the URL of the application as people open it, ``https://shop.example.org``: '
        '``event.request`` of a subscriber makes links under it',
        '``http://localhost``',
    ),
    Setting(
        'mail.workers',
        count,
        '4',
        'the most connections of a queue processor at once. By SMTP and LMTP fifty of them take '
        'one thread; by ``sendmail:`` and ``file:`` each takes a thread. Several processes share '
        'them, with at least one each',
    ),
    Setting(
        'mail.processes',
        converters.processes,
        '1',
        'processes of ``psendmail-qp`` that share the queue, or ``auto``: one for each core; with '
        '``mail.processor = thread`` each web process has one queue processor, whatever is set',
    ),
    Setting(
        'mail.batch',
        count,
        '100',
        'mails sent on one connection, which is then closed; the next mail opens a new one',
    ),
    Setting(
        'mail.event_batch',
        count,
        '1',
        'the most events that share a request and a transaction; with 1 each has its own',
    ),
    Setting(
        'mail.rate',
        converters.rate,
        'off',
        'the most mails that a queue processor sends in a second, minute, hour or day: ``20/s``, '
        '``600/m``, ``2000/d``; the processes of ``mail.processes`` share it',
    ),
    Setting(
        'mail.retry',
        durations,
        '1m 5m 15m 30m 1h 2h',
        'pauses after temporary failures; the last one repeats; each varies at random by up to a '
        'fifth',
    ),
    Setting('mail.give_up_after', duration, '3d', 'age at which a temporary failure becomes final'),
    Setting(
        'mail.keep_failed',
        converters.pause_or_off,
        'off',
        'age at which a queue processor removes dead letters from ``failed/``: ``30d``; mail in '
        'doubt, held, damaged or foreign is never removed; ``off`` keeps everything',
    ),
    Setting('mail.max_size', converters.size, '25M', '``send`` refuses larger messages'),
    Setting(
        'mail.queue_sync',
        choice('always', 'off'),
        'always',
        '``off`` skips every fsync: for tests and development',
    ),
    Setting(
        'mail.queue_mode',
        choice('private', 'group'),
        'private',
        '``private``: the application and ``psendmail-qp`` run as the same user; ``group``: all '
        "members of the group of the queue's folder share the queue",
    ),
    Setting(
        'mail.in_doubt',
        choice('hold', 'send'),
        'hold',
        'what to do with mail if a crash left unknown whether its transaction committed: ``hold`` '
        'it in ``failed/``, or ``send`` it',
    ),
    Setting(
        'mail.ambiguous',
        choice('resend', 'hold'),
        'resend',
        'what to do with mail if the connection broke before the relay confirmed it: ``resend`` '
        '(it may arrive twice, with the same Message-ID), or ``hold`` it in ``failed/`` (it may '
        'not arrive)',
    ),
    Setting(
        'mail.processor',
        choice('thread', 'off'),
        'off',
        '``thread`` runs a queue processor inside the web process',
    ),
    Setting(
        'mail.direct_wait', boolean, 'true', "direct delivery: a commit waits for the relay's reply"
    ),
    Setting(
        'mail.direct_timeout', pause, '30s', 'direct delivery: the longest that a commit waits'
    ),
    Setting(
        'mail.ignore',
        text,
        '',
        "names of the application's own ``mail.`` keys, which are not checked: ``region`` allows "
        '``mail.region``',
        'none',
    ),
)

_SWITCHES = (
    *('mail.tls', 'mail.ssl', 'mail.direct_wait'),
    *('mail.rate', 'mail.keep_failed', 'mail.queue_sync', 'mail.processor'),  # False means 'off'
)
"""The settings for which Python code may give True or False."""

_NOT_OURS = {
    'mail.keyfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.certfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.debug': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.debug_smtp': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.sendmail_app': 'write mail.url = sendmail:/path/to/program',
    'mail.sendmail_template': 'write mail.url = sendmail:, which gives -i, -f and the recipients',
}
"""Settings of pyramid_mailer, and what to do instead."""

_KEEP_MAIL_HERE = (
    'mail would go to its real recipients; write mail.url = file:///FOLDER to keep mail in a '
    'folder instead'
)

_NOT_YET = {
    'mail.redirect_to': _KEEP_MAIL_HERE,
    'mail.allow': _KEEP_MAIL_HERE,
}
"""Settings of later releases: refused, because ignoring them would send mail to its real
recipients."""

_MEANT = {
    'from': 'default_sender',
    'path': 'queue_path',
    'queue': 'queue_path',
    'server': 'host',
}
"""What an unknown name stands for, if the most similar name would mislead."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MailSettings:
    """The parsed settings by name. Durations are in seconds, sizes in bytes."""

    delivery: str | None
    """'direct', 'queue' or a dotted name. None: 'queue' if there is a queue, else 'direct'."""
    url: str
    url_source: str
    """Where the reader has written ``url``: 'mail.url', 'mail.host' or 'MAIL_URL'."""
    username: str | None
    password: str | None
    queue_path: str | None
    default_sender: str | None
    envelope_sender: str | None
    hostname: str
    base_url: str | None
    workers: int
    processes: int
    batch: int
    event_batch: int
    rate: tuple[int, int] | None
    """At most so many mails in so many seconds."""
    retry: tuple[float, ...]
    give_up_after: float
    keep_failed: float | None
    max_size: int
    queue_sync: bool
    queue_mode: str
    in_doubt: str
    ambiguous: str
    processor: str
    direct_wait: bool
    direct_timeout: float

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(delays=self.retry, give_up_after=self.give_up_after)

    def __repr__(self) -> str:
        """Without the URL and the password."""
        return f'<MailSettings from {self.url_source}>'


def parse_settings(
    settings: Mapping[str, object], environ: Mapping[str, str] | None = None
) -> MailSettings:
    """Read the settings of the table. Raises ConfigurationError, naming the setting and a remedy.

    Values are text, or what Python code gives instead: numbers, booleans, paths, lists. None and
    '' mean that a setting is not set. ``environ`` replaces ``os.environ``.
    """
    environ = os.environ if environ is None else environ
    _refuse_unknown(settings)
    given = {row.name: _text_of(row, settings.get(row.name)) for row in TABLE}
    values: Values = {row.name.removeprefix('mail.'): _value(row, given[row.name]) for row in TABLE}
    relay = relay_settings(values, given, environ)
    values.update(
        url=relay.url,
        url_source=relay.source,
        username=relay.username,
        password=relay.password,
        hostname=values['hostname'] or _own_hostname(),
        queue_sync=values['queue_sync'] == 'always',
    )
    for spelling in ('host', 'port', 'tls', 'ssl', 'password_file', 'ignore'):
        del values[spelling]
    return MailSettings(**values)


def _value(row: Setting, given: str) -> object:
    written = given or row.default
    if not written:
        return None
    try:
        return row.convert(written)
    except ValueError as error:
        # A text with :// may be a URL with a password, in the wrong place.
        shown = '' if row.secret or '://' in written else f' = {_shortened(written)}'
        raise ConfigurationError(f'{row.name}{shown}: {error}') from error


def _refuse_unknown(settings: Mapping[str, object]) -> None:
    known = {row.name: row for row in TABLE}
    words = _text_of(known['mail.ignore'], settings.get('mail.ignore')).replace(',', ' ').split()
    ignored = {f'mail.{word.removeprefix("mail.")}' for word in words}
    for key in sorted(ignored):
        if key in known or key in _NOT_YET:
            raise ConfigurationError(
                f'mail.ignore: {key} is a setting of pyramid_sendmail and is always checked; '
                f'rename the one of your application'
            )
    for key in settings:
        if not isinstance(key, str) or not key.startswith('mail.') or key in (*known, *ignored):
            continue
        if key in _NOT_YET:
            raise ConfigurationError(f'{key} is not supported yet: {_NOT_YET[key]}')
        if key in _NOT_OURS:
            raise ConfigurationError(f'{key} is a setting of pyramid_mailer: {_NOT_OURS[key]}')
        name = key.removeprefix('mail.')
        near = _nearest(name)
        question = f' Did you mean mail.{near}?' if near else ''
        raise ConfigurationError(
            f'unknown setting {key}.{question} If your application owns it, add mail.ignore = '
            f'{name}'
        )


def _nearest(name: str) -> str:
    """Return the known name that an unknown one most probably means, or '' if there is none."""
    known = (row.name.removeprefix('mail.') for row in TABLE)
    return _MEANT.get(name) or nearest(name, known, cutoff=0.5)


def _text_of(row: Setting, value: object) -> str:
    """Return a value as an ini file would have it; '' for None."""
    if value is None:
        return ''
    if isinstance(value, bool) and row.name in _SWITCHES:
        return 'true' if value else 'off'
    if isinstance(value, str):
        # An ini file is stripped already. In Python code the blanks of a password are meant.
        return value if row.name == 'mail.password' else value.strip()
    if isinstance(value, list | tuple):
        return ' '.join(map(str, value))
    if isinstance(value, int | float | os.PathLike) and not isinstance(value, bool):
        return str(value)
    raise ConfigurationError(f'{row.name} is of the type {type(value).__name__}: give it as a str')


def _shortened(written: str) -> str:
    return written if len(written) <= 80 else f'{written[:80]}...'


def _own_hostname() -> str:
    try:
        return hostname(socket.gethostname())
    except ValueError:
        return 'localhost'


def table_rows() -> Iterator[tuple[str, str, str]]:
    """Yield ``(setting, default, meaning)`` of each row, as the manual and ``--help`` show them."""
    for row in TABLE:
        yield row.name, row.shown or f'``{row.default}``', row.help
