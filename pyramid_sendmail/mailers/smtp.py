"""The way to a relay by SMTP: connect, TLS, credentials; then a session (RFC 5321, 3.1)."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

from zope.interface import implementer

from ..envelope import Reply
from ..exceptions import MailerUnavailable
from ..interfaces import ISMTPMailer
from .authentication import MECHANISMS, Credentials, mechanism
from .extensions import SessionOptions
from .session import SMTPSession
from .wire import TIMEOUTS, Timeouts, Wire, describe, dial

if TYPE_CHECKING:
    import ssl

__all__ = ['SMTPMailer', 'Security']

log = logging.getLogger(__name__)

Security = Literal['auto', 'starttls', 'implicit', 'none']

_HOSTNAME = re.compile(r'[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]')

_NO_EHLO = frozenset({500, 501, 502, 504})

_UNENCRYPTED = (
    'write smtps: in mail.url for TLS from the first byte (port 465 as a rule), or '
    'smtp+insecure: to speak plain text over a line that nobody else can read'
)


@implementer(ISMTPMailer)
class SMTPMailer:
    """Sends to a relay host by SMTP.

    ``hostname``: our own name, for EHLO. ``tls``: 'implicit' is TLS from the first byte;
    'starttls' demands STARTTLS; 'auto' demands it beside a password, uses it where the relay
    offers it, and leaves it be on a loopback address; 'none' speaks plain text. Whatever is
    TLS is verified, chain and host name. A password goes over TLS, or with tls='none' and
    ``insecure``, which logs a warning.

    ``ca_file``, ``client_cert``, ``client_key``: PEM files, see
    :func:`~pyramid_sendmail.mailers.tls.client_context`.

    Raises ValueError for arguments that cannot be used or contradict each other.
    """

    def __init__(
        self,
        host: str,
        port: int = 25,
        *,
        hostname: str,
        tls: Security = 'auto',
        username: str | None = None,
        password: str | None = None,
        insecure: bool = False,
        ca_file: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        timeouts: Timeouts = TIMEOUTS,
        options: SessionOptions = SessionOptions(),  # noqa: B008
    ) -> None:
        if not _HOSTNAME.fullmatch(hostname):
            raise ValueError(f'mail.hostname: {hostname!r} is no host name')
        if bool(username) != bool(password):
            raise ValueError('mail.username and mail.password need each other')
        if insecure and tls != 'none':
            raise ValueError(f"insecure goes with tls='none', not with tls={tls!r}")
        if username and tls == 'none' and not insecure:
            raise ValueError(f'a password is not sent in clear: {_UNENCRYPTED}')
        self.host = host
        self.port = port
        scheme = 'smtps' if tls == 'implicit' else 'smtp+insecure' if insecure else 'smtp'
        self.name = f'{scheme}://[{host}]:{port}' if ':' in host else f'{scheme}://{host}:{port}'
        self._hostname = hostname
        self._tls = tls
        self._credentials = Credentials(username, password) if username and password else None
        self._trust = {'ca_file': ca_file, 'client_cert': client_cert, 'client_key': client_key}
        self._timeouts = timeouts
        self._options = options
        self._context: ssl.SSLContext | None = None
        if any(self._trust.values()):
            self._context = self._new_context()
        if insecure:
            log.warning(
                '%s speaks plain text: whoever is on the line reads the mail%s',
                self.name,
                ' and the password' if self._credentials else '',
            )

    def __repr__(self) -> str:
        return f'<SMTPMailer {self.name}>'

    def connect(self) -> SMTPSession:
        """See IMailer."""
        with self._phase('connecting', 'see the host and port in mail.url'):
            wire = Wire(
                dial(self.host, self.port, self._timeouts.connect), block=self._timeouts.block
            )
        try:
            extensions = self._introduce(wire)
        except MailerUnavailable:
            wire.farewell(self._timeouts.quit)
            raise
        except BaseException:
            wire.close()
            raise
        return SMTPSession(
            wire,
            name=self.name,
            extensions=extensions,
            timeouts=self._timeouts,
            options=self._options,
        )

    def _introduce(self, wire: Wire) -> dict[str, str]:
        if self._tls == 'implicit':
            self._upgrade(wire, 'the TLS handshake', self._timeouts.greeting)
        with self._phase('the greeting', self._mute()):
            greeting = wire.reply(self._timeouts.greeting)
        if greeting.code != 220:
            self._refused('the greeting', greeting)
        extensions = self._hello(wire)
        if self._wants_starttls(extensions):
            self._start_tls(wire)
            # What was said before came from anybody (RFC 3207, 4.2).
            extensions = self._hello(wire)
        if self._credentials is not None:
            self._authenticate(wire, self._credentials, extensions)
        return extensions

    def _mute(self) -> str:
        if self.port == 465 and self._tls != 'implicit':
            return 'port 465 speaks TLS from the first byte: write smtps: in mail.url'
        return ''

    def _hello(self, wire: Wire) -> dict[str, str]:
        """Say EHLO, or HELO to a relay of before 1995, and return what it can do."""
        with self._phase('EHLO'):
            wire.write(f'EHLO {self._hostname}\r\n'.encode('ascii'))
            code, lines = wire.lines(self._timeouts.command)
        if code in _NO_EHLO:
            reply = self._ask(wire, 'HELO', self._hostname)
            if reply.code // 100 != 2:
                self._refused('HELO', reply)
            return {}
        if code // 100 != 2:
            self._refused('EHLO', Reply(code, ' '.join(lines)), 'see mail.hostname')
        extensions: dict[str, str] = {}
        for line in lines[1:]:
            # AUTH=LOGIN is how some relays spelt it before the RFC.
            keyword, _, parameters = line.replace('AUTH=', 'AUTH ', 1).partition(' ')
            keyword = keyword.upper()
            extensions[keyword] = f'{extensions.get(keyword, "")} {parameters}'.strip()
        return extensions

    def _wants_starttls(self, extensions: dict[str, str]) -> bool:
        offered = 'STARTTLS' in extensions
        if self._tls == 'starttls' or (self._tls == 'auto' and self._credentials):
            if not offered:
                self._fail('STARTTLS', 'the relay does not offer it', _UNENCRYPTED)
            return True
        return self._tls == 'auto' and offered and not _is_loopback(self.host)

    def _start_tls(self, wire: Wire) -> None:
        reply = self._ask(wire, 'STARTTLS')
        if reply.code // 100 != 2:
            self._refused('STARTTLS', reply)
        self._upgrade(wire, 'STARTTLS', self._timeouts.command)

    def _upgrade(self, wire: Wire, phase: str, timeout: float) -> None:
        from . import tls

        if self._context is None:
            self._context = self._new_context()
        try:
            wire.upgrade(self._context, self.host.rstrip('.'), timeout)
        except OSError as error:
            raise self._unavailable(phase, describe(error, timeout), tls.remedy(error)) from error

    def _new_context(self) -> ssl.SSLContext:
        from . import tls

        return tls.client_context(**self._trust)

    def _authenticate(
        self, wire: Wire, credentials: Credentials, extensions: dict[str, str]
    ) -> None:
        if not wire.secure and self._tls != 'none':
            raise AssertionError('a password over plain text')
        offered = extensions.get('AUTH')
        if offered is None:
            self._fail(
                'AUTH',
                'the relay does not offer it',
                'leave out mail.username and mail.password, or use its submission port (587, 465)',
            )
        chosen = mechanism(offered)
        if chosen is None:
            self._fail('AUTH', f'the relay offers {offered}, and not {" or ".join(MECHANISMS)}')
        with self._phase('AUTH'):
            reply = credentials.present(wire, chosen, self._timeouts.command)
        if reply.code // 100 != 2:
            reply = Reply(reply.code, credentials.hide(reply.text))
            remedy = 'see mail.username and mail.password' if reply.code // 100 == 5 else ''
            self._refused(f'AUTH {chosen}', reply, remedy)

    def _ask(self, wire: Wire, verb: str, argument: str = '') -> Reply:
        with self._phase(verb):
            wire.write(f'{verb} {argument}'.strip().encode('ascii') + b'\r\n')
            return wire.reply(self._timeouts.command)

    @contextmanager
    def _phase(self, phase: str, remedy: str = '') -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeError) as error:
            detail = describe(error, self._timeouts.connect)
            raise self._unavailable(phase, detail, remedy) from error

    def _refused(self, phase: str, reply: Reply, remedy: str = '') -> NoReturn:
        self._fail(phase, f'the relay answered {reply}', remedy)

    def _fail(self, phase: str, detail: str, remedy: str = '') -> NoReturn:
        raise self._unavailable(phase, detail, remedy)

    def _unavailable(self, phase: str, detail: str, remedy: str) -> MailerUnavailable:
        text = f'{self.name}: {phase}: {detail}'
        return MailerUnavailable(f'{text}; {remedy}' if remedy else text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip('.').lower() == 'localhost'
