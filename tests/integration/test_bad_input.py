"""Every mistake that a user can make: what the error must name, and the remedy it must give.

A row of the table is the input, the words that name what is wrong (setting, argument, header,
recipient), and the words that say what to write instead. No error may show a password or a body;
all inputs use the same secret. ``test_the_table_is_complete`` finds refusals without a row.
"""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.message import Message as AnyMessage
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from translationstring import TranslationString
from zope.interface import implementer
from zope.interface.interface import InterfaceClass

import pyramid_sendmail
from pyramid_sendmail import Attachment, MailRefused, Message, NoActiveTransaction
from pyramid_sendmail.config import processor_of
from pyramid_sendmail.domains import ascii_domain
from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, SendmailError
from pyramid_sendmail.interfaces import IMailDelivery, IMailQueue
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.file import FileMailer
from pyramid_sendmail.mailers.null import NullMailer
from pyramid_sendmail.mailers.sendmail import SendmailMailer
from pyramid_sendmail.mailers.smtp.authentication import Bearer, Credentials, TokenFile
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import SessionOptions, TLSOptions
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.scripts import qp
from pyramid_sendmail.scripts.children import SupervisorLink
from pyramid_sendmail.scripts.terminal import Terminal
from pyramid_sendmail.settings.shares import share_of_settings
from tests.support.configuration import parse
from tests.support.doubles import RecordingMailer
from tests.support.sessions import make_mailer

SECRET = 's3kr1t'

HERE = Path(__file__)

PACKAGE = Path(pyramid_sendmail.__file__).parent

USER_ERRORS = {'ConfigurationError', 'MessageError', 'NoActiveTransaction', 'UsageError'}

RAISING = {'refuse', '_refuse', '_wrong', '_unloadable'}
"""Helpers that raise: their callers are the places that need a row."""

UNREACHABLE = {
    # An encrypted key takes a second to make: see tests/unit/mailers/smtp/test_connecting.py.
    'client_key= is encrypted',
    # The last check before a message leaves: no input is known that gets this far.
    'headers: the headers to be sent are not',
    'message: its content cannot be sent in short lines',
    # Only ASCII addresses are passed.
    ' is not ASCII',
}
"""Texts without a row, and why."""


@dataclass(frozen=True)
class Start:
    """The application starts: settings without their ``mail.``, the environment."""

    given: dict[str, Any]
    environ: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name in ('MAIL_URL', 'MAIL_PASSWORD'):
                patch.delenv(name, raising=False)
            for name, value in self.environ.items():
                patch.setenv(name, value)
            settings = {f'mail.{name}': value for name, value in self.given.items()}
            config = Configurator(settings=settings)
            config.include('pyramid_sendmail')
            try:
                config.commit()
            except ConfigurationError as error:
                # What runs inside an action is wrapped, with a traceback in its text.
                raise getattr(error, 'evalue', error)  # noqa: B904
            return config


@dataclass(frozen=True)
class Directive:
    """The application calls a directive."""

    name: str
    part: Any

    def __call__(self) -> Any:
        config = Configurator(settings={'mail.url': 'null:'})
        config.include('pyramid_sendmail')
        getattr(config, self.name)(self.part)
        try:
            config.commit()
        except ConfigurationError as error:
            raise getattr(error, 'evalue', error)  # noqa: B904


def other_mailer(config: Configurator) -> None:
    """Register what pyramid_mailer registers."""
    config.registry.registerUtility(object(), OTHER_MAILER)


OTHER_MAILER = InterfaceClass('IMailer', __module__='pyramid_mailer.interfaces')


class Prefixed:
    """The settings are those of pyramid_mailer with another prefix."""

    def __call__(self) -> Any:
        config = Configurator(settings={'pyramid_mailer.prefix': 'email.', 'mail.url': 'null:'})
        config.include('pyramid_sendmail')
        try:
            config.commit()
        except ConfigurationError as error:
            raise getattr(error, 'evalue', error)  # noqa: B904


@implementer(IMailQueue)
class OtherQueue:
    """A queue of an application's own, which cannot be scanned."""

    def __call__(self) -> Any:
        raise AssertionError

    put = claim = close = __call__


@dataclass(frozen=True)
class Queue:
    """The application sets a queue of its own, and perhaps asks for its processor."""

    given: dict[str, str]

    def __call__(self) -> Any:
        config = Configurator(settings={'mail.url': 'null:', **self.given})
        config.include('pyramid_sendmail')
        config.set_mail_queue(OtherQueue())
        try:
            config.commit()
        except ConfigurationError as error:
            raise getattr(error, 'evalue', error)  # noqa: B904
        processor_of(config.registry)


@dataclass(frozen=True)
class Made:
    """The application makes a mailer itself."""

    mailer: Any
    place: Any
    given: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        self.mailer(*(() if self.place is None else (self.place,)), **self.given)


@dataclass(frozen=True)
class Send:
    """``send`` in a transaction; ``message``: a message, or the changes to a good one."""

    message: Any
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        message = self.message
        if isinstance(message, dict):
            good = {'to': 'ann@example.org', 'sender': 'shop@example.org', 'text': SECRET}
            message = Message(**{**good, **message})
        manager = transaction.TransactionManager(explicit=True)
        with manager:
            delivery(**self.settings).bind(manager).send(message, **self.options)


@cache
def delivery(**settings: str) -> Any:
    return Start({'url': 'null:', **settings})().registry.getUtility(IMailDelivery)


def stdlib(**headers: Any) -> EmailMessage:
    """Return a message of the standard library with these headers instead of good ones."""
    message = EmailMessage()
    for name, value in {'From': 'shop@example.org', 'To': 'ann@example.org', **headers}.items():
        for each in value if isinstance(value, list) else [value]:
            message[name.replace('_', '-')] = each
    message.set_content(SECRET)
    return message


def raw(*headers: tuple[str, Any], payload: Any = SECRET) -> AnyMessage:
    """Return a message of the standard library whose headers were never checked."""
    message = AnyMessage()
    for name, value in (('From', 'shop@example.org'), ('To', 'ann@example.org'), *headers):
        message._headers.append((name, value))  # type: ignore[attr-defined]
    message._payload = payload  # type: ignore[attr-defined]
    return message


def parameter(name: str) -> EmailMessage:
    message = stdlib()
    message.set_param(name, 'c')
    return message


def nested() -> AnyMessage:
    message = raw()
    for _ in range(60):
        outer = raw(('Content-Type', 'multipart/mixed'), payload=[message])
        message = outer
    return message


SIGNED = ('DKIM-Signature', 'v=1; h=from:date:bcc; b=x')


def unsent() -> AnyMessage:
    """Return a message that was signed without a sender."""
    message = raw(SIGNED)
    del message['From']
    return message


def doubled() -> AnyMessage:
    """Return a small message whose parts stand in it thousands of times."""
    message = raw(payload=SECRET * 1000)
    for _ in range(4):
        message = raw(('Content-Type', 'multipart/mixed; boundary=b'), payload=[message] * 10)
    return message


class Textual:
    def to_message(self) -> str:
        return SECRET


NESTED = 'Content-Type: message/rfc822\n\n' * 30 + 'ä'


class Chosen:
    """A message that knows its recipients, as those of repoze.sendmail and Django do."""

    send_to = ('ann at example.org',)

    def to_message(self) -> EmailMessage:
        return stdlib()


class LazyText(str):
    """A lazy string: its text is that of ``str()``."""

    __slots__ = ()

    def __str__(self) -> str:
        return 'Welcome'


def at(local: str, **given: Any) -> Send:
    return Send({'to': local, **given})


def attached(*given: Any, **named: Any) -> Send:
    return Send({'attachments': [Attachment(*given, **named)]})


def read_token(path: str) -> str:
    return TokenFile(path)()


def prove(token: str) -> object:
    return Bearer('ann', lambda: token).proof()


NOT_HERE = '/no/such/place'

ANN = Credentials('ann', SECRET)

MULTIPART = 'Content-Type: multipart/mixed'

NOW = datetime(2026, 11, 23, tzinfo=UTC)

TABLE: list[tuple[Callable[[], Any], str, str]] = [
    # Settings: the keys
    (Start({'queue_dir': '/x'}), 'unknown setting mail.queue_dir', 'Did you mean mail.queue_'),
    (Start({'queue': '/x'}), 'unknown setting mail.queue', 'Did you mean mail.queue_path?'),
    (Start({'region': 'eu'}), 'unknown setting mail.region', 'add mail.ignore = region'),
    (Start({'ignore': 'workers'}), 'mail.ignore: mail.workers', 'rename the one'),
    (Start({'redirect_to': 'me@example.org'}), 'mail.redirect_to', 'mail.url = file:///'),
    (Start({'allow': '*@example.org'}), 'mail.allow', 'mail.url = file:///'),
    (Start({'keyfile': 'k.pem'}), 'mail.keyfile', 'client_key='),
    (Start({'certfile': 'c.pem'}), 'mail.certfile', 'client_cert='),
    (Start({'debug': '1'}), 'mail.debug', 'use logging'),
    (Start({'sendmail_app': '/usr/sbin/sendmail'}), 'mail.sendmail_app', 'mail.url = sendmail:'),
    (Start({'sendmail_template': '{x}'}), 'mail.sendmail_template', 'mail.url = sendmail:'),
    (Prefixed(), 'pyramid_mailer.prefix = email.', 'remove this setting'),
    (Directive('include', other_mailer), 'both set request.mailer', "drop config.include('pyr"),
    # Settings: the values
    (Start({'password': SECRET.encode()}), 'mail.password is of the type bytes', 'as a str'),
    (Start({'queue_path': True}), 'mail.queue_path is of the type bool', 'as a str'),
    (Start({'delivery': 'at once'}), 'mail.delivery = at once', 'write direct, queue'),
    (Start({'delivery': 'no.such'}), 'mail.delivery = no.such', 'write the dotted name'),
    (Start({'delivery': 'sys.path'}), 'mail.delivery = sys.path', 'give an object'),
    (Start({'delivery': 'queue'}), 'mail.delivery = queue', 'mail.queue_path = %(here)s'),
    (Start({'processor': 'thread'}), 'mail.processor = thread', 'mail.queue_path = %(here)s'),
    (Start({'processor': 'process'}), 'mail.processor = process', 'write thread or off'),
    (Start({'port': 0}), 'mail.port = 0', 'from 1 to 65535'),
    (Start({'port': 'smtp'}), 'mail.port = smtp', 'from 1 to 65535'),
    (Start({'host': 'relay:25'}), 'mail.host = relay:25', 'mail.port'),
    (Start({'host': f'smtp://ann:{SECRET}@relay'}), 'mail.host', 'mail.url instead'),
    (Start({'host': '1::2::3'}), 'mail.host = 1::2::3', 'an IPv6 address'),
    (Start({'host': 'a b'}), 'mail.host = a b', 'write a host name'),
    (Start({'host': 'a..b'}), 'mail.host has a bad host', 'write a name'),
    (Start({'tls': 'maybe'}), 'mail.tls = maybe', 'write true or false'),
    (Start({'ssl': '2'}), 'mail.ssl = 2', 'write true or false'),
    (Start({'queue_path': 'var/mail'}), 'mail.queue_path = var/mail', '%(here)s/mail'),
    (Start({'queue_path': '/a\0b'}), 'mail.queue_path', 'printable characters'),
    (Start({'queue_path': f'{HERE}/mail'}), f'{HERE} is not a folder', 'set mail.queue_path to'),
    (Start({'queue_path': '/tmp'}), 'every user may write to /tmp', 'set mail.queue_path to'),
    (
        Start({'queue_path': str(HERE.parent)}),
        f'{HERE.parent} is no mail queue',
        'set mail.queue_path to',
    ),
    (Start({'password_file': SECRET}), 'mail.password_file: write', '%(here)s/mail-password'),
    (Start({'password': f'{SECRET}\n{SECRET}'}), 'mail.password has a line break', 'one line'),
    (Start({'password': f'"{SECRET}"'}), 'mail.password stands in quotation marks', 'remove them'),
    (Start({'username': 'ann'}, {'MAIL_PASSWORD': f"'{SECRET}'"}), 'MAIL_PASSWORD in', 'remove'),
    (Start({'host': f'ann:{SECRET}@relay'}), 'mail.host: ', 'mail.url instead'),
    (Start({'host': f'ann:{SECRET}'}), 'mail.host: ', 'mail.port'),
    (Start({'port': f'{SECRET}@relay'}), 'mail.port: ', 'from 1 to 65535'),
    (Start({'queue': '/x', 'workers': 0}), 'mail.workers = 0', 'mail.queue_path?'),
    (Start({'password_file': NOT_HERE}), f'mail.password_file = {NOT_HERE}', 'or write'),
    (Start({'password_file': '/dev/null'}), 'mail.password_file = /dev/null', 'write the password'),
    (Start({'password_file': sys.executable}), f'= {sys.executable} is not UTF-8', 'first line'),
    (Start({'default_sender': 'Ann'}), 'mail.default_sender', 'write name@example.org'),
    (Start({'default_sender': 'a@x, b@x'}), 'mail.default_sender', 'write name@example.org'),
    (Start({'default_sender': 'smtp://a@x'}), 'mail.default_sender: it is a URL', 'write name@'),
    (Start({'envelope_sender': 'Ann'}), 'mail.envelope_sender', 'write name@example.org'),
    (Start({'hostname': 'my_host'}), 'mail.hostname = my_host', 'letters, digits'),
    (Start({'base_url': 'shop.example.org'}), 'mail.base_url = shop', 'https://shop.example.org'),
    (Start({'base_url': 'ftp://a.example'}), 'mail.base_url: write', 'https://shop.example.org'),
    (Start({'base_url': 'https:///app'}), 'mail.base_url: write', 'https://shop.example.org'),
    (
        Start({'base_url': 'https://a.example:x'}),
        'mail.base_url: write',
        'https://shop.example.org',
    ),
    (
        Start({'base_url': 'https://a.example/?b=c'}),
        'mail.base_url: write',
        'scheme, host and path',
    ),
    (Start({'base_url': 'https://a.example/#b'}), 'mail.base_url: write', 'scheme, host and path'),
    (
        Start({'base_url': f'https://ann:{SECRET}@a.example'}),
        'mail.base_url',
        'scheme, host and path',
    ),
    (Start({'hostname': '[::1]'}), 'mail.hostname = [::1]', '[IPv6:2001:db8::1]'),
    (Start({'workers': '0'}), 'mail.workers = 0', 'write a number from 1'),
    (Start({'batch': 'all'}), 'mail.batch = all', 'write a number from 1'),
    (Start({'processes': 'many'}), 'mail.processes = many', 'a number from 1 to 999, or auto'),
    (Start({'rate': '20'}), 'mail.rate = 20', '20/s, 600/m'),
    (Start({'retry': '5'}), 'mail.retry = 5', '90s, 5m, 2h, 3d'),
    (Start({'retry': ','}), 'mail.retry = ,', '1m 5m 15m'),
    (Start({'retry': '1m 0s'}), 'mail.retry = 1m 0s', 'more than 0s'),
    (Start({'give_up_after': 'never'}), 'mail.give_up_after = never', '90s, 5m, 2h, 3d'),
    (Start({'give_up_after': '99999d'}), 'mail.give_up_after = 99999d', 'at most 3650d'),
    (Start({'keep_failed': 'a month'}), 'mail.keep_failed = a month', '90s, 5m, 2h, 3d; or off'),
    (Start({'keep_failed': '0s'}), 'mail.keep_failed = 0s', 'more than 0s; or off'),
    (Start({'keep_failed': '0'}), 'mail.keep_failed = 0', '90s, 5m, 2h, 3d; or off'),
    (Start({'keep_failed': True}), 'mail.keep_failed = true', '90s, 5m, 2h, 3d; or off'),
    (Start({'keep_failed': '9999d'}), 'mail.keep_failed = 9999d', 'at most 3650d; or off'),
    (Start({'max_size': '25 MiB'}), 'mail.max_size = 25 MiB', '500K, 25M, 1G'),
    (Start({'queue_sync': 'sometimes'}), 'mail.queue_sync = sometimes', 'always, vote or off'),
    (Start({'queue_mode': '0770'}), 'mail.queue_mode = 0770', 'private or group'),
    (Start({'in_doubt': 'drop'}), 'mail.in_doubt = drop', 'hold or send'),
    (Start({'ambiguous': 'drop'}), 'mail.ambiguous = drop', 'resend or hold'),
    (Start({'direct_wait': '30s'}), 'mail.direct_wait = 30s', 'write true or false'),
    (Start({'direct_timeout': '0s'}), 'mail.direct_timeout = 0s', 'more than 0s'),
    # Settings that contradict each other
    (Start({'url': 'smtp://a', 'host': 'a'}), 'mail.url and mail.host', 'keep mail.url'),
    (Start({'tls': True, 'ssl': True}), 'mail.tls and mail.ssl', 'keep mail.ssl'),
    (
        Start({'username': 'ann', 'password': SECRET, 'password_file': '/x'}),
        'mail.password and mail.password_file',
        'keep one',
    ),
    (
        Start({}, {'MAIL_URL': f'smtp://ann:{SECRET}@a', 'MAIL_PASSWORD': SECRET}),
        'MAIL_URL and MAIL_PASSWORD',
        'keep one',
    ),
    (
        Start({'url': f'smtp://a:{SECRET}@a smtp://b:{SECRET}@b'}, {'MAIL_PASSWORD': SECRET}),
        'MAIL_PASSWORD in the environment, and 2 passwords in mail.url',
        'remove those',
    ),
    (
        Start({'url': 'smtp://a@b?token=os.getcwd'}, {'MAIL_PASSWORD': SECRET}),
        'MAIL_PASSWORD in the environment, and a token in mail.url',
        'keep one',
    ),
    (
        Start({'url': 'smtp://b?token=os.getcwd', 'username': 'a', 'password': SECRET}),
        'mail.url has a token, and mail.password is set too',
        'write one of them',
    ),
    (Start({'username': 'ann'}), 'user name without a password', 'mail.password'),
    (Start({'password': SECRET}), 'password without a user name', 'mail.username'),
    (Start({'host': 'a', 'username': 'ann'}), 'mail.host has a user name', 'mail.password'),
    (Start({}, {'MAIL_PASSWORD': SECRET}), 'password without a user name', 'mail.username'),
    (
        Start({'url': f'smtp://ann:{SECRET}@a', 'username': 'ann', 'password': SECRET}),
        'mail.url has credentials, and so have mail.username',
        'in one place',
    ),
    (
        Start({'url': 'null:', 'username': 'ann', 'password': SECRET}),
        'mail.url is null:',
        'without mail.username',
    ),
    (
        Start({'username': 'ann', 'password': f'{SECRET}\0'}),
        'mail.username and mail.password cannot hold a NUL',
        '',
    ),
    # The URL
    (Start({'url': 'a b'}), 'mail.url has a blank that', '%20'),
    (Start({}, {'MAIL_URL': ' '}), 'MAIL_URL is empty', 'write one URL or more'),
    (Start({}, {'MAIL_URL': 'relay'}), 'MAIL_URL does not say', 'smtp: before the host'),
    (Start({'url': 'relay:25'}), 'mail.url does not say', 'smtp: before the host'),
    (Start({}, {'MAIL_URL': '"null:"'}), 'MAIL_URL begins with a quotation mark', 'without quotes'),
    (Start({'url': 'stmp://relay'}), 'mail.url begins with stmp:', 'smtp: perhaps'),
    (
        Start({'url': 'smtp://a, smtp://b'}),
        'mail.url has a comma before',
        'a blank or a line break',
    ),
    (
        Start({'url': f'smtp://a x{SECRET}://b'}),
        'mail.url (the second) begins with an unknown',
        '%20',
    ),
    (Start({}, {'MAIL_URL': 'null: smtp://'}), 'MAIL_URL (the second) names no host', 'smtp://'),
    (Start({'url': 'smtp://'}), 'mail.url names no host', 'smtp://relay'),
    (Start({'url': 'smtp://re..lay'}), 'mail.url has a bad host', 'letters, digits'),
    (Start({'url': 'smtp://a[b'}), 'mail.url has a bad host', 'in brackets'),
    (Start({'url': 'smtp://[relay]'}), 'mail.url has no IPv6', 'smtp://[2001:db8::25]'),
    (Start({'url': 'smtp://[fe80::1%25]'}), 'mail.url has a bad zone', '[fe80::1%25eth0]'),
    (Start({'url': 'smtp://é\u00ad.example'}), 'without a certain ASCII form', 'write it as xn--'),
    (Made(SMTPMailer, 'é\u00ad.example', {'hostname': 'a'}), 'host: ', 'write it as xn--'),
    (Made(ascii_domain, f'{"é." * 200}example'), 'at most 253 characters', ''),
    (Start({'url': 'smtp://relay:0'}), 'mail.url has a bad port', 'from 1 to 65535'),
    (Start({'url': f'smtp://a:{SECRET}/@b'}), 'mail.url has a / before the @', '%2F'),
    (Start({'url': 'smtp://a/path'}), 'mail.url has a path', '%2F'),
    (Start({'url': f'smtp://a:{SECRET}#@b'}), 'mail.url has a #', '%23'),
    (Start({'url': f'smtp://a:1?{SECRET}@b'}), 'mail.url has an @ after', '%3F'),
    (Start({'url': f'smtp://a:%{SECRET}@b'}), 'mail.url has a stray %', '%25'),
    (Start({'url': f'smtp://a:%FF{SECRET}@b'}), 'other than UTF-8', 'percent-encoded'),
    (Start({'url': 'smtp://a?cafile=/x'}), 'unknown option cafile=', 'ca_file= perhaps'),
    (Start({'url': 'smtp://a?tls'}), 'option tls without a value', 'tls=VALUE'),
    (Start({'url': 'smtp://a?tls=a&tls=b'}), 'option tls= twice', 'once'),
    (Start({'url': 'smtp://a?tls=none'}), 'option tls=', 'smtp+insecure:'),
    (Start({'url': 'smtp://a?timeout=9'}), 'option timeout=', '90s, 5m'),
    (Start({'url': 'smtp://a?timeout=0s'}), 'option timeout=', 'more than 0s'),
    (Start({'url': 'smtp://a?pipelining=2'}), 'option pipelining=', 'on or off'),
    (Start({'url': 'smtp://a?max_recipients=0'}), 'option max_recipients=', 'from 1'),
    (Start({'url': 'smtp://a?window=wide'}), 'option window=', 'from 1'),
    (Start({'url': 'smtp://a?notify=always'}), 'mail.url: notify=always', 'write never'),
    (Start({'url': 'smtp://a?ret=all'}), 'mail.url: ret=all', 'write full or headers'),
    (Start({'url': 'smtp://a@b?token_file=t'}), 'option token_file=', 'the absolute path'),
    (Start({'url': 'smtp://a@b?token=no.such'}), 'option token=', 'what can be imported'),
    (Start({'url': 'smtp://a@b?token=os.sep'}), 'option token=', 'the dotted name'),
    (Start({'url': f'smtp://a@b?token={SECRET}'}), 'option token=', 'the dotted name'),
    (Start({'url': 'smtp://b?token=os.getcwd'}), 'token without a user name', 'mail.username'),
    (Start({'url': f'smtp://a:{SECRET}@b?token=os.getcwd'}), 'a password and a token', 'one of'),
    (
        Start({'url': 'smtp://a@b?token=os.getcwd&token_file=/x'}),
        'token= and token_file=',
        'one of them',
    ),
    (Start({'url': 'lmtp://a:25'}), 'mail.url: LMTP is not spoken on port 25', 'write the port'),
    (Start({'url': 'smtp://a%0A@b?token=os.getcwd'}), 'the user name beside a token', 'control'),
    (Made(SessionOptions, None, {'window': 0}), 'window=0', 'write 1 or more'),
    (Made(SessionOptions, None, {'max_recipients': 0}), 'max_recipients=0', 'write 1 or more'),
    (Start({'url': f'smtp://a?ca_file={NOT_HERE}'}), f'ca_file={NOT_HERE}', 'No such file'),
    (Start({'url': f'smtp://a?ca_file={HERE}'}), f'ca_file={HERE}', 'no PEM file'),
    (Start({'url': f'smtp://a?client_cert={HERE}'}), f'client_cert={HERE}', 'no PEM file'),
    (Start({'url': 'smtp://a?client_key=/k'}), 'client_key=', 'client_cert= beside'),
    (Start({'url': 'smtp+insecure://a?tls=required'}), 'tls= for smtp+insecure:', 'smtps:'),
    (Start({'url': 'file:mail'}), 'file: path that is not absolute', 'file:///absolute'),
    (Start({'url': 'file:///a%00b'}), 'NUL character in the path', 'file:///absolute'),
    (Start({'url': 'file:///a?b=c'}), 'has options', 'without ?'),
    (Start({'url': f'file://a:{SECRET}@localhost/a'}), 'takes no credentials', 'without'),
    (Start({'url': 'null:x'}), 'more than null:', 'null: alone'),
    (Start({'url': 'lmtp+unix:socket'}), 'lmtp+unix: path that is not', 'lmtp+unix:/absolute'),
    (Start({'url': 'sendmail:program'}), 'sendmail: path that is not', 'sendmail:/absolute'),
    # Directives
    (Directive('set_mailer', 'no.such'), 'config.set_mailer: no.such', 'the dotted name'),
    (Directive('set_mailer', MemoryQueue()), 'config.set_mailer', 'IMailer: give'),
    (Directive('set_mail_queue', None), 'config.set_mail_queue', 'IMailQueue: give'),
    (Queue({'mail.delivery': 'direct'}), 'mail.delivery = direct: a OtherQueue', 'mail.delivery ='),
    (Queue({}), 'no queue processor is registered for', 'registerAdapter(factory'),
    (
        Directive('set_mail_delivery', lambda registry: f'smtp://ann:{SECRET}@relay'),
        'config.set_mail_delivery',
        'IMailDelivery: give',
    ),
    # Mailers made by hand
    (Made(FileMailer, 'mail'), 'file:mail', 'is not absolute'),
    (Made(SendmailMailer, 'sendmail'), 'sendmail:sendmail', 'is not absolute'),
    (
        Made(LMTPMailer.unix, 'socket', {'hostname': 'a'}),
        'lmtp+unix:socket',
        'is not absolute',
    ),
    (Made(FailoverMailer, [NullMailer()]), 'failover', 'two mailers or more'),
    (
        Made(make_mailer, 'relay', {'hostname': 'a', 'password': SECRET, 'token': str}),
        'a token goes with a user name',
        'without a password',
    ),
    # Tokens, which are asked for when a mailer connects
    (Made(TokenFile, 'token'), 'token_file=token', 'is not absolute'),
    (Made(read_token, NOT_HERE), f'token_file={NOT_HERE}', 'No such file'),
    (Made(read_token, '/dev/null'), 'token_file=/dev/null', 'empty first line'),
    (Made(read_token, sys.executable), f'token_file={sys.executable}', 'is not ASCII'),
    (Made(prove, f'{SECRET} {SECRET}'), 'what it returned is no access token', 'RFC 6750'),
    (Made(SMTPMailer, 'relay', {'hostname': 'a b'}), "mail.hostname: 'a b'", 'host name'),
    (
        Made(SMTPMailer, 'relay', {'hostname': 'x', 'identity': ANN, 'username': 'bob'}),
        'identity: leave out',
        'username, password and token',
    ),
    (
        Made(SMTPMailer, 'relay', {'hostname': 'x', 'tls': TLSOptions('none'), 'insecure': True}),
        'tls: leave out insecure',
        'beside TLSOptions',
    ),
    (
        Made(make_mailer, 'relay', {'hostname': 'a', 'username': 'ann'}),
        'mail.username and mail.password',
        'need each other',
    ),
    (Made(make_mailer, 'relay', {'hostname': 'a', 'insecure': True}), 'insecure', "tls='none'"),
    (
        Made(
            make_mailer,
            'relay',
            {'hostname': 'a', 'tls': 'none', 'username': 'ann', 'password': SECRET},
        ),
        'a password is not sent in clear',
        'smtp+insecure:',
    ),
    # Messages: what is one
    (Send(None), 'message: NoneType', 'pass a pyramid_sendmail.Message'),
    (Send(SECRET), 'message: str', 'pass a pyramid_sendmail.Message'),
    (Send(Textual()), 'to_message() of Textual gave a str', 'EmailMessage'),
    # Messages: addresses
    (Send({'to': ()}), 'to: the message has no recipient', 'give to, cc, bcc'),
    (Start({'envelope_sender': '<>'}), 'mail.envelope_sender: ', "sender='' of send"),
    (Send({'sender': None}), 'sender: the message has none', 'set mail.default_sender'),
    (Send(stdlib(From='')), 'From: the message has none', 'set mail.default_sender'),
    (Send({'sender': 'team:;'}), 'sender:', 'not an address'),
    (Send({'sender': ['a@x', 'b@x']}), 'sender: several addresses', "headers={'Sender'"),
    (Send({'sender': 'a@x, b@x'}), "sender: 'a@x, b@x' is not one address", 'give a list'),
    (at('a@x, Ann <b@x>'), "to: 'a@x, Ann <b@x>' is not one address", 'give a list'),
    (at('team: a@x;'), "to: 'team: a@x;' is not one address", 'give a list'),
    (Send({'to': ('Ann', 'ann@x')}), "to: 'Ann' has no @", "[('Ann', 'ann@example.org')]"),
    (Send({'to': [('Ann', 'a@x', 'b@x')]}), 'is not an address', "a pair ('Ann',"),
    (Send({'to': [('Ann', 'a@x, b@x')]}), 'to:', 'write name@example.org'),
    (Send({'headers': {'Errors-To': 'a@x, b@x'}}), 'Errors-To:', 'give a list'),
    (Send({}, {'recipients': 'a@x, b@x'}), 'option recipients:', 'give a list'),
    (Send({'to': 25}), 'to: 25 holds no addresses', 'give a str'),
    (Send({'to': ['ann@example.org', 25]}), 'to: 25 is not an address', 'give a str'),
    (Send({'to': ['a@x, b@x']}), "to: 'a@x, b@x' is not one address", 'a string for each'),
    (Send({'cc': b'ann@example.org'}), 'cc: ', 'give a str'),
    (Send({'bcc': [None]}), 'bcc: None', 'give a str'),
    (Send({'reply_to': 'Ann'}), "reply_to: 'Ann'", 'write name@example.org'),
    (at('ann'), "to: 'ann' has no @", 'write name@example.org'),
    (at('Ann'), "to: 'Ann' has no @", "use Address('Ann', addr_spec='ann@example.org')"),
    (at(''), 'to: an empty address', 'write name@example.org'),
    (at('a@x,, b@x'), 'to: an empty address', 'leave it out'),
    (at('Ann (a@x'), 'to:', 'a parenthesis is not closed'),
    (at('Ann <a@x> b'), 'to:', 'nothing may follow'),
    (at('a@x b@x'), 'to:', 'write name@example.org'),
    (at('a]@x'), 'to:', 'out of place'),
    (at('team: a@x, ;'), 'to:', 'a comma has nothing after it'),
    (at('team: a@x'), 'to:', 'ends with a semicolon'),
    (at('team: a@x; b@x'), 'to:', 'separated by commas'),
    (at('a;b'), 'to:', 'separated by commas'),
    (at('Ann@home <a@x>'), 'to:', 'needs double quotes'),
    (at('a..b@x'), 'to:', 'the part before the @ is not valid'),
    (at('"a\tb"@x'), 'to:', 'a bare quote or a tab'),
    (at('-f@x'), 'to:', 'begins with a hyphen'),
    (at('"-f"@x'), 'to:', 'begins with a hyphen'),
    (at('=?utf-8?q?a?=@x'), 'to:', 'RFC 2047 forbids'),
    (at('"=?utf-8?q?a?="@x'), 'to:', 'RFC 2047 forbids'),
    (at(f'{"a" * 65}@x'), 'to:', 'longer than 64 bytes'),
    (at(f'a@{".".join(["b" * 60] * 5)}'), 'to:', 'is not a domain'),
    (at(f'a@{".".join(["b" * 60] * 4)}.{"b" * 9}'), 'to:', 'longer than 254 bytes'),
    (at('a@[1.2.3]'), 'to:', '[192.0.2.1]'),
    (at('a@fa\u00adß.example'), 'to:', 'xn--'),
    (at('a@[IPv6:fe80::1%eth0]'), 'to:', '[IPv6:2001:db8::1]'),
    (at('a@b_c.example'), 'to:', 'is not a domain'),
    (at('ann@example.org\r\nBcc: x@example.org'), 'to:', 'has a line break; take it out'),
    (Send({'to': Address('Ann', 'a', 'x y')}), 'to:', 'write name@example.org'),
    # Messages: headers
    (Send({'subject': 'a\nb'}), 'subject:', 'has a line break; take it out'),
    (Send({'subject': 'a\0b'}), 'subject:', 'U+0000; take it out'),
    (Send({'subject': 'a\ud800b'}), 'subject:', 'lone surrogate'),
    (Send({'subject': 3}), 'subject: 3 is not a string', 'give a str'),
    (Send({'subject': Path('a')}), 'is not a string', 'give str() of it'),
    (Send({'subject': TranslationString('title')}), 'a translation string', 'localizer.translate('),
    (Send({'subject': LazyText()}), 'a LazyText whose str() is another text', 'give str() of it'),
    (Send({'headers': [('X-A', 'b')]}), 'headers:', 'give a dict'),
    (Send({'headers': {'X A': 'b'}}), "headers: 'X A'", 'without blanks'),
    (Send({'headers': {'X-A\r\nX-B': 'c'}}), 'headers:', 'without blanks'),
    (Send({'headers': {'X-A': 'b\r\nX-B: c'}}), 'headers, X-A:', 'take it out'),
    (Send({'headers': {'X-A': 1}}), 'headers, X-A: 1', 'give a str'),
    (Send({'headers': {'X-A': 'b', 'x-a': 'c'}}), 'headers: x-a is given twice', 'leave one'),
    (Send({'headers': {'To': 'a@x'}}), 'headers: To', 'use to'),
    (Send({'headers': {'Content-Type': 'a/b'}}), 'headers: Content-Type', 'use attachments'),
    (Send({'headers': {'DKIM-Signature': 'v=1'}}), 'headers: DKIM-Signature', 'let the relay sign'),
    (Send({'headers': {'Message-ID': 'x'}}), "Message-ID: 'x'", 'write <unique@'),
    (Send({'headers': {'Date': 'today'}}), "Date: 'today'", 'format_datetime'),
    (Send({'headers': {'Sender': 'x'}}), "Sender: 'x'", 'write name@example.org'),
    (Send({'headers': {'In-Reply-To': '<ä@x>'}}), 'In-Reply-To:', 'write the ASCII form'),
    (Send({'headers': {'References': 'x' * 2000}}), 'References: ', 'shorten'),
    (Send({'tag': ''}), "tag: ''", 'write 1 to 200'),
    (Send({'tag': 'a\nb'}), 'tag:', 'take it out'),
    # Messages: content
    (Send({'text': None}), 'text: the message has no content', 'give text, html'),
    (Send({'text': SECRET.encode()}), 'text: a bytes', 'give a str'),
    (Send({'html': f'{SECRET}\ud800'}), 'html: character 6', "errors='replace'"),
    (Send({'html': '<img src="cid:logo">'}), 'html: it refers to cid:logo', "content_id='logo'"),
    (
        Send({'text': 'x' * 2000}, {}, {'max_size': '1K'}),
        'mail.max_size = 1K; send less',
        'or raise',
    ),
    # Attachments
    (Send({'attachments': 3}), 'attachments: int', 'give a list'),
    (Send({'attachments': ['a.pdf']}), 'attachments: str', 'give Attachment('),
    (attached(None, SECRET), 'attachments: one has neither', 'give a name'),
    (attached('..', SECRET), "filename: '..'", 'give another'),
    (attached('a\nb', SECRET), 'attachments, filename:', 'take it out'),
    (attached('a.pdf'), "attachment 'a.pdf'", 'give data or path'),
    (attached('a.pdf', SECRET, path='/x'), "attachment 'a.pdf'", 'give data or path'),
    (attached('a.pdf', 3), "attachment 'a.pdf': data is a int", 'give bytes'),
    (attached('a.txt', f'{SECRET}\ud800'), "attachment 'a.txt'", 'give bytes'),
    (attached('a', path=3), 'attachments, path: 3', 'give a str or a Path'),
    (attached(None, path=NOT_HERE), f"'{NOT_HERE}' cannot be read", 'No such file'),
    (attached('a', 'a/b', SECRET.encode()), 'attachments, path: a bytes', 'content_type=...'),
    (attached(None, path='no.such:x'), "'no.such:x' cannot be read: there is no package", ''),
    (attached(None, path='no/logo.png'), 'the current folder of the process', 'an absolute path'),
    (attached(None, path='/dev'), "'/dev' is not a regular file", 'give the path'),
    (
        Send({'attachments': [Attachment('a', path=HERE)]}, {}, {'max_size': '1K'}),
        'is larger than mail.max_size = 1K; ',
        'send a link',
    ),
    (attached('x' * 1001, ''), "filename: 'xxx", 'shorten it'),
    (
        attached('a', '', content_type='a/b' + '; a=b' * 400),
        "attachment 'a': its content_type has 2003 characters",
        'leave parameters out',
    ),
    (attached('a.pdf', '', content_type='pdf'), "'pdf' is not a content_type", 'application/'),
    (
        attached('a', '', content_type='multipart/mixed'),
        'multipart/mixed cannot be attached',
        'message/rfc822',
    ),
    (
        attached('a.eml', 'To: jörg@x\r\n\r\n', content_type='message/rfc822'),
        'an address in its headers is not ASCII',
        'attach it as application/octet-stream',
    ),
    (
        attached('a.eml', 'x: ä\n' * 1_000_001, content_type='message/rfc822'),
        'its more than 500000 lines',
        'attach it as application/octet-stream',
    ),
    (
        attached('a.eml', NESTED, content_type='message/rfc822'),
        'nested more than 20 deep',
        'attach it as application/octet-stream',
    ),
    (attached('a.png', b'', content_id='a b'), "content_id 'a b'", "content_id='logo'"),
    (
        Send({'attachments': [Attachment('a', '', content_id='c')] * 2}),
        "content_id 'c' is given twice",
        'each needs its own',
    ),
    (
        attached('a.eml', f'{MULTIPART}\r\n\r\n{SECRET} ä', content_type='message/rfc822'),
        "attachment 'a.eml'",
        'attach it as application/octet-stream',
    ),
    # Messages of other libraries
    (Send(Chosen()), 'send_to:', 'write name@example.org'),
    (Send(stdlib(To='ann')), 'To:', 'write name@example.org'),
    (Send(stdlib(To='a@x b@x')), 'To:', 'separate them by commas'),
    (Send(parameter('ä')), "Content-Type: 'ä'", 'a parameter name'),
    (Send(stdlib(To=[])), 'to: the message has no recipient', 'give to, cc, bcc'),
    (Send(stdlib(Resent_To='bob@example.org')), 'no recipient', 'option recipients'),
    (Send(stdlib(Message_ID='x')), 'Message-ID:', 'write <unique@'),
    (Send(raw(('Date', 'today'))), 'Date:', 'format_datetime'),
    (Send(raw(('From', 'b@x'))), 'From: the message has more than one', 'RFC 5322'),
    (Send(raw(('Sender', 'a@x, b@x'))), 'Sender: it holds several', 'give one'),
    (Send(raw(('X A', 'b'))), "message: 'X A'", 'without blanks'),
    (Send(raw(('X-A', 'b\r\nBcc: c@x'))), 'X-A:', 'take it out'),
    (Send(raw(('X-A', 3))), 'X-A: 3', 'give a str'),
    (Send(raw(('X-A', Header('a\nb: c')))), 'X-A: it cannot be encoded', ''),
    (Send(nested()), 'nested more than 50', 'attach it as a file'),
    (Send(raw(payload=[SECRET])), 'message: a part is a str', 'give a message'),
    (Send(raw(payload=3)), 'content of a part is a int', 'set_content()'),
    (
        Send(raw(('Content-Type', 'multipart/mixed'), payload=f'{SECRET} ä')),
        'content of a multipart/mixed part',
        'parse it',
    ),
    (
        Send(raw(('Content-Type', 'text/plain; charset=latin-1'), payload=f'{SECRET} \u2603')),
        'cannot be encoded in',
        'set_content()',
    ),
    (
        Send(raw(('Content-Type', 'multipart/signed'), payload=[raw(payload=SECRET * 200)])),
        'multipart/signed has lines',
        'quoted-printable or base64',
    ),
    (
        Send(
            raw(('Content-Type', 'multipart/signed; boundary=b'), payload=[raw(payload='ä')]),
            {'sender': 'a@x', 'recipients': 'b@x'},
        ),
        'multipart/signed has text that was not encoded before it was signed',
        'quoted-printable or base64',
    ),
    (
        Send(raw(('Content-Type', 'message/rfc822'), payload=[raw(('Cc', 'ä@x'))])),
        'an address in the headers of a part is not ASCII',
        'application/octet-stream',
    ),
    (
        Send(raw(('Content-Type', 'multipart/signed'), payload=[raw(payload=3)])),
        'multipart/signed has a part that is not a message',
        'quoted-printable or base64',
    ),
    (
        Send(raw(('Content-Type', 'multipart/signed'), payload=[raw(('X-A', 'b\nBcc: c@x'))])),
        'X-A: its value has a line break',
        'take it out',
    ),
    (Send(raw(('Subject', 'x' * 100_001))), 'Subject: 100001 characters', 'shorten it'),
    (
        Send(raw(('Content-Type', 'message/rfc822'), payload=[raw(), raw()])),
        'message: a message/rfc822 part holds 2 messages',
        'a part of its own',
    ),
    (Send(doubled()), 'message: its content has more bytes than mail.max_size = 25M', 'send less'),
    (Send(raw(SIGNED, ('Bcc', 'c@x'))), 'Bcc: it is covered by the DKIM sig', 'without it'),
    (Send(raw(SIGNED)), 'DKIM-Signature: it covers Date', 'set Date before signing'),
    (Send(unsent()), 'DKIM-Signature: the message has no From', 'set it before signing'),
    (
        Send(raw(('DKIM-Signature', 'h=from'), payload=f'{SECRET} ä')),
        'DKIM-Signature: the message has bytes that are not ASCII',
        'let the relay sign',
    ),
    # Options of send
    (Send({}, {'sender': 'Ann'}), "option sender: 'Ann'", 'write name@example.org'),
    (Send({}, {'sender': 'a@x, b@x'}), 'option sender:', 'exactly one address; write'),
    (Send({}, {'recipients': 'Bob'}), "option recipients: 'Bob'", 'write name@example.org'),
    (Send({}, {'recipients': []}), 'to: the message has no recipient', 'option recipients'),
    (Send({}, {'due': 3}), 'due: 3 is not a time', 'give an aware datetime'),
    (Send({}, {'due': timedelta(1)}), 'due: without a queue', 'set mail.queue_path'),
    (Send({}, {'due': NOW.replace(tzinfo=None)}), 'due: 2026-11-23', 'timezone.utc'),
    (Send({}, {'due': timedelta(-1)}), 'due: -1 day', 'a positive timedelta'),
    (Send({}, {'due': datetime.max.replace(tzinfo=UTC)}), 'due: 9999', 'an earlier moment'),
    (Send({}, {'expires': NOW.replace(year=2000)}), 'expires:', 'a later moment'),
    (Send({}, {'priority': 'urgent'}), "priority: 'urgent'", "'high', 'normal' or 'low'"),
    (Send({}, {'metadata': ['a']}), 'metadata:', 'give a dict'),
    (Send({}, {'metadata': {'a': 1}}), "metadata: 'a'", 'use str()'),
    (Send({}, {'metadata': {'a': '\ud800'}}), 'metadata:', 'take it out'),
    (Send({}, {'metadata': {'a': 'x' * 5000}}), 'metadata: 50', 'keep an id'),
    (Send({}, {'cause': 'order 7'}), 'cause:', 'give the event'),
]

TRANSACTIONS: list[tuple[Callable[[Any], Any], str, str]] = []
"""Cases that need a delivery and a transaction, added below."""


def in_transaction(names: str, remedy: str) -> Callable[[Any], Any]:
    def add(case: Callable[[Any], Any]) -> Callable[[Any], Any]:
        TRANSACTIONS.append((case, names, remedy))
        return case

    return add


GOOD = Message(to='ann@example.org', sender='shop@example.org', text=SECRET)


@in_transaction('no active transaction', 'send_now()')
def transaction_not_begun(bind: Any) -> None:
    bind(transaction.TransactionManager()).send(GOOD)


@in_transaction('no active transaction', 'with request.tm:')
def explicit_and_not_begun(bind: Any) -> None:
    bind(transaction.TransactionManager(explicit=True)).send(GOOD)


@in_transaction('no active transaction', 'send_now()')
def begun_by_its_environment_only(bind: Any) -> None:
    manager = transaction.TransactionManager(explicit=True)
    bind(manager, {'tm.active': True}).send(GOOD)


@in_transaction('takes no mail any more', 'call send before the commit')
def in_a_hook(bind: Any) -> None:
    manager = transaction.TransactionManager(explicit=True)
    caught: list[Exception] = []

    def hook(committed: bool) -> None:
        try:
            bind(manager).send(GOOD)
        except NoActiveTransaction as error:
            caught.append(error)

    manager.begin().addAfterCommitHook(hook)
    manager.commit()
    raise caught[0]


@in_transaction('ann@example.org: 550 no such user', '550')
def refused(bind: Any) -> None:
    bind(transaction.TransactionManager()).send_now(GOOD)


@in_transaction('recording:', 'connection refused')
def unavailable(bind: Any) -> None:
    RELAY.unavailable = 'connection refused'
    bind(transaction.TransactionManager()).send_now(GOOD)


RELAY = RecordingMailer()


def bound() -> Any:
    RELAY.unavailable = None
    RELAY.always('ann@example.org', Verdict('failed', Reply(550, 'no such user')))
    config = Configurator(settings={'mail.url': 'null:'})
    config.include('pyramid_sendmail')
    config.set_mailer(RELAY)
    config.commit()
    return config.registry.getUtility(IMailDelivery).bind


def application(global_config: Any, **settings: str) -> Any:
    """Make the application of the ini files below."""
    included = settings.pop('include', 'pyramid_sendmail')
    config = Configurator(settings=settings)
    if included:
        config.include(included)
    return config.make_wsgi_app()


def two(global_config: Any, **settings: str) -> Any:
    applications = [application(global_config, **settings) for _ in range(2)]

    def dispatch(environ: Any, start_response: Any) -> Any:
        return applications[0](environ, start_response)

    return dispatch


def none(global_config: Any, **settings: str) -> Any:
    return lambda environ, start_response: []


def misled(global_config: Any, **settings: str) -> Any:
    config = Configurator(settings=settings)
    config.include('pyramid_sendmail')
    config.set_mailer('no.such')


def faulty_action(global_config: Any, **settings: str) -> Any:
    config = Configurator(settings=settings)
    config.action('x', lambda: faulty(global_config))
    config.commit()


def faulty(global_config: Any, **settings: str) -> Any:
    raise ZeroDivisionError('the application is wrong')


INI = '[app:main]\nuse = call:tests.integration.test_bad_input:application\n'

PROCESSOR: list[tuple[list[str], str | None, str, str, int]] = [
    # Arguments, ini file, what the text must name, the remedy, and the exit status.
    ([], None, 'config_uri', 'usage:', 2),
    (['{ini}', '--workers', '0'], INI, "--workers: '0'", '1 or more', 2),
    (['{ini}', '--batch', 'x'], INI, "--batch: 'x'", '1 or more', 2),
    (['{ini}', '--child=1'], INI, '--child', 'only psendmail-qp itself', 2),
    (['{ini}', '--child=1/2:999'], INI, '--child', 'only psendmail-qp itself', 2),
    (['{ini}', '--all'], INI, '--all', 'usage:', 2),
    (['{ini}', '--reload', '--once'], INI, '--reload', 'leave out --once', 2),
    (['{ini}', '--reload', '--processes=2'], INI, '--reload', 'leave out --processes', 2),
    (['{ini}', 'verbose'], INI, "'verbose'", 'key=value', 2),
    (['{ini}', f'mail.password={SECRET}'], INI, 'mail.password=:', '--set mail.password=', 2),
    (['{ini}', '--set', 'mail.url'], INI, '--set mail.url', 'mail.NAME=VALUE', 2),
    (['{ini}', '--set', f'region={SECRET}'], INI, '--set region', 'mail.NAME=VALUE', 2),
    (['{ini}', '--set', 'mail.urll=null:'], INI, 'unknown setting mail.urll', 'mail.url?', 2),
    (['{ini}'], None, '{ini}', 'No such file', 2),
    (['{ini}#other'], INI, 'other', '{ini}', 2),
    (['{ini}#other'], INI, "No section 'other'", 'it has main: write {ini}#main', 2),
    (['/tmp'], INI, '/tmp: ', 'write the .ini file', 2),
    (['{ini}'], INI, 'no mail queue', 'mail.queue_path = %(here)s/mail', 2),
    (['{ini}'], f'{INI}include =\n', 'does not include', "include('pyramid_sendmail')", 2),
    (['{ini}'], f'{INI}mail.queue_path = mail\n', 'mail.queue_path = mail', '%(here)s/mail', 2),
    (
        ['{ini}'],
        f'{INI}mail.queue_path = %(here)s/mail\nmail.url = smtp://ann:%(here)s@@relay\n',
        'mail.url',
        'write',
        2,
    ),
    (
        ['{ini}'],
        f'{INI}mail.url = smtp://ann:%%{SECRET}@relay\n',
        'mail.url has a stray %',
        '%25',
        2,
    ),
    (
        ['{ini}'],
        '[app:main]\nuse = call:tests.integration.test_bad_input:faulty\n',
        'could not be loaded',
        'the application is wrong',
        2,
    ),
    (
        ['{ini}'],
        '[app:main]\nuse = call:tests.integration.test_bad_input:faulty_action\n',
        'could not be loaded',
        'the application is wrong',
        2,
    ),
    (
        ['{ini}'],
        '[app:main]\nuse = call:tests.integration.test_bad_input:misled\n',
        'config.set_mailer: no.such',
        'the dotted name',
        2,
    ),
    (
        ['{ini}'],
        '[app:main]\nuse = call:tests.integration.test_bad_input:none\n',
        'no Pyramid application',
        '',
        2,
    ),
    (
        ['{ini}'],
        '[app:main]\nuse = call:tests.integration.test_bad_input:two\n'
        'mail.queue_path = %(here)s/mail\n',
        '2 applications with a mail queue',
        'name one, {ini}#NAME',
        2,
    ),
    (['{ini}'], f'{INI}[loggers]\nkeys = root\n', 'logging sections', '', 2),
    (['{ini}'], 'no ini file at all', '{ini}', 'no section headers', 2),
    (
        ['{ini}', '--once'],
        f'{INI}mail.queue_path = {HERE}/mail\n',
        'cannot be created',
        'mail.queue_path',
        3,
    ),
]


def assert_helps(error: BaseException, names: str, remedy: str) -> None:
    """Check the text, and that no error of the traceback shows the secret (source lines may)."""
    text = str(error)
    assert names in text
    assert remedy in text
    assert SECRET not in text
    chain = traceback.TracebackException.from_exception(error)
    while chain is not None:
        assert SECRET not in str(chain)
        chain = chain.__cause__ or chain.__context__  # type: ignore[assignment]


def identify(value: Any) -> str | None:
    return f'{type(value).__name__}' if isinstance(value, Start | Send | Directive | Made) else None


@pytest.mark.parametrize(('case', 'names', 'remedy'), TABLE, ids=identify)
def test_bad_input(case: Callable[[], Any], names: str, remedy: str) -> None:
    """The error names what is wrong and what to write, and shows no secret."""
    with pytest.raises((ConfigurationError, ValueError)) as caught:
        case()
    assert isinstance(caught.value, ConfigurationError | SendmailError) or isinstance(case, Made)
    assert_helps(caught.value, names, remedy)


@pytest.mark.parametrize(('case', 'names', 'remedy'), TRANSACTIONS)
def test_bad_moment(case: Callable[[Any], Any], names: str, remedy: str) -> None:
    """So do the errors of ``send`` and ``send_now`` about transactions and relays."""
    with pytest.raises((NoActiveTransaction, MailRefused, MailerUnavailable)) as caught:
        case(bound())
    assert_helps(caught.value, names, remedy)


@pytest.mark.parametrize(('argv', 'ini', 'names', 'remedy', 'status'), PROCESSOR)
@pytest.mark.usefixtures('logging_as_before')
def test_bad_processor(
    argv: list[str],
    ini: str | None,
    names: str,
    remedy: str,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``psendmail-qp`` prints the error on stderr and gives it by its exit status."""
    for name in ('MAIL_URL', 'MAIL_PASSWORD'):
        monkeypatch.delenv(name, raising=False)
    path = str(tmp_path / 'app.ini')
    if ini is not None:
        Path(path).write_text(ini, encoding='utf-8')
    assert qp.run([each.replace('{ini}', path) for each in argv]) == status
    text = capsys.readouterr().err
    assert names.replace('{ini}', path) in text
    assert remedy.replace('{ini}', path) in text
    assert SECRET not in text


def test_later_features_are_absent() -> None:
    """To use a feature of a later release is an ordinary Python error: there is no stub."""
    with pytest.raises(TypeError, match='key'):
        Send({}, {'key': 'once'})()
    with pytest.raises(AttributeError, match='compose'):
        bound()(transaction.manager).compose('welcome', {}, to='ann@example.org')
    with pytest.raises(AttributeError, match='add_mail_preview'):
        Start({})().add_mail_preview('welcome')


# Refusals without a row


def raising(tree: ast.AST) -> Iterator[tuple[int, int, str]]:
    """Yield first line, last line and text of each place that refuses input."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            function = node.exc.func
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
        else:
            continue
        name = function.id if isinstance(function, ast.Name) else ''
        if name in USER_ERRORS | RAISING or (name == 'ValueError' and isinstance(node, ast.Raise)):
            strings = [
                each.value
                for each in ast.walk(node)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
            yield node.lineno, node.end_lineno or node.lineno, ' '.join(strings)


CHECKED = {'config', 'delivery', 'mailers', 'message', 'scripts', 'settings'}
"""The packages that see the input of a user."""

MODULES = sorted(
    path for path in PACKAGE.rglob('*.py') if path.relative_to(PACKAGE).parts[0] in CHECKED
)


@pytest.mark.usefixtures('logging_as_before')
def test_the_table_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place in the package that refuses input has a row that reaches it."""
    assert {path.relative_to(PACKAGE).parts[0] for path in MODULES} == CHECKED
    places = {
        (str(path), first, last): text
        for path in MODULES
        for first, last, text in raising(ast.parse(path.read_text(encoding='utf-8')))
    }
    lines: set[tuple[str, int]] = set()
    for case, _, _ in TABLE:
        lines.update(passed(attempted(case)))
    for moment, _, _ in TRANSACTIONS:
        lines.update(passed(attempted(moment, bound())))

    def complain(terminal: Terminal, text: str, status: int) -> int:
        # Called where the error is being handled, which becomes an exit status here.
        lines.update(passed(sys.exception()))
        return status

    monkeypatch.setattr(Terminal, 'fail', complain)
    for argv, ini, _, _, _ in PROCESSOR:
        path = tmp_path / 'app.ini'
        path.unlink(missing_ok=True)
        if ini is not None:
            path.write_text(ini, encoding='utf-8')
        qp.run([each.replace('{ini}', str(path)) for each in argv])
    for text in ('1', '1/2:999'):
        # Through argparse, which handles the error itself.
        with pytest.raises(ValueError, match='only psendmail-qp itself') as refused:
            SupervisorLink.parse(text)
        lines.update(passed(refused.value))
    slow = parse(rate='1/s')
    with pytest.raises(ConfigurationError, match='restart psendmail-qp') as caught:
        share_of_settings(slow, 2, 2)
    lines.update(passed(caught.value))
    forgotten = [
        f'{Path(path).relative_to(PACKAGE)}:{first}: {text}'
        for (path, first, last), text in places.items()
        if not any((path, line) in lines for line in range(first, last + 1))
        and not any(text.startswith(known) for known in UNREACHABLE)
    ]
    assert not forgotten, '\n'.join(forgotten)


def attempted(case: Callable[..., Any], *arguments: Any) -> BaseException:
    with pytest.raises((ConfigurationError, SendmailError, ValueError)) as caught:
        case(*arguments)
    return caught.value


def passed(error: BaseException | None) -> Iterator[tuple[str, int]]:
    """Yield the lines that an error and its causes have passed."""
    if error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            yield frame.f_code.co_filename, line
        yield from passed(error.__cause__)
        yield from passed(error.__context__)


def test_planted_refusals() -> None:
    """A refusal is found however it is written; an error that no user can cause is not."""
    for source in (
        "raise MessageError('to: no')",
        "def f():\n    if x:\n        raise ConfigurationError(f'mail.url: {x}') from error",
        "_refuse('has no host', 'one')",
        "raise _wrong(text, where, 'it has no @')",
        "raise ValueError('write true or false')",
    ):
        assert len(list(raising(ast.parse(source)))) == 1
    assert not list(raising(ast.parse("raise AssertionError('never')\nraise\nlog.error('x')")))
