"""The ``mail.*`` settings: one table gives the parser, the README's table and ``--help``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

from pyramid.exceptions import ConfigurationError
from pyramid.settings import falsey
from zope.interface import implementer

from ..interfaces import IMailSettings
from . import converters
from .converters import boolean, choice, count, duration, durations, hostname, pause, port, text

if TYPE_CHECKING:
    from ..retry import RetryPolicy

__all__ = ['TABLE', 'MailSettings', 'Setting', 'duration', 'parse_settings', 'table_rows']


class Setting:
    """One row: ``convert`` makes the value of the text, or raises ValueError saying what to
    write; ``default`` is written as the reader would write it; ``shown``: the default in words,
    where it is not a value."""

    def __init__(
        self,
        name: str,
        convert: Callable[[str], Any],
        default: str,
        help: str,
        shown: str = '',
        *,
        secret: bool = False,
    ) -> None:
        self.name, self.convert, self.default = name, convert, default
        self.help, self.shown, self.secret = help, shown, secret


def _pause_or_off(value: str) -> float | None:
    """Seconds, or None of ``off``."""
    if value.lower() in falsey and value != '0':
        return None
    try:
        return pause(value)
    except ValueError as error:
        raise ValueError(f'{error}; or off') from error


DEFAULT_URL = 'smtp://localhost:25'
"""``mail.url`` where nobody has set it."""

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
        '``sendmail:``, ``file:`` or ``null:``; several in the order in which to try them; '
        '``MAIL_URL`` in the environment wins',
        secret=True,
    ),
    Setting(
        'mail.host', converters.host, '', "the relay, in pyramid_mailer's spelling", '``localhost``'
    ),
    Setting(
        'mail.port',
        port,
        '',
        'its port, beside ``mail.host``',
        '25; 465 beside ``mail.ssl``',
    ),
    Setting('mail.tls', boolean, '', 'demand STARTTLS, beside ``mail.host``', '``false``'),
    Setting('mail.ssl', boolean, '', 'TLS from the first byte, beside ``mail.host``', '``false``'),
    Setting('mail.username', text, '', 'who we are, where ``mail.url`` does not say it', 'none'),
    Setting(
        'mail.password',
        text,
        '',
        'the password; ``MAIL_PASSWORD`` in the environment wins',
        'none',
        secret=True,
    ),
    Setting(
        'mail.password_file',
        converters.absolute_path,
        '',
        'a file whose first line is the password',
        'none',
    ),
    Setting(
        'mail.queue_path',
        converters.absolute_path,
        '',
        'the Maildir in which mail waits: an absolute path, ``%(here)s/mail``',
        'no queue',
    ),
    Setting('mail.default_sender', text, '', '``From:`` of a message that has none', 'none'),
    Setting(
        'mail.envelope_sender',
        text,
        '',
        '``MAIL FROM``: where bounces go',
        'the address of ``From:``',
    ),
    Setting(
        'mail.hostname',
        hostname,
        '',
        'the name said in EHLO, and the right side of message ids; never resolved. Set it where '
        "the host's name has no domain: some relays refuse it, and some filters count it against a "
        'mail',
        "the host's name",
    ),
    Setting(
        'mail.workers',
        count,
        '4',
        'connections of the queue processor at most; one more is opened where those there are '
        'mostly wait',
    ),
    Setting('mail.batch', count, '100', 'mails per connection before it is opened anew'),
    Setting(
        'mail.event_batch',
        count,
        '1',
        'how many events are reported in one request and transaction, at most; 1: each in its own',
    ),
    Setting(
        'mail.rate',
        converters.rate,
        'off',
        'how many mails leave at most, per queue processor: ``20/s``, ``600/m``, ``2000/d``',
    ),
    Setting(
        'mail.retry',
        durations,
        '1m 5m 15m 30m 1h 2h',
        'pauses after a temporary failure; the last one repeats; a fifth more or less by chance',
    ),
    Setting('mail.give_up_after', duration, '3d', 'the age at which a temporary failure is final'),
    Setting(
        'mail.keep_failed',
        _pause_or_off,
        'off',
        'the age at which the queue processor removes dead letters from ``failed/``: ``30d``; '
        'mail in doubt, held, damaged or foreign stays until a person decides; ``off`` keeps all',
    ),
    Setting('mail.max_size', converters.size, '25M', 'larger messages are refused by ``send``'),
    Setting(
        'mail.queue_sync',
        choice('always', 'off'),
        'always',
        '``off`` leaves out every fsync: for tests and development',
    ),
    Setting(
        'mail.queue_mode',
        choice('private', 'group'),
        'private',
        '``private``: the application and ``psendmail-qp`` run as the same user; ``group``: every '
        "member of the group of the queue's folder uses it",
    ),
    Setting(
        'mail.in_doubt',
        choice('hold', 'send'),
        'hold',
        'mail of which nobody knows whether its transaction committed: held in ``failed/``, '
        'or sent',
    ),
    Setting(
        'mail.ambiguous',
        choice('resend', 'hold'),
        'resend',
        "mail whose acceptance the relay's last word did not confirm: sent again with the same "
        'Message-ID, or held in ``failed/``',
    ),
    Setting(
        'mail.processor',
        choice('thread', 'off'),
        'off',
        '``thread`` drains the queue inside the web process',
    ),
    Setting(
        'mail.direct_wait',
        boolean,
        'true',
        'direct delivery: the commit waits until the relay has answered',
    ),
    Setting('mail.direct_timeout', pause, '30s', 'direct delivery: how long it waits at most'),
    Setting(
        'mail.ignore',
        text,
        '',
        'last parts of ``mail.`` keys that the application keeps for itself: ``region backend``',
        'none',
    ),
)

_RELAY = (
    *('mail.url', 'mail.host', 'mail.port', 'mail.tls', 'mail.ssl'),
    *('mail.username', 'mail.password', 'mail.password_file'),
)

_SWITCHES = (
    *('mail.tls', 'mail.ssl', 'mail.direct_wait'),
    *('mail.rate', 'mail.keep_failed', 'mail.queue_sync', 'mail.processor'),  # False is 'off'
)

_NOT_OURS = {
    'mail.keyfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.certfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.debug': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.debug_smtp': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.sendmail_app': 'write mail.url = sendmail:/path/to/program',
    'mail.sendmail_template': 'write mail.url = sendmail:, which gives -i, -f and the recipients',
}
"""Settings of pyramid_mailer, and what to do in place of them."""

_SEE_MAIL = (
    'without it mail goes to its real recipients; write mail.url = file:///FOLDER to look at mail '
    'that is not sent'
)

_NOT_YET = {
    'mail.redirect_to': _SEE_MAIL,
    'mail.allow': _SEE_MAIL,
}
"""Settings of versions to come, which must not be taken for working ones."""


@implementer(IMailSettings)
class MailSettings:
    """The parsed settings, all of them by name. Durations in seconds, sizes in octets.

    Frozen by hand: to make a dataclass of so many fields takes longer than to parse them.
    """

    delivery: str | None
    """'direct', 'queue' or a dotted name; None goes by whether there is a queue."""
    url: str
    url_source: str
    """'mail.url', 'mail.host' or 'MAIL_URL': what the reader has written."""
    username: str | None
    password: str | None
    queue_path: str | None
    default_sender: str | None
    envelope_sender: str | None
    hostname: str
    workers: int
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

    def __init__(self, **values: Any) -> None:
        names = type(self).__annotations__
        if values.keys() != names.keys():
            raise TypeError(f'{type(self).__name__} takes each of {", ".join(names)}')
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f'cannot assign to field {name!r}')

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f'cannot delete field {name!r}')

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, MailSettings) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(vars(self).items()))

    @property
    def policy(self) -> RetryPolicy:
        from ..retry import RetryPolicy

        return RetryPolicy(delays=self.retry, give_up_after=self.give_up_after)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} from {self.url_source}>'


def parse_settings(
    settings: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> MailSettings:
    """Read the table's settings. Raises ConfigurationError, naming the setting and the remedy.

    Values are text, or what Python code gives in its place: numbers, booleans, paths, lists;
    None and '' are as good as not given. ``environ``: in place of ``os.environ``.
    """
    environ = os.environ if environ is None else environ
    _refuse_unknown(settings)
    given = {row.name: _text_of(row, settings.get(row.name)) for row in TABLE}
    values: dict[str, Any] = {}
    for row in TABLE:
        written = given[row.name] or row.default
        try:
            values[row.name.removeprefix('mail.')] = row.convert(written) if written else None
        except ValueError as error:
            # What has a :// may be a URL with a password, in the wrong place.
            shown = '' if row.secret or '://' in written else f' = {_short(written)}'
            raise ConfigurationError(f'{row.name}{shown}: {error}') from error
    values['url_source'] = 'mail.url'
    if any(given[name] for name in _RELAY) or {'MAIL_URL', 'MAIL_PASSWORD'} & environ.keys():
        from .credentials import relay

        values.update(relay(values, given, environ))
    for spelling in ('host', 'port', 'tls', 'ssl', 'password_file', 'ignore'):
        del values[spelling]
    values['hostname'] = values['hostname'] or _own_hostname()
    values['queue_sync'] = values['queue_sync'] == 'always'
    return MailSettings(**values)


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    known = [row.name for row in TABLE]
    words = _text_of(TABLE[-1], settings.get('mail.ignore')).replace(',', ' ').split()
    ignored = {f'mail.{word.removeprefix("mail.")}' for word in words}
    for key in sorted(ignored):
        if key in known or key in _NOT_YET:
            raise ConfigurationError(
                f'mail.ignore: {key} is a setting of pyramid_sendmail, and cannot be kept for the '
                f'application: rename it there'
            )
    for key in settings:
        if not isinstance(key, str) or not key.startswith('mail.') or key in (*known, *ignored):
            continue
        if key in _NOT_YET:
            raise ConfigurationError(f'{key} is not here yet: {_NOT_YET[key]}')
        if key in _NOT_OURS:
            raise ConfigurationError(f'{key} is a setting of pyramid_mailer: {_NOT_OURS[key]}')
        import difflib

        word = key.removeprefix('mail.')
        nearest = difflib.get_close_matches(
            word, [name.removeprefix('mail.') for name in known], n=1, cutoff=0.5
        )
        remedy = f'write mail.{nearest[0]}, which is the nearest, or' if nearest else 'write'
        raise ConfigurationError(
            f'{key} is no setting of pyramid_sendmail: {remedy} mail.ignore = {word} to keep it '
            'for the application'
        )


def _text_of(row: Setting, value: Any) -> str:
    """The text of a value, as an ini file would have it; '' for None."""
    if value is None:
        return ''
    if isinstance(value, bool) and row.name in _SWITCHES:
        return 'true' if value else 'off'
    if isinstance(value, str):
        # Whoever gives a password in Python means each of its blanks.
        return value if row.name == 'mail.password' else value.strip()
    if isinstance(value, list | tuple):
        return ' '.join(map(str, value))
    if isinstance(value, int | float | os.PathLike) and not isinstance(value, bool):
        return str(value)
    raise ConfigurationError(f'{row.name} is of the type {type(value).__name__}: give it as a str')


def _short(written: str) -> str:
    return written if len(written) <= 80 else f'{written[:80]}...'


def _own_hostname() -> str:
    import socket

    try:
        return hostname(socket.gethostname())
    except ValueError:
        return 'localhost'


def table_rows() -> Iterator[tuple[str, str, str]]:
    """``(setting, default, meaning)`` of each row, as the README and ``--help`` print them."""
    for row in TABLE:
        yield row.name, row.shown or f'``{row.default}``', row.help
