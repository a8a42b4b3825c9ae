"""The table of the ``mail.*`` settings, and the parser that reads them by it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyramid.exceptions import ConfigurationError

from ..retry import RetryPolicy
from . import converters
from .converters import boolean, choice, count, duration, durations, hostname, pause, port, text
from .credentials import RELAY_NAMES, Values, relay_settings
from .given import text_of
from .unknown import unknown_settings

__all__ = [
    'DEFAULT_URL',
    'TABLE',
    'MailSettings',
    'Setting',
    'parse_settings',
    'raise_problems',
    'read_settings',
    'table_rows',
]


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
        converters.secret_path,
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
        choice('always', 'vote', 'off'),
        'always',
        'what a commit waits for: ``always``, that its mail is published on the disk; ``vote``, '
        'that it is on the disk: after a power cut, mail of the last 50 ms may be in doubt (see '
        '``mail.in_doubt``), and none is lost; ``off``, for nothing: for tests and development',
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
    queue_sync: str
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
    settings: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> MailSettings:
    """Read the settings of the table.

    For the arguments see ``read_settings``. Raises ConfigurationError, which names every setting
    that is wrong, and a remedy for each.
    """
    values, problems = read_settings(settings, environ, overrides)
    raise_problems(problems)
    return MailSettings(**values)


def read_settings(
    settings: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> tuple[Values, list[ConfigurationError]]:
    """Return the fields of MailSettings, less those that cannot be had, and what is wrong.

    Values are text, or what Python code gives instead: numbers, booleans, paths, lists. None and
    '' mean that a setting is not set. ``environ`` replaces ``os.environ``. ``overrides``: settings
    that win over these and over the environment.
    """
    overrides = overrides or {}
    # As in MAIL_URL, a mail.url there replaces mail.host, and the credentials where it has some.
    settings = {**settings, **overrides, 'mail.url': settings.get('mail.url')}
    problems = unknown_settings(settings, [row.name for row in TABLE])
    given: dict[str, str] = {}
    values: Values = {}
    for row in TABLE:
        try:
            given[row.name] = text_of(row.name, settings.get(row.name))
            values[row.name.removeprefix('mail.')] = _value(row, given[row.name])
        except ConfigurationError as error:
            problems.append(error)
    try:
        relay = None
        if all(name in values for name in RELAY_NAMES):
            relay = relay_settings(
                values, given, os.environ if environ is None else environ, overrides
            )
    except ConfigurationError as error:
        problems.append(error)
    for name in RELAY_NAMES:
        values.pop(name, None)
    if relay is not None:
        values.update(relay._asdict())
    values.pop('ignore', None)
    if 'hostname' in values:
        values['hostname'] = values['hostname'] or _own_hostname()
    return values, problems


def raise_problems(problems: Sequence[ConfigurationError]) -> None:
    """Raise one ConfigurationError about all of the problems, if there is one."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = ''.join(f'\n- {problem}' for problem in problems)
        raise ConfigurationError(f'{len(problems)} settings are wrong:{lines}')


def _value(row: Setting, given: str) -> object:
    written = given or row.default
    if not written:
        return None
    try:
        return row.convert(written)
    except ValueError as error:
        shown = '' if row.secret or _may_hold_secret(row.name, written) else written
        shown = f' = {_shortened(shown)}' if shown else ''
        raise ConfigurationError(f'{row.name}{shown}: {error}') from error


def _may_hold_secret(name: str, written: str) -> bool:
    """Return whether a text in the wrong place may have a password in it: a URL, USER:PASSWORD@HOST
    or a part of it, a password where its file is meant."""
    if '://' in written or '@' in written:
        return True
    if name == 'mail.host':
        return ':' in written and _HOST_AND_PORT.fullmatch(written) is None
    return name == 'mail.password_file' and not os.path.isabs(written)


_HOST_AND_PORT = re.compile(r'[^:]*:[0-9]{1,5}|[0-9A-Fa-f:]*')
"""What mail.host may show although it has a colon: HOST:PORT, or nearly an IPv6 address."""


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
